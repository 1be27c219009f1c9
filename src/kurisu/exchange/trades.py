"""A market's public trades, page by page, by whichever way the venue offers.

Paging by `last time + 1 ms` loses trades that share a millisecond, so nothing here does: pages
continue by id, after a cursor, or from the last time on, inclusive. A page states the stretch of
time that is complete with it; a backfill resumes at its `until`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from kurisu.domain.trade import IdSpace
from kurisu.errors import BadAnswer, ExchangeRefused, IdSpaceConflict, NotOffered
from kurisu.exchange.clock import to_ms
from kurisu.exchange.port import Exchange, TradeQuery, TradeRow
from kurisu.exchange.trade_walk import TradePage, order, trade_table
from kurisu.exchange.trade_windows import LONGEST_WINDOW_MS, SECOND_MS, WindowWalk
from kurisu.exchange.venues import HOUR_MS, TradePaging

__all__ = ["TradePage", "trade_pages", "trade_table"]

_NS_PER_MS: Final = 1_000_000
#: Trades of a window that is walked from its end back: so many are aimed at, and kept at most.
BACK_ROWS: Final = 10_000
MOST_BACK_ROWS: Final = 50_000


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
        # Which raises.
        TradePaging.NOTHING: walk.newest,
    }
    async for page in ways[exchange.venue.trade_paging]():
        yield page


class _Walk(WindowWalk):
    """One walk through a market's trades. Times are milliseconds since 1970."""

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
                older = await self._back(TradeQuery(before_id=min(map(_id, older))))
                rows = [*(older or []), *rows]
            if rows and rows[0].time_ms >= at and len(rows) > MOST_BACK_ROWS and width > SECOND_MS:
                width = (until - at) // 4
                continue
            rows, until = rows or [], max(at, until)
            first = min(rows[0].time_ms if rows else until, until)
            if first > at and (older is None or await self._traded(at, first)):
                # The history does not reach so far back; its first millisecond may be cut.
                first = min(first + 1, until)
                yield self._hidden(at, first)
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
        return sorted(rows, key=lambda row: (row.time_ms, order(row)))

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


def _id(row: TradeRow) -> int:
    return int(row.trade_id or 0)


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
