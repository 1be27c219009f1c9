"""Upkeep: what is due goes, its bars stay, whatever is written, maintained or refreshed later."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from bars import DAY, MINUTE, ROLLUPS, START, aggregated, as_table, candle, minutes, native, opening
from rows import coverage, fetch, insert, rollup, rollups, stored, value
from sqlalchemy import text

from kurisu.domain.candle import Candle
from kurisu.store import maintain as maintain_module
from kurisu.store.connect import autocommit
from kurisu.store.markets import Market
from kurisu.store.store import Store

TODAY: Final = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
OLD: Final = minutes(START, 100)
RECENT: Final = minutes(TODAY - 20 * DAY, 50)


async def write(store: Store, market: Market, rows: list[Candle], timeframe: str = "1m") -> None:
    await store.candles.write(market, timeframe, as_table(rows), allow_expiring=True)


async def expire(store: Store) -> list[str]:
    """What is due is dropped: by TimescaleDB's jobs on Community, else by `maintain`."""
    if store.engine.is_community:
        query = "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = :proc"
        for (job,) in await fetch(store, query, proc="policy_retention"):
            async with autocommit(store.database) as connection:
                await connection.execute(text(f"CALL run_job({job})"))
    return await store.db.maintain()


async def assert_bars(store: Store, market: Market, rows: list[Candle]) -> None:
    found = await rollups(store, market)
    for name in ROLLUPS:
        assert found[name] == aggregated(rows, name), name


@pytest.fixture
async def expired(store: Store, market: Market) -> Market:
    """A market whose old candles are gone."""
    await store.db.set_retention("ohlcv", "400 days")
    await write(store, market, OLD)
    await write(store, market, RECENT)
    await expire(store)
    return market


async def test_nothing_is_due_in_a_new_database(store: Store) -> None:
    assert await store.db.maintain() == []


async def test_what_is_due_is_dropped_and_its_bars_stay(store: Store, expired: Market) -> None:
    assert await stored(store, expired) == RECENT
    await assert_bars(store, expired, [*OLD, *RECENT])


@pytest.mark.parametrize("tier", ["plain", "apache"], indirect=True)
async def test_a_line_says_what_was_dropped(store: Store, market: Market) -> None:
    await store.db.set_retention("ohlcv", "400 days")
    await write(store, market, OLD)
    edge = TODAY - 400 * DAY
    # On the edge, so that they share a chunk with what is kept.
    await write(store, market, minutes(edge - 5 * MINUTE, 10))
    done = await store.db.maintain()
    if store.engine.has_hypertables:
        assert re.fullmatch(rf"ohlcv: dropped \d chunks older than {edge:%Y-%m-%d}", done[0])
    else:
        assert done == [f"ohlcv: deleted 105 rows older than {edge:%Y-%m-%d}"]
    rows = len(await stored(store, market))
    assert rows == 5
    assert await store.db.maintain() == []


@pytest.mark.parametrize("tier", ["plain", "apache"], indirect=True)
async def test_rows_go_in_transactions_of_a_bounded_size(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintain_module, "DELETE_ROWS", 7)
    await store.db.set_retention("ohlcv", "400 days")
    edge = TODAY - 400 * DAY
    # Just before the edge, where a chunk is never dropped whole unless the week ends there.
    await write(store, market, minutes(edge - 40 * MINUTE, 60))
    await write(store, market, native(edge - DAY, 40, "1h"), "1h")
    await store.db.maintain()
    assert [c.time for c in await stored(store, market)] == [edge + i * MINUTE for i in range(20)]
    assert len(await stored(store, market, "1h")) == 16


async def test_retention_that_is_off_drops_nothing(store: Store, market: Market) -> None:
    await store.db.set_retention("ohlcv", "off")
    await write(store, market, OLD)
    await expire(store)
    assert await stored(store, market) == OLD


async def test_a_default_that_was_moved_drops_nothing(store: Store, market: Market) -> None:
    await write(store, market, OLD)
    await expire(store)
    assert await stored(store, market) == OLD


async def test_own_bars_are_dropped_like_minutes(store: Store, market: Market) -> None:
    await store.db.set_retention("ohlcv", "400 days")
    recent = native(TODAY - 40 * DAY, 3, "1d")
    await write(store, market, native(START, 3, "1d"), "1d")
    await write(store, market, recent, "1d")
    await expire(store)
    assert await stored(store, market, "1d") == recent


async def test_coverage_of_what_was_dropped_goes_with_it(store: Store, expired: Market) -> None:
    assert await coverage(store, expired) == [
        (RECENT[0].time, RECENT[-1].time + MINUTE, "complete", "api")
    ]


async def test_dropped_candles_are_gaps_again(store: Store, expired: Market) -> None:
    (gap,) = await store.candles.gaps(expired, "1m", OLD[0].time, OLD[-1].time + MINUTE)
    assert (gap.status, gap.bars) == ("missing", len(OLD))


