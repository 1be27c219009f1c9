"""A few bars in one question: right where it answers, and silent where it must not."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

import pytest
from bars import DAY, MINUTE, ROLLUPS, START, aggregated, as_table, candle, minutes, native
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import fetch

from kurisu.domain.candle import Candle
from kurisu.domain.timeframe import TIMEFRAMES
from kurisu.store import candle_few
from kurisu.store.candle_read import opens_between
from kurisu.store.candle_table import CandleTable
from kurisu.store.markets import Market
from kurisu.store.store import Store, upgrade

LARGEST: Final = Decimal("99999999999999999999.999999999999999999")
END: Final = START + 9 * DAY
HOUR: Final = timedelta(hours=1)


async def few(
    store: Store,
    market: Market,
    name: str,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Candle] | None:
    """What the one question gives; None if it does not answer."""
    frame = TIMEFRAMES[name]
    table = await store.few_bars.read(market.id, frame, *opens_between(frame, since, until))
    return None if table is None else list(CandleTable(table))


async def write(store: Store, market: Market, candles: list[Candle], timeframe: str = "1m") -> None:
    await store.candles.write(market, timeframe, as_table(candles))


async def test_it_answers_for_every_rollup(store: Store, market: Market) -> None:
    there = [
        c for i, c in enumerate(minutes(START + 7 * MINUTE, 5_000)) if i % 7 and i % 1_900 > 99
    ]
    await write(store, market, there)
    for name in ROLLUPS:
        bars = aggregated(there, name)
        since, until = bars[1].time, bars[-1].time
        assert await few(store, market, name, START, START + 9 * DAY) == bars, name
        assert await few(store, market, name, since, until) == bars[1:-1], name
        assert await few(store, market, name, until, since) == [], name
        found = await store.candles.read(market, name, START, START + 9 * DAY)
        assert list(found) == bars
        assert found.sources == {"1m": len(bars)}


async def test_without_a_beginning_it_answers_for_days(store: Store, market: Market) -> None:
    """Of hours there may be many, and to ask in vain would take half as long as to read them."""
    there = minutes(START, 300)
    await write(store, market, there)
    assert await few(store, market, "1d") == aggregated(there, "1d")
    assert await few(store, market, "1d", None, START + DAY) == aggregated(there, "1d")
    for name in ("5m", "15m", "1h", "4h", "1m", "30m", "1w", "1M"):
        assert await few(store, market, name) is None, name
        assert await few(store, market, name, None, START + DAY) is None, name


async def test_without_an_end_it_answers_up_to_now(store: Store, market: Market) -> None:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    there = minutes(now - 2 * DAY, 2 * 1_440)
    await write(store, market, there)
    for name in ROLLUPS:
        assert await few(store, market, name, now - 3 * DAY) == aggregated(there, name), name
    assert await few(store, market, "5m", now - 15 * DAY) is None
    assert await few(store, market, "5m", now - 14 * DAY) is not None


async def test_of_many_bars_it_gives_none(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candle_few, "FEW", 10)
    there = minutes(START, 21 * 60, step=MINUTE)
    await write(store, market, there)
    bars = aggregated(there, "1h")
    assert await few(store, market, "1h", START, START + 10 * HOUR) == bars[:10]
    assert await few(store, market, "1h", START, START + 11 * HOUR) is None
    assert list(await store.candles.read(market, "1h")) == bars
    # Of days without bounds the answer alone says that there are more.
    monkeypatch.setattr(candle_few, "FEW", 0)
    store.few_bars._questions.clear()
    assert await few(store, market, "1d") is None
    assert list(await store.candles.read(market, "1d")) == aggregated(there, "1d")


async def test_a_table_without_rows_is_as_any_other(
    store: Store, market: Market, other_market: Market
) -> None:
    frame = TIMEFRAMES["1d"]
    bounds = opens_between(frame, START, START + DAY)
    await write(store, market, minutes(START, 3))
    one = await store.few_bars.read(market.id, frame, *bounds)
    nothing = await store.few_bars.read(other_market.id, frame, *bounds)
    assert one is not None
    assert nothing is not None
    assert (one.num_rows, nothing.num_rows) == (1, 0)
    assert nothing.schema.remove_metadata() == one.schema.remove_metadata()
    assert CandleTable(nothing).sources == {}


async def test_own_bars_of_an_exchange_are_not_its_business(
    store: Store, market: Market, other_market: Market
) -> None:
    there = minutes(START, 100)
    for one in (market, other_market):
        await write(store, one, there)
    await write(store, market, native(START + DAY, 3, "1w"), "1w")
    assert await few(store, market, "1d") == aggregated(there, "1d")
    own = native(START + 2 * DAY, 30, "1h")
    await write(store, market, own, "1h")
    assert await few(store, market, "1h", START, END) is None
    assert await few(store, market, "1d") is None
    assert await few(store, market, "15m", START, START + DAY) == aggregated(there, "15m")
    assert await few(store, other_market, "1d") == aggregated(there, "1d")
    both = [*aggregated(there, "1d"), *aggregated(own, "1d")]
    assert list(await store.candles.read(market, "1d")) == both


async def test_what_waits_for_a_refresh_is_not_its_business(
    store: Store, market: Market, other_market: Market
) -> None:
    there = minutes(START, 4_000)
    for one in (market, other_market):
        await write(store, one, there[::2])
    late = there[1:1_000:2]
    await store.candles.write_fetched(market, "1m", as_table(late), [], now=datetime.now(UTC))
    now_there = sorted([*there[::2], *late], key=lambda c: c.time)
    waits = store.engine.is_community
    for name in ("1h", "1d"):
        found = await few(store, market, name, START, END)
        assert found is None if waits else found == aggregated(now_there, name)
        assert list(await store.candles.read(market, name)) == aggregated(now_there, name)
        assert await few(store, other_market, name, START, END) == aggregated(there[::2], name)
    await store.candles.settle()
    assert await few(store, market, "1d") == aggregated(now_there, "1d")


async def test_a_watermark_that_moves_between_two_questions(store: Store, market: Market) -> None:
    there: list[Candle] = []
    for day in (0, 1, 2, 30, 31, 400):
        there += minutes(START + day * DAY, 90)
        await write(store, market, there[-90:])
        for name in ("4h", "1d"):
            found = await few(store, market, name, START, START + 401 * DAY)
            assert found == aggregated(there, name), (day, name)


async def test_candles_of_now_are_in_it(store: Store, market: Market) -> None:
    """They lie above the watermark, of which no refresh goes past the bar in progress."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    there = minutes(now - 3 * DAY, 3 * 1_440, seed=1)
    await write(store, market, there[:-2])
    for last in there[-2:]:
        await write(store, market, [last])
    for name in ("1h", "4h", "1d"):
        assert await few(store, market, name, now - 9 * DAY) == aggregated(there, name), name
    since = aggregated(there, "1h")[-3].time
    assert await few(store, market, "1h", since, now) == [
        b for b in aggregated(there, "1h") if since <= b.time < now
    ]


