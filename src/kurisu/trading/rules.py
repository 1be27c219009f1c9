"""The rules of a market that an order has to keep, checked before anything is stored or sent.

Nothing is rounded here unless the caller says so: an order that does not fit is refused with every
rule that it breaks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any, Final

from kurisu.domain.execution import Side
from kurisu.domain.listing import MarketListing
from kurisu.domain.money import EXACT, number_fault, plain
from kurisu.domain.order import OrderType
from kurisu.errors import OrderBreaksRule

_WIDE: Final = Context(prec=120, rounding=ROUND_FLOOR)


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """An order that somebody wants to place.

    symbol: CCXT's unified symbol. amount: base units or contracts. price: quote units; for limit
    orders, and for stops that become one. stop_price: trigger, for stop_loss and take_profit.
    client_order_id: None for a new one; the same id again is the same order, and never sent twice.
    post_only, reduce_only: see `NewOrder`.
    round_down: amount and prices may be cut to the market's steps; otherwise what does not fit a
        step is refused.
    """

    symbol: str
    side: Side
    type: OrderType
    amount: Decimal
    price: Decimal | None = None
    stop_price: Decimal | None = None
    client_order_id: str | None = None
    post_only: bool = False
    reduce_only: bool = False
    round_down: bool = False


def fitted(request: OrderRequest, listing: MarketListing) -> OrderRequest:
    """The request as its market takes it. Raises OrderBreaksRule with every rule it breaks."""
    if request.round_down:
        request = _rounded(request, listing)
    faults = broken_rules(request, listing)
    if faults:
        raise OrderBreaksRule(str(listing.name), faults)
    return request


def broken_rules(request: OrderRequest, listing: MarketListing) -> dict[str, str]:
    """rule -> what breaks it, with the numbers; empty if the market takes the order."""
    faults: dict[str, str] = {}
    if not listing.active:
        faults["market_active"] = "it is not traded now"
    _check_fields(request, faults)
    if faults.keys() - {"market_active"}:
        return faults
    _check_number(
        faults, "amount", request.amount, listing.amount_tick, listing.min_amount,
        listing.max_amount,
    )  # fmt: skip
    for name, price in (("price", request.price), ("stop_price", request.stop_price)):
        if price is not None:
            step = listing.price_step_at(price)
            _check_number(faults, name, price, step, listing.min_price, listing.max_price)
    price = request.price or request.stop_price
    # A contract's limits of cost are stated in units that differ from venue to venue.
    if price is not None and listing.contract_size is None:
        cost = EXACT.multiply(price, request.amount)
        _check_bounds(faults, "cost", cost, listing.min_cost, listing.max_cost)
    return faults


def _check_fields(request: OrderRequest, faults: dict[str, str]) -> None:
    """What has to be there, and be a number."""
    for name, value in _numbers(request).items():
        if not isinstance(value, Decimal):
            faults[f"{name}_is_decimal"] = f"{name} is {value!r}, a {type(value).__name__}"
        elif number_fault(value) or value <= 0:
            faults[f"{name}_above_zero"] = f"{name} {value} is no number above zero that fits"
    is_stop = request.type in (OrderType.STOP_LOSS, OrderType.TAKE_PROFIT)
    if request.type is OrderType.LIMIT and request.price is None:
        faults["limit_has_price"] = "a limit order needs a price"
    if request.type is OrderType.MARKET and request.price is not None:
        faults["market_has_no_price"] = "a market order has no price"
    if is_stop != (request.stop_price is not None):
        faults["stop_has_stop_price"] = "stop_loss and take_profit need a stop_price, others none"


def _numbers(request: OrderRequest) -> dict[str, object]:
    """What was given; a caller without a type checker may give a float."""
    given: dict[str, object] = {
        "amount": request.amount, "price": request.price, "stop_price": request.stop_price,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def _check_number(
    faults: dict[str, str],
    name: str,
    value: Decimal,
    step: Decimal | None,
    least: Decimal | None,
    most: Decimal | None,
) -> None:
    if step is not None and EXACT.remainder(value, step):
        faults[f"{name}_step"] = (
            f"{name} {plain(value)} is no multiple of {plain(step)} "
            f"(round_down=True would make it {plain(_floor(value, step))})"
        )
    _check_bounds(faults, name, value, least, most)


def _check_bounds(
    faults: dict[str, str], name: str, value: Decimal, least: Decimal | None, most: Decimal | None
) -> None:
    if least is not None and value < least:
        faults[f"{name}_min"] = f"{name} {plain(value)} is less than {plain(least)}"
    if most is not None and value > most:
        faults[f"{name}_max"] = f"{name} {plain(value)} is more than {plain(most)}"


def _rounded(request: OrderRequest, listing: MarketListing) -> OrderRequest:
    changes: dict[str, Any] = {}
    for name, value in _numbers(request).items():
        # What is no number is left to `_check_fields`.
        if not isinstance(value, Decimal) or number_fault(value):
            continue
        step = listing.amount_tick if name == "amount" else listing.price_step_at(value)
        if step is not None:
            changes[name] = _floor(value, step)
    return replace(request, **changes)


def _floor(value: Decimal, step: Decimal) -> Decimal:
    """The greatest multiple of `step` that is not above `value`, exactly."""
    steps = _WIDE.to_integral_value(_WIDE.divide(value, step))
    return EXACT.multiply(steps, step)
