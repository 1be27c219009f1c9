"""A connection that is kept for single questions."""

from __future__ import annotations

import asyncio

import pytest
from engines import CONCURRENT_TIERS
from rows import session
from sqlalchemy.pool import NullPool

from kurisu.errors import DatabaseError
from kurisu.store.connect import make_engine
from kurisu.store.kept import Kept
from kurisu.store.store import Store

PID = "SELECT pg_backend_pid()"
#: A setting that nobody else has.
SETTINGS = "SET statement_timeout = '123s'"
TIMEOUT = "SHOW statement_timeout"
IS_THERE = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1"


@pytest.fixture(params=CONCURRENT_TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def asked(kept: Kept, query: str = PID) -> object:
    async with kept.use() as connection:
        return await connection.fetchval(query)


async def test_it_is_the_same_one_with_settings_of_its_own(store: Store) -> None:
    kept = Kept(store.database, SETTINGS)
    assert len({await asked(kept) for _ in range(5)}) == 1
    assert await asked(kept, TIMEOUT) == "123s"
    mine = await asked(kept)
    await kept.end()
    # Nobody has its settings after it.
    other = Kept(store.database, "SELECT 1")
    assert await asked(other) != mine
    assert await asked(other, TIMEOUT) == "0"
    await other.end()


async def test_who_comes_meanwhile_gets_another(store: Store) -> None:
    kept = Kept(store.database, SETTINGS)
    mine = await asked(kept)
    async with kept.use() as connection:
        found = set(await asyncio.gather(*(asked(kept) for _ in range(3))))
        assert mine not in found
        assert await connection.fetchval(PID) == mine
    assert await asked(kept) == mine
    assert store.database.pool.checkedout() == 1  # type: ignore[attr-defined]
    await kept.end()
    assert store.database.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_it_is_replaced_when_the_server_ends_it(store: Store, url: str) -> None:
    kept = Kept(store.database, SETTINGS)
    mine = await asked(kept)
    async with session(url) as other:
        await other.execute("SELECT pg_terminate_backend($1, 5000)", mine)
    await asyncio.sleep(0.1)  # until this side has noticed
    assert await asked(kept) != mine
    with pytest.raises(DatabaseError, match="connection to .* broke|terminating connection"):
        await asked(kept, "SELECT pg_terminate_backend(pg_backend_pid(), 5000)")
    assert await asked(kept, TIMEOUT) == "123s"
    await kept.end()


async def test_settings_that_fail_keep_nothing(store: Store) -> None:
    kept = Kept(store.database, "SET statement_timeout = 'never'")
    for _ in range(2):
        with pytest.raises(DatabaseError, match="invalid value for parameter"):
            await asked(kept)
    assert store.database.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_errors_are_kurisus_and_it_stays(store: Store) -> None:
    kept = Kept(store.database, SETTINGS)
    mine = await asked(kept)
    with pytest.raises(DatabaseError, match="division by zero"):
        await asked(kept, "SELECT 1 / 0")
    assert await asked(kept) == mine
    await kept.end()


async def test_where_a_server_has_one_session_nothing_is_kept(url: str) -> None:
    database = make_engine(f"{url}{'&' if '?' in url else '?'}pgbouncer=true")
    assert isinstance(database.pool, NullPool)
    kept = Kept(database, SETTINGS)
    assert len({await asked(kept) for _ in range(3)}) == 3
    assert await asked(kept, TIMEOUT) == "0"
    await kept.end()


async def test_a_store_that_closes_ends_it(store: Store, url: str) -> None:
    mine = await asked(store.few_bars._kept)
    await store.close()
    async with session(url) as other:
        for _ in range(100):
            if not await other.fetchval(IS_THERE, mine):
                break
            await asyncio.sleep(0.05)
        assert not await other.fetchval(IS_THERE, mine)
