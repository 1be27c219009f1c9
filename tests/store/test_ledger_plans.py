"""A fill is looked up by its index, also in a session that began when there were next to none."""

from __future__ import annotations

import asyncio

import pytest
from ledger.histories import fill, placed, said
from rows import fetch, session

from kurisu.store.ledger import BY_INDEX
from kurisu.store.ledger_fast import HOLD_ORDERS, INSERT_ONE
from kurisu.store.ledger_intake import ORDERS_BY_TRADES
from kurisu.store.markets import Market
from kurisu.store.store import Store, open_store

pytestmark = pytest.mark.parametrize("tier", ["plain"], indirect=True)


@pytest.mark.parametrize(
    ("statement", "count", "looks"),
    [(INSERT_ONE, 11, 1), (HOLD_ORDERS, 5, 2), (ORDERS_BY_TRADES, 4, 1)],
)
async def test_trade_ids_are_looked_up_by_their_index_in_an_empty_table(
    store: Store, url: str, statement: str, count: int, looks: int
) -> None:
    async with session(url) as connection:
        # Statistics of an empty table: by them every way costs the same.
        await connection.execute("ANALYZE executions; ANALYZE orders")
        await connection.execute(BY_INDEX)
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE looked_up AS {statement}")
        nothing = ", ".join(["NULL"] * count)
        rows = await connection.fetch(f"EXPLAIN EXECUTE looked_up({nothing})")
    plan = "\n".join(row[0] for row in rows)
    found = [line for line in plan.splitlines() if "Index Cond" in line and "trade_id" in line]
    assert len(found) == looks, plan
    assert all("account_id =" in line and "market_id =" in line for line in found), plan
    assert plan.count("unique_executions_trade_id on executions") == looks, plan
    assert "Seq Scan" not in plan


async def test_nothing_that_comes_in_reads_a_whole_table(
    store: Store, market: Market, url: str
) -> None:
    account = await store.accounts.add("binance", "main")
    # As servers have it; the embedded one knows that its disk has no head to move.
    await fetch(
        store,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET random_page_cost = 4', "
        "current_database()); END $$",
    )
    async with open_store(url) as other:
        for n in range(60):
            ids = {"client_order_id": f"ours-{n}", "exchange_order_id": f"X{n}"}
            await other.ledger.place(
                placed(account_id=account.id, client_order_id=ids["client_order_id"])
            )
            await other.ledger.apply(account, said("open", 1, **ids), market=market)
            for part in range(3):
                name = ids["exchange_order_id"]
                made = fill(f"{n}.{part}", "0.001", "100", n, exchange_order_id=name)
                await other.ledger.apply(account, made, market=market)
    counts: list[tuple[object, ...]] = []
    wanted = [("executions", 0, 180), ("orders", 0, 60)]
    for _ in range(50):  # the counts come when the session has ended
        counts = await fetch(
            store,
            "SELECT relname, seq_tup_read, n_tup_ins FROM pg_stat_user_tables "
            "WHERE relname IN ('executions', 'orders') ORDER BY 1",
        )
        if [(name, inserted) for name, _, inserted in counts] == [
            ("executions", 180),
            ("orders", 60),
        ]:
            break
        await asyncio.sleep(0.1)
    assert counts == wanted
