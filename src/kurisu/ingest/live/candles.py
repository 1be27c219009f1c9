"""What one market's candles on a stream are worth: which are final, and when REST is asked.

A stream shows a candle again and again. It is final when the exchange says so, or when the next
one opens; a candle that neither happens to is not guessed at but asked for. And every candle is
asked for once more soon after its close, because venues change candles, send the last state of
one late or not at all, and say nothing of minutes without trades.

Times are milliseconds since 1970.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from kurisu.domain.timeframe import Timeframe
from kurisu.exchange.candles import REFETCHED_CANDLES
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.port import CandleRow, CandleUpdate
from kurisu.store.markets import Market

#: A candle is asked for so long after its close; markets are spread over the second figure, so
#: that a thousand of them do not ask at once.
CHECK_AFTER_MS: Final = 5_000
SPREAD_MS: Final = 20_000
#: Checks in a row in which REST had candles that the stream never showed, before the connection is
#: given up.
MOST_UNHEARD: Final = 3


@dataclass(eq=False, slots=True)
class CandleFollower:
    """Follows one market.

    whole_until: everything before it was asked for after its close, and is stored.
    heard_s: when the stream brought something last, by a steady clock.
    spread_ms: this market's share of SPREAD_MS. check_at: when REST is to be asked.
    """

    market: Market
    frame: Timeframe
    whole_until: int
    spread_ms: int = 0
    check_at: int = 0
    unheard: int = 0
    heard_s: float = 0.0
    _current: CandleRow | None = None
    _given: dict[int, CandleRow] = field(default_factory=dict)
    _is_heard: bool = False

    @property
    def symbol(self) -> str:
        return self.market.name.symbol

    @property
    def ask_from(self) -> int:
        """Where a check begins: some candles earlier, which may have changed since."""
        if self.frame.is_calendar:
            return to_ms(self.frame.open_time(from_ms(self.whole_until - 1)))
        return self.whole_until - REFETCHED_CANDLES * self.frame.seconds * 1000

    def connected(self, _now_s: float) -> None:
        """The connection stands: what it has missed is asked for."""
        self.check_at = 0

    def lost(self) -> None:
        """The connection is lost: what was seen of the open candle may not be all of it."""
        self._current = None
        self._given.clear()
        self.check_at = 0

    def receive(self, update: CandleUpdate) -> list[CandleRow]:
        """The candles that are final with this."""
        self._is_heard, self.heard_s = True, time.monotonic()
        row, current = update.row, self._current
        final = []
        if current is not None and row.time_ms < current.time_ms:
            # A late word on a candle that has closed.
            return [] if update.closed is False else self._give([row])
        if current is not None and row.time_ms > current.time_ms:
            final.append(current)
        self._current = row
        if update.closed:
            final.append(row)
        return self._give(final)

    def _give(self, rows: Sequence[CandleRow]) -> list[CandleRow]:
        """Those that were not given as they are."""
        new = [row for row in rows if self._given.get(row.time_ms) != row]
        for row in new:
            self._given[row.time_ms] = row
        while len(self._given) > REFETCHED_CANDLES:
            del self._given[min(self._given)]
        return new

    def has_checked(self, until: int, now: int, inserted: int) -> bool:
        """REST has been read and stored up to `until`. inserted: candles that the stream had not
        shown. False if the stream has been silent too often while the market traded."""
        self.whole_until = max(self.whole_until, until)
        closes = to_ms(self.frame.close_time(from_ms(self.whole_until)))
        # If nothing came of it, not sooner than a candle later.
        again = now + min(self.frame.seconds * 1000, 60_000) - self.spread_ms
        due = closes if closes > now else again
        self.check_at = due + CHECK_AFTER_MS + self.spread_ms
        self.unheard = self.unheard + 1 if inserted and not self._is_heard else 0
        self._is_heard = False
        return self.unheard < MOST_UNHEARD
