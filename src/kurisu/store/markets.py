"""Markets in the database: found by name, created from a unified symbol, brought in line with
what their exchange lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Row, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.listing import MarketListing
from kurisu.domain.market import MarketName
from kurisu.errors import InvalidArgument, NotFound
from kurisu.schema import Market as MarketRow
from kurisu.store import market_sync
from kurisu.store.connect import transaction
from kurisu.store.market_sync import MarketSync

if TYPE_CHECKING:
    from kurisu.store.store import Store


@dataclass(frozen=True, slots=True)
class Market:
    """A market as the store knows it.

    id: ours. name: exchange and unified symbol, and what the symbol says. active: false once the
    exchange no longer lists it, or lists it and does not trade it.
    The rest is what its exchange lists, see `MarketListing`; None until `kurisu markets sync`, and
    for what the exchange does not say. volume_unit: what candle volumes are in, base or contracts.
    trade_id_space: which ids its stored trades carry; None while it has none.
    """

    id: int
    name: MarketName
    active: bool
    exchange_symbol: str | None = None
    type: str = "spot"
    settle_asset: str | None = None
    linear: bool | None = None
    contract_size: Decimal | None = None
    price_tick: Decimal | None = None
    amount_tick: Decimal | None = None
    price_precision: int | None = None
    amount_precision: int | None = None
    min_amount: Decimal | None = None
    max_amount: Decimal | None = None
    min_price: Decimal | None = None
    max_price: Decimal | None = None
    min_cost: Decimal | None = None
    max_cost: Decimal | None = None
    volume_unit: str | None = None
    trade_id_space: str | None = None

    def __str__(self) -> str:
        return str(self.name)

    @property
    def exchange(self) -> str:
        return self.name.exchange

    @property
    def symbol(self) -> str:
        return self.name.symbol


def known(market: Any) -> Market:
    """`market`, if it is one. Raises InvalidArgument for a name, which is what comes instead."""
    if isinstance(market, Market):
        return market
    raise InvalidArgument(
        f"{str(market)!r} is no market of a store; one comes from "
        'await store.markets.get("binance", "BTC/USDT")'
    )


def each_known(markets: Any) -> list[Market]:
    """Several markets, as `known`. Raises InvalidArgument for a single one, too."""
    if isinstance(markets, Market | str | MarketName):
        raise InvalidArgument(f"{str(markets)!r} is not a list of markets; pass [market]")
    return [known(market) for market in markets]


_IN_META: Final = "volume_unit"
_COLUMNS: Final = (
    *(getattr(MarketRow, f.name) for f in fields(Market) if f.name not in ("name", _IN_META)),
    MarketRow.meta[_IN_META].astext.label(_IN_META),
)


def _market(row: Row[Any]) -> Market:
    values = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for it
    name = MarketName.of(values.pop("exchange"), values.pop("symbol"))
    return Market(name=name, **values)


# A market that may be there already. Parameters: the columns. Nothing is returned if it was.
CREATE: Final = """
INSERT INTO markets (exchange, symbol, base_asset, quote_asset, settle_asset, type)
VALUES (:exchange, :symbol, :base, :quote, :settle, :type)
ON CONFLICT (exchange, symbol) DO NOTHING
"""


async def find(connection: AsyncConnection, name: MarketName) -> Market | None:
    """The market of that name, or None."""
    query = select(MarketRow.exchange, MarketRow.symbol, *_COLUMNS)
    row = (
        await connection.execute(
            query.where(MarketRow.exchange == name.exchange, MarketRow.symbol == name.symbol)
        )
    ).one_or_none()
    return None if row is None else _market(row)


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
                    f"market {name} is not in the database; `kurisu markets sync {exchange}` or "
                    f"importing candles with --market {name} creates it, `kurisu markets list` "
                    "shows what is there."
                )
            return found

    async def ensure(self, exchange: str, symbol: str) -> Market:
        """The market; created from its symbol if it is not there. Raises InvalidArgument."""
        name = MarketName.of(exchange, symbol)
        async with transaction(self._store.database) as connection:
            return (await ensure(connection, name))[0]

    async def add(self, listing: MarketListing) -> Market:
        """The market as its exchange lists it; one that is there with its rules stays as it is."""
        async with transaction(self._store.database) as connection:
            found, _ = await ensure(connection, listing.name)
            if found.exchange_symbol is None:
                await market_sync.describe(connection, found.id, listing)
                found, _ = await ensure(connection, listing.name)
            return found

    async def list(
        self,
        exchange: str | None = None,
        *,
        quote: str | None = None,
        base: str | None = None,
        type: str | None = None,  # noqa: A002  # the column's name
        active: bool | None = None,
    ) -> list[Market]:
        """Markets by name; what is given narrows them down."""
        query = select(MarketRow.exchange, MarketRow.symbol, *_COLUMNS)
        for column, wanted in (
            (MarketRow.exchange, exchange),
            (MarketRow.quote_asset, quote),
            (MarketRow.base_asset, base),
            (MarketRow.type, type),
            (MarketRow.active, active),
        ):
            if wanted is not None:
                query = query.where(column == wanted)
        query = query.order_by(MarketRow.exchange, MarketRow.symbol)
        async with transaction(self._store.database) as connection:
            return [_market(row) for row in (await connection.execute(query)).all()]

    async def sync(
        self,
        exchange: str,
        listings: Sequence[MarketListing],
        *,
        quote: str | None = None,
        type: str | None = None,  # noqa: A002  # the column's name
        skipped: Sequence[tuple[str, str]] = (),
    ) -> MarketSync:
        """Bring the markets of `exchange` in line with everything that it lists.

        listings: all of them; `quote` and `type` choose among them. Stored markets that match and
        are not listed any more become inactive. skipped: (symbol, reason) of listed markets that
        cannot be stored. Raises InvalidArgument if there is no listing at all: that would make
        every market inactive.
        """
        if not listings:
            raise InvalidArgument(
                f"{exchange} lists no market at all, which cannot be; nothing was changed."
            )
        chosen = {"quote_asset": quote, "type": type}
        async with transaction(self._store.database) as connection:
            report = await market_sync.sync(
                connection,
                exchange,
                [one for one in listings if _is_chosen(one, quote, type)],
                listed_symbols={one.symbol for one in listings} | {symbol for symbol, _ in skipped},
                listed_types={one.type for one in listings},
                chosen={key: value for key, value in chosen.items() if value is not None},
            )
        report.skipped[:0] = skipped
        return report


def _is_chosen(listing: MarketListing, quote: str | None, kind: str | None) -> bool:
    return quote in (None, listing.name.quote) and kind in (None, listing.type)
