from __future__ import annotations

import math
import random
import struct
from decimal import Context, Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kurisu.domain.faults import Rule
from kurisu.ingest.files.numbers import DECIMAL, read_number, to_decimals

from .samples import numbers, patient, spellings


def one(text: str | None) -> Decimal | Rule:
    """The same value through the column, amid others; it has to agree with `read_number`."""
    column, faults = to_decimals(pa.array(["1", text, "2.5", None], pa.string()))
    assert column.type == DECIMAL
    assert column[0].as_py() == 1
    assert column[2].as_py() == Decimal("2.5")
    assert faults.pop(3) is Rule.MISSING_VALUE
    alone, _ = to_decimals(pa.array([text], pa.string()))
    assert alone[0].as_py() == column[1].as_py()
    if 1 in faults:
        assert column[1].as_py() is None
        return faults[1]
    value = column[1].as_py()
    assert isinstance(value, Decimal)
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-07", "0.0000001"),
        ("4E+12", "4000000000000"),
        ("4.0E12", "4000000000000"),
        ("+1.5", "1.5"),
        (" 1.5 ", "1.5"),
        ("\t1e3 ", "1000"),
        ("1.", "1"),
        (".5", "0.5"),
        ("-0.0", "0"),
        ("-12.5", "-12.5"),
        ("0.0000000001", "0.0000000001"),
        ("0.100000000000000000000000000", "0.1"),
        ("1" + "0" * 19, "1" + "0" * 19),
        ("0" * 60 + "7", "7"),
        ("10e-19", "1e-18"),
        ("100E-20", "1e-18"),
        ("0E+9999999", "0"),
        ("0e-5000", "0"),
        ("99999999999999999999.999999999999999999", "99999999999999999999.999999999999999999"),
        ("1e19", "1e19"),
    ],
)
def test_numbers_are_what_they_spell(text: str, value: str) -> None:
    assert one(text) == Decimal(value)
    assert read_number(text) == Decimal(value)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (None, Rule.MISSING_VALUE),
        ("", Rule.MISSING_VALUE),
        ("   ", Rule.MISSING_VALUE),
        ("null", Rule.MISSING_VALUE),
        ("None", Rule.MISSING_VALUE),
        ("N/A", Rule.MISSING_VALUE),
        ("nan", Rule.NOT_FINITE),
        ("NaN", Rule.NOT_FINITE),
        ("-inf", Rule.NOT_FINITE),
        ("Infinity", Rule.NOT_FINITE),
        ("1,234.5", Rule.NUMBER_NOT_READABLE),
        ("1 234", Rule.NUMBER_NOT_READABLE),
        ("1_000", Rule.NUMBER_NOT_READABLE),
        ("0x10", Rule.NUMBER_NOT_READABLE),
        ("1e", Rule.NUMBER_NOT_READABLE),
        ("e5", Rule.NUMBER_NOT_READABLE),
        (".", Rule.NUMBER_NOT_READABLE),
        ("--1", Rule.NUMBER_NOT_READABLE),
        ("1.2.3", Rule.NUMBER_NOT_READABLE),
        ("$1", Rule.NUMBER_NOT_READABLE),
        ("\uff11", Rule.NUMBER_NOT_READABLE),
        ("\u0661", Rule.NUMBER_NOT_READABLE),
        ("sNaN", Rule.NUMBER_NOT_READABLE),
        ("nan12", Rule.NUMBER_NOT_READABLE),
        ("true", Rule.NUMBER_NOT_READABLE),
        ("1e20", Rule.NUMBER_TOO_LARGE),
        ("-1e20", Rule.NUMBER_TOO_LARGE),
        ("100000000000000000000", Rule.NUMBER_TOO_LARGE),
        ("2E+30", Rule.NUMBER_TOO_LARGE),
        ("1e99999999", Rule.NUMBER_TOO_LARGE),
        ("9" * 50, Rule.NUMBER_TOO_LARGE),
        ("1e-19", Rule.TOO_MANY_FRACTION_DIGITS),
        ("7E-77", Rule.TOO_MANY_FRACTION_DIGITS),
        ("1e-9999999", Rule.TOO_MANY_FRACTION_DIGITS),
        ("0.1234567890123456789", Rule.TOO_MANY_FRACTION_DIGITS),
        ("1.2345678901234567e-05", Rule.TOO_MANY_FRACTION_DIGITS),
    ],
)
def test_what_is_no_number_breaks_a_rule(text: str | None, rule: Rule) -> None:
    assert one(text) is rule
    assert read_number(text) is rule


