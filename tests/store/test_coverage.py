"""What is known about a stretch of time, against a model that knows every minute by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from bars import MINUTE, START, as_table, closing, minutes, native, opening
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import coverage, fetch, stored, value

from kurisu.domain.timeframe import BASE, TIMEFRAMES, timeframe
from kurisu.store.connect import transaction
from kurisu.store.coverage import (
    REASON_LENGTH,
    Stretch,
    by_time,
    forget_dropped,
    overlay,
    state,
)
from kurisu.store.coverage_read import Gap
from kurisu.store.markets import Market
from kurisu.store.store import Store

LENGTH: Final = 30
STATUSES: Final = ("complete", "empty", "outage", "failed")
SOURCES: Final = ("file", "rest")

Minutes = dict[int, tuple[str, str]]  # minute -> status, source


def stretch(since: int, until: int, status: str, source: str) -> Stretch:
    return Stretch(START + since * MINUTE, START + until * MINUTE, status, source)


def by_minute(stretches: Sequence[Stretch]) -> Minutes:
    """What is known about every minute; each is spoken of once."""
    known: Minutes = {}
    for found in stretches:
        for minute in range((found.since - START) // MINUTE, (found.until - START) // MINUTE):
            assert minute not in known
            known[minute] = (found.status, found.source)
    return known


stretches = st.builds(
    lambda since, length, status, source: (since, since + length, status, source),
    st.integers(0, LENGTH),
    st.integers(1, 8),
    st.sampled_from(STATUSES),
    st.sampled_from(SOURCES),
)


@st.composite
def disjoint(draw: st.DrawFn) -> list[Stretch]:
    """Some stretches that are sorted and do not overlap."""
    taken: set[int] = set()
    found = []
    for since, until, status, source in draw(st.lists(stretches, max_size=5)):
        if not taken & set(range(since, until)):
            taken |= set(range(since, until))
            found.append(stretch(since, until, status, source))
    return sorted(found, key=by_time)


class TestOverlay:
    @given(known=disjoint(), stated=disjoint())
    def test_each_minute_says_what_was_said_last(
        self, known: list[Stretch], stated: list[Stretch]
    ) -> None:
        before, said = by_minute(known), by_minute(stated)
        # To say the same again changes nothing, the source included.
        news = {
            minute: (status, source)
            for minute, (status, source) in said.items()
            if minute not in before or before[minute][0] != status
        }
        wanted = {**before, **news}
        assert by_minute(overlay(known, stated)) == wanted

    @given(known=disjoint(), stated=disjoint())
    def test_stretches_are_sorted_and_joined(
        self, known: list[Stretch], stated: list[Stretch]
    ) -> None:
        found = overlay(known, stated)
        for first, second in zip(found, found[1:], strict=False):
            assert first.until <= second.since
            if first.until == second.since:
                assert (first.status, first.source) != (second.status, second.source)

    @given(known=disjoint(), stated=disjoint())
    def test_saying_it_twice_changes_nothing(
        self, known: list[Stretch], stated: list[Stretch]
    ) -> None:
        once = overlay(known, stated)
        assert overlay(once, stated) == once


async def say(store: Store, market: Market, *stated: Stretch, name: str = "1m") -> list[Stretch]:
    """What a fetch finds out beside candles."""
    async with transaction(store.database) as connection:
        return await state(connection, market.id, timeframe(name), stated)


class TestStated:
    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(plan=st.lists(disjoint(), min_size=1, max_size=4))
    async def test_the_table_is_the_overlay_of_all_that_was_said(
        self, store: Store, plan: list[list[Stretch]]
    ) -> None:
        number = await value(store, "SELECT count(*) FROM markets")
        market = await store.markets.ensure("binance", f"X{number}/USDT")
        wanted: list[Stretch] = []
        for stated in plan:
            before = by_minute(wanted)
            news = await say(store, market, *stated)
            assert by_minute(news) == {
                minute: what
                for minute, what in by_minute(stated).items()
                if before.get(minute, ("", ""))[0] != what[0]
            }
            wanted = overlay(wanted, stated)
            assert [Stretch(*row) for row in await coverage(store, market)] == wanted

    async def test_neighbours_of_one_kind_are_one_row(self, store: Store, market: Market) -> None:
        for since in (5, 15, 0, 10):
            await say(store, market, stretch(since, since + 5, "empty", "rest"))
        assert await coverage(store, market) == [(START, START + 20 * MINUTE, "empty", "rest")]

    async def test_the_newest_reason_is_the_one_that_is_kept(
        self, store: Store, market: Market
    ) -> None:
        whole = stretch(0, 10, "failed", "rest")
        await say(store, market, replace(whole, reason="time-out"))
        news = [replace(stretch(2, 5, "failed", "rest"), reason="x" * REASON_LENGTH)]
        assert await say(store, market, replace(news[0], reason="x" * 600)) == news
        assert await say(store, market, *news) == []
        at = START, START + 10 * MINUTE
        assert [one.reason for one in await store.candles.coverage(market, "1m", *at)] == [
            "time-out", "x" * REASON_LENGTH, "time-out",
        ]  # fmt: skip

    async def test_markets_and_timeframes_are_apart(
        self, store: Store, market: Market, other_market: Market
    ) -> None:
        await say(store, market, stretch(0, 10, "empty", "rest"))
        await say(store, other_market, stretch(0, 10, "outage", "rest"))
        await say(store, market, stretch(0, 10, "failed", "rest"), name="5m")
        assert [row[2] for row in await coverage(store, market)] == ["empty"]
        assert [row[2] for row in await coverage(store, other_market)] == ["outage"]
        assert [row[2] for row in await coverage(store, market, "5m")] == ["failed"]


class TestWritten:
    async def test_stored_candles_are_complete_stretches(
        self, store: Store, market: Market
    ) -> None:
        candles = minutes(START, 30)
        rows = [*candles[:10], *candles[12:20], candles[25]]
        report = await store.candles.write(market, "1m", rows, source="file")
        wanted = [
            stretch(0, 10, "complete", "file"),
            stretch(12, 20, "complete", "file"),
            stretch(25, 26, "complete", "file"),
        ]
        assert report.coverage == wanted
        assert [Stretch(*row) for row in await coverage(store, market)] == wanted

    async def test_only_what_is_new_is_reported(self, store: Store, market: Market) -> None:
        await store.candles.write(market, "1m", minutes(START + 5 * MINUTE, 10), source="file")
        report = await store.candles.write(market, "1m", minutes(START, 30), source="rest")
        assert report.coverage == [
            stretch(0, 5, "complete", "rest"),
            stretch(15, 30, "complete", "rest"),
        ]

    async def test_candles_fill_what_was_said_to_be_missing(
        self, store: Store, market: Market
    ) -> None:
        await say(store, market, stretch(0, 30, "failed", "rest"))
        await store.candles.write(market, "1m", minutes(START + 10 * MINUTE, 5), source="rest")
        assert [Stretch(*row) for row in await coverage(store, market)] == [
            stretch(0, 10, "failed", "rest"),
            stretch(10, 15, "complete", "rest"),
            stretch(15, 30, "failed", "rest"),
        ]

    async def test_rejected_candles_are_not_complete(self, store: Store, market: Market) -> None:
        rows = minutes(START, 5)
        rows[2] = rows[2]._replace(volume=rows[2].volume - 10**16)
        await store.candles.write(market, "1m", rows)
        assert [(since, until) for since, until, *_ in await coverage(store, market)] == [
            (START, START + 2 * MINUTE),
            (START + 3 * MINUTE, START + 5 * MINUTE),
        ]

    @settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        writes=st.lists(
            st.one_of(
                st.lists(st.integers(0, LENGTH), min_size=1, max_size=15, unique=True),
                disjoint().map(lambda found: [s for s in found if s.status != "complete"]),
            ),
            min_size=1,
            max_size=4,
        )
    )
    async def test_a_complete_stretch_holds_every_candle(
        self, store: Store, writes: list[list[int] | list[Stretch]]
    ) -> None:
        number = await value(store, "SELECT count(*) FROM markets")
        market = await store.markets.ensure("binance", f"X{number}/USDT")
        for written in writes:
            numbers = [n for n in written if isinstance(n, int)]
            if numbers:
                rows = [minutes(START + n * MINUTE, 1)[0] for n in numbers]
                await store.candles.write(market, "1m", rows)
            else:
                await say(store, market, *(s for s in written if isinstance(s, Stretch)))
        there = {c.time for c in await stored(store, market)}
        for since, until, status, _ in await coverage(store, market):
            if status == "complete":
                inside = [since + n * MINUTE for n in range((until - since) // MINUTE)]
                assert set(inside) <= there


class TestGaps:
    """`gaps`: every minute without a candle, once, with what is known about it."""

    @settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        numbers=st.lists(st.integers(0, LENGTH), max_size=12, unique=True),
        stated=disjoint().map(lambda found: [s for s in found if s.status != "complete"]),
        since=st.none() | st.integers(-3, LENGTH + 3),
        until=st.none() | st.integers(-3, LENGTH + 3),
    )
    async def test_against_a_model_of_every_minute(
        self,
        store: Store,
        numbers: list[int],
        stated: list[Stretch],
        since: int | None,
        until: int | None,
    ) -> None:
        number = await value(store, "SELECT count(*) FROM markets")
        market = await store.markets.ensure("binance", f"X{number}/USDT")
        await say(store, market, *stated)
        if numbers:
            rows = [minutes(START + n * MINUTE, 1)[0] for n in sorted(numbers)]
            await store.candles.write(market, "1m", rows)
        found = await store.candles.gaps(
            market,
            "1m",
            None if since is None else START + since * MINUTE,
            None if until is None else START + until * MINUTE,
        )
        assert self.minutes_of(found) == self.expected(set(numbers), stated, since, until)
        for gap in found:
            assert gap.bars == (gap.until - gap.since) // MINUTE > 0
        assert [gap.since for gap in found] == sorted(gap.since for gap in found)

    @staticmethod
    def minutes_of(found: list[Gap]) -> dict[int, str]:
        known: dict[int, str] = {}
        for gap in found:
            for minute in range((gap.since - START) // MINUTE, (gap.until - START) // MINUTE):
                assert minute not in known
                known[minute] = gap.status
        return known

    @staticmethod
    def expected(
        there: set[int], stated: list[Stretch], since: int | None, until: int | None
    ) -> dict[int, str]:
        inside = {
            n for n in there
            if (since is None or n >= since) and (until is None or n < until)
        }  # fmt: skip
        if not inside and (since is None or until is None):
            return {}  # Nothing says where it would begin or end.
        low = min(inside) if since is None else since
        high = max(inside) + 1 if until is None else until
        said = by_minute(stated)
        return {
            minute: said.get(minute, ("missing", ""))[0]
            for minute in range(low, high)
            if minute not in there
        }

    async def test_neighbouring_gaps_differ_in_status(self, store: Store, market: Market) -> None:
        await say(
            store, market,
            stretch(2, 4, "empty", "rest"), stretch(4, 6, "outage", "rest"),
        )  # fmt: skip
        await store.candles.write(
            market, "1m", [minutes(START, 1)[0], *minutes(START + 9 * MINUTE, 1)]
        )
        found = await store.candles.gaps(market)
        assert [(g.bars, g.status) for g in found] == [
            (1, "missing"), (2, "empty"), (2, "outage"), (3, "missing"),
        ]  # fmt: skip

    async def test_a_month_is_a_bar(self, store: Store, market: Market) -> None:
        months = native(datetime(2023, 10, 1, tzinfo=START.tzinfo), 8, "1M")
        await store.candles.write(market, "1M", [months[0], months[3], months[7]])
        found = await store.candles.gaps(market, "1M")
        assert [(g.since, g.until, g.bars) for g in found] == [
            (months[1].time, months[3].time, 2),
            (months[4].time, months[7].time, 3),
        ]

    async def test_weeks_open_on_monday(self, store: Store, market: Market) -> None:
        weeks = native(opening(START, "1w"), 5, "1w")
        await store.candles.write(market, "1w", [weeks[0], weeks[4]])
        (gap,) = await store.candles.gaps(market, "1w")
        assert (gap.since, gap.until, gap.bars) == (weeks[1].time, weeks[4].time, 3)
        assert closing(gap.since, "1w") == weeks[2].time

    async def test_bounds_inside_a_bar_count_from_the_next_one(
        self, store: Store, market: Market
    ) -> None:
        found = await store.candles.gaps(
            market, "1h", START + 10 * MINUTE, START.replace(hour=3, minute=10)
        )
        assert [(g.since.hour, g.until.hour, g.bars) for g in found] == [(1, 4, 3)]

    async def test_months_in_a_session_with_summer_time(self, store: Store, market: Market) -> None:
        months = native(datetime(2024, 1, 1, tzinfo=START.tzinfo), 12, "1M")
        await store.candles.write(market, "1M", months)
        async with transaction(store.database) as connection:
            from kurisu.store.coverage_read import gaps

            await connection.exec_driver_sql("SET LOCAL timezone = 'America/New_York'")
            assert await gaps(connection, market.id, timeframe("1M"), None, None) == []


async def test_the_source_and_time_of_a_fetch_are_kept(store: Store, market: Market) -> None:
    await store.candles.write(market, BASE, minutes(START, 3), source="stream")
    (row,) = await fetch(
        store, "SELECT source, fetched_at > now() - INTERVAL '1 hour' FROM candle_coverage"
    )
    assert row == ("stream", True)


@pytest.mark.parametrize("tier", ["apache", "community"], indirect=True)
async def test_a_chunk_that_somebody_dropped_is_forgotten_and_its_neighbours_are_not(
    store: Store, market: Market, other_market: Market
) -> None:
    """Chunks begin on Thursdays; the stretch goes over four of them, and a hole is empty."""
    first = datetime(2024, 2, 1, tzinfo=UTC)
    week = timedelta(days=7)
    rows = [r for r in native(first, 4 * 42, "4h") if r.time != first + timedelta(days=9)]
    for written in (market, other_market):
        await store.candles.write(written, "4h", as_table(rows), allow_expiring=True)
    hole = (first + timedelta(days=9), first + timedelta(days=9, hours=4))
    async with transaction(store.database) as connection:
        await state(connection, market.id, TIMEFRAMES["4h"], [Stretch(*hole, "empty", "rest")])
        assert await forget_dropped(connection) == 0
    await fetch(
        store,
        "SELECT drop_chunks('ohlcv', older_than => CAST(:until AS timestamptz), "
        "newer_than => CAST(:since AS timestamptz))",
        since=first + week, until=first + 2 * week,
    )  # fmt: skip
    async with transaction(store.database) as connection:
        assert await forget_dropped(connection) == 4
        assert await forget_dropped(connection) == 0
    left = [
        (first, first + week, "complete", "api"),
        (first + 2 * week, first + 4 * week, "complete", "api"),
    ]
    assert await coverage(store, market, "4h") == sorted([*left, (*hole, "empty", "rest")])
    assert await coverage(store, other_market, "4h") == left
