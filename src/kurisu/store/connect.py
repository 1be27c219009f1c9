"""Connections: from a URL to an engine whose sessions all behave the same."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

import asyncpg
from sqlalchemy import URL, AdaptedConnection, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, InterfaceError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from kurisu.errors import ConfigError, DatabaseError, WriteRefused

CONNECT_TIMEOUT_S: Final = 30
POOL_SIZE: Final = 5
MAX_OVERFLOW: Final = 15

#: Every lock here is taken before what it protects is read, so each statement has to see what was
#: committed before it. A server, a database or a role may have another default.
ISOLATION: Final = "READ COMMITTED"

# What a session has to be like, whatever the server, the database or the role prefer: lengths of
# time and literals read the same everywhere. Not said when connecting, as the time zone is: poolers
# refuse most of it there.
SESSION: Final = f"""
SET intervalstyle = 'postgres';
SET standard_conforming_strings = on;
SET default_transaction_isolation = '{ISOLATION.lower()}';
"""

#: TCP's questions to a silent server, where the system can be told: after how many seconds the
#: first, how many between two, how many without an answer are enough; and after how many
#: milliseconds what was sent and not received is enough.
KEEP_ALIVE: Final = {
    "TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000,
}  # fmt: skip

MOST_PORT: Final = 65_535
#: Files of an encrypted connection: what the server is known by, what this client is known by.
_TLS_FILES: Final = ("sslcert", "sslcrl", "sslkey", "sslrootcert")
#: What may stand behind the ? of a database URL, beside libpq's sslmode.
_OPTIONS: Final = (
    "application_name", "connect_timeout", "gsslib", "host", "krbsrvname", "passfile", "password",
    "pgbouncer", "port", "prepared_statement_cache_size", "service", "ssl",
    "target_session_attrs", "user", *_TLS_FILES,
)  # fmt: skip

#: Guards and constraints in the database: class 23, and what our triggers raise.
_REFUSALS: Final = ("23",)


def database_url(url: str) -> URL:
    """A URL of SQLAlchemy's asyncpg dialect from any usual spelling of a PostgreSQL URL.

    Raises ConfigError; never repeats a password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise ConfigError(
            "the database URL cannot be read; write it as "
            "postgresql://user:password@host:5432/database"
        ) from None
    if "@" in (parsed.host or ""):  # what stands before it is part of the password
        raise ConfigError(
            "the database URL has more than one @; write one in a user or password as %40"
        )
    if not 0 < (parsed.port or 1) <= MOST_PORT:
        raise ConfigError(f"the database URL has port {parsed.port}; the last one is {MOST_PORT}")
    if parsed.get_backend_name() not in ("postgresql", "postgres", "timescaledb"):
        raise ConfigError(
            f"{parsed.drivername}:// is not PostgreSQL; Kurisu runs on PostgreSQL and "
            "TimescaleDB: postgresql://user:password@host:5432/database"
        )
    query = dict(parsed.query)
    if "sslmode" in query:  # libpq's name; asyncpg's is ssl and takes the same words.
        query["ssl"] = query.pop("sslmode")
    if query.pop("channel_binding", "prefer") == "require":
        raise ConfigError(
            "the database URL has channel_binding=require, which cannot be kept; leave it out. "
            "sslmode=verify-full makes sure that the server is the right one."
        )
    unknown = sorted(set(query) - set(_OPTIONS))
    if unknown:
        raise ConfigError(
            f"the database URL has the option {unknown[0]}, which Kurisu does not know; known are "
            f"sslmode, {', '.join(_OPTIONS)}"
        )
    return parsed.set(drivername="postgresql+asyncpg", query=query)


