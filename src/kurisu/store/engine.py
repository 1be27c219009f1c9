"""What server this is: found out at connect time, never configured.

Three tiers share one schema and one set of relation names: plain PostgreSQL, TimescaleDB's
Apache edition, and TimescaleDB Community. Everything else is refused with a sentence that says
what is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.errors import EngineRefused

MIN_POSTGRES: Final = 15
#: Transition tables on hypertables, which every trigger here needs, came with this version.
MIN_TIMESCALEDB: Final = (2, 18)


class Edition(StrEnum):
    """The tier of a server; the value is what `kurisu db status` says."""

    PLAIN = "PostgreSQL"
    APACHE = "TimescaleDB Apache"
    COMMUNITY = "TimescaleDB Community"


@dataclass(frozen=True, slots=True)
class Engine:
    """A server's tier and versions.

    postgres: e.g. "17.5".
    timescaledb: the extension's version in this database, e.g. "2.24.0"; None without it.
    available: the version that `kurisu db upgrade` could put into this database; None where the
        server does not offer it or has not loaded it.
    """

    edition: Edition
    postgres: str
    timescaledb: str | None
    available: str | None

    @property
    def has_hypertables(self) -> bool:
        return self.edition is not Edition.PLAIN

    @property
    def is_community(self) -> bool:
        return self.edition is Edition.COMMUNITY

    def __str__(self) -> str:
        if self.timescaledb is None:
            return f"PostgreSQL {self.postgres}"
        return f"{self.edition} {self.timescaledb} on PostgreSQL {self.postgres}"


# The tier of a server. Columns: version_num (150018), version, extension (version or null),
# license ('timescale', 'apache' or null), available (version or null), preloaded, hidden (the
# extension's schema if its functions are not found without it, else null). Where the extension is
# not yet in the database and the configuration does not name a license, what tells that the server
# has loaded TimescaleDB is a setting of its loader.
DETECT: Final = """
SELECT current_setting('server_version_num')::integer AS version_num,
       split_part(current_setting('server_version'), ' ', 1) AS version,
       (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb') AS extension,
       current_setting('timescaledb.license', true) AS license,
       (SELECT default_version FROM pg_available_extensions WHERE name = 'timescaledb')
           AS available,
       coalesce(current_setting('timescaledb.disable_load', true),
                current_setting('timescaledb.license', true)) IS NOT NULL AS preloaded,
       (SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace
         WHERE extname = 'timescaledb' AND nspname <> ALL (current_schemas(true))) AS hidden
"""

# What only Community can read. Columns: aggregates, compressed (counts).
COMMUNITY_DATA: Final = """
SELECT (SELECT count(*) FROM timescaledb_information.continuous_aggregates) AS aggregates,
       (SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed) AS compressed
"""


def version_tuple(version: str) -> tuple[int, ...]:
    """(2, 24, 0) of "2.24.0" or "2.24.0-dev"."""
    return tuple(int(part) for part in version.partition("-")[0].split(".") if part.isdigit())


async def detect(connection: AsyncConnection) -> Engine:
    """The engine behind `connection`. Raises EngineRefused with what is needed."""
    row = (await connection.execute(text(DETECT))).one()
    if row.version_num < MIN_POSTGRES * 10_000:
        raise EngineRefused(
            f"this is PostgreSQL {row.version}; Kurisu needs PostgreSQL {MIN_POSTGRES} or newer."
        )
    available = row.available if row.preloaded else None
    if row.extension is None:
        return Engine(Edition.PLAIN, row.version, None, available)
    if version_tuple(row.extension) < MIN_TIMESCALEDB:
        wanted = ".".join(map(str, MIN_TIMESCALEDB))
        raise EngineRefused(
            f"this database has TimescaleDB {row.extension}; Kurisu needs {wanted} or newer. "
            "Install a newer one on the server, then run ALTER EXTENSION timescaledb UPDATE."
        )
    if row.hidden is not None:
        raise EngineRefused(
            f"TimescaleDB is in the schema {row.hidden} of this database, which is not on the "
            "search path, so that nobody finds its functions. Add it behind the others, for "
            f"example: ALTER DATABASE ... SET search_path = public, {row.hidden}"
        )
    if row.license == "timescale":
        return Engine(Edition.COMMUNITY, row.version, row.extension, available)
    if row.license == "apache":
        found = (await connection.execute(text(COMMUNITY_DATA))).one()
        if found.aggregates or found.compressed:
            # Before 2.26.4 compressed rows silently read as absent here, and in no version are
            # the rollups kept up.
            raise EngineRefused(
                f"this database holds {found.compressed} compressed chunks and "
                f"{found.aggregates} continuous aggregates of TimescaleDB Community, but the "
                "server runs with timescaledb.license = 'apache', which cannot read or keep "
                "them. Set timescaledb.license = 'timescale' in its configuration and restart it."
            )
        return Engine(Edition.APACHE, row.version, row.extension, available)
    raise EngineRefused(
        "TimescaleDB is in this database but not loaded by the server. Add timescaledb to "
        "shared_preload_libraries in its configuration and restart it."
    )
