"""Paging of trades: by id, by cursor, by time; none lost, none twice."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from exchange_server import data
from exchange_server.clock import DAY_MS, MINUTE_MS
from exchange_server.fake import FakeExchange, trade_rows
from exchange_server.faults import Fault, Rule
from exchange_server.server import ExchangeServer
from exchange_server.truth import Bar, Series, Tape, Tick
from exchange_server.world import NOW_MS, START_MS, Opener
from hypothesis import given, settings
from hypothesis import strategies as st

from kurisu.domain.trade import IdSpace
from kurisu.errors import BadAnswer, ExchangeError, ExchangeRefused, IndistinctTrades, NotOffered
from kurisu.exchange import trades
from kurisu.exchange.candles import PageStatus
from kurisu.exchange.ccxt_adapter import open_exchange
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.port import Exchange, TradeAnswer, TradeQuery, TradeRow
from kurisu.exchange.settings import ExchangeSettings
from kurisu.exchange.trades import TradePage, trade_pages, trade_table
from kurisu.exchange.venues import HOUR_MS, TradePaging, Venue

GAPLESS: dict[str, Any] = {
    "trade_paging": TradePaging.ID,
    "trade_ids_gapless": True,
    "trade_window_ms": HOUR_MS,
}
WAYS: dict[str, dict[str, Any]] = {
    "id": GAPLESS,
    "cursor": {"trade_paging": TradePaging.CURSOR},
    "time": {"trade_paging": TradePaging.TIME},
    "back": {"trade_paging": TradePaging.BACK, "trade_back_limit": 20},
    "window": {"trade_paging": TradePaging.WINDOW},
}
PEPE = data.pepe_agg_trades()
KRAKEN = data.kraken_xrp_trades()


async def walk(
    exchange: Exchange,
    since_ms: int = START_MS,
    until_ms: int | None = None,
    symbol: str = "X/Y",
    **more: Any,
) -> list[TradePage]:
    until = None if until_ms is None else from_ms(until_ms)
    more = {"grace": timedelta(0), **more}
    return [page async for page in trade_pages(exchange, symbol, from_ms(since_ms), until, **more)]


def rows_of(pages: list[TradePage]) -> list[dict[str, Any]]:
    return [row for page in pages for row in page.table.to_pylist()]


def values(rows: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    return [(row["time"], row["side"], row["price"], row["amount"]) for row in rows]


def check(pages: list[TradePage], since_ms: int, until_ms: int) -> None:
    at = from_ms(since_ms)
    for page in pages:
        assert page.since == at <= page.until
        at = page.until
    assert at == from_ms(until_ms)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 200),
    limit=st.integers(45, 90),
    busy=st.sampled_from([0.0, 0.3, 0.7]),
    quiet=st.sampled_from([0, HOUR_MS * 5]),
    since=st.integers(-60_000, 60_000),
    repeats=st.sampled_from([0.0, 0.3]),
    lost=st.sampled_from([0.0, 0.2]),
    hour_windows=st.booleans(),
)
async def test_any_walk_gives_the_truth(
    way: str,
    seed: int,
    count: int,
    limit: int,
    busy: float,
    quiet: int,
    since: int,
    repeats: float,
    lost: float,
    *,
    hour_windows: bool,
) -> None:
    first_id = None if way == "cursor" else 1 + seed % 5
    ticks = data.generated_ticks(
        seed, START_MS, count, busy=busy, quiet_ms=quiet, first_id=first_id
    )
    now_ms = (ticks[-1].time_ms if ticks else START_MS) + 1 + seed % 100_000
    since_ms = START_MS + since
    exchange = FakeExchange(
        Venue(trade_limit=limit, **WAYS[way]), now_ms, tape=Tape(ticks), seed=seed,
        repeats=repeats, lost=lost, hour_windows=hour_windows,
    )  # fmt: skip
    pages = await walk(exchange, since_ms)
    wanted = [tick for tick in ticks if tick.time_ms >= since_ms]
    found = rows_of(pages)
    check(pages, since_ms, max(now_ms, since_ms))
    assert Counter(values(found)) == Counter(trade_rows(wanted))
    assert len({(row["time"], row["trade_id"]) for row in found}) == len(wanted)
    if first_id is not None:
        assert [row["trade_id"] for row in found] == [str(tick.id) for tick in wanted]
    assert not any(page.missing_ids for page in pages)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6), cut=st.integers(1, 199), limit=st.integers(45, 90),
    first=st.integers(0, 100),
)  # fmt: skip
async def test_two_walks_are_one(way: str, seed: int, cut: int, limit: int, first: int) -> None:
    """A backfill that stops and goes on at `until` ends with the same rows and ids."""
    ticks = data.generated_ticks(
        seed, START_MS, 200, busy=0.5, first_id=None if way == "cursor" else 7
    )
    exchange = FakeExchange(
        Venue(trade_limit=limit, **WAYS[way]), ticks[-1].time_ms + 10, tape=Tape(ticks)
    )
    whole = rows_of(await walk(exchange))
    middle = ticks[cut].time_ms
    parts = rows_of(await walk(exchange, until_ms=middle))
    assert all(row["time"] < from_ms(middle) for row in parts)
    parts += rows_of(await walk(exchange, middle))
    assert Counter(map(str, parts)) == Counter(map(str, whole))


UNKNOWN: dict[str, dict[str, Any]] = {
    "the oldest of a window": {},
    "the newest of a window": {"newest_of_window": True},
    "fewer than it is asked for": {"newest_of_window": True, "cap": 40},
    "seconds": {"newest_of_window": True, "seconds": True},
    "no windows": {"ignored": frozenset({"until"})},
}


@pytest.mark.parametrize("habit", UNKNOWN)
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6), count=st.integers(0, 400), since=st.integers(-10**7, 10**6),
    quiet=st.sampled_from([0, HOUR_MS * 50]), until=st.none() | st.integers(1, 10**7),
)  # fmt: skip
async def test_a_venue_that_nobody_knows(
    habit: str, seed: int, count: int, since: int, quiet: int, until: int | None
) -> None:
    ticks = data.generated_ticks(seed, START_MS, count, busy=0.1, quiet_ms=quiet)
    now_ms = (ticks[-1].time_ms if ticks else START_MS) + 1 + seed % 100_000
    exchange = FakeExchange(Venue(trade_limit=100), now_ms, tape=Tape(ticks), **UNKNOWN[habit])
    end_ms = now_ms if until is None else START_MS + until
    since_ms = min(START_MS + since, end_ms)
    pages = await walk(exchange, since_ms, None if until is None else end_ms)
    check(pages, since_ms, max(since_ms, min(end_ms, now_ms)))
    wanted = [tick for tick in ticks if since_ms <= tick.time_ms < end_ms]
    if habit == "no windows":
        # If it gives all at once, it looks as if it gave the newest: then nothing else is claimed.
        hidden = [page for page in pages if page.status is PageStatus.UNAVAILABLE]
        assert not hidden or len(ticks) <= 100
        begins = max((page.until for page in hidden), default=from_ms(since_ms))
        wanted = [tick for tick in wanted if from_ms(tick.time_ms) >= begins]
    else:
        assert all(page.status is PageStatus.ANSWERED for page in pages)
    assert [row["trade_id"] for row in rows_of(pages)] == [str(tick.id) for tick in wanted]


def burst(first_id: int, at_ms: int, count: int, spread_ms: int = 1) -> list[Tick]:
    """Trades that are alike but for their ids."""
    return [
        Tick(first_id + n, at, Decimal(1), Decimal(2), "buy", at * 10**6)
        for n, at in enumerate(at_ms + n * spread_ms // count for n in range(count))
    ]


BURSTS: dict[str, tuple[int, int, int]] = {
    "a second that fits": (10_000, 90, 1_000),
    "a second that does not fit": (10_000, 260, 1_000),
    "a millisecond that fits": (10_499, 90, 1),
    "a millisecond that does not fit": (10_499, 130, 1),
    "the last of a second": (10_999, 90, 1),
    "two of two hours": (HOUR_MS - 1 - START_MS % HOUR_MS, 150, 2),
}


@pytest.mark.parametrize("burst_of", BURSTS)
@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize("habit", ["seconds", "end_excluded", "nothing special"])
async def test_bursts_in_windows(burst_of: str, newest: bool, habit: str) -> None:
    """What does not fit is said, for the shortest time that the venue knows; nothing is lost."""
    offset, count, spread = BURSTS[burst_of]
    before = data.generated_ticks(3, START_MS - 600_000, 150, busy=0.0)
    ticks = before + burst(1_000, START_MS + offset, count, spread)
    ticks += burst(5_000, START_MS + offset + 60_000, 150, 50_000)
    ticks.sort(key=lambda tick: tick.time_ms)
    exchange = FakeExchange(
        Venue(trade_limit=100), ticks[-1].time_ms + 600_000, tape=Tape(ticks),
        series=Series(candles_of(ticks)), newest_of_window=newest,
        seconds=habit == "seconds", end_excluded=habit == "end_excluded",
    )  # fmt: skip
    pages: list[TradePage] = []
    failed: list[tuple[int, int]] = []
    at = START_MS - 600_000
    while at < exchange.now_ms:
        try:
            async for page in trade_pages(exchange, "X/Y", from_ms(at), grace=timedelta(0)):
                pages.append(page)
                at = to_ms(page.until)
        except IndistinctTrades as error:
            failed.append((error.time_ms, error.until_ms))
            assert error.time_ms >= at
            at = error.until_ms
    assert all(page.status is PageStatus.ANSWERED for page in pages)
    unit = 1_000 if habit == "seconds" else 1
    counts = Counter(tick.time_ms // unit for tick in ticks)
    too_many = {time for time, number in counts.items() if number >= 100}
    assert {since // unit for since, _ in failed} == too_many
    assert all(until - since <= unit for since, until in failed)
    wanted = [tick for tick in ticks if tick.time_ms // unit not in too_many]
    assert [row["trade_id"] for row in rows_of(pages)] == [str(tick.id) for tick in wanted]


WIDE: dict[str, dict[str, Any]] = {
    "cut to two hours": {"longest_ms": 2 * HOUR_MS},
    "cut to a day": {"longest_ms": DAY_MS},
    "refused beyond an hour": {"refused_ms": HOUR_MS},
    "refused beyond a quarter": {"refused_ms": HOUR_MS // 4},
    "refused beyond a day": {"refused_ms": DAY_MS},
}


@pytest.mark.parametrize("habit", WIDE)
async def test_long_windows_that_a_venue_does_not_give(habit: str) -> None:
    ticks = data.generated_ticks(3, START_MS, 200, busy=0.0, quiet_ms=3 * DAY_MS)
    ticks += burst(10_000, ticks[-1].time_ms + 60_000, 60, 12 * HOUR_MS)
    exchange = FakeExchange(
        Venue(trade_limit=100), ticks[-1].time_ms + 120_000, tape=Tape(ticks),
        series=Series(candles_of(ticks)), **WIDE[habit],
    )  # fmt: skip
    pages = await walk(exchange, START_MS - DAY_MS)
    check(pages, START_MS - DAY_MS, exchange.now_ms)
    assert all(page.status is PageStatus.ANSWERED for page in pages)
    assert [row["trade_id"] for row in rows_of(pages)] == [str(tick.id) for tick in ticks]


@pytest.mark.parametrize("refused_ms", [None, HOUR_MS])
async def test_a_venue_that_refuses_what_is_too_old(refused_ms: int | None) -> None:
    """The rest is fetched, and the hole has the venue's own reason."""
    ticks = data.generated_ticks(3, START_MS, 500)
    border = ticks[250].time_ms + 1
    exchange = FakeExchange(
        Venue(trade_limit=100), ticks[-1].time_ms + 1, tape=Tape(ticks),
        refused_before_ms=border, refused_ms=refused_ms,
    )  # fmt: skip
    pages = await walk(exchange, START_MS - 90 * DAY_MS)
    check(pages, START_MS - 90 * DAY_MS, exchange.now_ms)
    assert pages[0].status is PageStatus.UNAVAILABLE
    assert pages[0].reason == "it is too long ago"
    assert border <= to_ms(pages[0].until) <= border + MINUTE_MS
    wanted = [tick for tick in ticks if from_ms(tick.time_ms) >= pages[0].until]
    assert [row["trade_id"] for row in rows_of(pages[1:])] == [str(tick.id) for tick in wanted]
    # Nothing of it can be had: it is said once, without a look at every window.
    (page,) = await walk(exchange, START_MS - 90 * DAY_MS, START_MS - 80 * DAY_MS)
    assert (page.status, page.reason) == (PageStatus.UNAVAILABLE, "it is too long ago")
    assert exchange.requests < 120
    # One that refuses all is not taken for one that refuses old trades.
    exchange.refused_before_ms = exchange.now_ms + DAY_MS
    with pytest.raises(ExchangeRefused):
        await walk(exchange)


