"""An order is checked against its market before anything is stored: nothing is rounded silently."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kurisu.domain.execution import Side
from kurisu.domain.listing import MarketListing, PrecisionMode
from kurisu.domain.market import MarketName
from kurisu.domain.order import OrderType
from kurisu.errors import OrderBreaksRule
from kurisu.trading.rules import OrderRequest, broken_rules, fitted

D = Decimal
LISTING = MarketListing(
    MarketName.parse("binance:BTC/USDT"), "BTCUSDT", "spot", True,
    price_tick=D("0.01"), amount_tick=D("0.00001"), min_amount=D("0.00001"), max_amount=D(9000),
    min_price=D("0.01"), max_price=D(1_000_000), min_cost=D(5), max_cost=D(9_000_000),
)  # fmt: skip
REQUEST = OrderRequest("BTC/USDT", Side.BUY, OrderType.LIMIT, D("0.12345"), D("60000.01"))


def rules(**changes: Any) -> tuple[str, ...]:
    return tuple(broken_rules(replace(REQUEST, **changes), LISTING))


def test_an_order_that_fits_stays_as_it_is() -> None:
    assert fitted(REQUEST, LISTING) == REQUEST
    assert fitted(replace(REQUEST, round_down=True), LISTING).amount == REQUEST.amount


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"amount": D("0.123456")}, ("amount_step",)),
        ({"price": D("60000.001")}, ("price_step",)),
        ({"amount": D("0.000001")}, ("amount_step", "amount_min", "cost_min")),
        ({"amount": D(9001), "price": D(1)}, ("amount_max",)),
        ({"price": D("1000000.01"), "amount": D(1)}, ("price_max",)),
        ({"amount": D("0.00008")}, ("cost_min",)),
        ({"amount": D(200)}, ("cost_max",)),
        ({"amount": D(0)}, ("amount_above_zero",)),
        ({"amount": D("-1")}, ("amount_above_zero",)),
        ({"amount": D("NaN")}, ("amount_above_zero",)),
        ({"amount": 0.1}, ("amount_is_decimal",)),
        ({"price": None}, ("limit_has_price",)),
        ({"type": OrderType.MARKET}, ("market_has_no_price",)),
        ({"type": OrderType.STOP_LOSS}, ("stop_has_stop_price",)),
        ({"stop_price": D(1)}, ("stop_has_stop_price",)),
        (
            {"type": OrderType.STOP_LOSS, "price": None, "stop_price": D("1.001")},
            ("stop_price_step", "cost_min"),
        ),
    ],
)
def test_every_rule_that_is_broken_is_named(changes: Any, broken: tuple[str, ...]) -> None:
    assert rules(**changes) == broken
    with pytest.raises(OrderBreaksRule, match="binance:BTC/USDT does not take") as caught:
        fitted(replace(REQUEST, **changes), LISTING)
    assert caught.value.rules == broken


def test_the_error_says_what_would_fit() -> None:
    with pytest.raises(OrderBreaksRule) as caught:
        fitted(replace(REQUEST, amount=D("0.123459")), LISTING)
    assert str(caught.value) == (
        "binance:BTC/USDT does not take this order: amount 0.123459 is no multiple of 0.00001 "
        "(round_down=True would make it 0.12345) [amount_step]"
    )


def test_a_market_that_is_not_traded() -> None:
    assert tuple(broken_rules(REQUEST, replace(LISTING, active=False))) == ("market_active",)


def test_a_contract_has_no_limits_of_cost_here() -> None:
    contract = replace(LISTING, contract_size=D(1), min_cost=D(10**9))
    assert not broken_rules(REQUEST, contract)


def test_significant_digits() -> None:
    """Bitfinex's prices have five digits, wherever the point is."""
    listing = replace(
        LISTING, price_tick=D("1E-8"), precision_mode=PrecisionMode.SIGNIFICANT_DIGITS,
        price_digits=5,
    )  # fmt: skip
    assert tuple(broken_rules(replace(REQUEST, price=D("60001")), listing)) == ()
    assert tuple(broken_rules(replace(REQUEST, price=D("60001.5")), listing)) == ("price_step",)
    cut = fitted(replace(REQUEST, price=D("60001.5"), round_down=True), listing)
    assert cut.price == 60001


amounts = st.decimals(
    min_value=D("0.000000000000000001"), max_value=D(9000), allow_nan=False, places=18
)
steps = st.sampled_from([D("1E-18"), D("1E-8"), D("0.00001"), D("0.05"), D("0.3"), D(1), D(7)])


@given(amount=amounts, price=amounts, amount_step=steps, price_step=steps)
def test_rounding_down_is_exact_and_by_less_than_a_step(
    amount: Decimal, price: Decimal, amount_step: Decimal, price_step: Decimal
) -> None:
    listing = MarketListing(
        LISTING.name, "BTCUSDT", "spot", True, price_tick=price_step, amount_tick=amount_step
    )
    request = replace(REQUEST, amount=amount, price=price, round_down=True)
    try:
        found = fitted(request, listing)
    except OrderBreaksRule as error:
        assert {rule.rpartition("_")[0] for rule in error.rules} <= {"amount_above", "price_above"}
        assert amount < amount_step or price < price_step
        return
    assert found.price is not None
    for after, before, step in (
        (found.amount, amount, amount_step), (found.price, price, price_step),
    ):  # fmt: skip
        assert 0 <= before - after < step
        assert (after / step) % 1 == 0
