"""Exact arithmetic, and the one rounding that the ledger has.

Sums and products are exact. What a division or a long product gives is rounded once, half to
even, to the 18 fractional digits that a NUMERIC(38,18) has; each function says whether it rounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

from kurisu.domain.money import EXACT, SCALE
from kurisu.errors import LedgerRuleBroken

ZERO: Final = Decimal(0)
# Precision to hold any exact product of EXACT once more; only the scale is ever cut.
_ROUNDING: Final = Context(prec=EXACT.prec, rounding=ROUND_HALF_EVEN)


def total(amounts: Iterable[Decimal]) -> Decimal:
    """The exact sum. Python's sum() would round to 28 digits."""
    result = ZERO
    for amount in amounts:
        result = EXACT.add(result, amount)
    return result


def add(left: Decimal, right: Decimal) -> Decimal:
    """Exact."""
    return EXACT.add(left, right)


def subtract(left: Decimal, right: Decimal) -> Decimal:
    """Exact."""
    return EXACT.subtract(left, right)


def negate(amount: Decimal) -> Decimal:
    """Exact; the minus operator would round to 28 digits, and zero stays positive."""
    return EXACT.subtract(ZERO, amount)


def magnitude(amount: Decimal) -> Decimal:
    """Exact; abs() would round to 28 digits."""
    return amount.copy_abs()


def product(first: Decimal, *factors: Decimal) -> Decimal:
    """Rounded half to even to 18 fractional digits, once, after an exact product."""
    result = first
    for factor in factors:
        result = EXACT.multiply(result, factor)
    exponent = result.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -SCALE:
        return round_to(result, SCALE)
    return result


def round_to(number: Decimal, digits: int) -> Decimal:
    """Rounded half to even to so many fractional digits."""
    return number.quantize(Decimal(1).scaleb(-digits), context=_ROUNDING)


def quotient(numerator: Decimal, denominator: Decimal) -> Decimal:
    """numerator / denominator, rounded half to even to 18 fractional digits, once.

    Raises LedgerRuleBroken for a denominator of zero.
    """
    if not denominator:
        raise LedgerRuleBroken("divisor_not_zero", f"{numerator} / {denominator}")
    top, bottom = numerator.as_integer_ratio(), denominator.as_integer_ratio()
    return _half_even(top[0] * bottom[1] * 10**SCALE, top[1] * bottom[0])


def share(whole_value: Decimal, part: Decimal, whole: Decimal) -> Decimal:
    """What `part` of `whole` has of `whole_value`: whole_value * part / whole, rounded as above.

    The rest is `whole_value - share`, which is exact, so nothing is ever lost between the two.
    """
    return quotient(EXACT.multiply(whole_value, part), whole)


def _half_even(numerator: int, denominator: int) -> Decimal:
    """numerator / denominator units of 1e-18. Integers, so that nothing is rounded twice."""
    if denominator < 0:
        numerator, denominator = -numerator, -denominator
    units, rest = divmod(numerator, denominator)
    twice = 2 * rest
    if twice > denominator or (twice == denominator and units % 2):
        units += 1
    return Decimal(units).scaleb(-SCALE, context=EXACT)
