"""Two processes that bring one database up to date at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from bars import START, aggregated, as_table, minutes
from engines import CONCURRENT_TIERS, EDITIONS, Servers, edition
from rows import rollups, session, stored

from kurisu.migrations import ADVISORY_LOCK
from kurisu.store import migrate
from kurisu.store.connect import make_engine, transaction
from kurisu.store.engine import Edition
from kurisu.store.store import open_store, upgrade


@pytest.fixture(params=CONCURRENT_TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_url(servers: Servers, tier: str) -> Iterator[str]:
    with edition(EDITIONS[tier]):
        yield servers.empty(tier)


async def test_an_empty_database(empty_url: str) -> None:
    first, second = await asyncio.gather(upgrade(empty_url), upgrade(empty_url))
    migrations = [line for line in [*first, *second] if line.startswith("migrated")]
    assert migrations == [f"migrated from an empty database to revision {migrate.head()}"]
    assert not [line for line in [*first, *second] if "could not" in line]
    assert await upgrade(empty_url) == []
    async with open_store(empty_url) as store:
        market = await store.markets.ensure("binance", "BTC/USDT")
        candles = minutes(START, 100)
        await store.candles.write(market, "1m", as_table(candles))
        assert (await rollups(store, market))["1h"] == aggregated(candles, "1h")


async def test_a_plain_database_with_rows(empty_url: str) -> None:
    candles = minutes(START, 3_000)
    with edition(Edition.PLAIN):
        await upgrade(empty_url)
        async with open_store(empty_url) as store:
            market = await store.markets.ensure("binance", "BTC/USDT")
            await store.candles.write(market, "1m", as_table(candles))
    first, second = await asyncio.gather(upgrade(empty_url), upgrade(empty_url))
    assert not set(first) & set(second)
    assert await upgrade(empty_url) == []
    async with open_store(empty_url) as store:
        assert await stored(store, market) == candles
        assert await rollups(store, market) == {
            name: aggregated(candles, name) for name in ("5m", "15m", "1h", "4h", "1d")
        }


WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


async def test_a_migration_waits_for_the_one_before_it(url: str) -> None:
    database = make_engine(url)

    async def run() -> None:
        async with transaction(database) as connection:
            await migrate.upgrade(connection)

    async with session(url) as other:
        await other.execute(f"SELECT pg_advisory_lock({ADVISORY_LOCK})")
        migration = asyncio.create_task(run())
        while await other.fetchval(WAITING) == 0:
            assert not migration.done()
        await other.execute(f"SELECT pg_advisory_unlock({ADVISORY_LOCK})")
        await migration
    await database.dispose()
