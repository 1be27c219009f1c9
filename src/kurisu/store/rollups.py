"""Keeps the continuous aggregates right on TimescaleDB Community.

On the other two tiers triggers keep the rollups in the writer's own transaction, and nothing
here has anything to do. On Community a refresh cannot run in a transaction, so a writer leaves
the touched range in `rollup_pending` with its rows, commits, and refreshes.

The aggregates are real-time: what lies above the watermark is read from the candles themselves,
so a live writer has nothing to refresh. Everything below it is refreshed, smallest level first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kurisu.domain.timeframe import BASE, ROLLUPS, Timeframe
from kurisu.errors import DatabaseError, WriteRefused
from kurisu.store.connect import INSUFFICIENT_PRIVILEGE, autocommit, driver, sqlstate, transaction

#: One refresh at a time per database; overlapping ones leave duplicate or missing bars in some
#: versions and fail in others.
REFRESH_LOCK: Final = 7_295_412_202
#: Ranges that are closer than a chunk are refreshed as one: each call has a price of its own,
#: and TimescaleDB recomputes only what was changed.
MERGE_WITHIN: Final = timedelta(days=7)
#: A policy's own refresh may hold what we need; it is short.
ATTEMPTS: Final = 8
FIRST_PAUSE_S: Final = 0.05
#: After so many attempts it may be one that failed or was killed, and its work is done for it.
PATIENT: Final = 3
#: What a concurrent refresh of the same aggregate has been seen to raise: lock_not_available,
#: object_in_use, object_not_in_prerequisite_state, deadlock, serialization, and unique_violation
#: where it stored the same bar first.
_IN_THE_WAY: Final = ("55P03", "55006", "55000", "40P01", "40001", "23505")


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of time, `until` exclusive."""

    since: datetime
    until: datetime


def merge(ranges: Sequence[Range], within: timedelta = timedelta(0)) -> list[Range]:
    """The union of `ranges`, in order; two that are at most `within` apart become one."""
    merged: list[Range] = []
    for found in sorted(ranges, key=lambda r: r.since):
        if merged and found.since <= merged[-1].until + within:
            merged[-1] = Range(merged[-1].since, max(merged[-1].until, found.until))
        else:
            merged.append(found)
    return merged


def cover(wanted: Range, frame: Timeframe) -> Range:
    """The whole bars of `frame` that touch `wanted`."""
    return Range(frame.open_time(wanted.since), frame.ceil(wanted.until))


#: The background policies look back this far; what is older they never see.
POLICY_WINDOW: Final = timedelta(days=7)
#: Before all candles; the driver sends it as -infinity.
ANCIENT: Final = datetime.min.replace(tzinfo=UTC)
#: TimescaleDB's watermark of an aggregate with nothing in it is in 4714 BC.
_BEGINNING: Final = "TIMESTAMPTZ '1970-01-01 00:00:00+00'"

# Up to where each aggregate is materialised. Columns: view, watermark.
WATERMARKS: Final = f"""
SELECT c.view_name AS view,
       greatest(_timescaledb_functions.to_timestamp(
           _timescaledb_functions.cagg_watermark(h.id)), {_BEGINNING}) AS watermark
  FROM timescaledb_information.continuous_aggregates c
  JOIN _timescaledb_catalog.hypertable h
    ON h.schema_name = c.materialization_hypertable_schema
   AND h.table_name = c.materialization_hypertable_name
 WHERE c.view_schema = current_schema() AND c.view_name LIKE 'ohlcv\\_%'
"""

# Up to where any aggregate is materialised, or is about to be: a refresh says where it ends in a
# transaction of its own, before it looks at candles, and moves the watermark when it has stored
# their bars. What is committed before it says so is in them. Columns: until.
BEGUN: Final = f"""
SELECT max(greatest(
           _timescaledb_functions.to_timestamp(
               _timescaledb_functions.cagg_watermark(c.mat_hypertable_id)),
           _timescaledb_functions.to_timestamp(t.watermark), {_BEGINNING})) AS until
  FROM _timescaledb_catalog.continuous_agg c
  LEFT JOIN _timescaledb_catalog.continuous_aggs_invalidation_threshold t
    ON t.hypertable_id = c.raw_hypertable_id
 WHERE c.user_view_schema = current_schema() AND c.user_view_name LIKE 'ohlcv\\_%'
"""