async def test_a_year_that_a_venue_keeps_back_takes_few_requests() -> None:
    ticks = data.generated_ticks(3, START_MS, 500)
    old = burst(20_000, START_MS - 365 * DAY_MS, 2_000, 365 * DAY_MS - 1)
    exchange = FakeExchange(
        Venue(trade_limit=100, trade_window_ms=HOUR_MS), ticks[-1].time_ms + 1,
        tape=Tape(old + ticks), series=Series(candles_of(old + ticks)),
        trades_hidden_before_ms=START_MS,
    )  # fmt: skip
    pages = await walk(exchange, START_MS - 365 * DAY_MS)
    check(pages, START_MS - 365 * DAY_MS, exchange.now_ms)
    assert [row["trade_id"] for row in rows_of(pages)] == [str(tick.id) for tick in ticks]
    claimed = [page for page in pages if page.status is PageStatus.ANSWERED]
    for page in claimed:
        assert not any(page.since <= from_ms(tick.time_ms) < page.until for tick in old)
    assert exchange.requests < 300


@pytest.mark.parametrize("known", [True, False])
async def test_the_newest_trades_are_not_taken_for_all(known: bool) -> None:
    """KuCoin: whatever it is asked for it gives the newest, and nobody may know that."""
    ticks = data.generated_ticks(3, START_MS, 500)
    paging = TradePaging.NONE if known else TradePaging.WINDOW
    exchange = FakeExchange(
        Venue(trade_limit=100, trade_paging=paging), ticks[-1].time_ms + 1, tape=Tape(ticks),
        ignored=frozenset({"since", "until"}),
    )  # fmt: skip
    pages = await walk(exchange)
    assert [page.status for page in pages] == [PageStatus.UNAVAILABLE, PageStatus.ANSWERED]
    first = int(rows_of(pages)[0]["trade_id"])
    assert [row["trade_id"] for row in rows_of(pages)] == [str(n) for n in range(first, 501)]
    assert first > 400
    assert pages[1].since > from_ms(ticks[first - 2].time_ms)


