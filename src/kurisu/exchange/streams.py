"""Live trades and candles through CCXT's WebSockets, without losing a message.

CCXT hands out what came last in a cache, when somebody asks for it. What comes between two
questions is lost once the cache is full, and a connection that is lost and made anew between two
questions is not even noticed. So nothing here reads CCXT's caches: a `Tap` stands in their place
and takes every row when CCXT's handler stores it, and a `Wires` hears of every connection that is
lost. CCXT subscribes, answers pings and parses; Binance's messages are read here, because CCXT
takes as long over one as everything else together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kurisu.domain.trade import IdSpace
from kurisu.errors import ExchangeError, ExchangeUnavailable, NotOffered
from kurisu.exchange.exact import BODY_CHARACTERS, BrokenAnswer, decode
from kurisu.exchange.port import Batch, CandleRow, CandleUpdate, TradeRow

if TYPE_CHECKING:
    from kurisu.exchange.ccxt_adapter import CcxtExchange

#: Rows are handed on so much after the first of them came, all that came meanwhile together.
COLLECT_S: Final = 0.02
#: CCXT is asked again so much after it has answered: the answer itself is not used.
ASK_AGAIN_S: Final = 0.5
#: Longest time between two pings. CCXT's is three minutes for Binance: a connection that is dead
#: without a word would be found out after six.
MOST_KEEPALIVE_MS: Final = 15_000
#: What an exchange refuses to stream is asked for so often at once, and then only after so long,
#: twice as long each time: it costs a connection that brings other markets.
QUICK_REFUSALS: Final = 3
REFUSED_S: Final = 10.0
LONGEST_REFUSED_S: Final = 6 * 3600.0
#: Doubled so often it is longer than any of that; without a bound it is no float after months.
MOST_DOUBLED: Final = 20

#: Exchanges of CCXT whose messages are read here.
_BINANCE: Final = frozenset({"binance", "binanceus", "binanceusdm", "binancecoinm"})
#: How heartbeats of Coinbase and Kraken, and of Bitfinex begin.
_HEARTBEAT: Final = '"heartbeat'
_HB: Final = '"hb"'
_AGG_TRADE: Final = '{"e":"aggTrade"'
_KLINE: Final = '{"e":"kline"'

#: The tap that the running task watches for.
_watching: ContextVar[Tap | None] = ContextVar("watching", default=None)


class Tap:
    """Takes the rows of one group of markets as they come.

    ids: the venue's names of the markets, for messages that are read here. connection: which one
    of several to one address; None if there is one.
    """

    def __init__(self, ids: dict[str, str], connection: int | None = None) -> None:
        self.ids = ids
        self.connection = connection
        self.wake = asyncio.Event()
        self.failure: object = None
        self.is_connected = False
        self.heard_s = 0.0
        self.beats = False
        self.first_s = 0.0
        #: (symbol, CCXT's row), or the text of a message of trades.
        self.rows: list[Any] = []

    def add(self, row: Any) -> None:
        rows = self.rows
        if not rows:
            self.first_s = time.monotonic()
            self.wake.set()
        rows.append(row)

    def connected(self) -> None:
        self.is_connected, self.beats = True, False
        self.heard_s = time.monotonic()
        if not self.rows:
            self.first_s = self.heard_s
        self.wake.set()

    def fail(self, error: object) -> None:
        """The connection is lost: what comes from now on comes too late."""
        if self.failure is None:
            self.failure = error
        self.wake.set()

    def take(self) -> tuple[list[Any], float]:
        """Everything since the last time, and when the oldest of it came."""
        rows, self.rows = self.rows, []
        self.wake.clear()
        return rows, self.first_s


class _Cache(list[Any]):
    """Stands in the place of a cache of CCXT's: hands rows on and keeps the last one.

    CCXT's watch methods look into the first row for the symbol, and ask for the limit.
    """

    def __init__(self, tap: Tap, symbol: str) -> None:
        super().__init__()
        self._tap = tap
        self._symbol = symbol

    def append(self, row: Any) -> None:
        self[:] = [row]
        self._tap.add((self._symbol, row))

    def getLimit(self, _symbol: str | None, limit: int | None) -> int | None:  # noqa: N802
        return limit

    get_limit = getLimit


class _Caches(dict[str, Any]):
    """CCXT's `trades` or `ohlcvs[symbol]`; some handlers put a cache of their own there again."""

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(self.get(key), _Cache) or isinstance(value, _Cache):
            super().__setitem__(key, value)


