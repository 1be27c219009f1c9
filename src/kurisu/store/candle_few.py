"""Reads a few bars of a rollup in one question, where nothing stands in the way of it.

What `candle_read` asks step by step (up to where the bars are materialised, whether a refresh is
due, which candles the market has, the bars) is one statement here, whose plan the session keeps.
Where the answer is not simply the stored bars and what is above them, the statement says so and
gives none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Final

import asyncpg
import pyarrow as pa
from sqlalchemy.ext.asyncio import AsyncEngine

from kurisu.domain.timeframe import BASE, ROLLUPS, TIMEFRAMES, Timeframe
from kurisu.store.candle_read import (
    BARS_SCHEMA,
    EARLIEST,
    KINDS_WITH_BARS,
    aggregate,
    with_sources,
)
from kurisu.store.candle_rows import NUMBERS
from kurisu.store.copy_binary import decode_arrays
from kurisu.store.engine import Engine
from kurisu.store.kept import Kept

#: From so many bars on a COPY, which is decoded while it arrives, is the faster way.
FEW: Final = 4_096
#: Of bars of this length a market has few in years, so that all of them are asked for so, too.
_LONG: Final = ROLLUPS[-1]

# Of the session that asks. The plan for any market and range is the one for each of them, so that
# it is made once, and not six times; perhaps for a table that is nearly empty, so that it goes by
# index. What TimescaleDB's own node would leave out whenever a statement begins, which takes it a
# quarter of the time, the text of the statement leaves out.
SETTINGS: Final = """
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off;
"""
COMMUNITY_SETTINGS: Final = "SET timescaledb.enable_chunk_append = off;"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# How an aggregate stores its bars. Parameters: view. Columns: id (of the table behind it), table
# (qualified), mark (up to where it is materialised, in microseconds since 1970).
STORED: Final = """
SELECT h.id, format('%I.%I', h.schema_name, h.table_name) AS table, w.watermark AS mark
  FROM _timescaledb_catalog.continuous_agg c
  JOIN _timescaledb_catalog.hypertable h ON h.id = c.mat_hypertable_id
  JOIN _timescaledb_catalog.continuous_aggs_watermark w ON w.mat_hypertable_id = h.id
 WHERE c.user_view_schema = current_schema() AND c.user_view_name = $1
"""
# Whether every bar is made from 1m candles. Parameters: market_id.
_FROM_MINUTES: Final = """
NOT EXISTS (SELECT 1 FROM candle_series WHERE market_id = $1 AND timeframe IN ({finer}))
"""
# Whether what lies below the watermark is right as it is stored, and every candle above it there.
# Parameters: market_id, since.
_AS_STORED: Final = """
NOT EXISTS (SELECT 1 FROM rollup_pending WHERE market_id = $1 OR market_id IS NULL)
AND NOT EXISTS (SELECT 1 FROM retention_policies
                 WHERE relation = 'ohlcv'
                   AND greatest(dropped_before, now() - drop_after) > greatest({watermark}, $2))
"""
# Where the aggregate is materialised up to now.
_MARK: Final = """
(SELECT watermark FROM _timescaledb_catalog.continuous_aggs_watermark
  WHERE mat_hypertable_id = {id})
