"""What a read gives back: an exact Arrow table, and ways on from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa

from kurisu.domain.candle import Candle
from kurisu.store.exact_table import ExactTable, to_float64

#: Key of the schema metadata that says how many bars came from which stored timeframe.
SOURCES: Final = b"kurisu.sources"


class CandleTable(ExactTable):
    """Candles as an exact Arrow table.

    table: the pyarrow.Table. Columns time (timestamp[us, UTC], open time), open, high, low, close,
        volume (decimal128(38, 18)), and for a timeframe other than 1m bars (int32): how many
        source candles are inside; null for a bar that the exchange gave as such.

    Behaves like that table (every attribute and method of pyarrow.Table is there) and exports it
    to anything that takes Arrow (`pyarrow.table(x)`, `polars.from_arrow(x)`, DuckDB).
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"CandleTable({self.table.num_rows} rows, sources {self.sources})"

    def __iter__(self) -> Iterator[Candle]:
        return self.candles()

    @property
    def sources(self) -> dict[str, int]:
        """How many bars came from which stored timeframe, e.g. {"1m": 24} or {"1h": 24}."""
        found = (self.table.schema.metadata or {}).get(SOURCES)
        return json.loads(found) if found else {}

    def candles(self) -> Iterator[Candle]:
        """One `Candle` per row, in order, converted a batch at a time."""
        for batch in self.table.to_batches(max_chunksize=10_000):
            columns = [column.to_pylist() for column in batch.columns]
            for values in zip(*columns, strict=True):
                yield Candle(*values)

    def to_numpy(self, *, float64: bool = False) -> dict[str, np.ndarray[Any, Any]]:
        """An array per column: time as datetime64[us] (UTC), numbers as Decimal objects, or as
        float64 if asked for; bars as int32 (0 for null).
        """
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for name in self.table.column_names:
            column = self.table.column(name)
            if name == "time":
                arrays[name] = column.cast(pa.int64()).to_numpy().view("datetime64[us]")
            elif pa.types.is_decimal(column.type):
                if float64:
                    arrays[name] = to_float64(column).to_numpy()
                else:
                    arrays[name] = np.array(column.to_pylist(), dtype=object)
            elif column.null_count:
                arrays[name] = column.fill_null(0).to_numpy()
            else:
                arrays[name] = column.to_numpy()
        return arrays
