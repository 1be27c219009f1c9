"""What a file is, by its first bytes; and how it is unpacked, with bounds.

Names of files mean nothing here: a gzip called `.feather` is read as a gzip.
"""

from __future__ import annotations

import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa

#: A file may unpack to so many bytes: 10 million rows of CSV take about 0.8 GB.
MAX_UNPACKED_BYTES: Final = 8 * 2**30
#: A file may unpack to so many times its size. Candles of a dead market, where only the time
#: changes, reach about 30; deflate itself cannot exceed 1,032.
MAX_UNPACK_RATIO: Final = 250
#: Below this the ratio is not looked at.
RATIO_FREE_BYTES: Final = 64 * 2**20
#: A gzip in a zip is two layers; more is nobody's data file.
MAX_LAYERS: Final = 3
#: Files in one zip.
MAX_MEMBERS: Final = 10_000

_HEAD_BYTES: Final = 64 * 2**10
_MARKUP: Final = re.compile(rb"<(?:!doctype|\?xml|html|head|body|error)", re.IGNORECASE)
_CHECKSUM_LINE: Final = re.compile(rb"[0-9a-fA-F]{64}\s+\*?\S+\s*")


class CannotRead(Exception):
    """A file cannot be read at all. `read_candles` adds the path and raises UnreadableFile."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Kind(StrEnum):
    """What the content is. The value is its name in reports."""

    ARROW_FILE = "feather"
    ARROW_STREAM = "arrow stream"
    FEATHER_V1 = "feather v1"
    PARQUET = "parquet"
    JSON = "json"
    TEXT = "csv"


_DATA_MAGIC: Final = (
    (b"ARROW1", Kind.ARROW_FILE),
    (b"FEA1", Kind.FEATHER_V1),
    (b"PAR1", Kind.PARQUET),
    (b"\xff\xff\xff\xff", Kind.ARROW_STREAM),
)
_GZIP, _ZIP, _ZSTD = b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd"
_EMPTY_ZIP: Final = b"PK\x05\x06"
_NOT_UNPACKED_HERE: Final = (
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    (b"Rar!", "RAR"),
    (b"\x04\x22\x4d\x18", "LZ4"),
)
_OTHER_MAGIC: Final = (
    (b"\x89HDF", "an HDF5 file: write it as Parquet or feather first"),
    (b"\x80\x04\x95", "a Python pickle, which is never opened: write it as Parquet or feather"),
    (b"\x80\x05\x95", "a Python pickle, which is never opened: write it as Parquet or feather"),
    (b"\x93NUMPY", "a NumPy file: write it as Parquet or feather first"),
    (b"%PDF", "a PDF, not candles"),
    (b"\x89PNG", "a picture, not candles"),
    (b"SQLite format 3", "an SQLite database: export its table as CSV first"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook: save it as CSV first"),
)


class Source(io.RawIOBase):
    """A stream of bytes whose beginning can be looked at without reading it.

    path: where the bytes lie on disk just as they are; None where they are unpacked.
    """

    def __init__(self, raw: BinaryIO, path: Path | None = None) -> None:
        super().__init__()
        self._raw = raw
        self._ahead = b""
        self.path = path

    def peek(self, size: int = _HEAD_BYTES) -> bytes:
        while len(self._ahead) < size and (more := self._read_raw(size - len(self._ahead))):
            self._ahead += more
        return self._ahead[:size]

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; empty at the end."""
        if self._ahead:
            ahead, self._ahead = self._ahead[:size], self._ahead[size:]
            return ahead
        return self._read_raw(size)

    def read_all(self) -> bytes:
        blocks = []
        while block := self.read(2**24):
            blocks.append(block)
        return b"".join(blocks)

    def _read_raw(self, size: int) -> bytes:
        try:
            return self._raw.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
            raise CannotRead(
                f"the packed data is cut short or damaged ({error}): fetch the file again"
            ) from error
        except OSError as error:
            raise CannotRead(f"cannot be read to its end: {error}") from error


class _Bounded(io.RawIOBase):
    """Counts what comes out of a packed stream and stops at the bounds."""

    def __init__(self, raw: BinaryIO, packed_bytes: int) -> None:
        super().__init__()
        self._raw = raw
        self._most = min(MAX_UNPACKED_BYTES, max(RATIO_FREE_BYTES, packed_bytes * MAX_UNPACK_RATIO))
        self._count = 0

    def read(self, size: int = -1) -> bytes:
        block = self._raw.read(size)
        self._count += len(block)
        if self._count > self._most:
            raise CannotRead(
                f"unpacks to more than {self._most:,} bytes, which no candle file of its size "
                "does: if it is real, unpack it yourself and import what is inside"
            )
        return block


