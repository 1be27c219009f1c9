"""What may be stored: every kind of input, every rule, and what is said about the rest."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from bars import MINUTE, NAMES, START, as_table, candle, closing, minutes, native, opening
from hypothesis import given
from hypothesis import strategies as st

from kurisu.domain.candle import Candle
from kurisu.domain.faults import Conflict, Reject, Rule
from kurisu.domain.money import EXACT
from kurisu.domain.timeframe import timeframe
from kurisu.errors import InvalidArgument
from kurisu.store.candle_rows import CleanCandles, clean, close_us, floor_us, from_us, runs, to_us
from kurisu.store.candle_table import CandleTable

NOW: Final = datetime(2025, 1, 1, tzinfo=UTC)
CANDLES: Final = minutes(START, 5)
NUMBERS: Final = ("open", "high", "low", "close", "volume")
MONEY: Final = pa.decimal128(38, 18)


def cleaned(rows: Any, name: str = "1m", now: datetime = NOW) -> CleanCandles:
    found = clean(rows, timeframe(name), now)
    assert found.read == (
        found.table.num_rows + len(found.rejects) + len(found.conflicts) + found.duplicates
    )
    return found


def stored(found: CleanCandles) -> list[Candle]:
    return list(CandleTable(found.table))


def as_text(candles: list[Candle]) -> dict[str, Any]:
    """Columns of text, as an exchange's JSON has them."""
    return {
        "time": pa.array([c.time for c in candles], pa.timestamp("ms", tz="UTC")),
        **{name: [format(getattr(c, name), "f") for c in candles] for name in NUMBERS},
    }


def with_column(name: str, values: Any, kind: pa.DataType | None = None) -> pa.Table:
    """The example with one column replaced, and as many rows as that has."""
    array = pa.array(values, kind)
    table = as_table(minutes(START, len(array)))
    return table.set_column(table.schema.get_field_index(name), name, array)


