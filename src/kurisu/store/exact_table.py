"""What every read gives back: an exact Arrow table, and ways on from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    import pandas
    import polars


class ExactTable:
    """Rows as an exact Arrow table, by time.

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
        if isinstance(other, ExactTable):
            other = other.table
        return isinstance(other, pa.Table) and self.table.equals(other)

    __hash__ = None  # type: ignore[assignment]  # like pyarrow.Table

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
