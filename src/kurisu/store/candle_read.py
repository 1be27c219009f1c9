"""Reads candles of any timeframe, exactly.

A bar is made from 1m candles where there are any inside it: read from its rollup, or derived from
the largest rollup that divides it. Where there is none, it is the exchange's own bar of that
timeframe, else it is derived from the finest stored one that divides it. One bar never mixes
sources, and the table's metadata says which were used.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import pyarrow as pa
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.timeframe import BASE, ROLLUPS, TIMEFRAMES, Timeframe
from kurisu.errors import DatabaseError
from kurisu.store import rollups
from kurisu.store.candle_rows import NUMBERS, times_us
from kurisu.store.candle_table import SOURCES
from kurisu.store.candle_write import COLUMN_KINDS
from kurisu.store.connect import driver
from kurisu.store.copy_binary import ColumnKind, copy_to_arrow
from kurisu.store.engine import Engine
from kurisu.store.literals import inline_arguments

#: The columns of bars.
KINDS_WITH_BARS: Final = (*COLUMN_KINDS, ("bars", ColumnKind.INT4))
_LATEST_SCHEMA: Final = pa.schema(
    [("market_id", pa.int32()), *((name, kind.arrow_type) for name, kind in KINDS_WITH_BARS)]
)
BARS_SCHEMA: Final = _LATEST_SCHEMA.remove(0)
_VALUES: Final = ", ".join(NUMBERS)
_MINUTES: Final = " AND timeframe = '1m'"
#: What stands for "from the beginning" and "to the end".
EARLIEST: Final = datetime(1900, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(9000, 1, 1, tzinfo=UTC)

# Timeframes that a market has candles of. Parameters: market_id. Columns: timeframe.
SERIES: Final = "SELECT timeframe FROM candle_series WHERE market_id = $1"


# Whether a market has 1m candles in a range. Parameters: market_id, since, until. Columns: exists.
ANY_MINUTE: Final = """
SELECT EXISTS (SELECT 1 FROM ohlcv
                WHERE market_id = $1 AND timeframe = '1m' AND time >= $2 AND time < $3)
"""


# Newest candle of a market, of whatever timeframe: an index probe for each that it has. Without the
# timeframe the planner may walk the time index past the newer rows of every other market. Where
# retention has dropped the candles, their bars are left. Parameters: market_id, before. Columns:
# time.
NEWEST: Final = """
SELECT greatest(max(n.time), (SELECT time FROM ohlcv_1d d
                               WHERE d.market_id = :market_id
                                 AND d.time < CAST(:before AS timestamptz)
                               ORDER BY time DESC LIMIT 1)) AS time
  FROM candle_series s
 CROSS JOIN LATERAL (SELECT time FROM ohlcv o
                      WHERE o.market_id = s.market_id AND o.timeframe = s.timeframe
                        AND o.time < CAST(:before AS timestamptz)
                      ORDER BY time DESC LIMIT 1) n
 WHERE s.market_id = :market_id
"""


# Markets of which not every bar of a rollup is in it: those that have native bars finer than it,
# and (on Community) those whose candles wait for a refresh. Parameters: ids, finer (names of
# timeframes). Columns: market_id (null: any).
NOT_STORED: Final = """
SELECT market_id FROM candle_series
 WHERE market_id = ANY(CAST(:ids AS integer[])) AND timeframe = ANY(CAST(:finer AS text[]))
 UNION
SELECT market_id FROM rollup_pending
 WHERE market_id IS NULL OR market_id = ANY(CAST(:ids AS integer[]))
