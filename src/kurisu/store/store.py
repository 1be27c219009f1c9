"""The store: one database, and the doors to what is in it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncEngine

from kurisu.config import Config
from kurisu.errors import ConfigError, DatabaseError, InvalidArgument
from kurisu.store import layout, migrate, policies, queue
from kurisu.store.accounts import Accounts
from kurisu.store.candle_few import FewBars
from kurisu.store.candles import Candles
from kurisu.store.connect import INSUFFICIENT_PRIVILEGE, make_engine, transaction
from kurisu.store.database import Database
from kurisu.store.engine import Engine, detect
from kurisu.store.markets import Markets
from kurisu.store.queue import Queue
from kurisu.store.trades import Trades

if TYPE_CHECKING:
    from kurisu.store.ledger import Ledger


@dataclass(slots=True)
class Store:
    """An open database.

    database: SQLAlchemy's engine, for queries of your own.
    engine: which tier of PostgreSQL or TimescaleDB it is.
    """

    database: AsyncEngine
    engine: Engine
    config: Config = field(default_factory=Config)
    _few_bars: FewBars | None = field(default=None, init=False, repr=False, compare=False)
    _ledger: Ledger | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def markets(self) -> Markets:
        return Markets(self)

    @property
    def db(self) -> Database:
        return Database(self)

    @property
    def accounts(self) -> Accounts:
        return Accounts(self)

    @property
    def ledger(self) -> Ledger:
        if self._ledger is None:
            # Loaded when it is needed: a tenth of the time in which a command starts.
            from kurisu.store.ledger import Ledger

            self._ledger = Ledger(self)
        return self._ledger

    @property
    def few_bars(self) -> FewBars:
        """What reads of a few bars share; `candles` uses it."""
        if self._few_bars is None:
            self._few_bars = FewBars(self.database, self.engine)
        return self._few_bars

    async def close(self) -> None:
        """Give back what is kept; the engine is disposed by whoever made it."""
        if self._few_bars is not None:
            await self._few_bars.close()
        if self._ledger is not None:
            await self._ledger.close()

    @property
    def candles(self) -> Candles:
        return Candles(self)

    @property
    def queue(self) -> Queue:
        return Queue(self)

    @property
    def trades(self) -> Trades:
        return Trades(self)


@contextlib.asynccontextmanager
async def open_store(
    url: str, config: Config | None = None, *, migrated: bool = False
) -> AsyncIterator[Store]:
    """Connect to `url` and check that it is fit. Changes nothing but policies that kurisu.toml
    names.

    migrated: bring a database without any tables up to date instead of refusing it.
    Raises EngineRefused, MigrationNeeded, DatabaseError, ConfigError.
    """
    config = config or Config()
    database = make_engine(url)
    try:
        async with transaction(database) as connection:
            engine = await detect(connection)
            empty = await migrate.current(connection) is None
            if not (empty and migrated):
                await migrate.check(connection)
                await layout.check(connection, engine)
        if empty:
            await upgrade(url, config)
            await database.dispose()
            async with transaction(database) as connection:
                engine = await detect(connection)
        else:
            await converge_policies(database, engine, config)
        store = Store(database, engine, config)
        try:
            yield store
        finally:
            await store.close()
    finally:
        await database.dispose()


async def converge_policies(database: AsyncEngine, engine: Engine, config: Config) -> list[str]:
    """Apply what kurisu.toml says of retention and compression; returns what changed.

    Raises ConfigError.
    """
    retention = _durations(config, "retention", config.retention)
    compression = _durations(config, "compression", config.compression)
    async with transaction(database) as connection:
        return await policies.converge(connection, engine, retention, compression)


def _durations(config: Config, section: str, given: Mapping[str, str]) -> dict[str, str | None]:
    found = {}
    for name, duration in given.items():
        try:
            found[name] = policies.parse_duration(duration)
        except InvalidArgument as error:
            raise ConfigError(f"{config.path}: [{section}] {name}: {error}") from error
    return found


async def _set_up_queue(database: AsyncEngine) -> list[str]:
    """A role that may not create schemas does without workers, and is told."""
    try:
        return await queue.set_up(database)
    except DatabaseError as error:
        if getattr(error.__cause__, "sqlstate", None) != INSUFFICIENT_PRIVILEGE:
            raise
        return [f"no queue for `kurisu worker`, because this role may not create it: {error}"]


async def upgrade(url: str, config: Config | None = None) -> list[str]:
    """Bring a database up to date: extension, migrations, layout, policies.

    Returns a line for each thing that was done; running it twice does nothing the second time.
    """
    database = make_engine(url)
    try:
        done = await layout.add_extension(database)
        async with transaction(database) as connection:
            engine = await detect(connection)
            await migrate.alone(connection)
            before = await migrate.current(connection)
            await migrate.upgrade(connection)
            after = await migrate.current(connection)
        if before != after:
            done.append(f"migrated from {before or 'an empty database'} to revision {after}")
        done += await layout.converge(database, engine)
        done += await converge_policies(database, engine, config or Config())
        return done + await _set_up_queue(database)
    finally:
        await database.dispose()
