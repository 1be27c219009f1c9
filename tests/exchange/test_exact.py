"""Every digit that the exchange sends arrives, through REST and WebSocket."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from exchange_server import binance, bitfinex, data, kraken
from exchange_server.clock import MINUTE_MS
from exchange_server.fake import candle_rows, trade_rows
from exchange_server.server import ExchangeServer
from exchange_server.truth import Bar, Listing, Series, Tape, Tick
from exchange_server.world import BARS, NOW_MS, START_MS, TICKS, Opener

from kurisu.exchange.candles import candle_pages
from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.exchange.clock import from_ms
from kurisu.exchange.exact import (
    BrokenAnswer,
    _gate_candles,
    decode,
    exact_class,
    text_number,
    whole,
)
from kurisu.exchange.port import TradeQuery
from kurisu.exchange.settings import ExchangeSettings
from kurisu.exchange.streams import _kline
from kurisu.exchange.trades import trade_pages

SYMBOLS = {"binance": "SHIB/USDT", "bitfinex": "BTC/USD", "kraken": "XRP/USDT"}
SHIB = data.shib_1m()
needs_files = pytest.mark.skipif(SHIB is None, reason="../shared/data is not there")


async def all_candles(exchange: CcxtExchange, symbol: str, since_ms: int) -> list[Any]:
    """What the walk gives, as tuples."""
    return [
        row
        async for page in candle_pages(exchange, symbol, "1m", from_ms(since_ms))
        for row in zip(*(page.table[name].to_pylist() for name in page.table.column_names),
                       strict=True)
    ]  # fmt: skip


async def all_trades(exchange: CcxtExchange, symbol: str, since_ms: int) -> list[dict[str, Any]]:
    return [
        row
        async for page in trade_pages(exchange, symbol, from_ms(since_ms))
        for row in page.table.to_pylist()
    ]


@pytest.mark.parametrize("venue", ["binance", "bitfinex"])
async def test_generated_candles_of_nineteen_digits(opened: Opener, venue: str) -> None:
    assert any(len(bar.volume.as_tuple().digits) >= 18 for bar in BARS)
    async with opened(venue) as exchange:
        rows = await all_candles(exchange, SYMBOLS[venue], START_MS)
    assert rows == candle_rows(BARS[:2_500])


@needs_files
async def test_real_candles_of_shib(server: ExchangeServer, opened: Opener) -> None:
    assert SHIB is not None
    bars = SHIB[:6_000]
    server.binance.listings["SHIBUSDT"].series = Series(list(bars))
    server.clock.set(bars[-1].open_ms + 90_000)
    async with opened("binance") as exchange:
        rows = await all_candles(exchange, "SHIB/USDT", bars[0].open_ms)
    assert rows == candle_rows(bars)
    assert max(bar.volume for bar in bars) > 10**11


@needs_files
async def test_real_candles_of_doge_with_outages(server: ExchangeServer, opened: Opener) -> None:
    bars = data.doge_btc_1m(15_000)
    assert bars is not None
    outage = next(
        i for i in range(1, len(bars)) if bars[i].open_ms - bars[i - 1].open_ms > MINUTE_MS
    )
    bars = bars[outage - 1_500 : outage + 1_500]
    server.binance.add(
        Listing("DOGEBTC", binance.entry("DOGEBTC", "DOGE", "BTC"), Series(list(bars)))
    )
    server.clock.set(bars[-1].open_ms + 90_000)
    async with opened("binance") as exchange:
        rows = await all_candles(exchange, "DOGE/BTC", bars[0].open_ms)
    assert rows == candle_rows(bars)
    assert min(bar.low for bar in bars) < Decimal("0.00001")


@needs_files
async def test_real_candles_of_bitfinex(server: ExchangeServer, opened: Opener) -> None:
    """49,884 gaps and volumes like 8e-8 in the whole file; two days of it here."""
    bars = data.bitfinex_btcusd_1m(60_000)
    assert bars is not None
    small = next(i for i, bar in enumerate(bars) if bar.volume < Decimal("0.0000001"))
    bars = bars[small - 1_000 : small + 1_000]
    server.bitfinex.listings["tBTCUSD"].series = Series(list(bars))
    server.clock.set(bars[-1].open_ms + 90_000)
    async with opened("bitfinex") as exchange:
        rows = await all_candles(exchange, "BTC/USD", bars[0].open_ms)
    assert rows == candle_rows(bars)


async def test_json_numbers_of_bitfinex_keep_every_digit(
    server: ExchangeServer, opened: Opener
) -> None:
    bar = Bar(
        START_MS, Decimal("0.12345678901234567"), Decimal("0.22345678901234569"),
        Decimal("1e-7"), Decimal("0.2"), Decimal("98765432109876.54321"),
    )  # fmt: skip
    tick = Tick(2**63 + 11, START_MS, Decimal("61234.500000000001"), Decimal("7.0000000000001e-8"),
                "sell")  # fmt: skip
    listing = server.bitfinex.listings["tBTCUSD"]
    listing.series, listing.tape = Series([bar]), Tape([tick])
    async with opened("bitfinex") as exchange:
        rows = await exchange.fetch_candles("BTC/USD", "1m", START_MS, 10)
        answer = await exchange.fetch_trades("BTC/USD", TradeQuery(since_ms=START_MS))
    assert [Decimal(text or "") for text in rows[0][1:]] == list(bar[1:])
    row = answer.rows[0]
    assert row.trade_id == str(2**63 + 11)
    assert (Decimal(row.price), Decimal(row.amount), row.side) == (tick.price, tick.amount, "sell")


@pytest.mark.parametrize("venue", ["binance", "bitfinex", "kraken"])
async def test_generated_trades(server: ExchangeServer, opened: Opener, venue: str) -> None:
    async with opened(venue) as exchange:
        rows = await all_trades(exchange, SYMBOLS[venue], START_MS)
    tape = TICKS
    if venue == "binance":
        tape = server.binance.aggregates["SHIBUSDT"].tape.ticks
    visible = [tick for tick in tape if tick.time_ms < NOW_MS - 2_000]
    found = [(row["time"], row["side"], row["price"], row["amount"]) for row in rows]
    if venue == "kraken":
        # Without ids the order inside a millisecond is not defined.
        assert sorted(found, key=str) == sorted(trade_rows(visible), key=str)
    else:
        assert found == trade_rows(visible)
        assert [row["trade_id"] for row in rows] == [str(tick.id) for tick in visible]
    assert len({row["trade_id"] for row in rows}) == len(rows)
    assert all(row["cost"] == row["price"] * row["amount"] for row in rows)


async def test_times_of_kraken_are_cut_exactly(server: ExchangeServer, opened: Opener) -> None:
    """int(float("1541390792.7639999") * 1000), which is what CCXT does, is a millisecond off."""
    times = [1_541_390_792_000 + ms for ms in range(1_000)]
    assert any(int(float(f"{t // 1000}.{t % 1000:03d}9999") * 1000) != t for t in times)
    ticks = [Tick(None, t, Decimal(1), Decimal(1), "buy", t * 1_000_000 + 999_900) for t in times]
    server.kraken.listings["XRPUSDT"].tape = Tape(ticks)
    async with opened("kraken") as exchange:
        answer = await exchange.fetch_trades(
            "XRP/USDT", TradeQuery(cursor=str(times[0] * 1_000_000 - 1))
        )
    assert [row.time_ms for row in answer.rows] == times
    assert answer.cursor == str(ticks[-1].time_ns)


async def test_the_cursor_of_kraken_is_no_trade_id(server: ExchangeServer, opened: Opener) -> None:
    """CCXT puts `last` where newer rows have their id."""
    async with opened("kraken") as exchange:
        answer = await exchange.fetch_trades("XRP/USDT", TradeQuery(cursor="1"))
    assert {row.trade_id for row in answer.rows} == {None}
    listing = server.kraken.listings["XRPUSDT"]
    listing.tape = Tape(TICKS)
    async with opened("kraken") as exchange:
        answer = await exchange.fetch_trades("XRP/USDT", TradeQuery(cursor="1"))
    # As a set: CCXT sorts ids as text.
    assert {row.trade_id for row in answer.rows} == {str(t.id) for t in TICKS[:1_000]}


async def test_streams_keep_every_digit(server: ExchangeServer, opened: Opener) -> None:
    bar = BARS[5]
    assert str(float(bar.volume)) != str(bar.volume)
    async with opened("binance", streams=True) as exchange:
        await exchange.load_markets()
        client = exchange.client
        watched = asyncio.create_task(client.watch_ohlcv("SHIB/USDT", "1m"))
        trades = asyncio.create_task(client.watch_trades("SHIB/USDT"))
        await listening(server, 2)
        server.send_candle("SHIBUSDT", "1m", bar, closed=True)
        server.send_trade("SHIBUSDT", TICKS[0])
        candle = (await asyncio.wait_for(watched, 5))[-1]
        trade = (await asyncio.wait_for(trades, 5))[-1]
    assert candle[0] == bar.open_ms
    assert [Decimal(text) for text in candle[1:]] == list(bar[1:])
    assert (Decimal(trade["price"]), Decimal(trade["amount"])) == (
        TICKS[0].price, TICKS[0].amount,
    )  # fmt: skip


async def listening(server: ExchangeServer, streams: int) -> None:
    for _ in range(200):
        if len(server.streams.subscribed) == streams:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"listening to {server.streams.subscribed}")


def test_decode() -> None:
    assert decode('{"a":1e-7,"b":[1.10,12345678901234567890]}') == {
        "a": "1e-7", "b": ["1.10", 12345678901234567890],
    }  # fmt: skip
    for text in ("[NaN]", "[Infinity]", "[1,"):
        with pytest.raises(ValueError, match=r".+"):
            decode(text)


def test_whole_numbers_and_times() -> None:
    row = ["1541390792.763", 7, "1e3", "x", None, "1700000000123456789", True]
    assert whole(row, 0, None, 1000) == 1_541_390_792_763
    assert [whole(row, i) for i in range(1, 8)] == [
        7, 1000, None, None, 1700000000123456789, 1, None,
    ]  # fmt: skip
    assert [text_number(row, i, "-") for i in (0, 1, 4, 6, 9)] == [row[0], "7", "-", "-", "-"]


def test_times_by_every_name_that_ccxt_has_for_them() -> None:
    import ccxt.async_support

    client = exact_class(ccxt.async_support.gate)
    row = {"a": None, "b": "1541390792.7639999", "c": 1541390792764999999, "d": ""}
    assert client.safe_timestamp_2(row, "a", "b") == 1541390792763
    assert client.safe_timestamp_n(row, ["d", "a", "b"]) == 1541390792763
    assert client.safe_integer_product_2(row, "d", "c", 0.000001) == 1541390792764
    assert client.safe_integer_product(row, "c", 0.000001) == 1541390792764
    assert client.safe_timestamp_2(row, "a", "d", 7) == 7
    # KuCoin's trades: a double would have another millisecond.
    assert client.safe_integer_2(row, "a", "c") == row["c"]
    assert client.safe_integer_n(row, ["d", "c"]) == row["c"]
    assert client.safe_integer_2(row, "a", "d", 7) == 7


def test_raw_numbers_of_the_server_are_the_truth() -> None:
    """The server itself must not round, or nothing here would prove anything."""
    assert bitfinex.number(Decimal("1.2345678901234567E-7")) == "1.2345678901234567e-7"
    assert binance.eight(Decimal("448123456789.12345678")) == "448123456789.12345678"
    tick = Tick(None, 1, Decimal("0.1"), Decimal(1), "buy", 1_541_390_792_763_999_900)
    assert kraken.trade(tick)[2] == "1541390792.7639999"


def test_an_id_that_ccxt_makes_is_none() -> None:
    """MEXC gives none, and CCXT's is the same for trades that are alike."""
    import ccxt.async_support

    exchange = exact_class(ccxt.async_support.mexc)({"number": str})
    market = exchange.safe_market_structure({"id": "X_Y", "symbol": "X/Y:Y", "swap": True})
    row = {"p": 31199, "v": 18, "T": 1, "O": 3, "M": 2, "t": START_MS}
    assert [trade["id"] for trade in exchange.parse_trades([row, row], market)] == [None, None]


