"""Binance's signed part: one account, its orders, and a small matching against the served trades.

Orders are matched when something is asked, with the trades that were served since: a trade at the
limit or better fills as much of a resting order as it has. A market order, or a limit that crosses
the last price, is filled at once at the last price. What is checked is what Binance checks: key,
HMAC signature, timestamp and recvWindow, the filters of the market, balances, client ids.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_DOWN, Decimal
from typing import Any, Final
from urllib.parse import parse_qsl

from exchange_server.clock import DAY_MS, VirtualClock
from exchange_server.truth import Listing
from exchange_server.venue import Answer

MAX_ROWS: Final = 1_000
_AHEAD_MS: Final = 1_000
_LONGEST_RECV_WINDOW_MS: Final = 60_000
_PRIVATE: Final = {"account", "order", "openOrders", "allOrders", "myTrades"}
_TRANSFERS: Final = {"hisrec", "history"}
_OVER: Final = {"FILLED", "CANCELED", "REJECTED", "EXPIRED"}
_ZERO: Final = Decimal(0)


class Refusal(Exception):
    """An error in Binance's words."""

    def __init__(self, code: int, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.answer = Answer({"code": code, "msg": text}, status)


@dataclass(slots=True)
class PlacedOrder:
    """One order at the exchange."""

    id: int
    client_id: str
    symbol: str
    side: str
    type: str
    amount: Decimal
    price: Decimal
    stop_price: Decimal
    time_ms: int
    updated_ms: int
    status: str = "NEW"
    filled: Decimal = _ZERO
    quote: Decimal = _ZERO
    #: Served trades up to this time have been matched.
    matched_ms: int = 0


@dataclass(frozen=True, slots=True)
class Fill:
    """One execution at the exchange."""

    id: int
    order: PlacedOrder
    price: Decimal
    amount: Decimal
    fee: Decimal
    fee_asset: str
    time_ms: int
    is_maker: bool


def eight(value: Decimal) -> str:
    return format(value.quantize(Decimal("1E-8")), "f")


@dataclass
class BinanceAccount:
    """The account behind one key.

    balances: asset -> total. fee_rate: of the cost; fee_asset: the asset it is taken in, else what
    the order receives; fee_asset_price: quote units per unit of it.
    slices: into how many fills an order that is filled at once is cut.
    hidden_ms: how long after it was placed an order is unknown to every question, while its fills
    are there. longest_window_ms: of orders and fills. transfer_rows: of a page of deposits; the
    newest ones, as on venues that say nothing of it. deposits, withdrawals: rows as
    Binance has them; `move` makes them.
    """

    clock: VirtualClock
    listings: Mapping[str, Listing]
    key: str = "test-key"
    secret: str = "test-secret"
    balances: dict[str, Decimal] = field(default_factory=dict)
    fee_rate: Decimal = Decimal("0.001")
    fee_asset: str | None = None
    fee_asset_price: Decimal = Decimal(600)
    slices: int = 1
    hidden_ms: int = 0
    longest_window_ms: int = DAY_MS
    transfer_rows: int = MAX_ROWS
    deposits: list[dict[str, Any]] = field(default_factory=list)
    withdrawals: list[dict[str, Any]] = field(default_factory=list)
    orders: list[PlacedOrder] = field(default_factory=list)
    fills: list[Fill] = field(default_factory=list)
    next_order_id: int = 4_000_000_000
    next_trade_id: int = 70_000
    lock: threading.RLock = field(default_factory=threading.RLock)

    @staticmethod
    def owns(path: str) -> bool:
        name = path.rsplit("/", 1)[-1]
        return name in _TRANSFERS if path.startswith("sapi/") else name in _PRIVATE

    def handle(self, method: str, path: str, signed: str, headers: Mapping[str, str]) -> Answer:
        """The answer to one signed request."""
        name = path.rsplit("/", 1)[-1]
        with self.lock:
            try:
                params = self.checked(signed, headers)
                handlers: dict[tuple[str, str], Callable[[Mapping[str, str]], Any]] = {
                    ("GET", "account"): self._account,
                    ("POST", "order"): self._place,
                    ("GET", "order"): self._query,
                    ("DELETE", "order"): self._cancel,
                    ("GET", "openOrders"): self._open_orders,
                    ("GET", "allOrders"): self._all_orders,
                    ("GET", "myTrades"): self._my_trades,
                    ("GET", "hisrec"): self._deposits,
                    ("GET", "history"): self._withdrawals,
                }
                handler = handlers.get((method, name))
                if handler is None:
                    return Answer({"code": -1, "msg": "no such path"}, 404)
                self.match()
                return Answer(handler(params))
            except Refusal as refusal:
                return refusal.answer

    # What a test does beside the API

    def place(self, symbol: str, side: str, amount: str, price: str | None = None) -> PlacedOrder:
        """An order by somebody else with the same account: in the app, on the web page."""
        with self.lock:
            self.match()
            order = self._accept(
                {"symbol": symbol, "side": side.upper(), "quantity": amount,
                 "type": "MARKET" if price is None else "LIMIT", "price": price or "0",
                 "newClientOrderId": f"web_{self.next_order_id}"}
            )  # fmt: skip
            self.match()
            return order

    def move(self, asset: str, amount: str, fee: str = "0", *, is_through: bool = True) -> None:
        """A deposit (amount above zero) or a withdrawal; the fee of the latter comes on top."""
        now, number = self.clock.now_ms(), Decimal(amount)
        rows = self.deposits if number > 0 else self.withdrawals
        done = 1 if number > 0 else 6
        row: dict[str, Any] = {
            "id": f"{asset}{len(rows)}{'d' if number > 0 else 'w'}", "coin": asset,
            "amount": eight(abs(number)), "network": "X", "address": "a", "txId": f"0x{len(rows)}",
            "status": done if is_through else 0,
        }  # fmt: skip
        if number > 0:
            row["insertTime"] = now
        else:
            day = datetime.fromtimestamp(now // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
            row |= {"transactionFee": fee, "applyTime": day}
        rows.append(row)
        if is_through:
            total = self.balances.get(asset, _ZERO)
            self.balances[asset] = total + number - Decimal(fee)

    def match(self) -> None:
        """Fill resting orders with what was served up to now."""
        now = self.clock.now_ms()
        for order in self.orders:
            if order.status in _OVER:
                continue
            for tick in self._ticks(order, now):
                if order.status in _OVER:
                    break
                if order.type.startswith(("STOP", "TAKE")):
                    if self._triggers(order, tick.price):
                        order.type = order.type.removesuffix("_LIMIT")
                        self._fill(order, order.amount, tick.price, tick.time_ms, is_maker=False)
                elif (
                    tick.price <= order.price if order.side == "BUY" else tick.price >= order.price
                ):
                    left = order.amount - order.filled
                    self._fill(
                        order, min(left, tick.amount), order.price, tick.time_ms, is_maker=True
                    )
            order.matched_ms = now

    # How

    def checked(self, signed: str, headers: Mapping[str, str]) -> dict[str, str]:
        """The parameters of a request. Raises Refusal unless it is properly signed."""
        params = dict(parse_qsl(signed, keep_blank_values=True))
        if headers.get("X-MBX-APIKEY") != self.key:
            raise Refusal(-2015, "Invalid API-key, IP, or permissions for action.", 401)
        payload, found, signature = signed.rpartition("&signature=")
        wanted = hmac.new(self.secret.encode(), payload.encode(), hashlib.sha256).hexdigest()
        if not found or not hmac.compare_digest(signature, wanted):
            raise Refusal(-1022, "Signature for this request is not valid.")
        now, at = self.clock.now_ms(), int(params.get("timestamp", "0"))
        window = int(params.get("recvWindow", "5000"))
        if window > _LONGEST_RECV_WINDOW_MS:
            raise Refusal(-1131, "recvWindow must be less than 60000")
        if at >= now + _AHEAD_MS:
            raise Refusal(
                -1021, "Timestamp for this request was 1000ms ahead of the server's time."
            )
        if now - at > window:
            raise Refusal(-1021, "Timestamp for this request is outside of the recvWindow.")
        return params

    def _market(self, params: Mapping[str, str]) -> Listing:
        listing = self.listings.get(params.get("symbol", ""))
        if listing is None:
            raise Refusal(-1121, "Invalid symbol.")
        return listing

    def _ticks(self, order: PlacedOrder, now: int) -> list[Any]:
        tape = self.listings[order.symbol].tape
        return tape.since(now, order.matched_ms + 1, now, len(tape.ticks))

    def last_price(self, symbol: str) -> Decimal:
        tape = self.listings[symbol].tape
        ticks = tape.visible(self.clock.now_ms())
        return ticks[-1].price if ticks else Decimal(1)

    @staticmethod
    def _triggers(order: PlacedOrder, price: Decimal) -> bool:
        falling = (order.side == "SELL") == order.type.startswith("STOP")
        return price <= order.stop_price if falling else price >= order.stop_price

    @staticmethod
    def _reaches(order: PlacedOrder, price: Decimal) -> bool:
        return price <= order.price if order.side == "BUY" else price >= order.price

    def _assets(self, symbol: str) -> tuple[str, str]:
        entry = self.listings[symbol].entry
        return str(entry["baseAsset"]), str(entry["quoteAsset"])

    def locked(self, asset: str) -> Decimal:
        total = _ZERO
        for order in self.orders:
            if order.status in _OVER:
                continue
            base, quote = self._assets(order.symbol)
            left = order.amount - order.filled
            if order.side == "SELL" and base == asset:
                total += left
            elif order.side == "BUY" and quote == asset:
                total += left * (order.price or order.stop_price)
        return total

    def _account(self, params: Mapping[str, str]) -> Any:
        return {
            "makerCommission": 10, "takerCommission": 10, "canTrade": True, "canWithdraw": True,
            "canDeposit": True, "updateTime": self.clock.now_ms(), "accountType": "SPOT",
            "balances": [
                {"asset": asset, "free": eight(total - self.locked(asset)),
                 "locked": eight(self.locked(asset))}
                for asset, total in sorted(self.balances.items())
            ],
            "permissions": ["SPOT"],
        }  # fmt: skip

    def _place(self, params: Mapping[str, str]) -> Any:
        order = self._accept(params)
        return self._answer(order, with_fills=True)

    def _accept(self, params: Mapping[str, str]) -> PlacedOrder:
        listing = self._market(params)
        symbol, now = params["symbol"], self.clock.now_ms()
        client_id = params.get("newClientOrderId") or f"x-{self.next_order_id}"
        if any(o.client_id == client_id and o.status not in _OVER for o in self.orders):
            raise Refusal(-2010, "Duplicate order sent.")
        amount = Decimal(params["quantity"])
        price = Decimal(params.get("price", "0"))
        stop = Decimal(params.get("stopPrice", "0"))
        last = self.last_price(symbol)
        self._filters(listing, amount, price, last)
        base, quote = self._assets(symbol)
        asset, needed = (
            (base, amount)
            if params["side"] == "SELL"
            else (quote, amount * (price or stop or last))
        )
        if self.balances.get(asset, _ZERO) - self.locked(asset) < needed:
            raise Refusal(-2010, "Account has insufficient balance for requested action.")
        order = PlacedOrder(
            self.next_order_id, client_id, symbol, params["side"], params["type"], amount, price,
            stop, now, now, matched_ms=now,
        )  # fmt: skip
        self.next_order_id += 1
        self.orders.append(order)
        if order.type == "MARKET" or (order.type == "LIMIT" and self._reaches(order, last)):
            self._fill_at_once(order, last, now)
        return order

    def _filters(self, listing: Listing, amount: Decimal, price: Decimal, last: Decimal) -> None:
        filters: Any = listing.entry["filters"]
        rules = {str(rule["filterType"]): rule for rule in filters}
        lot, tick = rules["LOT_SIZE"], rules["PRICE_FILTER"]
        if not Decimal(lot["minQty"]) <= amount <= Decimal(lot["maxQty"]):
            raise Refusal(-1013, "Filter failure: LOT_SIZE")
        if amount % Decimal(lot["stepSize"]):
            raise Refusal(-1013, "Filter failure: LOT_SIZE")
        if price and (price % Decimal(tick["tickSize"]) or price > Decimal(tick["maxPrice"])):
            raise Refusal(-1013, "Filter failure: PRICE_FILTER")
        if amount * (price or last) < Decimal(rules["NOTIONAL"]["minNotional"]):
            raise Refusal(-1013, "Filter failure: NOTIONAL")

    def _fill_at_once(self, order: PlacedOrder, price: Decimal, now: int) -> None:
        lot = next(
            rule for rule in self._rules(order.symbol) if rule["filterType"] == "LOT_SIZE"
        )  # fmt: skip
        step = Decimal(str(lot["stepSize"]))
        part = (order.amount / self.slices / step).to_integral_value(ROUND_DOWN) * step
        for _ in range(self.slices - 1):
            if part:
                self._fill(order, part, price, now, is_maker=False)
        self._fill(order, order.amount - order.filled, price, now, is_maker=False)

    def _rules(self, symbol: str) -> list[dict[str, Any]]:
        rules: Any = self.listings[symbol].entry["filters"]
        return list(rules)

    def _fill(
        self, order: PlacedOrder, amount: Decimal, price: Decimal, time_ms: int, *, is_maker: bool
    ) -> None:
        base, quote = self._assets(order.symbol)
        cost = price * amount
        received, gained = (base, amount) if order.side == "BUY" else (quote, cost)
        asset = self.fee_asset or received
        worth = cost / self.fee_asset_price if self.fee_asset else gained
        fee = (worth * self.fee_rate).quantize(Decimal("1E-8"), ROUND_DOWN)
        sign = 1 if order.side == "BUY" else -1
        for name, change in ((base, sign * amount), (quote, -sign * cost), (asset, -fee)):
            self.balances[name] = self.balances.get(name, _ZERO) + change
        order.filled += amount
        order.quote += cost
        order.updated_ms = time_ms
        order.status = "FILLED" if order.filled == order.amount else "PARTIALLY_FILLED"
        self.fills.append(
            Fill(self.next_trade_id, order, price, amount, fee, asset, time_ms, is_maker)
        )
        self.next_trade_id += 3

    def _find(self, params: Mapping[str, str]) -> PlacedOrder | None:
        self._market(params)
        client_id, order_id = params.get("origClientOrderId"), params.get("orderId")
        for order in reversed(self._visible(params["symbol"])):
            if str(order.id) == order_id or (order_id is None and order.client_id == client_id):
                return order
        return None

    def _visible(self, symbol: str) -> list[PlacedOrder]:
        now = self.clock.now_ms()
        return [
            order for order in self.orders
            if order.symbol == symbol and now >= order.time_ms + self.hidden_ms
        ]  # fmt: skip

    def _query(self, params: Mapping[str, str]) -> Any:
        order = self._find(params)
        if order is None:
            raise Refusal(-2013, "Order does not exist.")
        return self._answer(order)

    def _cancel(self, params: Mapping[str, str]) -> Any:
        order = self._find(params)
        if order is None or order.status in _OVER:
            raise Refusal(-2011, "Unknown order sent.")
        order.status, order.updated_ms = "CANCELED", self.clock.now_ms()
        # As Binance does: clientOrderId is the cancel's own.
        return {
            **self._answer(order), "origClientOrderId": order.client_id,
            "clientOrderId": f"cancel_{order.id}", "transactTime": order.updated_ms,
        }  # fmt: skip

    def _open_orders(self, params: Mapping[str, str]) -> Any:
        symbol = self._market(params).id
        return [self._answer(o) for o in self._visible(symbol) if o.status not in _OVER]

    def _all_orders(self, params: Mapping[str, str]) -> Any:
        symbol = self._market(params).id
        rows = self._visible(symbol)
        first, limit = params.get("orderId"), min(int(params.get("limit", "500")), MAX_ROWS)
        since, until = self._window(params)
        if first is not None:
            found = [o for o in rows if o.id >= int(first)][:limit]
        elif since is None and until is None:
            found = rows[-limit:]
        else:
            found = [
                o for o in rows
                if (since is None or o.time_ms >= since) and (until is None or o.time_ms <= until)
            ][:limit]  # fmt: skip
        return [self._answer(order) for order in found]

    def _my_trades(self, params: Mapping[str, str]) -> Any:
        symbol = self._market(params).id
        rows = [fill for fill in self.fills if fill.order.symbol == symbol]
        first, limit = params.get("fromId"), min(int(params.get("limit", "500")), MAX_ROWS)
        since, until = self._window(params)
        if "orderId" in params:
            rows = [fill for fill in rows if str(fill.order.id) == params["orderId"]]
        if first is not None:
            if since is not None or until is not None:
                raise Refusal(-1128, "Combination of optional parameters invalid.")
            found = [fill for fill in rows if fill.id >= int(first)][:limit]
        elif since is None and until is None:
            found = rows[-limit:]
        else:
            found = [
                f for f in rows
                if (since is None or f.time_ms >= since) and (until is None or f.time_ms <= until)
            ][:limit]  # fmt: skip
        return [self._trade(fill) for fill in found]

    def _deposits(self, params: Mapping[str, str]) -> Any:
        since, until = int(params["startTime"]), int(params["endTime"])
        if until - since > 90 * DAY_MS:
            raise Refusal(-1127, "More than 90 days between startTime and endTime.")
        rows = [row for row in self.deposits if since <= row["insertTime"] <= until]
        return rows[-self.transfer_rows :]

    def _withdrawals(self, params: Mapping[str, str]) -> Any:
        since, until = int(params["startTime"]), int(params["endTime"])
        if until - since > 90 * DAY_MS:
            raise Refusal(-1127, "More than 90 days between startTime and endTime.")
        return [
            row for row in self.withdrawals
            if since // 1000 * 1000 <= _applied_ms(row) <= until
        ]  # fmt: skip

    def _window(self, params: Mapping[str, str]) -> tuple[int | None, int | None]:
        since = int(params["startTime"]) if "startTime" in params else None
        until = int(params["endTime"]) if "endTime" in params else None
        if since is not None and until is not None and until - since > self.longest_window_ms:
            raise Refusal(-1127, "More than 24 hours between startTime and endTime.")
        if since is not None and until is None:
            until = since + DAY_MS
        return since, until

    def _answer(self, order: PlacedOrder, *, with_fills: bool = False) -> dict[str, Any]:
        said: dict[str, Any] = {
            "symbol": order.symbol, "orderId": order.id, "orderListId": -1,
            "clientOrderId": order.client_id, "price": eight(order.price),
            "origQty": eight(order.amount), "executedQty": eight(order.filled),
            "cummulativeQuoteQty": eight(order.quote), "status": order.status,
            "timeInForce": "GTC", "type": order.type, "side": order.side,
            "selfTradePreventionMode": "NONE",
        }  # fmt: skip
        if with_fills:
            fills = [
                {"price": eight(f.price), "qty": eight(f.amount), "commission": eight(f.fee),
                 "commissionAsset": f.fee_asset, "tradeId": f.id}
                for f in self.fills if f.order is order
            ]  # fmt: skip
            return {**said, "transactTime": order.updated_ms, "fills": fills}
        return {
            **said, "stopPrice": eight(order.stop_price), "icebergQty": "0.00000000",
            "time": order.time_ms, "updateTime": order.updated_ms, "isWorking": True,
            "workingTime": order.time_ms, "origQuoteOrderQty": "0.00000000",
        }  # fmt: skip

    def _trade(self, fill: Fill) -> dict[str, Any]:
        return {
            "symbol": fill.order.symbol, "id": fill.id, "orderId": fill.order.id,
            "orderListId": -1, "price": eight(fill.price), "qty": eight(fill.amount),
            "quoteQty": eight(fill.price * fill.amount), "commission": eight(fill.fee),
            "commissionAsset": fill.fee_asset, "time": fill.time_ms,
            "isBuyer": fill.order.side == "BUY", "isMaker": fill.is_maker, "isBestMatch": True,
        }  # fmt: skip


def _applied_ms(row: Mapping[str, Any]) -> int:
    at = datetime.strptime(row["applyTime"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    return int(at.timestamp()) * 1000
