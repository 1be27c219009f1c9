"""What to stream, and within which bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

#: Rows that are buffered at most while the database is away; a trade takes about half a kilobyte.
BUFFER_ROWS: Final = 500_000
#: What was missed longer ago than this is left to a backfill.
MAX_GAP: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """Which markets of an exchange. symbols: unified, e.g. "BTC/USDT"."""

    exchange: str
    symbols: Sequence[str]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What to stream, and within which bounds.

    trades, candles: at least one of them. timeframe: of the candles.
    required: False to leave out what an exchange does not stream, with a word.
    buffer_rows: kept in memory at most while the database is away.
    max_gap: what was missed longer ago than this is not asked for.
    status_s: seconds between two status events; 0 for none.
    """

    trades: bool = True
    candles: bool = True
    timeframe: str = "1m"
    required: bool = True
    buffer_rows: int = BUFFER_ROWS
    max_gap: timedelta = MAX_GAP
    status_s: float = 10.0
