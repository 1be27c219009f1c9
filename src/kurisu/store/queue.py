"""`store.queue`: pieces of work as rows of this database, shared by workers on any machine.

The queue is PgQueuer's, in a schema of its own that its own installer keeps (decision 0014). A job
is taken by one worker at a time; a worker that dies stops beating, and another one takes its job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from kurisu.store.connect import driver, transaction, translated

if TYPE_CHECKING:
    from pgqueuer.core.qm import QueueManager
    from pgqueuer.queries import Queries

    from kurisu.store.store import Store

#: PostgreSQL schema of the queue's tables, and its notification channel.
SCHEMA: Final = "kurisu_queue"
#: A worker beats twice as often; one that has not beaten for so long is taken for dead.
HEARTBEAT_TIMEOUT: Final = timedelta(seconds=30)
#: How long a worker sleeps at most when there is nothing to do; a new job wakes it.
IDLE: Final = timedelta(seconds=10)
#: While draining: how often to look whether what others are doing is done.
DRAIN_LOOK_S: Final = 1.0
#: Jobs put in one statement.
BATCH: Final = 1_000
#: Lock of a session that sets the queue up: two at once would fail each other.
SETUP_LOCK: Final = 7_295_412_204


@dataclass(frozen=True, slots=True)
class Job:
    """One job of the queue. kind: what takes it. attempts: how often it was put back."""

    id: int
    kind: str
    payload: Mapping[str, Any]
    attempts: int


class PutBack(Exception):
    """Raised by a handler: the job is not done, and is to be taken again after `delay`."""

    def __init__(self, delay: timedelta, reason: str) -> None:
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


Handler = Callable[[Job], Awaitable[None]]


def _queries(connection: Any) -> Queries:
    from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
    from pgqueuer.adapters.persistence import qb
    from pgqueuer.queries import Queries
    from pgqueuer.types import Channel

    settings = _settings(Channel(SCHEMA))
    return Queries(
        AsyncpgDriver(connection),
        qbe=qb.QueryBuilderEnvironment(settings),
        qbq=qb.QueryQueueBuilder(settings),
        qbs=qb.QuerySchedulerBuilder(settings),
    )


def _settings(channel: Any) -> Any:
    from pgqueuer.domain.settings import DBSettings

    return DBSettings(prefix="", db_schema=SCHEMA, channel=channel)


async def set_up(database: AsyncEngine) -> list[str]:
    """Create or upgrade the queue's tables; a line for each thing that was done."""
    async with _raw(database) as connection:
        # Until the session ends.
        await connection.execute("SELECT pg_advisory_lock($1)", SETUP_LOCK)
        queries = _queries(connection)
        if not await queries.schema_is_installed():
            await queries.install()
            return [f"queue of jobs created in schema {SCHEMA}"]
        done = await queries.apply_upgrade()
        return [f"queue of jobs: {len(done.statements)} changes"] if done.statements else []


@contextlib.asynccontextmanager
async def _raw(database: AsyncEngine) -> AsyncIterator[Any]:
    """asyncpg's own connection, for this alone; closed at the end, listeners and all."""
    with translated(database):
        async with database.connect() as connection:
            try:
                yield await driver(connection)
            finally:
                await connection.invalidate()


class Queue:
    """`store.queue`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, kind: str, payloads: Sequence[Mapping[str, Any]]) -> int:
        """Put jobs; returns how many are new.

        One with the same payload that waits or is being done already is not put again.
        """
        await set_up(self._store.database)
        new = 0
        async with _raw(self._store.database) as connection:
            queries = _queries(connection)
            for start in range(0, len(payloads), BATCH):
                texts = [json.dumps(one, sort_keys=True) for one in payloads[start : start + BATCH]]
                put = await queries.enqueue(
                    [kind] * len(texts),
                    [one.encode() for one in texts],
                    [0] * len(texts),
                    dedupe_key=[f"{kind} {one}" for one in texts],
                    on_conflict="skip",
                )
                new += sum(one is not None for one in put)
        return new

    async def size(self) -> dict[str, int]:
        """Jobs that wait or are being done, by kind."""
        await set_up(self._store.database)
        async with transaction(self._store.database) as connection:
            rows = await connection.execute(
                text(f"SELECT entrypoint, count(*) FROM {SCHEMA}.pgqueuer GROUP BY 1 ORDER BY 1")
            )
            return {row[0]: row[1] for row in rows}

    async def work(
        self,
        kinds: Callable[[], Awaitable[Sequence[str]]],
        handler: Handler,
        stop: asyncio.Event,
        *,
        at_once: int = 2,
        drain: bool = False,
        heartbeat_timeout: timedelta = HEARTBEAT_TIMEOUT,
    ) -> None:
        """Take jobs of `kinds()`, which is asked again every now and then, until `stop` is set.

        at_once: jobs at a time, at least 2. drain: end when there is none left, those that others
        are doing included: a dead worker's are taken over before. A handler that raises PutBack
        has its job put back; one that raises anything else has it dropped, and logged in the
        queue's own log. Raises DatabaseError when the connection is lost; jobs that were being
        done are taken again after `heartbeat_timeout`.
        """
        await set_up(self._store.database)
        while True:
            await self._take(kinds, handler, stop, at_once, drain, heartbeat_timeout)
            if not drain or stop.is_set():
                return
            left = await self.size()
            if not any(left.get(kind) for kind in await kinds()):
                return
            await asyncio.sleep(DRAIN_LOOK_S)

    async def _take(
        self,
        kinds: Callable[[], Awaitable[Sequence[str]]],
        handler: Handler,
        stop: asyncio.Event,
        at_once: int,
        drain: bool,
        heartbeat_timeout: timedelta,
    ) -> None:
        from pgqueuer.core.qm import QueueManager
        from pgqueuer.types import Channel, QueueExecutionMode

        async with _raw(self._store.database) as connection:
            manager = QueueManager(_queries(connection), channel=Channel(SCHEMA))
            _register(manager, await kinds(), handler)
            helpers = [
                asyncio.create_task(_keep_registering(manager, kinds, handler)),
                asyncio.create_task(_stop(manager, stop)),
            ]
            try:
                await manager.run(
                    dequeue_timeout=IDLE,
                    batch_size=1,
                    max_concurrent_tasks=max(2, at_once),
                    mode=QueueExecutionMode.drain if drain else QueueExecutionMode.continuous,
                    heartbeat_timeout=heartbeat_timeout,
                    shutdown_on_listener_failure=True,
                )
            finally:
                for helper in helpers:
                    helper.cancel()
                await asyncio.gather(*helpers, return_exceptions=True)


def _register(manager: QueueManager, kinds: Sequence[str], handler: Handler) -> None:
    from pgqueuer.domain.errors import RetryRequested
    from pgqueuer.models import Job as QueueJob

    async def run(job: QueueJob) -> None:
        given = Job(job.id, job.entrypoint, json.loads(job.payload or b"{}"), job.attempts)
        try:
            await handler(given)
        except PutBack as back:
            raise RetryRequested(back.delay, back.reason) from back

    for kind in kinds:
        if kind not in manager.entrypoint_registry:
            manager.entrypoint(kind, accepts_context=False)(run)


async def _keep_registering(
    manager: QueueManager, kinds: Callable[[], Awaitable[Sequence[str]]], handler: Handler
) -> None:
    while True:
        await asyncio.sleep(IDLE.total_seconds())
        _register(manager, await kinds(), handler)


async def _stop(manager: QueueManager, stop: asyncio.Event) -> None:
    await stop.wait()
    manager.shutdown.set()