async def test_where_candles_were_dropped_above_the_watermark(store: Store, market: Market) -> None:
    """Bars above the watermark would be made from candles that are not there any more."""
    there = minutes(START, 2_000)
    await write(store, market, there)
    await fetch(store, "UPDATE retention_policies SET dropped_before = now(), drop_after = '1 day'")
    found = await few(store, market, "1d")
    assert found is None if store.engine.is_community else found == aggregated(there, "1d")


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_aggregates_that_were_made_anew(store: Store, market: Market) -> None:
    there = minutes(START, 3_000)
    await write(store, market, there)
    assert await few(store, market, "1d") == aggregated(there, "1d")
    await fetch(store, "DROP MATERIALIZED VIEW ohlcv_1d")
    assert await few(store, market, "1d") is None
    await upgrade(store.database.url.render_as_string(hide_password=False), store.config)
    for _ in range(2):
        assert await few(store, market, "1d") == aggregated(there, "1d")


async def test_a_sum_that_no_decimal_holds_is_left_to_who_says_so(
    store: Store, market: Market
) -> None:
    largest = candle(START)._replace(volume=LARGEST)
    await write(store, market, [largest, largest._replace(time=START + MINUTE)])
    assert await few(store, market, "1d") is None


async def test_many_ask_at_once(store: Store, market: Market, other_market: Market) -> None:
    there = minutes(START, 3_000)
    await write(store, market, there)
    await write(store, other_market, there[:1_500])
    asked = [
        few(store, one, name, START, END)
        for name in ("1h", "4h", "1d")
        for one in (market, other_market)
    ]
    found = await asyncio.gather(*asked * 3)
    expected = [
        aggregated(some, name) for name in ("1h", "4h", "1d") for some in (there, there[:1_500])
    ]
    assert found == expected * 3


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 20 * 1_440), st.sampled_from([1, 2, 61, 400]), st.booleans(),
            st.sampled_from(ROLLUPS), st.integers(-2, 20), st.integers(0, 14),
        ),
        min_size=1, max_size=5,
    )
)  # fmt: skip
async def test_whoever_answers_says_the_same(
    store: Store, writes: list[tuple[int, int, bool, str, int, int]]
) -> None:
    """Writes and reads in turn, some of what is written refreshed later."""
    await store.db.set_retention("ohlcv", "off")
    market = await store.markets.ensure("binance", f"A{next(NUMBERS)}/USDT")
    there: dict[datetime, Candle] = {}
    for seed, (first, count, refreshed, name, since, days) in enumerate(writes):
        new = minutes(START + first * MINUTE, count, seed=seed)
        there |= {one.time: one for one in new}
        if refreshed:
            await write(store, market, new)
        else:
            now = datetime.now(UTC)
            await store.candles.write_fetched(market, "1m", as_table(new), [], now=now)
        low, high = START + since * DAY, START + (since + days) * DAY
        bars = [b for b in aggregated(there.values(), name) if low <= b.time < high]
        found = await few(store, market, name, low, high)
        assert found is None or found == bars
        assert list(await store.candles.read(market, name, low, high)) == bars
        if refreshed or not store.engine.is_community:
            assert found is not None


NUMBERS: Final = iter(range(1_000_000))
