"""Candles for the tests, and what a timeframe's bars are, worked out without Kurisu's own code.

Everything here is plain Python on datetime and Decimal, written from the definitions: it shares no
line with what it checks.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from itertools import groupby
from typing import Final

import pyarrow as pa

from kurisu.domain.candle import Candle

MINUTE: Final = timedelta(minutes=1)
DAY: Final = timedelta(days=1)

#: A Monday and the first of a month, so that bars of every timeframe but 3d open here.
START: Final = datetime(2024, 1, 1, tzinfo=UTC)

LENGTHS: Final[Mapping[str, timedelta]] = {
    "1m": MINUTE,
    "3m": 3 * MINUTE,
    "5m": 5 * MINUTE,
    "15m": 15 * MINUTE,
    "30m": 30 * MINUTE,
    "1h": timedelta(hours=1),
    "2h": timedelta(hours=2),
    "4h": timedelta(hours=4),
    "6h": timedelta(hours=6),
    "8h": timedelta(hours=8),
    "12h": timedelta(hours=12),
    "1d": DAY,
    "3d": 3 * DAY,
    "1w": 7 * DAY,
}
NAMES: Final = (*LENGTHS, "1M")
ROLLUPS: Final = ("5m", "15m", "1h", "4h", "1d")


def opening(at: datetime, name: str) -> datetime:
    """When the bar of timeframe `name` that contains `at` opens."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    match name:
        case "1M":
            return midnight.replace(day=1)
        case "1w":
            return midnight - timedelta(days=midnight.weekday())
        case "3d":
            return midnight - timedelta(days=(midnight - datetime(1970, 1, 1, tzinfo=UTC)).days % 3)
        case _:
            # Every other length divides a day.
            return midnight + (at - midnight) // LENGTHS[name] * LENGTHS[name]


def closing(opened: datetime, name: str) -> datetime:
    """When the bar of timeframe `name` that opens at `opened` closes."""
    if name == "1M":
        return (opened + timedelta(days=31)).replace(day=1)
    return opened + LENGTHS[name]


def bar(time: datetime, inside: Iterable[Candle]) -> Candle:
    """The bar that the candles make; each counts as many minutes as it says, or one."""
    ordered = sorted(inside, key=lambda candle: candle.time)
    with localcontext(prec=100):
        return Candle(
            time,
            ordered[0].open,
            max(candle.high for candle in ordered),
            min(candle.low for candle in ordered),
            ordered[-1].close,
            sum((candle.volume for candle in ordered), Decimal(0)),
            sum(candle.bars or 1 for candle in ordered),
        )


def aggregated(candles: Iterable[Candle], name: str) -> list[Candle]:
    """Bars of timeframe `name` from 1m candles, by time."""
    ordered = sorted(candles, key=lambda candle: candle.time)
    return [
        bar(time, inside)
        for time, inside in groupby(ordered, key=lambda candle: opening(candle.time, name))
    ]


def candle(time: datetime, seed: int = 0) -> Candle:
    """One valid candle, the same for the same time and seed.

    Numbers as they come from exchanges: from 18 fractional digits to 15 integer ones, and some
    without volume.
    """
    rng = random.Random(f"{time.isoformat()} {seed}")
    scale = rng.choice((0, 2, 8, 12, 18))

    def number() -> Decimal:
        return Decimal(rng.randrange(1, 10 ** rng.choice((3, 9, 15)))).scaleb(-scale)

    prices = sorted(number() for _ in range(4))
    opened, closed = rng.sample(prices[1:3], 2)
    volume = Decimal(0) if rng.random() < 0.1 else number()
    return Candle(time, opened, prices[3], prices[0], closed, volume)


def minutes(
    since: datetime, count: int, *, seed: int = 0, step: timedelta = MINUTE
) -> list[Candle]:
    """`count` candles from `since` on, `step` apart."""
    return [candle(since + i * step, seed) for i in range(count)]


def native(since: datetime, count: int, name: str, *, seed: int = 0) -> list[Candle]:
    """`count` candles of timeframe `name`, as an exchange gives them, from `since` on."""
    times = [since]
    while len(times) < count:
        times.append(closing(times[-1], name))
    return [candle(time, seed) for time in times]


def as_table(candles: Iterable[Candle]) -> pa.Table:
    """An Arrow table of exact decimals, as `store.candles.write` takes it."""
    rows = list(candles)
    money = pa.decimal128(38, 18)
    with localcontext(prec=60):
        return pa.table(
            {
                "time": pa.array([row.time for row in rows], pa.timestamp("us", tz="UTC")),
                **{
                    name: pa.array([getattr(row, name) for row in rows], money)
                    for name in ("open", "high", "low", "close", "volume")
                },
            }
        )
