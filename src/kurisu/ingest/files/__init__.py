"""In: a candle file of any known format. Out: exact candles with row numbers, and the rejects.

The format is found by content, never by the name's ending. Nothing is judged here that needs a
market, a timeframe or a clock: order of prices, alignment, closedness and duplicates are the
store's business.
"""

from kurisu.ingest.files.read import CandleRows, read_candles

__all__ = ["CandleRows", "read_candles"]
