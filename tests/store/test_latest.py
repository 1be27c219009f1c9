"""The newest bars of many markets, against everything that a read gives for each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import pyarrow as pa
import pytest
from bars import DAY, MINUTE, NAMES, START, as_table, candle, closing, minutes, native

from kurisu.domain.candle import Candle
from kurisu.errors import InvalidArgument
from kurisu.store.candles import Candles
from kurisu.store.markets import Market
from kurisu.store.store import Store

HOUR: Final = timedelta(hours=1)


async def write(
    store: Store, market: Market, candles: Sequence[Candle], timeframe: str = "1m"
) -> None:
    await store.candles.write(market, timeframe, as_table(candles))


def rows(table: pa.Table) -> list[tuple[str, int, Candle]]:
    columns = [column.to_pylist() for column in table.columns]
    return [
        (name, market_id, Candle(*values))
        for name, market_id, *values in zip(*columns, strict=True)
    ]


async def newest(
    candles: Candles, markets: Sequence[Market], name: str, count: int
) -> list[tuple[str, int, Candle]]:
    """The same by reading everything."""
    return [
        (str(market), market.id, bar)
        for market in sorted(markets, key=lambda m: m.id)
        for bar in list(await candles.read(market, name))[-count:]
    ]


async def assert_latest(
    candles: Candles, markets: Sequence[Market], name: str, counts: Sequence[int] = (1, 3)
) -> None:
    for count in counts:
        found = rows(await candles.latest(markets, name, count))
        assert found == await newest(candles, markets, name, count), (name, count)


@pytest.fixture
async def markets(store: Store) -> list[Market]:
    """Five markets: minutes, sparse minutes, hours of its own, both, and one without rows."""
    symbols = ("BTC/USDT", "ETH/USDT", "SOL/USDT", "PEPE/USDT", "DOGE/USDT")
    found = [await store.markets.ensure("binance", symbol) for symbol in symbols]
    await write(store, found[0], minutes(START + 40 * DAY, 100))
    await write(store, found[1], minutes(START, 6, step=9 * DAY + 7 * MINUTE))
    await write(store, found[2], native(START + 41 * DAY, 30, "1h"), "1h")
    await write(store, found[3], native(START, 20, "1h", seed=1), "1h")
    await write(store, found[3], minutes(START + 17 * HOUR + 5 * MINUTE, 70))
    return found


async def test_every_timeframe_ends_as_a_read_of_it_does(
    store: Store, markets: list[Market]
) -> None:
    for name in NAMES:
        await assert_latest(store.candles, markets, name)


async def test_bars_that_were_open_at_a_time_are_not_there_as_of_it(
    store: Store, markets: list[Market]
) -> None:
    past = store.candles.as_of(START + 40 * DAY + timedelta(minutes=63, seconds=1))
    for name in ("1m", "5m", "30m", "1h", "1d", "1w", "1M"):
        await assert_latest(past, markets, name)
        for _, _, bar in rows(await past.latest(markets, name)):
            assert past.as_of_time is not None
            assert closing(bar.time, name) <= past.as_of_time


async def test_before_the_first_candle_there_is_nothing(
    store: Store, markets: list[Market]
) -> None:
    past = store.candles.as_of(START)
    for name in ("1m", "5m", "1h", "30m", "1w"):
        assert rows(await past.latest(markets, name)) == []


async def test_more_than_there_are_is_all(store: Store, markets: list[Market]) -> None:
    for name in ("1m", "1h", "2h", "1M"):
        await assert_latest(store.candles, markets, name, (1_000,))


async def test_a_market_without_bars_has_no_row(
    store: Store, market: Market, other_market: Market
) -> None:
    await write(store, market, minutes(START, 3))
    for name in ("1m", "15m", "30m"):
        found = rows(await store.candles.latest([other_market, market], name))
        assert [row[0] for row in found] == [str(market)]
        assert rows(await store.candles.latest([other_market], name)) == []


async def test_no_markets_have_no_rows(store: Store, market: Market) -> None:
    for name in ("1m", "5m", "1w"):
        assert (await store.candles.latest([], name)).num_rows == 0


async def test_a_market_that_ended_is_found_beside_one_that_goes_on(
    store: Store, market: Market, other_market: Market
) -> None:
    await write(store, market, minutes(START, 90))
    await write(store, other_market, minutes(START + 100 * DAY, 400))
    for name in ("1m", "5m", "30m", "1h", "1w", "1M"):
        await assert_latest(store.candles, [market, other_market], name, (1, 2))
        assert len(await newest(store.candles, [market, other_market], name, 1)) == 2


async def test_a_hole_before_the_newest_bar_is_crossed(store: Store, market: Market) -> None:
    await write(store, market, [*minutes(START, 90), candle(START + 300 * DAY)])
    for name in ("1m", "1h", "30m", "2h", "3d", "1w", "1M"):
        await assert_latest(store.candles, [market], name, (2,))


async def test_minutes_come_before_own_bars(store: Store, market: Market) -> None:
    await write(store, market, native(START, 4, "1h"), "1h")
    await write(store, market, minutes(START + 3 * HOUR, 10))
    found = rows(await store.candles.latest([market], "1h", 2))
    assert [bar.bars for _, _, bar in found] == [None, 10]


async def test_a_rollup_is_made_from_shorter_own_bars(store: Store, market: Market) -> None:
    """There is no rollup of them; it is read the way that `read` reads it."""
    await write(store, market, native(START + 10 * MINUTE, 40, "5m"), "5m")
    for name in ("5m", "15m", "1h", "4h", "1d"):
        assert (await store.candles.latest([market], name)).num_rows == 1, name
        await assert_latest(store.candles, [market], name, (1, 2, 100))


async def test_own_bars_are_mixed_with_shorter_ones_as_in_a_read(
    store: Store, market: Market, other_market: Market
) -> None:
    await write(store, market, native(START, 60, "5m"), "5m")
    await write(store, market, native(START + HOUR, 2, "1h"), "1h")
    await write(store, market, minutes(START + 4 * HOUR + 20 * MINUTE, 3))
    await write(store, other_market, minutes(START + DAY, 70))
    for name in ("5m", "15m", "1h", "2h", "4h"):
        await assert_latest(store.candles, [market, other_market], name, (1, 2, 5))


async def test_weeks_and_months_come_from_own_days(store: Store, market: Market) -> None:
    await write(store, market, native(START, 45, "1d"), "1d")
    for name in ("3d", "1w", "1M"):
        await assert_latest(store.candles, [market], name, (1, 2, 9))


async def test_longer_own_bars_do_not_hide_shorter_ones(store: Store, market: Market) -> None:
    await write(store, market, minutes(START, 90))
    await write(store, market, native(START, 20, "1w"), "1w")
    for name in ("1m", "5m", "30m", "1w"):
        await assert_latest(store.candles, [market], name, (1, 2))


async def test_columns_are_those_of_a_read_and_the_market(store: Store, market: Market) -> None:
    await write(store, market, minutes(START, 10))
    for name in ("1m", "5m", "30m", "1w"):
        table = await store.candles.latest([market], name)
        read = await store.candles.read(market, name)
        assert table.column_names == ["market", "market_id", *read.column_names], name
        assert table.schema.field("market_id").type == pa.int32()
        for column in read.column_names:
            assert table.schema.field(column).type == read.schema.field(column).type


async def test_a_count_below_one_is_refused(store: Store, market: Market) -> None:
    with pytest.raises(InvalidArgument, match="count is 0"):
        await store.candles.latest([market], "1m", 0)


async def test_an_unknown_timeframe_is_refused(store: Store, market: Market) -> None:
    with pytest.raises(InvalidArgument, match="unknown timeframe"):
        await store.candles.latest([market], "1y")
