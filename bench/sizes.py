"""Bytes per candle in the database, everything counted, against Parquet of the same rows.

A chunk has about 50 kB of pages of its own, whatever is in it. A market alone in its chunks bears
all of that; in a database of many markets they share it. So recorded candles are measured twice:
alone, and stored under ten markets. Compression works on one market at a time, so the copies do
not make each other smaller.
"""

from __future__ import annotations

import io
from typing import Final

import pyarrow as pa
import pyarrow.parquet

from bench.candles import Grid, generate, recorded
from bench.pairs import Figure, counted
from bench.servers import Bench
from kurisu.store.exact_table import with_floats

#: Generated markets, from a large price to a tiny one.
GRIDS: Final = (
    Grid(42_000.0, 2, 25.0, 5),
    Grid(2_300.0, 2, 300.0, 4),
    Grid(98.0, 2, 5_000.0, 3),
    Grid(0.5123, 4, 90_000.0, 1),
    Grid(0.00002345, 8, 2_000_000_000.0, 0),
)

COPIES: Final = 10


async def measure(bench: Bench, rows: int) -> list[Figure]:
    """Of recorded markets alone and as ten, and of generated ones."""
    figures: list[Figure] = []
    for name, table in recorded().items():
        figures += await _of(bench, f"{name} alone", [table])
        # For information: the goal was set for markets as they are, not for copies of one.
        figures += await _of(bench, f"{name} as {COPIES} markets", [table] * COPIES, has_goal=False)
    generated = [generate(rows, seed=seed, grid=grid) for seed, grid in enumerate(GRIDS, start=100)]
    figures += await _of(bench, f"{len(GRIDS)} generated markets", generated)
    return figures


async def _of(
    bench: Bench, name: str, tables: list[pa.Table], *, has_goal: bool = True
) -> list[Figure]:
    community = bench.store.engine.is_community
    # Without chunks of earlier rows, whose empty files would count.
    async with bench.raw.transaction():
        await bench.raw.execute("SET LOCAL session_replication_role = replica")
        await bench.raw.execute("TRUNCATE ohlcv")
    await bench.clear()
    for number, table in enumerate(tables):
        market = await bench.store.markets.ensure("bench", f"S{number}/USDT")
        await bench.store.candles.write(market, "1m", table)
    if community:
        await bench.store.db.maintain()
    await bench.raw.execute("VACUUM ohlcv")
    rows = sum(table.num_rows for table in tables)
    size = "hypertable_size('ohlcv')" if bench.store.engine.has_hypertables else (
        "pg_total_relation_size('ohlcv')"
    )  # fmt: skip
    ours = int(await bench.raw.fetchval(f"SELECT {size}")) / rows
    exact = sum(_parquet_bytes(table) for table in tables) / rows
    floats = sum(_parquet_bytes(with_floats(table)) for table in tables) / rows
    what = f"{name}, {rows:,} candles" + (", compressed" if community else "")
    goal = 1.2 if community and has_goal else None
    return [
        counted(what, "Parquet zstd, decimal128(38,18)", ours, exact, goal),
        counted(what, "Parquet zstd, float64 (not exact)", ours, floats, goal),
    ]


def _parquet_bytes(table: pa.Table) -> int:
    sink = io.BytesIO()
    pa.parquet.write_table(table, sink, compression="zstd")
    return len(sink.getvalue())
