"""Pieces of a backfill as jobs of the database: done once, whoever dies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from engines import execute
from exchange_server.clock import MINUTE_MS
from exchange_server.faults import Fault, Rule
from exchange_server.server import ExchangeServer
from exchange_server.world import BARS, START_MS, Opener
from ingest.test_backfill import QUICK, SINCE, add_market, closed, known, stored
from rows import fetch
from sqlalchemy import make_url

from kurisu.domain.timeframe import BASE
from kurisu.ingest.backfill import named_markets
from kurisu.ingest.worker import JobDone, Worker, queue_backfill
from kurisu.store import queue
from kurisu.store.queue import Job, PutBack
from kurisu.store.store import Store, upgrade


@pytest.fixture(params=["plain"])
def tier(request: pytest.FixtureRequest) -> str:
    """The queue is the same on every tier; workers need several sessions."""
    return str(request.param)


@pytest.fixture(autouse=True)
def small_pieces(opened: Opener) -> Iterator[None]:
    """A piece is a page, and workers see the test's exchange."""

    @asynccontextmanager
    async def open_it(_: Any, name: str) -> Any:
        async with opened(name, policy=QUICK) as exchange:
            yield exchange

    with (
        patch("kurisu.ingest.backfill.PIECE_PAGES", 1),
        patch("kurisu.ingest.worker.open_configured", open_it),
        patch("kurisu.ingest.worker.FIRST_PAUSE", timedelta(milliseconds=50)),
    ):
        yield


async def put(store: Store, opened: Opener, *symbols: str) -> tuple[int, int]:
    """(pieces, new ones) of the usual range."""
    async with opened("binance") as exchange:
        markets = await named_markets(store, exchange, symbols)
        done = await queue_backfill(store, exchange, markets, BASE, SINCE)
        return done.pieces, done.new


async def test_pieces_are_put_once_and_done_by_several_workers(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    add_market(server, "BTC", BARS)
    assert await put(store, opened, "SHIB/USDT", "BTC/USDT") == (6, 6)
    assert await put(store, opened, "SHIB/USDT", "BTC/USDT") == (6, 0)
    assert await store.queue.size() == {"candles:binance": 6}
    done: list[JobDone] = []
    workers = [Worker(store, ["binance"], tell=done.append) for _ in range(2)]
    await asyncio.gather(*(worker.run(drain=True) for worker in workers))
    assert len(done) == 6
    assert all(one.report is not None and one.report.is_done for one in done)
    for symbol in ("SHIB/USDT", "BTC/USDT"):
        assert await stored(store, symbol) == closed(BARS)
        assert [row[2] for row in await known(store, symbol)] == ["complete"]
    assert await store.queue.size() == {}
    assert await put(store, opened, "SHIB/USDT", "BTC/USDT") == (0, 0)


async def test_a_worker_keeps_to_its_exchanges(store: Store, opened: Opener) -> None:
    await put(store, opened, "SHIB/USDT")
    await Worker(store, ["kraken"]).run(drain=True)
    assert await store.queue.size() == {"candles:binance": 3}
    await Worker(store).run(drain=True)
    assert await store.queue.size() == {}


async def test_a_stopped_worker_puts_back_what_it_did_not_finish(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    await put(store, opened, "SHIB/USDT")
    slow = server.faults.add(Rule(Fault.TIMEOUT, path="klines", times=10**6, seconds=5))
    work = asyncio.create_task(Worker(store).run())
    while not server.asked("klines"):  # noqa: ASYNC110  # the server is in another thread
        await asyncio.sleep(0.02)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert await fetch(store, "SELECT DISTINCT status::text FROM kurisu_queue.pgqueuer") == [
        ("queued",)
    ]
    slow.times = 0
    await Worker(store).run(drain=True)
    assert await stored(store, "SHIB/USDT") == closed(BARS)


async def test_the_job_of_a_dead_worker_is_taken_again(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """As kill -9 leaves it: picked, and no longer beating."""
    await put(store, opened, "SHIB/USDT")
    await fetch(
        store,
        "UPDATE kurisu_queue.pgqueuer SET status = 'picked', queue_manager_id = gen_random_uuid(), "
        "heartbeat = now()",
    )
    await Worker(store).run(drain=True, heartbeat_timeout=timedelta(seconds=2))
    assert await stored(store, "SHIB/USDT") == closed(BARS)


async def test_a_piece_that_gets_no_answer_is_tried_again_later(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    await put(store, opened, "SHIB/USDT")
    at = {"startTime": str(START_MS + 1_000 * MINUTE_MS)}
    server.faults.add(Rule(Fault.STATUS, path="klines", query=at, times=QUICK.attempts))
    done: list[JobDone] = []
    await Worker(store, tell=done.append).run(drain=True)
    assert [one.report.is_done for one in done if one.report].count(False) == 1
    assert await stored(store, "SHIB/USDT") == closed(BARS)
    assert [row[2] for row in await known(store, "SHIB/USDT")] == ["complete"]


async def test_the_end_of_the_line(store: Store, server: ExchangeServer, opened: Opener) -> None:
    """What the exchange refuses for good is dropped from the queue, and failed in coverage."""
    await put(store, opened, "SHIB/USDT")
    server.faults.add(Rule(Fault.STATUS, path="klines", status=451, times=10**6))
    done: list[JobDone] = []
    await Worker(store, tell=done.append).run(drain=True)
    assert await store.queue.size() == {}
    assert {row[2] for row in await known(store, "SHIB/USDT")} == {"failed"}
    assert len(done) == 3


async def test_setting_up_twice_at_once_and_again(store: Store) -> None:
    await asyncio.gather(*(queue.set_up(store.database) for _ in range(4)))
    assert await queue.set_up(store.database) == []


async def test_any_work_can_be_queued(store: Store) -> None:
    """The queue knows nothing of candles."""
    assert await store.queue.put("stroll", [{"n": n} for n in range(5)]) == 5
    seen: list[Job] = []

    async def handle(job: Job) -> None:
        seen.append(job)
        if job.payload["n"] == 3 and job.attempts == 0:
            raise PutBack(timedelta(0), "once more")
        if job.payload["n"] == 4:
            raise ValueError("dropped")

    async def kinds() -> list[str]:
        return ["stroll"]

    await store.queue.work(kinds, handle, asyncio.Event(), drain=True)
    assert sorted(job.payload["n"] for job in seen) == [0, 1, 2, 3, 3, 4]
    assert await store.queue.size() == {}


async def test_a_role_that_may_not_create_it_does_without(url: str) -> None:
    """A database of somebody else: everything but workers is there."""
    made = make_url(url)
    await execute(
        url,
        "DROP SCHEMA kurisu_queue CASCADE",
        "CREATE ROLE guest LOGIN PASSWORD 'guest'",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO guest",
        "GRANT ALL ON SCHEMA public TO guest",
        f'REVOKE CREATE ON DATABASE "{made.database}" FROM PUBLIC',
    )
    try:
        guest = made.set(username="guest", password="guest")
        done = await upgrade(guest.render_as_string(hide_password=False))
        assert [line for line in done if "no queue" in line and "permission denied" in line]
    finally:
        await execute(url, "DROP OWNED BY guest", "DROP ROLE guest")
