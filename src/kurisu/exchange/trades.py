"""A market's public trades, page by page, by whichever way the venue offers.

Paging by `last time + 1 ms` loses trades that share a millisecond, so nothing here does: pages
continue by id, after a cursor, or from the last time on, inclusive. A page states the stretch of
time that is complete with it; a backfill resumes at its `until`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

import pyarrow as pa

from kurisu.domain.money import parse_decimal
from kurisu.domain.timeframe import TIMEFRAMES
from kurisu.domain.trade import IdSpace, cost_of, derived_ids
from kurisu.errors import (
    BadAnswer,
    ExchangeRefused,
    IdSpaceConflict,
    IndistinctTrades,
    InvalidArgument,
    NotOffered,
)
from kurisu.exchange.candles import PageStatus, exact_column
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.port import Exchange, TradeAnswer, TradeQuery, TradeRow
from kurisu.exchange.venues import HOUR_MS, TradePaging

_MS: Final = pa.timestamp("us", tz="UTC")
_NS_PER_MS: Final = 1_000_000
#: A window of time that is asked for at once, at most.
LONGEST_WINDOW_MS: Final = 7 * 24 * HOUR_MS
#: No venue gives fewer trades than this in an answer that is full.
FEWEST_ROWS: Final = 20
SECOND_MS: Final = 1_000
#: Trades of a window that is walked from its end back: so many are aimed at, and kept at most.
BACK_ROWS: Final = 10_000
MOST_BACK_ROWS: Final = 50_000
#: How often an answer with rows that are alike and have no ids is asked for again.
DOUBTS: Final = 2


@dataclass(frozen=True, slots=True)
class TradePage:
    """The trades of [since, until), complete; pages follow each other without a gap.

    table: time (timestamp[us, UTC], whole milliseconds), trade_id, side (text, may be null),
        price, amount, cost (decimal128(38, 18)). Trades at `until` itself may be there already.
    id_space: what the ids are. missing_ids: ids that the venue skips, where it should not.
    """

    since: datetime
    until: datetime
    status: PageStatus
    table: pa.Table
    id_space: IdSpace
    missing_ids: int = 0


async def trade_pages(
    exchange: Exchange,
    symbol: str,
    since: datetime,
    until: datetime | None = None,
    *,
    grace: timedelta = timedelta(seconds=2),
    id_space: IdSpace | None = None,
    known_from: str | None = None,
) -> AsyncGenerator[TradePage, None]:
    """Every trade of [since, until), oldest first.

    until: None for up to now. grace: trades younger than this may still be on their way, and are
    left to the next call. id_space: what the market's stored trades carry; None if it has none.
    known_from: id of a trade from which on the caller has them all, in the order in which the
    exchange tells them.
    Raises ExchangeError; pages yielded before stay valid. Raises IdSpaceConflict if the exchange's
    ids are of another kind than `id_space`; ids can be derived from any trades.
    """
    usual = exchange.venue.trade_id_space
    if id_space is not None and id_space not in (IdSpace.DERIVED, usual):
        raise IdSpaceConflict(f"{exchange.name}:{symbol}", id_space.value, usual.value)
    walk = _Walk(exchange, symbol, to_ms(since), None if until is None else to_ms(until), grace,
                 id_space, known_from)  # fmt: skip
    ways = {
        TradePaging.ID: walk.by_id,
        TradePaging.CURSOR: walk.by_cursor,
        TradePaging.TIME: walk.by_time,
        TradePaging.BACK: walk.by_back,
        TradePaging.WINDOW: walk.by_window,
        TradePaging.NONE: walk.newest,
    }
    async for page in ways[exchange.venue.trade_paging]():
        yield page


class _Walk:
    """One walk through a market's trades. Times are milliseconds since 1970."""

    def __init__(
        self,
        exchange: Exchange,
        symbol: str,
        since: int,
        until: int | None,
        grace: timedelta,
        id_space: IdSpace | None,
        known_from: str | None,
    ) -> None:
        self._exchange = exchange
        self._symbol = symbol
        self._since = since
        self._until = until
        self._grace = grace
        self._space = id_space
        self._known_from = known_from
        self._limit = exchange.venue.trade_limit

    async def by_id(self) -> AsyncIterator[TradePage]:
        """From the id of the first trade on. Venue: binance (aggregate trades)."""
        # Before the question: what is made while the answer is on its way is not in it.
        end = await self._end()
        at_id = await self._first_id()
        at, missing, held = self._since, 0, list[TradeRow]()
        accepted: set[int] = set()
        while at_id is not None:
            end = await self._end()
            rows = [row for row in await self._ask(TradeQuery(from_id=at_id, limit=self._limit))
                    if _id(row) >= at_id]  # fmt: skip
            rows.sort(key=_id)
            if self._exchange.venue.trade_ids_gapless:
                rows, lost, hole = _consecutive(rows, at_id, accepted)
                missing += lost
                if hole is not None:
                    # Rows were lost on the way, perhaps: asked for once more, from there.
                    accepted.add(hole)
                    if not rows:
                        continue
            if not rows:
                await self._check_end(end, from_id=at_id)
                break
            at_id = _id(rows[-1]) + 1
            rows = [*held, *rows]
            last = rows[-1].time_ms
            if last >= end:
                yield self._page(at, end, (r for r in rows if at <= r.time_ms < end), missing)
                return
            # What is at `last` belongs to the next page, which may be one without other trades.
            yield self._page(at, last, (r for r in rows if at <= r.time_ms < last), missing)
            held = [row for row in rows if row.time_ms >= last]
            at, missing = max(at, last), 0
        yield self._page(at, end, (r for r in held if r.time_ms >= at), missing)

    async def by_cursor(self) -> AsyncIterator[TradePage]:
        """After a cursor of nanoseconds. Venue: kraken."""
        cursor = str(self._since * _NS_PER_MS - 1)
        at, held, before = self._since, list[TradeRow](), cursor
        while True:
            end = await self._end()
            query = TradeQuery(cursor=cursor, limit=self._limit)
            answer = await self._answer(query)
            if not answer.rows:
                answer = await self._answer(query)
            known = {row.trade_id for row in held if row.trade_id is not None}
            new = [row for row in answer.rows if row.trade_id not in known]
            rows = sorted([*held, *new], key=lambda row: row.time_ms)
            last = rows[-1].time_ms if rows else at
            if not new:
                await self._check_end(end, after=last)
            if not new or last >= end:
                yield self._page(at, end, (r for r in rows if r.time_ms < end))
                return
            is_stuck = answer.cursor == before and any(row.time_ms < at for row in new)
            if answer.cursor is None or answer.cursor == cursor or is_stuck:
                raise BadAnswer(self._exchange.name, f"its cursor does not move on from {cursor}")
            # The next page may go on inside the last millisecond.
            held = [row for row in rows if row.time_ms == last]
            yield self._page(at, last, rows[: len(rows) - len(held)])
            # The cursor is the time of the last row. What one order filled has one time, and may be
            # divided here: that nanosecond comes again where ids tell what is new, else the whole
            # millisecond. So it does if the cursor is ahead, of rows that were lost on the way.
            before = answer.cursor
            cursor = before
            if before.isdecimal():
                is_ahead = int(before) // _NS_PER_MS > last
                if last > at and (is_ahead or any(row.trade_id is None for row in held)):
                    cursor, held = str(last * _NS_PER_MS - 1), []
                elif not is_ahead and all(row.trade_id for row in held):
                    cursor = str(int(before) - 1)
            at = last

    async def by_time(self) -> AsyncIterator[TradePage]:
        """From the last time on, inclusive. Venue: bitfinex."""
        at, before = self._since, set[TradeRow]()
        while True:
            end = await self._end()
            query = TradeQuery(since_ms=at, limit=self._limit)
            rows = self._from(at, await self._ask(query))
            last = rows[-1].time_ms if rows else at
            if rows and not before.intersection(rows) and before:
                raise BadAnswer(
                    self._exchange.name,
                    f"it gives no trades of {self._symbol} from {from_ms(at).isoformat()} on, "
                    "where it had some before",
                )
            if rows and last >= end:
                yield self._page(at, end, (r for r in rows if r.time_ms < end))
                return
            if last > at:
                # The last millisecond may be cut: it comes again, whole.
                yield self._page(at, last, (r for r in rows if r.time_ms < last))
                at, before = last, {row for row in rows if row.time_ms == last}
                continue
            if len(rows) >= self._limit:
                raise IndistinctTrades(
                    self._exchange.name,
                    f"{len(rows)} trades of {self._symbol} or more at {from_ms(at).isoformat()}: "
                    "they cannot be told apart by time",
                    at,
                )
            later = await self._goes_on_after(at)
            if later is None:
                yield self._page(at, max(at, end), rows)
                return
            yield self._page(at, later, rows)
            at, before = later, set()

    async def by_window(self) -> AsyncIterator[TradePage]:
        """Window by window. Venues: those that are not known.

        Whether a venue answers with the oldest or the newest rows of a window, one whose rows fit
        is whole. One that gives rows from outside was not asked for a window.
        """
        at, width = self._since, self._exchange.venue.trade_window_ms or HOUR_MS
        newest = self._from(0, await self._ask(TradeQuery(limit=self._limit)))
        # A venue may give less than it is asked for: the largest answer so far is full, perhaps.
        most = max(FEWEST_ROWS, len(newest))
        # Old trades may be kept back: until a window has rows, and where one has none, candles are
        # asked whether there were trades.
        is_sure = False
        while True:
            end = await self._end()
            until = max(at, min(at + width, end))
            # Some venues cut times to seconds.
            slack = SECOND_MS if until - at > SECOND_MS else 0
            query = TradeQuery(since_ms=at, until_ms=until - 1 + slack, limit=self._limit)
            answer = self._from(0, await self._ask(query) if at < until else [])
            if answer and not (
                at - SECOND_MS < answer[0].time_ms and answer[-1].time_ms < until + SECOND_MS
            ):
                async for page in self._without_windows(at, answer, newest):
                    yield page
                return
            most = max(most, len(answer))
            if len(answer) >= min(most, self._limit):
                if until - at <= 1:
                    raise IndistinctTrades(
                        self._exchange.name,
                        f"{len(answer)} trades of {self._symbol} or more at "
                        f"{from_ms(at).isoformat()}: they cannot be told apart by time",
                        at,
                    )
                width = (until - at) // 2
                continue
            rows = [row for row in answer if at <= row.time_ms < until]
            first = rows[0].time_ms if rows else until
            if not (is_sure and rows) and await self._traded(at, first):
                yield self._page(at, first, [], status=PageStatus.UNAVAILABLE)
                at = first
            yield self._page(at, until, rows)
            if until >= end:
                return
            is_sure = bool(rows)
            at = until
            if len(answer) < most // 4:
                width = min(2 * width, LONGEST_WINDOW_MS)

    async def _without_windows(
        self, at: int, rows: Sequence[TradeRow], newest: Sequence[TradeRow]
    ) -> AsyncIterator[TradePage]:
        """The venue makes nothing of an end. Where it makes nothing of a beginning either, it has
        no history."""
        self._since = at
        has_history = rows[0].time_ms >= at and not set(newest[-1:]).intersection(rows)
        async for page in self.by_time() if has_history else self.newest():
            yield page

    async def _traded(
        self, since: int, until: int, frames: Sequence[str] = ("1d", "1h", "5m", "1m")
    ) -> bool:
        """True if candles that lie in [since, until) say that there were trades; the longest that
        fit are asked for, and shorter ones on either side of them."""
        for index, name in enumerate(frames):
            length = TIMEFRAMES[name].seconds * 1000
            at, end = -(-since // length) * length, until // length * length
            if name not in self._exchange.timeframes or at >= end:
                continue
            kept = self._exchange.venue.candles_kept
            if kept is not None and at <= to_ms(await self._exchange.now()) - kept * length:
                # It refuses those that are so old.
                continue
            found = await self._exchange.fetch_candles(
                self._symbol, name, at, (end - at) // length, end - 1
            )
            shorter = frames[index + 1 :]
            return (
                any(at <= row.time_ms < end and row.is_traded for row in found)
                or await self._traded(since, at, shorter)
                or await self._traded(end, until, shorter)
            )
        return False

    async def newest(self) -> AsyncIterator[TradePage]:
        """There is no history; only the newest trades can be had. Venues: bybit, kucoin, ..."""
        end = await self._end()
        rows = self._from(0, await self._ask(TradeQuery(limit=self._limit)))
        end, last = self._reach(end, rows)
        # The oldest millisecond of the answer may be cut; if it lies before, nothing is.
        first = rows[0].time_ms + 1 if rows else end
        first = min(max(first, self._since), end)
        if first > self._since:
            yield self._page(self._since, first, [], status=PageStatus.UNAVAILABLE)
        found = [row for row in rows if first <= row.time_ms < last]
        if first < end or found:
            yield self._page(first, end, found)

    async def by_back(self) -> AsyncIterator[TradePage]:
        """Window by window, each from its end back to its beginning. Venue: okx."""
        at, end = self._since, await self._end()
        newest = self._from(0, await self._ask(TradeQuery(limit=self._limit)))
        lasted = newest[-1].time_ms - newest[0].time_ms if newest else 0
        width = lasted * BACK_ROWS // max(1, len(newest))
        while True:
            width = min(max(width, SECOND_MS), LONGEST_WINDOW_MS)
            until = last = min(at + width, end)
            is_last = until == end and self._until is None
            rows: list[TradeRow] | None = newest
            if is_last or not newest or newest[0].time_ms < until:
                until, last = self._reach(end, newest)
            else:
                rows = await self._back(TradeQuery(before_ms=until))
            older = rows
            while rows and older and rows[0].time_ms >= at and len(rows) <= MOST_BACK_ROWS:
                older = await self._back(TradeQuery(before_id=min(map(_id, rows))))
                rows = [*(older or []), *rows]
            if rows and rows[0].time_ms >= at and len(rows) > MOST_BACK_ROWS and width > SECOND_MS:
                width = (until - at) // 4
                continue
            rows, until = rows or [], max(at, until)
            first = min(rows[0].time_ms if rows else until, until)
            if first > at and (older is None or await self._traded(at, first)):
                # The history does not reach so far back; its first millisecond may be cut.
                first = min(first + 1, until)
                yield self._page(at, first, [], status=PageStatus.UNAVAILABLE)
                at = first
            found = [row for row in rows if at <= row.time_ms < last]
            if at < until or found:
                yield self._page(at, until, found)
            if until >= end:
                return
            at = until
            if len(rows) < BACK_ROWS // 2:
                width *= 2

    async def _back(self, query: TradeQuery) -> list[TradeRow] | None:
        """The rows before a time or an id, the newest of them; None if the venue refuses."""
        try:
            rows = await self._ask(replace(query, limit=self._exchange.venue.trade_back_limit))
        except (ExchangeRefused, NotOffered):
            return None
        id_, time_ms = query.before_id, query.before_ms
        if any(
            (id_ is not None and _id(row) >= id_)
            or (time_ms is not None and row.time_ms >= time_ms)
            for row in rows
        ):
            # It knows nothing of the question.
            return None
        return sorted(rows, key=lambda row: (row.time_ms, _order(row)))

    def _reach(self, end: int, rows: Sequence[TradeRow]) -> tuple[int, int]:
        """Of the newest rows: up to when they are whole, and up to when they can be handed on.

        end: up to when they are for being older than the grace.
        """
        if rows:
            # Few rows may all be younger than the grace. Half of it is for trades that come late,
            # half for an answer that is old, and of that its newest row tells.
            late = self._grace // (2 * timedelta(milliseconds=1))
            end = max(end, self._bounded(rows[-1].time_ms - late))
        met = [row.time_ms for row in rows if row.trade_id == self._known_from is not None]
        if met and rows[-1].time_ms > met[0]:
            # What lies before that trade is here, what comes after it the caller has.
            end = max(end, self._bounded(met[0] + 1))
        # Next time they may be gone: what is younger comes along, where ids tell it apart.
        has_ids = self._space is not IdSpace.DERIVED and all(row.trade_id for row in rows)
        return end, self._bounded(rows[-1].time_ms + 1) if rows and has_ids else end

    def _bounded(self, until: int) -> int:
        return until if self._until is None else min(until, self._until)

    async def _end(self) -> int:
        """Up to when trades are asked for: all that were made by now."""
        settled = to_ms(await self._exchange.now() - self._grace)
        return settled if self._until is None else min(settled, self._until)

    async def _ask(self, query: TradeQuery) -> list[TradeRow]:
        """Rows without repetitions, as far as ids show them; asked twice if there are none."""
        for _ in range(2):
            rows = (await self._answer(query)).rows
            if rows:
                break
        seen: set[str] = set()
        unique = []
        for row in rows:
            if row.trade_id is None or row.trade_id not in seen:
                unique.append(row)
            if row.trade_id is not None:
                seen.add(row.trade_id)
        return unique

    async def _check_end(self, end: int, *, from_id: int | None = None, after: int = 0) -> None:
        """After an answer without rows: raises BadAnswer if that was not the end.

        There are newer trades before `end` then: with an id from `from_id` on, or later than
        `after`.
        """
        for row in await self._ask(TradeQuery(limit=self._limit)):
            is_later = row.time_ms > after if from_id is None else _id(row) >= from_id
            if is_later and row.time_ms < end:
                raise BadAnswer(
                    self._exchange.name,
                    f"it gives no more trades of {self._symbol} in order, and there are newer ones",
                )

    async def _answer(self, query: TradeQuery) -> TradeAnswer:
        """What the exchange says; rows without ids that are alike only as often as it repeats it.

        They are legitimate, and they are also what an answer looks like that has rows twice. So
        it is asked again, and the fewest count.
        """
        answer = await self._exchange.fetch_trades(self._symbol, query)
        counts = Counter(answer.rows)
        alike = {row: count for row, count in counts.items() if count > 1 and row.trade_id is None}
        if not alike:
            return answer
        first = min(row.time_ms for row in answer.rows)
        for _ in range(DOUBTS):
            again = (await self._exchange.fetch_trades(self._symbol, query)).rows
            if not again:
                continue
            # An answer that is cut says nothing of what is behind its end; and the newest trades
            # are others by now, and say nothing of what is before their beginning.
            whole = len(again) >= len(counts)
            end = max(row.time_ms for row in again)
            begin = min(row.time_ms for row in again)
            found = Counter(again)
            for row, count in alike.items():
                if (whole or row.time_ms < end) and (begin <= first or begin < row.time_ms):
                    alike[row] = min(count, max(1, found[row]))
        rows = []
        for row in answer.rows:
            if row in alike:
                alike[row] -= 1
                if alike[row] < 0:
                    continue
            rows.append(row)
        return TradeAnswer(rows, answer.cursor)

    @staticmethod
    def _from(at: int, rows: Iterable[TradeRow]) -> list[TradeRow]:
        return sorted((row for row in rows if row.time_ms >= at), key=lambda row: row.time_ms)

    async def _first_id(self) -> int | None:
        """The id of the first trade at `since` or later; None if there is none."""
        window = self._exchange.venue.trade_window_ms or HOUR_MS
        rows = await self._ask(
            TradeQuery(since_ms=self._since, until_ms=self._since + window, limit=self._limit)
        )
        rows = [row for row in rows if row.time_ms >= self._since]
        if rows:
            first = min(_id(row) for row in rows)
            before = await self._ask(TradeQuery(from_id=max(0, first - 1), limit=1))
            # Documentation and practice differ on whether a full window starts with its oldest
            # rows, so the trade before has to be too early.
            if all(_id(row) >= first or row.time_ms < self._since for row in before):
                return first
        return await self._search_first_id()

    async def _search_first_id(self) -> int | None:
        """The same by bisection: ids grow with time. About 35 requests for a billion trades."""
        newest = await self._ask(TradeQuery(limit=1))
        if not newest or max(row.time_ms for row in newest) < self._since:
            return None
        low, high = 0, max(_id(row) for row in newest)
        while low < high:
            middle = (low + high) // 2
            rows = await self._ask(TradeQuery(from_id=middle, limit=1))
            if not rows or min(row.time_ms for row in rows) >= self._since:
                high = middle
            else:
                low = max(_id(row) for row in rows) + 1
        return low

    async def _goes_on_after(self, at: int) -> int | None:
        """Where to go on after an answer that shows nothing new; None if that was the end.

        Some venues (and CCXT for some) answer for an hour at a time: an hour without trades
        looks like the end.
        """
        newest = await self._ask(TradeQuery(limit=self._limit))
        if max((row.time_ms for row in newest), default=at) <= at:
            return None
        later = [row.time_ms for row in newest if row.time_ms > at]
        if len(newest) < self._limit and min(row.time_ms for row in newest) <= at:
            return min(later)
        again = await self._ask(TradeQuery(since_ms=at, limit=self._limit))
        if any(row.time_ms > at for row in again):
            return min(row.time_ms for row in again if row.time_ms > at)
        if self._exchange.venue.trades_open_ended:
            raise BadAnswer(
                self._exchange.name,
                f"it gives no trades of {self._symbol} from {from_ms(at).isoformat()} on, and "
                "there are newer ones",
            )
        return min(at + (self._exchange.venue.trade_window_ms or HOUR_MS), *later)

    def _page(
        self,
        since: int,
        until: int,
        rows: Iterable[TradeRow],
        missing: int = 0,
        status: PageStatus = PageStatus.ANSWERED,
    ) -> TradePage:
        found = list(rows)
        space = self._id_space(found)
        return TradePage(
            from_ms(since), from_ms(max(since, until)), status, trade_table(found, space), space,
            missing,
        )  # fmt: skip

    def _id_space(self, rows: Sequence[TradeRow]) -> IdSpace:
        """Of the walk, which keeps to one: the first rows decide, if the caller has not."""
        without = any(row.trade_id is None for row in rows)
        if self._space is None and rows:
            self._space = IdSpace.DERIVED if without else self._exchange.venue.trade_id_space
        if without and self._space is not IdSpace.DERIVED:
            raise BadAnswer(self._exchange.name, "some of its trades have ids and some have none")
        return self._space or self._exchange.venue.trade_id_space


def trade_table(rows: Sequence[TradeRow], space: IdSpace) -> pa.Table:
    """Rows as an Arrow table, digit for digit; whole milliseconds if ids are derived."""
    rows = sorted(rows, key=lambda row: (row.time_ms, _order(row)))
    prices = [_number(row.price) for row in rows]
    amounts = [_number(row.amount) for row in rows]
    if space is IdSpace.DERIVED:
        ids: list[str | None] = list(
            derived_ids(
                (row.time_ms, row.side, price, amount)
                for row, price, amount in zip(rows, prices, amounts, strict=True)
            )
        )
    else:
        ids = [row.trade_id for row in rows]
    costs = [
        row.cost if row.cost is not None else str(cost_of(price, amount))
        for row, price, amount in zip(rows, prices, amounts, strict=True)
    ]
    return pa.table(
        {
            "time": pa.array([row.time_ms * 1000 for row in rows], pa.int64()).cast(_MS),
            "trade_id": pa.array(ids, pa.string()),
            "side": pa.array([row.side for row in rows], pa.string()),
            "price": exact_column([row.price for row in rows]),
            "amount": exact_column([row.amount for row in rows]),
            "cost": exact_column(costs),
        }
    )


def _number(text: str) -> Decimal:
    found = parse_decimal(text)
    if found is None or not found.is_finite():
        raise InvalidArgument(f"a trade's number is {text!r}")
    return found


def _id(row: TradeRow) -> int:
    return int(row.trade_id or 0)


def _order(row: TradeRow) -> tuple[int, str]:
    """Numeric ids in their order, others by their text."""
    text = row.trade_id or ""
    return (int(text), "") if text.isdecimal() else (0, text)


def _consecutive(
    rows: Sequence[TradeRow], first: int, accepted: Collection[int]
) -> tuple[list[TradeRow], int, int | None]:
    """(rows up to a gap in the ids, ids missing in accepted gaps, first id of that gap or None).

    accepted: first ids of gaps that were asked for already.
    """
    found: list[TradeRow] = []
    expected, missing = first, 0
    for row in rows:
        if _id(row) != expected:
            if expected not in accepted:
                return found, missing, expected
            missing += _id(row) - expected
        found.append(row)
        expected = _id(row) + 1
    return found, missing, None
