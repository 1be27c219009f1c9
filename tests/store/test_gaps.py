"""Where candles are not: against a list of every bar that could be there."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Final

import pytest
from bars import DAY, MINUTE, START, as_table, candle, closing, minutes, opening
from rows import fetch
from sqlalchemy import text

from kurisu.domain.timeframe import TIMEFRAMES
from kurisu.errors import InvalidArgument
from kurisu.store import coverage, coverage_read
from kurisu.store.connect import transaction
from kurisu.store.coverage import Stretch
from kurisu.store.coverage_read import Gap
from kurisu.store.markets import Market
from kurisu.store.store import Store

SHAPES: Final = ("1m", "5m", "1h", "1w", "1M")


def at(minute: int) -> datetime:
    return START + minute * MINUTE


def slots(since: datetime, until: datetime, name: str) -> list[datetime]:
    """Every bar that opens in [since, until)."""
    opened = opening(since, name)
    times = [opened] if opened == since else []
    while (opened := closing(opened, name)) < until:
        times.append(opened)
    return times if since < until else []


def expected(
    stored: Iterable[datetime],
    said: dict[datetime, str],
    name: str,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Gap]:
    """The gaps, bar by bar. said: what is known of bars that are not stored."""
    times = set(stored)
    inside = [t for t in times if (since is None or t >= since) and (until is None or t < until)]
    if not inside and (since is None or until is None):
        return []
    first = since if since is not None else min(inside)
    last = until if until is not None else closing(max(inside), name)
    gaps = []
    for kind, found in groupby(
        slots(first, last, name), lambda t: None if t in times else said.get(t, "missing")
    ):
        bars = list(found)
        if kind is not None:
            gaps.append(Gap(bars[0], closing(bars[-1], name), len(bars), kind))
    return gaps


async def say(
    store: Store, market: Market, since: datetime, until: datetime, status: str, name: str = "1m"
) -> None:
    async with transaction(store.database) as connection:
        stretch = Stretch(since, until, status, "rest")
        await coverage.state(connection, market.id, TIMEFRAMES[name], [stretch])


async def write(store: Store, market: Market, times: Sequence[datetime], name: str = "1m") -> None:
    await store.candles.write(market, name, as_table([candle(time) for time in times]))


@pytest.mark.parametrize("name", SHAPES)
async def test_gaps_are_the_bars_that_are_not_there(
    store: Store, market: Market, name: str
) -> None:
    rng = random.Random(name)
    every = slots(START, closing(START, name), name)
    while len(every) < 30:
        every.append(closing(every[-1], name))
    times = sorted(rng.sample(every[2:-2], 13))
    await write(store, market, times, name)
    said: dict[datetime, str] = {}
    for _ in range(5):
        first, last = sorted(rng.sample(range(30), 2))
        status = rng.choice(("empty", "outage", "failed"))
        await say(store, market, every[first], every[last], status, name)
        said |= dict.fromkeys(every[first:last], status)
    just = timedelta(seconds=1)
    bounds: list[tuple[datetime | None, datetime | None]] = [
        (None, None),
        (every[0], closing(every[-1], name)),
        (every[0] - 3 * DAY, None),
        (None, every[-1] + 80 * DAY),
        (times[3], times[7]),
        (times[3] + just, times[7] + just),
        (times[3] - just, times[7] - just),
        (times[4], times[4]),
        (times[5], times[2]),
        (every[-1], closing(every[-1], name)),
    ]
    for since, until in bounds:
        found = await store.candles.gaps(market, name, since, until)
        assert found == expected(times, said, name, since, until), (since, until)


async def test_without_candles_the_whole_of_what_was_asked_is_missing(
    store: Store, market: Market
) -> None:
    assert await store.candles.gaps(market, "1m", at(0), at(90)) == [
        Gap(at(0), at(90), 90, "missing")
    ]
    assert await store.candles.gaps(market, "1h", at(0), at(120)) == [
        Gap(at(0), at(120), 2, "missing")
    ]


async def test_without_candles_and_bounds_there_is_no_gap(store: Store, market: Market) -> None:
    for since, until in ((None, None), (at(0), None), (None, at(5)), (at(5), at(0))):
        assert await store.candles.gaps(market, "1m", since, until) == []


async def test_without_candles_what_was_said_is_told(store: Store, market: Market) -> None:
    await say(store, market, at(10), at(20), "outage")
    await say(store, market, at(40), at(60), "empty")
    assert await store.candles.gaps(market, "1m", at(0), at(50)) == [
        Gap(at(0), at(10), 10, "missing"),
        Gap(at(10), at(20), 10, "outage"),
        Gap(at(20), at(40), 20, "missing"),
        Gap(at(40), at(50), 10, "empty"),
    ]


async def test_candles_without_a_hole_have_no_gap(store: Store, market: Market) -> None:
    await write(store, market, [at(i) for i in range(50)])
    assert await store.candles.gaps(market) == []
    assert await store.candles.gaps(market, "1m", at(3), at(40)) == []


async def test_what_is_said_of_stored_candles_makes_no_gap(store: Store, market: Market) -> None:
    await write(store, market, [at(i) for i in range(50)])
    await say(store, market, at(-5), at(70), "failed")
    assert await store.candles.gaps(market) == []
    assert await store.candles.gaps(market, "1m", at(-3), at(52)) == [
        Gap(at(-3), at(0), 3, "failed"), Gap(at(50), at(52), 2, "failed"),
    ]  # fmt: skip


async def test_a_candle_that_somebody_deleted_is_missing(store: Store, market: Market) -> None:
    await write(store, market, [at(i) for i in range(10)])
    await fetch(store, "DELETE FROM ohlcv WHERE time = :time", time=at(4))
    assert await store.candles.gaps(market) == [Gap(at(4), at(5), 1, "missing")]


async def test_a_gap_that_was_filled_is_gone(store: Store, market: Market) -> None:
    await write(store, market, [at(0), at(9)])
    await say(store, market, at(1), at(9), "failed")
    await write(store, market, [at(i) for i in range(1, 5)])
    assert await store.candles.gaps(market) == [Gap(at(5), at(9), 4, "failed")]


async def test_timeframes_and_markets_have_their_own_gaps(
    store: Store, market: Market, other_market: Market
) -> None:
    await write(store, market, [at(0), at(5)])
    await write(store, market, [at(0), at(20)], "5m")
    await write(store, other_market, [at(0), at(2)])
    assert [g.bars for g in await store.candles.gaps(market, "1m")] == [4]
    assert [g.bars for g in await store.candles.gaps(market, "5m")] == [3]
    assert [g.bars for g in await store.candles.gaps(other_market, "1m")] == [1]


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
async def test_months_are_those_of_utc_whatever_the_session_says(
    store: Store, market: Market, zone: str
) -> None:
    times = slots(START, START + 800 * DAY, "1M")
    present = [time for i, time in enumerate(times) if i not in (2, 3, 11, 20)]
    await write(store, market, present, "1M")
    async with transaction(store.database) as connection:
        await connection.execute(text(f"SET LOCAL timezone = '{zone}'"))
        found = await coverage_read.gaps(connection, market.id, TIMEFRAMES["1M"], None, None)
    assert [(g.since, g.bars) for g in found] == [(times[2], 2), (times[11], 1), (times[20], 1)]


async def test_a_gap_across_years_counts_its_months(store: Store, market: Market) -> None:
    months = slots(START, START + 800 * DAY, "1M")
    await write(store, market, [months[0], months[20]], "1M")
    assert await store.candles.gaps(market, "1M") == [Gap(months[1], months[20], 19, "missing")]


async def test_gaps_of_derived_bars_are_those_of_the_candles_below(
    store: Store, market: Market
) -> None:
    candles = store.candles
    assert (await candles.made_from(market, "1h")).name == "1h"
    await write(store, market, [at(i) for i in range(180) if i != 70])
    hole = [Gap(at(70), at(71), 1, "missing")]
    for name in ("5m", "1h", "2h", "1w", "1M"):
        assert (await candles.made_from(market, name)).name == "1m"
        assert await candles.gaps(market, name) == hole
        # Nothing of it was fetched as such, and all of it can be read.
        assert await candles.gaps(market, name, at(0), at(180)) == hole
    # What is known of the exchange's own bars comes first.
    await say(store, market, at(0), at(180), "empty", "1h")
    assert await candles.gaps(market, "1h", at(0), at(180)) == [Gap(at(0), at(180), 3, "empty")]
    await write(store, market, [at(0)], "2h")
    assert (await candles.made_from(market, "2h")).name == "2h"
    assert (await candles.made_from(market, "4h")).name == "1m"


async def test_what_has_not_closed_is_no_gap(store: Store, market: Market) -> None:
    await write(store, market, [at(0)])
    (gap,) = await store.candles.gaps(market, "1m", at(0), datetime(2090, 1, 1, tzinfo=UTC))
    assert (gap.since, gap.status) == (at(1), "missing")
    assert gap.until <= datetime.now(UTC)
    before = store.candles.as_of(at(30) + timedelta(seconds=59))
    assert await before.gaps(market, "1m", at(0), at(90)) == [Gap(at(1), at(30), 29, "missing")]


async def test_a_bound_without_a_time_zone_is_refused(store: Store, market: Market) -> None:
    with pytest.raises(InvalidArgument, match="since has no time zone"):
        await store.candles.gaps(market, "1m", START.replace(tzinfo=None))


async def test_many_gaps_come_in_order(store: Store, market: Market) -> None:
    rows = minutes(START, 200, step=3 * MINUTE)
    await store.candles.write(market, "1m", as_table(rows))
    found = await store.candles.gaps(market)
    assert [g.since for g in found] == [row.time + MINUTE for row in rows[:-1]]
    assert {g.bars for g in found} == {2}
