"""Reading bars: every timeframe against plain Decimal arithmetic, and where a bar comes from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final

import pyarrow as pa
import pytest
from bars import (
    DAY,
    MINUTE,
    NAMES,
    START,
    aggregated,
    as_table,
    bar,
    candle,
    closing,
    minutes,
    native,
)
from rows import fetch, rollup
from sqlalchemy import text

from kurisu.domain.candle import Candle
from kurisu.domain.timeframe import ROLLUPS
from kurisu.errors import InvalidArgument
from kurisu.store import rollups
from kurisu.store.connect import autocommit
from kurisu.store.markets import Market
from kurisu.store.rollups import Range
from kurisu.store.store import Store

ROLLUP_NAMES: Final = [frame.name for frame in ROLLUPS]
HOUR: Final = timedelta(hours=1)


def sparse(days: int, count: int, seed: int) -> list[Candle]:
    """Candles in random minutes: single ones, and short stretches of neighbours."""
    rng = random.Random(seed)
    times: set[datetime] = set()
    while len(times) < count:
        first = START + rng.randrange(days * 1_440) * MINUTE
        times |= {first + i * MINUTE for i in range(rng.choice((1, 1, 2, 7)))}
    return [candle(time, seed) for time in sorted(times)]


#: Nine weeks in three months, with whole days and weeks without a candle.
SPARSE: Final = [c for c in sparse(75, 450, 1) if not START + 20 * DAY <= c.time < START + 31 * DAY]


async def write(
    store: Store, market: Market, candles: Sequence[Candle], timeframe: str = "1m"
) -> None:
    await store.candles.write(market, timeframe, as_table(candles))


async def read(
    store: Store,
    market: Market,
    name: str,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Candle]:
    return list(await store.candles.read(market, name, since, until))


async def sources(store: Store, market: Market, name: str) -> dict[str, int]:
    return (await store.candles.read(market, name)).sources


async def test_every_timeframe_is_what_the_minutes_make(store: Store, market: Market) -> None:
    await write(store, market, SPARSE)
    for name in NAMES[1:]:
        assert await read(store, market, name) == aggregated(SPARSE, name), name


async def test_bars_are_right_before_a_refresh(
    store: Store, market: Market, other_market: Market
) -> None:
    """A backfill of years refreshes at its end; whoever reads before sees what it stored."""
    late = [c for c in SPARSE if START + 3 * DAY < c.time < START + 40 * DAY][::2]
    last = SPARSE[-1]
    there = [c for c in SPARSE if c not in late and c != last]
    await write(store, market, [*there, last._replace(close=last.high)])
    await write(store, other_market, SPARSE)
    for page in (late[:10], late[10:], [last]):
        await store.candles.write_fetched(market, "1m", as_table(page), [], now=datetime.now(UTC))
    for name in NAMES:
        bars = SPARSE if name == "1m" else aggregated(SPARSE, name)
        assert await read(store, market, name) == bars, name
        since, until = bars[len(bars) // 3].time, bars[-1].time
        assert await read(store, market, name, since, until) == [
            b for b in bars if since <= b.time < until
        ], name
        both = await store.candles.latest([market, other_market], name, 3)
        if name != "1m":
            assert both.column("bars").to_pylist() == [b.bars for b in bars[-3:]] * 2, name
        assert both.column("close").to_pylist() == [b.close for b in bars[-3:]] * 2, name
    if store.engine.is_community:
        # Of the other market nobody has to ask.
        async with autocommit(store.database) as connection:
            for one, is_stale in ((market, True), (other_market, False)):
                stored = await rollups.stored_bars(connection, ROLLUPS[0], one.id)
                assert (stored.stale is not None) is is_stale
    await store.candles.settle()
    for name in ROLLUP_NAMES:
        assert await rollup(store, market, name) == aggregated(SPARSE, name), name


async def test_minutes_are_read_as_written(store: Store, market: Market) -> None:
    await write(store, market, SPARSE)
    assert await read(store, market, "1m") == SPARSE


async def test_minutes_inside_one_day_make_every_shorter_bar(store: Store, market: Market) -> None:
    candles = minutes(START - timedelta(minutes=97), 233)
    await write(store, market, candles)
    for name in NAMES[1:]:
        assert await read(store, market, name) == aggregated(candles, name), name


async def test_bars_that_open_from_since_until_before_until_are_read(
    store: Store, market: Market
) -> None:
    await write(store, market, SPARSE)
    rng = random.Random(2)
    for name in NAMES:
        bars = SPARSE if name == "1m" else aggregated(SPARSE, name)
        opened = rng.choice(bars).time
        close = closing(opened, name)
        for since, until in (
            (opened, close),  # the one bar
            (opened, opened),
            (opened, opened + timedelta(microseconds=1)),
            (opened + timedelta(microseconds=1), close + MINUTE),
            (opened - MINUTE, close - timedelta(seconds=1)),
            (None, opened),
            (opened, None),
            (close, opened),
        ):
            expected = [
                b
                for b in bars
                if (since is None or since <= b.time) and (until is None or b.time < until)
            ]
            assert await read(store, market, name, since, until) == expected, (name, since, until)


async def test_bounds_may_be_in_any_time_zone(store: Store, market: Market) -> None:
    candles = minutes(START, 20)
    await write(store, market, candles)
    since = datetime.fromisoformat("2024-01-01T09:05:00+09:00")
    assert await read(store, market, "1m", since) == candles[5:]


async def test_a_bound_without_a_time_zone_is_refused(store: Store, market: Market) -> None:
    naive = START.replace(tzinfo=None)
    with pytest.raises(InvalidArgument, match="since has no time zone"):
        await store.candles.read(market, "1h", naive)
    with pytest.raises(InvalidArgument, match="until has no time zone"):
        await store.candles.read(market, "1h", None, naive)
    with pytest.raises(InvalidArgument, match="at has no time zone"):
        store.candles.as_of(naive)


@pytest.mark.parametrize("bound", ["2024-01-01", START.date(), 1_704_067_200_000])
async def test_a_bound_that_is_no_datetime_is_refused(
    store: Store, market: Market, bound: Any
) -> None:
    with pytest.raises(InvalidArgument, match="until is .*, not a datetime"):
        await store.candles.read(market, "1h", START, bound)


async def test_a_name_is_no_market(store: Store, market: Market) -> None:
    name: Any = str(market)
    candles = store.candles
    for call in (
        lambda: candles.read(name, "1h"),
        lambda: candles.gaps(market.name),  # type: ignore[arg-type]
        lambda: candles.write(name, "1m", []),
        lambda: store.trades.read(name),
        lambda: store.trades.latest(name),
        lambda: store.trades.coverage(name),
        lambda: store.trades.write(name, []),
    ):
        with pytest.raises(InvalidArgument, match=f"'{name}' is no market of a store"):
            await call()
    no_lists: list[Any] = [market, name]
    for several in no_lists:
        with pytest.raises(InvalidArgument, match=r"pass \[market\]"):
            await candles.latest(several, "1h")
        with pytest.raises(InvalidArgument, match=r"pass \[market\]"):
            _ = [item async for item in candles.replay(several, "1h")]


async def test_an_unknown_timeframe_is_refused(store: Store, market: Market) -> None:
    with pytest.raises(InvalidArgument, match="unknown timeframe '7m'"):
        await store.candles.read(market, "7m")


async def test_markets_do_not_see_each_other(
    store: Store, market: Market, other_market: Market
) -> None:
    mine, theirs = minutes(START, 70, seed=1), minutes(START + 30 * MINUTE, 70, seed=2)
    await write(store, market, mine)
    await write(store, other_market, theirs)
    for name in ("5m", "30m", "1h", "1w"):
        assert await read(store, market, name) == aggregated(mine, name)
        assert await read(store, other_market, name) == aggregated(theirs, name)


async def test_a_market_without_candles_has_a_table_without_rows(
    store: Store, market: Market
) -> None:
    for name in ("1m", "5m", "30m", "1h", "1w", "1M"):
        table = await store.candles.read(market, name)
        assert len(table) == 0
        assert table.sources == {}
        assert ("bars" in table.column_names) == (name != "1m")


async def test_columns_are_exact_and_have_the_bars_inside(store: Store, market: Market) -> None:
    await write(store, market, minutes(START, 10))
    money = pa.decimal128(38, 18)
    columns = [
        ("time", pa.timestamp("us", tz="UTC")),
        *((name, money) for name in ("open", "high", "low", "close", "volume")),
    ]
    assert (await store.candles.read(market, "1m")).schema.equals(pa.schema(columns))
    columns.append(("bars", pa.int32()))
    for name in ("3m", "5m", "1w"):
        assert (await store.candles.read(market, name)).schema.equals(pa.schema(columns)), name


async def test_bars_says_how_many_minutes_are_inside(store: Store, market: Market) -> None:
    await write(store, market, [*minutes(START, 7), candle(START + 3 * HOUR)])
    table = await store.candles.read(market, "1h")
    assert table["bars"].to_pylist() == [7, 1]
    assert (await store.candles.read(market, "1M"))["bars"].to_pylist() == [8]


async def test_as_of_shows_only_bars_that_had_closed(store: Store, market: Market) -> None:
    await write(store, market, SPARSE)
    at = START + 45 * DAY + timedelta(hours=7, minutes=13, seconds=5)
    past = store.candles.as_of(at)
    for name in NAMES:
        bars = SPARSE if name == "1m" else aggregated(SPARSE, name)
        expected = [b for b in bars if closing(b.time, name) <= at]
        assert list(await past.read(market, name)) == expected, name


async def test_a_bar_is_there_as_of_its_close(store: Store, market: Market) -> None:
    await write(store, market, minutes(START, 120))
    close = START + HOUR
    assert len(await store.candles.as_of(close).read(market, "1h")) == 1
    before = store.candles.as_of(close - timedelta(microseconds=1))
    assert len(await before.read(market, "1h")) == 0


async def test_as_of_and_until_both_count(store: Store, market: Market) -> None:
    await write(store, market, minutes(START, 120))
    past = store.candles.as_of(START + 10 * MINUTE)
    assert len(await past.read(market, "1m", until=START + 5 * MINUTE)) == 5
    assert len(await past.read(market, "1m", until=START + 50 * MINUTE)) == 10


# Bars of the exchange's own where there are no minutes.


async def test_own_bars_are_read_as_written_where_there_are_no_minutes(
    store: Store, market: Market
) -> None:
    own = native(START, 40, "5m")
    await write(store, market, own, "5m")
    table = await store.candles.read(market, "5m")
    assert list(table) == own
    assert table["bars"].null_count == len(own)
    assert table.sources == {"5m": len(own)}


async def test_longer_bars_are_made_from_own_ones(store: Store, market: Market) -> None:
    own = [c for i, c in enumerate(native(START + 20 * MINUTE, 900, "5m")) if i % 3]
    await write(store, market, own, "5m")
    for name in ("15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1M"):
        expected = aggregated(own, name)
        table = await store.candles.read(market, name)
        assert list(table) == expected, name
        assert table.sources == {"5m": len(expected)}, name


async def test_own_bars_make_no_shorter_or_uneven_ones(store: Store, market: Market) -> None:
    await write(store, market, native(START, 20, "3m"), "3m")
    for name in ("1m", "5m"):
        assert await read(store, market, name) == [], name
    assert len(await read(store, market, "15m")) == 4


async def test_weeks_do_not_make_months_or_days(store: Store, market: Market) -> None:
    weeks = native(START, 9, "1w")
    await write(store, market, weeks, "1w")
    assert await read(store, market, "1w") == weeks
    assert await read(store, market, "1M") == []
    assert await read(store, market, "1d") == []


async def test_weeks_and_months_are_made_from_own_days(store: Store, market: Market) -> None:
    days = [c for i, c in enumerate(native(START - 3 * DAY, 80, "1d")) if i % 5]
    await write(store, market, days, "1d")
    for name in ("3d", "1w", "1M"):
        assert await read(store, market, name) == aggregated(days, name), name
        assert await sources(store, market, name) == {"1d": len(aggregated(days, name))}


async def test_own_weeks_and_months_are_read_as_written(store: Store, market: Market) -> None:
    months, weeks = native(START, 14, "1M"), native(START, 6, "1w")
    await write(store, market, months, "1M")
    await write(store, market, weeks, "1w")
    assert await read(store, market, "1M") == months
    assert await read(store, market, "1w") == weeks


async def test_hours_come_from_minutes_where_there_are_any(store: Store, market: Market) -> None:
    hours = native(START, 10, "1h")
    some = [*minutes(START + 2 * HOUR, 5), candle(START + 5 * HOUR - MINUTE), *minutes(
        START + 9 * HOUR + 50 * MINUTE, 30)]  # fmt: skip
    await write(store, market, hours, "1h")
    await write(store, market, some)
    made = {b.time: b for b in aggregated(some, "1h")}
    table = await store.candles.read(market, "1h")
    assert list(table) == [
        *(made.get(h.time, h) for h in hours),
        made[START + 10 * HOUR],
    ]
    assert table.sources == {"1m": 4, "1h": 7}
    assert [n is None for n in table["bars"].to_pylist()] == [
        c.time not in made for c in table.candles()
    ]


async def test_an_own_bar_comes_before_one_that_is_made_from_others(
    store: Store, market: Market
) -> None:
    fives, hours = native(START, 48, "5m"), native(START + HOUR, 2, "1h")
    await write(store, market, fives, "5m")
    await write(store, market, hours, "1h")
    made = aggregated(fives, "1h")
    table = await store.candles.read(market, "1h")
    assert list(table) == [made[0], *hours, made[3]]
    assert table.sources == {"5m": 2, "1h": 2}


async def test_bars_are_made_from_the_finest_that_divides_them(
    store: Store, market: Market
) -> None:
    quarters, hours = native(START, 8, "15m"), native(START + HOUR, 24, "1h")
    threes = native(START + 8 * HOUR, 3, "3m")
    for name, candles in (("15m", quarters), ("1h", hours), ("3m", threes)):
        await write(store, market, candles, name)
    table = await store.candles.read(market, "4h")
    assert list(table) == [
        bar(START, quarters),
        bar(START + 4 * HOUR, hours[3:7]),
        bar(START + 8 * HOUR, threes),
        *aggregated(hours[11:], "4h"),
    ]
    assert table.sources == {"15m": 1, "1h": 5, "3m": 1}


async def test_one_bar_never_mixes_sources(store: Store, market: Market) -> None:
    """A single minute decides for the whole bar, of every length."""
    one = candle(START + 59 * MINUTE, 9)
    await write(store, market, [one])
    await write(store, market, native(START, 24, "5m"), "5m")
    await write(store, market, native(START, 3, "1h"), "1h")
    await write(store, market, native(START, 1, "1d"), "1d")
    for name in ("30m", "1h", "2h", "1d", "1w", "1M"):
        assert [b for b in await read(store, market, name) if b.time <= one.time < closing(
            b.time, name)] == aggregated([one], name), name  # fmt: skip


async def test_every_bar_of_mixed_data_has_one_source(store: Store, market: Market) -> None:
    rng = random.Random(5)
    data: dict[str, list[Candle]] = {}
    for name, count, share in (("1m", 2_000, 0.02), ("5m", 700, 0.03), ("1h", 90, 0.4)):
        data[name] = [c for c in native(START, count, name, seed=3) if rng.random() < share]
        await write(store, market, data[name], name)
    order = {"4h": ("1m", "5m", "1h"), "1h": ("1m", "1h", "5m"), "30m": ("1m", "5m")}
    for name, names in order.items():
        expected: dict[datetime, Candle] = {}
        counts: dict[str, int] = {}
        for source in names:
            made = data[source] if source == name else aggregated(data[source], name)
            for found in made:
                if expected.setdefault(found.time, found) is found:
                    counts[source] = counts.get(source, 0) + 1
        assert len(counts) == len(names), "every source is in use"
        table = await store.candles.read(market, name)
        assert list(table) == [expected[time] for time in sorted(expected)], name
        assert table.sources == counts, name


async def test_bars_are_in_order_of_time(store: Store, market: Market) -> None:
    await write(store, market, native(START, 5, "1h"), "1h")
    await write(store, market, minutes(START + 2 * HOUR, 3))
    times = [c.time for c in await read(store, market, "1h")]
    assert all(left < right for left, right in pairwise(times))


async def test_sources_of_what_is_read_only(store: Store, market: Market) -> None:
    await write(store, market, minutes(START, 60))
    await write(store, market, native(START + HOUR, 3, "1h"), "1h")
    table = await store.candles.read(market, "1h", START + HOUR)
    assert table.sources == {"1h": 3}
    assert (await store.candles.read(market, "1h", until=START + HOUR)).sources == {"1m": 1}


async def test_volumes_beyond_one_candle_are_summed_exactly(store: Store, market: Market) -> None:
    """Sums of NUMERIC(38,18) values that need all of its digits."""
    big = [c._replace(volume=c.volume * 0 + 10**18 * (i + 1)) for i, c in
           enumerate(minutes(datetime(2024, 2, 29, 23, 55, tzinfo=UTC), 10))]  # fmt: skip
    await write(store, market, big)
    for name in ("5m", "1d", "1M"):
        assert await read(store, market, name) == aggregated(big, name), name


NOW: Final = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
#: A candle in every twenty minutes of the last weeks: some below every watermark, some above.
RECENT: Final = minutes(NOW - 12 * DAY, 12 * 72, step=20 * MINUTE)


async def refreshed(store: Store, until: datetime) -> None:
    """What a background policy that ran up to `until` leaves behind."""
    async with autocommit(store.database) as connection:
        for frame in ROLLUPS:
            await rollups.refresh(connection, frame, Range(RECENT[0].time - DAY, until))


@pytest.mark.parametrize("tier", ["community"], indirect=True)
@pytest.mark.parametrize("back", [0, 2, 9])
async def test_bars_on_both_sides_of_the_watermark_are_those_of_the_view(
    store: Store, market: Market, back: int
) -> None:
    """Whether the candles above it are few, many or none."""
    await insert_into(store, market, RECENT)
    await refreshed(store, NOW - back * DAY)
    for name in ("5m", "15m", "1h", "4h", "1d"):
        assert await read(store, market, name) == aggregated(RECENT, name), name
        assert await read(store, market, name) == await rollup(store, market, name), name
        edge = NOW - back * DAY
        for since, until in ((edge, None), (None, edge), (edge - DAY, edge + DAY), (edge, edge)):
            assert await read(store, market, name, since, until) == [
                b for b in aggregated(RECENT, name)
                if (since is None or b.time >= since) and (until is None or b.time < until)
            ], (name, since, until)  # fmt: skip


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_bars_above_the_watermark_outlive_their_candles(store: Store, market: Market) -> None:
    """A day above the watermark of days is made from hours, once its minutes are dropped."""
    await insert_into(store, market, RECENT)
    async with autocommit(store.database) as connection:
        for frame in ROLLUPS[:-1]:
            await rollups.refresh(connection, frame, Range(RECENT[0].time - DAY, NOW))
    await store.db.set_retention("ohlcv", "1 day")
    await fetch(store, "SELECT drop_chunks('ohlcv', older_than => now() - INTERVAL '1 day')")
    assert await rollup(store, market, "1d") == aggregated(RECENT, "1d")
    assert await read(store, market, "1d") == aggregated(RECENT, "1d")


async def insert_into(store: Store, market: Market, candles: Sequence[Candle]) -> None:
    """Past `write`, which would refresh what it stores."""
    async with store.database.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO ohlcv (market_id, timeframe, time, open, high, low, close, volume) "
                "VALUES (:id, '1m', :time, :open, :high, :low, :close, :volume)"
            ),
            [{"id": market.id, **c._asdict()} for c in candles],
        )
