"""What Kurisu has to remember about its own upkeep."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import CheckConstraint, Index, Interval, String, text
from sqlalchemy.orm import Mapped, mapped_column

from kurisu.schema.base import TIMESTAMPTZ, Base, BigIdentity, CreatedAt, one_of


class RetentionPolicy(Base):
    """How long raw rows are kept, who said so, and what has already been dropped."""

    __tablename__ = "retention_policies"
    __table_args__ = (
        CheckConstraint(one_of("relation", "ohlcv", "trades"), name="relation"),
        CheckConstraint(one_of("origin", "default", "command", "config"), name="origin"),
        CheckConstraint("drop_after > INTERVAL '0'", name="drop_after_positive"),
    )

    relation: Mapped[str] = mapped_column(String(20), primary_key=True, comment="ohlcv or trades.")
    drop_after: Mapped[timedelta | None] = mapped_column(
        Interval, comment="Age at which raw rows go; null keeps them for ever."
    )
    compress_after: Mapped[timedelta | None] = mapped_column(
        Interval, comment="Age at which chunks are compressed (Community); null never."
    )
    origin: Mapped[str] = mapped_column(
        String(10),
        server_default=text("'default'"),
        comment="default (an import or backfill may move it back), command or config.",
    )
    dropped_before: Mapped[datetime | None] = mapped_column(
        TIMESTAMPTZ,
        comment="Raw rows older than this may be gone, so rollups there are not recomputed.",
    )
    updated_at: Mapped[CreatedAt]


class RollupPending(Base):
    """A range whose continuous aggregates are not yet refreshed (Community only).

    Written with the rows in one transaction and deleted after the refresh, which cannot run in
    a transaction: a process that is killed in between leaves the work to the next one.
    """

    __tablename__ = "rollup_pending"
    __table_args__ = (
        CheckConstraint("since < until", name="range"),
        Index("idx_rollup_pending_since", "since"),
        Index("idx_rollup_pending_market_id", "market_id"),
    )

    id: Mapped[BigIdentity]
    market_id: Mapped[int | None] = mapped_column(
        comment="Whose candles were written; null where they may be anybody's."
    )
    since: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="First touched open time.")
    until: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="Exclusive.")
    created_at: Mapped[CreatedAt]
