"""Exchanges by the names that kurisu.toml gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kurisu.config import Config
from kurisu.errors import ConfigError, InvalidArgument, NotOffered
from kurisu.exchange.configured import open_configured, settings_of

CONFIG = Config(
    Path("kurisu.toml"),
    exchanges={
        "binance_eu": {"ccxt": "binance", "rate_limit_ms": 7, "options": {"adjust": True}},
        "broken": {"apiKey": "hunter2hunter2"},
    },
)


async def test_a_section_says_how_an_exchange_is_talked_to() -> None:
    async with open_configured(CONFIG, "binance_eu") as exchange:
        assert exchange.name == "binance_eu"
        assert exchange.client.id == "binance"
        assert exchange.client.rateLimit == 7
        assert exchange.client.options["adjust"] is True


async def test_an_exchange_without_a_section_is_ccxts() -> None:
    async with open_configured(Config(), "kraken") as exchange:
        assert exchange.client.id == "kraken"


async def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(NotOffered, match="binance"):
        async with open_configured(CONFIG, "binanse"):
            pass
    with pytest.raises(NotOffered, match=r"kurisu\.toml has binance_eu"):
        async with open_configured(CONFIG, "binance_e"):
            pass
    with pytest.raises(InvalidArgument, match="CCXT's id"):
        settings_of(CONFIG, "Binance!")


def test_a_section_that_cannot_be_used_names_the_file_and_repeats_no_secret() -> None:
    with pytest.raises(ConfigError, match=r"kurisu\.toml: \[exchanges\.broken\]") as caught:
        settings_of(CONFIG, "broken")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(CONFIG)
