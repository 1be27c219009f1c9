"""The one way candles get into the database.

In: clean candles of one market and timeframe. Out: what happened to them. Under a lock for the
market the stored candles of the same range are read (exactly, as fast as the server can send
them) and compared; only rows that are new or different are sent. So an empty range costs one COPY,
and writing the same data twice changes nothing and dirties nothing, compressed chunks included,
where even an INSERT that conflicts would decompress.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import asyncpg
import numpy as np
import pyarrow as pa
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.faults import Conflict, Reject
from kurisu.domain.timeframe import Timeframe
from kurisu.errors import DatabaseError
from kurisu.store import coverage
from kurisu.store.candle_rows import (
    NUMBERS,
    CleanCandles,
    differs,
    from_us,
    runs,
    times_us,
)
from kurisu.store.connect import copy_in, driver
from kurisu.store.copy_binary import ColumnKind, copy_to_arrow, encode_stream
from kurisu.store.coverage import MARKET_LOCK, Stretch
from kurisu.store.engine import Engine

#: Rows compared and sent at a time, which bounds memory at about 150 MB.
SLICE_ROWS: Final = 500_000
#: Up to here rows travel as arrays in one statement. Beyond, new ones by COPY, and changed ones
#: through a temporary table.
ARRAY_ROWS: Final = 1_000
#: Somebody who does not take the lock (psql) may insert between our look and our COPY; the next
#: look sees it.
ATTEMPTS: Final = 5


@dataclass(slots=True)
class WriteReport:
    """What became of the rows of one write.

    read = inserted + updated + unchanged + len(rejects) + len(conflicts) + duplicates.
    coverage: stretches that were not known to be complete before.
    touched: (open, close) in microseconds of the stretches with new or changed candles.
    notes: what else was done and is worth a line, e.g. that a retention policy was moved.
    """

    read: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: int = 0
    rejects: list[Reject] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    coverage: list[Stretch] = field(default_factory=list)
    touched: list[tuple[int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rejected(self) -> int:
        return len(self.rejects)


COLUMN_KINDS: Final = (
    ("time", ColumnKind.TIMESTAMPTZ),
    *((name, ColumnKind.NUMERIC) for name in NUMBERS),
)

# Stored candles of a range. Parameters: market_id, timeframe, since, until (inclusive).
STORED: Final = """
SELECT time, open, high, low, close, volume FROM ohlcv
 WHERE market_id = $1 AND timeframe = $2 AND time >= $3 AND time <= $4
 ORDER BY time
"""

# A few candles. Parameters: market_id, timeframe, and an array for each column.
INSERT_ARRAYS: Final = """
INSERT INTO ohlcv AS o (market_id, timeframe, time, open, high, low, close, volume)
SELECT $1, $2, n.* FROM unnest(
    $3::timestamptz[], $4::numeric[], $5::numeric[], $6::numeric[], $7::numeric[],
    $8::numeric[]) AS n
"""

_ON_CONFLICT: Final = """
ON CONFLICT (market_id, timeframe, time) DO UPDATE
   SET open = excluded.open, high = excluded.high, low = excluded.low,
       close = excluded.close, volume = excluded.volume
 WHERE (o.open, o.high, o.low, o.close, o.volume) IS DISTINCT FROM
       (excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume)
