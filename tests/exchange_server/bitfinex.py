"""Bitfinex's public REST protocol: arrays, and JSON numbers with all their digits.

Rows are [time, open, CLOSE, high, low, volume] and [id, time, +-amount, price]. There is no
server time. Limits are 10,000 rows; the order is newest first unless sort=1.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from exchange_server.truth import LENGTH_MS, Bar, Listing, Tick
from exchange_server.venue import Answer, Venue
from exchange_server.wire import Raw

MAX_ROWS: Final = 10_000
_CURRENCY_CONFIG_LISTS: Final = 11


def entry(pair: str, minimum: str = "0.00006", maximum: str = "2000.0") -> dict[str, object]:
    """Of pub:info:pair. pair: without the leading t, e.g. BTCUSD."""
    return {"pair": pair, "row": [None, None, None, minimum, maximum] + [None] * 7}


def number(value: Decimal) -> Raw:
    """A bare JSON number, digit for digit; small ones in scientific notation, as in its files."""
    return Raw(str(value).replace("E", "e"))


class Bitfinex(Venue):
    """A `Venue`."""

    name = "bitfinex"

    def weight(self, path: str, query: Mapping[str, str]) -> int:
        return 1

    def refuse(self, wait_s: int, *, banned: bool) -> Answer:
        # No Retry-After: Bitfinex does not say how long.
        return Answer({"error": "ERR_RATE_LIMIT"}, 429)

    def earlier(self, query: Mapping[str, str]) -> Mapping[str, str]:
        if "start" in query:
            return {**query, "start": str(int(query["start"]) - 300_000)}
        return query

    def answer(self, path: str, query: Mapping[str, str]) -> Answer:
        parts = path.split("/")[1:]  # v2/...
        if parts == ["platform", "status"]:
            return Answer([1])
        if parts[0] == "conf":
            return Answer(self._config(parts[1]))
        if parts[-1] != "hist":
            return _error(10020, "path: invalid")
        limit = int(query.get("limit", "125"))
        if limit > MAX_ROWS:
            return _error(10020, "limit: invalid")
        start = int(query["start"]) if "start" in query else None
        end = int(query["end"]) if "end" in query else None
        oldest_first = query.get("sort") == "1"
        if parts[0] == "trades":
            return self._trades(parts[1], start, end, limit, oldest_first=oldest_first)
        _, timeframe, name = parts[1].split(":", 2)
        listing = self.known(name)
        if listing is None:
            return _error(10020, "symbol: invalid")
        if timeframe == "1D":
            timeframe = "1d"
        if timeframe not in LENGTH_MS:
            return _error(10020, "timeframe: invalid")
        bars = listing.candles(
            timeframe, self.clock.now_ms(), start, end, limit, newest=not oldest_first
        )
        rows = [candle(bar) for bar in bars]
        return Answer(rows if oldest_first else rows[::-1])

    def _config(self, config: str) -> list[Any]:
        if "pub:list:currency" in config:
            return [[] for _ in range(_CURRENCY_CONFIG_LISTS)]
        now = self.clock.now_ms()
        spot = [
            [listing.entry["pair"], listing.entry["row"]]
            for listing in self.listings.values()
            if not listing.delisted(now)
        ]
        return [spot, [], [], []]

    def _trades(
        self, name: str, start: int | None, end: int | None, limit: int, *, oldest_first: bool
    ) -> Answer:
        listing: Listing | None = self.known(name)
        if listing is None:
            return _error(10020, "symbol: invalid")
        now = listing.traded_until(self.clock.now_ms())
        if oldest_first:
            found = listing.tape.since(now, start or 0, end, limit)
            return Answer([trade(tick) for tick in found])
        visible = [
            tick for tick in listing.tape.visible(now if end is None else min(now, end))
            if start is None or tick.time_ms >= start
        ]  # fmt: skip
        return Answer([trade(tick) for tick in visible[-limit:][::-1]])


def candle(bar: Bar) -> list[object]:
    """A row of candles: the close comes before the high."""
    return [
        bar.open_ms, number(bar.open), number(bar.close), number(bar.high), number(bar.low),
        number(bar.volume),
    ]  # fmt: skip


def trade(tick: Tick) -> list[object]:
    """A row of trades: sells have negative amounts."""
    amount = tick.amount if tick.side == "buy" else -tick.amount
    return [tick.id, tick.time_ms, number(amount), number(tick.price)]


def _error(code: int, text: str) -> Answer:
    return Answer(["error", code, text], 500)