class Wires:
    """The `exact.Listener` of an exchange: which taps hang on which connection."""

    def __init__(self) -> None:
        self._taps: dict[Any, list[Tap]] = {}
        self.reads_binance = False
        #: Taps are told of every message, whatever it is.
        self.notes_all = False
        #: How often something was refused and asked for again, and when the last time, by a steady
        #: clock.
        self._refusals = 0
        self._refused_s = 0.0

    def address(self, url: str) -> str:
        # CCXT has a connection for each address. A fragment is never sent.
        tap = _watching.get()
        return url if tap is None or tap.connection is None else f"{url}#{tap.connection}"

    def using(self, client: Any) -> None:
        tap = _watching.get()
        if tap is None:
            return
        taps = self._taps.setdefault(client, [])
        if tap not in taps:
            taps.append(tap)
            if client.keepAlive and client.keepAlive > MOST_KEEPALIVE_MS:
                client.keepAlive = MOST_KEEPALIVE_MS
        if client.isConnected and not tap.is_connected:
            tap.connected()

    def connected(self, client: Any) -> None:
        for tap in self._taps.get(client, ()):
            tap.connected()

    def lost(self, client: Any, error: object) -> None:
        for tap in self._taps.pop(client, ()):
            tap.fail(error)

    def takes(self, client: Any, text: str | bytes) -> bool:
        if self.notes_all:
            now_s, start = time.monotonic(), str(text[:40])
            beats = _HEARTBEAT in start or _HB in start
            for tap in self._taps.get(client, ()):
                tap.heard_s = now_s
                tap.beats = tap.beats or beats
        if not self.reads_binance or not isinstance(text, str):
            return False
        if text.startswith(_AGG_TRADE):
            taps = self._taps.get(client, ())
            if len(taps) == 1:
                taps[0].add(text)
                return True
        elif text.startswith(_KLINE):
            for tap in self._taps.get(client, ()):
                tap.add(text)
                return True
        return False

    def refused(self, client: Any, error: Exception) -> None:
        now_s = time.monotonic()
        wait_s = min(REFUSED_S * 2 ** min(self._refusals, MOST_DOUBLED), LONGEST_REFUSED_S)
        if self._refusals < QUICK_REFUSALS or now_s - self._refused_s >= wait_s:
            self._refusals, self._refused_s = self._refusals + 1, now_s
            client.on_error(error)

    def drop(self, tap: Tap, error: Exception) -> None:
        """What a tap asked for over its connections was refused."""
        for client in [client for client, taps in self._taps.items() if tap in taps]:
            self.refused(client, error)

    def close(self, tap: Tap, error: Exception) -> None:
        """The connections that a tap hangs on are of no use any more."""
        for client in [client for client, taps in self._taps.items() if tap in taps]:
            client.on_error(error)

    def forget(self, tap: Tap) -> None:
        for taps in self._taps.values():
            with suppress(ValueError):
                taps.remove(tap)


