"""Whatever an exchange gets wrong ends in the truth, or in an error that says what it was."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import ccxt
import pytest
from exchange_server.clock import MINUTE_MS
from exchange_server.fake import candle_rows
from exchange_server.faults import Fault, Rule
from exchange_server.server import ExchangeServer
from exchange_server.world import BARS, NOW_MS, START_MS, Opener

from kurisu.errors import (
    BadAnswer,
    BadSymbol,
    ConfigError,
    ExchangeError,
    ExchangeRefused,
    ExchangeUnavailable,
    NotOffered,
    RateLimited,
)
from kurisu.exchange.calls import RetryPolicy
from kurisu.exchange.candles import candle_pages
from kurisu.exchange.ccxt_adapter import CcxtExchange, open_exchange
from kurisu.exchange.clock import from_ms
from kurisu.exchange.exact import Reply
from kurisu.exchange.settings import ExchangeSettings
from kurisu.exchange.translate import retry_after_s, translate

#: What passes by itself: (rule, fewest seconds waited).
PASSING = [
    (Rule(Fault.STATUS, "klines", status=429, retry_after="7"), 7),
    (Rule(Fault.STATUS, "klines", status=429, retry_after="7", times=2), 14),
    (Rule(Fault.STATUS, "klines", status=429), 10),
    (Rule(Fault.STATUS, "klines", status=418, retry_after="120"), 120),
    (Rule(Fault.STATUS, "klines", status=418), 120),
    (Rule(Fault.STATUS, "klines", status=500, body="oops"), 0.25),
    (Rule(Fault.STATUS, "klines", status=502, body="<html>Bad Gateway</html>"), 0.25),
    (Rule(Fault.STATUS, "klines", status=503, times=3), 1.75),
    (Rule(Fault.STATUS, "klines", status=504), 0.25),
    (Rule(Fault.STATUS, "klines", status=200, body='{"code": 0}'), 0.25),
    (Rule(Fault.STATUS, "klines", status=200, body=""), 0.25),
    (Rule(Fault.STATUS, "klines", status=200, body="[[]]"), 0.25),
    (Rule(Fault.STATUS, "klines", status=200, body='[["x","1","1","1","1","1"]]'), 0.25),
    (Rule(Fault.TIMEOUT, "klines", seconds=1), 0.25),
    (Rule(Fault.CUT, "klines", times=2), 0.25),
    (Rule(Fault.CUT_BODY, "klines"), 0.25),
    (Rule(Fault.TRUNCATED_JSON, "klines"), 0.25),
    (Rule(Fault.HTML, "klines"), 0.25),
    (Rule(Fault.NOT_A_NUMBER, "klines"), 0.25),
]


def name_of(rule: object) -> str | None:
    if isinstance(rule, Rule):
        return f"{rule.fault}-{rule.status}-{rule.retry_after}-{rule.times}-{rule.body[:9]}"
    return None


async def candles(exchange: CcxtExchange, since_ms: int = START_MS) -> list[object]:
    return [
        tuple(row.values())
        async for page in candle_pages(exchange, "SHIB/USDT", "1m", from_ms(since_ms))
        for row in page.table.to_pylist()
    ]


@pytest.mark.parametrize(("rule", "waited_s"), PASSING, ids=name_of)
async def test_what_passes_is_sat_out(
    server: ExchangeServer, opened: Opener, slept: list[float], rule: Rule, waited_s: float
) -> None:
    server.faults.add(Rule(**{f: getattr(rule, f) for f in rule.__slots__}))
    since_ms = NOW_MS - 30 * MINUTE_MS
    settings = {"timeout_s": 0.5} if rule.fault is Fault.TIMEOUT else {}
    async with opened("binance", settings) as exchange:
        rows = await exchange.fetch_candles("SHIB/USDT", "1m", since_ms, 20)
        assert exchange.caller.retries == rule.times - (rule.fault is Fault.CUT)
    assert [row.time_ms for row in rows] == [
        bar.open_ms for bar in BARS if bar.open_ms >= since_ms
    ][:20]
    assert sum(slept) >= waited_s


@pytest.mark.parametrize(
    "fault", [Fault.DUPLICATE_ROWS, Fault.OVERLAP, Fault.EMPTY, Fault.SHORT], ids=str
)
@pytest.mark.parametrize("skip", [0, 2])
async def test_spoiled_pages_of_candles(
    server: ExchangeServer, opened: Opener, fault: Fault, skip: int
) -> None:
    server.faults.add(Rule(fault, "klines", skip=skip))
    async with opened("binance") as exchange:
        assert await candles(exchange) == candle_rows(BARS[:2_500])


@pytest.mark.parametrize("times", [3, 4, 5, 6, 7, 99])
async def test_an_exchange_that_has_nothing_for_a_while_is_not_believed(
    server: ExchangeServer, opened: Opener, times: int
) -> None:
    server.faults.add(Rule(Fault.EMPTY, "klines", skip=1, times=times))
    async with opened("binance") as exchange:
        if times < 7:
            assert await candles(exchange) == candle_rows(BARS[:2_500])
            return
        with pytest.raises(BadAnswer, match="it gave 1m candles of SHIB/USDT .* now it gives none"):
            await candles(exchange)


async def test_where_it_gave_candles_is_also_known_from_elsewhere(
    server: ExchangeServer, opened: Opener
) -> None:
    server.faults.add(Rule(Fault.EMPTY, "klines", times=99))
    async with opened("binance") as exchange:
        pages = candle_pages(
            exchange, "SHIB/USDT", "1m", from_ms(START_MS), traded_at=from_ms(BARS[9].open_ms)
        )
        with pytest.raises(BadAnswer, match="it gave 1m candles"):
            await anext(pages)


async def test_every_page_repeats_rows(server: ExchangeServer, opened: Opener) -> None:
    server.faults.add(Rule(Fault.DUPLICATE_ROWS, "klines", times=99))
    repeated = 0
    rows = 0
    async with opened("binance") as exchange:
        async for page in candle_pages(exchange, "SHIB/USDT", "1m", from_ms(START_MS)):
            repeated += page.repeated
            rows += page.table.num_rows
            assert not page.contradicted
    assert rows == 2_500
    assert repeated > 800


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (Rule(Fault.STATUS, "klines", status=503, times=99), ExchangeUnavailable),
        (Rule(Fault.STATUS, "klines", status=429, times=99, retry_after="1"), RateLimited),
        (Rule(Fault.HTML, "klines", times=99), BadAnswer),
        (Rule(Fault.TRUNCATED_JSON, "klines", times=99), BadAnswer),
    ],
    ids=name_of,
)
async def test_what_does_not_pass_is_raised_after_all_attempts(
    server: ExchangeServer, opened: Opener, rule: Rule, error: type[ExchangeError]
) -> None:
    added = server.faults.add(Rule(**{f: getattr(rule, f) for f in rule.__slots__}))
    async with opened("binance", policy=RetryPolicy(attempts=3)) as exchange:
        with pytest.raises(error, match="binance") as found:
            await exchange.fetch_candles("SHIB/USDT", "1m", START_MS, 20)
    assert type(found.value) is error
    assert found.value.__cause__ is not None
    assert added.hits == 3


async def test_a_long_ban_is_raised_at_once(server: ExchangeServer, opened: Opener) -> None:
    rule = server.faults.add(
        Rule(Fault.STATUS, "klines", status=418, retry_after="259200", times=99)
    )
    async with opened("binance") as exchange:
        with pytest.raises(RateLimited) as found:
            await exchange.fetch_candles("SHIB/USDT", "1m", START_MS, 20)
    assert found.value.retry_after_s == 259_200
    assert rule.hits == 1


async def test_bitfinex_says_too_many_requests_in_its_own_way(
    server: ExchangeServer, opened: Opener
) -> None:
    server.bitfinex.meter.limit = 5
    async with opened("bitfinex") as exchange:
        await exchange.load_markets()
        for _ in range(6):
            await exchange.fetch_candles("BTC/USD", "1m", START_MS, 20)
        assert exchange.caller.retries > 0


async def test_kraken_says_it_in_a_200(server: ExchangeServer, opened: Opener) -> None:
    server.kraken.meter.limit = 5
    async with opened("kraken") as exchange:
        await exchange.load_markets()
        for _ in range(6):
            await exchange.fetch_candles("XRP/USDT", "1m", NOW_MS - 600_000, 20)
        assert exchange.caller.retries > 0


async def test_a_market_that_is_not_listed(server: ExchangeServer, opened: Opener) -> None:
    async with opened("binance") as exchange:
        with pytest.raises(BadSymbol, match="SHIB/USDT"):
            await exchange.fetch_candles("SHIP/USDT", "1m", START_MS, 20)
    assert not server.asked("klines")


async def test_a_market_that_is_gone(server: ExchangeServer, opened: Opener) -> None:
    listing = server.binance.listings["SHIBUSDT"]
    async with opened("binance") as exchange:
        assert [found.active for found in await exchange.load_markets()] == [True]
        listing.delisted_ms = NOW_MS - 5 * MINUTE_MS
        assert [found.active for found in await exchange.load_markets(reload=True)] == [False]
        # Its history stays.
        assert len(await exchange.fetch_candles("SHIB/USDT", "1m", START_MS, 20)) == 20
        listing.gone = True
        with pytest.raises(BadSymbol):
            await exchange.fetch_candles("SHIB/USDT", "1m", START_MS, 20)
        assert not await exchange.load_markets(reload=True)
    assert exchange.caller.retries == 0


async def test_bitfinex_raises_500_for_everything(server: ExchangeServer, opened: Opener) -> None:
    async with opened("bitfinex") as exchange:
        await exchange.load_markets()
        server.bitfinex.listings.clear()
        with pytest.raises(BadSymbol):
            await exchange.fetch_candles("BTC/USD", "1m", START_MS, 20)
        assert exchange.caller.retries == 0


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, '{"code":-1102,"msg":"Mandatory parameter was not sent."}'),
        (401, '{"code":-2014,"msg":"API-key format invalid."}'),
        (451, "not available in your country"),
        (404, "<html>nothing here</html>"),
    ],
)
async def test_a_refusal_is_not_repeated(
    server: ExchangeServer, opened: Opener, status: int, body: str
) -> None:
    rule = server.faults.add(Rule(Fault.STATUS, "klines", status=status, body=body, times=9))
    async with opened("binance") as exchange:
        with pytest.raises(ExchangeRefused):
            await exchange.fetch_candles("SHIB/USDT", "1m", START_MS, 20)
    assert rule.hits == 1


async def test_timeframes_that_are_not_served(opened: Opener) -> None:
    async with opened("kraken") as exchange:
        with pytest.raises(NotOffered, match="3m"):
            await exchange.fetch_candles("XRP/USDT", "3m", START_MS, 20)


def test_exchanges_that_ccxt_does_not_have() -> None:
    with pytest.raises(NotOffered, match="binance"):
        CcxtExchange(ExchangeSettings("binanse"))


async def test_secrets_stay_secret(
    server: ExchangeServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SOME_KEY", "k3yk3yk3y")
    monkeypatch.setenv("SOME_SECRET", "s3cr3ts3cr3t")
    caplog.set_level(logging.DEBUG)
    server.faults.add(
        Rule(Fault.STATUS, "klines", status=401, body='{"code":-2014,"msg":"no k3yk3yk3y"}')
    )
    settings = ExchangeSettings(
        "binance",
        env={"apiKey": "SOME_KEY", "secret": "SOME_SECRET"},
        options=server.options("binance", timeout_on_exit=0),
    )
    async with open_exchange(settings) as exchange:
        assert exchange.client.apiKey == "k3yk3yk3y"
        await exchange.load_markets()
        with pytest.raises(ExchangeRefused) as found:
            await exchange.fetch_candles("SHIB/USDT", "1m", START_MS, 20)
    seen = f"{found.value} {exchange!r} {settings!r} {caplog.text}"
    assert "***" in str(found.value)
    assert "k3y" not in seen
    assert "s3cr3t" not in seen
    assert "signature" not in seen


def test_a_token_of_a_stream_stays_secret() -> None:
    """KuCoin's streams are opened with one in the address, which CCXT repeats in its errors."""
    error = ccxt.RequestTimeout("Connection to wss://x/endpoint?token=t0k3n&connectId=private lost")
    found = str(translate("kucoin", error).error)
    assert "token=***&connectId" in found
    assert "t0k3n" not in found


