"""Which stretches of a market's trades are stored, whole (`trade_coverage`).

As `coverage` for candles, without a timeframe: a stretch is in whole milliseconds. The lock is one
of its own, so that neither candles nor trades of a market wait for the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.store.coverage import Stretch, cut, overlay, replace_rows, unknown, yielding

#: Advisory lock of a market's trade coverage; its trigger takes the same one.
TRADE_LOCK: Final = 1_264_939_595


# Stretches that touch or overlap a range. Parameters: market_id, since, until.
NEAR: Final = """
SELECT since, until, status, source, reason FROM trade_coverage
 WHERE market_id = :market_id
   AND until >= CAST(:since AS timestamptz) AND since <= CAST(:until AS timestamptz)
 ORDER BY since
"""

# Complete stretches that go on where they ended, as those of a live stream do. Parameters: ids,
# sinces, untils, sources. Nothing happens to those that do not, or that would reach into another.
EXTEND: Final = """
UPDATE trade_coverage c SET until = n.until, fetched_at = now()
  FROM unnest(CAST(:ids AS integer[]), CAST(:sinces AS timestamptz[]),
              CAST(:untils AS timestamptz[]), CAST(:sources AS text[]))
       AS n(market_id, since, until, source)
 WHERE c.market_id = n.market_id AND c.until = n.since AND c.source = n.source
   AND c.status = 'complete'
   AND NOT EXISTS (SELECT 1 FROM trade_coverage o
                    WHERE o.market_id = n.market_id AND o.since >= n.since AND o.since <= n.until)
RETURNING c.market_id, c.until
"""

LOCK: Final = f"""
SELECT pg_advisory_xact_lock({TRADE_LOCK}, m.id)
  FROM (SELECT DISTINCT id FROM unnest(CAST(:ids AS integer[])) AS i(id) ORDER BY 1) m
"""

DELETE: Final = """
DELETE FROM trade_coverage
 WHERE market_id = :market_id AND since = ANY(CAST(:sinces AS timestamptz[]))
"""

INSERT: Final = """
INSERT INTO trade_coverage (market_id, since, until, status, source, reason)
SELECT :market_id, r.* FROM unnest(
    CAST(:sinces AS timestamptz[]), CAST(:untils AS timestamptz[]), CAST(:statuses AS text[]),
    CAST(:sources AS text[]), CAST(:reasons AS text[])) AS r
"""


# Coverage of dropped trades goes with them. Parameters: cutoff.
TRIM: Final = """
WITH gone AS (
    DELETE FROM trade_coverage WHERE until <= CAST(:cutoff AS timestamptz)
)
UPDATE trade_coverage SET since = CAST(:cutoff AS timestamptz)
 WHERE since < CAST(:cutoff AS timestamptz) AND until > CAST(:cutoff AS timestamptz)
"""

# Markets whose coverage is about to be cut, locked against writers as a writer would. Parameters:
# cutoff.
LOCK_OLD: Final = f"""
SELECT pg_advisory_xact_lock({TRADE_LOCK}, m.market_id)
  FROM (SELECT DISTINCT market_id FROM trade_coverage
         WHERE since < CAST(:cutoff AS timestamptz) ORDER BY 1) m
"""

# Complete stretches that are no longer stored, because their chunk was dropped: a chunk is made
# with the first row in it. Columns: market_id, since, until, source, reason, left (what is in
# chunks of it).
DROPPED: Final = """
SELECT c.market_id, c.since, c.until, c.source, c.reason,
       ARRAY(SELECT lower(r) FROM unnest(k.ranges * tstzmultirange(tstzrange(c.since, c.until))) r)
           AS sinces,
       ARRAY(SELECT upper(r) FROM unnest(k.ranges * tstzmultirange(tstzrange(c.since, c.until))) r)
           AS untils
  FROM trade_coverage c,
       (SELECT coalesce(range_agg(tstzrange(range_start, range_end)), '{}') AS ranges
          FROM timescaledb_information.chunks
         WHERE hypertable_schema = current_schema() AND hypertable_name = 'trades') k
 WHERE c.status = 'complete' AND NOT tstzrange(c.since, c.until) <@ k.ranges
 ORDER BY c.market_id, c.since
