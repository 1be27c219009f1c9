"""A dump by PostgreSQL's own tools, restored under another owner: all is there, and goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Final

import asyncpg
import pytest
import pytest_asyncio
from bars import START, as_table, minutes
from engines import execute, plain_binaries
from ledger.histories import fill, placed, said
from sqlalchemy import make_url

from kurisu.store.markets import Market
from kurisu.store.store import Store, open_store, upgrade

pytestmark = pytest.mark.parametrize("tier", ["plain"], indirect=True)

OWNER: Final = f"kurisu_test_{os.getpid()}_restored"
PASSWORD: Final = "of-a-test"


@pytest_asyncio.fixture
async def other_url(url: str) -> AsyncIterator[str]:
    """An empty database on the same server, of another owner."""
    await execute(
        url,
        f"CREATE ROLE {OWNER} LOGIN PASSWORD '{PASSWORD}'",
        f"CREATE DATABASE {OWNER} OWNER {OWNER} TEMPLATE template0",
    )
    other = make_url(url).set(database=OWNER, username=OWNER, password=PASSWORD)
    yield other.render_as_string(hide_password=False)
    await execute(url, f"DROP DATABASE {OWNER} WITH (FORCE)", f"DROP ROLE {OWNER}")


async def run(program: str, *arguments: str) -> None:
    """One of PostgreSQL's programs; it has nothing to complain of."""
    process = await asyncio.create_subprocess_exec(
        plain_binaries() / program, *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, said_ = await process.communicate()
    assert (process.returncode, said_.decode()) == (0, "")


async def test_a_dump_under_another_owner(
    store: Store, market: Market, url: str, other_url: str, tmp_path: Path
) -> None:
    await store.candles.write(market, "1m", as_table(minutes(START, 300)))
    account = await store.accounts.add("binance", "main")
    await store.ledger.place(placed(account_id=account.id))
    await store.ledger.apply_many(
        account, [said("open", 1), fill("1", "0.4"), fill("2", "0.1", exchange_order_id="X9")],
        market=market,
    )  # fmt: skip
    before = await store.ledger.executions(account), await store.ledger.orders(account)
    dump = str(tmp_path / "dump")
    await run("pg_dump", "--format=custom", f"--file={dump}", url)
    await run("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={other_url}", dump)

    assert await upgrade(other_url) == []
    async with open_store(other_url) as restored:
        assert (await restored.candles.verify()).ok
        assert sum(bar.bars or 0 for bar in await restored.candles.read(market, "4h")) == 300
        ledger = restored.ledger
        assert (await ledger.executions(account), await ledger.orders(account)) == before
        assert len(await ledger.waiting(account)) == 1
        # It goes on, and so do its guards.
        await ledger.apply(account, fill("3", "0.5"), market=market)
        (order,) = await ledger.orders(account, market=market)
        assert (order.filled, order.cost) == (Decimal("0.9"), Decimal(90))
    with pytest.raises(asyncpg.CheckViolationError, match="follows_executions"):
        await execute(other_url, "UPDATE orders SET filled = 1, remaining = 0")
