"""Kurisu: exact market data and an exact trading ledger on PostgreSQL and TimescaleDB.

import kurisu

async with kurisu.open() as store:
    market = await store.markets.get("binance", "BTC/USDT")
    candles = await store.candles.read(market, "1h")
    frame = candles.to_polars()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kurisu.api import open  # noqa: A004
    from kurisu.domain.candle import Candle
    from kurisu.errors import KurisuError

__version__ = "0.1.0"
__all__ = ["Candle", "KurisuError", "open"]

_WHERE = {
    "open": "kurisu.api",
    "Candle": "kurisu.domain.candle",
    "KurisuError": "kurisu.errors",
}


def __getattr__(name: str) -> Any:
    # Loaded when used: `kurisu --help` must not wait for pyarrow and SQLAlchemy.
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'kurisu' has no attribute {name!r}")
