"""The rate limits of an exchange are never exceeded."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from exchange_server.server import ExchangeServer
from exchange_server.wire import Request
from exchange_server.world import START_MS, Opener

from kurisu.errors import RateLimited
from kurisu.exchange.calls import MINUTE_MS, Caller, RetryPolicy, WeightBudget
from kurisu.exchange.clock import ExchangeClock
from kurisu.exchange.exact import Reply
from kurisu.exchange.port import TradeQuery


async def test_request_weight_is_kept_within_the_minute(
    server: ExchangeServer, opened: Opener, slept: list[float]
) -> None:
    """The budget works with what the exchange says: here a fifteenth of the usual limit."""
    server.binance.meter.limit = 400
    async with opened("binance", {"concurrency": 4}) as exchange:
        await exchange.load_markets()
        for _ in range(40):
            await asyncio.gather(
                *(
                    exchange.fetch_trades("SHIB/USDT", TradeQuery(from_id=900_000, limit=10))
                    for _ in range(5)
                )
            )
    assert server.binance.meter.breaches == []
    assert 300 < server.binance.meter.most_used <= 400
    assert slept
    assert exchange.caller.retries == 0


async def test_ccxts_own_throttle_holds_for_venues_that_count_requests(
    server: ExchangeServer, opened: Opener
) -> None:
    """Kraken allows one request a second; here a minute passes in a second, sixty times as fast."""
    server.kraken.meter.limit = 60
    server.clock.set(server.clock.now_ms() // MINUTE_MS * MINUTE_MS, speed=60)
    async with opened("kraken", {"rate_limit_ms": 1000 / 60}) as exchange:
        await asyncio.gather(
            *(
                exchange.fetch_candles("XRP/USDT", "1m", server.clock.now_ms() - 600_000, 5)
                for _ in range(90)
            )
        )
    assert len(server.asked("OHLC")) == 90
    # A bucket that is full at a minute's start lets one request more into that minute.
    assert server.kraken.meter.most_used <= 61


async def test_concurrency_is_bounded() -> None:
    caller = Caller("x", 3, RetryPolicy(), WeightBudget(None, ExchangeClock()))
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    await asyncio.gather(*(caller.call(work, lambda: None) for _ in range(20)))
    assert most == 3


async def test_a_429_of_one_request_stops_the_others() -> None:
    """Going on with other requests is what Binance answers with a ban."""
    at_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal at_s
        wakes = at_s + seconds
        while at_s < wakes:
            await asyncio.sleep(0)
            at_s += 0.25

    caller = Caller(
        "x", 4, RetryPolicy(), WeightBudget(None, ExchangeClock()), sleep=sleep,
        monotonic=lambda: at_s,
    )  # fmt: skip
    made: list[float] = []

    async def refused_once() -> None:
        made.append(at_s)
        if len(made) == 1:
            raise RateLimited("x", "too many", 30.0)

    async def fine() -> None:
        made.append(at_s)

    first = asyncio.create_task(caller.call(refused_once, lambda: None))
    await asyncio.sleep(0)
    await asyncio.gather(first, *(caller.call(fine, lambda: None) for _ in range(3)))
    assert made[0] == 0
    assert len(made) == 5
    assert all(at >= 30 for at in made[1:])


def test_backoff_grows_is_bounded_and_differs() -> None:
    policy = RetryPolicy(first_wait_s=1, longest_wait_s=8)
    chance = random.Random(1)
    waits = [policy.backoff_s(attempt, chance) for attempt in range(1, 9)]
    for wait, top in zip(waits, [1, 2, 4, 8, 8, 8, 8, 8], strict=True):
        assert top / 2 <= wait <= top
    assert len(set(waits)) == len(waits)


@pytest.mark.parametrize(
    ("used", "waits"), [("10", False), ("79", False), ("80", True), ("x", False), (None, False)]
)
def test_budget(used: str | None, *, waits: bool) -> None:
    at = 0.0
    clock = ExchangeClock(lambda: at)
    clock.read(10 * MINUTE_MS + 15_000)
    budget = WeightBudget(100, clock)
    headers = {} if used is None else {"x-mbx-used-weight-1m": used}
    budget.observe(Reply(200, headers))
    assert budget.wait_s() == (46.0 if waits else 0.0)
    at = 46.0
    assert budget.wait_s() == 0.0


async def test_cancelling_is_not_retried() -> None:
    caller = Caller("x", 1, RetryPolicy(), WeightBudget(None, ExchangeClock()))
    calls: list[Any] = []

    async def work() -> None:
        calls.append(1)
        await asyncio.sleep(10)

    task = asyncio.create_task(caller.call(work, lambda: None))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(calls) == 1


async def test_every_request_is_on_the_servers_record(
    server: ExchangeServer, opened: Opener
) -> None:
    """Loading markets and a page of candles is three requests, no more."""
    async with opened("binance") as exchange:
        await exchange.load_markets()
        await exchange.load_markets()
        await exchange.now()
        await exchange.now()
        await exchange.fetch_candles("SHIB/USDT", "1m", START_MS, 1_000)
    assert [request.path for request in server.requests] == [
        "api/v3/exchangeInfo", "api/v3/time", "api/v3/klines",
    ]  # fmt: skip
    assert isinstance(server.requests[0], Request)
