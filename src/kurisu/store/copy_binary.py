"""PostgreSQL's binary COPY format to Arrow and back, exact to the last digit.

`copy_to_arrow` runs `COPY (query) TO STDOUT (FORMAT binary)` and decodes what arrives while the
server is still sending; `decode` does the same for bytes at hand, `decode_arrays` for a few rows
that a statement gave without a COPY; `encode` and `encode_batches` make the bytes that
`copy_to_table(source=..., format="binary")` takes. No value passes through a float, and no row
through a Python loop.

The format (PostgreSQL documentation, COPY, "Binary Format"): a header of 19 bytes or more, then
per row the number of fields (int16) and each field as its length (int32, -1 for NULL) and bytes,
then an end marker (int16 -1). All integers are big-endian. NUMERIC is `numeric_send` in
`src/backend/utils/adt/numeric.c`: int16 count of digits, weight (power of 10000 of the first
digit), sign, display scale, then base-10000 digits without leading or trailing zero digits.
"""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from enum import Enum
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import asyncpg
import numpy as np
import numpy.typing as npt
import pgpq
import pyarrow as pa

from kurisu.store.literals import inline_arguments

Buffer: TypeAlias = bytes | bytearray | memoryview
Words: TypeAlias = npt.NDArray[np.uint64]
Positions: TypeAlias = npt.NDArray[np.int64]


class ColumnKind(Enum):
    """What a result column is, as the pair of its SQL type and its Arrow type."""

    TIMESTAMPTZ = "timestamptz"
    NUMERIC = "numeric"
    INT4 = "int4"
    INT8 = "int8"
    TEXT = "text"

    @property
    def arrow_type(self) -> pa.DataType:
        return _ARROW_TYPES[self]


_ARROW_TYPES: dict[ColumnKind, pa.DataType] = {
    ColumnKind.TIMESTAMPTZ: pa.timestamp("us", tz="UTC"),
    ColumnKind.NUMERIC: pa.decimal128(38, 18),
    ColumnKind.INT4: pa.int32(),
    ColumnKind.INT8: pa.int64(),
    ColumnKind.TEXT: pa.string(),
}

# Bytes on the wire; the other kinds vary from value to value.
_WIDTHS = {ColumnKind.TIMESTAMPTZ: 8, ColumnKind.INT4: 4, ColumnKind.INT8: 8}

# Decoded at a time. Its arrays fit a core's second-level cache, and the fixed cost of the NumPy
# calls is spread over some 10,000 candles: a quarter of it costs half as much again, as do 6 MB.
BLOCK_BYTES = 1024 * 1024

# So few rows that all their numbers are decoded together.
FEW_ROWS = 1_024

# Rows encoded at a time, which bounds the memory of an encode to about 10 MB.
ENCODE_ROWS = 65_536

# A sink that has seen this much expects more, and lets small chunks gather (see `copy_to_arrow`).
_GATHER_AFTER_BYTES = 128 * 1024
_GATHER_CHUNK_BYTES = 32 * 1024
_GATHER_PAUSE_S = 0.0005

_ARRAY_HEADER = 20  # bytes, of an array of one dimension
# A value of so many bytes in an array, and what it is made to.
_FIXED_ITEM = {width: np.dtype([("length", ">i4"), ("value", f">i{width}")]) for width in (4, 8)}
_FIXED_NATIVE = {width: np.dtype(f"=i{width}") for width in (4, 8)}

_SIGNATURE = b"PGCOPY\n\xff\r\n\x00"
_END_MARKER = b"\xff\xff"

# Zero bytes before and behind the rows of a block, so that reading around the fields of a broken
# or incomplete row stays inside.
_MARGIN = bytes(64)

_POSTGRES_EPOCH_US = 946_684_800_000_000  # 2000-01-01, from which timestamptz counts
_BEYOND_NUMERIC = "has a value beyond numeric(38,18): over 20 integer or 18 fraction digits"