"""
# The columns of one part, as `decode_arrays` takes them.
_NAMES: Final = tuple(name for name, _ in KINDS_WITH_BARS)
_ARRAYS: Final = ", ".join(f"array_send(array_agg({name})) AS {name}" for name in _NAMES)


@dataclass(frozen=True, slots=True)
class _Question:
    """A statement, and the watermark that it is right for (None where there is none)."""

    sql: str
    mark: int | None


def _question(frame: Timeframe, stored: asyncpg.Record | None) -> _Question:
    """The statement for bars of `frame`; stored: a row of STORED, on Community.

    Parameters: market_id, since, until. A row for each part: mark, whole (whether the bars are all
    that there is to it; else there are none), part (by time), and the columns of its bars. The
    watermark is in the text, since a plan for any watermark has every chunk in it.
    """
    finer = [f"'{f.name}'" for f in TIMEFRAMES.values() if f != BASE and f.divides(frame)]
    whole = _FROM_MINUTES.format(finer=", ".join(finer))
    asked = "market_id = $1 AND time >= $2 AND time < $3 AND s.whole"
    values = ", ".join(NUMBERS)
    mark = "NULL::bigint"
    if stored is None:
        parts = [f"SELECT time, {values}, bars FROM ohlcv_{frame.name} WHERE {asked}"]
    else:
        # Of an aggregate without bars it is in 4714 BC.
        at = _EPOCH + timedelta(microseconds=max(0, stored["mark"]))
        watermark = f"TIMESTAMPTZ '{at}'"
        mark = _MARK.format(id=stored["id"])
        whole += "AND" + _AS_STORED.format(watermark=watermark)
        asked += f" AND s.mark = {stored['mark']}"
        parts = [
            f"SELECT time, {values}, bars FROM {stored['table']} "
            f"WHERE {asked} AND time < {watermark}",
            aggregate(
                frame,
                "ohlcv",
                f"{asked} AND timeframe = '1m' AND time >= {watermark}",
                "count(*)",
            ),
        ]
    bars = " UNION ALL ".join(
        f"SELECT {at} AS part, {_ARRAYS} FROM ({part} ORDER BY time LIMIT {FEW + 1}) AS bars"
        for at, part in enumerate(parts)
    )
    return _Question(
        # OFFSET 0, so that the questions are asked once, and before there is any bar.
        f"SELECT s.mark, s.whole, b.* FROM (SELECT {mark} AS mark, {whole} AS whole OFFSET 0) AS s "
        f"CROSS JOIN LATERAL ({bars}) AS b",
        None if stored is None else stored["mark"],
    )


class FewBars:
    """What the reads of a store share: a connection, and where the bars of each rollup are."""

    def __init__(self, database: AsyncEngine, engine: Engine) -> None:
        self._kept = Kept(database, SETTINGS + (COMMUNITY_SETTINGS if engine.is_community else ""))
        self._engine = engine
        self._questions: dict[str, _Question] = {}

    async def close(self) -> None:
        await self._kept.end()

    async def read(
        self, market_id: int, frame: Timeframe, low: datetime, high: datetime
    ) -> pa.Table | None:
        """As `candle_read.read`, of bounds from `opens_between`; None if it has to answer."""
        if not _is_short(frame, low, high):
            return None
        async with self._kept.use() as connection:
            rows = await self._ask(connection, frame, (market_id, low, high))
        if not rows or not rows[0]["whole"]:
            return None
        rows.sort(key=itemgetter("part"))
        parts = [[row[name] for name in _NAMES] for row in rows if row["time"] is not None]
        if not parts:
            return with_sources(BARS_SCHEMA.empty_table(), {})
        try:
            table = decode_arrays(parts, KINDS_WITH_BARS)
        except ValueError:  # a number that cannot be given exactly: `candle_read` says which
            return None
        if table.num_rows > FEW:
            return None
        return with_sources(table, {BASE.name: table.num_rows})

    async def _ask(
        self, connection: asyncpg.Connection, frame: Timeframe, arguments: tuple[object, ...]
    ) -> list[asyncpg.Record]:
        """The rows of the statement; none if it cannot be asked."""
        question = self._questions.get(frame.name)
        for _ in range(2):
            if question is None:
                stored = None
                if self._engine.is_community:
                    stored = await connection.fetchrow(STORED, f"ohlcv_{frame.name}")
                    if stored is None:
                        return []
                question = self._questions[frame.name] = _question(frame, stored)
            try:
                rows: list[asyncpg.Record] = await connection.fetch(question.sql, *arguments)
            except asyncpg.UndefinedTableError:  # the aggregate was made anew
                rows = []
            if rows and rows[0]["mark"] == question.mark:
                return rows
            question = None  # a refresh has moved the watermark
        return []


def _is_short(frame: Timeframe, low: datetime, high: datetime) -> bool:
    if frame not in ROLLUPS:
        return False
    if low == EARLIEST:
        return frame == _LONG
    # After now there is none.
    return frame.count(low, min(high, datetime.now(UTC))) <= FEW
