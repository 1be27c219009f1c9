"""A market as its exchange lists it: what may be ordered there, in which steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

from kurisu.domain.market import MarketName


class PrecisionMode(StrEnum):
    """How an exchange states the precision of prices and amounts."""

    DECIMAL_PLACES = "decimal_places"
    SIGNIFICANT_DIGITS = "significant_digits"
    TICK_SIZE = "tick_size"


@dataclass(frozen=True, slots=True)
class MarketListing:
    """A market as its exchange lists it: every column of `markets` that an exchange knows.

    name: exchange, unified symbol, assets. exchange_symbol: the exchange's own name.
    type: one of MARKET_TYPES. active: False if it is listed and not traded.
    settle_asset, linear, contract_size: None for spot. contract_size: base (linear) or quote
        (inverse) units per contract.
    price_tick, amount_tick: smallest steps, in quote units and in base units or contracts; None
        where the exchange does not say. price_precision, amount_precision: their fractional
        digits.
    min_/max_amount, _price, _cost: None for no limit.
    volume_unit: what candle volumes are in: base or contracts.
    precision_mode, price_digits: how the exchange states precision; price_digits is the number
        of significant digits, in that mode only.
    meta: `info` (the exchange's raw entry), `precision_mode`, `precision` (as CCXT gives it) and
        `volume_unit`; every number with its own digits.
    """

    name: MarketName
    exchange_symbol: str
    type: str
    active: bool
    settle_asset: str | None = None
    linear: bool | None = None
    contract_size: Decimal | None = None
    price_tick: Decimal | None = None
    amount_tick: Decimal | None = None
    price_precision: int | None = None
    amount_precision: int | None = None
    min_amount: Decimal | None = None
    max_amount: Decimal | None = None
    min_price: Decimal | None = None
    max_price: Decimal | None = None
    min_cost: Decimal | None = None
    max_cost: Decimal | None = None
    volume_unit: str = "base"
    precision_mode: PrecisionMode = PrecisionMode.TICK_SIZE
    price_digits: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def symbol(self) -> str:
        return self.name.symbol

    def price_step_at(self, price: Decimal) -> Decimal | None:
        """The smallest step of a price near `price`; None where the exchange does not say."""
        if self.price_digits is None or not price:
            return self.price_tick
        step = Decimal(1).scaleb(price.adjusted() - self.price_digits + 1)
        return step if self.price_tick is None else max(step, self.price_tick)
