"""The sample that ships is what its script makes of Binance's file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kurisu.sample import candle_file

ROOT = Path(__file__).resolve().parents[1]
TRADES = (
    ROOT.parent / "shared" / "data" / "trades"
    / "binance_spot_PEPEUSDT-aggTrades-2024-10-27.zip"
)  # fmt: skip


def test_it_has_every_minute_of_its_day() -> None:
    with candle_file() as path:
        lines = path.read_text().splitlines()
    assert len(lines) == 1 + 24 * 60
    assert lines[0] == "time,open,high,low,close,volume"
    assert lines[1].startswith("2024-10-27T00:00:00Z,0.00000908,")
    assert lines[-1].startswith("2024-10-27T23:59:00Z,")


@pytest.mark.skipif(
    not TRADES.exists(), reason=f"the trades it is made from are not here ({TRADES.name})"
)
def test_the_script_makes_it_from_the_trades(tmp_path: Path) -> None:
    made = tmp_path / "made.csv"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_sample.py", TRADES, made], check=True)
    with candle_file() as path:
        assert made.read_bytes() == path.read_bytes()
