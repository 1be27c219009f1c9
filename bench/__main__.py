"""Measure everything and print it: `python -m bench [--url URL] [--quick] [--json]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Final

from bench import fills, latest, reads, reconcile, report, sizes, writes
from bench.candles import MONTH, YEAR
from bench.pairs import LEAST_PAIRS, Figure
from bench.servers import Bench, of_url

TIMESCALEDB_URL: Final = "KURISU_BENCH_TIMESCALEDB_URL"
PARTS: Final = ("write", "read", "latest", "size", "fills", "reconcile")

# 3 days of each of 1,000 markets: 4.3 million rows.
LATEST_ROWS: Final = 4_320
QUICK_LATEST_ROWS: Final = 1_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, also where a goal is not met: a busy machine is no error."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--url", help=f"also measure on this server (default: ${TIMESCALEDB_URL}); a scratch "
        "database is created there and dropped again"
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a month of candles, not a year")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    parser.add_argument("--pairs", type=int, default=LEAST_PAIRS, help="pairs of each figure")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts alone")
    parser.add_argument("--no-embedded", action="store_true", help="not the embedded server")
    given = parser.parse_args(arguments)
    if given.pairs < LEAST_PAIRS:
        parser.error(f"--pairs: at least {LEAST_PAIRS}")
    url = given.url or os.environ.get(TIMESCALEDB_URL)
    if given.no_embedded and not url:
        parser.error(f"--no-embedded needs --url or {TIMESCALEDB_URL}")
    asyncio.run(_run(given, url))
    return 0


async def _run(given: argparse.Namespace, url: str | None) -> None:
    engines: dict[str, list[Figure]] = {}
    try:
        if not given.no_embedded:
            async with of_url(None) as bench:
                await _measure(bench, given, engines, " (embedded)")
        if url:
            async with of_url(url) as bench:
                await _measure(bench, given, engines, "")
    finally:
        if given.json:
            print(report.as_json(engines))


async def _measure(
    bench: Bench, given: argparse.Namespace, engines: dict[str, list[Figure]], where: str
) -> None:
    rows = MONTH if given.quick else YEAR
    name = f"{bench.name}{where}, {rows:,} candles"
    figures = engines[name] = []
    try:
        await _parts(bench, given, rows, figures)
    finally:
        # What has been measured is printed, also where something broke off the rest.
        if figures and not given.json:
            report.print_table(name, figures)


async def _parts(bench: Bench, given: argparse.Namespace, rows: int, figures: list[Figure]) -> None:
    for part in given.only or PARTS:
        print(f"{bench.name}: {part} ...", file=sys.stderr, flush=True)
        match part:
            case "write":
                figures += await writes.measure(bench, rows, given.pairs)
            case "read":
                figures += await reads.measure(bench, rows, given.pairs)
            case "latest":
                each = QUICK_LATEST_ROWS if given.quick else LATEST_ROWS
                figures += await latest.measure(bench, each, given.pairs)
            case "size":
                figures += await sizes.measure(bench, MONTH)
            case "fills":
                figures += await fills.measure(bench, given.pairs)
            case "reconcile":
                figures += await reconcile.measure(bench, reconcile.ORDERS, given.pairs)


if __name__ == "__main__":
    sys.exit(main())