def make_engine(url: str) -> AsyncEngine:
    """An engine for `url`; nothing is connected yet.

    `?pgbouncer=true` in the URL is for servers behind a pooler in transaction mode, and for any
    that serve one session at a time: no prepared statement outlives a transaction, and no
    connection is kept.
    """
    parsed = database_url(url)
    options: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": MAX_OVERFLOW}
    arguments: dict[str, Any] = {
        "timeout": CONNECT_TIMEOUT_S,
        "server_settings": {"application_name": "kurisu", "timezone": "UTC"},
    }
    query = dict(parsed.query)
    if "application_name" in query:
        arguments["server_settings"]["application_name"] = str(query.pop("application_name"))
    if "connect_timeout" in query:
        arguments["timeout"] = _seconds(query.pop("connect_timeout"))
    keeps_session = str(query.pop("pgbouncer", "false")).lower() not in ("1", "true", "yes")
    if not keeps_session:
        options = {"poolclass": NullPool}
        arguments["statement_cache_size"] = 0
        arguments["prepared_statement_name_func"] = lambda: f"kurisu_{uuid4().hex}"
        arguments["server_settings"] = {}
        query["prepared_statement_cache_size"] = "0"
    files = {name: str(query.pop(name)) for name in _TLS_FILES if name in query}
    for name, file in files.items():
        if not Path(file).is_file():
            raise ConfigError(f"the database URL has {name}={file}, and there is no such file")
    if files:
        # asyncpg takes them in a URL of its own only; what stands beside it counts more.
        mode = {"sslmode": str(query.pop("ssl"))} if "ssl" in query else {}
        arguments["dsn"] = f"postgresql:///?{urlencode(files | mode)}"
    engine = create_async_engine(
        parsed.set(query=query), connect_args=arguments, isolation_level=ISOLATION, **options
    )
    event.listen(engine.sync_engine, "connect", _keep_alive)
    event.listen(engine.sync_engine, "checkout", _is_open)
    if keeps_session:
        event.listen(engine.sync_engine, "connect", _set_up)
    return engine


def _is_open(connection: AdaptedConnection, *_: object) -> None:
    """Have the pool connect anew in place of what ended while it lay there. It finds that out by
    itself where its own statements fail, and most of what reads candles goes past it."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError("the server ended the connection")


def _set_up(connection: AdaptedConnection, _: object) -> None:
    connection.run_async(lambda raw: raw.execute(SESSION))


def _keep_alive(connection: AdaptedConnection, _: object) -> None:
    """Have the system ask an idle server whether it is still there, as libpq does and asyncpg does
    not: else whoever waits for a host that is gone, and said nothing, waits for ever."""
    transport = connection.driver_connection._transport  # noqa: SLF001 - asyncpg shows no socket
    found = transport.get_extra_info("socket")
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            found.setsockopt(socket.IPPROTO_TCP, option, value)


def _seconds(given: object) -> int:
    try:
        return int(str(given))
    except ValueError:
        raise ConfigError(f"connect_timeout is {given!r}; it has to be whole seconds") from None


#: SQLSTATE of a relation that is not there, and of one that a role may not use so.
UNDEFINED_TABLE: Final = "42P01"
INSUFFICIENT_PRIVILEGE: Final = "42501"


def sqlstate(error: DBAPIError) -> str | None:
    """PostgreSQL's code of what went wrong."""
    cause = error.orig.__cause__ if error.orig is not None else None
    found: str | None = getattr(cause, "sqlstate", None)
    return found


def _says(error: BaseException) -> str:
    text = str(error).strip()
    detail = getattr(error, "detail", None)
    return f"{text} ({detail})" if detail and detail not in text else text


def _translation(error: BaseException, where: str) -> DatabaseError:
    if (getattr(error, "sqlstate", None) or "").startswith(_REFUSALS):
        return WriteRefused(_says(error))
    if isinstance(error, asyncpg.InvalidPasswordError):
        return DatabaseError(f"{where} does not accept the user or password.")
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return DatabaseError(f"{where}: {_says(error)}; create the database first.")
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return DatabaseError(f"{where}: {_says(error)}.")
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return DatabaseError(
            f"{where}: {_says(error)}. To set a database up, the role needs CREATE in it and in "
            "its schema; to use it, grants on its tables."
        )
    return DatabaseError(_says(error))