async def test_coverage_of_every_complete_stretch_holds_after_maintaining(
    store: Store, expired: Market
) -> None:
    await write(store, expired, OLD[20:40])
    await store.db.maintain()
    times = {row.time for row in await stored(store, expired)}
    for since, until, status, _ in await coverage(store, expired):
        assert status == "complete"
        assert {since + i * MINUTE for i in range((until - since) // MINUTE)} <= times


async def test_other_markets_keep_what_is_not_due(
    store: Store, expired: Market, other_market: Market
) -> None:
    await write(store, other_market, minutes(TODAY - 10 * DAY, 30, seed=1))
    await expire(store)
    assert len(await stored(store, other_market)) == 30
    await assert_bars(store, other_market, minutes(TODAY - 10 * DAY, 30, seed=1))


async def test_trades_are_dropped_by_their_own_policy(store: Store, market: Market) -> None:
    for age in (40, 10):
        await fetch(
            store,
            "INSERT INTO trades (market_id, time, trade_id, side, price, amount, cost) "
            "VALUES (:id, date_trunc('day', now(), 'UTC') - :age * INTERVAL '1 day', "
            "'7', 'buy', 2, 3, 6)",
            id=market.id, age=age,
        )  # fmt: skip
    await write(store, market, minutes(TODAY - 60 * DAY, 5))
    await expire(store)
    assert await value(store, "SELECT count(*) FROM trades") == 1
    assert len(await stored(store, market)) == 5


# After that.


async def test_a_part_that_comes_back_never_thins_a_bar_out(store: Store, expired: Market) -> None:
    await write(store, expired, [OLD[3], *OLD[10:14], *OLD[31:33]])
    await assert_bars(store, expired, [*OLD, *RECENT])
    await expire(store)
    await assert_bars(store, expired, [*OLD, *RECENT])


async def test_all_that_comes_back_makes_candles_and_bars_agree_again(
    store: Store, expired: Market
) -> None:
    revised = minutes(START, 100, seed=1)
    await store.db.set_retention("ohlcv", "off")
    await store.candles.write(expired, "1m", as_table(revised))
    await assert_bars(store, expired, [*revised, *RECENT])
    assert await stored(store, expired) == [*revised, *RECENT]
    report = await store.candles.verify()
    assert report.ok
    assert sum(report.kept.values()) == 0


async def test_all_that_comes_back_in_parts_agrees_too(store: Store, expired: Market) -> None:
    await store.db.set_retention("ohlcv", "off")
    for part in (OLD[50:63], OLD[:50], OLD[63:]):
        await write(store, expired, part)
    await store.db.maintain()
    await assert_bars(store, expired, [*OLD, *RECENT])
    report = await store.candles.verify()
    assert (report.ok, sum(report.kept.values())) == (True, 0)


async def test_bars_are_kept_with_nothing_newer_beside_them(store: Store, market: Market) -> None:
    await store.db.set_retention("ohlcv", "400 days")
    for part in (OLD[:30], OLD[30:33], OLD[33:]):
        await write(store, market, part)
    for _ in range(2):
        await expire(store)
        assert await stored(store, market) == []
        await assert_bars(store, market, OLD)
    await write(store, market, RECENT)
    await assert_bars(store, market, [*OLD, *RECENT])


@pytest.mark.parametrize("seed", [4, 6])
async def test_no_history_of_writes_and_upkeep_loses_a_bar(
    store: Store, market: Market, other_market: Market, seed: int
) -> None:
    """Against a model: a five-minute bar is made anew unless it has more candles inside."""
    rng = random.Random(seed)
    markets = (market, other_market)
    await store.db.set_retention("ohlcv", "400 days")
    raw: dict[Market, dict[datetime, Candle]] = {m: {} for m in markets}
    kept: dict[Market, dict[datetime, Candle]] = {m: {} for m in markets}
    starts = (START, START + 40 * MINUTE, START + 3 * DAY, TODAY - 30 * DAY)
    for step in range(9):
        found = rng.choice(markets)
        kind = rng.choice(("write", "write", "write", "expire", "maintain", "move"))
        if kind == "write":
            first = rng.choice(starts) + rng.randrange(20) * MINUTE
            rows = [
                candle(first + i * MINUTE, rng.choice((0, step)))
                for i in range(rng.randrange(1, 30))
                if rng.random() < 0.8
            ]
            await write(store, found, rows)
            raw[found] |= {row.time: row for row in rows}
            touched = {opening(row.time, "5m") for row in rows}
            for bar in aggregated(raw[found].values(), "5m"):
                before = kept[found].get(bar.time)
                if bar.time in touched and (
                    before is None or (before.bars or 0) <= (bar.bars or 0)
                ):
                    kept[found][bar.time] = bar
        elif kind == "move":
            await store.db.set_retention("ohlcv", rng.choice(("400 days", "500 days")))
        elif kind == "maintain" and store.engine.is_community:
            await store.db.maintain()
        else:
            await expire(store)
            for each in markets:
                raw[each] = {t: row for t, row in raw[each].items() if t >= TODAY - 400 * DAY}
        for each in markets:
            assert await stored(store, each) == [raw[each][t] for t in sorted(raw[each])]
            five = [kept[each][t] for t in sorted(kept[each])]
            for name in ROLLUPS:
                expected = five if name == "5m" else aggregated(five, name)
                assert await rollup(store, each, name) == expected, (step, kind, name)
    report = await store.candles.verify()
    assert report.ok


# What `maintain` does on Community.


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_what_somebody_else_wrote_is_refreshed(
    store: Store, market: Market, url: str
) -> None:
    await write(store, market, RECENT)
    late = minutes(RECENT[-1].time + 7 * MINUTE, 30)
    early = minutes(RECENT[0].time - 2 * DAY, 30)
    changed = candle(RECENT[10].time, 5)
    await insert(url, market, [*early, *late])
    await fetch(store, "DELETE FROM ohlcv WHERE time = :time", time=changed.time)
    await insert(url, market, [changed])
    (line,) = [line for line in await store.db.maintain() if "refreshed" in line]
    assert line.startswith("rollups refreshed from ")
    rows = [*early, *RECENT[:10], changed, *RECENT[11:], *late]
    await assert_bars(store, market, rows)


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_a_refresh_that_was_left_behind_is_done(store: Store, market: Market) -> None:
    await write(store, market, RECENT)
    await fetch(
        store,
        "INSERT INTO rollup_pending (since, until) VALUES (:since, :until)",
        since=RECENT[0].time, until=RECENT[-1].time,
    )  # fmt: skip
    await store.db.maintain()
    assert await value(store, "SELECT count(*) FROM rollup_pending") == 0


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_chunks_that_are_due_are_compressed_once(store: Store, market: Market) -> None:
    await write(store, market, RECENT)
    assert "compressed 1 chunks" in await store.db.maintain()
    assert not any("compressed" in line for line in await store.db.maintain())
    assert await stored(store, market) == RECENT
    await write(store, market, minutes(RECENT[0].time - 5 * MINUTE, 20, seed=1))
    assert "compressed 1 chunks" in await store.db.maintain()
    assert len(await stored(store, market)) == 55
    assert (await store.candles.verify()).ok


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_weeks_are_put_together_when_they_are_compressed(
    store: Store, market: Market
) -> None:
    """Whatever the order in which they were written; and they take more candles afterwards."""
    first = datetime(2024, 2, 1, tzinfo=UTC)  # a chunk begins
    rows = native(first, 6 * 4 * 7, "4h")
    for part in (rows[84:], rows[42:84], rows[:42]):
        await write(store, market, part, "4h")
    await store.db.maintain()
    chunks = (
        "SELECT range_start, range_end FROM timescaledb_information.chunks "
        "WHERE hypertable_name = 'ohlcv' AND is_compressed ORDER BY range_start"
    )
    assert await fetch(store, chunks) == [(first, first + 28 * DAY)]
    assert await stored(store, market, "4h") == rows
    assert await coverage(store, market, "4h") == [(first, first + 28 * DAY, "complete", "api")]
    inside = native(first + 10 * DAY, 1, "4h", seed=1)
    await write(store, market, inside, "4h")
    await write(store, market, native(first + 28 * DAY, 6, "4h"), "4h")
    await store.db.maintain()
    assert (await fetch(store, chunks))[0] == (first, first + 28 * DAY)
    expected = {c.time: c for c in (*rows, *native(first + 28 * DAY, 6, "4h"), *inside)}
    assert await stored(store, market, "4h") == [expected[time] for time in sorted(expected)]


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_a_chunk_that_the_background_job_took_first_is_left_out(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, market, minutes(START, 10))
    gone = "SELECT '_timescaledb_internal._hyper_9_9_chunk' AS chunk UNION ALL "
    due = maintain_module.DUE_FOR_COMPRESSION.replace(" ORDER BY i.range_start", "")
    monkeypatch.setattr(maintain_module, "DUE_FOR_COMPRESSION", gone + due)
    assert "compressed 1 chunks" in await store.db.maintain()


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_chunks_that_are_not_due_are_left(store: Store, market: Market) -> None:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    await write(store, market, minutes(now - timedelta(hours=1), 10))
    assert not any("compressed" in line for line in await store.db.maintain())


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_upkeep_with_nothing_stored_and_no_second_session_works(
    store: Store, market: Market
) -> None:
    """The server of this tier may serve one session at a time, as a pooler may."""
    await store.db.set_retention("ohlcv", "400 days")
    await write(store, market, OLD)
    await expire(store)
    assert await store.db.maintain() == []


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_the_policies_of_the_aggregates_never_destroy_kept_bars(
    store: Store, expired: Market
) -> None:
    query = "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = :proc"
    found = await fetch(store, query, proc="policy_refresh_continuous_aggregate")
    assert len(found) == len(ROLLUPS)
    await write(store, expired, OLD[:7])
    for (job,) in found:
        async with autocommit(store.database) as connection:
            await connection.execute(text(f"CALL run_job({job})"))
    await assert_bars(store, expired, [*OLD, *RECENT])
