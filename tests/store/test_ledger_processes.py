"""Sixteen processes that say the same thing, and processes that are killed in the middle of it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
from engines import REAL_TIERS
from ledger.histories import at, fee, fill, placed, said
from rows import fetch, value

from kurisu.domain.order import OrderUpdate
from kurisu.store.accounts import Account
from kurisu.store.connect import make_engine
from kurisu.store.engine import Engine
from kurisu.store.markets import Market
from kurisu.store.store import Store, open_store

pytestmark = pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)

PROCESSES: Final = 16
FILLS: Final = 20


def messages(seed: int) -> list[Any]:
    """All that the exchange says about one order, in an order of this process's own."""
    shuffler = random.Random(seed)
    fills = [
        fill(str(n), "0.01", f"{100 + n}", n + 1, fees=fee("0.001", "BNB")) for n in range(FILLS)
    ]
    amount = Decimal(FILLS) / 100
    updates = [said("open", 1, client_order_id=None), said("closed", FILLS + 1, str(amount))]
    found = [*fills, *updates, *shuffler.sample(fills, 5)]
    shuffler.shuffle(found)
    return found


async def talk(url: str, engine: Engine, seed: int) -> None:
    """What a process does: says which message it has stored, as soon as it has."""
    store = Store(make_engine(url), engine)
    account = await store.accounts.get("binance", "main")
    market = await store.markets.get("binance", "BTC/USDT")
    rest = messages(seed)
    while rest:
        size = random.Random(len(rest)).choice([1, 1, 7])
        part, rest = rest[:size], rest[size:]
        if len(part) > 1:
            await store.ledger.apply_many(account, part, market=market)
        else:
            await store.ledger.apply(account, part[0], market=market)
        print(json.dumps([getattr(m, "trade_id", None) for m in part]), flush=True)
    await store.close()
    await store.database.dispose()


async def look(url: str) -> Engine:
    """What server it is, once for all processes."""
    async with open_store(url) as store:
        return store.engine


def start(url: str, *seeds: int) -> subprocess.Popen[str]:
    """A process of its own, or, for several seeds, one that divides into as many: to import
    everything takes longer than the rest."""
    folder = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, __file__, url, *map(str, seeds)],
        env={"PYTHONPATH": f"{folder}:{folder.parent}", "PATH": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
async def account(store: Store, market: Market) -> Account:
    """With an order of ours that the exchange has not answered yet."""
    assert market.symbol == "BTC/USDT"
    account = await store.accounts.add("binance", "main")
    amount = Decimal(FILLS) / 100
    await store.ledger.place(placed(str(amount), account_id=account.id, created_at=at(0)))
    return account


async def whole(store: Store, account: Account) -> None:
    """The one right end."""
    (order,) = await store.ledger.orders(account)
    assert order.status == "closed"
    assert (order.filled, order.remaining) == (Decimal("0.2"), Decimal(0))
    executions = await store.ledger.executions(account)
    assert sorted(int(row.execution.trade_id) for row in executions) == list(range(FILLS))
    assert order.cost == sum(row.execution.cost or 0 for row in executions)
    assert await store.ledger.waiting(account) == []
    assert await store.ledger.conditions(account) == []
    assert await fetch(store, "SELECT event_type FROM risk_events") == []


async def test_sixteen_processes_on_one_order_end_in_one_state(
    store: Store, account: Account, url: str
) -> None:
    processes = start(url, *range(PROCESSES))
    assert processes.stdout is not None
    # The answer that says which order it is comes when some have told what they know of it.
    await asyncio.to_thread(processes.stdout.readline)
    link = OrderUpdate(client_order_id="ours", exchange_order_id="X1", time=at(1))
    await store.ledger.apply(account, link, market=await store.markets.get("binance", "BTC/USDT"))
    _, errors = await asyncio.to_thread(processes.communicate)
    assert processes.returncode == 0, errors
    await whole(store, account)


async def test_a_killed_process_has_stored_what_it_said_and_is_taken_up(
    store: Store, account: Account, url: str
) -> None:
    """SIGKILL at any moment: whatever was acknowledged is there, nothing is there in part, and
    saying everything again leads to the same end."""
    market = await store.markets.get("binance", "BTC/USDT")
    link = OrderUpdate(client_order_id="ours", exchange_order_id="X1", time=at(1))
    await store.ledger.apply(account, link, market=market)
    acknowledged: set[str] = set()
    for seed in range(2):
        process = start(url, seed)
        acknowledged |= await asyncio.to_thread(kill_after, process, 3 + 4 * seed)
        stored = {row.execution.trade_id for row in await store.ledger.executions(account)}
        assert acknowledged - {""} <= stored
        assert await value(
            store,
            "SELECT o.filled = sum(e.amount) AND o.cost = sum(e.cost) FROM orders o "
            "JOIN executions e ON e.order_id = o.id GROUP BY o.id",
        )
    assert len(acknowledged) > 1
    await store.ledger.apply_many(account, messages(9), market=market)
    await whole(store, account)


def kill_after(process: subprocess.Popen[str], lines: int) -> set[str]:
    """Trade ids that it said were stored before it was killed."""
    assert process.stdout is not None
    said_stored: set[str] = set()
    for _ in range(lines):
        line = process.stdout.readline()
        if not line:
            break
        said_stored |= {trade or "" for trade in json.loads(line)}
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    for line in rest.splitlines():
        if line.endswith("]"):
            said_stored |= {trade or "" for trade in json.loads(line)}
    return said_stored


def main(arguments: Sequence[str]) -> None:
    """The process itself; it fails if one of its parts does."""
    url, *seeds = arguments
    engine = asyncio.run(look(url))
    children = []
    for seed in seeds[1:]:
        child = os.fork()
        if child == 0:
            asyncio.run(talk(url, engine, int(seed)))
            return
        children.append(child)
    asyncio.run(talk(url, engine, int(seeds[0])))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(any(codes))


if __name__ == "__main__":
    main(sys.argv[1:])
