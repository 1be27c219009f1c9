"""Backfill: the candles of a range that the database does not have, and why there are none.

In: a store, an open exchange, markets, a range. Out: a `BackfillReport`; the database holds every
candle that the exchange gave, and `candle_coverage` says of every other bar what is known about it:

    empty    the exchange confirmed that there were no trades
    outage   no market of the exchange has a candle there, or it says that it is being maintained
    failed   it was asked and did not answer, does not tell, or sent what cannot be stored

What is `complete` or `empty` is not asked for again. The range is cut into pieces, which several
walkers fetch, page by page; a writer for each market stores the pages that have arrived, rows and
coverage in one transaction. A killed backfill loses the pages in flight; the next one resumes.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Final, Protocol

from kurisu.domain.faults import Reject
from kurisu.domain.market import MarketName
from kurisu.domain.timeframe import TIMEFRAMES, Timeframe
from kurisu.errors import (
    BadSymbol,
    ExchangeError,
    ExchangeUnavailable,
    InvalidArgument,
    NotFound,
    NotOffered,
)
from kurisu.exchange.candles import (
    EMPTY_AGE,
    REFETCHED_CANDLES,
    CandlePage,
    PageStatus,
    candle_pages,
    candle_table,
)
from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.port import Exchange
from kurisu.ingest.candle_writer import Fetched, MarketWriter
from kurisu.ingest.outages import Witnesses
from kurisu.ingest.problems import Problem, first_error, merged, problem_of
from kurisu.store.coverage import Stretch, missing, without
from kurisu.store.markets import Market
from kurisu.store.patience import patiently
from kurisu.store.store import Store

#: Pages of a piece: what one walker fetches in a row, and what is one job of `kurisu worker`.
PIECE_PAGES: Final = 50
#: Requests in a row that fail, after their own retries, before the backfill gives up: so many more
#: than there are walkers.
PATIENCE: Final = 2
#: Requests for days, at most, to find out when a market began.
MOST_LOOKS: Final = 40
#: What `candle_coverage` names as the source.
SOURCE: Final = "rest"

#: What a bar of a range can be in the end.
STATUSES: Final = ("complete", "empty", "outage", "failed", "missing", "young")

_DAY: Final = TIMEFRAMES["1d"]


class Watch(Protocol):
    """Somebody who watches a backfill; the command's progress bars."""

    def begin(self, market: str, bars: int) -> None:
        """`bars` of a market are going to be fetched; called again when there are more."""

    def advance(self, market: str, bars: int) -> None:
        """So many are known now."""

    def end(self, market: str) -> None:
        """Nothing is left of it."""


