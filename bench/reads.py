"""A year of 1m candles out of the database, and its 1d bars."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import adbc_driver_postgresql.dbapi
import pyarrow as pa

from bench.candles import YEAR
from bench.pairs import Figure, Run, alternate
from bench.servers import Bench
from bench.writes import stored_year
from kurisu.store.markets import Market

_COLUMNS = "time, open, high, low, close, volume"


#: Reads of a few milliseconds one after the other, of which a run takes the mean. One by itself,
#: after a pause, is for a good part the time that two processes take to wake up.
IN_A_ROW: Final = 20


def timed(work: Callable[[], Awaitable[Any]], times: int = 1) -> Run:
    """A run that is `work` and nothing else, `times` one after the other: the mean of one."""

    async def run() -> dict[str, float]:
        started = time.perf_counter()
        for _ in range(times):
            await work()
        return {"total": (time.perf_counter() - started) / times}

    return run


async def measure(bench: Bench, rows: int, pairs: int) -> list[Figure]:
    """Every figure of this module."""
    async with stored_year(bench, rows) as (market, table):
        figures = await _minutes(bench, market, table, pairs, "")
        figures += await _days(bench, market, pairs, "")
        if bench.store.engine.is_community:
            await bench.store.db.maintain()
            figures += await _minutes(bench, market, table, pairs, ", compressed")
            figures += await _days(bench, market, pairs, ", compressed")
            await bench.raw.execute("SELECT decompress_chunk(c, true) FROM show_chunks('ohlcv') c")
    return figures


async def _minutes(
    bench: Bench, market: Market, table: pa.Table, pairs: int, state: str
) -> list[Figure]:
    candles, raw = bench.store.candles, bench.raw
    query = (
        f"SELECT {_COLUMNS} FROM ohlcv WHERE market_id = {market.id} AND timeframe = '1m' "
        "ORDER BY time"
    )

    async def ours() -> None:
        await candles.read(market, "1m")

    async def copy() -> None:
        sink = Sink()
        await raw.copy_from_query(query, output=sink.take, format="binary")

    async def fetch() -> None:
        await raw.fetch(query)

    # Connected beforehand, as the other sides are.
    with (
        adbc_driver_postgresql.dbapi.connect(bench.dsn) as connection,
        connection.cursor() as cursor,
    ):

        async def adbc() -> None:
            cursor.execute(query)
            cursor.fetch_arrow_table()

        if not (await candles.read(market, "1m")).table.equals(table):
            raise RuntimeError("the candles that were read are not those that were written")
        what = f"read 1m as exact Arrow{state}"
        return [
            (await alternate(pairs, timed(ours), timed(copy))).figure(
                what, "raw binary COPY, bytes kept undecoded", goal=1.5
            ),
            (await alternate(pairs, timed(ours), timed(adbc))).figure(
                what, "ADBC to Arrow (numbers as text)"
            ),
            (await alternate(pairs, timed(ours), timed(fetch))).figure(
                what, "asyncpg fetch (Decimal)"
            ),
        ]


class Sink:
    """Keeps the bytes of a COPY as they come: the least that a reader can do with them."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    async def take(self, chunk: bytes) -> None:
        self.chunks.append(chunk)


async def _days(bench: Bench, market: Market, pairs: int, state: str) -> list[Figure]:
    candles, raw = bench.store.candles, bench.raw
    if bench.store.engine.has_hypertables:
        columns = (
            "time_bucket('1 day', time) AS time, first(open, time) AS open, max(high) AS high, "
            "min(low) AS low, last(close, time) AS close, sum(volume) AS volume"
        )
    else:
        columns = (
            "date_bin('1 day', time, '1970-01-01 00:00:00+00') AS time, "
            "(array_agg(open ORDER BY time))[1] AS open, max(high) AS high, min(low) AS low, "
            "(array_agg(close ORDER BY time DESC))[1] AS close, sum(volume) AS volume"
        )
    query = (
        f"SELECT {columns}, count(*)::integer AS bars FROM ohlcv "
        f"WHERE market_id = {market.id} AND timeframe = '1m' GROUP BY 1 ORDER BY 1"
    )

    async def ours() -> None:
        await candles.read(market, "1d")

    async def aggregate() -> None:
        await raw.fetch(query)

    expected = [tuple(row) for row in await raw.fetch(query)]
    found = (await candles.read(market, "1d")).table
    if list(zip(*(column.to_pylist() for column in found.columns), strict=True)) != expected:
        raise RuntimeError("the 1d bars are not those that the 1m candles make")
    # Of a month there is less to save than of a year.
    goal = 100 if len(expected) * 1440 >= YEAR else None
    return [
        (await alternate(pairs, timed(ours, times), timed(aggregate))).figure(
            f"read 1d from rollups{state}{how}",
            "SQL aggregation of the 1m",
            goal=goal,
            better="more",
        )
        for times, how in ((IN_A_ROW, f", {IN_A_ROW} in a row"), (1, ", one by itself"))
    ]
