"""Columns of an Arrow table as exact times and numbers, and the rows that have neither.

What the writers of candles and of trades share. Nothing is changed to fit: a value that cannot be
stored as it is becomes a listed reject.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kurisu.domain.faults import Reject, Rule
from kurisu.domain.money import PRECISION, SCALE, number_fault, parse_decimal, plain
from kurisu.errors import InvalidArgument

DECIMAL: Final = pa.decimal128(PRECISION, SCALE)
TIME: Final = pa.timestamp("us", tz="UTC")

Times = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def plain_columns(table: pa.Table) -> pa.Table:
    """`table` with plain strings for string views, which polars exports and few kernels take, and
    with values for dictionaries (categories). Raises InvalidArgument for two columns of a name."""
    names = table.column_names
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InvalidArgument(f"more than one column is called {', '.join(twice)}")
    for index, name in enumerate(names):
        column = table.column(index)
        if pa.types.is_dictionary(column.type):
            kind = column.type.value_type
            kind = pa.large_string() if pa.types.is_string_view(kind) else kind
            chunks = [chunk.dictionary.cast(kind).take(chunk.indices) for chunk in column.chunks]
            column = pa.chunked_array(chunks, kind)
        elif pa.types.is_string_view(column.type):
            column = column.cast(pa.large_string())
        if column is not table.column(index):
            table = table.set_column(index, name, column)
    return table


def row_numbers(column: pa.ChunkedArray) -> Times:
    """The column `row`, which a caller may give. Raises InvalidArgument."""
    if not pa.types.is_integer(column.type) or column.null_count:
        raise InvalidArgument(f"column row is {column.type}; it has to be integers without null")
    numbers: Times = column.to_numpy().astype(np.int64)
    return numbers


def utc(time: Any) -> datetime:
    """The time of a value in UTC. Raises InvalidArgument if it is no datetime with a zone."""
    if not isinstance(time, datetime):
        raise InvalidArgument(f"time is {time!r}, not a datetime; use datetime(..., tzinfo=UTC)")
    if time.tzinfo is None:
        raise InvalidArgument(f"{time.isoformat()} has no time zone; all times are aware UTC.")
    return time.astimezone(UTC)


def numbers_text(name: str, values: Iterable[Any]) -> pa.Array:
    """Numbers of values as text: one that does not fit becomes a listed reject, not an exception.

    Raises InvalidArgument for floats, as `number_column` does.
    """
    texts = []
    for value in values:
        if isinstance(value, float | np.floating):
            raise InvalidArgument(_FLOAT.format(f"{name} is {value!r}"))
        texts.append(None if value is None else str(value))
    return pa.array(texts, pa.string())


_FLOAT: Final = (
    "{}: a float is not the number that the exchange sent. Pass decimals or text, or import the "
    "file with `kurisu candles import` or `kurisu trades import`."
)


class Rejector:
    """Remembers which rows are out and why; the first rule that a row breaks counts."""

    def __init__(self, table: pa.Table, numbers: Times) -> None:
        self._table = table
        self._numbers = numbers
        self.rejected: Mask = np.zeros(table.num_rows, dtype=np.bool_)
        self._found: dict[int, Reject] = {}

    def add(self, mask: Mask, rule: Rule, column: str) -> None:
        """Every row of `mask` breaks `rule` in `column`."""
        broken = np.flatnonzero(mask & ~self.rejected)
        if not len(broken):
            return
        self.rejected[broken] = True
        values = _values(self._table.column(column).take(pa.array(broken)))
        for index, value in zip(broken.tolist(), values, strict=True):
            self._found[index] = Reject(int(self._numbers[index]), rule, spelled(value), column)

    def found(self) -> list[tuple[int, Reject]]:
        """(position in the table, reject) by position."""
        return sorted(self._found.items())

    def sorted(self) -> list[Reject]:
        return [reject for _, reject in self.found()]


def _values(column: pa.ChunkedArray) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):  # times beyond the calendar: as they stand there
        values = column.cast(pa.int64()).to_pylist()
    return values


def spelled(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return plain(value) if value.is_finite() else str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)[:200]


def flat(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return pa.array([], column.type) if isinstance(array, pa.ChunkedArray) else array


_PER_SECOND: Final = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# What a read without bounds asks for: the years 1900 to 8999.
_FIRST_SECOND: Final = -2_208_988_800
_LAST_SECOND: Final = 221_845_391_999


def time_column(
    column: pa.ChunkedArray, rejector: Rejector, *, cut_to_ms: bool = False
) -> pa.Array:
    """timestamp[us, UTC] of a column of times with a zone; null and unreadable ones are rejected.

    cut_to_ms: whole milliseconds, what is finer is cut off.
    """
    kind = column.type
    if not pa.types.is_timestamp(kind) or kind.tz is None:
        raise InvalidArgument(
            f"column time is {kind}; it has to be a timestamp with a time zone, e.g. "
            "timestamp[us, tz=UTC]"
        )
    array = flat(column)
    if array.null_count:
        rejector.add(np.asarray(array.is_null()), Rule.MISSING_VALUE, "time")
        array = array.fill_null(pa.scalar(0, pa.int64()).cast(kind))
    seconds = array.cast(pa.int64()).to_numpy() // _PER_SECOND[kind.unit]
    beyond = (seconds < _FIRST_SECOND) | (seconds > _LAST_SECOND)
    if beyond.any():  # e.g. nanoseconds taken for microseconds
        rejector.add(beyond, Rule.TIME_NOT_READABLE, "time")
        array = pc.if_else(pa.array(beyond), pa.scalar(0, pa.int64()).cast(kind), array)
    if cut_to_ms:
        return _whole_ms(array)
    try:
        return array.cast(TIME)
    except pa.ArrowInvalid:  # nanoseconds that are not whole microseconds
        cut = array.cast(TIME, safe=False)
        rejector.add(np.asarray(pc.not_equal(cut.cast(kind), array)), Rule.TIME_NOT_ALIGNED, "time")
        return cut


def _whole_ms(array: pa.Array) -> pa.Array:
    ticks = array.cast(pa.int64()).to_numpy()
    per_second = _PER_SECOND[array.type.unit]
    # Floors, before 1970 as well: a millisecond holds the same ticks in every unit.
    ms = ticks // (per_second // 1_000) if per_second >= 1_000 else ticks * 1_000
    return pa.array(ms * 1_000, pa.int64()).cast(TIME)


def number_column(
    name: str, column: pa.ChunkedArray, rejector: Rejector, *, optional: bool = False
) -> pa.Array:
    """decimal128(38, 18) of decimals, integers or text; what does not fit is rejected.

    optional: null is a value, and stays. Raises InvalidArgument for floats and other kinds.
    """
    kind = column.type
    if pa.types.is_floating(kind):
        raise InvalidArgument(_FLOAT.format(f"column {name} is {kind}"))
    if not (pa.types.is_decimal(kind) or pa.types.is_integer(kind) or is_text(kind)):
        raise InvalidArgument(f"column {name} is {kind}; it has to be decimal, integer or text")
    array = flat(column)
    if array.null_count and not optional:
        rejector.add(np.asarray(array.is_null()), Rule.MISSING_VALUE, name)
    if kind != DECIMAL:
        try:
            array = array.cast(DECIMAL) if not is_text(kind) else _walk(name, array, rejector)
        except pa.ArrowInvalid:
            array = _walk(name, array, rejector)
    if array.null_count and not optional:
        array = array.fill_null(pa.scalar(Decimal(0), DECIMAL))
    # decimal128(38, 18) has no room for more than 20 integer digits; nothing else to check.
    return array


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _walk(name: str, array: pa.Array, rejector: Rejector) -> pa.Array:
    """Value by value: text, or numbers of which some do not fit."""
    values: list[Decimal | None] = []
    faults: dict[str, list[int]] = {}
    for index, given in enumerate(array.to_pylist()):
        value = None if given is None else parse_decimal(given)
        if given is not None:
            fault = Rule.NUMBER_NOT_READABLE.value if value is None else number_fault(value)
            if fault is not None:
                faults.setdefault(fault, []).append(index)
                value = None
        values.append(value.quantize(_STEP, context=_WIDE) if value is not None else None)
    for rule, indices in faults.items():
        mask = np.zeros(len(values), dtype=np.bool_)
        mask[indices] = True
        rejector.add(mask, Rule(rule), name)
    return pa.array(values, DECIMAL)


_STEP: Final = Decimal(1).scaleb(-SCALE)
# Of any length: what number_fault let through is exact at SCALE, trailing zeros or not.
_WIDE: Final = Context(prec=2_000)
