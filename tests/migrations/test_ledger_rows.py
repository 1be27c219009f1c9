"""Rows of the ledger survive the way back to the tables without guards, and up again."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from engines import REAL_TIERS
from ledger.histories import fee, fill, placed, said
from rows import fetch

from kurisu.store import migrate
from kurisu.store.connect import transaction
from kurisu.store.ledger import Ledger
from kurisu.store.markets import Market
from kurisu.store.store import Store

pytestmark = pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)


async def test_orders_and_what_counts_in_them(store: Store, market: Market) -> None:
    account = await store.accounts.add("binance", "main")
    await store.ledger.place(placed(account_id=account.id))
    messages: list[Any] = [
        said("open", 1), fill("7", "0.4", fees=fee("0.1", "BNB")), fill("8", "0.1"),
        fill("9", "1", exchange_order_id="X9"),
    ]  # fmt: skip
    await store.ledger.apply_many(account, messages, market=market)
    before = [row.execution for row in await store.ledger.executions(account)]
    await store.close()
    async with transaction(store.database) as connection:
        await migrate.downgrade(connection, "0009")
    # What waited for its order had no place there.
    assert await fetch(store, "SELECT trade_id FROM executions ORDER BY 1") == [("7",), ("8",)]
    async with transaction(store.database) as connection:
        await migrate.upgrade(connection, "head")
    ledger = Ledger(store)
    assert [row.execution for row in await ledger.executions(account)] == before
    outcome = await ledger.apply(account, fill("10", "0.5"), market=market)
    assert outcome.order
    assert (outcome.order.filled, outcome.order.remaining) == (Decimal(1), Decimal(0))
    assert outcome.order.status == "closed"
    await ledger.close()
