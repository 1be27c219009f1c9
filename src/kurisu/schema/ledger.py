"""accounts, orders, executions, positions and balances: the ledger."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from kurisu.schema.base import MONEY, TIMESTAMPTZ, Base, BigIdentity, CreatedAt, one_of

if TYPE_CHECKING:
    from kurisu.schema.markets import Market
    from kurisu.schema.risk import RiskEvent
    from kurisu.schema.strategies import Strategy, StrategyRun


class Account(Base):
    """An account at an exchange. Holds no secret: meta names environment variables."""

    __tablename__ = "accounts"
    __table_args__ = (UniqueConstraint("exchange", "name", name="uix_exchange_name"),)

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    exchange: Mapped[str] = mapped_column(String(50), comment="CCXT's exchange id.")
    meta: Mapped[dict[str, Any]] = mapped_column(
        JSONB,
        server_default=text("'{}'::jsonb"),
        comment="Names of the environment variables with its credentials; never a credential.",
    )

    orders: Mapped[list[Order]] = relationship(back_populates="account", lazy="raise")
    positions: Mapped[list[Position]] = relationship(back_populates="account", lazy="raise")
    balances: Mapped[list[Balance]] = relationship(back_populates="account", lazy="raise")
    risk_events: Mapped[list[RiskEvent]] = relationship(back_populates="account", lazy="raise")


class Order(Base):
    """An order of ours and where it stands; filled, remaining and cost follow its executions."""

    __tablename__ = "orders"
    __table_args__ = (
        UniqueConstraint("client_order_id", name="unique_orders_client_order_id"),
        CheckConstraint(one_of("side", "buy", "sell"), name="side"),
        CheckConstraint(one_of("type", "limit", "market", "stop_loss", "take_profit"), name="type"),
        CheckConstraint(
            one_of("status", "pending", "open", "closed", "canceled", "failed"), name="status"
        ),
        CheckConstraint("amount > 0 AND amount < 'Infinity'", name="amount"),
        CheckConstraint("filled >= 0 AND filled <= amount", name="filled"),
        CheckConstraint("remaining = amount - filled", name="remaining"),
        # NaN is a NUMERIC in PostgreSQL and greater than every number.
        CheckConstraint(
            "cost < 'Infinity' AND price < 'Infinity' AND stop_price < 'Infinity'", name="finite"
        ),
        CheckConstraint("type <> 'limit' OR price IS NOT NULL", name="limit_has_price"),
        CheckConstraint(
            "type NOT IN ('stop_loss', 'take_profit') OR stop_price IS NOT NULL",
            name="stop_has_stop_price",
        ),
        Index("idx_orders_exchange_order_id", "exchange_order_id"),
        Index("idx_orders_market_id", "market_id"),
        Index("idx_orders_strategy_id", "strategy_id"),
        Index("idx_orders_strategy_run_id", "strategy_run_id"),
        Index("idx_orders_account_id", "account_id"),
        Index("idx_orders_status", "status"),
        Index("idx_orders_created_at", "created_at"),
    )

    id: Mapped[BigIdentity]
    client_order_id: Mapped[str | None] = mapped_column(
        String(50), comment="Made by us before sending; null for an order that others placed."
    )
    exchange_order_id: Mapped[str | None] = mapped_column(
        String, comment="Null until the exchange has answered."
    )
    market_id: Mapped[int] = mapped_column(ForeignKey("markets.id"))
    strategy_id: Mapped[int | None] = mapped_column(ForeignKey("strategies.id"))
    strategy_run_id: Mapped[int | None] = mapped_column(ForeignKey("strategy_runs.id"))
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    side: Mapped[str] = mapped_column(String(4))
    type: Mapped[str] = mapped_column(String(20))
    price: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="Quote units; null for market orders."
    )
    stop_price: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="Trigger price in quote units, for stop_loss and take_profit."
    )
    amount: Mapped[Decimal] = mapped_column(MONEY, comment="Base units or contracts.")
    filled: Mapped[Decimal] = mapped_column(
        MONEY, server_default=text("0"), comment="Sum of its executions' amounts."
    )
    remaining: Mapped[Decimal] = mapped_column(MONEY, comment="amount - filled.")
    cost: Mapped[Decimal] = mapped_column(
        MONEY, server_default=text("0"), comment="Sum of its executions' costs, quote units."
    )
    status: Mapped[str] = mapped_column(
        String(20), comment="pending (not yet sent), open, closed, canceled or failed."
    )
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]

    market: Mapped[Market] = relationship(back_populates="orders", lazy="raise")
    account: Mapped[Account | None] = relationship(back_populates="orders", lazy="raise")
    strategy: Mapped[Strategy | None] = relationship(back_populates="orders", lazy="raise")
    strategy_run: Mapped[StrategyRun | None] = relationship(back_populates="orders", lazy="raise")
    executions: Mapped[list[Execution]] = relationship(back_populates="order", lazy="raise")


class Execution(Base):
    """One fill of one order. The ledger's truth: appended, never changed."""

    __tablename__ = "executions"
    __table_args__ = (
        UniqueConstraint("order_id", "trade_id", name="unique_executions_order_trade_id"),
        CheckConstraint(one_of("taker_or_maker", "taker", "maker"), name="taker_or_maker"),
        CheckConstraint("amount > 0 AND amount < 'Infinity'", name="amount"),
        CheckConstraint(
            "price < 'Infinity' AND cost < 'Infinity' AND fee < 'Infinity'", name="finite"
        ),
        CheckConstraint("fee IS NULL OR fee_currency IS NOT NULL", name="fee_has_currency"),
        Index("idx_executions_time", "time"),
    )

    id: Mapped[BigIdentity]
    order_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("orders.id"))
    trade_id: Mapped[str] = mapped_column(String, comment="The exchange's.")
    price: Mapped[Decimal] = mapped_column(MONEY, comment="Quote units per base unit.")
    amount: Mapped[Decimal] = mapped_column(MONEY, comment="Base units or contracts.")
    cost: Mapped[Decimal] = mapped_column(MONEY, comment="Quote units.")
    fee: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="In fee_currency; negative is a rebate; null until the exchange says."
    )
    fee_currency: Mapped[str | None] = mapped_column(String(20), comment="Any asset.")
    time: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    taker_or_maker: Mapped[str | None] = mapped_column(String(5))

    order: Mapped[Order] = relationship(back_populates="executions", lazy="raise")


