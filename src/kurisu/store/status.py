"""What `kurisu db status` says: the engine, the schema, and how each relation is doing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.timeframe import ROLLUPS
from kurisu.schema import Base
from kurisu.store import migrate, policies, rollups
from kurisu.store.engine import Engine


@dataclass(frozen=True, slots=True)
class TableStatus:
    """One relation.

    rows: exact up to EXACT_ROWS, else PostgreSQL's estimate (`estimated`).
    bytes: with indexes, TOAST and chunks. chunks, compressed_chunks: None for a plain table.
    compression_ratio: size before divided by size after, of the compressed chunks; None without.
    """

    name: str
    kind: str
    rows: int
    estimated: bool
    bytes: int
    chunks: int | None = None
    compressed_chunks: int | None = None
    compression_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """A policy and how it is doing.

    after: how old rows become before it acts (an interval), or the window of a refresh; "off".
    origin: default, command or config; None for a refresh.
    last_run, next_run, last_status, last_error: of the background job; None without one.
    carried_out_by: what makes it true: "background job" or "kurisu db maintain".
    """

    relation: str
    policy: str
    after: str
    origin: str | None
    carried_out_by: str
    last_run: datetime | None = None
    next_run: datetime | None = None
    last_status: str | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class RollupStatus:
    """How far a rollup reaches.

    newest: open time of its newest bar. materialized_until: up to where its bars are stored; what
    is later is read from candles (Community). current: it says what its newest candle says.
    """

    name: str
    newest: datetime | None
    materialized_until: datetime | None
    current: bool


@dataclass(slots=True)
class DatabaseStatus:
    """`kurisu db status`."""

    engine: str
    edition: str
    postgres: str
    timescaledb: str | None
    available: str | None
    revision: str | None
    head: str
    tables: list[TableStatus] = field(default_factory=list)
    policies: list[PolicyStatus] = field(default_factory=list)
    rollups: list[RollupStatus] = field(default_factory=list)
    pending_refreshes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; times as ISO 8601 in UTC."""

        def plain(value: Any) -> Any:
            match value:
                case datetime():
                    return value.isoformat()
                case dict():
                    return {key: plain(item) for key, item in value.items()}
                case list():
                    return [plain(item) for item in value]
                case _:
                    return value

        result: dict[str, Any] = plain(asdict(self))
        return result


#: Up to here rows are counted; counting a billion takes minutes.
EXACT_ROWS: Final = 2_000_000

# PostgreSQL's own idea of a plain relation. Parameters: name. Columns: rows (-1: never analysed),
# bytes.
PLAIN_SIZE: Final = """
SELECT reltuples::bigint AS rows, pg_total_relation_size(oid) AS bytes
  FROM pg_class WHERE oid = to_regclass(:name)
"""

# A hypertable's chunks. Parameters: relation (qualified). Columns: rows, bytes, chunks,
# compressed, before, after.
HYPERTABLE_SIZE: Final = """
SELECT approximate_row_count(CAST(:relation AS regclass)) AS rows,
       hypertable_size(CAST(:relation AS regclass)) AS bytes,
       (SELECT count(*) FROM show_chunks(CAST(:relation AS regclass))) AS chunks
"""

COMPRESSION: Final = """
SELECT number_compressed_chunks AS compressed,
       before_compression_total_bytes::double precision AS before,
       after_compression_total_bytes::double precision AS after
  FROM hypertable_compression_stats(CAST(:relation AS regclass))
"""

# Background jobs. Columns: relation, policy, after, last_run, next_run, last_status, last_error.
JOBS: Final = """
SELECT coalesce(v.view_name, j.hypertable_name) AS relation, j.proc_name AS proc,
       coalesce(j.config->>'drop_after', j.config->>'compress_after',
                concat_ws(' to ', j.config->>'start_offset', j.config->>'end_offset')) AS after,
       CASE WHEN s.last_run_started_at > '-infinity' THEN s.last_run_started_at END AS last_run,
       CASE WHEN s.next_start > '-infinity' AND s.next_start < 'infinity' THEN s.next_start END
           AS next_run,
       s.last_run_status AS last_status,
       (SELECT e.err_message FROM timescaledb_information.job_errors e
         WHERE e.job_id = j.job_id AND s.last_run_status <> 'Success'
         ORDER BY e.start_time DESC LIMIT 1) AS last_error
  FROM timescaledb_information.jobs j
  LEFT JOIN timescaledb_information.job_stats s USING (job_id)
  LEFT JOIN timescaledb_information.continuous_aggregates v
    ON v.materialization_hypertable_schema = j.hypertable_schema
   AND v.materialization_hypertable_name = j.hypertable_name
 WHERE j.proc_name IN ('policy_retention', 'policy_compression',
                       'policy_refresh_continuous_aggregate')
   AND coalesce(v.view_schema, j.hypertable_schema) = current_schema()
 ORDER BY 1, 2
"""

