"""The order as the ledger has it, and the update: what an exchange said about an order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_DOWN, Context, Decimal
from enum import StrEnum
from typing import Final, Self

from kurisu.domain.execution import (
    Side,
    check_aware,
    check_number,
    read_number,
    read_text,
    read_time,
)
from kurisu.domain.market import MarketName
from kurisu.domain.money import EXACT, SCALE, number_fault, parse_decimal
from kurisu.errors import LedgerRuleBroken

_CUT: Final = Context(prec=EXACT.prec, rounding=ROUND_DOWN)
# orders.client_order_id is VARCHAR(50).
CLIENT_ORDER_ID_LENGTH: Final = 50


class OrderType(StrEnum):
    """How an order is to be filled; the values of orders.type."""

    LIMIT = "limit"
    MARKET = "market"
    STOP_LOSS = "stop_loss"
    TAKE_PROFIT = "take_profit"


class OrderStatus(StrEnum):
    """Where an order stands; the values of orders.status.

    PENDING: written by us, not known to be at the exchange.
    OPEN: at the exchange, or filled in part, and not over.
    CLOSED: filled, or ended by the exchange as done.
    CANCELED: ended before it was filled; expired orders, too.
    FAILED: the exchange rejected it.
    """

    PENDING = "pending"
    OPEN = "open"
    CLOSED = "closed"
    CANCELED = "canceled"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """True if nothing more is expected of the order."""
        return self in _TERMINAL


_TERMINAL: Final = frozenset({OrderStatus.CLOSED, OrderStatus.CANCELED, OrderStatus.FAILED})

#: What CCXT's unified statuses mean here.
CCXT_STATUSES: Final = {
    "open": OrderStatus.OPEN,
    "canceling": OrderStatus.OPEN,
    "closed": OrderStatus.CLOSED,
    "canceled": OrderStatus.CANCELED,
    "cancelled": OrderStatus.CANCELED,
    "expired": OrderStatus.CANCELED,
    "rejected": OrderStatus.FAILED,
}


@dataclass(frozen=True, slots=True)
class Order:
    """An order of ours and where it stands; one row of `orders`.

    market: where it was sent.
    side, type: as we placed it.
    amount: base units (spot) or contracts; as placed, or as the exchange last said.
    created_at: when we wrote it; aware.
    updated_at: the latest time that the order, its updates and its executions carry.
    client_order_id: made by us before sending; None for an adopted order of somebody else.
    exchange_order_id: None until the exchange has answered.
    price: quote units; None for an order without a limit.
    stop_price: trigger price in quote units, for stop_loss and take_profit.
    filled: sum of its executions' amounts.
    cost: sum of its executions' costs, in quote units.
    id: orders.id; None before it is stored.
    strategy_id, strategy_run_id, account_id: rows it belongs to; None where there is none.

    Raises LedgerRuleBroken with the rule that a field breaks.
    """

    market: MarketName
    side: Side
    type: OrderType
    amount: Decimal
    created_at: datetime
    updated_at: datetime
    client_order_id: str | None = None
    exchange_order_id: str | None = None
    price: Decimal | None = None
    stop_price: Decimal | None = None
    filled: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)
    status: OrderStatus = OrderStatus.PENDING
    id: int | None = None
    strategy_id: int | None = None
    strategy_run_id: int | None = None
    account_id: int | None = None

    def __post_init__(self) -> None:
        if not self.client_order_id and not self.exchange_order_id:
            raise LedgerRuleBroken("order_has_an_id", "neither client's nor exchange's")
        if len(self.client_order_id or "") > CLIENT_ORDER_ID_LENGTH:
            raise LedgerRuleBroken("client_order_id_fits", f"{self.client_order_id!r}")
        check_number("amount", self.amount, above_zero=True)
        check_number("price", self.price, above_zero=True)
        check_number("stop_price", self.stop_price, above_zero=True)
        check_number("filled", self.filled)
        check_aware("created_at", self.created_at)
        check_aware("updated_at", self.updated_at)
        if not 0 <= self.filled <= self.amount:
            raise LedgerRuleBroken("filled_within_amount", f"filled {self.filled} of {self.amount}")
        if self.type is OrderType.LIMIT and self.price is None:
            raise LedgerRuleBroken("limit_has_price", self.name)
        if self.type in _STOPS and self.stop_price is None:
            raise LedgerRuleBroken("stop_has_stop_price", self.name)

    @property
    def remaining(self) -> Decimal:
        """amount - filled, exactly."""
        return EXACT.subtract(self.amount, self.filled)

    @property
    def name(self) -> str:
        """What events call it: our id, else the exchange's."""
        return self.client_order_id or self.exchange_order_id or ""


_STOPS: Final = frozenset({OrderType.STOP_LOSS, OrderType.TAKE_PROFIT})


