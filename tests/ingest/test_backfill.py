"""Backfill: after it, what is stored is what the exchange serves, and every hole says why."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import pytest
from exchange_server import binance, data
from exchange_server.clock import MINUTE_MS
from exchange_server.fake import candle_rows
from exchange_server.faults import Fault, Rule
from exchange_server.server import ExchangeServer
from exchange_server.truth import Bar, Listing, Series
from exchange_server.world import BARS, NOW_MS, START_MS, Opener
from rows import coverage, fetch

from kurisu.domain.timeframe import TIMEFRAMES
from kurisu.errors import InvalidArgument, NotOffered, RetentionConflict, WriteRefused
from kurisu.exchange.calls import RetryPolicy
from kurisu.exchange.clock import from_ms
from kurisu.ingest.backfill import Backfill, BackfillReport
from kurisu.store.store import Store

MINUTE: Final = timedelta(minutes=1)
SINCE: Final = from_ms(START_MS)
CLOSED: Final = from_ms(NOW_MS - NOW_MS % MINUTE_MS)


@pytest.fixture(params=["plain"])
def tier(request: pytest.FixtureRequest) -> str:
    """Nothing of this depends on the engine; see test_every_engine."""
    return str(request.param)


async def backfill(
    store: Store,
    opened: Opener,
    symbols: Sequence[str] = ("SHIB/USDT",),
    *,
    venue: str = "binance",
    timeframe: str = "1m",
    since: datetime | None = SINCE,
    until: datetime | None = None,
    policy: RetryPolicy | None = None,
    **more: Any,
) -> BackfillReport:
    async with opened(venue, policy=policy) as exchange:
        markets = [await store.markets.ensure(venue, symbol) for symbol in symbols]
        work = Backfill(
            store, exchange, TIMEFRAMES[timeframe],
            grace=timedelta(seconds=2), concurrency=4, **more,
        )  # fmt: skip
        return await work.run(markets, since, until)


async def stored(store: Store, symbol: str, exchange: str = "binance", name: str = "1m") -> Any:
    return await fetch(
        store,
        "SELECT time, open, high, low, close, volume FROM ohlcv JOIN markets m ON m.id = market_id "
        "WHERE symbol = :symbol AND exchange = :exchange AND timeframe = :name ORDER BY time",
        symbol=symbol, exchange=exchange, name=name,
    )  # fmt: skip


def closed(bars: Sequence[Bar], now_ms: int = NOW_MS) -> list[tuple[object, ...]]:
    """The truth: what had closed at `now_ms`, the grace included."""
    return candle_rows([bar for bar in bars if bar.open_ms + MINUTE_MS + 2_000 <= now_ms])


async def test_what_is_stored_is_what_the_exchange_serves(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    report = await backfill(store, opened)
    assert await stored(store, "SHIB/USDT") == closed(BARS)
    assert report.is_done
    (one,) = report.markets
    assert (one.inserted, one.updated, one.unchanged) == (2_500, 0, 0)
    market = await store.markets.get("binance", "SHIB/USDT")
    assert await coverage(store, market) == [(SINCE, CLOSED, "complete", "rest")]


async def test_a_second_run_asks_for_no_candle(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    await backfill(store, opened)
    server.requests.clear()
    report = await backfill(store, opened)
    assert server.asked("klines") == []
    assert report.is_done
    assert report.markets[0].requested == 0


#: Without the waits of real life; the clock of the server moves instead.
QUICK: Final = RetryPolicy(attempts=4, first_wait_s=0.01, longest_wait_s=0.01)


async def known(store: Store, symbol: str, exchange: str = "binance") -> Sequence[tuple[Any, ...]]:
    return await coverage(store, await store.markets.get(exchange, symbol))


def minutes(since: int, until: int, status: str) -> tuple[datetime, datetime, str, str]:
    return (SINCE + since * MINUTE, SINCE + until * MINUTE, status, "rest")


def add_market(server: ExchangeServer, base: str, bars: Sequence[Bar]) -> Listing:
    return server.binance.add(
        Listing(f"{base}USDT", binance.entry(f"{base}USDT", base, "USDT"), Series(list(bars)))
    )


def without(bars: Sequence[Bar], *spans: tuple[int, int]) -> list[Bar]:
    """The bars but for these minutes."""
    gone = {START_MS + m * MINUTE_MS for since, until in spans for m in range(since, until)}
    return [bar for bar in bars if bar.open_ms not in gone]


@pytest.mark.parametrize(
    "rule",
    [
        Rule(Fault.STATUS, status=429, retry_after="3", times=3),
        Rule(Fault.STATUS, status=418, retry_after="7", times=2),
        Rule(Fault.STATUS, status=503, times=3),
        Rule(Fault.STATUS, status=502, body="<html>", times=3),
        Rule(Fault.CUT, times=3),
        Rule(Fault.CUT_BODY, times=3),
        Rule(Fault.TRUNCATED_JSON, times=3),
        Rule(Fault.HTML, times=3),
        Rule(Fault.NOT_A_NUMBER, times=3),
        Rule(Fault.EMPTY, times=2),
        Rule(Fault.EMPTY, times=1, skip=1),
        Rule(Fault.DUPLICATE_ROWS, times=50),
        Rule(Fault.OVERLAP, times=50),
        Rule(Fault.SHORT, times=50),
    ],
    ids=lambda rule: f"{rule.fault.value}-{rule.status}-{rule.skip}",
)
async def test_faults_that_pass_leave_no_trace(
    store: Store, server: ExchangeServer, opened: Opener, rule: Rule
) -> None:
    rule = replace(rule, path="klines", hits=0)
    server.faults.add(rule)
    report = await backfill(store, opened, policy=QUICK)
    assert rule.hits > 0
    assert report.is_done
    assert report.markets[0].problems == []
    assert await stored(store, "SHIB/USDT") == closed(BARS)
    assert await known(store, "SHIB/USDT") == [(SINCE, CLOSED, "complete", "rest")]
    assert server.binance.meter.breaches == []


async def test_a_page_that_never_comes_is_failed_and_comes_with_the_next_run(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """The second page is refused for good; those around it are stored."""
    at = {"startTime": str(START_MS + 1_000 * MINUTE_MS)}
    server.faults.add(Rule(Fault.STATUS, path="klines", query=at, times=10**6, body="sorry"))
    report = await backfill(store, opened, policy=QUICK)
    (one,) = report.markets
    assert not report.is_done
    assert [(p.since, p.until, p.status) for p in one.problems] == [
        minutes(1_000, 2_000, "failed")[:3]
    ]
    assert "HTTP 500" in one.problems[0].reason
    assert await known(store, "SHIB/USDT") == [
        minutes(0, 1_000, "complete"), minutes(1_000, 2_000, "failed"),
        minutes(2_000, 2_500, "complete"),
    ]  # fmt: skip
    assert await stored(store, "SHIB/USDT") == closed(BARS[:1_000] + BARS[2_000:])
    server.faults.clear()
    server.requests.clear()
    report = await backfill(store, opened)
    assert report.is_done
    assert report.markets[0].inserted == 1_000
    assert [request.query["startTime"] for request in server.asked("klines")] == [at["startTime"]]
    assert await stored(store, "SHIB/USDT") == closed(BARS)


async def test_an_exchange_that_is_gone_fails_the_rest_at_once(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    server.faults.add(Rule(Fault.STATUS, path="klines", skip=1, times=10**6))
    report = await backfill(store, opened, policy=replace(QUICK, attempts=1))
    assert not report.is_done
    assert await known(store, "SHIB/USDT") == [
        minutes(0, 1_000, "complete"), minutes(1_000, 2_500, "failed"),
    ]  # fmt: skip
    assert len(server.asked("klines")) < 12


async def test_maintenance_is_an_outage(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    body = '{"code": -1, "msg": "System is under maintenance."}'
    server.faults.add(Rule(Fault.STATUS, path="klines", skip=1, times=10**6, status=503, body=body))
    report = await backfill(store, opened, policy=replace(QUICK, attempts=1))
    assert [p.status for p in report.markets[0].problems] == ["outage"]
    assert "maintenance" in report.markets[0].problems[0].reason
    assert await known(store, "SHIB/USDT") == [
        minutes(0, 1_000, "complete"), minutes(1_000, 2_500, "outage"),
    ]  # fmt: skip


async def test_no_trades_of_one_market_and_an_outage_of_all(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """Minutes 500-560 are missing everywhere, 900-930 only of one market. Asked alone, too."""
    down = (500, 560)
    quiet = without(BARS, down, (900, 930))
    server.binance.listings["SHIBUSDT"].series = Series(quiet)
    add_market(server, "BTC", without(BARS, down))
    for symbols in (["SHIB/USDT"], ["BTC/USDT", "SHIB/USDT"]):
        report = await backfill(store, opened, symbols)
        assert await stored(store, "SHIB/USDT") == closed(quiet)
        assert await known(store, "SHIB/USDT") == [
            minutes(0, 500, "complete"), minutes(*down, "outage"), minutes(560, 900, "complete"),
            minutes(900, 930, "empty"), minutes(930, 2_500, "complete"),
        ]  # fmt: skip
        assert not report.is_done
    # Asked for again, with nothing around it, it stays what it is.
    await backfill(store, opened, ["BTC/USDT", "SHIB/USDT"])
    assert minutes(*down, "outage") in await known(store, "SHIB/USDT")
    assert await known(store, "BTC/USDT") == [
        minutes(0, 500, "complete"), minutes(*down, "outage"), minutes(560, 2_500, "complete"),
    ]  # fmt: skip
    # Nor is it forgotten when it is asked for in vain.
    server.faults.add(Rule(Fault.STATUS, path="klines", status=503, times=10**6))
    report = await backfill(store, opened, ["SHIB/USDT"], policy=QUICK)
    assert [p.status for p in report.markets[0].problems] == ["failed"]
    server.faults.clear()
    shib = server.binance.listings["SHIBUSDT"]
    shib.delisted_ms, shib.gone = NOW_MS, True
    report = await backfill(store, opened, ["SHIB/USDT"], policy=QUICK)
    assert "does not list SHIB/USDT" in report.markets[0].problems[0].reason
    assert minutes(*down, "outage") in await known(store, "SHIB/USDT")


async def test_candles_that_are_late_for_all_markets_are_an_outage_until_they_come(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """The exchange answers, and its newest candles are 200 minutes old: nobody stopped trading."""
    late = BARS[:2_300]  # not the open candle either, which would prove the hole
    server.binance.listings["SHIBUSDT"].series = Series(late)
    bitcoin = add_market(server, "BTC", late)
    report = await backfill(store, opened, ["BTC/USDT", "SHIB/USDT"])
    assert not report.is_done
    for symbol in ("BTC/USDT", "SHIB/USDT"):
        until = (await known(store, symbol))[-1][1]
        assert until == SINCE + 2_490 * MINUTE  # what follows is too young to be judged
        assert await known(store, symbol) == [
            minutes(0, 2_300, "complete"), (SINCE + 2_300 * MINUTE, until, "outage", "rest"),
        ]  # fmt: skip
    bitcoin.series = Series(BARS)
    server.binance.listings["SHIBUSDT"].series = Series(BARS)
    assert (await backfill(store, opened, ["BTC/USDT", "SHIB/USDT"])).is_done
    for symbol in ("BTC/USDT", "SHIB/USDT"):
        assert await stored(store, symbol) == closed(BARS)
        assert {row[2] for row in await known(store, symbol)} == {"complete"}


async def test_a_minute_that_every_market_misses_is_no_outage(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    both = without(BARS, (500, 501), (900, 901))
    server.binance.listings["SHIBUSDT"].series = Series(both)
    add_market(server, "BTC", both)
    report = await backfill(store, opened, ["BTC/USDT", "SHIB/USDT"])
    assert report.is_done
    assert {row[2] for row in await known(store, "SHIB/USDT")} == {"complete", "empty"}


async def test_a_sleepy_market_is_not_called_down(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """Every other minute has no trades, of this market and of others; nobody is asked."""
    sleepy = [bar for i, bar in enumerate(BARS) if i % 2 == 0 or i % 7 == 0]
    server.binance.listings["SHIBUSDT"].series = Series(sleepy)
    add_market(server, "BTC", sleepy)
    report = await backfill(store, opened)
    assert report.is_done
    assert await stored(store, "SHIB/USDT") == closed(sleepy)
    assert {row[2] for row in await known(store, "SHIB/USDT")} == {"complete", "empty"}
    assert {request.query["symbol"] for request in server.asked("klines")} == {"SHIBUSDT"}


async def test_a_market_that_was_listed_later_and_one_that_is_gone(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    add_market(server, "NEW", BARS[1_700:])
    gone = add_market(server, "OLD", BARS)
    gone.delisted_ms = START_MS + 700 * MINUTE_MS
    report = await backfill(store, opened, ["NEW/USDT", "OLD/USDT"])
    assert report.is_done
    assert await known(store, "NEW/USDT") == [
        minutes(0, 1_700, "empty"), minutes(1_700, 2_500, "complete"),
    ]  # fmt: skip
    assert await stored(store, "OLD/USDT") == closed(BARS[:700])
    old = report.markets[1]
    assert [s.status for s in old.left] == ["young"]
    assert (old.bars["complete"], old.bars["empty"] + old.bars["young"]) == (700, 1_800)

    gone.gone = True
    server.clock.advance(3_600)
    server.requests.clear()
    report = await backfill(store, opened, ["OLD/USDT"])
    assert not report.is_done
    assert server.asked("klines") == []
    assert "does not list OLD/USDT" in report.markets[0].problems[0].reason
    assert [row[2] for row in await known(store, "OLD/USDT")] == ["complete", "empty", "failed"]


async def test_a_candle_that_changed_after_its_close_is_revised_and_remembered(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    bar = BARS[2_498]
    early = bar._replace(volume=Decimal(1), close=bar.low)
    server.binance.listings["SHIBUSDT"].series.revise(bar.open_ms, NOW_MS + 60_000, early)
    await backfill(store, opened)
    assert (await stored(store, "SHIB/USDT"))[2_498] == candle_rows([early])[0]
    server.clock.advance(120)
    server.requests.clear()
    report = await backfill(store, opened)
    (one,) = report.markets
    assert (one.inserted, one.updated, one.unchanged) == (2, 1, 2)
    assert await stored(store, "SHIB/USDT") == closed(BARS, NOW_MS + 120_000)
    assert await fetch(store, "SELECT time, close, volume FROM candle_revisions") == [
        (from_ms(bar.open_ms), early.close, early.volume)
    ]
    assert len(server.asked("klines")) == 1


async def test_a_candle_that_cannot_be_stored_is_a_failed_bar(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    bars = list(BARS)
    bars[1_200] = bars[1_200]._replace(low=bars[1_200].high + 1)
    server.binance.listings["SHIBUSDT"].series = Series(bars)
    report = await backfill(store, opened)
    assert [(p.since, p.until, p.status) for p in report.markets[0].problems] == [
        minutes(1_200, 1_201, "failed")[:3]
    ]
    assert "low_above_open" in report.markets[0].problems[0].reason
    market = await store.markets.get("binance", "SHIB/USDT")
    (gap,) = await store.candles.gaps(market)
    assert (gap.status, gap.reason) == ("failed", report.markets[0].problems[0].reason)
    assert await known(store, "SHIB/USDT") == [
        minutes(0, 1_200, "complete"), minutes(1_200, 1_201, "failed"),
        minutes(1_201, 2_500, "complete"),
    ]  # fmt: skip


async def test_a_venue_that_keeps_the_newest_says_so(store: Store, opened: Opener) -> None:
    report = await backfill(store, opened, ["XRP/USDT"], venue="kraken")
    assert await stored(store, "XRP/USDT", "kraken") == closed(BARS[2_500 - 719 :])
    assert "only the newest" in report.markets[0].problems[0].reason
    assert await known(store, "XRP/USDT", "kraken") == [
        minutes(0, 1_781, "failed"), minutes(1_781, 2_500, "complete"),
    ]  # fmt: skip


async def test_numbers_of_json_keep_every_digit(store: Store, opened: Opener) -> None:
    await backfill(store, opened, ["BTC/USD"], venue="bitfinex")
    assert await stored(store, "BTC/USD", "bitfinex") == closed(BARS)


async def test_pieces_meet(
    store: Store, server: ExchangeServer, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several walkers share one market's history; what was not there yet costs no walk."""
    monkeypatch.setattr("kurisu.ingest.backfill.PIECE_PAGES", 1)
    bars = data.generated_bars(7, START_MS, 12_000, hole=0.0005)
    server.clock.set(START_MS + 12_000 * MINUTE_MS + 30_000)
    server.binance.listings["SHIBUSDT"].series = Series(bars)
    since = SINCE - timedelta(days=400)
    report = await backfill(store, opened, since=since)
    assert await stored(store, "SHIB/USDT") == closed(bars, server.clock.now_ms())
    assert report.is_done
    assert {row[2] for row in await known(store, "SHIB/USDT")} == {"complete", "empty"}
    assert (await known(store, "SHIB/USDT"))[0][:3] == (since, SINCE, "empty")
    assert len(server.asked("klines")) < 40
    assert len(report.notes) == 1
    server.requests.clear()
    assert (await backfill(store, opened, since=since)).is_done
    assert server.asked("klines") == []