@pytest.mark.parametrize("kept", [0, 1, 150, 499, 500])
async def test_trades_that_a_venue_keeps_back_are_not_called_none(kept: int) -> None:
    """Its candles tell."""
    ticks = data.generated_ticks(3, START_MS, 500, quiet_ms=3 * DAY_MS)
    hidden = ticks[500 - kept].time_ms if kept else ticks[-1].time_ms + 1
    exchange = FakeExchange(
        Venue(trade_limit=100), ticks[-1].time_ms + 120_000, tape=Tape(ticks),
        series=Series(candles_of(ticks)), trades_hidden_before_ms=hidden,
    )  # fmt: skip
    pages = await walk(exchange, START_MS - DAY_MS)
    check(pages, START_MS - DAY_MS, exchange.now_ms)
    given = {row["trade_id"] for row in rows_of(pages)}
    assert given == {str(tick.id) for tick in ticks if tick.time_ms >= hidden}
    claimed = [page for page in pages if page.status is PageStatus.ANSWERED]
    lost = [
        tick for tick in ticks if str(tick.id) not in given
        and any(page.since <= from_ms(tick.time_ms) < page.until for page in claimed)
    ]  # fmt: skip
    # Of the minute that the first one is in, at most.
    assert all(hidden - tick.time_ms < 60_000 for tick in lost)


