"""kurisu.toml: found, read and checked.

    [retention]            # how long raw rows are kept; 'off' keeps them for ever
    ohlcv = "5 years"
    trades = "30 days"

    [compression]          # age at which chunks are compressed, on TimescaleDB Community
    ohlcv = "7 days"
    trades = "3 days"

    [exchanges.binance]    # how to talk to an exchange: `kurisu.exchange.settings`
    rate_limit_ms = 50

The file that KURISU_CONFIG names, else ./kurisu.toml, else kurisu.toml in the data directory.
A key that Kurisu does not know is an error, because it is most likely a typing mistake.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kurisu.errors import ConfigError

FILE_NAME: Final = "kurisu.toml"
_SECTIONS: Final = {"retention": ("ohlcv", "trades"), "compression": ("ohlcv", "trades")}
_EXCHANGES: Final = "exchanges"
#: As in the names of markets.
_EXCHANGE_NAME: Final = re.compile(r"[a-z0-9_]{1,50}")


@dataclass(frozen=True, slots=True)
class Config:
    """What kurisu.toml says.

    path: the file; None where there is none.
    retention, compression: durations as written, by relation; only what the file names.
    exchanges: the sections [exchanges.NAME] as TOML gives them, by name; what they mean is
        `kurisu.exchange.configured`'s. Not shown: somebody may have put a secret there.
    home: the data directory; None if this was not loaded.
    """

    path: Path | None = None
    retention: Mapping[str, str] = field(default_factory=dict)
    compression: Mapping[str, str] = field(default_factory=dict)
    exchanges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    home: Path | None = field(default=None, compare=False)


def find(home: Path) -> Path | None:
    """The configuration file in force, or None. Raises ConfigError if KURISU_CONFIG is wrong."""
    named = os.environ.get("KURISU_CONFIG")
    if named:
        path = Path(named)
        if not path.is_file():
            raise ConfigError(f"KURISU_CONFIG names {path}, which is not a file.")
        return path
    for folder in (Path.cwd(), home):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    return None


def load(home: Path) -> Config:
    """The configuration in force. `home` is the data directory. Raises ConfigError."""
    path = find(home)
    if path is None:
        return Config(home=home)
    try:
        # An editor on Windows may have put a byte order mark in front.
        parsed = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    durations = {name: _section(path, parsed, name) for name in _checked(path, parsed)}
    return Config(
        path, **durations, exchanges=_exchanges(path, parsed.get(_EXCHANGES, {})), home=home
    )


def _checked(path: Path, parsed: Mapping[str, Any]) -> list[str]:
    known = (*_SECTIONS, _EXCHANGES)
    for name in parsed:
        if name not in known:
            raise ConfigError(f"{path}: unknown section [{name}]; known are {', '.join(known)}.")
    return [name for name in parsed if name in _SECTIONS]


def _section(path: Path, parsed: Mapping[str, Any], name: str) -> dict[str, str]:
    section = parsed[name]
    known = _SECTIONS[name]
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {name} has to be a section: [{name}].")
    for key, value in section.items():
        if key not in known:
            raise ConfigError(f"{path}: unknown key {key} in [{name}]; known: {', '.join(known)}.")
        if not isinstance(value, str):
            raise ConfigError(f"{path}: [{name}] {key} has to be text, e.g. '1 year' or 'off'.")
    return section


def _exchanges(path: Path, sections: object) -> dict[str, dict[str, Any]]:
    """What is inside of each section is looked at when that exchange is opened."""
    if not isinstance(sections, dict):
        raise ConfigError(f"{path}: {_EXCHANGES} has to be sections: [{_EXCHANGES}.binance].")
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ConfigError(
                f"{path}: {_EXCHANGES}.{name} has to be a section: [{_EXCHANGES}.{name}]; settings "
                "belong to one exchange."
            )
        if not _EXCHANGE_NAME.fullmatch(name):
            raise ConfigError(
                f"{path}: [{_EXCHANGES}.{name}]: an exchange's name has small letters, digits and "
                "_ only, e.g. binance."
            )
    return sections
