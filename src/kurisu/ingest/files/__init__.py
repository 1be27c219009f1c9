"""In: a file of candles or trades of any known format. Out: exact rows, and the rejects.

The format is found by content, never by the name's ending. Nothing is judged here that needs a
market, a timeframe or a clock: order of prices, alignment, closedness and duplicates are the
store's business.
"""

from kurisu.ingest.files.read import CandleRows, read_candles
from kurisu.ingest.files.trade_read import TradeFile, read_trades

__all__ = ["CandleRows", "TradeFile", "read_candles", "read_trades"]
