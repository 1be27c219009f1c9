"""strategies and strategy_runs: what trades, and each time that it ran."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
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

from kurisu.schema.base import TIMESTAMPTZ, Base, BigIdentity, CreatedAt, one_of

if TYPE_CHECKING:
    from kurisu.schema.ledger import Balance, Order, Position
    from kurisu.schema.risk import RiskEvent


class Strategy(Base):
    """A strategy class and its default parameters."""

    __tablename__ = "strategies"
    __table_args__ = (
        UniqueConstraint("name", name="unique_strategies_name"),
        CheckConstraint(one_of("status", "active", "paused", "archived"), name="status"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    description: Mapped[str | None] = mapped_column(Text)
    class_path: Mapped[str] = mapped_column(
        String, comment="Importable, e.g. strategies.grid.GridStrategy."
    )
    parameters: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    status: Mapped[str] = mapped_column(String(20), server_default=text("'active'"))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]

    runs: Mapped[list[StrategyRun]] = relationship(back_populates="strategy", lazy="raise")
    orders: Mapped[list[Order]] = relationship(back_populates="strategy", lazy="raise")
    positions: Mapped[list[Position]] = relationship(back_populates="strategy", lazy="raise")
    risk_events: Mapped[list[RiskEvent]] = relationship(back_populates="strategy", lazy="raise")


class StrategyRun(Base):
    """One run of a strategy: backtest, paper or live."""

    __tablename__ = "strategy_runs"
    __table_args__ = (
        CheckConstraint(one_of("type", "backtest", "paper", "live"), name="type"),
        CheckConstraint(one_of("status", "running", "completed", "failed"), name="status"),
        CheckConstraint("end_time >= start_time", name="end_after_start"),
        Index("idx_strategy_runs_strategy_id", "strategy_id"),
    )

    id: Mapped[BigIdentity]
    strategy_id: Mapped[int] = mapped_column(ForeignKey("strategies.id"))
    type: Mapped[str] = mapped_column(String(20))
    status: Mapped[str] = mapped_column(String(20))
    start_time: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="When the run started.")
    end_time: Mapped[datetime | None] = mapped_column(
        TIMESTAMPTZ, comment="When it ended; null while it runs."
    )
    parameters: Mapped[dict[str, Any]] = mapped_column(
        JSONB, server_default=text("'{}'::jsonb"), comment="As run."
    )
    metrics: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB, comment="Results, numbers as text; null until the run ends."
    )

    strategy: Mapped[Strategy] = relationship(back_populates="runs", lazy="raise")
    orders: Mapped[list[Order]] = relationship(back_populates="strategy_run", lazy="raise")
    positions: Mapped[list[Position]] = relationship(back_populates="strategy_run", lazy="raise")
    balances: Mapped[list[Balance]] = relationship(back_populates="strategy_run", lazy="raise")
    risk_events: Mapped[list[RiskEvent]] = relationship(back_populates="strategy_run", lazy="raise")
