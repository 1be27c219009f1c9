"""What a read gives back: an exact Arrow table, and ways on from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kurisu.domain.candle import Candle
from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    import pandas
    import polars

#: Key of the schema metadata that says how many bars came from which stored timeframe.
SOURCES: Final = b"kurisu.sources"


class CandleTable:
    """Candles as an exact Arrow table.

    table: the pyarrow.Table. Columns time (timestamp[us, UTC], open time), open, high, low, close,
        volume (decimal128(38, 18)), and for a timeframe other than 1m bars (int32): how many
        source candles are inside; null for a bar that the exchange gave as such.

    Behaves like that table (every attribute and method of pyarrow.Table is there) and exports it
    to anything that takes Arrow (`pyarrow.table(x)`, `polars.from_arrow(x)`, DuckDB).
    """

    __slots__ = ("table",)

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__arrow_c_stream__":
            raise AttributeError(name)
        return getattr(self.table, name)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, key: str | int) -> Any:
        return self.table[key]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, CandleTable):
            other = other.table
        return isinstance(other, pa.Table) and self.table.equals(other)

    __hash__ = None  # type: ignore[assignment]  # like pyarrow.Table

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

    def to_arrow(self, *, float64: bool = False) -> pa.Table:
        """The table; with `float64` its numbers are the nearest doubles."""
        return with_floats(self.table) if float64 else self.table

    def to_polars(self, *, float64: bool = False) -> polars.DataFrame:
        """A polars frame with Decimal(38, 18) columns, or float64 if asked for."""
        try:
            import polars
        except ImportError:
            raise InvalidArgument("polars is not installed: pip install 'kurisu[polars]'") from None
        frame = polars.from_arrow(self.to_arrow(float64=float64))
        assert isinstance(frame, polars.DataFrame)  # of a table, never a Series
        return frame

    def to_pandas(self, *, float64: bool = False) -> pandas.DataFrame:
        """A pandas frame indexed by time, with Arrow-backed decimals, or float64 if asked for."""
        try:
            import pandas
        except ImportError:
            raise InvalidArgument("pandas is not installed: pip install 'kurisu[pandas]'") from None
        if float64:
            return self.to_arrow(float64=True).to_pandas().set_index("time")
        return self.table.to_pandas(types_mapper=pandas.ArrowDtype).set_index("time")

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


def to_float64(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The nearest double of each decimal: by its text, since a cast may be off in the last bit."""
    return pc.cast(pc.cast(column, pa.string()), pa.float64())


def with_floats(table: pa.Table) -> pa.Table:
    """`table` with its decimal columns as float64."""
    for index, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type):
            column = to_float64(table.column(index))
            table = table.set_column(index, pa.field(field.name, pa.float64()), column)
    return table
