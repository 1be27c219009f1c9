"""Continuous aggregates: right when Kurisu's write returns, in whatever order it writes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from bars import DAY, MINUTE, ROLLUPS, START, aggregated, as_table, candle, minutes
from engines import NATIVE_TIMESCALEDB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import (
    UNSTORED,
    Connection,
    failed_refresh,
    fetch,
    insert,
    parameters,
    rollups,
    session,
    value,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.candle import Candle
from kurisu.domain.timeframe import TIMEFRAMES
from kurisu.errors import DatabaseError
from kurisu.store import rollups as module
from kurisu.store.connect import autocommit
from kurisu.store.markets import Market
from kurisu.store.rollups import Range, cover, merge
from kurisu.store.store import Store, open_store

NOW: Final = datetime.now(UTC).replace(second=0, microsecond=0)
TODAY: Final = NOW.replace(hour=0, minute=0)
#: Where ranges begin: far past, past and recent, around the edges of chunks, days and the
#: background policies' window.
BEGINNINGS: Final = (
    START,
    START + 3 * DAY - timedelta(minutes=30),
    START + 400 * DAY,
    TODAY - 30 * DAY - timedelta(minutes=7),
    TODAY - 7 * DAY,
    TODAY - 6 * DAY,
    TODAY - 1 * DAY - timedelta(minutes=100),
    TODAY - timedelta(minutes=61),
    NOW - timedelta(minutes=201),
    NOW - timedelta(minutes=3),
)
NUMBERS: Final = iter(range(1_000_000))


@pytest.fixture(params=["community"])
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def write(store: Store, market: Market, candles: list[Candle]) -> None:
    await store.candles.write(market, "1m", as_table(candles))


async def assert_bars(store: Store, market: Market, candles: list[Candle]) -> None:
    found = await rollups(store, market)
    for name in ROLLUPS:
        assert found[name] == aggregated(candles, name), name


ranges = st.lists(
    st.tuples(st.sampled_from(BEGINNINGS), st.sampled_from([1, 2, 17, 200]), st.integers(0, 1)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=ranges)
async def test_ranges_in_any_order(store: Store, writes: list[tuple[datetime, int, int]]) -> None:
    # A market of its own for each example: what the ones before wrote is there, too.
    market = await store.markets.ensure("binance", f"X{next(NUMBERS)}/USDT")
    there: dict[datetime, Candle] = {}
    for since, count, seed in writes:
        candles = [c for c in minutes(since, count, seed=seed) if c.time + MINUTE <= NOW]
        await write(store, market, candles)
        there |= {c.time: c for c in candles}
        await assert_bars(store, market, list(there.values()))


async def test_a_year_written_backwards(store: Store, market: Market) -> None:
    there: list[Candle] = []
    for month in range(12, 0, -1):
        candles = minutes(START.replace(month=month), 40)
        there = [*candles, *there]
        await write(store, market, candles)
        await assert_bars(store, market, there)


async def test_a_revised_candle_below_the_watermark(store: Store, market: Market) -> None:
    there = minutes(START, 500)
    await write(store, market, there)
    there[250] = candle(there[250].time, seed=1)
    await write(store, market, there[249:252])
    await assert_bars(store, market, there)


async def test_a_page_that_a_watermark_passes_before_its_commit(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was above when the writer looked, and lies below when its rows are there."""
    there = minutes(NOW - timedelta(minutes=300), 280)
    page, history = there[60:180], there[:60] + there[180:]
    await write(store, market, history)
    async with autocommit(store.database) as connection:
        for frame in map(TIMEFRAMES.__getitem__, ROLLUPS):
            await module.refresh(connection, frame, Range(TODAY - DAY, NOW))
    looks = 0

    async def before_it_moved(connection: AsyncConnection) -> datetime:
        nonlocal looks
        looks += 1
        return START if looks == 1 else await begun(connection)

    begun = module.begun
    monkeypatch.setattr(module, "begun", before_it_moved)
    await store.candles.write_fetched(market, "1m", as_table(page), [], now=NOW)
    for name in ROLLUPS:
        found = await store.candles.read(market, name)
        assert list(found) == aggregated(there, name), name
    await store.candles.settle()
    await assert_bars(store, market, there)


