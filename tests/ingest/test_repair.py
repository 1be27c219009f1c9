"""Repair: holes are asked for again, and what is stored is compared with the exchange."""

from __future__ import annotations

import inspect
import itertools
import random
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from exchange_server.faults import Fault, Rule
from exchange_server.server import ExchangeServer
from exchange_server.truth import Series
from exchange_server.world import BARS, START_MS, Opener
from hypothesis import given
from hypothesis import strategies as st
from ingest.test_backfill import QUICK, SINCE, backfill, closed, known, minutes, stored, without
from rows import fetch

from kurisu.domain.timeframe import BASE
from kurisu.errors import DatabaseError
from kurisu.exchange.clock import from_ms
from kurisu.ingest.backfill import active_markets, named_markets
from kurisu.ingest.repair import MarketRepair, chosen_series, repair, together, windows
from kurisu.store.coverage import Stretch
from kurisu.store.store import Store


@pytest.fixture(params=["plain"])
def tier(request: pytest.FixtureRequest) -> str:
    """Nothing of this depends on the engine."""
    return str(request.param)


async def mend(store: Store, opened: Opener, **more: Any) -> MarketRepair:
    async with opened("binance", policy=QUICK) as exchange:
        ((market, frame),) = await chosen_series(store, "binance", [], None)
        return await repair(store, exchange, market, frame, **more)


