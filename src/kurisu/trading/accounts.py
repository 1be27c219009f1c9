"""From an account in the database to its open private side: credentials come from the environment.

The database has names of environment variables. What they hold is read here, when an account is
opened, and goes nowhere but into CCXT's object.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from kurisu.config import Config
from kurisu.errors import ConfigError, InvalidArgument
from kurisu.exchange.configured import settings_of
from kurisu.exchange.private import CcxtAccount, open_account, required_credentials
from kurisu.exchange.private_venues import private_venue_of
from kurisu.exchange.settings import SECRETS, ExchangeSettings
from kurisu.store.accounts import Account

#: The key of `Account.meta` that tells a paper account.
PAPER: Final = "paper"
#: The key of `Account.meta` under which the wallets to read are.
WALLETS: Final = "wallets"
#: The options of `kurisu account add` by CCXT's names.
_OPTIONS: Final = {
    "apiKey": "--key-env VARIABLE",
    "secret": "--secret-env VARIABLE",
    "password": "--password-env VARIABLE",
}


def missing_variables(account: Account) -> list[str]:
    """Environment variables of the account's credentials that are not set, by name."""
    return [variable for variable in account.credentials.values() if not os.environ.get(variable)]


def check_credentials(
    config: Config, exchange: str, credentials: Mapping[str, str], *, is_paper: bool = False
) -> None:
    """Whether CCXT knows the exchange, and all that it asks for is named.

    Raises NotOffered, ConfigError, InvalidArgument; repeats no name of a variable, which may be a
    credential that was given by mistake.
    """
    unknown = sorted(set(credentials) - SECRETS)
    if unknown:
        raise InvalidArgument(
            f"{', '.join(unknown)} is no credential that CCXT knows: {', '.join(sorted(SECRETS))}"
        )
    settings = settings_of(config, exchange)
    needed = required_credentials(replace(settings, env={}))
    if is_paper:
        return
    missing = sorted(needed - set(credentials) - set(settings.env))
    if missing:
        options = ", ".join(_OPTIONS.get(name, f"--env {name}=VARIABLE") for name in missing)
        raise InvalidArgument(f"{exchange} needs {', '.join(missing)}: give {options}")


def check_wallets(config: Config, exchange: str, wallets: Sequence[str]) -> None:
    """Whether the exchange has them. Raises InvalidArgument."""
    known = private_venue_of(settings_of(config, exchange).exchange_id).wallets
    for name in wallets:
        if name not in known:
            has = ", ".join(known) or "one wallet, and none is to be named"
            raise InvalidArgument(f"{exchange} has no wallet {name!r}; it has {has}")


def wallets_of(account: Account) -> tuple[str, ...]:
    """The wallets that the account's owner has named; () for those that its markets need."""
    return tuple(account.meta.get(WALLETS) or ())


def account_settings(config: Config, account: Account) -> ExchangeSettings:
    """How to talk to the account's exchange, with the names of its credentials' variables.

    Raises ConfigError if one is not set; it names the variable.
    """
    if account.meta.get(PAPER):
        raise ConfigError(
            f"account {account} is a paper account: there is nothing at {account.exchange} to read "
            "or to compare with."
        )
    missing = missing_variables(account)
    if missing:
        are = "are" if len(missing) > 1 else "is"
        raise ConfigError(
            f"account {account}: {', '.join(missing)} {are} not set. Put the credential into that "
            "environment variable; `kurisu account list` shows which variables an account needs."
        )
    settings = settings_of(config, account.exchange)
    return replace(settings, env={**settings.env, **account.credentials})


@asynccontextmanager
async def open_stored_account(
    config: Config, account: Account, **more: Any
) -> AsyncIterator[CcxtAccount]:
    """The private side of an account, closed at the end. more: see `CcxtExchange`.

    Raises ConfigError, NotOffered.
    """
    async with open_account(account_settings(config, account), **more) as opened:
        yield opened
