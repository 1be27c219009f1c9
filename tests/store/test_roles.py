"""A role that is no superuser, as on a managed server: all of Kurisu, on a database that it may
create things in."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Final

import pytest
import pytest_asyncio
from bars import START, as_table, minutes
from engines import EDITIONS, NATIVE_TIMESCALEDB, Servers, edition, execute
from ledger.histories import fee, fill, placed, said
from rows import fetch
from sqlalchemy import make_url, text

from kurisu.errors import WriteRefused
from kurisu.store import rollups
from kurisu.store.connect import autocommit
from kurisu.store.store import open_store, upgrade

ROLE: Final = f"kurisu_test_{os.getpid()}"
#: A role that owns nothing.
WRITER: Final = f"{ROLE}_writer"
PASSWORD: Final = "of:a@test"


@pytest.fixture(params=["apache", "community"] if NATIVE_TIMESCALEDB else ["community"])
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    """TimescaleDB keeps things of its own in schemas of its own, Community most of them."""
    with edition(EDITIONS[request.param]):
        yield str(request.param)


@pytest_asyncio.fixture
async def role_url(servers: Servers, tier: str) -> AsyncIterator[str]:
    """An empty database, as a role that may create schemas in it and tables in one."""
    url = make_url(servers.empty(tier))
    owner = url.render_as_string(hide_password=False)
    await execute(
        owner,
        f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'",
        f"CREATE ROLE {WRITER} LOGIN PASSWORD '{PASSWORD}'",
        f"GRANT CREATE ON DATABASE {url.database} TO {ROLE}",
        f"GRANT CREATE ON SCHEMA public TO {ROLE}",
    )
    yield url.set(username=ROLE, password=PASSWORD).render_as_string(hide_password=False)
    await execute(servers.empty(tier), f"DROP ROLE IF EXISTS {ROLE}, {WRITER}")


async def test_a_role_that_may_create_nothing_in_timescaledbs_schemas(
    role_url: str, tier: str
) -> None:
    await upgrade(role_url)
    there = minutes(START, 300)
    async with open_store(role_url) as store:
        market = await store.markets.ensure("binance", "BTC/USDT")
        await store.candles.write(market, "1m", as_table(there[::2]))
        await store.candles.write(market, "1m", as_table(there))
        await store.db.maintain()
        assert (await store.candles.verify()).ok
        assert sum(bar.bars or 0 for bar in await store.candles.read(market, "4h")) == 300
        if tier == "community":
            assert (await store.db.status()).tables[0].compressed_chunks == 1
            jobs = "SELECT job_id FROM timescaledb_information.jobs WHERE job_id >= 1000"
            found = await fetch(store, jobs)
            async with autocommit(store.database) as connection:
                for (job,) in found:
                    await connection.execute(text(f"CALL run_job({job})"))
            assert (await rollups.refresh_all(store.database)) != []
    assert await upgrade(role_url) == []

    # Another role may write, and is told who has to refresh what it cannot.
    more = as_table(minutes(START, 310))
    await execute(
        role_url,
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {WRITER}",
    )
    async with open_store(role_url.replace(ROLE, WRITER, 1)) as store:
        if tier == "community":
            with pytest.raises(WriteRefused, match="Let the owner run `kurisu db maintain`"):
                await store.candles.write(market, "1m", more)
        else:
            assert (await store.candles.write(market, "1m", more)).inserted == 10
    async with open_store(role_url) as store:
        await store.db.maintain()
        assert sum(bar.bars or 0 for bar in await store.candles.read(market, "4h")) == 310


async def test_a_role_that_may_only_read_and_write_keeps_the_ledger(role_url: str) -> None:
    await upgrade(role_url)
    async with open_store(role_url) as store:
        market = await store.markets.ensure("binance", "BTC/USDT")
    await execute(
        role_url,
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {WRITER}",
    )
    async with open_store(role_url.replace(ROLE, WRITER, 1)) as store:
        account = await store.accounts.add("binance", "main")
        # One by one, many at once, waiting for their order, and a second word about one of them.
        early = fill("1", "0.1", exchange_order_id="X2")
        assert (await store.ledger.apply(account, early, market=market)).order is None
        await store.ledger.place(placed(account_id=account.id))
        await store.ledger.apply(account, fill("2", "0.1"), market=market)
        await store.ledger.apply_many(
            account, [fill("3", "0.1"), fill("4", "0.1"), said("open", 5)], market=market
        )
        await store.ledger.place(
            placed(client_order_id="c2", exchange_order_id="X2", account_id=account.id)
        )
        await store.ledger.apply(account, fill("2", "0.1", fees=fee("0.1", "BNB")), market=market)
        orders = await store.ledger.orders(account)
        assert sorted(order.filled for order in orders) == [Decimal("0.1"), Decimal("0.3")]
        assert await store.ledger.waiting(account) == []
        [corrected] = [
            row for row in await store.ledger.executions(account) if row.execution.trade_id == "2"
        ]
        assert corrected.execution.fees == fee("0.1", "BNB")
