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
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from kurisu.schema.base import (
    IDS,
    MONEY,
    TIMESTAMPTZ,
    Base,
    BigIdentity,
    CreatedAt,
    any_of,
    one_of,
    rules,
    within_times,
)

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
        UniqueConstraint(
            "account_id", "market_id", "exchange_order_id", name="unique_orders_exchange_order_id"
        ),
        Index(
            "unique_orders_exchange_order_id_of_run",
            "strategy_run_id",
            "market_id",
            "exchange_order_id",
            unique=True,
            postgresql_where=text("account_id IS NULL"),
        ),
        rules(
            "kurisu_is_order",
            "side, type, status, amount, filled, remaining, cost, price, stop_price, "
            "client_order_id, exchange_order_id, created_at, updated_at",
            {
                "side": any_of("side", "buy", "sell"),
                "type": any_of("type", "limit", "market", "stop_loss", "take_profit"),
                "status": any_of("status", "pending", "open", "closed", "canceled", "failed"),
                "amount": "amount > '0' AND amount < 'Infinity'",
                "filled": "filled >= '0' AND filled <= amount",
                "remaining": "remaining = (amount - filled)",
                # NaN is a NUMERIC in PostgreSQL and greater than every number.
                "finite": "least(price, stop_price) > '0' "
                "AND greatest(cost, price, stop_price) < 'Infinity'",
                "has_an_id": "coalesce(client_order_id, exchange_order_id, '') <> ''",
                "times": within_times(
                    "least(created_at, updated_at)", "greatest(created_at, updated_at)"
                ),
                "limit_has_price": "type <> 'limit' OR price IS NOT NULL",
                "stop_has_stop_price": "type <> ALL ('{stop_loss,take_profit}') "
                "OR stop_price IS NOT NULL",
            },
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
        String(50, IDS), comment="Made by us before sending; null for an order that others placed."
    )
    exchange_order_id: Mapped[str | None] = mapped_column(
        String(collation=IDS), comment="Null until the exchange has answered."
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
    facts: Mapped[dict[str, Any]] = mapped_column(
        JSONB,
        server_default=text("'{}'::jsonb"),
        comment="What was placed and said beside what the columns hold; the ledger's own.",
    )

    market: Mapped[Market] = relationship(back_populates="orders", lazy="raise")
    account: Mapped[Account | None] = relationship(back_populates="orders", lazy="raise")
    strategy: Mapped[Strategy | None] = relationship(back_populates="orders", lazy="raise")
    strategy_run: Mapped[StrategyRun | None] = relationship(back_populates="orders", lazy="raise")
    executions: Mapped[list[Execution]] = relationship(
        back_populates="order",
        lazy="raise",
        viewonly=True,
        primaryjoin="Order.id == foreign(Execution.order_id)",
    )


class Execution(Base):
    """One fill of one order. The ledger's truth: appended, never changed by a statement.

    One that waits (order_id null) joins its order later; what later reports say of its time, cost,
    fees and role comes by a row of execution_corrections.
    """

    __tablename__ = "executions"
    __table_args__ = (
        UniqueConstraint("order_id", "trade_id", name="unique_executions_order_trade_id"),
        UniqueConstraint(
            "account_id",
            "market_id",
            "trade_id",
            "exchange_order_id",
            name="unique_executions_trade_id",
        ),
        rules(
            "kurisu_is_execution",
            "side, trade_id, order_id, account_id, exchange_order_id, price, amount, cost, fee, "
            "fee_currency, taker_or_maker, time",
            {
                "side": any_of("side", "buy", "sell"),
                "waits_under_an_id": "trade_id <> '' AND (order_id IS NOT NULL "
                "OR (account_id IS NOT NULL AND coalesce(exchange_order_id, '') <> ''))",
                "taker_or_maker": any_of("taker_or_maker", "taker", "maker"),
                "amount": "least(amount, price) > '0' AND cost >= '0'",
                "finite": "greatest(amount, price, cost, fee) < 'Infinity'",
                "fee_has_currency": "fee IS NULL OR coalesce(fee_currency, '') <> ''",
                "time": within_times("time"),
            },
        ),
        # The function is made by migration 0010: exact numbers as text, by asset.
        CheckConstraint(
            "other_fees IS NULL OR (fee IS NOT NULL AND kurisu_are_fees(other_fees))",
            name="other_fees",
        ),
        Index("idx_executions_time", "time"),
        Index(
            "idx_executions_waiting",
            "account_id",
            "market_id",
            "exchange_order_id",
            postgresql_where=text("order_id IS NULL"),
        ),
    )

    id: Mapped[BigIdentity]
    order_id: Mapped[int | None] = mapped_column(
        BigInteger,
        comment="Null while it waits: its order is unknown, or it does not fit.",
    )
    trade_id: Mapped[str] = mapped_column(
        String(collation=IDS),
        comment="The exchange's; a second content under one id is marked: id~digits of its hash.",
    )
    price: Mapped[Decimal] = mapped_column(MONEY, comment="Quote units per base unit.")
    amount: Mapped[Decimal] = mapped_column(MONEY, comment="Base units or contracts.")
    cost: Mapped[Decimal] = mapped_column(MONEY, comment="Quote units.")
    fee: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="In fee_currency; negative is a rebate; null until the exchange says."
    )
    fee_currency: Mapped[str | None] = mapped_column(String(20), comment="Any asset.")
    time: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    taker_or_maker: Mapped[str | None] = mapped_column(String(5))
    account_id: Mapped[int | None] = mapped_column(Integer, comment="Its order's.")
    market_id: Mapped[int] = mapped_column(Integer, comment="Its order's.")
    exchange_order_id: Mapped[str | None] = mapped_column(
        String(collation=IDS), comment="The order that it fills, as the exchange calls it."
    )
    side: Mapped[str] = mapped_column(String(4), comment="Its order's.")
    other_fees: Mapped[dict[str, str] | None] = mapped_column(
        JSONB, comment="Further fees: amounts as text, by asset; mostly null."
    )
    facts: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB, comment="Every version that was said, where there is more than one."
    )

    order: Mapped[Order | None] = relationship(
        back_populates="executions",
        lazy="raise",
        viewonly=True,
        primaryjoin="Order.id == foreign(Execution.order_id)",
    )