#: venue: a candle of an inverse contract, by REST and on the stream: 12 contracts, 34 base units.
INVERSE: dict[str, tuple[Any, Any]] = {
    "binance": (
        [60000, "1", "1", "1", "1", "12", 119999, "34", 5, "6", "7", "0"],
        '{"e":"kline","k":{"t":60000,"s":"X","i":"1m","o":"1","h":"1","l":"1","c":"1","v":"12",'
        '"q":"34","x":true}}',
    ),
    "bybit": (
        ["60000", "1", "1", "1", "1", "12", "34"],
        {"start": 60000, "open": "1", "high": "1", "low": "1", "close": "1", "volume": "12",
         "turnover": "34"},
    ),
    "bitget": (["60000", "1", "1", "1", "1", "12", "34"],) * 2,
}  # fmt: skip


@pytest.mark.parametrize("venue", INVERSE)
def test_volumes_of_contracts_are_of_one_unit_by_rest_and_on_the_stream(venue: str) -> None:
    import ccxt.pro

    exchange = exact_class(getattr(ccxt.pro, venue))({"number": str})
    market = exchange.safe_market_structure(
        {"id": "X", "symbol": "X/Y:X", "type": "swap", "swap": True, "contract": True,
         "linear": False, "inverse": True}
    )  # fmt: skip
    rest, stream = INVERSE[venue]
    row = [60000, "1", "1", "1", "1", "34"]
    assert exchange.parse_ohlcv(rest, market) == row
    if isinstance(stream, str):
        ((symbol, update),) = _kline({"X": "X/Y:X"}, {"X/Y:X": market}, stream, "1m")
        assert (symbol, list(update.row)) == ("X/Y:X", row)
    else:
        assert exchange.parse_ws_ohlcv(stream, market) == row


