"""The physical layout: hypertables, columnstore and continuous aggregates, as the engine allows.

The migrations make the same tables everywhere. This module turns them into what the engine under
them can do, after every upgrade and again whenever the engine has changed: a database that began
on plain PostgreSQL becomes a TimescaleDB one here. Running it twice changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kurisu.domain.timeframe import ROLLUPS
from kurisu.errors import DatabaseError, MigrationNeeded
from kurisu.store import rollups
from kurisu.store.connect import autocommit, transaction
from kurisu.store.engine import Engine, detect
from kurisu.store.rollups import materialization

#: Advisory lock of a conversion; the number is arbitrary, but must never change.
LAYOUT_LOCK: Final = 7_295_412_203
HYPERTABLES: Final = ("ohlcv", "trades")
CHUNK_INTERVAL: Final = "7 days"
SEGMENT_BY: Final = {"ohlcv": "market_id,timeframe", "trades": "market_id"}
ORDER_BY: Final = {"ohlcv": "time DESC", "trades": "time DESC, trade_id"}

#: A chunk has 49 kB of pages of its own, whatever is in it, a fifth of what a week of one market
#: takes when it is compressed. So weeks are put together when they are compressed. Trades fill
#: their chunks, and are not kept long enough.
COMPRESSED_INTERVAL: Final = {"ohlcv": 4 * timedelta(days=7)}

# TimescaleDB's default for an aggregate is ten times its source's chunk: 70 days, which leaves
# thin chunks of the long bars.
ROLLUP_CHUNKS: Final = {"1h": "180 days", "4h": "730 days", "1d": "3650 days"}

ROLLUP_TRIGGERS: Final = ("inserted", "updated", "deleted", "truncated")


@dataclass(frozen=True, slots=True)
class RefreshPolicy:
    """When a continuous aggregate is brought up to date in the background (intervals)."""

    start_offset: str
    end_offset: str
    schedule: str


#: The document's policy for 1h; the others by their length. TimescaleDB wants the window between
#: the offsets to hold two bars at least.
REFRESH: Final = {
    "5m": RefreshPolicy("7 days", "10 minutes", "10 minutes"),
    "15m": RefreshPolicy("7 days", "30 minutes", "10 minutes"),
    "1h": RefreshPolicy("7 days", "1 hour", "10 minutes"),
    "4h": RefreshPolicy("7 days", "4 hours", "30 minutes"),
    "1d": RefreshPolicy("7 days", "1 day", "1 hour"),
}


def _create_rollup(name: str, length: str, source: str) -> str:
    """A continuous aggregate with the columns of the rollup tables.

    Real-time (materialized_only=false): a parent that reads a child sees its newest bars too, so
    a refresh of 4h before 1h cannot store a bar with part of its minutes.
    """
    raw = source == "ohlcv"
    return f"""
        CREATE MATERIALIZED VIEW ohlcv_{name}
        WITH (timescaledb.continuous, timescaledb.materialized_only = false,
              timescaledb.create_group_indexes = false) AS
        SELECT time_bucket('{length}', time) AS time, market_id,
               first(open, time) AS open, max(high) AS high, min(low) AS low,
               last(close, time) AS close, sum(volume) AS volume,
               {"count(*)" if raw else "sum(bars)"}::integer AS bars
          FROM {source} {"WHERE timeframe = '1m'" if raw else ""}
         GROUP BY time_bucket('{length}', time), market_id
        WITH NO DATA
    """


def _before(name: str) -> str:
    """Where the rows of a rollup table wait while it is replaced."""
    return f"ohlcv_{name}_before_conversion"


async def _relkind(connection: AsyncConnection, relation: str) -> str | None:
    """'r' table, 'v' view (a continuous aggregate is one), None if there is none."""
    found = await connection.scalar(
        text("SELECT relkind::text FROM pg_class WHERE oid = to_regclass(:relation)"),
        {"relation": relation},
    )
    return str(found) if found is not None else None


async def is_hypertable(connection: AsyncConnection, relation: str) -> bool:
    return bool(
        await connection.scalar(
            text(
                "SELECT count(*) FROM timescaledb_information.hypertables "
                "WHERE hypertable_schema = current_schema() AND hypertable_name = :relation"
            ),
            {"relation": relation},
        )
    )


async def check(connection: AsyncConnection, engine: Engine) -> None:
    """Raises MigrationNeeded if the layout is not the engine's own, so that nothing would work."""
    if not engine.has_hypertables:
        return
    last = ROLLUPS[-1].name
    if (
        await is_hypertable(connection, HYPERTABLES[0])
        and (await _relkind(connection, f"ohlcv_{last}") == "v") == engine.is_community
        and await _relkind(connection, _before(last)) is None
    ):
        return
    raise MigrationNeeded(
        f"the server is {engine} now, and the database is not yet laid out for it. "
        "Run `kurisu db upgrade`."
    )


