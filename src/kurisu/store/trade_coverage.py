"""Which stretches of a market's trades are stored, whole (`trade_coverage`).

As `coverage` for candles, without a timeframe: a stretch is in whole milliseconds. The lock is one
of its own, so that neither candles nor trades of a market wait for the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.store.coverage import Stretch, overlay, without

#: Advisory lock of a market's trade coverage; its trigger takes the same one.
TRADE_LOCK: Final = 1_264_939_595
#: `trade_coverage.reason` has room for so many characters.
MAX_REASON_CHARS: Final = 500


@dataclass(frozen=True, slots=True, order=True)
class TradeStretch(Stretch):
    """A stretch of trades, in whole milliseconds. Two of different reasons are not equal."""

    reason: str | None = None


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
        stretch = TradeStretch(row.since, row.until, "complete", row.source, row.reason)
        left = [
            TradeStretch(since, until, "complete", row.source, row.reason)
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
) -> list[TradeStretch]:
    """What is known about [since, until), by time; the stretches reach beyond it where they do."""
    low = since or datetime.fromisoformat("0001-01-02T00:00:00+00:00")
    high = until or datetime.fromisoformat("9000-01-01T00:00:00+00:00")
    rows = await connection.execute(
        text(NEAR), {"market_id": market_id, "since": low, "until": high}
    )
    return [TradeStretch(*row) for row in rows if row.until > low and row.since < high]


async def state(
    connection: AsyncConnection, stated: Mapping[int, Iterable[TradeStretch]]
) -> dict[int, list[TradeStretch]]:
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


def _disjoint(stated: Iterable[TradeStretch]) -> list[TradeStretch]:
    """By time; of two that overlap the later one counts there. Those of no length are left out."""
    result: list[TradeStretch] = []
    for one in stated:
        if one.since < one.until:
            result = overlay(result, [one])
    return result


async def _extend(
    connection: AsyncConnection, wanted: Mapping[int, Sequence[TradeStretch]]
) -> dict[int, list[TradeStretch]]:
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
    connection: AsyncConnection, market_id: int, stated: Sequence[TradeStretch]
) -> list[TradeStretch]:
    near = {
        "market_id": market_id,
        "since": stated[0].since,
        "until": max(one.until for one in stated),
    }
    known = [TradeStretch(*row) for row in await connection.execute(text(NEAR), near)]
    wanted = _yielding(stated, known)
    await _replace(connection, market_id, known, overlay(known, wanted))
    return without(wanted, known, same_status=True)


async def _replace(
    connection: AsyncConnection,
    market_id: int,
    known: Sequence[TradeStretch],
    after: Sequence[TradeStretch],
) -> None:
    before, later = set(known), set(after)
    gone = [one.since for one in known if one not in later]
    new = [one for one in after if one not in before]
    if gone:
        await connection.execute(text(DELETE), {"market_id": market_id, "sinces": gone})
    if new:
        await connection.execute(
            text(INSERT),
            {
                "market_id": market_id,
                "sinces": [one.since for one in new],
                "untils": [one.until for one in new],
                "statuses": [one.status for one in new],
                "sources": [one.source for one in new],
                "reasons": [_short(one.reason) for one in new],
            },
        )


def _short(reason: str | None) -> str | None:
    return None if reason is None else reason[:MAX_REASON_CHARS]


def _yielding(stated: Sequence[TradeStretch], known: Sequence[TradeStretch]) -> list[TradeStretch]:
    """What is left of `stated` where better is known: trades that are stored stay stored."""
    facts = [one for one in known if one.status in ("complete", "empty")]
    complete = [one for one in known if one.status == "complete"]
    left: list[TradeStretch] = []
    for one in stated:
        better = {"complete": [], "empty": complete}.get(one.status, facts)
        left += without([one], better, same_status=False)
    return sorted(left)


def missing(
    known: Sequence[TradeStretch], since: datetime, until: datetime
) -> list[tuple[datetime, datetime]]:
    """The parts of [since, until) that are neither complete nor confirmed to be empty, by time."""
    whole = [TradeStretch(since, until, "", "")]
    sure = [one for one in known if one.status in ("complete", "empty")]
    return [(one.since, one.until) for one in without(whole, sure, same_status=False)]
