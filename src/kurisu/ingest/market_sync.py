"""Fills `markets` from what exchanges list.

In: an open exchange. Out: a `MarketSync`, one transaction having been committed.
"""

from __future__ import annotations

from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.store.market_sync import MarketSync
from kurisu.store.store import Store


async def sync_markets(
    store: Store,
    exchange: CcxtExchange,
    *,
    quote: str | None = None,
    type: str | None = None,  # noqa: A002  # the column's name
) -> MarketSync:
    """Ask `exchange` anew for its markets and store them; quote, type: only those.

    Raises ExchangeError, DatabaseError.
    """
    listings = await exchange.load_markets(reload=True)
    return await store.markets.sync(
        exchange.name, listings, quote=quote, type=type, skipped=exchange.skipped
    )