class WaitingOrder(Base):
    """What an exchange said of an order that is not (yet) ours; gone once it is."""

    __tablename__ = "waiting_orders"
    __table_args__ = (
        UniqueConstraint(
            "account_id",
            "market_id",
            "exchange_order_id",
            name="unique_waiting_orders_exchange_order_id",
        ),
        UniqueConstraint(
            "account_id",
            "market_id",
            "client_order_id",
            name="unique_waiting_orders_client_order_id",
        ),
        CheckConstraint(
            "client_order_id IS NOT NULL OR exchange_order_id IS NOT NULL", name="has_an_id"
        ),
    )

    id: Mapped[BigIdentity]
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"))
    market_id: Mapped[int] = mapped_column(ForeignKey("markets.id"))
    client_order_id: Mapped[str | None] = mapped_column(
        String(collation=IDS), comment="As the exchange said."
    )
    exchange_order_id: Mapped[str | None] = mapped_column(
        String(collation=IDS), comment="As the exchange said."
    )
    facts: Mapped[dict[str, Any]] = mapped_column(
        JSONB,
        server_default=text("'{}'::jsonb"),
        comment="What was said of an order that is not (yet) ours.",
    )
    created_at: Mapped[CreatedAt]


class OrderCorrection(Base):
    """An end of an order that was taken back. Appended; a trigger changes the order."""

    __tablename__ = "order_corrections"
    __table_args__ = (
        CheckConstraint(one_of("status", "open", "closed", "canceled", "failed"), name="status"),
        Index("idx_order_corrections_order_id", "order_id"),
    )

    id: Mapped[BigIdentity]
    order_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("orders.id"))
    status_before: Mapped[str | None] = mapped_column(String(20), comment="Filled in by a trigger.")
    status: Mapped[str] = mapped_column(String(20), comment="What the order has from then on.")
    reason: Mapped[str] = mapped_column(Text, comment="Why, in words.")
    created_at: Mapped[CreatedAt]


class ExecutionCorrection(Base):
    """What a later report says of an execution. Appended; a trigger changes the execution."""

    __tablename__ = "execution_corrections"
    __table_args__ = (Index("idx_execution_corrections_execution_id", "execution_id"),)

    id: Mapped[BigIdentity]
    execution_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("executions.id"))
    before: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB, comment="What the row said until then; filled in by a trigger."
    )
    time: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    cost: Mapped[Decimal] = mapped_column(MONEY, comment="Quote units.")
    fee: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="In fee_currency; negative is a rebate."
    )
    fee_currency: Mapped[str | None] = mapped_column(String(20))
    other_fees: Mapped[dict[str, str] | None] = mapped_column(JSONB)
    taker_or_maker: Mapped[str | None] = mapped_column(String(5))
    facts: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    reason: Mapped[str] = mapped_column(Text, comment="Why, in words.")
    created_at: Mapped[CreatedAt]


