"""A day of real candles, for `kurisu demo` and for trying things out.

`binance_PEPE_USDT-1m-2024-10-27.csv` holds the 1,440 1m candles of PEPE/USDT on Binance (spot) of
2024-10-27, UTC: time (open time), open, high, low, close (USDT per PEPE), volume (PEPE). They were
aggregated from Binance's public file of that day's aggregate trades,
`PEPEUSDT-aggTrades-2024-10-27.zip` of data.binance.vision, by `scripts/make_sample.py` in decimal
arithmetic, and are spelled as `kurisu candles export` spells them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

CANDLES: Final = "binance_PEPE_USDT-1m-2024-10-27.csv"


def candle_file() -> AbstractContextManager[Path]:
    """The file of candles, as a path that exists inside the `with` block."""
    return as_file(files(__name__) / CANDLES)
