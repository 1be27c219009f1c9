"""An account's orders and fills of one market, complete, by whichever way the venue offers.

A page that is full may hide more, and which end it shows differs from venue to venue. Where the
venue gives a cursor its pages are followed; else a window whose page is full is cut in half and
asked for again, until no page is full, which needs neither cursor nor order. Where the venue pages
by id, the newest page often is everything there is, and long histories are walked by id from the
first record on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Generic, TypeVar

from kurisu.domain.execution import Execution
from kurisu.errors import BadAnswer
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.private_port import (
    ExecutionPage,
    OrderPage,
    PrivateExchange,
    RecordQuery,
    ReportedOrder,
    Unreadable,
)
from kurisu.exchange.private_venues import PrivateVenue

#: How far back a venue without id paging is asked where the caller names no start.
DEFAULT_SPAN: Final = timedelta(days=90)
#: The longest window where the venue states none: a shorter one is asked again sooner.
LONGEST_WINDOW_MS: Final = 90 * 86_400_000

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Window(Generic[_Row]):
    """Records of one market; those up to `until`, inclusive, are complete with it.

    rows: each once, and perhaps some from before; of an order what was said last. unreadable:
    records that cannot be taken.
    """

    until: datetime
    rows: tuple[_Row, ...]
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, slots=True)
class _Page(Generic[_Row]):
    rows: tuple[_Row, ...]
    unreadable: tuple[Unreadable, ...]
    is_full: bool
    cursor: str | None


_Ask = Callable[[RecordQuery], Awaitable[_Page[_Row]]]


def reach(venue: PrivateVenue, since: datetime | None, until: datetime) -> datetime | None:
    """From where a walk really starts: None for the very beginning. venue: `lists_of` a market."""
    if since is None and not venue.id_paging:
        return until - DEFAULT_SPAN
    return since


def order_windows(
    account: PrivateExchange, symbol: str, since: datetime | None, until: datetime
) -> AsyncIterator[Window[ReportedOrder]]:
    """Orders made in [since, until], oldest window first. since: None for as far as it goes.

    Raises ExchangeError; windows yielded before stay valid, and the next call can start at the
    last one's `until`.
    """

    async def ask(query: RecordQuery) -> _Page[ReportedOrder]:
        page: OrderPage = await account.fetch_orders(symbol, query)
        return _Page(page.orders, page.unreadable, page.is_full, page.cursor)

    venue = account.private.lists_of(symbol)
    walk = _Walk(
        account.name, venue, ask, _order_id, _order_key, _order_time, venue.order_window_ms
    )
    return walk.windows(since, until)


def execution_windows(
    account: PrivateExchange, symbol: str, since: datetime | None, until: datetime
) -> AsyncIterator[Window[Execution]]:
    """Fills of [since, until], oldest window first; otherwise like `order_windows`."""

    async def ask(query: RecordQuery) -> _Page[Execution]:
        page: ExecutionPage = await account.fetch_executions(symbol, query)
        return _Page(page.executions, page.unreadable, page.is_full, page.cursor)

    venue = account.private.lists_of(symbol)
    walk = _Walk(account.name, venue, ask, _trade_id, _itself, _trade_time, venue.trade_window_ms)
    return walk.windows(since, until)


def _order_id(row: ReportedOrder) -> str:
    return row.update.exchange_order_id or ""


def _order_key(row: ReportedOrder) -> Hashable:
    return row.update.exchange_order_id or row


def _order_time(row: ReportedOrder) -> datetime | None:
    return row.update.created_at


def _trade_id(row: Execution) -> str:
    return row.trade_id


def _itself(row: Execution) -> Hashable:
    """Whoever trades with himself has one trade id for two orders; and one id with two contents is
    for the ledger to judge."""
    return row


def _trade_time(row: Execution) -> datetime | None:
    return row.time


class _Crowded(Exception):
    """A page is full, and its window cannot be cut any more."""


class _Walk(Generic[_Row]):
    """One walk through the records of a market. Times are milliseconds since 1970."""

    def __init__(
        self,
        name: str,
        venue: PrivateVenue,
        ask: _Ask[_Row],
        id_of: Callable[[_Row], str],
        key_of: Callable[[_Row], Hashable],
        time_of: Callable[[_Row], datetime | None],
        window_ms: int | None,
    ) -> None:
        self._name = name
        self._venue = venue
        self._ask = ask
        self._id = id_of
        self._key = key_of
        self._time = time_of
        self._window_ms = window_ms or LONGEST_WINDOW_MS
        self._margin_ms = venue.time_margin_ms

    async def windows(self, since: datetime | None, until: datetime) -> AsyncIterator[Window[_Row]]:
        if self._venue.newest_without_time:
            newest = await self._ask(RecordQuery())
            times = [time for row in newest.rows if (time := self._time(row)) is not None]
            if not newest.is_full or (since is not None and times and min(times) < since):
                yield self._window(newest, to_ms(until), since)
                return
        since = reach(self._venue, since, until)
        if since is None:
            walk = self._by_id("0", to_ms(until))
        else:
            walk = self._by_window(to_ms(since), to_ms(until))
        async for window in walk:
            yield window

    async def _by_window(self, at: int, end: int) -> AsyncIterator[Window[_Row]]:
        by_id = self._venue.id_paging
        while at <= end:
            last = min(at + self._window_ms - 1, end)
            found: list[_Row] = []
            try:
                async for window in self._halved(at, last):
                    found.extend(window.rows)
                    yield window
            except _Crowded as crowded:
                if not by_id:
                    raise BadAnswer(self._name, str(crowded)) from None
                async for window in self._by_id("0", end):
                    yield window
                return
            if found and by_id:
                # From here on a page holds as many records as it can, however far apart.
                first = max(found, key=lambda row: int(self._id(row)))
                async for window in self._by_id(self._id(first), end):
                    yield window
                return
            at = last + 1

    async def _halved(self, at: int, last: int) -> AsyncIterator[Window[_Row]]:
        """[at, last], in windows whose pages are not full; oldest first."""
        waiting = [(at, last)]
        while waiting:
            since, until = waiting.pop()
            query = RecordQuery(since - self._margin_ms, until + self._margin_ms)
            page = await self._ask(query)
            if page.is_full and page.cursor is not None:
                page = await self._all_pages(query, page)
            if not page.is_full:
                yield self._window(page, until)
                continue
            if since >= until:
                raise _Crowded(f"it has more records at {from_ms(since).isoformat()} than it shows")
            middle = (since + until) // 2
            waiting += [(middle + 1, until), (since, middle)]

    async def _all_pages(self, query: RecordQuery, page: _Page[_Row]) -> _Page[_Row]:
        """Every page of a question, by the venue's cursor, as one."""
        rows, unreadable = [*page.rows], [*page.unreadable]
        seen = {page.cursor}
        while page.is_full and page.cursor is not None:
            page = await self._ask(query._replace(cursor=page.cursor))
            rows += page.rows
            unreadable += page.unreadable
            if page.is_full and page.cursor in seen:
                raise BadAnswer(self._name, f"its cursor does not move on: {page.cursor}")
            seen.add(page.cursor)
        return _Page(tuple(rows), tuple(unreadable), False, None)

    async def _by_id(self, first: str, end: int) -> AsyncIterator[Window[_Row]]:
        """From the id `first` on, inclusive, to the newest record."""
        at = first
        while True:
            page = await self._ask(RecordQuery(from_id=at))
            if not page.is_full or not page.rows:
                yield self._window(page, end)
                return
            last = max(page.rows, key=lambda row: int(self._id(row)))
            time = self._time(last)
            # A record without a time says nothing about how far this is complete.
            yield self._window(page, 0 if time is None else to_ms(time) - 1)
            following = str(int(self._id(last)) + 1)
            if following == at:
                raise BadAnswer(self._name, f"its pages do not move on from id {at}")
            at = following

    def _window(
        self, page: _Page[_Row], until_ms: int, since: datetime | None = None
    ) -> Window[_Row]:
        """since: rows from before are left out."""
        unique = {
            self._key(row): row
            for row in page.rows
            if since is None or (time := self._time(row)) is None or time >= since
        }
        return Window(from_ms(until_ms), tuple(unique.values()), page.unreadable)