_LOW_32 = np.uint64(0xFFFF_FFFF)
_LOW_16 = np.uint64(0xFFFF)
_EVEN_LANES = np.uint64(0x0000_FFFF_0000_FFFF)

# _LEADING_DIGITS[n] keeps the first n of the four 16-bit digits in a word.
_LEADING_DIGITS = np.array([(1 << 64) - (1 << (64 - 16 * n)) for n in range(5)], dtype=np.uint64)


class _Field(NamedTuple):
    """One column of the rows of a block."""

    start: Positions  # of its bytes, behind the length
    length: npt.NDArray[np.int32]  # -1 for NULL
    head: Words  # one line per row: the length, then the first bytes of the value


def decode(data: Buffer | Iterable[Buffer], columns: Sequence[tuple[str, ColumnKind]]) -> pa.Table:
    """Decode a complete binary COPY, whole or in chunks cut anywhere.

    `columns` names the result's columns in order. The format does not carry types: a wrong length
    is found, a wrong type of the same length (`float8` declared as INT8) is not.
    Raises ValueError where the bytes are not what `columns` says, for NaN and infinite values,
    and for a numeric that does not fit `numeric(38,18)`.
    """
    decoder = _Decoder(columns)
    chunks = [data] if isinstance(data, (bytes, bytearray, memoryview)) else data
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        for offset in range(0, len(view), BLOCK_BYTES):
            decoder.feed(view[offset : offset + BLOCK_BYTES])
            if decoder.is_full:
                decoder.decode_chunks(decoder.take_pending())
    return decoder.finish()