class TestKinds:
    """The same candles in every shape that a caller may have them in."""

    def test_arrow_decimals(self) -> None:
        assert stored(cleaned(as_table(CANDLES))) == CANDLES

    def test_an_arrow_batch(self) -> None:
        assert stored(cleaned(as_table(CANDLES).to_batches()[0])) == CANDLES

    def test_chunks_and_slices(self) -> None:
        table = as_table(minutes(START - 7 * MINUTE, 14))
        pieces = pa.concat_tables([table.slice(7, 2), table.slice(9, 3)])
        assert stored(cleaned(pieces)) == CANDLES

    def test_text(self) -> None:
        assert stored(cleaned(pa.table(as_text(CANDLES)))) == CANDLES

    @pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
    def test_other_kinds_of_text(self, kind: pa.DataType) -> None:
        table = pa.table(as_text(CANDLES))
        for name in NUMBERS:
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, table.column(name).cast(kind))
        assert stored(cleaned(table)) == CANDLES

    def test_a_dictionary_of_text(self) -> None:
        table = pa.table(as_text(CANDLES))
        for name in NUMBERS:
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, table.column(name).dictionary_encode())
        assert stored(cleaned(table)) == CANDLES

    def test_a_dictionary_of_anything(self) -> None:
        table = as_table(CANDLES)
        for index, name in enumerate(table.column_names):
            table = table.set_column(index, name, table.column(name).dictionary_encode())
        assert stored(cleaned(table)) == CANDLES

    def test_polars_categories(self) -> None:
        frame = pl.DataFrame(pa.table(as_text(CANDLES)))
        assert stored(cleaned(frame.with_columns(pl.col(NUMBERS).cast(pl.Categorical)))) == CANDLES

    @pytest.mark.parametrize(
        "kind", [pa.decimal128(38, 0), pa.decimal128(20, 2), pa.decimal256(76, 30), pa.int64()]
    )
    def test_other_exact_numbers(self, kind: pa.DataType) -> None:
        table = with_column("high", [10**14, 7 * 10**14, 10**15], kind)
        table = table.filter(pa.array([True] * 3))
        found = cleaned(table)
        assert [c.high for c in stored(found)] == [10**14, 7 * 10**14, 10**15]

    @pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.int32()])
    def test_integers(self, kind: pa.DataType) -> None:
        assert [c.volume for c in stored(cleaned(with_column("volume", [0, 1, 100], kind)))] == [
            0, 1, 100,
        ]  # fmt: skip

    def test_candles(self) -> None:
        assert stored(cleaned(CANDLES)) == CANDLES
        assert stored(cleaned(iter(CANDLES))) == CANDLES

    def test_a_table_that_was_read(self) -> None:
        assert stored(cleaned(CandleTable(as_table(CANDLES)))) == CANDLES

    def test_polars(self) -> None:
        frame = CandleTable(as_table(CANDLES)).to_polars()
        assert stored(cleaned(frame)) == CANDLES

    def test_polars_text(self) -> None:
        frame = pl.DataFrame(
            {"time": [c.time for c in CANDLES]}
            | {name: [format(getattr(c, name), "f") for c in CANDLES] for name in NUMBERS}
        )
        assert stored(cleaned(frame)) == CANDLES

    def test_pandas(self) -> None:
        frame = CandleTable(as_table(CANDLES)).to_pandas()
        assert frame.index.name == "time"
        assert stored(cleaned(frame)) == CANDLES
        assert stored(cleaned(frame.reset_index())) == CANDLES

    def test_pandas_objects(self) -> None:
        frame = pd.DataFrame(
            {"time": [c.time for c in CANDLES]}
            | {name: [getattr(c, name) for c in CANDLES] for name in NUMBERS}
        )
        assert stored(cleaned(frame)) == CANDLES

    @pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
    @pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
    def test_times_of_every_unit_and_zone(self, unit: str, zone: str) -> None:
        times = [c.time for c in CANDLES]
        found = cleaned(with_column("time", times, pa.timestamp(unit, tz=zone)))
        assert [c.time for c in stored(found)] == times

    def test_columns_beyond_those_do_not_matter(self) -> None:
        table = as_table(CANDLES).append_column("trades", pa.array([1.5] * 5))
        assert stored(cleaned(table.select(table.column_names[::-1]))) == CANDLES

    def test_nothing_at_all(self) -> None:
        assert stored(cleaned(as_table([]))) == []
        assert stored(cleaned([])) == []
        assert stored(cleaned(pa.table(as_text([])).cast(as_table([]).schema))) == []

    @given(st.lists(st.integers(-(10**38) + 1, 10**38 - 1), min_size=1, max_size=5))
    def test_numbers_to_the_last_digit(self, scaled: list[int]) -> None:
        rows = []
        for minute, number in enumerate(scaled):
            price = Decimal(number).scaleb(-18, EXACT)
            rows.append(Candle(START + minute * MINUTE, price, price, price, price, Decimal(0)))
        assert stored(cleaned(rows)) == rows


