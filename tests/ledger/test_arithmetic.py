"""Exact sums and products, and the one rounding."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kurisu.errors import LedgerRuleBroken
from kurisu.ledger.arithmetic import (
    add,
    magnitude,
    negate,
    product,
    quotient,
    round_to,
    share,
    subtract,
    total,
)

#: Every NUMERIC(38,18).
MONEY = st.integers(-(10**38) + 1, 10**38 - 1).map(lambda units: Decimal(units).scaleb(-18))
UNIT = Fraction(1, 10**18)


def half_even(exact: Fraction) -> Decimal:
    """The oracle: Python's round() of a Fraction is half to even."""
    with localcontext() as context:
        context.prec = 200
        return Decimal(round(exact / UNIT)).scaleb(-18)


@given(st.lists(MONEY, max_size=6))
def test_sums_are_exact(amounts: list[Decimal]) -> None:
    assert Fraction(total(amounts)) == sum(map(Fraction, amounts))


@given(MONEY, MONEY)
def test_sums_of_two_are_exact(left: Decimal, right: Decimal) -> None:
    assert Fraction(add(left, right)) == Fraction(left) + Fraction(right)
    assert Fraction(subtract(left, right)) == Fraction(left) - Fraction(right)
    assert Fraction(negate(left)) == -Fraction(left)
    assert Fraction(magnitude(left)) == abs(Fraction(left))


@given(MONEY, MONEY, MONEY)
def test_products_round_once(one: Decimal, two: Decimal, three: Decimal) -> None:
    assert product(one, two, three) == half_even(Fraction(one) * Fraction(two) * Fraction(three))


@given(MONEY, MONEY.filter(bool))
def test_quotients_round_once(numerator: Decimal, denominator: Decimal) -> None:
    assert quotient(numerator, denominator) == half_even(
        Fraction(numerator) / Fraction(denominator)
    )


@given(MONEY, st.integers(1, 10**30), st.data())
def test_a_share_and_its_rest_are_the_whole(
    whole: Decimal, parts: int, data: st.DataObject
) -> None:
    part = data.draw(st.integers(0, parts))
    taken = share(whole, Decimal(part), Decimal(parts))
    assert taken == half_even(Fraction(whole) * part / parts)
    assert add(taken, subtract(whole, taken)) == whole
    assert 0 <= abs(taken) <= abs(whole)


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [
        ("1", "3", "0.333333333333333333"),
        ("2", "3", "0.666666666666666667"),
        ("0.000000000000000001", "2", "0"),
        ("0.000000000000000003", "2", "0.000000000000000002"),
        ("-0.000000000000000003", "2", "-0.000000000000000002"),
        ("1", "-3", "-0.333333333333333333"),
    ],
)
def test_half_goes_to_even(numerator: str, denominator: str, expected: str) -> None:
    assert quotient(Decimal(numerator), Decimal(denominator)) == Decimal(expected)


def test_rounding_to_digits() -> None:
    assert round_to(Decimal("2.5"), 0) == 2
    assert round_to(Decimal("30000.000000000003"), 2) == 30000


def test_nothing_is_divided_by_zero() -> None:
    with pytest.raises(LedgerRuleBroken) as caught:
        quotient(Decimal(1), Decimal(0))
    assert caught.value.rule == "divisor_not_zero"
