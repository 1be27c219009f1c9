"""Proves that every rollup says what its 1m candles say, digit for digit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.timeframe import ROLLUPS, Timeframe
from kurisu.store.candle_read import EARLIEST, LATEST, bucket, opens_between
from kurisu.store.engine import Engine
from kurisu.store.markets import Market
from kurisu.store.rollups import BOUNDS

#: Differences listed for each market and timeframe; the rest are counted.
LISTED: Final = 100


@dataclass(frozen=True, slots=True)
class Difference:
    """A bar that is not what its candles say.

    stored, expected: open, high, low, close, volume, bars; None where there is no such bar.
    """

    market: str
    timeframe: str
    time: datetime
    stored: tuple[Decimal | int, ...] | None
    expected: tuple[Decimal | int, ...] | None


@dataclass(slots=True)
class VerifyReport:
    """What `verify` found.

    checked: bars compared, by timeframe.
    kept: bars whose candles retention has dropped, so that there is nothing to compare with.
    different: how many bars differ; differences: the first of them.
    """

    checked: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    different: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.different == 0


def _recomputed(frame: Timeframe) -> str:
    """SQL: bars of `frame` straight from 1m. Parameters: market_id, since, until."""
    return f"""
        SELECT {bucket(frame)} AS time, (array_agg(open ORDER BY time))[1] AS open,
               max(high) AS high, min(low) AS low,
               (array_agg(close ORDER BY time DESC))[1] AS close, sum(volume) AS volume,
               count(*)::integer AS bars
          FROM ohlcv
         WHERE market_id = :market_id AND timeframe = '1m'
           AND time >= CAST(:since AS timestamptz) AND time < CAST(:until AS timestamptz)
         GROUP BY 1
    """


def _compare(frame: Timeframe) -> str:
    """SQL: bars that differ from their candles, and how many were compared.

    A bar with more candles inside than are stored is kept from before retention if it is older
    than `horizon`. Parameters: market_id, since, until, horizon, listed. Columns: checked, kept,
    different, and a bar in each row.
    """
    return f"""
        WITH expected AS ({_recomputed(frame)}),
        stored AS (
            SELECT time, open, high, low, close, volume, bars FROM ohlcv_{frame.name}
             WHERE market_id = :market_id
               AND time >= CAST(:since AS timestamptz) AND time < CAST(:until AS timestamptz)
        ),
        pairs AS (
            SELECT time, s.open AS s_open, s.high AS s_high, s.low AS s_low, s.close AS s_close,
                   s.volume AS s_volume, s.bars AS s_bars,
                   e.open AS e_open, e.high AS e_high, e.low AS e_low, e.close AS e_close,
                   e.volume AS e_volume, e.bars AS e_bars,
                   coalesce(s.bars > coalesce(e.bars, 0), false)
                       AND time < CAST(:horizon AS timestamptz) AS is_kept,
                   (s.open, s.high, s.low, s.close, s.volume, s.bars) IS DISTINCT FROM
                   (e.open, e.high, e.low, e.close, e.volume, e.bars) AS differs
              FROM stored s FULL JOIN expected e USING (time)
        ),
        counts AS (
            SELECT count(*) FILTER (WHERE NOT is_kept) AS checked,
                   count(*) FILTER (WHERE is_kept) AS kept,
                   count(*) FILTER (WHERE differs AND NOT is_kept) AS different
              FROM pairs
        )
        SELECT c.checked, c.kept, c.different, d.*
          FROM counts c
          LEFT JOIN (SELECT * FROM pairs WHERE differs AND NOT is_kept
                      ORDER BY time LIMIT :listed) d ON true
         ORDER BY d.time
    """


async def verify(
    connection: AsyncConnection,
    engine: Engine,
    markets: Sequence[Market],
    since: datetime | None,
    until: datetime | None,
) -> VerifyReport:
    """Recompute every rollup bar of `markets` that opens in [since, until) and compare."""
    report = VerifyReport()
    horizon = await _horizon(connection, engine)
    for frame in ROLLUPS:
        checked = kept = 0
        low, high = opens_between(frame, since, until)
        for market in markets:
            rows = (
                await connection.execute(
                    text(_compare(frame)),
                    {
                        "market_id": market.id,
                        # Whole bars only: of a cut one some candles would be missing.
                        "since": low,
                        "until": high,
                        "horizon": horizon,
                        "listed": LISTED,
                    },
                )
            ).all()
            checked += rows[0].checked
            kept += rows[0].kept
            report.different += rows[0].different
            for row in rows:
                if row.time is not None:
                    report.differences.append(
                        Difference(
                            str(market), frame.name, row.time,
                            None if row.s_bars is None else tuple(row[4:10]),
                            None if row.e_bars is None else tuple(row[10:16]),
                        )
                    )  # fmt: skip
        report.checked[frame.name] = checked
        report.kept[frame.name] = kept
    return report


async def _horizon(connection: AsyncConnection, engine: Engine) -> datetime:
    """Before this time candles may have been dropped by retention; EARLIEST if none were."""
    if engine.is_community:
        bounds = (await connection.execute(text(BOUNDS))).one()
        found = [t for t in (bounds.horizon, bounds.oldest_chunk) if t is not None]
        return max(found, default=LATEST)
    dropped = await connection.scalar(
        text("SELECT dropped_before FROM retention_policies WHERE relation = 'ohlcv'")
    )
    return dropped or EARLIEST
