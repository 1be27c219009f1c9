"""Backfill: candles a second where the exchange answers at once, and whose time that takes.

    python -m bench.backfill [--markets 4] [--candles 250000] [--runs 3] [--url URL] [--json]

An exchange on loopback, in a process of its own, has the history of some markets;
`kurisu.ingest.backfill` stores it, as `kurisu candles backfill` does. The goal: 100,000 candles a
second, on two cores that exchange, database and Kurisu share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.history import START_MS
from bench.processes import Cpu, backends
from bench.servers import Bench, of_url
from kurisu.domain.timeframe import BASE
from kurisu.exchange.ccxt_adapter import open_exchange
from kurisu.exchange.settings import ExchangeSettings
from kurisu.ingest.backfill import named_markets, run_backfill
from kurisu.ingest.collector import quiet_collector

MARKETS: Final = 4
CANDLES: Final = 250_000
RUNS: Final = 3
GOAL: Final = 100_000
SINCE: Final = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=START_MS)


@dataclass(frozen=True, slots=True)
class Run:
    """One backfill of everything into empty tables.

    own: share of the time that Kurisu computes, i.e. neither waits nor leaves the work to the
    database. cpu: cores in use; of the database None where it runs elsewhere.
    """

    candles: int
    seconds: float
    per_second: int
    own: float
    cpu: dict[str, float | None]


class Exchange:
    """The process of `bench.history`."""

    def __init__(self, markets: int, candles: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.history", str(markets), str(candles)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.options: dict[str, Any] = json.loads(self._process.stdout.readline())

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


async def measure(bench: Bench, markets: int, candles: int, runs: int) -> list[Run]:
    """Each run begins with empty tables."""
    server = Exchange(markets, candles)
    settings = ExchangeSettings("binance", options=server.options, rate_limit_ms=1)
    found = []
    try:
        async with open_exchange(settings) as exchange:
            symbols = [f"COIN{number}/USDT" for number in range(markets)]
            chosen = await named_markets(bench.store, exchange, symbols)
            quiet_collector()
            for _ in range(runs):
                await bench.clear()
                await bench.settle()
                used = Cpu(kurisu=None, exchange=server.pid, database=await backends(bench.raw))
                started = time.perf_counter()
                report = await run_backfill(bench.store, exchange, chosen, BASE, SINCE)
                seconds = time.perf_counter() - started
                cpu = used.cores()
                stored = sum(one.inserted for one in report.markets)
                if stored != markets * candles or not report.is_done:
                    raise RuntimeError(f"{stored:,} of {markets * candles:,} candles were stored")
                found.append(
                    Run(stored, round(seconds, 3), round(stored / seconds), cpu["kurisu"] or 0, cpu)
                )
    finally:
        server.close()
    return found


def show(name: str, runs: Sequence[Run]) -> None:
    table = Table(title=f"{name}: backfill", title_justify="left")
    for column in ("candles", "seconds", "candles/s", "Kurisu", "exchange", "database", "met"):
        table.add_column(column, justify="right")
    for one in runs:
        table.add_row(
            f"{one.candles:,}", f"{one.seconds:.2f}", f"{one.per_second:,}",
            *("" if used is None else f"{100 * used:.0f} %" for used in one.cpu.values()),
            "yes" if one.per_second >= GOAL else "NO",
        )  # fmt: skip
    Console().print(table)
    middle = statistics.median(one.per_second for one in runs)
    print(f"median {middle:,.0f} candles/s; goal {GOAL:,}")


async def _run(given: argparse.Namespace) -> None:
    async with of_url(given.url) as bench:
        await _report(bench, given)


async def _report(bench: Bench, given: argparse.Namespace) -> None:
    runs = await measure(bench, given.markets, given.candles, given.runs)
    if given.json:
        print(json.dumps({bench.name: [asdict(one) for one in runs]}, indent=2))
    else:
        show(bench.name, runs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.backfill", description=__doc__)
    parser.add_argument("--markets", type=int, default=MARKETS)
    parser.add_argument("--candles", type=int, default=CANDLES, help="of each market")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--url", help="measure on this server instead of the embedded one")
    parser.add_argument("--json", action="store_true")
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
