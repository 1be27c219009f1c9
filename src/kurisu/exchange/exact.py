"""CCXT without the float: classes that keep every digit, and that look at what comes back.

CCXT decodes JSON numbers as floats (with orjson where it is installed), multiplies timestamps as
floats, hands a broken answer on as text, and cuts a page with repeated rows to `limit`. Each of
these loses or changes data; a class made here does none of them. Nothing of CCXT is patched: the
classes are subclasses.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, partial
from operator import itemgetter
from typing import Any, Final, NoReturn, Protocol

from kurisu.exchange.bulk import pick


@dataclass(slots=True)
class Reply:
    """What the last response of a request said besides its body.

    status: HTTP status; None if there was no response. headers: as sent, names in lower case.
    body: its beginning, for error messages.
    """

    status: int | None = None
    headers: Mapping[str, str] | None = None
    body: str = ""

    def header(self, name: str) -> str | None:
        return None if self.headers is None else self.headers.get(name)


class Listener(Protocol):
    """What hears of the WebSockets of an exact class; `kurisu.exchange.streams` has one.

    client: CCXT's object for one connection.
    """

    def address(self, url: str) -> str:
        """Where a watch call of this task connects to instead of `url`."""

    def using(self, client: Any) -> None:
        """A watch call of this task goes over that connection."""

    def takes(self, client: Any, text: str | bytes) -> bool:
        """True if CCXT need not see this message: the listener has read it."""

    def connected(self, client: Any) -> None: ...

    def refused(self, client: Any, error: Exception) -> None:
        """The exchange has said no to something that was asked over that connection.

        CCXT takes it for subscribed, and would not ask for it again over the same one. What is
        refused again and again is not worth the connection, which brings other markets as well.
        """

    def lost(self, client: Any, error: object) -> None: ...


class BrokenAnswer(Exception):  # becomes kurisu.errors.BadAnswer at the boundary
    """A 200 whose body is not the JSON it should be."""


#: Binary messages of a connection that are remembered.
HEARD_MESSAGES: Final = 100
#: Body text that is kept for an error message.
BODY_CHARACTERS: Final = 200
_FIRST_ERROR_STATUS: Final = 400
#: Rows are no deeper in an answer than this.
_DEEPEST_ROWS: Final = 3
_reply: ContextVar[Reply | None] = ContextVar("reply", default=None)
_heard: ContextVar[list[Any] | None] = ContextVar("heard", default=None)


def decode(text: str | bytes) -> Any:
    """JSON with every number that has a fraction or an exponent as its own text.

    Text, not Decimal: CCXT's safe_string gives None for a Decimal. Whole numbers are Python's,
    which have no limit. NaN and Infinity, which JSON does not have, make the answer unreadable.
    """
    return json.loads(text, parse_float=str, parse_constant=_no_number)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def check_rows_missing(answers: Sequence[Any]) -> None:
    """CCXT found no rows: raises BrokenAnswer if the last answer does not even say that there are
    none.

    Most classes look for a list under a name, and take it for empty where there is no such name:
    in an error, say, that the class does not know.
    """
    answer = answers[-1] if answers else None
    if isinstance(answer, dict):
        is_error = answer.get("success") is False or not any(map(_is_nothing, answer.values()))
    else:
        rows = answer or []
        is_error = bool(rows) and not any(isinstance(row, (dict, list)) for row in rows)
    if is_error:
        raise BrokenAnswer(f"there are no rows in it: {str(answer)[:BODY_CHARACTERS]}")


def _is_nothing(value: Any, depth: int = 0) -> bool:
    """Where rows may be, and are not: a list, null, {} or UDF's word for it."""
    if isinstance(value, dict):
        inside = any(_is_nothing(one, depth + 1) for one in value.values())
        return not value or (depth < _DEEPEST_ROWS and inside)
    return value is None or value == "no_data" or isinstance(value, list)


@contextmanager
def hearing() -> Iterator[list[Any]]:
    """The answers to what is asked for meanwhile."""
    heard: list[Any] = []
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)


def reply_of(error: BaseException) -> Reply | None:
    """The response that an error of an exact class comes from."""
    found = getattr(error, "kurisu_reply", None)
    return found if isinstance(found, Reply) else None


def text_number(container: Any, key: Any, default: Any = None) -> Any:
    """What CCXT's safe_float looks up, as text."""
    try:
        value = container[key]
    except (KeyError, IndexError, TypeError):
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value == "":
        return default
    return str(value)


