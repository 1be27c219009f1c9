"""Exact numbers: what NUMERIC(38,18) holds, and how a number is read and written.

Prices, amounts, costs and fees are Decimals here and NUMERIC(38,18) in the database. PostgreSQL
rounds what has more fractional digits than the scale, so everything that writes asks
`number_fault` first and refuses instead.
"""

from __future__ import annotations

from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Final

PRECISION: Final = 38
SCALE: Final = 18
#: The first magnitude that NUMERIC(38,18) cannot hold.
LIMIT: Final = Decimal(10) ** (PRECISION - SCALE)

# Wide enough that no product of two NUMERIC(38,18) values is ever rounded.
EXACT: Final = Context(prec=120, traps=[InvalidOperation, Inexact])

_COLUMN: Final = Context(prec=PRECISION, traps=[InvalidOperation, Inexact])
_LAST_DIGIT: Final = Decimal(1).scaleb(-SCALE)


def parse_decimal(text: str | int | Decimal) -> Decimal | None:
    """The Decimal that `text` spells, exactly; None if it spells no number.

    Takes plain and scientific notation and surrounding blanks. Underscores, which Python's
    Decimal would accept, are not a number in any exchange's data.
    """
    if isinstance(text, Decimal):
        return text
    if isinstance(text, int):
        return Decimal(text)
    if "_" in text:
        return None
    try:
        return Decimal(text.strip())
    except InvalidOperation:
        return None


def number_fault(value: Decimal) -> str | None:
    """The rule of `kurisu.domain.faults.Rule` that `value` breaks as a NUMERIC(38,18), or None."""
    try:
        # One call for nearly every number there is: it fits if this loses nothing.
        if _COLUMN.quantize(value, _LAST_DIGIT).is_finite():
            return None
    except (InvalidOperation, Inexact):
        pass
    if not value.is_finite():
        return "not_finite"
    # Not abs(), which rounds to the precision of the caller's context.
    if value.copy_abs() >= LIMIT:
        return "number_too_large"
    exponent = value.as_tuple().exponent
    if (
        isinstance(exponent, int)
        and exponent < -SCALE
        and value != value.quantize(Decimal(1).scaleb(-SCALE), context=Context(prec=2_000))
    ):
        return "too_many_fraction_digits"
    return None


def plain(value: Decimal) -> str:
    """The shortest plain spelling of `value`: never an exponent, no trailing zeros.

    >>> plain(Decimal("1E-7"))
    '0.0000001'
    """
    if not value:
        return "0"
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
