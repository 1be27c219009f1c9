"""Text to lines and cells by column: blocks of bytes in, Arrow arrays of strings out.

A line is a row: a line end inside quotes is damage, not data. That keeps one stray quote from
swallowing the rest of the file. Blank lines and comment lines are no rows and are not counted.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from kurisu.domain.faults import Rule
from kurisu.ingest.files.columns import Layout
from kurisu.ingest.files.detect import CannotRead, Source
from kurisu.ingest.files.rows import MAX_VALUE_CHARS
from kurisu.ingest.files.shape import RowTaker

#: Bytes that are converted at once; about 250,000 rows.
BLOCK_BYTES: Final = 2**24
#: A line longer than this is no candle.
MAX_LINE_BYTES: Final = 2**20

_NEWLINE, _QUOTE, _HASH = 10, 34, 35
_BLANK: Final = b" \t"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How lines divide into cells.

    prose: True where blank lines and lines that begin with # are no rows.
    """

    delimiter: str
    prose: bool


def blocks(source: Source) -> Iterator[bytes]:
    """The text as UTF-8 in blocks of whole lines, with \\n as line end and without a mark."""
    rest = b""
    decode = _decoder(source)
    while raw := source.read(BLOCK_BYTES):
        data = rest + decode.decode(raw).encode() if decode else rest + raw
        end = data.rfind(b"\n") + 1
        if end == 0 and b"\r" in data[:-1]:
            # An old Macintosh file. The last byte waits: it may be half of a \r\n.
            end = data.rfind(b"\r", 0, len(data) - 1) + 1
        rest = data[end:]
        if end:
            yield _tidy(data[:end])
        elif len(rest) > MAX_LINE_BYTES:
            raise CannotRead(f"it has a line of more than {MAX_LINE_BYTES:,} bytes: not candles")
    if decode:
        rest += decode.decode(b"", final=True).encode()
    if rest:
        yield _tidy(rest)


def _decoder(source: Source) -> codecs.IncrementalDecoder | None:
    """For UTF-16, which Excel calls Unicode text; None for UTF-8, whose mark is skipped."""
    head = source.peek(3)
    if head.startswith(codecs.BOM_UTF8):
        source.read(len(codecs.BOM_UTF8))
    elif head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return codecs.getincrementaldecoder("utf-16")(errors="replace")
    return None


def _tidy(data: bytes) -> bytes:
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not data.isascii():
        # What is not UTF-8 becomes U+FFFD, which no number and no time contains.
        data = data.decode("utf-8", errors="replace").encode()
    return data


def add_lines(data: bytes, dialect: Dialect, layout: Layout, collector: RowTaker) -> None:
    """Adds the rows of one block. Lines with another number of cells are rejected."""
    if not data:
        return
    if not data.endswith(b"\n"):
        data += b"\n"
    content = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(content == _NEWLINE)
    starts = np.concatenate(([0], ends[:-1] + 1))
    is_row = _rows(content, data, starts, ends, dialect)
    fits = is_row & _has_width(content, starts, ends, dialect, layout.width)
    first = collector.claim(int(is_row.sum()))
    numbers = np.cumsum(is_row) + (first - 1)
    for at in np.flatnonzero(is_row & ~fits).tolist():
        line = data[starts[at] : min(ends[at], starts[at] + 4 * (MAX_VALUE_CHARS + 1))]
        collector.reject(int(numbers[at]), Rule.ROW_TRUNCATED, _text(line))
    if not fits.all():
        data = content[np.repeat(fits, ends - starts + 1)].tobytes()
    rows = numbers[fits]
    if len(rows) == 0:
        return
    used = sorted({*layout.fields.values(), *layout.same.values()})
    data = _without_blanks_beside_quotes(data, dialect)
    cells = _parse(data, dialect, layout.width, used, len(rows))
    if cells is None:
        rows, cells = _parse_one_by_one(data, rows, dialect, layout.width, used, collector)
    named = {**layout.fields, **layout.same}
    collector.add(rows, {name: cells[used.index(at)] for name, at in named.items()}, layout)


