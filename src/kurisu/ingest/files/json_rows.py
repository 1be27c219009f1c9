"""JSON: a list of lists (freqtrade, exchanges' APIs), a list of objects, or JSON lines.

Numbers are taken as they are spelled. A list of lists is turned into lines of text and read like
CSV; everything else goes object by object through the json module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from kurisu.domain.faults import Rule
from kurisu.ingest.files.columns import Layout
from kurisu.ingest.files.detect import CannotRead, Source
from kurisu.ingest.files.lines import BLOCK_BYTES, Dialect, add_lines, blocks, split
from kurisu.ingest.files.shape import Row, RowTaker, Shape

#: A JSON document is held in memory as a whole; 10 million freqtrade rows take 0.8 GB.
MAX_DOCUMENT_BYTES: Final = 2 * 2**30
#: Rows or objects that the columns are found from.
SAMPLE_ROWS: Final = 1_000
#: An object longer than this is no candle.
MAX_OBJECT_BYTES: Final = 2**14
#: Objects that are converted at once.
BATCH_OBJECTS: Final = 100_000

_DIALECT: Final = Dialect(",", prose=False)
_BETWEEN_ROWS: Final = re.compile(rb"\][ \t]*,[ \t]*\[")
_FIRST_ROW: Final = re.compile(rb"\[[ \t]*\[")
_LAST_ROW: Final = re.compile(rb"\][ \t]*\]$")
_LINES_OF_LISTS: Final = re.compile(rb"\[[^\[\]{}]+\]\s*\n\s*\[")
_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_COMMA: Final = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")

# Every scalar stays text as it is spelled; null becomes None.
_DECODER: Final = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)


def read_json(
    source: Source, columns: Sequence[str] | None, collector: RowTaker, shape: Shape
) -> tuple[Layout | None, str]:
    """Adds all rows of a JSON file.

    Returns its layout (None for an empty list) and the format's name. Raises CannotRead.
    """
    head = source.peek().removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"{") and b"\n" not in head[:-1] and len(head) > MAX_OBJECT_BYTES:
        raise _no_list(shape)
    if head.startswith(b"{") or _LINES_OF_LISTS.match(head):
        return _read_lines(source, columns, collector, shape), "json lines"
    if shape.is_streamed and _FIRST_ROW.match(head):
        return _read_blocks(_row_blocks(source), columns, collector, shape), "json"
    content = _document(source)
    rows = _as_lines(content)
    if rows is not None:
        return _read_table(rows, columns, collector, shape), "json"
    return _read_values(_elements(content), columns, collector, shape), "json"


def _document(source: Source) -> bytes:
    blocks_read, size = [], 0
    while block := source.read(BLOCK_BYTES):
        blocks_read.append(block)
        size += len(block)
        if size > MAX_DOCUMENT_BYTES:
            raise CannotRead(
                f"a JSON document of more than {MAX_DOCUMENT_BYTES:,} bytes: split it, or write "
                "it as CSV or Parquet"
            )
    return b"".join(blocks_read).removeprefix(b"\xef\xbb\xbf").strip()


def _as_lines(content: bytes) -> bytes | None:
    """`[[1,2],[3,4]]` as the lines `1,2` and `3,4`; None if it is not just that."""
    first = _FIRST_ROW.match(content)
    # Line ends cannot stand inside a JSON string, so these are between values.
    if b"\n" in content or b"\r" in content:
        content = content.translate(bytes.maketrans(b"\n\r", b"  "))
        first = _FIRST_ROW.match(content)
    last = _LAST_ROW.search(content, max(0, len(content) - 1_000))
    if first is None or last is None or any(byte in content for byte in (b"\\", b"{")):
        return None
    count = content.count(b"[") - 1
    if content.count(b"]") != count + 1:
        return None
    inner = content[first.end() : last.start()]
    lines = inner.replace(b"],[", b"\n").replace(b"], [", b"\n")
    if lines.count(b"\n") != count - 1:
        lines = _BETWEEN_ROWS.sub(b"\n", inner)
    if lines.count(b"\n") != count - 1 or b"[" in lines or b"]" in lines:
        return None
    return lines


def _row_blocks(source: Source) -> Iterator[bytes]:
    """A list of lists as lines of cells, in blocks of whole rows. Raises CannotRead."""
    rest, is_first = b"", True
    while True:
        raw = source.read(BLOCK_BYTES)
        # Line ends cannot stand inside a JSON string, so these are between values.
        data = rest + raw.translate(bytes.maketrans(b"\n\r", b"  "))
        if is_first:
            data = data.removeprefix(b"\xef\xbb\xbf").lstrip()
            if len(data) < 2 and raw:
                rest = data
                continue
            data, is_first = data.removeprefix(b"["), False
        if not raw:
            break
        end = data.rfind(b"],")
        if end < 0:
            if len(data) > BLOCK_BYTES:
                raise CannotRead(f"it has a row of more than {BLOCK_BYTES:,} bytes")
            rest = data
            continue
        yield _rows_as_lines(data[: end + 1])
        rest = data[end + 2 :]
    data = data.strip()
    if not data.endswith(b"]"):
        raise CannotRead("the JSON is cut short: fetch the file again")
    data = data[:-1].strip()
    if data:
        yield _rows_as_lines(data)


def _rows_as_lines(data: bytes) -> bytes:
    """`[1,2],[3,4]` as the lines `1,2` and `3,4`."""
    data = data.strip()
    count = data.count(b"[")
    lines = data[1:-1].replace(b"],[", b"\n").replace(b"], [", b"\n")
    if lines.count(b"\n") != count - 1:
        lines = _BETWEEN_ROWS.sub(b"\n", data[1:-1])
    if (
        not data.startswith(b"[")
        or not data.endswith(b"]")
        or lines.count(b"\n") != count - 1
        or any(byte in lines for byte in (b"[", b"]", b"{", b"\\"))
    ):
        raise CannotRead("the JSON is no list of simple rows, or it is damaged")
    return lines + b"\n"


def _read_blocks(
    found: Iterator[bytes], columns: Sequence[str] | None, collector: RowTaker, shape: Shape
) -> Layout | None:
    layout: Layout | None = None
    for lines in found:
        if not lines.isascii():
            lines = lines.decode("utf-8", errors="replace").encode()
        if layout is None:
            first = lines.split(b"\n", SAMPLE_ROWS)[:SAMPLE_ROWS]
            sample = [split(line.decode(), ",") for line in first if line]
            layout = _layout_of_lists(sample, columns, shape)
        add_lines(lines, _DIALECT, layout, collector)
    return layout


def _read_table(
    lines: bytes, columns: Sequence[str] | None, collector: RowTaker, shape: Shape
) -> Layout:
    if not lines.isascii():
        lines = lines.decode("utf-8", errors="replace").encode()
    sample = [split(line.decode(), ",") for line in lines.split(b"\n", SAMPLE_ROWS)[:SAMPLE_ROWS]]
    layout = _layout_of_lists(sample, columns, shape)
    at = 0
    while at < len(lines):
        end = lines.find(b"\n", min(at + BLOCK_BYTES, len(lines)))
        end = len(lines) if end < 0 else end
        add_lines(lines[at:end] + b"\n", _DIALECT, layout, collector)
        at = end + 1
    return layout


def _layout_of_lists(rows: Sequence[Row], columns: Sequence[str] | None, shape: Shape) -> Layout:
    widths = [len(row) for row in rows]
    width = max(set(widths), key=widths.count)
    if columns is not None:
        return shape.from_option(columns, width)
    rows = [row for row in rows if len(row) == width]
    layout = shape.guess(rows, width)
    if layout is None:
        raise CannotRead(
            f"its rows are lists of {width} values without names: say which is which with "
            f"--columns, e.g. {shape.example(width)}"
        )
    shape.check(layout, rows)
    return layout


def _elements(content: bytes) -> Iterator[Any]:
    """The elements of a JSON list, one by one. Raises CannotRead where it is not one."""
    text = content.decode("utf-8", errors="replace")
    at = _skip(text, 1)
    if text.startswith("]", at):
        at += 1
    else:
        while True:
            try:
                value, at = _DECODER.raw_decode(text, at)
            except (json.JSONDecodeError, RecursionError) as error:
                raise _damaged(getattr(error, "pos", at), len(text)) from error
            yield value
            if comma := _COMMA.match(text, at):
                at = comma.end()
                continue
            at = _skip(text, at)
            if not text.startswith("]", at):
                raise _damaged(at, len(text))
            at += 1
            break
    if _skip(text, at) != len(text):
        raise _damaged(at, len(text))


def _skip(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    return blanks.end() if blanks else at


def _damaged(at: int, length: int) -> CannotRead:
    if at >= length - 1:
        return CannotRead("the JSON is cut short: fetch the file again")
    return CannotRead(f"the JSON is damaged or cut short at character {at + 1:,}")


def _read_lines(
    source: Source, columns: Sequence[str] | None, collector: RowTaker, shape: Shape
) -> Layout:
    """JSON lines. A line that is no JSON is rejected as a row."""
    layout: Layout | None = None
    for block in blocks(source):
        lines = block.decode("utf-8", errors="replace").split("\n")
        values = [_value_or_text(line) for line in lines if line.strip()]
        if layout is None:
            whole = [value for value in values if not isinstance(value, _Broken)]
            if len(whole) * 2 < len(values):
                raise _no_list(shape)
            layout = _layout_of_values(whole[:SAMPLE_ROWS], columns, shape)
        for at in range(0, len(values), BATCH_OBJECTS):
            _add_values(values[at : at + BATCH_OBJECTS], layout, collector)
    if layout is None:
        raise CannotRead("the file holds nothing but blanks")
    return layout


def _no_list(shape: Shape) -> CannotRead:
    return CannotRead(
        f"the JSON is an object, and not a list of {shape.what}, or it is damaged: write it as a "
        "list of lists, a list of objects, or one object a line"
    )


class _Broken(str):
    """A line that is no JSON."""

    __slots__ = ()


def _value_or_text(line: str) -> Any:
    try:
        return _DECODER.decode(line)
    except (json.JSONDecodeError, RecursionError):
        return _Broken(line)


def _read_values(
    values: Iterator[Any], columns: Sequence[str] | None, collector: RowTaker, shape: Shape
) -> Layout | None:
    layout: Layout | None = None
    batch: list[Any] = []
    for value in values:
        batch.append(value)
        if len(batch) == BATCH_OBJECTS:
            layout = layout or _layout_of_values(batch[:SAMPLE_ROWS], columns, shape)
            _add_values(batch, layout, collector)
            batch = []
    if batch:
        layout = layout or _layout_of_values(batch[:SAMPLE_ROWS], columns, shape)
        _add_values(batch, layout, collector)
    return layout


def _layout_of_values(values: Sequence[Any], columns: Sequence[str] | None, shape: Shape) -> Layout:
    objects = [value for value in values if isinstance(value, dict)]
    if objects:
        names = list(dict.fromkeys(name for value in objects for name in value))
        if columns is not None:
            return replace(shape.from_option(columns, len(names)), names=tuple(names))
        if len(names) > 1_000:
            raise CannotRead(f"JSON objects with no common names: not {shape.what}")
        try:
            return shape.from_names(names, [_cell(objects[0].get(name)) for name in names])
        except CannotRead as error:
            raise CannotRead(f"JSON, but not {shape.what}: {error.reason}") from error
    lists = [[_cell(cell) for cell in value] for value in values if isinstance(value, list)]
    if not lists:
        raise CannotRead(f"JSON, but not {shape.what}: neither lists nor objects")
    return _layout_of_lists(lists, columns, shape)


def _add_values(values: Sequence[Any], layout: Layout, collector: RowTaker) -> None:
    """Rows as lists or objects whose scalars are text."""
    first = collector.claim(len(values))
    named = {**layout.fields, **layout.same}
    keys = layout.names
    rows: list[int] = []
    cells: dict[str, list[str | None]] = {name: [] for name in named}
    for row, value in enumerate(values, first):
        if isinstance(value, dict) and keys:
            found = [value.get(keys[at]) for at in named.values()]
        elif isinstance(value, list) and not keys and len(value) == layout.width:
            found = [value[at] for at in named.values()]
        else:
            text = value if isinstance(value, _Broken) else json.dumps(value)
            collector.reject(row, Rule.ROW_TRUNCATED, text)
            continue
        rows.append(row)
        for column, cell in zip(cells.values(), found, strict=True):
            column.append(cell if cell is None or isinstance(cell, str) else _cell(cell))
    if rows:
        arrays = {name: pa.array(column, pa.string()) for name, column in cells.items()}
        collector.add(np.array(rows, dtype=np.int64), arrays, layout)


def _cell(value: Any) -> str | None:
    """A cell as text: None for null, JSON for what is no scalar."""
    return value if value is None or isinstance(value, str) else json.dumps(value)
