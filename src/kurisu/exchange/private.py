"""The private side of an exchange by way of CCXT: exact in both directions, and sent once.

    async with open_account(exchange_settings) as account:
        balances = await account.fetch_balances()
        answer = await account.create_order(NewOrder(...))

Questions go through the same `Caller` as public requests: rate limits, retries. An order does not:
it is sent once, and its failure is either sure (`OrderRejected`) or it is not
(`OrderOutcomeUnknown`). Before it leaves, the request itself is looked at: it has to carry our id,
the amount and the prices, digit for digit.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from kurisu.domain.balance import Entry
from kurisu.domain.listing import MarketListing
from kurisu.domain.money import plain
from kurisu.domain.order import OrderType, OrderUpdate
from kurisu.errors import (
    BadAnswer,
    BadSymbol,
    ConfigError,
    ExchangeError,
    LedgerRuleBroken,
    NotOffered,
    OrderOutcomeUnknown,
)
from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.exchange.clock import from_ms
from kurisu.exchange.exact import BrokenAnswer
from kurisu.exchange.private_pages import order_windows
from kurisu.exchange.private_port import (
    ExecutionPage,
    NewOrder,
    OrderPage,
    RecordQuery,
    ReportedBalance,
    ReportedOrder,
    Unreadable,
)
from kurisu.exchange.private_rows import read_all, read_executions, read_order
from kurisu.exchange.private_sending import (
    QUEUED_S,
    Outgoing,
    check_request,
    failure_of,
    outgoing_now,
)
from kurisu.exchange.private_venues import (
    CAUTIOUS_LIMIT,
    FEATURES_LIMIT,
    Cursor,
    OrderLookup,
    PrivateVenue,
    private_venue_of,
)
from kurisu.exchange.private_wallets import Wallets
from kurisu.exchange.settings import SECRETS, ExchangeSettings

T = TypeVar("T")

#: Answers to what is asked for now, as they came.
heard_now: ContextVar[list[Any] | None] = ContextVar("heard_now", default=None)

#: Kraken's words, Binance's for one that was canceled without a fill 90 days ago, and Coinbase's.
_UNKNOWN_ORDER: Final = re.compile(
    r"EOrder:(Unknown|Invalid) order\b|has been archived|order with this orderID was not found"
)

#: How long after it took an order a venue may still say that it does not know it.
_VENUE_DELAY_S: Final = 10.0
#: Under which venues name a record's market.
_MARKET_KEYS: Final = ("symbol", "instId", "currency_pair", "contract", "product_id")
#: An order that is looked for in lists was made so much before or after it was written, at most.
_LOOK_AROUND: Final = timedelta(minutes=5)


class CcxtAccount:
    """A `PrivateExchange` by way of CCXT. Made by `open_account`.

    exchange: the public side, which shares its connections and limits.
    """

    def __init__(self, exchange: CcxtExchange) -> None:
        """Raises ConfigError if credentials are missing."""
        self.exchange = exchange
        self._client = exchange.client
        self._secrets = [
            text for name in sorted(SECRETS) if (text := str(getattr(self._client, name, "") or ""))
        ]
        self._client.options = {
            **self._client.options,
            # Requests carry a time, and are refused if it is not the exchange's.
            "adjustForTimeDifference": True,
        }
        # Whether a page is full shows by all of its rows: some venues, or accounts of them, list
        # every market, whichever was asked for.
        self._client.filter_by_symbol_since_limit = _all_rows
        self._check_credentials()
        self._fetch = self._client.fetch
        # On the object, not on the class: CCXT calls it for every request that it has signed.
        self._client.fetch = self._send
        self._wallets = Wallets(exchange.name, self._client, self._ask)
        self.private = self._described(private_venue_of(exchange.settings.exchange_id))

    def __repr__(self) -> str:
        return f"CcxtAccount({self.name})"

    @property
    def name(self) -> str:
        return self.exchange.name

    async def now(self) -> datetime:
        """The exchange's own time."""
        return await self._asked(self.exchange.now())

    async def load_markets(self, *, reload: bool = False) -> list[MarketListing]:
        """Every market it lists, by symbol."""
        return await self._asked(self.exchange.load_markets(reload=reload))

    async def fetch_order(
        self,
        symbol: str,
        *,
        exchange_order_id: str | None = None,
        client_order_id: str | None = None,
        since: datetime | None = None,
    ) -> ReportedOrder | None:
        """The order of either id; None if the exchange says that it does not know it."""
        await self._listed(symbol)
        by_id = self.private.lookup is OrderLookup.ID or (
            exchange_order_id is not None and self._client.id != "bybit"
        )
        if by_id:
            found = await self._order_by_id(symbol, exchange_order_id, client_order_id)
        else:
            found = await self._order_in_lists(symbol, exchange_order_id, client_order_id)
        if found is None and since is not None and client_order_id is not None:
            # The venue may have forgotten the id, and not the order.
            found = await self._order_since(symbol, client_order_id, since)
        return found

    async def fetch_open_orders(self, symbol: str) -> list[ReportedOrder]:
        """Orders of a market that are not over."""
        await self._listed(symbol)
        rows = await self._open_orders(symbol)
        return [self._order(row) for row in rows if self._is_of(symbol, row)]

    async def fetch_orders(self, symbol: str, query: RecordQuery) -> OrderPage:
        """One request for orders, or as many as the venue has lists."""
        await self._listed(symbol)
        limit = self.private.lists_of(symbol).order_limit or CAUTIOUS_LIMIT
        rows: dict[str, Any] = {}
        is_full, cursor = False, None
        for method, more in self._order_lists(symbol, query, limit):
            if method == "fetch_open_orders":
                # They are listed whole, and with the first page.
                found = [] if query.cursor else await self._open_orders(symbol)
            else:
                kind = self.private.order_cursor
                found, answer = await self._records(
                    method, symbol, query, limit, ("orderId", kind), more
                )
                goes_on, following = _following(kind, query, len(found), limit, answer)
                is_full |= goes_on
                cursor = following or cursor
            rows |= {str(row["id"]): row for row in found}
        orders, unreadable = read_all(
            [row for row in rows.values() if self._is_of(symbol, row)], "order", self._order
        )
        return OrderPage(orders, unreadable, is_full, cursor)

    async def fetch_executions(self, symbol: str, query: RecordQuery) -> ExecutionPage:
        """One request for fills."""
        await self._listed(symbol)
        limit = self.private.lists_of(symbol).trade_limit or CAUTIOUS_LIMIT
        kind = self.private.trade_cursor
        found, answer = await self._records(
            "fetch_my_trades", symbol, query, limit, ("fromId", kind)
        )
        executions, unreadable = read_executions([row for row in found if self._is_of(symbol, row)])
        is_full, cursor = _following(kind, query, len(found), limit, answer)
        return ExecutionPage(executions, unreadable, is_full, cursor)

    async def fetch_balances(self, wallets: Sequence[str] = ()) -> list[ReportedBalance]:
        """What the account has in these wallets together, by asset; what is settled of it."""
        return await self._wallets.balances(self.private, wallets)

    async def fetch_held_symbols(self, wallets: Sequence[str]) -> list[str]:
        """Markets of the contracts that are held in these wallets."""
        return await self._wallets.held_symbols(self.private, wallets)

    async def fetch_transfers(
        self, since: datetime, until: datetime
    ) -> tuple[list[Entry], list[Unreadable]]:
        """Deposits and withdrawals that are through; fees as entries of their own."""
        return await self._wallets.transfers(since, until)

    async def fetch_funding(
        self, symbol: str, since: datetime, until: datetime
    ) -> tuple[list[Entry], list[Unreadable]]:
        """Funding that was paid or received for a contract. Raises NotOffered."""
        await self._listed(symbol)
        return await self._wallets.funding(self.private, symbol, since, until)

    async def create_order(self, order: NewOrder) -> ReportedOrder:
        """Send an order, once. Raises OrderRejected if it is surely not there,
        OrderOutcomeUnknown if it may be."""
        await self._listed(order.symbol)
        self._check_sendable(order)
        numbers = {"amount": order.amount, "price": order.price, "stop_price": order.stop_price}
        given = {name: value for name, value in numbers.items() if value is not None}
        params: dict[str, Any] = {"clientOrderId": order.client_order_id}
        if order.stop_price is not None:
            side = "stopLossPrice" if order.type is OrderType.STOP_LOSS else "takeProfitPrice"
            params[side] = plain(order.stop_price)
        if order.post_only:
            params["postOnly"] = True
        if order.reduce_only:
            params["reduceOnly"] = True
        price = None if order.price is None else plain(order.price)

        async def send() -> Any:
            return await self._client.create_order(
                order.symbol,
                "market" if price is None else "limit",
                order.side.value,
                plain(order.amount),
                price,
                params,
            )

        deadline_s = time.monotonic() + QUEUED_S
        answer = await self._once(send, Outgoing(order.client_order_id, given, deadline_s))
        answer = {**answer, "clientOrderId": answer.get("clientOrderId") or order.client_order_id}
        try:
            return self._order(answer)
        except (BrokenAnswer, LedgerRuleBroken) as error:
            raise OrderOutcomeUnknown(
                self.name, f"the answer to order {order.client_order_id} cannot be read: {error}"
            ) from error

    async def cancel_order(
        self, symbol: str, *, exchange_order_id: str | None, client_order_id: str | None
    ) -> ReportedOrder | None:
        """Ask for the end of an order. None if the exchange does not know it, or no longer."""
        import ccxt

        await self._listed(symbol)
        params: dict[str, Any] = {}
        named = exchange_order_id
        if named is None:
            if client_order_id is None or self.private.lookup is OrderLookup.NONE:
                raise NotOffered(self.name, "an order without an id there cannot be canceled")
            if self._client.id == "gate":
                named = client_order_id  # in the place of its own
            else:
                key = "orderLinkId" if self._client.id == "bybit" else "clientOrderId"
                params = {key: client_order_id}
        outgoing = Outgoing(exchange_order_id or client_order_id or "")

        async def send() -> Any:
            try:
                return await self._client.cancel_order(named, symbol, params)
            except ccxt.OrderNotFound:
                return None

        answer = await self._once(send, outgoing)
        if not isinstance(answer, Mapping):
            return None
        # Binance answers with the id of the cancel request, where other answers have the order's.
        said = {
            **answer,
            "id": exchange_order_id or answer.get("id"),
            "clientOrderId": client_order_id,
        }
        try:
            return self._order(said)
        except (BrokenAnswer, LedgerRuleBroken):
            # It was taken; what became of the order is asked for.
            return ReportedOrder(
                OrderUpdate(client_order_id=client_order_id, exchange_order_id=exchange_order_id)
            )

    async def close(self) -> None:
        """Let go of connections."""
        await self.exchange.close()

    # Requests

    async def _ask(self, make: Callable[[], Awaitable[T]]) -> T:
        """A question, asked again within the policy; a clock that went wrong is set once."""
        import ccxt

        async def attempt() -> T:
            try:
                return await make()
            except ccxt.InvalidNonce:
                await self._client.load_time_difference()
                return await make()

        return await self._asked(self.exchange.caller.call(attempt, self._exchange_now))

    async def _asked(self, call: Awaitable[T]) -> T:
        """The error's chain goes: CCXT's messages have addresses, some venues' with the key."""
        try:
            return await call
        except ExchangeError as error:
            error.__cause__ = None
            failure = error
        failure.__context__ = None
        raise failure

    async def _once(self, send: Callable[[], Awaitable[Any]], outgoing: Outgoing) -> Any:
        """One request, never made again."""
        token = outgoing_now.set(outgoing)
        failure: ExchangeError
        try:
            return await send()
        except Exception as error:
            failure = failure_of(self.name, error, outgoing, self._secrets)
        finally:
            outgoing_now.reset(token)
        failure.__context__ = None
        raise failure

    async def _send(
        self, url: str, method: str = "GET", headers: Any = None, body: Any = None
    ) -> Any:
        """CCXT's fetch; an order that does not carry what it should does not pass."""
        outgoing = outgoing_now.get()
        if outgoing is not None and method != "GET":
            check_request(self.name, outgoing, url, body)
            outgoing.is_sent = True
        answer = await self._fetch(url, method, headers, body)
        heard = heard_now.get()
        if heard is not None:
            heard.append(answer)
        return answer

    def _exchange_now(self) -> datetime | None:
        now_ms = self.exchange.clock.now_ms()
        return None if now_ms is None else from_ms(now_ms)

    # Looking for an order

    async def _order_by_id(
        self, symbol: str, exchange_order_id: str | None, client_order_id: str | None
    ) -> ReportedOrder | None:
        params = {} if exchange_order_id is not None else {"clientOrderId": client_order_id}

        async def ask() -> Any:
            return await self._client.fetch_order(exchange_order_id, symbol, params)

        row = await self._or_none(ask)
        if row is None or not row.get("id"):
            return None
        return self._same(self._order(row), exchange_order_id, client_order_id)

    async def _order_in_lists(
        self, symbol: str, exchange_order_id: str | None, client_order_id: str | None
    ) -> ReportedOrder | None:
        """From the lists of open and of ended orders, which the venue filters by the id."""
        if self._client.id == "bybit":
            params = (
                {"orderLinkId": client_order_id}
                if exchange_order_id is None
                else {"orderId": exchange_order_id}
            )
        else:
            params = {"clientOrderId": client_order_id}
        ended = "fetch_closed_orders"
        if self._client.has.get("fetchCanceledAndClosedOrders") is True:
            ended = "fetch_canceled_and_closed_orders"
        for method in ("fetch_open_orders", ended):

            async def ask(method: str = method) -> Any:
                return await getattr(self._client, method)(symbol, None, None, params)

            for row in await self._or_none(ask) or ():
                found = self._same(self._order(row), exchange_order_id, client_order_id)
                if found is not None:
                    return found
        return None

    async def _order_since(
        self, symbol: str, client_order_id: str, since: datetime
    ) -> ReportedOrder | None:
        """From the lists of orders that are open, and of those made at about that time."""
        for order in await self.fetch_open_orders(symbol):
            if order.update.client_order_id == client_order_id:
                return order
        async for window in order_windows(self, symbol, since - _LOOK_AROUND, since + _LOOK_AROUND):
            for order in window.rows:
                if order.update.client_order_id == client_order_id:
                    return order
        return None

    async def _or_none(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """The answer; None if it is that there is no such order."""
        import ccxt

        async def attempt() -> Any:
            try:
                return await make()
            except ccxt.OrderNotFound:
                return None
            except ccxt.ExchangeError as error:
                # What CCXT does not tell from other refusals.
                if _UNKNOWN_ORDER.search(str(error)):
                    return None
                raise

        return await self._ask(attempt)

    @staticmethod
    def _same(
        found: ReportedOrder, exchange_order_id: str | None, client_order_id: str | None
    ) -> ReportedOrder | None:
        """A lookup that a venue ignored gives somebody else's order."""
        if exchange_order_id is not None:
            return found if found.update.exchange_order_id == exchange_order_id else None
        return found if found.update.client_order_id == client_order_id else None

    # Lists

    def _order_lists(
        self, symbol: str, query: RecordQuery, limit: int
    ) -> list[tuple[str, Mapping[str, str]]]:
        """The lists of CCXT that together have every order, and what else they are asked with."""
        has = self._client.has
        if has.get("fetchOrders") is True:
            return [("fetch_orders", {})]
        if query.from_id is not None:
            raise NotOffered(self.name, "its orders cannot be asked for by id")
        if has.get("fetchCanceledAndClosedOrders") is True:
            return [("fetch_canceled_and_closed_orders", {}), ("fetch_open_orders", {})]
        ended = [
            method
            for name, method in (
                ("fetchClosedOrders", "fetch_closed_orders"),
                ("fetchCanceledOrders", "fetch_canceled_orders"),
            )
            if has.get(name) is True
        ]
        if not ended:
            raise NotOffered(self.name, "CCXT lists none of its past orders")
        lists: list[tuple[str, Mapping[str, str]]] = [(method, {}) for method in ended]
        if self._client.id == "okx":
            # Beside the list of the last seven days it has one of three months, which CCXT's
            # fetch_canceled_orders() does not ask for.
            archive = {"method": "privateGetTradeOrdersHistoryArchive"}
            lists += [
                ("fetch_closed_orders", {**archive, "state": state})
                for state in ("filled", "canceled")
            ]
        elif self._client.id == "kucoin" and ":" not in symbol:
            # CCXT says pageSize, which hf/orders/done does not know: it shows 20 unless it is given
            # a limit.
            lists = [(method, {"limit": str(limit)}) for method in ended]
        return [*lists, ("fetch_open_orders", {})]

    async def _open_orders(self, symbol: str) -> list[Any]:
        """Raises BadAnswer if there are more than the venue shows at once."""
        spot = (self._client.features or {}).get("spot") or {}
        limit = (spot.get("fetchOpenOrders") or {}).get("limit")
        kind = self.private.order_cursor
        found: list[Any] = []
        params: dict[str, Any] = {}
        while True:

            async def ask(more: dict[str, Any] = params) -> Any:
                return await self._client.fetch_open_orders(symbol, None, limit, more)

            rows, answer = await self._heard(ask)
            found += rows
            if limit is None or len(rows) < limit:
                return found
            cursor = kind.found_in(answer) if kind is not None and kind.at else None
            if kind is None or not cursor:
                raise BadAnswer(self.name, f"it shows {limit} open orders, and there may be more")
            params = {kind.parameter: cursor}

    async def _records(
        self,
        method: str,
        symbol: str,
        query: RecordQuery,
        limit: int,
        names: tuple[str, Cursor | None],
        more: Mapping[str, str] | None = None,
    ) -> tuple[list[Any], Any]:
        """Rows, and the answer that they are from. names: of the parameters of an id and of a next
        page."""
        id_parameter, kind = names
        params: dict[str, Any] = {**(more or {})}
        if query.until_ms is not None:
            if self._client.id == "kraken":
                # CCXT sends `until` in milliseconds where Kraken wants seconds.
                params["end"] = query.until_ms // 1000 + 1
            elif self._client.id == "bitfinex":
                # For fills CCXT leaves `until` as it is, and ends with now.
                params["end"] = query.until_ms
            else:
                params["until"] = query.until_ms
        if query.from_id is not None:
            params[id_parameter] = query.from_id
        if query.cursor is not None and kind is not None:
            params[kind.parameter] = query.cursor
        asked = None if self.private.all_markets else symbol

        async def ask() -> Any:
            return await getattr(self._client, method)(asked, query.since_ms, limit, params)

        rows, answer = await self._heard(ask)
        if not isinstance(rows, list):
            raise BadAnswer(self.name, f"{method} gave no list")
        return rows, answer

    async def _heard(self, make: Callable[[], Awaitable[Any]]) -> tuple[Any, Any]:
        """What CCXT makes of an answer, and the answer itself: where its list goes on, CCXT does
        not say."""
        heard: list[Any] = []
        token = heard_now.set(heard)
        try:
            return await self._ask(make), heard[-1] if heard else None
        finally:
            heard_now.reset(token)

    def _is_of(self, symbol: str, row: Any) -> bool:
        """CCXT takes a record of a market that it does not know, because it was delisted, for one
        of the market that was asked for."""
        if row["symbol"] != symbol:
            return False
        info = row.get("info")
        if self.private.all_markets or not isinstance(info, Mapping):
            return True
        wanted = _plain_id(self._client.markets[symbol]["id"])
        said = [info[key] for key in _MARKET_KEYS if isinstance(info.get(key), str) and info[key]]
        return all(_plain_id(name) == wanted for name in said)

    def _order(self, row: Any) -> ReportedOrder:
        return read_order(row, self._exchange_now())

    # Smaller things

    async def _listed(self, symbol: str) -> None:
        if not self._client.markets:
            await self.load_markets()
        if symbol not in self._client.markets:
            raise BadSymbol(self.name, f"it does not list {symbol}")

    def _check_credentials(self) -> None:
        missing = [
            name
            for name, needed in (self._client.requiredCredentials or {}).items()
            if needed and not getattr(self._client, name, None)
        ]
        if missing:
            raise ConfigError(
                f"{self.name}: its private side needs {', '.join(missing)}; name the environment "
                "variables that hold them: `kurisu account add --help`."
            )

    def _check_sendable(self, order: NewOrder) -> None:
        if self.private.client_ids is None or self.private.lookup is OrderLookup.NONE:
            raise NotOffered(
                self.name,
                "Kurisu sends no orders there: it is not known how to find one again whose answer "
                "was lost",
            )
        self.private.check_client_order_id(self.name, order.client_order_id)
        is_contract = bool(self._client.markets[order.symbol].get("contract"))
        if is_contract and not self.private.contracts:
            raise NotOffered(self.name, "Kurisu sends no orders for contracts there")
        if order.stop_price is not None and (is_contract or not self.private.stop_orders):
            raise NotOffered(
                self.name, f"Kurisu sends no {order.type.value} orders for {order.symbol} there"
            )
        is_market_buy = order.price is None and order.stop_price is None and order.side == "buy"
        if is_market_buy and not is_contract and not self.private.market_buy_by_amount:
            raise NotOffered(
                self.name, "a market buy is placed by its cost there, not by an amount; use a limit"
            )

    def _described(self, venue: PrivateVenue) -> PrivateVenue:
        """`venue`, with what CCXT's features say where nothing better is known."""
        spot = (self._client.features or {}).get("spot") or {}
        trades = spot.get("fetchMyTrades") or {}
        orders = spot.get("fetchOrders") or spot.get("fetchClosedOrders") or {}
        # Written, waiting for its turn, on its way, and then the venue's own delay.
        slowest_s = 2 * QUEUED_S + self.exchange.settings.timeout_s + _VENUE_DELAY_S
        return replace(
            venue,
            absent_after=max(venue.absent_after, timedelta(seconds=slowest_s)),
            trade_window_ms=venue.trade_window_ms or _days_ms(trades.get("untilDays")),
            trade_limit=venue.trade_limit or _page_of(trades),
            order_window_ms=venue.order_window_ms or _days_ms(orders.get("untilDays")),
            order_limit=venue.order_limit or _page_of(orders),
        )


def required_credentials(settings: ExchangeSettings) -> frozenset[str]:
    """CCXT's names of the credentials that the exchange asks for. Raises NotOffered."""
    client = CcxtExchange(settings).client
    return frozenset(name for name, needed in client.requiredCredentials.items() if needed)


@asynccontextmanager
async def open_account(settings: ExchangeSettings, **more: Any) -> AsyncIterator[CcxtAccount]:
    """The account whose credentials `settings.env` names, closed at the end.

    more: see `CcxtExchange`. Raises ConfigError if a variable is not set or a credential is
    missing, NotOffered if CCXT has no such exchange.
    """
    exchange = CcxtExchange(settings, **more)
    try:
        yield CcxtAccount(exchange)
    finally:
        await exchange.close()


def _all_rows(array: Any, *_: Any, **__: Any) -> list[Any]:
    return list(array)


def _following(
    kind: Cursor | None, query: RecordQuery, rows: int, limit: int, answer: object
) -> tuple[bool, str | None]:
    """Whether a list may go on behind a page, and its cursor."""
    if rows < limit:
        return False, None
    if kind is None:
        return True, None
    if not kind.at:
        return True, str(int(query.cursor or 0) + rows)
    said = kind.found_in(answer)
    return said != "", said or None


def _plain_id(market_id: str) -> str:
    return "".join(letter for letter in market_id.casefold() if letter.isalnum())


def _page_of(feature: Mapping[str, Any]) -> int:
    """Rows a page, by CCXT's features of a list."""
    return min(feature.get("limit") or CAUTIOUS_LIMIT, FEATURES_LIMIT)


def _days_ms(days: object) -> int | None:
    return round(days * 86_400_000) if isinstance(days, int | float) else None
