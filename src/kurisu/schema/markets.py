"""markets: what can be traded where, and by which rules of the exchange."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import CheckConstraint, Identity, Index, Integer, String, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from kurisu.domain.market import MARKET_TYPES
from kurisu.schema.base import MONEY, TIMESTAMPTZ, Base, one_of

if TYPE_CHECKING:
    from kurisu.schema.candles import OHLCV
    from kurisu.schema.ledger import Order, Position
    from kurisu.schema.risk import RiskEvent
    from kurisu.schema.trades import Trade


class Market(Base):
    """One symbol of one exchange. Never deleted while anything refers to it."""

    __tablename__ = "markets"
    __table_args__ = (
        UniqueConstraint("exchange", "symbol", name="uix_exchange_symbol"),
        CheckConstraint(one_of("type", *MARKET_TYPES), name="type"),
        CheckConstraint(
            one_of("trade_id_space", "raw", "aggregate", "derived"), name="trade_id_space"
        ),
        CheckConstraint("price_tick > 0 AND amount_tick > 0", name="ticks_positive"),
        CheckConstraint("contract_size > 0", name="contract_size_positive"),
        Index("idx_markets_exchange", "exchange"),
        Index("idx_markets_symbol", "symbol"),
    )

    id: Mapped[int] = mapped_column(
        Integer, Identity(always=True), primary_key=True, comment="Ours."
    )
    exchange: Mapped[str] = mapped_column(String(50), comment="CCXT's exchange id.")
    symbol: Mapped[str] = mapped_column(String(50), comment="CCXT's unified symbol.")
    base_asset: Mapped[str] = mapped_column(String(20), comment="What is traded.")
    quote_asset: Mapped[str] = mapped_column(String(20), comment="What prices are in.")
    active: Mapped[bool] = mapped_column(
        server_default=text("true"), comment="False once the exchange no longer lists it."
    )
    meta: Mapped[dict[str, Any]] = mapped_column(
        JSONB, server_default=text("'{}'::jsonb"), comment="The exchange's raw entry."
    )
    exchange_symbol: Mapped[str | None] = mapped_column(
        String(50), comment="The exchange's own name for it; null until synchronised."
    )
    price_precision: Mapped[int | None] = mapped_column(
        Integer, comment="Fractional digits of a price; null until synchronised."
    )
    amount_precision: Mapped[int | None] = mapped_column(
        Integer, comment="Fractional digits of an amount; null until synchronised."
    )
    type: Mapped[str] = mapped_column(
        String(10), server_default=text("'spot'"), comment="spot, margin, swap, future or option."
    )
    settle_asset: Mapped[str | None] = mapped_column(
        String(20), comment="What a contract settles in; null for spot."
    )
    linear: Mapped[bool | None] = mapped_column(
        comment="True: settled in quote; false: inverse, settled in base; null for spot."
    )
    contract_size: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="Base (linear) or quote (inverse) units per contract; null for spot."
    )
    price_tick: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="Smallest price step, in quote units; null until synchronised."
    )
    amount_tick: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="Smallest amount step, in base units or contracts."
    )
    min_amount: Mapped[Decimal | None] = mapped_column(MONEY, comment="Base units or contracts.")
    max_amount: Mapped[Decimal | None] = mapped_column(MONEY, comment="Base units or contracts.")
    min_price: Mapped[Decimal | None] = mapped_column(MONEY, comment="Quote units.")
    max_price: Mapped[Decimal | None] = mapped_column(MONEY, comment="Quote units.")
    min_cost: Mapped[Decimal | None] = mapped_column(MONEY, comment="Quote units.")
    max_cost: Mapped[Decimal | None] = mapped_column(MONEY, comment="Quote units.")
    trade_id_space: Mapped[str | None] = mapped_column(
        String(10), comment="Which ids its stored trades carry; null while it has none."
    )
    created_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=text("now()"))
    updated_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=text("now()"))

    ohlcv: Mapped[list[OHLCV]] = relationship(
        back_populates="market",
        lazy="raise",
        viewonly=True,
        primaryjoin="Market.id == foreign(OHLCV.market_id)",
    )
    trades: Mapped[list[Trade]] = relationship(
        back_populates="market",
        lazy="raise",
        viewonly=True,
        primaryjoin="Market.id == foreign(Trade.market_id)",
    )
    orders: Mapped[list[Order]] = relationship(back_populates="market", lazy="raise")
    positions: Mapped[list[Position]] = relationship(back_populates="market", lazy="raise")
    risk_events: Mapped[list[RiskEvent]] = relationship(back_populates="market", lazy="raise")
