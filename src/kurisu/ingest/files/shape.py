"""What kind of rows a file is read for: candles or trades."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kurisu.domain.faults import Rule
from kurisu.ingest.files.columns import Layout

Row = Sequence[str | None]


class RowTaker(Protocol):
    """Takes the rows of one file in their order, some at a time."""

    def claim(self, count: int) -> int:
        """Counts `count` more rows as read and returns the number of the first."""

    def reject(self, row: int, rule: Rule, value: str) -> None:
        """A row that is at fault as a whole."""

    def add(
        self, rows: npt.NDArray[np.int64], cells: Mapping[str, pa.Array], layout: Layout
    ) -> None:
        """Rows that have all their columns: an array for each field of `layout` and its `same`."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What readers need to know of the rows that they look for.

    what: "candles", for messages. columns: what a line has to have, for messages. least: columns
        of a row at least.
    looks_like_names: whether cells are a header. from_names: the layout of named columns; the
        second argument is the first row. from_option: that of --columns, for rows of a width.
    guess: the layout of rows without names, from a sample; None if they could be anything.
        check: raises CannotRead if a sample does not look like a guessed layout.
    example: a --columns for rows of a width. is_usable: whether an Arrow type can be a field.
    is_streamed: JSON's list of lists is read block by block, not held in memory.
    """

    what: str
    columns: str
    least: int
    looks_like_names: Callable[[Sequence[str]], bool]
    from_names: Callable[[Sequence[str], Row], Layout]
    from_option: Callable[[Sequence[str], int], Layout]
    guess: Callable[[Sequence[Row], int], Layout | None]
    check: Callable[[Layout, Sequence[Row]], None]
    example: Callable[[int], str]
    is_usable: Callable[[pa.DataType, str], bool]
    is_streamed: bool = False
