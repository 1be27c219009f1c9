"""The guard for files without names: is the assumed order of the columns the real one?

A candle has low <= open, close <= high. Where an assumed order breaks this in more rows than bad
data explains, while another order keeps it in all of them, the file has another order, and reading
on would store nonsense or reject good rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import permutations
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from kurisu.ingest.files.columns import FIELDS, Layout
from kurisu.ingest.files.detect import CannotRead

#: Up to this share of rows that are no candles, the assumed order is taken to be right.
MAX_INCONSISTENT_SHARE: Final = 0.01
#: Another order must do better than this before it is named.
MAX_SHARE_IN_ANOTHER_ORDER: Final = 0.001
#: Fewer rows than this prove nothing.
MIN_INCONSISTENT_ROWS: Final = 2
#: Rows that other orders are tried on.
TRIED_ROWS: Final = 20_000
#: An open belongs near the close before it. If in so many steps the "close" column opens ...
MIN_STEPS: Final = 200
#: ... and in this share of them it is nearer, open and close are exchanged.
EXCHANGED_SHARE: Final = 0.9

#: Prices of one candle lie close together. If in another order of a file the candles are so many
#: times narrower, the assumed order took the volume for a price.
NARROWER: Final = 10

# A difference of two 38-digit numbers has up to 39 digits.
_WIDE: Final = pa.decimal256(40, 18)
_PRICES: Final = ("open", "high", "low", "close")


@dataclass(frozen=True, slots=True)
class _Order:
    """An order of the five columns after the time under which all rows are candles.

    names: the meaning of each column; which of the two others is the open is not known yet.
    width: high minus low, summed over all rows, in quote units.
    others: 0-based positions of open and close.
    """

    names: list[str]
    width: Decimal
    others: tuple[int, int]


def check_order(table: pa.Table, layout: Layout) -> None:
    """Raises CannotRead, with the `--columns` to use, if `layout`'s order is not the real one."""
    total = table.num_rows
    if not layout.assumed or total == 0:
        return
    broken = _broken(*(table[name] for name in _PRICES))
    fits = broken < MIN_INCONSISTENT_ROWS or broken <= total * MAX_INCONSISTENT_SHARE
    # From the middle: the first candles of a market are often flat and fit any order.
    tried = min(total, TRIED_ROWS)
    sample = table.slice((total - tried) // 2, tried)
    best = _narrowest_order(sample)
    assumed = f"read as {','.join(FIELDS)}"
    if not fits and best is not None:
        raise _wrong(
            f"{assumed}, {broken:,} of {total:,} rows would break low <= open, close <= high",
            _named(best, sample),
            layout,
        )
    if not fits and broken * 2 > total:
        raise CannotRead(
            f"it has no header, and in no order of its columns are they candles: {assumed}, "
            f"{broken:,} of {total:,} rows break low <= open, close <= high; say with --columns "
            "which column is which"
        )
    if fits and total >= MIN_STEPS:
        if best is not None and best.width * NARROWER < _width(sample["high"], sample["low"]):
            raise _wrong(
                f"{assumed}, its candles are {NARROWER} times wider than in another order",
                _named(best, sample),
                layout,
            )
        if _opens_where_the_other_closed(sample["time"], sample["close"], sample["open"]):
            raise _wrong(
                f"{assumed}, its candles open where the one before opened, and close where the "
                "next one closes",
                ["close", "high", "low", "open", "volume"],
                layout,
            )


def _wrong(finding: str, names: Sequence[str], layout: Layout) -> CannotRead:
    option = _option(names, layout)
    return CannotRead(
        f"it has no header, and {finding}. The columns look like {option}: check that and pass "
        f"--columns {option}; if the usual order is right, --columns {_option(FIELDS[1:], layout)}"
    )


def _broken(opened: pa.Array, high: pa.Array, low: pa.Array, close: pa.Array) -> int:
    """Rows that break low <= open, close <= high."""
    rows = pc.or_(
        pc.or_(pc.greater(low, opened), pc.greater(low, close)),
        pc.or_(pc.greater(opened, high), pc.greater(close, high)),
    )
    return pc.sum(rows).as_py() or 0


def _narrowest_order(sample: pa.Table) -> _Order | None:
    """Of all orders in which the rows are candles, the one with the narrowest candles."""
    columns = [sample[name] for name in FIELDS[1:]]
    above = [[pc.sum(pc.greater(a, b)).as_py() or 0 for b in columns] for a in columns]
    negative = [pc.any(pc.less(column, 0)).as_py() for column in columns]
    best: _Order | None = None
    # The volume comes last nearly everywhere, so that order wins where several fit equally.
    for volume in (4, 3, 2, 1, 0):
        prices = [i for i in range(5) if i != volume]
        for high, low in permutations(prices, 2):
            others = [i for i in prices if i not in (high, low)]
            broken = sum(above[low][i] + above[i][high] for i in others)
            if broken > sample.num_rows * MAX_SHARE_IN_ANOTHER_ORDER or negative[volume]:
                continue
            width = _width(columns[high], columns[low])
            if best is None or width < best.width:
                names = [""] * 5
                names[volume], names[high], names[low] = "volume", "high", "low"
                best = _Order(names, width, (others[0], others[1]))
    return best


def _named(order: _Order, sample: pa.Table) -> list[str]:
    """The meaning of each column, open and close included."""
    first, second = order.others
    columns = [sample[name] for name in FIELDS[1:]]
    names = list(order.names)
    exchanged = _opens_where_the_other_closed(sample["time"], columns[second], columns[first])
    names[first], names[second] = ("close", "open") if exchanged else ("open", "close")
    return names


def _width(high: pa.ChunkedArray, low: pa.ChunkedArray) -> Decimal:
    total = pc.sum(pc.subtract(high.cast(_WIDE), low.cast(_WIDE))).as_py()
    return total if isinstance(total, Decimal) else Decimal()


def _opens_where_the_other_closed(
    time: pa.ChunkedArray, opened: pa.ChunkedArray, close: pa.ChunkedArray
) -> bool:
    """True if `opened` starts near where `close` ended, and clearly nearer than the other way."""
    order = pc.sort_indices(time)
    opened, close = (column.take(order).cast(_WIDE) for column in (opened, close))
    if len(order) <= MIN_STEPS:
        return False
    as_named = _distance(close, opened)
    exchanged = _distance(opened, close)
    nearer = pc.sum(pc.less(as_named, exchanged)).as_py()
    farther = pc.sum(pc.greater(as_named, exchanged)).as_py()
    return bool(nearer + farther >= MIN_STEPS and nearer > (nearer + farther) * EXCHANGED_SHARE)


def _distance(before: pa.ChunkedArray, after: pa.ChunkedArray) -> pa.ChunkedArray:
    """From each row's `before` to the next row's `after`."""
    return pc.abs(pc.subtract(after.slice(1), before.slice(0, len(before) - 1)))


def _option(names: Sequence[str], layout: Layout) -> str:
    return ",".join(["ts", *names, *["_"] * (layout.width - len(FIELDS))])
