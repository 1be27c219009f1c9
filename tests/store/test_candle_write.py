"""The one way candles get in: what the report says is what happened, and nothing else did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa
import pytest
from bars import DAY, MINUTE, NAMES, START, as_table, candle, closing, minutes, native, opening
from engines import CONCURRENT_TIERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import INSERT_CANDLE, coverage, fetch, parameters, rollups, session, stored, value

from kurisu.domain.candle import Candle
from kurisu.domain.faults import Rule
from kurisu.domain.market import MarketName
from kurisu.errors import DatabaseError, InvalidArgument
from kurisu.store import candle_write
from kurisu.store import coverage as coverage_module
from kurisu.store.candle_rows import from_us
from kurisu.store.candle_write import ARRAY_ROWS, WriteReport
from kurisu.store.coverage import Stretch
from kurisu.store.markets import Market
from kurisu.store.store import Store, open_store

PLACES: Final = "SELECT time, ctid::text, xmin::text FROM ohlcv ORDER BY time"


def counts(report: WriteReport) -> tuple[int, int, int]:
    """(inserted, updated, unchanged), once the report adds up."""
    assert report.read == (
        report.inserted + report.updated + report.unchanged + report.rejected
        + len(report.conflicts) + report.duplicates
    )  # fmt: skip
    return report.inserted, report.updated, report.unchanged


async def test_new_candles_are_stored_to_the_last_digit(store: Store, market: Market) -> None:
    candles = minutes(START, 300)
    report = await store.candles.write(market, "1m", as_table(candles))
    assert counts(report) == (300, 0, 0)
    assert await stored(store, market) == candles


async def test_the_largest_and_the_smallest_number(store: Store, market: Market) -> None:
    largest = Decimal("99999999999999999999.999999999999999999")
    smallest = Decimal("0.000000000000000001")
    row = Candle(START, smallest, largest, smallest, largest, Decimal(0))
    await store.candles.write(market, "1m", [row])
    assert await stored(store, market) == [row]


async def test_the_same_again_changes_nothing(store: Store, market: Market) -> None:
    candles = minutes(START, 300)
    await store.candles.write(market, "1m", as_table(candles))
    before = await fetch(store, PLACES), await rollups(store, market), await coverage(store, market)
    report = await store.candles.write(market, "1m", as_table(candles), source="rest")
    assert counts(report) == (0, 0, 300)
    assert (report.coverage, report.touched) == ([], [])
    after = await fetch(store, PLACES), await rollups(store, market), await coverage(store, market)
    assert after == before
    assert await value(store, "SELECT count(*) FROM candle_revisions") == 0


@pytest.mark.parametrize("changed", [7, ARRAY_ROWS, ARRAY_ROWS + 1])
async def test_only_what_differs_is_written(store: Store, market: Market, changed: int) -> None:
    old = minutes(START, ARRAY_ROWS + 200)
    await store.candles.write(market, "1m", as_table(old))
    before = {time: place for time, place, _ in await fetch(store, PLACES)}
    new = [*minutes(START, changed, seed=1), *old[changed:], *minutes(old[-1].time + MINUTE, 50)]
    report = await store.candles.write(market, "1m", as_table(new))
    assert counts(report) == (50, changed, len(old) - changed)
    assert await stored(store, market) == new
    revised = await fetch(
        store, "SELECT time, open, high, low, close, volume FROM candle_revisions ORDER BY time"
    )
    assert [Candle(*row) for row in revised] == old[:changed]
    after = {time: place for time, place, _ in await fetch(store, PLACES)}
    assert [before[c.time] == after[c.time] for c in old[changed:]] == [True] * (len(old) - changed)


async def test_everything_that_can_happen_to_a_row(store: Store, market: Market) -> None:
    await store.candles.write(market, "1m", minutes(START, 3))
    rows = [
        candle(START),  # unchanged
        candle(START + MINUTE, seed=1),  # updated
        candle(START + 3 * MINUTE, seed=1),  # a conflict, lost
        candle(START + 3 * MINUTE),  # inserted
        candle(START + 3 * MINUTE),  # a duplicate
        candle(START + 4 * MINUTE)._replace(volume=Decimal(-1)),  # rejected
        candle(START + 5 * MINUTE + timedelta(seconds=3)),  # rejected
    ]
    report = await store.candles.write(market, "1m", rows)
    assert counts(report) == (1, 1, 1)
    assert (report.rejected, len(report.conflicts), report.duplicates) == (2, 1, 1)
    assert [r.rule for r in report.rejects] == [Rule.NEGATIVE_VOLUME, Rule.TIME_NOT_ALIGNED]
    assert [(c.row, c.kept_row) for c in report.conflicts] == [(3, 5)]


async def test_nothing_to_write(store: Store, market: Market) -> None:
    assert counts(await store.candles.write(market, "1m", as_table([]))) == (0, 0, 0)
    bad = candle(START)._replace(volume=Decimal(-1))
    assert (await store.candles.write(market, "1m", [bad])).rejected == 1
    assert await value(store, "SELECT count(*) FROM ohlcv") == 0


async def test_stretches_that_were_touched(store: Store, market: Market) -> None:
    await store.candles.write(market, "1m", minutes(START + 2 * MINUTE, 2))
    report = await store.candles.write(
        market, "1m", [*minutes(START, 4), *minutes(START + 9 * MINUTE, 1)]
    )
    touched = [(from_us(since), from_us(until)) for since, until in report.touched]
    assert touched == [
        (START, START + 2 * MINUTE),
        (START + 9 * MINUTE, START + 10 * MINUTE),
    ]


@pytest.mark.parametrize("tier", ["plain"], indirect=True)
@pytest.mark.parametrize("name", NAMES)
async def test_native_bars_of_every_timeframe(store: Store, market: Market, name: str) -> None:
    bars = native(opening(START, name), 12, name)
    report = await store.candles.write(market, name, bars)
    assert counts(report) == (12, 0, 0)
    assert await stored(store, market, name) == bars
    assert await coverage(store, market, name) == [
        (bars[0].time, closing(bars[-1].time, name), "complete", "api")
    ]


async def test_markets_and_timeframes_are_apart(
    store: Store, market: Market, other_market: Market
) -> None:
    for target, name, seed in ((market, "1m", 1), (market, "1h", 2), (other_market, "1m", 3)):
        report = await store.candles.write(target, name, [candle(START, seed)])
        assert counts(report) == (1, 0, 0)
    assert await stored(store, market) == [candle(START, 1)]
    assert await stored(store, market, "1h") == [candle(START, 2)]
    assert await stored(store, other_market) == [candle(START, 3)]


async def test_a_market_may_be_given_by_its_name(store: Store) -> None:
    name = MarketName.parse("kraken:BTC/EUR")
    await store.candles.write(name, "1m", [candle(START)])
    assert await stored(store, await store.markets.get("kraken", "BTC/EUR")) == [candle(START)]


async def test_an_unknown_timeframe_is_refused(store: Store, market: Market) -> None:
    with pytest.raises(InvalidArgument, match="unknown timeframe"):
        await store.candles.write(market, "2m", minutes(START, 1))


class TestClocks:
    async def test_what_has_not_closed_is_left_out(self, store: Store, market: Market) -> None:
        now = START + 10 * MINUTE + timedelta(seconds=30)
        report = await store.candles.write(market, "1m", minutes(START, 12), now=now)
        assert counts(report) == (10, 0, 0)
        assert {r.rule for r in report.rejects} == {Rule.NOT_CLOSED}

    async def test_grace_is_time_after_the_close(self, store: Store, market: Market) -> None:
        now = START + 10 * MINUTE
        report = await store.candles.write(
            market, "1m", minutes(START, 12), now=now, grace=timedelta(seconds=1)
        )
        assert counts(report) == (9, 0, 0)

    async def test_without_a_clock_this_machines_counts(self, store: Store, market: Market) -> None:
        soon = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        report = await store.candles.write(market, "1m", minutes(soon - 5 * MINUTE, 6))
        assert report.inserted in (4, 5)  # The minute may end meanwhile.
        assert {r.rule for r in report.rejects} == {Rule.NOT_CLOSED}

    async def test_a_clock_without_a_zone_is_refused(self, store: Store, market: Market) -> None:
        with pytest.raises(InvalidArgument, match="now has no time zone"):
            await store.candles.write(
                market,
                "1m",
                minutes(START, 1),
                now=datetime(2025, 1, 1),
            )


class TestAllOrNothing:
    async def test_a_failure_leaves_nothing(
        self, store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await store.candles.write(market, "1m", minutes(START, 5))
        before = await fetch(store, PLACES)

        async def failing(*_: object) -> list[Stretch]:
            raise DatabaseError("the cable was pulled")

        monkeypatch.setattr(coverage_module, "state", failing)
        with pytest.raises(DatabaseError, match="cable"):
            await store.candles.write(
                market, "1m", [*minutes(START, 3, seed=1), *minutes(START + DAY, 5)]
            )
        assert await fetch(store, PLACES) == before

    async def test_a_large_write_goes_in_slices(
        self, store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(candle_write, "SLICE_ROWS", 70)
        candles = minutes(START, 500)
        await store.candles.write(market, "1m", as_table(candles[100:200]))
        revised = [*candles[:150], *minutes(candles[150].time, 350, seed=1)]
        report = await store.candles.write(market, "1m", as_table(revised))
        assert counts(report) == (400, 50, 50)
        assert await stored(store, market) == revised
        assert await coverage(store, market) == [(START, START + 500 * MINUTE, "complete", "api")]


versions = st.lists(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), min_size=1, max_size=25),
    min_size=1,
    max_size=4,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=versions)
@pytest.mark.parametrize("array_rows", [0, 1_000])
async def test_any_sequence_of_writes_ends_as_the_last_word_on_each_candle(
    store: Store,
    writes: list[list[tuple[int, int]]],
    array_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By COPY and through a temporary table, and as arrays."""
    monkeypatch.setattr(candle_write, "ARRAY_ROWS", array_rows)
    number = await value(store, "SELECT count(*) FROM markets")
    market = await store.markets.ensure("binance", f"X{number}/USDT")
    kept: dict[datetime, Candle] = {}
    for rows in writes:
        given_rows = [candle(START + minute * MINUTE, seed) for minute, seed in rows]
        last = {row.time: row for row in given_rows}
        report = await store.candles.write(market, "1m", given_rows)
        assert counts(report) == (
            len(last.keys() - kept.keys()),
            sum(1 for time, row in last.items() if time in kept and kept[time] != row),
            sum(1 for time, row in last.items() if kept.get(time) == row),
        )
        kept |= last
    assert await stored(store, market) == [kept[time] for time in sorted(kept)]