class TestRefused:
    """What cannot be exact, or is not there, is an error and not a row."""

    @pytest.mark.parametrize("value", [0.1, np.float32(0.1), np.float64(0.1)])
    def test_a_float_in_a_candle(self, value: Any) -> None:
        with pytest.raises(InvalidArgument, match="close is .*a float is not the number"):
            cleaned([CANDLES[0]._replace(close=value)])

    @pytest.mark.parametrize("time", ["2024-01-01", START.date(), 1_704_067_200])
    def test_a_candle_whose_time_is_none(self, time: Any) -> None:
        with pytest.raises(InvalidArgument, match="not a datetime"):
            cleaned([CANDLES[0]._replace(time=time)])

    def test_two_columns_of_one_name(self) -> None:
        table = as_table(CANDLES)
        with pytest.raises(InvalidArgument, match="more than one column is called close"):
            cleaned(table.append_column("close", table.column("open")))

    @pytest.mark.parametrize("numbers", [["x"] * 5, [1.5] * 5, [1, 2, 3, 4, None]])
    def test_row_numbers_that_are_none(self, numbers: list[Any]) -> None:
        with pytest.raises(InvalidArgument, match="column row is .*integers without null"):
            cleaned(as_table(CANDLES).append_column("row", pa.array(numbers)))

    @pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
    def test_floats(self, kind: pa.DataType) -> None:
        with pytest.raises(InvalidArgument, match="column close is .*a float is not the number"):
            cleaned(with_column("close", [1.5], kind))

    def test_times_without_a_zone(self) -> None:
        times = np.array([START.replace(tzinfo=None)], dtype="datetime64[us]")
        with pytest.raises(InvalidArgument, match="timestamp with a time zone"):
            cleaned(with_column("time", times))

    def test_candles_without_a_zone(self) -> None:
        with pytest.raises(InvalidArgument, match="has no time zone"):
            cleaned([candle(START)._replace(time=START.replace(tzinfo=None))])

    def test_times_that_are_numbers(self) -> None:
        with pytest.raises(InvalidArgument, match="column time is int64"):
            cleaned(with_column("time", [1_704_067_200_000]))

    @pytest.mark.parametrize("values", [[True], [[1]], [b"1"]])
    def test_other_values(self, values: list[object]) -> None:
        with pytest.raises(InvalidArgument, match="has to be decimal, integer or text"):
            cleaned(with_column("open", values))

    def test_columns_that_are_missing(self) -> None:
        with pytest.raises(InvalidArgument, match="missing: close, volume"):
            cleaned(as_table(CANDLES).drop_columns(["close", "volume"]))

    @pytest.mark.parametrize("rows", [[(START, 1, 1, 1, 1, 1)], [{"time": START}], ["x"]])
    def test_rows_that_are_no_candles(self, rows: list[object]) -> None:
        with pytest.raises(InvalidArgument, match="Candle values"):
            cleaned(rows)

    def test_no_rows_at_all(self) -> None:
        with pytest.raises(InvalidArgument, match="cannot be read from int"):
            cleaned(7)