async def test_a_page_that_a_refresh_may_be_passing_over(store: Store, market: Market) -> None:
    """A refresh says up to where it goes before it looks, and moves the watermark afterwards."""
    there = minutes(NOW - timedelta(minutes=400), 300)
    history, page = there[:100], there[150:250]
    await write(store, market, history)
    async with autocommit(store.database) as connection:
        for frame in map(TIMEFRAMES.__getitem__, ROLLUPS):
            until = frame.open_time(NOW - timedelta(minutes=30))
            await module.refresh(connection, frame, Range(TODAY - 2 * DAY, until))
        assert (await module.watermarks(connection))[ROLLUPS[0]] < page[0].time
        assert await module.begun(connection) > page[-1].time
    await store.candles.write_fetched(market, "1m", as_table(page), [], now=NOW)
    assert await value(store, "SELECT count(*) FROM rollup_pending") == 1
    await store.candles.settle()
    await assert_bars(store, market, [*history, *page])


async def test_live_candles_need_no_refresh(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = minutes(NOW - timedelta(minutes=400), 380)
    await write(store, market, history)

    async def refresh(*_: object) -> None:
        raise AssertionError("a live candle was refreshed")

    monkeypatch.setattr(module, "refresh", refresh)
    for live in minutes(NOW - timedelta(minutes=20), 20):
        await write(store, market, [live])
        history.append(live)
    await assert_bars(store, market, history)


async def test_a_refresh_touches_nothing_but_what_was_written(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, market, minutes(START, 100))
    await write(store, market, minutes(TODAY - 30 * DAY, 100))
    asked: dict[str, list[Range]] = {}
    real = module.refresh

    async def refresh(connection: object, frame: object, part: Range, *, within: Range) -> bool:
        asked.setdefault(str(frame), []).append(part)
        return await real(connection, frame, part, within=within)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "refresh", refresh)
    touched = START + 100 * DAY
    await write(store, market, minutes(touched, 7))
    assert asked == {
        name: [cover(Range(touched, touched + 7 * MINUTE), TIMEFRAMES[name])] for name in ROLLUPS
    }
    assert list(asked) == list(ROLLUPS)


async def test_nothing_new_is_no_refresh(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, market, minutes(START, 100))

    async def refresh(*_: object) -> None:
        raise AssertionError("nothing was to be refreshed")

    monkeypatch.setattr(module, "refresh", refresh)
    await write(store, market, minutes(START, 100))
    await store.candles.write(market, "1h", as_table([candle(START)]))


class TestOthers:
    """What somebody with psql writes is in the bars after `kurisu db maintain`."""

    async def test_new_rows(self, store: Store, market: Market, url: str) -> None:
        there = minutes(START, 300)
        await write(store, market, there)
        late = minutes(START + 5 * DAY, 50)
        await insert(url, market, late)
        await store.db.maintain()
        await assert_bars(store, market, [*there, *late])

    async def test_copied_rows(self, store: Store, market: Market, url: str) -> None:
        # Of which TimescaleDB takes no notice by itself. Three chunks, one of them there before.
        there = minutes(START + 3 * DAY, 300)
        await write(store, market, there)
        copied = [
            *minutes(START + 4 * DAY, 100),
            *minutes(START + 10 * DAY - timedelta(minutes=50), 100),
            *minutes(START + 40 * DAY, 1),
        ]
        async with session(url) as connection:
            await connection.copy_records_to_table(
                "ohlcv",
                records=[parameters(market, c) for c in copied],
                columns=["market_id", "timeframe", *Candle._fields[:6]],
            )
        await store.db.maintain()
        await assert_bars(store, market, [*there, *copied])
        assert await value(store, "SELECT count(*) FROM candle_revisions") == 0

    async def test_changed_and_deleted_rows(self, store: Store, market: Market, url: str) -> None:
        there = minutes(START, 300)
        await write(store, market, there)
        async with session(url) as connection:
            await connection.execute("DELETE FROM ohlcv WHERE time >= $1", there[290].time)
            await connection.execute("UPDATE ohlcv SET volume = 3 WHERE time = $1", there[10].time)
        await store.db.maintain()
        there[10] = there[10]._replace(volume=type(there[10].volume)(3))
        await assert_bars(store, market, there[:290])

    async def test_rows_before_all_others(self, store: Store, market: Market, url: str) -> None:
        there = minutes(START, 300)
        await write(store, market, there)
        early = minutes(START - 50 * DAY, 50)
        await insert(url, market, early)
        await store.db.maintain()
        await assert_bars(store, market, [*early, *there])

    async def test_rows_where_there_were_none(self, store: Store, market: Market, url: str) -> None:
        there = minutes(START, 300)
        await insert(url, market, there)
        await store.db.maintain()
        await assert_bars(store, market, there)


