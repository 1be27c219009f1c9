"""Other venues: CCXT's own classes, each against its venue's rules of paging."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import ccxt
import pytest
from exchange_server import data
from exchange_server.clock import MINUTE_MS
from exchange_server.fake import candle_rows
from exchange_server.truth import LENGTH_MS, Bar, Series, Tick
from exchange_server.wire import Raw, dump
from exchange_server.world import START_MS

from kurisu.domain.timeframe import TIMEFRAMES
from kurisu.errors import BadAnswer
from kurisu.exchange.calls import RetryPolicy
from kurisu.exchange.candles import PageStatus, candle_pages
from kurisu.exchange.ccxt_adapter import open_exchange
from kurisu.exchange.clock import from_ms
from kurisu.exchange.exact import decode
from kurisu.exchange.port import TradeQuery
from kurisu.exchange.settings import ExchangeSettings
from kurisu.exchange.trades import trade_pages
from kurisu.exchange.venues import VENUES as VENUES_KNOWN

COUNT: Final = 4_000
NOW_MS: Final = START_MS + COUNT * MINUTE_MS + 30_000
#: With minutes, and at times hours, in which nobody traded.
SERIES: Final = Series(data.generated_bars(11, START_MS, COUNT, hole=0.004))
SINCE_MS: Final = START_MS - 7 * MINUTE_MS

Query = dict[str, Any]


def rows(timeframe: str, since: int, until: int, limit: int, *, newest: bool) -> list[Bar]:
    """Candles that open in [since, until]: the first `limit` of them, or the newest."""
    return SERIES.select(timeframe, NOW_MS, since, until, limit, newest=newest)


def number(value: Any) -> Raw:
    """A bare JSON number, digit for digit."""
    return Raw(str(value))


def okx(path: str, query: Query) -> Any:
    """before and after are exclusive; the newest come first; /candles has the last 1,440."""
    timeframe = {"1m": "1m", "5m": "5m", "1H": "1h", "1Dutc": "1d"}[query["bar"]]
    since, until = int(query["before"]) + 1, int(query["after"]) - 1
    if not path.endswith("history-candles"):
        since = max(since, NOW_MS - 1_440 * LENGTH_MS[timeframe])
    found = rows(timeframe, since, until, min(300, int(query["limit"])), newest=True)
    return {"code": "0", "data": [
        [str(b.open_ms), *map(str, b[1:]), "1", "1", "1"] for b in reversed(found)
    ]}  # fmt: skip


def bybit(path: str, query: Query) -> Any:
    """From start on; the newest come first."""
    timeframe = {"1": "1m", "5": "5m", "60": "1h", "D": "1d"}[query["interval"]]
    until = int(query.get("end", NOW_MS))
    found = rows(timeframe, int(query["start"]), until, int(query["limit"]), newest=False)
    return {"retCode": 0, "result": {"category": "spot", "symbol": "XY", "list": [
        [str(b.open_ms), *map(str, b[1:]), "1"] for b in reversed(found)
    ]}}  # fmt: skip


def kucoin(path: str, query: Query) -> Any:
    """Seconds, the newest first; with the candle at the end."""
    timeframe = {"1min": "1m", "5min": "5m", "1hour": "1h", "1day": "1d"}[query["type"]]
    since, until = int(query["startAt"]) * 1000, int(query["endAt"]) * 1000
    found = rows(timeframe, since, until, 1_500, newest=True)
    return {"code": "200000", "data": [
        [str(b.open_ms // 1000), *map(str, (b.open, b.close, b.high, b.low, b.volume)), "1"]
        for b in reversed(found)
    ]}  # fmt: skip


def coinbase(path: str, query: Query) -> Any:
    """Seconds, both ends included, the newest first; a window for more than 350 is refused."""
    names = {"ONE_MINUTE": "1m", "FIVE_MINUTE": "5m", "ONE_HOUR": "1h", "ONE_DAY": "1d"}
    timeframe = names[query["granularity"]]
    since, until = int(query["start"]) * 1000, int(query["end"]) * 1000
    assert (until - since) // LENGTH_MS[timeframe] <= 350
    found = rows(timeframe, since, until, 350, newest=True)
    return {"candles": [
        {"start": str(b.open_ms // 1000), **{name: str(getattr(b, name)) for name in b._fields[1:]}}
        for b in reversed(found)
    ]}  # fmt: skip


def gate(path: str, query: Query) -> Any:
    """Seconds, both ends included; not more than 1,000, and nothing 10,000 candles ago."""
    timeframe = query["interval"]
    since, until = int(query["from"]) * 1000, int(query["to"]) * 1000
    assert (until - since) // LENGTH_MS[timeframe] < 1_000
    if since < NOW_MS - 3_000 * LENGTH_MS[timeframe]:
        raise ccxt.BadRequest("Candlestick too long ago. Maximum 3000 points ago are allowed.")
    return [
        [str(b.open_ms // 1000), "1", *map(str, (b.close, b.high, b.low, b.open, b.volume)), "true"]
        for b in rows(timeframe, since, until, 1_000, newest=False)
    ]


def bitget(path: str, query: Query) -> Any:
    """Up to endTime, which is no part of it; startTime counts for recent candles only."""
    timeframe = {"1min": "1m", "5min": "5m", "1h": "1h", "1Dutc": "1d"}[query["granularity"]]
    since = 0 if path.endswith("history-candles") else int(query["startTime"])
    found = rows(timeframe, since, int(query["endTime"]) - 1, int(query["limit"]), newest=True)
    return {"code": "00000", "data": [[str(b.open_ms), *map(str, b[1:]), "1", "1"] for b in found]}


def mexc(path: str, query: Query) -> Any:
    """Never more than 500; 1m and 5m of some time only."""
    timeframe = {"1m": "1m", "5m": "5m", "60m": "1h", "1d": "1d"}[query["interval"]]
    since, until = int(query["startTime"]), int(query["endTime"]) - 1
    if timeframe in ("1m", "5m"):
        since = max(since, START_MS + 1_000 * MINUTE_MS)
    found = rows(timeframe, since, until, min(500, int(query["limit"])), newest=False)
    return [[b.open_ms, *map(str, b[1:]), b.open_ms + 1, "1"] for b in found]


def htx(path: str, query: Query) -> Any:
    """Seconds; the newest of all, unless it is said where to end; JSON numbers."""
    timeframe = {"1min": "1m", "5min": "5m", "60min": "1h", "1day": "1d"}[query["period"]]
    since, until = int(query["from"]) * 1000, int(query.get("to", NOW_MS // 1000)) * 1000
    found = rows(timeframe, since, until, min(1_000, int(query["size"])), newest=True)
    return {"status": "ok", "data": [
        {"id": b.open_ms // 1000, "amount": number(b.volume), "vol": number(1), "count": 1,
         **{name: number(getattr(b, name)) for name in ("open", "high", "low", "close")}}
        for b in reversed(found)
    ]}  # fmt: skip


def deribit(path: str, query: Query) -> Any:
    """Both ends included; columns of JSON numbers."""
    timeframe = {"1": "1m", "5": "5m", "60": "1h", "1D": "1d"}[query["resolution"]]
    since, until = int(query["start_timestamp"]), int(query["end_timestamp"])
    found = rows(timeframe, since, until, 5_000, newest=False)
    columns = {
        name: [number(getattr(b, name)) for b in found]
        for name in ("open", "high", "low", "close", "volume")
    }
    return {"result": {**columns, "ticks": [b.open_ms for b in found], "status": "ok"}}


def hyperliquid(path: str, query: Query) -> Any:
    """The newest so many of a timeframe, and no others."""
    asked = query["req"]
    newest = SERIES.select(asked["interval"], NOW_MS, None, None, KEPT, newest=True)
    return [
        {"t": b.open_ms, "T": b.open_ms + 1, "s": "X", "i": asked["interval"], "o": str(b.open),
         "c": str(b.close), "h": str(b.high), "l": str(b.low), "v": str(b.volume), "n": 1}
        for b in newest if asked["startTime"] <= b.open_ms <= asked["endTime"]
    ]  # fmt: skip


def hitbtc(path: str, query: Query) -> Any:
    """The newest come first, and of a window they are given, if it is not said otherwise."""
    timeframe = {"M1": "1m", "M5": "5m", "H1": "1h", "D1": "1d"}[query["period"]]
    since = int(datetime.fromisoformat(query["from"]).timestamp()) * 1000
    newest = query.get("sort") != "ASC"
    found = rows(timeframe, since, NOW_MS, int(query["limit"]), newest=newest)
    return [
        {"timestamp": from_ms(b.open_ms).isoformat().replace("+00:00", "Z"), "open": str(b.open),
         "max": str(b.high), "min": str(b.low), "close": str(b.close), "volume": str(b.volume)}
        for b in (reversed(found) if newest else found)
    ]  # fmt: skip


def whitebit(path: str, query: Query) -> Any:
    """Seconds; the newest of a window."""
    since, until = int(query["start"]) * 1000, int(query.get("end", NOW_MS // 1000)) * 1000
    found = rows(query["interval"], since, until, int(query["limit"]), newest=True)
    return {"success": True, "message": None, "result": [
        [b.open_ms // 1000, *map(str, (b.open, b.close, b.high, b.low, b.volume)), "1"]
        for b in found
    ]}  # fmt: skip


def phemex(path: str, query: Query) -> Any:
    """The newest, so many of them as the documents list; numbers are scaled."""
    timeframe = {"60": "1m", "300": "5m", "3600": "1h", "86400": "1d"}[query["resolution"]]
    if int(query["limit"]) not in (5, 10, 50, 100, 500, 1_000):
        raise ccxt.BadRequest("Please double check input arguments")
    found = rows(timeframe, 0, NOW_MS, int(query["limit"]), newest=True)
    return {"code": 0, "msg": "OK", "data": {"total": -1, "rows": [
        [b.open_ms // 1000, 60, 1, *(int(value.scaleb(8)) for value in b[1:]), 1, "sXY"]
        for b in found
    ]}}  # fmt: skip


def binancecoinm(path: str, query: Query) -> Any:
    """The newest of a window of 200 days; contracts, which are stored, before base units."""
    since, until = int(query["startTime"]), int(query["endTime"])
    assert until - since <= 200 * 86_400_000
    return [
        [b.open_ms, *map(str, b[1:5]), "1", b.open_ms + 1, str(b.volume)]
        for b in rows(query["interval"], since, until, int(query["limit"]), newest=True)
    ]


KEPT: Final = 1_000
VENUES: Final[dict[str, Callable[[str, Query], Any]]] = {
    venue.__name__: venue
    for venue in (
        okx, bybit, kucoin, coinbase, gate, bitget, mexc, htx, deribit, hyperliquid, hitbtc,
        whitebit, phemex, binancecoinm,
    )
}  # fmt: skip
#: What a venue does not show: candles that open before.
HIDDEN: Final = {
    "mexc": START_MS + 1_000 * MINUTE_MS,
    "gate": START_MS + (COUNT - 2_990) * MINUTE_MS,
    "hyperliquid": SERIES.select("1m", NOW_MS, None, None, KEPT, newest=True)[0].open_ms,
    "phemex": SERIES.select("1m", NOW_MS, None, None, 1_000, newest=True)[0].open_ms,
}


_TICKS: Final = data.generated_ticks(12, START_MS, 1_500, first_id=10**6, quiet_ms=5 * 3_600_000)
#: With two trades that are alike but for their ids.
TICKS: Final = [
    tick._replace(id=10**6 + n) for n, tick in enumerate([*_TICKS[:801], *_TICKS[800:]])
]


def ticks(since: int, until: int, limit: int) -> list[Tick]:
    """The newest `limit` trades of [since, until], the newest first."""
    found = [tick for tick in TICKS if since <= tick.time_ms <= min(until, NOW_MS)]
    return found[-limit:][::-1]


def coinbase_trades(path: str, query: Query) -> Any:
    """Seconds."""
    since, until = int(query.get("start", 0)) * 1000, int(query.get("end", NOW_MS // 1000)) * 1000
    return {"trades": [
        {"trade_id": str(t.id), "product_id": "XY", "price": str(t.price), "size": str(t.amount),
         "time": from_ms(t.time_ms).isoformat().replace("+00:00", "Z"), "side": t.side.upper()}
        for t in ticks(since, until, int(query["limit"]))
    ]}  # fmt: skip


def mexc_trades(path: str, query: Query) -> Any:
    """Aggregate trades without ids."""
    since, until = int(query.get("startTime", 0)), int(query.get("endTime", NOW_MS))
    return [
        {"a": None, "f": None, "l": None, "p": str(t.price), "q": str(t.amount), "T": t.time_ms,
         "m": t.side == "sell", "M": True}
        for t in ticks(since, until, int(query["limit"]))
    ]  # fmt: skip


def bitget_trades(path: str, query: Query) -> Any:
    """A window of seven days at most."""
    since, until = int(query.get("startTime", 0)), int(query.get("endTime", NOW_MS))
    assert "startTime" not in query or until - since <= 7 * 86_400_000
    return {"code": "00000", "data": [
        {"symbol": "XY", "tradeId": str(t.id), "side": t.side.title(), "price": str(t.price),
         "size": str(t.amount), "ts": str(t.time_ms)}
        for t in ticks(since, until, min(500, int(query["limit"])))
    ]}  # fmt: skip


def deribit_trades(path: str, query: Query) -> Any:
    """JSON numbers."""
    since = int(query.get("start_timestamp", 0))
    until = int(query.get("end_timestamp", NOW_MS))
    return {"result": {"trades": [
        {"trade_id": str(t.id), "timestamp": t.time_ms, "price": number(t.price),
         "amount": number(t.amount), "direction": t.side, "instrument_name": "XY"}
        for t in ticks(since, until, int(query["count"]))
    ], "has_more": True}}  # fmt: skip


def kucoin_trades(path: str, query: Query) -> Any:
    """The newest hundred, in nanoseconds."""
    return {"code": "200000", "data": [
        {"sequence": str(t.id), "price": str(t.price), "size": str(t.amount), "side": t.side,
         "time": t.time_ms * 1_000_000 + 999_999} for t in ticks(0, NOW_MS, 100)[::-1]
    ]}  # fmt: skip


def okx_trades(path: str, query: Query) -> Any:
    """The newest five hundred, or a hundred before an id or a time."""
    before, most = 10**15, 500
    if path.endswith("history-trades"):
        before, most = int(query["after"]), 100
    by_time = query.get("type") == "2"
    found = [
        t for t in TICKS if (t.time_ms if by_time else t.id or 0) < before and t.time_ms <= NOW_MS
    ]
    return {"code": "0", "msg": "", "data": [
        {"instId": "XY", "side": t.side, "sz": str(t.amount), "px": str(t.price), "source": "0",
         "tradeId": str(t.id), "ts": str(t.time_ms)}
        for t in found[-min(most, int(query["limit"])):][::-1]
    ]}  # fmt: skip


def bybit_trades(path: str, query: Query) -> Any:
    """The newest 60 of spot, and no more may be asked for."""
    assert int(query["limit"]) <= 60
    return {"retCode": 0, "retMsg": "OK", "result": {"category": "spot", "list": [
        {"execId": str(t.id), "symbol": "XY", "price": str(t.price), "size": str(t.amount),
         "side": t.side.title(), "time": str(t.time_ms), "isBlockTrade": False}
        for t in ticks(0, NOW_MS, 60)
    ]}}  # fmt: skip


def gate_trades(path: str, query: Query) -> Any:
    """Seconds, both ends included."""
    since, until = int(query.get("from", 0)) * 1000, int(query.get("to", NOW_MS // 1000)) * 1000
    return [
        {"id": str(t.id), "create_time": str(t.time_ms // 1000), "create_time_ms":
         f"{t.time_ms}.123456", "currency_pair": "XY", "side": t.side, "amount": str(t.amount),
         "price": str(t.price), "sequence_id": "1"}
        for t in ticks(since, until + 999, int(query["limit"]))
    ]  # fmt: skip


def hitbtc_trades(path: str, query: Query) -> Any:
    """From a time on, the newest first if it is not said otherwise; there is no `until`."""
    limit, since = int(query["limit"]), int(query.get("from", 0))
    found = ticks(since, NOW_MS, len(TICKS))
    found = found[::-1][:limit] if query.get("sort") == "ASC" else found[:limit]
    return [
        {"id": t.id, "price": str(t.price), "qty": str(t.amount), "side": t.side,
         "timestamp": from_ms(t.time_ms).isoformat().replace("+00:00", "Z")} for t in found
    ]  # fmt: skip


def cryptocom_trades(path: str, query: Query) -> Any:
    """The newest of a window, whose end is no part of it; 150 at most."""
    since, until = int(query.get("start_ts", 0)), int(query.get("end_ts", NOW_MS + 1)) - 1
    return {"code": 0, "result": {"data": [
        {"d": str(t.id), "t": t.time_ms, "tn": t.time_ns, "q": str(t.amount), "p": str(t.price),
         "s": t.side.upper(), "i": "XY"} for t in ticks(since, until, min(150, int(query["count"])))
    ]}}  # fmt: skip


def cryptocom(path: str, query: Query) -> Any:
    """The newest three hundred up to the end."""
    timeframe = {"1m": "1m", "5m": "5m", "1h": "1h", "1D": "1d"}[query["timeframe"]]
    since, until = int(query["start_ts"]), int(query["end_ts"]) - 1
    found = rows(timeframe, since, until, min(300, int(query["count"])), newest=True)
    return {"code": 0, "result": {"data": [
        {"t": b.open_ms, **{name[0]: str(getattr(b, name)) for name in b._fields[1:]}}
        for b in found
    ]}}  # fmt: skip


CANDLES: Final = {**VENUES, "cryptocom": cryptocom}
TRADES: Final[dict[str, Callable[[str, Query], Any]]] = {
    answer.__name__.removesuffix("_trades"): answer
    for answer in (
        coinbase_trades,
        mexc_trades,
        bitget_trades,
        deribit_trades,
        kucoin_trades,
        okx_trades,
        gate_trades,
        hitbtc_trades,
        cryptocom_trades,
        bybit_trades,
    )
}


def stub(base: type[Any], answer: Callable[[str, Query], Any], asked: list[str]) -> type[Any]:
    """CCXT's class with one market, and with answers instead of a network."""

    async def load_markets(self: Any, *_: Any) -> Any:
        self.set_markets([self.safe_market_structure({
            "id": "XY", "symbol": "X/Y", "base": "X", "quote": "Y", "baseId": "X", "quoteId": "Y",
            "type": "spot", "spot": True, "contract": False, "active": True, "priceScale": 8,
            "valueScale": 8, **({"type": "swap", "spot": False, "swap": True, "contract": True,
                                 "inverse": True} if base.__name__ in ("binancecoinm", "bingx")
                                else {}),
            "precision": {"price": "0.00000001", "amount": "0.00000001"}, "info": {},
        })])  # fmt: skip
        return self.markets

    async def fetch(
        self: Any, url: str, method: str = "GET", headers: Any = None, body: Any = None
    ) -> Any:
        asked.append(url)
        parts = urlsplit(url)
        query: Query = json.loads(body) if body else {k: v[0] for k, v in
                                                      parse_qs(parts.query).items()}  # fmt: skip
        return decode(dump(answer(parts.path, query)))

    return type(base.__name__, (base,), {
        "load_markets": load_markets, "fetch": fetch,
        "milliseconds": staticmethod(lambda: NOW_MS),
        "seconds": staticmethod(lambda: NOW_MS // 1000),
    })  # fmt: skip


@pytest.mark.parametrize("venue", VENUES)
async def test_candles_of_a_venue(venue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ccxt.async_support

    asked: list[str] = []
    made = stub(getattr(ccxt.async_support, venue), VENUES[venue], asked)
    monkeypatch.setattr(ccxt.async_support, venue, made)
    if venue == "gate":
        lower = replace(VENUES_KNOWN["gate"], candles_kept=3_000)
        monkeypatch.setitem(VENUES_KNOWN, "gate", lower)
    if venue == "hyperliquid":
        lower = replace(VENUES_KNOWN["hyperliquid"], candle_limit=KEPT)
        monkeypatch.setitem(VENUES_KNOWN, "hyperliquid", lower)
    settings = ExchangeSettings(venue, rate_limit_ms=1)
    async with open_exchange(settings, monotonic=lambda: 0.0) as exchange:
        exchange.clock.read(NOW_MS)
        # From before the market was listed: days are asked for, too.
        since = from_ms(SINCE_MS) - timedelta(days=900 if venue == "binancecoinm" else 0)
        pages = [page async for page in candle_pages(exchange, "X/Y", "1m", since)]
    shown = [b for b in SERIES.bars if b.open_ms >= HIDDEN.get(venue, 0)]
    found = [tuple(row.values()) for page in pages for row in page.table.to_pylist()]
    assert found == candle_rows(shown)
    # What is hidden is said to be, from the first candle on.
    hidden = [page for page in pages if page.status is PageStatus.UNAVAILABLE]
    assert (len(hidden) == 1) == (venue in HIDDEN)
    empty = [hole for page in pages for hole in page.holes]
    lost = [b for b in SERIES.bars if any(since <= from_ms(b.open_ms) < until
                                          for since, until in empty)]  # fmt: skip
    assert lost == []
    assert len(asked) <= 4 * COUNT // (exchange.venue.candle_limit or 100) + 60


def test_bitget_is_asked_for_as_much_as_is_believed_to_be() -> None:
    """CCXT asks for fewer of some timeframes: what lies behind would be called empty, unseen."""
    asked = ccxt.bitget().options["fetchOHLCV"]
    known = [
        (VENUES_KNOWN["bitget"].most_candles(TIMEFRAMES[name].seconds * 1000), most)
        for kind in ("spot", "swap")
        for name, most in asked[kind]["maxLimitPerTimeframe"].items()
    ]
    assert len(known) > 8
    assert all(believed <= most for believed, most in known)


@pytest.mark.parametrize("venue", ["bullish", "bingx"])
async def test_a_window_is_as_long_as_is_believed(
    venue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CCXT ends it earlier than its features say."""
    import ccxt.async_support

    spans: list[int] = []

    def answer(path: str, query: Query) -> Any:
        since = query.get("startTime") or query["createdAtDatetime[gte]"]
        until = query.get("endTime") or query["createdAtDatetime[lte]"]
        spans.append(_ms(until) - _ms(since))
        return {"code": 0, "data": []} if venue == "bingx" else []

    made = stub(getattr(ccxt.async_support, venue), answer, [])
    monkeypatch.setattr(ccxt.async_support, venue, made)
    async with open_exchange(ExchangeSettings(venue, rate_limit_ms=1)) as exchange:
        most = exchange.venue.most_candles(MINUTE_MS)
        await exchange.fetch_candles("X/Y", "1m", START_MS, most)
    assert spans[0] >= (most - 1) * MINUTE_MS


def _ms(text: str) -> int:
    if text.isdecimal():
        return int(text)
    return int(datetime.fromisoformat(text).timestamp() * 1000)


#: What is no answer, though it is JSON, and CCXT takes it for one without rows.
NO_ANSWER: Final = [
    {},
    {"message": "system busy"},
    {"code": 99_999, "msg": "system busy"},
    {"success": False, "error": "system busy", "data": []},
    {"status": "error", "data": {"reason": "system busy"}},
    ["error", "system busy"],
]
#: What venues answer where they have nothing.
NOTHING: Final = [
    [],
    {"error": [], "result": {"XY": [], "last": "1"}},
    {"code": 0, "message": None, "result": []},
    {"bars": {}, "next_page_token": None},
    {"success": True, "data": {"asset_ticks": {}}},
    {"data": {"candlestick": [{"ohlcv": []}]}},
    {"result": {"ticks": [], "status": "no_data"}},
    {"s": "no_data"},
]


@pytest.mark.parametrize("answer", [*NO_ANSWER, *NOTHING], ids=str)
async def test_only_a_list_can_be_empty(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ccxt.async_support

    made = stub(ccxt.async_support.kraken, lambda path, query: answer, [])
    monkeypatch.setattr(ccxt.async_support, "kraken", made)
    settings = ExchangeSettings("kraken", rate_limit_ms=1)
    expected = nullcontext() if answer in NOTHING else pytest.raises(BadAnswer, match="no rows")
    async with open_exchange(settings, policy=RetryPolicy(attempts=1)) as exchange:
        with expected:
            await exchange.fetch_candles("X/Y", "1m", START_MS, 100)
        with expected:
            await exchange.fetch_trades("X/Y", TradeQuery(since_ms=START_MS))


@pytest.mark.parametrize("venue", [*TRADES, "hitbtc without an order"])
async def test_trades_of_a_venue(venue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ccxt.async_support

    asked: list[str] = []
    is_deaf = venue == "hitbtc without an order"
    venue = venue.split(maxsplit=1)[0]

    def answer(path: str, query: Query) -> Any:
        if is_deaf:
            query.pop("sort", None)
        is_candles = any(name in path.lower() for name in ("candle", "kline", "chart"))
        return (CANDLES if is_candles else TRADES)[venue](path, query)

    made = stub(getattr(ccxt.async_support, venue), answer, asked)
    monkeypatch.setattr(ccxt.async_support, venue, made)
    if venue == "gate":
        lower = replace(VENUES_KNOWN["gate"], candles_kept=3_000)
        monkeypatch.setitem(VENUES_KNOWN, "gate", lower)
    minutes = sorted({t.time_ms - t.time_ms % MINUTE_MS for t in TICKS})
    candles = Series([Bar(minute, *[Decimal(1)] * 5) for minute in minutes])
    monkeypatch.setattr(sys.modules[__name__], "SERIES", candles)
    since = from_ms(TICKS[700].time_ms)
    settings = ExchangeSettings(venue, rate_limit_ms=1)
    async with open_exchange(settings, monotonic=lambda: 0.0) as exchange:
        exchange.clock.read(NOW_MS)
        pages = [page async for page in trade_pages(exchange, "X/Y", since)]
    assert [page.since for page in pages[1:]] == [page.until for page in pages[:-1]]
    hidden = [page for page in pages if page.status is PageStatus.UNAVAILABLE]
    begins = hidden[-1].until if hidden else since
    found = [tuple(row.values()) for page in pages for row in page.table.to_pylist()]
    wanted = [t for t in TICKS if begins <= from_ms(t.time_ms) < pages[-1].until]
    assert sorted((time, price, amount) for time, _, _, price, amount, _ in found) == sorted(
        (from_ms(t.time_ms), t.price, t.amount) for t in wanted
    )
    assert bool(hidden) == (venue in ("kucoin", "bybit"))
    assert len(found) > (50 if hidden else 700)
    # Crypto.com's pages have a hundred rows.
    assert len(asked) < (70 if venue == "cryptocom" else 60)
