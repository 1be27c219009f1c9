"""Retention and compression policies: what they are, who set them, and how they are applied.

The table `retention_policies` says what is wanted, on every engine. On TimescaleDB Community its
rows are made true as background jobs; elsewhere `kurisu db maintain` carries them out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.errors import InvalidArgument, RetentionConflict
from kurisu.store.engine import Engine

RELATIONS: Final = ("ohlcv", "trades")
DEFAULT_DROP: Final = {"ohlcv": "1 year", "trades": "30 days"}
DEFAULT_COMPRESS: Final = {"ohlcv": "7 days", "trades": "3 days"}
_DURATION: Final = re.compile(
    r"\s*(\d{1,6})\s*(minute|hour|day|week|month|mon|year)s?\s*", re.IGNORECASE
)
#: PostgreSQL's calendar ends 6,700 years back, and with it every query that looks for older rows.
LONGEST_YEARS: Final = 1_000
_PER_YEAR: Final = {
    "minute": 525_600, "hour": 8_760, "day": 365, "week": 52, "month": 12, "year": 1,
}  # fmt: skip
#: A policy that is moved back for an import gets this much more, so that the rows do not begin
#: to expire the next day.
MARGIN: Final = "1 year"


@dataclass(frozen=True, slots=True)
class Policy:
    """One relation's policy.

    drop_after, compress_after: PostgreSQL intervals as text; None for never.
    origin: "default", "command" (`kurisu db retention`) or "config" (kurisu.toml).
    cutoff: rows older than this are due to be dropped; None for never.
    dropped_before: rows older than this may have been dropped already; None if none were.
    """

    relation: str
    drop_after: str | None
    compress_after: str | None
    origin: str
    cutoff: datetime | None
    dropped_before: datetime | None


READ: Final = """
SELECT relation, drop_after::text, compress_after::text, origin, now() - drop_after AS cutoff,
       dropped_before
  FROM retention_policies ORDER BY relation
"""

# Set a policy. Rows that the old one may have dropped are remembered, because their rollups must
# not be recomputed. Parameters: relation, drop_after, origin.
SET: Final = """
UPDATE retention_policies
   SET drop_after = CAST(CAST(:drop_after AS text) AS interval),
       origin = :origin, updated_at = now(),
       dropped_before = greatest(dropped_before, CASE
           WHEN relation = 'ohlcv'
                AND EXISTS (SELECT 1 FROM ohlcv_1d WHERE time < now() - drop_after)
           THEN now() - drop_after END)
 WHERE relation = :relation
"""

SET_COMPRESS: Final = """
UPDATE retention_policies
   SET compress_after = CAST(CAST(:compress_after AS text) AS interval), updated_at = now()
 WHERE relation = :relation
"""

# A whole number of years that keeps `oldest`, and the margin. Parameters: oldest.
YEARS: Final = f"""
SELECT ceil(extract(epoch FROM now() - CAST(:oldest AS timestamptz) + INTERVAL '{MARGIN}')
            / (365.25 * 86400))::integer
"""

# TimescaleDB's jobs for our relations. Columns: job_id, relation, proc, after.
JOBS: Final = """
SELECT job_id, hypertable_name AS relation, proc_name AS proc,
       coalesce(config->>'drop_after', config->>'compress_after')::interval::text AS after
  FROM timescaledb_information.jobs
 WHERE hypertable_schema = current_schema() AND hypertable_name IN ('ohlcv', 'trades')
   AND proc_name IN ('policy_retention', 'policy_compression')
