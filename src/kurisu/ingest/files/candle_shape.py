"""What readers need to know of candles."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

import pyarrow as pa

from kurisu.domain.faults import Rule
from kurisu.ingest.files.columns import (
    FIELDS,
    Layout,
    example,
    from_names,
    from_option,
    looks_like_names,
    without_names,
)
from kurisu.ingest.files.detect import CannotRead
from kurisu.ingest.files.numbers import read_number
from kurisu.ingest.files.shape import Row, Shape
from kurisu.ingest.files.times import read_time

#: Share of sampled rows that a layout without names must fit.
MIN_FITTING_SHARE: Final = 0.5


def check_layout(layout: Layout, rows: Sequence[Sequence[str | None]]) -> None:
    """Raises CannotRead if these rows do not look like a layout that was assumed."""
    fitting = sum(_fits(layout, row) for row in rows)
    if fitting >= len(rows) * MIN_FITTING_SHARE and (fitting or not rows):
        return
    what = f"{layout.label} rows" if layout.label else "candles in the usual order"
    times = [
        at for at in range(layout.width) if all(isinstance(read_time(row[at]), int) for row in rows)
    ]
    hint = (
        f" (times seem to stand in column {times[0] + 1})" if len(times) == 1 and times[0] else ""
    )
    raise CannotRead(
        f"it has no header, and its {layout.width} columns do not look like {what}{hint}: say "
        f"which is which with --columns, e.g. {example(layout.width)}"
    )


def _fits(layout: Layout, row: Sequence[str | None]) -> bool:
    opened = read_time(row[0])
    if isinstance(opened, Rule):
        return False
    if any(isinstance(read_number(cell), Rule) for cell in row[1 : len(FIELDS)]):
        return False
    if layout.label == "Kraken":
        # The seventh is a number of trades.
        trades = read_number(row[6])
        return isinstance(trades, Decimal) and trades >= 0 and trades == trades.to_integral_value()
    if layout.label == "Binance klines":
        closed = read_time(row[6])
        return isinstance(closed, int) and closed > opened
    return True


def is_usable(kind: pa.DataType, name: str) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_run_end_encoded(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return True
    if types.is_integer(kind) or types.is_decimal(kind) or types.is_float64(kind):
        return True
    if types.is_null(kind):
        return True
    if name == "time":
        # A float32 holds a time of today to two minutes only.
        return bool(types.is_timestamp(kind) or types.is_date(kind))
    return bool(types.is_float32(kind))


def _guess(rows: Sequence[Row], width: int) -> Layout | None:  # noqa: ARG001
    return without_names(width)


CANDLES: Final = Shape(
    what="candles",
    columns="the six columns of a candle",
    least=len(FIELDS),
    looks_like_names=looks_like_names,
    from_names=from_names,
    from_option=from_option,
    guess=_guess,
    check=check_layout,
    example=example,
    is_usable=is_usable,
)
