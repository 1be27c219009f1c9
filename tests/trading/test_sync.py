"""`sync_account`: everything an account did is in the ledger, once, wherever it was stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from engines import RealServer, Servers
from exchange_server.binance_account import BinanceAccount
from exchange_server.clock import DAY_MS
from exchange_server.faults import Fault, Rule
from exchange_server.world import NOW_MS
from rows import fetch
from trading.conftest import SHIB, World

import kurisu
from kurisu.domain.execution import Fee, Side
from kurisu.domain.order import OrderStatus, OrderType
from kurisu.errors import BadSymbol, ExchangeUnavailable
from kurisu.exchange import private_pages
from kurisu.exchange.clock import from_ms
from kurisu.store.ledger import Ledger
from kurisu.trading.reconcile import reconcile_account
from kurisu.trading.rules import OrderRequest
from kurisu.trading.sync import SyncReport, sync_account


async def sync(world: World, **more: Any) -> SyncReport:
    async with world.exchange() as exchange:
        return await sync_account(world.store, world.account, exchange, **more)


def history(venue: BinanceAccount, days: int = 5, each: int = 4) -> None:
    """Orders by somebody else with the same account: market, partly filled, canceled, open."""
    venue.fee_asset, venue.slices = "BNB", 2
    price = str((venue.last_price("SHIBUSDT") / 2).quantize(Decimal("1E-8")))
    for day in range(days, 0, -1):
        for n in range(each):
            venue.clock.set(NOW_MS - day * DAY_MS + n, speed=0.0)
            venue.place("SHIBUSDT", "buy" if n % 2 else "sell", str(1_000_000 + n))
    canceled = venue.place("SHIBUSDT", "buy", "2000000", price)
    venue._fill(canceled, Decimal(700_000), canceled.price, venue.clock.now_ms(), is_maker=True)
    canceled.status = "CANCELED"
    venue.place("SHIBUSDT", "buy", "3000000", price)
    venue.clock.set(NOW_MS, speed=1.0)


async def assert_the_same(world: World) -> None:
    """The ledger has what the exchange has, once, digit for digit."""
    venue = world.venue
    states = {"NEW": "open", "PARTIALLY_FILLED": "open", "FILLED": "closed", "CANCELED": "canceled"}
    orders = await world.store.ledger.orders(world.account)
    assert {
        (o.exchange_order_id, o.side, o.amount, o.filled, o.cost, o.status) for o in orders
    } == {
        (str(o.id), o.side.lower(), o.amount, o.filled, o.quote, states[o.status])
        for o in venue.orders
    }
    assert len(orders) == len(venue.orders)
    executions = [row.execution for row in await world.store.ledger.executions(world.account)]
    assert sorted(
        (e.trade_id, e.exchange_order_id, e.price, e.amount, e.fees, e.time) for e in executions
    ) == sorted(
        (str(f.id), str(f.order.id), f.price, f.amount, (Fee(f.fee_asset, f.fee),),
         from_ms(f.time_ms))
        for f in venue.fills
    )  # fmt: skip


async def test_an_account_that_traded_elsewhere(world: World) -> None:
    history(world.venue)
    report = await sync(world)
    assert [m.market for m in report.markets] == ["binance:SHIB/USDT"]
    assert (report.total("orders"), report.total("adopted")) == (22, 22)
    assert (report.total("executions"), report.total("new")) == (41, 41)
    assert report.balances == 3
    await assert_the_same(world)
    reported = await world.store.ledger.reported_balances(world.account)
    assert {row.balance.asset: row.balance.total for row in reported} == {
        asset: total.quantize(Decimal("1E-8")) for asset, total in world.venue.balances.items()
    }
    # Again: nothing is new, whatever comes a second time.
    again = await sync(world, since=from_ms(NOW_MS - 30 * DAY_MS))
    assert (again.total("adopted"), again.total("new"), again.total("repeated")) == (0, 0, 41)
    await assert_the_same(world)
    assert await fetch(world.store, "SELECT count(*) FROM risk_events") == [(0,)]


async def test_it_goes_on_where_it_stopped(world: World) -> None:
    history(world.venue)
    await sync(world)
    asked = len(world.server.asked("myTrades"))
    world.server.clock.advance(86_400)
    world.venue.place("SHIBUSDT", "buy", "1500000")
    report = await sync(world)
    assert (report.total("adopted"), report.total("new")) == (1, 2)
    assert report.markets[0].since is not None
    assert report.markets[0].since > from_ms(NOW_MS - DAY_MS)
    assert len(world.server.asked("myTrades")) == asked + 1
    await assert_the_same(world)


async def test_an_open_order_is_followed_to_its_end(world: World) -> None:
    """Also where it is older than what is read."""
    history(world.venue)
    await sync(world)
    (open_order,) = [o for o in world.venue.orders if o.status == "NEW"]
    world.server.clock.advance(10 * 86_400)
    world.venue._fill(open_order, open_order.amount, open_order.price, world.server.clock.now_ms(),
                      is_maker=True)  # fmt: skip
    async with world.exchange() as exchange:
        # As on a venue whose newest page does not reach back so far.
        exchange.private = replace(exchange.private, newest_without_time=False)
        await sync_account(world.store, world.account, exchange)
    await assert_the_same(world)


async def test_a_fill_whose_order_is_in_no_list(world: World) -> None:
    """It waits, and its order is asked for by itself."""
    world.venue.place("SHIBUSDT", "buy", "1500000")
    world.server.faults.add(Rule(Fault.EMPTY, "allOrders", times=9))
    report = await sync(world)
    assert (report.total("adopted"), report.total("waiting"), report.total("new")) == (1, 0, 1)
    await assert_the_same(world)


async def test_orders_of_ours_keep_their_ids(world: World) -> None:
    async with world.gateway() as gateway:
        request = OrderRequest(SHIB, Side.BUY, OrderType.LIMIT, Decimal(2_000_000), world.low())
        mine = await gateway.place(request)
    # Two programs with the same id, one after the other.
    for _ in range(2):
        world.venue.place("SHIBUSDT", "buy", "1500000").client_id = "grid-1"
    await sync(world)
    orders = await world.store.ledger.orders(world.account)
    assert [o.client_order_id for o in orders] == [mine.client_order_id, None, None]
    await assert_the_same(world)


async def test_an_order_that_nobody_heard_of_is_resolved(world: World) -> None:
    for query in ({"method": "POST"}, {"method": "GET"}):
        world.server.faults.add(Rule(Fault.STATUS_AFTER, "/order", query=query, times=99))
    async with world.gateway() as gateway:
        with pytest.raises(ExchangeUnavailable):
            await gateway.place(OrderRequest(SHIB, Side.BUY, OrderType.MARKET, Decimal(1_500_000)))
    world.server.faults.clear()
    report = await sync(world)
    assert report.resolved == 1
    await assert_the_same(world)


async def test_partial_fills_one_after_the_other(world: World) -> None:
    """The order is filled between one synchronisation and the next, part by part."""
    order = world.venue.place("SHIBUSDT", "buy", "3000000", str(world.low()))
    for part in (0, 1_000_000, 1_500_000, 500_000):
        if part:
            world.venue._fill(order, Decimal(part), order.price, world.server.clock.now_ms(),
                              is_maker=True)  # fmt: skip
        world.server.clock.advance(60)
        await sync(world)
        await assert_the_same(world)


async def test_markets_that_are_named_are_remembered(world: World) -> None:
    world.venue.place("SHIBUSDT", "buy", "1500000")
    world.venue.balances = {"USDT": Decimal(10)}
    assert (await sync(world)).markets == []
    # What is gone is not reported for ever, and what somebody sent stops nothing.
    world.venue.balances = {"VISITTHISPAGEANDWINATONCE": Decimal(7)}
    assert (await sync(world)).notes == [
        "not taken: 7 of VISITTHISPAGEANDWINATONCE: its name is too long"
    ]
    (gone,) = await world.store.ledger.reported_balances(world.account)
    assert (gone.balance.asset, gone.balance.total) == ("USDT", Decimal(0))
    world.venue.balances = {"USDT": Decimal(10)}
    named = await sync(world, markets=[SHIB])
    assert named.total("new") == 1
    world.venue.place("SHIBUSDT", "buy", "100000", "0.00005")
    later = await sync(world)
    assert later.total("adopted") == 1
    with pytest.raises(BadSymbol, match="does not list"):
        await sync(world, markets=["NOT/THERE"])


async def test_since_leaves_no_gap(world: World) -> None:
    """A start after the cursor is moved back to it; one before it reads again."""
    history(world.venue)
    recent = await sync(world, since=from_ms(NOW_MS - 2 * DAY_MS - 1))
    assert recent.total("new") == 17
    world.server.clock.advance(3 * 86_400)
    world.venue.place("SHIBUSDT", "buy", "1500000")
    world.server.clock.advance(3 * 86_400)
    report = await sync(world, since=from_ms(world.server.clock.now_ms()))
    assert report.total("new") == 2
    await sync(world, since=from_ms(NOW_MS - 30 * DAY_MS))
    await assert_the_same(world)


@pytest.mark.parametrize("path", ["allOrders", "myTrades", "v3/account"])
async def test_an_exchange_that_fails_on_the_way(world: World, path: str) -> None:
    history(world.venue)
    world.server.faults.add(Rule(Fault.STATUS, path, status=503, times=99))
    with pytest.raises(ExchangeUnavailable):
        await sync(world)
    world.server.faults.clear()
    await sync(world)
    await assert_the_same(world)


async def test_windows_are_stored_before_the_cursor_passes_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off after every single window but the last, it still gets there, and skips nothing."""
    history(world.venue, days=3, each=2)
    windows = private_pages._Walk.windows

    async def breaking(self: Any, since: Any, until: Any) -> AsyncIterator[Any]:
        found = [window async for window in windows(self, since, until)]
        yield found[0]
        if len(found) > 1:
            raise ExchangeUnavailable("binance", "the line broke")

    monkeypatch.setattr(private_pages._Walk, "windows", breaking)
    monkeypatch.setattr(private_pages, "DEFAULT_SPAN", timedelta(days=4))
    monkeypatch.setattr("kurisu.trading.sync.OVERLAP", timedelta(seconds=1))
    broken = 0
    async with world.exchange() as exchange:
        exchange.private = replace(
            exchange.private, newest_without_time=False, id_paging=False
        )  # fmt: skip
        while True:
            try:
                await sync_account(world.store, world.account, exchange, markets=[SHIB])
                break
            except ExchangeUnavailable:
                broken += 1
                assert broken < 20
    assert broken >= 7
    await assert_the_same(world)


