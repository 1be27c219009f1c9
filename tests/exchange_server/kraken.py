"""Kraken's public REST protocol: the newest 720 candles, and a nanosecond cursor for trades.

OHLC ignores how far `since` lies back. Trades come after `since` (seconds, or the 19-digit
nanoseconds of `last`), 1,000 at most; older recordings have no trade id.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Final

from exchange_server.clock import VirtualClock
from exchange_server.kraken_account import KrakenAccount
from exchange_server.truth import LENGTH_MS, Bar, Listing, Tick
from exchange_server.venue import Answer, Venue
from exchange_server.wire import Raw

MAX_CANDLES: Final = 720
MAX_TRADES: Final = 1_000
_INTERVALS: Final = {str(length // 60_000): name for name, length in LENGTH_MS.items()}
#: `since` of more digits than seconds will have for the next centuries is nanoseconds.
_SECOND_DIGITS: Final = 11


def entry(altname: str, base: str, quote: str, *, price_digits: int = 5) -> dict[str, object]:
    """Of AssetPairs."""
    return {
        "altname": altname, "wsname": f"{base}/{quote}", "aclass_base": "currency", "base": base,
        "aclass_quote": "currency", "quote": quote, "lot": "unit", "cost_decimals": 8,
        "pair_decimals": price_digits, "lot_decimals": 8, "lot_multiplier": 1,
        "leverage_buy": [], "leverage_sell": [], "fees": [[0, 0.4]], "fees_maker": [[0, 0.25]],
        "fee_volume_currency": "ZUSD", "margin_call": 80, "margin_stop": 40, "ordermin": "5",
        "costmin": "0.5", "tick_size": "0.00001", "status": "online",
    }  # fmt: skip


class Kraken(Venue):
    """A `Venue`."""

    name = "kraken"

    def __init__(self, clock: VirtualClock, limit: int | None) -> None:
        super().__init__(clock, limit)
        self.account = KrakenAccount(clock, self.listings)

    def is_private(self, path: str) -> bool:
        return path.startswith("0/private/")

    def answer_signed(
        self, method: str, path: str, signed: str, headers: Mapping[str, str]
    ) -> Answer:
        return self.account.handle(path, signed, headers)

    def weight(self, path: str, query: Mapping[str, str]) -> int:
        return 1

    def refuse(self, wait_s: int, *, banned: bool) -> Answer:
        # 200, and the refusal is inside.
        return Answer({"error": ["EAPI:Rate limit exceeded"]})

    def rows(self, payload: Any) -> list[Any] | None:
        result = payload.get("result") if isinstance(payload, dict) else None
        if isinstance(result, dict):
            for value in result.values():
                if isinstance(value, list):
                    return value
        return None

    def answer(self, path: str, query: Mapping[str, str]) -> Answer:
        name = path.rsplit("/", 1)[-1]
        now = self.clock.now_ms()
        if name == "Time":
            return _result({"unixtime": (now + self.told_skew_ms) // 1000, "rfc1123": ""})
        if name == "SystemStatus":
            return _result({"status": "online", "timestamp": ""})
        if name == "Assets":
            return _result(self._assets())
        if name == "AssetPairs":
            return _result(
                {
                    listing.id: {
                        **listing.entry,
                        "status": "delisted" if listing.delisted(now) else "online",
                    }
                    for listing in self.listings.values()
                    if not (listing.gone and listing.delisted(now))
                }
            )
        listing = self.known(query.get("pair"))
        if listing is None:
            return Answer({"error": ["EQuery:Unknown asset pair"]})
        if name == "OHLC":
            return self._candles(listing, query)
        if name == "Trades":
            return self._trades(listing, query)
        return Answer({"error": ["EGeneral:Unknown method"]})

    def _assets(self) -> dict[str, Any]:
        names = {
            str(asset)
            for listing in self.listings.values()
            for asset in (listing.entry["base"], listing.entry["quote"])
        }
        return {
            name: {"aclass": "currency", "altname": name, "decimals": 8, "display_decimals": 5,
                   "status": "enabled"}
            for name in sorted(names)
        }  # fmt: skip

    def _candles(self, listing: Listing, query: Mapping[str, str]) -> Answer:
        timeframe = _INTERVALS.get(query.get("interval", "1"))
        if timeframe is None:
            return Answer({"error": ["EGeneral:Invalid arguments"]})
        after_ms = int(query.get("since", "0")) * 1000
        newest = listing.candles(
            timeframe, self.clock.now_ms(), None, None, MAX_CANDLES, newest=True
        )
        rows = [candle(bar) for bar in newest if bar.open_ms > after_ms]
        last = newest[-1].open_ms // 1000 if newest else 0
        return _result({listing.id: rows, "last": last})

    def _trades(self, listing: Listing, query: Mapping[str, str]) -> Answer:
        visible = listing.tape.visible(listing.traded_until(self.clock.now_ms()))
        count = min(int(query.get("count", str(MAX_TRADES))), MAX_TRADES)
        if "since" not in query:
            found = visible[-count:]
            since_ns = 0
        else:
            text = query["since"]
            since_ns = int(text) * (1 if len(text) > _SECOND_DIGITS else 10**9)
            first = bisect_right(visible, since_ns, key=lambda tick: tick.time_ns)
            found = visible[first : first + count]
        last = str(found[-1].time_ns if found else since_ns)
        return _result({listing.id: [trade(tick) for tick in found], "last": last})


def candle(bar: Bar) -> list[object]:
    """A row of OHLC: vwap before the volume."""
    return [
        bar.open_ms // 1000, f"{bar.open:f}", f"{bar.high:f}", f"{bar.low:f}", f"{bar.close:f}",
        f"{bar.close:f}", f"{bar.volume:f}", 1,
    ]  # fmt: skip


def trade(tick: Tick) -> list[object]:
    """A row of Trades: its time is a JSON number of seconds with seven decimals."""
    seconds, rest = divmod(tick.time_ns, 10**9)
    row: list[object] = [
        f"{tick.price:f}", f"{tick.amount:f}", Raw(f"{seconds}.{rest // 100:07d}"),
        "b" if tick.side == "buy" else "s", "m", "",
    ]  # fmt: skip
    return row if tick.id is None else [*row, tick.id]


def _result(value: object) -> Answer:
    return Answer({"error": [], "result": value})
