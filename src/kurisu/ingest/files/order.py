"""The guard for files without names: is the assumed order of the columns the real one?

A candle has low <= open, close <= high. Where an assumed order breaks this in more rows than bad
data explains, while another order keeps it in all of them, the file has another order, and reading
on would store nonsense or reject good rows.
"""

from __future__ import annotations

from collections.abc import Sequence
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
TRIED_ROWS: Final = 100_000
#: An open belongs near the close before it. If in so many steps the "close" column opens ...
MIN_STEPS: Final = 200
#: ... and in this share of them it is nearer, open and close are exchanged.
EXCHANGED_SHARE: Final = 0.9

_PRICES: Final = ("open", "high", "low", "close")


def check_order(table: pa.Table, layout: Layout) -> None:
    """Raises CannotRead, with the `--columns` to use, if `layout`'s order is not the real one."""
    total = table.num_rows
    if not layout.assumed or total == 0:
        return
    broken = _broken(*(table[name] for name in _PRICES))
    if broken < MIN_INCONSISTENT_ROWS or broken <= total * MAX_INCONSISTENT_SHARE:
        _check_open_and_close(table, layout)
        return
    # From the middle: the first candles of a market are often flat and fit any order.
    tried = min(total, TRIED_ROWS)
    sample = table.slice((total - tried) // 2, tried)
    names = _another_order(sample)
    if names is not None:
        raise CannotRead(
            f"it has no header, and its columns are not in the order {','.join(FIELDS)}: "
            f"{broken:,} of {total:,} rows would break low <= open, close <= high. They look like "
            f"{_option(names, layout)}: check that and pass --columns {_option(names, layout)}"
        )
    if broken * 2 > total:
        raise CannotRead(
            f"it has no header, and in no order of its columns are they candles: as "
            f"{','.join(FIELDS)}, {broken:,} of {total:,} rows break low <= open, close <= high; "
            "say with --columns which column is which"
        )


def _broken(opened: pa.Array, high: pa.Array, low: pa.Array, close: pa.Array) -> int:
    """Rows that break low <= open, close <= high."""
    rows = pc.or_(
        pc.or_(pc.greater(low, opened), pc.greater(low, close)),
        pc.or_(pc.greater(opened, high), pc.greater(close, high)),
    )
    return pc.sum(rows).as_py() or 0


def _another_order(sample: pa.Table) -> list[str] | None:
    """The meaning of each column after the time under which the rows are candles."""
    columns = [sample[name] for name in FIELDS[1:]]
    # The volume comes last nearly everywhere, so that is tried first.
    for volume in (4, 3, 2, 1, 0):
        prices = [i for i in range(5) if i != volume]
        for high, low in permutations(prices, 2):
            first, second = (i for i in prices if i not in (high, low))
            broken = _broken(columns[first], columns[high], columns[low], columns[second])
            if broken > sample.num_rows * MAX_SHARE_IN_ANOTHER_ORDER:
                continue
            if pc.any(pc.less(columns[volume], 0)).as_py():
                continue
            names = [""] * 5
            names[volume], names[high], names[low] = "volume", "high", "low"
            exchanged = _opens_where_the_other_closed(
                sample["time"], columns[second], columns[first]
            )
            names[first], names[second] = ("close", "open") if exchanged else ("open", "close")
            return names
    return None


def _check_open_and_close(table: pa.Table, layout: Layout) -> None:
    sample = table.slice(max(0, table.num_rows - TRIED_ROWS) // 2, TRIED_ROWS)
    if _opens_where_the_other_closed(sample["time"], sample["close"], sample["open"]):
        option = _option(["close", "high", "low", "open", "volume"], layout)
        raise CannotRead(
            f"it has no header, and read as {','.join(FIELDS)} its candles open where the candle "
            f"before opened, and close where the next one closes: they look like {option}. Pass "
            f"--columns {option}, or --columns {_option(FIELDS[1:], layout)} if they are not"
        )


def _opens_where_the_other_closed(
    time: pa.ChunkedArray, opened: pa.ChunkedArray, close: pa.ChunkedArray
) -> bool:
    """True if `opened` starts near where `close` ended, and clearly nearer than the other way."""
    order = pc.sort_indices(time)
    # Wider, because a difference of two 38-digit numbers has up to 39 digits.
    opened, close = (column.take(order).cast(pa.decimal256(40, 18)) for column in (opened, close))
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
