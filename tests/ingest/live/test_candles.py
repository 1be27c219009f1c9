"""Which candles of a stream are final, and when REST is asked."""

from __future__ import annotations

import pytest

from kurisu.domain.market import MarketName
from kurisu.domain.timeframe import TIMEFRAMES
from kurisu.exchange.port import CandleRow, CandleUpdate
from kurisu.ingest.live.candles import CHECK_AFTER_MS, MOST_UNHEARD, CandleFollower
from kurisu.store.markets import Market

MINUTE = 60_000
START = 1_000 * MINUTE
MARKET = Market(1, MarketName.of("binance", "BTC/USDT"), active=True)


@pytest.fixture
def follower() -> CandleFollower:
    return CandleFollower(MARKET, TIMEFRAMES["1m"], START)


def row(minute: int, close: str = "1") -> CandleRow:
    return CandleRow(START + minute * MINUTE, "1", "9", "1", close, "1")


def show(
    follower: CandleFollower, minute: int, close: str = "1", *, closed: bool | None = None
) -> list[CandleRow]:
    return follower.receive(CandleUpdate(row(minute, close), closed))


def test_the_exchange_says_that_it_has_closed(follower: CandleFollower) -> None:
    assert show(follower, 0, "1", closed=False) == []
    assert show(follower, 0, "2", closed=True) == [row(0, "2")]
    # It is not given again when the next one opens.
    assert show(follower, 1, closed=False) == []


def test_the_next_one_opens(follower: CandleFollower) -> None:
    assert show(follower, 0, "1") == []
    assert show(follower, 0, "2") == []
    assert show(follower, 3, "5") == [row(0, "2")]
    assert show(follower, 4, "6") == [row(3, "5")]


def test_a_late_word_on_a_closed_candle(follower: CandleFollower) -> None:
    show(follower, 0, "1")
    assert show(follower, 1, "1") == [row(0, "1")]
    assert show(follower, 0, "1") == []
    assert show(follower, 0, "7") == [row(0, "7")]
    # The exchange says that this one was not final.
    assert show(follower, 0, "8", closed=False) == []


def test_a_lost_connection_forgets_the_open_candle(follower: CandleFollower) -> None:
    """Its last word may have come while nobody listened."""
    show(follower, 0, "1")
    follower.lost()
    assert show(follower, 1, "1") == []


def test_a_check_comes_after_every_close(follower: CandleFollower) -> None:
    now = START + MINUTE + 100
    assert follower.check_at <= now
    assert follower.has_checked(START + MINUTE, now, 1)
    assert follower.check_at == START + 2 * MINUTE + CHECK_AFTER_MS
    # Some candles are asked for again each time.
    assert follower.ask_from == START + MINUTE - 3 * MINUTE
    # Nothing new: not at once again, and not never.
    later = START + 5 * MINUTE
    follower.has_checked(START + MINUTE, later, 0)
    assert later + MINUTE <= follower.check_at <= later + 2 * MINUTE
    follower.lost()
    assert follower.check_at == 0


def test_a_stream_that_says_nothing_while_rest_has_candles(follower: CandleFollower) -> None:
    for number in range(1, MOST_UNHEARD):
        assert follower.has_checked(START + number * MINUTE, START + number * MINUTE, 1)
    assert not follower.has_checked(START + 9 * MINUTE, START + 9 * MINUTE, 1)
    show(follower, 10)
    assert follower.has_checked(START + 10 * MINUTE, START + 10 * MINUTE, 1)