def _is_break(error: BaseException) -> bool:
    """What asyncpg says if the server ends the connection while a statement is on its way; its
    errors that are values as well say that an argument is wrong."""
    kinds = (asyncpg.InterfaceError, asyncpg.InternalClientError)
    return isinstance(error, kinds) and not isinstance(error, ValueError)


@contextlib.contextmanager
def translated(where: AsyncEngine | str) -> Iterator[None]:
    """Turn a driver's errors into Kurisu's, once, at the boundary.

    where: the database, or what a message calls it (without a password).
    """
    try:
        yield
    except DBAPIError as error:
        original: BaseException = error.orig or error
        cause = original.__cause__ or original
        if isinstance(cause, asyncpg.ClientConfigurationError):
            raise ConfigError(f"the database URL: {_says(cause)}") from error
        if _is_break(cause) or (isinstance(error, InterfaceError) and cause is original):
            raise _broken(cause, where) from error
        raise _translation(cause, _named(where)) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        if _is_break(error):
            raise _broken(error, where) from error
        raise _translation(error, _named(where)) from error
    except (ConnectionError, TimeoutError, OSError) as error:
        reason = _says(error) or type(error).__name__
        raise DatabaseError(
            f"cannot reach the database at {_named(where)}: {reason}. Is the server running, and "
            "is KURISU_DATABASE_URL right?"
        ) from error


def _named(where: AsyncEngine | str) -> str:
    return where if isinstance(where, str) else target(where)


def _broken(error: BaseException, where: AsyncEngine | str) -> DatabaseError:
    return DatabaseError(f"the connection to {_named(where)} broke: {_says(error)}")


async def driver(connection: AsyncConnection) -> asyncpg.Connection:
    """asyncpg's own connection under `connection`, for COPY."""
    raw = await connection.get_raw_connection()
    found = raw.driver_connection
    if not isinstance(found, asyncpg.Connection):
        raise DatabaseError("the connection is not asyncpg's")
    return found


async def copy_in(
    connection: asyncpg.Connection,
    relation: str,
    columns: Sequence[str],
    source: AsyncGenerator[bytes, None],
    **options: Any,
) -> None:
    """asyncpg's `copy_to_table` of the bytes of `source`, which ends if the server goes away.

    A sender that is faster than the server is told to pause. If the connection is lost then, nobody
    tells it to go on, and asyncpg 0.32 waits for ever. Raises asyncpg's error of a lost connection.
    """
    protocol = connection._protocol  # noqa: SLF001 - there is no other way to it
    is_lost = False

    def go_on(_: asyncpg.Connection) -> None:
        nonlocal is_lost
        is_lost = True
        protocol.resume_writing()

    async def until_lost() -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(source):
            async for chunk in source:
                if is_lost:
                    return
                yield chunk

    connection.add_termination_listener(go_on)
    try:
        await connection.copy_to_table(relation, source=until_lost(), columns=columns, **options)
    finally:
        connection.remove_termination_listener(go_on)


def target(engine: AsyncEngine) -> str:
    """The database's address for a message: no password, and no option, which may hold one."""
    shown = engine.url.set(drivername="postgresql", query={})
    socket = engine.url.query.get("host")
    where = shown.render_as_string(hide_password=True)
    return f"{where} (socket {socket})" if isinstance(socket, str) and socket else where


@contextlib.asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One transaction, committed at the end; errors are Kurisu's."""
    with translated(engine):
        async with engine.begin() as connection:
            # asyncpg's transaction starts with the first statement; COPY alone is none.
            await connection.exec_driver_sql("SELECT 1")
            yield connection


@contextlib.asynccontextmanager
async def autocommit(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection in which each statement is a transaction of its own.

    For what commits by itself (CALL refresh), and for reads: READ COMMITTED gives every statement
    its own view of the data anyway, and this saves three round trips.
    """
    with translated(engine):
        async with engine.connect() as connection:
            yield await connection.execution_options(isolation_level="AUTOCOMMIT")
