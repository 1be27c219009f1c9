"""Candles to measure with: seeded random walks on a tick grid, and recorded ones.

A random walk in whole ticks has what matters here: numbers of the usual length (eight or nine
digits, not eighteen), neighbours that resemble each other, and a volume that does not.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

NUMBERS: Final = ("open", "high", "low", "close", "volume")
DECIMAL: Final = pa.decimal128(38, 18)
TIME: Final = pa.timestamp("us", tz="UTC")
MINUTE: Final = timedelta(minutes=1)

#: Where generated candles begin: long closed, whatever the clock says.
SINCE: Final = datetime(2024, 1, 1, tzinfo=UTC)
YEAR: Final = 525_600
MONTH: Final = 43_200

#: Recorded candles, beside the repository where they are at hand.
RECORDED: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "candles" / "binance"
RECORDED_FILES: Final = ("SHIB_USDT-1m.json.gz", "DOGE_BTC-1m.json.gz")

Ticks = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Grid:
    """What a market's numbers look like.

    price: the first one, in quote units. price_digits, volume_digits: decimals of a tick.
    volume: the usual one of a minute, in base units.
    """

    price: float
    price_digits: int
    volume: float
    volume_digits: int


#: BTC/USDT as binance lists it.
BITCOIN: Final = Grid(42_000.0, 2, 25.0, 5)


def generate(rows: int, *, seed: int = 1, grid: Grid = BITCOIN) -> pa.Table:
    """`rows` 1m candles from SINCE on without a hole; the same ones for the same seed."""
    random = np.random.default_rng(seed)
    tick = 10.0**-grid.price_digits
    # About 1 % a day, as a large market moves.
    walk = np.cumsum(random.normal(0.0, 0.0005, rows))
    # Slowly back to where it began, so that a year neither reaches zero nor grows a digit.
    walk -= np.linspace(0.0, walk[-1], rows)
    close = np.maximum(np.rint(grid.price * np.exp(walk) / tick), 10).astype(np.int64)
    opened = np.concatenate((close[:1], close[:-1])) + random.integers(-1, 2, rows)
    reach = np.abs(random.normal(0.0, 0.0003, (2, rows))) * close
    high = np.maximum(opened, close) + np.rint(reach[0]).astype(np.int64)
    low = np.maximum(np.minimum(opened, close) - np.rint(reach[1]).astype(np.int64), 1)
    volume = np.rint(
        grid.volume * np.exp(random.normal(0.0, 1.1, rows)) * 10.0**grid.volume_digits
    ).astype(np.int64)
    digits = dict.fromkeys(NUMBERS[:4], grid.price_digits) | {"volume": grid.volume_digits}
    columns = dict(zip(NUMBERS, (opened, high, low, close, volume), strict=True))
    return pa.table({"time": times(rows), **{n: decimals(columns[n], digits[n]) for n in NUMBERS}})


def times(rows: int) -> pa.Array:
    """Open times of `rows` minutes from SINCE on."""
    first = int(SINCE.timestamp()) * 1_000_000
    return pa.array(np.arange(rows, dtype=np.int64) * 60_000_000 + first).cast(TIME)


def decimals(ticks: Ticks, digits: int) -> pa.Array:
    """Whole ticks of 10^-digits as decimal128(38, 18)."""
    whole = pa.array(ticks).cast(pa.decimal128(19, 0))
    scaled = pa.Array.from_buffers(pa.decimal128(19, digits), len(whole), whole.buffers())
    return scaled.cast(DECIMAL)


def changed(table: pa.Table, mask: npt.NDArray[np.bool_]) -> pa.Table:
    """`table` with another volume where `mask` is set."""
    volume = table.column("volume")
    # One digit less than DECIMAL has leaves room for the sum.
    room = pa.decimal128(37, 18)
    more = pc.add(volume.cast(room), pa.scalar(Decimal("0.00001"), room)).cast(DECIMAL)
    return table.set_column(
        table.schema.get_field_index("volume"),
        "volume",
        pc.if_else(pa.array(mask), more, volume),
    )


def recorded() -> dict[str, pa.Table]:
    """Recorded candles by name, exact; empty where the files are not at hand."""
    found: dict[str, pa.Table] = {}
    for name in RECORDED_FILES:
        path = RECORDED / name
        if path.is_file():
            with gzip.open(path, "rt", encoding="utf-8") as file:
                rows = json.load(file, parse_float=Decimal)
            by_time = {int(row[0]): row for row in rows}
            ordered = [by_time[time] for time in sorted(by_time)]
            found[name.removesuffix(".json.gz")] = pa.table(
                {
                    "time": pa.array([row[0] * 1000 for row in ordered], pa.int64()).cast(TIME),
                    **{
                        column: pa.array([Decimal(row[at]) for row in ordered], DECIMAL)
                        for at, column in enumerate(NUMBERS, start=1)
                    },
                }
            )
    return found


def write_csv(path: Path, market_id: int, table: pa.Table, grid: Grid = BITCOIN) -> None:
    """The rows as `\\copy` takes them: market_id, timeframe, time and the numbers as usual text,
    without the zeros that fill a decimal128(38, 18)."""
    price, volume = pa.decimal128(38, grid.price_digits), pa.decimal128(38, grid.volume_digits)
    rows = table.num_rows
    plain = pa.table(
        {
            "market_id": pa.array(np.full(rows, market_id, dtype=np.int32)),
            "timeframe": pa.array(["1m"] * rows),
            "time": table.column("time"),
            **{n: table.column(n).cast(price) for n in NUMBERS[:4]},
            "volume": table.column("volume").cast(volume),
        }
    )
    options = pa.csv.WriteOptions(include_header=False, quoting_style="none")
    pa.csv.write_csv(plain, path, options)
