"""Timeframes: their names, lengths and alignment.

A candle's `time` is its open time. All alignment is in UTC: weeks open on Monday, months on
their first day, everything else on a whole multiple of its length since 1970-01-01.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Final

from kurisu.errors import InvalidArgument

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# The first Monday after the epoch (a Thursday).
_FIRST_MONDAY: Final = datetime(1970, 1, 5, tzinfo=UTC)


@dataclass(frozen=True, slots=False)
class Timeframe:
    """A named candle length.

    name: CCXT's name, e.g. "15m". "m" is minutes, "M" is months.
    seconds: length in seconds; for "1M" the shortest month (28 days), used for nothing but order.
    """

    name: str
    seconds: int

    def __str__(self) -> str:
        return self.name

    @property
    def is_calendar(self) -> bool:
        """True for 1M, whose bars differ in length."""
        return self.name == "1M"

    @cached_property
    def length(self) -> timedelta:
        """Length of a bar. Raises InvalidArgument for 1M, which has none."""
        if self.is_calendar:
            raise InvalidArgument("1M has no fixed length; use Timeframe.close_time().")
        return timedelta(seconds=self.seconds)

    @property
    def origin(self) -> datetime:
        """A time at which a bar of this timeframe opens."""
        return _FIRST_MONDAY if self.name == "1w" else _EPOCH

    def open_time(self, at: datetime) -> datetime:
        """Open time of the bar that contains `at` (aware)."""
        at = at.astimezone(UTC)
        if self.is_calendar:
            return at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return at - (at - self.origin) % self.length

    def close_time(self, opened: datetime) -> datetime:
        """Close time (exclusive) of the bar that opened at `opened`."""
        if self.is_calendar:
            year, month = divmod(opened.year * 12 + opened.month, 12)
            return opened.replace(year=year, month=month + 1)
        return opened + self.length

    def ceil(self, at: datetime) -> datetime:
        """The first open time at or after `at`."""
        opened = self.open_time(at)
        return opened if opened == at else self.close_time(opened)

    def is_aligned(self, at: datetime) -> bool:
        """True if a bar of this timeframe opens at `at`."""
        return self.open_time(at) == at

    def count(self, since: datetime, until: datetime) -> int:
        """Bars that open in [since, until), both of which are open times."""
        if self.is_calendar:
            return (until.year - since.year) * 12 + until.month - since.month
        return (until - since) // self.length

    def divides(self, other: Timeframe) -> bool:
        """True if whole bars of this timeframe make up every bar of `other`."""
        if self.is_calendar:
            return False
        if other.is_calendar:
            return self.name != "1w" and 86_400 % self.seconds == 0
        if self.name == "1w":
            return other.name == "1w"
        if other.name == "1w":
            return 86_400 % self.seconds == 0
        return other.seconds % self.seconds == 0


_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400

#: Every timeframe a candle can be stored under, shortest first.
TIMEFRAMES: Final[dict[str, Timeframe]] = {
    name: Timeframe(name, seconds)
    for name, seconds in (
        ("1m", _MINUTE),
        ("3m", 3 * _MINUTE),
        ("5m", 5 * _MINUTE),
        ("15m", 15 * _MINUTE),
        ("30m", 30 * _MINUTE),
        ("1h", _HOUR),
        ("2h", 2 * _HOUR),
        ("4h", 4 * _HOUR),
        ("6h", 6 * _HOUR),
        ("8h", 8 * _HOUR),
        ("12h", 12 * _HOUR),
        ("1d", _DAY),
        ("3d", 3 * _DAY),
        ("1w", 7 * _DAY),
        ("1M", 28 * _DAY),
    )
}

#: Kept by the database from 1m, smallest first; each is made from the one before it.
ROLLUPS: Final[tuple[Timeframe, ...]] = tuple(
    TIMEFRAMES[name] for name in ("5m", "15m", "1h", "4h", "1d")
)

#: Made from 1d when read.
DERIVED_ON_READ: Final[tuple[Timeframe, ...]] = tuple(TIMEFRAMES[name] for name in ("1w", "1M"))

BASE: Final = TIMEFRAMES["1m"]


def timeframe(name: str | Timeframe) -> Timeframe:
    """The timeframe of that name. Raises InvalidArgument with the names there are."""
    if isinstance(name, Timeframe):
        return name
    try:
        return TIMEFRAMES[name]
    except (KeyError, TypeError):
        raise InvalidArgument(
            f"unknown timeframe {name!r}; known are {', '.join(TIMEFRAMES)}"
        ) from None
