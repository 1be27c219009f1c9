"""The ledger is the same on every engine: plain tables and triggers everywhere."""

from __future__ import annotations

from decimal import Decimal

from ledger.histories import at, fee, fill, placed, said
from rows import fetch

from kurisu.ledger.intake import Flag
from kurisu.store.markets import Market
from kurisu.store.store import Store


async def test_life_of_an_order_on_every_engine(store: Store, market: Market) -> None:
    ledger = store.ledger
    account = await store.accounts.add("binance", "main", {"apiKey": "BINANCE_MAIN_KEY"})
    first = fill("7", "0.4", "99.5", 2, fees=(*fee("1", "BNB"), *fee("0.1", "USDT")))
    assert (await ledger.apply(account, first, market=market)).flags == {Flag.WAITING}
    await ledger.place(placed(account_id=account.id))
    outcome = await ledger.apply(account, said("open", 1), market=market)
    assert outcome.inserted
    outcome = await ledger.apply(account, fill("8", "0.1", "100", 3), market=market)
    assert outcome.order
    assert (outcome.order.filled, outcome.order.cost) == (Decimal("0.5"), Decimal("49.8"))
    rest = [fill(str(n), "0.05", "101", n, fees=None) for n in range(10, 20)]
    applied = await ledger.apply_many(account, [*rest, first], market=market)
    assert (applied.inserted, applied.unchanged) == (10, 1)
    applied = await ledger.apply_many(
        account, [fill("10", "0.05", "101", 10, fees=fee("0.01", "USDT"))], market=market
    )
    assert applied.corrected == 1
    (order,) = await ledger.orders(account)
    assert (order.status, order.filled) == ("closed", Decimal(1))
    (row,) = await ledger.positions(account, at=at(60))
    assert row.position.amount == 1
    assert row.position.fee_value == Decimal("0.11")
    wallets = {r.balance.asset: r.balance.total for r in await ledger.balances(account)}
    assert wallets == {"BTC": 1, "BNB": -1, "USDT": Decimal("-100.41")}
    assert await ledger.snapshot(account, at=at(60)) == (1, 3)
    assert await fetch(store, "SELECT count(*) FROM execution_corrections") == [(1,)]
    assert await fetch(store, "SELECT event_type FROM risk_events") == []
