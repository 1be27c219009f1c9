"""Collects what was read: converted rows, rejected rows, and their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kurisu.domain.faults import Reject, Rule
from kurisu.ingest.files.columns import FIELDS, Layout
from kurisu.ingest.files.detect import CannotRead
from kurisu.ingest.files.numbers import DECIMAL, to_decimals
from kurisu.ingest.files.times import TIME, to_times

#: Rows in one file: 95 years of 1m candles. The table alone then takes 5 GB.
MAX_ROWS: Final = 50_000_000
#: Characters of an offending value that a reject keeps.
MAX_VALUE_CHARS: Final = 200

SCHEMA: Final = pa.schema(
    [("row", pa.int64()), ("time", TIME), *((name, DECIMAL) for name in FIELDS[1:])]
)


def shorten(value: str) -> str:
    """`value` as a reject keeps it."""
    return value if len(value) <= MAX_VALUE_CHARS else value[:MAX_VALUE_CHARS] + "..."


class Same:
    """Columns whose value is one in a whole file, e.g. its symbol. parts: what each part of a file
    with several would be."""

    def __init__(self, parts: str) -> None:
        self._parts = parts
        self._known: dict[str, str] = {}

    def check(self, what: str, column: pa.Array) -> None:
        """Raises CannotRead at a second value of `what`."""
        for value in pc.unique(column.cast(pa.string())).to_pylist():
            if not value:
                continue
            known = self._known.setdefault(what, value)
            if value != known:
                raise CannotRead(
                    f"it holds more than one {what}, {known[:40]!r} and {value[:40]!r}: "
                    f"split it and import each part as its own {self._parts}"
                )


class Collector:
    """Takes the rows of one file in their order, some at a time."""

    def __init__(self) -> None:
        self.rows_read = 0
        self._batches: list[pa.RecordBatch] = []
        self._rejects: list[Reject] = []
        self._same = Same("market and timeframe")

    def claim(self, count: int) -> int:
        """Counts `count` more rows as read and returns the number of the first."""
        first = self.rows_read + 1
        self.rows_read += count
        if self.rows_read > MAX_ROWS:
            raise CannotRead(f"more than {MAX_ROWS:,} rows: split the file")
        return first

    def reject(self, row: int, rule: Rule, value: str) -> None:
        """A row that is at fault as a whole."""
        self._rejects.append(Reject(row, rule, shorten(value)))

    def add(
        self, rows: npt.NDArray[np.int64], cells: Mapping[str, pa.Array], layout: Layout
    ) -> None:
        """Converts rows that have all their columns.

        cells: an Arrow array of any type for each of FIELDS and each of `layout.same`.
        """
        for what in layout.same:
            self._same.check(what, cells[what])
        columns: list[pa.Array] = [pa.array(rows, pa.int64())]
        first_fault: dict[int, tuple[Rule, str]] = {}
        for name in FIELDS:
            convert = to_times if name == "time" else to_decimals
            values, faults = convert(cells[name])
            columns.append(values)
            for at, rule in faults.items():
                first_fault.setdefault(at, (rule, name))
        batch = pa.record_batch(columns, schema=SCHEMA)
        if first_fault:
            self._reject_cells(rows, cells, first_fault)
            keep = np.ones(len(rows), dtype=bool)
            keep[list(first_fault)] = False
            batch = batch.filter(pa.array(keep))
        self._batches.append(batch)

    def part(self) -> int:
        """A mark: `table(since=mark)` has only what was added after it."""
        return len(self._batches)

    def table(self, since: int = 0) -> pa.Table:
        return pa.Table.from_batches(self._batches[since:], SCHEMA)

    def rejects(self) -> list[Reject]:
        """All rejects, in the order of their rows."""
        return sorted(self._rejects, key=lambda reject: reject.row)

    def _reject_cells(
        self,
        rows: npt.NDArray[np.int64],
        cells: Mapping[str, pa.Array],
        faults: Mapping[int, tuple[Rule, str]],
    ) -> None:
        for name in FIELDS:
            at = [i for i, (_, where) in faults.items() if where == name]
            texts = cells[name].take(pa.array(at, pa.int64())).cast(pa.string()).to_pylist()
            for i, text in zip(at, texts, strict=True):
                value = shorten(text or "")
                self._rejects.append(Reject(int(rows[i]), faults[i][0], value, name))
