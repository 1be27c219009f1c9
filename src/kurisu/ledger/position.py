"""How executions move a position: opening, closing, flipping, and the cost basis between.

Average cost. What is closed takes its share of the cost basis, rounded half to even to 18 digits;
the rest stays, exactly, in the position, so that nothing is ever lost or made: what went in equals
what was released plus what remains, to the last digit, however often a position is cut up.

Fees in the settle asset (spot: quote) are not part of PnL; `fee_value` adds them up. A fee in base
on a spot market makes the position smaller, as it makes the wallet smaller: it is a sale of that
much at the fill's own price, whose proceeds are the fee.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from kurisu.domain.execution import Execution, Side
from kurisu.domain.position import FLAT, MarketTerms, Position, Settlement
from kurisu.errors import LedgerRuleBroken
from kurisu.ledger.arithmetic import ZERO, add, magnitude, negate, share, subtract
from kurisu.ledger.execution import cost_of, in_order_of_time, value_of


@dataclass(frozen=True, slots=True)
class PositionChange:
    """What one execution did to a position.

    position: afterwards.
    opened, closed: how much of the execution opened and how much closed, in base units or
        contracts, never negative; both are above zero for a flip. Without the fee's part.
    realized_pnl: of what it closed, before fees, in settle units.
    fee_value: its fees in settle units (see `Position.fee_value`).
    """

    position: Position
    opened: Decimal
    closed: Decimal
    realized_pnl: Decimal
    fee_value: Decimal


def apply_execution(position: Position, execution: Execution, terms: MarketTerms) -> PositionChange:
    """The position after `execution`, which has to be the next in order of time.

    Raises LedgerRuleBroken if the execution is of another market.
    """
    if execution.symbol not in {None, terms.name.symbol}:
        raise LedgerRuleBroken(
            "execution_is_of_the_market", f"{execution.symbol} is not {terms.name.symbol}"
        )
    is_inverse = terms.settlement is Settlement.INVERSE
    signed = execution.amount if execution.side is Side.BUY else negate(execution.amount)
    closed = (
        min(execution.amount, magnitude(position.amount))
        if (position.amount and (position.amount > 0) != (signed > 0))
        else ZERO
    )
    after = _trade(position, signed, value_of(execution, terms), is_inverse=is_inverse)
    base_fee, settle_fee = _fees(execution, terms)
    fee_value = settle_fee
    if base_fee:
        value = share(cost_of(execution, terms), base_fee, execution.amount)
        after = _trade(after, negate(base_fee), magnitude(value), is_inverse=False)
        fee_value = add(fee_value, value)
    after = Position(
        after.amount, after.cost_basis, after.realized_pnl, add(after.fee_value, fee_value)
    )
    return PositionChange(
        position=after,
        opened=subtract(execution.amount, closed),
        closed=closed,
        realized_pnl=subtract(after.realized_pnl, position.realized_pnl),
        fee_value=fee_value,
    )


def position_of(
    executions: Iterable[Execution], terms: MarketTerms, start: Position = FLAT
) -> Position:
    """The position that `executions`, in whatever order they stand, lead to from `start`."""
    position = start
    for execution in in_order_of_time(executions):
        position = apply_execution(position, execution, terms).position
    return position


def _trade(position: Position, signed: Decimal, value: Decimal, *, is_inverse: bool) -> Position:
    """`signed` (buy above zero) for `value` settle units: opens, adds, closes or flips."""
    amount = position.amount
    if not amount or (amount > 0) == (signed > 0):
        return Position(
            add(amount, signed),
            add(position.cost_basis, value),
            position.realized_pnl,
            position.fee_value,
        )
    held, traded = magnitude(amount), magnitude(signed)
    if traded <= held:
        value_closed = value
        released = share(position.cost_basis, traded, held)
        basis = subtract(position.cost_basis, released)
    else:
        value_closed = share(value, held, traded)
        released = position.cost_basis
        basis = subtract(value, value_closed)
    gain = subtract(value_closed, released)
    # A short earns when it buys back for less; an inverse contract's value is in base, which
    # gets less as the price rises. Each turns the sign once.
    if (amount < 0) != is_inverse:
        gain = negate(gain)
    return Position(
        add(amount, signed), basis, add(position.realized_pnl, gain), position.fee_value
    )


def _fees(execution: Execution, terms: MarketTerms) -> tuple[Decimal, Decimal]:
    """Fees in base (spot only) and in the settle asset, each in its own units."""
    base_fee = settle_fee = ZERO
    for fee in execution.fees or ():
        if fee.currency == terms.settle_asset:
            settle_fee = add(settle_fee, fee.amount)
        elif terms.settlement is Settlement.SPOT and fee.currency == terms.name.base:
            base_fee = add(base_fee, fee.amount)
    return base_fee, settle_fee
