"""`store.db`: status, upkeep and policies of the database itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kurisu.errors import ConfigError, InvalidArgument
from kurisu.store import policies
from kurisu.store.connect import transaction
from kurisu.store.maintain import maintain
from kurisu.store.policies import Policy
from kurisu.store.status import DatabaseStatus, status

if TYPE_CHECKING:
    from kurisu.store.store import Store


class Database:
    """`store.db`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def status(self) -> DatabaseStatus:
        """How the database is doing; reads only."""
        async with transaction(self._store.database) as connection:
            return await status(connection, self._store.engine)

    async def maintain(self) -> list[str]:
        """Do the upkeep that is due; a line for each thing that was done."""
        return await maintain(self._store.database, self._store.engine)

    async def retention(self) -> dict[str, Policy]:
        """The policies by relation."""
        async with transaction(self._store.database) as connection:
            return await policies.read(connection)

    async def set_retention(self, relation: str, duration: str) -> str:
        """Keep raw rows of `relation` (ohlcv or trades) for e.g. "5 years", or "off" for ever.

        Raises InvalidArgument, and ConfigError where kurisu.toml already says.
        """
        if relation not in policies.RELATIONS:
            raise InvalidArgument(
                f"{relation!r} has no retention; it is for {' and '.join(policies.RELATIONS)}"
            )
        wanted = policies.parse_duration(duration)
        config = self._store.config
        if relation in config.retention:
            raise ConfigError(
                f"{config.path} sets the retention of {relation} to "
                f"{config.retention[relation]!r}; change it there."
            )
        async with transaction(self._store.database) as connection:
            await policies.set_retention(
                connection, self._store.engine, relation, wanted, "command"
            )
        return f"retention of {relation}: {wanted or 'off, rows are kept for ever'}"
