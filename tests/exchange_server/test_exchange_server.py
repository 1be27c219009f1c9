"""Unmodified CCXT works against the server: what it reads is the truth, as far as CCXT is exact."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import ccxt.async_support
import ccxt.pro
import pytest

from exchange_server import binance, bitfinex, data, kraken
from exchange_server.clock import MINUTE_MS
from exchange_server.faults import Fault, Rule
from exchange_server.server import ExchangeServer
from exchange_server.truth import Listing, Series, Tape

START_MS = 1_635_811_200_000  # 2021-11-02T00:00:00Z
BARS = data.generated_bars(1, START_MS, 3_000)
TICKS = data.generated_ticks(2, START_MS, 3_000)
NOW_MS = START_MS + 2_500 * MINUTE_MS + 30_000


@pytest.fixture
def server() -> Iterator[ExchangeServer]:
    with ExchangeServer(NOW_MS) as started:
        started.binance.add(
            Listing(
                "SHIBUSDT", binance.entry("SHIBUSDT", "SHIB", "USDT"),
                Series(BARS), Tape(TICKS),
            )
        )  # fmt: skip
        started.bitfinex.add(
            Listing("tBTCUSD", bitfinex.entry("BTCUSD"), Series(BARS), Tape(TICKS))
        )
        started.kraken.add(
            Listing("XRPUSDT", kraken.entry("XRPUSDT", "XRP", "USDT"), Series(BARS),
                    Tape([tick._replace(id=None) for tick in TICKS]))
        )  # fmt: skip
        yield started


@asynccontextmanager
async def client(server: ExchangeServer, kind: Any, **more: Any) -> AsyncIterator[Any]:
    venue = kind.__name__
    # Exact numbers, no waiting: the rate limit has a test of its own.
    options = server.options(venue, number=str, rateLimit=1, timeout_on_exit=0, **more)
    exchange = kind(options)
    try:
        yield exchange
    finally:
        await exchange.close()


async def test_binance_markets_and_time(server: ExchangeServer) -> None:
    async with client(server, ccxt.async_support.binance) as exchange:
        markets = await exchange.load_markets()
        assert markets["SHIB/USDT"]["precision"]["price"] == "0.00000001"
        assert await exchange.fetch_time() == NOW_MS


async def test_binance_markets_with_credentials_asks_for_the_wallet_too(
    server: ExchangeServer,
) -> None:
    async with client(server, ccxt.async_support.binance, apiKey="k", secret="s") as exchange:
        assert "SHIB/USDT" in await exchange.load_markets()
    assert server.asked("sapi/v1/capital/config/getall")


async def test_binance_candles_end_with_the_open_one(server: ExchangeServer) -> None:
    async with client(server, ccxt.async_support.binance) as exchange:
        rows = await exchange.fetch_ohlcv("SHIB/USDT", "1m", START_MS + 2_400 * MINUTE_MS, 1_000)
    assert len(rows) == 101
    assert rows[-1][0] == START_MS + 2_500 * MINUTE_MS
    for row, bar in zip(rows[:-1], BARS[2_400:2_500], strict=True):
        assert [row[0], *map(Decimal, row[1:])] == list(bar)
    assert Decimal(rows[-1][5]) != BARS[2_500].volume


async def test_binance_candles_of_a_day_are_made_of_minutes(server: ExchangeServer) -> None:
    async with client(server, ccxt.async_support.binance) as exchange:
        rows = await exchange.fetch_ohlcv("SHIB/USDT", "1d", START_MS, 10)
    assert len(rows) == 2
    assert Decimal(rows[0][5]) == sum(bar.volume for bar in BARS[:1_440])


async def test_binance_aggregate_trades_keep_the_hour_rule(server: ExchangeServer) -> None:
    async with client(server, ccxt.async_support.binance) as exchange:
        trades = await exchange.fetch_trades("SHIB/USDT", START_MS, 1_000)
        assert trades[0]["id"] == "900000"
        with pytest.raises(ccxt.BadRequest):
            await exchange.fetch_trades("SHIB/USDT", START_MS, 10, {"until": START_MS + 3_600_001})
        with pytest.raises(ccxt.BadRequest):
            await exchange.fetch_trades("SHIB/USDT", START_MS, 10, {"fromId": 900_000})
        more = await exchange.fetch_trades("SHIB/USDT", None, 1_000, {"fromId": 900_500})
        assert more[0]["id"] == "900500"


async def test_binance_unknown_symbol(server: ExchangeServer) -> None:
    async with client(server, ccxt.async_support.binance) as exchange:
        await exchange.load_markets()
        server.binance.listings["SHIBUSDT"].delisted_ms = NOW_MS
        server.binance.listings["SHIBUSDT"].gone = True
        with pytest.raises(ccxt.BadSymbol):
            await exchange.fetch_ohlcv("SHIB/USDT")


async def test_binance_counts_weight_and_refuses(server: ExchangeServer) -> None:
    server.binance.meter.limit = 30
    async with client(server, ccxt.async_support.binance) as exchange:
        await exchange.load_markets()
        for _ in range(5):
            await exchange.fetch_ohlcv("SHIB/USDT")
        with pytest.raises(ccxt.DDoSProtection, match="429"):
            await exchange.fetch_ohlcv("SHIB/USDT")
        for _ in range(5):
            with pytest.raises(ccxt.DDoSProtection):
                await exchange.fetch_ohlcv("SHIB/USDT")
        with pytest.raises(ccxt.DDoSProtection, match="418"):
            await exchange.fetch_ohlcv("SHIB/USDT")
        assert len(server.binance.meter.breaches) == 7
        server.clock.advance(60)
        await exchange.fetch_ohlcv("SHIB/USDT")


async def test_bitfinex_speaks_json_numbers(server: ExchangeServer) -> None:
    async with client(server, ccxt.async_support.bitfinex) as exchange:
        markets = await exchange.load_markets()
        assert markets["BTC/USD"]["precision"] == {"price": 5, "amount": 8}
        rows = await exchange.fetch_ohlcv("BTC/USD", "1m", START_MS, 10_000)
        trades = await exchange.fetch_trades("BTC/USD", START_MS, 10_000)
    assert len(rows) == 2_501
    assert {trade["id"] for trade in trades} == {
        str(tick.id) for tick in TICKS if tick.time_ms <= NOW_MS
    }
    # CCXT alone loses digits here, which is why Kurisu decodes by itself.
    assert any(
        Decimal(row[5]) != bar.volume for row, bar in zip(rows[:2_500], BARS[:2_500], strict=True)
    )


async def test_kraken_has_the_newest_720_candles_only(server: ExchangeServer) -> None:
    async with client(server, ccxt.async_support.kraken) as exchange:
        assert "XRP/USDT" in await exchange.load_markets()
        rows = await exchange.fetch_ohlcv("XRP/USDT", "1m", START_MS, 1_000)
    assert len(rows) == 720
    assert rows[-1][0] == START_MS + 2_500 * MINUTE_MS


async def test_kraken_trades_follow_the_cursor(server: ExchangeServer) -> None:
    seen: list[Any] = []
    async with client(server, ccxt.async_support.kraken) as exchange:
        cursor = "0"
        while True:
            page = await exchange.fetch_trades("XRP/USDT", None, 1_000, {"since": cursor})
            if not page:
                break
            seen += page
            cursor = page[-1]["info"][-1]
    visible = [tick for tick in TICKS if tick.time_ms <= NOW_MS]
    assert [Decimal(trade["amount"]) for trade in seen] == [tick.amount for tick in visible]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule(Fault.STATUS, "time", status=503), ccxt.ExchangeNotAvailable),
        (Rule(Fault.STATUS, "time", status=429, retry_after="7"), ccxt.DDoSProtection),
        (Rule(Fault.STATUS, "time", status=418, retry_after="7"), ccxt.DDoSProtection),
        (Rule(Fault.TIMEOUT, "time", seconds=0.6), ccxt.RequestTimeout),
        # Twice: aiohttp asks a second time by itself.
        (Rule(Fault.CUT, "time", times=2), ccxt.ExchangeNotAvailable),
        (Rule(Fault.CUT_BODY, "time"), ccxt.ExchangeError),
    ],
    ids=lambda value: value.fault if isinstance(value, Rule) else None,
)
async def test_faults_of_the_connection(
    server: ExchangeServer, rule: Rule, expected: type[Exception]
) -> None:
    server.faults.add(rule)
    async with client(server, ccxt.async_support.binance, timeout=300) as exchange:
        with pytest.raises(expected):
            await exchange.fetch_time()
        assert rule.hits == rule.times
        assert await exchange.fetch_time() == NOW_MS


@pytest.mark.parametrize(
    ("fault", "length"), [(Fault.EMPTY, 0), (Fault.SHORT, 50), (Fault.DUPLICATE_ROWS, 134)]
)
async def test_faults_of_the_rows(server: ExchangeServer, fault: Fault, length: int) -> None:
    server.faults.add(Rule(fault, "klines"))
    async with client(server, ccxt.async_support.binance) as exchange:
        await exchange.load_markets()
        rows = await exchange.publicGetKlines(
            {"symbol": "SHIBUSDT", "interval": "1m", "startTime": START_MS, "limit": 100}
        )
    assert len(rows) == length


@pytest.mark.parametrize("fault", [Fault.HTML, Fault.TRUNCATED_JSON])
async def test_ccxt_hands_a_broken_answer_on_as_text(server: ExchangeServer, fault: Fault) -> None:
    """Which is why Kurisu looks at what comes back."""
    server.faults.add(Rule(fault, "klines"))
    async with client(server, ccxt.async_support.binance) as exchange:
        answer = await exchange.publicGetKlines({"symbol": "SHIBUSDT", "interval": "1m"})
    assert isinstance(answer, str)


async def test_a_candle_that_changes_after_its_close(server: ExchangeServer) -> None:
    bar = BARS[2_490]
    server.binance.listings["SHIBUSDT"].series.revise(
        bar.open_ms, NOW_MS + 60_000, bar._replace(volume=Decimal(1))
    )
    async with client(server, ccxt.async_support.binance) as exchange:
        assert (await exchange.fetch_ohlcv("SHIB/USDT", "1m", bar.open_ms, 1))[0][5] == "1.00000000"
        server.clock.advance(61)
        row = (await exchange.fetch_ohlcv("SHIB/USDT", "1m", bar.open_ms, 1))[0]
    assert Decimal(row[5]) == bar.volume


async def test_watch_candles_and_trades(server: ExchangeServer) -> None:
    async with client(server, ccxt.pro.binance) as exchange:
        await exchange.load_markets()
        candles = asyncio.create_task(exchange.watch_ohlcv("SHIB/USDT", "1m"))
        trades = asyncio.create_task(exchange.watch_trades("SHIB/USDT"))
        await wait_for(server, {"shibusdt@kline_1m", "shibusdt@trade"})
        assert server.send_candle("SHIBUSDT", "1m", BARS[0], closed=True) == 1
        assert server.send_trade("SHIBUSDT", TICKS[0]) == 1
        assert (await asyncio.wait_for(candles, 5))[-1][0] == BARS[0].open_ms
        assert (await asyncio.wait_for(trades, 5))[-1]["id"] == str(TICKS[0].id)
        server.run(server.streams.ping())
        await exchange.un_watch_trades("SHIB/USDT")
        await wait_for(server, {"shibusdt@kline_1m"})
        assert any(session.pongs for session in server.streams.sessions)


async def test_watch_aggregate_trades_and_a_cut(server: ExchangeServer) -> None:
    async with client(server, ccxt.pro.binance) as exchange:
        await exchange.load_markets()
        watch = asyncio.create_task(exchange.watch_trades("SHIB/USDT", params={"name": "aggTrade"}))
        await wait_for(server, {"shibusdt@aggTrade"})
        server.send_agg_trade("SHIBUSDT", TICKS[0])
        assert (await asyncio.wait_for(watch, 5))[-1]["amount"] == f"{TICKS[0].amount:.8f}"
        watch = asyncio.create_task(exchange.watch_trades("SHIB/USDT", params={"name": "aggTrade"}))
        await asyncio.sleep(0.05)
        server.cut_streams()
        with pytest.raises(ccxt.NetworkError):
            await asyncio.wait_for(watch, 5)


async def wait_for(server: ExchangeServer, streams: set[str]) -> None:
    """Until exactly these streams are listened to."""
    for _ in range(200):
        if server.streams.subscribed == streams:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"listening to {server.streams.subscribed}, not {streams}")
