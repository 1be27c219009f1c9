"""When a market is asked for, silent or not, and when connections are given up for it."""

from __future__ import annotations

import random
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from kurisu.domain.market import MarketName
from kurisu.domain.timeframe import BASE
from kurisu.domain.trade import IdSpace
from kurisu.errors import ExchangeError
from kurisu.exchange.port import TradeRow
from kurisu.exchange.venues import TradePaging, Venue
from kurisu.ingest.live.refill import CHECK_S, SHORTEST_SILENCE_S, SILENCE_S, Refiller
from kurisu.ingest.live.trades import TradeFollower
from kurisu.store.markets import Market

MARKET = Market(1, MarketName.of("okx", "BTC/USDT"), active=True)


class Watched:
    """One market and its refiller, and a clock. said: its events; revived: when connections were
    given up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nothing: Any = None
        exchange: Any = SimpleNamespace(venue=Venue(trade_limit=500))
        self.now_s = 1_000.0
        self.revived: list[float] = []
        self.refiller = Refiller(
            nothing, exchange, BASE, timedelta(0), lambda *_, **__: None,
            lambda: self.revived.append(self.now_s),
        )  # fmt: skip
        self.follower = TradeFollower(MARKET, IdSpace.RAW, False, 0, IdSpace.RAW)
        self.refiller.follow(self.follower)
        self.turn = self.refiller.trades[self.follower]
        self.follower.connected(self.now_s)
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)

    def trade(self, times: int, pause_s: float) -> None:
        chance = random.Random(3)
        for number in range(times):
            self.now_s += 2 * pause_s * chance.random()
            self.follower.receive([TradeRow(number, str(number), "buy", "1", "1")], self.now_s)
        # REST has been read beyond the first of them.
        self.follower.has_read(1_000_000)
        self.turn.run, self.turn.asked_s = self.follower.run, self.now_s - 0.001

    def is_asked_for_after(self) -> float:
        """Seconds of silence until REST is asked."""
        silent_s = 0.0
        while not self.refiller._needs(self.follower, self.turn, self.now_s + silent_s):
            silent_s += 0.5
        return silent_s


@pytest.mark.parametrize(
    ("times", "pause_s", "silent_s"),
    [
        (1_000, 0.1, SHORTEST_SILENCE_S),
        (200, 60.0, SILENCE_S),
        # So few say nothing.
        (10, 0.1, SILENCE_S),
    ],
)
def test_a_busy_market_is_missed_sooner(
    monkeypatch: pytest.MonkeyPatch, times: int, pause_s: float, silent_s: float
) -> None:
    watched = Watched(monkeypatch)
    watched.trade(times, pause_s)
    assert watched.is_asked_for_after() == pytest.approx(silent_s, abs=0.5)


def test_while_it_stays_silent_a_market_is_asked_for_once_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    watched.trade(1_000, 0.1)
    watched.now_s += SHORTEST_SILENCE_S
    watched.turn.asked_s = watched.now_s
    assert watched.is_asked_for_after() == pytest.approx(SILENCE_S, abs=0.5)


def test_others_do_not_lose_their_connections_for_one_that_stays_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A market that is refused trades on, and no new connection brings it."""
    watched = Watched(monkeypatch)
    watched.trade(1, 0.1)
    began_s = watched.now_s
    for _ in range(60):
        watched.now_s += 61
        watched.refiller._give_up(MARKET, watched.turn, watched.follower.heard_s)
    assert [round((at - began_s) / 61) for at in watched.revived] == [1, 2, 5, 12, 27, 58]
    # One that was heard again has every right.
    watched.trade(1, 0.1)
    watched.now_s += 60
    watched.refiller._give_up(MARKET, watched.turn, watched.follower.heard_s)
    assert watched.revived[-1] == watched.now_s


def test_a_stream_is_compared_with_rest_where_its_ids_do_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    follower, turn = watched.follower, watched.turn
    watched.trade(10, 0.1)
    # REST has not been read in this run.
    watched.now_s += 2 * CHECK_S
    assert not watched.refiller._is_unchecked(follower, turn)
    turn.checked, turn.checked_s = follower.whole_until, watched.now_s
    watched.now_s += 2 * CHECK_S
    # Nothing came since.
    assert not watched.refiller._is_unchecked(follower, turn)
    follower.whole_until += 1
    assert watched.refiller._is_unchecked(follower, turn)
    turn.checked_s = watched.now_s - CHECK_S + 1
    assert not watched.refiller._is_unchecked(follower, turn)
    turn.is_doubted = True
    assert watched.refiller._is_unchecked(follower, turn)
    for certain in ("gapless", "dense"):
        monkeypatch.setattr(follower, certain, True)
        assert not watched.refiller._is_unchecked(follower, turn)
        monkeypatch.setattr(follower, certain, False)
    watched.refiller._exchange.venue = Venue(trade_paging=TradePaging.NOTHING)  # type: ignore[misc]
    assert not watched.refiller._is_unchecked(follower, turn)


async def test_an_exchange_that_does_not_answer_is_left_alone_until_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    follower, turn = watched.follower, watched.turn

    async def unreachable() -> None:
        raise ExchangeError("okx", "it cannot be reached")

    monkeypatch.setattr(watched.refiller._exchange, "now", unreachable, raising=False)
    follower.whole_until, turn.checked = 2_000, 1_000
    assert watched.refiller._is_unchecked(follower, turn)
    await watched.refiller._take(turn, watched.refiller._check_trades(follower, turn), "")
    # What is missing, REST is soon asked again.
    assert turn.at_s - watched.now_s <= 1
    watched.now_s += CHECK_S - 1
    assert not watched.refiller._is_unchecked(follower, turn)
    watched.now_s += 1
    assert watched.refiller._is_unchecked(follower, turn)


def test_of_a_busy_market_as_much_is_compared_as_fits_in_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)

    def compared_from() -> int:
        return watched.refiller._sampled_from(watched.follower, 1_300_000)

    # Nobody knows how busy it is.
    assert compared_from() == 0
    watched.follower.pause_s = 0.01
    assert compared_from() == 1_300_000 - 2_500
    watched.follower.pause_s = 10.0
    assert compared_from() < 0
