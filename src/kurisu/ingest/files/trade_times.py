"""Times of trades, which may be finer than a microsecond, as whole milliseconds.

What `times` reads is read by it. What it refuses because it would lose digits is cut here, exactly:
epochs with a fraction (1652400106.5751), nanoseconds, and fractions of more than six digits.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

import numpy as np
import pyarrow as pa

from kurisu.domain.faults import Rule
from kurisu.ingest.files.numbers import Faults
from kurisu.ingest.files.times import TIME, read_time, to_times

_MS_US: Final = 1_000
_NUMBER: Final = re.compile(r"[0-9]{9,19}(?:\.[0-9]{1,40})?|[0-9]\.[0-9]{1,40}[eE]\+?[0-9]{1,2}")
_FINE: Final = re.compile(r"(.*[:0-9]\.[0-9]{3})[0-9]*((?:Z|z| ?UTC|[+-][0-9:]{2,6})?)")
# Where each unit lies, as in `times`; and how many of it are a millisecond.
_UNITS: Final = (
    (10**8, 10**11, Decimal("0.001")),
    (10**11, 10**14, Decimal(1)),
    (10**14, 10**17, Decimal(1_000)),
    (10**17, 10**20, Decimal(1_000_000)),
)


def read_trade_time(text: str | None) -> int | Rule:
    """The millisecond of the one time that `text` spells, in microseconds since 1970, or the rule
    that it breaks."""
    found = read_time(text)
    if not isinstance(found, Rule):
        return found - found % _MS_US
    if found is not Rule.TIME_NOT_READABLE or text is None:
        return found
    text = text.strip()
    if _NUMBER.fullmatch(text):
        number = Decimal(text)
        for low, high, per_ms in _UNITS:
            if low <= number < high:
                return int(number / per_ms) * 1_000
        return Rule.TIME_NOT_READABLE
    fine = _FINE.fullmatch(text)
    return read_time(fine[1] + fine[2]) if fine else found


def to_trade_times(column: pa.Array) -> tuple[pa.Array, Faults]:
    """`column` as whole milliseconds in a timestamp[us, UTC], null where it has a fault, and the
    faults."""
    values, faults = to_times(column)
    fine = [at for at, rule in faults.items() if rule is Rule.TIME_NOT_READABLE]
    cells = column.take(pa.array(fine, pa.int64()))
    if pa.types.is_timestamp(column.type):
        cells = cells.cast(pa.int64())
    again = np.array(values.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False))
    again -= again % _MS_US
    for at, text in zip(fine, cells.cast(pa.string()).to_pylist(), strict=True):
        found = read_trade_time(text)
        if not isinstance(found, Rule):
            again[at] = found
            del faults[at]
    missing = np.zeros(len(again), dtype=bool)
    missing[list(faults)] = True
    return pa.array(again, pa.int64(), mask=missing).cast(TIME), faults