async def test_what_is_whole_stays_as_it_is(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    await backfill(store, opened)
    server.requests.clear()
    report = await mend(store, opened, sample=300, chance=random.Random(1))
    assert report.is_whole
    assert (report.holes, report.compared, report.differences) == (0, 300, [])
    assert len(server.asked("klines")) == 1


async def test_every_kind_of_hole_is_asked_for_again(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """A failed page, minutes that come late, and rows that somebody deleted."""
    listing = server.binance.listings["SHIBUSDT"]
    listing.series = Series(without(BARS, (2_100, 2_130)))
    at = {"startTime": str(START_MS + 1_000 * 60_000)}
    server.faults.add(Rule(Fault.STATUS, path="klines", query=at, times=10**6))
    await backfill(store, opened, policy=QUICK)
    server.faults.clear()
    await fetch(
        store, "DELETE FROM ohlcv WHERE time >= :since AND time < :until",
        since=SINCE + timedelta(minutes=200), until=SINCE + timedelta(minutes=260),
    )  # fmt: skip
    report = await mend(store, opened, sample=0)
    assert (report.holes, report.deleted, report.is_whole) == (1_060, 60, True)
    assert await stored(store, "SHIB/USDT") == closed(listing.series.bars)
    assert await known(store, "SHIB/USDT") == [
        minutes(0, 2_100, "complete"), minutes(2_100, 2_130, "empty"),
        minutes(2_130, 2_500, "complete"),
    ]  # fmt: skip


async def test_a_database_that_restarts_is_waited_for_by_every_question(
    store: Store, server: ExchangeServer, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked of the store loses its connection the first time."""
    await backfill(store, opened)
    changed = [*BARS[:700], BARS[700]._replace(volume=Decimal("9.5")), *BARS[701:]]
    server.binance.listings["SHIBUSDT"].series = Series(changed)
    await fetch(
        store, "DELETE FROM ohlcv WHERE time >= :since AND time < :until",
        since=SINCE + timedelta(minutes=200), until=SINCE + timedelta(minutes=260),
    )  # fmt: skip
    monkeypatch.setattr("kurisu.store.patience.FIRST_PAUSE_S", 0.001)
    broken: list[str] = []

    def breaking(call: Any) -> Any:
        async def once(*arguments: Any, **more: Any) -> Any:
            if call.__name__ not in broken:
                broken.append(call.__name__)
                raise DatabaseError("the connection broke")
            return await call(*arguments, **more)

        return once

    for kind in (type(store.candles), type(store.markets)):
        for name, call in inspect.getmembers(kind, inspect.iscoroutinefunction):
            if not name.startswith("_"):
                monkeypatch.setattr(kind, name, breaking(call))
    async with opened("binance", policy=QUICK) as exchange:
        (market,) = await active_markets(store, exchange)
        assert await named_markets(store, exchange, [market.symbol]) == [market]
        ((market, frame),) = await chosen_series(store, "binance", [], None)
        report = await repair(store, exchange, market, frame, sample=3_000, apply=True)
    assert (report.holes, report.revised, report.is_whole) == (60, 1, True)
    assert await stored(store, "SHIB/USDT") == closed(changed)
    assert len(broken) >= 11


async def test_a_difference_is_reported_and_applied_only_on_demand(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    """One candle changed, one is new where there was none, one is gone. The new one is stored
    without a demand: nothing that was stored changes."""
    quiet = without(BARS, (700, 701))
    listing = server.binance.listings["SHIBUSDT"]
    listing.series = Series(quiet)
    await backfill(store, opened)
    changed = [
        bar._replace(volume=bar.volume + Decimal("1E-8")) if i == 100 else bar
        for i, bar in enumerate(BARS)
    ]
    listing.series = Series(without(changed, (900, 901)))
    report = await mend(store, opened, sample=10_000)
    assert [one.time for one in report.differences] == [
        from_ms(BARS[i].open_ms) for i in (100, 900)
    ]
    first, gone = report.differences
    assert (first.stored, first.exchange) == (tuple(BARS[100][1:]), tuple(changed[100][1:]))
    assert (gone.stored, gone.exchange) == (tuple(BARS[900][1:]), None)
    assert (report.asked_empty, report.untrue, report.holes) == (1, 1, 1)
    assert not report.is_whole
    assert await stored(store, "SHIB/USDT") == closed(BARS)

    report = await mend(store, opened, sample=10_000, apply=True)
    assert (report.revised, report.is_whole) == (1, False)
    assert await stored(store, "SHIB/USDT") == closed(changed)
    assert await fetch(store, "SELECT time, volume FROM candle_revisions") == [
        (from_ms(BARS[100].open_ms), BARS[100].volume)
    ]
    assert [d.time for d in (await mend(store, opened, sample=10_000)).differences] == [gone.time]


@pytest.mark.parametrize(("sample", "everything"), [(0, False), (0, True), (300, False)])
async def test_what_was_said_to_be_empty_is_asked_for_again(
    store: Store, server: ExchangeServer, opened: Opener, sample: int, everything: bool
) -> None:
    """All of it or a sample; what comes is stored, and what does not stays empty."""
    listing = server.binance.listings["SHIBUSDT"]
    listing.series = Series(without(BARS, (300, 330), (1_100, 1_130), (2_400, 2_410)))
    await backfill(store, opened)
    before = await stored(store, "SHIB/USDT")
    listing.series = Series(without(BARS, (300, 330), (1_105, 1_130)))
    server.requests.clear()
    report = await mend(store, opened, sample=sample, empty=everything, chance=random.Random(5))
    assert report.is_whole
    assert report.differences == []
    if everything:
        # Two windows, and what is filled then.
        assert len(server.asked("klines")) <= 6
        assert (report.asked_empty, report.untrue, report.holes) == (70, 15, 15)
        assert await stored(store, "SHIB/USDT") == closed(listing.series.bars)
        assert await known(store, "SHIB/USDT") == [
            minutes(0, 300, "complete"), minutes(300, 330, "empty"),
            minutes(330, 1_105, "complete"), minutes(1_105, 1_130, "empty"),
            minutes(1_130, 2_500, "complete"),
        ]  # fmt: skip
    elif sample:
        assert 0 < report.asked_empty < 70
        assert len(await stored(store, "SHIB/USDT")) == len(before) + report.untrue
    else:
        assert report.asked_empty == 0
        assert await stored(store, "SHIB/USDT") == before


@given(
    edges=st.lists(st.integers(0, 300), unique=True, max_size=20).map(sorted),
    limit=st.integers(1, 60),
)
def test_windows_that_hold_every_span(edges: list[int], limit: int) -> None:
    spans = [
        (SINCE + a * BASE.length, SINCE + b * BASE.length)
        for a, b in zip(edges[::2], edges[1::2], strict=False)
    ]
    found = together(spans, BASE, limit)
    for since, until in spans:
        assert any(a <= since and until <= b for a, b in found)
    assert all((a, b) in spans or BASE.count(a, b) <= limit for a, b in found)
    assert all(b <= c for (_, b), (c, _) in itertools.pairwise(found))


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    sample=st.integers(1, 200), limit=st.integers(1, 30), seed=st.integers(0, 9),
)  # fmt: skip
def test_windows_lie_in_what_is_known(
    lengths: list[int], sample: int, limit: int, seed: int
) -> None:
    known = []
    at = SINCE
    for length in lengths:
        known.append(Stretch(at, at + length * BASE.length, "complete", "rest"))
        at += (length + 3) * BASE.length
    found = windows(known, BASE, sample, limit, random.Random(seed))
    assert found
    assert all(known[0].since <= since < until <= known[-1].until for since, until in found)
    if sum(lengths) > sample:
        assert sum(BASE.count(*one) for one in found) <= sample
        assert all(BASE.count(*one) <= limit for one in found)
