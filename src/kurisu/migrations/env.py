"""How Alembic reaches the database: always through a connection that the caller opened.

`kurisu.store.migrate` passes its connection in `config.attributes["connection"]`. The `alembic`
command line has none, so it opens one to `KURISU_DATABASE_URL`; that is for writing new
revisions, not for users.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from kurisu.migrations import ADVISORY_LOCK
from kurisu.migrations.compare import include_object
from kurisu.schema import Base

# A migration that waits for a lock blocks everybody who comes after it, so it gives up soon and
# can be run again; one that runs away is stopped.
LOCK_TIMEOUT = "10s"
STATEMENT_TIMEOUT = "10min"


def run(connection: Connection) -> None:
    """Run what Alembic was asked for inside one transaction."""
    options: dict[str, Any] = {
        "connection": connection,
        "target_metadata": Base.metadata,
        "include_object": include_object,
        "compare_type": True,
        "compare_server_default": True,
    }
    context.configure(**options)
    with context.begin_transaction():
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
        context.run_migrations()


async def run_alone() -> None:
    url = os.environ.get("KURISU_DATABASE_URL")
    if not url:
        raise SystemExit("KURISU_DATABASE_URL is not set; users run `kurisu db upgrade`.")
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1))
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    asyncio.run(run_alone())
