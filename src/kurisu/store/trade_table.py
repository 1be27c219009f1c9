"""What a read of trades gives back: an exact Arrow table, and ways on from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa

from kurisu.domain.trade import Trade
from kurisu.store.exact_table import ExactTable, to_float64

SCHEMA: Final = pa.schema(
    [
        ("time", pa.timestamp("us", tz="UTC")),
        ("trade_id", pa.string()),
        ("side", pa.string()),
        ("price", pa.decimal128(38, 18)),
        ("amount", pa.decimal128(38, 18)),
        ("cost", pa.decimal128(38, 18)),
        ("taker_or_maker", pa.string()),
    ]
)


class TradeTable(ExactTable):
    """Trades of one market as an exact Arrow table, by time.

    table: the pyarrow.Table. Columns time (timestamp[us, UTC], whole milliseconds), trade_id,
        side (text, null where it is not known), price, amount, cost (decimal128(38, 18)),
        taker_or_maker (text, null on public trades).

    Behaves like that table (every attribute and method of pyarrow.Table is there) and exports it
    to anything that takes Arrow (`pyarrow.table(x)`, `polars.from_arrow(x)`, DuckDB).
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"TradeTable({self.table.num_rows} rows)"

    def __iter__(self) -> Iterator[Trade]:
        return self.trades()

    def trades(self) -> Iterator[Trade]:
        """One `Trade` per row, in order, converted a batch at a time."""
        for batch in self.table.to_batches(max_chunksize=10_000):
            columns = [column.to_pylist() for column in batch.columns]
            for values in zip(*columns, strict=True):
                yield Trade(*values)

    def to_numpy(self, *, float64: bool = False) -> dict[str, np.ndarray[Any, Any]]:
        """An array per column: time as datetime64[us] (UTC), numbers as Decimal objects, or as
        float64 if asked for; text as str objects, None for null.
        """
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for name in self.table.column_names:
            column = self.table.column(name)
            if name == "time":
                arrays[name] = column.cast(pa.int64()).to_numpy().view("datetime64[us]")
            elif float64 and pa.types.is_decimal(column.type):
                arrays[name] = to_float64(column).to_numpy()
            else:
                arrays[name] = np.array(column.to_pylist(), dtype=object)
        return arrays
