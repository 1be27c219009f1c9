"""From an account in the database to its open private side: credentials come from the environment.

The database has names of environment variables. What they hold is read here, when an account is
opened, and goes nowhere but into CCXT's object.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from kurisu.config import Config
from kurisu.errors import ConfigError
from kurisu.exchange.configured import settings_of
from kurisu.exchange.private import CcxtAccount, open_account
from kurisu.exchange.settings import ExchangeSettings
from kurisu.store.accounts import Account


def missing_variables(account: Account) -> list[str]:
    """Environment variables of the account's credentials that are not set, by name."""
    return [variable for variable in account.credentials.values() if not os.environ.get(variable)]


def account_settings(config: Config, account: Account) -> ExchangeSettings:
    """How to talk to the account's exchange, with the names of its credentials' variables.

    Raises ConfigError if one is not set; it names the variable.
    """
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
