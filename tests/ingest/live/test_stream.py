"""Streams against an exchange that fails: what is stored is what happened, digit for digit, and
coverage calls nothing whole that is not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from engines import REAL_TIERS, RealServer, Servers
from exchange_server import binance, binance_futures, bitfinex
from exchange_server.clock import MINUTE_MS
from exchange_server.server import ExchangeServer
from exchange_server.truth import Bar, Listing, Series, Tape, Tick
from exchange_server.world import NOW_MS, TICKS, Opener

from kurisu.errors import BadSymbol, IdSpaceConflict, InvalidArgument, NotOffered
from kurisu.exchange.calls import RetryPolicy
from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.venues import VENUES, TradePaging
from kurisu.ingest.live import feed, refill
from kurisu.ingest.live.events import StreamEvent
from kurisu.ingest.live.options import StreamOptions, StreamRequest
from kurisu.ingest.live.stream import stream
from kurisu.ingest.live.trades import UNORDERED_MS
from kurisu.store.markets import Market
from kurisu.store.store import Store

pytestmark = pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)

PATIENCE_S = 20
SHIB = "SHIB/USDT"
BTC = "BTC/USD"
TRADES = StreamOptions(candles=False, status_s=0.05)
CANDLES = StreamOptions(trades=False, status_s=0)
QUICK = RetryPolicy(first_wait_s=0.02, longest_wait_s=0.2)
LATER_S = 30


class Running:
    """A stream beside the test. events: what it has said."""

    def __init__(self, store: Store, opened: Opener) -> None:
        self._store = store
        self._opened = opened
        self.events: list[StreamEvent] = []
        self._task: asyncio.Task[None] | None = None

    def start(self, options: StreamOptions, *wanted: tuple[str, str]) -> None:
        requests = [StreamRequest(exchange, [symbol]) for exchange, symbol in wanted]

        def open_exchange(_config: object, name: str, **more: Any) -> Any:
            return self._opened(name, **more)

        self._task = asyncio.create_task(
            stream(
                self._store, requests, options, self.events.append,
                open_exchange=open_exchange, policy=QUICK,
            )
        )  # fmt: skip

    async def until(self, happened: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not happened():
                assert self._task is not None
                if self._task.done():
                    await self._task
                await asyncio.sleep(0.01)

    def count(self, event: str) -> int:
        return sum(one.event == event for one in self.events)

    async def said(self, event: str, times: int = 1) -> None:
        await self.until(lambda: self.count(event) >= times)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None


@asynccontextmanager
async def running(store: Store, opened: Opener) -> AsyncIterator[Running]:
    found = Running(store, opened)
    try:
        yield found
    finally:
        await found.stop()


class Trader:
    """Trades on one market: REST knows of them at once, the stream if it is told."""

    def __init__(
        self, server: ExchangeServer, ticks: list[Tick], send: Callable[[Tick], Any]
    ) -> None:
        self._server = server
        self._send = send
        self._chance = random.Random(5)
        self.ticks = ticks
        self.began = len(ticks)

    def trade(self, count: int, *, heard: bool = True) -> None:
        for _ in range(count):
            now = self._server.clock.now_ms()
            tick = Tick(
                (self.ticks[-1].id or 0) + 1,
                # Several in one millisecond, and never back in time.
                max(now, self.ticks[-1].time_ms),
                Decimal(self._chance.randrange(1, 10**12)).scaleb(-8),
                Decimal(self._chance.randrange(1, 10**18)).scaleb(-8),
                self._chance.choice(("buy", "sell")),
            )
            self.ticks.append(tick)
            if heard:
                self._send(tick)

    @property
    def made(self) -> list[tuple[object, ...]]:
        return rows_of(self.ticks[self.began :])


def rows_of(ticks: Sequence[Tick]) -> list[tuple[object, ...]]:
    return [(from_ms(t.time_ms), str(t.id), t.side, t.price, t.amount) for t in ticks]


async def stored(store: Store, market: Market, since: datetime) -> list[tuple[object, ...]]:
    table = await store.trades.read(market, since)
    names = ("time", "trade_id", "side", "price", "amount")
    rows = zip(*(table.column(name).to_pylist() for name in names), strict=True)
    return sorted(rows, key=lambda row: (row[0], int(row[1])))


async def whole(store: Store, market: Market) -> list[tuple[datetime, datetime]]:
    """What is stated to be complete or empty, neighbours joined."""
    found: list[tuple[datetime, datetime]] = []
    for one in await store.trades.coverage(market):
        assert one.status in ("complete", "empty"), one
        if one.status == "empty":
            assert not (await store.trades.read(market, one.since, one.until)).num_rows
        if found and found[-1][1] == one.since:
            found[-1] = (found[-1][0], one.until)
        else:
            found.append((one.since, one.until))
    return found


def own_bars(listing: Listing) -> Series:
    """Candles that a test may change: the usual ones are those of all tests."""
    listing.series = Series(list(listing.series.bars))
    return listing.series


def shib(server: ExchangeServer) -> Trader:
    ticks = server.binance.aggregates["SHIBUSDT"].tape.ticks
    return Trader(server, ticks, lambda tick: server.send_agg_trade("SHIBUSDT", tick))


async def check(store: Store, market: Market, trader: Trader, *, late_ms: int = 0) -> None:
    """Everything is stored as it was made, and one stretch from the beginning on is whole.

    late_ms: so late a trade may come, where ids do not tell.
    """
    began = from_ms(trader.ticks[trader.began].time_ms)
    assert await stored(store, market, began) == trader.made
    ((since, until),) = await whole(store, market)
    assert since <= began
    assert until >= from_ms(trader.ticks[-1].time_ms - late_ms)


async def listening(run: Running, server: ExchangeServer) -> None:
    await run.until(lambda: "shibusdt@aggTrade" in server.streams.subscribed)


async def test_trades_of_a_connection_that_is_cut_again_and_again(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    server.clock.set(NOW_MS, speed=LATER_S)
    trader = shib(server)
    async with running(store, opened) as run:
        run.start(TRADES, ("binance", SHIB))
        await listening(run, server)
        trader.trade(40)
        # Cut while REST may not have caught up yet.
        for number in range(3):
            server.streams.refuse_next = number
            server.cut_streams()
            trader.trade(15, heard=False)
            await run.said("connected", number + 2)
            await listening(run, server)
            trader.trade(20)
        # An id that the stream leaves out.
        trader.trade(1, heard=False)
        trader.trade(20)
        market = await store.markets.get("binance", SHIB)
        await eventually(run, store, market, trader)
        assert run.count("reconnecting") >= 3
        # Several of them may be one gap, if REST had not caught up in between.
        assert run.count("gap") >= 1
        # And one is told once, however often REST is asked.
        assert run.count("gap") <= run.count("connected") + 1
    await check(store, market, trader)
    assert run.events[-1].event == "stopped"
    assert run.events[-1].fields == {"unwritten": 0}


async def test_trades_of_a_contract_whose_size_nobody_has_asked_for(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """What they cost depends on it, and without a cost nothing is stored."""
    entry = binance_futures.entry("BTCUSDT", "BTC", "USDT") | {"contractSize": "0.01"}
    server.binance.futures.entries["BTCUSDT"] = entry
    async with running(store, opened) as run:
        run.start(TRADES, ("binance", "BTC/USDT:USDT"))
        await run.until(lambda: "btcusdt@aggTrade" in server.streams.subscribed)
        tick = Tick(7, server.clock.now_ms(), Decimal("50000.5"), Decimal(3), "buy")
        server.send_agg_trade("BTCUSDT", tick)
        market = await store.markets.get("binance", "BTC/USDT:USDT")
        # Whoever stops a stream has everything stored that came.
        await run.until(lambda: run.count("status") > 3)
    found = await store.trades.latest(market)
    assert found.column("cost").to_pylist() == [Decimal("1500.015")]


async def test_a_refusal_by_one_exchange_is_not_the_end_of_all(
    store: Store, server: ExchangeServer, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KuCoin answers 404 for a topic, which CCXT takes for something that is not offered."""
    server.clock.set(NOW_MS, speed=LATER_S)
    trader = shib(server)
    async with running(store, opened) as run:
        run.start(TRADES, ("binance", SHIB))
        await listening(run, server)
        trader.trade(5)
        with monkeypatch.context() as patch:

            async def refused(_: object, symbols: Sequence[str]) -> AsyncIterator[object]:
                if symbols:
                    raise NotOffered("binance", "the topic is not found")
                yield symbols

            patch.setattr(CcxtExchange, "watch_trades", refused)
            server.cut_streams()
            await run.said("reconnecting", 2)
            trader.trade(5, heard=False)
        await listening(run, server)
        trader.trade(5)
        await eventually(run, store, await store.markets.get("binance", SHIB), trader)
    await check(store, await store.markets.get("binance", SHIB), trader)


