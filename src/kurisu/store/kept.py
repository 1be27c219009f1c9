"""A connection of the pool that is kept from one question to the next."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import asyncpg
from sqlalchemy import PoolProxiedConnection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import greenlet_spawn

from kurisu.store.connect import translated


class Kept:
    """asyncpg's own connection, for single questions that are answered sooner than the pool has
    one ready; each statement is a transaction of its own.

    The first who asks has the one that is kept; who asks meanwhile gets another from the pool.
    Where a server has one session at a time, nothing is kept. settings: SQL for the kept session.
    """

    def __init__(self, database: AsyncEngine, settings: str) -> None:
        self._database = database
        self._settings = settings
        self._pooled: PoolProxiedConnection | None = None
        self._is_taken = False

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[asyncpg.Connection]:
        """Errors are Kurisu's."""
        with translated(self._database):
            if self._is_taken or isinstance(self._database.pool, NullPool):
                pooled = await self._database.raw_connection()
                try:
                    yield _driver(pooled)
                finally:
                    await greenlet_spawn(pooled.close)
                return
            self._is_taken = True
            try:
                if self._pooled is not None and _driver(self._pooled).is_closed():
                    await self.end()
                if self._pooled is None:
                    self._pooled = await self._database.raw_connection()
                    await self._set_up(self._pooled)
                yield _driver(self._pooled)
            finally:
                self._is_taken = False

    async def _set_up(self, pooled: PoolProxiedConnection) -> None:
        try:
            await _driver(pooled).execute(self._settings)
        except BaseException:
            await self.end()
            raise

    async def end(self) -> None:
        """End the session, whose settings are for nobody else; the next question has a new one."""
        pooled, self._pooled = self._pooled, None
        if pooled is not None:
            await greenlet_spawn(pooled.invalidate)


def _driver(pooled: PoolProxiedConnection) -> asyncpg.Connection:
    return pooled.driver_connection
