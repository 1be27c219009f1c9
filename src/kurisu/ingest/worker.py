"""Workers: a backfill cut into pieces that are jobs of the database's queue.

`queue_backfill` puts the pieces, `work` takes and does them, on as many machines as one likes. A
piece is done by the same code as a backfill of a single process. Doing one twice changes nothing,
so that a worker may be killed at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from kurisu.domain.timeframe import TIMEFRAMES, Timeframe
from kurisu.errors import DatabaseError, KurisuError
from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.exchange.configured import open_configured
from kurisu.ingest.backfill import (
    Backfill,
    BackfillReport,
    named_markets,
    run_backfill,
)
from kurisu.store.markets import Market
from kurisu.store.patience import patiently
from kurisu.store.queue import HEARTBEAT_TIMEOUT, Job, PutBack
from kurisu.store.store import Store

#: Jobs are of the kind "candles:EXCHANGE", so that a worker can keep to some exchanges.
KIND: Final = "candles:"
#: A piece that failed because the exchange gave no answer is tried so often, with such pauses.
ATTEMPTS: Final = 6
FIRST_PAUSE: Final = timedelta(seconds=30)
LONGEST_PAUSE: Final = timedelta(minutes=30)
#: After the database was lost; it is tried for ever.
FIRST_DATABASE_PAUSE_S: Final = 0.5
LONGEST_DATABASE_PAUSE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class JobDone:
    """What became of a job. report: None if it failed as a whole; error: why, or None."""

    payload: Mapping[str, Any]
    report: BackfillReport | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Queued:
    """What `queue_backfill` did. pieces: in all. new: those that were not waiting already."""

    exchange: str
    pieces: int
    new: int


async def queue_backfill(
    store: Store,
    exchange: CcxtExchange,
    markets: Sequence[Market],
    timeframe: Timeframe,
    since: datetime | None,
    until: datetime | None = None,
    *,
    allow_expiring: bool = False,
) -> Queued:
    """Put what is not known of [since, until) into the queue, in pieces.

    Raises ExchangeError, RetentionConflict, DatabaseError.
    """
    work = Backfill(
        store, exchange, timeframe,
        grace=timedelta(seconds=exchange.settings.grace_s),
        concurrency=exchange.settings.concurrency, allow_expiring=allow_expiring,
    )  # fmt: skip
    payloads = [
        {
            "exchange": exchange.name,
            "symbol": market.symbol,
            "timeframe": timeframe.name,
            "since": first.isoformat(),
            "until": end.isoformat(),
            "allow_expiring": allow_expiring,
        }
        for market, first, end in await work.pieces(markets, since, until)
    ]
    new = await patiently(store.queue.put, KIND + exchange.name, payloads) if payloads else 0
    return Queued(exchange.name, len(payloads), new)


class Worker:
    """Takes pieces from the queue and does them, until it is told to stop."""

    def __init__(
        self,
        store: Store,
        exchanges: Sequence[str] = (),
        *,
        at_once: int = 4,
        tell: Callable[[JobDone], None] = lambda _: None,
        tell_trouble: Callable[[str], None] = lambda _: None,
    ) -> None:
        """exchanges: whose pieces to take; none for all. at_once: pieces at a time.

        tell: called with what became of each piece. tell_trouble: with what is waited for.
        """
        self._store = store
        self._exchanges = tuple(exchanges)
        self._at_once = at_once
        self._tell = tell
        self._tell_trouble = tell_trouble
        self._open: dict[str, asyncio.Task[CcxtExchange]] = {}
        self._stop = asyncio.Event()

    async def run(
        self, *, drain: bool = False, heartbeat_timeout: timedelta = HEARTBEAT_TIMEOUT
    ) -> None:
        """Work until cancelled; with `drain`, until the queue is empty.

        Cancelled, it stores what has arrived, puts back what is not done, and ends. A database
        that is lost is waited for.
        """
        async with AsyncExitStack() as stack:
            self._stack = stack
            pause_s = FIRST_DATABASE_PAUSE_S
            while not self._stop.is_set():
                taking = asyncio.create_task(
                    self._store.queue.work(
                        self._kinds, self._do, self._stop, at_once=self._at_once, drain=drain,
                        heartbeat_timeout=heartbeat_timeout,
                    )
                )  # fmt: skip
                try:
                    await asyncio.shield(taking)
                    return
                except asyncio.CancelledError:
                    self._stop.set()
                    await taking
                    raise
                except DatabaseError as error:
                    self._tell_trouble(f"{error} Trying again in {pause_s:.0f} s.")
                    await asyncio.sleep(pause_s)
                    pause_s = min(LONGEST_DATABASE_PAUSE_S, pause_s * 2)

    async def _kinds(self) -> list[str]:
        names = self._exchanges or {m.exchange for m in await self._store.markets.list()}
        return sorted(KIND + name for name in names)

    async def _do(self, job: Job) -> None:
        work = asyncio.create_task(self._backfill(job.payload))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                raise PutBack(timedelta(0), "the worker was stopped")
        finally:
            stopped.cancel()
        try:
            report = work.result()
        except DatabaseError as error:
            raise PutBack(FIRST_PAUSE, str(error)) from error
        except KurisuError as error:
            self._tell(JobDone(job.payload, None, str(error)))
            self._again(job, str(error))
            raise
        self._tell(JobDone(job.payload, report))
        unanswered = [p for one in report.markets for p in one.problems if p.passes]
        if unanswered:
            self._again(job, unanswered[0].reason)

    @staticmethod
    def _again(job: Job, reason: str) -> None:
        if job.attempts < ATTEMPTS:
            raise PutBack(min(LONGEST_PAUSE, FIRST_PAUSE * 2**job.attempts), reason)

    async def _backfill(self, payload: Mapping[str, Any]) -> BackfillReport:
        exchange = await self._exchange(payload["exchange"])
        markets = await named_markets(self._store, exchange, [payload["symbol"]])
        return await run_backfill(
            self._store, exchange, markets, TIMEFRAMES[payload["timeframe"]],
            datetime.fromisoformat(payload["since"]), datetime.fromisoformat(payload["until"]),
            allow_expiring=payload["allow_expiring"],
        )  # fmt: skip

    async def _exchange(self, name: str) -> CcxtExchange:
        """One for all jobs of an exchange: they share its rate limit."""
        if name not in self._open:
            self._open[name] = asyncio.create_task(
                self._stack.enter_async_context(open_configured(self._store.config, name))
            )
        try:
            return await asyncio.shield(self._open[name])
        except KurisuError:
            self._open.pop(name, None)
            raise
