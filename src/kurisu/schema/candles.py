"""ohlcv and what belongs to it: rollups, coverage and revisions.

`ohlcv.market_id` has no declared foreign key: one is checked row by row (2.25 times the time of
a bulk load), and dropping a chunk would lock `markets`. A trigger checks each statement once.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    Numeric,
    PrimaryKeyConstraint,
    String,
    Table,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from kurisu.domain.timeframe import ROLLUPS, TIMEFRAMES
from kurisu.schema.base import MONEY, TIMESTAMPTZ, Base, BigIdentity, CreatedAt, one_of

if TYPE_CHECKING:
    from kurisu.schema.markets import Market

_TIMEFRAME = one_of("timeframe", *TIMEFRAMES)


def alignment_check() -> str:
    """A CHECK expression: `time` opens a bar of `timeframe`, in UTC.

    date_bin is immutable and costs a few percent of a COPY; the first branch is the usual one.
    """
    branches = []
    for name, frame in TIMEFRAMES.items():
        if frame.is_calendar:
            branches.append(
                f"WHEN '{name}' THEN date_trunc('month', time AT TIME ZONE 'UTC')"
                " = time AT TIME ZONE 'UTC'"
            )
        else:
            branches.append(
                f"WHEN '{name}' THEN date_bin('{frame.seconds} seconds', time, "
                f"'{frame.origin:%Y-%m-%d} 00:00:00+00') = time"
            )
    return f"CASE timeframe {' '.join(branches)} END"


class OHLCV(Base):
    """Closed candles as the exchange gave them: 1m, or native bars where there is no 1m."""

    __tablename__ = "ohlcv"
    __table_args__ = (
        PrimaryKeyConstraint("market_id", "timeframe", "time"),
        CheckConstraint(_TIMEFRAME, name="timeframe"),
        CheckConstraint(alignment_check(), name="time_aligned"),
        CheckConstraint(
            "low <= open AND low <= close AND high >= open AND high >= close", name="low_high"
        ),
        CheckConstraint("volume >= 0", name="volume_not_negative"),
        # NaN is a NUMERIC in PostgreSQL and greater than every number, Infinity too.
        CheckConstraint(
            "high < 'Infinity' AND volume < 'Infinity' AND isfinite(time)", name="finite"
        ),
        Index("idx_ohlcv_time_desc", text("time DESC")),
    )

    time: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="Open time.")
    market_id: Mapped[int] = mapped_column(Integer, comment="markets.id, kept by a trigger.")
    timeframe: Mapped[str] = mapped_column(String(10))
    open: Mapped[Decimal] = mapped_column(MONEY, comment="Quote units, from CCXT ohlcv[1].")
    high: Mapped[Decimal] = mapped_column(MONEY, comment="Quote units, from CCXT ohlcv[2].")
    low: Mapped[Decimal] = mapped_column(MONEY, comment="Quote units, from CCXT ohlcv[3].")
    close: Mapped[Decimal] = mapped_column(MONEY, comment="Quote units, from CCXT ohlcv[4].")
    volume: Mapped[Decimal] = mapped_column(
        MONEY, comment="Base units on spot, contracts elsewhere; from CCXT ohlcv[5]."
    )

    market: Mapped[Market] = relationship(
        back_populates="ohlcv",
        lazy="raise",
        viewonly=True,
        primaryjoin="Market.id == foreign(OHLCV.market_id)",
    )


def _rollup(name: str) -> Table:
    return Table(
        name,
        Base.metadata,
        Column("time", TIMESTAMPTZ, nullable=False, comment="Open time."),
        Column("market_id", Integer, nullable=False),
        Column("open", MONEY, nullable=False),
        Column("high", MONEY, nullable=False),
        Column("low", MONEY, nullable=False),
        Column("close", MONEY, nullable=False),
        # Without a precision: a sum of many NUMERIC(38,18) may need one digit more, and a
        # rollup must never be what makes a write fail.
        Column("volume", Numeric, nullable=False),
        Column("bars", Integer, nullable=False, comment="1m candles inside."),
        PrimaryKeyConstraint("market_id", "time"),
        comment="Kept from 1m candles; on TimescaleDB Community a continuous aggregate.",
    )


#: ohlcv_5m .. ohlcv_1d by timeframe name, smallest first.
ROLLUP_TABLES: dict[str, Table] = {frame.name: _rollup(f"ohlcv_{frame.name}") for frame in ROLLUPS}


class CandleSeries(Base):
    """Which timeframes a market has candles of, or once had. Kept by a trigger, for every writer.

    Finding that out from a hypertable means a look into every chunk.
    """

    __tablename__ = "candle_series"
    __table_args__ = (PrimaryKeyConstraint("market_id", "timeframe"),)

    market_id: Mapped[int] = mapped_column(ForeignKey("markets.id"))
    timeframe: Mapped[str] = mapped_column(String(10))


class CandleCoverage(Base):
    """What is known about a stretch of time, so that 'no trades' is not 'not fetched'.

    Ranges of one market and timeframe never overlap (a trigger looks at the neighbours). In a
    `complete` range every candle is stored; in an `empty` one the exchange confirmed that there
    were none.
    """

    __tablename__ = "candle_coverage"
    __table_args__ = (
        PrimaryKeyConstraint("market_id", "timeframe", "since"),
        CheckConstraint(_TIMEFRAME, name="timeframe"),
        CheckConstraint(one_of("status", "complete", "empty", "outage", "failed"), name="status"),
        CheckConstraint("since < until", name="range"),
    )

    market_id: Mapped[int] = mapped_column(ForeignKey("markets.id"))
    timeframe: Mapped[str] = mapped_column(String(10))
    since: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="Open time of the first bar.")
    until: Mapped[datetime] = mapped_column(
        TIMESTAMPTZ, comment="Close time of the last bar (exclusive)."
    )
    status: Mapped[str] = mapped_column(String(10), comment="complete, empty, outage or failed.")
    source: Mapped[str] = mapped_column(String(50), comment="What said so: file, rest, stream.")
    reason: Mapped[str | None] = mapped_column(
        String(500), comment="Why, for outage and failed; null elsewhere."
    )
    fetched_at: Mapped[CreatedAt]


class CandleRevision(Base):
    """What a closed candle was before it was changed. Written by a trigger, for every writer."""

    __tablename__ = "candle_revisions"
    __table_args__ = (
        Index("idx_candle_revisions_candle", "market_id", "timeframe", "time"),
        Index("idx_candle_revisions_revised_at", "revised_at"),
    )

    id: Mapped[BigIdentity]
    market_id: Mapped[int] = mapped_column(ForeignKey("markets.id"))
    timeframe: Mapped[str] = mapped_column(String(10))
    time: Mapped[datetime] = mapped_column(TIMESTAMPTZ, comment="Open time.")
    open: Mapped[Decimal] = mapped_column(MONEY, comment="As it was, quote units.")
    high: Mapped[Decimal] = mapped_column(MONEY, comment="As it was, quote units.")
    low: Mapped[Decimal] = mapped_column(MONEY, comment="As it was, quote units.")
    close: Mapped[Decimal] = mapped_column(MONEY, comment="As it was, quote units.")
    volume: Mapped[Decimal] = mapped_column(MONEY, comment="As it was.")
    revised_at: Mapped[CreatedAt]
