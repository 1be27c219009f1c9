"""Where the truth comes from: files of real exchanges, or a seeded generator.

The files are not part of the repository; each loader returns None where they are absent, and
tests then use generated rows, which have more digits than any file.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import zipfile
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final

from exchange_server.clock import MINUTE_MS
from exchange_server.truth import Bar, Tick

_EIGHT: Final = Decimal("1E-8")

#: <repository>/../shared/data, unless the environment names another folder.
DATA: Final = Path(
    os.environ.get("KURISU_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
)


def _file(name: str) -> Path | None:
    path = DATA / name
    return path if path.is_file() else None


def _binance_1m(name: str, count: int | None) -> tuple[Bar, ...] | None:
    """A file of freqtrade's; Binance spells every number with eight decimals."""
    rows = _rows(f"candles/binance/{name}-1m.json.gz")
    return rows and tuple(
        Bar(row[0], *(Decimal(value).quantize(_EIGHT) for value in row[1:])) for row in rows[:count]
    )


def _rows(name: str) -> Any:
    """What a packed JSON file holds, exact; None if it is absent."""
    path = _file(name)
    return path and json.loads(gzip.decompress(path.read_bytes()), parse_float=Decimal)


@cache
def shib_1m(count: int | None = None) -> tuple[Bar, ...] | None:
    """Binance SHIB/USDT 1m, 2021-11-02 on: prices of 1e-5, volumes to 4.5e11."""
    return _binance_1m("SHIB_USDT", count)


@cache
def doge_btc_1m(count: int | None = None) -> tuple[Bar, ...] | None:
    """Binance DOGE/BTC 1m, 2021-04-10 on: prices of 1e-6, two outages."""
    return _binance_1m("DOGE_BTC", count)


@cache
def bitfinex_btcusd_1m(count: int | None = None) -> tuple[Bar, ...] | None:
    """Bitfinex BTC/USD 1m of 2013: 49,884 gaps, some volumes in scientific notation."""
    path = _file("candles/bitfinex/BTCUSD-1m-2013.csv.gz")
    if path is None:
        return None
    bars = []
    with gzip.open(path, "rt", encoding="ascii") as lines:
        for number, (time, opened, close, high, low, volume) in enumerate(csv.reader(lines)):
            if count is not None and number >= count:
                break
            bars.append(
                Bar(int(time), *(Decimal(text) for text in (opened, high, low, close, volume)))
            )
    return tuple(bars)


@cache
def pepe_agg_trades(count: int | None = None) -> tuple[Tick, ...] | None:
    """Binance PEPE/USDT aggregate trades of 2024-10-27: gapless ids, up to 27 in one ms."""
    path = _file("trades/binance_spot_PEPEUSDT-aggTrades-2024-10-27.zip")
    if path is None:
        return None
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as content:
        rows = list(csv.reader(io.TextIOWrapper(content, "ascii")))
    return tuple(
        Tick(int(row[0]), int(row[5]), Decimal(row[1]), Decimal(row[2]),
             "sell" if row[6] == "True" else "buy")
        for row in rows[:count]
    )  # fmt: skip


@cache
def kraken_xrp_trades(count: int | None = None) -> tuple[Tick, ...] | None:
    """Kraken XRP/USDT trades of 2022: no ids, 65 rows share a millisecond."""
    rows = _rows("trades/kraken_XRP_USDT-trades.json.gz")
    if rows is None:
        return None
    ticks: list[Tick] = []
    for row in rows[:count]:
        # The file has milliseconds only; Kraken's own times have nanoseconds, all different.
        time_ns = row[0] * 1_000_000
        if ticks and time_ns <= ticks[-1].time_ns:
            time_ns = ticks[-1].time_ns + 100
        ticks.append(Tick(None, row[0], Decimal(row[4]), Decimal(row[5]), row[3], time_ns))
    return tuple(ticks)


@cache
def binance_symbols() -> dict[str, dict[str, Any]] | None:
    """Binance's exchangeInfo of 2021-10-12, by symbol."""
    info = _rows("metadata/binance_spot-exchangeInfo-20211012.json.gz")
    return info and {s["symbol"]: s for s in info["symbols"]}


def generated_bars(
    seed: int,
    start_ms: int,
    count: int,
    *,
    price: Decimal = Decimal("0.0000712"),
    tick: Decimal = Decimal("1E-8"),
    amount_step: Decimal = Decimal("1E-8"),
    top_amount: int = 10**11,
    hole: float = 0.0,
) -> list[Bar]:
    """A random walk of `count` minutes.

    hole: how often a stretch of minutes has no trades. Volumes have as many digits as
    `top_amount` and `amount_step` give: nineteen by default, where a double ends at fifteen.
    """
    chance = random.Random(seed)
    bars: list[Bar] = []
    minute = 0
    while minute < count:
        if hole and chance.random() < hole:
            minute += chance.randint(1, 1 + count // 10)
            continue
        moves = [tick * chance.randint(-9, 9) for _ in range(3)]
        opened = price
        close = max(tick, price + moves[0])
        high = max(opened, close) + abs(moves[1])
        low = max(tick, min(opened, close) - abs(moves[2]))
        volume = amount_step * chance.randrange(int(Decimal(top_amount) / amount_step))
        bars.append(Bar(start_ms + minute * MINUTE_MS, opened, high, low, close, volume))
        price = close
        minute += 1
    return bars


def generated_ticks(
    seed: int,
    start_ms: int,
    count: int,
    *,
    first_id: int | None = 1,
    busy: float = 0.3,
    quiet_ms: int = 0,
    price: Decimal = Decimal("0.0000123"),
    tick: Decimal = Decimal("1E-8"),
    amount_step: Decimal = Decimal("1E-8"),
    top_amount: int = 10**9,
) -> list[Tick]:
    """`count` trades. busy: how often a trade falls into the millisecond of the one before, and
    then it is a repetition of that one every fifth time. quiet_ms: one such pause in the middle.
    """
    chance = random.Random(seed)
    ticks: list[Tick] = []
    time_ns = start_ms * 1_000_000
    for number in range(count):
        trade_id = None if first_id is None else first_id + number
        if number and chance.random() < busy:
            time_ns += 1_000 if time_ns % 1_000_000 < 990_000 else 0
            if time_ns == ticks[-1].time_ns:
                time_ns += 1_000_000
        else:
            time_ns += chance.randint(1, 30_000) * 1_000_000
            time_ns -= time_ns % 1_000_000
        if quiet_ms and number == count // 2:
            time_ns += quiet_ms * 1_000_000
        if number and chance.random() < 0.2:
            last = ticks[-1]
            ticks.append(last._replace(id=trade_id, time_ms=time_ns // 10**6, time_ns=time_ns))
            continue
        price = max(tick, price + tick * chance.randint(-3, 3))
        amount = amount_step * chance.randrange(1, int(Decimal(top_amount) / amount_step))
        side = chance.choice(("buy", "sell"))
        ticks.append(Tick(trade_id, time_ns // 10**6, price, amount, side, time_ns))
    return ticks
