"""Files of candles: every digit, plainly."""

from __future__ import annotations

import io
import time
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kurisu.domain.money import LIMIT, plain
from kurisu.errors import InvalidArgument
from kurisu.report.candle_export import Format, plain_text, times_text, write, write_csv
from kurisu.store.candle_table import CandleTable

EXACT = pa.decimal128(38, 18)
STEP = Decimal("1e-18")
WIDE = Context(prec=80)


def decimals(values: list[Decimal]) -> pa.Array:
    return pa.array([value.quantize(STEP, context=WIDE) for value in values], EXACT)


numbers = st.one_of(
    st.decimals(-LIMIT + 1, LIMIT - 1, places=18),
    st.decimals(-(10**9), 10**9, places=8),
    st.integers(-(10**15), 10**15).map(Decimal),
)


@given(st.lists(numbers, max_size=8))
@example([Decimal("1e-18"), Decimal("-1e-18")])
@example([Decimal("99999999999999999999.999999999999999999"), Decimal(0)])
@example([Decimal("92233720368.54775807"), Decimal("-92233720368.54775808")])
@example([Decimal("92233720368.54775808"), Decimal("-0.00000001")])
def test_every_decimal_is_spelled_as_money_spells_it(values: list[Decimal]) -> None:
    column = decimals(values)
    expected = [plain(value) for value in values]
    assert plain_text(column).to_pylist() == expected
    assert plain_text(column[1:]).to_pylist() == expected[1:]


@given(st.datetimes(datetime(1970, 1, 1), datetime(2999, 1, 1)))  # made UTC below
def test_times_are_iso_in_utc(moment: datetime) -> None:
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    column = pa.array([moment], pa.timestamp("us", "UTC"))
    assert times_text(column).to_pylist() == [f"{moment:%Y-%m-%dT%H:%M:%S}Z"]


def candle_table(rows: int = 3, *, bars: bool = True) -> CandleTable:
    first = datetime(2024, 10, 27, tzinfo=UTC)
    columns = {
        "time": pa.array(
            [first + timedelta(hours=i) for i in range(rows)], pa.timestamp("us", "UTC")
        ),
        **{
            name: decimals([Decimal(f"{i + 1}e-8") for i in range(rows)])
            for name in ("open", "high", "low", "close", "volume")
        },
    }
    if bars:
        columns["bars"] = pa.array([None if i == 1 else 60 for i in range(rows)], pa.int32())
    return CandleTable(pa.table(columns))


def test_csv() -> None:
    sink = io.BytesIO()
    write(candle_table(), Format.CSV, sink)
    assert sink.getvalue().decode().splitlines() == [
        "time,open,high,low,close,volume,bars",
        "2024-10-27T00:00:00Z," + "0.00000001," * 5 + "60",
        "2024-10-27T01:00:00Z," + "0.00000002," * 5,
        "2024-10-27T02:00:00Z," + "0.00000003," * 5 + "60",
    ]


def test_csv_of_no_candles_is_its_header() -> None:
    sink = io.BytesIO()
    write(candle_table(0, bars=False), Format.CSV, sink)
    assert sink.getvalue() == b"time,open,high,low,close,volume\n"


def test_csv_of_a_slice_and_of_chunks() -> None:
    table = candle_table(5, bars=False).table
    parts = pa.concat_tables([table.slice(1, 2), table.slice(3, 1)])
    whole, sliced = io.BytesIO(), io.BytesIO()
    write_csv(table, whole)
    write_csv(parts, sliced)
    lines = whole.getvalue().splitlines()
    assert sliced.getvalue().splitlines() == [lines[0], *lines[2:5]]


@pytest.mark.parametrize("kind", [Format.PARQUET, Format.FEATHER])
def test_decimals_stay_exact_and_doubles_are_asked_for(kind: Format) -> None:
    candles = candle_table()
    read = pyarrow.parquet.read_table if kind is Format.PARQUET else pyarrow.feather.read_table
    exact, nearest = io.BytesIO(), io.BytesIO()
    write(candles, kind, exact)
    write(candles, kind, nearest, float64=True)
    assert read(pa.BufferReader(exact.getvalue())).equals(candles.table)
    assert read(pa.BufferReader(nearest.getvalue())).column("close").to_pylist() == [
        1e-8, 2e-8, 3e-8,
    ]  # fmt: skip


def test_csv_is_never_of_doubles() -> None:
    with pytest.raises(InvalidArgument, match="always exact"):
        write(candle_table(), Format.CSV, io.BytesIO(), float64=True)


def test_a_year_of_minutes_is_text_in_seconds() -> None:
    rows = 525_600
    values = pa.array(np.arange(rows) * 1_000 + 1).cast(pa.decimal128(20, 0))
    close = pa.compute.multiply(values, pa.scalar(Decimal("0.00000001"))).cast(EXACT)
    minutes = pa.array(np.arange(rows) * 60_000_000 + 1_704_067_200_000_000)
    columns = dict.fromkeys(("open", "high", "low", "close", "volume"), close)
    table = pa.table({"time": minutes.cast(pa.timestamp("us", "UTC")), **columns})
    started = time.process_time()
    write_csv(table, io.BytesIO())
    # 0.7 s of one core where this was written; Decimal by Decimal it would be 5 s.
    assert time.process_time() - started < 3