class TestRules:
    """Each rule, and what the report says of a row that breaks it. The others are stored."""

    @pytest.mark.parametrize(
        ("column", "value", "rule"),
        [
            ("open", "", Rule.NUMBER_NOT_READABLE),
            ("open", "1,5", Rule.NUMBER_NOT_READABLE),
            ("close", "1_000", Rule.NUMBER_NOT_READABLE),
            ("volume", "NaN", Rule.NOT_FINITE),
            ("high", "Infinity", Rule.NOT_FINITE),
            ("low", "-Infinity", Rule.NOT_FINITE),
            ("volume", "1e20", Rule.NUMBER_TOO_LARGE),
            ("high", "123456789012345678901", Rule.NUMBER_TOO_LARGE),
            ("open", "1.0000000000000000001", Rule.TOO_MANY_FRACTION_DIGITS),
            ("volume", "1e-19", Rule.TOO_MANY_FRACTION_DIGITS),
            ("volume", None, Rule.MISSING_VALUE),
            ("volume", "-0.1", Rule.NEGATIVE_VOLUME),
            ("low", "3", Rule.LOW_ABOVE_OPEN),
            ("high", "1", Rule.HIGH_BELOW_OPEN),
        ],
    )
    def test_of_numbers(self, column: str, value: str | None, rule: Rule) -> None:
        good = {"open": "2", "high": "5", "low": "0.5", "close": "4", "volume": "1"}
        rows: list[dict[str, str | None]] = [{**good}, {**good, column: value}, {**good}]
        table = pa.table(
            {
                "time": pa.array([START + i * MINUTE for i in range(3)], pa.timestamp("us", "UTC")),
                **{name: pa.array([row[name] for row in rows], pa.string()) for name in NUMBERS},
            }
        )
        found = cleaned(table)
        assert found.rejects == [Reject(2, rule, value or "", column)]
        assert [c.time for c in stored(found)] == [START, START + 2 * MINUTE]

    @pytest.mark.parametrize(
        ("changed", "rule", "column"),
        [
            ({"low": 3}, Rule.LOW_ABOVE_OPEN, "low"),
            ({"open": 5, "low": 4.5, "close": 4}, Rule.LOW_ABOVE_CLOSE, "low"),
            ({"high": 1}, Rule.HIGH_BELOW_OPEN, "high"),
            ({"high": 3}, Rule.HIGH_BELOW_CLOSE, "high"),
        ],
    )
    def test_of_a_bar(self, changed: dict[str, float], rule: Rule, column: str) -> None:
        values = {"open": 2, "high": 5, "low": 0.5, "close": 4, "volume": 1} | changed
        low_to_high = [Decimal(str(v)) for v in values.values()]
        row = Candle(START, *low_to_high[:5])  # type: ignore[arg-type]  # five of them
        found = cleaned([row])
        assert [(r.rule, r.field) for r in found.rejects] == [(rule, column)]

    @pytest.mark.parametrize("name", NAMES)
    def test_a_time_that_opens_no_bar(self, name: str) -> None:
        opened = opening(START + timedelta(days=100), name)
        found = cleaned([candle(opened), candle(opened + timedelta(seconds=1))], name)
        assert [(r.row, r.rule) for r in found.rejects] == [(2, Rule.TIME_NOT_ALIGNED)]
        assert found.rejects[0].value == (opened + timedelta(seconds=1)).isoformat()

    def test_nanoseconds_that_are_no_microseconds(self) -> None:
        times = [to_us(START) * 1_000, to_us(START + MINUTE) * 1_000 + 1]
        found = cleaned(with_column("time", times, pa.timestamp("ns", tz="UTC")))
        assert [(r.row, r.rule) for r in found.rejects] == [(2, Rule.TIME_NOT_ALIGNED)]

    def test_a_time_that_is_missing(self) -> None:
        found = cleaned(with_column("time", [START, None], pa.timestamp("us", tz="UTC")))
        assert found.rejects == [Reject(2, Rule.MISSING_VALUE, "", "time")]

    @pytest.mark.parametrize("unit", ["s", "ms", "us"])
    def test_a_time_beyond_the_calendar(self, unit: str) -> None:
        nanoseconds = 1_704_067_200_000_000_000  # taken for something longer
        found = cleaned(with_column("time", [nanoseconds, 0], pa.timestamp(unit, tz="UTC")))
        assert found.rejects == [Reject(1, Rule.TIME_NOT_READABLE, str(nanoseconds), "time")]

    def test_the_first_rule_that_is_broken_is_the_one_that_is_named(self) -> None:
        row = candle(START)._replace(volume=Decimal(-1), time=START + timedelta(seconds=1))
        found = cleaned([row])
        assert [r.rule for r in found.rejects] == [Rule.TIME_NOT_ALIGNED]

    def test_rows_are_numbered_as_the_source_numbers_them(self) -> None:
        table = with_column("volume", ["1", "x", "2"]).append_column("row", pa.array([10, 20, 30]))
        assert [r.row for r in cleaned(table).rejects] == [20]


class TestClosed:
    """A candle is stored once it has closed, and not before."""

    @pytest.mark.parametrize("name", NAMES)
    def test_a_bar_counts_from_its_close_on(self, name: str) -> None:
        opened = opening(START + timedelta(days=100), name)
        closes = closing(opened, name)
        assert stored(cleaned([candle(opened)], name, closes)) == [candle(opened)]
        found = cleaned([candle(opened)], name, closes - timedelta(microseconds=1))
        assert [r.rule for r in found.rejects] == [Rule.NOT_CLOSED]

    def test_one_in_the_future_is_refused(self) -> None:
        found = cleaned([candle(NOW + timedelta(days=1))])
        assert [r.rule for r in found.rejects] == [Rule.NOT_CLOSED]

    def test_the_clocks_zone_does_not_matter(self) -> None:
        now = (START + MINUTE).astimezone(timezone(timedelta(hours=9)))
        assert stored(cleaned([candle(START)], now=now)) == [candle(START)]


