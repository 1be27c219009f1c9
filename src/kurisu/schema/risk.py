"""risk_events: what a risk rule, or the ledger itself, has to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from kurisu.schema.base import Base, BigIdentity, CreatedAt, one_of

if TYPE_CHECKING:
    from kurisu.schema.ledger import Account
    from kurisu.schema.markets import Market
    from kurisu.schema.strategies import Strategy, StrategyRun


class RiskEvent(Base):
    """One event. Never changed."""

    __tablename__ = "risk_events"
    __table_args__ = (
        CheckConstraint(one_of("severity", "info", "warning", "critical"), name="severity"),
        UniqueConstraint("fingerprint", name="unique_risk_events_fingerprint"),
        Index("idx_risk_events_created_at", "created_at"),
        Index("idx_risk_events_strategy_run_id", "strategy_run_id"),
    )

    id: Mapped[BigIdentity]
    strategy_id: Mapped[int | None] = mapped_column(ForeignKey("strategies.id"))
    strategy_run_id: Mapped[int | None] = mapped_column(ForeignKey("strategy_runs.id"))
    market_id: Mapped[int | None] = mapped_column(ForeignKey("markets.id"))
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    event_type: Mapped[str] = mapped_column(String(50), comment="e.g. max_drawdown.")
    severity: Mapped[str] = mapped_column(String(20))
    details: Mapped[dict[str, Any]] = mapped_column(
        JSONB, server_default=text("'{}'::jsonb"), comment="Numbers as text."
    )
    created_at: Mapped[CreatedAt]
    fingerprint: Mapped[str | None] = mapped_column(
        String(64), comment="Of its content; the same event is stored once."
    )

    strategy: Mapped[Strategy | None] = relationship(back_populates="risk_events", lazy="raise")
    strategy_run: Mapped[StrategyRun | None] = relationship(
        back_populates="risk_events", lazy="raise"
    )
    market: Mapped[Market | None] = relationship(back_populates="risk_events", lazy="raise")
    account: Mapped[Account | None] = relationship(back_populates="risk_events", lazy="raise")