def split(line: str, delimiter: str) -> list[str]:
    """The cells of one line."""
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return [line]


def _without_blanks_beside_quotes(data: bytes, dialect: Dialect) -> bytes:
    """`1, "2" ,3` as `1,"2",3`: behind a blank, a quote would be part of the value."""
    if b' "' not in data and b'" ' not in data:
        return data
    delimiter = re.escape(dialect.delimiter.encode())
    data = re.sub(rb"(^|" + delimiter + rb') +"', rb'\1"', data, flags=re.MULTILINE)
    return re.sub(rb'" +(' + delimiter + rb"|$)", rb'"\1', data, flags=re.MULTILINE)


def _rows(
    content: npt.NDArray[np.uint8],
    data: bytes,
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    dialect: Dialect,
) -> npt.NDArray[np.bool_]:
    """Which lines are rows: not blank, not a comment."""
    if not dialect.prose:
        return np.ones(ends.shape, dtype=np.bool_)
    head = content[starts]
    is_row: npt.NDArray[np.bool_] = (ends > starts) & (head != _HASH)
    blank = b" " if dialect.delimiter == "\t" else _BLANK
    for at in np.flatnonzero(is_row & np.isin(head, list(blank))).tolist():
        is_row[at] = bool(data[starts[at] : ends[at]].strip(blank))
    return is_row


def _has_width(
    content: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    dialect: Dialect,
    width: int,
) -> npt.NDArray[np.bool_]:
    """Which lines have `width` cells, counting delimiters outside quotes."""
    delimiters = np.flatnonzero(content == ord(dialect.delimiter))
    is_quote = content == _QUOTE
    paired = np.ones(len(ends), dtype=bool)
    if is_quote.any():
        quotes = np.cumsum(is_quote, dtype=np.int32)
        before = np.where(starts == 0, 0, quotes[starts - 1])
        paired = (quotes[ends] - before) % 2 == 0
        line = np.searchsorted(ends, delimiters)
        delimiters = delimiters[(quotes[delimiters] - before[line]) % 2 == 0]
    counts = np.diff(np.searchsorted(delimiters, ends), prepend=0)
    return np.asarray(paired & (counts == width - 1))


def _parse(
    data: bytes, dialect: Dialect, width: int, used: Sequence[int], count: int
) -> list[pa.Array] | None:
    """The used columns as strings; None if Arrow divides the lines differently than we do."""
    names = [str(i) for i in range(width)]
    included = [str(i) for i in used]
    try:
        table = pyarrow.csv.read_csv(
            pa.py_buffer(data),
            read_options=pyarrow.csv.ReadOptions(column_names=names),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=dialect.delimiter, newlines_in_values=False
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                check_utf8=False,
                column_types=dict.fromkeys(included, pa.string()),
                include_columns=included,
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != count:
        return None
    return [table.column(i).combine_chunks() for i in range(len(used))]


def _parse_one_by_one(
    data: bytes,
    rows: npt.NDArray[np.int64],
    dialect: Dialect,
    width: int,
    used: Sequence[int],
    collector: RowTaker,
) -> tuple[npt.NDArray[np.int64], list[pa.Array]]:
    """For quotes in odd places."""
    kept: list[int] = []
    cells: list[list[str]] = [[] for _ in used]
    for row, line in zip(rows.tolist(), data.split(b"\n"), strict=False):
        text = _text(line)
        values = split(text, dialect.delimiter)
        if len(values) != width:
            collector.reject(row, Rule.ROW_TRUNCATED, text)
            continue
        kept.append(row)
        for column, at in zip(cells, used, strict=True):
            column.append(values[at])
    return np.array(kept, dtype=np.int64), [pa.array(column, pa.string()) for column in cells]


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace")
