"""What ingest needs of an exchange. `CcxtExchange` is one; tests have one in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, NamedTuple, Protocol, TypeVar

from kurisu.domain.money import parse_decimal
from kurisu.exchange.markets import MarketListing
from kurisu.exchange.venues import Venue


class CandleRow(NamedTuple):
    """One candle as the exchange sent it, open or closed.

    time_ms: open time. The numbers are the exchange's own digits, as text; None where it sent
    none (the writer lists such a row as rejected).
    """

    time_ms: int
    open: str | None
    high: str | None
    low: str | None
    close: str | None
    volume: str | None

    @property
    def is_traded(self) -> bool:
        """Some venues give candles of times without trades as well: their volume is 0."""
        return parse_decimal(self.volume or "0") != 0


class TradeRow(NamedTuple):
    """One public trade as the exchange sent it.

    time_ms: cut to milliseconds, exactly. trade_id: the exchange's; None where it gives none.
    side: the taker's, buy or sell; None where it is not said. price, amount: the exchange's own
    digits. cost: CCXT's cost for contracts, whose size it knows; None on spot, where it is
    price x amount. parts: how many trades of REST a stream shows as this one.
    """

    time_ms: int
    trade_id: str | None
    side: str | None
    price: str
    amount: str
    cost: str | None = None
    parts: int = 1


class CandleUpdate(NamedTuple):
    """A candle as a stream shows it: again and again while it is open.

    closed: True if the exchange says that it has closed; False if it says that it has not; None
    if it says neither.
    """

    row: CandleRow
    closed: bool | None = None


Row_co = TypeVar("Row_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Batch(Generic[Row_co]):
    """What came over a connection at about the same time.

    rows: (symbol, row) in the order of their arrival; perhaps none. received_s: when the oldest
    of them came, by time.monotonic().
    """

    rows: Sequence[tuple[str, Row_co]]
    received_s: float


class TradeAnswer(NamedTuple):
    """What one request for trades gave. cursor: where the next one goes on, for cursor paging."""

    rows: list[TradeRow]
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class TradeQuery:
    """Which trades: from an id, after a cursor, in a window of time, the newest before an id or a
    time, or (nothing set) the newest.

    since_ms, until_ms: inclusive; before_id, before_ms: exclusive. limit: rows at most; None for
    the venue's own.
    """

    from_id: int | None = None
    cursor: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    before_id: int | None = None
    before_ms: int | None = None
    limit: int | None = None


class Exchange(Protocol):
    """One exchange. Every method raises ExchangeError or one of its kinds, after its retries."""

    @property
    def name(self) -> str:
        """The exchange's part of a market's name, e.g. "binance"."""

    @property
    def venue(self) -> Venue:
        """What is known about its paging and limits."""

    @property
    def timeframes(self) -> frozenset[str]:
        """Names of the timeframes that it serves itself."""

    async def load_markets(self, *, reload: bool = False) -> list[MarketListing]:
        """Every market it lists, by symbol."""

    async def now(self) -> datetime:
        """The exchange's own time; never later than it really is there."""

    async def fetch_candles(
        self,
        symbol: str,
        timeframe: str,
        since_ms: int,
        limit: int,
        until_ms: int | None = None,
    ) -> list[CandleRow]:
        """One request: candles that open at `since_ms` or later, by time, perhaps repeated.

        until_ms: none that opens later is wanted, for venues that answer with the newest.
        """

    async def fetch_trades(self, symbol: str, query: TradeQuery) -> TradeAnswer:
        """One request: trades, in no promised order."""

    async def close(self) -> None:
        """Let go of connections."""


class StreamingExchange(Exchange, Protocol):
    """An exchange that can be listened to, too."""

    @property
    def streams_trades(self) -> bool: ...

    @property
    def streams_candles(self) -> bool: ...

    def watch_trades(self, symbols: Sequence[str]) -> AsyncGenerator[Batch[TradeRow]]:
        """Every trade of the markets from now on, over one connection, until it is lost.

        The first batch, perhaps an empty one, says that the connection stands; that a market is
        subscribed to is only sure once it has brought a row. Ends with ExchangeError, never
        otherwise: what was missed until the next call is for the caller to fill. Ids are of the
        space that `fetch_trades` has. Raises BadSymbol, NotOffered.
        """

    def watch_candles(
        self, symbols: Sequence[str], timeframe: str
    ) -> AsyncGenerator[Batch[CandleUpdate]]:
        """The same for candles, open and closed."""

    async def disconnect(self) -> None:
        """Close every connection that is listened to: their iterators end."""