def whole(container: Any, key: Any, default: Any = None, factor: float = 1) -> Any:
    """CCXT's safe_integer (and safe_timestamp, safe_integer_product), without going through a
    float.

    int(float("1541390792.763") * 1000) can be a millisecond off, and nanoseconds do not fit a
    double at all. factor: 0.000001 of nanoseconds is meant as it is written.
    """
    try:
        value = container[key]
        if type(value) is int and type(factor) is int:
            return value * factor
        if isinstance(value, bool):
            value = int(value)
        # `*` of Decimal rounds to 28 digits, enough for any time; int() then cuts.
        return int(Decimal(str(value)) * Decimal(str(factor)))
    except (ArithmeticError, KeyError, IndexError, TypeError, ValueError):
        return default


# To the checker CCXT's classes are Any: it ships no types.
_CcxtClass: Any = object


class _Exact(_CcxtClass):  # type: ignore[misc]
    """What goes in front of a class of CCXT; see the module."""

    on_json_response = staticmethod(decode)
    safe_integer = staticmethod(whole)
    #: Called with the Reply of every response and its decoded body (None if it has none).
    kurisu_observer: Callable[[Reply, Any], None] | None = None
    kurisu_listener: Listener | None = None
    #: Waits for the turn of a request of a cost, beside CCXT's own throttle.
    kurisu_pace: Callable[[float], Awaitable[None]] | None = None

    @staticmethod
    def safe_timestamp(dictionary: Any, key: Any, default_value: Any = None) -> Any:
        return whole(dictionary, key, default_value, 1000)

    @staticmethod
    def safe_integer_product(
        dictionary: Any, key: Any, factor: float, default_value: Any = None
    ) -> Any:
        return whole(dictionary, key, default_value, factor)

    @staticmethod
    def safe_integer_product_n(
        dictionary: Any, keys: Any, factor: float, default_value: Any = None
    ) -> Any:
        found = (whole(dictionary, key, None, factor) for key in keys)
        return next((value for value in found if value is not None), default_value)

    @staticmethod
    def safe_integer_product_2(
        dictionary: Any, key1: Any, key2: Any, factor: float, default_value: Any = None
    ) -> Any:
        return _Exact.safe_integer_product_n(dictionary, (key1, key2), factor, default_value)

    @staticmethod
    def safe_timestamp_n(dictionary: Any, keys: Any, default_value: Any = None) -> Any:
        return _Exact.safe_integer_product_n(dictionary, keys, 1000, default_value)

    @staticmethod
    def safe_timestamp_2(dictionary: Any, key1: Any, key2: Any, default_value: Any = None) -> Any:
        return _Exact.safe_integer_product_n(dictionary, (key1, key2), 1000, default_value)

    @staticmethod
    def safe_integer_n(dictionary: Any, keys: Any, default_value: Any = None) -> Any:
        return _Exact.safe_integer_product_n(dictionary, keys, 1, default_value)

    @staticmethod
    def safe_integer_2(dictionary: Any, key1: Any, key2: Any, default_value: Any = None) -> Any:
        return _Exact.safe_integer_product_n(dictionary, (key1, key2), 1, default_value)

    def parse_ohlcv(self, *args: Any, **more: Any) -> Any:
        row = super().parse_ohlcv(*args, **more)
        if type(row[0]) is not int:
            # CCXT would drop it without a word, and a page of such rows would look empty.
            raise BrokenAnswer(f"a candle without a time: {str(args[0])[:BODY_CHARACTERS]}")
        return row

    def parse_ohlcvs(
        self,
        ohlcvs: Any,
        market: Any = None,
        timeframe: Any = "1m",
        since: Any = None,
        limit: Any = None,
        tail: Any = False,
    ) -> Any:
        # Neither does it cut to `limit`: of a page with repeated rows that cuts off others.
        rows = None if tail else pick(ohlcvs, lambda row: self.parse_ohlcv(row, market))
        if rows is None:
            return super().parse_ohlcvs(ohlcvs, market, timeframe, since, limit, tail)
        rows.sort(key=itemgetter(0))
        return rows if since is None else [row for row in rows if row[0] >= since]

    def parse_trades(self, trades: Any, market: Any = None, *args: Any, **more: Any) -> Any:
        # Thousands of them at once, while a stream goes on beside, whose latency they are.
        if market is not None and market.get("spot") and _are_agg_trades(trades):
            return [_agg_trade(trade) for trade in trades]
        return super().parse_trades(trades, market, *args, **more)

    def create_ccxt_trade_id(self, *_: Any, **__: Any) -> None:
        # Of time, side, price and amount: trades that are alike would have one id, and all but one
        # of them would look like repetitions.
        return None

    def filter_by_symbol_since_limit(
        self, array: Any, symbol: Any = None, *_: Any, **__: Any
    ) -> Any:
        # Neither `since` nor `limit`: CCXT would drop trades without a time without a word, and of
        # a page with repeated rows it would cut off rows that are not repeated.
        return super().filter_by_symbol_since_limit(array, symbol)

    def on_rest_response(self, *args: Any) -> Any:
        """Takes (status, reason, url, method, response headers, response body, ...)."""
        body = super().on_rest_response(*args)
        reply = _reply.get()
        if reply is not None:
            reply.status = args[0]
            reply.headers = {name.lower(): value for name, value in args[4].items()}
            reply.body = body[:BODY_CHARACTERS]
        return body

    def handle_errors(self, code: Any, *args: Any) -> Any:
        """Takes (status, reason, url, method, headers, body, decoded body or None, ...)."""
        from ccxt.base.errors import ExchangeError

        try:
            return super().handle_errors(code, *args)
        except ExchangeError as error:
            if code >= _FIRST_ERROR_STATUS or isinstance(args[5], (dict, list)):
                raise
            # Some classes (Crypto.com's) find no code of success in it, and call it refused. Others
            # read such answers: Gemini's currencies are in a page of HTML.
            text = str(args[4])[:BODY_CHARACTERS]
            raise BrokenAnswer(f"not JSON, or cut short: {text!r}") from error

    async def throttle(self, cost: Any = None) -> Any:
        await super().throttle(cost)
        if self.kurisu_pace is not None:
            await self.kurisu_pace(1.0 if cost is None else float(cost))

    async def fetch(self, *args: Any, **more: Any) -> Any:
        reply = Reply()
        token = _reply.set(reply)
        answer = None
        try:
            answer = await super().fetch(*args, **more)
        except Exception as error:
            # The error travels through tasks that have a context of their own; what it comes
            # from travels with it.
            error.kurisu_reply = reply  # type: ignore[attr-defined]
            raise
        finally:
            _reply.reset(token)
            if self.kurisu_observer is not None and reply.status is not None:
                self.kurisu_observer(reply, answer)
        if not isinstance(answer, (dict, list)):
            broken = BrokenAnswer(f"not JSON, or cut short: {reply.body!r}")
            broken.kurisu_reply = reply  # type: ignore[attr-defined]
            raise broken
        heard = _heard.get()
        if heard is not None:
            heard.append(answer)
        return answer

    def client(self, url: Any) -> Any:
        if self.kurisu_listener is not None:
            url = self.kurisu_listener.address(url)
        client = super().client(url)
        if "handle_text_or_binary_message" not in vars(client):
            client.handle_text_or_binary_message = partial(_hand_on, self, client)
            client.reject = partial(_reject, self, client)
        if self.kurisu_listener is not None:
            self.kurisu_listener.using(client)
        return client

    def on_connected(self, client: Any, message: Any = None) -> None:
        super().on_connected(client, message)
        if self.kurisu_listener is not None:
            self.kurisu_listener.connected(client)

    def on_error(self, client: Any, error: Any) -> None:
        # Only of the connection that is in use: CCXT would throw away the one that came after it.
        if self.clients.get(client.url) is client:
            super().on_error(client, error)
        if self.kurisu_listener is not None:
            self.kurisu_listener.lost(client, error)

    def on_close(self, client: Any, error: Any) -> None:
        if self.clients.get(client.url) is client:
            super().on_close(client, error)
        if self.kurisu_listener is not None:
            self.kurisu_listener.lost(client, client.error or f"closed with code {error}")

    def handle_error_message(self, client: Any, message: Any) -> Any:
        found = super().handle_error_message(client, message)
        if (
            isinstance(message, dict)
            and (message.get("method"), message.get("success")) == ("subscribe", False)
            and message.get("error") != "Already subscribed"
        ):
            # Kraken's word; CCXT goes on waiting for the market.
            client.reject(BrokenAnswer(f"not subscribed: {message.get('error')}"))
        return found

    def handle_message(self, client: Any, message: Any) -> None:
        super().handle_message(client, message)
        said_no = _NOES.get(self.id)
        if said_no is not None and isinstance(message, dict) and said_no(message):
            client.reject(BrokenAnswer(f"not subscribed: {str(message)[:BODY_CHARACTERS]}"))

    def handle_trades(self, client: Any, message: Any, *more: Any) -> None:
        for part in _by_market(message) if self.id == "kraken" else (message,):
            super().handle_trades(client, part, *more)

    def handle_trade(self, client: Any, message: Any, *more: Any) -> None:
        for part in self._by_product(message) if self.id == "coinbase" else (message,):
            super().handle_trade(client, part, *more)

    def _by_product(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """A message of Coinbase's trades, one for each market. Trades of a market in USDC come as
        those of the market in USD, with which it shares its book."""
        events: dict[Any, list[Any]] = {}
        for event in message.get("events") or ():
            trades: dict[Any, list[Any]] = {}
            for trade in event.get("trades") or ():
                product = str(trade.get("product_id"))
                trades.setdefault(product, []).append(trade)
                twin = f"{product}C"
                if product.endswith("-USD") and self.safe_symbol(twin) in self.trades:
                    trades.setdefault(twin, []).append({**trade, "product_id": twin})
            for product, found in trades.items():
                events.setdefault(product, []).append({**event, "trades": found})
        return [{**message, "events": found} for found in events.values()]

    def handle_ohlcv(self, client: Any, message: Any, *more: Any) -> None:
        if isinstance(message, list) and len(message) > 1 and message[1] == []:
            # Bitfinex of a market without candles: CCXT takes the empty snapshot for a candle.
            return
        parts = [message]
        if self.id == "gate" and isinstance(message, dict):
            parts = [_gate_candles(message)]
        elif self.id == "kraken":
            parts = _by_market(message)
        # Some of CCXT's handlers of candles (binance's, okx's) read with safe_float. It is
        # exact only for as long as the handler runs: elsewhere floats are computed with.
        self.safe_float = text_number
        try:
            for part in parts:
                super().handle_ohlcv(client, part, *more)
        finally:
            del self.safe_float


#: How venues refuse a subscription where CCXT does not hear it, or tells it to nobody. (Bitfinex's
#: 10301: it is subscribed already.)
_NOES: Final[dict[str, Callable[[dict[str, Any]], bool]]] = {
    "bitfinex": lambda said: said.get("event") == "error" and said.get("code") != 10301,
    "cryptocom": lambda said: said.get("method") == "subscribe" and bool(said.get("code")),
    "mexc": lambda said: str(said.get("msg")).startswith("Not Subscribed"),
}


def _are_agg_trades(trades: Any) -> bool:
    return (
        isinstance(trades, list)
        and bool(trades)
        and all(isinstance(trade, dict) and trade.keys() == _AGG_TRADE for trade in trades)
    )


#: A row of Binance's aggTrades.
_AGG_TRADE: Final = frozenset("apqflTmM")


def _agg_trade(trade: Any) -> dict[str, Any]:
    """What CCXT makes of one, as far as it is used here."""
    return {
        "info": trade, "id": trade["a"], "timestamp": trade["T"],
        "side": "sell" if trade["m"] else "buy",
        "price": trade["p"], "amount": trade["q"], "cost": None,
    }  # fmt: skip


def _by_market(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A message of Kraken's, one for each market: to CCXT all rows are of the first one's."""
    rows: dict[Any, list[Any]] = {}
    for row in message.get("data") or ():
        rows.setdefault(row.get("symbol"), []).append(row)
    return [message] if len(rows) < 2 else [{**message, "data": data} for data in rows.values()]


def _gate_candles(message: dict[str, Any]) -> dict[str, Any]:
    """Gate's candles of spot with the volume where CCXT looks for it: `v` is of the quote currency,
    `a` of the base. Of contracts `v` is how many."""
    if not str(message.get("channel")).startswith("spot."):
        return message
    found = message.get("result")
    rows = found if isinstance(found, list) else [found]
    rows = [{**row, "v": row["a"]} if isinstance(row, dict) and "a" in row else row for row in rows]
    return {**message, "result": rows}


@cache
def exact_class(base: type[Any]) -> type[Any]:
    """A subclass of a class of ccxt.async_support or ccxt.pro that loses no digit."""
    return type(base.__name__, (_Exact, base), {})


def _reject(exchange: Any, client: Any, error: Any, message_hash: Any = None) -> Any:
    """CCXT's reject, which tells whoever waits just then, and perhaps nobody does."""
    found = type(client).reject(client, error, message_hash)
    listener: Listener | None = exchange.kurisu_listener
    if message_hash is None and listener is not None and client.error is None and _is_no(error):
        listener.refused(client, error)
    return found


def _is_no(error: Any) -> bool:
    """Not merely that the connection is lost."""
    import ccxt

    return isinstance(error, (ccxt.ExchangeError, BrokenAnswer))


def _hand_on(exchange: Any, client: Any, data: str | bytes) -> None:
    """CCXT's handle_text_or_binary_message, with the exact decoder."""
    text = data.decode() if isinstance(data, bytes) and client.decompressBinary else data
    listener: Listener | None = exchange.kurisu_listener
    if listener is not None and listener.takes(client, text):
        return
    if isinstance(text, bytes) and exchange.id == "mexc":
        # Its trades have no ids; when it was sent is part of a message.
        heard = client.__dict__.setdefault("kurisu_heard", deque(maxlen=HEARD_MESSAGES))
        if text in heard:
            return
        heard.append(text)
    try:
        message = decode(text) if text[:1] in ("{", "[", b"{", b"[") else text
    except ValueError:
        # The connection is of no use any more: close it, and let everybody who waits know.
        client.on_error(BrokenAnswer(f"not JSON, or cut short: {text[:BODY_CHARACTERS]!r}"))
        return
    try:
        client.on_message_callback(client, message)
    except Exception as error:
        # CCXT would stop reading from the connection, and leave everybody waiting.
        client.on_error(error)
