from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kurisu.domain.faults import Reject, Rule
from kurisu.errors import UnreadableFile
from kurisu.ingest.files import arrow_rows

from .samples import (
    NAMES,
    START_MS,
    Row,
    contents,
    expected,
    gz,
    ipc,
    lines,
    parquet,
    patient,
    read,
    tables,
    write,
)

FLOATS = {name: [0.1 + i, 1e-07, 2.697e-07, 4.5e11] for i, name in enumerate(NAMES[1:])}
TIMES = [START_MS + 60_000 * i for i in range(4)]
STAMPS = pa.array(TIMES).cast(pa.timestamp("ms", "UTC"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arrow")


def freqtrade(**columns: pa.Array) -> pa.Table:
    table = {"date": STAMPS, **FLOATS}
    return pa.table(table | columns)


WANTED = [
    (i + 1, TIMES[i] * 1_000, *(Decimal(repr(FLOATS[name][i])) for name in NAMES[1:]))
    for i in range(4)
]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (ipc(freqtrade()), "freqtrade feather"),
        (ipc(freqtrade(), compression="lz4"), "freqtrade feather"),
        (ipc(freqtrade(), compression="zstd"), "freqtrade feather"),
        (ipc(freqtrade(), stream=True), "freqtrade arrow stream"),
        (parquet(freqtrade()), "freqtrade parquet"),
        (gz(ipc(freqtrade())), "freqtrade feather.gz"),
        (gz(parquet(freqtrade())), "freqtrade parquet.gz"),
    ],
)
def test_containers(directory: Path, content: bytes, name: str) -> None:
    rows = read(directory, content, name="lies.csv")
    assert contents(rows) == WANTED
    assert rows.format == name


def test_feather_v1(directory: Path) -> None:
    path = directory / "old"
    with pytest.warns(DeprecationWarning, match="Feather V1"):
        pa.feather.write_feather(freqtrade(), path, version=1)
    rows = read(directory, path.read_bytes())
    assert contents(rows) == WANTED
    assert rows.format == "freqtrade feather v1"


@pytest.mark.parametrize(
    "times",
    [
        STAMPS.cast(pa.timestamp("ms")),
        STAMPS.cast(pa.timestamp("ns", "UTC")),
        STAMPS.cast(pa.timestamp("us", "Asia/Tokyo")),
        STAMPS.cast(pa.timestamp("s")),
        pa.array(TIMES),
        pa.array([t // 1_000 for t in TIMES], pa.int32()),
        pa.array([t * 1_000_000 for t in TIMES]),
        pa.array([float(t) for t in TIMES]),
        pa.array([str(t) for t in TIMES]),
        pa.array([str(t) for t in TIMES]).dictionary_encode(),
        pa.array([f"{datetime.fromtimestamp(t // 1_000, UTC)}" for t in TIMES], pa.large_string()),
    ],
)
def test_types_of_time(directory: Path, times: pa.Array) -> None:
    assert contents(read(directory, ipc(freqtrade(date=times)))) == WANTED
    assert contents(read(directory, parquet(freqtrade(date=times)))) == WANTED


def test_pandas_writes_the_index_under_a_name_of_its_own(directory: Path) -> None:
    frame = pd.DataFrame(FLOATS, index=pd.to_datetime(TIMES, unit="ms", utc=True))
    path = directory / "pandas"
    frame.to_parquet(path)
    rows = read(directory, path.read_bytes())
    assert contents(rows) == WANTED
    assert rows.columns["time"] == "__index_level_0__"
    frame.rename_axis("Date").rename(columns=str.title).to_parquet(path)
    assert contents(read(directory, path.read_bytes())) == WANTED
    frame.rename_axis("time").to_csv(path)
    assert contents(read(directory, path.read_bytes())) == WANTED
    frame.reset_index(names="date").to_feather(path)
    assert contents(read(directory, path.read_bytes())) == WANTED


def test_polars_files(directory: Path) -> None:
    frame = pl.DataFrame({"timestamp": TIMES, **FLOATS}).with_columns(
        pl.col("timestamp").cast(pl.Datetime("ms"))
    )
    path = directory / "polars"
    for name in ("ipc", "ipc_stream", "parquet", "csv", "ndjson"):
        getattr(frame, f"write_{name}")(path)
        assert contents(read(directory, path.read_bytes())) == WANTED, name


def test_nulls_nan_and_digits_that_do_not_fit(directory: Path) -> None:
    table = freqtrade(
        open=pa.array([1.0, None, float("nan"), 1.0]),
        close=pa.array([1.0, 1.0, float("inf"), 1.2345678901234568e-05]),
    )
    rows = read(directory, ipc(table))
    assert rows.rejects == [
        Reject(2, Rule.MISSING_VALUE, "", "open"),
        Reject(3, Rule.NOT_FINITE, "nan", "open"),
        Reject(4, Rule.TOO_MANY_FRACTION_DIGITS, "0.000012345678901234568", "close"),
    ]
    assert rows.table["row"].to_pylist() == [1]


def test_times_that_cannot_be_kept(directory: Path) -> None:
    times = pa.array([TIMES[0] * 10**6, TIMES[1] * 10**6 + 1, 0, None]).cast(pa.timestamp("ns"))
    rows = read(directory, ipc(freqtrade(date=times)))
    assert [(r.row, r.rule) for r in rows.rejects] == [
        (2, Rule.TIME_NOT_READABLE),
        (3, Rule.TIME_NOT_READABLE),
        (4, Rule.MISSING_VALUE),
    ]
    assert rows.rejects[0].value == "2020-09-13 12:27:40.000000001"


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"date": pa.array([1.6e9] * 4, pa.float32())}, "'date' has the type float"),
        ({"open": pa.array([1.0] * 4, pa.float16())}, "'open' has the type halffloat"),
        ({"open": pa.array([True] * 4)}, "'open' has the type bool"),
        ({"date": pa.array([[1]] * 4)}, "'date' has the type list"),
    ],
)
def test_types_that_hold_no_candle(
    directory: Path, columns: dict[str, pa.Array], says: str
) -> None:
    with pytest.raises(UnreadableFile, match=says):
        read(directory, ipc(freqtrade(**columns)))


