"""An `Exchange` in memory, with the habits of venues as switches: for properties of paging.

Hundreds of walks take a second; the same walks against the server take a minute.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from exchange_server.truth import LENGTH_MS, Bar, Series, Tape, Tick
from kurisu.errors import ExchangeRefused
from kurisu.exchange.clock import from_ms
from kurisu.exchange.markets import MarketListing
from kurisu.exchange.port import CandleRow, TradeAnswer, TradeQuery, TradeRow
from kurisu.exchange.venues import TradePaging, Venue

R = TypeVar("R", CandleRow, TradeRow)


@dataclass
class FakeExchange:
    """One market, "X/Y".

    windowed: a request for candles covers `limit` timeframes, not `limit` candles.
    last_of_window: `limit` timeframes and one: the last row of a window is another's first.
    cap: rows that it really gives; of candles the newest of a window.
    newest_of_all: without an end, a request for candles gets the newest of all.
    hidden_before_ms: shorter candles than 1h that open earlier are not given.
    newest_of_window: of such a window it gives the newest half; of a window of trades that does
        not fit into a page, the newest.
    repeats: share of rows that come twice. lost: share of answers that come empty at first.
    hour_windows: a request for trades by time covers an hour. ignored: what a request for trades
        says in vain, of since and until. trades_hidden_before_ms: older trades are not given.
    refuses_back: requests for trades before others are refused.
    seconds: times in requests for trades are cut to seconds, and the end is no part.
    end_excluded: the end of a window of trades is no part of it.
    longest_ms: of a longer window of trades it gives the beginning, and says nothing.
    refused_ms, refused_before_ms: a longer window, an older one it refuses.
    """

    venue: Venue
    now_ms: int
    series: Series = field(default_factory=Series)
    tape: Tape = field(default_factory=Tape)
    name: str = "fake"
    timeframes: frozenset[str] = frozenset(LENGTH_MS)
    windowed: bool = False
    last_of_window: bool = False
    cap: int | None = None
    newest_of_all: bool = False
    hidden_before_ms: int = 0
    newest_of_window: bool = False
    repeats: float = 0.0
    lost: float = 0.0
    hour_windows: bool = False
    ignored: frozenset[str] = frozenset()
    trades_hidden_before_ms: int = 0
    refuses_back: bool = False
    seconds: bool = False
    end_excluded: bool = False
    longest_ms: int | None = None
    refused_ms: int | None = None
    refused_before_ms: int = 0
    seed: int = 0
    requests: int = 0
    _lost_before: set[object] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    async def load_markets(self, *, reload: bool = False) -> list[MarketListing]:
        return []

    async def now(self) -> datetime:
        return from_ms(self.now_ms)

    async def close(self) -> None:
        pass

    async def fetch_candles(
        self,
        symbol: str,
        timeframe: str,
        since_ms: int,
        limit: int,
        until_ms: int | None = None,
    ) -> list[CandleRow]:
        self.requests += 1
        most = self.venue.candle_limit or limit
        limit = min(limit, most)
        length = LENGTH_MS[timeframe]
        if self._is_lost(("candles", timeframe, since_ms)):
            return []
        if self.venue.candles_latest_only:
            newest = self.series.select(timeframe, self.now_ms, None, None, most, newest=True)
            bars = [bar for bar in newest if bar.open_ms >= since_ms]
        else:
            until = until_ms
            if self.windowed and until is None:
                until = since_ms + limit * length - 1 + self.last_of_window
            if length < LENGTH_MS["1h"]:
                since_ms = max(since_ms, self.hidden_before_ms)
            from_end = self.last_of_window or self.cap is not None or self.newest_of_all
            bars = self.series.select(
                timeframe, self.now_ms, since_ms, until, min(limit, self.cap or limit),
                newest=from_end,
            )  # fmt: skip
            if self.newest_of_window and len(bars) > 2 and limit == most:
                bars = bars[len(bars) // 2 :]
        return self._repeated([CandleRow(bar.open_ms, *map(str, bar[1:])) for bar in bars])

    async def fetch_trades(self, symbol: str, query: TradeQuery) -> TradeAnswer:
        self.requests += 1
        limit = min(query.limit or self.venue.trade_limit, self.cap or self.venue.trade_limit)
        if self._is_lost(("trades", query)):
            return TradeAnswer([])
        if query.from_id is not None:
            found: Sequence[Tick] = self.tape.from_id(self.now_ms, query.from_id, limit)
        elif query.cursor is not None:
            after = int(query.cursor)
            found = [t for t in self.tape.visible(self.now_ms) if t.time_ns > after][:limit]
        elif query.before_id is not None or query.before_ms is not None:
            if self.refuses_back:
                raise ExchangeRefused(self.name, "there is no such endpoint")
            old = [
                tick for tick in self.tape.visible(self.now_ms)
                if tick.time_ms >= self.trades_hidden_before_ms
                and (query.before_id is None or (tick.id or 0) < query.before_id)
                and (query.before_ms is None or tick.time_ms < query.before_ms)
            ]  # fmt: skip
            found = old[-min(limit, self.venue.trade_back_limit) :]
        elif query.since_ms is not None and "since" not in self.ignored:
            since = max(query.since_ms, self.trades_hidden_before_ms)
            until = None if "until" in self.ignored else query.until_ms
            if self.seconds:
                since -= since % 1_000
                until = None if until is None else until - until % 1_000 - 1
            if until is not None:
                until = self._window_end(query.since_ms, until)
            if self.hour_windows and until is None:
                until = since + 3_600_000
            found = self.tape.since(self.now_ms, since, until, limit)
            if self.newest_of_window and until is not None:
                found = self.tape.since(self.now_ms, since, until, 10**9)[-limit:]
        else:
            found = self.tape.visible(self.now_ms)[-limit:]
        rows = [trade_row(tick) for tick in found]
        if self.venue.trade_paging is not TradePaging.CURSOR:
            # Repetitions of trades without ids cannot be told from trades.
            rows = self._repeated(rows)
        return TradeAnswer(rows, str(found[-1].time_ns) if found else None)

    def _window_end(self, since: int, until: int) -> int:
        if since < self.refused_before_ms:
            raise ExchangeRefused(self.name, "it is too long ago")
        if self.refused_ms is not None and until - since > self.refused_ms:
            raise ExchangeRefused(self.name, "it is too long")
        if self.longest_ms is not None:
            until = min(until, since + self.longest_ms)
        return until - self.end_excluded

    def _is_lost(self, question: object) -> bool:
        """An answer is lost once at most: the second time the same question is answered."""
        if question in self._lost_before or self._chance.random() >= self.lost:
            return False
        self._lost_before.add(question)
        return True

    def _repeated(self, rows: list[R]) -> list[R]:
        if not self.repeats:
            return rows
        return [row for row in rows for _ in range(1 + (self._chance.random() < self.repeats))]


def trade_row(tick: Tick) -> TradeRow:
    """The tick as an exchange sends it."""
    found = None if tick.id is None else str(tick.id)
    return TradeRow(tick.time_ms, found, tick.side, str(tick.price), str(tick.amount))


def candle_rows(bars: Sequence[Bar]) -> list[tuple[object, ...]]:
    """The truth as a candle table shows it."""
    return [(from_ms(bar.open_ms), *bar[1:]) for bar in bars]


def trade_rows(ticks: Sequence[Tick]) -> list[tuple[object, ...]]:
    """The truth as a trade table shows it, without ids and cost."""
    return [(from_ms(t.time_ms), t.side, t.price, t.amount) for t in ticks]
