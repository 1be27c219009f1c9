"""A year of 1m candles into the database, against psql's `\\copy` of the same rows."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.candles import MINUTE, SINCE, changed, generate, write_csv
from bench.pairs import Figure, Run, Sample, alternate
from bench.servers import Bench
from kurisu.domain.timeframe import ROLLUPS
from kurisu.store import rollups
from kurisu.store.candle_write import WriteReport
from kurisu.store.markets import Market

COPY: Final = "psql \\copy CSV"
_number: Final = itertools.count(1)


async def measure(bench: Bench, rows: int, pairs: int) -> list[Figure]:
    """Every figure of this module."""
    table = generate(rows)
    figures = await _into_empty(bench, table, pairs)
    half, few, every = rows // 2, np.zeros(rows, dtype=np.bool_), np.ones(rows, dtype=np.bool_)
    few[np.random.default_rng(7).choice(rows, rows // 100, replace=False)] = True
    unchanged = (0, 0, rows)
    # What is stored before, what is written, and what becomes of the rows: inserted, updated,
    # unchanged.
    cases: Sequence[tuple[str, float | None, pa.Table, pa.Table, tuple[int, int, int]]] = (
        ("again, all rows unchanged", 2.5, table, table, unchanged),
        ("the second half of the rows new", None, table.slice(0, half), table,
         (rows - half, 0, half)),
        ("again, 1 % of the rows changed", None, table, changed(table, few),
         (0, int(few.sum()), rows - int(few.sum()))),
        ("again, every row changed", None, table, changed(table, every), (0, rows, 0)),
    )  # fmt: skip
    for what, goal, before, rows_given, expected in cases:
        measured = await alternate(
            pairs,
            _our_write(bench, before, rows_given, expected),
            _their_copy(bench, table, refreshed=False),
        )
        figures.append(measured.figure(f"write {what}", f"{COPY} into an empty range", goal=goal))
    await bench.clear()
    return figures


async def _into_empty(bench: Bench, table: pa.Table, pairs: int) -> list[Figure]:
    community = bench.store.engine.is_community
    measured = await alternate(
        pairs,
        _our_write(bench, None, table, (table.num_rows, 0, 0)),
        _their_copy(bench, table, refreshed=community),
    )
    if not community:
        # The same triggers run on both sides: rollups are right after each.
        return [measured.figure("write into an empty range", f"{COPY}, same triggers", goal=1.0)]
    return [
        measured.figure(
            "write into an empty range, rollups right", f"{COPY}, then refresh calls", goal=1.0
        ),
        measured.figure(
            "write into an empty range, no refresh on either side", COPY,
            ours="rows", theirs="rows", goal=1.0,
        ),
        measured.figure("the refresh alone", "the refresh calls", ours="refresh", theirs="refresh"),
    ]  # fmt: skip


async def _new_market(bench: Bench) -> Market:
    return await bench.store.markets.ensure("bench", f"W{next(_number)}/USDT")


def _our_write(
    bench: Bench, before: pa.Table | None, table: pa.Table, expected: tuple[int, int, int]
) -> Run:
    async def run() -> Sample:
        await bench.clear()
        market = await _new_market(bench)
        if before is not None:
            await bench.store.candles.write(market, "1m", before)
        await bench.settle()
        with _refresh_clock() as refreshing:
            started = time.perf_counter()
            report = await bench.store.candles.write(market, "1m", table)
            total = time.perf_counter() - started
        _check(report, expected)
        bars = (await bench.store.candles.read(market, "5m")).table.column("bars")
        if pc.sum(bars).as_py() != table.num_rows:
            raise RuntimeError("the write returned before the rollups were right")
        return {"total": total, "rows": total - sum(refreshing), "refresh": sum(refreshing)}

    return run


def _check(report: WriteReport, expected: tuple[int, int, int]) -> None:
    found = (report.inserted, report.updated, report.unchanged)
    if found != expected:
        raise RuntimeError(f"the write did {found} instead of {expected}")


def _their_copy(bench: Bench, table: pa.Table, *, refreshed: bool) -> Run:
    path = bench.folder / "candles.csv"

    async def run() -> Sample:
        await bench.clear()
        market = await _new_market(bench)
        write_csv(path, market.id, table)
        await bench.settle()
        rows = await bench.run_psql(
            "\\copy ohlcv (market_id, timeframe, time, open, high, low, close, volume) "
            f"from '{path}' with (format csv)"
        )
        started = time.perf_counter()
        if refreshed:
            await refresh(bench, table.num_rows)
        refreshing = time.perf_counter() - started
        return {"total": rows + refreshing, "rows": rows, "refresh": refreshing}

    return run


async def refresh(bench: Bench, rows: int) -> None:
    """What a user of TimescaleDB has to call after a `\\copy` of old candles, in this order."""
    for frame in ROLLUPS:
        until = SINCE + rows * MINUTE
        # Whole bars: a refresh leaves out those that its window cuts.
        until += (SINCE - until) % timedelta(seconds=frame.seconds)
        await bench.raw.execute(
            f"CALL refresh_continuous_aggregate('ohlcv_{frame.name}', "
            f"'{SINCE.isoformat()}'::timestamptz, '{until.isoformat()}'::timestamptz)"
        )


@contextlib.contextmanager
def _refresh_clock() -> Iterator[list[float]]:
    """Take the time of the refresh inside a write, which follows its commit."""
    taken: list[float] = []
    original: Callable[..., Any] = rollups.refresh_pending

    async def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return await original(*arguments)
        finally:
            taken.append(time.perf_counter() - started)

    with patch.object(rollups, "refresh_pending", timed):
        yield taken


@contextlib.asynccontextmanager
async def stored_year(bench: Bench, rows: int) -> AsyncIterator[tuple[Market, pa.Table]]:
    """A market with generated candles, for the reads; cleared at the end."""
    await bench.clear()
    market, table = await _new_market(bench), generate(rows)
    _check(await bench.store.candles.write(market, "1m", table), (rows, 0, 0))
    await bench.raw.execute("VACUUM ANALYZE ohlcv")
    try:
        yield market, table
    finally:
        await bench.clear()