PROGRAM = """
import asyncio, os, signal, sys
from kurisu.exchange.private import open_account
from kurisu.exchange.settings import ExchangeSettings
from kurisu.store.store import open_store
from kurisu.store.ledger import Ledger
from kurisu.trading.sync import sync_account

URL, OPTIONS, AFTER = sys.argv[1], eval(sys.argv[2]), int(sys.argv[3])
SETTINGS = ExchangeSettings(
    "binance", options=OPTIONS, env={"apiKey": "TEST_BINANCE_KEY", "secret": "TEST_BINANCE_SECRET"}
)
calls = 0

def killing(name):
    original = getattr(Ledger, name)
    async def call(self, *args, **more):
        global calls
        calls += 1
        if calls == AFTER:
            # In the middle of the statement, or of the transaction around it.
            asyncio.get_running_loop().call_later(0.004, os.kill, os.getpid(), signal.SIGKILL)
        return await original(self, *args, **more)
    setattr(Ledger, name, call)

for name in ("place", "apply_many", "move_cursor", "report_balances"):
    killing(name)

async def main():
    async with open_store(URL) as store, open_account(SETTINGS) as exchange:
        account = await store.accounts.find("binance:main")
        await sync_account(store, account, exchange)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_a_synchronisation_that_is_killed_again_and_again(world: World, url: str) -> None:
    history(world.venue)
    options = world.server.options("binance", timeout_on_exit=0)
    environment = {**os.environ, "PYTHONPATH": str(Path(kurisu.__file__).parents[1])}
    for after in (7, 23):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", PROGRAM, url, repr(options), str(after)],
            env=environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
    await sync(world)
    await assert_the_same(world)
    canceled = [
        o for o in await world.store.ledger.orders(world.account)
        if o.status is OrderStatus.CANCELED
    ]  # fmt: skip
    assert [o.filled for o in canceled] == [Decimal(700_000)]


async def test_a_database_that_restarts_on_the_way(
    world: World, servers: Servers, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these calls finds it down once: nothing is missing, nothing is there twice."""
    database = servers.server(tier)
    assert isinstance(database, RealServer)
    monkeypatch.setattr("kurisu.store.patience.FIRST_PAUSE_S", 0.05)
    restarted: set[str] = set()

    def restarting(name: str) -> None:
        original = getattr(Ledger, name)

        async def call(self: Ledger, *args: Any, **more: Any) -> Any:
            if name not in restarted:
                restarted.add(name)
                await asyncio.to_thread(database.stop)
                starts.append(asyncio.create_task(started()))
            return await original(self, *args, **more)

        monkeypatch.setattr(Ledger, name, call)

    starts: list[asyncio.Task[None]] = []

    async def started() -> None:
        await asyncio.sleep(0.1)
        await asyncio.to_thread(database.start)

    calls = {"orders", "place_many", "apply_many", "move_cursor", "enter"}
    for name in calls:
        restarting(name)
    history(world.venue)
    report = await sync(world)
    await asyncio.gather(*starts)
    assert restarted == calls
    assert report.total("adopted") == len(world.venue.orders)
    await assert_the_same(world)
    again = await sync(world)
    assert (again.total("adopted"), again.total("new"), again.total("events")) == (0, 0, 0)