class Streams:
    """The live side of a `CcxtExchange`, which must have been made with `streams=True`."""

    def __init__(self, exchange: CcxtExchange) -> None:
        self._exchange = exchange
        self._client = exchange.client
        self._wires = Wires()
        self._client.kurisu_listener = self._wires
        #: Groups that have connections of their own, by what they listen to.
        self._connections: dict[tuple[str, ...], int] = {}
        self._wires.reads_binance = exchange.settings.exchange_id in _BINANCE
        self._wires.notes_all = exchange.venue.stream_silence_s is not None

    def offers(self, what: str) -> bool:
        """what: CCXT's name, e.g. "watchTrades"."""
        return self._client.has.get(what) is True

    async def trades(self, symbols: Sequence[str]) -> AsyncGenerator[Batch[TradeRow]]:
        """See `StreamingExchange.watch_trades`."""
        if not self.offers("watchTrades"):
            raise NotOffered(self._exchange.name, "it streams no trades, or CCXT cannot")
        asks: list[Callable[[], Awaitable[Any]]]
        tap = self._tap("trades", symbols)
        self._client.trades = _Caches(self._client.trades or {})
        for symbol in symbols:
            self._client.trades[symbol] = _Cache(tap, symbol)
        # The ids of the stream have to be those of REST.
        aggregate = self._exchange.venue.trade_id_space is IdSpace.AGGREGATE
        params = {"name": "aggTrade"} if aggregate else {}
        if self.offers("watchTradesForSymbols"):
            watch = self._client.watch_trades_for_symbols
            asks = [partial(watch, list(symbols), params=params)]
        else:
            watch = self._client.watch_trades
            asks = [partial(watch, symbol, params=params) for symbol in symbols]
        if self._exchange.venue.stream_heartbeats is not None:
            asks.append(
                partial(self._client.subscribe, self._exchange.venue.stream_heartbeats, False)
            )
        async with aclosing(self._batches(tap, asks)) as batches:
            async for rows, received_s in batches:
                yield Batch(self._trade_rows(tap, rows), received_s)

    async def candles(
        self, symbols: Sequence[str], timeframe: str
    ) -> AsyncGenerator[Batch[CandleUpdate]]:
        """See `StreamingExchange.watch_candles`."""
        if not self.offers("watchOHLCV") or timeframe not in self._exchange.timeframes:
            raise NotOffered(
                self._exchange.name, f"it streams no {timeframe} candles, or CCXT cannot"
            )
        asks: list[Callable[[], Awaitable[Any]]]
        tap = self._tap(timeframe, symbols)
        for symbol in symbols:
            caches = _Caches(self._client.ohlcvs.get(symbol) or {})
            caches[timeframe] = _Cache(tap, symbol)
            self._client.ohlcvs[symbol] = caches
        if self.offers("watchOHLCVForSymbols"):
            pairs = [[symbol, timeframe] for symbol in symbols]
            asks = [partial(self._client.watch_ohlcv_for_symbols, pairs)]
        else:
            asks = [partial(self._client.watch_ohlcv, symbol, timeframe) for symbol in symbols]
        async with aclosing(self._batches(tap, asks)) as batches:
            async for rows, received_s in batches:
                yield Batch(self._candle_rows(tap, rows, timeframe), received_s)

    async def disconnect(self) -> None:
        """Close every connection; whoever listens gets ExchangeUnavailable."""
        await self._client.close_ws_clients()

    def _tap(self, what: str, symbols: Sequence[str]) -> Tap:
        markets = self._client.markets
        ids = {markets[symbol]["id"]: symbol for symbol in symbols if symbol in markets}
        if self._exchange.venue.stream_markets is None:
            return Tap(ids)
        return Tap(ids, self._connections.setdefault((what, *symbols), len(self._connections)))

    async def _batches(
        self, tap: Tap, asks: Sequence[Callable[[], Awaitable[Any]]]
    ) -> AsyncGenerator[tuple[list[Any], float]]:
        """What the tap takes, until the connection is lost: then ExchangeError."""
        tasks = [asyncio.create_task(_ask(tap, ask)) for ask in asks]

        def ended(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            tap.fail(error)
            if isinstance(error, Exception):
                self._wires.drop(tap, error)

        for task in tasks:
            task.add_done_callback(ended)
        announced = False
        try:
            while True:
                await self._woken(tap)
                if tap.failure is None and tap.rows:
                    await asyncio.sleep(COLLECT_S)
                rows, received_s = tap.take()
                if rows or (tap.is_connected and not announced):
                    announced = True
                    yield rows, received_s
                if tap.failure is not None or any(task.done() for task in tasks):
                    raise self._error(tap.failure)
        finally:
            self._wires.forget(tap)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _woken(self, tap: Tap) -> None:
        """Until the tap has something, or its connection has been silent for too long."""
        most_s = self._exchange.venue.stream_silence_s
        while not tap.wake.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(most_s):
                    await tap.wake.wait()
            silent_s = time.monotonic() - tap.heard_s
            # Only of a connection that has had a heartbeat: what venues document they may change.
            if most_s is not None and tap.beats and silent_s >= most_s:
                error = ExchangeUnavailable(
                    self._exchange.name, f"not even a heartbeat for {silent_s:.0f} s"
                )
                self._wires.close(tap, error)
                tap.fail(error)

    def _error(self, failure: object) -> Exception:
        if isinstance(failure, ExchangeError):
            return failure
        if isinstance(failure, Exception):
            found: Exception = self._exchange.translated(failure)
            return found
        return ExchangeUnavailable(
            self._exchange.name, f"the connection was closed ({failure or 'by us'})"
        )

    def _trade_rows(self, tap: Tap, rows: Sequence[Any]) -> list[tuple[str, TradeRow]]:
        texts = [row for row in rows if type(row) is str]
        with self._translating():
            found = _agg_trades(tap.ids, texts) if texts else []
            for row in rows if len(texts) < len(rows) else ():
                if type(row) is not str:
                    symbol, trade = row
                    found.append((symbol, self._exchange.trade_row(trade, symbol)))
        return found

    def _candle_rows(
        self, tap: Tap, rows: Sequence[Any], timeframe: str
    ) -> list[tuple[str, CandleUpdate]]:
        found: list[tuple[str, CandleUpdate]] = []
        markets, interval = self._client.markets, self._client.timeframes[timeframe]
        with self._translating():
            for row in rows:
                if type(row) is str:
                    found += _kline(tap.ids, markets, row, interval)
                else:
                    symbol, values = row
                    found.append((symbol, CandleUpdate(self._exchange.candle_row(values))))
        return found

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except BrokenAnswer as error:
            raise self._exchange.translated(error) from error


async def _ask(tap: Tap, ask: Callable[[], Awaitable[Any]]) -> None:
    """Keep CCXT subscribed. It raises when a connection breaks."""
    _watching.set(tap)
    while True:
        await ask()
        await asyncio.sleep(ASK_AGAIN_S)


def _agg_trades(ids: dict[str, str], texts: Sequence[str]) -> list[tuple[str, TradeRow]]:
    """Messages of <symbol>@aggTrade, all at once: decoding them one by one takes twice as long."""
    try:
        messages = decode(f"[{','.join(texts)}]")
        return [
            (
                ids[m["s"]],
                TradeRow(m["T"], str(m["a"]), "sell" if m["m"] else "buy", m["p"], m["q"]),
            )
            for m in messages
            if m["s"] in ids
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(texts[-1]) from error


def _kline(
    ids: dict[str, str], markets: dict[str, Any], text: str, interval: str
) -> list[tuple[str, CandleUpdate]]:
    """A message of <symbol>@kline_<interval>, which says whether the candle has closed. Of an
    inverse contract `v` counts contracts, and CCXT's REST gives what `q` says, base units."""
    try:
        k = decode(text)["k"]
        if k["i"] != interval or k["s"] not in ids:
            return []
        symbol = ids[k["s"]]
        volume = k["q" if markets[symbol].get("inverse") else "v"]
        row = CandleRow(k["t"], k["o"], k["h"], k["l"], k["c"], volume)
        return [(symbol, CandleUpdate(row, k["x"] is True))]
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(text) from error


def _broken(text: str) -> BrokenAnswer:
    return BrokenAnswer(f"not JSON, or not what was expected: {text[:BODY_CHARACTERS]!r}")
