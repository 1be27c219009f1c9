"""Reads trades, exactly."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime, timedelta
from typing import Final

import pyarrow as pa
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kurisu.store.candle_read import EARLIEST, LATEST
from kurisu.store.connect import driver, translated
from kurisu.store.copy_binary import ColumnKind, copy_to_arrow

#: Trades of one table of `tables`, more or less.
TABLE_ROWS: Final = 200_000
_MS: Final = timedelta(milliseconds=1)
#: Trades that `numbered` looks at.
NEAR_ROWS: Final = 2_000

KINDS: Final = (
    ("time", ColumnKind.TIMESTAMPTZ),
    ("trade_id", ColumnKind.TEXT),
    ("side", ColumnKind.TEXT),
    ("price", ColumnKind.NUMERIC),
    ("amount", ColumnKind.NUMERIC),
    ("cost", ColumnKind.NUMERIC),
    ("taker_or_maker", ColumnKind.TEXT),
)
_COLUMNS: Final = ", ".join(name for name, _ in KINDS)

# Trades of a market, by time; those of one millisecond by id, numbers by their value. Parameters:
# market_id, since, until, limit (null for all).
TRADES: Final = f"""
SELECT {_COLUMNS} FROM trades
 WHERE market_id = $1 AND time >= $2 AND time < $3
 ORDER BY time, length(trade_id), trade_id COLLATE "C"
 LIMIT $4
"""

# The newest trades of a market, by time. Parameters: market_id, count, until.
LATEST_TRADES: Final = f"""
SELECT {_COLUMNS} FROM (
    SELECT {_COLUMNS} FROM trades WHERE market_id = $1 AND time < $3
     ORDER BY time DESC, length(trade_id) DESC, trade_id COLLATE "C" DESC LIMIT $2) newest
 ORDER BY time, length(trade_id), trade_id COLLATE "C"
"""

# The time of the trade that is so many behind the first. Parameters: market_id, since, until,
# offset.
TIME_BEHIND: Final = """
SELECT time FROM trades
 WHERE market_id = :market_id AND time >= CAST(:since AS timestamptz)
   AND time < CAST(:until AS timestamptz)
 ORDER BY time OFFSET :offset LIMIT 1
"""

# Trades older than this are due to be dropped; null for never.
CUTOFF: Final = """
SELECT now() - drop_after FROM retention_policies WHERE relation = 'trades'
"""

# What the ids of a market's trades are. Parameters: market_id.
ID_SPACE: Final = "SELECT trade_id_space FROM markets WHERE id = :market_id"


# The trades next to a time, with their ids. Parameters: market_id, time.
NEXT_TO: Final = {
    "before": f"""
SELECT time, trade_id FROM trades
 WHERE market_id = :market_id AND time <= CAST(:time AS timestamptz)
 ORDER BY time DESC LIMIT {NEAR_ROWS}
""",
    "behind": f"""
SELECT time, trade_id FROM trades
 WHERE market_id = :market_id AND time >= CAST(:time AS timestamptz)
 ORDER BY time LIMIT {NEAR_ROWS}
""",
}


async def numbered(
    connection: AsyncConnection, market_id: int, at: datetime, where: str
) -> dict[int, datetime]:
    """Times of the stored trades next to `at` (included), "before" or "behind", by their number."""
    rows = await connection.execute(text(NEXT_TO[where]), {"market_id": market_id, "time": at})
    return {int(row.trade_id): row.time for row in rows if row.trade_id.isdecimal()}


async def read(
    connection: AsyncConnection,
    market_id: int,
    since: datetime | None,
    until: datetime | None,
    limit: int | None = None,
) -> pa.Table:
    """Trades made in [since, until), the first `limit` of them; columns as KINDS."""
    bounds = [market_id, since or EARLIEST, until or LATEST, limit]
    return await copy_to_arrow(await driver(connection), TRADES, bounds, KINDS)


async def tables(
    connection: AsyncConnection, market_id: int, since: datetime | None, until: datetime | None
) -> AsyncGenerator[pa.Table, None]:
    """As `read`, some TABLE_ROWS at a time; a millisecond is never divided."""
    at, end = since or EARLIEST, until or LATEST
    while at < end:
        behind = await connection.scalar(
            text(TIME_BEHIND),
            {"market_id": market_id, "since": at, "until": end, "offset": TABLE_ROWS - 1},
        )
        stop = end if behind is None else min(end, behind + _MS)
        table = await read(connection, market_id, at, stop)
        if table.num_rows:
            yield table
        at = stop


@contextlib.asynccontextmanager
async def snapshot(database: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction whose statements all see the same rows."""
    with translated(database):
        async with database.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            async with connection.begin():
                # asyncpg's transaction starts with the first statement; COPY alone is none.
                await connection.exec_driver_sql("SELECT 1")
                yield connection


async def latest(
    connection: AsyncConnection, market_id: int, count: int, until: datetime | None
) -> pa.Table:
    """The newest `count` trades made before `until`, by time."""
    bounds = [market_id, count, until or LATEST]
    return await copy_to_arrow(await driver(connection), LATEST_TRADES, bounds, KINDS)


async def cutoff(connection: AsyncConnection) -> datetime | None:
    """Trades older than this are due to be dropped; None for never."""
    found: datetime | None = await connection.scalar(text(CUTOFF))
    return found


async def id_space(connection: AsyncConnection, market_id: int) -> str | None:
    """What the ids of the market's trades are; None while it has none."""
    found: str | None = await connection.scalar(text(ID_SPACE), {"market_id": market_id})
    return found
