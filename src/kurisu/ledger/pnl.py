"""Prices and PnL that follow from a position. Only here is a quotient of the cost basis shown.

Every result is rounded half to even to 18 fractional digits, once; nothing is computed from a
rounded price.
"""

from __future__ import annotations

from decimal import Decimal

from kurisu.domain.execution import check_number
from kurisu.domain.money import SCALE
from kurisu.domain.position import MarketTerms, Position, Settlement
from kurisu.errors import LedgerRuleBroken
from kurisu.ledger.arithmetic import (
    add,
    magnitude,
    product,
    quotient,
    round_to,
    subtract,
)


def entry_price(position: Position, terms: MarketTerms) -> Decimal | None:
    """Average entry price in quote units per base unit, for display and `positions.entry_price`.

    Fees are not in it. None when flat, and for an inverse position too small to have a basis.

    An inverse position's basis is itself a rounded quotient, so many prices lead to it: the one
    with the fewest digits is the answer (30000 rather than 30000.000000000003).
    """
    if not position.amount:
        return None
    notional = product(magnitude(position.amount), terms.contract_size)
    if terms.settlement is not Settlement.INVERSE:
        return quotient(position.cost_basis, notional)
    if not position.cost_basis:
        return None
    price = quotient(notional, position.cost_basis)
    for digits in range(SCALE):
        shorter = round_to(price, digits)
        if shorter and quotient(notional, shorter) == position.cost_basis:
            return shorter
    return price


def market_value(amount: Decimal, price: Decimal, terms: MarketTerms) -> Decimal:
    """What `amount` (its size counts) is worth at `price`, in settle units; never negative.

    Raises LedgerRuleBroken unless the price is above zero.
    """
    check_number("price", price, above_zero=True)
    if terms.settlement is Settlement.INVERSE:
        return quotient(product(magnitude(amount), terms.contract_size), price)
    return product(magnitude(amount), price, terms.contract_size)


def unrealized_pnl(position: Position, mark_price: Decimal, terms: MarketTerms) -> Decimal:
    """What closing at `mark_price` would realise, before fees, in settle units.

    Equal, to the last digit, to what an execution of the whole position at that price realises.
    """
    value = market_value(position.amount, mark_price, terms)
    if (position.amount < 0) != (terms.settlement is Settlement.INVERSE):
        return subtract(position.cost_basis, value)
    return subtract(value, position.cost_basis)


def net_pnl(position: Position, mark_price: Decimal, terms: MarketTerms) -> Decimal:
    """Realised and unrealised PnL less the fees that have a value in settle units.

    A third asset's fee needs a rate and is not in it; the postings have it.
    """
    gross = add(position.realized_pnl, unrealized_pnl(position, mark_price, terms))
    return subtract(gross, position.fee_value)


def equity_at_cost(position: Position, terms: MarketTerms) -> Decimal:
    """What the settle wallet of a spot market gained, computed from the position alone.

    realized_pnl - fee_value - what a long cost + what a short brought. The postings have to say
    the same: the invariant that ties both together. Raises LedgerRuleBroken for a contract, whose
    wallet gains realized_pnl - fee_value.
    """
    if terms.settlement is not Settlement.SPOT:
        raise LedgerRuleBroken("market_is_spot", f"{terms.name}")
    earned = subtract(position.realized_pnl, position.fee_value)
    if position.amount > 0:
        return subtract(earned, position.cost_basis)
    return add(earned, position.cost_basis)