@patient
@given(st.data(), numbers)
def test_every_spelling_gives_the_same_digits(data: st.DataObject, value: Decimal) -> None:
    assert one(data.draw(spellings(value))) == value


@patient
@given(
    st.from_regex(r"[+-]?[0-9]{0,45}(\.[0-9]{0,45})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)
def test_a_column_never_says_other_than_decimal(text: str) -> None:
    """pyarrow's own cast wraps around on such values; none may reach it."""
    result = one(text)
    if isinstance(result, Decimal):
        assert result == Decimal(text)
        return
    if result is Rule.TOO_MANY_FRACTION_DIGITS:
        value = Decimal(text)
        assert value != value.quantize(Decimal("1e-18"), context=Context(prec=2_000))
    if result is Rule.NUMBER_TOO_LARGE:
        assert Decimal(text).copy_abs() > Decimal("99999999999999999999.99")


@pytest.mark.parametrize("source", ["2E+30", "4E20", "741712291661324629517.53681909"])
def test_pyarrow_still_wraps_around(source: str) -> None:
    """Why the fast path is guarded. If this fails, pyarrow was mended: the guard may go."""
    assert pa.array([source]).cast(DECIMAL)[0].as_py() != Decimal(source)


@patient
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1))
def test_float64_is_its_shortest_repr(values: list[float]) -> None:
    column, faults = to_decimals(pa.array(values, pa.float64()))
    for i, value in enumerate(values):
        wanted = read_number(repr(value))
        assert (faults[i] if i in faults else column[i].as_py()) == wanted


def test_many_float64_are_their_shortest_repr() -> None:
    chance = random.Random(7)
    values = [struct.unpack("<d", chance.randbytes(8))[0] for _ in range(20_000)]
    values += [round(chance.random() * 10 ** chance.randint(-8, 13), 8) for _ in range(80_000)]
    text = pa.array(values, pa.float64()).cast(pa.string()).to_pylist()
    wrong = [
        (value, spelled)
        for value, spelled in zip(values, text, strict=True)
        if not math.isnan(value) and Decimal(spelled) != Decimal(repr(value))
    ]
    assert wrong == []


def test_float32_is_its_own_shortest_repr() -> None:
    column, faults = to_decimals(pa.array([0.1, 1e-07, 16777216, 4.5e11], pa.float32()))
    assert column.to_pylist() == [Decimal(t) for t in ("0.1", "1e-7", "16777216", "4.5e11")]
    assert faults == {}
    values = np.frombuffer(random.Random(3).randbytes(40_000), np.float32)
    text = pa.array(values).cast(pa.string()).to_pylist()
    assert all(
        Decimal(spelled) == Decimal(str(value))
        for value, spelled in zip(values, text, strict=True)
        if np.isfinite(value)
    )


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.int8(), 5),
        (pa.int64(), 2**63 - 1),
        (pa.uint64(), 2**64 - 1),
        (pa.decimal128(10, 4), Decimal("123456.7890")),
        (pa.decimal128(38, 0), Decimal(99999999999999999999)),
        (pa.decimal256(60, 30), Decimal("1.5")),
        (pa.large_string(), "1e-7"),
        (DECIMAL, Decimal("99999999999999999999.999999999999999999")),
    ],
)
def test_other_types_are_exact(kind: pa.DataType, value: object) -> None:
    column, faults = to_decimals(pa.array([value, None], kind))
    assert column[0].as_py() == Decimal(str(value))
    assert faults == {1: Rule.MISSING_VALUE}


@pytest.mark.parametrize(
    ("kind", "value", "rule"),
    [
        (pa.decimal128(38, 0), Decimal(10**20), Rule.NUMBER_TOO_LARGE),
        (pa.decimal256(76, 0), Decimal("9" * 40), Rule.NUMBER_TOO_LARGE),
        (pa.decimal128(38, 30), Decimal("1e-25"), Rule.TOO_MANY_FRACTION_DIGITS),
    ],
)
def test_other_types_are_refused_and_never_rounded(
    kind: pa.DataType, value: Decimal, rule: Rule
) -> None:
    assert to_decimals(pa.array([value], kind))[1] == {0: rule}
