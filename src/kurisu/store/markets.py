"""Markets in the database: found by name, and created from a unified symbol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.market import MarketName
from kurisu.errors import NotFound
from kurisu.schema import Market as MarketRow
from kurisu.store.connect import transaction

if TYPE_CHECKING:
    from kurisu.store.store import Store


@dataclass(frozen=True, slots=True)
class Market:
    """A market as the store knows it.

    id: ours. name: exchange and unified symbol, and what the symbol says. active: false once the
    exchange no longer lists it.
    """

    id: int
    name: MarketName
    active: bool

    def __str__(self) -> str:
        return str(self.name)

    @property
    def exchange(self) -> str:
        return self.name.exchange

    @property
    def symbol(self) -> str:
        return self.name.symbol


# A market that may be there already. Parameters: the columns. Nothing is returned if it was.
CREATE: Final = """
INSERT INTO markets (exchange, symbol, base_asset, quote_asset, settle_asset, type)
VALUES (:exchange, :symbol, :base, :quote, :settle, :type)
ON CONFLICT (exchange, symbol) DO NOTHING
"""


async def find(connection: AsyncConnection, name: MarketName) -> Market | None:
    """The market of that name, or None."""
    row = (
        await connection.execute(
            select(MarketRow.id, MarketRow.active).where(
                MarketRow.exchange == name.exchange, MarketRow.symbol == name.symbol
            )
        )
    ).one_or_none()
    return None if row is None else Market(row.id, name, row.active)


async def ensure(connection: AsyncConnection, name: MarketName) -> tuple[Market, bool]:
    """The market of that name, created if it is not there; and whether it was created."""
    found = await find(connection, name)
    if found is not None:
        return found, False
    created = await connection.execute(
        text(CREATE),
        {
            "exchange": name.exchange,
            "symbol": name.symbol,
            "base": name.base,
            "quote": name.quote,
            "settle": name.settle,
            "type": name.type,
        },
    )
    found = await find(connection, name)
    if found is None:
        raise NotFound(f"market {name} could not be created")
    return found, created.rowcount == 1


class Markets:
    """`store.markets`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, exchange: str, symbol: str) -> Market:
        """The market, e.g. `get("binance", "BTC/USDT")`. Raises NotFound, InvalidArgument."""
        name = MarketName.of(exchange, symbol)
        async with transaction(self._store.database) as connection:
            found = await find(connection, name)
            if found is None:
                raise NotFound(
                    f"market {name} is not in the database; importing candles with "
                    f"--market {name} creates it, `kurisu markets list` shows what is there."
                )
            return found

    async def ensure(self, exchange: str, symbol: str) -> Market:
        """The market; created from its symbol if it is not there. Raises InvalidArgument."""
        name = MarketName.of(exchange, symbol)
        async with transaction(self._store.database) as connection:
            return (await ensure(connection, name))[0]

    async def list(self, exchange: str | None = None) -> list[Market]:
        """Every market, or those of one exchange, by name."""
        query = select(
            MarketRow.id, MarketRow.exchange, MarketRow.symbol, MarketRow.active
        ).order_by(MarketRow.exchange, MarketRow.symbol)
        if exchange is not None:
            query = query.where(MarketRow.exchange == exchange)
        async with transaction(self._store.database) as connection:
            rows = (await connection.execute(query)).all()
        return [Market(r.id, MarketName.of(r.exchange, r.symbol), r.active) for r in rows]
