"""Binary COPY to Arrow and back, against an encoder and a decoder written out with Decimal."""

from __future__ import annotations

import asyncio
import datetime as dt
import struct
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kurisu.store import copy_binary
from kurisu.store.copy_binary import (
    ColumnKind,
    copy_to_arrow,
    decode,
    decode_arrays,
    encode,
    encode_batches,
    encode_stream,
)
from kurisu.store.literals import inline_arguments

Columns = Sequence[tuple[str, ColumnKind]]
Row = Sequence[Any]

TIME, NUMERIC = ColumnKind.TIMESTAMPTZ, ColumnKind.NUMERIC
INT4, INT8, TEXT = ColumnKind.INT4, ColumnKind.INT8, ColumnKind.TEXT

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
END = b"\xff\xff"
EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)
CANDLE: Columns = [
    ("time", TIME),
    *((name, NUMERIC) for name in ("open", "high", "low", "close", "volume")),
]
LARGEST = Decimal("99999999999999999999.999999999999999999")
SMALLEST = Decimal("1e-18")


# The wire format once more, one value at a time.


def to_wire_numeric(value: Decimal, scale: int = 18) -> bytes:
    """`numeric_send`: base-10000 digits, without zero digits at either end."""
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    text = text + "0" * exponent if exponent > 0 else text.rjust(1 - exponent, "0")
    whole, fraction = (text, "") if exponent >= 0 else (text[:exponent], text[exponent:])
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    fraction = fraction.ljust(-(-len(fraction) // 4) * 4, "0")
    groups = [int((whole + fraction)[at : at + 4]) for at in range(0, len(whole + fraction), 4)]
    weight = len(whole) // 4 - 1
    while groups and groups[0] == 0:
        groups, weight = groups[1:], weight - 1
    while groups and groups[-1] == 0:
        groups = groups[:-1]
    if not groups:
        sign, weight = 0, 0
    return struct.pack(
        f">HhHH{len(groups)}H", len(groups), weight, 0x4000 if sign else 0, scale, *groups
    )


def to_wire_value(value: Any, kind: ColumnKind) -> bytes:
    if isinstance(value, bytes):  # as it is, to write what PostgreSQL would not
        return value
    match kind:
        case ColumnKind.TIMESTAMPTZ:
            return struct.pack(">q", (value - EPOCH) // MICROSECOND)
        case ColumnKind.NUMERIC:
            return to_wire_numeric(value)
        case ColumnKind.INT4:
            return struct.pack(">i", value)
        case ColumnKind.INT8:
            return struct.pack(">q", value)
        case ColumnKind.TEXT:
            encoded: bytes = value.encode()
            return encoded


def to_wire_row(row: Row, columns: Columns) -> bytes:
    fields = [struct.pack(">h", len(row))]
    for value, (_, kind) in zip(row, columns, strict=True):
        if value is None:
            fields.append(struct.pack(">i", -1))
        else:
            body = to_wire_value(value, kind)
            fields.append(struct.pack(">i", len(body)) + body)
    return b"".join(fields)


def to_wire(rows: Sequence[Row], columns: Columns) -> bytes:
    return HEADER + b"".join(to_wire_row(row, columns) for row in rows) + END


def from_wire_value(body: bytes, kind: ColumnKind) -> Any:
    match kind:
        case ColumnKind.TIMESTAMPTZ:
            return EPOCH + struct.unpack(">q", body)[0] * MICROSECOND
        case ColumnKind.NUMERIC:
            count, weight, sign, _ = struct.unpack(">HhHH", body[:8])
            groups = struct.unpack(f">{count}H", body[8:])
            units = sum(d * 10_000 ** (weight - at + 5) for at, d in enumerate(groups))
            return Decimal((1 if sign else 0, tuple(map(int, str(units))), -20))
        case ColumnKind.INT4:
            return struct.unpack(">i", body)[0]
        case ColumnKind.INT8:
            return struct.unpack(">q", body)[0]
        case ColumnKind.TEXT:
            return body.decode()


def from_wire(data: bytes, columns: Columns) -> list[tuple[Any, ...]]:
    """Walk through the rows, field by field."""
    assert data.startswith(HEADER)
    at, rows = len(HEADER), []
    while data[at : at + 2] != END:
        assert struct.unpack_from(">h", data, at) == (len(columns),)
        at += 2
        row = []
        for _, kind in columns:
            (length,) = struct.unpack_from(">i", data, at)
            at += 4
            row.append(None if length < 0 else from_wire_value(data[at : at + length], kind))
            at += max(length, 0)
        rows.append(tuple(row))
    assert data[at:] == END
    return rows


def to_table(rows: Sequence[Row], columns: Columns) -> pa.Table:
    arrays = {
        name: pa.array([row[at] for row in rows], kind.arrow_type)
        for at, (name, kind) in enumerate(columns)
    }
    return pa.table(arrays)


def same(table: pa.Table, rows: Sequence[Row], columns: Columns) -> bool:
    table.validate(full=True)
    return bool(table.equals(to_table(rows, columns)))


def candle(minute: int, *numbers: str) -> Row:
    return (EPOCH + dt.timedelta(minutes=minute), *map(Decimal, numbers))


# Strategies.

times = st.datetimes(
    dt.datetime(1, 1, 1),  # Hypothesis wants naive bounds
    dt.datetime(9999, 12, 31),
    timezones=st.just(dt.UTC),
)
units = st.one_of(
    st.integers(-(10**38) + 1, 10**38 - 1),
    st.builds(
        lambda digits, power: digits * 10**power, st.integers(-9999, 9999), st.integers(0, 34)
    ),
    st.sampled_from([0, 1, -1, 10**18, 10**38 - 1, 1 - 10**38, 2**64 - 1, 2**64, 2**127 // 2]),
)
decimals = units.map(lambda u: Decimal((int(u < 0), tuple(map(int, str(abs(u)))), -18)))
VALUES: dict[ColumnKind, st.SearchStrategy[Any]] = {
    TIME: times,
    NUMERIC: decimals,
    INT4: st.integers(-(2**31), 2**31 - 1),
    INT8: st.integers(-(2**63), 2**63 - 1),
    TEXT: st.text(st.characters(codec="utf-8")),
}


@st.composite
def relations(draw: st.DrawFn, min_rows: int = 0) -> tuple[list[tuple[Any, ...]], Columns]:
    kinds = draw(st.lists(st.sampled_from(ColumnKind), min_size=1, max_size=7))
    columns = [(f"{kind.value}_{at}", kind) for at, kind in enumerate(kinds)]
    row = st.tuples(*(st.none() | VALUES[kind] for kind in kinds))
    return draw(st.lists(row, min_size=min_rows, max_size=40)), columns


# Decoding.


@settings(deadline=None)
@given(relations(), st.integers(1, 300), st.integers(1, 400))
def test_decode_reads_what_the_slow_encoder_wrote(
    relation: tuple[list[tuple[Any, ...]], Columns], chunk_bytes: int, block_bytes: int
) -> None:
    rows, columns = relation
    data = to_wire(rows, columns)
    chunks = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    assert same(decode(data, columns), rows, columns)
    with patch.object(copy_binary, "BLOCK_BYTES", block_bytes):
        assert same(decode(chunks, columns), rows, columns)
        assert same(decode(memoryview(data), columns), rows, columns)


@settings(deadline=None)
@given(st.lists(st.tuples(times, *[decimals] * 5), max_size=40))
@example([(EPOCH, LARGEST, LARGEST.copy_negate(), SMALLEST, -SMALLEST, Decimal(0))])
def test_decode_reads_candles_of_any_size(rows: list[tuple[Any, ...]]) -> None:
    assert same(decode(bytearray(to_wire(rows, CANDLE)), CANDLE), rows, CANDLE)


@pytest.mark.parametrize("whole_digits", range(21))
def test_decode_places_every_digit(whole_digits: int) -> None:
    columns: Columns = [("time", TIME), ("x", NUMERIC)]
    digits = "12345678901234567890"[:whole_digits] + "987654321987654321"
    values = [
        Decimal(f"{sign}{digits[:length]}e{whole_digits - length}")
        for length in range(1, len(digits) + 1)
        for sign in ("", "-")
    ]
    rows = [(EPOCH, value) for value in values]
    assert same(decode(to_wire(rows, columns), columns), rows, columns)
    for row in rows:  # alone, so that no other row decides how it is read
        assert same(decode(to_wire([row], columns), columns), [row], columns)


@pytest.mark.parametrize("scale", [0, 2, 18])
def test_the_display_scale_changes_nothing(scale: int) -> None:
    columns: Columns = [("x", NUMERIC)]
    rows = [(to_wire_numeric(Decimal(1200), scale),)]
    assert decode(to_wire(rows, columns), columns)["x"].to_pylist() == [Decimal(1200)]


def test_digits_that_look_like_a_row_header_fool_nobody() -> None:
    # Six fields, and a first one of eight bytes: base-10000 digits 6, 0, 8.
    imitation = Decimal("6000000000080123.4567")
    header = b"\x00\x06\x00\x00\x00\x08"
    rows = [
        candle(0, *["1.5"] * 5),
        (EPOCH, *[imitation] * 5),
        *(candle(minute, "1", "2", "60000.0008", "6.00000008", "6") for minute in range(9)),
        (EPOCH, *[imitation * 10**4] * 5),
    ]
    data = to_wire(rows, CANDLE)
    assert data.count(header) > len(rows)
    assert same(decode(data, CANDLE), rows, CANDLE)
    for block_bytes in range(1, 250, 3):
        with patch.object(copy_binary, "BLOCK_BYTES", block_bytes):
            assert same(decode(data, CANDLE), rows, CANDLE)


def test_whole_rows_inside_a_value_stay_inside() -> None:
    columns: Columns = [("time", TIME), ("note", TEXT), ("x", NUMERIC)]
    inner = b"".join(
        to_wire_row((EPOCH, "é", Decimal(count)), columns) for count in range(1, 4)
    ).decode()
    rows = [(EPOCH, note, Decimal(7)) for note in ("", inner, "a" + inner, inner + "\0\3", "b")]
    assert same(decode(to_wire(rows * 20, columns), columns), rows * 20, columns)


@settings(deadline=None)
@given(st.lists(st.tuples(times, *[st.sampled_from([0, 3, 8, 3 << 48 | 8 << 16, -1])] * 2)))
def test_integers_that_imitate_headers_and_lengths(rows: list[tuple[Any, ...]]) -> None:
    columns: Columns = [("time", TIME), ("a", INT8), ("b", INT8)]
    assert same(decode(to_wire(rows, columns), columns), rows, columns)


def test_a_null_in_the_first_column_is_a_row_too() -> None:
    columns: Columns = [("time", TIME), ("x", NUMERIC)]
    rows = [(EPOCH, Decimal(2)), (None, Decimal("0.0002")), (EPOCH, None), (None, None)] * 5
    assert same(decode(to_wire(rows, columns), columns), rows, columns)


def test_an_empty_result_has_the_declared_columns() -> None:
    table = decode(HEADER + END, CANDLE)
    assert table.num_rows == 0
    assert table.schema == pa.schema([(name, kind.arrow_type) for name, kind in CANDLE])


def test_a_header_extension_is_skipped() -> None:
    rows = [candle(0, "1", "2", "3", "4", "5")]
    data = HEADER[:15] + struct.pack(">i", 7) + b"exten\x00\x06" + to_wire(rows, CANDLE)[19:]
    for chunks in ([data], [data[at : at + 1] for at in range(len(data))]):
        with patch.object(copy_binary, "BLOCK_BYTES", 1):
            assert same(decode(chunks, CANDLE), rows, CANDLE)


def test_a_column_is_one_chunk_over_many_blocks() -> None:
    rows = [candle(minute, "42000.1", "42001", "0.25", f"-{minute}", "0") for minute in range(5000)]
    with patch.object(copy_binary, "BLOCK_BYTES", 10_000):
        table = decode(to_wire(rows, CANDLE), CANDLE)
    assert same(table, rows, CANDLE)
    assert {column.num_chunks for column in table.columns} == {1}


ONE: Columns = [("time", TIME), ("x", NUMERIC)]
GOOD = to_wire_row((EPOCH, Decimal("1.5")), ONE)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (struct.pack(">HhHH", 0, 0, 0xC000, 0), "is NaN"),
        (struct.pack(">HhHH", 0, 0, 0xD000, 0), "is Infinity"),
        (struct.pack(">HhHH", 0, 0, 0xF000, 0), "is -Infinity"),
        (to_wire_numeric(Decimal("1e20")), r"beyond numeric\(38,18\)"),
        (to_wire_numeric(Decimal("-1e24")), r"beyond numeric\(38,18\)"),
        (to_wire_numeric(Decimal("1e-19")), r"beyond numeric\(38,18\)"),
        (to_wire_numeric(Decimal("1e-21")), r"beyond numeric\(38,18\)"),
        (to_wire_numeric(Decimal("1e-300")), r"beyond numeric\(38,18\)"),
        (to_wire_numeric(Decimal(f"{LARGEST}1")), r"beyond numeric\(38,18\)"),
        (bytes(4), "4 bytes that is no numeric"),
        (bytes(10), "10 bytes that is no numeric"),
    ],
)
def test_a_numeric_that_does_not_fit_is_refused(value: bytes, sentence: str) -> None:
    data = HEADER + GOOD + to_wire_row((EPOCH, value), ONE) + GOOD + END
    with pytest.raises(ValueError, match=f"Column 'x' .*{sentence}"):
        decode(data, ONE)


@pytest.mark.parametrize(
    ("data", "columns", "sentence"),
    [
        (b"", ONE, "ends before its end marker"),
        (HEADER, ONE, "ends before its end marker"),
        (HEADER + GOOD, ONE, "ends before its end marker"),
        (HEADER + GOOD[:-1], ONE, "ends before its end marker"),
        (HEADER + GOOD + END[:1], ONE, "ends before its end marker"),
        (HEADER + END + GOOD, ONE, "goes on after its end marker"),
        (b"time,x\n", ONE, "not a binary COPY"),
        (HEADER[:11] + b"\x00\x01\x00\x00" + bytes(4) + END, ONE, "critical flags"),
        (HEADER + GOOD + END, [*ONE, ("y", INT4)], "has 2 columns where 3 were declared"),
        (HEADER + GOOD + GOOD + END, ONE[:1], "has 2 columns where 1 were declared"),
        (HEADER + GOOD + END, [("time", INT4), ("x", NUMERIC)], "8 bytes that is no int4"),
        (to_wire([(b"\x7f" + b"\xff" * 7,)], ONE[:1]), ONE[:1], "infinite time"),
        (to_wire([(b"\x80" + bytes(7),)], ONE[:1]), ONE[:1], "infinite time"),
        (to_wire([(b"\xff",)], [("s", TEXT)]), [("s", TEXT)], "not UTF-8"),
        (HEADER + END, [], "none were named"),
    ],
)
def test_data_that_is_not_as_declared_is_refused(
    data: bytes, columns: Columns, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        decode(data, columns)
    with patch.object(copy_binary, "BLOCK_BYTES", 1), pytest.raises(ValueError, match=sentence):
        decode([data[at : at + 1] for at in range(len(data))], columns)


# Arrays, one a column.


def to_wire_array(values: Sequence[Any], kind: ColumnKind) -> bytes:
    """`array_send`: dimensions, whether there is a NULL, type; length and first index; values."""
    if not values:
        return struct.pack(">iiI", 0, 0, 0)
    fields = [struct.pack(">iiIii", 1, int(None in values), 0, len(values), 1)]
    for value in values:
        body = b"" if value is None else to_wire_value(value, kind)
        fields.append(struct.pack(">i", -1 if value is None else len(body)) + body)
    return b"".join(fields)


def to_arrays(rows: Sequence[Row], columns: Columns) -> list[bytes]:
    return [to_wire_array([row[at] for row in rows], kind) for at, (_, kind) in enumerate(columns)]


BAR: Columns = [*CANDLE, ("bars", INT4), ("trades", INT8)]
#: Digits that look like the beginning of a value: its length, how many digits, weight, sign.
misleading = st.lists(st.sampled_from([0, 0, 8, 10, 12, 1, 2, 5]), min_size=5, max_size=9).map(
    lambda groups: Decimal("".join(f"{group:04}" for group in groups)).scaleb(-16)
)
bar_rows = st.lists(
    st.tuples(times, *[st.one_of(decimals, misleading)] * 5, VALUES[INT4], VALUES[INT8]),
    max_size=12,
)


@settings(deadline=None)
@given(st.lists(bar_rows, min_size=1, max_size=3))
@example([[(EPOCH, LARGEST, LARGEST.copy_negate(), SMALLEST, -SMALLEST, Decimal(0), 1, 2)], []])
def test_arrays_are_decoded_as_a_copy_is(parts: list[list[Row]]) -> None:
    rows = [row for part in parts for row in part]
    assert same(decode_arrays([to_arrays(part, BAR) for part in parts], BAR), rows, BAR)


@pytest.mark.parametrize(
    ("column", "array", "sentence"),
    [
        (0, to_wire_array([EPOCH, None], TIME), "has a NULL"),
        (1, to_wire_array([Decimal(1), None], NUMERIC), "has a NULL"),
        (1, struct.pack(">iiIiiii", 2, 0, 0, 1, 1, 1, 1), "rows of its own"),
        (0, to_wire_array([], TIME), "length"),
        (0, to_wire_array([5, 6], INT4), "no timestamptz"),
        (0, to_wire_array([b"\x7f" + b"\xff" * 7] * 2, TIME), "infinite time"),
        (1, to_wire_array([5, 6], INT4), "no numeric"),
        (1, to_wire_array([Decimal(1)], NUMERIC), "length"),
        (1, to_wire_array([Decimal(1), Decimal("1e20")], NUMERIC), "beyond numeric"),
        (1, to_wire_array([Decimal(1), struct.pack(">HhHH", 0, 0, 0xC000, 0)], NUMERIC), "no num"),
        (1, to_wire_array([Decimal(1)] * 2, NUMERIC)[:-2], "no numeric"),
        (1, to_wire_array([Decimal(1)] * 2, NUMERIC) + bytes(2), "no numeric"),
    ],
)
def test_arrays_that_are_not_as_declared_are_refused(
    column: int, array: bytes, sentence: str
) -> None:
    arrays = to_arrays([candle(0, "1"), candle(1, "2")], ONE)
    arrays[column] = array
    with pytest.raises(ValueError, match=sentence):
        decode_arrays([arrays], ONE)


# Encoding.


@settings(deadline=None)
@given(relations())
def test_the_slow_decoder_reads_what_encode_wrote(
    relation: tuple[list[tuple[Any, ...]], Columns],
) -> None:
    rows, columns = relation
    assert from_wire(bytes(encode(to_table(rows, columns))), columns) == rows


@settings(deadline=None)
@given(relations(min_rows=3))
def test_decode_undoes_encode_of_slices_and_dictionaries(
    relation: tuple[list[tuple[Any, ...]], Columns],
) -> None:
    rows, columns = relation
    table = to_table(rows, columns)
    for at, (name, kind) in enumerate(columns):
        if kind is TEXT:
            table = table.set_column(at, name, table[name].dictionary_encode())
    part = pa.concat_tables([table.slice(1, 1), table.slice(2)])
    with patch.object(copy_binary, "ENCODE_ROWS", 2):
        assert same(decode(encode(part), columns), rows[1:], columns)


def test_batches_are_bounded_and_streamed() -> None:
    columns: Columns = [("id", INT4), ("note", TEXT)]
    rows = [(count, "x" * 200_000) for count in range(25)]
    table = to_table(rows, columns)

    async def streamed() -> list[bytes]:
        return [chunk async for chunk in encode_stream(table)]

    with patch.object(copy_binary, "ENCODE_ROWS", 10):
        batches = list(encode_batches(table))
        assert asyncio.run(streamed()) == batches
    assert [len(batch) // 200_000 for batch in batches] == [0, 10, 10, 5]
    assert b"".join(batches) == to_wire(rows, columns) == encode(table)


@pytest.mark.parametrize(
    "data_type",
    [
        pa.float64(),
        pa.decimal128(38, 10),
        pa.int16(),
        pa.timestamp("us"),
        pa.timestamp("ms", tz="UTC"),
        pa.timestamp("us", tz="Europe/Berlin"),
        pa.dictionary(pa.int8(), pa.float64()),
    ],
)
def test_other_types_are_not_encoded(data_type: pa.DataType) -> None:
    table = pa.table({"x": pa.array([], data_type)})
    with pytest.raises(ValueError, match=r"Column 'x' of .* has no binary COPY encoding"):
        encode(table)


# From a connection.


class FakeConnection:
    """Delivers bytes as asyncpg does: chunk by chunk, waiting for each to be taken."""

    def __init__(self, chunks: Sequence[bytes], failure: Exception | None = None) -> None:
        self.chunks, self.failure, self.query = chunks, failure, ""

    async def copy_from_query(
        self,
        query: str,
        *,
        output: Callable[[bytes], Awaitable[None]],
        format: str,  # noqa: A002  # asyncpg's names
        timeout: float | None,  # noqa: ASYNC109
    ) -> str:
        assert (format, timeout) == ("binary", None)
        self.query = query
        for chunk in self.chunks:
            await output(chunk)
        if self.failure:
            raise self.failure
        return "COPY"


@pytest.mark.parametrize("block_bytes", [50, 1000, 10_000_000])
@pytest.mark.parametrize("chunk_bytes", [7, 100, 1_000_000])
def test_copy_to_arrow_decodes_what_arrives(block_bytes: int, chunk_bytes: int) -> None:
    rows = [candle(minute, "42000.1", "-1e-18", "3", "4", f"{minute}e3") for minute in range(100)]
    data = to_wire(rows, CANDLE)
    connection = FakeConnection(
        [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    )
    query = "SELECT * FROM c WHERE id = $1"
    with (
        patch.object(copy_binary, "BLOCK_BYTES", block_bytes),
        patch.object(copy_binary, "_GATHER_AFTER_BYTES", 10_000),
    ):
        table = asyncio.run(copy_to_arrow(connection, query, [5], CANDLE))
    assert connection.query == "SELECT * FROM c WHERE id = (5)"
    assert same(table, rows, CANDLE)


def test_copy_to_arrow_passes_on_both_kinds_of_failure() -> None:
    rows = [candle(minute, "1", "2", "3", "4", "5") for minute in range(100)]
    data = to_wire(rows, CANDLE)
    with patch.object(copy_binary, "BLOCK_BYTES", 500):
        lost = FakeConnection([data[:1000]], ConnectionResetError("gone"))
        with pytest.raises(ConnectionResetError, match="gone"):
            asyncio.run(copy_to_arrow(lost, "SELECT", [], CANDLE))
        for size in (1, len(data)):
            wrong = FakeConnection([data[at : at + size] for at in range(0, len(data), size)])
            with pytest.raises(ValueError, match="has 6 columns where 5"):
                asyncio.run(copy_to_arrow(wrong, "SELECT", [], CANDLE[:5]))


# Arguments.


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        (None, "NULL"),
        (True, "TRUE"),
        (7, "(7)"),
        (-7, "(-7)"),
        (Decimal("-1E-18"), "'-1E-18'::numeric"),
        (
            dt.datetime(2024, 2, 29, 1, 2, 3, 4, dt.timezone(dt.timedelta(hours=5.5))),
            "'2024-02-28T19:32:03.000004+00:00'::timestamptz",
        ),
        ("it's", " E'it''s'"),
        ("\\'; DROP TABLE ohlcv; --", " E'\\\\''; DROP TABLE ohlcv; --'"),
        ("$1 $2", " E'$1 $2'"),
        ([1, -2], "ARRAY[(1), (-2)]"),
        (("a'", "b"), "ARRAY[ E'a''',  E'b']"),
        ([], "'{}'"),
    ],
)
def test_literals(value: object, literal: str) -> None:
    assert inline_arguments("SELECT $1", [value]) == f"SELECT {literal}"


def test_placeholders_are_replaced_only_where_they_are_ones() -> None:
    query = """SELECT '$1', "$1", a$1, 'it''s $1' -- $1
        /* $2
        */ FROM t WHERE x = $2 AND y = -$1 OR w=$1"""
    assert inline_arguments(query, [5, "$1"]) == (
        """SELECT '$1', "$1", a$1, 'it''s $1' -- $1
        /* $2
        */ FROM t WHERE x =  E'$1' AND y = -(5) OR w=(5)"""
    )


@pytest.mark.parametrize(
    ("query", "args", "sentence"),
    [
        ("SELECT $2", [1], r"has \$2, but 1 arguments"),
        ("SELECT $0", [1], r"has \$0, but 1 arguments"),
        ("SELECT $1", [1, 2], r"has no \$2, but 2 arguments"),
        ("SELECT '$1'", [1], r"has no \$1, but 1 arguments"),
        ("SELECT $1", [dt.datetime(2024, 1, 1)], "no time zone"),  # the point
        ("SELECT $1", [2**63], "does not fit int8"),
        ("SELECT $1", [Decimal("NaN")], "not a finite number"),
        ("SELECT $1", ["a\0b"], "NUL character"),
        ("SELECT $1", [1.5], "no literal for an argument of float"),
    ],
)
def test_arguments_that_have_no_place_or_literal(
    query: str, args: list[object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        inline_arguments(query, args)
