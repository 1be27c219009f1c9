"""Makes the sample that ships with Kurisu: 1m candles from a file of Binance's aggregate trades.

    python scripts/make_sample.py PEPEUSDT-aggTrades-2024-10-27.zip \\
        src/kurisu/sample/binance_PEPE_USDT-1m-2024-10-27.csv

The zip is one of Binance's public data: a CSV without a header whose columns are aggregate trade
id, price, quantity, first and last trade id, time (ms), buyer is maker, best match. All arithmetic
is decimal; a minute without trades has no candle.
"""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

from kurisu.domain.money import EXACT, plain

PRICE, QUANTITY, TIME_MS = 1, 2, 5
MINUTE_MS: Final = 60_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Bar:
    """A candle in the making."""

    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal

    def add(self, price: Decimal, quantity: Decimal) -> None:
        self.high = max(self.high, price)
        self.low = min(self.low, price)
        self.close = price
        self.volume = EXACT.add(self.volume, quantity)


def aggregate(trades: Iterable[list[str]]) -> dict[int, Bar]:
    """1m candles by open time (ms), from trades in the order of their ids."""
    bars: dict[int, Bar] = {}
    for trade in trades:
        minute = int(trade[TIME_MS]) // MINUTE_MS * MINUTE_MS
        price, quantity = Decimal(trade[PRICE]), Decimal(trade[QUANTITY])
        if minute in bars:
            bars[minute].add(price, quantity)
        else:
            bars[minute] = Bar(price, price, price, price, quantity)
    return bars


def read_trades(path: Path) -> Iterable[list[str]]:
    """The rows of the one CSV in the zip, by aggregate trade id."""
    with zipfile.ZipFile(path) as archive:
        (name,) = archive.namelist()
        with archive.open(name) as raw:
            rows = list(csv.reader(io.TextIOWrapper(raw, encoding="ascii")))
    return sorted(rows, key=lambda row: int(row[0]))


def render(bars: dict[int, Bar]) -> str:
    """CSV, as `kurisu candles export` writes it."""
    lines = ["time,open,high,low,close,volume"]
    for minute, bar in sorted(bars.items()):
        time = _EPOCH + timedelta(milliseconds=minute)
        values = (bar.open, bar.high, bar.low, bar.close, bar.volume)
        lines.append(f"{time:%Y-%m-%dT%H:%M:%SZ},{','.join(plain(value) for value in values)}")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: make_sample.py AGG_TRADES.zip OUT.csv", file=sys.stderr)
        return 2
    source, target = map(Path, arguments)
    target.write_text(render(aggregate(read_trades(source))), encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
