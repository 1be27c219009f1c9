"""Paging of candles: whatever the venue's habits, what comes out is the truth."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from exchange_server import data
from exchange_server.clock import DAY_MS, MINUTE_MS
from exchange_server.fake import FakeExchange, candle_rows
from exchange_server.server import ExchangeServer
from exchange_server.truth import LENGTH_MS, Bar, Series, roll
from exchange_server.world import BARS, NOW_MS, START_MS, Opener
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kurisu.errors import ExchangeRefused
from kurisu.exchange.candles import (
    EMPTY_AGE,
    CandlePage,
    PageStatus,
    candle_pages,
    candle_table,
    exact_column,
)
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.port import CandleRow, Exchange
from kurisu.exchange.venues import Venue

NO_GRACE = timedelta(0)


async def walk(
    exchange: Exchange,
    timeframe: str = "1m",
    since_ms: int = START_MS,
    until_ms: int | None = None,
    grace: timedelta = NO_GRACE,
) -> list[CandlePage]:
    until = None if until_ms is None else from_ms(until_ms)
    return [
        page
        async for page in candle_pages(
            exchange, "X/Y", timeframe, from_ms(since_ms), until, grace=grace
        )
    ]


def rows_of(pages: list[CandlePage]) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for page in pages for row in page.table.to_pylist()]


def check(pages: list[CandlePage], since_ms: int) -> None:
    """Pages follow each other; rows and holes tile the stretches that were answered."""
    at = from_ms(since_ms)
    for page in pages:
        assert page.since == at < page.until
        at = page.until
        if page.status is PageStatus.UNAVAILABLE:
            assert page.table.num_rows == 0
            continue
        tiles = [(t, t + timedelta(minutes=1)) for t in page.table["time"].to_pylist()]
        edge = page.since
        for since, until in sorted([*tiles, *page.holes]):
            assert since == edge < until
            edge = until
        assert edge == page.until


@st.composite
def habits(draw: st.DrawFn) -> dict[str, Any]:
    """A venue's habits, known or not."""
    windowed = draw(st.booleans())
    newest = windowed and draw(st.booleans())
    return {
        "venue": Venue(
            # A page is longer than EMPTY_AGE, as everywhere: real ones have 100 candles and more.
            candle_limit=draw(st.integers(12, 60)),
            candles_oldest_first=not newest and draw(st.booleans()),
        ),
        "windowed": windowed,
        "newest_of_window": newest,
        "repeats": draw(st.sampled_from([0.0, 0.3])),
        "lost": draw(st.sampled_from([0.0, 0.2])),
        "timeframes": draw(
            st.sampled_from([frozenset(LENGTH_MS), frozenset({"1m"}), frozenset({"1m", "1d"})])
        ),
    }


@settings(max_examples=150)
@given(
    habits=habits(),
    seed=st.integers(0, 10**6),
    count=st.integers(1, 400),
    hole=st.sampled_from([0.0, 0.05, 0.3]),
    late=st.integers(0, 3 * 1_440),
    after=st.integers(0, 2_000),
    seconds=st.integers(0, 59),
)
@example(
    habits={"venue": Venue(candle_limit=12), "windowed": True}, seed=1, count=3, hole=0.0,
    late=2_000, after=0, seconds=0,
)  # fmt: skip
async def test_any_walk_gives_the_truth(
    habits: dict[str, Any],
    seed: int,
    count: int,
    hole: float,
    late: int,
    after: int,
    seconds: int,
) -> None:
    """late: minutes before the market's first candle; after: since its last one."""
    bars = data.generated_bars(seed, START_MS + late * MINUTE_MS, count, hole=hole)
    now_ms = START_MS + (late + count + after) * MINUTE_MS + seconds * 1_000
    exchange = FakeExchange(now_ms=now_ms, series=Series(bars), seed=seed, **habits)
    pages = await walk(exchange)
    assert rows_of(pages) == candle_rows(bars)
    check(pages, START_MS)
    assert all(page.status is PageStatus.ANSWERED for page in pages)
    # Nothing younger is called empty; everything older is answered.
    if pages:
        last = pages[-1].until
        assert last >= min(
            from_ms(now_ms) - EMPTY_AGE, from_ms(now_ms - now_ms % MINUTE_MS)
        ) - timedelta(minutes=1)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    since=st.integers(-50, 500),
    length=st.integers(0, 500),
    limit=st.integers(2, 50),
)
async def test_bounds_are_kept(seed: int, since: int, length: int, limit: int) -> None:
    bars = data.generated_bars(seed, START_MS, 400, hole=0.1)
    now_ms = START_MS + 10 * DAY_MS
    exchange = FakeExchange(Venue(candle_limit=limit), now_ms, Series(bars), seed=seed)
    since_ms = START_MS + since * MINUTE_MS
    until_ms = since_ms + length * MINUTE_MS
    pages = await walk(exchange, since_ms=since_ms, until_ms=until_ms)
    wanted = [bar for bar in bars if since_ms <= bar.open_ms < until_ms]
    assert rows_of(pages) == candle_rows(wanted)
    check(pages, since_ms)
    assert (pages[-1].until if pages else from_ms(since_ms)) == from_ms(until_ms)