"""


async def trim(connection: AsyncConnection, cutoff: datetime) -> None:
    """Forget everything before `cutoff`, whose trades are dropped."""
    await connection.execute(text(LOCK_OLD), {"cutoff": cutoff})
    await connection.execute(text(TRIM), {"cutoff": cutoff})


async def forget_dropped(connection: AsyncConnection) -> int:
    """Take back `complete` where the chunks are gone; returns how many stretches it cut.

    Background jobs and `drop_chunks` say nothing to anybody. For engines with hypertables.
    """
    ids = {row.market_id for row in await connection.execute(text(DROPPED))}
    if not ids:
        return 0
    await connection.execute(text(LOCK), {"ids": sorted(ids)})
    # Once more, now that nobody writes them.
    rows = (await connection.execute(text(DROPPED))).all()
    cut = 0
    for row in rows:
        if row.market_id not in ids:
            continue
        stretch = Stretch(row.since, row.until, "complete", row.source, row.reason)
        left = [
            Stretch(since, until, "complete", row.source, row.reason)
            for since, until in zip(row.sinces, row.untils, strict=True)
        ]
        await _replace(connection, row.market_id, [stretch], left)
        cut += 1
    return cut


async def read(
    connection: AsyncConnection,
    market_id: int,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Stretch]:
    """What is known about [since, until), by time; the stretches reach beyond it where they do."""
    low = since or datetime.fromisoformat("0001-01-02T00:00:00+00:00")
    high = until or datetime.fromisoformat("9000-01-01T00:00:00+00:00")
    rows = await connection.execute(
        text(NEAR), {"market_id": market_id, "since": low, "until": high}
    )
    return [Stretch(*row) for row in rows if row.until > low and row.since < high]


async def state(
    connection: AsyncConnection, stated: Mapping[int, Iterable[Stretch]]
) -> dict[int, list[Stretch]]:
    """Record what is known by market id; returns what of it was not known before.

    In the transaction of the rows, after them. Nothing but rows being stored makes a stretch
    `complete`, and what is complete or confirmed to be empty stays so when a later fetch fails.
    """
    wanted = {market_id: _disjoint(stretches) for market_id, stretches in stated.items()}
    wanted = {market_id: stretches for market_id, stretches in wanted.items() if stretches}
    if not wanted:
        return {}
    await connection.execute(text(LOCK), {"ids": list(wanted)})
    result = await _extend(connection, wanted)
    for market_id, stretches in wanted.items():
        if market_id not in result:
            result[market_id] = await _state_one(connection, market_id, stretches)
    return result


def _disjoint(stated: Iterable[Stretch]) -> list[Stretch]:
    """By time; of two that overlap the later one counts there. Those of no length are left out."""
    result: list[Stretch] = []
    for one in stated:
        if one.since < one.until:
            result = overlay(result, [cut(one)])
    return result


async def _extend(
    connection: AsyncConnection, wanted: Mapping[int, Sequence[Stretch]]
) -> dict[int, list[Stretch]]:
    """One statement for all markets whose newest stretch goes on."""
    single = {m: s[0] for m, s in wanted.items() if len(s) == 1 and s[0].status == "complete"}
    if not single:
        return {}
    rows = await connection.execute(
        text(EXTEND),
        {
            "ids": list(single),
            "sinces": [s.since for s in single.values()],
            "untils": [s.until for s in single.values()],
            "sources": [s.source for s in single.values()],
        },
    )
    return {row.market_id: [single[row.market_id]] for row in rows}


async def _state_one(
    connection: AsyncConnection, market_id: int, stated: Sequence[Stretch]
) -> list[Stretch]:
    near = {
        "market_id": market_id,
        "since": stated[0].since,
        "until": max(one.until for one in stated),
    }
    known = [Stretch(*row) for row in await connection.execute(text(NEAR), near)]
    wanted = yielding(stated, known)
    await _replace(connection, market_id, known, overlay(known, wanted))
    return unknown(wanted, known)


async def _replace(
    connection: AsyncConnection,
    market_id: int,
    known: Sequence[Stretch],
    after: Sequence[Stretch],
) -> None:
    await replace_rows(connection, DELETE, INSERT, {"market_id": market_id}, known, after)