async def test_reading_while_orders_are_placed(world: World) -> None:
    """Three readers and two gateways at once: no order is taken for somebody else's, none twice."""
    world.venue.slices = 2
    done = asyncio.Event()

    async def trade(side: Side) -> None:
        async with world.gateway() as gateway:
            for _ in range(4):
                await gateway.place(OrderRequest(SHIB, side, OrderType.MARKET, Decimal(1_500_000)))
                resting = OrderRequest(
                    SHIB, Side.BUY, OrderType.LIMIT, Decimal(2_000_000), world.low()
                )
                await gateway.cancel(await gateway.place(resting))

    async def read() -> None:
        while not done.is_set():
            await sync(world, markets=[SHIB])

    readers = [asyncio.create_task(read()) for _ in range(3)]
    await asyncio.gather(trade(Side.BUY), trade(Side.SELL))
    done.set()
    await asyncio.gather(*readers)
    await sync(world)
    await assert_the_same(world)
    orders = await world.store.ledger.orders(world.account)
    assert len(orders) == 16
    assert all(order.client_order_id for order in orders)
    # A reader may see an order filled before its fills; that is over when they come.
    events = await fetch(world.store, "SELECT DISTINCT event_type FROM risk_events")
    assert events in ([], [("fills_missing",)])
    assert await world.store.ledger.conditions(world.account) == []


