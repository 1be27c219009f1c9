"""Fixtures of the whole suite: databases of every tier, and how Hypothesis behaves."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from engines import TIERS, Servers
from hypothesis import HealthCheck, settings

from kurisu.store.markets import Market
from kurisu.store.store import Store, open_store

# Modules and their tables stay: Python's collector looked at them for a tenth of the time.
gc.set_threshold(50_000, 20, 50)

# The same examples in every run: a failure can be repeated, and a change is what broke it.
settings.register_profile(
    "kurisu",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("kurisu")


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Every server that this process starts; each one when it is first needed."""
    started = Servers()
    yield started
    started.close()


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    """plain, apache and community. A test for some of them parametrises it with `indirect`."""
    return str(request.param)


@pytest.fixture
def url(servers: Servers, tier: str) -> Iterator[str]:
    """A fresh database of the tier, migrated."""
    with servers.migrated(tier) as found:
        yield found


@pytest.fixture(scope="module", params=TIERS)
def shared_tier(request: pytest.FixtureRequest) -> str:
    """As `tier`, for a module whose tests share a database."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared_url(servers: Servers, shared_tier: str) -> Iterator[str]:
    """A migrated database of the tier for all tests of a module, which leave it as it is.

    No test of such a module may ask for `url` or `store`.
    """
    with servers.migrated(shared_tier) as found:
        yield found


@pytest_asyncio.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """An open store on a fresh database of the tier."""
    async with open_store(url) as opened:
        yield opened


@pytest_asyncio.fixture
async def market(store: Store) -> Market:
    """A market, binance:BTC/USDT."""
    return await store.markets.ensure("binance", "BTC/USDT")


@pytest_asyncio.fixture
async def other_market(store: Store) -> Market:
    """A second market, okx:ETH/USDT:USDT."""
    return await store.markets.ensure("okx", "ETH/USDT:USDT")
