"""Backfill of trades: those of a range that the database does not have, or why it cannot have them.

In: a store, an open exchange, markets, a range. Out: a `TradeBackfillReport`; the database holds
every trade that the exchange gave, and `trade_coverage` says of every millisecond of the range
what is known about it: complete, empty (nobody traded), or failed, with the reason.

What is complete or empty is not asked for again. Several markets are walked at a time, or several
pieces of one, each page by page; the pages that have arrived are stored together, rows and coverage
in one transaction. A killed backfill loses the pages in flight, and the next one resumes.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol

from kurisu.domain.faults import Reject, TradeConflict
from kurisu.domain.trade import IdSpace
from kurisu.errors import (
    BadSymbol,
    ExchangeError,
    ExchangeUnavailable,
    IdSpaceConflict,
    IndistinctTrades,
    InvalidArgument,
)
from kurisu.exchange.candles import PageStatus
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.port import Exchange
from kurisu.exchange.trades import TradePage, trade_pages
from kurisu.exchange.venues import TradePaging
from kurisu.ingest.problems import Problem, concat, first_error, merged, problem_of
from kurisu.store.coverage import Stretch, missing
from kurisu.store.markets import Market
from kurisu.store.patience import patiently
from kurisu.store.store import Store

#: What `trade_coverage` names as the source.
SOURCE: Final = "rest"
#: Pages of a market that wait to be stored, at most; a killed process loses them.
WAITING_PAGES: Final = 16
#: A market alone is walked in pieces, several at a time: so many for each walker, and none shorter
#: than a day, because to find where one begins takes some requests.
PIECES: Final = 4
SHORTEST_PIECE: Final = timedelta(days=1)
#: How often a walk is taken up again where it broke, after the retries of each request.
RESUMES: Final = 2
_MS: Final = timedelta(milliseconds=1)
_US: Final = timedelta(microseconds=1)


class TradeWatch(Protocol):
    """Somebody who watches a backfill; the command's progress bars."""

    def begin(self, market: str, seconds: float) -> None:
        """So many seconds of history of a market are going to be fetched."""

    def advance(self, market: str, seconds: float, trades: int) -> None:
        """So many of them are known now, with so many trades."""

    def end(self, market: str) -> None:
        """Nothing is left of it."""


@dataclass(slots=True)
class MarketTradeBackfill:
    """What became of one market.

    since, until: what was asked for; until is the exchange's time, less a little, where none was
        given. fetched: trades that arrived. requested: time that was not known before.
    missing_ids: ids that the exchange skips where it usually does not; asked for twice.
    coverage: what is known of the range now, cut to it; `missing` where nothing is.
    problems: by time.
    """

    market: str
    since: datetime
    until: datetime
    requested: timedelta = timedelta()
    fetched: int = 0
    inserted: int = 0
    unchanged: int = 0
    missing_ids: int = 0
    id_space: IdSpace | None = None
    rejects: list[Reject] = field(default_factory=list)
    conflicts: list[TradeConflict] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    coverage: list[Stretch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """All of the range is complete or empty."""
        return all(one.status in ("complete", "empty") for one in self.coverage)

    def length(self, status: str) -> timedelta:
        """How much of the range has that status."""
        found = [one.until - one.since for one in self.coverage if one.status == status]
        return sum(found, timedelta())


@dataclass(slots=True)
class TradeBackfillReport:
    """What became of a backfill. markets: in the order in which they were given."""

    exchange: str
    markets: list[MarketTradeBackfill] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_done(self) -> bool:
        return all(one.is_done for one in self.markets)


async def backfill_trades(
    store: Store,
    exchange: Exchange,
    markets: Sequence[Market],
    since: datetime | None,
    until: datetime | None = None,
    *,
    grace: timedelta = timedelta(seconds=2),
    concurrency: int = 4,
    allow_expiring: bool = False,
    watch: TradeWatch | None = None,
) -> TradeBackfillReport:
    """Fetch what is not known of the trades of `markets` in [since, until).

    since: None for the first known stretch of each market. until: None for up to now. grace: trades
    younger than this may still be on their way. concurrency: markets at a time.
    Raises ExchangeError if the exchange cannot be asked at all, RetentionConflict before anything
    is fetched, DatabaseError. Cancelled, it stores what has arrived, and ends.
    """
    started = time.perf_counter()
    await store.trades.forget_dropped()
    listed = {one.symbol for one in await exchange.load_markets()}
    now = from_ms(to_ms(await exchange.now() - grace))
    end = now if until is None else min(now, from_ms(to_ms(until + _MS - _US)))
    since = None if since is None else from_ms(to_ms(since))
    report = TradeBackfillReport(exchange.name)
    walks: deque[_MarketWalk] = deque()
    chosen = list(dict.fromkeys(markets))
    walkers = max(1, concurrency // max(1, len(chosen)))
    for market in chosen:
        first = since if since is not None else await _first_known(store, market)
        one = MarketTradeBackfill(str(market), first, max(first, end))
        report.markets.append(one)
        walk = _MarketWalk(store, exchange, market, one, grace, walkers, allow_expiring, watch)
        if market.symbol not in listed:
            walk.stopped = BadSymbol(exchange.name, f"it does not list {market.symbol} any more")
        walks.append(walk)
    if report.markets and not allow_expiring:
        await store.trades.check_room(min(one.since for one in report.markets))

    async def work() -> None:
        while walks:
            await walks.popleft().run()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, min(concurrency, len(walks)))):
                group.create_task(work())
    except BaseExceptionGroup as failed:
        raise first_error(failed) from None
    report.notes = list(dict.fromkeys(note for one in report.markets for note in one.notes))
    report.seconds = time.perf_counter() - started
    return report