def decode_arrays(
    parts: Sequence[Sequence[bytes]], columns: Sequence[tuple[str, ColumnKind]]
) -> pa.Table:
    """Decode rows that a statement gave as one array for each column, `array_send(array_agg(...))`.

    parts: rows of such arrays, in the order of `columns`; their values follow each other. For
    results so short that a COPY takes longer to begin than to send them. Raises what `decode`
    raises, and ValueError for a NULL and for columns of different lengths. No TEXT.
    """
    pieces = [[_elements(array) for array in column] for column in zip(*parts, strict=True)]
    numeric = {
        name: elements
        for (name, kind), elements in zip(columns, pieces, strict=True)
        if kind is ColumnKind.NUMERIC
    }
    numbers = iter(_decode_numbers(", ".join(numeric), list(numeric.values())))
    arrays = [
        next(numbers) if kind is ColumnKind.NUMERIC else _decode_fixed(name, kind, elements)
        for (name, kind), elements in zip(columns, pieces, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=_schema(tuple(columns)))


@lru_cache
def _schema(columns: tuple[tuple[str, ColumnKind], ...]) -> pa.Schema:
    return pa.schema([pa.field(name, kind.arrow_type) for name, kind in columns])


class _Decoder:
    """Takes the bytes of one COPY as they come and decodes them block by block."""

    def __init__(self, columns: Sequence[tuple[str, ColumnKind]]) -> None:
        if not columns:
            raise ValueError("A binary COPY is decoded into one or more columns, none were named.")
        self.received_bytes = 0
        self._columns = columns
        self._arrays: list[list[pa.Array]] = [[] for _ in columns]
        self._pending: list[Buffer] = []
        self._pending_bytes = 0
        self._rest = b""  # of the blocks so far: the beginning of a row, or of the header
        self._in_rows = False
        self._ended = False
        self._field_count = len(columns).to_bytes(2, "big")
        # What every row begins with, provided that the first column is not NULL.
        first_width = _WIDTHS.get(columns[0][1])
        self._row_header = self._field_count + (
            b"" if first_width is None else first_width.to_bytes(4, "big")
        )
        # Every value but text has an even length, so that every row begins at an even position.
        self._step = 1 if any(kind is ColumnKind.TEXT for _, kind in columns) else 2

    @property
    def is_full(self) -> bool:
        # A row longer than a block (a huge text) is tried again only when its bytes have doubled.
        return self._pending_bytes >= max(BLOCK_BYTES, len(self._rest))

    def feed(self, chunk: Buffer) -> None:
        self._pending.append(chunk)
        self._pending_bytes += len(chunk)
        self.received_bytes += len(chunk)

    def take_pending(self) -> list[Buffer]:
        taken, self._pending, self._pending_bytes = self._pending, [], 0
        return taken

    def decode_chunks(self, chunks: list[Buffer]) -> None:
        """Decode the complete rows among these bytes and keep the rest for the next call."""
        block = b"".join((_MARGIN, self._rest, *chunks, _MARGIN))
        if not self._in_rows:
            header_bytes = _header_size(block[len(_MARGIN) : -len(_MARGIN)])
            if header_bytes is None:
                self._rest = block[len(_MARGIN) : -len(_MARGIN)]
                return
            self._in_rows = True
            block = block[header_bytes:]  # moves the rows to where the header was
        self._rest = self._decode_block(block)

    def finish(self) -> pa.Table:
        """Decode what is left and return all rows, each column in one piece."""
        self.decode_chunks(self.take_pending())
        if not self._ended:
            raise ValueError("The binary COPY data ends before its end marker: rows are missing.")
        whole: list[pa.Array] = []
        for (_, kind), arrays in zip(self._columns, self._arrays, strict=True):
            whole.append(pa.concat_arrays(arrays) if arrays else pa.array([], kind.arrow_type))
            arrays.clear()  # so that at most one column is in memory twice
        return pa.Table.from_arrays(whole, schema=_schema(tuple(self._columns)))

    def _decode_block(self, block: bytes) -> bytes:
        """Decode the complete rows between the margins, return the bytes behind them."""
        limit = len(block) - len(_MARGIN)
        if self._ended and limit > len(_MARGIN):
            raise ValueError("The binary COPY data goes on after its end marker.")
        fields, row_count, end = self._split_rows(block, self._row_header)
        rest = block[end:limit]
        if (
            len(rest) >= len(self._row_header)
            and rest.startswith(self._field_count)
            and not rest.startswith(self._row_header)
        ):
            # A row whose first column is NULL (or not of its declared width, which is found
            # below) has another header. Look for every occurrence of the number of fields:
            # slower, because many are false, and as exact.
            fields, row_count, end = self._split_rows(block, self._field_count)
            rest = block[end:limit]
        if rest.startswith(_END_MARKER):
            self._ended = True
            if len(rest) > len(_END_MARKER):
                raise ValueError("The binary COPY data goes on after its end marker.")
            rest = b""
        elif len(rest) >= 2 and not rest.startswith(self._field_count):
            found = int.from_bytes(rest[:2], "big", signed=True)
            raise ValueError(
                f"A row of the binary COPY data has {found} columns where"
                f" {len(self._columns)} were declared."
            )
        if row_count:
            # A year of days is decoded in less time than the NumPy calls for five columns take.
            at_once = _decode_numerics(block, self._columns, fields) if row_count < FEW_ROWS else {}
            for at, ((name, kind), field, arrays) in enumerate(
                zip(self._columns, fields, self._arrays, strict=True)
            ):
                made = at_once.get(at)
                arrays.append(_decode_field(block, name, kind, field) if made is None else made)
        return rest

    def _split_rows(self, block: bytes, header: bytes) -> tuple[list[_Field], int, int]:
        """Find the complete rows: their fields, their number, and the end of the last one.

        Every place that looks like `header` is a candidate, the digits of a number included.
        Where a row begins is certain only from where the one before it ends, so each candidate is
        read as if it were a row, and the rows are those that hang together from the start on.
        """
        limit = len(block) - len(_MARGIN)
        starts = _find(block, header, self._step)
        position = starts + 2
        fields = []
        for _, kind in self._columns:
            # A false candidate may point anywhere. A row that the block cuts ends behind the
            # limit in any case, because each further field adds 4 bytes.
            np.minimum(position, limit, out=position)
            head = _read_words(block, position - 4, _HEAD_BYTES[kind])
            length = head[:, 0].astype(np.int32)  # the low half of the word
            position += 4
            fields.append(_Field(position.copy(), length, head))
            position += np.maximum(length, 0)
        rows, row_count, end = _chain(starts, position, limit)
        complete = [_Field(f.start[rows], f.length[rows], f.head[rows]) for f in fields]
        return complete, row_count, end


# What is read of a field in one go: 4 bytes before its length, the length, and then the whole
# value, or the fixed part of a NUMERIC and its first four digits.
_HEAD_BYTES = {
    ColumnKind.TIMESTAMPTZ: 16,
    ColumnKind.NUMERIC: 24,
    ColumnKind.INT4: 16,
    ColumnKind.INT8: 16,
    ColumnKind.TEXT: 8,
}


def _header_size(data: bytes) -> int | None:
    """Bytes before the first row, None when they have not all arrived."""
    if data[: len(_SIGNATURE)] != _SIGNATURE[: len(data)]:
        raise ValueError("The data is not a binary COPY: it does not begin with its signature.")
    if len(data) < 19:
        return None
    flags, extension_bytes = (int.from_bytes(data[at : at + 4], "big") for at in (11, 15))
    # Bit 16 announces OIDs, which no supported server sends; the others up to 31 are reserved.
    if flags >> 16:
        raise ValueError(f"The binary COPY data has unknown critical flags ({flags:#010x}).")
    size = 19 + extension_bytes
    return size if size <= len(data) else None


def _read_words(block: bytes, positions: Positions, width: int) -> Words:
    """The `width` bytes at each position as lines of 64-bit words, at any alignment.

    Fancy indexing of opaque items copies `width` bytes per row in one call: a third of the time
    of fetching the 16-bit parts one by one.
    """
    items: npt.NDArray[np.void] = np.ndarray(
        (len(block) - width + 1,), dtype=f"V{width}", buffer=block, strides=(1,)
    )
    return items[positions].view(">u8").astype(np.uint64).reshape(-1, width // 8)


def _find(block: bytes, header: bytes, step: int) -> Positions:
    """All positions between the margins, multiples of `step`, where a row may begin."""
    first, limit = len(_MARGIN), len(block) - len(_MARGIN)
    if step == 2:
        pairs = np.frombuffer(block, ">u2", count=(limit - first) // 2, offset=first)
        starts = np.flatnonzero(pairs == int.from_bytes(header[:2], "big")) * 2 + first
    else:
        octets = np.frombuffer(block, np.uint8, count=limit - first, offset=first)
        starts = np.flatnonzero((octets[:-1] == header[0]) & (octets[1:] == header[1])) + first
    if len(header) > 2:
        found = _read_words(block, starts, 8)[:, 0] >> np.uint64(16)
        starts = starts[found == int.from_bytes(header, "big")]
    return starts


def _chain(starts: Positions, ends: Positions, limit: int) -> tuple[slice | Positions, int, int]:
    """Choose, among candidates, the rows: they follow each other from the first margin on.

    Returns the indices of those that end before `limit`, their number, and the end of the last.
    """
    if not len(starts) or starts[0] != len(_MARGIN):
        return slice(0), 0, len(_MARGIN)
    if (ends[:-1] == starts[1:]).all():
        # No false candidate at all: nearly always so.
        count, last = len(starts), len(starts) - 1
        if ends[last] > limit:
            return slice(last), last, int(starts[last])
        return slice(count), count, int(ends[last])
    following = np.searchsorted(starts, ends)
    follows_on = following < len(starts)
    follows_on[follows_on] = starts[following[follows_on]] == ends[follows_on]
    # Between two breaks each candidate is followed by the next one, so that only the breaks need
    # a step in Python. The last candidate is always one.
    breaks = np.flatnonzero((following != np.arange(1, len(starts) + 1)) | ~follows_on).tolist()
    runs, at = [], 0
    while True:
        last = breaks[bisect_left(breaks, at)]
        runs.append(np.arange(at, last + 1))
        if not follows_on[last]:
            break
        at = int(following[last])
    rows = np.concatenate(runs)
    if ends[last] > limit:
        return rows[:-1], len(rows) - 1, int(starts[last])
    return rows, len(rows), int(ends[last])


def _decode_field(block: bytes, name: str, kind: ColumnKind, field: _Field) -> pa.Array:
    """Decode one column of a block's rows to an Arrow array."""
    row_count = len(field.start)
    if kind is ColumnKind.NUMERIC:
        expected = (8 + 2 * (field.head[:, 1] >> np.uint64(48))).astype(np.int32)
        right = field.length == expected
    elif kind is ColumnKind.TEXT:
        right = field.length >= 0
    else:
        right = field.length == _WIDTHS[kind]
    null_count, validity, head = 0, None, field.head
    if not right.all():
        is_null = field.length == -1
        if not (right | is_null).all():
            wrong = int(field.length[~(right | is_null)][0])
            raise ValueError(
                f"Column {name!r} has a value of {wrong} bytes that is no {kind.value}."
            )
        null_count = int(is_null.sum())
        validity = pa.py_buffer(np.packbits(~is_null, bitorder="little"))
        # Zero words decode to zero in every kind: what stands behind a NULL is another field.
        head = np.where(is_null[:, None], np.uint64(0), head)
    if kind is ColumnKind.TEXT:
        return _decode_text(block, name, field, validity, null_count)
    values: npt.NDArray[Any]
    if kind is ColumnKind.NUMERIC:
        values = _decode_numeric(block, name, field.start, head)
    elif kind is ColumnKind.INT4:
        values = (head[:, 1] >> np.uint64(32)).astype(np.int32)
    else:
        values = head[:, 1].astype(np.int64)
        if kind is ColumnKind.TIMESTAMPTZ:
            values = _since_1970(name, values)
    buffers = [validity, pa.py_buffer(values)]
    return pa.Array.from_buffers(kind.arrow_type, row_count, buffers, null_count)


def _decode_numerics(
    block: bytes, columns: Sequence[tuple[str, ColumnKind]], fields: Sequence[_Field]
) -> dict[int, pa.Array]:
    """All columns of numbers in one go, by position; none if one of them needs a closer look."""
    numeric = [at for at, (_, kind) in enumerate(columns) if kind is ColumnKind.NUMERIC]
    if len(numeric) < 2:
        return {}
    head = np.concatenate([fields[at].head for at in numeric])
    length = np.concatenate([fields[at].length for at in numeric])
    if (length != 8 + 2 * (head[:, 1] >> np.uint64(48)).astype(np.int32)).any():
        return {}
    start = np.concatenate([fields[at].start for at in numeric])
    try:
        values = _decode_numeric(block, "", start, head)
    except ValueError:
        return {}  # who decodes column by column says which
    parts = np.split(values, len(numeric))
    kind = ColumnKind.NUMERIC.arrow_type
    return {
        at: pa.Array.from_buffers(kind, len(part), [None, pa.py_buffer(part)], 0)
        for at, part in zip(numeric, parts, strict=True)
    }


class _Elements(NamedTuple):
    """The values of an array, each behind its length as in a row of a COPY."""

    rows: int
    data: bytes


def _elements(array: bytes) -> _Elements:
    """Of `array_send` (`src/backend/utils/adt/arrayfuncs.c`): int32 number of dimensions, whether
    there are NULLs, type; then per dimension its length and first index; then the values."""
    if len(array) < _ARRAY_HEADER:
        return _Elements(0, b"")  # no dimension: empty
    dimensions, has_nulls = array[:4], array[4:8]
    if dimensions != b"\x00\x00\x00\x01" or has_nulls != bytes(4):
        raise ValueError("An array that stands for a column has a NULL, or rows of its own.")
    return _Elements(int.from_bytes(array[12:16], "big"), array[_ARRAY_HEADER:])


def _decode_numbers(names: str, columns: Sequence[Sequence[_Elements]]) -> list[pa.Array]:
    """Columns of numbers, all in one go."""
    kind = ColumnKind.NUMERIC.arrow_type
    block = b"".join((_MARGIN, *(piece.data for pieces in columns for piece in pieces), _MARGIN))
    counts = [sum(piece.rows for piece in pieces) for pieces in columns]
    limit = len(block) - len(_MARGIN)
    if not sum(counts):
        return [pa.array([], kind) for _ in columns]
    # A value begins with its length in bytes, which is 8 and two for each digit, the number of
    # digits, the weight, and a sign.
    pairs = np.frombuffer(block, ">u2").astype(np.uint16)
    high, low, digits, sign = pairs[:-4], pairs[1:-3], pairs[2:-2], pairs[4:]
    starts = np.flatnonzero((high == 0) & (low == 2 * digits + 8) & (sign & 0xBFFF == 0))
    ends = (starts + 2) * 2 + pairs[starts + 1]
    rows, found, end = _chain(starts * 2, ends, limit)
    if found != sum(counts) or end != limit:
        raise ValueError(f"Column {names!r} has a value that is no numeric.")
    start = starts[rows] * 2 + 4
    head = _read_words(block, start - 8, _HEAD_BYTES[ColumnKind.NUMERIC])
    values = _decode_numeric(block, names, start, head)
    whole = pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)], 0)
    ends_of = accumulate(counts)
    return [whole.slice(last - count, count) for count, last in zip(counts, ends_of, strict=True)]


