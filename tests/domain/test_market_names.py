"""How markets are named, and what a unified symbol says."""

from __future__ import annotations

import pytest

from kurisu.domain.market import MARKET_TYPES, MarketName
from kurisu.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "base", "quote", "settle", "kind"),
    [
        ("binance:BTC/USDT", "BTC", "USDT", None, "spot"),
        ("bybit:BTC/USDT:USDT", "BTC", "USDT", "USDT", "swap"),
        ("bitmex:BTC/USD:BTC", "BTC", "USD", "BTC", "swap"),
        ("okx:BTC/USD:BTC-261225", "BTC", "USD", "BTC", "future"),
        ("deribit:BTC/USD:BTC-261225-60000-C", "BTC", "USD", "BTC", "option"),
        ("okx:XRP/USD:XRP-250328-0.5-P", "XRP", "USD", "XRP", "option"),
        ("binance:1000PEPE/USDT:USDT", "1000PEPE", "USDT", "USDT", "swap"),
        ("gate:PEPE(OLD)/USDT", "PEPE(OLD)", "USDT", None, "spot"),
        ("mexc:$WIF/USDT", "$WIF", "USDT", None, "spot"),
    ],
)
def test_a_symbol_says_what_it_is(
    text: str, base: str, quote: str, settle: str | None, kind: str
) -> None:
    name = MarketName.parse(text)
    assert (name.base, name.quote, name.settle, name.type) == (base, quote, settle, kind)
    assert kind in MARKET_TYPES


@pytest.mark.parametrize("text", ["binance:BTC/USDT", "okx:BTC/USD:BTC-261225"])
def test_a_name_is_written_as_it_is_read(text: str) -> None:
    assert str(MarketName.parse(text)) == text
    exchange, _, symbol = text.partition(":")
    assert MarketName.of(exchange, symbol) == MarketName.parse(text)


@pytest.mark.parametrize(
    "symbol", ["BTCUSDT", "BTC-USDT", "BTC/", "/USDT", "BTC/USDT:", "", "A/B/C"]
)
def test_what_is_no_unified_symbol_is_refused_with_an_example(symbol: str) -> None:
    with pytest.raises(InvalidArgument, match="BASE/QUOTE, e.g. 'BTC/USDT'"):
        MarketName.of("binance", symbol)


@pytest.mark.parametrize("exchange", ["", "Binance", "binance us", "b" * 51, "binance\n"])
def test_what_is_no_exchange_is_refused_with_an_example(exchange: str) -> None:
    with pytest.raises(InvalidArgument, match="CCXT's id, e.g. 'binance'"):
        MarketName.of(exchange, "BTC/USDT")


@pytest.mark.parametrize("symbol", ["B" * 21 + "/USDT", "BTC/" + "U" * 21, "BTC/USDT\n"])
def test_what_the_columns_cannot_hold_is_refused(symbol: str) -> None:
    with pytest.raises(InvalidArgument):
        MarketName.of("binance", symbol)


def test_a_name_without_an_exchange_is_refused_with_an_example() -> None:
    with pytest.raises(InvalidArgument, match="EXCHANGE:SYMBOL, e.g. 'binance:BTC/USDT'"):
        MarketName.parse("BTC/USDT")