async def test_deposits_and_withdrawals_explain_the_balances(world: World) -> None:
    venue = world.venue
    venue.balances = {}
    venue.clock.set(NOW_MS - 200 * DAY_MS, speed=0.0)
    venue.move("USDT", "50000")
    venue.clock.set(NOW_MS - 5 * DAY_MS, speed=0.0)
    venue.move("SHIB", "4000000")
    venue.place("SHIBUSDT", "sell", "1500000")
    venue.move("USDT", "-7.5", fee="0.25")
    venue.move("SHIB", "-1000", is_through=False)
    venue.clock.set(NOW_MS, speed=1.0)
    report = await sync(world)
    assert (report.transfers, report.notes) == (4, [])
    async with world.exchange() as exchange:
        found = await reconcile_account(world.store, world.account, exchange)
    assert found.comparison.agrees, found.comparison.differences
    # What was on its way comes later, under its old time.
    venue.withdrawals[-1]["status"] = 6
    venue.balances["SHIB"] -= 1000
    world.server.clock.advance(9 * 86_400)
    assert (await sync(world)).transfers == 1
    entries = await world.store.ledger.entries(world.account)
    assert [(row.entry.kind, row.entry.asset, row.entry.amount) for row in entries] == [
        ("deposit", "USDT", Decimal(50_000)), ("deposit", "SHIB", Decimal(4_000_000)),
        ("withdrawal", "USDT", Decimal("-7.5")), ("fee", "USDT", Decimal("-0.25")),
        ("withdrawal", "SHIB", Decimal(-1_000)),
    ]  # fmt: skip


