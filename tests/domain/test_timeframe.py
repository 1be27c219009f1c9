"""Timeframes against a model on datetime: `bars.opening` and `bars.closing`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from bars import LENGTHS, NAMES, closing, opening
from hypothesis import given
from hypothesis import strategies as st

from kurisu.domain.timeframe import BASE, DERIVED_ON_READ, ROLLUPS, TIMEFRAMES, timeframe
from kurisu.errors import InvalidArgument

names = st.sampled_from(NAMES)
times = st.datetimes(
    min_value=datetime(1970, 1, 10), max_value=datetime(2100, 1, 1), timezones=st.just(UTC)
)


def test_every_timeframe_of_the_model_is_known() -> None:
    assert tuple(TIMEFRAMES) == NAMES


def test_they_are_ordered_by_length() -> None:
    seconds = [frame.seconds for frame in TIMEFRAMES.values()]
    assert seconds == sorted(seconds)


@given(name=names, at=times)
def test_a_bar_opens_where_the_calendar_says(name: str, at: datetime) -> None:
    assert timeframe(name).open_time(at) == opening(at, name)


@given(name=names, at=times)
def test_a_bar_closes_where_the_next_one_opens(name: str, at: datetime) -> None:
    frame = timeframe(name)
    opened = opening(at, name)
    assert frame.close_time(opened) == closing(opened, name)
    assert frame.open_time(frame.close_time(opened)) == frame.close_time(opened)


@given(name=names, at=times)
def test_a_time_lies_in_its_bar(name: str, at: datetime) -> None:
    frame = timeframe(name)
    assert frame.open_time(at) <= at < frame.close_time(frame.open_time(at))


@given(name=names, at=times)
def test_ceil_is_the_first_open_time_that_is_not_earlier(name: str, at: datetime) -> None:
    opened = opening(at, name)
    assert timeframe(name).ceil(at) == (at if opened == at else closing(opened, name))


@given(name=names, at=times)
def test_only_open_times_are_aligned(name: str, at: datetime) -> None:
    assert timeframe(name).is_aligned(at) == (opening(at, name) == at)
    assert timeframe(name).is_aligned(opening(at, name))


@given(name=names, at=times, hours=st.integers(-12, 14))
def test_the_zone_that_a_time_is_given_in_does_not_matter(
    name: str, at: datetime, hours: int
) -> None:
    elsewhere = at.astimezone(timezone(timedelta(hours=hours)))
    assert timeframe(name).open_time(elsewhere) == opening(at, name)
    assert timeframe(name).ceil(elsewhere) == timeframe(name).ceil(at)


@given(small=names, large=names, at=times)
def test_one_divides_another_if_its_bars_never_straddle_the_others(
    small: str, large: str, at: datetime
) -> None:
    if timeframe(small).divides(timeframe(large)):
        inside = opening(at, small)
        assert opening(inside, large) <= inside
        assert closing(inside, small) <= closing(opening(at, large), large)


@pytest.mark.parametrize(
    ("small", "large"),
    [("1m", "1M"), ("1d", "1w"), ("1d", "1M"), ("8h", "1d"), ("12h", "3d"), ("5m", "15m")],
)
def test_it_divides(small: str, large: str) -> None:
    assert timeframe(small).divides(timeframe(large))


@pytest.mark.parametrize(
    ("small", "large"),
    [("3d", "1w"), ("3d", "1M"), ("1w", "1M"), ("1M", "1w"), ("3m", "5m"), ("1h", "5m")],
)
def test_it_does_not_divide(small: str, large: str) -> None:
    assert not timeframe(small).divides(timeframe(large))


def test_each_rollup_is_made_of_the_one_below() -> None:
    below = BASE
    for frame in ROLLUPS:
        assert below.divides(frame)
        below = frame
    for frame in DERIVED_ON_READ:
        assert below.divides(frame)


@pytest.mark.parametrize("name", LENGTHS)
def test_a_length_is_the_time_from_open_to_close(name: str) -> None:
    assert timeframe(name).length == LENGTHS[name]


def test_a_month_has_no_length() -> None:
    with pytest.raises(InvalidArgument, match="1M has no fixed length"):
        _ = timeframe("1M").length


@pytest.mark.parametrize("unknown", ["1 m", "1H", "2m", "", "60"])
def test_an_unknown_name_is_refused_with_the_known_ones(unknown: str) -> None:
    with pytest.raises(InvalidArgument, match="known are 1m, 3m, 5m"):
        timeframe(unknown)


def test_minutes_and_months_are_told_apart() -> None:
    assert timeframe("1m").seconds == 60
    assert timeframe("1M").is_calendar


def test_a_timeframe_is_taken_as_it_is() -> None:
    assert timeframe(BASE) is BASE
    assert str(BASE) == "1m"
