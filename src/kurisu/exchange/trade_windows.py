"""Public trades window by window: of venues that are not known, and where nothing is better.

Of a venue that nobody knows nothing is believed. A window is whole if its rows fit into an answer;
one that may have been cut without a word, and one without rows, are held against the venue's
candles; what the venue refuses is looked into.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from kurisu.domain.timeframe import TIMEFRAMES
from kurisu.errors import ExchangeRefused, IndistinctTrades
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.port import CandleRow, TradeQuery, TradeRow
from kurisu.exchange.trade_walk import TradePage, TradeWalk
from kurisu.exchange.venues import HOUR_MS

#: A window of time that is asked for at once, at most.
LONGEST_WINDOW_MS: Final = 7 * 24 * HOUR_MS
#: No venue gives fewer trades than this in an answer that is full.
FEWEST_ROWS: Final = 20
SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60_000
DAY_MS: Final = 24 * HOUR_MS
#: Of candles, where old trades are looked for.
LONGEST_STEP_MS: Final = 64 * DAY_MS
#: By how much rows may lie outside of a window of milliseconds.
MARGIN_MS: Final = 2
#: Why trades are missing that are not merely too old.
UNTOLD: Final = "{} gives no trades of it, and its candles say that there were some"


@dataclass(slots=True)
class Windows:
    """How long windows of a walk are, in milliseconds, and what is known of their answers.

    limit: rows that are asked for. longest: may be asked for at all. trusted: longer ones may have
    been cut without a word. width: of the next. most: rows of the largest answer so far; a venue
    may give less than it is asked for. sample: the time of a trade in the middle of a second.
    """

    limit: int
    longest: int
    trusted: int
    width: int
    most: int = FEWEST_ROWS
    sample: int | None = None

    @property
    def full(self) -> int:
        """Rows of an answer that may have been cut."""
        return min(self.most, self.limit)

    def saw(self, rows: Sequence[TradeRow]) -> None:
        self.most = max(self.most, len(rows))
        if self.sample is None:
            margin = 2 * MARGIN_MS
            times = (row.time_ms for row in rows)
            self.sample = next(
                (t for t in times if margin < t % SECOND_MS < SECOND_MS - margin), None
            )

    def widen(self, rows: int) -> None:
        """After an answer of so many rows."""
        if rows < self.most // 4:
            self.width = min(2 * self.width, self.longest)

    def shorten(self, length: int) -> None:
        """Longer ones are refused."""
        self.longest = self.width = length
        self.trusted = min(self.trusted, length)


class WindowWalk(TradeWalk):
    """One walk, in windows. Times are milliseconds since 1970."""

    #: The venue has told of trades: what it does not tell later is not merely too old.
    _is_known = False

    async def by_window(self) -> AsyncIterator[TradePage]:
        """Window by window. Venues: those that are not known, and those with nothing better.

        Whether a venue answers with the oldest or the newest rows of a window, one whose rows fit
        is whole. One that gives rows from outside was not asked for a window.
        """
        at, windows = self._since, self._windows()
        newest = self._from(0, await self._ask(TradeQuery(limit=self._limit)))
        windows.saw(newest)
        # Old trades may be kept back: until a window has rows, and where one has none, candles are
        # asked whether there were trades.
        is_sure = False
        while True:
            end = await self._end()
            until = self._window_end(at, windows.width, end)
            try:
                answer = await self._window(at, until) if at < until else []
            except ExchangeRefused as error:
                begins = min(await self._where_it_answers(at, until, windows, error), end)
                if begins > at:
                    yield self._hidden(at, begins, error.reason)
                at = begins
                if at >= end:
                    return
                continue
            if not is_within(answer, at - 2 * SECOND_MS, until + 2 * SECOND_MS):
                self._full = windows.full
                async for page in self._without_windows(at, answer, newest):
                    yield page
                return
            whole = await self._whole(at, until, answer, windows)
            if whole is None:
                continue
            rows = [row for row in whole if at <= row.time_ms < until]
            told = await self._told(at, until, rows, windows, is_sure=is_sure)
            if told is None:
                continue
            is_sure = told[-1][2] if rows else is_sure and len(told) == 1
            async for page in self._tell(told, rows, end):
                yield page
                at = to_ms(page.until)
            if at >= end:
                return
            windows.widen(len(answer))

    async def _tell(
        self, told: Sequence[tuple[int, int, bool]], rows: Sequence[TradeRow], end: int
    ) -> AsyncIterator[TradePage]:
        """A window as pages, and what follows it while the venue keeps only the newest trades."""
        untold = UNTOLD.format(self._exchange.name) if self._is_known else ""
        for since, until, is_told in told:
            if is_told:
                inside = [row for row in rows if since <= row.time_ms < until]
                yield self._page(since, until, inside)
            else:
                yield self._hidden(since, until, untold)
        self._is_known = self._is_known or bool(rows)
        if not self._is_known and not told[0][2]:
            until = told[-1][1]
            begins = await self._begins(until, end)
            if begins > until:
                yield self._hidden(until, begins)

    def _windows(self) -> Windows:
        known = self._exchange.venue.trade_window_ms
        # They are asked for with a margin at both ends, with which they must not be too long.
        longest = LONGEST_WINDOW_MS if known is None else known - 2 * SECOND_MS
        trusted = HOUR_MS if known is None else longest
        return Windows(self._limit, longest, trusted, min(trusted, HOUR_MS))

    async def _whole(
        self, at: int, until: int, answer: list[TradeRow], windows: Windows
    ) -> list[TradeRow] | None:
        """All rows of a window, by a look at the answer; None if it has to be a shorter one."""
        windows.saw(answer)
        if len(answer) < windows.full:
            return answer
        if until - at <= 2 * SECOND_MS and self._unit is None:
            self._unit = await self._unit_of_time(windows.sample)
        unit = self._unit or 1
        if (until - 1) // unit > at // unit:
            windows.width = (until - at) // 2
            return None
        return await self._exactly(at, until, answer, windows.full)

    async def _told(
        self, at: int, until: int, rows: Sequence[TradeRow], windows: Windows, *, is_sure: bool
    ) -> list[tuple[int, int, bool]] | None:
        """What the venue has told of a window, as far as candles know: (since, until, True if it
        has), one after the other. None if it has to be a shorter window.

        is_sure: trades of this time are not kept back, because those before are not.
        """
        first = rows[0].time_ms if rows else until
        after = rows[-1].time_ms + 1 if rows else until
        length = until - at
        # A long window may have been cut without a word.
        is_long = length > windows.trusted
        head = tail = None
        if not (is_sure and rows) or (is_long and first - at > length // 8):
            head = await self._traded(at, first) or await self._hidden_minute(at, first)
        if is_long and until - after > length // 8:
            tail = await self._traded(after, until)
        for candle in (tail, head):
            if candle is not None and await self._gives(*candle):
                # It has them, and has not given them.
                windows.longest = max(windows.trusted, length // 2)
                windows.width = length // 2
                return None
        if head is None and tail is None:
            return [(at, until, True)]
        parts = []
        if head is not None:
            hidden = min(head[1], first)
            # What nobody traded; no candle vouches for a part of a minute.
            quiet = max(hidden, first // MINUTE_MS * MINUTE_MS)
            parts = [(at, hidden, False), (hidden, quiet, True), (quiet, first, False)]
            at = first
        if tail is not None:
            parts += [(at, after, True), (after, until, False)]
        else:
            parts.append((at, until, True))
        return [part for part in parts if part[0] < part[1]]

    async def _hidden_minute(self, at: int, until: int) -> tuple[int, int] | None:
        """The minute at an end of [at, until) that has a candle, and trades that the venue does not
        give; None if there is none."""
        for edge in (at, until) if at < until else ():
            opens = edge // MINUTE_MS * MINUTE_MS
            minute = opens, opens + MINUTE_MS
            if edge == opens or await self._traded(*minute, ["1m"]) is None:
                continue
            if not await self._gives(*minute):
                return minute
        return None

    async def _begins(self, at: int, end: int) -> int:
        """Up to when from `at` on no trades are given either, where candles say that there were
        some: in long steps, because windows may be short."""
        step, grows = DAY_MS, True
        while step >= HOUR_MS and at < end:
            candle = await self._traded(at, min(at + step, end))
            if candle is not None and await self._gives(*candle):
                step, grows = step // 2, False
                continue
            if candle is None and (not grows or at + step >= end):
                break
            at = at if candle is None else candle[1]
            step = min(2 * step, LONGEST_STEP_MS) if grows else step
            grows = grows and step < LONGEST_STEP_MS
        return at

    def _window_end(self, at: int, width: int, end: int) -> int:
        """Of a window from `at` on: with an hour or a minute, so that few candles can vouch for it;
        where times are cut to seconds with one of those."""
        until, unit = at + width, self._unit or 1
        for length in (HOUR_MS, MINUTE_MS, unit):
            if width >= length and until // length * length > at:
                return min(until // length * length, end)
        return max(at, min((at // unit + 1) * unit, end))

    async def _window(self, at: int, until: int) -> list[TradeRow]:
        """What the venue gives of [at, until), and a little more: the ends that it is asked for may
        be part of a window or not, and some venues cut them to seconds."""
        margin = 1 if self._unit == 1 else SECOND_MS
        query = TradeQuery(since_ms=at - 1, until_ms=until - 1 + margin, limit=self._limit)
        return self._from(0, await self._ask(query))

    async def _unit_of_time(self, at: int | None) -> int:
        """Milliseconds, or 1000 where the ends of a window are cut to seconds. at: the time of a
        trade in the middle of a second; None if none is known."""
        if at is None:
            return SECOND_MS
        query = TradeQuery(since_ms=at - 1, until_ms=at + 1, limit=self._limit)
        found = self._from(0, await self._ask(query))
        is_exact = bool(found) and is_within(found, at - MARGIN_MS, at + MARGIN_MS)
        return 1 if is_exact else SECOND_MS

    async def _exactly(
        self, at: int, until: int, rows: Sequence[TradeRow], full: int
    ) -> list[TradeRow]:
        """The rows of one unit of time that are too many with their neighbours'.

        rows: what was given with them. Raises IndistinctTrades if they are too many alone.
        """
        unit = self._unit or 1
        start = at // unit * unit
        seen = {row for row in rows if at <= row.time_ms < until}
        for last in (start + unit, start) if unit == 1 else (start + unit,):
            query = TradeQuery(since_ms=start, until_ms=last, limit=self._limit)
            found = self._from(0, await self._ask(query))
            if len(found) < full and seen.issubset(found):
                return found
        raise IndistinctTrades(
            self._exchange.name,
            f"{full} trades of {self._symbol} or more at {from_ms(start).isoformat()}: "
            "they cannot be told apart by time",
            at,
            min(until, start + unit),
        )

    async def _where_it_answers(
        self, at: int, until: int, windows: Windows, error: ExchangeRefused
    ) -> int:
        """From when on a venue answers that has refused [at, until): it was too long, or too old.

        Raises `error` if the venue refuses any window.
        """
        length = until - at
        if length > MINUTE_MS and await self._takes(at, at + MINUTE_MS):
            while length > MINUTE_MS and not await self._takes(at, at + length):
                length //= 2
            if length == until - at:
                raise error
            windows.shorten(length)
            return at
        low, high = at, to_ms(await self._exchange.now()) - MINUTE_MS
        if high <= low or not await self._takes(high, high + MINUTE_MS):
            raise error
        while high - low > MINUTE_MS:
            middle = (low + high) // 2
            if await self._takes(middle, middle + MINUTE_MS):
                high = middle
            else:
                low = middle
        return high

    async def _takes(self, at: int, until: int) -> bool:
        """False if the venue refuses that window."""
        try:
            await self._window(at, until)
        except ExchangeRefused:
            return False
        return True

    async def _gives(self, since: int, until: int) -> bool:
        """True if the venue gives trades of [since, until)."""
        # The end may be no part of what is asked for; the time there may have many trades.
        for last in (until - 1, until):
            query = TradeQuery(since_ms=since, until_ms=last, limit=self._limit)
            if any(since <= row.time_ms < until for row in await self._ask(query)):
                return True
        return False

    async def _without_windows(
        self, at: int, rows: Sequence[TradeRow], newest: Sequence[TradeRow]
    ) -> AsyncIterator[TradePage]:
        """The venue makes nothing of an end. Where it makes nothing of a beginning either, it has
        no history."""
        self._since = at
        # The newest have become others since.
        is_newest = bool(newest) and rows[-1].time_ms >= newest[-1].time_ms
        has_history = rows[0].time_ms >= at - 1 and not is_newest
        async for page in self.by_time() if has_history else self.newest():
            yield page

    async def _traded(
        self, since: int, until: int, frames: Sequence[str] = ("1d", "1h", "5m", "1m")
    ) -> tuple[int, int] | None:
        """When there were trades in [since, until), by the last candle that says so: (its open
        time, its end). The longest candles that fit are asked for, and shorter ones on either side
        of them and inside. None if no candle says so."""
        for index, name in enumerate(frames):
            length = TIMEFRAMES[name].seconds * 1000
            at, end = -(-since // length) * length, until // length * length
            if name not in self._exchange.timeframes or at >= end:
                continue
            kept = self._exchange.venue.candles_kept
            if kept is not None and at <= to_ms(await self._exchange.now()) - kept * length:
                # It refuses those that are so old.
                continue
            shorter = frames[index + 1 :]
            later = await self._traded(end, until, shorter)
            if later is not None:
                return later
            rows = await self._candles(name, at, end, length)
            last = max((row.time_ms for row in rows if row.is_traded), default=None)
            if last is None:
                return await self._traded(since, at, shorter)
            inside = await self._traded(last, last + length, shorter) if length > HOUR_MS else None
            return inside or (last, last + length)
        return None

    async def _candles(self, name: str, at: int, end: int, length: int) -> list[CandleRow]:
        """Candles that open in [at, end); asked for twice if there are none, and it matters."""
        rows: list[CandleRow] = []
        for _ in range(1 if self._is_known else 2):
            found = await self._exchange.fetch_candles(
                self._symbol, name, at, (end - at) // length, end - 1
            )
            rows = [row for row in found if at <= row.time_ms < end]
            if rows:
                break
        return rows


def is_within(rows: Sequence[TradeRow], since: int, until: int) -> bool:
    """True if no row lies before `since` or after `until`. rows: by time."""
    return not rows or (since <= rows[0].time_ms and rows[-1].time_ms <= until)