_POLICY_NAMES: Final = {
    "policy_retention": "retention",
    "policy_compression": "compression",
    "policy_refresh_continuous_aggregate": "refresh",
}


async def status(connection: AsyncConnection, engine: Engine) -> DatabaseStatus:
    """How the database is doing; reads only."""
    found = DatabaseStatus(
        engine=str(engine),
        edition=engine.edition.value,
        postgres=engine.postgres,
        timescaledb=engine.timescaledb,
        available=engine.available,
        revision=await migrate.current(connection),
        head=migrate.head(),
    )
    for name in Base.metadata.tables:
        found.tables.append(await _table(connection, engine, name))
    found.tables.sort(key=lambda t: (t.name.split("_")[0] != "ohlcv", t.name))
    found.policies = await _policies(connection, engine)
    found.rollups = await _rollups(connection, engine)
    if engine.is_community:
        found.pending_refreshes = int(
            await connection.scalar(text("SELECT count(*) FROM rollup_pending")) or 0
        )
    return found


async def _table(connection: AsyncConnection, engine: Engine, name: str) -> TableStatus:
    relation, kind = name, "table"
    if engine.has_hypertables:
        is_rollup = name.removeprefix("ohlcv_") in {f.name for f in ROLLUPS}
        if name in policies.RELATIONS:
            kind = "hypertable"
        elif is_rollup and engine.is_community:
            from kurisu.store.rollups import materialization

            relation, kind = (
                await materialization(connection, name.removeprefix("ohlcv_")),
                ("continuous aggregate"),
            )
    if kind == "table":
        row = (await connection.execute(text(PLAIN_SIZE), {"name": name})).one()
        rows, estimated = await _count(connection, name, row.rows)
        return TableStatus(name, kind, rows, estimated, row.bytes)
    row = (await connection.execute(text(HYPERTABLE_SIZE), {"relation": relation})).one()
    rows, estimated = await _count(connection, name, row.rows)
    compressed = ratio = None
    if engine.is_community and kind == "hypertable":
        sizes = (await connection.execute(text(COMPRESSION), {"relation": relation})).first()
        compressed = int(sizes.compressed or 0) if sizes else 0
        if sizes and sizes.after:
            ratio = round(sizes.before / sizes.after, 2)
    return TableStatus(
        name, kind, rows, estimated, int(row.bytes or 0), row.chunks, compressed, ratio
    )


async def _count(connection: AsyncConnection, name: str, estimate: int | None) -> tuple[int, bool]:
    if estimate is not None and estimate > EXACT_ROWS:
        return int(estimate), True
    # Never analysed says nothing: count, but no further than the limit.
    counted = await connection.scalar(
        text(f"SELECT count(*) FROM (SELECT 1 FROM {name} LIMIT :limit) t"),
        {"limit": EXACT_ROWS + 1},
    )
    return int(counted or 0), int(counted or 0) > EXACT_ROWS


async def _policies(connection: AsyncConnection, engine: Engine) -> list[PolicyStatus]:
    result = []
    wanted = await policies.read(connection)
    jobs = (await connection.execute(text(JOBS))).all() if engine.is_community else []
    by_key = {(job.relation, _POLICY_NAMES[job.proc]): job for job in jobs}
    for policy in wanted.values():
        is_usual = policy.compress_after == policies.DEFAULT_COMPRESS[policy.relation]
        for name, after, origin in (
            ("retention", policy.drop_after, policy.origin),
            # Nothing but kurisu.toml sets it.
            ("compression", policy.compress_after, "default" if is_usual else "config"),
        ):
            if name == "compression" and not engine.is_community:
                continue
            job = by_key.pop((policy.relation, name), None)
            by = "background job" if engine.is_community else "kurisu db maintain"
            result.append(
                PolicyStatus(policy.relation, name, after or "off", origin, by, *_run(job))
            )
    for (relation, name), job in by_key.items():
        result.append(PolicyStatus(relation, name, job.after, None, "background job", *_run(job)))
    return result


def _run(job: Any) -> tuple[datetime | None, datetime | None, str | None, str | None]:
    if job is None:
        return None, None, None, None
    return job.last_run, job.next_run, job.last_status, job.last_error


async def _rollups(connection: AsyncConnection, engine: Engine) -> list[RollupStatus]:
    newest_candle = await connection.scalar(text(rollups.NEWEST_CANDLE))
    marks = await rollups.watermarks(connection) if engine.is_community else {}
    result = []
    for frame in ROLLUPS:
        newest = await connection.scalar(text(f"SELECT max(time) FROM ohlcv_{frame.name}"))
        expected = frame.open_time(newest_candle) if newest_candle is not None else None
        mark = marks.get(frame.name)
        result.append(
            RollupStatus(
                f"ohlcv_{frame.name}",
                newest,
                mark if mark is not None and mark.year > 1970 else None,
                expected is None or (newest is not None and newest >= expected),
            )
        )
    return result
