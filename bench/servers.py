"""Where to measure: a scratch database on a server, with what is needed to run psql on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
from sqlalchemy import URL, make_url

from kurisu.server import Cluster
from kurisu.server.binaries import wheel_directories
from kurisu.store.connect import database_url
from kurisu.store.store import Store, open_store, upgrade

_PSQL_TIME: Final = re.compile(r"^Time: ([0-9.]+) ms", re.MULTILINE)

#: What keeps a committed row through a power cut.
DURABLE: Final = ("fsync", "full_page_writes", "synchronous_commit")
# Tables that a measurement fills, besides the rollups.
_FILLED: Final = ("ohlcv", "candle_coverage", "candle_revisions", "rollup_pending")
_ROLLUPS: Final = ("ohlcv_5m", "ohlcv_15m", "ohlcv_1h", "ohlcv_4h", "ohlcv_1d")


@dataclass(frozen=True, slots=True)
class Bench:
    """A scratch database, ready to measure on.

    store: Kurisu's own door. raw: an asyncpg connection of its own, for the other side.
    name: the engine, for the report. psql: the program. folder: for files.
    """

    store: Store
    raw: asyncpg.Connection
    url: URL
    psql: Path
    folder: Path

    @property
    def name(self) -> str:
        return str(self.store.engine)

    @property
    def dsn(self) -> str:
        """As libpq and asyncpg take it."""
        return self.url.render_as_string(hide_password=False)

    async def run_psql(self, command: str) -> float:
        """Run one psql command; the seconds that it took by psql's own clock, so without
        psql's start and its connection."""
        process = await asyncio.create_subprocess_exec(
            str(self.psql), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-c", r"\timing on",
            "-c", command,
            env=os.environ | _libpq_environment(self.url),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        found = _PSQL_TIME.findall(output.decode())
        if process.returncode or not found:
            raise RuntimeError(f"psql failed: {output.decode()}")
        return float(found[-1]) / 1000

    async def clear(self) -> None:
        """Empty the tables, untimed, so that every run finds the same; chunks stay.

        Triggers are off meanwhile: nothing is computed about what goes. TimescaleDB notes all the
        same that the bars of what goes are stale, so a refresh of the range has all of it to do.
        """
        tables = [*_FILLED, *[await self.stored(name) for name in _ROLLUPS]]
        remove = "DELETE FROM" if self.store.engine.has_hypertables else "TRUNCATE"
        async with self.raw.transaction():
            await self.raw.execute("SET LOCAL session_replication_role = replica")
            for table in tables:
                await self.raw.execute(f"{remove} {table}")
        for table in tables:
            await self.raw.execute(f"VACUUM {table}")

    async def settle(self) -> None:
        """Write out what earlier runs left dirty, so that no later one pays for it."""
        await self.raw.execute("CHECKPOINT")

    async def stored(self, rollup: str) -> str:
        """The table that holds a rollup's bars: on Community the one behind the aggregate."""
        if not self.store.engine.is_community:
            return rollup
        return str(
            await self.raw.fetchval(
                "SELECT format('%I.%I', materialization_hypertable_schema, "
                "materialization_hypertable_name) "
                "FROM timescaledb_information.continuous_aggregates WHERE view_name = $1",
                rollup,
            )
        )


def _libpq_environment(url: URL) -> dict[str, str]:
    """Where psql connects to; not as arguments, which every user of the machine can read."""
    query = {name: value for name, value in url.query.items() if isinstance(value, str)}
    values: dict[str, Any] = {
        "PGHOST": url.host or query.get("host"),
        "PGPORT": url.port or query.get("port"),
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
        "PGSSLMODE": query.get("sslmode"),
        "PGTZ": "UTC",
        "PGAPPNAME": "kurisu bench",
    }
    return {name: str(value) for name, value in values.items() if value is not None}


@contextlib.contextmanager
def embedded(folder: Path) -> Iterator[tuple[str, Path]]:
    """The URL of a new embedded server in `folder` and its psql; stopped at the end.

    The wheel's newest PostgreSQL, whatever else is installed: this is the plain engine.
    """
    before = os.environ.get("KURISU_POSTGRES_BIN")
    os.environ["KURISU_POSTGRES_BIN"] = str(wheel_directories()[-1])
    cluster = Cluster(folder / "home")
    try:
        cluster.start()
        binaries = cluster.status().binaries
        if binaries is None:
            raise RuntimeError("the embedded server does not say where its programs are")
        yield cluster.url, binaries / "psql"
    finally:
        cluster.stop()
        if before is None:
            del os.environ["KURISU_POSTGRES_BIN"]
        else:
            os.environ["KURISU_POSTGRES_BIN"] = before


def psql_of_path() -> Path:
    """For a server elsewhere: the psql of the PATH, else the wheel's."""
    found = shutil.which("psql")
    return Path(found) if found else wheel_directories()[-1] / "psql"


@contextlib.asynccontextmanager
async def of_url(url: str | None) -> AsyncIterator[Bench]:
    """A scratch database on that server, or on a new embedded one."""
    if url:
        async with scratch(url, psql_of_path()) as bench:
            yield bench
        return
    with (
        tempfile.TemporaryDirectory(prefix="kurisu-bench-") as folder,
        embedded(Path(folder)) as (own, psql),
    ):
        async with scratch(own, psql) as bench:
            yield bench


@contextlib.asynccontextmanager
async def scratch(server: str, psql: Path) -> AsyncIterator[Bench]:
    """A database of its own on `server`, migrated; dropped at the end."""
    # The dialect's spelling of the URL is SQLAlchemy's; libpq's has no driver in it.
    url = database_url(server).set(drivername="postgresql")
    name = f"kurisu_bench_{os.getpid()}"
    admin = await asyncpg.connect(url.render_as_string(hide_password=False))
    try:
        await _refuse_volatile(admin)
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        try:
            with tempfile.TemporaryDirectory(prefix="kurisu-bench-") as folder:
                async with _open(url.set(database=name), psql, Path(folder)) as bench:
                    yield bench
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


async def _refuse_volatile(admin: asyncpg.Connection) -> None:
    """A server that may lose what it committed is faster, and nobody keeps a ledger on it."""
    for setting in DURABLE:
        if await admin.fetchval("SELECT current_setting($1)", setting) == "off":
            raise RuntimeError(
                f"the server has {setting} = off; what is measured there is not what a server "
                f"that keeps its data does. ALTER SYSTEM RESET {setting}, reload, measure again"
            )


@contextlib.asynccontextmanager
async def _open(url: URL, psql: Path, folder: Path) -> AsyncIterator[Bench]:
    dsn = url.render_as_string(hide_password=False)
    await upgrade(dsn)
    async with open_store(dsn) as store:
        # The candles are years old, and are to stay.
        await store.db.set_retention("ohlcv", "off")
        # Compiling a query over 53 chunks takes ten times as long as running it: with JIT on, the
        # other side would look slower than anybody who measures it would leave it.
        raw = await asyncpg.connect(dsn, server_settings={"timezone": "UTC", "jit": "off"})
        try:
            if store.engine.is_community:
                # No background job may compress or refresh while something is measured.
                await raw.execute(
                    "SELECT alter_job(job_id, scheduled => false) "
                    "FROM timescaledb_information.jobs WHERE hypertable_name IS NOT NULL"
                )
            yield Bench(store, raw, make_url(dsn), psql, folder)
        finally:
            await raw.close()
