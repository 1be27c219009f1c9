"""`[exchanges.NAME]` of kurisu.toml.

    [exchanges.binance]
    rate_limit_ms = 50            # between two requests; CCXT's own by default
    concurrency = 4               # requests in flight at a time
    timeout_s = 10
    grace_s = 2                   # how long after its close a candle is taken as final
    hostname = "binance.example"  # and any other option of CCXT's constructor:
    options = { fetchMarkets = ["spot"] }

    [exchanges.binance.env]       # constructor options out of environment variables
    apiKey = "BINANCE_KEY"        # the NAME of the variable, never the secret itself
    secret = "BINANCE_SECRET"

NAME is the exchange's part of market names. `ccxt = "ID"` says which CCXT exchange it is, if that
differs. `sandbox = true` selects CCXT's test network.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from kurisu.errors import ConfigError

#: Constructor options of CCXT that are secrets: they come from the environment only.
SECRETS: Final = frozenset(
    {
        "apiKey", "secret", "uid", "accountId", "login", "password", "twofa", "privateKey",
        "walletAddress", "token",
    }
)  # fmt: skip

#: Options that would undo what Kurisu relies on.
_RESERVED: Final = {
    "number": "numbers are exact text in Kurisu",
    "verbose": "it prints credentials",
    "enableRateLimit": "the rate limit always holds; set rate_limit_ms",
    "rateLimit": "write rate_limit_ms",
    "timeout": "write timeout_s",
    "session": "it is an object, not a setting",
    "asyncio_loop": "it is an object, not a setting",
}
_OURS: Final = frozenset(
    {"ccxt", "rate_limit_ms", "concurrency", "timeout_s", "grace_s", "sandbox", "env"}
)
CONCURRENCY: Final = 4
MOST_CONCURRENCY: Final = 64
TIMEOUT_S: Final = 10.0
GRACE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """How to talk to one exchange. Holds no secret, only where the secrets are.

    name: the exchange's part of market names. ccxt_id: CCXT's exchange.
    rate_limit_ms: between two requests of unit cost; None for CCXT's own.
    concurrency: requests in flight at a time. timeout_s: of one request.
    grace_s: a candle is closed at open time + timeframe + this, by the exchange's clock.
    env: constructor option -> name of the environment variable that holds it.
    options: constructor options as written.
    """

    name: str
    ccxt_id: str = ""
    rate_limit_ms: float | None = None
    concurrency: int = CONCURRENCY
    timeout_s: float = TIMEOUT_S
    grace_s: float = GRACE_S
    sandbox: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exchange_id(self) -> str:
        return self.ccxt_id or self.name

    def constructor_options(self) -> dict[str, Any]:
        """What CCXT's constructor takes, secrets included: not to be kept, logged or shown.

        Raises ConfigError if a variable is not set.
        """
        made: dict[str, Any] = {**self.options, "timeout": round(self.timeout_s * 1000)}
        if self.rate_limit_ms is not None:
            made["rateLimit"] = self.rate_limit_ms
        if self.sandbox:
            made["sandbox"] = True
        for option, variable in self.env.items():
            value = os.environ.get(variable)
            if not value:
                raise ConfigError(
                    f"[exchanges.{self.name}.env] {option}: the environment variable {variable} "
                    "is not set."
                )
            made[option] = value
        return made

    @classmethod
    def from_section(cls, name: str, section: object) -> ExchangeSettings:
        """Of the section `[exchanges.NAME]` as TOML gives it. Raises ConfigError."""
        where = f"[exchanges.{name}]"
        if not isinstance(section, Mapping):
            raise ConfigError(f"exchanges.{name} has to be a section: {where}.")
        options = {key: value for key, value in section.items() if key not in _OURS}
        for key, value in options.items():
            _check_option(where, key, value)
        return cls(
            name=name,
            ccxt_id=_text(where, section, "ccxt"),
            rate_limit_ms=_number(where, section, "rate_limit_ms", None),
            concurrency=_concurrency(where, section),
            timeout_s=_number(where, section, "timeout_s", TIMEOUT_S) or TIMEOUT_S,
            grace_s=_number(where, section, "grace_s", GRACE_S) or 0.0,
            sandbox=_flag(where, section, "sandbox"),
            env=_env(name, section.get("env", {})),
            options=options,
        )


def _check_option(where: str, key: str, value: object) -> None:
    if key in SECRETS:
        raise ConfigError(
            f"{where} {key}: secrets do not belong in a file. Put it into an environment variable "
            f'and write its name: {where[:-1]}.env] {key} = "THE_VARIABLE".'
        )
    if key in _RESERVED:
        raise ConfigError(f"{where} {key} cannot be set: {_RESERVED[key]}.")
    if meant := difflib.get_close_matches(key, _OURS, n=1, cutoff=0.8):
        raise ConfigError(f"{where} {key} is not known; perhaps {meant[0]} is meant.")
    for text in _texts(value):
        if "://" in text and urlsplit(text).password:
            raise ConfigError(
                f"{where} {key}: the address holds a password. Put it into an environment "
                f'variable and write its name: {where[:-1]}.env] {key} = "THE_VARIABLE".'
            )
    if isinstance(value, Mapping):
        for inner in value:
            if inner in SECRETS:
                raise ConfigError(f"{where} {key}.{inner}: secrets do not belong in a file.")


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, (list, tuple)):
        return [text for inner in value for text in _texts(inner)]
    return []


def _text(where: str, section: Mapping[str, Any], key: str) -> str:
    value = section.get(key, "")
    if not isinstance(value, str):
        raise ConfigError(f"{where} {key} has to be text.")
    return value


def _flag(where: str, section: Mapping[str, Any], key: str) -> bool:
    value = section.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{where} {key} has to be true or false.")
    return value


def _number(
    where: str, section: Mapping[str, Any], key: str, default: float | None
) -> float | None:
    value = section.get(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ConfigError(f"{where} {key} has to be a number, 0 or more.")
    return float(value)


def _concurrency(where: str, section: Mapping[str, Any]) -> int:
    value = section.get("concurrency", CONCURRENCY)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_CONCURRENCY:
        raise ConfigError(
            f"{where} concurrency has to be a whole number from 1 to {MOST_CONCURRENCY}."
        )
    return value


def _env(name: str, given: object) -> dict[str, str]:
    where = f"[exchanges.{name}.env]"
    if not isinstance(given, Mapping):
        raise ConfigError(f"exchanges.{name}.env has to be a section: {where}.")
    for option, variable in given.items():
        # Names of variables are in upper case by convention; a key looks otherwise, and is not
        # repeated in the message.
        if not isinstance(variable, str) or not variable.isidentifier() or not variable.isupper():
            raise ConfigError(
                f"{where} {option} has to be the name of an environment variable, in capitals, "
                "e.g. BINANCE_KEY."
            )
        if option in _RESERVED:
            raise ConfigError(f"{where} {option} cannot be set: {_RESERVED[option]}.")
    return dict(given)
