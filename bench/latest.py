"""The newest candle of each of many markets."""

from __future__ import annotations

from typing import Final

from bench.candles import SINCE
from bench.pairs import Figure, alternate
from bench.reads import timed
from bench.servers import Bench

MARKETS: Final = 1_000
_AT_ONCE: Final = 100

# Candles of many markets, quickly: what is in them does not matter here. Parameters: market_ids,
# since, rows of each.
_FILL: Final = """
INSERT INTO ohlcv (market_id, timeframe, time, open, high, low, close, volume)
SELECT m, '1m', $2::timestamptz + n * INTERVAL '1 minute', 100 + n % 7, 108, 99, 100 + n % 5,
       m * 1000 + n
  FROM unnest($1::integer[]) AS m, generate_series(0, $3::integer - 1) AS n
 ORDER BY 1, 3
"""


async def measure(bench: Bench, rows_each: int, pairs: int) -> list[Figure]:
    """The newest of `rows_each` candles of each market."""
    raw = bench.raw
    await bench.clear()
    markets = [
        await bench.store.markets.ensure("bench", f"L{number}/USDT") for number in range(MARKETS)
    ]
    ids = [market.id for market in markets]
    for at in range(0, MARKETS, _AT_ONCE):
        await raw.execute(_FILL, ids[at : at + _AT_ONCE], SINCE, rows_each)
    await raw.execute("VACUUM ANALYZE ohlcv")
    query = (
        "SELECT DISTINCT ON (market_id) market_id, time, open, high, low, close, volume "
        "FROM ohlcv WHERE timeframe = '1m' ORDER BY market_id, time DESC"
    )

    async def ours() -> None:
        await bench.store.candles.latest(markets, "1m")

    async def distinct() -> None:
        await raw.fetch(query)

    expected = [tuple(row) for row in await raw.fetch(query)]
    found = (await bench.store.candles.latest(markets, "1m")).drop_columns("market")
    if list(zip(*(column.to_pylist() for column in found.columns), strict=True)) != expected:
        raise RuntimeError("the two queries do not agree on the latest candles")
    measured = await alternate(pairs, timed(ours), timed(distinct))
    await bench.clear()
    return [
        measured.figure(
            f"latest candle of {MARKETS:,} markets of {rows_each:,}", "DISTINCT ON",
            goal=30, better="more",
        )
    ]  # fmt: skip
