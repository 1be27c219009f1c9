"""What counts as whole is stored, whatever a stream does."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kurisu.domain.market import MarketName
from kurisu.domain.trade import IdSpace
from kurisu.exchange.port import TradeRow
from kurisu.ingest.live.trades import HOLD_S, UNORDERED_MS, TradeFollower
from kurisu.store.markets import Market

START_MS = 1_000_000
MARKET = Market(1, MarketName.of("binance", "BTC/USDT"), active=True)


class World:
    """A market that trades, a stream of it that breaks, and REST, which knows everything.

    stored: numbers of the trades that were given to be stored, and were committed.
    """

    def __init__(self, times: list[int], kind: str) -> None:
        space = {"gapless": IdSpace.AGGREGATE, "derived": IdSpace.DERIVED}.get(kind, IdSpace.RAW)
        self.times = times
        self.derived = kind == "derived"
        gapless, dense = kind == "gapless", kind == "dense"
        self.follower = TradeFollower(MARKET, space, gapless, START_MS, space, dense=dense)
        # So many that no number of jumps speaks against them.
        self.follower._seen = 1_000_000
        self.tells_losses = gapless or dense
        self.at = 0
        self.now_s = 100.0
        self.stored: set[int] = set()
        self.waiting: list[tuple[int, list[int], int]] = []
        self.claimed: list[tuple[int, int]] = []
        self.is_connected = True

    def row(self, number: int) -> TradeRow:
        name = None if self.derived else str(number + 1)
        return TradeRow(self.times[number], name, "buy", str(number), "1")

    def ready(self, rows: list[TradeRow]) -> None:
        if rows:
            numbers = [int(row.price) for row in rows]
            if self.derived:
                for time in {row.time_ms for row in rows}:
                    whole = {n for n, t in enumerate(self.times[: self.at]) if t == time}
                    assert whole <= set(numbers), "a millisecond was divided"
            newest = max(row.time_ms for row in rows)
            self.waiting.append((self.follower.run, numbers, newest))

    def step(self, move: tuple[str, int]) -> None:
        what, count = move
        if what == "trade":
            rows = [self.row(n) for n in range(self.at, min(self.at + count, len(self.times)))]
            self.at += len(rows)
            self.now_s += 0.01
            if self.is_connected and rows:
                self.ready(self.follower.receive(rows, self.now_s))
        elif what == "lose" and self.tells_losses:
            # A stream that leaves something out without a word: only ids can tell.
            self.at = min(self.at + count, len(self.times))
        elif what == "cut":
            self.follower.lost()
            self.is_connected = False
        elif what == "connect":
            self.is_connected = True
        elif what == "wait":
            ended = self.at == len(self.times) or self.times[self.at] != self.times[self.at - 1]
            if ended:
                self.now_s += HOLD_S
                self.ready(self.follower.release(self.now_s))
        elif what == "commit":
            for run, numbers, newest in self.waiting:
                self.stored.update(numbers)
                self.follower.has_stored(run, newest)
            self.waiting.clear()
        elif what == "state":
            claims = list(self.follower.claims)
            self.claimed += claims
            self.follower.has_stated(claims)
        elif what == "rest":
            self.rest()

    def rest(self) -> None:
        """Up to the first trade of the run, else to now; never a millisecond that goes on."""
        missing = self.follower.missing
        made = self.times[self.at] if self.at < len(self.times) else self.times[-1] + 1
        since = self.follower.whole_until
        until = min(made, missing[1]) if missing else made
        if until > since:
            self.stored.update(n for n, time in enumerate(self.times) if since <= time < until)
            self.follower.has_read(until)

    def check(self) -> None:
        def all_stored(since: int, until: int) -> bool:
            return all(
                n in self.stored for n, time in enumerate(self.times) if since <= time < until
            )

        assert all_stored(START_MS, self.follower.whole_until)
        assert all(all_stored(*claim) for claim in [*self.claimed, *self.follower.claims])


TIMES = st.lists(st.sampled_from([0, 0, 1, 2, 700, 5_000]), min_size=1, max_size=60).map(
    lambda steps: [START_MS + 5 + sum(steps[: n + 1]) for n in range(len(steps))]
)
MOVES = st.lists(
    st.tuples(
        st.sampled_from(
            ["trade", "trade", "trade", "commit", "rest", "cut", "connect", "wait", "state", "lose"]
        ),
        st.integers(1, 5),
    ),
    max_size=60,
)


# A connection that is cut inside of a millisecond.
@example(
    times=[START_MS + 5, START_MS + 5, START_MS + 6],
    moves=[("trade", 1), ("cut", 1), ("trade", 1)],
    kind="derived",
)
@settings(max_examples=300)
@given(times=TIMES, moves=MOVES, kind=st.sampled_from(["gapless", "dense", "raw", "derived"]))
def test_what_counts_as_whole_is_stored(
    times: list[int], moves: list[tuple[str, int]], kind: str
) -> None:
    world = World(times, kind)
    for move in moves:
        world.step(move)
        world.check()
    # And it comes to an end: a whole run, REST, and everything up to the newest trade is whole.
    for what in ("connect", "cut", "connect"):
        world.step((what, 1))
    world.at = max(0, min(world.at, len(times) - 1))
    first = times[world.at]
    for what in ("trade", "commit", "wait", "commit", "rest", "rest"):
        world.step((what, len(times)))
        world.check()
    assert world.follower.whole_until > first or world.follower.first is None


def test_a_jump_in_the_ids_is_asked_for_and_claims_go_on_behind_it() -> None:
    follower = TradeFollower(MARKET, IdSpace.AGGREGATE, True, START_MS)
    rows = [TradeRow(START_MS + 10 * n, str(n), "buy", "1", "1") for n in range(1, 8)]
    assert follower.receive(rows[:2], 1.0) == rows[:2]
    assert follower.missing == (START_MS, START_MS + 11)
    follower.has_read(START_MS + 11)
    follower.has_stored(follower.run, START_MS + 20)
    assert follower.claims == [(START_MS + 11, START_MS + 20)]
    # 3 is missing; a repetition of 2 is not one more.
    assert follower.receive([rows[1], rows[3]], 2.0) == [rows[3]]
    assert follower.missing == (START_MS + 20, START_MS + 41)
    # What the run before had written and not yet committed is whole, too, but nobody may say so.
    follower.has_stored(follower.run - 1, START_MS + 20)
    assert follower.whole_until == START_MS + 20
    follower.has_read(START_MS + 41)
    follower.receive(rows[4:], 3.0)
    follower.has_stored(follower.run, START_MS + 70)
    assert follower.claims == [
        (START_MS + 11, START_MS + 20), (START_MS + 41, START_MS + 70),
    ]  # fmt: skip
    follower.has_stated(follower.claims[:1])
    assert follower.claims == [(START_MS + 41, START_MS + 70)]


def test_ids_that_are_nearly_consecutive_are_followed_until_they_jump_too_often() -> None:
    follower = TradeFollower(MARKET, IdSpace.RAW, False, START_MS, dense=True)
    rows = [TradeRow(START_MS + 10 * n, str(n), "buy", "1", "1") for n in range(2_000)]
    assert follower.receive(rows[:600], 1.0) == rows[:600]
    follower.has_read(START_MS + 1)
    follower.has_stored(follower.run, rows[599].time_ms)
    # 600 is left out, and comes late: it is stored, and REST is asked anyway.
    assert follower.receive([rows[601], rows[600]], 2.0) == [rows[601], rows[600]]
    assert follower.missing == (rows[599].time_ms - UNORDERED_MS, rows[601].time_ms + 1)
    # In any order: none of them is left out.
    for late, early in zip(rows[603:700:2], rows[602:700:2], strict=True):
        follower.receive([late, early], 2.5)
    is_still = follower.dense
    assert is_still
    # Ids of another kind: a jump says nothing.
    run = follower.run
    follower.receive(rows[700::20], 3.0)
    assert run < follower.run < run + 20
    assert not follower.dense
    run = follower.run
    follower.receive([TradeRow(rows[-1].time_ms, "ab", "buy", "1", "1"), rows[5]], 4.0)
    assert (follower.run, follower.newest) == (run, rows[-1].time_ms)


def test_what_a_stream_shows_as_one_trade_is_asked_for_and_not_stored() -> None:
    """OKX: what an order filled at a price is one message, which REST has apart."""
    follower = TradeFollower(MARKET, IdSpace.RAW, False, START_MS)
    rows = [TradeRow(START_MS + 2_000 * n, str(n), "buy", "1", "1") for n in range(1, 6)]
    joined = rows[1]._replace(trade_id="3", amount="7", parts=3)
    assert follower.receive([rows[0], joined, rows[3]], 1.0) == [rows[0], rows[3]]
    assert follower.is_apart
    assert (follower.missing, follower.first_id) == ((START_MS, joined.time_ms + 1), "3")
    follower.has_stored(follower.run, rows[3].time_ms)
    assert follower.whole_until == START_MS
    follower.has_read(joined.time_ms + 1)
    assert follower.claims == [(joined.time_ms + 1, rows[3].time_ms - 1_000)]
    # Said again after a reconnect, it is nothing new.
    follower.lost()
    assert follower.receive([joined, rows[4]], 2.0) == [rows[4]]
    assert follower.missing is None


def test_a_repeated_message_is_told_by_its_id_where_ids_are_derived() -> None:
    follower = TradeFollower(MARKET, IdSpace.DERIVED, False, START_MS, IdSpace.DERIVED)
    rows = [TradeRow(START_MS + 10 * n, f"id {n}", "buy", "1", "1") for n in range(1, 4)]
    assert follower.receive([rows[0], rows[1], rows[1]], 1.0) == []
    twin = rows[1]._replace(trade_id="another")
    assert follower.receive([rows[1], twin, rows[2]], 1.0) == [rows[1], twin]
    assert follower.receive([rows[1], twin, rows[2]], 1.0) == []
    # After a break nothing is known of what had not been handed on.
    follower.lost()
    later = rows[2]._replace(time_ms=START_MS + 90)
    assert follower.receive([rows[1], later], 2.0) == []
    assert follower.receive([rows[0]._replace(time_ms=START_MS + 99)], 2.0) == [later]


@pytest.mark.parametrize("trade_id", [None, "2"])
def test_a_late_trade_without_an_id_of_its_own_is_left_to_rest(trade_id: str | None) -> None:
    """One like it may be stored already, and would be taken for it."""
    follower = TradeFollower(MARKET, IdSpace.DERIVED, False, START_MS, IdSpace.DERIVED)
    rows = [TradeRow(START_MS + 10 * n, trade_id and f"9{n}", "buy", "1", "1") for n in range(5)]
    assert follower.receive(rows[:3], 1.0) == [rows[1]]
    follower.has_read(START_MS + 1)
    assert follower.joined
    twin = rows[1]._replace(trade_id=trade_id)
    assert follower.receive([twin, rows[3]], 2.0) == []
    assert follower.missing == (START_MS + 1, START_MS + 31)
    assert follower.receive([rows[4]], 3.0) == []
    assert follower.release(4.5) == [rows[4]]


def test_a_millisecond_with_a_trade_that_cannot_be_stored_is_not_claimed() -> None:
    follower = TradeFollower(MARKET, IdSpace.AGGREGATE, True, START_MS)
    rows = [TradeRow(START_MS + 10 * n, str(n), "buy", "1", "1") for n in range(1, 6)]
    follower.receive(rows, 1.0)
    follower.has_read(START_MS + 11)
    follower.has_rejected([START_MS + 30, START_MS + 50])
    follower.has_stored(follower.run, START_MS + 50)
    first, second = (START_MS + 11, START_MS + 30), (START_MS + 31, START_MS + 50)
    assert follower.claims == [first, second]
    follower.receive([TradeRow(START_MS + 60, "6", "buy", "1", "1")], 2.0)
    follower.has_stored(follower.run, START_MS + 60)
    assert follower.claims == [first, second, (START_MS + 51, START_MS + 60)]