ADVISORY: Final = """
SELECT count(*) FROM pg_locks
 WHERE locktype = 'advisory'
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Killed(Exception):
    """Stands for the end of the process."""


async def test_a_killed_writers_refresh_is_done_by_the_next_one(
    store: Store, market: Market, other_market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = minutes(START, 300)
    await write(store, market, there[:200])

    async def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "refresh", killed)
        with pytest.raises(Killed):
            await write(store, market, there[200:])
    assert await value(store, "SELECT count(*) FROM rollup_pending") == 1
    await write(store, other_market, minutes(START + 50 * DAY, 1))
    await assert_bars(store, market, there)
    assert await value(store, "SELECT count(*) FROM rollup_pending") == 0
    # Its lock went with it.
    assert await value(store, ADVISORY) == 0


async def test_a_killed_writers_refresh_is_done_by_maintain(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = minutes(START, 300)

    async def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "refresh", killed)
        with pytest.raises(Killed):
            await write(store, market, there)
    assert (await store.db.status()).pending_refreshes == 1
    await store.db.maintain()
    await assert_bars(store, market, there)
    assert (await store.db.status()).pending_refreshes == 0


async def test_a_background_refresh_that_does_not_end_leaves_the_work_to_the_next_writer(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = minutes(START, 300)

    async def unstored(*_: object) -> Range:
        return Range(START, START + DAY)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_unstored", unstored)
        patch.setattr(module, "FIRST_PAUSE_S", 0)
        await write(store, market, there)
    assert await value(store, "SELECT count(*) FROM rollup_pending") == 1
    await write(store, market, there[:1])
    assert await value(store, "SELECT count(*) FROM rollup_pending") == 0
    await assert_bars(store, market, there)


@pytest.mark.parametrize(("first", "last"), [(-9, 9), (5, 7), (0, 6), (None, 6)])
async def test_a_refresh_that_failed_half_way_does_not_stand_in_the_way(
    store: Store, market: Market, url: str, first: int | None, last: int
) -> None:
    """What it had said it would store stays said, and only a refresh of all of it ends that."""
    there = [c for n in range(0, 8, 2) for c in minutes(START + n * DAY, 200)]
    await write(store, market, there)
    since = None if first is None else START + first * DAY
    for name in ROLLUPS:
        await failed_refresh(store, url, name, since, START + last * DAY)
    assert await value(store, UNSTORED) >= len(ROLLUPS)
    page = minutes(START + 5 * DAY + timedelta(hours=12), 10)
    await write(store, market, page)
    assert await value(store, "SELECT count(*) FROM rollup_pending") == 0
    assert await value(store, UNSTORED) == 0
    await assert_bars(store, market, [*there, *page])


async def run_refresh_policies(connection: Connection) -> None:
    """What the background does every few minutes."""
    jobs = await connection.fetch(
        "SELECT job_id FROM timescaledb_information.jobs "
        "WHERE proc_name = 'policy_refresh_continuous_aggregate' ORDER BY job_id"
    )
    for job in jobs:
        await connection.execute(f"CALL run_job({job['job_id']})")


async def test_writes_between_runs_of_the_policies(store: Store, market: Market, url: str) -> None:
    there: dict[datetime, Candle] = {}
    for days, seed in ((2, 0), (5, 0), (1, 0), (5, 1), (3, 0)):
        candles = minutes(TODAY - days * DAY, 100, seed=seed)
        await write(store, market, candles)
        there |= {c.time: c for c in candles}
        await assert_bars(store, market, list(there.values()))
        async with session(url) as connection:
            await run_refresh_policies(connection)
        await assert_bars(store, market, list(there.values()))


@pytest.mark.skipif(not NATIVE_TIMESCALEDB, reason="the WebAssembly engine has one session")
async def test_writes_while_the_policies_run(store: Store, market: Market, url: str) -> None:
    there: dict[datetime, Candle] = {}
    writing = True

    async def background() -> None:
        async with session(url) as connection:
            while writing:
                # One of two that refresh the same bar fails, and comes again.
                try:
                    await run_refresh_policies(connection)
                except Exception as error:
                    assert "duplicate key" in str(error), error

    policies = asyncio.create_task(background())
    for number in range(12):
        since = TODAY - (1 + number % 5) * DAY
        candles = minutes(since, 200, seed=number)
        await write(store, market, candles)
        there |= {c.time: c for c in candles}
        await assert_bars(store, market, list(there.values()))
    writing = False
    await policies
    await store.db.maintain()
    await assert_bars(store, market, list(there.values()))


@pytest.mark.skipif(not NATIVE_TIMESCALEDB, reason="the WebAssembly engine has one session")
async def test_many_writers_at_once(store: Store) -> None:
    markets = [await store.markets.ensure("binance", f"M{n}/USDT") for n in range(4)]
    candles = {
        market: minutes(START + n * 3 * DAY, 400, seed=n) for n, market in enumerate(markets)
    }
    await asyncio.gather(
        *(
            write(store, market, rows[start : start + 100])
            for market, rows in candles.items()
            for start in (300, 0, 200, 100)
        )
    )
    for market, rows in candles.items():
        await assert_bars(store, market, rows)


@pytest.mark.parametrize("tier", ["plain"], indirect=True)
async def test_a_refresh_waits_for_another_one_longer_than_its_role_may_ask(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any engine with several sessions will do."""
    asked: list[str] = []

    async def look(connection: AsyncConnection, _: Sequence[Range]) -> bool:
        asked.append(str(await connection.scalar(text("SHOW statement_timeout"))))
        return True

    monkeypatch.setattr(module, "_refresh", look)
    async with session(url) as other:
        name = await other.fetchval("SELECT current_database()")
        await other.execute(f"ALTER DATABASE {name} SET statement_timeout = '100ms'")
        await other.execute("SELECT pg_advisory_lock($1)", module.REFRESH_LOCK)
        async with open_store(url) as store:
            day = {"since": START, "until": START + DAY}
            await fetch(
                store, "INSERT INTO rollup_pending (since, until) VALUES (:since, :until)", **day
            )
            refresh = asyncio.create_task(module.refresh_pending(store.database))
            done, _ = await asyncio.wait({refresh}, timeout=0.4)
            assert not done
            await other.execute("SELECT pg_advisory_unlock($1)", module.REFRESH_LOCK)
            await refresh
            assert asked == ["0"]
            assert await value(store, "SHOW statement_timeout") == "100ms"


