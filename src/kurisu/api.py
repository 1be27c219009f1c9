"""Opens a store: finds the configuration and the database, and starts the embedded server."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from kurisu import config
from kurisu.server import Cluster, data_home
from kurisu.store.store import Store, open_store

DATABASE_URL = "KURISU_DATABASE_URL"


async def resolve_url(url: str | None) -> tuple[str, bool]:
    """The database to use, and whether it is the embedded one, which is started if need be.

    `url` if given, else KURISU_DATABASE_URL, else the embedded server. Raises ServerError.
    """
    named = url or os.environ.get(DATABASE_URL)
    if named:
        return named, False
    cluster = Cluster()
    await asyncio.to_thread(cluster.start)
    return cluster.url, True


@contextlib.asynccontextmanager
async def open(url: str | None = None) -> AsyncIterator[Store]:  # noqa: A001
    """Open the database: `url`, else KURISU_DATABASE_URL, else the embedded server.

    The embedded server is started and its database set up by itself; another one is set up with
    `kurisu db upgrade`. Raises KurisuError with what to do.
    """
    where, embedded = await resolve_url(url)
    async with open_store(where, config.load(data_home()), migrated=embedded) as store:
        yield store
