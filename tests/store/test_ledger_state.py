"""Positions, balances, PnL and snapshots, against a double entry worked out by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from bars import as_table
from engines import REAL_TIERS
from ledger.histories import at, fee, fill, placed, said
from rows import fetch, value

from kurisu.domain.balance import Entry, EntryKind
from kurisu.domain.candle import Candle
from kurisu.domain.execution import Execution, Side
from kurisu.domain.order import OrderStatus, OrderType, OrderUpdate
from kurisu.errors import InvalidArgument, LedgerRuleBroken
from kurisu.ledger.pnl import unrealized_pnl
from kurisu.store.accounts import Account
from kurisu.store.ledger_values import PositionRow
from kurisu.store.markets import Market
from kurisu.store.store import Store

pytestmark = pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)

DAY = 86_400


def told(*values: Any) -> tuple[Any, ...]:
    """Numbers are compared as numbers, whatever their type."""
    return values


@pytest.fixture
async def account(store: Store) -> Account:
    return await store.accounts.add("binance", "main")


async def strategy_with_run(store: Store, name: str) -> tuple[int, int]:
    number = await value(
        store, "INSERT INTO strategies (name, class_path) VALUES (:n, 's.G') RETURNING id", n=name
    )
    run = await value(
        store,
        "INSERT INTO strategy_runs (strategy_id, type, status, start_time) "
        "VALUES (:id, 'live', 'running', now()) RETURNING id",
        id=number,
    )
    return number, run


async def trade(
    store: Store, account: Account | None, market: Market, name: str, side: str,
    fills: Sequence[tuple[str, str, int]], *, amount: str = "100", **order: Any,
) -> None:  # fmt: skip
    """An order with fills: (amount, price, seconds), each with a fee of 0.1 USDT and of 1 BNB."""
    await store.ledger.place(
        placed(
            amount, client_order_id=name, side=Side(side), market=market.name,
            type=OrderType.MARKET, price=None,
            account_id=None if account is None else account.id, **order,
        )
    )  # fmt: skip
    link = said("open", 1, client_order_id=name, exchange_order_id=f"X{name}")
    messages: list[OrderUpdate | Execution] = [link]
    messages += [
        fill(f"{name}{n}", size, price, seconds, side, exchange_order_id=f"X{name}",
             fees=(*fee("1", "BNB"), *fee("0.1", "USDT")))
        for n, (size, price, seconds) in enumerate(fills)
    ]  # fmt: skip
    run = order.get("strategy_run_id")
    await store.ledger.apply_many(account, messages, market=market, run_id=run)


async def test_wallets_are_the_sum_of_every_movement(
    store: Store, account: Account, market: Market
) -> None:
    """Added up from the rows in Fraction, not with the ledger's own arithmetic."""
    await trade(
        store, account, market, "a", "buy", [("1", "100", 1), ("3", "33.333333333333333", 2)]
    )
    await trade(store, account, market, "b", "sell", [("0.7", "120.123456789", 3)])
    opening = Entry(EntryKind.OPENING, "USDT", Decimal(1000), at(0))
    paid = Entry(EntryKind.FEE, "USDT", Decimal("-0.5"), at(4), "f1")
    assert await store.ledger.enter(account, [opening, paid]) == 2
    assert await store.ledger.enter(account, [paid]) == 0
    with pytest.raises(LedgerRuleBroken, match="entry_reference_names_one_entry"):
        await store.ledger.enter(account, [replace(paid, amount=Decimal(-1))])
    wallets: dict[str, Fraction] = defaultdict(Fraction)
    wallets["USDT"] += Fraction(1000) - Fraction(1, 2)
    for stored in await store.ledger.executions(account):
        one = stored.execution
        sign = 1 if one.side is Side.BUY else -1
        wallets["BTC"] += sign * Fraction(one.amount)
        wallets["USDT"] -= sign * Fraction(one.cost or 0)
        for charged in one.fees or ():
            wallets[charged.currency] -= Fraction(charged.amount)
    found = {
        r.balance.asset: Fraction(r.balance.total) for r in await store.ledger.balances(account)
    }
    assert found == wallets
    # And then: only what had happened by then.
    then = {r.balance.asset: r.balance.total for r in await store.ledger.balances(at=at(1))}
    assert then == {"BTC": Decimal(1), "USDT": Decimal("899.9"), "BNB": Decimal(-1)}


