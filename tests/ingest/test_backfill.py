"""Backfill: after it, what is stored is what the exchange serves, and every hole says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import pytest
from exchange_server.clock import MINUTE_MS
from exchange_server.fake import candle_rows
from exchange_server.server import ExchangeServer
from exchange_server.truth import Bar
from exchange_server.world import BARS, NOW_MS, START_MS, Opener
from rows import coverage, fetch

from kurisu.domain.timeframe import TIMEFRAMES
from kurisu.exchange.calls import RetryPolicy
from kurisu.exchange.clock import from_ms
from kurisu.ingest.backfill import Backfill, BackfillReport
from kurisu.store.store import Store

MINUTE: Final = timedelta(minutes=1)
SINCE: Final = from_ms(START_MS)
CLOSED: Final = from_ms(NOW_MS - NOW_MS % MINUTE_MS)
Run: TypeAlias = Callable[..., Any]


@pytest.fixture(params=["plain"])
def tier(request: pytest.FixtureRequest) -> str:
    """Nothing of this depends on the engine; see test_every_engine."""
    return str(request.param)


async def backfill(
    store: Store,
    opened: Opener,
    symbols: Sequence[str] = ("SHIB/USDT",),
    *,
    venue: str = "binance",
    timeframe: str = "1m",
    since: datetime | None = SINCE,
    until: datetime | None = None,
    policy: RetryPolicy | None = None,
    **more: Any,
) -> BackfillReport:
    async with opened(venue, policy=policy) as exchange:
        markets = [await store.markets.ensure(venue, symbol) for symbol in symbols]
        work = Backfill(
            store, exchange, TIMEFRAMES[timeframe],
            grace=timedelta(seconds=2), concurrency=4, **more,
        )  # fmt: skip
        return await work.run(markets, since, until)


async def stored(store: Store, symbol: str, exchange: str = "binance", name: str = "1m") -> Any:
    return await fetch(
        store,
        "SELECT time, open, high, low, close, volume FROM ohlcv JOIN markets m ON m.id = market_id "
        "WHERE symbol = :symbol AND exchange = :exchange AND timeframe = :name ORDER BY time",
        symbol=symbol, exchange=exchange, name=name,
    )  # fmt: skip


def closed(bars: Sequence[Bar], now_ms: int = NOW_MS) -> list[tuple[object, ...]]:
    """The truth: what had closed at `now_ms`, the grace included."""
    return candle_rows([bar for bar in bars if bar.open_ms + MINUTE_MS + 2_000 <= now_ms])


async def test_what_is_stored_is_what_the_exchange_serves(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    report = await backfill(store, opened)
    assert await stored(store, "SHIB/USDT") == closed(BARS)
    assert report.is_done
    (one,) = report.markets
    assert (one.inserted, one.updated, one.unchanged) == (2_500, 0, 0)
    market = await store.markets.get("binance", "SHIB/USDT")
    assert await coverage(store, market) == [(SINCE, CLOSED, "complete", "rest")]


async def test_a_second_run_asks_for_no_candle(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    await backfill(store, opened)
    server.requests.clear()
    report = await backfill(store, opened)
    assert server.asked("klines") == []
    assert report.is_done
    assert report.markets[0].requested == 0
