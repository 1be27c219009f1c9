"""What a fetch finds out never takes back what is stored."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from bars import START, as_table, minutes
from hypothesis import given
from hypothesis import strategies as st
from rows import coverage, fetch

from kurisu.domain.timeframe import BASE
from kurisu.store.coverage import Stretch, overlay, yielding
from kurisu.store.markets import Market
from kurisu.store.store import Store

RANK = {"complete": 3, "empty": 2, "outage": 1, "failed": 1}
MINUTE = timedelta(minutes=1)


@pytest.fixture(params=["plain"])
def tier(request: pytest.FixtureRequest) -> str:
    """Nothing of this depends on the engine."""
    return str(request.param)


@st.composite
def stretches(draw: st.DrawFn) -> list[Stretch]:
    """Sorted and disjoint."""
    edges = sorted(draw(st.sets(st.integers(0, 40), min_size=2, max_size=10)))
    return [
        Stretch(START + a * MINUTE, START + b * MINUTE, draw(st.sampled_from(sorted(RANK))), "rest")
        for a, b in zip(edges[::2], edges[1::2], strict=False)
    ]


def by_minute(found: list[Stretch]) -> dict[int, str]:
    return {
        m: one.status
        for one in found
        for m in range((one.since - START) // MINUTE, (one.until - START) // MINUTE)
    }


@given(known=stretches(), stated=stretches())
def test_better_knowledge_stays(known: list[Stretch], stated: list[Stretch]) -> None:
    before, said = by_minute(known), by_minute(stated)
    after = by_minute(overlay(known, yielding(stated, known)))
    wanted = {
        m: before[m]
        if m in before and (m not in said or RANK[before[m]] > RANK[said[m]])
        else said[m]
        for m in before.keys() | said.keys()
    }
    assert after == wanted


async def test_failing_over_stored_candles_changes_nothing(store: Store, market: Market) -> None:
    """A candle that is rejected fails its own bar, not those around it."""
    rows = minutes(START, 30)
    await store.candles.write(market, BASE, rows, source="file")
    bad = as_table(minutes(START + 30 * MINUTE, 3))
    low = pa.array([value + (1000 if i == 1 else 0) for i, value in
                    enumerate(bad.column("low").to_pylist())], pa.decimal128(38, 18))  # fmt: skip
    bad = bad.set_column(bad.column_names.index("low"), "low", low)
    report = await store.candles.write_fetched(
        market, BASE, bad,
        [Stretch(START + 10 * MINUTE, START + 20 * MINUTE, "failed", "rest")],
        now=START + timedelta(days=1),
    )  # fmt: skip
    assert (report.inserted, report.rejected) == (2, 1)
    assert [(since, status) for since, _, status, _ in await coverage(store, market)] == [
        (START, "complete"), (START + 30 * MINUTE, "complete"), (START + 31 * MINUTE, "failed"),
        (START + 32 * MINUTE, "complete"),
    ]  # fmt: skip


async def test_what_somebody_deleted_is_taken_back(store: Store, market: Market) -> None:
    await store.candles.write(market, BASE, minutes(START, 30))
    end = START + 30 * MINUTE
    assert await store.candles.forget_missing(market, BASE, START, end) == 0
    await fetch(
        store, "DELETE FROM ohlcv WHERE time >= :since AND time < :until",
        since=START + 5 * MINUTE, until=START + 7 * MINUTE,
    )  # fmt: skip
    assert await store.candles.forget_missing(market, BASE, START, end) == 2
    found = await store.candles.coverage(market, BASE, START, end)
    assert [(one.since, one.until) for one in found] == [
        (START, START + 5 * MINUTE), (START + 7 * MINUTE, end),
    ]  # fmt: skip


async def test_two_that_make_room_at_once_keep_what_both_need(store: Store) -> None:
    """Whichever comes last, the policy reaches back to the oldest row of all."""
    for _ in range(5):
        await fetch(
            store, "UPDATE retention_policies SET drop_after = '1 year', origin = 'default'"
        )
        now = datetime.now(UTC)
        asked = [np.array([int((now - timedelta(days=365 * years)).timestamp()) * 1_000_000])
                 for years in (9, 2, 5, 3)]  # fmt: skip
        await asyncio.gather(*(store.candles.make_room(times) for times in asked))
        kept = (await store.db.retention())["ohlcv"].cutoff
        assert kept is not None
        assert kept < now - timedelta(days=365 * 9)