def test_tables_that_are_not_candles(directory: Path) -> None:
    for table in (pa.table({"a": [1]}), pa.table({}), freqtrade().drop(["low"])):
        for write_table in (ipc, parquet):
            with pytest.raises(UnreadableFile, match="column"):
                read(directory, write_table(table))


def test_columns_by_option_and_other_columns(directory: Path) -> None:
    table = freqtrade(extra=pa.array(["x"] * 4)).rename_columns(list("abcdefg"))
    rows = read(directory, ipc(table), "ts,open,high,low,close,volume,_")
    assert contents(rows) == WANTED
    assert rows.columns["volume"] == "f"
    with pytest.raises(UnreadableFile, match="names 6 columns, but the file has 7"):
        read(directory, ipc(table), "ts,open,high,low,close,volume")


def test_more_than_one_symbol(directory: Path) -> None:
    one = pa.array(["BTC/USDT"] * 4).dictionary_encode()
    assert read(directory, parquet(freqtrade(symbol=one))).rows_read == 4
    two = pa.array(["BTC/USDT"] * 3 + ["ETH/USDT"])
    with pytest.raises(UnreadableFile, match="more than one symbol"):
        read(directory, parquet(freqtrade(symbol=two)))


def test_an_empty_table(directory: Path) -> None:
    for content in (ipc(freqtrade().slice(0, 0)), parquet(freqtrade().slice(0, 0))):
        rows = read(directory, content)
        assert rows.rows_read == 0
        assert rows.columns["time"] == "date"


@pytest.mark.parametrize("cut", [1, 10, 100, 500])
def test_files_that_were_cut(directory: Path, cut: int) -> None:
    for content in (ipc(freqtrade()), parquet(freqtrade())):
        with pytest.raises(UnreadableFile, match="cut short or damaged"):
            read(directory, content[:-cut])


def test_rows_across_batches(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_rows, "BATCH_ROWS", 3)
    table = pa.concat_tables([freqtrade(), freqtrade()])
    for content in (ipc(table), parquet(table)):
        assert [row[0] for row in contents(read(directory, content))] == list(range(1, 9))


def test_the_file_is_released(directory: Path) -> None:
    path = write(directory, ipc(freqtrade()))
    read(directory, path.read_bytes())
    path.unlink()


@patient
@given(
    tables,
    st.sampled_from([ipc, parquet]),
    st.sampled_from([pa.decimal128(38, 18), pa.decimal256(50, 20), pa.string()]),
    st.sampled_from(["s", "ms", "us", "ns"]),
)
def test_any_table_digit_for_digit(
    directory: Path, table: list[Row], write_table: object, kind: pa.DataType, unit: str
) -> None:
    if unit == "s":
        table = [(row[0] - row[0] % 1_000, *row[1:]) for row in table]
    ms, *numbers = zip(*table, strict=True)
    columns = {"time": pa.array(ms).cast(pa.timestamp("ms")).cast(pa.timestamp(unit))}
    for name, values in zip(NAMES[1:], numbers, strict=True):
        spelled = [f"{value:f}" for value in values] if pa.types.is_string(kind) else values
        columns[name] = pa.array(spelled, kind)
    assert callable(write_table)
    assert contents(read(directory, write_table(pa.table(columns)))) == expected(table)


@patient
@given(
    st.lists(st.tuples(*[st.floats(2.0**-30, 2.0**43, width=32)] * 5), min_size=1, max_size=20),
    st.booleans(),
)
def test_floats_by_their_shortest_repr(
    directory: Path, values: list[tuple[float, ...]], wide: bool
) -> None:
    kind = pa.float64() if wide else pa.float32()
    columns = dict(
        zip(NAMES[1:], (pa.array(c, kind) for c in zip(*values, strict=True)), strict=True)
    )
    times = pa.array([START_MS + 60_000 * i for i in range(len(values))])
    rows = read(directory, ipc(pa.table({"time": times, **columns})))
    found = {row[0]: row[2:] for row in contents(rows)}
    for i, value in enumerate(values, 1):
        exact = tuple(Decimal(repr(v) if wide else str(np.float32(v))) for v in value)
        if i in found:
            assert found[i] == exact
        else:
            assert any(number.as_tuple().exponent < -18 for number in exact)  # type: ignore[operator]


def test_decimal_columns_of_our_own_export_are_untouched(directory: Path) -> None:
    value = Decimal("99999999999999999999.999999999999999999")
    kind = pa.decimal128(38, 18)
    table = pa.table(
        {
            "time": pa.array([datetime(2024, 1, 1, tzinfo=UTC)], pa.timestamp("us", "UTC")),
            **{name: pa.array([value], kind) for name in NAMES[1:]},
            "bars": pa.array([5], pa.int32()),
        }
    )
    assert contents(read(directory, parquet(table)))[0][2:] == (value,) * 5
    assert read(directory, "\n".join(lines(2))).table.schema.field("open").type == kind
