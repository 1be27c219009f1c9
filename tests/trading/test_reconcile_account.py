"""`reconcile_account`: what ledger and exchange do not agree about, and how it is mended."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from exchange_server.clock import DAY_MS
from exchange_server.faults import Fault, Rule
from exchange_server.world import NOW_MS
from rows import fetch
from trading.conftest import SHIB, World
from trading.test_sync import assert_the_same, history, sync

from kurisu.domain.balance import Entry, EntryKind
from kurisu.domain.execution import Execution, Side
from kurisu.domain.order import OrderStatus, OrderType, OrderUpdate
from kurisu.exchange.clock import from_ms
from kurisu.ledger.reconcile import Subject
from kurisu.trading.reconcile import ReconcileReport, reconcile_account
from kurisu.trading.rules import OrderRequest

EVENTS = "SELECT count(*) FROM risk_events WHERE event_type = 'reconciliation_difference'"


async def reconcile(world: World, **more: Any) -> ReconcileReport:
    async with world.exchange() as exchange:
        return await reconcile_account(world.store, world.account, exchange, markets=[SHIB], **more)


async def deposit(world: World) -> None:
    """What the account had before it traded, which no fill says."""
    totals = {"USDT": Decimal(10**9), "SHIB": Decimal(10**9), "BNB": Decimal(5)}
    entries = [
        Entry(EntryKind.DEPOSIT, asset, total, from_ms(NOW_MS - 90 * DAY_MS), f"d{asset}")
        for asset, total in totals.items()
    ]
    await world.store.ledger.enter(world.account, entries)


def differences(report: ReconcileReport) -> set[tuple[str, str, str, str]]:
    return {(d.subject, d.kind, d.key, d.field) for d in report.comparison.differences}


async def test_what_was_synchronised_agrees(world: World) -> None:
    history(world.venue)
    await deposit(world)
    await sync(world)
    report = await reconcile(world)
    assert report.comparison.agrees, report.comparison.differences
    found = report.comparison
    assert (found.orders, found.executions, found.balances) == (22, 41, 3)
    assert await fetch(world.store, EVENTS) == [(0,)]


async def test_what_the_ledger_lacks_is_told_and_stored_on_demand(world: World) -> None:
    history(world.venue)
    await deposit(world)
    await sync(world)
    world.server.clock.advance(3_600)
    missed = world.venue.place("SHIBUSDT", "buy", "1500000")
    fills = [f for f in world.venue.fills if f.order is missed]
    report = await reconcile(world)
    wanted = {("order", "missing", str(missed.id), "")}
    wanted |= {("execution", "missing", f"{missed.id}/{f.id}", "") for f in fills}
    wanted |= {("balance", "different", asset, "total") for asset in ("BNB", "SHIB", "USDT")}
    assert differences(report) == wanted
    assert report.events == 6
    # Nothing was changed, and the same differences are no new events.
    again = await reconcile(world)
    assert (differences(again), again.events) == (wanted, 0)
    assert await fetch(world.store, EVENTS) == [(6,)]
    applied = await reconcile(world, apply=True)
    assert applied.comparison.agrees, applied.comparison.differences
    assert [taken.new for taken in applied.applied.values()] == [2]
    # The fills explain the balances: nothing had to be corrected.
    assert applied.corrections == {}
    await assert_the_same(world)


async def test_a_balance_that_nothing_explains(world: World) -> None:
    await deposit(world)
    await sync(world, markets=[SHIB])
    world.venue.balances["USDT"] -= Decimal("0.12345678")
    world.venue.balances["DOGE"] = Decimal(7)
    report = await reconcile(world)
    assert differences(report) == {
        ("balance", "different", "DOGE", "total"), ("balance", "different", "USDT", "total"),
    }  # fmt: skip
    assert await world.store.ledger.entries(world.account, since=from_ms(NOW_MS)) == []
    applied = await reconcile(world, apply=True)
    assert applied.comparison.agrees
    assert applied.corrections == {"DOGE": Decimal(7), "USDT": Decimal("-0.12345678")}
    rows = await world.store.ledger.entries(world.account, since=from_ms(NOW_MS))
    assert {(row.entry.kind, row.entry.asset, row.entry.amount) for row in rows} == {
        (EntryKind.CORRECTION, "DOGE", Decimal(7)),
        (EntryKind.CORRECTION, "USDT", Decimal("-0.12345678")),
    }
    assert (await reconcile(world, apply=True)).corrections == {}


async def test_two_that_correct_at_once_correct_once(world: World) -> None:
    await sync(world, markets=[SHIB])
    reports = await asyncio.gather(*(reconcile(world, apply=True) for _ in range(4)))
    assert sum(bool(report.corrections) for report in reports) >= 1
    rows = await world.store.ledger.entries(world.account)
    assert sorted((row.entry.asset, row.entry.amount) for row in rows) == [
        ("BNB", Decimal(5)), ("SHIB", Decimal(10**9)), ("USDT", Decimal(10**9)),
    ]  # fmt: skip
    assert (await reconcile(world)).comparison.agrees


async def test_what_the_exchange_never_had_stays_and_is_told(world: World) -> None:
    """Rows are not taken away: an extra fill is shown until somebody explains it."""
    await deposit(world)
    async with world.gateway() as gateway:
        order = await gateway.place(
            OrderRequest(SHIB, Side.BUY, OrderType.LIMIT, Decimal(2_000_000), world.low())
        )
    assert order.price
    invented = Execution(
        order.exchange_order_id or "", "t1", Side.BUY, order.price, Decimal(1_000_000),
        from_ms(world.server.clock.now_ms()), symbol=SHIB,
    )  # fmt: skip
    await world.store.ledger.apply(world.account, invented)
    for apply in (False, True):
        world.server.clock.advance(5)
        report = await reconcile(world, apply=apply)
        key = order.exchange_order_id
        assert {
            ("execution", "extra", f"{key}/t1", ""), ("order", "different", f"{key}", "filled"),
        } <= differences(report)  # fmt: skip
    assert {d.subject for d in report.comparison.differences} == {
        Subject.ORDER, Subject.EXECUTION,
    }  # fmt: skip


async def test_an_order_that_ended_differently(world: World) -> None:
    """The ledger took it for open; nothing else was stored since."""
    async with world.gateway() as gateway:
        order = await gateway.place(
            OrderRequest(SHIB, Side.BUY, OrderType.LIMIT, Decimal(2_000_000), world.low())
        )
    await deposit(world)
    world.server.clock.advance(60)
    placed = world.venue.orders[0]
    placed.status, placed.updated_ms = "CANCELED", world.server.clock.now_ms()
    report = await reconcile(world)
    (difference,) = report.comparison.differences
    assert (difference.field, difference.ledger, difference.exchange) == (
        "status", "open", "canceled",
    )  # fmt: skip
    assert (await reconcile(world, apply=True)).comparison.agrees
    (found,) = await world.store.ledger.orders(world.account)
    assert (found.status, found.client_order_id) == (OrderStatus.CANCELED, order.client_order_id)


async def test_an_order_older_than_the_stretch_is_asked_for(world: World) -> None:
    history(world.venue)
    await deposit(world)
    await sync(world)
    since = from_ms(NOW_MS - 2 * DAY_MS - 1)
    # An order of the ledger that the lists do not have.
    world.server.faults.add(Rule(Fault.SHORT, "allOrders"))
    report = await reconcile(world, since=since)
    assert report.comparison.agrees, report.comparison.differences
    assert report.comparison.orders < 22


async def test_a_venue_that_reaches_back_ninety_days(world: World) -> None:
    """What is older is neither extra nor asked for one by one."""
    history(world.venue, days=120, each=1)
    await deposit(world)
    await sync(world)
    async with world.exchange() as exchange:
        exchange.private = replace(
            exchange.private, newest_without_time=False, id_paging=False,
            order_window_ms=30 * DAY_MS, trade_window_ms=30 * DAY_MS,
        )  # fmt: skip
        world.venue.longest_window_ms = 40 * DAY_MS
        asked = len(world.server.asked("v3/order"))
        report = await reconcile_account(world.store, world.account, exchange, markets=[SHIB])
    assert report.comparison.agrees, report.comparison.differences[:5]
    assert report.since == report.until - timedelta(days=90)
    assert report.comparison.orders < 100
    assert len(world.server.asked("v3/order")) == asked


async def test_an_order_that_failed_is_no_difference(world: World) -> None:
    await deposit(world)
    world.server.faults.add(Rule(Fault.STATUS, "/order", query={"method": "POST"}, status=503))
    async with world.gateway() as gateway:
        try:
            await gateway.place(OrderRequest(SHIB, Side.BUY, OrderType.MARKET, Decimal(1_500_000)))
        except Exception as error:
            assert "never got there" in str(error)
    await sync(world, markets=[SHIB])
    assert (await reconcile(world)).comparison.agrees


async def test_a_stored_fill_of_another_size(world: World) -> None:
    """One trade id, two amounts: shown as different; stored as a second one on demand, and said."""
    await deposit(world)
    order = world.venue.place("SHIBUSDT", "buy", "3000000", str(world.low()))
    world.venue._fill(order, Decimal(1_000_000), order.price, world.server.clock.now_ms(),
                      is_maker=True)  # fmt: skip
    fill = world.venue.fills[0]
    await world.store.markets.ensure("binance", SHIB)
    await world.store.ledger.apply(
        world.account, OrderUpdate(exchange_order_id=str(order.id), symbol=SHIB)
    )
    other = Execution(str(order.id), str(fill.id), Side.BUY, fill.price, Decimal(900_000),
                      from_ms(fill.time_ms), symbol=SHIB)  # fmt: skip
    await world.store.ledger.apply(world.account, other)
    await sync(world, markets=[SHIB])
    report = await reconcile(world)
    assert ("execution", "extra", f"{order.id}/{fill.id}", "") in differences(report)
    kinds = await fetch(world.store, "SELECT DISTINCT event_type FROM risk_events ORDER BY 1")
    assert ("trade_id_reused",) in kinds