def candles_of(ticks: list[Tick]) -> list[Bar]:
    """Minutes in which somebody traded; only their volume counts here."""
    minutes = sorted({tick.time_ms - tick.time_ms % MINUTE_MS for tick in ticks})
    return [Bar(at, *[Decimal(1)] * 5) for at in minutes]


async def test_the_first_id_is_found_across_silence() -> None:
    """Days without trades: an hour at a time would look like the end."""
    ticks = data.generated_ticks(5, START_MS, 400, quiet_ms=9 * DAY_MS, first_id=70_000_000)
    exchange = FakeExchange(
        Venue(trade_limit=100, **GAPLESS), ticks[-1].time_ms + 1, tape=Tape(ticks)
    )
    since_ms = ticks[200].time_ms - DAY_MS
    found = rows_of(await walk(exchange, since_ms))
    assert [row["trade_id"] for row in found] == [str(tick.id) for tick in ticks[200:]]
    assert exchange.requests < 50
    assert rows_of(await walk(exchange, ticks[-1].time_ms + 1)) == []


async def test_the_first_id_where_a_window_starts_with_its_newest_rows() -> None:
    """CCXT's comments say so of Binance; its documentation does not."""
    ticks = data.generated_ticks(5, START_MS, 400, busy=0.9)
    exchange = FakeExchange(
        Venue(trade_limit=50, **GAPLESS), ticks[-1].time_ms + 1, tape=Tape(ticks),
        newest_of_window=True,
    )  # fmt: skip
    since_ms = ticks[20].time_ms
    found = rows_of(await walk(exchange, since_ms))
    assert values(found) == trade_rows([tick for tick in ticks if tick.time_ms >= since_ms])


