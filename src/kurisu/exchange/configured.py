"""Exchanges by name, as kurisu.toml has them.

    async with open_configured(store.config, "binance") as exchange: ...

A name is that of a section [exchanges.NAME], or CCXT's id of an exchange that needs no settings.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from difflib import get_close_matches
from typing import Any, Final

from kurisu.config import Config
from kurisu.domain.market import check_exchange
from kurisu.errors import ConfigError, NotOffered
from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.exchange.settings import ExchangeSettings

#: In the data directory: what processes of this machine share of their pace.
PACE_FOLDER: Final = "pace"


def settings_of(config: Config, name: str) -> ExchangeSettings:
    """The settings of the exchange `name`; CCXT's own where kurisu.toml says nothing.

    Raises ConfigError, InvalidArgument if `name` cannot be an exchange's.
    """
    check_exchange(name)
    try:
        return ExchangeSettings.from_section(name, config.exchanges.get(name, {}))
    except ConfigError as error:
        raise ConfigError(f"{config.path}: {error}") from error


@asynccontextmanager
async def open_configured(config: Config, name: str, **more: Any) -> AsyncIterator[CcxtExchange]:
    """The exchange `name`, closed at the end. more: see `CcxtExchange` (`streams=True`, ...).

    Raises ConfigError, InvalidArgument, NotOffered with the names that are near.
    """
    settings = settings_of(config, name)
    try:
        folder = None if config.home is None else config.home / PACE_FOLDER
        exchange = CcxtExchange(settings, pace_folder=folder, **more)
    except NotOffered as error:
        near = get_close_matches(name, config.exchanges, 3)
        if not near or name in config.exchanges:
            raise
        raise NotOffered(name, f"{error.reason}; kurisu.toml has {', '.join(near)}") from error
    try:
        yield exchange
    finally:
        await exchange.close()