@settings(max_examples=40)
@given(at=st.integers(0, 120_000), grace_s=st.integers(0, 90))
async def test_a_candle_is_closed_by_the_clock_and_nothing_else(at: int, grace_s: int) -> None:
    """Dropping the last row blindly would lose the last candle of a market without trades."""
    bars = data.generated_bars(3, START_MS, 60)
    now_ms = bars[-1].open_ms + at
    exchange = FakeExchange(Venue(candle_limit=50), now_ms, Series(bars))
    rows = rows_of(await walk(exchange, grace=timedelta(seconds=grace_s)))
    closed = [bar for bar in bars if bar.open_ms + MINUTE_MS + grace_s * 1_000 <= now_ms]
    assert rows == candle_rows(closed)


@settings(max_examples=40)
@given(
    limit=st.integers(5, 60), count=st.integers(1, 200), seed=st.integers(0, 99),
    start=st.integers(-100, 200),
)  # fmt: skip
async def test_a_venue_that_keeps_the_newest_only(
    limit: int, count: int, seed: int, start: int
) -> None:
    """Kraken. What it does not give is called unavailable, never empty."""
    bars = data.generated_bars(seed, START_MS, count, hole=0.1)
    if not bars:
        return
    now_ms = bars[-1].open_ms + MINUTE_MS
    venue = Venue(candle_limit=limit, candles_latest_only=True, candles_oldest_first=True)
    since_ms = min(START_MS + start * MINUTE_MS, bars[-1].open_ms)
    pages = await walk(FakeExchange(venue, now_ms, Series(bars)), since_ms=since_ms)
    wanted = [bar for bar in bars if bar.open_ms >= since_ms]
    assert rows_of(pages) == candle_rows(wanted[-limit:])
    check(pages, since_ms)
    if len(wanted) > limit:
        assert pages[0].status is PageStatus.UNAVAILABLE
        assert pages[0].until == from_ms(wanted[-limit].open_ms)


async def test_a_venue_that_keeps_the_newest_only_and_nobody_knows() -> None:
    bars = data.generated_bars(3, START_MS, 3 * 1_440)
    now_ms = bars[-1].open_ms + MINUTE_MS

    class Hiding(FakeExchange):
        async def fetch_candles(
            self,
            symbol: str,
            timeframe: str,
            since_ms: int,
            limit: int,
            until_ms: int | None = None,
        ) -> list[CandleRow]:
            if timeframe == "1m":
                since_ms = max(since_ms, bars[-500].open_ms)
            return await super().fetch_candles(symbol, timeframe, since_ms, limit, until_ms)

    pages = await walk(Hiding(Venue(candle_limit=600), now_ms, Series(bars)))
    assert [page.status for page in pages] == [PageStatus.UNAVAILABLE, PageStatus.ANSWERED]
    assert rows_of(pages) == candle_rows(bars[-500:])


HABITS: dict[str, dict[str, Any]] = {
    "a row more than a window has": {"windowed": True, "last_of_window": True},
    "fewer rows than was thought": {"windowed": True, "cap": 120},
    "the newest of all, if no end is given": {"newest_of_all": True},
    "both": {"newest_of_all": True, "cap": 120},
}


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("hole", [0.0, 0.01])
async def test_what_is_newest_is_not_all(habit: str, hole: float) -> None:
    """And it costs no more than a few requests for a page."""
    bars = data.generated_bars(5, START_MS, 6_000, hole=hole)
    now_ms = bars[-1].open_ms + MINUTE_MS
    exchange = FakeExchange(Venue(candle_limit=600), now_ms, Series(bars), **HABITS[habit])
    pages = await walk(exchange)
    assert rows_of(pages) == candle_rows(bars)
    check(pages, START_MS)
    assert exchange.requests < 3 * 6_000 // (exchange.cap or 600) + 20


