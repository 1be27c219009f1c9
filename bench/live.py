"""Live trades: how many a second, and how long from receipt to commit.

    python -m bench.live [--rates 5000 10000 20000] [--seconds 10] [--url URL] [--json]

An exchange on loopback, in a process of its own, sends trades of ten markets at each rate;
`kurisu.ingest.live` stores them. The goal: 20,000 trades a second with 99 of 100 committed within
250 ms, on two cores that exchange, database and Kurisu share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.feed import MARKETS
from bench.processes import Cpu, backends
from bench.servers import Bench, of_url
from kurisu.exchange.ccxt_adapter import open_exchange
from kurisu.exchange.settings import ExchangeSettings
from kurisu.ingest.collector import quiet_collector
from kurisu.ingest.live.events import StreamEvent
from kurisu.ingest.live.options import StreamOptions, StreamRequest
from kurisu.ingest.live.stream import stream

RATES: Final = (5_000, 10_000, 20_000)
SECONDS: Final = 10.0
GOAL_RATE: Final = 20_000
GOAL_P99_MS: Final = 250.0
PATIENCE_S: Final = 120.0
#: Not measured at the start of each rate.
WARM_UP_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Result:
    """One rate. sent, stored: trades in the measured seconds; stored is counted after the end,
    in the database, over all rates so far. lag: from receipt to commit, in ms. cpu: cores in use;
    of the database None where it runs elsewhere."""

    rate: int
    sent: int
    committed: int
    lag_median_ms: float | None
    lag_p99_ms: float | None
    buffered: int
    cpu: dict[str, float | None]
    met: bool | None


class Exchange:
    """The process of `bench.feed`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.feed"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.options: dict[str, Any] = json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    @property
    def pid(self) -> int:
        return self._process.pid

    def say(self, command: str) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return int(self._line())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


async def measure(bench: Bench, rates: list[int], seconds: float) -> list[Result]:
    """Every rate in turn, over one and the same stream."""
    exchange = Exchange()
    events: list[StreamEvent] = []
    settings = ExchangeSettings("binance", options=exchange.options, rate_limit_ms=1)

    @asynccontextmanager
    async def opened(_config: object, _name: str, **more: Any) -> AsyncIterator[Any]:
        async with open_exchange(settings, **more) as found:
            yield found

    wanted = StreamRequest("binance", [f"COIN{at}/USDT" for at in range(MARKETS)])
    options = StreamOptions(candles=False, status_s=seconds)
    results = []
    try:
        for rate in rates:
            events.clear()
            before = exchange.say("count")
            running = asyncio.create_task(
                stream(bench.store, [wanted], options, events.append, open_exchange=opened)
            )
            await _until(lambda: any(event.event == "connected" for event in events))
            quiet_collector()
            exchange.say(f"rate {rate}")
            await asyncio.sleep(WARM_UP_S)
            # The status line that ends inside of the warm-up is the first; the next is measured.
            seen = len(_statuses(events))
            await _until(partial(_are_more, events, seen))
            used = Cpu(kurisu=None, exchange=exchange.pid, database=await backends(bench.raw))
            await _until(partial(_are_more, events, seen + 1))
            status = _statuses(events)[-1].fields
            cpu = used.cores()
            exchange.say("rate 0")
            sent = exchange.say("count") - before
            await asyncio.sleep(1.0)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            lag = status["lag_ms"]
            met = None if rate != GOAL_RATE else (
                status["trades"] >= rate * seconds * 0.98 and lag["p99"] <= GOAL_P99_MS
            )  # fmt: skip
            results.append(
                Result(rate, sent, round(status["trades"] / seconds), lag["median"], lag["p99"],
                       status["buffered"], cpu, met)
            )  # fmt: skip
            stored = await bench.raw.fetchval("SELECT count(*) FROM trades")
            total = exchange.say("count")
            if stored != total:
                print(f"{total - stored:,} of {total:,} trades are missing", file=sys.stderr)
    finally:
        exchange.close()
    return results


async def _until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not happened():  # noqa: ASYNC110  # a status line is no event to wait for
            await asyncio.sleep(0.02)


def _are_more(events: list[StreamEvent], than: int) -> bool:
    return len(_statuses(events)) > than


def _statuses(events: list[StreamEvent]) -> list[StreamEvent]:
    return [event for event in events if event.event == "status"]


def show(name: str, results: list[Result]) -> None:
    table = Table(title=f"{name}: live trades", title_justify="left")
    for column in (
        "sent/s",
        "committed/s",
        "median",
        "p99",
        "buffered",
        "Kurisu",
        "exchange",
        "database",
        "met",
    ):
        table.add_column(column, justify="right")
    for one in results:
        table.add_row(
            f"{one.rate:,}", f"{one.committed:,}", f"{one.lag_median_ms} ms",
            f"{one.lag_p99_ms} ms", f"{one.buffered:,}",
            *("" if used is None else f"{100 * used:.0f} %" for used in one.cpu.values()),
            {None: "", True: "yes", False: "NO"}[one.met],
        )  # fmt: skip
    Console().print(table)


async def _run(given: argparse.Namespace) -> None:
    async with of_url(given.url) as bench:
        await _report(bench, given)


async def _report(bench: Bench, given: argparse.Namespace) -> None:
    started = time.monotonic()
    results = await measure(bench, given.rates, given.seconds)
    if given.json:
        print(json.dumps({bench.name: [asdict(one) for one in results]}, indent=2))
    else:
        show(bench.name, results)
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.live", description=__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES))
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--url", help="measure on this server instead of the embedded one")
    parser.add_argument("--json", action="store_true")
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