class LedgerEntry(Base):
    """What moved a wallet and is no fill: an opening balance, a deposit, a correction."""

    __tablename__ = "ledger_entries"
    __table_args__ = (
        Index(
            "unique_ledger_entries_reference",
            "account_id",
            "strategy_run_id",
            "kind",
            "asset",
            "reference",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("reference IS NOT NULL"),
        ),
        CheckConstraint(
            one_of(
                "kind",
                "opening",
                "deposit",
                "withdrawal",
                "transfer",
                "funding",
                "fee",
                "reward",
                "correction",
            ),
            name="kind",
        ),
        CheckConstraint("amount <> 0 AND amount < 'Infinity'", name="amount"),
        CheckConstraint(
            "account_id IS NOT NULL OR strategy_run_id IS NOT NULL", name="has_an_owner"
        ),
        CheckConstraint(within_times("time"), name="time"),
        Index("idx_ledger_entries_account_id", "account_id", "time"),
        Index("idx_ledger_entries_strategy_run_id", "strategy_run_id"),
    )

    id: Mapped[BigIdentity]
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    strategy_run_id: Mapped[int | None] = mapped_column(ForeignKey("strategy_runs.id"))
    time: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="When it happened.")
    kind: Mapped[str] = mapped_column(String(20))
    asset: Mapped[str] = mapped_column(String(20))
    amount: Mapped[Decimal] = mapped_column(
        MONEY, comment="In units of the asset; negative leaves the wallet."
    )
    reference: Mapped[str | None] = mapped_column(
        String(collation=IDS), comment="The exchange's id of it; the same one is stored once."
    )
    note: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[CreatedAt]


class ReportedBalance(Base):
    """What an exchange said that an account has. Reconciled with the ledger, never mixed."""

    __tablename__ = "reported_balances"
    __table_args__ = (
        UniqueConstraint("account_id", "time", "asset", name="unique_reported_balances_time"),
        CheckConstraint("total < 'Infinity' AND used < 'Infinity'", name="finite"),
        CheckConstraint(within_times("time"), name="time"),
    )

    id: Mapped[BigIdentity]
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"))
    time: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="By the exchange's clock.")
    asset: Mapped[str] = mapped_column(String(20))
    total: Mapped[Decimal] = mapped_column(
        MONEY, comment="In units of the asset, as the exchange said."
    )
    used: Mapped[Decimal] = mapped_column(
        MONEY, comment="Of these, held by open orders or as margin."
    )


class SyncCursor(Base):
    """How far an account was read: orders, private trades, deposits."""

    __tablename__ = "sync_cursors"
    __table_args__ = (
        UniqueConstraint(
            "account_id",
            "market_id",
            "kind",
            name="unique_sync_cursors_kind",
            postgresql_nulls_not_distinct=True,
        ),
        CheckConstraint(within_times("until"), name="until"),
    )

    id: Mapped[BigIdentity]
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"))
    market_id: Mapped[int | None] = mapped_column(
        ForeignKey("markets.id"), comment="Null for the whole account."
    )
    kind: Mapped[str] = mapped_column(String(20), comment="What was read: orders, trades, ledger.")
    until: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="Everything before is stored.")
    details: Mapped[dict[str, Any]] = mapped_column(
        JSONB,
        server_default=text("'{}'::jsonb"),
        comment="Whatever the exchange's paging needs, e.g. the last id.",
    )
    updated_at: Mapped[CreatedAt]


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
        CheckConstraint(
            "cost_basis >= 0 AND cost_basis < 'Infinity' AND realized_pnl < 'Infinity' "
            "AND fee_value < 'Infinity' AND mark_price < 'Infinity'",
            name="basis_finite",
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
    cost_basis: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="What the amount cost or brought, settle units; never negative."
    )
    realized_pnl: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="Of everything closed until then, before fees, settle units."
    )
    fee_value: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="Fees until then that have a value in settle units."
    )
    mark_price: Mapped[Decimal | None] = mapped_column(
        MONEY, comment="Of unrealized_pnl, quote units; null without a candle."
    )
    mark_time: Mapped[datetime | None] = mapped_column(
        TIMESTAMPTZ, comment="When the candle of the mark price closed."
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