def kind_of(source: Source) -> Kind:
    """What `source`, which is not packed, holds. Raises CannotRead for what is not data."""
    head = source.peek()
    if not head:
        raise CannotRead("the file is empty")
    for magic, kind in _DATA_MAGIC:
        if head.startswith(magic):
            return kind
    _refuse_by_magic(head)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] in (b"[", b"{"):
        return Kind.JSON
    if _MARKUP.match(start):
        raise CannotRead(
            "it is a web page or XML, not data: the server probably sent an error page, "
            "fetch the file again"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CannotRead("it is a Git LFS pointer, not the data: run `git lfs pull` first")
    if not head.startswith((b"\xff\xfe", b"\xfe\xff")) and _is_binary(head):
        raise CannotRead("it is binary data of no known format")
    if not start and len(head) < _HEAD_BYTES:
        raise CannotRead("the file holds nothing but blanks")
    return Kind.TEXT


def _refuse_by_magic(head: bytes) -> None:
    for magic, name in _NOT_UNPACKED_HERE:
        if head.startswith(magic):
            raise CannotRead(f"it is packed with {name}: unpack it first")
    for magic, what in _OTHER_MAGIC:
        if head.startswith(magic):
            raise CannotRead(f"it is {what}")


def _is_binary(head: bytes) -> bool:
    """True for what no text file has: many control characters or much that is not UTF-8."""
    control = len(head) - len(head.translate(None, bytes({*range(32)} - {9, 10, 12, 13})))
    broken = head.decode("utf-8", errors="replace").count("\ufffd")
    return (control + broken) * 20 > len(head)


def unpack(source: Source, packed_bytes: int, layer: int = 0) -> Iterator[tuple[str, str, Source]]:
    """The data inside `source`, member by member, in the order of the members' names.

    Yields the packing as it is reported ("", ".gz", ".zst", " zip"), the member's name ("" outside
    a zip), and its bytes.
    """
    head = source.peek(8)
    if layer > MAX_LAYERS:
        raise CannotRead("it is packed in more layers than any data file: unpack it first")
    if head.startswith(_GZIP):
        raw = _Bounded(_file(gzip.GzipFile(fileobj=_file(source), mode="rb")), packed_bytes)
        for inner, name, data in unpack(Source(_file(raw)), packed_bytes, layer + 1):
            yield f"{inner}.gz", name, data
    elif head.startswith(_ZSTD):
        stream = pa.CompressedInputStream(pa.PythonFile(_file(source), mode="r"), "zstd")
        raw = _Bounded(stream, packed_bytes)
        for inner, name, data in unpack(Source(_file(raw)), packed_bytes, layer + 1):
            yield f"{inner}.zst", name, data
    elif head.startswith((_ZIP, _EMPTY_ZIP)):
        for name, data in _members(source, packed_bytes):
            for inner, _, content in unpack(data, packed_bytes, layer + 1):
                yield f"{inner} zip", name, content
    else:
        yield "", "", source


def _file(raw: object) -> BinaryIO:
    """What has read() as the BinaryIO that the standard library wants."""
    return raw  # type: ignore[return-value]


def _members(source: Source, packed_bytes: int) -> Iterator[tuple[str, Source]]:
    try:
        archive = zipfile.ZipFile(source.path or io.BytesIO(source.read_all()))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CannotRead(
            f"the zip is cut short or damaged ({error}): fetch the file again"
        ) from error
    with archive:
        if "[Content_Types].xml" in archive.namelist():
            raise CannotRead("it is a workbook of Excel or another office file: save it as CSV")
        infos = sorted((i for i in archive.infolist() if _may_hold_data(i)), key=_by_name)
        if len(infos) > MAX_MEMBERS:
            raise CannotRead(f"the zip holds {len(infos):,} files: unpack it and import a part")
        found = False
        for info in infos:
            try:
                raw = archive.open(info)
            except RuntimeError as error:
                raise CannotRead(f"{info.filename} in the zip is encrypted") from error
            except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
                raise CannotRead(f"{info.filename} in the zip cannot be read: {error}") from error
            with raw:
                data = Source(_file(_Bounded(_file(raw), packed_bytes)))
                try:
                    head = data.peek(512)
                except CannotRead as error:
                    raise CannotRead(f"{info.filename} in the zip: {error.reason}") from error
                if not is_checksum(head):
                    found = True
                    yield info.filename, data
        if not found:
            raise CannotRead("the zip holds no data file")


def is_checksum(content: bytes) -> bool:
    """True for the content of a `.CHECKSUM` file as Binance puts beside its zips."""
    return _CHECKSUM_LINE.fullmatch(content) is not None


def _may_hold_data(info: zipfile.ZipInfo) -> bool:
    name = info.filename
    return not (info.is_dir() or name.startswith("__MACOSX/") or name.endswith(".DS_Store"))


def _by_name(info: zipfile.ZipInfo) -> str:
    return info.filename