@pytest.mark.parametrize("tier", CONCURRENT_TIERS, indirect=True)
class TestTwoWriters:
    async def test_of_one_range_each_candle_is_inserted_once(
        self, store: Store, market: Market, url: str
    ) -> None:
        candles = minutes(START, 400)
        async with open_store(url) as other:
            reports = await asyncio.gather(
                *(
                    which.candles.write(market, "1m", as_table(candles[low : low + 200]))
                    for which in (store, other)
                    for low in (0, 100, 200)
                )
            )
        assert sum(report.inserted for report in reports) == 400
        assert sum(report.unchanged for report in reports) == 800
        assert sum(report.updated for report in reports) == 0
        assert await stored(store, market) == candles
        assert await coverage(store, market) == [(START, START + 400 * MINUTE, "complete", "api")]

    async def test_who_contradict_each_other_leave_one_version_of_each_candle(
        self, store: Store, market: Market, url: str
    ) -> None:
        async with open_store(url) as other:
            await asyncio.gather(
                store.candles.write(market, "1m", as_table(minutes(START, 300, seed=1))),
                other.candles.write(market, "1m", as_table(minutes(START, 300, seed=2))),
            )
        found = await stored(store, market)
        assert found in (minutes(START, 300, seed=1), minutes(START, 300, seed=2))
        assert await value(store, "SELECT count(*) FROM candle_revisions") == 300

    @pytest.mark.parametrize("array_rows", [0, 1_000])
    async def test_one_of_them_psql_between_our_look_and_our_insert(
        self,
        store: Store,
        market: Market,
        url: str,
        monkeypatch: pytest.MonkeyPatch,
        array_rows: int,
    ) -> None:
        monkeypatch.setattr(candle_write, "ARRAY_ROWS", array_rows)
        candles = minutes(START, 20)
        theirs = candle(candles[7].time, seed=1)
        monkeypatch.setattr(
            candle_write, "_compare", interrupted(url, INSERT_CANDLE, parameters(market, theirs))
        )
        report = await store.candles.write(market, "1m", as_table(candles))
        assert counts(report) == (19, 1, 0)
        assert await stored(store, market) == candles
        assert await value(store, "SELECT volume FROM candle_revisions") == theirs.volume

    async def test_psql_deletes_what_we_were_to_update(
        self, store: Store, market: Market, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await store.candles.write(market, "1m", as_table(minutes(START, 20, seed=1)))
        candles = minutes(START, 20)
        monkeypatch.setattr(
            candle_write,
            "_compare",
            interrupted(url, "DELETE FROM ohlcv WHERE time = $1", (START,)),
        )
        await store.candles.write(market, "1m", as_table(candles))
        assert await stored(store, market) == candles

    @pytest.mark.parametrize("array_rows", [0, 1_000])
    async def test_somebody_who_never_stops(
        self,
        store: Store,
        market: Market,
        url: str,
        monkeypatch: pytest.MonkeyPatch,
        array_rows: int,
    ) -> None:
        monkeypatch.setattr(candle_write, "ARRAY_ROWS", array_rows)
        candles = minutes(START, 20)
        real = candle_write._compare

        async def compare(*arguments: Any) -> Any:
            result = await real(*arguments)
            async with session(url) as other:
                # The rollup triggers would wait for our lock on the market.
                await other.execute("SET session_replication_role = replica")
                await other.execute("DELETE FROM ohlcv")
                await other.execute(INSERT_CANDLE, *parameters(market, candles[3]))
            return arguments[3], result[1]

        monkeypatch.setattr(candle_write, "_compare", compare)
        with pytest.raises(DatabaseError, match="gave up after 5 attempts"):
            await store.candles.write(market, "1m", as_table(candles))
        assert await stored(store, market) == [candles[3]]


def interrupted(url: str, statement: str, arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """`_compare`, after which somebody else runs a statement, the first time."""
    real = candle_write._compare
    interruptions = [(statement, arguments)]

    async def compare(*given_arguments: Any) -> Any:
        result = await real(*given_arguments)
        while interruptions:
            query, values = interruptions.pop()
            async with session(url) as other:
                # The rollup triggers would wait for our lock on the market.
                await other.execute("SET session_replication_role = replica")
                await other.execute(query, *values)
        return result

    return compare


async def test_arrow_in_any_chunks(store: Store, market: Market) -> None:
    candles = minutes(START, 100)
    pieces = [as_table(candles[low : low + 7]) for low in range(0, 100, 7)]
    await store.candles.write(market, "1m", pa.concat_tables(pieces))
    assert await stored(store, market) == candles
