"""Turns what a caller hands over into candles that may be stored, and lists the rest.

In: an Arrow table (or anything with `__arrow_c_stream__`: polars, pandas), or an iterable of
`Candle`. Out: `CleanCandles`: sorted, one row per open time, every rule kept, and the rejected and
contradictory rows with their reasons. Vectorised: a million rows take a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kurisu.domain.candle import Candle
from kurisu.domain.faults import Conflict, Reject, Rule
from kurisu.domain.money import plain
from kurisu.domain.timeframe import Timeframe
from kurisu.errors import InvalidArgument
from kurisu.store.exact_rows import (
    DECIMAL,
    TIME,
    Mask,
    Rejector,
    number_column,
    numbers_text,
    plain_columns,
    row_numbers,
    time_column,
    utc,
)

NUMBERS: Final = ("open", "high", "low", "close", "volume")
COLUMNS: Final = ("time", *NUMBERS)
Times = npt.NDArray[np.int64]
SCHEMA: Final = pa.schema([("time", TIME), *((name, DECIMAL) for name in NUMBERS)])


@dataclass(slots=True)
class CleanCandles:
    """Candles that may be stored, and what was left out on the way.

    table: columns time and the five numbers, sorted by time, one row per time.
    read: rows handed over. read = len(table) + len(rejects) + len(conflicts) + duplicates.
    duplicates: rows that repeat another one to the letter.
    """

    table: pa.Table
    read: int
    rejects: list[Reject] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    duplicates: int = 0

    @property
    def times(self) -> Times:
        return times_us(self.table.column("time"))


def times_us(column: pa.ChunkedArray) -> Times:
    """Microseconds since 1970 of a timestamp[us] column."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no chunk at all
        return np.empty(0, dtype=np.int64)
    result: Times = array.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return result


def words(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """A decimal128 column without nulls as pairs of 64-bit words, shape (rows, 2).

    Two values of one scale are equal exactly if their words are.
    """
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype=np.int64).reshape(-1, 2)[
            chunk.offset : chunk.offset + len(chunk)
        ]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate(parts) if parts else np.empty((0, 2), dtype=np.int64)


def differs(left: pa.Table, right: pa.Table) -> Mask:
    """Where two tables of equal length hold different numbers."""
    result = np.zeros(left.num_rows, dtype=np.bool_)
    for name in NUMBERS:
        result |= (words(left.column(name)) != words(right.column(name))).any(axis=1)
    return result


def as_table(rows: Any) -> pa.Table:
    """An Arrow table of whatever the caller has. Raises InvalidArgument."""
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    if hasattr(rows, "__arrow_c_stream__"):
        return pa.table(rows)
    if isinstance(rows, Iterable):
        candles: list[Candle] = list(rows)
        for candle in candles:
            if not isinstance(candle, Candle):
                raise InvalidArgument(
                    f"candles are written from an Arrow table or from Candle values, not from "
                    f"{type(candle).__name__}"
                )
        return pa.table(
            {
                "time": pa.array([utc(c.time) for c in candles], TIME),
                **{name: numbers_text(name, [getattr(c, name) for c in candles])
                   for name in NUMBERS},
            }
        )  # fmt: skip
    raise InvalidArgument(f"candles cannot be read from {type(rows).__name__}")


def clean(rows: Any, frame: Timeframe, now: datetime) -> CleanCandles:
    """What of `rows` may be stored as closed candles of `frame` at the time `now`.

    An optional column `row` (integers) carries the row numbers of the source for the reports;
    without it rows count from 1. Columns beyond those are ignored.
    Raises InvalidArgument if a column is missing or of a kind that cannot be exact.
    """
    table = plain_columns(as_table(rows))
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise InvalidArgument(
            f"candles need the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}"
        )
    if "row" in table.column_names:
        numbers = row_numbers(table.column("row"))
    else:
        numbers = np.arange(1, table.num_rows + 1, dtype=np.int64)
    rejector = Rejector(table, numbers)

    time = time_column(table.column("time"), rejector)
    columns = {name: number_column(name, table.column(name), rejector) for name in NUMBERS}
    exact = pa.table({"time": time, **columns}, schema=SCHEMA)
    _apply_rules(exact, frame, now, rejector)

    kept = ~rejector.rejected
    result = CleanCandles(exact.filter(pa.array(kept)), table.num_rows, rejector.sorted())
    _dedupe(result, numbers[kept])
    return result