async def eventually(run: Running, store: Store, market: Market, trader: Trader) -> None:
    """Wait until the newest trade is stored, and no market waits for REST any more."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            last = await store.trades.latest(market)
            if last.column("trade_id").to_pylist() == [str(trader.ticks[-1].id)]:
                break
            await asyncio.sleep(0.02)
    seen = run.count("status")
    await run.until(
        lambda: any(
            event.fields["behind"] == 0
            for event in [one for one in run.events if one.event == "status"][seen + 1 :]
        )
    )


async def test_what_an_exchange_tells_once_and_never_again_is_a_hole(
    store: Store, server: ExchangeServer, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hyperliquid: by REST CCXT has one's own trades only."""
    venue = replace(VENUES["binance"], trade_paging=TradePaging.NOTHING)
    monkeypatch.setitem(VENUES, "binance", venue)
    server.clock.set(NOW_MS, speed=LATER_S)
    trader = shib(server)
    async with running(store, opened) as run:
        run.start(TRADES, ("binance", SHIB))
        await listening(run, server)
        trader.trade(10)
        await run.said("unavailable")
        server.cut_streams()
        trader.trade(5, heard=False)
        await run.said("connected", 2)
        await listening(run, server)
        trader.trade(10)
        await run.said("unavailable", 2)
        market = await store.markets.get("binance", SHIB)
        await eventually(run, store, market, trader)
    heard = [*trader.made[:10], *trader.made[15:]]
    assert await stored(store, market, from_ms(trader.ticks[trader.began].time_ms)) == heard
    failed = [one for one in await store.trades.coverage(market) if one.status == "failed"]
    assert {one.reason for one in failed} == {"the exchange gives trades as they happen only"}
    missed = [from_ms(tick.time_ms) for tick in trader.ticks[trader.began + 10 :][:5]]
    assert all(any(one.since <= at < one.until for one in failed) for at in missed)
    assert not server.asked("aggTrades")