async def _first_known(store: Store, market: Market) -> datetime:
    known = await store.trades.coverage(market)
    if not known:
        raise InvalidArgument(
            f"nothing is known of the trades of {market} yet: say with --since where to begin."
        )
    return known[0].since


class _MarketWalk:
    """One market of a running backfill: walkers that fetch and a writer that stores."""

    def __init__(
        self,
        store: Store,
        exchange: Exchange,
        market: Market,
        report: MarketTradeBackfill,
        grace: timedelta,
        walkers: int,
        allow_expiring: bool,
        watch: TradeWatch | None,
    ) -> None:
        self._walkers = walkers
        self._store = store
        self._exchange = exchange
        self._market = market
        self._report = report
        self._grace = grace
        self._allow_expiring = allow_expiring
        self._watch = watch
        self._waiting: asyncio.Queue[TradePage | None] = asyncio.Queue(WAITING_PAGES)
        self._refused = False
        self._failures = 0
        self.stopped: ExchangeError | None = None

    async def run(self) -> None:
        report = self._report
        known = await self._coverage()
        wanted = missing(known, report.since, report.until)
        report.requested = sum((until - since for since, until in wanted), timedelta())
        report.id_space = await patiently(lambda: self._store.trades.id_space(self._market))
        if self._watch is not None:
            self._watch.begin(report.market, report.requested.total_seconds())
        writer = asyncio.create_task(self._store_all())
        pieces = deque(piece for stretch in wanted for piece in self._cut(*stretch))

        async def walk() -> None:
            while pieces and not writer.done() and not self._refused:
                await self._walk(*pieces.popleft(), writer)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._walkers, len(pieces))):
                    group.create_task(walk())
        finally:
            await self._finish(writer)
            if self._watch is not None:
                self._watch.end(report.market)
        await self._conclude()

    async def _finish(self, writer: asyncio.Task[None]) -> None:
        """Cancelled or not: what has arrived is stored. A second cancellation does not wait."""

        async def rest() -> None:
            if not writer.done():
                await _either(self._waiting.put(None), writer)
            await writer

        try:
            await asyncio.shield(asyncio.ensure_future(rest()))
        except asyncio.CancelledError:
            writer.cancel()
            raise

    # -- fetching -----------------------------------------------------------------------------

    def _cut(self, since: datetime, until: datetime) -> list[tuple[datetime, datetime]]:
        """A stretch as pieces for several walkers, by time."""
        if self._walkers == 1 or self._exchange.venue.trade_paging is TradePaging.NONE:
            return [(since, until)]
        count = min(PIECES * self._walkers, (until - since) // SHORTEST_PIECE)
        length = (until - since) // max(1, count) // _MS * _MS
        cuts = [since + n * length for n in range(max(1, count))]
        return list(itertools.pairwise([*cuts, until]))

    async def _walk(self, since: datetime, until: datetime, writer: asyncio.Task[None]) -> None:
        """Fetch one stretch; what is left of it when the exchange gives up is stated as failed."""
        at, resumes = since, 0
        while at < until and self.stopped is None and not self._refused:
            try:
                async with aclosing(
                    trade_pages(
                        self._exchange, self._market.symbol, at, until,
                        grace=self._grace, id_space=self._report.id_space,
                    )
                ) as pages:  # fmt: skip
                    async for page in pages:
                        if page.table.num_rows:
                            self._report.id_space = page.id_space
                        await _either(self._waiting.put(page), writer)
                        if writer.done() or self._refused:
                            return
                        self._failures = 0
                        resumes = 0 if page.until > at else resumes
                        at = page.until
                return
            except IndistinctTrades as error:
                # Around that one time.
                lost = max(at, from_ms(error.time_ms))
                beyond = max(lost + _MS, from_ms(error.until_ms))
                await self._fail(problem_of(lost, min(until, beyond), error))
                at = beyond
            except ExchangeUnavailable as error:
                resumes += 1
                if resumes > RESUMES:
                    # Where nothing is answered any more, nothing more is asked.
                    self._failures += 1
                    if self._failures > self._walkers:
                        self.stopped = error
                    await self._fail(problem_of(at, until, error))
                    return
            except ExchangeError as error:
                self.stopped = error
            except IdSpaceConflict as error:
                self._refuse(at, until, error)
        if self.stopped is not None and at < until:
            await self._fail(problem_of(at, until, self.stopped))

    def _refuse(self, since: datetime, until: datetime, error: IdSpaceConflict) -> None:
        """The exchange's ids are of another kind: nothing can be stored of this market."""
        self._refused = True
        self._report.problems.append(Problem(since, until, "refused", str(error)))

    async def _fail(self, problem: Problem) -> None:
        """State that a stretch was asked for in vain."""
        self._report.problems.append(problem)
        await patiently(
            lambda: self._store.trades.state_many(
                [(self._market, problem.since, problem.until)],
                status=problem.status, source=SOURCE, reason=problem.reason,
            )
        )  # fmt: skip

    # -- storing ------------------------------------------------------------------------------

    async def _store_all(self) -> None:
        finished = False
        while not finished:
            pages: list[TradePage] = []
            one = await self._waiting.get()
            while one is not None:
                pages.append(one)
                if self._waiting.empty():
                    break
                one = self._waiting.get_nowait()
            finished = one is None
            if pages:
                await self._store_pages(pages)

    async def _store_pages(self, pages: Sequence[TradePage]) -> None:
        whole = [page for page in pages if page.status is PageStatus.ANSWERED]
        for page in pages:
            if page.status is not PageStatus.ANSWERED:
                kept = f"{self._exchange.name} does not give it: it keeps only the newest trades"
                await self._fail(Problem(page.since, page.until, "failed", page.reason or kept))
        if whole and not self._refused:
            try:
                await self._write(whole)
            except IdSpaceConflict as error:
                self._refuse(whole[0].since, whole[-1].until, error)
        if self._watch is not None:
            for page in pages:
                seconds = (page.until - page.since).total_seconds()
                self._watch.advance(self._report.market, seconds, page.table.num_rows)

    async def _write(self, pages: Sequence[TradePage]) -> None:
        report = self._report
        table = concat([page.table for page in pages])
        spaces = {page.id_space for page in pages if page.table.num_rows}
        written = await patiently(
            lambda: self._store.trades.write(
                self._market, table,
                id_space=next(iter(spaces), None),
                source=SOURCE,
                complete=[(page.since, page.until) for page in pages if page.table.num_rows],
                empty=[(page.since, page.until) for page in pages if not page.table.num_rows],
                allow_expiring=self._allow_expiring,
            )
        )  # fmt: skip
        report.fetched += written.read
        report.inserted += written.inserted
        report.unchanged += written.unchanged
        report.missing_ids += sum(page.missing_ids for page in pages)
        report.rejects += written.rejects
        report.conflicts += written.conflicts
        report.notes += written.notes

    async def _coverage(self) -> list[Stretch]:
        report = self._report
        return await patiently(
            lambda: self._store.trades.coverage(self._market, report.since, report.until)
        )

    async def _conclude(self) -> None:
        """What is known of the whole range now."""
        report = self._report
        report.problems = merged(report.problems)
        at = report.since
        for one in await self._coverage():
            since, until = max(one.since, report.since), min(one.until, report.until)
            if since > at:
                report.coverage.append(Stretch(at, since, "missing", ""))
            report.coverage.append(Stretch(since, until, one.status, one.source, one.reason))
            at = until
        if at < report.until:
            report.coverage.append(Stretch(at, report.until, "missing", ""))


async def _either(work: Coroutine[None, None, None], other: asyncio.Task[None]) -> None:
    """Wait for `work`, but no longer than `other` runs."""
    mine = asyncio.ensure_future(work)
    try:
        await asyncio.wait({mine, other}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        mine.cancel()
