"""The main job through the program, on every kind of database."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet
import pytest
from bars import aggregated
from cli.conftest import Program

from kurisu.domain.candle import Candle

MARKET = "binance:PEPE/USDT"

#: Where the database is says the test, or nothing.
pytestmark = pytest.mark.parametrize("environment", ["plain"], indirect=True)


@pytest.fixture
def program(environment: dict[str, str], tmp_path: Path, url: str) -> Program:
    return Program(tmp_path, {**environment, "KURISU_DATABASE_URL": url})


def recorded(sample: Path) -> list[Candle]:
    """The sample's candles, read by hand."""
    found = []
    for line in sample.read_text().splitlines()[1:]:
        time, *rest = line.split(",")
        opened, high, low, close, volume = map(Decimal, rest)
        found.append(Candle(datetime.fromisoformat(time), opened, high, low, close, volume))
    return found


def test_from_a_file_to_bars_and_back(program: Program, sample: Path, tmp_path: Path) -> None:
    minutes = recorded(sample)
    run = ("candles", "import", sample, "--market", MARKET, "--json")
    assert program(*run).json["inserted"] == len(minutes) == 1440
    assert program(*run).json["unchanged"] == 1440

    for name in ("5m", "1h", "1d", "1w"):
        shown = program("candles", "show", "--market", MARKET, "--timeframe", name, "--limit",
                        "2000", "--json").json["candles"]  # fmt: skip
        assert [
            (datetime.fromisoformat(bar["time"]), *(Decimal(bar[k]) for k in Candle._fields[1:6]),
             bar["bars"])
            for bar in shown
        ] == [tuple(bar) for bar in aggregated(minutes, name)], name  # fmt: skip

    assert program("candles", "gaps", "--market", MARKET, "--json").json["gaps"] == []
    assert program("candles", "verify", "--market", MARKET, "--json").json["different"] == 0
    (latest,) = program("candles", "latest", "--json").json["candles"]
    assert Decimal(latest["close"]) == minutes[-1].close

    program("candles", "export", "--market", MARKET, "--timeframe", "4h", "--output", "4h.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "4h.parquet")
    assert table.column("volume").to_pylist() == [b.volume for b in aggregated(minutes, "4h")]

    program("db", "maintain")
    assert program("candles", "import", sample, "--market", MARKET, "--json").json["inserted"] == 0
    status = program("db", "status", "--json").json
    (candles,) = [one for one in status["tables"] if one["name"] == "ohlcv"]
    assert candles["rows"] == 1440
    assert program("db", "upgrade", "--json").json == {"done": []}
