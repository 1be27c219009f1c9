"""`kurisu stream` as a user runs it: killed, ended, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from cli.conftest import Program
from exchange_server import binance
from exchange_server.clock import MINUTE_MS
from exchange_server.data import generated_bars, generated_ticks
from exchange_server.server import ExchangeServer
from exchange_server.truth import Listing, Series, Tick
from exchange_server.world import START_MS

from kurisu.cli.streaming import parse
from kurisu.errors import InvalidArgument
from kurisu.exchange.clock import from_ms
from kurisu.store.store import open_store

PATIENCE_S = 60
#: Just before a minute ends, so that candles close while the test runs.
NOW_MS = START_MS + 100 * MINUTE_MS - 3_000


@pytest.fixture
def server() -> Iterator[ExchangeServer]:
    """Binance with one market; its clock runs."""
    found = ExchangeServer(NOW_MS, speed=1.0)
    listing = Listing(
        "PEPEUSDT",
        binance.entry("PEPEUSDT", "PEPE", "USDT"),
        Series(generated_bars(3, START_MS, 130)),
    )
    ticks = [t for t in generated_ticks(4, START_MS, 500) if t.time_ms < NOW_MS]
    found.binance.add(listing, aggregates=ticks)
    with found:
        yield found


def inline(value: Any) -> str:
    """TOML; a table goes into one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f'"{name}" = {inline(one)}' for name, one in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture
def configured(server: ExchangeServer, kurisu_program: Program) -> str:
    """The name of an exchange in kurisu.toml that is the test's."""
    name = f"venue{server.port}"
    lines = [f"[exchanges.{name}]", 'ccxt = "binance"', "rate_limit_ms = 1", "grace_s = 0.1"]
    lines += [f"{key} = {inline(value)}" for key, value in server.options("binance").items()]
    (kurisu_program.folder / "kurisu.toml").write_text("\n".join(lines))
    return name


class Trading(threading.Thread):
    """Trades all the time, and tells the stream of most of it."""

    def __init__(self, server: ExchangeServer) -> None:
        super().__init__(daemon=True)
        self._server = server
        self.ticks = server.binance.aggregates["PEPEUSDT"].tape.ticks
        self.ended = threading.Event()

    def run(self) -> None:
        chance = random.Random(11)
        while not self.ended.wait(0.01):
            for _ in range(chance.randint(1, 4)):
                last = self.ticks[-1]
                tick = Tick(
                    (last.id or 0) + 1,
                    max(last.time_ms, self._server.clock.now_ms()),
                    Decimal(chance.randrange(1, 10**12)).scaleb(-8),
                    Decimal(chance.randrange(1, 10**18)).scaleb(-8),
                    chance.choice(("buy", "sell")),
                )
                self.ticks.append(tick)
                self._server.send_agg_trade("PEPEUSDT", tick)


@contextlib.contextmanager
def trading(server: ExchangeServer) -> Iterator[Trading]:
    thread = Trading(server)
    thread.start()
    try:
        yield thread
    finally:
        thread.ended.set()
        thread.join()


def read_until(running: subprocess.Popen[bytes], **wanted: Any) -> list[dict[str, Any]]:
    """The events up to the one that has these fields."""
    assert running.stdout is not None
    events = []
    for line in running.stdout:
        events.append(json.loads(line))
        if wanted.items() <= events[-1].items():
            return events
    assert running.stderr is not None
    raise AssertionError(f"it ended: {events} {running.stderr.read().decode()}")