async def test_open_orders_hold_what_they_ask_for(
    store: Store, account: Account, market: Market
) -> None:
    await store.ledger.place(placed("2", account_id=account.id))
    await store.ledger.apply(account, said("open", 1), market=market)
    await store.ledger.apply(account, fill("1", "0.5", "99", 5), market=market)
    sell = placed("3", client_order_id="s", side=Side.SELL, account_id=account.id)
    await store.ledger.place(sell)
    found = {r.balance.asset: r.balance for r in await store.ledger.balances(account)}
    assert told(found["USDT"].total, found["USDT"].used) == (Decimal("-49.5"), Decimal(150))
    assert told(found["BTC"].used, found["BTC"].free) == (Decimal(3), Decimal("-2.5"))
    before = {r.balance.asset: r.balance for r in await store.ledger.balances(account, at=at(4))}
    assert before["USDT"].used == Decimal(200)
    await store.ledger.apply(account, said("canceled", 9), market=market)
    after = {r.balance.asset: r.balance for r in await store.ledger.balances(account)}
    assert after["USDT"].used == 0
    then = {r.balance.asset: r.balance for r in await store.ledger.balances(account, at=at(7))}
    assert then["USDT"].used == Decimal(150)


async def test_positions_are_apart_by_strategy_and_run_or_pooled(
    store: Store, account: Account, market: Market
) -> None:
    grid, run = await strategy_with_run(store, "grid")
    trend, _ = await strategy_with_run(store, "trend")
    await trade(store, account, market, "a", "buy", [("2", "100", 1)], strategy_id=grid,
                strategy_run_id=run)  # fmt: skip
    await trade(store, account, market, "b", "sell", [("1", "130", 2)], strategy_id=trend)
    apart = await store.ledger.positions(account)
    assert [told(r.strategy_id, r.strategy_run_id, r.position.amount) for r in apart] == [
        (grid, run, 2), (trend, None, -1),
    ]  # fmt: skip
    assert [r.entry_price for r in apart] == [100, 130]
    (pooled,) = await store.ledger.positions(account, by=("account",))
    assert told(pooled.position.amount, pooled.position.realized_pnl) == (1, 30)
    assert pooled.position.fee_value == Decimal("0.2")
    (then,) = await store.ledger.positions(account, at=at(1))
    assert told(then.position.amount, then.time) == (2, at(1))
    (of_run,) = await store.ledger.positions(run_id=run)
    assert of_run.position.amount == 2
    with pytest.raises(InvalidArgument, match="cannot be kept apart"):
        await store.ledger.positions(by=("day",))
    share = {r.balance.asset: r.balance.total for r in await store.ledger.balances(run_id=run)}
    assert share == {"BTC": 2, "USDT": Decimal("-200.1"), "BNB": -1}


async def test_unrealised_pnl_is_at_the_latest_closed_candle(
    store: Store, account: Account, market: Market
) -> None:
    await trade(store, account, market, "a", "buy", [("2", "100", 1)])
    assert [r.unrealized_pnl for r in await store.ledger.positions(account)] == [None]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    candles = [
        Candle(start + timedelta(minutes=n), *(Decimal(p),) * 4, Decimal(1))
        for n, p in ((0, 110), (1, 120), (2, 90))
    ]
    await store.candles.write(market, "1m", as_table(candles))

    async def marked(seconds: int) -> PositionRow:
        (row,) = await store.ledger.positions(account, at=at(seconds))
        return row

    row = await marked(120)
    assert told(row.mark_price, row.mark_time, row.unrealized_pnl) == (120, at(120), 40)
    assert (await marked(119)).mark_price == 110
    assert (await marked(59)).mark_price is None
    row = await marked(10_000)
    assert told(row.mark_price, row.unrealized_pnl) == (90, -20)
    terms = await store.ledger.terms(market.name)
    assert row.unrealized_pnl == unrealized_pnl(row.position, Decimal(90), terms)
    (pnl,) = await store.ledger.pnl(account)
    assert told(pnl.unrealized_pnl, pnl.mark_time) == (-20, at(180))


async def test_pnl_by_day_market_and_strategy(
    store: Store, account: Account, market: Market
) -> None:
    grid, run = await strategy_with_run(store, "grid")
    await trade(store, account, market, "a", "buy", [("2", "100", 10)], strategy_id=grid,
                strategy_run_id=run)  # fmt: skip
    await trade(store, account, market, "b", "sell",
                [("1", "110", DAY - 1), ("0.5", "90", DAY), ("0.5", "100", 3 * DAY)],
                strategy_id=grid)  # fmt: skip
    days = await store.ledger.pnl(account, by=("day",))
    assert [told(r.day, r.realized_pnl, r.executions, r.volume) for r in days] == [
        (date(2026, 1, 1), 10, 2, 310), (date(2026, 1, 2), -5, 1, 45), (date(2026, 1, 4), 0, 1, 50),
    ]  # fmt: skip
    (whole,) = await store.ledger.pnl(by=("strategy",))
    assert told(whole.strategy_id, whole.realized_pnl, whole.fee_value) == (grid, 5, Decimal("0.4"))
    assert whole.fees == {"BNB": 4, "USDT": Decimal("0.4")}
    # A part of the time: what was bought before is not forgotten.
    (part,) = await store.ledger.pnl(account, since=at(DAY), until=at(2 * DAY))
    assert told(part.realized_pnl, part.executions, str(part.market)) == (-5, 1, "binance:BTC/USDT")
    # A run that only bought has realised nothing; what sold was no run's.
    by_run = {r.strategy_run_id: r.realized_pnl for r in await store.ledger.pnl(by=("run",))}
    assert by_run == {run: 0, None: 0}
    with pytest.raises(InvalidArgument, match="no group"):
        await store.ledger.pnl(by=("week",))


