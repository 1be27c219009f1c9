"""A market's candles, page by page: nothing lost, nothing twice, nothing that is still open.

An answer is evidence about a stretch of time: up to its last candle the exchange has told
everything, and minutes that are missing in between had no trades. An empty answer is evidence of
little, and never of the end of the data: it is asked for again, and then checked with longer
candles, which also say where to go on. Where longer candles show trades, the exchange keeps the
shorter ones to itself: that is said, and never called empty. Where they show none, the exchange has
to give once more what it gave before: else it has nothing at all just now.
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
from kurisu.errors import BadAnswer, ExchangeRefused
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.port import CandleRow, Exchange
from kurisu.exchange.venues import CAUTIOUS_LIMIT

#: A stretch younger than this is not called empty: its candles may still appear.
EMPTY_AGE: Final = timedelta(minutes=10)
#: So many answers in a row have to be empty before one of them is believed.
EMPTY_ANSWERS: Final = 3
#: Looks into a hole in front of a page, at most; each finds earlier candles than the one before.
MOST_LOOKS: Final = 20
#: A hole in front of a page that is not full, shorter than this: no exchange hides so little.
SHORT_HOLE: Final = 60
#: Why a stretch is UNAVAILABLE.
NEWEST_ONLY: Final = "it keeps only the newest candles"
NOT_TOLD: Final = "its longer candles show that there were trades"
#: Candles of those that a venue keeps that are not asked for: the oldest go while it answers.
KEPT_MARGIN: Final = 10
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
    exchange_time: by which the candles were found to be closed. reason: why it is UNAVAILABLE.
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
    reason: str = ""


async def candle_pages(
    exchange: Exchange,
    symbol: str,
    timeframe: str | Timeframe,
    since: datetime,
    until: datetime | None = None,
    *,
    grace: timedelta = timedelta(seconds=2),
    traded_at: datetime | None = None,
) -> AsyncGenerator[CandlePage]:
    """Every candle that opens in [since, until) and has closed, oldest first.

    until: None for everything that has closed by now. grace: how long after its close a candle is
    taken as final. traded_at: open time of a candle that it gave lately. Ends early, without an
    error, where the newest stretch is too young to be called empty. Raises ExchangeError; pages
    yielded before stay valid, and the next call can start at the last one's `until`.
    """
    frame = timeframe_of(timeframe)
    walk = _Walk(exchange, symbol, frame, await exchange.now(), grace, traded_at)
    at = to_ms(frame.ceil(since))
    end = walk.closed_before if until is None else min(walk.closed_before, to_ms(until))
    while at < end:
        if at < walk.kept_from and not await walk.keeps_more(at):
            hidden = min(walk.kept_from, end)
            yield walk.hidden(at, hidden, NEWEST_ONLY)
            at = hidden
            continue
        found = await walk.ask(at, end)
        if not found:
            answered = await walk.empty_until(at, end)
            if answered is not None:
                if answered <= at:
                    return
                yield walk.page(at, answered, found)
                at = answered
                continue
            # Longer candles show that there were trades: once more.
            found = await walk.ask(at, end)
        hidden, reason = at, NEWEST_ONLY
        if not found:
            hidden, reason = await walk.begins_again(at, end), NOT_TOLD
        elif min(found) > at:
            found, hidden = await walk.front(at, found)
        if hidden > at:
            hidden = min(hidden, end)
            yield walk.hidden(at, hidden, reason)
            at = hidden
        elif found:
            answered = min(walk.close(max(found)), end)
            yield walk.page(at, answered, found)
            at = answered


class _Walk:
    """One walk through a market's candles. Times are milliseconds since 1970."""

    def __init__(
        self,
        exchange: Exchange,
        symbol: str,
        frame: Timeframe,
        now: datetime,
        grace: timedelta,
        traded_at: datetime | None,
    ) -> None:
        self._exchange = exchange
        self._symbol = symbol
        self.frame = frame
        self._now = now
        self._limit = exchange.venue.candle_limit or CAUTIOUS_LIMIT
        #: Open time of the first candle that has not closed.
        self.closed_before = to_ms(frame.open_time(now - grace))
        kept = exchange.venue.candles_kept
        #: What opens earlier it does not keep, by its documents.
        self.kept_from = (
            self.closed_before - (kept - KEPT_MARGIN) * frame.seconds * 1000
            if kept is not None and not frame.is_calendar
            else 0
        )
        #: Where it gave candles last: the timeframe, and the newest open time of that answer.
        self._seen = None if traded_at is None else (frame, to_ms(traded_at))
        #: Requests say where they end: some venues answer with the newest candles up to there.
        self._bounded = False
        self._repeated = 0
        self._contradicted = 0

    def most(self, frame: Timeframe) -> int:
        """Candles of `frame` that one request gives at most."""
        return min(self._limit, self._exchange.venue.most_candles(frame.seconds * 1000))

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
        wanted = self.most(self.frame)
        if not self.frame.is_calendar:
            wanted = min(wanted, (end - at) // (self.frame.seconds * 1000) + 1)
        return await self._fetch(self.frame, at, wanted, widen=True)

    async def _fetch(
        self,
        frame: Timeframe,
        at: int,
        limit: int,
        *,
        widen: bool = False,
        bounded: bool | None = None,
        answers: int = EMPTY_ANSWERS,
    ) -> Rows:
        """One answer by open time; if it is empty it is asked for again, `answers` times in all."""
        found: Rows = {}
        for _ in range(answers):
            is_bounded = self._bounded if bounded is None else bounded
            until = at + limit * frame.seconds * 1000 - 1 if is_bounded else None
            rows = await self._exchange.fetch_candles(self._symbol, frame.name, at, limit, until)
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
                self._seen = (frame, max(found))
                break
            # If it was nothing but rows from before `at`, a longer answer reaches beyond them.
            limit = self.most(frame) if widen else limit
        return found

    async def keeps_more(self, at: int) -> bool:
        """Whether it gives candles from `at` on that, by its documents, it does not keep."""
        latest = self.kept_from - self.most(self.frame) * self.frame.seconds * 1000
        for since in sorted({at, max(at, latest)}):
            try:
                found = await self._fetch(self.frame, since, self.most(self.frame))
            except ExchangeRefused:
                return False
            if any(time < self.kept_from for time in found):
                self.kept_from = 0
                return True
        return False

    async def front(self, at: int, found: Rows) -> tuple[Rows, int]:
        """A page that begins after `at`, with what stands in front of it all the same; and up to
        when the exchange has candles in front of it and hides them (`at` if it does not).

        No rows and `at` if it is to be asked again, in another way.
        """
        venue, newest = self._exchange.venue, found
        if not venue.candles_oldest_first:
            found = await self.look_in_front(self.frame, at, found)
        first = min(found)
        if first == at or (venue.candles_oldest_first and not venue.candles_latest_only):
            return found, at
        is_full = len(newest) >= self.most(self.frame) - 1
        if venue.candles_latest_only and is_full:
            return {}, first
        if not is_full and first < self.step(at, SHORT_HOLE):
            return found, at
        traded = await self._traded(at, first)
        if traded is None:
            return found, at
        if not self._bounded:
            # The newest candles of all, perhaps: then it has others, if it is told where to end.
            self._bounded = True
            again = await self._fetch(self.frame, traded, self.most(self.frame))
            if any(time < first for time in again):
                return {}, at
            self._bounded = False
        return {}, first

    async def look_in_front(self, frame: Timeframe, at: int, found: Rows) -> Rows:
        """The page, without a hole in front that is not one.

        A venue may answer with the newest rows of a window, not with the oldest; asking for just
        the hole tells. Raises BadAnswer if that comes to no end.
        """
        for _ in range(MOST_LOOKS):
            first = min(found)
            if first <= at:
                return found
            length = frame.seconds * 1000
            # One more on either side: where the end of a window is part of it, the newest rows of
            # the window lack its first; and the row behind the hole proves that nothing is left
            # out in between.
            bars = (first - at) // length + 2
            again = await self._fetch(frame, max(0, at - length), min(self.most(frame), bars))
            again = {time: row for time, row in again.items() if time >= at}
            earlier = {time: row for time, row in again.items() if time < first}
            if not earlier:
                return found
            if max(again) >= first:
                found = {**found, **again}
                continue
            if frame == self.frame:
                # It gives fewer rows than was thought.
                self._limit = max(min(CAUTIOUS_LIMIT, self._limit), min(self._limit, len(found)))
            found = earlier
        raise BadAnswer(
            self._exchange.name,
            f"it gives candles of {self._symbol} from {from_ms(at).isoformat()} on bit by bit, the "
            "newest first",
        )

    async def _traded(self, since: int, until: int) -> int | None:
        """Open time of a longer candle within [since, until) in which somebody traded; None if
        there is none."""
        for frame in self._coarser():
            length = frame.seconds * 1000
            at = -(-since // length) * length
            count = (until - at) // length
            if count <= 0:
                continue
            for bounded in (self._bounded, True):
                bars = await self._fetch(frame, at, self.most(frame), bounded=bounded)
                inside = [time for time in _traded(bars) if time + length <= until]
                if inside:
                    return min(inside)
                if bounded or not bars:
                    # Else it may be that these are the newest of all.
                    break
            return None
        return None

    async def empty_until(self, at: int, end: int) -> int | None:
        """Up to when there are no candles from `at` on, where every answer was empty.

        Longer timeframes say when there was a trade next: an exchange in trouble gives empty
        answers, too. Not later than what is old enough to be called empty; `at` or less if
        nothing is. None if longer candles show trades where shorter ones are missing.
        """
        settled = to_ms(self.frame.open_time(self._now - EMPTY_AGE))
        if settled <= at:
            return settled
        target = self.step(at, self.most(self.frame))
        coarser = [] if self._exchange.venue.candles_latest_only else self._coarser()
        #: By then somebody has traded.
        traded_by = None
        for frame in coarser:
            length = frame.seconds * 1000
            opened = to_ms(frame.open_time(from_ms(at)))
            bars = await self._fetch(frame, opened, self.most(frame), answers=1)
            if not bars:
                await self.check_it_answers()
                bars = await self._fetch(frame, opened, self.most(frame), answers=1)
            if bars and not self._exchange.venue.candles_oldest_first:
                bars = await self.look_in_front(frame, opened, bars)
            times = _traded(bars)
            first = min(times, default=opened + self.most(frame) * length)
            if traded_by is not None and first >= traded_by:
                return None
            closes = [time + length for time in times if time >= at]
            closed = [time for time in closes if time <= self.closed_before]
            traded_by = min([*closed, *([] if traded_by is None else [traded_by])], default=None)
            if not times:
                target = max(target, first)
                break
            if first > at:
                target = first
                break
            # Somebody traded in the bar that `at` is in, before `at` or after it.
            if frame == coarser[-1]:
                target = min(target, opened + length)
                if traded_by is not None and traded_by <= target:
                    return None
        return min(target, end, settled)

    async def check_it_answers(self) -> None:
        """Before a long stretch is called empty: raises BadAnswer if candles that it gave before
        are not there either."""
        if self._seen is None:
            frame = self._coarser()[0]
            newest = to_ms(frame.open_time(self._now)) - self.most(frame) * frame.seconds * 1000
            await self._fetch(frame, max(0, newest), self.most(frame))
            return
        frame, time = self._seen
        if not await self._fetch(frame, time, self.most(frame)):
            raise BadAnswer(
                self._exchange.name,
                f"it gave {frame} candles of {self._symbol} from {from_ms(time).isoformat()} on, "
                "and now it gives none",
            )

    async def begins_again(self, at: int, end: int) -> int:
        """Up to when the exchange hides what it has from `at` on; `end` if it hides all of it."""
        length = self.step(at, 1) - at
        most = self.most(self.frame)
        low, high = at, end - most * length
        if high <= low or not await self._fetch(self.frame, high, most):
            return end
        while high - low > most * length:
            middle = low + (high - low) // (2 * length) * length
            if await self._fetch(self.frame, middle, most):
                high = middle
            else:
                low = middle
        return high

    def _coarser(self) -> list[Timeframe]:
        return [
            frame
            for frame in _COARSER
            if frame.seconds > self.frame.seconds
            and frame.name in self._exchange.timeframes
            and self.frame.divides(frame)
        ]

    def hidden(self, since: int, until: int, reason: str) -> CandlePage:
        return CandlePage(
            from_ms(since), from_ms(until), PageStatus.UNAVAILABLE, candle_table([]), (),
            self._now, reason=reason,
        )  # fmt: skip

    def page(self, since: int, until: int, found: Rows) -> CandlePage:
        times = sorted(found)
        rows = [
            found[time] for time in times[bisect_left(times, since) : bisect_left(times, until)]
        ]
        made = CandlePage(
            from_ms(since), from_ms(until), PageStatus.ANSWERED, candle_table(rows),
            tuple(self._holes(since, until, rows)), self._now, self._repeated, self._contradicted,
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


def _traded(bars: Rows) -> list[int]:
    """Open times of candles in which somebody traded."""
    return [time for time, row in bars.items() if row.is_traded]


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
