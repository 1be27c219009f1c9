"""trades: public trades, tick by tick.

The key holds `time`, because a hypertable has no unique key without it; that is safe once every
source's time is cut to milliseconds, as `kurisu.store` does before it writes.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from kurisu.schema.base import MONEY, TIMESTAMPTZ, Base, CreatedAt, one_of

if TYPE_CHECKING:
    from kurisu.schema.markets import Market


class Trade(Base):
    """One public trade (or one aggregate trade: `markets.trade_id_space` says which)."""

    __tablename__ = "trades"
    __table_args__ = (
        PrimaryKeyConstraint("market_id", "time", "trade_id"),
        CheckConstraint(one_of("side", "buy", "sell"), name="side"),
        CheckConstraint(one_of("taker_or_maker", "taker", "maker"), name="taker_or_maker"),
        CheckConstraint(
            "date_bin('1 millisecond', time, '1970-01-01 00:00:00+00') = time",
            name="time_in_milliseconds",
        ),
        CheckConstraint(
            "price < 'Infinity' AND amount < 'Infinity' AND cost < 'Infinity' AND isfinite(time)",
            name="finite",
        ),
        CheckConstraint("amount >= 0", name="amount_not_negative"),
        Index("idx_trades_time_desc", text("time DESC")),
    )

    time: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="In milliseconds.")
    market_id: Mapped[int] = mapped_column(Integer, comment="markets.id, kept by a trigger.")
    trade_id: Mapped[str] = mapped_column(
        String, comment="The exchange's; a deterministic hash where it gives none."
    )
    side: Mapped[str | None] = mapped_column(
        String(4), comment="The taker's side; null where the exchange does not say."
    )
    price: Mapped[Decimal] = mapped_column(MONEY, comment="Quote units per base unit.")
    amount: Mapped[Decimal] = mapped_column(MONEY, comment="Base units or contracts.")
    cost: Mapped[Decimal] = mapped_column(MONEY, comment="Quote units, from CCXT trade['cost'].")
    taker_or_maker: Mapped[str | None] = mapped_column(String(5), comment="Null on public trades.")

    market: Mapped[Market] = relationship(
        back_populates="trades",
        lazy="raise",
        viewonly=True,
        primaryjoin="Market.id == foreign(Trade.market_id)",
    )


class TradeCoverage(Base):
    """What is known about a stretch of a market's trades.

    Stretches of one market never overlap (a trigger looks at the neighbours). In a `complete` one
    every trade is stored.
    """

    __tablename__ = "trade_coverage"
    __table_args__ = (
        PrimaryKeyConstraint("market_id", "since"),
        CheckConstraint(one_of("status", "complete", "empty", "outage", "failed"), name="status"),
        CheckConstraint("since < until", name="range"),
    )

    market_id: Mapped[int] = mapped_column(ForeignKey("markets.id"))
    since: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="Whole milliseconds, inclusive.")
    until: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="Whole milliseconds, exclusive.")
    status: Mapped[str] = mapped_column(String(10), comment="complete, empty, outage or failed.")
    source: Mapped[str] = mapped_column(String(50), comment="What said so: file, rest, stream.")
    reason: Mapped[str | None] = mapped_column(
        String(500), comment="Why it failed; null where it did not."
    )
    fetched_at: Mapped[CreatedAt]