async def test_only_the_holes_are_filled(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    await backfill(store, opened, since=SINCE + 1_000 * MINUTE, until=SINCE + 1_500 * MINUTE)
    server.requests.clear()
    await backfill(store, opened)
    assert await stored(store, "SHIB/USDT") == closed(BARS)
    asked = [int(request.query["startTime"]) for request in server.asked("klines")]
    # The last hole begins a few candles earlier: they may have changed.
    assert sorted(asked) == [START_MS, START_MS + 1_497 * MINUTE_MS, START_MS + 2_497 * MINUTE_MS]
    await backfill(store, opened, since=None)


async def test_nothing_known_needs_a_beginning(store: Store, opened: Opener) -> None:
    with pytest.raises(InvalidArgument, match="--since"):
        await backfill(store, opened, since=None)


async def test_a_timeframe_that_is_not_offered(store: Store, opened: Opener) -> None:
    with pytest.raises(NotOffered, match="no 2h candles"):
        await backfill(store, opened, ["XRP/USDT"], venue="kraken", timeframe="2h")


async def test_native_bars_of_another_timeframe(store: Store, opened: Opener) -> None:
    report = await backfill(store, opened, timeframe="1h")
    assert report.is_done
    assert len(await stored(store, "SHIB/USDT", name="1h")) == 41


async def test_a_retention_that_the_user_has_set_stops_it_before_the_first_request(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    await store.db.set_retention("ohlcv", "30 days")
    with pytest.raises(RetentionConflict, match="--allow-expiring"):
        await backfill(store, opened)
    assert server.asked("klines") == []
    report = await backfill(store, opened, allow_expiring=True)
    assert report.is_done
    assert "will be dropped again" in report.notes[0]


@pytest.mark.parametrize("tier", ["plain", "apache", "community"], indirect=True)
async def test_every_engine(store: Store, server: ExchangeServer, opened: Opener) -> None:
    """Rows, holes, bars of every timeframe, and what is asked the second time."""
    bars = without(BARS, (300, 310))
    server.binance.listings["SHIBUSDT"].series = Series(bars)
    add_market(server, "BTC", BARS)
    report = await backfill(store, opened, ["SHIB/USDT", "BTC/USDT"])
    assert report.is_done
    assert await stored(store, "SHIB/USDT") == closed(bars)
    assert await stored(store, "BTC/USDT") == closed(BARS)
    assert [row[2] for row in await known(store, "SHIB/USDT")] == ["complete", "empty", "complete"]
    verified = await store.candles.verify()
    assert verified.ok
    assert sum(verified.checked.values()) > 500
    server.requests.clear()
    report = await backfill(store, opened, ["SHIB/USDT", "BTC/USDT"])
    assert server.asked("klines") == []
    await store.queue.put("stroll", [{}])
    assert await store.queue.size() == {"stroll": 1}


async def test_requests_stay_inside_the_announced_limit(
    store: Store, server: ExchangeServer, opened: Opener, slept: list[float]
) -> None:
    """Half of what is needed fits into a minute; nobody is refused."""
    server.binance.meter.limit = 60
    server.clock.set(START_MS + 14_000 * MINUTE_MS + 30_000)
    bars = data.generated_bars(9, START_MS, 14_000)
    symbols = [f"{base}/USDT" for base in ("BTC", "ETH", "SHIB")]
    for symbol in symbols:
        add_market(server, symbol.removesuffix("/USDT"), bars)
    report = await backfill(store, opened, symbols)
    assert report.is_done
    assert [one.inserted for one in report.markets] == [14_000] * 3
    assert server.binance.meter.breaches == []
    assert len(server.binance.meter.used) > 1
    assert max(slept) > 10


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_goes_wrong_on_the_way(
    store: Store,
    server: ExchangeServer,
    opened: Opener,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Faults of every kind, cancelled at random moments, again and again: the truth in the end."""
    monkeypatch.setattr("kurisu.ingest.backfill.PIECE_PAGES", 2)
    chance = random.Random(seed)
    server.clock.set(START_MS + 9_000 * MINUTE_MS + 30_000)
    down = (4_000, 4_030)
    truth = {}
    for number, base in enumerate(("BTC", "SHIB", "DOGE")):
        made = data.generated_bars(10 * seed + number, START_MS, 9_000)
        at = 1_000 + 700 * number
        truth[f"{base}/USDT"] = without(made, down, (at, at + 40), (8_000 + number, 8_001 + number))
        add_market(server, base, truth[f"{base}/USDT"])
    kinds = [f for f in Fault if f not in (Fault.LOST, Fault.STATUS_AFTER, Fault.EMPTY)]
    for _ in range(5):
        # Three empty answers in a row are believed, so there are two at most.
        server.faults.clear()
        empty = chance.randint(1, 2)
        server.faults.add(Rule(Fault.EMPTY, path="klines", times=empty, skip=chance.randint(0, 9)))
        for _ in range(6):
            fault = chance.choice(kinds)
            server.faults.add(
                Rule(fault, path="klines", times=chance.randint(1, 4), skip=chance.randint(0, 9),
                     status=chance.choice([429, 500, 503]), retry_after="1", seconds=0.05)
            )  # fmt: skip
        work = asyncio.create_task(backfill(store, opened, list(truth), policy=QUICK))
        await asyncio.sleep(chance.random() * 0.4)
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
    server.faults.clear()
    report = await backfill(store, opened, list(truth))
    for one in report.markets:
        assert {s.status for s in one.left} == {"outage"}
        assert (one.bars["empty"], one.bars["outage"]) == (41, 30)
    for symbol, bars in truth.items():
        assert await stored(store, symbol) == closed(bars, server.clock.now_ms())
    assert (await store.candles.verify()).ok


async def test_a_witness_that_was_not_listed_yet_is_not_asked_minute_by_minute(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """Holes everywhere, and the market that would know came two years later."""
    holes = [(at, at + 30) for at in range(100, 2_400, 600)]
    server.binance.listings["SHIBUSDT"].series = Series(without(BARS, *holes))
    late = [bar._replace(open_ms=bar.open_ms + 2 * 365 * 86_400_000) for bar in BARS]
    add_market(server, "BTC", late)
    report = await backfill(store, opened)
    assert report.is_done
    assert report.markets[0].bars["empty"] == 30 * len(holes)
    asked = [r.query for r in server.asked("klines") if r.query["symbol"] == "BTCUSDT"]
    assert {query["interval"] for query in asked} == {"1d"}
    assert len(asked) <= 4


async def test_a_write_that_is_refused_ends_it_with_its_reason(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """Not with a hole that nobody speaks of."""
    await fetch(
        store, "ALTER TABLE ohlcv ADD CONSTRAINT nothing_after CHECK (time < '2021-11-02 20:00Z')"
    )
    add_market(server, "BTC", BARS)
    with pytest.raises(WriteRefused, match="nothing_after"):
        await backfill(store, opened, ["SHIB/USDT", "BTC/USDT"])
    await fetch(store, "ALTER TABLE ohlcv DROP CONSTRAINT nothing_after")
    assert (await backfill(store, opened, ["SHIB/USDT", "BTC/USDT"])).is_done
    assert await stored(store, "SHIB/USDT") == closed(BARS)