class TestTwice:
    """Rows with one time: the last one wins, and each that said something else is listed."""

    def test_a_repetition_is_counted(self) -> None:
        found = cleaned([*CANDLES, CANDLES[2], CANDLES[2]])
        assert (stored(found), found.duplicates, found.conflicts) == (CANDLES, 2, [])

    def test_numbers_are_compared_and_not_their_spelling(self) -> None:
        table = pa.concat_tables([pa.table(as_text([c])) for c in CANDLES[:1] * 2])
        longer = [
            table.column("volume")[0].as_py() + ".000"
            if "." not in table.column("volume")[0].as_py()
            else table.column("volume")[0].as_py() + "0",
            table.column("volume")[1].as_py(),
        ]
        table = table.set_column(5, "volume", pa.array(longer))
        assert cleaned(table).duplicates == 1

    def test_a_contradiction_is_listed_and_the_later_row_wins(self) -> None:
        early, late = candle(START, seed=1), candle(START, seed=2)
        found = cleaned([early, candle(START + MINUTE), late])
        assert stored(found) == [late, candle(START + MINUTE)]
        (conflict,) = found.conflicts
        assert (conflict.row, conflict.kept_row) == (1, 3)
        assert conflict.time == "2024-01-01T00:00:00+00:00"
        assert conflict.value.startswith("open=")

    def test_three_versions(self) -> None:
        found = cleaned([candle(START, seed=s) for s in (1, 2, 1, 3, 3)])
        assert stored(found) == [candle(START, seed=3)]
        assert [(c.row, c.kept_row) for c in found.conflicts] == [(1, 5), (2, 5), (3, 5)]
        assert found.duplicates == 1

    def test_rows_come_out_in_order_of_time(self) -> None:
        assert stored(cleaned(CANDLES[::-1])) == CANDLES

    def test_a_rejected_row_wins_over_nothing(self) -> None:
        good = candle(START)
        bad = good._replace(volume=Decimal(-1))
        assert stored(cleaned([good, bad])) == [good]

    @given(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=20),
    )
    def test_it_is_as_if_each_row_were_written_in_turn(self, rows: list[tuple[int, int]]) -> None:
        given_rows = [candle(START + minute * MINUTE, seed) for minute, seed in rows]
        kept = {row.time: row for row in given_rows}
        found = cleaned(given_rows)
        assert stored(found) == [kept[time] for time in sorted(kept)]
        wrong = [row for row in given_rows if row != kept[row.time]]
        assert len(found.conflicts) == len(wrong)
        assert found.duplicates == len(given_rows) - len(kept) - len(wrong)


class TestTimes:
    names = st.sampled_from(NAMES)
    times = st.datetimes(datetime(1960, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))

    @given(times)
    def test_microseconds_and_back(self, at: datetime) -> None:
        assert from_us(to_us(at)) == at
        assert to_us(at) == (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

    @given(names, st.lists(times, min_size=1, max_size=5))
    def test_bars_of_many_times_at_once(self, name: str, at: list[datetime]) -> None:
        us = np.array([to_us(t) for t in at], dtype=np.int64)
        frame = timeframe(name)
        floored = floor_us(us, frame)
        if name != "3d":  # The model counts its days from 1970 on.
            assert [from_us(t) for t in floored] == [opening(t, name) for t in at]
        assert [from_us(t) for t in close_us(floored, frame)] == [
            closing(from_us(t), name) for t in floored
        ]

    @given(names, st.lists(st.integers(0, 30), unique=True, max_size=15))
    def test_runs_are_stretches_without_a_hole(self, name: str, numbers: list[int]) -> None:
        bars = [c.time for c in native(opening(START, name), 32, name)]
        times = [bars[n] for n in sorted(numbers)]
        found = runs(np.array([to_us(t) for t in times], dtype=np.int64), timeframe(name))
        covered = [t for t in bars[:31] if any(from_us(a) <= t < from_us(b) for a, b in found)]
        assert covered == times
        assert all(first[1] < second[0] for first, second in zip(found, found[1:], strict=False))


def test_a_conflict_is_a_value() -> None:
    assert Conflict(1, 2, "t", "v") == Conflict(1, 2, "t", "v")
