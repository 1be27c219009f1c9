"""The execution as a value, read from CCXT, and its cost."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from ledger.histories import INVERSE, LINEAR, SPOT, at, fee, fill

from kurisu.domain.execution import Execution, Fee, Side, TakerOrMaker, combine_fees
from kurisu.errors import KurisuError, LedgerRuleBroken
from kurisu.ledger.execution import (
    MAX_VERSIONS,
    KnownExecution,
    cost_of,
    fees_text,
    marked_trade_id,
    unmarked_trade_id,
    value_of,
)

TRADE: dict[str, object] = {
    "id": 28457, "order": "100234", "timestamp": 1499865549590, "symbol": "BTC/USDT",
    "side": "buy", "takerOrMaker": "maker", "price": "4.00000100", "amount": "12.00000000",
    "cost": "48.000012", "fee": {"cost": "10.1", "currency": "BNB"},
    "fees": [{"cost": "10.1", "currency": "BNB"}],
}  # fmt: skip


def test_a_unified_trade() -> None:
    assert Execution.from_ccxt(TRADE) == Execution(
        exchange_order_id="100234",
        trade_id="28457",
        side=Side.BUY,
        price=Decimal("4.000001"),
        amount=Decimal(12),
        time=datetime(2017, 7, 12, 13, 19, 9, 590000, tzinfo=UTC),
        cost=Decimal("48.000012"),
        fees=(Fee("BNB", Decimal("10.1")),),
        taker_or_maker=TakerOrMaker.MAKER,
        symbol="BTC/USDT",
    )


@pytest.mark.parametrize(
    ("changes", "fees"),
    [
        ({"fees": [], "fee": None}, None),
        ({"fees": None, "fee": None}, None),
        ({"fees": [], "fee": {"cost": None, "currency": None}}, None),
        ({"fees": [], "fee": {"cost": "0", "currency": None}}, ()),
        ({"fees": [{"cost": 0, "currency": "USDT"}]}, ()),
        ({"fees": [], "fee": {"cost": "-0.1", "currency": "USDT"}}, fee("-0.1", "USDT")),
        # What a float left behind, as BingX sends it.
        (
            {"fees": [{"cost": "0.00005820000000000001", "currency": "USDT"}]},
            fee("0.0000582", "USDT"),
        ),
        (
            {"fees": [{"cost": "2", "currency": "B"}, {"cost": "1", "currency": "A"},
                      {"cost": "3", "currency": "B"}, {"cost": "0", "currency": "C"}]},
            (Fee("A", Decimal(1)), Fee("B", Decimal(5))),
        ),
    ],
)  # fmt: skip
def test_fees(changes: dict[str, object], fees: tuple[Fee, ...] | None) -> None:
    assert Execution.from_ccxt(TRADE | changes).fees == fees


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("price", 4.000001, "number_is_exact"),
        ("price", True, "number_is_exact"),
        ("price", "four", "number_is_readable"),
        ("price", "nan", "not_finite"),
        ("price", "0", "price_above_zero"),
        ("price", None, "execution_is_complete"),
        ("price", "0.0000000000000000001", "too_many_fraction_digits"),
        ("amount", "100000000000000000000", "number_too_large"),
        ("amount", "-1", "amount_above_zero"),
        ("cost", "-1", "cost_not_negative"),
        ("timestamp", None, "execution_is_complete"),
        ("timestamp", "1.5", "time_in_milliseconds"),
        ("timestamp", "9" * 18, "time_in_milliseconds"),
        ("side", None, "execution_is_complete"),
        ("side", ["buy"], "text_is_readable"),
        ("order", None, "execution_names_its_order"),
        ("id", "", "execution_has_trade_id"),
        ("fees", ["0.1"], "fee_is_readable"),
        ("fees", [{"cost": "1", "currency": "A" * 21}], "asset_fits"),
    ],
)
def test_trades_that_are_refused_name_the_rule(field: str, value: object, rule: str) -> None:
    with pytest.raises(LedgerRuleBroken) as caught:
        Execution.from_ccxt(TRADE | {field: value})
    assert caught.value.rule == rule
    assert isinstance(caught.value, KurisuError)
    assert str(caught.value).startswith(f"{rule}: ")


@pytest.mark.parametrize("said", ["1648957043065280", 1648957043065280224])
def test_a_time_in_finer_units_is_cut_to_milliseconds(said: object) -> None:
    """As KuCoin's and Lighter's streams say it, and CCXT hands it on."""
    found = Execution.from_ccxt(TRADE | {"timestamp": said})
    assert found.time == datetime(2022, 4, 3, 3, 37, 23, 65_000, UTC)


@pytest.mark.parametrize("role", [False, "", "both", 1, ["taker"]])
def test_a_role_that_is_none_costs_no_fill(role: object) -> None:
    """CCXT makes False of what one of Bybit's streams says."""
    assert Execution.from_ccxt(TRADE | {"takerOrMaker": role}).taker_or_maker is None


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"price": 1.5}, "number_is_decimal"),
        ({"time": datetime(2026, 1, 1)}, "time_is_aware"),
        ({"fees": (Fee("B", Decimal(1)), Fee("A", Decimal(1)))}, "fees_combined"),
        ({"fees": (Fee("A", Decimal("inf")),)}, "not_finite"),
    ],
)
def test_values_that_cannot_be(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(LedgerRuleBroken) as caught:
        replace(fill("7", "1"), **changes)
    assert caught.value.rule == rule


def test_a_time_of_another_zone_is_the_same_time() -> None:
    other = replace(fill("7", "1"), time=at(10).astimezone(timezone(timedelta(hours=8))))
    assert other == fill("7", "1")


def test_fees_combine() -> None:
    assert combine_fees([*fee("1", "B"), *fee("2", "A"), *fee("-1", "B")]) == fee("2", "A")
    assert fees_text(()) == "none"
    assert fees_text(fee("1.50", "USDT")) == "1.5 USDT"


def test_costs_and_values() -> None:
    execution = fill("7", "3", "30000")
    assert cost_of(execution, SPOT) == 90000
    assert cost_of(execution, LINEAR) == 900
    assert cost_of(execution, INVERSE) == 300
    assert value_of(execution, LINEAR) == 900
    assert value_of(execution, INVERSE) == Decimal("0.01")
    said = replace(execution, cost=Decimal("0.01"))
    assert cost_of(said, SPOT) == Decimal("0.01")
    # CCXT's cost of an inverse contract is in base units.
    assert cost_of(said, INVERSE) == 300


def test_a_marked_trade_id_leads_back() -> None:
    execution = fill("7~x", "1")
    core = KnownExecution.of(execution, SPOT).core
    row = replace(execution, trade_id=marked_trade_id(core))
    assert unmarked_trade_id(row) == "7~x"
    assert KnownExecution.of(row, SPOT) == KnownExecution.of(execution, SPOT)
    # What only looks like a mark is part of the exchange's id.
    stranger = replace(execution, trade_id="7~0123456789ab")
    assert unmarked_trade_id(stranger) == "7~0123456789ab"


def test_versions_are_bounded_and_still_do_not_depend_on_order() -> None:
    versions = [KnownExecution.of(fill("7", "1", seconds=s), SPOT) for s in range(20)]
    forward, backward = versions[0], versions[-1]
    for version in versions:
        forward = forward.join(version)
    for version in reversed(versions):
        backward = backward.join(version)
    assert forward == backward
    assert len(forward.times) == MAX_VERSIONS