class Position(Base):
    """What was held in a market at a time, as the ledger has it."""

    __tablename__ = "positions"
    __table_args__ = (
        UniqueConstraint(
            "time",
            "market_id",
            "account_id",
            "strategy_id",
            "strategy_run_id",
            name="unique_positions_snapshot",
            postgresql_nulls_not_distinct=True,
        ),
        CheckConstraint(
            "amount < 'Infinity' AND entry_price < 'Infinity' AND unrealized_pnl < 'Infinity'",
            name="finite",
        ),
        Index("idx_positions_market_id_time", "market_id", text("time DESC")),
        Index("idx_positions_account_id", "account_id"),
        Index("idx_positions_strategy_run_id", "strategy_run_id"),
    )

    id: Mapped[BigIdentity]
    time: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="Of the snapshot.")
    market_id: Mapped[int] = mapped_column(ForeignKey("markets.id"))
    strategy_id: Mapped[int | None] = mapped_column(ForeignKey("strategies.id"))
    strategy_run_id: Mapped[int | None] = mapped_column(ForeignKey("strategy_runs.id"))
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    amount: Mapped[Decimal] = mapped_column(MONEY, comment="Positive is long, negative short.")
    entry_price: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="Average, quote units; null when flat."
    )
    unrealized_pnl: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="Quote units (settle units for inverse); null without a mark price."
    )

    market: Mapped[Market] = relationship(back_populates="positions", lazy="raise")
    account: Mapped[Account | None] = relationship(back_populates="positions", lazy="raise")
    strategy: Mapped[Strategy | None] = relationship(back_populates="positions", lazy="raise")
    strategy_run: Mapped[StrategyRun | None] = relationship(
        back_populates="positions", lazy="raise"
    )


class Balance(Base):
    """What an account had of an asset at a time, as the ledger has it."""

    __tablename__ = "balances"
    __table_args__ = (
        UniqueConstraint(
            "time",
            "asset",
            "account_id",
            "strategy_run_id",
            name="unique_balances_snapshot",
            postgresql_nulls_not_distinct=True,
        ),
        CheckConstraint("free < 'Infinity' AND used < 'Infinity'", name="finite"),
        CheckConstraint("total = free + used", name="total"),
        Index("idx_balances_account_id", "account_id"),
        Index("idx_balances_strategy_run_id", "strategy_run_id"),
    )

    id: Mapped[BigIdentity]
    time: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="Of the snapshot.")
    asset: Mapped[str] = mapped_column(String(20))
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    strategy_run_id: Mapped[int | None] = mapped_column(ForeignKey("strategy_runs.id"))
    free: Mapped[Decimal] = mapped_column(MONEY, comment="In units of the asset.")
    used: Mapped[Decimal] = mapped_column(MONEY, comment="Held by open orders.")
    total: Mapped[Decimal] = mapped_column(MONEY, comment="free + used.")

    account: Mapped[Account | None] = relationship(back_populates="balances", lazy="raise")
    strategy_run: Mapped[StrategyRun | None] = relationship(back_populates="balances", lazy="raise")
