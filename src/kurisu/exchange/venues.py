"""What is known about venues, where CCXT's own description is missing or wrong.

Each value was read in CCXT 4.5.90, in the venue's documentation, or reported by users; what is
not here is treated with suspicion (see `candles` and `trades`): paging then costs a few requests
more, and never loses rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from kurisu.domain.trade import IdSpace

#: Rows that any venue gives; used where neither this table nor CCXT knows.
CAUTIOUS_LIMIT: Final = 100
HOUR_MS: Final = 3_600_000


class TradePaging(StrEnum):
    """How the history of public trades is walked."""

    ID = "id"  # from an id on
    CURSOR = "cursor"  # after a cursor that each answer gives
    TIME = "time"  # from a time on, inclusive, oldest first; repetitions are dropped by id
    BACK = "back"  # from a time or an id back
    WINDOW = "window"  # within a window, which is halved until what lies in it fits in an answer
    NONE = "none"  # there is no history, only the newest trades
    NOTHING = "nothing"  # not even those


@dataclass(frozen=True, slots=True)
class Venue:
    """Facts about one exchange.

    candle_limit: candles a request gives at most; None to go by CCXT's features.
    candle_window_ms: longest window of one request for candles, where the venue refuses a longer
        one; None for any.
    candle_limits: the numbers of candles that may be asked for; None for any up to the limit.
    candle_order: name and value of the parameter that asks for the oldest candles from a time on
        first, if CCXT does not send it.
    candle_until: name of the parameter that says where a window of candles ends, and the
        milliseconds of its unit, if CCXT does not send it.
    candles_latest_only: `since` is not honoured beyond the newest `candle_limit` candles.
    candles_oldest_first: a page surely starts with the oldest candle from `since` on, so that a
        hole in front of its first row needs no second look.
    candles_kept: candles of any timeframe that can be asked for, the newest, by its documents; None
        for all. Asked for older ones the venue refuses.
    contract_limit_alone: a limit makes the venue ignore `since` for contracts.
    trade_paging, trade_limit: see TradePaging.
    trade_back_limit: rows of an answer that goes back. spot_trade_limit: where that is another.
    trade_since_s: name of the parameter where a window of spot trades begins, in seconds, if CCXT
        does not send it.
    trade_order: name and value of the parameter that asks for the oldest trades from a time on
        first, if CCXT does not send it.
    trade_window_ms: longest window of one request by time; None for any.
    trade_time_unit_ms: what the ends of a window of trades are cut to: 1 for milliseconds, 1000 for
        seconds; None if nobody knows.
    trades_open_ended: a request by time surely goes on to the newest trade, so that an answer
        without rows is the end or a fault, and never a quiet hour.
    trade_id_space: what the default endpoint gives.
    trade_ids_gapless: consecutive ids, so that a jump means lost rows.
    trade_ids_dense: nearly consecutive ids: where a stream jumps REST is asked what was there.
    trade_parts: the field of a stream's trade that says how many trades of REST it is; None where
        it is one.
    stream_markets: markets of one WebSocket connection, where the venue allows few; None where
        the address alone decides.
    stream_heartbeats: a channel beside the others that keeps a connection open on which nobody
        trades, and says something every second.
    stream_silence_s: a connection that has heartbeats says something sooner than this, if it is
        alive.
    weight_limit: request weight per minute; None where the venue counts requests and CCXT's
        throttle is enough.
    """

    candle_limit: int | None = None
    candle_window_ms: int | None = None
    candle_limits: tuple[int, ...] | None = None
    candle_order: tuple[str, str] | None = None
    candle_until: tuple[str, int] | None = None
    candles_latest_only: bool = False
    candles_oldest_first: bool = False
    candles_kept: int | None = None
    contract_limit_alone: bool = False
    trade_paging: TradePaging = TradePaging.WINDOW
    trade_limit: int = CAUTIOUS_LIMIT
    trade_back_limit: int = CAUTIOUS_LIMIT
    spot_trade_limit: int | None = None
    trade_since_s: str | None = None
    trade_order: tuple[str, str] | None = None
    trade_window_ms: int | None = None
    trade_time_unit_ms: int | None = None
    trades_open_ended: bool = False
    trade_id_space: IdSpace = IdSpace.RAW
    trade_ids_gapless: bool = False
    trade_ids_dense: bool = False
    trade_parts: str | None = None
    stream_markets: int | None = None
    stream_heartbeats: str | None = None
    stream_silence_s: float | None = None
    weight_limit: int | None = None

    def most_candles(self, length_ms: int) -> int:
        """Candles of that length that one request gives at most."""
        most = self.candle_limit or CAUTIOUS_LIMIT
        if self.candle_window_ms is None:
            return most
        return max(1, min(most, self.candle_window_ms // length_ms))


_BINANCE: Final = Venue(
    candle_limit=1_000,
    # Of coin-margined contracts: "The difference between startTime and endTime can only be up to
    # 200 days". CCXT sends both.
    candle_window_ms=200 * 24 * HOUR_MS,
    candles_oldest_first=True,
    # fetch_trades asks for aggTrades, whose ids are a space of their own.
    trade_paging=TradePaging.ID,
    trade_limit=1_000,
    trade_window_ms=HOUR_MS,
    trade_id_space=IdSpace.AGGREGATE,
    trade_ids_gapless=True,
    weight_limit=6_000,
)

#: Aggregate trades as well; that their ids have no gaps is not documented.
_BINANCE_FUTURES: Final = replace(
    _BINANCE, weight_limit=2_400, trade_ids_gapless=False, trade_ids_dense=True
)

#: CCXT sends no order and no end that the venue knows, and gets the newest. Whether the venue keeps
#: to the order is seen from its answers: windows believe nothing.
_HITBTC: Final = Venue(
    candle_order=("sort", "ASC"),
    candle_until=("till", 1),
    trade_limit=1_000,
    trade_order=("sort", "ASC"),
)

VENUES: Final[dict[str, Venue]] = {
    "binance": _BINANCE,
    "binanceus": replace(_BINANCE, candle_window_ms=None),
    "binanceusdm": replace(_BINANCE_FUTURES, candle_window_ms=None),
    "binancecoinm": _BINANCE_FUTURES,
    "bitfinex": Venue(
        candle_limit=10_000,
        candles_oldest_first=True,
        trade_paging=TradePaging.TIME,
        trade_limit=10_000,
        trades_open_ended=True,
        # "25 channels at the same time on the same connection"
        stream_markets=25,
        # A heartbeat of each channel every 15 seconds.
        stream_silence_s=35.0,
    ),
    "kraken": Venue(
        candle_limit=720,
        candles_latest_only=True,
        candles_oldest_first=True,
        trade_paging=TradePaging.CURSOR,
        trade_limit=1_000,
        # "The trade identifier is a sequence number, unique per book."
        trade_ids_dense=True,
        # A heartbeat about every second, if nothing else is sent.
        stream_silence_s=10.0,
    ),
    "bybit": Venue(
        candle_limit=1_000,
        trade_paging=TradePaging.NONE,
        trade_limit=1_000,
        spot_trade_limit=60,
        # Of spot; CCXT asks for all markets of a connection in one request.
        stream_markets=10,
    ),
    "okx": Venue(
        candle_limit=300,
        trade_paging=TradePaging.BACK,
        trade_limit=500,
        # The channel trades has one message for all that an order of a taker filled at a price,
        # with the id of the last of them and the sum of their amounts.
        trade_parts="count",
    ),
    # CCXT: with a size the venue ignores from and to of contracts.
    "htx": Venue(contract_limit_alone=True, trade_paging=TradePaging.NONE, trade_limit=2_000),
    "gate": Venue(
        candle_limit=1_000,
        # "Candlestick too long ago. Maximum 10000 points ago are allowed."
        candles_kept=10_000,
        trade_limit=1_000,
        # CCXT leaves it out for spot.
        trade_since_s="from",
        trade_time_unit_ms=1_000,
    ),
    # Documented: only the most recent 5,000 candles are available.
    "hyperliquid": Venue(
        candle_limit=5_000,
        candles_latest_only=True,
        candles_oldest_first=True,
        # CCXT's fetch_trades gives the fills of one's own wallet.
        trade_paging=TradePaging.NOTHING,
    ),
    # CCXT's features say 1440; of coin-margined contracts it asks for 1000.
    "bingx": Venue(candle_limit=1_000, trade_paging=TradePaging.NONE),
    # CCXT's features say 1000, and it asks for 100.
    "bullish": Venue(candle_limit=100),
    # Windows of trades begin and end with whole seconds.
    "coinbase": Venue(
        candle_limit=300,
        trade_limit=1_000,
        trade_time_unit_ms=1_000,
        trade_ids_dense=True,
        # "Most channels close within 60-90 seconds if no updates are sent."
        stream_heartbeats="heartbeats",
        stream_silence_s=10.0,
    ),
    # fetch_trades of CCXT gives the newest hundred, whatever it is asked for, and without the ids
    # that the stream has.
    "kucoin": Venue(
        candle_limit=1_500,
        trade_paging=TradePaging.NONE,
        trade_id_space=IdSpace.DERIVED,
    ),
    "bitget": Venue(
        candle_limit=200,
        # Of contracts; CCXT asks for no more, whatever the limit is.
        candle_window_ms=90 * 24 * HOUR_MS,
        trade_limit=1_000,
        # "startTime and endTime must be within 7 days"; data of 90 days.
        trade_window_ms=7 * 24 * HOUR_MS,
        trade_time_unit_ms=1,
    ),
    # CCXT: "maximum date range is one day".
    "cryptocom": Venue(trade_window_ms=24 * HOUR_MS),
    "hitbtc": _HITBTC,
    "bequant": _HITBTC,
    "fmfwio": _HITBTC,
    # Its documents do not say which candles of a window that is too long it gives.
    "whitebit": Venue(candle_until=("end", 1_000)),
    # Any other limit: "Please double check input arguments".
    "phemex": Venue(candle_limits=(5, 10, 50, 100, 500, 1_000)),
    "deribit": Venue(trade_limit=1_000, trade_time_unit_ms=1),
    # CCXT's features say 1000; the venue gives 500.
    "mexc": Venue(
        candle_limit=500,
        trade_limit=1_000,
        trade_time_unit_ms=1,
        # Its trades have no ids, on the stream neither. (CCXT makes one of time, side, price and
        # amount, the same for trades that are alike; see `exact`.)
        trade_id_space=IdSpace.DERIVED,
        stream_markets=30,
    ),
}


def venue_of(exchange_id: str) -> Venue:
    """What is known about the CCXT exchange of that id."""
    return VENUES.get(exchange_id, Venue())