async def add_extension(database: AsyncEngine) -> list[str]:
    """Put TimescaleDB into the database if the server has it loaded; returns what was done."""
    async with transaction(database) as connection:
        engine = await detect(connection)
    if engine.timescaledb is not None or engine.available is None:
        return []
    try:
        # In a session of its own: the extension refuses one that has used it before.
        async with autocommit(database) as connection:
            await connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS timescaledb")
    except DatabaseError as error:
        await database.dispose()
        async with transaction(database) as connection:
            if (await detect(connection)).timescaledb is not None:
                return []  # Somebody else put it there at the same time.
        return [
            f"TimescaleDB {engine.available} is loaded on this server but could not be put into "
            f"the database ({error}). Let a superuser run CREATE EXTENSION timescaledb, then run "
            "`kurisu db upgrade` again."
        ]
    # Connections from before the extension do not have it loaded.
    await database.dispose()
    return [f"added TimescaleDB {engine.available} to the database"]


async def converge(database: AsyncEngine, engine: Engine) -> list[str]:
    """Make the layout the engine's own; returns a line for each thing that changed."""
    if not engine.has_hypertables:
        return []
    done: list[str] = []
    async with transaction(database) as connection:
        await _alone(connection)
        # Moving rows takes as long as it takes; waiting for a lock does not.
        await connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
        await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        if engine.is_community:
            done += await _replace_rollup_tables(connection)
        for relation in HYPERTABLES:
            done += await _make_hypertable(connection, relation)
        if engine.is_community:
            done += await _create_rollups(connection)
            await _notice_copies(connection)
            for relation in HYPERTABLES:
                done += await _enable_compression(connection, relation)
                done += await _merge_when_compressed(connection, relation)
    if engine.is_community:
        await rollups.refresh_pending(database)
        done += await _restore_expired_bars(database)
        async with transaction(database) as connection:
            await _alone(connection)
            # Only now: the jobs start at once, and would get in the way of the first refresh.
            done += await _add_refresh_policies(connection)
    return done


async def _alone(connection: AsyncConnection) -> None:
    """One conversion at a time per database, until the transaction ends."""
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LAYOUT_LOCK})


async def _make_hypertable(connection: AsyncConnection, relation: str) -> list[str]:
    if await is_hypertable(connection, relation):
        return []
    # TimescaleDB empties the table by TRUNCATE once its rows are in chunks. To the rollup triggers
    # (Apache edition) that has to be what retention does: the bars stay.
    await connection.exec_driver_sql("SET LOCAL kurisu.expiring = 'on'")
    await connection.execute(
        text(
            f"SELECT create_hypertable('{relation}', 'time', chunk_time_interval => "
            f"INTERVAL '{CHUNK_INTERVAL}', create_default_indexes => FALSE, migrate_data => TRUE)"
        )
    )
    await connection.exec_driver_sql("SET LOCAL kurisu.expiring = 'off'")
    return [f"{relation} is a hypertable now"]


async def _replace_rollup_tables(connection: AsyncConnection) -> list[str]:
    """Set the rollup tables and their triggers aside; their rows are kept for later."""
    if await _relkind(connection, f"ohlcv_{ROLLUPS[0].name}") != "r":
        return []
    for event in ROLLUP_TRIGGERS:
        await connection.execute(text(f"DROP TRIGGER IF EXISTS kurisu_rollup_{event} ON ohlcv"))
    for frame in ROLLUPS:
        await connection.execute(
            text(f"ALTER TABLE ohlcv_{frame.name} RENAME TO {_before(frame.name)}")
        )
    return []


async def _create_rollups(connection: AsyncConnection) -> list[str]:
    done = []
    source = "ohlcv"
    for frame in ROLLUPS:
        relation = f"ohlcv_{frame.name}"
        if await _relkind(connection, relation) is None:
            length = f"{frame.seconds} seconds"
            await connection.exec_driver_sql(_create_rollup(frame.name, length, source))
            table = await _own_table(connection, frame.name)
            # The order of reads; TimescaleDB's own choice would be one index a column. Unique,
            # because overlapping refreshes (ours and a policy's) store a bar twice in 2.21 to 2.28:
            # now the later one fails, and is repeated.
            await connection.execute(text(f"CREATE UNIQUE INDEX ON {table} (market_id, time DESC)"))
            if frame.name in ROLLUP_CHUNKS:
                await connection.execute(
                    text(
                        f"SELECT set_chunk_time_interval('{table}', "
                        f"INTERVAL '{ROLLUP_CHUNKS[frame.name]}')"
                    )
                )
            done.append(f"{relation} is a continuous aggregate now")
        source = relation
    if done:
        await connection.execute(
            text(
                "INSERT INTO rollup_pending (since, until) "
                "SELECT min(time), max(time) + INTERVAL '1 minute' FROM ohlcv "
                "WHERE timeframe = '1m' HAVING count(*) > 0"
            )
        )
    return done