# What a refresh may not go beyond. Columns: now, oldest_chunk (null if there are no candles),
# horizon (before it candles may have been dropped; null if never).
BOUNDS: Final = """
SELECT now() AS now,
       (SELECT min(range_start) FROM timescaledb_information.chunks
         WHERE hypertable_schema = current_schema() AND hypertable_name = 'ohlcv')
           AS oldest_chunk,
       (SELECT greatest(dropped_before,
                        CASE WHEN EXISTS (SELECT 1 FROM ohlcv_1d
                                           WHERE time < now() - drop_after)
                             THEN now() - drop_after END)
          FROM retention_policies WHERE relation = 'ohlcv') AS horizon
"""

# Newest 1m candle of any market: an index probe each. Without the timeframe the planner may walk
# the time index past every native bar that is newer. Columns: time (open time).
NEWEST_CANDLE: Final = """
SELECT max(n.time) AS time
  FROM candle_series s
 CROSS JOIN LATERAL (SELECT time FROM ohlcv o
                      WHERE o.market_id = s.market_id AND o.timeframe = s.timeframe
                      ORDER BY time DESC LIMIT 1) n
 WHERE s.timeframe = '1m'
"""

# An aggregate whose newest stored bar lies above its watermark. Parameters: name (qualified).
# Columns: id.
HIDDEN: Final = """
SELECT h.id FROM _timescaledb_catalog.hypertable h
 WHERE format('%I.%I', h.schema_name, h.table_name) = :name
   AND _timescaledb_functions.cagg_watermark(h.id)
       < _timescaledb_functions.cagg_watermark_materialized(h.id)
"""

# Bars of the lowest level from the candles that are there, written as a trigger would write them:
# one that has more candles inside than are there stays as it is. Parameters: since, until (whole
# bars), and the table behind the aggregate.
KEEP: Final = """
INSERT INTO {table} AS m (time, market_id, open, high, low, close, volume, bars)
SELECT date_bin('{length} seconds', time, TIMESTAMPTZ '1970-01-01 00:00:00+00'), market_id,
       (array_agg(open ORDER BY time))[1], max(high), min(low),
       (array_agg(close ORDER BY time DESC))[1], sum(volume), count(*)::integer
  FROM ohlcv
 WHERE timeframe = '1m' AND time >= CAST(:since AS timestamptz)
   AND time < CAST(:until AS timestamptz)
 GROUP BY 1, 2
ON CONFLICT (market_id, time) DO UPDATE
   SET open = excluded.open, high = excluded.high, low = excluded.low,
       close = excluded.close, volume = excluded.volume, bars = excluded.bars
 WHERE m.bars <= excluded.bars
   AND (m.open, m.high, m.low, m.close, m.volume, m.bars) IS DISTINCT FROM
       (excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume,
        excluded.bars)
"""


async def materialization(connection: AsyncConnection, name: str) -> str:
    """The table behind a continuous aggregate, quoted. `name` is a timeframe's."""
    found = await connection.scalar(
        text(
            "SELECT format('%I.%I', materialization_hypertable_schema, "
            "materialization_hypertable_name) FROM timescaledb_information.continuous_aggregates "
            "WHERE view_schema = current_schema() AND view_name = :view"
        ),
        {"view": f"ohlcv_{name}"},
    )
    if found is None:
        raise DatabaseError(f"ohlcv_{name} is not a continuous aggregate; run `kurisu db upgrade`.")
    return str(found)


# Bars that a refresh has still to make. market_id is null where they may be anybody's.
NOTE: Final = """
INSERT INTO rollup_pending (market_id, since, until) VALUES (:market_id, :since, :until)
"""

# How one aggregate stores its bars. Its table may be read as it is below the watermark, but for
# what a writer has left for a refresh; elsewhere the candles themselves count, which are all there
# behind the horizon. Parameters: view, market_id. Columns: table (qualified), watermark, horizon
# (before it candles may have been dropped; null if never), stale_since and stale_until (null if
# nothing is), series (timeframes that the market has candles of).
STORED: Final = f"""
SELECT format('%I.%I', h.schema_name, h.table_name) AS table,
       greatest(_timescaledb_functions.to_timestamp(
           _timescaledb_functions.cagg_watermark(h.id)), {_BEGINNING}) AS watermark,
       (SELECT greatest(dropped_before, now() - drop_after)
          FROM retention_policies WHERE relation = 'ohlcv') AS horizon,
       p.stale_since, p.stale_until,
       ARRAY(SELECT timeframe FROM candle_series WHERE market_id = $2) AS series
  FROM _timescaledb_catalog.continuous_agg c
  JOIN _timescaledb_catalog.hypertable h ON h.id = c.mat_hypertable_id
 CROSS JOIN (
    SELECT min(since) AS stale_since, max(until) AS stale_until
      FROM (SELECT since, until FROM rollup_pending WHERE market_id = $2
             UNION ALL SELECT since, until FROM rollup_pending WHERE market_id IS NULL) AS r) AS p
 WHERE c.user_view_schema = current_schema() AND c.user_view_name = $1
"""


