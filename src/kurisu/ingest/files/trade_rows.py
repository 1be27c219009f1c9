"""Turns cells into trades, block by block, and hands them on; nothing is kept but the rejects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kurisu.domain.faults import Reject, Rule
from kurisu.ingest.files.columns import Layout
from kurisu.ingest.files.detect import CannotRead
from kurisu.ingest.files.numbers import DECIMAL, Faults, is_missing, to_decimals
from kurisu.ingest.files.rows import Same, shorten
from kurisu.ingest.files.times import TIME
from kurisu.ingest.files.trade_times import to_trade_times

#: So many rows without a trade, and it is another kind of file. It bounds the list of them, too.
MAX_REJECTS: Final = 100_000

SCHEMA: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("time", TIME),
        ("trade_id", pa.string()),
        ("side", pa.string()),
        ("price", DECIMAL),
        ("amount", DECIMAL),
        ("cost", DECIMAL),
        ("taker_or_maker", pa.string()),
    ]
)
_BUY: Final = pa.array(["buy", "b", "bid"])
_SELL: Final = pa.array(["sell", "s", "ask"])
_TRUE: Final = pa.array(["true", "1", "t"])
_FALSE: Final = pa.array(["false", "0", "f"])


class TradeCollector:
    """Takes the rows of one file in their order; `sink` gets them as batches of SCHEMA."""

    def __init__(self, sink: Callable[[pa.RecordBatch], None]) -> None:
        self.rows_read = 0
        self.layout: Layout | None = None
        self._sink = sink
        self._rejects: list[Reject] = []
        self._same = Same("market")

    def claim(self, count: int) -> int:
        """Counts `count` more rows as read and returns the number of the first."""
        first = self.rows_read + 1
        self.rows_read += count
        return first

    def reject(self, row: int, rule: Rule, value: str) -> None:
        """A row that is at fault as a whole."""
        self._reject(Reject(row, rule, shorten(value)))

    def add(
        self, rows: npt.NDArray[np.int64], cells: Mapping[str, pa.Array], layout: Layout
    ) -> None:
        """Converts rows that have all their columns."""
        self.layout = self.layout or layout
        for what in layout.same:
            self._same.check(what, cells[what])
        faults: dict[str, Faults] = {}
        columns: dict[str, pa.Array] = {"row": pa.array(rows, pa.int64())}
        columns["time"], faults["time"] = to_trade_times(cells["time"])
        columns["price"], faults["price"] = to_decimals(cells["price"])
        columns["amount"], faults["amount"] = to_decimals(cells["amount"])
        if "trade_id" in cells:
            columns["trade_id"], faults["trade_id"] = _ids(cells["trade_id"])
        if "side" in cells:
            columns["side"], faults["side"] = _choice(cells["side"], {"buy": _BUY, "sell": _SELL})
        elif "maker" in cells:
            # The buyer was the maker: it was the taker who sold.
            choices = {"sell": _TRUE, "buy": _FALSE}
            columns["side"], faults["maker"] = _choice(cells["maker"], choices)
        if "cost" in cells:
            columns["cost"], found = to_decimals(cells["cost"])
            faults["cost"] = {at: r for at, r in found.items() if r is not Rule.MISSING_VALUE}
        if "taker_or_maker" in cells:
            roles = {"taker": pa.array(["taker"]), "maker": pa.array(["maker"])}
            columns["taker_or_maker"], faults["taker_or_maker"] = _choice(
                cells["taker_or_maker"], roles, Rule.TAKER_OR_MAKER_NOT_READABLE
            )
        count = len(rows)
        batch = pa.record_batch(
            [columns.get(f.name, pa.nulls(count, f.type)) for f in SCHEMA], schema=SCHEMA
        )
        first: dict[int, tuple[Rule, str]] = {}
        for name, found in faults.items():
            for at, rule in found.items():
                first.setdefault(at, (rule, name))
        if first:
            for at in sorted(first):
                rule, name = first[at]
                text = cells[name].slice(at, 1).cast(pa.string())[0].as_py()
                self._reject(Reject(int(rows[at]), rule, shorten(text or ""), name))
            keep = np.ones(count, dtype=bool)
            keep[list(first)] = False
            batch = batch.filter(pa.array(keep))
        if batch.num_rows:
            self._sink(batch)

    def rejects(self) -> list[Reject]:
        """All rejects, in the order of their rows."""
        return sorted(self._rejects, key=lambda reject: reject.row)

    def _reject(self, reject: Reject) -> None:
        self._rejects.append(reject)
        if len(self._rejects) > MAX_REJECTS:
            raise CannotRead(
                f"no trade can be read from more than {MAX_REJECTS:,} of its rows, the last being "
                f"row {reject.row:,} ({reject.rule.value}): say with --columns which column is "
                "which, or it is no file of trades"
            )


def _ids(column: pa.Array) -> tuple[pa.Array, Faults]:
    """Ids as text; null where there is none."""
    faults: Faults = {}
    if pa.types.is_floating(column.type):
        # pandas makes floats of whole numbers where one is missing; beyond 2^53 they are guesses.
        numbers = column.to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore"):
            wrong = ~(np.isnan(numbers) | ((numbers == np.floor(numbers)) & (numbers < 2**53)))
        faults = dict.fromkeys(np.flatnonzero(wrong).tolist(), Rule.TRADE_ID_NOT_USABLE)
        blank = pa.array(wrong | np.isnan(numbers))
        column = pc.if_else(blank, pa.scalar(None, column.type), column).cast(pa.int64())
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return _without_missing(text), faults


def _without_missing(text: pa.Array) -> pa.Array:
    """Null for the ways to write "no value"."""
    short = pc.less_equal(pc.utf8_length(text), 4)
    if not pc.any(short).as_py():
        return text
    words = [w for w in pc.unique(text.filter(pc.fill_null(short, False))).to_pylist()
             if is_missing(w)]  # fmt: skip
    if not words:
        return text
    return pc.if_else(pc.is_in(text, value_set=pa.array(words)), pa.scalar(None, pa.string()), text)


def _choice(
    column: pa.Array, choices: Mapping[str, pa.Array], rule: Rule = Rule.SIDE_NOT_READABLE
) -> tuple[pa.Array, Faults]:
    """One of a few words; null where there is none."""
    text = _without_missing(pc.utf8_lower(pc.utf8_trim_whitespace(column.cast(pa.string()))))
    result = pa.nulls(len(text), pa.string())
    known = text.is_null()
    for word, spellings in choices.items():
        is_it = pc.is_in(text, value_set=spellings)
        result = pc.if_else(is_it, word, result)
        known = pc.or_(known, is_it)
    at = np.flatnonzero(~known.to_numpy(zero_copy_only=False)).tolist()
    return result, dict.fromkeys(at, rule)
