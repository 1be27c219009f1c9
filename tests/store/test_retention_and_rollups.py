"""Retention drops candles; their bars stay, whatever is written, maintained or refreshed later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from bars import DAY, MINUTE, ROLLUPS, START, aggregated, as_table, bar, candle, minutes, opening
from rows import coverage, failed_refresh, fetch, insert, rollups, session, stored, value

from kurisu.domain.candle import Candle
from kurisu.store import rollups as refreshes
from kurisu.store.markets import Market
from kurisu.store.store import Store

TODAY: Final = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
#: Long expired: a day and a bit, with a hole.
OLD: Final = [*minutes(START, 1_500), *minutes(START + 2 * DAY, 100)]
#: Not expired.
RECENT: Final = minutes(TODAY - 9 * DAY, 300)


async def write(store: Store, market: Market, candles: list[Candle]) -> None:
    await store.candles.write(market, "1m", as_table(candles), allow_expiring=True)


async def expire(store: Store) -> None:
    """Retention does its work: the policy's job on Community, `kurisu db maintain` elsewhere."""
    if store.engine.is_community:
        async with session(
            store.database.url.render_as_string(hide_password=False)
            .replace("+asyncpg", "")
            .partition("?")[0]
        ) as connection:
            jobs = await connection.fetch(
                "SELECT job_id FROM timescaledb_information.jobs "
                "WHERE proc_name = 'policy_retention'"
            )
            for job in jobs:
                await connection.execute(f"CALL run_job({job['job_id']})")
    else:
        await store.db.maintain()


@pytest.fixture
async def expired(store: Store, market: Market) -> Market:
    """A market with old candles that are gone, and recent ones that are there."""
    await store.db.set_retention("ohlcv", "400 days")
    await write(store, market, OLD)
    await write(store, market, RECENT)
    await expire(store)
    assert await stored(store, market) == RECENT
    return market


async def assert_bars(store: Store, market: Market, candles: list[Candle]) -> None:
    found = await rollups(store, market)
    for name in ROLLUPS:
        assert found[name] == aggregated(candles, name), name


async def test_bars_outlive_their_candles(store: Store, expired: Market) -> None:
    await assert_bars(store, expired, [*OLD, *RECENT])


async def test_maintaining_again_changes_nothing(store: Store, expired: Market) -> None:
    await store.db.maintain()
    await store.db.maintain()
    await assert_bars(store, expired, [*OLD, *RECENT])


async def test_recent_candles_change_only_recent_bars(store: Store, expired: Market) -> None:
    revised = minutes(RECENT[0].time, 20, seed=1)
    new = minutes(TODAY - 5 * DAY, 10)
    await write(store, expired, revised)
    await write(store, expired, new)
    await store.db.maintain()
    await assert_bars(store, expired, [*OLD, *revised, *RECENT[20:], *new])


async def test_a_part_of_what_was_dropped_never_thins_a_bar_out(
    store: Store, expired: Market
) -> None:
    for part in (OLD[7:9], OLD[100:103], OLD[:1], OLD[-1:]):
        await write(store, expired, part)
        await assert_bars(store, expired, [*OLD, *RECENT])
    await store.db.maintain()
    await assert_bars(store, expired, [*OLD, *RECENT])
    await expire(store)
    await assert_bars(store, expired, [*OLD, *RECENT])


async def test_all_of_what_was_dropped_replaces_the_bars(store: Store, expired: Market) -> None:
    revised = [candle(c.time, seed=1) for c in OLD]
    await write(store, expired, revised)
    await assert_bars(store, expired, [*revised, *RECENT])
    await store.db.maintain()
    await assert_bars(store, expired, [*revised, *RECENT])
    assert (await store.candles.verify()).ok


async def test_more_than_was_dropped_completes_the_bars(store: Store, expired: Market) -> None:
    # The minutes of the hole as well.
    whole = minutes(START, 2 * 1_440 + 100)
    await write(store, expired, whole)
    await assert_bars(store, expired, [*whole, *RECENT])


async def test_another_market_can_be_written_where_candles_were_dropped(
    store: Store, expired: Market, other_market: Market
) -> None:
    await write(store, other_market, OLD[:700])
    await assert_bars(store, other_market, OLD[:700])
    await assert_bars(store, expired, [*OLD, *RECENT])
    await write(store, other_market, OLD[700:])
    await store.db.maintain()
    await assert_bars(store, other_market, OLD)
    await assert_bars(store, expired, [*OLD, *RECENT])


async def test_a_stretch_before_what_was_dropped_can_be_written(
    store: Store, expired: Market
) -> None:
    older = minutes(START - 30 * DAY, 500)
    await write(store, expired, older)
    await assert_bars(store, expired, [*older, *OLD, *RECENT])


