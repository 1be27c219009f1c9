"""`[exchanges.NAME]` of kurisu.toml."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from kurisu.errors import ConfigError
from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.exchange.settings import ExchangeSettings


def section(text: str, name: str = "binance") -> ExchangeSettings:
    return ExchangeSettings.from_section(name, tomllib.loads(text)["exchanges"][name])


def test_everything_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "the key")
    monkeypatch.setenv("MY_PROXY", "http://me:secret@127.0.0.1:1")
    made = section(
        """
        [exchanges.binance]
        ccxt = "binanceus"
        rate_limit_ms = 75
        concurrency = 2
        timeout_s = 4.5
        grace_s = 3
        hostname = "127.0.0.1"
        options = { fetchMarkets = ["spot"], defaultType = "spot" }
        [exchanges.binance.urls.api]
        public = "http://127.0.0.1:9/api"
        [exchanges.binance.env]
        apiKey = "MY_KEY"
        httpProxy = "MY_PROXY"
        """
    )
    assert (made.exchange_id, made.concurrency, made.grace_s) == ("binanceus", 2, 3.0)
    assert made.constructor_options() == {
        "hostname": "127.0.0.1",
        "options": {"fetchMarkets": ["spot"], "defaultType": "spot"},
        "urls": {"api": {"public": "http://127.0.0.1:9/api"}},
        "timeout": 4500, "rateLimit": 75.0, "apiKey": "the key",
        "httpProxy": "http://me:secret@127.0.0.1:1",
    }  # fmt: skip
    assert "the key" not in repr(made)
    client = CcxtExchange(made).client
    assert (client.id, client.rateLimit, client.timeout) == ("binanceus", 75.0, 4500)
    assert client.urls["api"]["public"] == "http://127.0.0.1:9/api"
    assert client.urls["api"]["private"].startswith("http")
    assert client.enableRateLimit is True


def test_nothing_is_enough() -> None:
    made = section("[exchanges.kraken]", "kraken")
    assert made == ExchangeSettings("kraken")
    assert made.constructor_options() == {"timeout": 10_000}


def test_sandbox() -> None:
    made = section("[exchanges.binance]\nsandbox = true")
    assert "testnet" in CcxtExchange(made).client.urls["api"]["public"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('apiKey = "abc"', "apiKey: secrets do not belong in a file"),
        ('secret = "abc"', "environment variable"),
        ('privateKey = "0x1"', "environment variable"),
        ('options = { secret = "abc" }', "options.secret"),
        ('httpProxy = "http://me:abc@127.0.0.1"', "password"),
        ('urls = { api = { public = "http://a:b@127.0.0.1" } }', "password"),
        ("verbose = true", "prints credentials"),
        ("number = 1", "exact"),
        ("enableRateLimit = false", "always holds"),
        ("rateLimit = 1", "rate_limit_ms"),
        ("rate_limit = 50", "rate_limit is not known; perhaps rate_limit_ms is meant"),
        ("timeout_ms = 5", "perhaps timeout_s is meant"),
        ("concurrency = 0", "from 1 to"),
        ("concurrency = true", "from 1 to"),
        ("rate_limit_ms = -1", "0 or more"),
        ('timeout_s = "x"', "0 or more"),
        ('sandbox = "yes"', "true or false"),
        ("ccxt = 1", "has to be text"),
        ('env = "x"', "has to be a section"),
        ('env = { apiKey = "vmPUZE6mv9SD5VNHk4" }', "name of an environment variable"),
        ('env = { number = "X" }', "cannot be set"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as found:
        section(f"[exchanges.binance]\n{text}")
    assert "vmPUZE6mv9SD5VNHk4" not in str(found.value)


@pytest.mark.parametrize("value", ["x", 1, ["a"]])
def test_a_section_is_a_section(value: Any) -> None:
    with pytest.raises(ConfigError, match="has to be a section"):
        ExchangeSettings.from_section("binance", value)
