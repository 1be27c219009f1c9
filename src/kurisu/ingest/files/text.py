"""CSV and its relatives: finds the delimiter, the header and the layout, then reads by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from kurisu.domain.faults import Rule
from kurisu.ingest.files.columns import Layout
from kurisu.ingest.files.detect import CannotRead, Source, is_checksum
from kurisu.ingest.files.lines import Dialect, add_lines, blocks, split
from kurisu.ingest.files.numbers import read_number
from kurisu.ingest.files.shape import RowTaker, Shape
from kurisu.ingest.files.times import read_time

#: Lines that the delimiter, the header and the layout are found from.
SAMPLE_LINES: Final = 1_000
#: Lines of prose (a URL, a title) that may stand above the data.
MAX_PREAMBLE_LINES: Final = 20

# A comma last: the others cannot stand inside a number.
_DELIMITERS: Final = ("\t", ";", "|", ",")
_COMMENT_MARKS: Final = ("#", "//", "http://", "https://")


@dataclass(frozen=True, slots=True)
class Sample:
    """What the first lines say.

    skip: physical lines above the first row: prose, blanks, the header.
    header: the names of the columns; None where there are none.
    rows: cells of the sampled rows.
    """

    dialect: Dialect
    skip: int
    header: list[str] | None
    rows: list[list[str]]


def read_text(
    source: Source, columns: Sequence[str] | None, collector: RowTaker, shape: Shape
) -> tuple[Layout, str | None]:
    """Adds all rows of a text file.

    Returns its layout and a note on its end, if that looks cut. Raises CannotRead.
    """
    stream = blocks(source)
    first = next(stream, b"")
    # A short first block, as a slow stream gives, is made long enough for a sample.
    while first.count(b"\n") < SAMPLE_LINES and (more := next(stream, None)) is not None:
        first += more
    sample = _look_at(first, shape)
    layout = _layout(sample, columns, shape)
    last = b""
    for block in _all(_without_lines(first, sample.skip), stream):
        add_lines(block, sample.dialect, layout, collector)
        last = block or last
    note = None
    if last and not last.endswith(b"\n"):
        note = "the last line has no line end: if the file was cut short, its last value may be too"
    return layout, note


def _all(first: bytes, others: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from others


def _without_lines(data: bytes, count: int) -> bytes:
    at = 0
    for _ in range(count):
        end = data.find(b"\n", at)
        if end < 0:
            return b""
        at = end + 1
    return data[at:]


def _look_at(data: bytes, shape: Shape) -> Sample:
    if is_checksum(data[:512].strip()):
        raise CannotRead("it is a checksum file: import the zip that it belongs to")
    lines = [
        line.decode("utf-8", errors="replace")
        for line in data.split(b"\n", SAMPLE_LINES + MAX_PREAMBLE_LINES)[: SAMPLE_LINES + 1]
    ]
    delimiter = _delimiter([line for line in lines if _is_content(line)], shape)
    dialect = Dialect(delimiter, prose=True)
    skip, header = _header(lines, delimiter, shape)
    rows = [split(line, delimiter) for line in lines[skip:] if _is_content(line)]
    # The sample's last line may be half of one.
    return Sample(dialect, skip, header, rows[:-1] if len(rows) > 1 else rows)


def _is_content(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def _delimiter(lines: Sequence[str], shape: Shape) -> str:
    """The one that divides most lines into the same number of cells, as many as a row has."""
    best, best_lines = "", 0
    for delimiter in _DELIMITERS:
        widths = Counter(len(split(line, delimiter)) for line in lines if delimiter in line)
        candidates = [(count, width) for width, count in widths.items() if width >= shape.least]
        if candidates and max(candidates)[0] > best_lines:
            best, best_lines = delimiter, max(candidates)[0]
    if not best:
        raise CannotRead(
            f"no line of it has {shape.columns}, divided by comma, semicolon, tab or |: "
            f"not {shape.what}, or cut short"
        )
    return best


def _header(lines: Sequence[str], delimiter: str, shape: Shape) -> tuple[int, list[str] | None]:
    """How many lines to skip, and the names of the columns if one of those lines has them."""
    commented: list[str] | None = None
    for at, line in enumerate(lines[:MAX_PREAMBLE_LINES]):
        text = line.strip()
        if not text:
            continue
        if text.startswith(_COMMENT_MARKS):
            cells = split(text.lstrip("#/ "), delimiter)
            commented = cells if shape.looks_like_names(cells) else commented
            continue
        cells = split(line, delimiter)
        if shape.looks_like_names(cells) or (
            len(cells) >= shape.least and not any(map(_is_data, cells))
        ):
            return at + 1, [cell.strip() for cell in cells]
        if len(cells) < shape.least and not any(map(_is_data, cells)):
            # A title, or other prose.
            continue
        return at, commented
    return 0, commented


def _is_data(cell: str) -> bool:
    number = read_number(cell)
    return (
        isinstance(number, Decimal)
        or number in (Rule.NOT_FINITE, Rule.NUMBER_TOO_LARGE, Rule.TOO_MANY_FRACTION_DIGITS)
        or isinstance(read_time(cell), int)
    )


def _layout(sample: Sample, columns: Sequence[str] | None, shape: Shape) -> Layout:
    widths = Counter(len(row) for row in sample.rows)
    width = widths.most_common(1)[0][0] if widths else 0
    if sample.header is not None:
        named = len(sample.header)
        if columns is not None:
            return shape.from_option(columns, named)
        fitting = next((row for row in sample.rows if len(row) == named), [])
        if sample.rows and not fitting:
            raise CannotRead(f"the header names {named} columns, but the rows have {width}")
        return shape.from_names(sample.header, fitting)
    if columns is not None:
        return shape.from_option(columns, width)
    rows = [row for row in sample.rows if len(row) == width]
    layout = shape.guess(rows, width)
    if layout is None:
        raise CannotRead(
            f"it has no header and {width} columns: say which is which with --columns, e.g. "
            f"{shape.example(width)}"
        )
    shape.check(layout, rows)
    return layout
