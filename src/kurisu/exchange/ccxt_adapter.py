"""Exchanges by way of CCXT, exact.

    async with open_exchange(ExchangeSettings("binance")) as exchange:
        for listing in await exchange.load_markets(): ...
        rows = await exchange.fetch_candles("BTC/USDT", "1m", since_ms, 1000)

CCXT is imported when the first exchange is opened: it takes 0.8 seconds and more.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

from kurisu.domain.money import parse_decimal, plain
from kurisu.domain.trade import cost_of
from kurisu.errors import BadAnswer, BadSymbol, ExchangeError, InvalidArgument, NotOffered
from kurisu.exchange.calls import Caller, RetryPolicy, Sleep, WeightBudget
from kurisu.exchange.clock import ExchangeClock, from_ms
from kurisu.exchange.exact import (
    BrokenAnswer,
    Reply,
    check_rows_missing,
    exact_class,
    hearing,
    whole,
)
from kurisu.exchange.markets import MarketListing, Skipped, listings, precision_mode
from kurisu.exchange.pace import Pace, pace_file
from kurisu.exchange.port import (
    Batch,
    CandleRow,
    CandleUpdate,
    TradeAnswer,
    TradeQuery,
    TradeRow,
)
from kurisu.exchange.settings import SECRETS, ExchangeSettings
from kurisu.exchange.streams import Streams
from kurisu.exchange.translate import translate
from kurisu.exchange.venues import CAUTIOUS_LIMIT, TradePaging, Venue, venue_of

T = TypeVar("T")

#: Where the trade id stands in Kraken's rows; older recordings end before it, and CCXT appends
#: the cursor to the last row, where it must not be taken for an id.
_KRAKEN_ID: Final = 6
#: How OKX is asked for older trades, the only venue so far that is walked back.
_OKX_HISTORY: Final = "publicGetMarketHistoryTrades"
_OKX_BY_ID: Final = "1"
_OKX_BY_TIME: Final = "2"
#: How CCXT tells contracts apart, for venues that have no spot market.
_MARGINS: Final = ("linear", "inverse")
#: Where venues put the nanoseconds of a trade.
_NANOSECONDS: Final = ("time", "ts")
_NS_PER_MS: Final = 1_000_000


class CcxtExchange:
    """An `Exchange` by way of CCXT. Made by `open_exchange`.

    skipped: markets of the last load that cannot be stored, with reasons.
    """

    def __init__(
        self,
        settings: ExchangeSettings,
        *,
        streams: bool = False,
        pace_folder: Path | None = None,
        policy: RetryPolicy | None = None,
        sleep: Sleep = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: random.Random | None = None,
    ) -> None:
        """streams: take CCXT's class with WebSockets. pace_folder: where the pace is shared with
        other processes of this machine; None if it is not. sleep, monotonic, jitter: see `Caller`.

        Raises NotOffered if CCXT has no such exchange, ConfigError if a variable is not set.
        """
        self.settings = settings
        self.client = _client(settings, streams=streams)
        self.client.kurisu_observer = self._observe
        self.skipped: list[Skipped] = []
        self.clock = ExchangeClock(monotonic)
        self._venue = self._described(venue_of(settings.exchange_id))
        self._budget = WeightBudget(self._venue.weight_limit, self.clock)
        self._pace: Pace | None = None
        if pace_folder is not None:
            file = pace_file(pace_folder, self.client)
            self._pace = Pace(file, float(self.client.rateLimit) / 1000)
            self.client.kurisu_pace = self._pace.take
        self._secrets = [str(getattr(self.client, name, None) or "") for name in sorted(SECRETS)]
        self.caller = Caller(
            settings.name,
            settings.concurrency,
            policy or RetryPolicy(),
            self._budget,
            pace=self._pace,
            secrets=self._secrets,
            sleep=sleep,
            monotonic=monotonic,
            jitter=jitter,
        )
        self._streams = Streams(self) if streams else None
        self._loaded = False

    def __repr__(self) -> str:
        return f"CcxtExchange({self.name})"

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def venue(self) -> Venue:
        return self._venue

    @property
    def timeframes(self) -> frozenset[str]:
        return frozenset(self.client.timeframes or ())

    async def load_markets(self, *, reload: bool = False) -> list[MarketListing]:
        """Every market it lists, by symbol; asked again only if `reload`."""
        markets = await self._call(lambda: self.client.load_markets(reload))
        self._loaded = True
        mode = precision_mode(self.client.precisionMode)
        found, self.skipped = listings(self.name, markets, mode)
        return found

    async def now(self) -> datetime:
        """The exchange's time, asked for again every few minutes."""
        if self.client.has.get("fetchTime") is True:
            if not self.clock.is_fresh:
                await self._call(self._read_time)
        elif not self.clock.has_fresh_date:
            # Any answer brings the Date header.
            status = self.client.has.get("fetchStatus") is True
            await self._call(
                self.client.fetch_status if status else lambda: self.client.load_markets(True)
            )
        now_ms = self.clock.now_ms()
        if now_ms is None:
            raise BadAnswer(self.name, "it does not tell its time, not even by a Date header")
        return from_ms(now_ms)

    async def fetch_candles(
        self,
        symbol: str,
        timeframe: str,
        since_ms: int,
        limit: int,
        until_ms: int | None = None,
    ) -> list[CandleRow]:
        """One request; the open candle may be among the rows. Raises NotOffered, BadSymbol."""
        if timeframe not in self.timeframes:
            raise NotOffered(self.name, f"it serves no {timeframe} candles")
        await self.check_listed(symbol)
        contract = bool(self.client.markets[symbol].get("contract"))
        asked = None if contract and self._venue.contract_limit_alone else limit
        if self._venue.candle_limits is not None:
            limits = self._venue.candle_limits
            asked = next((one for one in limits if one >= limit), limits[-1])
        params: dict[str, Any] = {}
        if self._venue.candle_order is not None:
            name, value = self._venue.candle_order
            params[name] = value
        if until_ms is not None:
            end, unit_ms = self._venue.candle_until or ("until", 1)
            params[end] = until_ms // unit_ms

        async def ask() -> list[CandleRow]:
            with hearing() as answers:
                rows = await self.client.fetch_ohlcv(symbol, timeframe, since_ms, asked, params)
            if not rows:
                check_rows_missing(answers)
            if rows and type(rows[0]) is CandleRow:
                return list(rows)
            return [self.candle_row(row) for row in rows]

        return await self._call(ask)

    async def fetch_trades(self, symbol: str, query: TradeQuery) -> TradeAnswer:
        """One request. Raises BadSymbol, NotOffered."""
        await self.check_listed(symbol)
        if self._venue.trade_paging is TradePaging.NOTHING:
            raise NotOffered(self.name, "of its public trades CCXT can only stream the live ones")
        spot = not self.client.markets[symbol].get("contract")
        params: dict[str, Any] = {}
        if query.from_id is not None:
            params["fromId"] = query.from_id
        if query.cursor is not None:
            params["since"] = query.cursor
        if query.until_ms is not None:
            params["until"] = query.until_ms
        if query.since_ms is not None and spot and self._venue.trade_since_s is not None:
            params[self._venue.trade_since_s] = query.since_ms // 1000
        if query.since_ms is not None and self._venue.trade_order is not None:
            name, value = self._venue.trade_order
            params[name] = value
        before = query.before_id if query.before_id is not None else query.before_ms
        if before is not None:
            kind = _OKX_BY_ID if query.before_id is not None else _OKX_BY_TIME
            params |= {"method": _OKX_HISTORY, "type": kind, "after": str(before)}

        most = self._venue.spot_trade_limit if spot else None
        limit = min(most, query.limit) if most and query.limit else query.limit

        async def ask() -> TradeAnswer:
            with hearing() as answers:
                trades = await self.client.fetch_trades(symbol, query.since_ms, limit, params)
            if not trades:
                check_rows_missing(answers)
            rows = [self.trade_row(trade, symbol) for trade in trades]
            return TradeAnswer(rows, self._cursor(trades))

        return await self._call(ask)

    @property
    def streams_trades(self) -> bool:
        return self._streams is not None and self._streams.offers("watchTrades")

    @property
    def streams_candles(self) -> bool:
        return self._streams is not None and self._streams.offers("watchOHLCV")

    async def watch_trades(self, symbols: Sequence[str]) -> AsyncGenerator[Batch[TradeRow]]:
        """See `StreamingExchange`."""
        for symbol in symbols:
            await self.check_listed(symbol)
        async with aclosing(self._live().trades(symbols)) as batches:
            async for batch in batches:
                yield batch

    async def watch_candles(
        self, symbols: Sequence[str], timeframe: str
    ) -> AsyncGenerator[Batch[CandleUpdate]]:
        """See `StreamingExchange`."""
        for symbol in symbols:
            await self.check_listed(symbol)
        async with aclosing(self._live().candles(symbols, timeframe)) as batches:
            async for batch in batches:
                yield batch

    async def disconnect(self) -> None:
        """Close every connection that is listened to: their iterators end."""
        await self._live().disconnect()

    async def close(self) -> None:
        """Let go of connections."""
        await self.client.close()

    def _live(self) -> Streams:
        if self._streams is None:
            raise InvalidArgument("open the exchange with streams=True to listen to it")
        return self._streams

    def translated(self, error: Exception) -> ExchangeError:
        """What an error of CCXT means, without secrets."""
        return translate(self.name, error, self._secrets, self._exchange_now()).error

    def _described(self, venue: Venue) -> Venue:
        """`venue`, with what CCXT's features say where nothing better is known."""
        if venue.candle_limit is not None:
            return venue
        features = self.client.features or {}
        kinds = [features.get("spot"), *((features.get("swap") or {}).get(k) for k in _MARGINS)]
        found: dict[str, Any] = next(filter(None, kinds), {})
        limit = (found.get("fetchOHLCV") or {}).get("limit")
        return replace(venue, candle_limit=limit if isinstance(limit, int) else CAUTIOUS_LIMIT)

    def _observe(self, reply: Reply, answer: Any) -> None:
        """Every response passes here: its Date, its used weight, and the limit it may state."""
        self.clock.read_date(reply.header("date"))
        self._budget.observe(reply)
        if self._budget.limit is None or not isinstance(answer, dict):
            return
        for rule in answer.get("rateLimits") or ():
            if rule.get("rateLimitType") == "REQUEST_WEIGHT" and rule.get("interval") == "MINUTE":
                self._budget.limit = rule["limit"]

    async def _read_time(self) -> None:
        told = await self.client.fetch_time()
        if not isinstance(told, int):
            raise BrokenAnswer(f"its time is {told!r}")
        self.clock.read(told)

    async def check_listed(self, symbol: str) -> None:
        """Raises BadSymbol, with names that are near."""
        if not self._loaded:
            await self.load_markets()
        if symbol not in self.client.markets:
            near = get_close_matches(symbol, self.client.markets, 3, 0.5)
            hint = f"; it lists {', '.join(near)}" if near else ""
            raise BadSymbol(self.name, f"it does not list {symbol}{hint}")

    async def _call(self, make: Callable[[], Awaitable[T]]) -> T:
        return await self.caller.call(make, self._exchange_now)

    def _exchange_now(self) -> datetime | None:
        now_ms = self.clock.now_ms()
        return None if now_ms is None else from_ms(now_ms)

    def candle_row(self, row: Any) -> CandleRow:
        """One of CCXT's candles, exact."""
        if not isinstance(row, list) or len(row) < len(CandleRow._fields):
            raise BrokenAnswer(f"a candle is {str(row)[:100]}")
        time_ms, *numbers = row[: len(CandleRow._fields)]
        if not isinstance(time_ms, int):
            raise BrokenAnswer(f"a candle has no time: {str(row)[:100]}")
        return CandleRow(time_ms, *(self._text(value) for value in numbers))

    def trade_row(self, trade: Any, symbol: str) -> TradeRow:
        """One of CCXT's trades, exact."""
        time_ms, price, amount = trade["timestamp"], trade["price"], trade["amount"]
        if not isinstance(time_ms, int) or not _is_number(price) or not _is_number(amount):
            raise BrokenAnswer(f"a trade has no time, price or amount: {str(trade)[:100]}")
        found = trade["id"]
        if self._venue.trade_paging is TradePaging.CURSOR and isinstance(trade["info"], list):
            info = trade["info"]
            found = info[_KRAKEN_ID] if len(info) > _KRAKEN_ID else None
            found = found if isinstance(found, int) else None
        return TradeRow(
            _exact_ms(trade["info"], time_ms),
            None if found is None or found == "" else str(found),
            trade["side"] if trade["side"] in ("buy", "sell") else None,
            self._text(price) or "",
            self._text(amount) or "",
            self._cost(self.client.markets[symbol], price, amount),
            self._parts(trade["info"]),
        )

    def _cost(self, market: Any, price: Any, amount: Any) -> str | None:
        """Of a contract, whose size may be known only here; the store has those of spot."""
        if not market.get("contract"):
            return None
        size, one_price, one_amount = (
            parse_decimal(self._text(value) or "")
            for value in (market.get("contractSize"), price, amount)
        )
        if size is None or not one_price or one_amount is None:
            return None
        return plain(cost_of(one_price, one_amount, size, inverse=bool(market.get("inverse"))))

    def _parts(self, info: Any) -> int:
        name = self._venue.trade_parts
        return 1 if name is None else int(whole(info, name, 1))

    def _cursor(self, trades: list[Any]) -> str | None:
        """Kraken's `last`, which CCXT appends to the row that came last."""
        if self._venue.trade_paging is not TradePaging.CURSOR:
            return None
        for trade in reversed(trades):
            info = trade["info"]
            if isinstance(info, list) and len(info) > _KRAKEN_ID and isinstance(info[-1], str):
                return info[-1]
        return None

    def _text(self, value: Any) -> str | None:
        if isinstance(value, float):
            raise ExchangeError(
                self.name, "CCXT computes with floats here, so its digits are not the exchange's"
            )
        return None if value is None else str(value)


