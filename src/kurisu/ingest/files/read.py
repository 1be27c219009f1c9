"""Reads a candle file of any known format: `read_candles`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from kurisu.domain.faults import Reject
from kurisu.errors import UnreadableFile
from kurisu.ingest.files.arrow_rows import read_arrow
from kurisu.ingest.files.candle_shape import CANDLES
from kurisu.ingest.files.columns import Layout
from kurisu.ingest.files.detect import CannotRead, Kind, Source, is_checksum, kind_of, unpack
from kurisu.ingest.files.json_rows import read_json
from kurisu.ingest.files.order import check_order
from kurisu.ingest.files.rows import Collector
from kurisu.ingest.files.shape import RowTaker, Shape
from kurisu.ingest.files.text import read_text


@dataclass(frozen=True)
class CandleRows:
    """What a file says, before the store has judged it.

    format: e.g. "freqtrade feather", "csv.gz", "Binance klines zip".
    columns: time, open, high, low, close and volume -> how the file names that column; "column 3"
        where it has no names. Empty for a file without rows and names (JSON's `[]`).
    rows_read: data rows in the file; always table.num_rows + len(rejects). Blank lines, comment
        lines and the header are no rows. A zip's members are counted through, in the order of
        their names.
    table: row int64 (1-based), time timestamp[us, UTC], and open, high, low, close (quote units
        per base unit) and volume (base units) decimal128(38,18), digit for digit as in the file;
        of a float its shortest repr. In the order of the file.
    rejects: rows that no candle can be read from, in the order of the file.
    notes: what the user should know though nothing is wrong, e.g. a last line without a line end.
    """

    format: str
    columns: Mapping[str, str]
    rows_read: int
    table: pa.Table
    rejects: list[Reject]
    notes: tuple[str, ...] = ()


def read_candles(path: Path, *, columns: Sequence[str] | None = None) -> CandleRows:
    """Reads `path`, whose format is found by content.

    columns: the meaning of each column in order: ts (or time, date, open_time), open, high, low,
        close, volume, and _ for one to skip; it overrules the file's own names. None takes the
        names, or a layout that is known and checked.

    Raises UnreadableFile, whose reason says what to do, if the file cannot be read at all.
    """
    collector = Collector()
    parts: list[Part] = []

    def read_part(data: Source, packing: str, _member: str) -> None:
        parts.append(_read_part(data, packing, columns, collector))

    read_members(Path(path), read_part)
    named = next((part.layout for part in parts if part.layout is not None), None)
    return CandleRows(
        format=parts[0].format,
        columns={} if named is None else dict(named.sources),
        rows_read=collector.rows_read,
        table=collector.table(),
        rejects=collector.rejects(),
        notes=tuple(dict.fromkeys(part.note for part in parts if part.note)),
    )


def read_members(path: Path, read_part: Callable[[Source, str, str], None]) -> None:
    """Opens and unpacks `path`; `read_part` gets each data file in it, how it was packed, and its
    name in a zip.

    Raises UnreadableFile for every CannotRead.
    """
    try:
        with _open(path) as raw:
            size = path.stat().st_size
            source = Source(raw, path)
            if source.peek(2) == b"PK":
                _check_sum(path)
            for packing, member, data in unpack(source, size):
                try:
                    read_part(data, packing, member)
                except CannotRead as error:
                    prefix = f"{member} in the zip: " if member else ""
                    raise CannotRead(prefix + error.reason) from error
    except CannotRead as error:
        raise UnreadableFile(str(path), error.reason) from error
    except OSError as error:
        raise UnreadableFile(str(path), f"cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class Part:
    """One data file: the file itself, or a member of a zip."""

    format: str
    layout: Layout | None
    note: str | None = None


def _open(path: Path) -> BinaryIO:
    if path.is_dir():
        raise CannotRead("it is a directory: name the files in it")
    if not path.exists():
        raise CannotRead("there is no such file")
    if not path.is_file():
        raise CannotRead(
            "it is a pipe or a device: write it to a file first, which can be read twice"
        )
    return path.open("rb")


def read_rows(
    data: Source, kind: Kind, columns: Sequence[str] | None, collector: RowTaker, shape: Shape
) -> tuple[Layout | None, str, str | None]:
    """Adds all rows; their layout (None if there are no rows and no names), what the format is
    called, and a note on the file's end. Raises CannotRead."""
    if kind is Kind.TEXT:
        text, note = read_text(data, columns, collector, shape)
        return text, kind.value, note
    if kind is Kind.JSON:
        return *read_json(data, columns, collector, shape), None
    return read_arrow(data, kind, columns, collector, shape), kind.value, None


def _read_part(
    data: Source, packing: str, columns: Sequence[str] | None, collector: Collector
) -> Part:
    before = collector.part()
    kind = kind_of(data)
    layout, name, note = read_rows(data, kind, columns, collector, CANDLES)
    label = ""
    if layout is not None:
        check_order(collector.table(since=before), layout)
        label = layout.label
    if kind is Kind.JSON and layout is not None and layout.assumed and not label:
        # freqtrade's json is the only file that is commonly such lists.
        label = "freqtrade"
    if label == "Binance klines" and packing == " zip":
        # Binance's own name for it; that a CSV is inside goes without saying.
        name = ""
    return Part(f"{label} {name}".strip() + packing, layout, note)


def _check_sum(path: Path) -> None:
    """Binance puts `<name>.zip.CHECKSUM` beside each zip."""
    beside = path.with_name(path.name + ".CHECKSUM")
    try:
        content = beside.read_bytes()[:1_024]
    except OSError:
        return
    if not is_checksum(content):
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != content[:64].decode().lower():
        raise CannotRead(f"it does not match {beside.name} beside it: fetch the file again")
