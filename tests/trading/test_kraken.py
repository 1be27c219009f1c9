"""A venue with other habits: ids found in lists, pages newest first, whole seconds, all markets."""

from __future__ import annotations

from decimal import Decimal

import pytest
import pytest_asyncio
from exchange_server.clock import DAY_MS
from exchange_server.faults import Fault, Rule
from exchange_server.kraken_account import KrakenAccount
from exchange_server.server import ExchangeServer
from exchange_server.world import NOW_MS
from trading.conftest import KEY, SECRET, World

from kurisu.domain.balance import Entry, EntryKind
from kurisu.domain.execution import Fee, Side
from kurisu.domain.order import OrderStatus, OrderType
from kurisu.errors import InsufficientFunds, OrderRejected
from kurisu.exchange.clock import from_ms
from kurisu.store.store import Store
from kurisu.trading.reconcile import reconcile_account
from kurisu.trading.rules import OrderRequest
from kurisu.trading.sync import sync_account

XRP = "XRP/USDT"
START = {"USDT": Decimal(10**9), "XRP": Decimal(10**9)}


@pytest.fixture
def venue(server: ExchangeServer, monkeypatch: pytest.MonkeyPatch) -> KrakenAccount:
    found = server.kraken.account
    found.balances = dict(START)
    monkeypatch.setenv(KEY, found.key)
    monkeypatch.setenv(SECRET, found.secret)
    return found


@pytest_asyncio.fixture
async def world(server: ExchangeServer, venue: KrakenAccount, store: Store) -> World:
    account = await store.accounts.add("kraken", "main", {"apiKey": KEY, "secret": SECRET})
    return World(server, store, account)


def request(price: str | None = None) -> OrderRequest:
    if price is None:
        return OrderRequest(XRP, Side.BUY, OrderType.MARKET, Decimal(1_000_000))
    return OrderRequest(XRP, Side.BUY, OrderType.LIMIT, Decimal(1_000_000), Decimal(price))


async def test_orders_are_placed_found_and_canceled(world: World, venue: KrakenAccount) -> None:
    world.server.faults.add(
        Rule(Fault.STATUS_AFTER, "AddOrder", status=502, body="<html>Bad Gateway</html>")
    )
    async with world.gateway() as gateway:
        lost = await gateway.place(request())
        assert (lost.status, lost.filled) == (OrderStatus.CLOSED, Decimal(1_000_000))
        resting = await gateway.place(request("0.00001"))
        assert resting.status is OrderStatus.OPEN
        assert len(resting.client_order_id or "") == 32
        assert (await gateway.cancel(resting)).status is OrderStatus.CANCELED
        world.server.faults.add(Rule(Fault.STATUS, "AddOrder", status=520))
        with pytest.raises(OrderRejected, match="never got there"):
            await gateway.place(request())
        venue.balances["USDT"] = Decimal(1)
        with pytest.raises(InsufficientFunds):
            await gateway.place(request("0.00001"))
    assert len(venue.orders) == 2
    assert len(world.server.asked("AddOrder")) == 4
    (row,) = await world.store.ledger.executions(world.account)
    assert row.execution.fees == (Fee("USDT", venue.fills[0].fee),)


async def test_an_account_is_read_and_agrees(world: World, venue: KrakenAccount) -> None:
    """160 orders, 130 of them within four seconds: pages of fifty, newest first."""
    clock = world.server.clock
    for n in range(160):
        clock.set(NOW_MS - 3 * DAY_MS + (n * 31 if n < 130 else n * 900_000), speed=0.0)
        venue.place("XRPUSDT", "buy" if n % 3 else "sell", str(1_000 + n))
    partly = venue.place("XRPUSDT", "buy", "5000", "0.00001")
    venue.fill(partly, Decimal(2_000), Decimal("0.00001"))
    clock.set(NOW_MS, speed=1.0)
    await world.store.ledger.enter(
        world.account,
        [Entry(EntryKind.DEPOSIT, a, t, from_ms(NOW_MS - 9 * DAY_MS)) for a, t in START.items()],
    )
    async with world.exchange() as exchange:
        report = await sync_account(world.store, world.account, exchange, markets=[XRP])
        assert (report.total("adopted"), report.total("new")) == (161, 161)
        found = await reconcile_account(world.store, world.account, exchange, markets=[XRP])
    assert found.comparison.agrees, found.comparison.differences[:5]
    assert (found.comparison.orders, found.comparison.executions) == (161, 161)
    executions = await world.store.ledger.executions(world.account)
    assert {(r.execution.trade_id, r.execution.price, r.execution.amount) for r in executions} == {
        (f.id, f.price, f.amount) for f in venue.fills
    }
    # An order that the exchange does not know is told, not taken for an error.
    async with world.exchange() as exchange:
        assert await exchange.fetch_order(XRP, exchange_order_id="OXXXXX-AAAAA-BBBBBB") is None
        assert (
            await exchange.cancel_order(XRP, exchange_order_id="O9-A-B", client_order_id=None)
        ) is None
