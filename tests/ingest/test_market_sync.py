"""`markets` from what exchanges list: everything said once, nothing deleted."""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from exchange_server import binance
from exchange_server.server import ExchangeServer
from exchange_server.truth import Listing
from exchange_server.world import NOW_MS, Opener
from rows import fetch, value

from kurisu.domain.execution import Side
from kurisu.domain.listing import MarketListing
from kurisu.domain.market import MarketName
from kurisu.domain.order import Order, OrderType
from kurisu.errors import InvalidArgument
from kurisu.exchange.clock import from_ms
from kurisu.ingest.market_sync import sync_markets
from kurisu.store.market_sync import MarketChange, MarketSync
from kurisu.store.store import Store


@pytest.fixture(params=["plain"])
def tier(request: pytest.FixtureRequest) -> str:
    """A plain table on every tier."""
    return str(request.param)


async def sync(store: Store, opened: Opener, venue: str = "binance", **more: Any) -> MarketSync:
    async with opened(venue) as exchange:
        return await sync_markets(store, exchange, **more)


def listing(symbol: str, **more: Any) -> MarketListing:
    name = MarketName.of("okx", symbol)
    return MarketListing(name, symbol.replace("/", "-"), name.type, active=True, **more)


async def test_every_column_is_filled(store: Store, opened: Opener) -> None:
    report = await sync(store, opened)
    assert (report.added, report.changes, report.skipped) == (["binance:SHIB/USDT"], [], [])
    market = await store.markets.get("binance", "SHIB/USDT")
    assert (market.exchange_symbol, market.type, market.active) == ("SHIBUSDT", "spot", True)
    assert (market.price_tick, market.amount_tick) == (Decimal("1E-8"), Decimal(1))
    assert (market.price_precision, market.amount_precision) == (8, 0)
    assert (market.min_amount, market.max_amount) == (Decimal(1), Decimal(46116860414))
    assert (market.min_price, market.max_price) == (Decimal("1E-8"), Decimal(1000))
    assert (market.min_cost, market.max_cost) == (Decimal(5), Decimal(9_000_000))
    raw = await value(store, "SELECT meta->'info'->>'quoteAssetPrecision' FROM markets")
    assert raw == "8"


async def test_a_second_run_reports_and_changes_nothing(store: Store, opened: Opener) -> None:
    for venue in ("binance", "bitfinex", "kraken"):
        await sync(store, opened, venue)
    before = await fetch(store, "SELECT *, xmin::text FROM markets ORDER BY id")
    for venue in ("binance", "bitfinex", "kraken"):
        report = await sync(store, opened, venue)
        assert (report.listed, report.added, report.described, report.changes) == (1, [], [], [])
    assert await fetch(store, "SELECT *, xmin::text FROM markets ORDER BY id") == before