@dataclass(frozen=True, slots=True)
class StoredBars:
    """Where the bars of a market's rollup are, on Community.

    table: of the materialised bars, which are all those before `watermark`.
    stale: in which of them a writer's candles may be missing, as far as they can be made anew.
    horizon: every candle from there on is still there, so that bars can be made from candles; None
        if nothing was ever dropped.
    series: names of the timeframes that the market has candles of; asked for with the rest because
        whoever reads bars wants them, too.
    """

    table: str
    watermark: datetime
    stale: Range | None
    horizon: datetime | None
    series: frozenset[str]

    def stale_within(self, since: datetime, until: datetime) -> Range:
        """What is stale of [since, until); maybe nothing."""
        if self.stale is None:
            return Range(since, since)
        first = min(max(self.stale.since, since), until)
        return Range(first, max(first, min(self.stale.until, until)))


async def stored_bars(connection: AsyncConnection, frame: Timeframe, market_id: int) -> StoredBars:
    """Where the bars of `frame` are read from without the aggregate's view.

    To plan the view of 1d takes the server 7 ms, because it holds four more real-time views; and it
    does not know what is left for a refresh.
    """
    row = await (await driver(connection)).fetchrow(STORED, f"ohlcv_{frame.name}", market_id)
    if row is None:
        raise DatabaseError(
            f"ohlcv_{frame.name} is not a continuous aggregate; run `kurisu db upgrade`."
        )
    stale = None
    if row["stale_since"] is not None:
        stale = cover(Range(row["stale_since"], row["stale_until"]), frame)
        if row["horizon"] is not None:
            stale = Range(max(stale.since, frame.ceil(row["horizon"])), stale.until)
    return StoredBars(
        row["table"], row["watermark"], stale, row["horizon"], frozenset(row["series"])
    )


async def watermarks(connection: AsyncConnection) -> dict[str, datetime]:
    """Up to where each aggregate is materialised, by timeframe name."""
    rows = await connection.execute(text(WATERMARKS))
    return {row.view.removeprefix("ohlcv_"): row.watermark for row in rows}


async def begun(connection: AsyncConnection) -> datetime:
    """Up to where bars are materialised, or about to be, of whatever timeframe."""
    found: datetime = await connection.scalar(text(BEGUN))
    return found


#: Ranges by the id of the market whose candles were written there; None for any market.
Touched = Mapping[int | None, Sequence[Range]]


async def note_pending(connection: AsyncConnection, touched: Touched) -> bool:
    """Leave `touched` for a refresh, in the writer's transaction, where it needs one.

    It does where it reaches below what is materialised or about to be, or back past what the
    background policies look at.
    """
    now = await connection.scalar(text("SELECT now()"))
    edge = max(await begun(connection), now - POLICY_WINDOW + timedelta(days=1))
    wanted = [
        {"market_id": market_id, "since": one.since, "until": one.until}
        for market_id, ranges in touched.items()
        for one in merge([r for r in ranges if r.since < edge], MERGE_WITHIN)
    ]
    if wanted:
        await connection.execute(text(NOTE), wanted)
    return bool(wanted)


async def settle(database: AsyncEngine, touched: Touched, *, noted: bool) -> None:
    """After the writer's commit: refresh what it touched, and what killed writers left behind.

    noted: what `note_pending` returned. Where it saw no need, a refresh by somebody else may have
    moved a watermark over the rows between that look and the commit; a second look finds that.
    """
    if any(touched.values()) and not noted:
        async with transaction(database) as connection:
            await note_pending(connection, touched)
    try:
        await refresh_pending(database)
    except WriteRefused:
        raise
    except DatabaseError as error:
        raise DatabaseError(
            "the candles are stored, but not all of their bars are up to date; the next write sees "
            f"to it, or `kurisu db maintain`. What went wrong: {error}"
        ) from error


#: How a session refreshes, for as long as it takes: a role's own statement_timeout is for
#: questions. To aggregate chunk by chunk and then once more takes a third longer, where a bar lies
#: in one chunk.
REFRESHING: Final = {
    "statement_timeout": "0",
    "timescaledb.enable_chunkwise_aggregation": "off",
}
# Settings of the session, as far as the server has them. Parameters: names, values.
SET: Final = """
SELECT set_config(s.name, w.value, false)
  FROM unnest(CAST(:names AS text[]), CAST(:values AS text[])) AS w(name, value)
  JOIN pg_settings s ON s.name = w.name
"""
# As they were when the session began. Parameters: names.
RESET: Final = """
SELECT set_config(name, reset_val, false) FROM pg_settings
 WHERE name = ANY(CAST(:names AS text[]))
"""


