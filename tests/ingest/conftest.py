"""The usual exchanges beside a database, for each test anew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from exchange_server.server import ExchangeServer
from exchange_server.world import Opener, opener, usual_server


@pytest.fixture
def server() -> Iterator[ExchangeServer]:
    with usual_server() as started:
        yield started


@pytest.fixture
def slept() -> list[float]:
    """Every wait of the adapter, in seconds."""
    return []


@pytest.fixture
def opened(server: ExchangeServer, slept: list[float]) -> Opener:
    """See `exchange_server.world.opener`."""
    return opener(server, slept)