async def _own_table(connection: AsyncConnection, name: str) -> str:
    """The table behind an aggregate, where this role may put an index on it; quoted.

    TimescaleDB makes it in a schema of its own. Only a superuser may create anything there, an
    index included, and a role without that (on a managed server, say) moves its table to where its
    other tables are. An index on the aggregate itself is for everybody, but never unique.
    """
    table = await materialization(connection, name)
    schema = await connection.scalar(
        text(
            "SELECT quote_ident(current_schema()) FROM pg_class WHERE oid = to_regclass(:table) "
            "AND NOT has_schema_privilege(relnamespace, 'CREATE')"
        ),
        {"table": table},
    )
    if schema is None:
        return table
    await connection.execute(text(f"ALTER TABLE {table} SET SCHEMA {schema}"))
    return await materialization(connection, name)


# Since 2.23 TimescaleDB does not notice what COPY puts into a hypertable that has a statement
# trigger with a transition table (ours for the reference to markets): nothing would ever bring the
# bars of those candles up to date. Of what it does notice it keeps the range from the earliest to
# the latest change in each chunk, so that an update to what they are is enough for the first and
# the last candle of a day: chunks are of whole days.
COPIED: Final = (
    """
    CREATE OR REPLACE FUNCTION kurisu_rollup_copied() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        edge record;
    BEGIN
        -- A plain INSERT is noticed. (pg_stat_progress_copy cannot tell: making a chunk clears it.)
        IF current_query() ~* '^\\s*insert' AND current_query() !~* '\\mcopy\\M' THEN
            RETURN NULL;
        END IF;
        FOR edge IN
            SELECT market_id, array_agg(lo) || array_agg(hi) AS times, min(lo) AS lo, max(hi) AS hi
              FROM (SELECT market_id, min(time) AS lo, max(time) AS hi
                      FROM changed WHERE timeframe = '1m'
                     GROUP BY market_id, date_bin('1 day', time, '1970-01-01 00:00:00+00')) d
             GROUP BY market_id
        LOOP
            UPDATE ohlcv SET volume = volume
             WHERE market_id = edge.market_id AND timeframe = '1m' AND time = ANY(edge.times)
               AND time >= edge.lo AND time <= edge.hi;
        END LOOP;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER kurisu_rollup_copied AFTER INSERT ON ohlcv
        REFERENCING NEW TABLE AS changed
        FOR EACH STATEMENT EXECUTE FUNCTION kurisu_rollup_copied()
    """,
    # As migration 0015 did with the others: a temporary table of the same name is no other.
    """
    DO $$ BEGIN
        EXECUTE 'ALTER FUNCTION kurisu_rollup_copied() SET search_path = '
            || (SELECT string_agg(quote_ident(s), ', ' ORDER BY at)
                  FROM unnest(current_schemas(FALSE)) WITH ORDINALITY AS c(s, at)) || ', pg_temp';
    END $$
    """,
)


async def _notice_copies(connection: AsyncConnection) -> None:
    if not await connection.scalar(
        text(
            "SELECT count(*) FROM pg_trigger WHERE tgname = 'kurisu_rollup_copied' "
            "AND tgrelid = CAST('ohlcv' AS regclass)"
        )
    ):
        for statement in COPIED:
            await connection.exec_driver_sql(statement)


# Aggregates with a refresh policy. Columns: view.
REFRESHED: Final = """
SELECT c.view_name AS view
  FROM timescaledb_information.jobs j
  JOIN timescaledb_information.continuous_aggregates c
    ON j.hypertable_schema IN (c.materialization_hypertable_schema, c.view_schema)
   AND j.hypertable_name IN (c.materialization_hypertable_name, c.view_name)
 WHERE j.proc_name = 'policy_refresh_continuous_aggregate' AND c.view_schema = current_schema()
"""