@contextlib.asynccontextmanager
async def _refreshing(connection: AsyncConnection) -> AsyncIterator[None]:
    """One session refreshes at a time; whoever comes later waits."""
    names, values = list(REFRESHING), list(REFRESHING.values())
    # Before the lock: a statement keeps the timeout that it began with.
    await connection.execute(text(SET), {"names": names, "values": values})
    try:
        await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": REFRESH_LOCK})
        try:
            yield
        finally:
            # A session that was lost has no lock any more.
            if not connection.invalidated:
                await connection.execute(
                    text("SELECT pg_advisory_unlock(:key)"), {"key": REFRESH_LOCK}
                )
    finally:
        if not connection.invalidated:
            await connection.execute(text(RESET), {"names": names})


async def refresh_pending(database: AsyncEngine) -> list[Range]:
    """Refresh every range that a writer left behind; returns what was refreshed."""
    async with autocommit(database) as connection:
        if not await connection.scalar(text("SELECT EXISTS (SELECT 1 FROM rollup_pending)")):
            return []
        async with _refreshing(connection):
            rows = (
                await connection.execute(text("SELECT id, since, until FROM rollup_pending"))
            ).all()
            ranges = merge([Range(row.since, row.until) for row in rows], MERGE_WITHIN)
            if ranges and await _refresh(connection, ranges):
                await connection.execute(
                    text("DELETE FROM rollup_pending WHERE id = ANY(:ids)"),
                    {"ids": [row.id for row in rows]},
                )
            return ranges


async def _refresh(connection: AsyncConnection, ranges: Sequence[Range]) -> bool:
    """False if a background refresh was in the way; then there is something left to do."""
    bounds = (await connection.execute(text(BOUNDS))).one()
    if bounds.oldest_chunk is None:
        return True
    done = True
    for frame in ROLLUPS:
        watermark = (await watermarks(connection))[frame.name]
        for found in ranges:
            # What lies between the watermark and the range is read from candles now and would be
            # read as materialised once the watermark has moved past it.
            since = min(found.since, watermark) if found.until > watermark else found.since
            wanted = cover(Range(max(since, bounds.oldest_chunk), found.until), frame)
            # A refresh below the oldest chunk would find no candles and delete the bars. One of
            # the bar in progress would move the watermark past it, and every further candle of
            # that bar would need a refresh; it stays above, where bars are read from candles.
            within = Range(ANCIENT, frame.open_time(bounds.now))
            wanted = Range(
                max(wanted.since, frame.ceil(bounds.oldest_chunk)), min(wanted.until, within.until)
            )
            if frame is ROLLUPS[0] and bounds.horizon is not None:
                wanted = await _keep(connection, wanted, frame, bounds.horizon)
                within = Range(frame.ceil(bounds.horizon), within.until)
            if wanted.since < wanted.until:
                done = await refresh(connection, frame, wanted, within=within) and done
    return done


async def _keep(
    connection: AsyncConnection, wanted: Range, frame: Timeframe, horizon: datetime
) -> Range:
    """Bring bars before `horizon` up to date without a refresh; returns what is left of `wanted`.

    Candles there may have been dropped by retention, and a refresh would delete their bars. Only
    the lowest level is made from candles; the others are made from bars, which are all there.
    """
    edge = min(frame.ceil(horizon), wanted.until)
    if wanted.since >= edge:
        return wanted
    table = await materialization(connection, frame.name)
    await connection.execute(
        text(KEEP.format(table=table, length=frame.seconds)),
        {"since": wanted.since, "until": edge},
    )
    await show(connection, frame)
    return Range(edge, wanted.until)


async def show(connection: AsyncConnection, frame: Timeframe) -> None:
    """Make stored bars visible that lie above the watermark, where candles are read instead.

    Every candle up to the newest stored bar has to be in a stored bar. The connection is outside
    a transaction.
    """
    table = await materialization(connection, frame.name)
    if await connection.scalar(text(HIDDEN), {"name": table}) is None:
        return
    # A refresh moves the watermark behind the newest bar, but only if it changed something: it is
    # given a bar of no market to remove.
    await connection.execute(
        text(
            f"INSERT INTO {table} (time, market_id, open, high, low, close, volume, bars) "
            "VALUES (:time, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING"
        ),
        {"time": frame.origin},
    )
    removed = Range(frame.origin, frame.close_time(frame.origin))
    # By force: where it has been refreshed before, nothing has changed that TimescaleDB knows of.
    await refresh(connection, frame, removed, force=True)