async def test_a_new_tick_and_a_halt_are_reported_old_and_new(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    await sync(store, opened)
    entry = binance.entry("SHIBUSDT", "SHIB", "USDT", tick="0.00000010", min_notional="5.0")
    server.binance.listings["SHIBUSDT"].entry = {**entry, "status": "BREAK"}
    report = await sync(store, opened)
    assert report.changes == [
        MarketChange("binance:SHIB/USDT", field, old, new)
        for field, old, new in (
            ("active", True, False),
            ("price_tick", Decimal("1E-8"), Decimal("1E-7")),
            ("price_precision", 8, 7),
            ("min_price", Decimal("1E-8"), Decimal("1E-7")),
        )
    ]
    assert report.unlisted == []


async def test_a_delisted_market_becomes_inactive_and_stays(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    server.binance.add(Listing("LUNABTC", binance.entry("LUNABTC", "LUNA", "BTC")))
    await sync(store, opened)
    gone = server.binance.listings["LUNABTC"]
    gone.delisted_ms, gone.gone = NOW_MS, True
    report = await sync(store, opened, quote="USDT")
    assert report.unlisted == []
    report = await sync(store, opened)
    assert report.unlisted == ["binance:LUNA/BTC"]
    assert report.changes == [MarketChange("binance:LUNA/BTC", "active", old=True, new=False)]
    assert [m.symbol for m in await store.markets.list(active=False)] == ["LUNA/BTC"]
    assert (await sync(store, opened)).changes == []
    gone.gone, gone.delisted_ms = False, None
    report = await sync(store, opened)
    assert report.changes == [MarketChange("binance:LUNA/BTC", "active", old=False, new=True)]


async def test_a_market_known_by_name_is_described_without_noise(
    store: Store, opened: Opener
) -> None:
    made = await store.markets.ensure("binance", "SHIB/USDT")
    report = await sync(store, opened)
    assert (report.added, report.described, report.changes) == ([], ["binance:SHIB/USDT"], [])
    assert (await store.markets.get("binance", "SHIB/USDT")).id == made.id


async def test_what_was_not_asked_for_is_not_called_delisted(store: Store) -> None:
    """An exchange set to spot only lists no swap, and one that lists nothing is out of order."""
    await store.markets.sync("okx", [listing("BTC/USDT"), listing("BTC/USDT:USDT", linear=True)])
    report = await store.markets.sync("okx", [listing("ETH/USDT")], skipped=[("BTC/USDT", "why")])
    assert report.added == ["okx:ETH/USDT"]
    assert report.changes == []
    assert "nothing of type swap" in report.notes[0]
    assert report.skipped == [("BTC/USDT", "why")]
    with pytest.raises(InvalidArgument, match="no market at all"):
        await store.markets.sync("okx", [])


async def test_meta_that_changes_is_stored_and_is_no_news(store: Store) -> None:
    await store.markets.sync("okx", [listing("BTC/USDT", meta={"info": {"last": "1\0.10"}})])
    stamp = await value(store, "SELECT updated_at FROM markets")
    report = await store.markets.sync("okx", [listing("BTC/USDT", meta={"info": {"last": "2"}})])
    assert report.changes == []
    assert await fetch(store, "SELECT meta->'info'->>'last', updated_at FROM markets") == [
        ("2", stamp)
    ]


async def test_filters_narrow_down(store: Store) -> None:
    await store.markets.sync(
        "okx",
        [listing("BTC/USDT"), listing("ETH/BTC"), listing("BTC/USDT:USDT"), listing("A/EUR")],
        quote="USDT",
    )
    await store.markets.ensure("kraken", "ETH/EUR")

    async def symbols(*given: Any, **more: Any) -> list[str]:
        return [market.symbol for market in await store.markets.list(*given, **more)]

    assert await symbols() == ["ETH/EUR", "BTC/USDT", "BTC/USDT:USDT"]
    assert await symbols("okx", type="swap") == ["BTC/USDT:USDT"]
    assert await symbols(base="ETH") == ["ETH/EUR"]
    assert await symbols(quote="USDT", type="spot") == ["BTC/USDT"]
    assert await symbols(active=False) == []


async def test_a_contract_size_that_orders_were_counted_with_stays(store: Store) -> None:
    """Another one would count every old fill anew; the rest of the entry is stored."""
    swap = partial(listing, "BTC/USDT:USDT", linear=True)
    await store.markets.sync("okx", [swap(contract_size=Decimal("0.01"))])
    report = await store.markets.sync("okx", [swap(contract_size=Decimal("0.001"))])
    assert [change.field for change in report.changes] == ["contract_size"]
    account = await store.accounts.add("okx", "main")
    await store.ledger.place(
        Order(
            market=MarketName.of("okx", "BTC/USDT:USDT"), side=Side.BUY, type=OrderType.MARKET,
            amount=Decimal(1), created_at=from_ms(NOW_MS), updated_at=from_ms(NOW_MS),
            client_order_id="a", account_id=account.id,
        )
    )  # fmt: skip
    for said, size in (("none", None), ("0.1", Decimal("0.10"))):
        tick = Decimal(f"{len(said)}")
        changed = [swap(contract_size=size, price_tick=tick)]
        report = await store.markets.sync("okx", changed, skipped=[("X/Y", "why")])
        reason = f"contract_size {said}: the ledger has orders with 0.001, which stays"
        assert report.skipped == [("X/Y", "why"), ("BTC/USDT:USDT", reason)]
        assert [change.field for change in report.changes] == ["price_tick"]
        assert (await store.ledger.terms(MarketName.of("okx", "BTC/USDT:USDT"))).contract_size == (
            Decimal("0.001")
        )
