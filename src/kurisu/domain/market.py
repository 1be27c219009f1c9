"""Markets: how they are named and what their symbol says.

A market is named `exchange:symbol` with CCXT's unified symbol: `binance:BTC/USDT` (spot),
`bybit:BTC/USDT:USDT` (perpetual swap), `okx:BTC/USD:BTC-261225` (future),
`deribit:BTC/USD:BTC-261225-60000-C` (option).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from kurisu.errors import InvalidArgument

_EXCHANGE: Final = re.compile(r"[a-z0-9_]{1,50}")
_SYMBOL: Final = re.compile(
    r"(?P<base>[^\s/:]{1,20})/(?P<quote>[^\s/:-]{1,20})"
    r"(?::(?P<settle>[^\s/:-]{1,20})"
    r"(?:-(?P<expiry>\d{6,8})(?:-(?P<strike>[0-9.]+)-(?P<option>[CP]))?)?)?"
)

MARKET_TYPES: Final = ("spot", "margin", "swap", "future", "option")


def check_exchange(name: str) -> None:
    """Raises InvalidArgument if `name` cannot be an exchange's."""
    if not _EXCHANGE.fullmatch(name):
        raise InvalidArgument(f"{name!r} is not an exchange's name: use CCXT's id, e.g. 'binance'.")


@dataclass(frozen=True, slots=True)
class MarketName:
    """An exchange and a unified symbol, and what the symbol says.

    exchange: CCXT's id, e.g. "binance".
    symbol: CCXT's unified symbol, e.g. "BTC/USDT:USDT".
    base, quote: assets, e.g. "BTC" and "USDT".
    settle: the asset a contract settles in; None for spot.
    type: one of MARKET_TYPES; "spot" where the symbol names no settlement asset.
    """

    exchange: str
    symbol: str
    base: str
    quote: str
    settle: str | None
    type: str

    def __str__(self) -> str:
        return f"{self.exchange}:{self.symbol}"

    @classmethod
    def of(cls, exchange: str, symbol: str) -> Self:
        """Raises InvalidArgument, with an example, if either part is not a name."""
        check_exchange(exchange)
        match = _SYMBOL.fullmatch(symbol)
        if match is None or len(symbol) > 50 or not symbol.isprintable():
            raise InvalidArgument(
                f"{symbol!r} is not a unified symbol: write it as BASE/QUOTE, e.g. 'BTC/USDT', "
                "or 'BTC/USDT:USDT' for a perpetual swap."
            )
        if match["settle"] is None:
            kind = "spot"
        elif match["option"]:
            kind = "option"
        else:
            kind = "future" if match["expiry"] else "swap"
        return cls(exchange, symbol, match["base"], match["quote"], match["settle"], kind)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `exchange:symbol`, e.g. `binance:BTC/USDT`. Raises InvalidArgument."""
        exchange, colon, symbol = text.partition(":")
        if not colon:
            raise InvalidArgument(
                f"{text!r} names no market: write it as EXCHANGE:SYMBOL, e.g. 'binance:BTC/USDT'."
            )
        return cls.of(exchange, symbol)