@pytest.mark.parametrize(("body", "passes"), [("<!DOCTYPE html>", True), ('{"code":0}', False)])
def test_a_page_that_forbids_is_not_the_exchange(body: str, passes: bool) -> None:
    """Gemini's and Crypto.com's classes take any 403 for a refusal; mostly it is a proxy's page."""
    error = ccxt.PermissionDenied(f"gemini 403 Forbidden {body}")
    error.kurisu_reply = Reply(403, {}, body)
    assert translate("gemini", error).passes is passes


def test_a_secret_that_is_not_there() -> None:
    settings = ExchangeSettings("binance", env={"apiKey": "KURISU_NO_SUCH_VARIABLE"})
    with pytest.raises(ConfigError, match="KURISU_NO_SUCH_VARIABLE"):
        CcxtExchange(settings)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("12", 12.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("Sat, 02 Nov 2024 00:00:30 GMT", 30.0),
        ("Sat, 02 Nov 2024 00:00:30", None),
        ("soon", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, datetime(2024, 11, 2, tzinfo=UTC)) == seconds


async def test_a_stream_that_sends_rubbish(server: ExchangeServer, opened: Opener) -> None:
    async with opened("binance", streams=True) as exchange:
        await exchange.load_markets()
        watched = asyncio.create_task(exchange.client.watch_trades("SHIB/USDT"))
        for _ in range(200):
            if server.streams.subscribed:
                break
            await asyncio.sleep(0.02)
        for session in list(server.streams.sessions):
            server.run(session.socket.send_str('{"e":"trade","p":NaN'))
        with pytest.raises(Exception, match="not JSON"):
            await asyncio.wait_for(watched, 5)
