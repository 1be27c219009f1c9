"""What `test_coverage.py` leaves: taking stretches away, and the guard against overlaps in SQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise
from typing import Final

import asyncpg
import pytest
from bars import MINUTE, START, as_table, minutes
from engines import REAL_TIERS
from hypothesis import given
from hypothesis import strategies as st
from rows import coverage, fetch, session

from kurisu.domain.timeframe import TIMEFRAMES
from kurisu.errors import WriteRefused
from kurisu.store.connect import transaction
from kurisu.store.coverage import Stretch, state, unknown, without
from kurisu.store.markets import Market
from kurisu.store.store import Store

STATUSES: Final = ("complete", "empty", "outage", "failed")

INSERT: Final = """
INSERT INTO candle_coverage (market_id, timeframe, since, until, status, source)
VALUES ($1, '1m', $2, $3, 'empty', 'sql')
"""


def at(minute: int) -> datetime:
    return START + minute * MINUTE


def stretch(since: int, until: int, status: str = "empty", source: str = "rest") -> Stretch:
    return Stretch(at(since), at(until), status, source)


def minutes_of(stretches: Iterable[Stretch]) -> dict[datetime, tuple[str, str]]:
    return {
        found.since + i * MINUTE: (found.status, found.source)
        for found in stretches
        for i in range((found.until - found.since) // MINUTE)
    }


@st.composite
def disjoint(draw: st.DrawFn) -> list[Stretch]:
    """Sorted and disjoint stretches, of which neighbours may touch."""
    edges = draw(st.lists(st.integers(0, 40), unique=True, max_size=12).map(sorted))
    return [
        stretch(since, until, draw(st.sampled_from(STATUSES)))
        for since, until in pairwise(edges)
        if draw(st.booleans())
    ]


@given(disjoint(), disjoint())
def test_without_takes_away_every_minute_of_the_holes(
    ranges: list[Stretch], holes: list[Stretch]
) -> None:
    left = without(ranges, holes)
    gone = minutes_of(holes)
    assert minutes_of(left) == {t: s for t, s in minutes_of(ranges).items() if t not in gone}
    assert all(a.until <= b.since for a, b in pairwise(left))


@given(disjoint(), disjoint())
def test_unknown_is_what_nobody_has_said_with_that_status(
    stated: list[Stretch], known: list[Stretch]
) -> None:
    before = {time: status for time, (status, _) in minutes_of(known).items()}
    assert minutes_of(unknown(stated, known)) == {
        time: said for time, said in minutes_of(stated).items() if before.get(time) != said[0]
    }


async def say(
    store: Store, market: Market, stated: Iterable[Stretch], timeframe: str = "1m"
) -> list[Stretch]:
    async with transaction(store.database) as connection:
        return await state(connection, market.id, TIMEFRAMES[timeframe], stated)


async def known(store: Store, market: Market) -> list[Stretch]:
    return [Stretch(*row) for row in await coverage(store, market)]


async def test_nothing_said_changes_nothing(store: Store, market: Market) -> None:
    await say(store, market, [stretch(0, 10)])
    assert await say(store, market, []) == []
    assert await known(store, market) == [stretch(0, 10)]


async def test_what_is_said_again_is_not_written_again(store: Store, market: Market) -> None:
    """The time of fetch stays that of the first time, and no row is dirtied."""
    await say(store, market, [stretch(0, 10), stretch(20, 30)])
    rows = "SELECT since, xmin::text, fetched_at FROM candle_coverage ORDER BY since"
    before = await fetch(store, rows)
    await say(store, market, [stretch(0, 10), stretch(22, 24), stretch(40, 50)])
    assert (await fetch(store, rows))[:2] == before


async def test_a_write_that_fails_covers_nothing(store: Store, market: Market) -> None:
    gone = Market(market.id + 1_000, market.name, active=True)
    with pytest.raises(WriteRefused):
        await store.candles.write(gone, "1m", as_table(minutes(START, 5)))
    assert await fetch(store, "SELECT * FROM candle_coverage") == []


# The guard against overlaps, whoever writes.


@pytest.mark.parametrize(
    ("since", "until"), [(5, 15), (0, 10), (-5, 1), (2, 8), (-5, 30), (19, 21), (9, 21)]
)
async def test_an_overlap_is_refused(
    store: Store, market: Market, url: str, since: int, until: int
) -> None:
    await say(store, market, [stretch(0, 10), stretch(20, 30)])
    refusals = (asyncpg.ExclusionViolationError, asyncpg.UniqueViolationError)
    async with session(url) as connection:
        with pytest.raises(refusals):
            await connection.execute(INSERT, market.id, at(since), at(until))
    assert await known(store, market) == [stretch(0, 10), stretch(20, 30)]


async def test_neighbours_other_series_and_holes_are_let_in(
    store: Store, market: Market, other_market: Market, url: str
) -> None:
    await say(store, market, [stretch(0, 10), stretch(20, 30)])
    await say(store, market, [stretch(0, 30)], "5m")
    async with session(url) as connection:
        await connection.execute(INSERT, market.id, at(10), at(20))
        await connection.execute(INSERT, market.id, at(-5), at(0))
        await connection.execute(INSERT, other_market.id, at(0), at(30))
    assert len(await known(store, market)) == 4


@pytest.mark.parametrize("level", ["repeatable_read", "serializable"])
async def test_a_snapshot_that_cannot_see_the_neighbours_is_refused(
    store: Store, market: Market, url: str, level: str
) -> None:
    async with session(url) as connection:
        with pytest.raises(asyncpg.RestrictViolationError, match="READ COMMITTED only"):
            async with connection.transaction(isolation=level):
                await connection.execute(INSERT, market.id, at(0), at(10))
    assert await known(store, market) == []


async def test_rows_of_one_statement_may_not_overlap_each_other(
    store: Store, market: Market, url: str
) -> None:
    async with session(url) as connection:
        with pytest.raises(asyncpg.ExclusionViolationError):
            await connection.execute(
                "INSERT INTO candle_coverage (market_id, timeframe, since, until, status, source) "
                "SELECT $1, '1m', s, s + INTERVAL '2 minutes', 'empty', 'sql' "
                "  FROM generate_series($2::timestamptz, $3, INTERVAL '1 minute') s",
                market.id, at(0), at(5),
            )  # fmt: skip
    assert await known(store, market) == []


@pytest.mark.parametrize(
    "change",
    [
        "until = until + INTERVAL '11 minutes'",
        "since = since + INTERVAL '19 minutes', until = until + INTERVAL '19 minutes'",
        "until = until + INTERVAL '1 hour'",
    ],
)
async def test_an_update_that_makes_an_overlap_is_refused(
    store: Store, market: Market, url: str, change: str
) -> None:
    await say(store, market, [stretch(0, 10), stretch(20, 30)])
    async with session(url) as connection:
        with pytest.raises(asyncpg.ExclusionViolationError):
            await connection.execute(f"UPDATE candle_coverage SET {change} WHERE since = $1", at(0))
    assert await known(store, market) == [stretch(0, 10), stretch(20, 30)]


async def test_an_update_up_to_the_neighbour_is_let_in(
    store: Store, market: Market, url: str
) -> None:
    await say(store, market, [stretch(0, 10), stretch(20, 30)])
    async with session(url) as connection:
        await connection.execute(
            "UPDATE candle_coverage SET until = $2 WHERE since = $1", at(0), at(20)
        )
    assert await known(store, market) == [stretch(0, 20), stretch(20, 30)]


async def test_all_of_a_market_can_move_at_once(store: Store, market: Market, url: str) -> None:
    await say(store, market, [stretch(0, 10), stretch(10, 30, "outage")])
    async with session(url) as connection:
        await connection.execute(
            "UPDATE candle_coverage SET since = since + INTERVAL '5 minutes', "
            "until = until + INTERVAL '5 minutes'"
        )
    assert await known(store, market) == [stretch(5, 15), stretch(15, 35, "outage")]


@pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)
async def test_of_two_sessions_that_overlap_the_later_is_refused(
    store: Store, market: Market, url: str
) -> None:
    async with session(url) as first, session(url) as second:
        begun = first.transaction()
        await begun.start()
        await first.execute(INSERT, market.id, at(0), at(10))
        later = asyncio.create_task(second.execute(INSERT, market.id, at(5), at(15)))
        async with asyncio.timeout(20):
            while not await first.fetchval(
                "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE pid = $1 AND NOT granted)",
                second.get_server_pid(),
            ):
                assert not later.done()
        await begun.commit()
        with pytest.raises(asyncpg.ExclusionViolationError):
            await later
    assert [(row.since, row.until) for row in await known(store, market)] == [(at(0), at(10))]


@pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)
async def test_of_two_sessions_the_later_is_let_in_if_the_first_gives_up(
    store: Store, market: Market, url: str
) -> None:
    async with session(url) as first, session(url) as second:
        begun = first.transaction()
        await begun.start()
        await first.execute(INSERT, market.id, at(0), at(10))
        later = asyncio.create_task(second.execute(INSERT, market.id, at(5), at(15)))
        await begun.rollback()
        await later
    assert [(row.since, row.until) for row in await known(store, market)] == [(at(5), at(15))]
