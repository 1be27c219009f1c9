from __future__ import annotations

from pathlib import Path

import pytest

from kurisu.ingest import files
from kurisu.ingest.files.columns import Layout, from_names, from_option, without_names
from kurisu.ingest.files.detect import CannotRead


def mapped(layout: Layout) -> list[str]:
    return [layout.sources[name] for name in ("time", "open", "high", "low", "close", "volume")]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("date,open,high,low,close,volume", "date,open,high,low,close,volume"),
        ("time,open,high,low,close,volume,bars", "time,open,high,low,close,volume"),
        ("Date,Open,High,Low,Close,Volume", "Date,Open,High,Low,Close,Volume"),
        ("TIMESTAMP,OPEN,HIGH,LOW,CLOSE,VOLUME", "TIMESTAMP,OPEN,HIGH,LOW,CLOSE,VOLUME"),
        ("volume,close,low,high,open,ts", "ts,open,high,low,close,volume"),
        (
            "open_time,open,high,low,close,volume,close_time,quote_volume,count,"
            "taker_buy_volume,taker_buy_quote_volume,ignore",
            "open_time,open,high,low,close,volume",
        ),
        (
            "Open time,Open,High,Low,Close,Volume,Close time,Quote asset volume,Number of trades",
            "Open time,Open,High,Low,Close,Volume",
        ),
        (
            "open,high,low,close,volume,__index_level_0__",
            "__index_level_0__,open,high,low,close,volume",
        ),
        (",open,high,low,close,volume", ",open,high,low,close,volume"),
        ("Unnamed: 0,timestamp,open,high,low,close,volume", "timestamp,open,high,low,close,volume"),
        ("t,o,h,l,c,v,n,vw", "t,o,h,l,c,v"),
        ("<DATE>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>", "<DATE>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>"),
        ("time,high,low,open,volumefrom,volumeto,close", "time,open,high,low,close,volumefrom"),
        (
            "time_period_start,time_period_end,time_open,time_close,price_open,price_high,"
            "price_low,price_close,volume_traded,trades_count",
            "time_open,price_open,price_high,price_low,price_close,volume_traded",
        ),
        (
            "timeOpen,timeClose,timeHigh,timeLow,name,open,high,low,close,volume,marketCap,timestamp",
            "timeOpen,open,high,low,close,volume",
        ),
        (
            "Timestamp,Open,High,Low,Close,Volume_(BTC),Volume_(Currency),Weighted_Price",
            "Timestamp,Open,High,Low,Close,Volume_(BTC)",
        ),
        (
            "unix,date,symbol,open,high,low,close,volume,quote_volume",
            "unix,open,high,low,close,volume",
        ),
    ],
)  # fmt: skip
def test_names_that_files_use(names: str, chosen: str) -> None:
    assert mapped(from_names(names.split(","))) == chosen.split(",")


@pytest.mark.parametrize(
    ("symbol", "volumes", "base"),
    [
        ("SHIB/USDT", ("Volume SHIB", "Volume USDT"), "Volume SHIB"),
        ("SHIBUSDT", ("Volume USDT", "Volume SHIB"), "Volume SHIB"),
        ("BTC-USD", ("Volume USD", "Volume BTC"), "Volume BTC"),
        ("usdt/usd", ("Volume USD", "Volume USDT"), "Volume USDT"),
        ("BTCSTUSDT", ("Volume BTCST", "Volume USDT"), "Volume BTCST"),
    ],
)
def test_base_volume_is_the_one_of_the_symbols_base(
    symbol: str, volumes: tuple[str, str], base: str
) -> None:
    names = ["unix", "date", "symbol", "open", "high", "low", "close", *volumes, "tradecount"]
    row = ["1600000000", "2020-09-13", symbol, *["1"] * 7]
    assert from_names(names, row).sources["volume"] == base


@pytest.mark.parametrize(
    ("names", "row", "says"),
    [
        ("time,open,high,low,close", "", "no column for volume"),
        ("price,amount", "", "no column for time, open, high, low, close"),
        ("open,high,low,close,volume", "", "no column for time"),
        ("close_time,open,high,low,close,volume", "", "no column for time"),
        ("time,Time,open,high,low,close,volume", "", "which column is the time"),
        ("time,open,high,low,close,Close,volume", "", "which column is the close"),
        ("time,open,high,low,close,volume,volume", "", "volume in base units"),
        ("time,open,high,low,close,volume,base_volume", "", "volume in base units"),
        ("time,open,high,low,close,vol,amount", "", "volume in base units"),
        ("time,open,high,low,close,Volume BTC,Volume USD", "", "volume in base units"),
        ("time,open,high,low,close,Volume USD", "", "volume in base units"),
        ("time,symbol,open,high,low,close,Volume USDT", "0,BTC/USDT,1,1,1,1,1", "volume in base"),
        ("time,open,high,low,close,quote_volume", "", "no column for volume"),
        ("date,time,open,high,low,close,volume", "2020-01-01,00:01,1,1,1,1,1", "time of day"),
    ],
)
def test_names_that_do_not_say_enough(names: str, row: str, says: str) -> None:
    with pytest.raises(CannotRead, match=says):
        from_names(names.split(","), row.split(",") if row else ())


def test_the_way_on_is_named() -> None:
    with pytest.raises(CannotRead, match="--columns ts,open,high,low,close,volume,_"):
        from_names(["time", "open", "high", "low", "close", "vol", "amount"])


@pytest.mark.parametrize("time", ["ts", "time", "date", "open_time", "TS"])
def test_option_names_columns_by_position(time: str) -> None:
    layout = from_option([time, "open", "close", "high", "low", "volume", "_", "-"], 8)
    assert dict(layout.fields) == {
        "time": 0, "open": 1, "high": 3, "low": 4, "close": 2, "volume": 5
    }  # fmt: skip
    assert layout.sources["close"] == "column 3"
    assert not layout.assumed


@pytest.mark.parametrize(
    ("option", "width", "says"),
    [
        ("ts,open,high,low,close,volume", 7, "names 6 columns, but the file has 7"),
        ("ts,open,high,low,close,volume,_", 6, "names 7 columns, but the file has 6"),
        ("ts,open,high,low,close", 5, "misses volume"),
        ("open,high,low,close,volume,_", 6, "misses ts"),
        ("ts,open,open,high,low,close,volume", 7, "more than one open"),
        ("ts,date,open,high,low,close,volume", 7, "more than one ts"),
        ("ts,open,high,low,last,volume", 6, "'last' is unknown"),
    ],
)
def test_options_that_do_not_fit(option: str, width: int, says: str) -> None:
    with pytest.raises(CannotRead, match=says):
        from_option(option.split(","), width)


def test_layouts_without_names() -> None:
    labels = {width: layout.label for width in range(20) if (layout := without_names(width))}
    assert labels == {6: "", 7: "Kraken", 12: "Binance klines"}


def test_this_module_knows_no_float() -> None:
    """Floats of a file go through text; nothing here calls float()."""
    for module in Path(str(files.__file__)).parent.glob("*.py"):
        assert "float(" not in module.read_text().replace("is_float(", "")
