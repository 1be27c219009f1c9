"""Charts in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from kurisu.domain.candle import Candle
from kurisu.errors import InvalidArgument
from kurisu.report.terminal import Style, chart

ASCII = Style(unicode=False, colour=False)


def candle(hour: int, *prices: str) -> Candle:
    opened, high, low, close = map(Decimal, prices)
    time = datetime(2024, 10, 27, tzinfo=UTC) + timedelta(hours=hour)
    return Candle(time, opened, high, low, close, Decimal(1))


RISING = candle(0, "0.00000002", "0.00000005", "0.00000001", "0.00000004")
FALLING = candle(1, "0.00000004", "0.00000004", "0.00000001", "0.00000002")


def test_ascii() -> None:
    drawn = chart([RISING, FALLING], width=60, height=5, style=ASCII)
    assert drawn.splitlines() == [
        "0.00000005 |",
        "           o  #",
        "           o  #",
        "0.00000002 o  #",
        "0.00000001 |  |",
        "           2024-10-27 00:00 to 2024-10-27 01:00",
        "           2 candles, UTC; o rose, # fell",
    ]


def test_unicode_tells_rising_from_falling_without_colour() -> None:
    drawn = chart([RISING, FALLING], width=60, height=5, style=Style(colour=False))
    assert "┃" in drawn
    assert "█" in drawn
    assert "\x1b" not in drawn


def test_colour() -> None:
    drawn = chart([RISING, FALLING], width=60, height=5)
    assert "\x1b[32m" in drawn
    assert "\x1b[31m" in drawn
    assert drawn.count("\x1b[0m") == drawn.count("\x1b[3")


def test_the_newest_candles_are_drawn_where_not_all_fit() -> None:
    candles = [candle(hour, "5", "9", "1", "6") for hour in range(500)]
    drawn = chart(candles, width=40, style=ASCII)
    assert max(map(len, drawn.splitlines()[:-1])) <= 40
    assert "37 candles" in drawn
    assert "2024-11-16 19:00" in drawn


@pytest.mark.parametrize("height", [3, 16])
def test_a_flat_market_is_a_line(height: int) -> None:
    drawn = chart([candle(0, "7", "7", "7", "7")], width=30, height=height, style=ASCII)
    assert sum(line.count("o") for line in drawn.splitlines()[:height]) == 1
    assert "7" in drawn


def test_prices_of_any_size_are_exact_on_the_axis() -> None:
    high = "99999999999999999999.999999999999999999"
    drawn = chart([candle(0, "1", high, "0.000000000000000001", "2")], width=70, style=ASCII)
    assert high in drawn
    assert "0.000000000000000001" in drawn


def test_without_candles_or_room_it_says_so() -> None:
    with pytest.raises(InvalidArgument, match="no candles"):
        chart([])
    with pytest.raises(InvalidArgument, match="does not fit"):
        chart([RISING], width=8)
