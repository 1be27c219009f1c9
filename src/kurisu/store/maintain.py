"""`kurisu db maintain`: the upkeep that no background job does.

On plain PostgreSQL and the Apache edition it carries out retention. On Community it refreshes
what somebody else wrote below a watermark, and compresses what is due at once: the background
policy would come to a backfilled chunk within half a day.
Running it often costs little; running it never loses nothing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kurisu.domain.timeframe import TIMEFRAMES
from kurisu.store import coverage, policies, rollups, trade_coverage
from kurisu.store.connect import UNDEFINED_TABLE, autocommit, sqlstate, transaction
from kurisu.store.coverage import MARKET_LOCK
from kurisu.store.engine import Engine

#: Rows deleted in one transaction; a longer one would hold its snapshot for minutes.
DELETE_ROWS: Final = 200_000

# Remember what is about to be dropped, so that rollups there are never thinned out. Whole UTC
# days, so that no bar loses part of its candles. Parameters: relation. Columns: cutoff.
BEGIN_EXPIRY: Final = """
UPDATE retention_policies
   SET dropped_before = greatest(dropped_before, date_trunc('day', now() - drop_after, 'UTC')),
       updated_at = now()
 WHERE relation = :relation AND drop_after IS NOT NULL
RETURNING date_trunc('day', now() - drop_after, 'UTC') AS cutoff
"""

# Markets whose coverage is about to be cut, locked against writers as a writer would. Parameters:
# timeframes, cutoffs.
LOCK_COVERED: Final = f"""
SELECT pg_advisory_xact_lock({MARKET_LOCK}, m.market_id)
  FROM (SELECT DISTINCT c.market_id FROM candle_coverage c
          JOIN unnest(CAST(:timeframes AS text[]), CAST(:cutoffs AS timestamptz[]))
               AS e(timeframe, cutoff) USING (timeframe)
         WHERE c.since < e.cutoff ORDER BY 1) m
"""

# Coverage of dropped candles goes with them. Parameters: timeframes, cutoffs (open time of the
# first bar of each that is left).
TRIM_COVERAGE: Final = """
WITH edge AS (
    SELECT * FROM unnest(CAST(:timeframes AS text[]), CAST(:cutoffs AS timestamptz[]))
                  AS e(timeframe, cutoff)
), gone AS (
    DELETE FROM candle_coverage c USING edge e
     WHERE c.timeframe = e.timeframe AND c.until <= e.cutoff
)
UPDATE candle_coverage c SET since = e.cutoff FROM edge e
 WHERE c.timeframe = e.timeframe AND c.since < e.cutoff AND c.until > e.cutoff
"""

# Chunks that are due to be compressed: never compressed, or written to since. The oldest first: a
# chunk is put together with the compressed one before it. Columns: chunk.
DUE_FOR_COMPRESSION: Final = """
SELECT format('%I.%I', c.schema_name, c.table_name) AS chunk
  FROM _timescaledb_catalog.chunk c
  JOIN _timescaledb_catalog.hypertable h ON h.id = c.hypertable_id
  JOIN timescaledb_information.chunks i
    ON i.chunk_schema = c.schema_name AND i.chunk_name = c.table_name
  JOIN retention_policies p ON p.relation = h.table_name
 WHERE h.schema_name = current_schema() AND NOT c.dropped
   AND i.range_end < now() - p.compress_after
   AND (NOT i.is_compressed OR c.status & 8 = 8)
 ORDER BY i.range_start
"""


async def maintain(database: AsyncEngine, engine: Engine) -> list[str]:
    """Do what is due; returns a line for each thing that was done."""
    if engine.is_community:
        return await _maintain_community(database)
    done = []
    for relation in policies.RELATIONS:
        done += await _expire(database, engine, relation)
    return done


async def _expire(database: AsyncEngine, engine: Engine, relation: str) -> list[str]:
    async with transaction(database) as connection:
        cutoff = await connection.scalar(text(BEGIN_EXPIRY), {"relation": relation})
    if cutoff is None:
        return []
    done = []
    if engine.has_hypertables:
        async with transaction(database) as connection:
            # Whole chunks: nothing to vacuum, and the rest goes row by row.
            dropped = (
                await connection.execute(
                    text(f"SELECT drop_chunks('{relation}', CAST(:cutoff AS timestamptz))"),
                    {"cutoff": cutoff},
                )
            ).all()
        if dropped:
            done.append(f"{relation}: dropped {len(dropped)} chunks older than {cutoff:%Y-%m-%d}")
    rows = 0
    while True:
        async with transaction(database) as connection:
            deleted = await _delete_some(connection, relation, cutoff)
        rows += deleted
        if deleted == 0:
            break
    async with transaction(database) as connection:
        if relation == "ohlcv":
            await _trim_coverage(connection, cutoff)
        else:
            await trade_coverage.trim(connection, cutoff)
    if rows:
        done.append(f"{relation}: deleted {rows:,} rows older than {cutoff:%Y-%m-%d}")
    return done


async def _trim_coverage(connection: AsyncConnection, cutoff: datetime) -> None:
    edges = {
        "timeframes": list(TIMEFRAMES),
        "cutoffs": [frame.ceil(cutoff) for frame in TIMEFRAMES.values()],
    }
    await connection.execute(text(LOCK_COVERED), edges)
    await connection.execute(text(TRIM_COVERAGE), edges)


async def _delete_some(connection: AsyncConnection, relation: str, cutoff: object) -> int:
    # Their rollups stay: the trigger looks at this setting, which ends with the transaction.
    await connection.execute(text("SET LOCAL kurisu.expiring = 'on'"))
    deleted = await connection.execute(
        text(
            f"DELETE FROM {relation} WHERE time < CAST(:cutoff AS timestamptz) AND time <= ("
            f"SELECT max(time) FROM (SELECT time FROM {relation} "
            "WHERE time < CAST(:cutoff AS timestamptz) ORDER BY time LIMIT :rows) oldest)"
        ),
        {"cutoff": cutoff, "rows": DELETE_ROWS},
    )
    return int(deleted.rowcount)


async def _maintain_community(database: AsyncEngine) -> list[str]:
    done = [
        f"rollups refreshed from {refreshed.since:%F %R} to {refreshed.until:%F %R}"
        for refreshed in await rollups.refresh_all(database)
    ]
    async with transaction(database) as connection:
        # What the background jobs have dropped: coverage of it would be a lie.
        await coverage.forget_dropped(connection)
        await trade_coverage.forget_dropped(connection)
        chunks = list(await connection.scalars(text(DUE_FOR_COMPRESSION)))
    compressed = [chunk for chunk in chunks if await _compress(database, chunk)]
    if compressed:
        done.append(f"compressed {len(compressed)} chunks")
    return done


async def _compress(database: AsyncEngine, chunk: str) -> bool:
    """False if it is gone: the background job has put it together with the one before it."""
    async with autocommit(database) as connection:
        try:
            await connection.execute(
                text(f"SELECT compress_chunk('{chunk}', if_not_compressed => true)")
            )
        except DBAPIError as error:
            if sqlstate(error) != UNDEFINED_TABLE:
                raise
            return False
    return True
