"""What is reported of orders of others: any order of answers, any number of times."""

from __future__ import annotations

import itertools
from decimal import Decimal
from typing import Any

import pytest

from kurisu.domain.execution import Execution
from kurisu.exchange.clock import from_ms
from kurisu.exchange.private_rows import read_order
from kurisu.store.store import Store
from kurisu.trading.take_in import Intake

MS = 1_767_225_600_123
#: As an answer to an order is, as lists are while it is filled, and at its end: a stop of Kraken's.
ACK = {"id": "O1", "clientOrderId": None, "symbol": "XRP/USD", "type": None, "side": "sell",
       "status": None, "price": None, "amount": "30", "timestamp": MS}  # fmt: skip
OPEN = {**ACK, "clientOrderId": "0", "type": "limit", "status": "open", "filled": "0",
        "price": "0.54", "stopLossPrice": "0.55",
        "info": {"descr": {"ordertype": "stop-loss-limit"}}}  # fmt: skip
PART = {**OPEN, "filled": "10.5", "remaining": "19.5", "cost": "5.67"}
END = {**PART, "status": "canceled", "lastUpdateTimestamp": MS + 9_000}
FILLS = [
    {"id": "T1", "order": "O1", "symbol": "XRP/USD", "side": "sell", "price": "0.54",
     "amount": "10", "cost": "5.4", "timestamp": MS + 4_000,
     "fee": {"cost": "0.0216", "currency": "USD"}},
    {"id": "T2", "order": "O1", "symbol": "XRP/USD", "side": "sell", "price": "0.54",
     "amount": "0.5", "cost": "0.27", "timestamp": MS + 5_000,
     "fees": [{"cost": "0.001", "currency": "USD"}, {"cost": "-0.2", "currency": "KFEE"}]},
]  # fmt: skip


@pytest.fixture
def tier() -> str:
    """Nothing here depends on the engine."""
    return "plain"


async def test_any_order_of_answers_gives_one_ledger(store: Store) -> None:
    market = await store.markets.ensure("kraken", "XRP/USD")
    answers: list[list[dict[str, Any]]] = [[OPEN, ACK], [PART], [END], FILLS]
    found = set()
    for number, turns in enumerate(itertools.permutations(answers)):
        account = await store.accounts.add("kraken", f"a{number}")
        intake = await Intake.open(store, account, market)
        for rows in (*turns, *turns[:2]):
            if rows is FILLS:
                await intake.executions([Execution.from_ccxt(row) for row in reversed(rows)])
            else:
                await intake.orders([read_order(row, from_ms(MS + 60_000)) for row in rows])
        (order,) = await store.ledger.orders(account)
        assert await store.ledger.conditions(account) == []
        balances = {
            row.balance.asset: row.balance.total for row in await store.ledger.balances(account)
        }
        assert balances == {
            "XRP": Decimal("-10.5"), "USD": Decimal("5.6474"), "KFEE": Decimal("0.2"),
        }  # fmt: skip
        found.add(
            (order.type, order.side, order.amount, order.filled, order.cost, order.price,
             order.stop_price, order.status, order.client_order_id, order.created_at)
        )  # fmt: skip
    assert found == {
        ("stop_loss", "sell", Decimal(30), Decimal("10.5"), Decimal("5.67"), Decimal("0.54"),
         Decimal("0.55"), "canceled", None, from_ms(MS)),
    }  # fmt: skip


#: A market buy by its cost, as KuCoin has them: no amount, an average for a price, and canceled
#: with what was left of the funds.
BY_COST = {"id": "O2", "clientOrderId": "web", "symbol": "XRP/USD", "type": "market",
           "side": "buy", "status": "open", "price": "0", "amount": None, "filled": "0",
           "timestamp": MS}  # fmt: skip
HALF = {**BY_COST, "filled": "12.25", "price": "0.500000000000000000001"}
LEFT = {**HALF, "filled": "20.5", "status": "canceled", "lastUpdateTimestamp": MS + 5_000}
BOUGHT = [
    {"id": f"T{n}", "order": "O2", "symbol": "XRP/USD", "side": "buy", "price": "0.5",
     "amount": amount, "timestamp": MS + n, "fee": {"cost": "0.01", "currency": "XRP"}}
    for n, amount in enumerate(("12.25", "8.25"))
]  # fmt: skip


async def test_an_order_by_cost_ends_as_the_exchange_says(store: Store) -> None:
    """That all of what was filled was filled makes it no closed one."""
    market = await store.markets.ensure("kraken", "XRP/USD")
    permutations = list(itertools.permutations([BY_COST, HALF, LEFT, *BOUGHT]))
    for number, turns in enumerate(permutations[::5]):
        account = await store.accounts.add("kraken", f"a{number}")
        intake = await Intake.open(store, account, market)
        for row in turns:
            if row in BOUGHT:
                await intake.executions([Execution.from_ccxt(row)])
            else:
                await intake.orders([read_order(row, None)])
        assert len(intake.taken.unreadable) <= 1  # HALF, while it is open
        # As a synchronisation does, for what it could not take while the order was open.
        await intake.orders([read_order(LEFT, None)])
        (order,) = await store.ledger.orders(account)
        assert (order.status, order.amount, order.filled, order.price) == (
            "canceled", Decimal("20.5"), Decimal("20.5"), None,
        )  # fmt: skip
        assert await store.ledger.conditions(account) == []
        (position,) = await store.ledger.positions(account)
        assert position.position.amount == Decimal("20.48")
