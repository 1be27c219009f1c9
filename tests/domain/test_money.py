"""Exact numbers: what fits NUMERIC(38,18), and how numbers are read and spelled."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kurisu.domain.money import EXACT, number_fault, parse_decimal, plain

LARGEST = Decimal("99999999999999999999.999999999999999999")
SMALLEST = Decimal("0.000000000000000001")

#: Any finite number of up to 60 digits, and those around the ends of the range.
numbers = st.builds(
    lambda digits, exponent: Decimal(digits).scaleb(exponent, EXACT),
    st.integers(-(10**60), 10**60) | st.integers(10**38 - 10**19, 10**38 + 10**19),
    st.integers(-50, 20) | st.just(-18),
)


def fits(value: Decimal) -> bool:
    """Whether NUMERIC(38,18) holds it, by integer arithmetic."""
    scaled = Fraction(value) * 10**18
    return scaled.denominator == 1 and abs(scaled.numerator) < 10**38


@given(numbers)
def test_a_number_has_a_fault_exactly_if_the_column_cannot_hold_it(value: Decimal) -> None:
    assert (number_fault(value) is None) == fits(value)


@pytest.mark.parametrize("value", [LARGEST, LARGEST.copy_negate(), SMALLEST, Decimal(0)])
def test_the_ends_of_the_range_fit(value: Decimal) -> None:
    assert number_fault(value) is None


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("1e20", "number_too_large"),
        ("-1e20", "number_too_large"),
        ("1e400", "number_too_large"),
        ("0.0000000000000000001", "too_many_fraction_digits"),
        ("1.0000000000000000001", "too_many_fraction_digits"),
        ("1e-400", "too_many_fraction_digits"),
        ("NaN", "not_finite"),
        ("sNaN", "not_finite"),
        ("Infinity", "not_finite"),
        ("-Infinity", "not_finite"),
    ],
)
def test_the_fault_is_named(value: str, fault: str) -> None:
    assert number_fault(Decimal(value)) == fault


def test_zeros_behind_the_last_digit_are_no_fault() -> None:
    assert number_fault(Decimal("1." + "0" * 40)) is None
    assert number_fault(Decimal("0E-400")) is None


@given(numbers)
def test_plain_spells_the_same_number(value: Decimal) -> None:
    assert Decimal(plain(value)) == value


@given(numbers)
def test_plain_has_no_exponent_and_no_needless_zero(value: Decimal) -> None:
    text = plain(value)
    assert "E" not in text
    assert not ("." in text and text.endswith(("0", ".")))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1E-7", "0.0000001"),
        ("1E+3", "1000"),
        ("100", "100"),
        ("1.500", "1.5"),
        ("-0.10", "-0.1"),
        ("-0", "0"),
        ("0E+5", "0"),
    ],
)
def test_plain(value: str, text: str) -> None:
    assert plain(Decimal(value)) == text


@given(numbers)
def test_a_number_is_read_as_it_is_written(value: Decimal) -> None:
    assert parse_decimal(str(value)) == value
    assert parse_decimal(f" {plain(value)}\t") == value


@given(st.integers())
def test_an_integer_is_itself(value: int) -> None:
    assert parse_decimal(value) == value


def test_a_decimal_is_itself_with_its_zeros() -> None:
    assert str(parse_decimal(Decimal("1.10"))) == "1.10"


@pytest.mark.parametrize("text", ["", " ", "1_000", "1,5", "0x10", "one", "1.2.3", "--1", "1 2"])
def test_other_text_is_no_number(text: str) -> None:
    assert parse_decimal(text) is None
