"""Binance's spot REST protocol, as its documentation has it (weights of 2024 on).

Numbers are strings with eight decimals, times are milliseconds. klines answer with the first
`limit` candles from startTime on, the open one included. aggTrades take fromId, or a window of an
hour at most, never both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

from exchange_server.binance_account import BinanceAccount
from exchange_server.binance_futures import BinanceFutures
from exchange_server.clock import VirtualClock
from exchange_server.truth import LENGTH_MS, Bar, Listing, Tick
from exchange_server.venue import Answer, Venue
from exchange_server.wire import Raw, dump

WEIGHT_PER_MINUTE: Final = 6_000
#: What a server without a limit announces.
UNLIMITED: Final = 10**9
HOUR_MS: Final = 3_600_000
MAX_ROWS: Final = 1_000

_WEIGHTS: Final = {
    "ping": 1, "time": 1, "exchangeInfo": 20, "klines": 2, "aggTrades": 4, "trades": 25,
    "historicalTrades": 25, "account": 20, "order": 1, "openOrders": 6, "allOrders": 20,
    "myTrades": 20,
}  # fmt: skip
_PARAMETERS: Final = {
    "klines": {"symbol", "interval", "startTime", "endTime", "limit", "timeZone"},
    "aggTrades": {"symbol", "fromId", "startTime", "endTime", "limit"},
    "trades": {"symbol", "limit"},
    "historicalTrades": {"symbol", "fromId", "limit"},
    "exchangeInfo": {"symbol", "symbols", "permissions", "showPermissionSets", "symbolStatus"},
}


def entry(
    symbol: str,
    base: str,
    quote: str,
    *,
    tick: str = "0.00000001",
    step: str = "1.00000000",
    min_notional: str = "5.00000000",
) -> dict[str, object]:
    """An exchangeInfo entry."""
    return {
        "symbol": symbol, "status": "TRADING", "baseAsset": base, "baseAssetPrecision": 8,
        "quoteAsset": quote, "quotePrecision": 8, "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"], "icebergAllowed": True,
        "isSpotTradingAllowed": True, "isMarginTradingAllowed": False,
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "1000.00000000",
             "tickSize": tick},
            {"filterType": "LOT_SIZE", "minQty": step, "maxQty": "46116860414.00000000",
             "stepSize": step},
            {"filterType": "NOTIONAL", "minNotional": min_notional, "applyMinToMarket": True,
             "maxNotional": "9000000.00000000", "applyMaxToMarket": False, "avgPriceMins": 5},
        ],
        "permissions": [], "permissionSets": [["SPOT"]],
    }  # fmt: skip


def eight(value: Decimal) -> str:
    """A number as Binance spells it."""
    return format(value.quantize(Decimal("1E-8")), "f")


class Aggregates:
    """Aggregate trades of a market: raw trades of one time, price and side, merged."""

    def __init__(self, ticks: Iterable[Tick], first_id: int = 900_000) -> None:
        self.rows: list[Tick] = []
        #: aggregate id -> (first, last) raw id
        self.spans: dict[int, tuple[int, int]] = {}
        for tick in ticks:
            raw_id = tick.id or 0
            last = self.rows[-1] if self.rows else None
            if last and (last.time_ms, last.price, last.side) == (
                tick.time_ms, tick.price, tick.side,
            ):  # fmt: skip
                self.rows[-1] = last._replace(amount=last.amount + tick.amount)
                self.spans[last.id or 0] = (self.spans[last.id or 0][0], raw_id)
                continue
            made = tick._replace(id=first_id + len(self.rows))
            self.rows.append(made)
            self.spans[made.id or 0] = (raw_id, raw_id)


class Binance(Venue):
    """A `Venue`. aggregates: per market; made from its trades where a test gives none."""

    name = "binance"

    def __init__(self, clock: VirtualClock, limit: int | None = WEIGHT_PER_MINUTE) -> None:
        super().__init__(clock, limit)
        self.aggregates: dict[str, Listing] = {}
        self._spans: dict[str, dict[int, tuple[int, int]]] = {}
        self.account = BinanceAccount(clock, self.listings)
        self.futures = BinanceFutures(clock, self.account)

    def add(self, listing: Listing, aggregates: Iterable[Tick] | None = None) -> Listing:
        super().add(listing)
        side = Listing(listing.id, listing.entry)
        if aggregates is not None:
            side.tape.ticks = list(aggregates)
            self._spans[listing.id] = {t.id or 0: (t.id or 0, t.id or 0) for t in side.tape.ticks}
        else:
            made = Aggregates(listing.tape.ticks)
            side.tape.ticks, self._spans[listing.id] = made.rows, made.spans
        self.aggregates[listing.id] = side
        return listing

    def weight(self, path: str, query: Mapping[str, str]) -> int:
        return _WEIGHTS.get(path.rsplit("/", 1)[-1], 1)

    def is_private(self, path: str) -> bool:
        if path.startswith("fapi/"):
            return not path.endswith(("exchangeInfo", "aggTrades"))
        return self.account.owns(path)

    def answer_signed(
        self, method: str, path: str, signed: str, headers: Mapping[str, str]
    ) -> Answer:
        if path.startswith("fapi/"):
            return self.futures.handle(path, signed, headers)
        return self.account.handle(method, path, signed, headers)

    def usage(self, used: int) -> Mapping[str, str]:
        return {"X-MBX-USED-WEIGHT": str(used), "X-MBX-USED-WEIGHT-1M": str(used)}

    def refuse(self, wait_s: int, *, banned: bool) -> Answer:
        text = (
            f"Too much request weight used; current limit is {self.meter.limit} request weight "
            "per 1 MINUTE. Please use WebSocket Streams for live updates to avoid polling the API."
        )
        return Answer({"code": -1003, "msg": text}, 418 if banned else 429,
                      {"Retry-After": str(wait_s)})  # fmt: skip

    def earlier(self, query: Mapping[str, str]) -> Mapping[str, str]:
        if "startTime" in query and "endTime" not in query:
            return {**query, "startTime": str(int(query["startTime"]) - 300_000)}
        if "fromId" in query:
            return {**query, "fromId": str(max(0, int(query["fromId"]) - 7))}
        return query

    def answer(self, path: str, query: Mapping[str, str]) -> Answer:
        if path.startswith("sapi/"):
            return Answer([])
        if path.startswith("fapi/"):
            return self.futures.answer(path)
        name = path.rsplit("/", 1)[-1]
        allowed = _PARAMETERS.get(name)
        if allowed is not None and set(query) - allowed:
            return _error(-1104, f"Not all sent parameters were read; read '{len(allowed)}'.")
        handler = {
            "ping": lambda _: {}, "time": self._time, "exchangeInfo": self._exchange_info,
        }.get(name)  # fmt: skip
        if handler is not None:
            return Answer(handler(query))
        listing = self.known(query.get("symbol"))
        if listing is None:
            return _error(-1121, "Invalid symbol.")
        if name == "klines":
            return self._klines(listing, query)
        if name == "aggTrades":
            return self._agg_trades(listing, query)
        if name in ("trades", "historicalTrades"):
            return self._trades(listing, query)
        return Answer({"code": -1, "msg": "no such path"}, 404)

    def _time(self, query: Mapping[str, str]) -> dict[str, Any]:
        return {"serverTime": self.clock.now_ms() + self.told_skew_ms}

    def _exchange_info(self, query: Mapping[str, str]) -> dict[str, Any]:
        now = self.clock.now_ms()
        symbols = []
        for listing in self.listings.values():
            if not listing.delisted(now):
                symbols.append(listing.entry)
            elif not listing.gone:
                symbols.append({**listing.entry, "status": "BREAK"})
        return {
            "timezone": "UTC", "serverTime": now + self.told_skew_ms,
            "rateLimits": [
                {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1,
                 "limit": self.meter.limit or UNLIMITED},
            ],
            "exchangeFilters": [], "symbols": symbols,
        }  # fmt: skip

    def _klines(self, listing: Listing, query: Mapping[str, str]) -> Answer:
        interval = query.get("interval", "")
        if interval not in LENGTH_MS:
            return _error(-1120, "Invalid interval.")
        since, until = _integer(query, "startTime"), _integer(query, "endTime")
        limit = min(int(query.get("limit", "500")), MAX_ROWS)
        bars = listing.candles(
            interval, self.clock.now_ms(), since, until, limit, newest=since is None
        )
        return Answer([spelled(listing, interval, bar) for bar in bars])

    def _agg_trades(self, listing: Listing, query: Mapping[str, str]) -> Answer:
        tape = self.aggregates[listing.id].tape
        now = listing.traded_until(self.clock.now_ms())
        limit = min(int(query.get("limit", "500")), MAX_ROWS)
        since, until = _integer(query, "startTime"), _integer(query, "endTime")
        first_id = _integer(query, "fromId")
        if first_id is not None:
            if since is not None or until is not None:
                return _error(-1128, "Combination of optional parameters invalid.")
            found = tape.from_id(now, first_id, limit)
        elif since is not None and until is not None and until - since > HOUR_MS:
            return _error(-1127, "More than 1 hours between startTime and endTime.")
        elif since is not None:
            found = tape.since(now, since, until, limit)
        else:
            found = list(tape.visible(now)[-limit:])
        spans = self._spans[listing.id]
        return Answer([agg_trade(tick, spans.get(tick.id or 0)) for tick in found])

    def _trades(self, listing: Listing, query: Mapping[str, str]) -> Answer:
        now = listing.traded_until(self.clock.now_ms())
        limit = min(int(query.get("limit", "500")), MAX_ROWS)
        first_id = _integer(query, "fromId")
        if first_id is not None:
            found = listing.tape.from_id(now, first_id, limit)
        else:
            found = list(listing.tape.visible(now)[-limit:])
        return Answer([raw_trade(tick) for tick in found])


def spelled(listing: Listing, interval: str, bar: Bar) -> str:
    """The bar as it is sent; spelled once."""
    known = listing.series.spelled.get((interval, bar.open_ms))
    if known is None or known[0] is not bar:
        known = (bar, Raw(dump(kline(bar, LENGTH_MS[interval]))))
        listing.series.spelled[interval, bar.open_ms] = known
    return known[1]


def kline(bar: Bar, length_ms: int) -> list[object]:
    """A row of klines."""
    return [
        bar.open_ms, eight(bar.open), eight(bar.high), eight(bar.low), eight(bar.close),
        eight(bar.volume), bar.open_ms + length_ms - 1, "0.00000000", 1, "0.00000000",
        "0.00000000", "0",
    ]  # fmt: skip


def agg_trade(tick: Tick, span: tuple[int, int] | None = None) -> dict[str, object]:
    """A row of aggTrades."""
    first, last = span or (tick.id or 0, tick.id or 0)
    return {
        "a": tick.id, "p": eight(tick.price), "q": eight(tick.amount), "f": first, "l": last,
        "T": tick.time_ms, "m": tick.side == "sell", "M": True,
    }  # fmt: skip


def raw_trade(tick: Tick) -> dict[str, object]:
    """A row of trades and historicalTrades; quoteQty is rounded, as Binance does."""
    return {
        "id": tick.id, "price": eight(tick.price), "qty": eight(tick.amount),
        "quoteQty": eight(tick.price * tick.amount), "time": tick.time_ms,
        "isBuyerMaker": tick.side == "sell", "isBestMatch": True,
    }  # fmt: skip


def _integer(query: Mapping[str, str], name: str) -> int | None:
    return int(query[name]) if name in query else None


def _error(code: int, text: str) -> Answer:
    return Answer({"code": code, "msg": text}, 400)
