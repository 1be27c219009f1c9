"""A market's candles, page by page: nothing lost, nothing twice, nothing that is still open.

An answer is evidence about a stretch of time: up to its last candle the exchange has told
everything, and minutes that are missing in between had no trades. An empty answer is evidence of
little, and never of the end of the data: it is asked for again, and then checked with longer
candles, which also say where to go on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from operator import itemgetter, lt
from typing import Final, TypeAlias

import pyarrow as pa

from kurisu.domain.money import PRECISION, SCALE
from kurisu.domain.timeframe import TIMEFRAMES, Timeframe
from kurisu.domain.timeframe import timeframe as timeframe_of
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.port import CandleRow, Exchange
from kurisu.exchange.venues import CAUTIOUS_LIMIT

#: A stretch younger than this is not called empty: its candles may still appear.
EMPTY_AGE: Final = timedelta(minutes=10)
#: So many answers in a row have to be empty before one of them is believed.
EMPTY_ANSWERS: Final = 3
#: Looks into a hole in front of a page, at most.
MOST_LOOKS: Final = 3
#: What a venue changes after a candle's close it changes soon: a resumed backfill starts so many
#: candles earlier, and the writer updates what differs.
REFETCHED_CANDLES: Final = 3

_DAY: Final = TIMEFRAMES["1d"]
#: By which an empty answer is checked, longest first.
_COARSER: Final = (_DAY, TIMEFRAMES["1h"], TIMEFRAMES["5m"])
_TIME_MS: Final = itemgetter(0)
_NUMBERS: Final = ("open", "high", "low", "close", "volume")
_TIME: Final = pa.timestamp("us", tz="UTC")
_DECIMAL: Final = pa.decimal128(PRECISION, SCALE)

Rows: TypeAlias = dict[int, CandleRow]


class PageStatus(StrEnum):
    """ANSWERED: the exchange told everything about the stretch. UNAVAILABLE: it will not."""

    ANSWERED = "answered"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class CandlePage:
    """What is now known about [since, until): pages follow each other without a gap.

    table: its closed candles for `store.candles.write`: time (timestamp[us, UTC]), open, high,
        low, close, volume (decimal128(38, 18); text in a column with a number that does not
        fit, so that the writer lists the row as rejected).
    holes: stretches without candles; the exchange has none there.
    exchange_time: by which the candles were found to be closed.
    repeated: rows that came more than once. contradicted: among them, with other content; the
        last one counts.
    """

    since: datetime
    until: datetime
    status: PageStatus
    table: pa.Table
    holes: tuple[tuple[datetime, datetime], ...]
    exchange_time: datetime
    repeated: int = 0
    contradicted: int = 0


async def candle_pages(
    exchange: Exchange,
    symbol: str,
    timeframe: str | Timeframe,
    since: datetime,
    until: datetime | None = None,
    *,
    grace: timedelta = timedelta(seconds=2),
) -> AsyncGenerator[CandlePage]:
    """Every candle that opens in [since, until) and has closed, oldest first.

    until: None for everything that has closed by now. grace: how long after its close a candle is
    taken as final. Ends early, without an error, where the newest stretch is too young to be
    called empty. Raises ExchangeError; pages yielded before stay valid, and the next call can
    start at the last one's `until`.
    """
    frame = timeframe_of(timeframe)
    walk = _Walk(exchange, symbol, frame, await exchange.now(), grace)
    at = to_ms(frame.ceil(since))
    end = walk.closed_before if until is None else min(walk.closed_before, to_ms(until))
    while at < end:
        found = await walk.ask(at, end)
        if found and min(found) > at:
            first = min(*found, end)
            if await walk.is_unavailable(at, first, found):
                yield walk.page(at, first, {}, PageStatus.UNAVAILABLE)
                at = first
                continue
            if not exchange.venue.candles_oldest_first:
                found = await walk.look_in_front(walk.frame, at, found)
        if found:
            answered = min(walk.close(max(found)), end)
        else:
            answered = await walk.empty_until(at, end)
            if answered <= at:
                return
        yield walk.page(at, answered, found)
        at = answered


class _Walk:
    """One walk through a market's candles. Times are milliseconds since 1970."""

    def __init__(
        self, exchange: Exchange, symbol: str, frame: Timeframe, now: datetime, grace: timedelta
    ) -> None:
        self._exchange = exchange
        self._symbol = symbol
        self.frame = frame
        self._now = now
        self._limit = exchange.venue.candle_limit or CAUTIOUS_LIMIT
        #: Open time of the first candle that has not closed.
        self.closed_before = to_ms(frame.open_time(now - grace))
        self._repeated = 0
        self._contradicted = 0

    def close(self, time_ms: int) -> int:
        """Close time of the candle that opens at `time_ms`."""
        return to_ms(self.frame.close_time(from_ms(time_ms)))

    def step(self, time_ms: int, count: int) -> int:
        """The time `count` candles later."""
        if not self.frame.is_calendar:
            return time_ms + count * self.frame.seconds * 1000
        for _ in range(count):
            time_ms = self.close(time_ms)
        return time_ms

    async def ask(self, at: int, end: int) -> Rows:
        """Candles from `at` on by open time, open ones included."""
        # One more than fits: it proves that what is missing before it is missing at the exchange.
        wanted = self._limit
        if not self.frame.is_calendar:
            wanted = min(wanted, (end - at) // (self.frame.seconds * 1000) + 1)
        return await self._fetch(self.frame, at, wanted, widen=True)

    async def _fetch(self, frame: Timeframe, at: int, limit: int, *, widen: bool = False) -> Rows:
        """One answer by open time; asked for again if it is empty."""
        found: Rows = {}
        for _ in range(EMPTY_ANSWERS):
            rows = await self._exchange.fetch_candles(self._symbol, frame.name, at, limit)
            times = list(map(_TIME_MS, rows))
            if not found and all(map(lt, times, times[1:])) and (not times or times[0] >= at):
                found = dict(zip(times, rows, strict=True))
                rows = []
            for row in rows:
                if row.time_ms < at:
                    continue
                if row.time_ms in found:
                    self._repeated += 1
                    self._contradicted += found[row.time_ms] != row
                found[row.time_ms] = row
            if found:
                break
            # If it was nothing but rows from before `at`, a longer answer reaches beyond them.
            limit = self._limit if widen else limit
        return found

    async def look_in_front(self, frame: Timeframe, at: int, found: Rows) -> Rows:
        """The page, without a hole in front that is not one.

        A venue may answer with the newest rows of a window, not with the oldest; asking for just
        the hole tells.
        """
        for _ in range(MOST_LOOKS):
            first = min(found)
            if first <= at:
                break
            bars = (first - at) // (frame.seconds * 1000)
            again = await self._fetch(frame, at, max(1, min(self._limit, bars)))
            earlier = {time: row for time, row in again.items() if time < first}
            if not earlier:
                break
            found = earlier
        return found

    async def is_unavailable(self, at: int, first: int, found: Rows) -> bool:
        """True if the exchange has candles in [at, first), in front of a page, and hides them."""
        venue = self._exchange.venue
        if venue.candles_latest_only:
            # Fewer than it keeps: `at` lies inside of what it keeps.
            return len(found) >= self._limit - 1
        if venue.candles_oldest_first or self.close(max(found)) < self.closed_before:
            return False
        # It starts late and reaches up to now: a market with a hole, or a venue that knows only
        # the newest rows. Days with trades in the hole tell.
        if not self._has_days() or first <= self.step(at, self._limit):
            return False
        days = await self._fetch(_DAY, at - at % _day_ms(), self._limit)
        return any(time < first - first % _day_ms() for time in days)

    def _has_days(self) -> bool:
        return self.frame.seconds < _DAY.seconds and _DAY.name in self._exchange.timeframes

    async def empty_until(self, at: int, end: int) -> int:
        """Up to when there are no candles from `at` on, where every answer was empty.

        Longer timeframes say when there was a trade next: an exchange in trouble gives empty
        answers, too. Not later than what is old enough to be called empty; `at` or less if
        nothing is.
        """
        settled = to_ms(self.frame.open_time(self._now - EMPTY_AGE))
        target = self.step(at, self._limit)
        coarser = [] if self._exchange.venue.candles_latest_only else self._coarser()
        for frame in coarser:
            length = frame.seconds * 1000
            opened = to_ms(frame.open_time(from_ms(at)))
            bars = await self._fetch(frame, opened, self._limit)
            if not bars:
                target = max(target, opened + self._limit * length)
                break
            if not self._exchange.venue.candles_oldest_first:
                bars = await self.look_in_front(frame, opened, bars)
            if min(bars) > at:
                target = min(bars)
                break
            # Somebody traded in the bar that `at` is in, before `at` or after it.
            if frame == coarser[-1]:
                target = min(target, opened + length)
        return min(target, end, settled)

    def _coarser(self) -> list[Timeframe]:
        return [
            frame
            for frame in _COARSER
            if frame.seconds > self.frame.seconds
            and frame.name in self._exchange.timeframes
            and self.frame.divides(frame)
        ]

    def page(
        self, since: int, until: int, found: Rows, status: PageStatus = PageStatus.ANSWERED
    ) -> CandlePage:
        times = sorted(found)
        rows = [
            found[time] for time in times[bisect_left(times, since) : bisect_left(times, until)]
        ]
        holes = () if status is PageStatus.UNAVAILABLE else tuple(self._holes(since, until, rows))
        made = CandlePage(
            from_ms(since), from_ms(until), status, candle_table(rows), holes, self._now,
            self._repeated, self._contradicted,
        )  # fmt: skip
        self._repeated = self._contradicted = 0
        return made

    def _holes(
        self, since: int, until: int, rows: Sequence[CandleRow]
    ) -> list[tuple[datetime, datetime]]:
        times = [row.time_ms for row in rows]
        if self.frame.is_calendar:
            closes = [self.close(time) for time in times]
        else:
            length = self.frame.seconds * 1000
            closes = [time + length for time in times]
        edges = zip([since, *closes], [*times, until], strict=True)
        return [(from_ms(at), from_ms(to)) for at, to in edges if at < to]


def _day_ms() -> int:
    return _DAY.seconds * 1000


def candle_table(rows: Sequence[CandleRow]) -> pa.Table:
    """Rows as the Arrow table that the store takes, digit for digit."""
    times, *numbers = zip(*rows, strict=True) if rows else [()] * len(CandleRow._fields)
    time = pa.array(times, pa.timestamp("ms", tz="UTC")).cast(_TIME)
    columns = {name: exact_column(texts) for name, texts in zip(_NUMBERS, numbers, strict=True)}
    return pa.table({"time": time, **columns})


def exact_column(texts: Sequence[str | None]) -> pa.Array:
    """decimal128(38, 18); text as it is if one of the numbers does not fit."""
    column = pa.array(texts, pa.string())
    try:
        return column.cast(_DECIMAL)
    except pa.ArrowInvalid:
        return column