"""


def parse_duration(given: str) -> str | None:
    """A PostgreSQL interval of e.g. "5 years" or "36 hours"; None of "off".

    Raises InvalidArgument.
    """
    if given.strip().lower() in ("off", "never"):
        return None
    match = _DURATION.fullmatch(given)
    if match is None or int(match[1]) == 0:
        raise InvalidArgument(
            f"{given!r} is not a duration: write e.g. '30 days', '18 months', '5 years', or 'off'."
        )
    unit = {"mon": "month"}.get(match[2].lower(), match[2].lower())
    if int(match[1]) > LONGEST_YEARS * _PER_YEAR[unit]:
        raise InvalidArgument(
            f"{given!r} is longer than {LONGEST_YEARS:,} years; 'off' keeps rows for ever."
        )
    return f"{int(match[1])} {unit}{'' if int(match[1]) == 1 else 's'}"


#: One at a time changes policies, from before it reads them. The table as a whole: rows would be
#: locked in the order in which they lie, which each change turns round, and two would wait for each
#: other. Readers are not stopped.
LOCK: Final = "LOCK TABLE retention_policies IN SHARE ROW EXCLUSIVE MODE"


async def read(connection: AsyncConnection) -> dict[str, Policy]:
    """The policies by relation."""
    rows = await connection.execute(text(READ))
    return {row.relation: Policy(*row) for row in rows}


async def set_retention(
    connection: AsyncConnection, engine: Engine, relation: str, drop_after: str | None, origin: str
) -> None:
    """Set how long raw rows of `relation` are kept (an interval, or None for ever)."""
    # Before the row: two who hold a row each would wait for each other's lock of the table.
    await connection.execute(text(LOCK))
    await connection.execute(
        text(SET), {"relation": relation, "drop_after": drop_after, "origin": origin}
    )
    await apply(connection, engine)


async def apply(connection: AsyncConnection, engine: Engine) -> list[str]:
    """Make TimescaleDB's jobs equal to the table (Community); returns what changed."""
    if not engine.is_community or not any(await _differences(connection)):
        return []
    # Somebody else may be about to do the same: one after the other.
    await connection.execute(text(LOCK))
    obsolete, missing = await _differences(connection)
    done = []
    for job in obsolete:
        function = {
            "policy_retention": "remove_retention_policy",
            "policy_compression": "remove_compression_policy",
        }[job.proc]
        await connection.execute(text(f"SELECT {function}('{job.relation}')"))
        done.append(f"{job.relation}: {job.proc} after {job.after} removed")
    for (relation, proc), after in missing.items():
        function = proc.replace("policy_", "add_") + "_policy"
        await connection.execute(text(f"SELECT {function}('{relation}', INTERVAL '{after}')"))
        done.append(f"{relation}: {proc} after {after}")
    return done


async def _differences(
    connection: AsyncConnection,
) -> tuple[list[Row[Any]], dict[tuple[str, str], str]]:
    """Jobs that the table does not ask for, and those that it does and that are not there.

    The latter by relation and procedure; the interval.
    """
    wanted: dict[tuple[str, str], str] = {}
    for policy in (await read(connection)).values():
        if policy.drop_after is not None:
            wanted[policy.relation, "policy_retention"] = policy.drop_after
        if policy.compress_after is not None:
            wanted[policy.relation, "policy_compression"] = policy.compress_after
    obsolete = []
    for job in (await connection.execute(text(JOBS))).all():
        if wanted.get((job.relation, job.proc)) == job.after:
            del wanted[job.relation, job.proc]
        else:
            obsolete.append(job)
    return obsolete, wanted


async def converge(
    connection: AsyncConnection,
    engine: Engine,
    retention: Mapping[str, str | None],
    compression: Mapping[str, str | None],
) -> list[str]:
    """Make the policies those of kurisu.toml where it names them; returns what changed.

    retention, compression: intervals by relation. A policy that kurisu.toml named and no longer
    does goes back to the default, far enough back to drop nothing that is stored.
    """
    done = []
    for policy in (await read(connection)).values():
        relation = policy.relation
        if relation in retention:
            wanted = await _normal(connection, retention[relation])
            if (policy.drop_after, policy.origin) != (wanted, "config"):
                await set_retention(connection, engine, relation, wanted, "config")
                done.append(f"retention {relation}: {wanted or 'off'} (kurisu.toml)")
        elif policy.origin == "config":
            kept = await default_that_keeps_all(connection, relation)
            await set_retention(connection, engine, relation, kept, "default")
            done.append(f"retention {relation}: {kept} (default)")
        wanted = await _normal(connection, compression.get(relation, DEFAULT_COMPRESS[relation]))
        if policy.compress_after != wanted:
            await connection.execute(text(LOCK))
            await connection.execute(
                text(SET_COMPRESS), {"relation": relation, "compress_after": wanted}
            )
            done.append(f"compression {relation}: {wanted or 'off'}")
    return [*done, *(await apply(connection, engine))]