async def test_a_transfer_that_contradicts_a_stored_one(world: World) -> None:
    """One id, two amounts: said, and no reason to leave the others out."""
    world.venue.move("USDT", "10")
    await sync(world)
    world.venue.deposits[0]["amount"] = "11.00000000"
    world.venue.move("SHIB", "5")
    report = await sync(world)
    assert report.transfers == 1
    (note,) = report.notes
    assert "entry_reference_names_one_entry" in note


async def test_an_exchange_that_does_not_tell_deposits(world: World) -> None:
    history(world.venue)
    world.server.faults.add(
        Rule(Fault.STATUS, "hisrec", status=401, times=9, body='{"code": -2015, "msg": "no"}')
    )
    report = await sync(world)
    assert report.total("new") == 41
    (note,) = report.notes
    assert "deposits and withdrawals were not read" in note


async def test_an_order_that_the_exchange_forgot_is_not_open_for_ever(world: World) -> None:
    """OKX forgets within hours what was canceled without a fill, Bybit within a day."""
    venue = world.venue
    venue.clock.set(NOW_MS - DAY_MS, speed=0.0)
    kept = venue.place("SHIBUSDT", "buy", "1000000", str(world.low()))
    gone = venue.place("SHIBUSDT", "buy", "2000000", str(world.low()))
    filled = venue.place("SHIBUSDT", "buy", "3000000", str(world.low()))
    venue._fill(filled, Decimal(700_000), filled.price, venue.clock.now_ms(), is_maker=True)
    await sync(world, markets=[SHIB])
    venue.orders = [order for order in venue.orders if order is kept]

    async def found() -> dict[str | None, OrderStatus]:
        orders = await world.store.ledger.orders(world.account)
        return {order.exchange_order_id: order.status for order in orders}

    soon = await sync(world, markets=[SHIB])
    assert (soon.notes, set((await found()).values())) == ([], {OrderStatus.OPEN})
    venue.clock.set(NOW_MS, speed=1.0)
    report = await sync(world, markets=[SHIB])
    assert [note.partition(": ")[0] for note in report.notes] == [
        f"order {gone.id} of binance:SHIB/USDT"
    ]
    # What it filled an exchange does not forget: that one is a difference for somebody to see.
    assert await found() == {
        str(kept.id): OrderStatus.OPEN,
        str(gone.id): OrderStatus.CANCELED,
        str(filled.id): OrderStatus.OPEN,
    }
    assert (await sync(world, markets=[SHIB])).notes == []
