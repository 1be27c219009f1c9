"""The candle: one bar of one market and timeframe, and the rules it keeps."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import NamedTuple


class Candle(NamedTuple):
    """One closed bar.

    time: open time, aware UTC. Close time is `time` plus the timeframe.
    open, high, low, close: quote units per base unit (contract), exact.
    volume: traded volume in the market's volume unit (base units on spot), exact.
    bars: how many source candles are inside, for a bar that was derived; None for a stored one.
    """

    time: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    bars: int | None = None
