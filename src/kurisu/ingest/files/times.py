"""Columns of times to microseconds since 1970 in UTC.

A number says its unit by its magnitude, value by value: each unit spans the years 1973 to 5138,
and a number below 100,000,000 is a time in none of them.

    1e8  <= seconds      < 1e11
    1e11 <= milliseconds < 1e14
    1e14 <= microseconds < 1e17
    1e17 <= nanoseconds

Eight, twelve or fourteen digits that spell a calendar time (20240131, 202401312359,
20240131235959) are read as that: as numbers they would lie in 1976 or after 2590. A time without
an offset is UTC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kurisu.domain.faults import Rule
from kurisu.ingest.files.numbers import Faults, fill, is_missing, matches

TIME: Final = pa.timestamp("us", "UTC")

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# The last microsecond that Python's datetime can hold.
_LAST_US: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND

_SECONDS, _MILLIS, _MICROS, _NANOS = 10**8, 10**11, 10**14, 10**17
# Where calendar times written as numbers lie; epoch times of 1976 and of 2594 to 2636 do, too.
_CALENDAR_12: Final = (197001010000, 210001010000)
_CALENDAR_14: Final = (19700101000000, 21000101000000)

_US_PER: Final = {"s": 1_000_000, "ms": 1_000, "us": 1}

_INTEGER: Final = r"^[1-8]?[0-9]{9,18}$"
_WHOLE: Final = r"^[1-8]?[0-9]{9,18}\.0*$"
_DATE: Final = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK: Final = r"[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?"
# Offsets to +-13:59 go by column; the odd one beyond goes one by one.
_ZONE: Final = "(?:Z| ?UTC|[+-](?:0[0-9]|1[0-3])(?::?[0-5][0-9])?)"
_NAIVE: Final = f"^{_DATE}(?:{_CLOCK})?$"
_ZONED: Final = f"^{_DATE}{_CLOCK}{_ZONE}$"

_NUMBER: Final = re.compile(
    r"[+-]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,2})?"
)
_CALENDAR: Final = re.compile(
    r"(?P<year>[0-9]{4})([-/]?)(?P<month>[0-9]{2})\2(?P<day>[0-9]{2})"
    r"(?:[T ]?(?P<hour>[0-9]{2}):?(?P<minute>[0-9]{2})"
    r"(?::?(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,40}))?)?"
    r" ?(?P<zone>Z|z|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)


def read_time(text: str | None) -> int | Rule:
    """The one time that `text` spells, in microseconds since 1970, or the rule that it breaks."""
    if text is None or is_missing(text) or text.strip().casefold() == "nan":
        return Rule.MISSING_VALUE
    text = text.strip()
    microseconds = _read_calendar(text)
    if microseconds is None:
        microseconds = _read_number(text)
    if microseconds is None or not 0 < microseconds <= _LAST_US:
        return Rule.TIME_NOT_READABLE
    return microseconds


def to_times(column: pa.Array) -> tuple[pa.Array, Faults]:
    """`column` as timestamp[us, UTC], null where it has a fault, and the faults."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return _from_ticks(column.cast(pa.int64()), kind.unit)
    if pa.types.is_date(kind):
        return _from_ticks(column.cast(pa.timestamp("ms")).cast(pa.int64()), "ms")
    if pa.types.is_signed_integer(kind):
        return _from_numbers(column.cast(pa.int64()))
    if pa.types.is_float64(kind):
        whole = _whole_numbers(column)
        if whole is not None:
            return _from_numbers(whole)
    return _from_text(column.cast(pa.string()))


def _read_calendar(text: str) -> int | None:
    match = _CALENDAR.fullmatch(text)
    if match is None:
        return None
    hour, minute, second = (int(match[part] or 0) for part in ("hour", "minute", "second"))
    fraction = (match["fraction"] or "").ljust(6, "0")
    if fraction[6:].strip("0"):
        return None
    try:
        moment = datetime(
            int(match["year"]),
            int(match["month"]),
            int(match["day"]),
            hour,
            minute,
            second,
            int(fraction[:6]),
            tzinfo=UTC,
        )
    except ValueError:
        return None
    if text.isdigit() and not 1970 <= moment.year < 2100:
        return None
    offset = _offset(match["zone"])
    return None if offset is None else (moment - _EPOCH - offset) // _MICROSECOND


