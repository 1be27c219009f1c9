"""Markets as exchanges list them -> the columns of `markets`."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from typing import Any

import pytest
from exchange_server import binance, data
from exchange_server.server import ExchangeServer
from exchange_server.truth import Listing
from exchange_server.world import Opener

from kurisu.domain.money import number_fault
from kurisu.errors import InvalidArgument
from kurisu.exchange.markets import (
    MarketListing,
    PrecisionMode,
    fraction_digits,
    listing,
    listings,
    precision_mode,
    tick_of,
)

SYMBOLS = data.binance_symbols()


def swap(**more: Any) -> dict[str, Any]:
    """CCXT's structure of a contract."""
    return {
        "id": "BTC-USD-SWAP", "symbol": "BTC/USD:BTC", "type": "swap", "active": True,
        "contract": True, "settle": "BTC", "linear": False, "contractSize": "100",
        "precision": {"price": "0.1", "amount": "1"},
        "limits": {"amount": {"min": "1", "max": None}, "price": {"min": None, "max": "0"},
                   "cost": {}},
        "info": {"instId": "BTC-USD-SWAP", "tickSz": "0.1"}, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "mode", "expected"),
    [
        ("0.00000001", "tick_size", (Decimal("1E-8"), 8)),
        ("1e-13", "tick_size", (Decimal("1E-13"), 13)),
        ("0.25", "tick_size", (Decimal("0.25"), 2)),
        ("0.50", "tick_size", (Decimal("0.5"), 1)),
        ("10", "tick_size", (Decimal(10), 0)),
        ("1", "tick_size", (Decimal(1), 0)),
        ("0", "tick_size", (None, None)),
        (None, "tick_size", (None, None)),
        ("1e-19", "tick_size", (None, None)),
        (8, "decimal_places", (Decimal("1E-8"), 8)),
        ("0", "decimal_places", (Decimal(1), 0)),
        (-2, "decimal_places", (Decimal(100), 0)),
        ("1.5", "decimal_places", (None, None)),
        (5, "significant_digits", (Decimal("1E-8"), 8)),
        (True, "tick_size", (None, None)),
        (0.1, "tick_size", (None, None)),
    ],
)
def test_ticks(value: object, mode: str, expected: tuple[Decimal | None, int | None]) -> None:
    assert tick_of(value, PrecisionMode(mode)) == expected


def test_every_precision_mode_of_ccxt() -> None:
    import ccxt

    assert precision_mode(ccxt.DECIMAL_PLACES) is PrecisionMode.DECIMAL_PLACES
    assert precision_mode(ccxt.SIGNIFICANT_DIGITS) is PrecisionMode.SIGNIFICANT_DIGITS
    assert precision_mode(ccxt.TICK_SIZE) is PrecisionMode.TICK_SIZE
    with pytest.raises(InvalidArgument):
        precision_mode(9)


def test_a_contract() -> None:
    made = listing("okx", swap(), PrecisionMode.TICK_SIZE)
    assert made == MarketListing(
        name=made.name, exchange_symbol="BTC-USD-SWAP", type="swap", active=True,
        settle_asset="BTC", linear=False, contract_size=Decimal(100), price_tick=Decimal("0.1"),
        amount_tick=Decimal(1), price_precision=1, amount_precision=0, min_amount=Decimal(1),
        volume_unit="base", meta=made.meta,
    )  # fmt: skip
    assert str(made.name) == "okx:BTC/USD:BTC"
    assert made.meta["info"] == {"instId": "BTC-USD-SWAP", "tickSz": "0.1"}
    assert listing("gate", swap(), PrecisionMode.TICK_SIZE).volume_unit == "contracts"


