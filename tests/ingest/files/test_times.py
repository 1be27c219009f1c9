from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kurisu.domain.faults import Rule
from kurisu.ingest.files.times import TIME, read_time, to_times

from .samples import patient, time_spellings, times_ms

MOMENT = datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)
US = 1_600_000_000_000_000


def one(text: str | None) -> int | Rule:
    """The same value through the column, amid others; it has to agree with `read_time`."""
    column, faults = to_times(pa.array(["1600000060", text, "2020-09-13", None], pa.string()))
    assert column.type == TIME
    ticks = column.cast(pa.int64()).to_pylist()
    assert ticks[0] == US + 60_000_000
    assert faults.pop(3) is Rule.MISSING_VALUE
    assert set(faults) <= {1}
    alone, _ = to_times(pa.array([text], pa.string()))
    assert alone.cast(pa.int64())[0].as_py() == ticks[1]
    return faults.get(1) or int(ticks[1])


@pytest.mark.parametrize(
    "text",
    [
        "1600000000",
        "1600000000000",
        "1600000000000000",
        "1600000000000000000",
        "1600000000.0",
        "1600000000000.",
        "1.6E9",
        "1.6e+12",
        " 1600000000 ",
        "+1600000000",
        "2020-09-13T12:26:40",
        "2020-09-13 12:26:40",
        "2020-09-13T12:26:40Z",
        "2020-09-13 12:26:40 UTC",
        "2020-09-13 12:26:40+00:00",
        "2020-09-13T12:26:40.000000000Z",
        "2020-09-13T12:26:40.0",
        "2020-09-13T14:26:40+02:00",
        "2020-09-13T20:26:40+0800",
        "2020-09-13T06:56:40-05:30",
        "2020-09-13T05:26:40-07",
        "2020-09-14T02:26:40+14:00",
        "2020/09/13 12:26:40",
        "20200913122640",
        "20200913 122640",
        "20200913T122640Z",
    ],
)
def test_notations_of_one_moment(text: str) -> None:
    assert one(text) == US
    assert read_time(text) == US


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2020-09-13", datetime(2020, 9, 13, tzinfo=UTC)),
        ("20200913", datetime(2020, 9, 13, tzinfo=UTC)),
        ("202009131226", datetime(2020, 9, 13, 12, 26, tzinfo=UTC)),
        ("2020-09-13 12:26", datetime(2020, 9, 13, 12, 26, tzinfo=UTC)),
        ("2020-02-29", datetime(2020, 2, 29, tzinfo=UTC)),
        ("2020-09-13T12:26:40.123456", MOMENT.replace(microsecond=123456)),
        ("2020-09-13T12:26:40,5", MOMENT.replace(microsecond=500_000)),
        ("1600000000000001", MOMENT.replace(microsecond=1)),
        ("1600000000000001000", MOMENT.replace(microsecond=1)),
        ("99999999999", datetime(5138, 11, 16, 9, 46, 39, tzinfo=UTC)),
        ("100000000000", datetime(1973, 3, 3, 9, 46, 40, tzinfo=UTC)),
        ("4102444800", datetime(2100, 1, 1, tzinfo=UTC)),
    ],
)
def test_notations(text: str, moment: datetime) -> None:
    assert one(text) == (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-1600000000",
        "-1600000000000",
        "16000000",
        "44197",
        "1600000000.5",
        "1600000000000000001",
        "99999999999999999999",
        "1e400",
        "2020-02-30",
        "2021-02-29 00:00:00",
        "2020-13-01",
        "2020-09-13T24:00:00",
        "2020-09-13T12:26:60",
        "2020-09-13T12:26:40.1234567",
        "2020-09-13T12:26:40+25:00",
        "2020-09-13T12:26:40 EST",
        "1969-12-31 23:59:59",
        "1970-01-01",
        "13.09.2020",
        "09/13/2020",
        "12:26",
        "20201301",
        "time",
        "1,600,000,000",
        "1600000000x",
        "\uff11600000000",
        "inf",
    ],
)
def test_what_is_no_time(text: str) -> None:
    assert one(text) is Rule.TIME_NOT_READABLE
    assert read_time(text) is Rule.TIME_NOT_READABLE


@pytest.mark.parametrize("text", [None, "", " ", "null", "None", "NaT", "nan"])
def test_missing_times(text: str | None) -> None:
    assert one(text) is Rule.MISSING_VALUE


def test_units_may_be_mixed_in_one_column() -> None:
    numbers = [1600000000, 1600000000000, 1600000000000000, 1600000000000000000]
    for kind in (pa.int64(), pa.uint64(), pa.float64(), pa.decimal128(20, 0)):
        as_python = {pa.float64(): float, pa.decimal128(20, 0): Decimal}.get(kind, int)
        column, faults = to_times(pa.array([as_python(n) for n in numbers], kind))
        assert column.cast(pa.int64()).to_pylist() == [US] * 4
        assert faults == {}


@patient
@given(st.data(), times_ms)
def test_every_spelling_gives_the_same_moment(data: st.DataObject, ms: int) -> None:
    assert one(data.draw(time_spellings(ms))) == ms * 1_000


@patient
@given(st.integers(-(2**63), 2**63 - 1))
def test_a_column_of_numbers_says_what_each_number_says(number: int) -> None:
    wanted = read_time(str(number))
    column, faults = to_times(pa.array([number], pa.int64()))
    found = faults[0] if faults else column.cast(pa.int64())[0].as_py()
    assert found == wanted


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_timestamps_of_any_unit_and_zone(unit: str, zone: str | None) -> None:
    values = pa.array([MOMENT, None], pa.timestamp(unit, zone))
    column, faults = to_times(values)
    assert column.cast(pa.int64()).to_pylist() == [US, None]
    assert faults == {1: Rule.MISSING_VALUE}


def test_timestamps_that_cannot_be_kept() -> None:
    assert to_times(pa.array([US * 1_000 + 1], pa.timestamp("ns")))[1] == {
        0: Rule.TIME_NOT_READABLE
    }
    for ticks in (0, -1, 2**62):
        assert to_times(pa.array([ticks], pa.timestamp("s")))[1] == {0: Rule.TIME_NOT_READABLE}


def test_dates() -> None:
    for kind in (pa.date32(), pa.date64()):
        column, faults = to_times(pa.array([date(2020, 9, 13)], kind))
        assert column[0].as_py() == datetime(2020, 9, 13, tzinfo=UTC)
        assert faults == {}


def test_float_times_that_are_not_whole() -> None:
    column, faults = to_times(pa.array([1.6e9, 1.6e9 + 0.5, float("nan"), None], pa.float64()))
    assert column.cast(pa.int64()).to_pylist() == [US, None, None, None]
    assert faults == {
        1: Rule.TIME_NOT_READABLE,
        2: Rule.MISSING_VALUE,
        3: Rule.MISSING_VALUE,
    }
