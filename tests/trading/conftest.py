"""An account at the test exchange, and its row in a fresh database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
from engines import REAL_TIERS
from exchange_server.binance_account import BinanceAccount
from exchange_server.server import ExchangeServer
from exchange_server.world import NOW_MS, opener, usual_server

from kurisu.exchange.private import CcxtAccount
from kurisu.store.accounts import Account
from kurisu.store.store import Store
from kurisu.trading.gateway import Gateway

KEY, SECRET = "TEST_BINANCE_KEY", "TEST_BINANCE_SECRET"
SHIB = "SHIB/USDT"


@pytest.fixture(params=REAL_TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    """Hardly anything here depends on the engine."""
    return str(request.param)


@pytest.fixture
def server() -> Iterator[ExchangeServer]:
    """Its time runs: requests are signed with a time."""
    with usual_server() as started:
        started.clock.set(NOW_MS, speed=1.0)
        yield started


@pytest.fixture
def venue(server: ExchangeServer, monkeypatch: pytest.MonkeyPatch) -> BinanceAccount:
    """The account as the exchange has it."""
    found = server.binance.account
    found.balances = {"USDT": Decimal(10**9), "SHIB": Decimal(10**9), "BNB": Decimal(5)}
    monkeypatch.setenv(KEY, found.key)
    monkeypatch.setenv(SECRET, found.secret)
    return found


@pytest_asyncio.fixture
async def account(store: Store) -> Account:
    """The account as the ledger has it."""
    return await store.accounts.add("binance", "main", {"apiKey": KEY, "secret": SECRET})


class World:
    """Gateways to one account, each as a process of its own would have it. A wait takes no time,
    moves the exchange's clock, and is noted in `slept` (seconds)."""

    def __init__(self, server: ExchangeServer, store: Store, account: Account) -> None:
        self.server = server
        self.store = store
        self.account = account
        self.venue = server.binance.account
        self.slept: list[float] = []
        self._open = opener(server, self.slept)

    @asynccontextmanager
    async def exchange(self, **settings: Any) -> AsyncIterator[CcxtAccount]:
        env = {"apiKey": KEY, "secret": SECRET}
        async with self._open(self.account.exchange, {"env": env, **settings}) as opened:
            yield CcxtAccount(opened)

    @asynccontextmanager
    async def gateway(self, **settings: Any) -> AsyncIterator[Gateway]:
        async with self.exchange(**settings) as exchange:
            yield Gateway(
                self.store, self.account, exchange, sleep=self.sleep,
                monotonic=lambda: self.server.clock.now_ms() / 1000,
            )  # fmt: skip

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.server.clock.advance(seconds)
        await asyncio.sleep(0)

    def low(self) -> Decimal:
        """A price at which nobody sells."""
        return (self.venue.last_price("SHIBUSDT") / 2).quantize(Decimal("1E-8"))

    @property
    def sent(self) -> int:
        """How many orders were sent."""
        return len([r for r in self.server.asked("v3/order") if r.method == "POST"])


@pytest.fixture
def world(server: ExchangeServer, venue: BinanceAccount, store: Store, account: Account) -> World:
    return World(server, store, account)