def _decode_fixed(name: str, kind: ColumnKind, pieces: Sequence[_Elements]) -> pa.Array:
    """A column whose values are of one width."""
    width = _WIDTHS[kind]
    data = b"".join([piece.data for piece in pieces])
    if len(data) != sum(piece.rows for piece in pieces) * (4 + width):
        raise ValueError(f"Column {name!r} has a value that is no {kind.value}.")
    items = np.frombuffer(data, _FIXED_ITEM[width])
    values: npt.NDArray[Any] = items["value"].astype(_FIXED_NATIVE[width])
    if kind is ColumnKind.TIMESTAMPTZ and len(values):
        values = _since_1970(name, values)
    return pa.Array.from_buffers(kind.arrow_type, len(values), [None, pa.py_buffer(values)], 0)


def _since_1970(name: str, times_us: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    limits = np.iinfo(np.int64)
    if times_us.min() == limits.min or times_us.max() == limits.max:
        raise ValueError(f"Column {name!r} has an infinite time, which Arrow cannot hold.")
    return times_us + _POSTGRES_EPOCH_US


def _decode_text(
    block: bytes, name: str, field: _Field, validity: pa.Buffer | None, null_count: int
) -> pa.Array:
    lengths = np.maximum(field.length, 0)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    # The byte positions of all values, one after the other.
    positions = np.arange(offsets[-1]) + np.repeat(field.start - offsets[:-1], lengths)
    octets = np.frombuffer(block, dtype=np.uint8)[positions]
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(octets)]
    array = pa.Array.from_buffers(pa.string(), len(lengths), buffers, null_count)
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as exc:
        raise ValueError(f"Column {name!r} has a text that is not UTF-8.") from exc
    return array