def _offset(zone: str | None) -> timedelta | None:
    if zone is None or zone[0] not in "+-":
        return timedelta()
    digits = zone[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    # The widest offset in use is +14:00 (Kiribati).
    if hours > 14 or minutes > 59:
        return None
    offset = timedelta(hours=hours, minutes=minutes)
    return -offset if zone[0] == "-" else offset


def _read_number(text: str) -> int | None:
    if not _NUMBER.fullmatch(text):
        return None
    number = Decimal(text)
    whole = int(number)
    if whole != number or not _SECONDS <= whole < 2**63:
        return None
    if whole < _MILLIS:
        return whole * 1_000_000
    if whole < _MICROS:
        return whole * 1_000
    if whole < _NANOS:
        return whole
    microseconds, rest = divmod(whole, 1_000)
    return None if rest else microseconds


def _whole_numbers(column: pa.Array) -> pa.Array | None:
    """A column of float64 times as int64, or None if one of them is not a whole number."""
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return None


def _from_ticks(ticks: pa.Array, unit: str) -> tuple[pa.Array, Faults]:
    """From an int64 count of `unit`s since 1970."""
    missing, numbers = _split_nulls(ticks)
    if unit == "ns":
        microseconds, wrong = numbers // 1_000, numbers % 1_000 != 0
    else:
        scale = _US_PER[unit]
        wrong = (numbers <= 0) | (numbers > _LAST_US // scale)
        microseconds = np.where(wrong, 0, numbers) * scale
    return _result(microseconds, missing, wrong)


def _from_numbers(column: pa.Array) -> tuple[pa.Array, Faults]:
    """From int64 numbers whose unit is in their magnitude."""
    missing, numbers = _split_nulls(column)
    microseconds = np.where(numbers < _MICROS, numbers * 1_000, numbers)
    np.copyto(microseconds, numbers // 1_000, where=numbers >= _NANOS)
    seconds = numbers < _MILLIS
    # Masked first: a large negative number would overflow.
    np.copyto(
        microseconds, np.where(seconds & (numbers > 0), numbers, 0) * 1_000_000, where=seconds
    )
    wrong = (numbers < _SECONDS) | ((numbers >= _NANOS) & (numbers % 1_000 != 0))
    odd = _calendar_like(numbers)
    if odd.any():
        for i in np.flatnonzero(odd).tolist():
            value = read_time(str(int(numbers[i])))
            wrong[i] = isinstance(value, Rule)
            microseconds[i] = 0 if isinstance(value, Rule) else value
    return _result(microseconds, missing, wrong)


def _calendar_like(numbers: Integers) -> Mask:
    eight = (numbers >= 19700101) & (numbers < 21000101)
    twelve = (numbers >= _CALENDAR_12[0]) & (numbers < _CALENDAR_12[1])
    fourteen = (numbers >= _CALENDAR_14[0]) & (numbers < _CALENDAR_14[1])
    return np.asarray(eight | twelve | fourteen)


def _from_text(text: pa.Array) -> tuple[pa.Array, Faults]:
    result = pa.nulls(len(text), TIME)
    faults: Faults = {}
    left = np.ones(len(text), dtype=bool)
    for pattern, convert in _BY_COLUMN:
        mask = matches(text, pattern)
        if mask.true_count == 0:
            continue
        values, wrong = convert(text.filter(mask))
        if values is None:
            continue
        result = values if mask.true_count == len(text) else fill(result, mask, values)
        chosen = mask.to_numpy(zero_copy_only=False)
        at = np.flatnonzero(chosen)
        faults |= {int(at[i]): rule for i, rule in wrong.items()}
        left &= ~chosen
        if not left.any():
            return result, faults
    at = np.flatnonzero(left)
    values, wrong = _walk(text.take(pa.array(at)).to_pylist())
    faults |= {int(at[i]): rule for i, rule in wrong.items()}
    return fill(result, pa.array(left), values), faults


def _integers(text: pa.Array) -> tuple[pa.Array, Faults]:
    return _from_numbers(text.cast(pa.int64()))


def _wholes(text: pa.Array) -> tuple[pa.Array, Faults]:
    return _integers(pc.replace_substring_regex(text, r"\..*$", ""))


def _naive(text: pa.Array) -> tuple[pa.Array | None, Faults]:
    return _calendar_times(text, pa.timestamp("us"))


def _zoned(text: pa.Array) -> tuple[pa.Array | None, Faults]:
    return _calendar_times(pc.replace_substring_regex(text, " ?UTC$", "Z"), TIME)


def _calendar_times(text: pa.Array, kind: pa.DataType) -> tuple[pa.Array | None, Faults]:
    try:
        return _from_ticks(text.cast(kind).cast(pa.int64()), "us")
    except pa.ArrowInvalid:
        # A date that the calendar does not have (2023-02-30): one by one.
        return None, {}


#: Spellings that are converted by column; the rest is walked.
_BY_COLUMN: Final = (
    (_INTEGER, _integers),
    (_WHOLE, _wholes),
    (_NAIVE, _naive),
    (_ZONED, _zoned),
)


def _walk(texts: Sequence[str | None]) -> tuple[pa.Array, Faults]:
    values: list[int | None] = []
    faults: Faults = {}
    for i, text in enumerate(texts):
        value = read_time(text)
        if isinstance(value, Rule):
            faults[i] = value
            values.append(None)
        else:
            values.append(value)
    return pa.array(values, pa.int64()).cast(TIME), faults


def _split_nulls(column: pa.Array) -> tuple[Mask, Integers]:
    missing = column.is_null().to_numpy(zero_copy_only=False)
    return missing, column.fill_null(0).to_numpy(zero_copy_only=False)


def _result(microseconds: Integers, missing: Mask, wrong: Mask) -> tuple[pa.Array, Faults]:
    wrong = wrong | (microseconds <= 0) | (microseconds > _LAST_US)
    faulty = wrong | missing
    if not faulty.any():
        return pa.array(microseconds, pa.int64()).cast(TIME), {}
    faults = {
        int(i): Rule.MISSING_VALUE if missing[i] else Rule.TIME_NOT_READABLE
        for i in np.flatnonzero(faulty)
    }
    return pa.array(microseconds, pa.int64(), mask=faulty).cast(TIME), faults
