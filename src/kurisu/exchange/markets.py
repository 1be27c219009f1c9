"""CCXT's description of a market -> the columns of `markets`, exact.

Precision comes in three modes. A tick stays what it is; a number of decimals is a tick of that
many; significant digits (bitfinex, bithumb) have no fixed tick, so the column holds the finest
step that any price there can have, and `MarketListing.price_step_at` gives the step at a price.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

from kurisu.domain.listing import MarketListing, PrecisionMode
from kurisu.domain.market import MARKET_TYPES, MarketName
from kurisu.domain.money import number_fault, parse_decimal, plain
from kurisu.errors import InvalidArgument

__all__ = [
    "MarketListing", "PrecisionMode", "Skipped", "fraction_digits", "listing", "listings",
    "precision_mode", "tick_of",
]  # fmt: skip

#: The finest decimals of venues that count significant digits (bitfinex's documentation:
#: "up to 5 significant digits and up to 8 decimals").
SIGNIFICANT_DECIMALS: Final = 8
_EXCHANGE_SYMBOL_CHARACTERS: Final = 50

#: CCXT's constants, ccxt/base/decimal_to_precision.py.
_MODES: Final = {
    2: PrecisionMode.DECIMAL_PLACES,
    3: PrecisionMode.SIGNIFICANT_DIGITS,
    4: PrecisionMode.TICK_SIZE,
}

#: Where CCXT's candle volume of contracts was read to be in base units; elsewhere it is contracts.
_VOLUME_IN_BASE: Final = frozenset(
    {"binance", "binancecoinm", "binanceusdm", "bitget", "bybit", "deribit", "htx", "huobi", "okx"}
)

#: Where amounts of contracts are not a number of contracts, but what these are worth: USD of an
#: inverse one, base units of a linear one (Deribit's own `amount`; CCXT hands it on, and says a
#: contract size beside it).
_AMOUNTS_IN_UNITS: Final = frozenset({"deribit"})


class Skipped(NamedTuple):
    """A market that cannot be stored, and why."""

    symbol: str
    reason: str


def precision_mode(code: int) -> PrecisionMode:
    """CCXT's precisionMode by name. Raises InvalidArgument if there is a new one."""
    try:
        return _MODES[code]
    except KeyError:
        raise InvalidArgument(f"CCXT's precisionMode {code} is not known to Kurisu") from None


def tick_of(precision: object, mode: PrecisionMode) -> tuple[Decimal | None, int | None]:
    """(tick, fractional digits) of one of CCXT's precision values; (None, None) if it has none.

    >>> tick_of("0.05", PrecisionMode.TICK_SIZE)
    (Decimal('0.05'), 2)
    >>> tick_of(8, PrecisionMode.DECIMAL_PLACES)
    (Decimal('1E-8'), 8)
    """
    value = _decimal(precision)
    if value is None:
        return None, None
    if mode is PrecisionMode.SIGNIFICANT_DIGITS:
        value = Decimal(1).scaleb(-SIGNIFICANT_DECIMALS)
    elif mode is PrecisionMode.DECIMAL_PLACES:
        if value != int(value):
            return None, None
        value = Decimal(1).scaleb(-int(value))
    if value <= 0:
        return None, None
    return value, fraction_digits(value)


def fraction_digits(value: Decimal) -> int:
    """Fractional digits that multiples of `value` have."""
    exponent = value.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def listing(exchange: str, market: Mapping[str, Any], mode: PrecisionMode) -> MarketListing:
    """Of one of CCXT's market structures. Raises InvalidArgument if it cannot be stored."""
    name = MarketName.of(exchange, str(market["symbol"]))
    kind = str(market.get("type"))
    if kind not in MARKET_TYPES:
        raise InvalidArgument(f"a market of type {kind!r} is not one of {', '.join(MARKET_TYPES)}")
    exchange_symbol = str(market.get("id"))
    if len(exchange_symbol) > _EXCHANGE_SYMBOL_CHARACTERS:
        raise InvalidArgument(f"its name at the exchange is too long: {exchange_symbol}")
    precision = market.get("precision") or {}
    limits = market.get("limits") or {}
    contract = bool(market.get("contract"))
    price_tick, price_precision = tick_of(precision.get("price"), mode)
    amount_tick, amount_precision = tick_of(precision.get("amount"), mode)
    digits = None
    if mode is PrecisionMode.SIGNIFICANT_DIGITS and price_tick is not None:
        digits = int(precision["price"])
    size = _positive(market.get("contractSize")) if contract else None
    if size is not None and exchange in _AMOUNTS_IN_UNITS:
        size = Decimal(1)
    unit = "base" if not contract or exchange in _VOLUME_IN_BASE else "contracts"
    return MarketListing(
        name=name,
        exchange_symbol=exchange_symbol,
        type=kind,
        # None where CCXT cannot tell: it is listed, after all.
        active=market.get("active") is not False,
        settle_asset=market.get("settle") if contract else None,
        linear=market.get("linear") if contract else None,
        contract_size=size,
        price_tick=price_tick,
        amount_tick=amount_tick,
        price_precision=price_precision,
        amount_precision=amount_precision,
        min_amount=_limit(limits, "amount", "min"),
        max_amount=_limit(limits, "amount", "max"),
        min_price=_limit(limits, "price", "min"),
        max_price=_limit(limits, "price", "max"),
        min_cost=_limit(limits, "cost", "min"),
        max_cost=_limit(limits, "cost", "max"),
        volume_unit=unit,
        precision_mode=mode,
        price_digits=digits,
        meta={
            "info": market.get("info"),
            "precision_mode": mode.value,
            "precision": {key: _spelled(value) for key, value in precision.items()},
            "volume_unit": unit,
        },
    )


def listings(
    exchange: str, markets: Mapping[str, Mapping[str, Any]], mode: PrecisionMode
) -> tuple[list[MarketListing], list[Skipped]]:
    """All of CCXT's `markets`, by symbol; and those that cannot be stored, with the reason."""
    made: list[MarketListing] = []
    skipped: list[Skipped] = []
    for symbol in sorted(markets):
        try:
            made.append(listing(exchange, markets[symbol], mode))
        except InvalidArgument as error:
            skipped.append(Skipped(symbol, str(error)))
    return made, skipped


def _decimal(value: object) -> Decimal | None:
    """Exact; None for what is no number or does not fit NUMERIC(38,18)."""
    if value is None or isinstance(value, (bool, float)):
        return None
    found = parse_decimal(value if isinstance(value, (int, Decimal)) else str(value))
    return found if found is not None and number_fault(found) is None else None


def _positive(value: object) -> Decimal | None:
    found = _decimal(value)
    return found if found is not None and found > 0 else None


def _limit(limits: Mapping[str, Any], what: str, end: str) -> Decimal | None:
    bounds = limits.get(what) or {}
    # Zero is how exchanges write 'no maximum' (Binance's maxPrice), and it bounds nothing below.
    return _positive(bounds.get(end))


def _spelled(value: object) -> str | None:
    if value is None:
        return None
    found = _decimal(value)
    return plain(found) if found is not None else str(value)
