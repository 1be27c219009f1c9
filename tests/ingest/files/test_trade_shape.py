"""Which column of a file of trades is which."""

from __future__ import annotations

import pytest

from kurisu.domain.faults import Rule
from kurisu.ingest.files.detect import CannotRead
from kurisu.ingest.files.trade_shape import from_names, from_option, guess
from kurisu.ingest.files.trade_times import read_trade_time


@pytest.mark.parametrize(
    ("names", "time", "price", "amount", "trade_id", "side", "maker"),
    [
        ("timestamp,symbol,side,size,price,tickDirection,trdMatchID", 0, 4, 3, 6, 2, None),
        ("trade_id,side,size,price,time", 4, 3, 2, 0, 1, None),
        ("exchange,symbol,timestamp,local_timestamp,id,side,price,amount", 2, 6, 7, 4, 5, None),
        ("e,E,s,t,p,q,T,m,M", 6, 4, 5, 3, None, 7),
        ("instrument_name,trade_id,side,price,size,created_time", 5, 3, 4, 1, 2, None),
        ("date,type,price,amount", 0, 2, 3, None, 1, None),
    ],
)
def test_names(
    names: str, time: int, price: int, amount: int,
    trade_id: int | None, side: int | None, maker: int | None,
) -> None:  # fmt: skip
    cells = names.split(",")
    layout = from_names(cells, ["buy" for _ in cells])
    expected = {"time": time, "trade_id": trade_id, "side": side, "maker": maker, "price": price,
                "amount": amount}  # fmt: skip
    assert layout.fields == {k: v for k, v in expected.items() if v is not None}


def test_names_that_are_not_enough() -> None:
    with pytest.raises(CannotRead, match=r"no column for amount .*--columns ts,id,side"):
        from_names(["time", "price", "x"])


def test_columns_of_the_user() -> None:
    assert from_option(["ts", "_", "is_buyer_maker", "price", "qty"], 5).fields == {
        "time": 0, "maker": 2, "price": 3, "amount": 4,
    }  # fmt: skip
    for given, message in (
        (["ts", "price"], "misses amount"),
        (["ts", "price", "qty", "amount"], "more than one amount"),
        (["ts", "price", "qty", "open"], "'open' is unknown"),
        (["ts", "price", "qty"], "names 3 columns, but the file has 4"),
    ):
        with pytest.raises(CannotRead, match=message):
            from_option(given, 4)


def test_rows_without_names() -> None:
    spot = ["1", "0.1", "2", "0.2", "1729987202368", "True", "True"]
    futures = ["1", "0.1", "2", "5", "6", "1729987202368", "true"]
    freqtrade = ["1652400106575", None, "market", "sell", "0.38", "9.9", "3.8"]
    for row, label in (
        (spot, "Binance trades"), (futures, "Binance aggTrades"), (freqtrade, "freqtrade"),
        (["1652400106.5751", "0.38", "9.9"], "Kraken"),
    ):  # fmt: skip
        layout = guess([row], len(row))
        assert layout is not None
        assert layout.label == label
    assert guess([["1", "2", "3", "4", "5", "6", "7"]], 7) is None
    assert guess([], 3) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1652400106.5759", 1_652_400_106_575_000),
        ("1652400106575.9", 1_652_400_106_575_000),
        ("1652400106575999", 1_652_400_106_575_000),
        ("1652400106575999999", 1_652_400_106_575_000),
        ("2022-05-13T00:01:46.5759999Z", 1_652_400_106_575_000),
        ("2022-05-13 02:01:46.5759999+02:00", 1_652_400_106_575_000),
        ("99999999.5", Rule.TIME_NOT_READABLE),
        ("x", Rule.TIME_NOT_READABLE),
        (None, Rule.MISSING_VALUE),
    ],
)
def test_times(text: str | None, expected: int | Rule) -> None:
    assert read_trade_time(text) == expected