def _decode_numeric(block: bytes, name: str, start: Positions, head: Words) -> Words:
    """128-bit integers at scale 18, as lines of a low and a high word (two's complement).

    Digits come in words of four: `head[:, 2]` has the first, the others are read when any row
    has more. A word of four digits is a number below 10^16, and a value is the sum of at most
    three of them, each times a power of ten that is the same for all rows once they are aligned.
    """
    fixed = head[:, 1]
    sign = (fixed >> np.uint64(16)) & _LOW_16
    negative = sign == 0x4000
    is_signed = bool(sign.any())
    if is_signed and not ((sign == 0) | negative).all():
        special = int(sign[(sign != 0) & ~negative][0])
        label = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}.get(special, "a bad sign")
        raise ValueError(f"Column {name!r} has a numeric that is {label}, not a decimal number.")

    digit_count = (fixed >> np.uint64(48)).astype(np.int64)
    weight = (fixed >> np.uint64(32)).astype(np.int16).astype(np.int64)  # signed, low 16 bits
    highest, lowest = int(weight.max()), int((weight - digit_count + 1).min())
    if highest > 4 or lowest < -5:
        raise ValueError(f"Column {name!r} {_BEYOND_NUMERIC}.")

    words = [head[:, 2] & _LEADING_DIGITS[np.minimum(digit_count, 4)]]
    if digit_count.max() > 4:
        further = _read_words(block, start + 16, 16)
        words += [
            further[:, at] & _LEADING_DIGITS[np.clip(digit_count - 4 - 4 * at, 0, 4)]
            for at in (0, 1)
        ]
    if weight.min() < highest:
        words = _align(words, highest - weight, span=highest - lowest + 1)

    value = np.empty((len(fixed), 2), dtype=np.uint64)
    low, high = value[:, 0], value[:, 1]
    for at, word in enumerate(words):
        # Two digits to a 32-bit lane, then both lanes to one number below 10^16.
        pairs = ((word >> np.uint64(16)) & _EVEN_LANES) * np.uint64(10_000) + (word & _EVEN_LANES)
        number = (pairs >> np.uint64(32)) * np.uint64(100_000_000) + (pairs & _LOW_32)
        # The last digit of the word counts units of 10000^(highest - 3 - 4 * at).
        power = 4 * (highest - 3 - 4 * at) + 18
        if power < 0:
            # Below 10^-18 only zeros may stand. At most 10^19 is divided by: beyond that the
            # whole word lies below the lowest digit that was let pass above.
            divisor = np.uint64(10 ** min(-power, 19))
            shorter = number // divisor
            if (shorter * divisor != number).any():
                raise ValueError(f"Column {name!r} {_BEYOND_NUMERIC}.")
            number, power = shorter, 0
        product_low, product_high = _times_power_of_ten(number, power)
        if at == 0:
            low[:], high[:] = product_low, product_high
        else:
            low += product_low
            high += product_high + (low < product_low)
    if is_signed:
        high[negative] = ~high[negative] + (low[negative] == 0)
        low[negative] = -low[negative]
    return value


