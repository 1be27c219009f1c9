"""Many markets in one order of time, in windows of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import pyarrow as pa
import pytest
from bars import DAY, MINUTE, START, as_table, closing, minutes, native
from rows import fetch
from sqlalchemy import text

from kurisu.domain.candle import Candle
from kurisu.errors import InvalidArgument
from kurisu.store import candle_read
from kurisu.store import candles as candles_module
from kurisu.store.candles import Candles
from kurisu.store.connect import autocommit
from kurisu.store.markets import Market
from kurisu.store.store import Store

HOUR: Final = timedelta(hours=1)


async def write(
    store: Store, market: Market, candles: Sequence[Candle], timeframe: str = "1m"
) -> None:
    await store.candles.write(market, timeframe, as_table(candles))


async def replayed(
    candles: Candles,
    markets: Sequence[Market],
    name: str,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[tuple[str, Candle]]:
    found = candles.replay(markets, name, since, until)
    return [(str(market), candle) async for market, candle in found]


async def merged(
    candles: Candles,
    markets: Sequence[Market],
    name: str,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[tuple[str, Candle]]:
    """The same by reading each market whole."""
    bars = [
        (bar.time, order, str(market), bar)
        for order, market in enumerate(markets)
        for bar in await candles.read(market, name, since, until)
    ]
    return [(market, bar) for _, _, market, bar in sorted(bars, key=lambda found: found[:2])]


@pytest.fixture
async def markets(store: Store, market: Market, other_market: Market) -> list[Market]:
    """Minutes with holes, minutes in other places, and hours of its own."""
    third = await store.markets.ensure("binance", "SOL/USDT")
    await write(store, market, [*minutes(START, 50), *minutes(START + 2 * HOUR, 30)])
    await write(store, other_market, minutes(START - 7 * MINUTE, 40, step=3 * MINUTE, seed=1))
    await write(store, third, native(START - HOUR, 6, "1h"), "1h")
    return [market, other_market, third]


async def test_bars_come_in_order_of_time_then_of_markets(
    store: Store, markets: list[Market]
) -> None:
    for name in ("1m", "5m", "30m", "1h", "1w", "1M"):
        expected = await merged(store.candles, markets, name)
        assert await replayed(store.candles, markets, name) == expected, name
        backwards = markets[::-1]
        expected = await merged(store.candles, backwards, name)
        assert await replayed(store.candles, backwards, name) == expected, name


async def test_only_bars_that_open_from_since_until_before_until_come(
    store: Store, markets: list[Market]
) -> None:
    bounds = (
        (START + 5 * MINUTE, START + 2 * HOUR + 5 * MINUTE),
        (START + timedelta(seconds=1), START + timedelta(minutes=70, seconds=1)),
        (None, START + HOUR),
        (START + HOUR, None),
        (START - DAY, START + DAY),
        (START + HOUR, START),
        (START + DAY, None),
    )
    for name in ("1m", "5m", "1h"):
        for since, until in bounds:
            expected = await merged(store.candles, markets, name, since, until)
            found = await replayed(store.candles, markets, name, since, until)
            assert found == expected, (name, since, until)


@pytest.mark.parametrize("rows", [1, 7, 64])
async def test_small_windows_change_nothing(
    store: Store, markets: list[Market], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candles_module, "REPLAY_ROWS", rows)
    expected = await merged(store.candles, markets, "15m")
    assert await replayed(store.candles, markets, "15m") == expected
    since, until = START + timedelta(minutes=7), START + timedelta(hours=2, seconds=3)
    expected = await merged(store.candles, markets, "5m", since, until)
    assert await replayed(store.candles, markets, "5m", since, until) == expected


async def test_a_window_holds_no_more_than_its_bars(
    store: Store, market: Market, other_market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, market, minutes(START, 60))
    await write(store, other_market, minutes(START, 60, seed=1))
    sizes: list[int] = []
    real = candle_read.read

    async def counted(*given: Any) -> pa.Table:
        table = await real(*given)
        sizes.append(table.num_rows)
        return table

    monkeypatch.setattr(candles_module, "REPLAY_ROWS", 20)
    monkeypatch.setattr(candle_read, "read", counted)
    assert len(await replayed(store.candles, [market, other_market], "1m")) == 120
    assert sizes == [10] * 12


async def test_months_come_one_by_one(
    store: Store, market: Market, other_market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, market, minutes(START - 40 * DAY, 8, step=19 * DAY))
    await write(store, other_market, native(START, 4, "1M"), "1M")
    both = [market, other_market]
    for rows in (1, 2, 100_000):
        monkeypatch.setattr(candles_module, "REPLAY_ROWS", rows)
        expected = await merged(store.candles, both, "1M")
        assert await replayed(store.candles, both, "1M") == expected, rows


async def test_a_hole_longer_than_a_window_is_crossed(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, market, [*minutes(START, 5), *minutes(START + DAY, 5)])
    monkeypatch.setattr(candles_module, "REPLAY_ROWS", 100)
    assert len(await replayed(store.candles, [market], "1m")) == 10


async def test_only_what_had_closed_comes_as_of_a_time(store: Store, markets: list[Market]) -> None:
    at = START + timedelta(hours=2, minutes=7, seconds=5)
    past = store.candles.as_of(at)
    for name in ("1m", "5m", "1h", "1M"):
        found = await replayed(past, markets, name)
        everything = await merged(store.candles, markets, name)
        assert found == [row for row in everything if closing(row[1].time, name) <= at], name


async def test_a_shorter_until_than_as_of_counts(store: Store, markets: list[Market]) -> None:
    past = store.candles.as_of(START + 2 * HOUR)
    found = await replayed(past, markets, "1m", until=START + 3 * MINUTE)
    assert found == await merged(store.candles, markets, "1m", until=START + 3 * MINUTE)


async def test_nothing_comes_of_markets_without_bars(
    store: Store, market: Market, other_market: Market
) -> None:
    assert await replayed(store.candles, [], "1m") == []
    assert await replayed(store.candles, [market, other_market], "1h") == []


async def test_a_market_without_bars_stands_in_nobodys_way(
    store: Store, market: Market, other_market: Market
) -> None:
    await write(store, other_market, minutes(START, 5))
    assert len(await replayed(store.candles, [market, other_market], "1m")) == 5


async def test_a_timeframe_that_nothing_divides_has_no_bars(store: Store, market: Market) -> None:
    await write(store, market, native(START, 5, "1w"), "1w")
    assert await replayed(store.candles, [market], "1M") == []
    assert await replayed(store.candles, [market], "1h") == []


async def test_bars_of_dropped_candles_come_too(
    store: Store, market: Market, other_market: Market
) -> None:
    """Retention keeps the bars: of the first day, of the last, and of every one between."""
    await store.db.set_retention("ohlcv", "30 days")
    for found in (market, other_market):
        candles = minutes(START, 40, step=timedelta(hours=2), seed=found.id)
        await store.candles.write(found, "1m", as_table(candles), allow_expiring=True)
    both = [market, other_market]
    before = {name: await merged(store.candles, both, name) for name in ("5m", "2h", "1d")}
    await expire(store)
    assert await replayed(store.candles, both, "1m") == []
    for name, expected in before.items():
        assert await replayed(store.candles, both, name) == expected, name


async def test_bars_of_dropped_candles_come_beside_older_candles(
    store: Store, market: Market, other_market: Market
) -> None:
    await store.db.set_retention("ohlcv", "30 days")
    kept = minutes(START + 20 * DAY, 10)
    await store.candles.write(market, "1m", as_table(kept), allow_expiring=True)
    await expire(store)
    older = minutes(START, 10, seed=1)
    await store.candles.write(other_market, "1m", as_table(older), allow_expiring=True)
    found = await replayed(store.candles, [market, other_market], "5m")
    assert found == await merged(store.candles, [market, other_market], "5m")
    assert len(found) == 4


async def expire(store: Store) -> None:
    """Drop the candles that the policy does not keep, as each tier does it."""
    if store.engine.is_community:
        query = "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = :proc"
        for job in await fetch(store, query, proc="policy_retention"):
            async with autocommit(store.database) as connection:
                await connection.execute(text(f"CALL run_job({job[0]})"))
    await store.db.maintain()


async def test_a_bound_without_a_time_zone_is_refused(store: Store, market: Market) -> None:
    with pytest.raises(InvalidArgument, match="since has no time zone"):
        await replayed(store.candles, [market], "1m", START.replace(tzinfo=None))