async def test_killed_again_and_again_and_then_ended(
    server: ExchangeServer, kurisu_program: Program, configured: str
) -> None:
    url = kurisu_program.url
    kurisu_program.process("db", "upgrade")
    run = ("stream", configured, "PEPE/USDT", "--json", "--status-every", "0.2")
    chance = random.Random(3)
    bars = server.binance.listings["PEPEUSDT"].series.bars
    with trading(server) as trader:
        for _ in range(2):
            with kurisu_program.start(*run) as running:
                read_until(running, event="connected", what="trades")
                await asyncio.sleep(chance.random())
                running.send_signal(signal.SIGKILL)
            await asyncio.sleep(0.2)
        with kurisu_program.start(*run) as running:
            read_until(running, event="connected", what="trades")
            read_until(running, event="refilled")
            # The exchange's word that it has closed counts, whatever our clock says.
            server.send_candle("PEPEUSDT", "1m", bars[101], closed=True)
            for _ in range(3):
                read_until(running, event="status", behind=0)
            running.send_signal(signal.SIGTERM)
            out, err = running.communicate(timeout=PATIENCE_S)
    assert (running.returncode, err) == (128 + signal.SIGTERM, b"")
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["unwritten"]) == ("stopped", 0)

    async with open_store(url) as store:
        market = await store.markets.get(configured, "PEPE/USDT")
        stretches = await store.trades.coverage(market)
        since, until = stretches[0].since, stretches[-1].until
        assert {one.status for one in stretches} <= {"complete", "empty"}
        assert [a.until for a in stretches[:-1]] == [b.since for b in stretches[1:]]
        table = await store.trades.read(market, since, until)
        found = zip(
            *(
                table.column(name).to_pylist()
                for name in ("time", "trade_id", "side", "price", "amount")
            ),
            strict=True,
        )
        truth = [
            (from_ms(t.time_ms), str(t.id), t.side, t.price, t.amount)
            for t in trader.ticks
            if since <= from_ms(t.time_ms) < until
        ]
        assert sorted(found, key=lambda row: int(row[1])) == truth
        assert until - since > timedelta(seconds=5)
        candles = await store.candles.read(market, "1m")
        times = candles.column("time").to_pylist()
        assert times[-1] == from_ms(bars[101].open_ms)
        # Some of those before were asked for at the start.
        assert len(times) >= 4
        known = {from_ms(bar.open_ms): bar[1:] for bar in bars}
        for time, *values in zip(*(c.to_pylist() for c in candles.columns[:6]), strict=True):
            assert tuple(values) == known[time]


def test_lines_for_people(server: ExchangeServer, kurisu_program: Program, configured: str) -> None:
    """On stderr; nothing on stdout."""
    kurisu_program.process("db", "upgrade")
    run = ("stream", f"{configured}:PEPE/USDT", "--candles", "--status-every", "0")
    with kurisu_program.start(*run) as running:
        assert running.stderr is not None
        line = running.stderr.readline().decode()
        assert line.rstrip().endswith(f"connected      {configured}: candles of PEPE/USDT")
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE_S)
    assert (running.returncode, out) == (128 + signal.SIGINT, b"")
    assert err.decode().endswith("stopped; everything is written\n")
    assert not server.streams.sessions


def test_a_market_that_is_not_there(kurisu_program: Program, configured: str) -> None:
    kurisu_program("db", "upgrade")
    said = kurisu_program("stream", configured, "PEPE/USDX", code=1).err
    assert "PEPE/USDT" in said


def test_what_the_arguments_name() -> None:
    def named(*words: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for request in parse(words):
            found.setdefault(request.exchange, []).extend(request.symbols)
        return found

    assert named("binance", "BTC/USDT", "ETH/USDT", "bitfinex", "BTC/USD") == {
        "binance": ["BTC/USDT", "ETH/USDT"], "bitfinex": ["BTC/USD"],
    }  # fmt: skip
    assert named("okx:BTC/USDT:USDT", "binance", "BTC/USDT:USDT", "kraken:XBT/USD") == {
        "okx": ["BTC/USDT:USDT"], "binance": ["BTC/USDT:USDT"], "kraken": ["XBT/USD"],
    }  # fmt: skip
    with pytest.raises(InvalidArgument, match="binance BTC/USDT"):
        named("BTC/USDT")
    with pytest.raises(InvalidArgument, match="no market of kraken"):
        named("binance", "BTC/USDT", "kraken")
    with pytest.raises(InvalidArgument):
        named("Binance!", "BTC/USDT")