async def _normal(connection: AsyncConnection, interval: str | None) -> str | None:
    """PostgreSQL's own spelling of an interval."""
    spelled = await connection.scalar(
        text("SELECT CAST(CAST(:interval AS text) AS interval)::text"), {"interval": interval}
    )
    return None if spelled is None else str(spelled)


async def default_that_keeps_all(connection: AsyncConnection, relation: str) -> str:
    """The default, moved back as far as the oldest stored row needs."""
    oldest = await connection.scalar(text(f"SELECT min(time) FROM {relation}"))
    if oldest is None:
        return DEFAULT_DROP[relation]
    inside = await connection.scalar(
        text(f"SELECT CAST(:oldest AS timestamptz) >= now() - INTERVAL '{DEFAULT_DROP[relation]}'"),
        {"oldest": oldest},
    )
    return DEFAULT_DROP[relation] if inside else await _years(connection, oldest)


async def _years(connection: AsyncConnection, oldest: datetime) -> str:
    years = await connection.scalar(text(YEARS), {"oldest": oldest})
    return f"{years} years"


def _is_too_short(policy: Policy, oldest: datetime) -> bool:
    return policy.cutoff is not None and oldest < policy.cutoff


def _counted(rows: int | None) -> str:
    return "rows" if rows is None else f"{rows:,} rows"


async def check_room(
    connection: AsyncConnection, relation: str, oldest: datetime, expiring_rows: int | None
) -> None:
    """Raises RetentionConflict if a policy that the user has set would drop rows from `oldest` on;
    changes nothing. expiring_rows: see `make_room`."""
    policy = (await read(connection))[relation]
    if policy.origin != "default" and _is_too_short(policy, oldest):
        raise await _conflict(connection, policy, relation, oldest, _counted(expiring_rows))


async def make_room(
    connection: AsyncConnection,
    engine: Engine,
    relation: str,
    oldest: datetime,
    expiring_rows: int | None,
    *,
    allow_expiring: bool,
) -> str | None:
    """Before rows as old as `oldest` are stored: see to it that no policy drops them again.

    A default policy is moved back, and the line that says so is returned. One that the user has
    set stays: raises RetentionConflict, unless `allow_expiring`. expiring_rows: how many rows are
    older than the policy, for the message; None if that is not known.
    """
    rows = _counted(expiring_rows)
    if not _is_too_short((await read(connection))[relation], oldest):
        return None
    # Two that make room at a time: the later one must not undo what the earlier one made.
    await connection.execute(text(LOCK))
    policy = (await read(connection))[relation]
    if policy.cutoff is None or not _is_too_short(policy, oldest):
        return None
    if policy.origin == "default":
        kept = await _years(connection, oldest)
        await set_retention(connection, engine, relation, kept, "default")
        return (
            f"retention of {relation} moved from {policy.drop_after} to {kept}, so that rows from "
            f"{oldest:%Y-%m-%d} on are kept (kurisu db retention {relation} sets it yourself)"
        )
    if allow_expiring:
        return (
            f"{rows} from {oldest:%Y-%m-%d} on are older than the retention of "
            f"{relation} ({policy.drop_after}) and will be dropped again"
        )
    raise await _conflict(connection, policy, relation, oldest, rows)


async def _conflict(
    connection: AsyncConnection, policy: Policy, relation: str, oldest: datetime, rows: str
) -> RetentionConflict:
    where = "kurisu.toml" if policy.origin == "config" else "`kurisu db retention`"
    change = (
        f"change [retention] {relation} in kurisu.toml"
        if policy.origin == "config"
        else f"run `kurisu db retention {relation} '{await _years(connection, oldest)}'` (or 'off')"
    )
    return RetentionConflict(
        f"{rows} from {oldest:%Y-%m-%d} on are older than the retention of "
        f"{relation}, {policy.drop_after}, that {where} set; they would be dropped again. Nothing "
        f"was stored. Either {change}, or store them all the same with --allow-expiring."
    )