@dataclass(slots=True)
class MarketBackfill:
    """What became of one market.

    since, until: what was asked for, in whole bars; until is the close of the newest closed bar
        where none was given. fetched: candles that arrived. updated: of those, stored ones that
        the exchange has changed. requested: bars that were not known before.
    bars: how many bars of the range are complete, empty, outage, failed, missing (nothing is
        known), or young: at its end, where the newest have no candles and may still get some.
    left: the stretches of the range that are neither complete nor empty, by time.
    problems: by time. rejects: rows that cannot be stored.
    """

    market: str
    timeframe: str
    since: datetime
    until: datetime
    requested: int = 0
    fetched: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    repeated: int = 0
    contradicted: int = 0
    rejects: list[Reject] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    bars: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    left: list[Stretch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Everything is complete or empty, but for the newest bars if nobody traded lately."""
        return all(one.status == "young" for one in self.left)


@dataclass(slots=True)
class BackfillReport:
    """What became of a backfill. markets: in the order in which they were given."""

    exchange: str
    timeframe: str
    markets: list[MarketBackfill] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_done(self) -> bool:
        return all(one.is_done for one in self.markets)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch that one walker fetches. traded_before: there are candles before it."""

    plan: _Plan
    since: datetime
    until: datetime
    traded_before: bool


@dataclass(slots=True)
class _Plan:
    """One market of a running backfill.

    open: pieces that are not done. traded_at: open time of a candle that the exchange gave last.
    down: where no market of the exchange has a candle, as was found out before.
    """

    market: Market
    report: MarketBackfill
    writer: MarketWriter
    open: int = 0
    traded_at: datetime | None = None
    down: list[Stretch] = field(default_factory=list)
    stopped: ExchangeError | None = None
    planned: bool = False


class Backfill:
    """One backfill of one exchange; `run` does it."""

    def __init__(
        self,
        store: Store,
        exchange: Exchange,
        timeframe: Timeframe,
        *,
        grace: timedelta,
        concurrency: int,
        allow_expiring: bool = False,
        refetch: bool = True,
        watch: Watch | None = None,
    ) -> None:
        """grace: how long after its close a candle is final. concurrency: requests at a time.
        refetch: ask for the last few known candles again where it goes on."""
        self._store = store
        self._exchange = exchange
        self._frame = timeframe
        self._grace = grace
        self._walkers = concurrency
        self._allow_expiring = allow_expiring
        self._refetch = refetch
        self._watch = watch
        self._limit = exchange.venue.most_candles(timeframe.seconds * 1000)
        #: Why a stretch is an outage that other markets bear witness to.
        self._no_candles = f"no market of {exchange.name} has a candle there"
        self._failures = 0
        self._given_up: ExchangeError | None = None
        self._waiting: deque[_Plan] = deque()
        self._active: deque[AsyncIterator[_Piece]] = deque()
        self._turn = asyncio.Lock()
        self._database = asyncio.Semaphore(2)

    async def run(
        self, markets: Sequence[Market], since: datetime | None, until: datetime | None
    ) -> BackfillReport:
        """Fetch what is not known of [since, until) of `markets`.

        since: None for the first known bar of each market. until: None for all that has closed.
        Raises ExchangeError if the exchange cannot be asked at all, RetentionConflict before
        anything is fetched, DatabaseError. Cancelled, it stores what has arrived, and ends.
        """
        started = time.perf_counter()
        report, plans, now = await self._prepare(markets, since, until)
        self._waiting.extend(plans)
        try:
            await self._fetch_all(plans)
        finally:
            await self._witnesses.close()
        touched = [span for plan in plans for span in plan.writer.touched]
        if touched:
            # Whoever is stopped before leaves it to the next one: it stands in the database.
            await patiently(lambda: self._store.candles.settle(touched))
        for plan in plans:
            await self._conclude(plan, self._frame.open_time(now - EMPTY_AGE))
        report.notes = list(dict.fromkeys(note for one in report.markets for note in one.notes))
        report.seconds = time.perf_counter() - started
        return report

    async def pieces(
        self, markets: Sequence[Market], since: datetime | None, until: datetime | None
    ) -> list[tuple[Market, datetime, datetime]]:
        """What `run` would fetch, in pieces, without fetching it; raises what `run` does."""
        _, plans, _ = await self._prepare(markets, since, until)
        return [
            (plan.market, piece.since, piece.until)
            for plan in plans
            async for piece in self._pieces(plan)
        ]

    async def _prepare(
        self, markets: Sequence[Market], since: datetime | None, until: datetime | None
    ) -> tuple[BackfillReport, list[_Plan], datetime]:
        """What is to be done, and the exchange's time."""
        frame, exchange = self._frame, self._exchange
        if frame.name not in exchange.timeframes:
            offered = ", ".join(name for name in TIMEFRAMES if name in exchange.timeframes)
            raise NotOffered(exchange.name, f"it serves no {frame} candles, only {offered}")
        await patiently(self._store.candles.forget_dropped)
        listings = await exchange.load_markets()
        now = await exchange.now()
        closed = frame.open_time(now - self._grace)
        end = closed if until is None else min(closed, frame.ceil(until))
        self._witnesses = Witnesses(self._store, exchange, frame, listings, now, self._grace)
        listed = {one.symbol for one in listings}
        report = BackfillReport(exchange.name, frame.name)
        plans = []
        for market in dict.fromkeys(markets):
            first = frame.ceil(since) if since is not None else await self._first_known(market, end)
            one = MarketBackfill(str(market), frame.name, first, max(first, end))
            report.markets.append(one)
            writer = MarketWriter(
                self._store, market, frame, self._database, one, self._allow_expiring, self._watch
            )
            plan = _Plan(market, one, writer)
            if market.symbol not in listed:
                reason = f"it does not list {market.symbol} any more"
                plan.stopped = BadSymbol(exchange.name, reason)
            plans.append(plan)
        if report.markets:
            await self._refuse_expiring(report.markets)
        return report, plans, now

    async def _first_known(self, market: Market, end: datetime) -> datetime:
        first = await patiently(self._store.candles.first_known, market, self._frame)
        if first is None:
            raise InvalidArgument(
                f"nothing is known of {market} {self._frame} yet: say with --since where to begin."
            )
        return min(first, end)

    async def _refuse_expiring(self, reports: Sequence[MarketBackfill]) -> None:
        """Before years are fetched that a policy of the user's will not let in."""
        if self._allow_expiring:
            return
        oldest = min(one.since for one in reports)
        bars = max(self._frame.count(one.since, one.until) for one in reports)
        await patiently(self._store.candles.check_room, oldest, bars * len(reports))

    async def _fetch_all(self, plans: Sequence[_Plan]) -> None:
        writers = [asyncio.create_task(plan.writer.run()) for plan in plans]
        if not writers:
            return
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._walkers):
                    group.create_task(self._walk_all())
        except BaseExceptionGroup as failed:
            raise first_error(failed) from None
        finally:
            # Cancelled or not: what has arrived is stored.
            for plan in plans:
                plan.writer.finish()
            try:
                await asyncio.wait(writers)
            except asyncio.CancelledError:
                # Asked twice to stop: at once, then.
                for writer in writers:
                    writer.cancel()
                await asyncio.wait(writers)
                raise
            errors = [writer.exception() for writer in writers if not writer.cancelled()]
            for error in filter(None, errors):
                raise error

    # -- which piece next ---------------------------------------------------------------------

    async def _next(self) -> _Piece | None:
        """Pieces of several markets in turn, so that none waits for another's history."""
        async with self._turn:
            while True:
                while self._waiting and len(self._active) < self._walkers:
                    self._active.append(self._pieces(self._waiting.popleft()))
                if not self._active:
                    return None
                pieces = self._active.popleft()
                piece = await anext(pieces, None)
                if piece is not None:
                    self._active.append(pieces)
                    piece.plan.open += 1
                    return piece

    async def _pieces(self, plan: _Plan) -> AsyncIterator[_Piece]:
        """What is to be fetched of one market, oldest first."""
        report, frame = plan.report, self._frame
        since, until = report.since, report.until
        candles, market = self._store.candles, plan.market
        known = await patiently(lambda: candles.coverage(market, frame, since, until))
        plan.down = [k for k in known if (k.status, k.reason) == ("outage", self._no_candles)]
        wanted = missing(known, since, until)
        plan.report.requested = sum(frame.count(*hole) for hole in wanted)
        if self._watch is not None:
            self._watch.begin(report.market, plan.report.requested)
        first = await patiently(lambda: candles.first_known(market, frame, "complete"))
        for hole in wanted:
            at, end = hole
            if plan.stopped is not None:
                self._fail(plan, at, end, plan.stopped)
                continue
            traded = first is not None and first < at
            goes_on = any(k.until == at and k.status == "complete" for k in known)
            if self._refetch and end == until and goes_on:
                # What a venue changes after a candle's close it changes soon.
                at = max(since, _earlier(frame, at, REFETCHED_CANDLES))
            cuts = await self._cuts(plan, at, end)
            for start, stop in itertools.pairwise(cuts):
                yield _Piece(plan, start, stop, traded or start > cuts[0])
        plan.planned = True
        self._close(plan)

    async def _cuts(self, plan: _Plan, since: datetime, until: datetime) -> list[datetime]:
        """Where [since, until) is cut into pieces.

        A market that was not there yet is not cut into years of pieces without candles: days tell
        when it began.
        """
        frame = self._frame
        length = PIECE_PAGES * self._limit
        venue = self._exchange.venue
        if frame.is_calendar or venue.candles_latest_only:
            return [since, until]
        if frame.count(since, until) <= length:
            return [since, until]
        cuts = [since]
        begins = since
        if frame.seconds < _DAY.seconds and _DAY.name in self._exchange.timeframes:
            first = await self._first_day(plan.market.symbol, since, until)
            if first is None:
                return [since, until]
            begins = max(since, first)
            plan.writer.room_from = begins
        if begins > since:
            cuts.append(begins)
        at = begins
        while at + length * frame.length < until:
            at += length * frame.length
            cuts.append(at)
        return [*cuts, until] if cuts[-1] < until else cuts

    async def _first_day(self, symbol: str, since: datetime, until: datetime) -> datetime | None:
        """The first day of [since, until) with candles; None if there is none, or nobody says."""
        at = _DAY.open_time(since)
        most = self._exchange.venue.most_candles(_DAY.seconds * 1000)
        for _ in range(MOST_LOOKS):
            try:
                days = await self._exchange.fetch_candles(symbol, _DAY.name, to_ms(at), most)
            except ExchangeError:
                return None  # the walk will find out
            times = [row.time_ms for row in days if row.time_ms >= to_ms(at)]
            if times:
                return from_ms(min(times)) if min(times) < to_ms(until) else None
            # Some venues answer for as many days as they give rows, traded or not.
            at += most * _DAY.length
            if at >= until:
                break
        return None

    # -- one piece ------------------------------------------------------------------------------

    async def _walk_all(self) -> None:
        while (piece := await self._next()) is not None:
            await self._walk(piece)
            piece.plan.open -= 1
            self._close(piece.plan)

    async def _walk(self, piece: _Piece) -> None:
        """Fetch one piece, around pages that the exchange does not give."""
        plan, at = piece.plan, piece.since
        while at < piece.until:
            stopped = plan.stopped or self._given_up
            if stopped is not None:
                self._fail(plan, at, piece.until, stopped)
                return
            try:
                async with aclosing(
                    candle_pages(
                        self._exchange, plan.market.symbol, self._frame, at, piece.until,
                        grace=self._grace, traded_at=plan.traded_at,
                    )
                ) as pages:  # fmt: skip
                    traded = piece.traded_before
                    async for page in pages:
                        self._failures = 0
                        await self._take(plan, page, traded_before=traded)
                        traded |= page.table.num_rows > 0
                        at = page.until
                # The newest stretch may be too young to be called empty.
                return
            except ExchangeError as error:
                at = self._after_failure(plan, at, piece.until, error)

    def _after_failure(
        self, plan: _Plan, at: datetime, until: datetime, error: ExchangeError
    ) -> datetime:
        """Where to go on: behind the page that failed."""
        if not isinstance(error, ExchangeUnavailable):
            plan.stopped = error
            return at
        self._failures += 1
        if self._failures > self._walkers + PATIENCE:
            self._given_up = error
            return at
        skipped = at
        for _ in range(self._limit) if self._frame.is_calendar else ():
            skipped = self._frame.close_time(skipped)
        if not self._frame.is_calendar:
            skipped = at + self._limit * self._frame.length
        skipped = min(until, skipped)
        self._fail(plan, at, skipped, error)
        return skipped

    async def _take(self, plan: _Plan, page: CandlePage, *, traded_before: bool) -> None:
        """Hand a page to the writer, with what its holes are."""
        report, frame = plan.report, self._frame
        if page.table.num_rows:
            plan.traded_at = page.table.column("time")[-1].as_py()
        report.repeated += page.repeated
        report.contradicted += page.contradicted
        if page.status is PageStatus.UNAVAILABLE:
            reason = f"{self._exchange.name} does not give it: {page.reason}"
            report.problems.append(Problem(page.since, page.until, "failed", reason))
            known = _failed(plan, page.since, page.until, "failed", reason)
            await plan.writer.put(
                Fetched(page.since, page.until, page.table, known, page.exchange_time)
            )
            return
        down = await self._witnesses.outages(plan.market.symbol, page, traded_before=traded_before)
        reason = self._no_candles
        known = [Stretch(*span, "outage", SOURCE, reason) for span in down]
        for since, until in page.holes:
            # A row that is out of line with its timeframe leaves a hole that is, too.
            at, end = frame.ceil(since), frame.open_time(until)
            for start, stop in down:
                if start >= end or stop <= at:
                    continue
                if start > at:
                    known.append(Stretch(at, start, "empty", SOURCE))
                at = max(at, stop)
            if at < end:
                known.append(Stretch(at, end, "empty", SOURCE))
        report.problems += [Problem(*span, "outage", reason) for span in down]
        await plan.writer.put(
            Fetched(page.since, page.until, page.table, known, page.exchange_time)
        )

    def _fail(self, plan: _Plan, since: datetime, until: datetime, error: ExchangeError) -> None:
        """State that a stretch was asked for in vain."""
        problem = problem_of(since, until, error)
        plan.report.problems.append(problem)
        known = _failed(plan, since, until, problem.status, problem.reason)
        plan.writer.put_nowait(Fetched(since, until, candle_table([]), known, None))

    def _close(self, plan: _Plan) -> None:
        if plan.planned and not plan.open:
            plan.writer.finish()

    async def _conclude(self, plan: _Plan, settled: datetime) -> None:
        """What is known of the whole range now; what opens later than `settled` may be unknown."""
        report = plan.report
        if report.since >= report.until:
            return
        at = report.since
        found = await patiently(
            lambda: self._store.candles.coverage(
                plan.market, self._frame, report.since, report.until
            )
        )
        for one in found:
            if one.since > at:
                report.left.append(Stretch(at, one.since, "missing", ""))
            if one.status not in ("complete", "empty"):
                report.left.append(one)
            # A count, not the stretches: a market that trades now and then has a million.
            report.bars[one.status] += self._frame.count(one.since, one.until)
            at = one.until
        if at < report.until:
            status = "young" if at >= settled else "missing"
            report.left.append(Stretch(at, report.until, status, ""))
        for one in report.left:
            if one.status in ("missing", "young"):
                report.bars[one.status] += self._frame.count(one.since, one.until)
        report.problems = merged(report.problems)


