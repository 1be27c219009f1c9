"""Verifying finds every bar that is not what its candles say, and only those."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal, localcontext
from typing import Any, Final

import pytest
from bars import (
    DAY,
    MINUTE,
    ROLLUPS,
    START,
    aggregated,
    as_table,
    candle,
    minutes,
    native,
    opening,
)
from rows import fetch, session

from kurisu.domain.candle import Candle
from kurisu.errors import InvalidArgument
from kurisu.store import verify as verify_module
from kurisu.store.connect import transaction
from kurisu.store.markets import Market
from kurisu.store.rollups import materialization
from kurisu.store.store import Store
from kurisu.store.verify import Difference

CANDLES: Final = [*minutes(START, 70), *minutes(START + 5 * DAY, 40), candle(START + 9 * DAY)]
HOUR: Final = timedelta(hours=1)


async def table_of(store: Store, name: str) -> str:
    """Where the bars of a rollup are stored."""
    if not store.engine.is_community:
        return f"ohlcv_{name}"
    async with transaction(store.database) as connection:
        return await materialization(connection, name)


async def tamper(store: Store, name: str, change: str, **parameters: Any) -> None:
    """Do something to the stored bars of a rollup. change: SQL with {table}."""
    await fetch(store, change.format(table=await table_of(store, name)), **parameters)


def numbers(bar: Candle) -> tuple[Decimal | int | None, ...]:
    return bar[1:]


@pytest.fixture
async def written(store: Store, market: Market) -> Market:
    await store.candles.write(market, "1m", as_table(CANDLES))
    return market


async def test_right_bars_are_right(store: Store, written: Market) -> None:
    report = await store.candles.verify()
    assert report.ok
    assert report.differences == []
    assert report.checked == {name: len(aggregated(CANDLES, name)) for name in ROLLUPS}
    assert report.kept == dict.fromkeys(ROLLUPS, 0)


async def test_nothing_stored_is_right(store: Store, market: Market) -> None:
    report = await store.candles.verify()
    assert report.ok
    assert report.checked == dict.fromkeys(ROLLUPS, 0)


async def test_own_bars_are_not_compared(store: Store, market: Market) -> None:
    await store.candles.write(market, "1h", as_table(native(START, 5, "1h")))
    report = await store.candles.verify()
    assert report.ok
    assert sum(report.checked.values()) == 0


@pytest.mark.parametrize("name", ROLLUPS)
async def test_a_bar_that_was_changed_is_listed_with_what_it_should_be(
    store: Store, written: Market, name: str
) -> None:
    wanted = aggregated(CANDLES, name)[1]
    await tamper(store, name, "UPDATE {table} SET volume = volume + 1e-18 WHERE time = :time",
                 time=wanted.time)  # fmt: skip
    report = await store.candles.verify()
    with localcontext(prec=60):
        changed = wanted._replace(volume=wanted.volume + Decimal("1e-18"))
    assert not report.ok
    assert report.different == 1
    assert report.differences == [
        Difference(str(written), name, wanted.time, numbers(changed), numbers(wanted))  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("column", ["open", "high", "low", "close", "bars"])
async def test_every_column_is_compared(store: Store, written: Market, column: str) -> None:
    await tamper(store, "5m", f"UPDATE {{table}} SET {column} = {column} + 1 WHERE time = :time",
                 time=START)  # fmt: skip
    report = await store.candles.verify()
    assert [(d.timeframe, d.time) for d in report.differences] == [("5m", START)]


async def test_a_bar_that_is_not_there_is_listed(store: Store, written: Market) -> None:
    await tamper(store, "1h", "DELETE FROM {table} WHERE time = :time", time=START + HOUR)
    report = await store.candles.verify()
    wanted = aggregated(CANDLES, "1h")[1]
    assert report.differences == [
        Difference(str(written), "1h", START + HOUR, None, numbers(wanted))  # type: ignore[arg-type]
    ]


async def test_a_bar_without_candles_is_listed(store: Store, written: Market) -> None:
    time = START + 2 * DAY
    await tamper(
        store, "15m",
        "INSERT INTO {table} (time, market_id, open, high, low, close, volume, bars) "
        "VALUES (:time, :id, 1, 2, 1, 1, 3, 4)",
        time=time, id=written.id,
    )  # fmt: skip
    report = await store.candles.verify()
    stored = tuple(Decimal(n) for n in (1, 2, 1, 1, 3))
    assert report.differences == [Difference(str(written), "15m", time, (*stored, 4), None)]


async def test_differences_come_by_timeframe_market_and_time(
    store: Store, written: Market, other_market: Market
) -> None:
    await store.candles.write(other_market, "1m", as_table(CANDLES))
    for name in ("5m", "1d"):
        await tamper(store, name, "UPDATE {table} SET close = low - 1")
    report = await store.candles.verify([other_market, written])
    assert [(d.timeframe, d.market, d.time) for d in report.differences] == [
        (name, str(market), bar.time)
        for name in ("5m", "1d")
        for market in (other_market, written)
        for bar in aggregated(CANDLES, name)
    ]
    assert report.different == len(report.differences)


async def test_only_the_markets_asked_for_are_verified(
    store: Store, written: Market, other_market: Market
) -> None:
    await store.candles.write(other_market, "1m", as_table(CANDLES))
    await tamper(store, "1h", "UPDATE {table} SET close = low - 1 WHERE market_id = :id",
                 id=other_market.id)  # fmt: skip
    assert (await store.candles.verify([written])).ok
    assert not (await store.candles.verify([other_market])).ok
    assert not (await store.candles.verify()).ok
    assert (await store.candles.verify([])).ok


async def test_only_whole_bars_between_the_bounds_are_verified(
    store: Store, written: Market
) -> None:
    since, until = START + 7 * MINUTE, START + 5 * DAY + 21 * MINUTE
    report = await store.candles.verify(since=since, until=until)
    assert report.ok
    assert report.checked == {
        name: sum(
            since <= b.time and b.time <= opening(until, name) for b in aggregated(CANDLES, name)
        )
        for name in ROLLUPS
    }


async def test_a_difference_outside_the_bounds_is_not_looked_for(
    store: Store, written: Market
) -> None:
    await tamper(store, "5m", "UPDATE {table} SET close = low - 1 WHERE time = :time", time=START)
    assert not (await store.candles.verify(until=START + MINUTE)).ok
    assert (await store.candles.verify(since=START + MINUTE)).ok
    assert (await store.candles.verify(until=START)).ok


async def test_more_differences_than_are_listed_are_counted(
    store: Store, written: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "LISTED", 3)
    await tamper(store, "5m", "UPDATE {table} SET close = low - 1")
    report = await store.candles.verify()
    five = aggregated(CANDLES, "5m")
    assert report.different == len(five)
    assert [d.time for d in report.differences] == [b.time for b in five[:3]]


async def test_a_candle_that_was_changed_behind_the_rollups_is_found(
    store: Store, written: Market, url: str
) -> None:
    async with session(url) as connection:
        await connection.execute(
            "UPDATE ohlcv SET volume = volume + 5 WHERE time = $1", START + 3 * MINUTE
        )
    report = await store.candles.verify()
    if store.engine.is_community:  # Refreshed later; the triggers of the others saw it.
        assert {d.timeframe for d in report.differences} == set(ROLLUPS)
        assert {d.time for d in report.differences} == {START}
        await store.db.maintain()
        report = await store.candles.verify()
    assert report.ok


async def test_bars_of_dropped_candles_are_kept_and_those_of_others_still_verified(
    store: Store, market: Market
) -> None:
    """What retention leaves is no difference; a wrong bar of candles that are there is one."""
    await store.db.set_retention("ohlcv", "400 days")
    (now,) = (await fetch(store, "SELECT date_trunc('day', now(), 'UTC')"))[0]
    recent = minutes(now - 20 * DAY, 20)
    for rows in (CANDLES, recent):
        await store.candles.write(market, "1m", as_table(rows), allow_expiring=True)
    if store.engine.is_community:
        await fetch(store, "SELECT drop_chunks('ohlcv', now() - INTERVAL '400 days')")
    await store.db.maintain()
    report = await store.candles.verify()
    assert report.ok
    assert report.kept == {name: len(aggregated(CANDLES, name)) for name in ROLLUPS}
    assert report.checked == {name: len(aggregated(recent, name)) for name in ROLLUPS}
    await tamper(store, "1d", "UPDATE {table} SET bars = bars + 1 WHERE time = :time",
                 time=opening(recent[0].time, "1d"))  # fmt: skip
    assert (await store.candles.verify()).different == 1


async def test_a_bound_without_a_time_zone_is_refused(store: Store, market: Market) -> None:
    with pytest.raises(InvalidArgument, match="until has no time zone"):
        await store.candles.verify(until=START.replace(tzinfo=None))