# What refreshes have said they will store of a range, and have not stored. One that is at it holds
# its row; of one that failed or was killed the row stays. Parameters: view, since, until, and last,
# beyond which nothing is asked. Columns: ranges (how many), since (null before 1970), until.
UNSTORED: Final = """
SELECT count(*) AS ranges,
       CASE WHEN min(r.lowest_modified_value) >= 0
            THEN _timescaledb_functions.to_timestamp(min(r.lowest_modified_value)) END AS since,
       _timescaledb_functions.to_timestamp(least(
           max(r.greatest_modified_value),
           _timescaledb_functions.to_unix_microseconds(CAST(:last AS timestamptz)))) AS until
  FROM _timescaledb_catalog.continuous_aggs_materialization_ranges r
  JOIN _timescaledb_catalog.continuous_agg c ON c.mat_hypertable_id = r.materialization_id
 WHERE c.user_view_schema = current_schema() AND c.user_view_name = :view
   AND r.lowest_modified_value
       < _timescaledb_functions.to_unix_microseconds(CAST(:until AS timestamptz))
   AND r.greatest_modified_value
       > _timescaledb_functions.to_unix_microseconds(CAST(:since AS timestamptz))
"""


async def refresh(
    connection: AsyncConnection,
    frame: Timeframe,
    part: Range,
    *,
    within: Range | None = None,
    force: bool = False,
) -> bool:
    """CALL refresh_continuous_aggregate, again while another refresh is in the way.

    within: how far it may go beyond `part` to store what another refresh left when it failed or was
        killed; TimescaleDB takes that up only as a whole. None for nowhere.
    force: also where TimescaleDB knows of no change.
    False if the other one has not ended after some time, or began before `within`. Raises
    WriteRefused to a role that does not own the aggregate.
    """
    view = f"ohlcv_{frame.name}"
    left = await _unstored(connection, view, part, within)
    for attempt in range(ATTEMPTS):
        asked = part
        if left is not None and within is not None:
            if left.since < within.since:
                return False
            if attempt >= PATIENT:
                asked = Range(min(part.since, left.since), max(part.until, left.until))
        try:
            await connection.execute(
                text(
                    f"CALL refresh_continuous_aggregate('{view}', "
                    "CAST(:since AS timestamptz), CAST(:until AS timestamptz), "
                    f"force => {force})"
                ),
                {"since": asked.since, "until": asked.until},
            )
            left = await _unstored(connection, view, part, within)
            if left is None:
                return True
        except DBAPIError as error:
            if sqlstate(error) == INSUFFICIENT_PRIVILEGE:
                raise WriteRefused(
                    "the candles are stored, but their bars are not up to date: only the owner of "
                    f"{view} may refresh it. Let the owner run `kurisu db maintain`, or GRANT the "
                    "owner's role to this one."
                ) from error
            if sqlstate(error) not in _IN_THE_WAY:
                raise
        await asyncio.sleep(FIRST_PAUSE_S * 2**attempt)
    return False


async def _unstored(
    connection: AsyncConnection, view: str, part: Range, within: Range | None
) -> Range | None:
    """What other refreshes have still to store that touches `part`, up to the end of `within`."""
    # Since 2.22 a refresh passes over bars that another one is about to store.
    table = "_timescaledb_catalog.continuous_aggs_materialization_ranges"
    if await connection.scalar(text("SELECT to_regclass(:table)"), {"table": table}) is None:
        return None
    last = part.until if within is None else within.until
    where = {"view": view, "since": part.since, "until": part.until, "last": last}
    row = (await connection.execute(text(UNSTORED), where)).one()
    return Range(row.since or ANCIENT, row.until) if row.ranges else None


async def refresh_all(database: AsyncEngine) -> list[Range]:
    """Refresh whatever is out of date, whoever wrote it (`kurisu db maintain`).

    Rows that somebody else wrote below the watermark are in nobody's list, but TimescaleDB knows
    about them; asking for the whole range above the horizon recomputes only those.
    """
    async with autocommit(database) as connection:
        bounds = (await connection.execute(text(BOUNDS))).one()
        newest = await connection.scalar(text(NEWEST_CANDLE))
        highest = max((await watermarks(connection)).values())
        if bounds.oldest_chunk is not None and newest is not None:
            since = max(bounds.oldest_chunk, bounds.horizon or bounds.oldest_chunk)
            until = max(newest + BASE.length, highest)
            if since < until:
                await connection.execute(
                    text(NOTE), {"market_id": None, "since": since, "until": until}
                )
    return await refresh_pending(database)
