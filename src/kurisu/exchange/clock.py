"""The exchange's own clock, as far as it is known here.

Whether a candle has closed is decided by the exchange's clock. A response was stamped before it
arrived, so the stamp plus the time since its arrival never runs ahead of that clock: the error is
on the safe side, a candle is taken as closed a little late, never early.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

#: After this long a reading is taken again: quartz drifts a few milliseconds in that time.
FRESH_S: Final = 300.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ExchangeClock:
    """Readings of the exchange's time, carried on by a clock that is never set (monotonic).

    monotonic: seconds of a steady clock; tests pass one of their own.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._read_ms: int | None = None
        self._arrived_s = 0.0
        self._date_ms: int | None = None
        self._date_arrived_s = 0.0

    def read(self, server_ms: int) -> None:
        """A time that the exchange has just told."""
        self._read_ms, self._arrived_s = server_ms, self._monotonic()

    def read_date(self, header: str | None) -> None:
        """The Date header of a response: whole seconds, for venues without a time endpoint."""
        if header is None:
            return
        try:
            stamped = parsedate_to_datetime(header)
        except ValueError:
            return
        if stamped.tzinfo is None:
            return
        self._date_ms = (stamped - _EPOCH) // timedelta(milliseconds=1)
        self._date_arrived_s = self._monotonic()

    @property
    def is_fresh(self) -> bool:
        """False if the time should be asked for again."""
        return self._read_ms is not None and self._monotonic() - self._arrived_s < FRESH_S

    @property
    def has_fresh_date(self) -> bool:
        return self._date_ms is not None and self._monotonic() - self._date_arrived_s < FRESH_S

    def now_ms(self) -> int | None:
        """The exchange's time; None before the first reading."""
        at = self._monotonic()
        if self._read_ms is not None:
            return self._read_ms + int((at - self._arrived_s) * 1000)
        if self._date_ms is not None:
            return self._date_ms + int((at - self._date_arrived_s) * 1000)
        return None


def from_ms(time_ms: int) -> datetime:
    """Milliseconds since 1970 as an aware UTC time; exact."""
    return _EPOCH + timedelta(milliseconds=time_ms)


def to_ms(time: datetime) -> int:
    """An aware time as milliseconds since 1970, cut; exact."""
    return (time - _EPOCH) // timedelta(milliseconds=1)