@dataclass(frozen=True, slots=True)
class OrderUpdate:
    """What an exchange said about one order at one time. None: it said nothing about that.

    client_order_id, exchange_order_id: at least one of them.
    time: of what it says, by the exchange's clock; None makes it older than every timed update.
    status: None where nothing is said, or nothing that CCXT's statuses cover.
    filled: cumulative, base units or contracts. Never added up; it only shows missing fills.
    amount, price, stop_price: of the order as it now stands, units as in `Order`.
    created_at: when the exchange took the order.
    unknown_status: the text of a status that CCXT left as the exchange wrote it.

    Average price, cost and fees are left out on purpose: executions say them better.
    Raises LedgerRuleBroken with the rule that a field breaks.
    """

    client_order_id: str | None = None
    exchange_order_id: str | None = None
    time: datetime | None = None
    status: OrderStatus | None = None
    filled: Decimal | None = None
    amount: Decimal | None = None
    price: Decimal | None = None
    stop_price: Decimal | None = None
    side: Side | None = None
    created_at: datetime | None = None
    symbol: str | None = None
    unknown_status: str | None = None

    def __post_init__(self) -> None:
        if not self.client_order_id and not self.exchange_order_id:
            raise LedgerRuleBroken("update_names_its_order", "neither client's nor exchange's id")
        if self.status is OrderStatus.PENDING:
            raise LedgerRuleBroken("pending_is_ours_to_say", f"order {self.exchange_order_id!r}")
        check_number("amount", self.amount, above_zero=True)
        check_number("price", self.price, above_zero=True)
        check_number("stop_price", self.stop_price, above_zero=True)
        check_number("filled", self.filled)
        check_aware("time", self.time)
        check_aware("created_at", self.created_at)
        if self.filled is not None and self.filled < 0:
            raise LedgerRuleBroken("filled_not_negative", f"filled {self.filled}")

    @classmethod
    def from_ccxt(cls, order: Mapping[str, object], *, received_at: datetime | None = None) -> Self:
        """From a unified order whose numbers are text, Decimal or int.

        received_at: when the answer came, by the exchange's clock; stands in for a missing
            `lastUpdateTimestamp`. CCXT's `timestamp` does not: it is when the order was made.
        Its `trades` are not read here: give each to `Execution.from_ccxt`.
        Raises LedgerRuleBroken, also for a float: CCXT has to be set to exact numbers.
        """
        where = f"order {order.get('id')!r}"
        filled = _read_filled(order, where)
        # CCXT takes what was filled for the amount of an order that was placed by its cost.
        same = order.get("amount") is not None and order.get("amount") == order.get("filled")
        amount = (filled or None) if same else _positive(order, "amount", where)
        if filled is None and amount is not None:
            remaining = read_number(order, "remaining", where)
            # More remaining than there was says nothing about what was filled.
            if remaining is not None and remaining <= amount:
                filled = EXACT.subtract(amount, remaining)
        side = read_text(order, "side", where)
        status = read_text(order, "status", where)
        known = CCXT_STATUSES.get(status) if status else None
        updated_at = read_time(order, "lastUpdateTimestamp", where)
        stop_price = _positive(order, "triggerPrice", where) or _positive(order, "stopPrice", where)
        stop_loss = _positive(order, "stopLossPrice", where)
        take_profit = _positive(order, "takeProfitPrice", where)
        if stop_price is None and (stop_loss is None or take_profit is None):
            # Kraken's, and other venues' that name a trigger by what it is for. Where there are
            # both they are attached to an order that is no trigger itself.
            stop_price = stop_loss or take_profit
        # The price of a market order is its average, with any number of digits.
        has_limit = order.get("type") != "market"
        client_order_id = read_text(order, "clientOrderId", where)
        return cls(
            # Kraken's reference of every order that was given none is 0.
            client_order_id=None if client_order_id == "0" else client_order_id,
            exchange_order_id=read_text(order, "id", where),
            time=received_at if updated_at is None else updated_at,
            status=known,
            filled=filled,
            amount=amount,
            price=_limit(order, where) if has_limit else None,
            stop_price=stop_price,
            side=Side(side) if side in set(Side) else None,
            created_at=read_time(order, "timestamp", where),
            symbol=read_text(order, "symbol", where),
            unknown_status=status if known is None else None,
        )


def _read_filled(order: Mapping[str, object], where: str) -> Decimal | None:
    """Cut down to the digits that can be stored: venues that fill by cost divide, and show as many
    digits as they like. It only shows missing fills, which have their own amounts."""
    value = order.get("filled")
    number = parse_decimal(value) if isinstance(value, str | int | Decimal) else None
    if number is not None and number_fault(number) == "too_many_fraction_digits":
        return number.quantize(Decimal(1).scaleb(-SCALE), context=_CUT)
    return read_number(order, "filled", where)


def _limit(order: Mapping[str, object], where: str) -> Decimal | None:
    """OKX says that it is -1 where a trigger sends an order at the market."""
    number = read_number(order, "price", where)
    return None if number in _AT_MARKET else number


_AT_MARKET: Final = (None, Decimal(0), Decimal(-1))


def _positive(order: Mapping[str, object], field: str, where: str) -> Decimal | None:
    """Exchanges write 0 for a price or an amount that an order does not have."""
    number = read_number(order, field, where)
    return number or None