class TestWhatIsLeftOutWhereIdsDoNotTell:
    """As of OKX, Bybit and others: the connection stands, trades come, and not all of them."""

    @pytest.fixture(autouse=True)
    def venue(self, monkeypatch: pytest.MonkeyPatch, server: ExchangeServer) -> None:
        venue = replace(VENUES["binance"], trade_ids_gapless=False, trade_ids_dense=False)
        monkeypatch.setitem(VENUES, "binance", venue)
        server.clock.set(NOW_MS, speed=LATER_S)

    @staticmethod
    async def told(run: Running, trader: Trader, trades: int) -> None:
        """Wait until so many were found, while the market trades on."""

        def is_told() -> bool:
            trader.trade(1)
            left_out = [one.fields["trades"] for one in run.events if one.event == "left_out"]
            return sum(map(int, left_out)) == trades

        await run.until(is_told)

    @staticmethod
    @asynccontextmanager
    async def begun(
        store: Store, server: ExchangeServer, opened: Opener
    ) -> AsyncIterator[tuple[Running, Trader, Market]]:
        """A stream that REST need not be asked for any more."""
        trader = shib(server)
        async with running(store, opened) as run:
            run.start(TRADES, ("binance", SHIB))
            await listening(run, server)
            trader.trade(10)
            market = await store.markets.get("binance", SHIB)
            await eventually(run, store, market, trader)
            yield run, trader, market

    async def test_rest_is_asked_from_time_to_time(
        self,
        store: Store,
        server: ExchangeServer,
        opened: Opener,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(refill, "CHECK_S", 0.2)
        async with self.begun(store, server, opened) as (run, trader, market):
            for times in (1, 2):
                trader.trade(5)
                trader.trade(3, heard=False)
                trader.trade(5)
                await self.told(run, trader, 3 * times)
            await eventually(run, store, market, trader)
            assert not run.count("reconnecting")
        await check(store, market, trader, late_ms=UNORDERED_MS)

    async def test_a_busy_market_is_read_from_where_it_was_compared_last(
        self,
        store: Store,
        server: ExchangeServer,
        opened: Opener,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What is missing from a sample may be missing from what came before it, too."""
        monkeypatch.setattr(refill.Refiller, "_sampled_from", lambda _, __, until: until - 60_000)
        async with self.begun(store, server, opened) as (run, trader, market):
            for later_ms in (120_000, 20_000):
                trader.trade(3, heard=False)
                server.clock.set(server.clock.now_ms() + later_ms, speed=LATER_S)
                trader.trade(5)
            await eventually(run, store, market, trader)
            monkeypatch.setattr(refill, "CHECK_S", 0.2)
            await self.told(run, trader, 6)
            assert [one.fields["trades"] for one in run.events if one.event == "left_out"] == [3, 3]
            await eventually(run, store, market, trader)
        await check(store, market, trader, late_ms=UNORDERED_MS)

    async def test_what_comes_while_rest_is_read_is_the_streams_word(
        self,
        store: Store,
        server: ExchangeServer,
        opened: Opener,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(refill, "CHECK_S", 0.2)
        # REST is asked when all of it has come.
        monkeypatch.setattr(feed, "LOOK_S", 1.0)
        trader = shib(server)
        async with running(store, opened) as run:
            run.start(TRADES, ("binance", SHIB))
            await listening(run, server)
            trader.trade(5)
            await asyncio.sleep(0.1)
            trader.trade(3, heard=False)
            await asyncio.sleep(0.1)
            trader.trade(5)
            market = await store.markets.get("binance", SHIB)
            await eventually(run, store, market, trader)
            await self.told(run, trader, 3)
            await eventually(run, store, market, trader)
        await check(store, market, trader, late_ms=UNORDERED_MS)

    async def test_nothing_is_added_where_rest_does_not_know_what_came(
        self,
        store: Store,
        server: ExchangeServer,
        opened: Opener,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A venue that calls its trades otherwise there: every one would count twice."""
        monkeypatch.setattr(refill, "CHECK_S", 0.2)
        async with self.begun(store, server, opened) as (run, trader, market):
            heard = trader.ticks[-1]._replace(id=1, time_ms=server.clock.now_ms())
            server.send_agg_trade("SHIBUSDT", heard)
            trader.trade(3, heard=False)

            def is_told() -> bool:
                trader.trade(1)
                return run.count("differs") > 0

            await run.until(is_told)
            assert not run.count("left_out")
        rows = await stored(store, market, from_ms(trader.ticks[trader.began].time_ms))
        assert set(rows_of([heard])) <= set(rows)
        unheard = [row for row in trader.made if row not in rows]
        assert len(unheard) >= 3

    async def test_and_at_the_start_for_what_the_last_stream_left_out(
        self, store: Store, server: ExchangeServer, opened: Opener
    ) -> None:
        async with self.begun(store, server, opened) as (run, trader, market):
            trader.trade(3, heard=False)
            # Whole beyond them.
            last = from_ms(trader.ticks[-1].time_ms)
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    trader.trade(1)
                    if (await whole(store, market))[-1][1] > last:
                        break
                    await asyncio.sleep(0.02)
            await eventually(run, store, market, trader)
            assert not run.count("left_out")
        assert len(trader.made) == 3 + len(
            await stored(store, market, from_ms(trader.ticks[trader.began].time_ms))
        )
        # What is younger than ten seconds may still be under way.
        server.clock.set(server.clock.now_ms() + 60_000, speed=LATER_S)
        async with running(store, opened) as run:
            run.start(TRADES, ("binance", SHIB))
            await listening(run, server)
            await self.told(run, trader, 3)
            await eventually(run, store, market, trader)
        await check(store, market, trader, late_ms=UNORDERED_MS)


async def test_what_was_missed_while_nobody_ran_is_asked_for(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    server.clock.set(NOW_MS, speed=LATER_S)
    trader = shib(server)
    market = await store.markets.ensure("binance", SHIB)
    for number in range(2):
        async with running(store, opened) as run:
            run.start(TRADES, ("binance", SHIB))
            await listening(run, server)
            trader.trade(30)
            await eventually(run, store, market, trader)
        trader.trade(2_500 if not number else 0, heard=False)
    await check(store, market, trader)


async def test_a_stream_that_has_died_without_a_word(
    store: Store, server: ExchangeServer, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stands, pings are answered, and nothing comes: REST knows better."""
    monkeypatch.setattr(refill, "SILENCE_S", 0.3)
    server.clock.set(NOW_MS, speed=LATER_S)
    trader = shib(server)
    async with running(store, opened) as run:
        run.start(TRADES, ("binance", SHIB))
        await listening(run, server)
        trader.trade(10)
        market = await store.markets.get("binance", SHIB)
        await eventually(run, store, market, trader)
        async with asyncio.timeout(PATIENCE_S):
            while not run.count("silent"):
                trader.trade(1, heard=False)
                await asyncio.sleep(0.05)
        await run.said("connected", 2)
        await listening(run, server)
        trader.trade(10)
        await eventually(run, store, market, trader)
        assert run.count("silent") >= 1
    await check(store, market, trader)


@pytest.mark.parametrize("bound", [100_000, 60], ids=["within the buffer", "beyond the buffer"])
async def test_a_database_that_restarts(
    servers: Servers, tier: str, store: Store, server: ExchangeServer, opened: Opener, bound: int
) -> None:  # fmt: skip
    """Rows are buffered; beyond the bound nothing is read, and REST is asked afterwards."""
    server.clock.set(NOW_MS, speed=LATER_S)
    trader = shib(server)
    market = await store.markets.ensure("binance", SHIB)
    database = servers.server(tier)
    assert isinstance(database, RealServer)
    async with running(store, opened) as run:
        run.start(StreamOptions(candles=False, status_s=0.05, buffer_rows=bound), ("binance", SHIB))
        await listening(run, server)
        trader.trade(30)
        await eventually(run, store, market, trader)
        await asyncio.to_thread(database.stop)
        try:
            trader.trade(40)
            await run.said("database_lost")
            trader.trade(100)
            if bound < 100:
                await run.said("buffer_full")
                await run.until(lambda: not server.streams.sessions)
                trader.trade(50, heard=False)
        finally:
            await asyncio.to_thread(database.start)
        await run.said("database_back")
        await listening(run, server)
        trader.trade(30)
        await eventually(run, store, market, trader)
        assert run.count("buffer_full") == run.count("buffer_free") == (1 if bound < 100 else 0)
    await check(store, market, trader)


async def test_candles_of_a_stream_that_leaves_things_out(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """Cut connections, candles that never came, one that changed after its close, and minutes in
    which nobody traded."""
    series = own_bars(server.binance.listings["SHIBUSDT"])
    opens = NOW_MS - NOW_MS % MINUTE_MS
    bars = {bar.open_ms: bar for bar in series.bars}
    for missing in (4, 5, 9):
        series.bars.remove(bars.pop(opens + missing * MINUTE_MS))
    revised = bars[opens + 2 * MINUTE_MS]
    early = revised._replace(volume=revised.volume / 2)
    series.revise(revised.open_ms, revised.open_ms + MINUTE_MS + 8_000, early)
    market = await store.markets.ensure("binance", SHIB)

    def show(minute: int, bar: Bar) -> None:
        closes = opens + (minute + 1) * MINUTE_MS
        server.clock.set(closes - 10)
        server.send_candle("SHIBUSDT", "1m", bar._replace(close=bar.open), closed=False)
        server.clock.set(closes + 10)
        server.send_candle("SHIBUSDT", "1m", bar, closed=True)

    async with running(store, opened) as run:
        run.start(CANDLES, ("binance", SHIB))
        await run.until(lambda: "shibusdt@kline_1m" in server.streams.subscribed)
        await run.said("refilled")
        for minute in range(14):
            at = opens + minute * MINUTE_MS
            bar = bars.get(at)
            if minute == 11:
                server.cut_streams()
                await run.said("reconnecting")
                await run.said("connected", 2)
                await run.until(lambda: "shibusdt@kline_1m" in server.streams.subscribed)
            # 6 and 11 never come.
            if bar is not None and minute not in (6, 11):
                show(minute, early if bar == revised else bar)
                await visible(store, market, at)
            server.clock.set(at + MINUTE_MS + 12_000)
            await asyncio.sleep(0.3)
        # So young that REST has to be older before what is missing counts as empty.
        await run.until(lambda: run.count("revised") >= 1)
        await asyncio.sleep(0.3)
    until = from_ms(opens + 14 * MINUTE_MS)
    since = from_ms(opens)
    table = await store.candles.read(market, "1m", since, until)
    found = [
        (row[0], *row[1:6]) for row in zip(*(c.to_pylist() for c in table.columns), strict=True)
    ]
    assert found == [
        (from_ms(bar.open_ms), *bar[1:])
        for at, bar in sorted(bars.items())
        if opens <= at < opens + 14 * MINUTE_MS
    ]
    minutes = [
        (number, one.status)
        for one in await store.candles.coverage(market, "1m", since, until)
        for number in range(
            (to_ms(one.since) - opens) // MINUTE_MS, (to_ms(one.until) - opens) // MINUTE_MS
        )
    ]
    assert minutes == [
        (number, "empty" if number in (4, 5, 9) else "complete") for number in range(14)
    ]


async def test_minutes_in_which_the_exchange_was_down(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """No market has a candle there; of other minutes it is this market alone."""
    opens = NOW_MS - NOW_MS % MINUTE_MS
    series = own_bars(server.binance.listings["SHIBUSDT"])
    other = Series(list(series.bars))
    entry = binance.entry("BTCUSDT", "BTC", "USDT")
    server.binance.add(Listing("BTCUSDT", entry, other))
    for at in range(3, 9):
        other.bars.remove(next(b for b in other.bars if b.open_ms == opens + at * MINUTE_MS))
    for at in (*range(3, 9), 11, 12):
        series.bars.remove(next(b for b in series.bars if b.open_ms == opens + at * MINUTE_MS))
    market = await store.markets.ensure("binance", SHIB)
    async with running(store, opened) as run:
        run.start(CANDLES, ("binance", SHIB))
        await run.said("refilled")
        server.clock.set(opens + 15 * MINUTE_MS + 12_000)
        await run.said("refilled", 2)
    found = await store.candles.coverage(
        market, "1m", from_ms(opens), from_ms(opens + 15 * MINUTE_MS)
    )
    assert [
        (
            (to_ms(one.since) - opens) // MINUTE_MS,
            (to_ms(one.until) - opens) // MINUTE_MS,
            one.status,
        )
        for one in found
        if one.status != "complete"
    ] == [(3, 9, "outage"), (11, 13, "empty")]


async def visible(store: Store, market: Market, at: int) -> None:
    """The candle is there, a second at most after it came."""
    async with asyncio.timeout(1.0 + 2.0):
        while True:
            if (await store.candles.read(market, "1m", from_ms(at))).num_rows:
                return
            await asyncio.sleep(0.02)


async def test_a_venue_that_allows_few_markets_on_a_connection(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """Bitfinex: 25 channels, trades and candles together. Each market hears of its trade."""
    server.clock.set(NOW_MS, speed=1)
    names = [f"tC{number:02}USD" for number in range(26)]
    for name in names:
        server.bitfinex.add(Listing(name, bitfinex.entry(name[1:]), Series(), Tape()))
    symbols = [f"{name[1:4]}/USD" for name in names]
    live = server.bitfinex_streams
    wanted = {f"trades:{name}" for name in names} | {f"candles:trade:1m:{name}" for name in names}
    async with running(store, opened) as run:
        run.start(StreamOptions(status_s=0.05), *(("bitfinex", symbol) for symbol in symbols))
        for attempt in range(2):
            await run.until(lambda: live.subscribed >= wanted)
            assert sorted(len(session.subscribed) for session in live.sessions) == [1, 1, 25, 25]
            if not attempt:
                server.cut_streams()
                await run.until(lambda: run.count("reconnecting") >= 4)
        now = server.clock.now_ms()
        for number, name in enumerate(names):
            server.run(live.send_trade(name, TICKS[0]._replace(id=number + 1, time_ms=now)))
        markets = [await store.markets.get("bitfinex", symbol) for symbol in symbols]
        async with asyncio.timeout(PATIENCE_S):
            for one in markets:
                while True:
                    if (await store.trades.latest(one)).num_rows:
                        break
                    await asyncio.sleep(0.05)


async def test_two_exchanges_at_once_and_every_digit(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """Bitfinex sends JSON numbers, with more digits than a double has."""
    server.clock.set(NOW_MS, speed=LATER_S)
    listing = server.bitfinex.listings["tBTCUSD"]
    listing.tape.ticks = list(listing.tape.ticks)
    btc = Trader(
        server, listing.tape.ticks,
        lambda tick: server.run(server.bitfinex_streams.send_trade("tBTCUSD", tick)),
    )  # fmt: skip
    shibs = shib(server)
    options = StreamOptions(status_s=0.1)
    async with running(store, opened) as run:
        run.start(options, ("binance", SHIB), ("bitfinex", BTC))
        await listening(run, server)
        await run.until(lambda: "trades:tBTCUSD" in server.bitfinex_streams.subscribed)
        await run.until(lambda: "candles:trade:1m:tBTCUSD" in server.bitfinex_streams.subscribed)
        shibs.trade(20)
        btc.trade(20)
        server.cut_streams()
        btc.trade(20, heard=False)
        await run.said("connected", 8)
        await run.until(lambda: "trades:tBTCUSD" in server.bitfinex_streams.subscribed)
        btc.trade(20)
        market = await store.markets.get("bitfinex", BTC)
        await eventually(run, store, market, btc)
        await run.said("status", 2)
        # Trades without consecutive ids are whole a second later.
        await asyncio.sleep(0.1)
        btc.trade(1)
        await eventually(run, store, market, btc)
    began = from_ms(btc.ticks[btc.began].time_ms)
    assert await stored(store, market, began) == btc.made
    since, until = (await whole(store, market))[-1]
    assert since <= began
    assert until >= from_ms(btc.ticks[-1].time_ms) - timedelta(seconds=1)
    candles = await store.candles.read(market, "1m")
    truth = {from_ms(bar.open_ms): bar[1:] for bar in listing.series.bars}
    assert candles.num_rows >= 9
    for time, *values in zip(*(c.to_pylist() for c in candles.columns[:6]), strict=True):
        assert tuple(values) == truth[time]
    status = next(event for event in run.events if event.event == "status")
    assert status.fields["connections"] == 4


async def test_what_cannot_be_streamed_is_said_at_once(store: Store, opened: Opener) -> None:
    async def fails(options: StreamOptions, *wanted: tuple[str, str]) -> None:
        async with running(store, opened) as run:
            run.start(options, *wanted)
            await run.until(lambda: False)

    with pytest.raises(BadSymbol, match="SHIB/USDT"):
        await fails(TRADES, ("binance", "SHIB/USTD"))
    with pytest.raises(InvalidArgument):
        await fails(StreamOptions(trades=False, candles=False), ("binance", SHIB))
    with pytest.raises(NotOffered, match="7d|3m"):
        await fails(StreamOptions(trades=False, timeframe="3m"), ("bitfinex", BTC))
    market = await store.markets.ensure("binance", SHIB)
    tick = {
        "time": [from_ms(1)],
        "trade_id": ["1"],
        "side": ["buy"],
        "price": ["1"],
        "amount": ["1"],
    }
    import pyarrow as pa

    times = pa.array(tick.pop("time"), pa.timestamp("us", "UTC"))
    await store.trades.write(market, pa.table({"time": times, **tick}), id_space="raw")
    with pytest.raises(IdSpaceConflict, match="raw"):
        await fails(TRADES, ("binance", SHIB))
