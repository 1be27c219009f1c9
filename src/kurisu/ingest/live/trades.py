"""What one market's trades on a stream are worth: which can be stored, and what is whole.

A stream begins somewhere in the middle, and a connection that breaks leaves a hole. So a stretch
is whole only from where REST has been read beyond the first trade of an unbroken run, up to the
newest trade that is stored. Where ids are consecutive, a jump breaks the run, too; and so does a
row that is several trades of REST.

Times are milliseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from kurisu.domain.trade import IdSpace
from kurisu.exchange.port import TradeRow
from kurisu.store.markets import Market

#: Where ids do not prove it, a trade may come this much after one that is younger.
UNORDERED_MS: Final = 1_000
#: A millisecond whose trades are told apart by their number in it is whole so long after the last
#: of them came.
HOLD_S: Final = 1.0
#: After more jumps than so many, with one id left out of so many, nearly consecutive ids are not.
MOST_JUMPS: Final = 10
SEEN: Final = 5
#: The mean of pauses is about so many.
MEAN_OF: Final = 32
#: Ids of a stream that are remembered, where they are not those of the market.
HEARD_IDS: Final = 10_000


@dataclass(eq=False, slots=True)
class TradeFollower:
    """Follows one market.

    gapless: ids are consecutive. dense: nearly, as far as is known; no more once they jump too
        often. usual_space: of the exchange's ids. space: of this market's; None until its first
        trades tell.
    whole_until: everything before it is stored, from where the market was begun on.
    first, first_id: time and id of the first trade of this run; None before it. joined: REST has
        been read beyond it. run: counts the runs. stored: newest time of this run that is stored.
    is_apart: this run began with a row that is several trades of REST.
    heard_s: when the stream brought something last. pause_s: the mean time between two of its
    messages; None until there were enough. connected_s: since when the connection stands.
    claims: stretches that are whole by the stream, and not stated yet.
    """

    market: Market
    usual_space: IdSpace
    gapless: bool
    whole_until: int
    space: IdSpace | None = None
    dense: bool = False
    first: int | None = None
    first_id: str | None = None
    joined: bool = False
    is_apart: bool = False
    run: int = 0
    stored: int | None = None
    newest: int | None = None
    heard_s: float = 0.0
    pause_s: float | None = None
    connected_s: float | None = None
    claims: list[tuple[int, int]] = field(default_factory=list)
    _last_id: int | None = None
    _seen: int = 0
    _jumps: int = 0
    _absent: int = 0
    _pauses: int = 0
    _mean_s: float = 0.0
    _held: list[TradeRow] = field(default_factory=list)
    _released: int = 0
    _heard_ids: dict[str, None] = field(default_factory=dict)
    _rejected: set[int] = field(default_factory=set)

    @property
    def symbol(self) -> str:
        return self.market.name.symbol

    @property
    def missing(self) -> tuple[int, int] | None:
        """[since, until) that REST has to be asked for; None if nothing is missing."""
        if self.joined or self.first is None:
            return None
        return self.whole_until, self.first + 1

    def connected(self, now_s: float) -> None:
        """The connection stands; now_s: a steady clock."""
        self.connected_s = now_s

    def lost(self) -> None:
        """The connection is lost: the run is over."""
        self.connected_s = None
        self._break()

    def _break(self) -> None:
        self.run += 1
        self.first = self.first_id = self.stored = self.newest = self._last_id = None
        self.joined = self.is_apart = False
        self._held = []
        self._released = 0
        self._heard_ids.clear()

    def receive(self, rows: Sequence[TradeRow], now_s: float) -> list[TradeRow]:
        """What of `rows`, in the order of their arrival, can be stored now.

        now_s: a steady clock.
        """
        self._note(now_s)
        if self.space is None:
            has_ids = all(row.trade_id is not None for row in rows)
            self.space = self.usual_space if has_ids else IdSpace.DERIVED
        if self.dense and not all((row.trade_id or "").isdecimal() for row in rows):
            self.dense = False
        if self.gapless or self.dense:
            return self._consecutive(rows)
        ready = [row for row in rows if row.parts == 1]
        if len(ready) < len(rows):
            # The parts are asked from REST: a run begins with the last of them.
            self._break()
            apart = [row for row in rows if row.parts > 1]
            self._begin(max(row.time_ms for row in apart), apart[-1].trade_id)
            self.is_apart = True
        elif self.first is None:
            self._begin(min(row.time_ms for row in rows), rows[0].trade_id)
        self.newest = max(self.newest or 0, *(row.time_ms for row in rows))
        if self.space is not IdSpace.DERIVED:
            return ready
        fresh = self._unheard(ready)
        if any((self.first or 0) < row.time_ms < self._released for row in fresh):
            # Of a millisecond that was handed on: how many are alike there, and whether it is
            # merely said again, only REST knows.
            newest = self.newest
            self._break()
            self._begin(newest, None)
            self.newest = newest
            return []
        return self._hold([*self._held, *fresh], self.newest)

    def _note(self, now_s: float) -> None:
        """Something came."""
        since_s = max(self.heard_s, self.connected_s or 0.0)
        self.heard_s = now_s
        if since_s:
            self._mean_s += (now_s - since_s - self._mean_s) / MEAN_OF
            self._pauses += 1
            if self._pauses >= 2 * MEAN_OF:
                self.pause_s = self._mean_s

    def _unheard(self, rows: Sequence[TradeRow]) -> list[TradeRow]:
        """Those that the stream does not repeat. Its ids are not stored, and tell for a while."""
        found = []
        for row in rows:
            if row.trade_id is None or row.trade_id not in self._heard_ids:
                found.append(row)
            if row.trade_id is not None:
                self._heard_ids[row.trade_id] = None
        while len(self._heard_ids) > HEARD_IDS:
            del self._heard_ids[next(iter(self._heard_ids))]
        return found

    def release(self, now_s: float) -> list[TradeRow]:
        """Rows that were held back, once their millisecond is surely whole."""
        if not self._held or now_s - self.heard_s < HOLD_S:
            return []
        return self._hold(self._held, (self.newest or 0) + 1)

    def _hold(self, rows: Sequence[TradeRow], until: int) -> list[TradeRow]:
        """Hold back the newest millisecond. The first of the run is left to REST: it may have begun
        before the stream did."""
        self._held = [row for row in rows if row.time_ms >= until]
        self._released = until
        return [row for row in rows if (self.first or 0) < row.time_ms < until]

    def _consecutive(self, rows: Sequence[TradeRow]) -> list[TradeRow]:
        found = []
        for row in rows:
            at = int(row.trade_id or 0)
            if self._last_id is not None and at <= self._last_id:
                if not self.gapless:
                    # Late, or repeated: the store knows.
                    found.append(row)
                    self._absent = max(0, self._absent - 1)
                continue
            if self._last_id is not None and at != self._last_id + 1:
                self._jumped(at - self._last_id - 1)
            if self.first is None:
                self._begin(row.time_ms, row.trade_id)
            self._last_id = at
            self.newest = max(self.newest or 0, row.time_ms)
            found.append(row)
        self._seen += len(rows)
        return found

    def _jumped(self, absent: int) -> None:
        """Rows were lost on the way, or come late, or ids are not what they seemed."""
        self._jumps += 1
        self._absent += absent
        if not self.gapless and self._jumps > MOST_JUMPS and self._absent * SEEN > self._seen:
            self.dense = False
        else:
            self._break()

    def _begin(self, at: int, trade_id: str | None) -> None:
        """A run begins; perhaps, with older trades first, before what is whole."""
        self.first, self.first_id = at, trade_id
        self.joined = at < self.whole_until

    def has_stored(self, run: int, until: int) -> None:
        """Rows of a run up to the time `until` are committed."""
        if run == self.run:
            self.stored = max(self.stored or 0, until)
            self._extend()

    def has_read(self, until: int) -> None:
        """REST has been read and stored up to `until`, from `whole_until` on."""
        self.whole_until = max(self.whole_until, until)
        if self.first is not None and self.whole_until > self.first:
            self.joined = True
            self._extend()

    def _extend(self) -> None:
        if self.joined and self.stored is not None:
            since, until = self.whole_until, self.stored - (0 if self.gapless else UNORDERED_MS)
            if until > since:
                self.whole_until = until
                for at in sorted(at for at in self._rejected if since <= at < until):
                    self._claim(since, at)
                    self._rejected.remove(at)
                    since = at + 1
                self._claim(since, until)

    def _claim(self, since: int, until: int) -> None:
        if self.claims and self.claims[-1][1] == since:
            since = self.claims.pop()[0]
        if until > since:
            self.claims.append((since, until))

    def has_rejected(self, times: Collection[int]) -> None:
        """Trades of these milliseconds could not be stored; told before `has_stored`."""
        self._rejected.update(at for at in times if at >= self.whole_until)

    def has_stated(self, stated: Sequence[tuple[int, int]]) -> None:
        """These claims are in the database; they may have grown meanwhile."""
        done = dict(stated)
        kept = [(done.get(since, since), until) for since, until in self.claims]
        self.claims = [(since, until) for since, until in kept if since < until]
