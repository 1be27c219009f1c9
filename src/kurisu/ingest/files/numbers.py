"""Columns of numbers to decimal128(38,18), exactly as they are spelled.

Everything goes through text: Arrow's string of a float32 or float64 is its shortest repr, that
of an integer or decimal is exact. The way back is checked first, because pyarrow's cast from
string to decimal128 wraps around in silence where it overflows (pyarrow 26: "2E+30" becomes
37920229821854731298.94...). Only spellings inside `_PLAIN` and the window of `_exponents` reach
that cast; every other value is walked one by one with Decimal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kurisu.domain.faults import Rule
from kurisu.domain.money import PRECISION, SCALE, number_fault, parse_decimal

DECIMAL: Final = pa.decimal128(PRECISION, SCALE)

#: Where a column's values break a rule: position in the column -> rule.
Faults = dict[int, Rule]

# At most 20 digits before the point and 18 after it: always below 1e20, never rounded.
_PLAIN: Final = r"^[+-]?[0-9]{1,20}(?:\.[0-9]{0,18})?$"
_SCIENTIFIC: Final = (
    r"^[+-]?(?P<whole>[0-9]{1,20})(?:\.(?P<part>[0-9]{0,18}))?[eE](?P<power>[+-]?[0-9]{1,3})$"
)
# What Python's Decimal would take beyond this (underscores, other scripts' digits) is no number.
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_MISSING: Final = frozenset({"", "null", "none", "nil", "na", "n/a", "<na>", "nat", "\\n"})
_LAST_DIGIT: Final = Decimal(1).scaleb(-SCALE)
_WIDE: Final = Context(prec=5_000, Emax=MAX_EMAX, Emin=MIN_EMIN)


def is_missing(text: str) -> bool:
    """True if `text` is a way to write "no value": empty, null, None, NA, NaT, \\N."""
    return text.strip().casefold() in _MISSING


def read_number(text: str | None) -> Decimal | Rule:
    """The one number that `text` spells, fit for NUMERIC(38,18), or the rule that it breaks."""
    if text is None or is_missing(text):
        return Rule.MISSING_VALUE
    text = text.strip()
    if _NOT_FINITE.fullmatch(text):
        return Rule.NOT_FINITE
    value = parse_decimal(text) if _NUMBER.fullmatch(text) else None
    if value is None:
        return Rule.NUMBER_NOT_READABLE
    with localcontext(_WIDE):
        fault = number_fault(value)
        if fault is not None:
            return Rule(fault)
        return value.quantize(_LAST_DIGIT)


def to_decimals(column: pa.Array) -> tuple[pa.Array, Faults]:
    """`column` as decimal128(38,18), null where it has a fault, and the faults."""
    if column.type == DECIMAL:
        nulls = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
        return column, dict.fromkeys(nulls.tolist(), Rule.MISSING_VALUE)
    return _from_text(column.cast(pa.string()))


def matches(text: pa.Array, pattern: str) -> pa.Array:
    """Boolean array without nulls: which strings match `pattern` (RE2); null does not."""
    return pc.fill_null(pc.match_substring_regex(text, pattern), False)


def fill(column: pa.Array, where: pa.Array, values: pa.Array) -> pa.Array:
    """`column` with `values`, in their order, at the positions where `where` is true."""
    return pc.replace_with_mask(column, where, values)


def _from_text(text: pa.Array) -> tuple[pa.Array, Faults]:
    plain = matches(text, _PLAIN)
    if plain.true_count == len(plain):
        return text.cast(DECIMAL), {}
    text = pc.utf8_trim_whitespace(text)
    plain = matches(text, _PLAIN)
    numbers = pc.if_else(plain, text, pa.scalar(None, pa.string())).cast(DECIMAL)
    others = pc.invert(plain)
    if others.true_count == 0:
        return numbers, {}
    at = np.flatnonzero(others.to_numpy(zero_copy_only=False))
    values, faults = _from_unusual_text(text.filter(others))
    return fill(numbers, others, values), {int(at[i]): rule for i, rule in faults.items()}


def _from_unusual_text(text: pa.Array) -> tuple[pa.Array, Faults]:
    """Scientific notation by column where the cast cannot overflow, the rest one by one."""
    safe = _exponents(text)
    numbers = pc.if_else(safe, text, pa.scalar(None, pa.string())).cast(DECIMAL)
    rest = pc.invert(safe)
    if rest.true_count == 0:
        return numbers, {}
    at = np.flatnonzero(rest.to_numpy(zero_copy_only=False)).tolist()
    values, faults = _walk(text.filter(rest).to_pylist())
    return fill(numbers, rest, values), {at[i]: rule for i, rule in faults.items()}


def _exponents(text: pa.Array) -> pa.Array:
    """Which strings are scientific notation below 1e20 with at most 18 fractional digits."""
    parts = pc.extract_regex(text, _SCIENTIFIC)
    # struct_field is null where the string does not match; the children themselves are not.
    power = pc.replace_substring(pc.struct_field(parts, "power"), "+", "").cast(pa.int64())
    whole_digits = pc.add(pc.binary_length(pc.struct_field(parts, "whole")), power)
    part_digits = pc.subtract(pc.binary_length(pc.struct_field(parts, "part")), power)
    fits = pc.and_(pc.less_equal(whole_digits, 20), pc.less_equal(part_digits, SCALE))
    return pc.fill_null(fits, False)


def _walk(texts: Sequence[str | None]) -> tuple[pa.Array, Faults]:
    values: list[Decimal | None] = []
    faults: Faults = {}
    for i, text in enumerate(texts):
        value = read_number(text)
        if isinstance(value, Rule):
            faults[i] = value
            values.append(None)
        else:
            values.append(value)
    return pa.array(values, DECIMAL), faults
