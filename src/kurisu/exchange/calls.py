"""One way for every request: bounded concurrency, rate limits, retries, translated errors."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from kurisu.errors import RateLimited
from kurisu.exchange.clock import ExchangeClock
from kurisu.exchange.exact import Reply
from kurisu.exchange.pace import Pace
from kurisu.exchange.translate import Failure, translate

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]

#: Share of a minute's request weight after which to wait for the next minute. The rest is for
#: requests in flight, and for other programs behind the same address.
WEIGHT_SHARE: Final = 0.8
MINUTE_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of retrying, times in seconds.

    attempts: how often a request is made in all.
    first_wait_s, longest_wait_s: of the exponential backoff, before jitter (half to all of it).
    rate_limited_wait_s: after a 429 that does not say how long. ban_wait_s: after such a 418;
        Binance bans for two minutes at least.
    longest_retry_after_s: a longer Retry-After is not sat out, it is raised.
    """

    attempts: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    rate_limited_wait_s: float = 10.0
    ban_wait_s: float = 120.0
    longest_retry_after_s: float = 300.0

    def backoff_s(self, attempt: int, jitter: random.Random) -> float:
        """Before the attempt after `attempt` (counted from 1)."""
        wait = min(self.longest_wait_s, self.first_wait_s * 2.0 ** (attempt - 1))
        return wait * (0.5 + jitter.random() / 2)


class WeightBudget:
    """Keeps to a venue's weight per minute by what its own headers say is used.

    CCXT's throttle paces by a table of costs, which knows neither what other programs behind
    the same address use, nor the latest weights.
    """

    def __init__(self, limit: int | None, clock: ExchangeClock) -> None:
        self.limit = limit
        self._clock = clock
        self._used = 0
        self._minute = -1

    def observe(self, reply: Reply) -> None:
        used = reply.header("x-mbx-used-weight-1m")
        now_ms = self._clock.now_ms()
        if used is None or not used.isdecimal() or now_ms is None:
            return
        minute = now_ms // MINUTE_MS
        # Answers arrive out of order: within a minute only the highest counts.
        self._used = int(used) if minute != self._minute else max(self._used, int(used))
        self._minute = minute

    def wait_s(self) -> float:
        """Seconds until there is room; 0 if there is."""
        now_ms = self._clock.now_ms()
        if self.limit is None or now_ms is None or now_ms // MINUTE_MS != self._minute:
            return 0.0
        if self._used < self.limit * WEIGHT_SHARE:
            return 0.0
        # A second more: the clock here may be that much behind, never ahead.
        return (MINUTE_MS - now_ms % MINUTE_MS) / 1000 + 1.0


class Caller:
    """Makes the requests of one exchange.

    pace: what is shared with other processes of this machine; None for nothing.
    sleep, monotonic, jitter: time and chance, from outside so that tests decide them.
    """

    def __init__(
        self,
        exchange: str,
        concurrency: int,
        policy: RetryPolicy,
        budget: WeightBudget,
        *,
        pace: Pace | None = None,
        secrets: Collection[str] = (),
        sleep: Sleep = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: random.Random | None = None,
    ) -> None:
        self._exchange = exchange
        self._slots = asyncio.Semaphore(concurrency)
        self._policy = policy
        self._budget = budget
        self._pace = pace
        self._secrets = tuple(secrets)
        self._sleep = sleep
        self._monotonic = monotonic
        # Spreads retries in time; no secret.
        self._jitter = jitter or random.Random()  # noqa: S311
        self._closed_until_s = 0.0
        #: Requests made again, for reports.
        self.retries = 0

    async def call(
        self, make: Callable[[], Awaitable[T]], exchange_now: Callable[[], datetime | None]
    ) -> T:
        """`await make()`, retried within the policy. Raises ExchangeError or one of its kinds."""
        for attempt in range(1, self._policy.attempts + 1):
            try:
                async with self._slots:
                    await self._pass()
                    return await make()
            except Exception as error:
                failure = translate(self._exchange, error, self._secrets, exchange_now())
                wait_s = self._wait_s(failure, attempt)
                if not failure.passes or attempt == self._policy.attempts:
                    raise failure.error from error
                if wait_s > self._policy.longest_retry_after_s:
                    raise failure.error from error
            self.retries += 1
            if isinstance(failure.error, RateLimited):
                # Everybody waits: going on with other requests is what turns a 429 into a ban.
                self._closed_until_s = max(self._closed_until_s, self._monotonic() + wait_s)
                if self._pace is not None:
                    await self._pace.close(wait_s)
            else:
                await self._sleep(wait_s)
        raise AssertionError("the loop returns or raises")  # pragma: no cover

    async def _pass(self) -> None:
        """Wait until a request may be made."""
        while True:
            wait_s = max(self._closed_until_s - self._monotonic(), self._budget.wait_s())
            if self._pace is not None:
                wait_s = max(wait_s, self._pace.closed_s())
            if wait_s <= 0:
                return
            await self._sleep(wait_s)

    def _wait_s(self, failure: Failure, attempt: int) -> float:
        backoff_s = self._policy.backoff_s(attempt, self._jitter)
        error = failure.error
        if not isinstance(error, RateLimited):
            return backoff_s
        if error.retry_after_s is not None:
            return error.retry_after_s + backoff_s
        if failure.banned:
            return self._policy.ban_wait_s + backoff_s
        return self._policy.rate_limited_wait_s + backoff_s