"""


def bucket(frame: Timeframe, column: str = "time") -> str:
    """SQL: the open time of the bar of `frame` that contains `column`."""
    if frame.is_calendar:
        return f"date_trunc('month', {column} AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    return (
        f"date_bin('{frame.seconds} seconds', {column}, "
        f"TIMESTAMPTZ '{frame.origin:%Y-%m-%d} 00:00:00+00')"
    )


def aggregate(frame: Timeframe, relation: str, where: str, bars: str) -> str:
    """SQL: bars of `frame` from the rows of `relation`. Columns: time, the numbers, bars."""
    return (
        f"SELECT {bucket(frame)} AS time, (array_agg(open ORDER BY time))[1] AS open, "
        "max(high) AS high, min(low) AS low, "
        "(array_agg(close ORDER BY time DESC))[1] AS close, sum(volume) AS volume, "
        f"{bars}::integer AS bars FROM {relation} WHERE {where} GROUP BY 1"
    )


def rollup_below(frame: Timeframe) -> Timeframe:
    """The largest of 1m and the rollups that divides `frame`."""
    return next(f for f in (*reversed(ROLLUPS), BASE) if f.divides(frame))


async def _series(connection: AsyncConnection, market_id: int) -> Collection[str]:
    """Names of the timeframes that a market has candles of."""
    rows = await (await driver(connection)).fetch(SERIES, market_id)
    return {row["timeframe"] for row in rows}


def opens_between(
    frame: Timeframe, since: datetime | None, until: datetime | None
) -> tuple[datetime, datetime]:
    """The first open times of `frame` at or after `since` and `until`; None is without bound.

    No candle lies outside of what None stands for, so that a bound beyond it means the same, and
    the bar after the last day of the calendar is never asked for.
    """
    low = EARLIEST if since is None else frame.ceil(min(max(since, EARLIEST), LATEST))
    high = LATEST if until is None else frame.ceil(min(max(until, EARLIEST), LATEST))
    return low, high


async def read(
    connection: AsyncConnection,
    engine: Engine,
    market_id: int,
    frame: Timeframe,
    since: datetime | None,
    until: datetime | None,
) -> pa.Table:
    """Bars of one market that open in [since, until), by time; see `CandleTable` for columns."""
    low, high = opens_between(frame, since, until)
    if frame == BASE:
        table = await _copy(
            connection,
            f"SELECT time, {_VALUES} FROM ohlcv WHERE market_id = $1 AND timeframe = '1m' "
            "AND time >= $2 AND time < $3 ORDER BY time",
            [market_id, low, high],
            bars=False,
        )
        return with_sources(table, {BASE.name: table.num_rows})
    source = frame if frame in ROLLUPS else rollup_below(frame)
    stored = None
    if engine.is_community and source != BASE:
        stored = await rollups.stored_bars(connection, source, market_id)
    table = await _read_from_minutes(connection, stored, market_id, frame, source, low, high)
    parts = [(BASE.name, table)]
    series = await _series(connection, market_id) if stored is None else stored.series
    for native in (one for name, one in TIMEFRAMES.items() if name in series and one != BASE):
        if native == frame:
            # Before any derived one: the exchange's own bar comes first.
            parts.insert(
                1, (frame.name, await _read_native(connection, market_id, frame, low, high))
            )
        elif native.divides(frame) and native.seconds < frame.seconds:
            derived = await _copy(
                connection,
                aggregate(
                    frame, "ohlcv",
                    "market_id = $1 AND timeframe = $4 AND time >= $2 AND time < $3", "count(*)",
                )
                + " ORDER BY time",
                [market_id, low, high, native.name],
            )  # fmt: skip
            parts.append((native.name, derived))
    return _choose(parts)


async def _read_from_minutes(
    connection: AsyncConnection,
    stored: rollups.StoredBars | None,
    market_id: int,
    frame: Timeframe,
    source: Timeframe,
    low: datetime,
    high: datetime,
) -> pa.Table:
    """Bars of `frame`, from those of `source`; stored: of `source`, on Community."""
    arguments: list[object] = [market_id, low, high]
    if source == BASE:
        query = aggregate(frame, "ohlcv", _range(2) + _MINUTES, "count(*)")
    elif stored is not None:
        found = await _right_bars(connection, stored, market_id, source, low, high)
        if found is None:
            return BARS_SCHEMA.empty_table()
        query, arguments = found
    else:
        query = f"SELECT time, {_VALUES}, bars FROM ohlcv_{source.name} WHERE {_range(2)}"
    if source not in {frame, BASE}:
        query = aggregate(frame, f"({query}) AS r", "TRUE", "sum(bars)")
    return await _copy(connection, query + " ORDER BY time", arguments)


def _range(first: int) -> str:
    """SQL: candles of the market $1 that open from ${first} on, and before the next parameter."""
    return f"market_id = $1 AND time >= ${first} AND time < ${first + 1}"


async def _right_bars(
    connection: AsyncConnection,
    stored: rollups.StoredBars,
    market_id: int,
    frame: Timeframe,
    low: datetime,
    high: datetime,
) -> tuple[str, list[object]] | None:
    """SQL, and its arguments: bars of a rollup on Community; None if there are none.

    Stored ones where they are right, the rest from candles. That is what the aggregate's view says,
    too, but for what a writer has left for a refresh; and to plan it takes longer than to read a
    year. So does each part that is made from candles, which is left out where there is nothing.
    """
    edge = min(max(stored.watermark, low), high)
    stale = stored.stale_within(low, edge)
    # Above the watermark bars are made from candles, where those are all there.
    whole = edge if stored.horizon is None else min(max(frame.ceil(stored.horizon), edge), high)
    bars = f"SELECT time, {_VALUES}, bars FROM {{relation}} WHERE {{where}}"
    made = aggregate(frame, "{relation}", "{where}" + _MINUTES, "count(*)")
    # In a statement after the watermark's: what a refresh stores in between is in all of them.
    parts = [
        (bars, stored.table, low, stale.since),
        (made, "ohlcv", stale.since, stale.until),
        (bars, stored.table, stale.until, edge),
        (bars, f"ohlcv_{frame.name}", edge, whole),
        (made, "ohlcv", whole, high),
    ]
    queries: list[str] = []
    arguments: list[object] = [market_id]
    for query, relation, since, until in parts:
        if since >= until:
            continue
        if query is made and not await _has_minutes(connection, market_id, since, until):
            continue
        queries.append(f"({query.format(relation=relation, where=_range(len(arguments) + 1))})")
        arguments += [since, until]
    return (" UNION ALL ".join(queries), arguments) if queries else None


async def _has_minutes(
    connection: AsyncConnection, market_id: int, since: datetime, until: datetime
) -> bool:
    # With literals: a plan for parameters has every chunk in it.
    query = inline_arguments(ANY_MINUTE, [market_id, since, until])
    return bool(await (await driver(connection)).fetchval(query))


async def _read_native(
    connection: AsyncConnection, market_id: int, frame: Timeframe, low: datetime, high: datetime
) -> pa.Table:
    return await _copy(
        connection,
        f"SELECT time, {_VALUES}, NULL::integer AS bars FROM ohlcv WHERE market_id = $1 "
        "AND timeframe = $4 AND time >= $2 AND time < $3 ORDER BY time",
        [market_id, low, high, frame.name],
    )


async def _copy(
    connection: AsyncConnection, query: str, arguments: Sequence[object], *, bars: bool = True
) -> pa.Table:
    kinds = KINDS_WITH_BARS if bars else COLUMN_KINDS
    try:
        return await copy_to_arrow(await driver(connection), query, arguments, kinds)
    except ValueError as error:
        # Of a bar, since a candle with such a number is refused: volumes add up.
        raise DatabaseError(
            f"a bar cannot be given exactly: {error} Read it in shorter bars, or with SQL."
        ) from error


def _choose(parts: Sequence[tuple[str, pa.Table]]) -> pa.Table:
    """Of the bars with one open time the one from the earliest part; in order of time."""
    if len(parts) == 1:
        ((name, table),) = parts
        return with_sources(table, {name: table.num_rows})
    chosen: list[pa.Table] = []
    sources: Counter[str] = Counter()
    taken = np.empty(0, dtype=np.int64)
    for name, table in parts:
        time = times_us(table.column("time"))
        free = ~np.isin(time, taken)
        if not free.any():
            continue
        picked = table if free.all() else table.filter(pa.array(free))
        chosen.append(picked)
        sources[name] += picked.num_rows
        taken = np.concatenate((taken, time[free]))
    if not chosen:
        return with_sources(parts[0][1], {})
    if len(chosen) == 1:
        return with_sources(chosen[0], sources)
    return with_sources(pa.concat_tables(chosen).sort_by("time"), sources)


def with_sources(table: pa.Table, sources: dict[str, int]) -> pa.Table:
    """`table`, which says from then on how many of its bars came from which stored timeframe."""
    found = {name: count for name, count in sources.items() if count}
    return table.replace_schema_metadata({SOURCES: json.dumps(found)})


def _latest_query(frame: Timeframe) -> str:
    """SQL: newest bars of many markets, one index probe each.

    Parameters: market_ids, before, count. Columns: market_id, time, the numbers, bars.
    """
    if frame == BASE:
        own = (
            f"SELECT time, {_VALUES}, NULL::integer AS bars FROM ohlcv o "
            "WHERE o.market_id = m.id AND o.timeframe = '1m' AND o.time < $2 "
            "ORDER BY time DESC LIMIT $3"
        )
    else:
        own = (
            f"(SELECT time, {_VALUES}, bars FROM ohlcv_{frame.name} r "
            "WHERE r.market_id = m.id AND r.time < $2 ORDER BY time DESC LIMIT $3) "
            f"UNION ALL (SELECT time, {_VALUES}, NULL::integer FROM ohlcv o "
            f"WHERE o.market_id = m.id AND o.timeframe = '{frame.name}' AND o.time < $2 "
            f"AND NOT EXISTS (SELECT 1 FROM ohlcv_{frame.name} r "
            "WHERE r.market_id = m.id AND r.time = o.time) ORDER BY time DESC LIMIT $3) "
            "ORDER BY time DESC LIMIT $3"
        )
    return (
        f"SELECT m.id AS market_id, l.* FROM unnest(CAST($1 AS integer[])) AS m(id) "
        f"CROSS JOIN LATERAL ({own}) l ORDER BY m.id, l.time"
    )


async def latest(
    connection: AsyncConnection,
    engine: Engine,
    market_ids: Sequence[int],
    frame: Timeframe,
    count: int,
    before: datetime | None,
) -> pa.Table:
    """The newest `count` bars of each market that open before `before`, by market and time.

    Columns: market_id (int32) and those of `read`. One query, but for markets whose bars are to
    be derived on read: those are read one by one, from their last bars.
    """
    derived = set(await _derived_on_read(connection, market_ids, frame))
    stored = [market_id for market_id in market_ids if market_id not in derived]
    tables = [
        await copy_to_arrow(
            await driver(connection),
            _latest_query(frame),
            [stored, before or LATEST, count],
            (("market_id", ColumnKind.INT4), *KINDS_WITH_BARS),
        )
        if stored
        else _LATEST_SCHEMA.empty_table()
    ]
    for market_id in market_ids:
        if market_id in derived:
            table = await _latest_derived(connection, engine, market_id, frame, count, before)
            ids = pa.array(np.full(table.num_rows, market_id, dtype=np.int32))
            tables.append(table.add_column(0, "market_id", ids))
    table = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
    if derived and stored:
        table = table.sort_by([("market_id", "ascending"), ("time", "ascending")])
    return table.drop_columns("bars") if frame == BASE else table


async def _derived_on_read(
    connection: AsyncConnection, market_ids: Sequence[int], frame: Timeframe
) -> Collection[int]:
    """The markets whose bars of `frame` are not, or not all, stored as such."""
    if frame == BASE:
        return ()
    if frame not in ROLLUPS:
        return market_ids
    finer = [f.name for f in TIMEFRAMES.values() if f not in (BASE, frame) and f.divides(frame)]
    asked = {"ids": list(market_ids), "finer": finer}
    found = set(await connection.scalars(text(NOT_STORED), asked))
    return market_ids if None in found else found


async def _latest_derived(
    connection: AsyncConnection,
    engine: Engine,
    market_id: int,
    frame: Timeframe,
    count: int,
    before: datetime | None,
) -> pa.Table:
    newest = await connection.scalar(
        text(NEWEST), {"market_id": market_id, "before": before or LATEST}
    )
    if newest is None:
        return BARS_SCHEMA.empty_table()
    # As far back as `count` bars reach without holes, then everything if there were some.
    length_s = 31 * 86_400 if frame.is_calendar else frame.seconds
    reach_s = min(length_s * (count + 1), (newest - EARLIEST).total_seconds())
    since = newest - timedelta(seconds=reach_s)
    table = await read(connection, engine, market_id, frame, since, before)
    if table.num_rows < count:
        table = await read(connection, engine, market_id, frame, None, before)
    return table.slice(max(0, table.num_rows - count)).replace_schema_metadata(None)
