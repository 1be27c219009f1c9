"""Contract wallets: fills, funding and transfers explain what the exchange says is there."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from exchange_server import binance_futures
from exchange_server.clock import DAY_MS
from exchange_server.world import NOW_MS
from trading.conftest import World

from kurisu.domain.balance import Entry, EntryKind
from kurisu.errors import InvalidArgument
from kurisu.exchange.clock import from_ms
from kurisu.trading.reconcile import ReconcileReport, reconcile_account
from kurisu.trading.sync import SyncReport, sync_account

PERP = "BTC/USDT:USDT"


async def sync(world: World, **more: Any) -> SyncReport:
    async with world.exchange() as exchange:
        return await sync_account(world.store, world.account, exchange, **more)


async def reconcile(world: World) -> ReconcileReport:
    async with world.exchange() as exchange:
        return await reconcile_account(world.store, world.account, exchange)


@pytest.fixture
def futures(world: World) -> binance_futures.BinanceFutures:
    """Trades of a month: longer than any window that the exchange takes, and more than a page."""
    world.venue.balances = {}
    found = world.server.binance.futures
    found.entries["BTCUSDT"] = binance_futures.entry("BTCUSDT", "BTC", "USDT")
    found.mark = Decimal("61000.7")
    found.wallet = Decimal("1000.5")
    clock = world.server.clock
    for day in range(30, 0, -1):
        clock.set(NOW_MS - day * DAY_MS, speed=0.0)
        for n in range(3):
            side = "sell" if (day + n) % 3 == 0 else "buy"
            found.trade("BTCUSDT", side, f"0.{n + 1:03d}", f"{60_000 + day * 7 + n}.1",
                        "-0.0005" if n else "0.01234567")  # fmt: skip
        found.pay("BTCUSDT", f"{'-' if day % 2 else ''}0.0{day}")
    clock.set(NOW_MS, speed=1.0)
    return found


async def opened(world: World) -> None:
    """What was there before."""
    entry = Entry(EntryKind.OPENING, "USDT", Decimal("1000.5"), from_ms(NOW_MS - 40 * DAY_MS))
    await world.store.ledger.enter(world.account, [entry])


async def test_a_contract_that_is_named_brings_its_wallet(
    world: World, futures: binance_futures.BinanceFutures
) -> None:
    await opened(world)
    report = await sync(world, markets=[PERP])
    assert (report.total("adopted"), report.total("new"), report.funding) == (90, 90, 30)
    assert report.notes == []
    (position,) = await world.store.ledger.positions(world.account)
    assert position.position.amount == futures.held["BTCUSDT"][0]
    # The exchange's total has unrealised PnL in it; what is settled is what agrees.
    found = await reconcile(world)
    assert found.markets == ["binance:BTC/USDT:USDT"]
    assert found.comparison.agrees, found.comparison.differences
    reported = await world.store.ledger.reported_balances(world.account)
    assert [(r.balance.asset, r.balance.total) for r in reported] == [
        ("USDT", futures.wallet.quantize(Decimal("1E-8")))
    ]
    ledger = {r.balance.asset: r.balance.total
              for r in await world.store.ledger.balances(world.account)}  # fmt: skip
    assert abs(ledger["USDT"] - futures.wallet) < Decimal("1E-12")
    futures.wallet += Decimal("0.000001")
    assert [d.key for d in (await reconcile(world)).comparison.differences] == ["USDT"]
    futures.wallet -= Decimal("0.000001")
    # Again, and nothing twice.
    again = await sync(world)
    assert (again.total("adopted"), again.total("new"), again.funding) == (0, 0, 0)
    futures.pay("BTCUSDT", "1.5")
    assert (await sync(world)).funding == 1


async def test_a_wallet_that_is_named_suggests_what_is_held(
    world: World, futures: binance_futures.BinanceFutures
) -> None:
    world.venue.balances = {"USDT": Decimal(7)}
    world.account = replace(world.account, meta={"wallets": ["spot", "linear"]})
    report = await sync(world)
    assert [m.market for m in report.markets] == ["binance:BTC/USDT:USDT"]
    assert report.total("new") == 90
    (reported,) = await world.store.ledger.reported_balances(world.account)
    assert reported.balance.total == (futures.wallet + 7).quantize(Decimal("1E-8"))
    world.account = replace(world.account, meta={"wallets": ["coins"]})
    with pytest.raises(InvalidArgument, match="no wallet 'coins'; it has spot, margin"):
        await sync(world)


@pytest.mark.usefixtures("futures")
async def test_without_contracts_the_wallet_is_not_asked_for(world: World) -> None:
    await sync(world)
    assert world.server.asked("fapi/v3/account") == []
