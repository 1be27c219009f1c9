"""The servers that the tests run on, and a fresh database of each tier for every test.

Three tiers: plain PostgreSQL (the embedded server, on the wheel's binaries), TimescaleDB Community,
and the Apache edition. Community is the server that `KURISU_TEST_TIMESCALEDB_URL` names (a
superuser's URL; databases are created and dropped there), else TimescaleDB in WebAssembly. The
Apache tier runs on the same server with an `Engine` that says so: hypertables, and no Community
function called. A server that cannot be started fails the tests; nothing is skipped for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from unittest.mock import patch

import asyncpg
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncConnection
from timescale_wasm.server import WasmServer

from kurisu.migrations import script
from kurisu.server import Cluster
from kurisu.server.binaries import inspect, wheel_directories
from kurisu.store.engine import Edition, Engine, detect
from kurisu.store.store import upgrade

TIMESCALEDB_URL: Final = "KURISU_TEST_TIMESCALEDB_URL"
TIERS: Final = ("plain", "apache", "community")
EDITIONS: Final = {
    "plain": Edition.PLAIN,
    "apache": Edition.APACHE,
    "community": Edition.COMMUNITY,
}

#: Whether the TimescaleDB tiers run on a server of many sessions.
NATIVE_TIMESCALEDB: Final = bool(os.environ.get(TIMESCALEDB_URL))
#: Tiers on which two sessions can be open at once; the WebAssembly engine has one.
CONCURRENT_TIERS: Final = TIERS if NATIVE_TIMESCALEDB else ("plain",)
#: Tiers that a process of its own sees as well, where nobody tells it what to see; and for tests
#: that are too slow for the WebAssembly engine or to which the engine makes hardly a difference.
REAL_TIERS: Final = ("plain", "community") if NATIVE_TIMESCALEDB else ("plain",)

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of `coroutine`, from a synchronous fixture: in a thread, away from the loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def execute(url: str, *statements: str) -> None:
    """Run SQL statements outside a transaction in a session of their own."""
    connection = await asyncpg.connect(without_options(url))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def without_options(url: str) -> str:
    """The URL as asyncpg takes it: `pgbouncer=true` is Kurisu's own."""
    return url.removesuffix("?pgbouncer=true")


#: `detect` itself, and what stands in for it at the moment.
_DETECTORS: Final[list[object]] = [detect]


@contextlib.contextmanager
def edition(wanted: Edition) -> Iterator[None]:
    """Make every connection look like `wanted` on a server that could do more.

    Inside another one the inner counts. Plain PostgreSQL is also what the migrations see: the
    WebAssembly engine cannot do without the extension.
    """

    async def forced(connection: AsyncConnection) -> Engine:
        found = await detect(connection)
        if wanted is Edition.PLAIN:
            return replace(found, edition=wanted, timescaledb=None, available=None)
        if found.timescaledb is not None and found.edition is not wanted:
            return replace(found, edition=wanted)
        return found

    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("kurisu.") and getattr(module, "detect", None) in _DETECTORS:
                stack.enter_context(patch.object(module, "detect", forced))
        if wanted is Edition.PLAIN:
            stack.enter_context(patch.object(script, "has_timescaledb", bool))
        _DETECTORS.append(forced)
        stack.callback(_DETECTORS.remove, forced)
        yield


class Server(Protocol):
    """Where databases come from. One database is in use at a time: the next ends the last."""

    def migrated(self, wanted: Edition) -> str:
        """The URL of a new database as `kurisu db upgrade` leaves it, on the edition `wanted`."""

    def empty(self) -> str:
        """The URL of a new database with nothing in it, and without the extension if possible."""

    def close(self) -> None: ...


class RealServer:
    """Databases of a server that serves many, cloned from one template for each edition."""

    def __init__(
        self, url: str, strategy: str, extension: str | None = None, prefix: str = "kurisu_test"
    ) -> None:
        self._url = url
        self._strategy = strategy
        self._extension = extension
        self._prefix = f"{prefix}_{os.getpid()}"
        self._templates: dict[Edition, str] = {}
        self._count = 0
        self._current: str | None = None

    def migrated(self, wanted: Edition) -> str:
        if wanted not in self._templates:
            template = f"{self._prefix}_{wanted.name.lower()}"
            run(execute(self._url, self._creation(template, "template0")))
            if self._extension:
                # No background job runs in it, so that none leaves a trace in its clones.
                run(execute(self._url_of(template), f"CREATE EXTENSION {self._extension}"))
                run(self._quiet(template))
            run(upgrade(self._url_of(template)))
            run(self._close_to_all(template))
            self._templates[wanted] = template
        return self._next(self._templates[wanted])

    def empty(self) -> str:
        return self._next("template0")

    def stop(self) -> None:
        """Keep everybody away from the current database, as if the server were not there."""
        if self._current is not None:
            run(self._close_to_all(self._current))

    def start(self) -> None:
        """End what `stop` began."""
        run(execute(self._url, f"ALTER DATABASE {self._current} ALLOW_CONNECTIONS true"))

    def close(self) -> None:
        for name in [self._current, *self._templates.values()]:
            if name is not None:
                run(execute(self._url, f"DROP DATABASE {name} WITH (FORCE)"))
        self._current = None
        self._templates.clear()

    def _next(self, template: str) -> str:
        last, self._current = self._current, None
        self._count += 1
        name = f"{self._prefix}_{self._count}"
        drop = [] if last is None else [f"DROP DATABASE {last} WITH (FORCE)"]
        run(execute(self._url, *drop, self._creation(name, template)))
        self._current = name
        if self._extension:
            run(self._quiet(name))
        return self._url_of(name)

    def _creation(self, name: str, template: str) -> str:
        return f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {self._strategy}"

    async def _close_to_all(self, name: str) -> None:
        """Nobody is connected, TimescaleDB's scheduler included: only then can it be cloned."""
        await execute(
            self._url,
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            f"WHERE datname = '{name}'",
        )

    async def _quiet(self, name: str) -> None:
        """No background job runs behind a test's back; tests run jobs themselves."""
        connection = await asyncpg.connect(self._url_of(name))
        try:
            if await connection.fetchval("SELECT 1 FROM pg_extension WHERE extname='timescaledb'"):
                await connection.execute("SELECT _timescaledb_functions.stop_background_workers()")
        finally:
            await connection.close()

    def _url_of(self, name: str) -> str:
        return make_url(self._url).set(database=name).render_as_string(hide_password=False)


