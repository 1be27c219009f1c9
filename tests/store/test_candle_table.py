"""What a read gives back turns into every other form without losing a digit."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, localcontext
from typing import Final

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from bars import START, as_table, minutes
from hypothesis import given
from hypothesis import strategies as st

from kurisu.domain.candle import Candle
from kurisu.store.candle_table import SOURCES, CandleTable
from kurisu.store.exact_table import to_float64, with_floats

MONEY: Final = pa.decimal128(38, 18)
NUMBERS: Final = ("open", "high", "low", "close", "volume")
CANDLES: Final = minutes(START, 50)
#: The smallest and largest that a column holds, and what a double cannot hold.
EXTREMES: Final = [
    Decimal(text)
    for text in (
        "0", "0.000000000000000001", "99999999999999999999.999999999999999999",
        "-99999999999999999999.999999999999999999", "0.1", "9007199254740993",
        "12345678901234567890.123456789012345678",
    )
]  # fmt: skip


def with_bars(candles: Iterable[Candle], bars: list[int | None]) -> CandleTable:
    table = as_table(candles).append_column("bars", pa.array(bars, pa.int32()))
    return CandleTable(table)


def column(values: Iterable[Decimal]) -> pa.ChunkedArray:
    with localcontext(prec=60):
        return pa.chunked_array([pa.array(list(values), MONEY)])


@pytest.fixture
def table() -> CandleTable:
    return CandleTable(as_table(CANDLES))


def test_iteration_gives_the_candles(table: CandleTable) -> None:
    assert list(table) == CANDLES
    assert list(table.candles()) == CANDLES


def test_iteration_crosses_batches() -> None:
    many = minutes(START, 10_001)
    assert list(CandleTable(as_table(many)))[9_990:] == many[9_990:]


def test_iteration_gives_the_bars_inside() -> None:
    table = with_bars(CANDLES[:2], [7, None])
    assert [c.bars for c in table] == [7, None]


def test_length_is_the_number_of_rows(table: CandleTable) -> None:
    assert len(table) == 50
    assert not CandleTable(table.table.slice(0, 0))


def test_polars_has_the_same_decimals(table: CandleTable) -> None:
    frame = table.to_polars()
    assert [frame.schema[name] for name in NUMBERS] == [pl.Decimal(38, 18)] * 5
    assert frame.schema["time"] == pl.Datetime("us", "UTC")
    assert [Candle(*row) for row in frame.iter_rows()] == CANDLES


def test_polars_has_the_nearest_doubles_if_asked(table: CandleTable) -> None:
    frame = table.to_polars(float64=True)
    for name in NUMBERS:
        assert frame.schema[name] == pl.Float64
        assert frame[name].to_list() == [float(getattr(c, name)) for c in CANDLES]


def test_pandas_has_the_same_decimals_by_time(table: CandleTable) -> None:
    frame = table.to_pandas()
    assert list(frame.index) == [c.time for c in CANDLES]
    assert frame.index.name == "time"
    for name in NUMBERS:
        assert frame[name].dtype == pd.ArrowDtype(MONEY)
        assert frame[name].to_list() == [getattr(c, name) for c in CANDLES]


def test_pandas_has_the_nearest_doubles_if_asked(table: CandleTable) -> None:
    frame = table.to_pandas(float64=True)
    for name in NUMBERS:
        assert frame[name].dtype == np.float64
        assert frame[name].to_list() == [float(getattr(c, name)) for c in CANDLES]


def test_numpy_has_the_same_decimals(table: CandleTable) -> None:
    arrays = table.to_numpy()
    assert list(arrays) == ["time", *NUMBERS]
    for name in NUMBERS:
        assert arrays[name].tolist() == [getattr(c, name) for c in CANDLES]
        assert isinstance(arrays[name][0], Decimal)


def test_numpy_times_are_utc_microseconds(table: CandleTable) -> None:
    times = table.to_numpy()["time"]
    assert times.dtype == np.dtype("datetime64[us]")
    assert times.tolist() == [c.time.replace(tzinfo=None) for c in CANDLES]


def test_numpy_has_the_nearest_doubles_if_asked(table: CandleTable) -> None:
    arrays = table.to_numpy(float64=True)
    for name in NUMBERS:
        assert arrays[name].dtype == np.float64
        assert arrays[name].tolist() == [float(getattr(c, name)) for c in CANDLES]


def test_bars_inside_are_integers_in_every_form() -> None:
    table = with_bars(CANDLES[:3], [5, None, 3])
    assert table.to_polars()["bars"].to_list() == [5, None, 3]
    assert table.to_pandas()["bars"].to_list()[::2] == [5, 3]
    for wants_floats in (False, True):
        bars = table.to_numpy(float64=wants_floats)["bars"]
        assert (bars.dtype, bars.tolist()) == (np.int32, [5, 0, 3])
    whole = with_bars(CANDLES[:2], [5, 4]).to_numpy()["bars"]
    assert (whole.dtype, whole.tolist()) == (np.int32, [5, 4])


def test_a_table_without_rows_turns_into_every_form(table: CandleTable) -> None:
    empty = CandleTable(with_bars(CANDLES[:1], [1]).table.slice(0, 0))
    for wants_floats in (False, True):
        assert len(empty.to_polars(float64=wants_floats)) == 0
        assert len(empty.to_pandas(float64=wants_floats)) == 0
        assert all(len(array) == 0 for array in empty.to_numpy(float64=wants_floats).values())
    assert list(empty) == []


@given(
    st.lists(
        st.decimals(
            min_value=-(Decimal(10) ** 20) + 1,
            max_value=Decimal(10) ** 20 - 1,
            allow_nan=False,
            places=18,
        ),
        min_size=1,
        max_size=50,
    )
)
def test_float64_is_the_nearest_double(values: list[Decimal]) -> None:
    assert to_float64(column(values)).to_pylist() == [float(value) for value in values]


def test_float64_is_the_nearest_double_of_extremes() -> None:
    assert to_float64(column(EXTREMES)).to_pylist() == [float(value) for value in EXTREMES]


@given(st.integers(1, 2**53 - 1), st.integers(0, 17))
def test_float64_halfway_between_two_doubles_is_even(number: int, shift: int) -> None:
    halfway = Decimal(2 * number + 1) / 2**shift
    with localcontext(prec=60):
        value = halfway.quantize(Decimal("1e-18"))
    if abs(value) >= 10**20:
        return
    assert to_float64(column([value])).to_pylist() == [float(value)]


def test_floats_replace_decimals_and_nothing_else() -> None:
    table = with_bars(CANDLES[:3], [5, None, 3]).table
    floats = with_floats(table)
    assert floats.column_names == table.column_names
    assert floats["time"].equals(table["time"])
    assert floats["bars"].equals(table["bars"])
    assert table.schema.field("open").type == MONEY


def test_arrow_is_the_table_itself(table: CandleTable) -> None:
    assert table.to_arrow() is table.table
    assert table.to_arrow(float64=True).schema.field("close").type == pa.float64()


def test_whatever_takes_arrow_takes_the_table(table: CandleTable) -> None:
    assert pa.table(table).equals(table.table)
    frame = pl.DataFrame(table)
    assert frame["close"].to_list() == [c.close for c in CANDLES]


def test_columns_and_methods_of_the_arrow_table_are_there(table: CandleTable) -> None:
    assert table.num_rows == 50
    assert table["open"].to_pylist() == [c.open for c in CANDLES]
    assert table.column("time").to_pylist() == [c.time for c in CANDLES]
    with pytest.raises(AttributeError):
        table.no_such_thing  # noqa: B018  # that it raises is the point


def test_tables_are_equal_if_their_rows_are(table: CandleTable) -> None:
    assert table == CandleTable(as_table(CANDLES))
    assert table == as_table(CANDLES)
    assert table != CandleTable(as_table(CANDLES[1:]))
    assert table != CANDLES


def test_tables_have_no_hash(table: CandleTable) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(table)


def test_sources_come_from_the_metadata(table: CandleTable) -> None:
    assert table.sources == {}
    noted = table.table.replace_schema_metadata({SOURCES: b'{"1m": 3, "1h": 2}'})
    assert CandleTable(noted).sources == {"1m": 3, "1h": 2}


def test_the_repr_says_rows_and_sources(table: CandleTable) -> None:
    assert repr(table) == "CandleTable(50 rows, sources {})"
