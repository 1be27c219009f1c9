"""Markets: found by name, created from a unified symbol."""

from __future__ import annotations

import asyncio

import pytest
from engines import CONCURRENT_TIERS
from rows import fetch

from kurisu.errors import InvalidArgument, NotFound
from kurisu.store.store import Store


@pytest.fixture(params=["plain"])
def tier(request: pytest.FixtureRequest) -> str:
    """A plain table on every tier."""
    return str(request.param)


async def test_a_market_is_created_once(store: Store) -> None:
    first = await store.markets.ensure("binance", "BTC/USDT")
    assert await store.markets.ensure("binance", "BTC/USDT") == first
    assert await store.markets.get("binance", "BTC/USDT") == first
    assert (first.exchange, first.symbol, str(first)) == (
        "binance", "BTC/USDT", "binance:BTC/USDT",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("symbol", "row"),
    [
        ("BTC/USDT", ("BTC", "USDT", None, "spot", True)),
        ("BTC/USDT:USDT", ("BTC", "USDT", "USDT", "swap", True)),
        ("BTC/USD:BTC-261225", ("BTC", "USD", "BTC", "future", True)),
        ("BTC/USD:BTC-261225-60000-C", ("BTC", "USD", "BTC", "option", True)),
    ],
)
async def test_what_the_symbol_says_is_stored(
    store: Store, symbol: str, row: tuple[object, ...]
) -> None:
    await store.markets.ensure("okx", symbol)
    columns = "base_asset, quote_asset, settle_asset, type, active"
    assert await fetch(store, f"SELECT {columns} FROM markets") == [row]


async def test_the_same_symbol_of_two_exchanges_is_two_markets(store: Store) -> None:
    assert (await store.markets.ensure("binance", "BTC/USDT")).id != (
        await store.markets.ensure("okx", "BTC/USDT")
    ).id


async def test_a_market_that_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(NotFound, match="binance:BTC/USDT is not in the database"):
        await store.markets.get("binance", "BTC/USDT")


async def test_a_name_that_is_none_is_refused(store: Store) -> None:
    for attempt in (store.markets.get, store.markets.ensure):
        with pytest.raises(InvalidArgument, match="BASE/QUOTE"):
            await attempt("binance", "BTCUSDT")
    assert await store.markets.list() == []


async def test_markets_are_listed_by_name(store: Store) -> None:
    for exchange, symbol in (("okx", "ETH/USDT"), ("binance", "ETH/USDT"), ("okx", "BTC/USDT")):
        await store.markets.ensure(exchange, symbol)
    assert [str(m) for m in await store.markets.list()] == [
        "binance:ETH/USDT", "okx:BTC/USDT", "okx:ETH/USDT",
    ]  # fmt: skip
    assert [str(m) for m in await store.markets.list("okx")] == ["okx:BTC/USDT", "okx:ETH/USDT"]


async def test_a_market_that_is_no_longer_listed_says_so(store: Store) -> None:
    await store.markets.ensure("binance", "LUNA/USDT")
    await fetch(store, "UPDATE markets SET active = false")
    assert not (await store.markets.get("binance", "LUNA/USDT")).active
    assert [market.active for market in await store.markets.list()] == [False]


@pytest.mark.parametrize("tier", CONCURRENT_TIERS, indirect=True)
async def test_many_who_create_it_at_once_get_the_same(store: Store) -> None:
    found = await asyncio.gather(*(store.markets.ensure("binance", "A/B") for _ in range(8)))
    assert len({market.id for market in found}) == 1
