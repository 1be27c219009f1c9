"""The exchange's own clock."""

from __future__ import annotations

import pytest
from exchange_server.server import ExchangeServer
from exchange_server.world import NOW_MS, Opener

from kurisu.errors import BadAnswer
from kurisu.exchange.clock import FRESH_S, ExchangeClock, from_ms, to_ms


def test_a_reading_is_carried_on() -> None:
    at = 100.0
    clock = ExchangeClock(lambda: at)
    assert clock.now_ms() is None
    assert not clock.is_fresh
    clock.read_date("Tue, 02 Nov 2021 00:00:05 GMT")
    assert clock.now_ms() == 1_635_811_205_000
    clock.read(1_635_811_206_789)
    at = 101.5
    assert clock.now_ms() == 1_635_811_208_289
    at += FRESH_S
    assert not clock.is_fresh
    assert not clock.has_fresh_date


@pytest.mark.parametrize("header", [None, "", "soon", "Tue, 02 Nov 2021 00:00:05"])
def test_a_date_that_is_none(header: str | None) -> None:
    clock = ExchangeClock()
    clock.read_date(header)
    assert clock.now_ms() is None


@pytest.mark.parametrize("venue", ["binance", "bitfinex", "kraken"])
async def test_never_ahead_of_the_exchange(
    server: ExchangeServer, opened: Opener, venue: str
) -> None:
    """Bitfinex has no time endpoint: its Date header tells, in whole seconds, like Kraken's."""
    server.clock.set(NOW_MS + 789)
    async with opened(venue) as exchange:
        for _ in range(3):
            told = to_ms(await exchange.now())
            assert 0 <= server.clock.now_ms() - told < (1 if venue == "binance" else 1_000)
            server.clock.advance(FRESH_S / 2 + 1)


async def test_a_clock_that_is_set_back_is_read_again(
    server: ExchangeServer, opened: Opener
) -> None:
    async with opened("binance") as exchange:
        assert await exchange.now() == from_ms(NOW_MS)
        exchange.clock.read(NOW_MS + 10**9)
        server.clock.advance(FRESH_S + 1)
        assert await exchange.now() == from_ms(server.clock.now_ms())


async def test_an_exchange_that_does_not_tell(opened: Opener) -> None:
    async with opened("bitfinex") as exchange:
        exchange.clock.read_date = lambda header: None  # type: ignore[method-assign]
        with pytest.raises(BadAnswer, match="does not tell its time"):
            await exchange.now()