"""

STAGE: Final = """
CREATE TEMPORARY TABLE kurisu_changed_candles (LIKE ohlcv) ON COMMIT DROP
"""

UPSERT_STAGE: Final = f"""
INSERT INTO ohlcv AS o (market_id, timeframe, time, open, high, low, close, volume)
SELECT market_id, timeframe, time, open, high, low, close, volume FROM kurisu_changed_candles
{_ON_CONFLICT}
"""


async def lock(connection: AsyncConnection, market_id: int) -> None:
    """Until the end of the transaction nobody else writes this market."""
    await connection.execute(
        text("SELECT pg_advisory_xact_lock(:lock, :market_id)"),
        {"lock": MARKET_LOCK, "market_id": market_id},
    )


async def write(
    connection: AsyncConnection,
    engine: Engine,
    market_id: int,
    frame: Timeframe,
    candles: CleanCandles,
    source: str,
    known: Sequence[Stretch] = (),
) -> WriteReport:
    """Store `candles` in the connection's transaction. Raises WriteRefused, DatabaseError.

    known: stretches without candles, and what a fetch found out about them.
    """
    report = WriteReport(
        read=candles.read,
        duplicates=candles.duplicates,
        rejects=candles.rejects,
        conflicts=candles.conflicts,
    )
    await lock(connection, market_id)
    if engine.is_community:
        # Rows that go into a compressed chunk have to be checked against its batches, and a
        # backfill touches more of them than the limit allows.
        await connection.execute(
            text("SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0")
        )
    for part in _slices(candles.table):
        await _write_slice(connection, market_id, frame, part, report)
    report.coverage = await coverage.state(
        connection,
        market_id,
        frame,
        [
            Stretch(from_us(since), from_us(until), "complete", source)
            for since, until in runs(candles.times, frame)
        ],
    )
    await coverage.state_fetched(connection, market_id, frame, known)
    return report


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, SLICE_ROWS):
        yield table.slice(start, SLICE_ROWS).combine_chunks()


async def _write_slice(
    connection: AsyncConnection,
    market_id: int,
    frame: Timeframe,
    table: pa.Table,
    report: WriteReport,
) -> None:
    inserted = 0
    for _ in range(ATTEMPTS):
        new, changed = await _compare(connection, market_id, frame, table)
        stored = await _insert(connection, market_id, frame, new)
        inserted += stored
        if stored:
            report.touched += runs(times_us(new.column("time")), frame)
        if stored < new.num_rows:
            continue
        if changed.num_rows:
            await _update(connection, market_id, frame, changed)
            report.touched += runs(times_us(changed.column("time")), frame)
        report.inserted += inserted
        report.updated += changed.num_rows
        report.unchanged += table.num_rows - inserted - changed.num_rows
        return
    raise DatabaseError(
        f"somebody else keeps inserting the same candles; gave up after {ATTEMPTS} attempts. "
        "Stop the other writer or run this again."
    )


async def _compare(
    connection: AsyncConnection, market_id: int, frame: Timeframe, table: pa.Table
) -> tuple[pa.Table, pa.Table]:
    """(new rows, rows that differ from the stored ones)."""
    wanted = times_us(table.column("time"))
    stored = await read_stored(
        connection, market_id, frame, from_us(int(wanted[0])), from_us(int(wanted[-1]))
    )
    if stored.num_rows == 0:
        return table, table.slice(0, 0)
    known = times_us(stored.column("time"))
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    is_known = known[at] == wanted
    ours = table.filter(pa.array(is_known))
    changed = ours.filter(pa.array(differs(ours, stored.take(pa.array(at[is_known])))))
    return table.filter(pa.array(~is_known)), changed


async def read_stored(
    connection: AsyncConnection, market_id: int, frame: Timeframe, since: datetime, until: datetime
) -> pa.Table:
    """Stored candles from `since` to `until` (inclusive), by time."""
    return await copy_to_arrow(
        await driver(connection), STORED, [market_id, frame.name, since, until], COLUMN_KINDS
    )


async def _insert(
    connection: AsyncConnection, market_id: int, frame: Timeframe, table: pa.Table
) -> int:
    """Store new candles; returns how many of them are, fewer if somebody else was first."""
    if table.num_rows == 0:
        return 0
    if table.num_rows <= ARRAY_ROWS:
        query = f"{INSERT_ARRAYS} ON CONFLICT DO NOTHING"
        return await _send_arrays(connection, query, market_id, frame, table)
    try:
        async with connection.begin_nested():
            await _copy(connection, "ohlcv", market_id, frame, table)
    except asyncpg.UniqueViolationError:
        return 0
    return int(table.num_rows)


async def _send_arrays(
    connection: AsyncConnection, query: str, market_id: int, frame: Timeframe, table: pa.Table
) -> int:
    raw = await driver(connection)
    columns = [table.column(name).to_pylist() for name in table.column_names]
    status: str = await raw.execute(query, market_id, frame.name, *columns)
    return int(status.rsplit(" ", 1)[1])


async def _copy(
    connection: AsyncConnection, relation: str, market_id: int, frame: Timeframe, table: pa.Table
) -> None:
    rows = table.num_rows
    whole = pa.table(
        {
            "market_id": pa.array(np.full(rows, market_id, dtype=np.int32)),
            "timeframe": pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(rows, dtype=np.int8)), pa.array([frame.name])
            ),
            **{name: table.column(name) for name in table.column_names},
        }
    )

    raw = await driver(connection)
    await copy_in(raw, relation, whole.column_names, encode_stream(whole), format="binary")


async def _update(
    connection: AsyncConnection, market_id: int, frame: Timeframe, table: pa.Table
) -> None:
    if table.num_rows <= ARRAY_ROWS:
        await _send_arrays(connection, INSERT_ARRAYS + _ON_CONFLICT, market_id, frame, table)
        return
    await connection.execute(text("DROP TABLE IF EXISTS kurisu_changed_candles"))
    await connection.execute(text(STAGE))
    await _copy(connection, "kurisu_changed_candles", market_id, frame, table)
    await connection.execute(text(UPSERT_STAGE))
