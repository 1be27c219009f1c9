"""Runs the migrations: which revision a database is at, which this program needs, and the way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.errors import MigrationNeeded
from kurisu.migrations import ADVISORY_LOCK

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS: Final = Path(__file__).resolve().parent.parent / "migrations"
_FILE: Final = re.compile(r"\d{4}_\d{2}_\d{2}_(\w+?)_\w+")


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; the same for `kurisu db upgrade`, the tests and the command line."""
    # Loading Alembic takes 0.3 s, and only a migration needs it.
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("file_template", "%%(year)d_%%(month).2d_%%(day).2d_%%(rev)s_%%(slug)s")
    config.attributes["connection"] = connection
    return config


def revisions() -> list[str]:
    """Every revision of this program, oldest first, by the names of their files."""
    names = sorted(path.stem for path in (_MIGRATIONS / "versions").glob("*.py"))
    return [match[1] for name in names if (match := _FILE.fullmatch(name))]


def head() -> str:
    """The revision that this program needs."""
    found = revisions()
    if not found:
        raise MigrationNeeded("this installation has no migrations; reinstall Kurisu.")
    return found[-1]


async def current(connection: AsyncConnection) -> str | None:
    """The revision that the database is at; None before the first migration."""
    if await connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    found = await connection.scalar(text("SELECT version_num FROM alembic_version"))
    return None if found is None else str(found)


async def check(connection: AsyncConnection) -> None:
    """Raises MigrationNeeded unless the database is at this program's revision."""
    found, needed = await current(connection), head()
    if found == needed:
        return
    if found is None:
        raise MigrationNeeded(
            "the database has no tables of Kurisu yet. Run `kurisu db upgrade`, which makes them."
        )
    if found not in revisions():
        raise MigrationNeeded(
            f"the database is at revision {found}, which is newer than this program ({needed}). "
            "Upgrade Kurisu."
        )
    raise MigrationNeeded(
        f"the database is at revision {found} and this program needs {needed}. "
        "Run `kurisu db upgrade`."
    )


async def alone(connection: AsyncConnection) -> None:
    """Wait for any other migration of the database to end; others wait until this one commits.

    Not only inside Alembic, of which there is one per process: two tasks of one program must not
    be in it at the same time.
    """
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})


async def upgrade(connection: AsyncConnection, revision: str = "head") -> None:
    """Migrate up to `revision`, in the connection's transaction."""
    from alembic import command

    await alone(connection)
    await connection.run_sync(lambda sync: command.upgrade(alembic_config(sync), revision))


async def downgrade(connection: AsyncConnection, revision: str) -> None:
    """Migrate down to `revision` ("base" for nothing), in the connection's transaction."""
    from alembic import command

    await alone(connection)
    await connection.run_sync(lambda sync: command.downgrade(alembic_config(sync), revision))