def _failed(
    plan: _Plan, since: datetime, until: datetime, status: str, reason: str
) -> list[Stretch]:
    """What to state of a stretch that was asked for in vain: why a hole in it is one stays known
    where that has been found out."""
    return without([Stretch(since, until, status, SOURCE, reason)], plan.down)


def _earlier(frame: Timeframe, at: datetime, bars: int) -> datetime:
    for _ in range(bars):
        at = frame.open_time(at - timedelta(microseconds=1))
    return at


async def run_backfill(
    store: Store,
    exchange: CcxtExchange,
    markets: Sequence[Market],
    timeframe: Timeframe,
    since: datetime | None,
    until: datetime | None = None,
    *,
    allow_expiring: bool = False,
    refetch: bool = True,
    watch: Watch | None = None,
) -> BackfillReport:
    """Fetch what is not known of [since, until), by the exchange's own settings; see `Backfill`."""
    work = Backfill(
        store,
        exchange,
        timeframe,
        grace=timedelta(seconds=exchange.settings.grace_s),
        concurrency=exchange.settings.concurrency,
        allow_expiring=allow_expiring,
        refetch=refetch,
        watch=watch,
    )
    return await work.run(markets, since, until)


async def named_markets(store: Store, exchange: Exchange, symbols: Sequence[str]) -> list[Market]:
    """The markets of these unified symbols, with their rules; new ones are stored.

    Raises BadSymbol with near ones where neither the exchange nor the database has such a market.
    """
    listed = {one.symbol: one for one in await exchange.load_markets()}
    found = []
    for symbol in dict.fromkeys(symbols):
        name = MarketName.of(exchange.name, symbol)
        if symbol in listed:
            found.append(await patiently(store.markets.add, listed[symbol]))
            continue
        try:
            # Not listed any more: what is stored of it stays known.
            found.append(await patiently(store.markets.get, name.exchange, name.symbol))
        except NotFound:
            same = [one for one in listed if one.upper() == symbol.upper()]
            near = same or get_close_matches(symbol.upper(), listed, 3, 0.5)
            hint = f"; it lists {', '.join(near)}" if near else ""
            raise BadSymbol(exchange.name, f"it does not list {symbol}{hint}") from None
    return found


async def active_markets(
    store: Store,
    exchange: Exchange,
    *,
    quote: str | None = None,
    type: str | None = None,  # noqa: A002
) -> list[Market]:
    """Every market that is traded now, by symbol; new ones are stored with their rules."""
    known = {one.symbol: one for one in await patiently(store.markets.list, exchange.name)}
    found = []
    for listing in await exchange.load_markets():
        if listing.active and quote in (None, listing.name.quote) and type in (None, listing.type):
            market = known.get(listing.symbol)
            if market is None or market.exchange_symbol is None:
                market = await patiently(store.markets.add, listing)
            found.append(market)
    return found
