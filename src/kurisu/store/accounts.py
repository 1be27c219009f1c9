"""Accounts: who trades where. The database has names of environment variables, never a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.errors import InvalidArgument, NotFound
from kurisu.schema import Account as AccountRow
from kurisu.store.connect import transaction

if TYPE_CHECKING:
    from kurisu.store.store import Store

_EXCHANGE: Final = re.compile(r"[a-z0-9_]{1,50}")
_NAME: Final = re.compile(r"[^\s:/]{1,50}")
#: Keys of exchanges have lower case letters, dashes or no underscore; names of variables do not.
_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
#: The key of `accounts.meta` under which the names of environment variables are.
_CREDENTIALS: Final = "credentials"

# A new account. Parameters: exchange, name, meta. Nothing is returned if it was there.
CREATE: Final = """
INSERT INTO accounts (exchange, name, meta) VALUES (:exchange, :name, CAST(:meta AS jsonb))
ON CONFLICT (exchange, name) DO NOTHING RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Account:
    """An account at an exchange; one row of `accounts`.

    id: ours. exchange: CCXT's id. name: the user's, e.g. "main".
    credentials: CCXT's name of each credential -> the environment variable that holds it, e.g.
        {"apiKey": "BINANCE_MAIN_KEY", "secret": "BINANCE_MAIN_SECRET"}.
    meta: whatever else is to be remembered, e.g. {"sandbox": True}.
    """

    id: int
    exchange: str
    name: str
    credentials: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.exchange}:{self.name}"


def _account(row: Any) -> Account:
    meta = dict(row.meta)
    return Account(row.id, row.exchange, row.name, meta.pop(_CREDENTIALS, {}), meta)


async def find(connection: AsyncConnection, exchange: str, name: str) -> Account | None:
    """The account of that name, or None."""
    row = (
        await connection.execute(
            select(AccountRow.id, AccountRow.exchange, AccountRow.name, AccountRow.meta).where(
                AccountRow.exchange == exchange, AccountRow.name == name
            )
        )
    ).one_or_none()
    return None if row is None else _account(row)


class Accounts:
    """`store.accounts`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(
        self,
        exchange: str,
        name: str,
        credentials: Mapping[str, str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Account:
        """A new account. Raises InvalidArgument, also if it is there already.

        credentials: names of environment variables by CCXT's names (apiKey, secret, password, uid,
            ...); what looks like a credential itself is refused, and not repeated.
        """
        if not _EXCHANGE.fullmatch(exchange):
            raise InvalidArgument(
                f"{exchange!r} is not an exchange's name: use CCXT's id, e.g. 'binance'."
            )
        if not _NAME.fullmatch(name) or not name.isprintable():
            raise InvalidArgument(
                f"{name!r} cannot name an account: up to 50 characters without blanks, ':' and '/'."
            )
        for key, variable in (credentials or {}).items():
            if not _VARIABLE.fullmatch(variable):
                raise InvalidArgument(
                    f"{key} has to be the name of an environment variable, in capitals and with "
                    f"an underscore, e.g. {exchange.upper()}_{key.upper()}; what was given does "
                    "not look like one, and a credential itself is never stored."
                )
        content = {**(meta or {}), _CREDENTIALS: dict(credentials or {})}
        async with transaction(self._store.database) as connection:
            created = await connection.execute(
                text(CREATE), {"exchange": exchange, "name": name, "meta": json.dumps(content)}
            )
            if created.first() is None:
                raise InvalidArgument(f"account {exchange}:{name} is there already")
            found = await find(connection, exchange, name)
        if found is None:
            raise NotFound(f"account {exchange}:{name} could not be created")
        return found

    async def get(self, exchange: str, name: str) -> Account:
        """The account, e.g. `get("binance", "main")`. Raises NotFound."""
        async with transaction(self._store.database) as connection:
            found = await find(connection, exchange, name)
        if found is None:
            raise NotFound(
                f"account {exchange}:{name} is not in the database; `kurisu account list` shows "
                "what is there, `kurisu account add` adds one."
            )
        return found

    async def find(self, text: str) -> Account:
        """The account that `text` names: `exchange:name`, or a name that only one account has.

        Raises NotFound, InvalidArgument (the name is not unique).
        """
        exchange, colon, name = text.partition(":")
        if colon:
            return await self.get(exchange, name)
        found = [account for account in await self.list() if account.name == text]
        if len(found) > 1:
            names = ", ".join(str(account) for account in found)
            raise InvalidArgument(f"{text!r} is the name of several accounts: {names}")
        if not found:
            raise NotFound(
                f"account {text!r} is not in the database; `kurisu account list` shows what is "
                "there, `kurisu account add` adds one."
            )
        return found[0]

    async def list(self, exchange: str | None = None) -> list[Account]:
        """Every account, or those of one exchange, by name."""
        query = select(AccountRow.id, AccountRow.exchange, AccountRow.name, AccountRow.meta)
        query = query.order_by(AccountRow.exchange, AccountRow.name)
        if exchange is not None:
            query = query.where(AccountRow.exchange == exchange)
        async with transaction(self._store.database) as connection:
            return [_account(row) for row in await connection.execute(query)]