async def test_ids_that_are_really_missing_are_counted() -> None:
    ticks = data.generated_ticks(5, START_MS, 300)
    tape = Tape([tick for tick in ticks if tick.id not in (100, 101, 250)])
    exchange = FakeExchange(Venue(trade_limit=100, **GAPLESS), ticks[-1].time_ms + 1, tape=tape)
    pages = await walk(exchange)
    assert sum(page.missing_ids for page in pages) == 3
    assert len(rows_of(pages)) == 297


async def test_more_trades_in_a_millisecond_than_a_page_holds() -> None:
    ticks = [Tick(i, START_MS, Decimal(1), Decimal(1), "buy") for i in range(50)]
    venue = Venue(trade_limit=50, trade_paging=TradePaging.TIME)
    with pytest.raises(ExchangeError, match="cannot be told apart"):
        await walk(FakeExchange(venue, START_MS + 10, tape=Tape(ticks)))


@pytest.mark.parametrize("first_id", [1, None])
async def test_a_venue_without_history(first_id: int | None) -> None:
    ticks = data.generated_ticks(5, START_MS, 300, first_id=first_id)
    venue = Venue(trade_limit=50, trade_paging=TradePaging.NONE)
    exchange = FakeExchange(venue, ticks[-1].time_ms + 1, tape=Tape(ticks))
    pages = await walk(exchange)
    assert [page.status for page in pages] == [PageStatus.UNAVAILABLE, PageStatus.ANSWERED]
    check(pages, START_MS, ticks[-1].time_ms + 1)
    wanted = [tick for tick in ticks if tick.time_ms > ticks[-50].time_ms]
    assert values(rows_of(pages)) == trade_rows(wanted)


@pytest.mark.parametrize("is_refused", [False, True])
async def test_a_venue_that_is_walked_back(is_refused: bool) -> None:
    """OKX: pages before an id. Where they are refused, the newest are what there is."""
    ticks = data.generated_ticks(5, START_MS, 2_000)
    venue = Venue(trade_limit=50, trade_paging=TradePaging.BACK, trade_back_limit=20)
    exchange = FakeExchange(
        venue, ticks[-1].time_ms + 1, tape=Tape(ticks), refuses_back=is_refused
    )  # fmt: skip
    pages = await walk(exchange, ticks[700].time_ms)
    check(pages, ticks[700].time_ms, ticks[-1].time_ms + 1)
    if is_refused:
        assert [page.status for page in pages] == [PageStatus.UNAVAILABLE, PageStatus.ANSWERED]
        wanted = [tick for tick in ticks if tick.time_ms > ticks[-50].time_ms]
    else:
        assert {page.status for page in pages} == {PageStatus.ANSWERED}
        wanted = [tick for tick in ticks if tick.time_ms >= ticks[700].time_ms]
    assert values(rows_of(pages)) == trade_rows(wanted)
    exchange.requests = 0
    await walk(exchange, ticks[300].time_ms, ticks[310].time_ms)
    # Not from the newest on.
    assert exchange.requests < 10