def test_gate_counts_contracts_where_it_says_the_quote_currency_of_spot() -> None:
    message = {"channel": "futures.candlesticks", "result": [{"n": "1m_X_Y", "v": 12, "a": "34"}]}
    assert _gate_candles(message)["result"][0]["v"] == 12
    message["channel"] = "spot.candlesticks"
    assert _gate_candles(message)["result"][0]["v"] == "34"


def test_what_a_contract_costs_is_not_rounded_on_the_way() -> None:
    """CCXT multiplies with 1 / price, cut off after 18 digits."""
    exchange = CcxtExchange(ExchangeSettings("binance"))
    exchange.client.markets = {
        "X/Y:X": {"contract": True, "inverse": True, "contractSize": "100"},
        "X/Y": {"contract": False, "contractSize": None},
    }
    trade = {"timestamp": 1, "id": "1", "side": "buy", "price": "0.3", "amount": "700000000",
             "cost": "233333333333.3333331", "info": {}}  # fmt: skip
    assert exchange.trade_row(trade, "X/Y:X").cost == "233333333333.333333333333333333"
    assert exchange.trade_row(trade, "X/Y").cost is None


def test_an_answer_that_is_not_json_is_not_taken_for_a_refusal() -> None:
    """Crypto.com's class finds no code of success in it; a refusal would end the whole backfill."""
    import ccxt.async_support

    exchange = exact_class(ccxt.async_support.cryptocom)()
    for body in ("<html>maintenance</html>", '{"code":0,"result":{"da'):
        with pytest.raises(BrokenAnswer, match="not JSON"):
            exchange.handle_errors(200, "OK", "", "GET", {}, body, None, {}, None)


def test_an_answer_that_is_not_json_is_read_by_a_class_that_reads_it() -> None:
    """Gemini's currencies are in a page, and some venues answer a cancellation with nothing."""
    import ccxt.async_support

    exchange = exact_class(ccxt.async_support.gemini)()
    for method, body in (("GET", "<html>\n</html>"), ("DELETE", ""), ("DELETE", '"17"')):
        exchange.handle_errors(200, "OK", "", method, {}, body, None, {}, None)
    with pytest.raises(BrokenAnswer):
        exact_class(ccxt.async_support.cryptocom)().handle_errors(
            200, "OK", "", "GET", {}, "<html>\n</html>", None, {}, None
        )
