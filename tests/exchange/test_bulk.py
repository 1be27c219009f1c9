"""Pages by column are what CCXT makes of them row by row."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import ccxt.async_support as ccxt
import pytest

from kurisu.errors import BadAnswer
from kurisu.exchange.bulk import FEWEST_ROWS, pick
from kurisu.exchange.exact import exact_class
from kurisu.exchange.port import CandleRow

TIME = 1_635_811_200_000

#: One row of each venue, as it sends it: {} is the number of the row.
ROWS: dict[str, Sequence[Any]] = {
    "binance": [TIME, "0.1{}", "0.3{}", "0.0{}", "0.2{}", "5{}.123456789012345678", TIME + 59_999,
                "1", 7, "2", "3", "0"],
    "bitfinex": [TIME, "1.1{}", "1.2{}", "1.4{}", 1, "2E-7"],
    "kraken": [TIME // 1000, "1.1{}", "1.4{}", "1.0{}", "1.2{}", "1.15", "9{}.5", 12],
    "okx": [str(TIME), "1.1{}", "1.4{}", "1.0{}", "1.2{}", "9{}", "8", "7", "1"],
    "bybit": [str(TIME), "1.1{}", "1.4{}", "1.0{}", "1.2{}", "9{}", "8"],
    "kucoin": [str(TIME // 1000), "1.1{}", "1.2{}", "1.4{}", "1.0{}", "9{}", "8"],
    "gate": [str(TIME // 1000), "80{}", "1.2{}", "1.4{}", "1.0{}", "1.1{}", "9{}", "true"],
    "coinbaseexchange": [TIME // 1000, "1.1{}", "1.4{}", "1.0{}", "1.2{}", "9{}"],
    "mexc": [TIME, "1.1{}", "1.4{}", "1.0{}", "1.2{}", "9{}", TIME + 59_999, "8"],
}  # fmt: skip


def page(venue: str, count: int, step_ms: int = 60_000) -> list[list[Any]]:
    """Rows of that venue, newest first as some send them."""
    made = []
    for number in range(count):
        row: list[Any] = []
        for place, value in enumerate(ROWS[venue]):
            if place == 0:
                unit = 1 if int(value) > 10**11 else 1000
                time = int(value) + number * step_ms // unit
                row.append(str(time) if isinstance(value, str) else time)
            else:
                row.append(value.format(number) if isinstance(value, str) else value)
        made.append(row)
    return made[::-1]


@pytest.mark.parametrize("venue", sorted(ROWS))
async def test_every_digit_and_every_place(venue: str) -> None:
    client = exact_class(getattr(ccxt, venue))({"number": str})
    try:
        rows = page(venue, 50)
        market: dict[str, Any] = {"spot": True, "type": "spot", "inverse": False}
        quick = client.parse_ohlcvs(rows, market, "1m")
        with patch("kurisu.exchange.exact.pick", lambda *_: None):
            slow = client.parse_ohlcvs(rows, market, "1m")
        assert [tuple(row) for row in slow] == quick
        assert all(type(row) is CandleRow for row in quick)
        assert [row[0] for row in quick] == sorted(row[0] for row in quick)
        late = client.parse_ohlcvs(rows, market, "1m", quick[20].time_ms)
        assert late == quick[20:]
    finally:
        await client.close()
        await asyncio.sleep(0)


def positions(row: Any) -> list[Any]:
    """What most of CCXT's parsers do."""
    return [int(row[0]), *map(str, row[1:6])]


@pytest.mark.parametrize(
    "rows",
    [
        page("okx", FEWEST_ROWS - 1),
        {"not": "a list"},
        [{"t": 1}] * 20,
        [*page("okx", 20), ["1", "2"]],
        [*page("okx", 20), [None] * 9],
        [*page("okx", 20), ["", "1", "1", "1", "1", "1", "1", "1", "1"]],
        [*page("okx", 20), [str(TIME), "", "1", "1", "1", "1", "1", "1", "1"]],
        [*page("okx", 20), [str(TIME), True, "1", "1", "1", "1", "1", "1", "1"]],
    ],
    ids=["few", "object", "objects", "ragged", "none", "time", "empty", "flag"],
)
def test_what_is_not_just_picked_is_left_to_ccxt(rows: Any) -> None:
    assert pick(rows, positions) is None


@pytest.mark.parametrize(
    "parse",
    [
        lambda row: [int(row[0]), *row[1:5], str(float(row[5]) * 2)],
        lambda row: [int(row[0]) + 1, *row[1:6]],
        lambda row: positions(row) if int(row[5]) > 10**9 else [*positions(row)[:5], "changed"],
        lambda row: None,
        lambda row: row["t"],
    ],
    ids=["computed", "shifted", "by value", "nothing", "object"],
)
def test_a_parser_that_does_more_than_pick_is_not_second_guessed(parse: Any) -> None:
    assert pick(page("bybit", 20), parse) is None


def test_a_row_without_a_time_is_a_broken_answer_all_the_same() -> None:
    client: Any = exact_class(ccxt.okx)({"number": str})
    rows = [*page("okx", 20), [None, "1", "1", "1", "1", "1", "1", "1", "1"]]
    with pytest.raises(Exception, match="without a time") as caught:
        client.parse_ohlcvs(rows, None, "1m")
    assert not isinstance(caught.value, BadAnswer)  # that is made of it at the boundary