def test_what_cannot_be_stored_is_named() -> None:
    found, skipped = listings(
        "okx",
        {
            "BTC/USD:BTC": swap(),
            "ODD": swap(symbol="ODD"),
            "X/Y": swap(symbol="X/Y", type="index"),
            "L/O": swap(symbol="L/O", id="x" * 51),
        },
        PrecisionMode.TICK_SIZE,
    )
    assert [made.symbol for made in found] == ["BTC/USD:BTC"]
    assert {(entry.symbol, bool(entry.reason)) for entry in skipped} == {
        ("ODD", True), ("X/Y", True), ("L/O", True),
    }  # fmt: skip


async def test_binance(server: ExchangeServer, opened: Opener) -> None:
    async with opened("binance") as exchange:
        made = (await exchange.load_markets())[0]
    assert dataclasses.replace(made, meta={}) == MarketListing(
        name=made.name, exchange_symbol="SHIBUSDT", type="spot", active=True,
        price_tick=Decimal("0.00000001"), amount_tick=Decimal(1), price_precision=8,
        amount_precision=0, min_amount=Decimal(1), max_amount=Decimal(46116860414),
        min_price=Decimal("0.00000001"), max_price=Decimal(1000), min_cost=Decimal(5),
        max_cost=Decimal(9_000_000),
    )  # fmt: skip
    assert made.meta["info"]["filters"][0]["tickSize"] == "0.00000001"
    assert json.loads(json.dumps(made.meta)) == made.meta


async def test_bitfinex_counts_significant_digits(server: ExchangeServer, opened: Opener) -> None:
    async with opened("bitfinex") as exchange:
        made = (await exchange.load_markets())[0]
    assert made.precision_mode is PrecisionMode.SIGNIFICANT_DIGITS
    assert (made.price_tick, made.price_precision) == (Decimal("1E-8"), 8)
    assert made.min_amount == Decimal("0.00006")
    assert made.meta["precision"] == {"price": "5", "amount": "8"}
    steps = {"61234": "1", "0.51234": "0.00001", "0.000012345": "0.00000001"}
    assert {price: made.price_step_at(Decimal(price)) for price in steps} == {
        price: Decimal(step) for price, step in steps.items()
    }


async def test_kraken(server: ExchangeServer, opened: Opener) -> None:
    async with opened("kraken") as exchange:
        made = (await exchange.load_markets())[0]
    assert (made.symbol, made.exchange_symbol) == ("XRP/USDT", "XRPUSDT")
    assert (made.price_tick, made.amount_tick) == (Decimal("0.00001"), Decimal("1E-8"))
    assert (made.min_amount, made.min_cost) == (Decimal(5), Decimal("0.5"))
    assert made.price_step_at(Decimal("0.5")) == Decimal("0.00001")


@pytest.mark.skipif(SYMBOLS is None, reason="../shared/data is not there")
async def test_every_market_of_binance(server: ExchangeServer, opened: Opener) -> None:
    """1,695 markets of 2021, 433 of them no longer traded."""
    assert SYMBOLS is not None
    server.binance.listings.clear()
    for name, entry in SYMBOLS.items():
        server.binance.add(Listing(name, entry))
    async with opened("binance") as exchange:
        found = await exchange.load_markets()
        assert exchange.skipped == []
    assert len(found) == 1_695
    assert sum(not made.active for made in found) == 433
    by_id = {made.exchange_symbol: made for made in found}
    for name, entry in SYMBOLS.items():
        filters = {f["filterType"]: f for f in entry["filters"]}
        made = by_id[name]
        assert made.price_tick == Decimal(filters["PRICE_FILTER"]["tickSize"])
        assert made.amount_tick == Decimal(filters["LOT_SIZE"]["stepSize"])
        assert made.price_precision == fraction_digits(made.price_tick)
        numbers = [getattr(made, f.name) for f in dataclasses.fields(made)]
        assert not any(number_fault(n) for n in numbers if isinstance(n, Decimal))


def test_entries_of_the_server_are_like_the_real_ones() -> None:
    if SYMBOLS is None:
        pytest.skip("../shared/data is not there")
    made = binance.entry("SHIBUSDT", "SHIB", "USDT")
    assert set(made) - set(SYMBOLS["SHIBUSDT"]) == {"permissionSets"}