async def test_a_history_that_does_not_reach_so_far_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """And windows with more trades than are kept at once."""
    monkeypatch.setattr(trades, "BACK_ROWS", 100)
    monkeypatch.setattr(trades, "MOST_BACK_ROWS", 150)
    ticks = data.generated_ticks(5, START_MS, 1_000, busy=0.0)
    hidden_ms = ticks[400].time_ms
    series = Series([Bar(START_MS + n * 60_000, *[Decimal(1)] * 5) for n in range(10_000)])
    venue = Venue(trade_limit=50, trade_paging=TradePaging.BACK, trade_back_limit=20)
    exchange = FakeExchange(
        venue, ticks[-1].time_ms + 1, tape=Tape(ticks), series=series,
        trades_hidden_before_ms=hidden_ms,
    )  # fmt: skip
    pages = await walk(exchange)
    check(pages, START_MS, ticks[-1].time_ms + 1)
    known = [page for page in pages if page.status is PageStatus.ANSWERED]
    assert from_ms(hidden_ms) <= known[0].since <= from_ms(hidden_ms + 1)
    assert all(page.table.num_rows == 0 for page in pages if page not in known)
    assert values(rows_of(known)) == trade_rows(
        [tick for tick in ticks if from_ms(tick.time_ms) >= known[0].since]
    )