def plain_binaries() -> Path:
    """The wheel's newest binaries: others of this machine may have TimescaleDB."""
    found = [inspect(directory, "wheel") for directory in wheel_directories()]
    return max((b for b in found if b is not None), key=lambda b: b.major).bin_dir


class EmbeddedServer(RealServer):
    """The embedded PostgreSQL in a home of its own, always on the wheel's newest binaries."""

    def __init__(self) -> None:
        # Not below pytest's tmp_path, which the server's account cannot reach when root runs the
        # tests; in memory where there is some, since a cloned database is many small files.
        memory = Path("/dev/shm")
        has_memory = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
        self._home = Path(tempfile.mkdtemp(prefix="kurisu-", dir=memory if has_memory else None))
        self._home.chmod(0o755)
        self._bin = plain_binaries()
        with patch.dict(os.environ, KURISU_POSTGRES_BIN=str(self._bin)):
            self._cluster = Cluster(self._home)
            self._cluster.start()
        super().__init__(self._cluster.url, "file_copy")

    def stop(self) -> None:
        """Stop the server under everybody who is connected; `start` brings it back."""
        self._cluster.stop()

    def start(self) -> None:
        with patch.dict(os.environ, KURISU_POSTGRES_BIN=str(self._bin)):
            self._cluster.start()

    def close(self) -> None:
        self._cluster.stop()
        shutil.rmtree(self._home)


class WasmTimescale:
    """TimescaleDB Community in WebAssembly: one database, put back to a snapshot for each test."""

    def __init__(self) -> None:
        self._server = WasmServer()
        self._server.start()
        self._snapshots: set[Edition] = set()

    @property
    def _url(self) -> str:
        return f"{self._server.url}?pgbouncer=true"

    def migrated(self, wanted: Edition) -> str:
        if wanted in self._snapshots:
            self._server.restore(wanted.name)
            return self._url
        self._server.reset()
        run(upgrade(self._url))
        self._server.snapshot(wanted.name)
        self._snapshots.add(wanted)
        return self._url

    def empty(self) -> str:
        self._server.reset()
        return self._url

    def close(self) -> None:
        self._server.stop()


class Servers:
    """The servers of one test process, started when a test first needs them."""

    def __init__(self) -> None:
        self._started: dict[str, Server] = {}

    @contextlib.contextmanager
    def migrated(self, tier: str) -> Iterator[str]:
        """A fresh migrated database of a tier; connections look like the tier meanwhile."""
        with edition(EDITIONS[tier]):
            yield self.server(tier).migrated(EDITIONS[tier])

    def empty(self, tier: str) -> str:
        """A fresh database with nothing in it on the server of a tier."""
        return self.server(tier).empty()

    @contextlib.contextmanager
    def kept(self, tier: str) -> Iterator[str]:
        """A migrated database of the real server that stays, whatever others are asked for."""
        url = os.environ[TIMESCALEDB_URL]
        server = RealServer(url, "wal_log", "timescaledb", "kurisu_kept")
        try:
            yield server.migrated(EDITIONS[tier])
        finally:
            server.close()

    def server(self, tier: str) -> Server:
        name = "plain" if tier == "plain" else "timescaledb"
        if name not in self._started:
            self._started[name] = self._start(name)
        return self._started[name]

    def close(self) -> None:
        for server in self._started.values():
            server.close()

    @staticmethod
    def _start(name: str) -> Server:
        if name == "plain":
            return EmbeddedServer()
        url = os.environ.get(TIMESCALEDB_URL)
        return RealServer(url, "wal_log", "timescaledb") if url else WasmTimescale()


def tiers(*wanted: str) -> Sequence[str]:
    """Fixture parameters: the tiers named, in their usual order."""
    return [tier for tier in TIERS if tier in wanted]