@settings(max_examples=40)
@given(
    kept=st.integers(0, 3_000),
    hole=st.sampled_from([0.0, 0.002, 0.05]),
    windowed=st.booleans(),
    until=st.integers(1, 4_500),
    seed=st.integers(0, 99),
)
async def test_candles_that_a_venue_hides_are_never_called_empty(
    kept: int, hole: float, windowed: bool, until: int, seed: int
) -> None:
    """It gives 1m and 5m for some time only, and 1h and 1d for ever."""
    bars = data.generated_bars(seed, START_MS, 4_320, hole=hole)
    now_ms = START_MS + 4_320 * MINUTE_MS
    exchange = FakeExchange(
        Venue(candle_limit=200), now_ms, Series(bars), windowed=windowed,
        hidden_before_ms=now_ms - kept * MINUTE_MS,
    )  # fmt: skip
    pages = await walk(exchange, until_ms=START_MS + until * MINUTE_MS)
    check(pages, START_MS)
    stored = {row[0] for row in rows_of(pages)}
    holes = [hole for page in pages for hole in page.holes]
    lost = [
        bar for bar in bars[: until] if from_ms(bar.open_ms) not in stored
        and any(a <= from_ms(bar.open_ms) < b for a, b in holes)
    ]  # fmt: skip
    # Less than the longer candles tell.
    assert len(lost) < 60
    shown = [bar for bar in bars if bar.open_ms >= exchange.hidden_before_ms]
    shown = [bar for bar in shown if bar.open_ms < START_MS + until * MINUTE_MS]
    assert stored <= {from_ms(bar.open_ms) for bar in shown}
    if hole == 0.0:
        assert len(stored) == len(shown)


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_venue_that_keeps_only_so_many_is_asked_once_for_more(refuses: bool) -> None:
    """Its documents may be older than it is."""
    bars = data.generated_bars(3, START_MS, 3_000)
    now_ms = START_MS + 3_000 * MINUTE_MS
    oldest = now_ms - 1_000 * MINUTE_MS
    asked: list[int] = []

    class Listening(FakeExchange):
        async def fetch_candles(self, *given: Any) -> list[CandleRow]:
            asked.append(given[2])
            if refuses and given[2] < oldest:
                raise ExchangeRefused(self.name, "Candlestick too long ago.")
            return await super().fetch_candles(*given)

    venue = Venue(candle_limit=200, candles_kept=1_000)
    pages = await walk(Listening(venue, now_ms, Series(bars)))
    if refuses:
        assert [page.status for page in pages[:2]] == [PageStatus.UNAVAILABLE, PageStatus.ANSWERED]
        assert rows_of(pages) == candle_rows(bars[-990:])
        assert sum(since < oldest for since in asked) == 1
    else:
        assert {page.status for page in pages} == {PageStatus.ANSWERED}
        assert rows_of(pages) == candle_rows(bars)


async def test_years_before_a_listing_cost_a_few_requests() -> None:
    bars = data.generated_bars(3, START_MS, 100)
    exchange = FakeExchange(Venue(candle_limit=300), START_MS + 100 * MINUTE_MS, Series(bars))
    exchange.windowed = True
    since_ms = START_MS - 4 * 365 * DAY_MS
    pages = await walk(exchange, since_ms=since_ms)
    assert rows_of(pages) == candle_rows(bars)
    check(pages, since_ms)
    assert exchange.requests < 40


async def test_a_delisted_market_ends_in_a_hole(server: ExchangeServer, opened: Opener) -> None:
    listing = server.binance.listings["SHIBUSDT"]
    listing.delisted_ms = START_MS + 1_200 * MINUTE_MS
    async with opened("binance") as exchange:
        pages = [
            page async for page in candle_pages(exchange, "SHIB/USDT", "1m", from_ms(START_MS))
        ]
    assert rows_of(pages) == candle_rows(BARS[:1_200])
    assert from_ms(NOW_MS) - EMPTY_AGE - timedelta(minutes=1) <= pages[-1].until
    assert pages[-1].until <= from_ms(NOW_MS) - EMPTY_AGE


async def test_the_newest_minute_without_trades_is_not_called_empty_yet() -> None:
    bars = data.generated_bars(3, START_MS, 100)
    exchange = FakeExchange(Venue(candle_limit=50), START_MS + 104 * MINUTE_MS, Series(bars))
    pages = await walk(exchange)
    assert pages[-1].until == from_ms(START_MS + 100 * MINUTE_MS)