@pytest.mark.parametrize("first_id", [1, None])
async def test_a_page_that_ends_between_trades_of_one_nanosecond(first_id: int | None) -> None:
    """Kraken: what one order fills has one time, and the cursor is a time."""
    ticks = [
        Tick(None if first_id is None else first_id + n, START_MS + n // 7, Decimal(n + 1),
             Decimal(1), "buy", (START_MS + n // 7) * 1_000_000 + n % 7 // 3)
        for n in range(400)
    ]  # fmt: skip
    venue = Venue(trade_limit=50, trade_paging=TradePaging.CURSOR)
    exchange = FakeExchange(venue, ticks[-1].time_ms + 1, tape=Tape(ticks))
    assert values(rows_of(await walk(exchange))) == trade_rows(ticks)


@pytest.mark.parametrize("met", [None, "280"])
async def test_few_newest_trades_reach_up_to_where_the_caller_has_them(met: str | None) -> None:
    """Bybit gives 60 trades of spot, which are all younger than the grace where much is traded."""
    ticks = [
        Tick(n, START_MS + 10 * n, Decimal(n + 1), Decimal(1), "buy") for n in range(300)
    ]  # fmt: skip
    venue = Venue(trade_limit=50, trade_paging=TradePaging.NONE)
    exchange = FakeExchange(venue, ticks[-1].time_ms + 100, tape=Tape(ticks))
    pages = await walk(
        exchange, ticks[255].time_ms, grace=timedelta(milliseconds=500), known_from=met
    )
    # Half of the grace before the newest trade, or up to the one that the caller has.
    until_ms = ticks[280 if met else 274].time_ms + (1 if met else 0)
    assert [(page.since, page.until) for page in pages] == [
        (from_ms(ticks[255].time_ms), from_ms(until_ms))
    ]
    # What is younger is not claimed; next time it may be gone.
    assert values(rows_of(pages)) == trade_rows(ticks[255:])


async def test_the_newest_since_a_time_are_not_all_since_then() -> None:
    """A venue that makes nothing of an end, and gives the newest, which are others each time."""
    ticks = [
        Tick(n, START_MS + 10 * n, Decimal(n + 1), Decimal(1), "buy") for n in range(4_000)
    ]  # fmt: skip

    class Newest(FakeExchange):
        async def fetch_trades(self, symbol: str, query: TradeQuery) -> TradeAnswer:
            self.now_ms += 5_000
            rows = (await super().fetch_trades(symbol, TradeQuery(limit=query.limit))).rows
            return TradeAnswer([row for row in rows if row.time_ms >= (query.since_ms or 0)])

    exchange = Newest(Venue(trade_limit=400), START_MS + 20_000, tape=Tape(ticks))
    pages = await walk(exchange, START_MS)
    known = [page for page in pages if page.status is PageStatus.ANSWERED]
    assert known
    for page in known:
        wanted = [t for t in ticks if page.since <= from_ms(t.time_ms) < page.until]
        assert values(rows_of([page]))[: len(wanted)] == trade_rows(wanted)


async def test_trades_that_are_alike_and_gone_when_asked_for_again() -> None:
    """KuCoin: a hundred trades, which are others a moment later."""
    ticks = [
        Tick(None, START_MS + 10 * (n // 2), Decimal(n // 2 + 1), Decimal(1), "buy")
        for n in range(300)
    ]  # fmt: skip
    venue = Venue(trade_limit=50, trade_paging=TradePaging.NONE, trade_id_space=IdSpace.DERIVED)

    class Passing(FakeExchange):
        async def fetch_trades(self, symbol: str, query: TradeQuery) -> TradeAnswer:
            self.now_ms += 100
            return await super().fetch_trades(symbol, query)

    exchange = Passing(venue, START_MS + 900, tape=Tape(ticks))
    (page,) = await walk(exchange, START_MS + 780, grace=timedelta(milliseconds=20))
    wanted = [tick for tick in ticks if from_ms(tick.time_ms) < page.until]
    assert values(rows_of([page])) == trade_rows(wanted[2 * 78 :])
    assert page.table.num_rows > 10


@pytest.mark.parametrize("after", [1, 5, 40])
async def test_a_venue_without_history_tells_all_since_a_moment_ago(after: int) -> None:
    """As a stream asks that was cut: its newest trades reach back beyond the cut."""
    ticks = data.generated_ticks(5, START_MS, 300, busy=0.0)
    venue = Venue(trade_limit=50, trade_paging=TradePaging.NONE)
    exchange = FakeExchange(venue, ticks[-1].time_ms + 1, tape=Tape(ticks))
    (page,) = await walk(exchange, ticks[-after].time_ms)
    assert page.status is PageStatus.ANSWERED
    assert values(rows_of([page])) == trade_rows(ticks[-after:])


async def test_young_trades_wait() -> None:
    ticks = data.generated_ticks(5, START_MS, 100)
    exchange = FakeExchange(Venue(trade_limit=50, **GAPLESS), ticks[-1].time_ms, tape=Tape(ticks))
    pages = await walk(exchange, grace=timedelta(seconds=5))
    end_ms = ticks[-1].time_ms - 5_000
    check(pages, START_MS, end_ms)
    assert len(rows_of(pages)) == sum(tick.time_ms < end_ms for tick in ticks)


@pytest.mark.parametrize("fault", [Fault.EMPTY, Fault.SHORT, Fault.DUPLICATE_ROWS, Fault.OVERLAP])
@pytest.mark.parametrize("skip", [0, 2])
async def test_spoiled_pages(
    server: ExchangeServer, opened: Opener, fault: Fault, skip: int
) -> None:
    server.faults.add(Rule(fault, "aggTrades", skip=skip))
    async with opened("binance") as exchange:
        found = rows_of(await walk(exchange, symbol="SHIB/USDT"))
    tape = server.binance.aggregates["SHIBUSDT"].tape.ticks
    wanted = [tick for tick in tape if tick.time_ms < NOW_MS]
    assert [row["trade_id"] for row in found] == [str(tick.id) for tick in wanted]
    assert {page.weight for page in server.asked("aggTrades")} == {4}


async def test_every_page_repeats_rows(server: ExchangeServer, opened: Opener) -> None:
    """CCXT would cut such a page to `limit`, from its front."""
    server.faults.add(Rule(Fault.DUPLICATE_ROWS, "aggTrades", times=99))
    async with opened("binance") as exchange:
        found = rows_of(await walk(exchange, symbol="SHIB/USDT"))
    tape = server.binance.aggregates["SHIBUSDT"].tape.ticks
    wanted = [tick for tick in tape if tick.time_ms < NOW_MS]
    assert [row["trade_id"] for row in found] == [str(tick.id) for tick in wanted]


@pytest.mark.skipif(PEPE is None, reason="../shared/data is not there")
async def test_real_aggregate_trades_of_pepe(server: ExchangeServer, opened: Opener) -> None:
    assert PEPE is not None
    ticks = PEPE[:12_000]
    server.binance.add(server.binance.listings["SHIBUSDT"], ticks)
    server.clock.set(ticks[-1].time_ms + 1)
    start = ticks[3_000].time_ms
    async with opened("binance") as exchange:
        pages = await walk(exchange, start, symbol="SHIB/USDT")
    wanted = [tick for tick in ticks if tick.time_ms >= start]
    found = rows_of(pages)
    assert values(found) == trade_rows(wanted)
    assert [row["trade_id"] for row in found] == [str(tick.id) for tick in wanted]
    assert {page.id_space for page in pages} == {IdSpace.AGGREGATE}


@pytest.mark.skipif(KRAKEN is None, reason="../shared/data is not there")
async def test_real_trades_of_kraken(server: ExchangeServer, opened: Opener) -> None:
    assert KRAKEN is not None
    server.kraken.listings["XRPUSDT"].tape = Tape(list(KRAKEN[:4_500]))
    # Kraken tells its time in whole seconds, and younger trades wait.
    server.clock.set(KRAKEN[4_499].time_ms + 1_000)
    async with opened("kraken") as exchange:
        pages = await walk(exchange, KRAKEN[0].time_ms, symbol="XRP/USDT")
    found = rows_of(pages)
    assert Counter(values(found)) == Counter(trade_rows(KRAKEN[:4_500]))
    assert len({row["trade_id"] for row in found}) == 4_500
    assert {page.id_space for page in pages} == {IdSpace.DERIVED}


@pytest.mark.parametrize("first_id", [1, None])
async def test_a_page_that_ends_inside_of_one_time(first_id: int | None) -> None:
    """A cursor after the last row would leave out the rows that share its time."""
    ticks = data.generated_ticks(5, START_MS, 95, busy=0.0, first_id=None)
    ticks += burst(1, ticks[-1].time_ms + 500, 45)
    ticks += data.generated_ticks(6, ticks[-1].time_ms + 500, 95, busy=0.0, first_id=None)
    ticks = [
        tick._replace(id=None if first_id is None else first_id + n) for n, tick in enumerate(ticks)
    ]
    exchange = FakeExchange(
        Venue(trade_limit=100, trade_paging=TradePaging.CURSOR), ticks[-1].time_ms + 1,
        tape=Tape(ticks),
    )  # fmt: skip
    pages = await walk(exchange)
    check(pages, START_MS, ticks[-1].time_ms + 1)
    assert Counter(values(rows_of(pages))) == Counter(trade_rows(ticks))
    assert len({row["trade_id"] for row in rows_of(pages)}) == len(ticks)


async def test_ids_and_no_ids_are_not_mixed() -> None:
    ticks = data.generated_ticks(5, START_MS, 100)
    mixed = [tick._replace(id=None) if tick.id and tick.id > 80 else tick for tick in ticks]
    venue = Venue(trade_limit=50, trade_paging=TradePaging.CURSOR)
    exchange = FakeExchange(venue, ticks[-1].time_ms + 1, tape=Tape(mixed))
    with pytest.raises(BadAnswer, match="ids"):
        await walk(exchange)
    # A market that holds derived ids goes on with them.
    pages = await walk(exchange, id_space=IdSpace.DERIVED)
    assert len({row["trade_id"] for row in rows_of(pages)}) == 100


def test_table_of_trades() -> None:
    table = trade_table(
        [
            TradeRow(START_MS, "10", "buy", "2", "3"),
            TradeRow(START_MS, "9", None, "2", "3", "60"),
        ],
        IdSpace.RAW,
    )
    assert table["trade_id"].to_pylist() == ["9", "10"]
    assert table["cost"].to_pylist() == [Decimal(60), Decimal(6)]
    assert table["side"].to_pylist() == [None, "buy"]


class Slow(FakeExchange):
    """Every answer is a while on its way; what is made meanwhile is not in it."""

    async def fetch_trades(self, symbol: str, query: TradeQuery) -> TradeAnswer:
        answer = await super().fetch_trades(symbol, query)
        self.now_ms += 5_000
        return answer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first_s", [1, 3, 8, 20, 23, 30])
async def test_what_is_made_while_an_answer_is_on_its_way(way: str, first_s: int) -> None:
    """A page never says that there was nothing where the question was too early."""
    ticks = [
        Tick(n + 1, at, Decimal(1), Decimal(n + 1), "buy", at * 10**6)
        for n, at in enumerate(range(START_MS + first_s * 1000, START_MS + 90_000, 700))
    ]
    exchange = Slow(Venue(trade_limit=60, **WAYS[way]), START_MS + 4_000, tape=Tape(ticks))
    pages = await walk(exchange)
    until = to_ms(pages[-1].until)
    assert [row["amount"] for row in rows_of(pages) if to_ms(row["time"]) < until] == [
        tick.amount for tick in ticks if tick.time_ms < until
    ]


async def test_own_trades_are_not_those_of_everybody() -> None:
    """CCXT's fetch_trades of Hyperliquid gives the fills of the wallet that is configured."""
    options = {"walletAddress": "0x" + "1" * 40}
    async with open_exchange(ExchangeSettings("hyperliquid", options=options)) as exchange:
        exchange.client.markets = {"BTC/USDC:USDC": {"contract": True}}
        exchange._loaded = True
        with pytest.raises(NotOffered, match="live"):
            await exchange.fetch_trades("BTC/USDC:USDC", TradeQuery(limit=5))
