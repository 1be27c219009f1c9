from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kurisu.domain.faults import Rule
from kurisu.errors import UnreadableFile
from kurisu.ingest.files import CandleRows, read_candles

from .samples import (
    NAMES,
    as_objects,
    check_numbers,
    contents,
    data_file,
    gz,
    ipc,
    lines,
    parquet,
    patient,
    read,
    walk,
    write,
    zipped,
)

BITFINEX = "candles/bitfinex/BTCUSD-1m-2013.csv.gz"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("read")


def stable() -> dict[str, bytes]:
    """The same 60 candles in every kind of file."""
    rows = [[str(cell) for cell in row] for row in walk(60)]
    text = "".join(",".join(row) + "\n" for row in rows)
    named = ",".join(NAMES) + "\n" + text
    columns = dict(zip(NAMES, zip(*rows, strict=True), strict=True))
    table = pa.table({"time": [int(ms) for ms in columns.pop("time")], **columns})
    return {
        "plain": text.encode(),
        "named": named.encode(),
        "quoted": named.replace(",", '","').replace("\n", '"\n"').encode()[:-1],
        "json": f"[[{'],['.join(map(','.join, rows))}]]".encode(),
        "lines": "\n".join(as_objects(rows)).encode(),
        "objects": f"[{','.join(as_objects(rows))}]".encode(),
        "gzip": gz(named),
        "zip": zipped(a__csv=text),
        "feather": ipc(table),
        "stream": ipc(table, stream=True),
        "parquet": parquet(table),
    }


FILES = stable()


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_says_the_same(directory: Path, kind: str) -> None:
    rows = read(directory, FILES[kind] if kind != "quoted" else b'"' + FILES[kind])
    wanted = [
        (i, ms * 1_000, *map(Decimal, numbers)) for i, (ms, *numbers) in enumerate(walk(60), 1)
    ]
    assert contents(rows) == wanted
    assert rows.rejects == []


