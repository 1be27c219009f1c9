"""What exchanges really answered, in every order, through the database; skipped without it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from engines import REAL_TIERS
from ledger.histories import Message, feed
from ledger.test_real_payloads import PAYLOADS, load, order_for, unified
from rows import fetch

from kurisu.domain.execution import Execution
from kurisu.domain.market import MarketName
from kurisu.domain.order import Order, OrderUpdate
from kurisu.domain.position import MarketTerms
from kurisu.ledger.balance import book_totals, position_and_postings
from kurisu.ledger.intake import Intake
from kurisu.store.store import Store

pytestmark = [
    pytest.mark.parametrize("tier", REAL_TIERS, indirect=True),
    pytest.mark.skipif(
        not PAYLOADS.is_dir(), reason="recorded payloads are kept beside the repository, not in it"
    ),
]


def sale_of_mexc() -> tuple[str, list[Message]]:
    """An order without a client id, and its one fill."""
    (answer,), (trade,) = unified("mexc", "fetchOrders"), unified("mexc", "fetchMyTrades")
    update = OrderUpdate.from_ccxt(answer)
    name = "mexc:ATLAS/USDT"
    return name, [order_for(name, answer, update), update, Execution.from_ccxt(trade)]


def five_fills_of_binance() -> tuple[str, list[Message]]:
    """A market order that was filled at five prices, as one answer says it."""
    answer = load("nautilus/binance/spot/http_json/new_order_full_response.json")
    update = OrderUpdate.from_ccxt(
        {"id": answer["orderId"], "clientOrderId": answer["clientOrderId"], "status": "closed",
         "amount": answer["origQty"], "filled": answer["executedQty"], "side": "sell",
         "lastUpdateTimestamp": answer["transactTime"], "timestamp": answer["transactTime"]}
    )  # fmt: skip
    name = "binance:BTC/USDT"
    fills = [
        Execution.from_ccxt(
            {"id": one["tradeId"], "order": answer["orderId"], "side": "sell",
             "timestamp": answer["transactTime"], "price": one["price"], "amount": one["qty"],
             "fee": {"cost": one["commission"], "currency": one["commissionAsset"]}}
        )
        for one in answer["fills"]
    ]  # fmt: skip
    return name, [order_for(name, {"type": "market", "side": "sell"}, update), update, *fills]


def orders_of(messages: Sequence[Message]) -> Iterable[Sequence[Message]]:
    """Every order of few messages; of many some, with repetitions."""
    if len(messages) <= 3:
        return itertools.permutations(messages)
    shuffler = random.Random(3)
    found = []
    for _ in range(25):
        again = [*messages, *shuffler.sample(list(messages), 3)]
        shuffler.shuffle(again)
        found.append(again)
    return found


@pytest.mark.parametrize("sequence", [sale_of_mexc, five_fills_of_binance])
async def test_a_recorded_sequence_in_any_order(store: Store, sequence: Any) -> None:
    name, messages = sequence()
    parsed = MarketName.parse(name)
    market = await store.markets.ensure(parsed.exchange, parsed.symbol)
    pure = Intake(MarketTerms.of(parsed))
    for message in messages:
        feed(pure, message)
    (wanted,) = pure.orders()
    executions = list(pure.executions())
    totals = book_totals(position_and_postings(executions, pure.terms)[1])
    for number, shuffled in enumerate(orders_of(messages)):
        account = await store.accounts.add(parsed.exchange, f"a{number}")
        for message in shuffled:
            if isinstance(message, Order):
                # A client id is one order's in the whole database.
                client = message.client_order_id and f"{message.client_order_id}/{number}"
                order = replace(message, account_id=account.id, client_order_id=client)
                await store.ledger.place(order)
            elif isinstance(message, OrderUpdate) and message.client_order_id:
                client = f"{message.client_order_id}/{number}"
                update = replace(message, client_order_id=client)
                await store.ledger.apply(account, update, market=market)
            else:
                await store.ledger.apply(account, message, market=market)
        (found,) = await store.ledger.orders(account)
        same = replace(found, id=None, account_id=None, client_order_id=wanted.client_order_id)
        assert same == wanted
        rows = [row.execution for row in await store.ledger.executions(account)]
        assert sorted(rows, key=lambda row: row.trade_id) == sorted(
            executions, key=lambda row: row.trade_id
        )
        wallets = {r.balance.asset: r.balance.total for r in await store.ledger.balances(account)}
        assert wallets == {asset: total for asset, total in totals.items() if total != Decimal(0)}
    assert await fetch(store, "SELECT * FROM risk_events") == []