def _apply_rules(table: pa.Table, frame: Timeframe, now: datetime, rejector: Rejector) -> None:
    time = times_us(table.column("time"))
    rejector.add(time != floor_us(time, frame), Rule.TIME_NOT_ALIGNED, "time")
    rejector.add(close_us(time, frame) > to_us(now), Rule.NOT_CLOSED, "time")
    column: Callable[[str], pa.ChunkedArray] = table.column
    for left, right, rule, blamed in (
        ("low", "open", Rule.LOW_ABOVE_OPEN, "low"),
        ("low", "close", Rule.LOW_ABOVE_CLOSE, "low"),
        ("open", "high", Rule.HIGH_BELOW_OPEN, "high"),
        ("close", "high", Rule.HIGH_BELOW_CLOSE, "high"),
    ):
        broken = pc.greater(column(left), column(right)).to_numpy()
        rejector.add(broken.astype(np.bool_), rule, blamed)
    zero = pa.scalar(Decimal(0), DECIMAL)
    broken = pc.less(column("volume"), zero).to_numpy()
    rejector.add(broken.astype(np.bool_), Rule.NEGATIVE_VOLUME, "volume")


def to_us(time: datetime) -> int:
    """Microseconds since 1970; exact, unlike `timestamp()`."""
    delta = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def from_us(us: int) -> datetime:
    """The aware UTC time of microseconds since 1970."""
    seconds, rest = divmod(int(us), 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def floor_us(time: Times, frame: Timeframe) -> Times:
    """Open times of the bars that contain `time` (microseconds)."""
    if frame.is_calendar:
        months = time.view("datetime64[us]").astype("datetime64[M]")
        floored: Times = months.astype("datetime64[us]").view(np.int64)
        return floored
    origin, length = to_us(frame.origin), frame.seconds * 1_000_000
    result: Times = time - (time - origin) % length
    return result


def close_us(time: Times, frame: Timeframe) -> Times:
    """Close times (exclusive) of the bars that open at `time` (microseconds)."""
    if frame.is_calendar:
        months = time.view("datetime64[us]").astype("datetime64[M]") + np.timedelta64(1, "M")
        closed: Times = months.astype("datetime64[us]").view(np.int64)
        return closed
    result: Times = time + np.int64(frame.seconds * 1_000_000)
    return result


def runs(time: Times, frame: Timeframe) -> list[tuple[int, int]]:
    """Stretches of candles without a hole: (open of the first, close of the last)."""
    if not len(time):
        return []
    closes = close_us(time, frame)
    breaks = np.flatnonzero(closes[:-1] != time[1:])
    starts = np.concatenate(([0], breaks + 1))
    ends = np.concatenate((breaks, [len(time) - 1]))
    return list(zip(time[starts].tolist(), closes[ends].tolist(), strict=True))


def _dedupe(found: CleanCandles, numbers: Times) -> None:
    """Sort by time; of rows with one time the last wins, and each that differs is a conflict."""
    time = found.times
    if len(time) < 2 or bool((time[1:] > time[:-1]).all()):
        return
    order = np.argsort(time, kind="stable")
    table, time, numbers = found.table.take(pa.array(order)), time[order], numbers[order]
    # The last of each run of equal times.
    last = np.flatnonzero(np.concatenate((time[1:] != time[:-1], [True])))
    kept = np.zeros(len(time), dtype=np.bool_)
    kept[last] = True
    lost = np.flatnonzero(~kept)
    winner = last[np.searchsorted(last, lost)]
    losers, winners = table.take(pa.array(lost)), table.take(pa.array(winner))
    different = differs(losers, winners)
    for at in np.flatnonzero(different).tolist():
        found.conflicts.append(
            Conflict(
                row=int(numbers[lost[at]]),
                kept_row=int(numbers[winner[at]]),
                time=from_us(int(time[lost[at]])).isoformat(),
                value=_row_text(losers, at),
            )
        )
    found.conflicts.sort(key=lambda c: c.row)
    found.duplicates = len(lost) - len(found.conflicts)
    found.table = table.filter(pa.array(kept))


def _row_text(table: pa.Table, index: int) -> str:
    values: Sequence[Decimal] = [table.column(name)[index].as_py() for name in NUMBERS]
    return " ".join(f"{name}={plain(v)}" for name, v in zip(NUMBERS, values, strict=True))