@pytest.mark.parametrize("timeframe", ["5m", "1h", "1d"])
async def test_longer_timeframes(server: ExchangeServer, opened: Opener, timeframe: str) -> None:
    length = LENGTH_MS[timeframe]
    async with opened("binance") as exchange:
        rows = rows_of(
            [
                page
                async for page in candle_pages(exchange, "SHIB/USDT", timeframe, from_ms(START_MS))
            ]
        )
    made = [bar for bar in roll(BARS, length) if bar.open_ms + length + 2_000 <= NOW_MS]
    assert rows == candle_rows(made)


async def test_months_have_their_own_lengths() -> None:
    months = ["2024-01-01", "2024-02-01", "2024-04-01"]
    times = [to_ms(datetime.fromisoformat(f"{month}T00:00:00+00:00")) for month in months]

    class Monthly(FakeExchange):
        timeframes = frozenset({"1M"})

        async def fetch_candles(
            self,
            symbol: str,
            timeframe: str,
            since_ms: int,
            limit: int,
            until_ms: int | None = None,
        ) -> list[CandleRow]:
            return [CandleRow(t, "1", "1", "1", "1", "1") for t in times if t >= since_ms]

    now_ms = to_ms(datetime.fromisoformat("2024-05-03T00:00:00+00:00"))
    pages = await walk(Monthly(Venue(candle_limit=5), now_ms), "1M", times[0])
    assert [row[0] for row in rows_of(pages)] == [from_ms(t) for t in times]
    assert [hole for page in pages for hole in page.holes] == [
        (from_ms(to_ms(datetime.fromisoformat("2024-03-01T00:00:00+00:00"))), from_ms(times[2]))
    ]


async def test_kraken_through_the_adapter(server: ExchangeServer, opened: Opener) -> None:
    async with opened("kraken") as exchange:
        pages = [page async for page in candle_pages(exchange, "XRP/USDT", "1m", from_ms(START_MS))]
    assert pages[0].status is PageStatus.UNAVAILABLE
    # 720 with the open one.
    assert rows_of(pages) == candle_rows(BARS[2_500 - 719 : 2_500])


async def test_a_candle_that_changes_after_its_close(
    server: ExchangeServer, opened: Opener
) -> None:
    """Fetched again from a few candles back, it is there as it is now."""
    bar = BARS[2_498]
    early = bar._replace(volume=Decimal(1), close=bar.low)
    server.binance.listings["SHIBUSDT"].series.revise(bar.open_ms, NOW_MS + 60_000, early)
    since = from_ms(BARS[2_490].open_ms)
    async with opened("binance") as exchange:
        first = rows_of([p async for p in candle_pages(exchange, "SHIB/USDT", "1m", since)])
        server.clock.advance(61)
        again = rows_of([p async for p in candle_pages(exchange, "SHIB/USDT", "1m", since)])
    assert first[8] == candle_rows([early])[0]
    assert again[8] == candle_rows([bar])[0]
    assert len(again) == len(first) + 1


@pytest.mark.parametrize("skew_s", [-3_600, -90, 90, 3_600])
async def test_the_clock_of_the_exchange_decides(
    server: ExchangeServer, opened: Opener, skew_s: int
) -> None:
    """The server's own clock is what counts, however wrong it is: its candles follow it."""
    server.clock.advance(skew_s)
    now_ms = server.clock.now_ms()
    async with opened("binance") as exchange:
        rows = rows_of(
            [p async for p in candle_pages(exchange, "SHIB/USDT", "1m", from_ms(START_MS))]
        )
    closed = [bar for bar in BARS if bar.open_ms + MINUTE_MS + 2_000 <= now_ms]
    assert rows == candle_rows(closed)


def test_numbers_that_do_not_fit_stay_text() -> None:
    """So that the writer can list the row as rejected, with what stands there."""
    table = candle_table([CandleRow(START_MS, "1e-19", "1", "1", None, "8e-8")])
    assert table["open"].to_pylist() == ["1e-19"]
    assert table["close"].to_pylist() == [None]
    assert table["volume"].to_pylist() == [Decimal("8e-8")]
    assert table["time"].type == pa.timestamp("us", tz="UTC")
    assert exact_column(["1", "nan"]).to_pylist() == ["1", "nan"]
    assert candle_table([]).num_rows == 0


def test_an_open_bar_of_the_server_differs_from_the_closed_one() -> None:
    """Or the tests above would not see a partial candle slip through."""
    series = Series([Bar(START_MS, *map(Decimal, ("1", "3", "1", "2", "9")))])
    assert series.select("1m", START_MS + 1, START_MS, None, 9)[0] != series.bars[0]