@pytest.mark.parametrize("tier", ["plain"], indirect=True)
async def test_a_refresh_whose_connection_is_lost_says_so_and_is_still_to_be_done(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any engine will do."""

    async def cut(connection: AsyncConnection, _: Sequence[Range]) -> None:
        await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    day = {"since": START, "until": START + DAY}
    await fetch(store, "INSERT INTO rollup_pending (since, until) VALUES (:since, :until)", **day)
    monkeypatch.setattr(module, "_refresh", cut)
    with pytest.raises(DatabaseError, match=r"are stored.*(terminating connection|broke)"):
        await module.settle(store.database, {}, noted=True)
    assert await value(store, "SELECT count(*) FROM rollup_pending") == 1


async def test_compressed_chunks_take_new_and_changed_candles(store: Store, market: Market) -> None:
    there = minutes(START, 1_000)
    await write(store, market, [*there[:400], *there[500:]])
    await store.db.maintain()
    chunks = "SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed"
    assert await value(store, chunks) > 0
    revised = [candle(c.time, seed=1) for c in there[350:450]]
    report = await store.candles.write(market, "1m", as_table([*revised, *there[450:520]]))
    assert (report.inserted, report.updated, report.unchanged) == (100, 50, 20)
    there[350:450] = revised
    await assert_bars(store, market, there)
    assert list(await store.candles.read(market, "1m")) == there
    revisions = await fetch(store, "SELECT count(*) FROM candle_revisions")
    assert revisions == [(50,)]
    await store.db.maintain()
    await assert_bars(store, market, there)


async def test_writing_the_same_leaves_a_compressed_chunk_as_it_is(
    store: Store, market: Market
) -> None:
    there = minutes(START, 1_000)
    await write(store, market, there)
    await store.db.maintain()
    status = "SELECT id, status FROM _timescaledb_catalog.chunk ORDER BY id"
    before = await fetch(store, status)
    report = await store.candles.write(market, "1m", as_table(there))
    assert report.unchanged == 1_000
    assert await fetch(store, status) == before


spans = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 10)).map(
        lambda s: Range(START + s[0] * DAY, START + (s[0] + s[1]) * DAY)
    ),
    max_size=8,
)


@given(spans)
def test_merged_ranges_cover_the_same_and_stay_apart(found: list[Range]) -> None:
    merged = merge(found)
    days = {START + n * DAY for n in range(80)}

    def covered(ranges: list[Range]) -> set[datetime]:
        return {day for day in days if any(r.since <= day < r.until for r in ranges)}

    assert covered(merged) == covered(found)
    assert all(a.until < b.since for a, b in zip(merged, merged[1:], strict=False))