# Whether a policy can be told how to work (since 2.19).
KNOWS_BATCHES: Final = """
SELECT bool_or('buckets_per_batch' = ANY(proargnames)) FROM pg_proc
 WHERE proname = 'add_continuous_aggregate_policy'
"""


async def _add_refresh_policies(connection: AsyncConnection) -> list[str]:
    refreshed = set(await connection.scalars(text(REFRESHED)))
    # In one piece: by default (since 2.20) a policy works in batches, the newest first, and the
    # first one moves the watermark; until the last, readers would miss every bar in between.
    batches = ", buckets_per_batch => 0" if await connection.scalar(text(KNOWS_BATCHES)) else ""
    done = []
    for frame in ROLLUPS:
        relation = f"ohlcv_{frame.name}"
        if relation in refreshed:
            continue
        policy = REFRESH[frame.name]
        await connection.execute(
            text(
                f"SELECT add_continuous_aggregate_policy('{relation}', "
                f"start_offset => INTERVAL '{policy.start_offset}', "
                f"end_offset => INTERVAL '{policy.end_offset}', "
                f"schedule_interval => INTERVAL '{policy.schedule}'{batches})"
            )
        )
        done.append(f"{relation} is refreshed every {policy.schedule} now")
    return done


async def _enable_compression(connection: AsyncConnection, relation: str) -> list[str]:
    enabled = await connection.scalar(
        text(
            "SELECT compression_enabled FROM timescaledb_information.hypertables "
            "WHERE hypertable_schema = current_schema() AND hypertable_name = :relation"
        ),
        {"relation": relation},
    )
    if enabled:
        return []
    await connection.exec_driver_sql(
        f"ALTER TABLE {relation} SET (timescaledb.compress, "
        f"timescaledb.compress_segmentby = '{SEGMENT_BY[relation]}', "
        f"timescaledb.compress_orderby = '{ORDER_BY[relation]}')"
    )
    return [f"{relation} compresses its old chunks now"]


# How much time one compressed chunk holds, in microseconds; null where it is one chunk's.
# Parameters: relation.
COMPRESSED_TOGETHER: Final = """
SELECT d.compress_interval_length FROM _timescaledb_catalog.dimension d
  JOIN _timescaledb_catalog.hypertable h ON h.id = d.hypertable_id
 WHERE h.schema_name = current_schema() AND h.table_name = :relation AND d.column_name = 'time'
"""


async def _merge_when_compressed(connection: AsyncConnection, relation: str) -> list[str]:
    wanted = COMPRESSED_INTERVAL.get(relation)
    if wanted is None:
        return []
    found = await connection.scalar(text(COMPRESSED_TOGETHER), {"relation": relation})
    if found == wanted // timedelta(microseconds=1):
        return []
    await connection.exec_driver_sql(
        f"ALTER TABLE {relation} SET "
        f"(timescaledb.compress_chunk_time_interval = '{wanted.days} days')"
    )
    return [f"{relation} compresses {wanted.days} days into a chunk now"]


async def _restore_expired_bars(database: AsyncEngine) -> list[str]:
    """Move bars whose raw candles are gone from the old rollup tables into the aggregates.

    The aggregates were refreshed from the candles that are there; a bar that the old table has
    with more candles inside is all that is left of dropped ones.
    """
    done = []
    for frame in ROLLUPS:
        before = _before(frame.name)
        async with transaction(database) as connection:
            await _alone(connection)
            if await _relkind(connection, before) != "r":
                continue
            table = await materialization(connection, frame.name)
            newer = (
                f"FROM {before} b WHERE NOT EXISTS (SELECT 1 FROM {table} m "
                "WHERE m.market_id = b.market_id AND m.time = b.time AND m.bars >= b.bars)"
            )
            # Bars above the watermark are read from raw candles, which these no longer have.
            await connection.execute(
                text(
                    f"DELETE FROM {table} m USING {before} b WHERE m.market_id = b.market_id "
                    "AND m.time = b.time AND m.bars < b.bars"
                )
            )
            moved = await connection.execute(
                text(
                    f"INSERT INTO {table} (time, market_id, open, high, low, close, volume, bars) "
                    f"SELECT time, market_id, open, high, low, close, volume, bars {newer}"
                )
            )
            if moved.rowcount:
                done.append(f"ohlcv_{frame.name}: kept {moved.rowcount} bars of dropped candles")
        async with autocommit(database) as connection:
            # Every candle that is there lies in a bar that was refreshed, or in one that is still
            # open and later than all of these.
            await rollups.show(connection, frame)
        async with transaction(database) as connection:
            await _alone(connection)
            await connection.execute(text(f"DROP TABLE IF EXISTS {before}"))
    return done