def test_the_shape_of_the_result(directory: Path) -> None:
    rows = read(directory, "\n".join(lines(2)))
    assert rows.table.schema.names == ["row", *NAMES]
    assert rows.table.schema.types == [
        pa.int64(),
        pa.timestamp("us", "UTC"),
        *[pa.decimal128(38, 18)] * 5,
    ]
    assert dict(rows.columns) == {name: f"column {i}" for i, name in enumerate(NAMES, 1)}
    with pytest.raises(AttributeError):
        rows.format = "other"  # type: ignore[misc]


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of some kind with some bytes changed, lost, doubled or added."""
    kind = draw(st.sampled_from(sorted(FILES)))
    content = bytearray(FILES[kind])
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(1, 40))
        what = draw(st.sampled_from(["change", "lose", "double", "add", "cut", "text"]))
        if what == "change":
            content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif what == "lose":
            del content[at : at + length]
        elif what == "double":
            content[at:at] = content[at : at + length]
        elif what == "add":
            content[at:at] = draw(st.binary(max_size=20))
        elif what == "cut":
            del content[len(content) - length :]
        else:
            content[at:at] = draw(
                st.sampled_from([b",", b"\n", b'"', b"\r", b"nan", b"e5", b"#", b"]", b"[", b"-"])
            )
    return kind, bytes(content)


@settings(patient, max_examples=400)
@given(damages())
def test_damage_loses_nothing_in_silence(directory: Path, damage: tuple[str, bytes]) -> None:
    """Either the file is refused, or every row is in the table or a reject."""
    path = write(directory, damage[1])
    try:
        rows = read_candles(path)
    except UnreadableFile:
        return
    check_numbers(rows)
    rows.table.validate(full=True)


@settings(patient, max_examples=200)
@given(st.integers(0, 59), st.integers(1, 5), st.text("0123456789.,eE+-\"' naN\n#", max_size=12))
def test_damage_to_one_line_leaves_the_others(
    directory: Path, number: int, field: int, junk: str
) -> None:
    rows = [[str(cell) for cell in row] for row in walk(60)]
    before = contents(read(directory, FILES["named"]))
    rows[number][field] = junk
    content = ",".join(NAMES) + "\n" + "".join(",".join(row) + "\n" for row in rows)
    after = contents(read(directory, content))
    kept = {row[1:] for row in after}
    assert all(row[1:] in kept for i, row in enumerate(before) if i != number)


@settings(patient, max_examples=100)
@given(
    st.binary(max_size=300), st.sampled_from([b"", b"[[", b"[{", b"PAR1", b"ARROW1\0\0", b"PK\3\4"])
)
def test_junk_is_refused(directory: Path, junk: bytes, start: bytes) -> None:
    path = write(directory, start + junk)
    with suppress(UnreadableFile):
        check_numbers(read_candles(path))


def independent(path: Path) -> Iterator[tuple[int, list[Decimal]]]:
    """Milliseconds and five Decimals of each row, read without the code under test."""
    if path.name.endswith(".json.gz"):
        with gzip.open(path, "rt") as file:
            for row in json.load(file, parse_float=Decimal):
                yield row[0], [Decimal(cell) for cell in row[1:]]
    else:
        for row in pa.feather.read_table(path).to_pylist():
            milliseconds = round(row["date"].timestamp() * 1_000)
            yield milliseconds, [Decimal(repr(row[name])) for name in NAMES[1:]]


@pytest.mark.parametrize(
    ("name", "form", "count"),
    [
        ("candles/binance/DOGE_BTC-1m.json.gz", "freqtrade json.gz", 57_194),
        ("candles/binance/SHIB_USDT-1m.json.gz", "freqtrade json.gz", 44_342),
        ("candles/binance/SHIB_USDT-1h.json.gz", "freqtrade json.gz", 739),
        ("candles/binance/XRP_ETH-1m.feather", "freqtrade feather", 2_469),
        ("candles/gateio_futures/SATS_USDT_USDT-5m.feather", "freqtrade feather", 2_999),
    ],
)
def test_real_files_digit_for_digit(name: str, form: str, count: int) -> None:
    path = data_file(name)
    rows = read_candles(path)
    check_numbers(rows)
    assert rows.format == form
    assert rows.rejects == []
    assert rows.rows_read == count
    assert contents(rows) == [
        (i, ms * 1_000, *numbers) for i, (ms, numbers) in enumerate(independent(path), 1)
    ]


def test_a_real_file_whose_floats_carry_more_digits_than_numeric() -> None:
    """0.0016200000000000001 is not 0.00162: it is refused by name, and never rounded."""
    path = data_file("candles/binance/UNITTEST_BTC-1m.feather")
    rows = read_candles(path)
    check_numbers(rows)
    kept, refused = [], []
    for i, (ms, numbers) in enumerate(independent(path), 1):
        if any(-int(number.normalize().as_tuple().exponent) > 18 for number in numbers):
            refused.append(i)
        else:
            kept.append((i, ms * 1_000, *numbers))
    assert contents(rows) == kept
    assert [reject.row for reject in rows.rejects] == refused
    assert {reject.rule for reject in rows.rejects} == {Rule.TOO_MANY_FRACTION_DIGITS}
    assert (len(kept), len(refused)) == (8_112, 5_569)


def bitfinex() -> CandleRows:
    return read_candles(
        data_file(BITFINEX), columns=["ts", "open", "close", "high", "low", "volume"]
    )


def test_bitfinex_in_its_order_digit_for_digit() -> None:
    rows = bitfinex()
    wanted = []
    with gzip.open(data_file(BITFINEX), "rt") as file:
        for i, line in enumerate(file, 1):
            ms, opened, close, high, low, volume = line.strip().split(",")
            numbers = map(Decimal, (opened, high, low, close, volume))
            wanted.append((i, int(ms) * 1_000, *numbers))
    assert contents(rows) == wanted
    assert rows.rows_read == 148_055


def test_bitfinex_is_not_read_in_the_usual_order() -> None:
    with pytest.raises(UnreadableFile, match="--columns ts,open,close,high,low,volume"):
        read_candles(data_file(BITFINEX))


@pytest.mark.parametrize(
    "name",
    [
        "trades/binance_spot_PEPEUSDT-aggTrades-2024-10-27.zip",
        "trades/binance_XRP_ETH-trades.feather",
        "trades/binance_XRP_ETH-trades-raw+unified.json.gz",
        "trades/kraken_XRP_USDT-trades.json.gz",
        "trades/binance_spot_btcusdt-ws-trade-20240808.log.gz",
        "metadata/binance_spot-exchangeInfo-20211012.json.gz",
        "metadata/coinbase-products-20210417.json.gz",
        "metadata/binance_leverage_tiers.json.gz",
    ],
)
def test_real_files_that_are_not_candles(name: str) -> None:
    with pytest.raises(UnreadableFile):
        read_candles(data_file(name))