def _align(words: list[Words], behind: Positions, span: int) -> list[Words]:
    """Move each row's digits `behind` places down, so that all rows begin at one weight.

    `span` is the number of places that the digits then take: at most ten, three words.
    """
    aligned = words + [np.zeros_like(words[0]) for _ in range(len(words), (span + 3) // 4)]
    bits = behind.astype(np.uint64) << np.uint64(4)
    while (far := bits >= 64).any():
        above = [np.zeros_like(words[0]), *aligned]
        aligned = [np.where(far, a, w) for a, w in zip(above, aligned, strict=False)]
        bits = np.where(far, bits - np.uint64(64), bits)
    # NumPy defines a shift by 64 bits as zero, which is what a row that stays in place needs.
    carried = [word << (np.uint64(64) - bits) for word in aligned[:-1]]
    aligned = [word >> bits for word in aligned]
    return [aligned[0], *(word | c for word, c in zip(aligned[1:], carried, strict=True))]


def _times_power_of_ten(number: Words, power: int) -> tuple[Words, Words]:
    """`number` (below 10^16) times 10^power (0 <= power <= 22) as a low and a high word.

    10^p = 5^p * 2^p: the product with 5^p stays below 2^106, and is shifted. It is made of 32-bit
    halves, because NumPy has no 64 x 64 -> 128 bit product.
    """
    low = number * np.uint64(10**power % 2**64)
    factor_low, factor_high = np.uint64(5**power & 0xFFFF_FFFF), np.uint64(5**power >> 32)
    shift, rest = np.uint64(power), np.uint64(32 - power)
    half_low, half_high = number & _LOW_32, number >> np.uint64(32)
    middle = half_high * factor_low + ((half_low * factor_low) >> np.uint64(32))
    if not factor_high:
        return low, middle >> rest
    cross = half_low * factor_high + (middle & _LOW_32)
    top = half_high * factor_high + (middle >> np.uint64(32)) + (cross >> np.uint64(32))
    return low, (top << shift) + ((cross & _LOW_32) >> rest)


async def copy_to_arrow(
    connection: asyncpg.Connection,
    query: str,
    args: Sequence[object],
    columns: Sequence[tuple[str, ColumnKind]],
    *,
    timeout_s: float | None = None,
) -> pa.Table:
    """Run a SELECT as a binary COPY and decode it while it arrives.

    `args` are the values of `$1`, `$2`, ... (see `inline_arguments`). `columns` are the columns
    of the result in order, with the types that the query really yields: cast in the query where
    that is not sure. Raises what `decode` raises, and asyncpg's errors.
    """
    statement = inline_arguments(query, args)
    decoder = _Decoder(columns)
    loop = asyncio.get_running_loop()
    decoding: asyncio.Future[None] | None = None

    async def take(chunk: bytes) -> None:
        # A thread decodes one block while the next one arrives. asyncpg reads nothing while this
        # waits for the thread, so that two blocks at most are in memory beside the result.
        nonlocal decoding
        decoder.feed(chunk)
        if decoder.is_full:
            if decoding is not None:
                await decoding
            chunks = decoder.take_pending()
            decoding = loop.run_in_executor(None, decoder.decode_chunks, chunks)
        elif decoder.received_bytes > _GATHER_AFTER_BYTES and len(chunk) < _GATHER_CHUNK_BYTES:
            # The server flushes 8 kB at a time, and asyncpg spends more on a chunk than on its
            # bytes. A short pause lets a socket buffer fill: a twentieth of the chunks, a third
            # of the processor time. Where the server is the faster side, chunks are large anyway.
            await asyncio.sleep(_GATHER_PAUSE_S)

    try:
        await connection.copy_from_query(statement, output=take, format="binary", timeout=timeout_s)
    finally:
        if decoding is not None:
            await asyncio.gather(decoding, return_exceptions=True)
    if decoding is None:
        return decoder.finish()  # less than a block
    decoding.result()
    return await loop.run_in_executor(None, decoder.finish)


def encode(table: pa.Table) -> memoryview:
    """Encode a table whole, as a binary COPY. See `encode_batches`, which needs less memory.

    A view, because asyncpg takes a `source` of plain bytes for the name of a file.
    """
    return memoryview(b"".join(encode_batches(table)))


def encode_batches(table: pa.Table) -> Iterator[bytes]:
    """Encode a table as a binary COPY, in chunks of about ENCODE_ROWS rows.

    Columns are `timestamp[us, UTC]`, `decimal128(38,18)`, `int32` (int4), `int64` (int8) and
    `string`, plain or as a dictionary; each must be of the SQL type that the target column has,
    since binary COPY converts nothing. Raises ValueError for a column of another type.
    """
    wire_types = set(_ARROW_TYPES.values())
    schema = pa.schema([pa.field(field.name, _plain_type(field.type)) for field in table.schema])
    for field in schema:
        if field.type not in wire_types:
            raise ValueError(f"Column {field.name!r} of {field.type} has no binary COPY encoding.")
    encoder = pgpq.ArrowToPostgresBinaryEncoder(schema)
    yield encoder.write_header()
    for batch in table.to_batches(max_chunksize=ENCODE_ROWS):
        plain = [
            column.cast(field.type) if column.type != field.type else column
            for column, field in zip(batch.columns, schema, strict=True)
        ]
        # pgpq holds back up to a megabyte, so that a small batch yields nothing.
        if chunk := encoder.write_batch(pa.RecordBatch.from_arrays(plain, schema=schema)):
            yield chunk
    yield encoder.finish()


async def encode_stream(table: pa.Table) -> AsyncGenerator[bytes, None]:
    """`encode_batches` as the `source` of `copy_to_table`, encoded outside the event loop."""
    chunks = encode_batches(table)
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk


def _plain_type(data_type: pa.DataType) -> pa.DataType:
    return data_type.value_type if pa.types.is_dictionary(data_type) else data_type