async def test_a_hole_between_dropped_candles_can_be_filled(store: Store, expired: Market) -> None:
    hole = minutes(START + 1_500 * MINUTE, 600)
    await write(store, expired, hole)
    await assert_bars(store, expired, [*OLD, *hole, *RECENT])


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_bars_stay_when_a_refresh_over_what_was_dropped_has_failed(
    store: Store, expired: Market, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer does not finish it, but leaves its own part for later."""
    for name in ROLLUPS:
        await failed_refresh(store, url, name, START, TODAY - 2 * DAY)
    monkeypatch.setattr(refreshes, "FIRST_PAUSE_S", 0)
    new = minutes(TODAY - 5 * DAY, 10)
    await write(store, expired, new)
    for name in ROLLUPS:
        found = list(await store.candles.read(expired, name))
        assert found == aggregated([*OLD, *RECENT, *new], name), name


async def test_bars_stay_when_the_policy_moves(store: Store, expired: Market) -> None:
    for duration in ("10 years", "500 days", "off", "10 years"):
        await store.db.set_retention("ohlcv", duration)
        await write(store, expired, OLD[5:7])
        await store.db.maintain()
        await assert_bars(store, expired, [*OLD, *RECENT])


async def test_bars_stay_when_somebody_else_deletes_what_was_left(
    store: Store, expired: Market, url: str
) -> None:
    await insert(url, expired, OLD[3:6])
    async with session(url) as connection:
        await connection.execute("DELETE FROM ohlcv WHERE time < $1", START + 100 * DAY)
    await store.db.maintain()
    await assert_bars(store, expired, [*OLD, *RECENT])


async def test_every_timeframe_is_read_from_what_is_left(store: Store, expired: Market) -> None:
    for name in ("5m", "30m", "1h", "12h", "1d", "3d", "1w", "1M"):
        table = await store.candles.read(expired, name)
        assert list(table) == aggregated([*OLD, *RECENT], name), name
    assert list(await store.candles.read(expired, "1m")) == RECENT


async def test_verify_does_not_compare_what_cannot_be_compared(
    store: Store, expired: Market
) -> None:
    report = await store.candles.verify()
    assert report.ok
    assert report.kept == {name: len(aggregated(OLD, name)) for name in ROLLUPS}
    assert report.checked == {name: len(aggregated(RECENT, name)) for name in ROLLUPS}


async def test_coverage_of_what_was_dropped_is_gone(store: Store, expired: Market) -> None:
    await store.db.maintain()
    assert await coverage(store, expired) == [
        (RECENT[0].time, RECENT[-1].time + MINUTE, "complete", "api")
    ]


async def test_a_complete_stretch_is_cut_where_candles_were_dropped(
    store: Store, market: Market
) -> None:
    await store.db.set_retention("ohlcv", "400 days")
    for name, length in (("1m", MINUTE), ("1w", 7 * DAY), ("1h", timedelta(hours=1))):
        first = opening(TODAY - 500 * DAY, name)
        count = 120 * DAY // length if name != "1m" else 500
        rows = [candle(first + i * length) for i in range(count)]
        await store.candles.write(market, name, as_table(rows), allow_expiring=True)
    await expire(store)
    await store.db.maintain()
    for name in ("1m", "1w", "1h"):
        rows = await stored(store, market, name)
        covered = await coverage(store, market, name)
        for since, until, status, _ in covered:
            assert status == "complete"
            assert (opening(since, name), opening(until, name)) == (since, until)
            inside = [row.time for row in rows if since <= row.time < until]
            assert inside and inside[0] == since, (name, since, inside[:1])


async def test_candles_on_the_edge_go_by_whole_days(store: Store, market: Market) -> None:
    if store.engine.is_community:
        pytest.skip("Community drops whole chunks, which is TimescaleDB's own business")
    await store.db.set_retention("ohlcv", "400 days")
    # Not TODAY: since the module was loaded midnight may have passed.
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    edge = today - 400 * DAY
    candles = minutes(edge - timedelta(hours=3), 400)
    await write(store, market, candles)
    await store.db.maintain()
    kept = [c for c in candles if c.time >= edge]
    assert await stored(store, market) == kept
    await assert_bars(store, market, candles)


async def test_trades_expire_too(store: Store, market: Market) -> None:
    for age in (40, 1):
        await fetch(
            store,
            "INSERT INTO trades (market_id, time, trade_id, price, amount, cost) "
            "VALUES (:id, date_trunc('day', now()) - :age * INTERVAL '1 day', '1', 1, 1, 1)",
            id=market.id,
            age=age,
        )
    await expire(store)
    assert await value(store, "SELECT count(*) FROM trades") == 1


def test_the_model_joins_bars() -> None:
    # `bar` is used on bars below: it counts what is inside them.
    five = aggregated(OLD, "5m")
    assert bar(START, five[:3]) == aggregated(OLD[:15], "15m")[0]