def _exact_ms(info: Any, time_ms: int) -> int:
    """`time_ms`, cut: CCXT divides KuCoin's nanoseconds as floats, which may round up."""
    for name in _NANOSECONDS if isinstance(info, dict) else ():
        found = whole(info, name)
        if found is not None and abs(found // _NS_PER_MS - time_ms) == 1:
            return int(found // _NS_PER_MS)
    return time_ms


def _is_number(value: Any) -> bool:
    found = parse_decimal(value) if isinstance(value, (str, int)) else None
    return isinstance(value, float) or (found is not None and found.is_finite())


@asynccontextmanager
async def open_exchange(settings: ExchangeSettings, **more: Any) -> AsyncIterator[CcxtExchange]:
    """The exchange, closed at the end. more: see `CcxtExchange`."""
    exchange = CcxtExchange(settings, **more)
    try:
        yield exchange
    finally:
        await exchange.close()


def _client(settings: ExchangeSettings, *, streams: bool) -> Any:
    """CCXT's object, with exact numbers."""
    module = importlib.import_module("ccxt.pro" if streams else "ccxt.async_support")
    found = settings.exchange_id
    if found not in module.exchanges:
        near = get_close_matches(found, module.exchanges, 3)
        hint = f": perhaps {' or '.join(near)}" if near else ""
        raise NotOffered(settings.name, f"CCXT has no exchange named {found!r}{hint}")
    options = {**settings.constructor_options(), "number": str, "enableRateLimit": True}
    client = exact_class(getattr(module, found))(options)
    # At DEBUG it logs request headers, credentials among them.
    client.logger.setLevel(logging.INFO)
    return client