async def test_contracts_move_the_wallet_by_what_they_realise(
    store: Store, account: Account
) -> None:
    inverse = await store.markets.ensure("binance", "BTC/USD:BTC")
    await fetch(store, "UPDATE markets SET contract_size = 100 WHERE id = :id", id=inverse.id)
    await trade(store, account, inverse, "a", "buy", [("10", "20000", 1)])
    await trade(store, account, inverse, "b", "sell", [("4", "25000", 2)])
    (row,) = await store.ledger.positions(account)
    assert told(row.position.amount, row.entry_price, row.settle_asset) == (6, 20000, "BTC")
    # 400 dollars at 20,000 and at 25,000.
    assert row.position.realized_pnl == Decimal("0.02") - Decimal("0.016")
    found = {r.balance.asset: r.balance.total for r in await store.ledger.balances(account)}
    assert found == {"BTC": Decimal("0.004"), "BNB": -2, "USDT": Decimal("-0.2")}


async def test_a_market_without_contract_size_is_refused_by_name(
    store: Store, account: Account
) -> None:
    swap = await store.markets.ensure("binance", "BTC/USDT:USDT")
    with pytest.raises(LedgerRuleBroken, match="contract_has_size"):
        await trade(store, account, swap, "a", "buy", [("1", "1", 1)])


async def test_a_snapshot_is_what_stood_then_and_replaces_itself(
    store: Store, account: Account, market: Market
) -> None:
    grid, run = await strategy_with_run(store, "grid")
    _, paper = await strategy_with_run(store, "paper")
    await trade(store, account, market, "a", "buy", [("2", "100", 1)], strategy_id=grid,
                strategy_run_id=run)  # fmt: skip
    await trade(store, account, market, "b", "sell", [("1", "130", 2)])
    await trade(store, None, market, "c", "buy", [("5", "10", 3)], strategy_run_id=paper)
    for _ in range(2):
        assert await store.ledger.snapshot(at=at(9)) == (3, 9)
    rows = await fetch(
        store,
        "SELECT account_id, strategy_run_id, amount, entry_price, cost_basis FROM positions "
        "ORDER BY strategy_run_id NULLS FIRST",
    )
    assert rows == [
        (account.id, None, -1, 130, 130), (account.id, run, 2, 100, 200), (None, paper, 5, 10, 50),
    ]  # fmt: skip
    rows = await fetch(
        store,
        "SELECT account_id, strategy_run_id, total FROM balances WHERE asset = 'BTC' "
        "ORDER BY strategy_run_id NULLS FIRST",
    )
    # The whole wallet, the run's share of it, and the run that has none.
    assert rows == [(account.id, None, 1), (account.id, run, 2), (None, paper, 5)]
    assert await store.ledger.snapshot(account, at=at(1)) == (1, 6)


async def test_orders_as_they_stood(store: Store, account: Account, market: Market) -> None:
    ledger = store.ledger
    await ledger.place(placed("1", account_id=account.id))
    messages: list[OrderUpdate | Execution] = [
        said("open", 5), fill("7", "0.4", "99", 10), fill("8", "0.1", "98", 20),
        said("open", 25, amount=Decimal(2), price=Decimal(101)), said("canceled", 30),
    ]  # fmt: skip
    await ledger.apply_many(account, messages, market=market)

    async def stood(seconds: int) -> list[tuple[Any, ...]]:
        return [
            told(o.status, o.amount, o.price, o.filled, o.cost)
            for o in await ledger.orders(account, at=at(seconds))
        ]

    assert await stood(-1) == []
    assert await stood(9) == [("open", 1, 100, 0, 0)]
    assert await stood(10) == [("open", 1, 100, Decimal("0.4"), Decimal("39.6"))]
    assert await stood(25) == [("open", 2, 101, Decimal("0.5"), Decimal("49.4"))]
    assert await stood(30) == [("canceled", 2, 101, Decimal("0.5"), Decimal("49.4"))]
    assert await ledger.orders(account, at=at(29), statuses=[OrderStatus.CANCELED]) == []


async def test_cursors_and_reports_of_an_account(
    store: Store, account: Account, market: Market
) -> None:
    ledger = store.ledger
    assert await ledger.cursor(account, "trades", market) is None
    await ledger.move_cursor(account, "trades", at(9), market=market, details={"id": "7"})
    await ledger.move_cursor(account, "trades", at(5), market=market)
    found = await ledger.cursor(account, "trades", market)
    assert found
    assert told(found.until, found.details) == (at(9), {"id": "7"})
    assert await ledger.cursor(account, "trades") is None
    assert await ledger.reported_balances(account) == []
    held = [r.balance for r in await ledger.balances(account)]
    assert held == []
