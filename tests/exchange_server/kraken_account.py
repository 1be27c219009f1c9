"""Kraken's private part: one account, signed with a nonce, listed newest first in pages of fifty.

Bounds of time are whole seconds, `start` exclusive. An order is filled at once where it crosses the
last price; a resting one only where a test says so (`fill`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final
from urllib.parse import parse_qsl

from exchange_server.clock import VirtualClock
from exchange_server.truth import Listing
from exchange_server.venue import Answer
from exchange_server.wire import Raw

PAGE: Final = 50
_ZERO: Final = Decimal(0)


class Refusal(Exception):
    """An error in Kraken's words; the status is 200."""


@dataclass(slots=True)
class KrakenOrder:
    """One order at the exchange. closed_ms: None while it is open."""

    id: str
    client_id: str | None
    pair: str
    side: str
    type: str
    amount: Decimal
    price: Decimal
    time_ms: int
    closed_ms: int | None = None
    status: str = "open"
    filled: Decimal = _ZERO
    cost: Decimal = _ZERO


@dataclass(frozen=True, slots=True)
class KrakenFill:
    """One execution at the exchange."""

    id: str
    order: KrakenOrder
    price: Decimal
    amount: Decimal
    fee: Decimal
    time_ms: int
    is_maker: bool


@dataclass
class KrakenAccount:
    """The account behind one key; fees are in quote."""

    clock: VirtualClock
    listings: Mapping[str, Listing]
    key: str = "test-key"
    secret: str = base64.b64encode(b"test-secret").decode()
    balances: dict[str, Decimal] = field(default_factory=dict)
    fee_rate: Decimal = Decimal("0.0026")
    orders: dict[str, KrakenOrder] = field(default_factory=dict)
    fills: list[KrakenFill] = field(default_factory=list)
    last_nonce: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def handle(self, path: str, body: str, headers: Mapping[str, str]) -> Answer:
        """The answer to one signed request."""
        params = dict(parse_qsl(body))
        handlers: dict[str, Callable[[Mapping[str, str]], Any]] = {
            "BalanceEx": self._balance, "AddOrder": self._add, "CancelOrder": self._cancel,
            "OpenOrders": self._open, "ClosedOrders": self._closed, "QueryOrders": self._query,
            "TradesHistory": self._trades,
        }  # fmt: skip
        with self.lock:
            try:
                self._check(path, body, params, headers)
                handler = handlers.get(path.rsplit("/", 1)[-1])
                if handler is None:
                    raise Refusal("EGeneral:Unknown method")
                return Answer({"error": [], "result": handler(params)})
            except Refusal as refusal:
                return Answer({"error": [str(refusal)]})

    # What a test does beside the API

    def place(
        self, pair: str, side: str, amount: str, price: str = "0", client_id: str | None = None
    ) -> KrakenOrder:
        with self.lock:
            type_ = "limit" if Decimal(price) else "market"
            order = KrakenOrder(
                f"O{len(self.orders):05d}-AAAAA-BBBBBB", client_id, pair, side, type_,
                Decimal(amount), Decimal(price), self.clock.now_ms(),
            )  # fmt: skip
            self.orders[order.id] = order
            last = self.last_price(pair)
            crosses = last <= order.price if side == "buy" else last >= order.price
            if type_ == "market" or crosses:
                self.fill(order, order.amount, last, is_maker=False)
            return order

    def fill(
        self, order: KrakenOrder, amount: Decimal, price: Decimal, *, is_maker: bool = True
    ) -> None:
        base, quote = self._assets(order.pair)
        cost = price * amount
        fee = (cost * self.fee_rate).quantize(Decimal("1E-8"))
        sign = 1 if order.side == "buy" else -1
        for asset, change in ((base, sign * amount), (quote, -sign * cost - fee)):
            self.balances[asset] = self.balances.get(asset, _ZERO) + change
        order.filled += amount
        order.cost += cost
        now = self.clock.now_ms()
        if order.filled == order.amount:
            order.status, order.closed_ms = "closed", now
        name = f"T{len(self.fills):05d}-CCCCC-DDDDDD"
        self.fills.append(KrakenFill(name, order, price, amount, fee, now, is_maker))

    def last_price(self, pair: str) -> Decimal:
        ticks = self.listings[pair].tape.visible(self.clock.now_ms())
        return ticks[-1].price if ticks else Decimal(1)

    # How

    def _check(
        self, path: str, body: str, params: Mapping[str, str], headers: Mapping[str, str]
    ) -> None:
        if headers.get("API-Key") != self.key:
            raise Refusal("EAPI:Invalid key")
        digest = hashlib.sha256((params["nonce"] + body).encode()).digest()
        made = hmac.new(base64.b64decode(self.secret), f"/{path}".encode() + digest, hashlib.sha512)
        if headers.get("API-Sign") != base64.b64encode(made.digest()).decode():
            raise Refusal("EAPI:Invalid signature")
        if int(params["nonce"]) <= self.last_nonce:
            raise Refusal("EAPI:Invalid nonce")
        self.last_nonce = int(params["nonce"])

    def _assets(self, pair: str) -> tuple[str, str]:
        entry = self.listings[pair].entry
        return str(entry["base"]), str(entry["quote"])

    def _balance(self, params: Mapping[str, str]) -> Any:
        held: dict[str, Decimal] = {}
        for order in self.orders.values():
            if order.status == "open":
                base, quote = self._assets(order.pair)
                left = order.amount - order.filled
                asset, amount = (
                    (base, left) if order.side == "sell" else (quote, left * order.price)
                )
                held[asset] = held.get(asset, _ZERO) + amount
        return {
            asset: {"balance": f"{total:f}", "hold_trade": f"{held.get(asset, _ZERO):f}"}
            for asset, total in self.balances.items()
        }

    def _add(self, params: Mapping[str, str]) -> Any:
        if params.get("pair") not in self.listings:
            raise Refusal("EQuery:Unknown asset pair")
        base, quote = self._assets(params["pair"])
        amount, price = Decimal(params["volume"]), Decimal(params.get("price", "0"))
        asset, needed = (
            (base, amount) if params["type"] == "sell"
            else (quote, amount * (price or self.last_price(params["pair"])))
        )  # fmt: skip
        if self.balances.get(asset, _ZERO) < needed:
            raise Refusal("EOrder:Insufficient funds")
        order = self.place(
            params["pair"], params["type"], params["volume"], params.get("price", "0"),
            params.get("cl_ord_id"),
        )  # fmt: skip
        return {"descr": {"order": self._description(order)}, "txid": [order.id]}

    def _cancel(self, params: Mapping[str, str]) -> Any:
        found = self.orders.get(params.get("txid", ""))
        if found is None:
            found = next(iter(self._of_client(params)), None)
        if found is None or found.status != "open":
            raise Refusal("EOrder:Unknown order")
        found.status, found.closed_ms = "canceled", self.clock.now_ms()
        return {"count": 1}

    def _of_client(self, params: Mapping[str, str]) -> list[KrakenOrder]:
        name = params.get("cl_ord_id")
        return [o for o in self.orders.values() if name is None or o.client_id == name]

    def _open(self, params: Mapping[str, str]) -> Any:
        found = [o for o in self._of_client(params) if o.status == "open"]
        return {"open": {order.id: self._order(order) for order in found}}

    def _closed(self, params: Mapping[str, str]) -> Any:
        found = [
            order for order in self._of_client(params)
            if order.closed_ms is not None
            and any(self._inside(params, at) for at in (order.time_ms, order.closed_ms))
        ]  # fmt: skip
        found.sort(key=lambda order: order.closed_ms or 0, reverse=True)
        page = found[int(params.get("ofs", "0")) :][:PAGE]
        return {"closed": {order.id: self._order(order) for order in page}, "count": len(found)}

    def _query(self, params: Mapping[str, str]) -> Any:
        found = self.orders.get(params["txid"])
        if found is None:
            raise Refusal("EOrder:Invalid order")
        return {found.id: self._order(found)}

    def _trades(self, params: Mapping[str, str]) -> Any:
        found = [fill for fill in reversed(self.fills) if self._inside(params, fill.time_ms)]
        page = found[int(params.get("ofs", "0")) :][:PAGE]
        return {
            "trades": {
                fill.id: {
                    "ordertxid": fill.order.id, "postxid": "TKH2SE-M7IF5-CFI7LT",
                    "pair": fill.order.pair, "time": _seconds(fill.time_ms),
                    "type": fill.order.side, "ordertype": fill.order.type,
                    "price": f"{fill.price:f}", "cost": f"{fill.price * fill.amount:f}",
                    "fee": f"{fill.fee:f}", "vol": f"{fill.amount:f}", "margin": "0.00000",
                    "misc": "", "maker": fill.is_maker,
                }
                for fill in page
            },
            "count": len(found),
        }  # fmt: skip

    @staticmethod
    def _inside(params: Mapping[str, str], time_ms: int) -> bool:
        start, end = int(params.get("start", "0")), int(params.get("end", str(2**40)))
        return start * 1000 < time_ms <= end * 1000

    @staticmethod
    def _description(order: KrakenOrder) -> str:
        limit = f" {order.price:f}" if order.type == "limit" else ""
        return f"{order.side} {order.amount:f} {order.pair} @ {order.type}{limit}"

    def _order(self, order: KrakenOrder) -> dict[str, Any]:
        average = order.cost / order.filled if order.filled else _ZERO
        said: dict[str, Any] = {
            "refid": None, "userref": 0, "cl_ord_id": order.client_id, "status": order.status,
            "reason": None, "opentm": _seconds(order.time_ms), "starttm": 0, "expiretm": 0,
            "descr": {
                "pair": order.pair, "type": order.side, "ordertype": order.type,
                "price": f"{order.price:f}", "price2": "0", "leverage": "none",
                "order": self._description(order), "close": "",
            },
            "vol": f"{order.amount:f}", "vol_exec": f"{order.filled:f}",
            "cost": f"{order.cost:f}", "fee": "0.00000", "price": f"{average:.8f}",
            "stopprice": "0.00000", "limitprice": "0.00000", "misc": "", "oflags": "fciq",
        }  # fmt: skip
        if order.closed_ms is not None:
            said["closetm"] = _seconds(order.closed_ms)
        return said


def _seconds(time_ms: int) -> Raw:
    """A JSON number of seconds."""
    return Raw(f"{time_ms // 1000}.{time_ms % 1000:03d}0")
