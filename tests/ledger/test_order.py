"""The order as a value, updates read from CCXT, and the status that follows from facts."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger.histories import SPOT, at, fill, placed, said

from kurisu.domain.order import CCXT_STATUSES, Order, OrderStatus, OrderType, OrderUpdate
from kurisu.errors import LedgerRuleBroken
from kurisu.ledger.order import (
    TRANSITIONS,
    OrderRecord,
    Said,
    check_transition,
    is_correction,
    join_execution,
    join_update,
    merge,
    order_of,
    status_of,
)

ANSWER: dict[str, object] = {
    "id": "X1", "clientOrderId": "ours", "symbol": "BTC/USDT", "side": "buy", "type": "limit",
    "status": "open", "timestamp": 1767225601000, "lastUpdateTimestamp": 1767225605000,
    "price": "100", "amount": "1.00", "filled": "0.40", "remaining": "0.60", "average": None,
    "cost": None, "triggerPrice": None, "fees": [], "trades": [],
}  # fmt: skip


def test_a_unified_order() -> None:
    assert OrderUpdate.from_ccxt(ANSWER) == OrderUpdate(
        client_order_id="ours",
        exchange_order_id="X1",
        time=at(5),
        status=OrderStatus.OPEN,
        filled=Decimal("0.4"),
        amount=Decimal(1),
        price=Decimal(100),
        side=placed().side,
        created_at=at(1),
        symbol="BTC/USDT",
    )


def test_what_is_missing_says_nothing() -> None:
    update = OrderUpdate.from_ccxt({"id": 17, "clientOrderId": "", "price": 0, "amount": "0.0"})
    assert update == OrderUpdate(exchange_order_id="17")
    assert OrderUpdate.from_ccxt({"id": "17"}, received_at=at(3)).time == at(3)
    # The time of what is said stands before the time at which it came.
    assert OrderUpdate.from_ccxt(ANSWER, received_at=at(9)).time == at(5)
    rest: dict[str, object] = {"filled": None}
    assert OrderUpdate.from_ccxt(ANSWER | rest).filled == Decimal("0.4")
    assert OrderUpdate.from_ccxt(ANSWER | rest | {"remaining": "1.01"}).filled is None
    # OKX's trigger that sends an order at the market.
    assert OrderUpdate.from_ccxt(ANSWER | {"price": "-1"}).price is None
    assert OrderUpdate.from_ccxt(ANSWER | {"stopPrice": "90"}).stop_price == 90
    # Kraken's order without a reference; of two, there would be one.
    assert OrderUpdate.from_ccxt(ANSWER | {"clientOrderId": "0"}).client_order_id is None


@pytest.mark.parametrize(("text", "status"), CCXT_STATUSES.items())
def test_statuses_of_ccxt(text: str, status: OrderStatus) -> None:
    update = OrderUpdate.from_ccxt(ANSWER | {"status": text})
    assert (update.status, update.unknown_status) == (status, None)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"id": None, "clientOrderId": None}, "update_names_its_order"),
        ({"filled": 0.4}, "number_is_exact"),
        ({"filled": "-0.4"}, "filled_not_negative"),
        ({"amount": "-1"}, "amount_above_zero"),
    ],
)
def test_updates_that_are_refused_name_the_rule(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(LedgerRuleBroken) as caught:
        OrderUpdate.from_ccxt(ANSWER | changes)
    assert caught.value.rule == rule


def test_only_we_say_pending() -> None:
    with pytest.raises(LedgerRuleBroken, match="pending_is_ours_to_say"):
        said("pending")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"client_order_id": None}, "order_has_an_id"),
        ({"client_order_id": "x" * 51}, "client_order_id_fits"),
        ({"amount": Decimal(0)}, "amount_above_zero"),
        ({"filled": Decimal("1.1")}, "filled_within_amount"),
        ({"filled": Decimal("-0.1")}, "filled_within_amount"),
        ({"price": None}, "limit_has_price"),
        ({"price": Decimal("1e-19")}, "too_many_fraction_digits"),
        ({"type": OrderType.STOP_LOSS}, "stop_has_stop_price"),
        ({"created_at": datetime(2026, 1, 1)}, "time_is_aware"),
    ],
)
def test_orders_that_cannot_be(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(LedgerRuleBroken) as caught:
        placed(**changes)
    assert caught.value.rule == rule


def test_remaining_is_exact_for_the_largest_amounts() -> None:
    order = placed("99999999999999999999.999999999999999999", filled=Decimal("1e-18"))
    assert order.remaining == Decimal("99999999999999999999.999999999999999998")


@pytest.mark.parametrize(
    ("updates", "fills", "status"),
    [
        ([], [], "pending"),
        ([said()], [], "open"),
        ([said("open", 1)], [], "open"),
        ([], [fill("7", "0.4")], "open"),
        ([], [fill("7", "1")], "closed"),
        ([said("closed", 1)], [], "closed"),
        ([said("canceled", 1)], [fill("7", "0.4", seconds=2)], "canceled"),
        ([said("failed", 1)], [], "failed"),
        # An order ends once, by the exchange's clock.
        ([said("canceled", 10)], [fill("7", "1", seconds=9)], "closed"),
        ([said("canceled", 10)], [fill("7", "1", seconds=11)], "canceled"),
        ([said("closed", 9), said("canceled", 10)], [], "closed"),
        ([said("closed", 11), said("canceled", 10)], [], "canceled"),
        ([said("canceled", 10), said("canceled", 12)], [fill("7", "1", seconds=11)], "canceled"),
        # At one time, the end that fits the fills (bybit's two words for a part that is over).
        ([said("closed", 10), said("canceled", 10)], [fill("7", "0.4")], "canceled"),
        ([said("closed", 10), said("canceled", 10)], [fill("7", "1")], "closed"),
        # Without a time, it was before everything that has one.
        ([said("canceled"), said("closed", 10)], [fill("7", "1")], "canceled"),
        ([said("closed"), said("canceled", 10)], [fill("7", "1", seconds=12)], "closed"),
        ([said("canceled"), said("canceled", 10)], [fill("7", "1", seconds=9)], "closed"),
    ],
)
def test_status_follows_from_what_is_known(
    updates: list[OrderUpdate], fills: list[Any], status: str
) -> None:
    record = OrderRecord(placed=placed(), client_order_id="ours")
    for update in updates:
        record = join_update(record, update)
    for execution in fills:
        record = join_execution(record, execution, SPOT)
    assert status_of(record) == status


def test_the_transition_table_is_whole() -> None:
    assert set(TRANSITIONS) == set(OrderStatus)
    for before, after in product(OrderStatus, OrderStatus):
        allowed = (
            not before.is_terminal
            and after is not OrderStatus.PENDING
            and (before, after) != (OrderStatus.OPEN, OrderStatus.OPEN)
        )
        assert (after in TRANSITIONS[before]) == allowed
        assert is_correction(before, after) == (not allowed and before != after)
        if allowed:
            check_transition(before, after)
        else:
            rule = "terminal_is_final" if before.is_terminal else "status_moves_forward"
            with pytest.raises(LedgerRuleBroken) as caught:
                check_transition(before, after)
            assert caught.value.rule == rule


def test_a_market_order_takes_no_price_from_updates() -> None:
    """CCXT gives the average price of a market order as its price."""
    record = OrderRecord(placed=placed(type=OrderType.MARKET, price=None), client_order_id="ours")
    order = order_of(join_update(record, said("open", 1, price=Decimal(99))), SPOT)
    assert order
    assert order.price is None


def test_a_stop_takes_its_trigger_from_updates() -> None:
    stop = placed(type=OrderType.STOP_LOSS, price=None, stop_price=Decimal(90))
    record = OrderRecord(placed=stop, client_order_id="ours")
    order = order_of(join_update(record, said("open", 1, stop_price=Decimal(91))), SPOT)
    assert order
    assert order.stop_price == 91


def test_two_placed_orders_are_not_merged_but_a_stored_one_gets_its_id() -> None:
    one = OrderRecord(placed=placed(), client_order_id="ours")
    stored = OrderRecord(placed=placed(id=5), client_order_id="ours")
    assert merge(one, stored).placed == placed(id=5)
    assert merge(stored, one).placed == placed(id=5)
    with pytest.raises(LedgerRuleBroken, match="client_order_id_names_one_order"):
        merge(one, OrderRecord(placed=placed("2"), client_order_id="ours"))


def test_records_are_equal_whichever_of_two_came_first() -> None:
    one, other = fill("7", "0.4"), fill("7", "0.3")
    ours = OrderRecord(placed=placed(), client_order_id="ours")
    forward = join_execution(join_execution(ours, one, SPOT), other, SPOT)
    backward = join_execution(join_execution(ours, other, SPOT), one, SPOT)
    assert forward == backward
    assert {e.stored_trade_id for e in forward.executions} != {
        e.stored_trade_id for e in backward.executions
    }


def test_an_order_that_is_not_ours_is_no_order() -> None:
    assert order_of(OrderRecord(exchange_order_id="X1"), SPOT) is None


@st.composite
def updates(draw: st.DrawFn) -> OrderUpdate:
    decimals = st.none() | st.integers(1, 5).map(Decimal)
    times = st.none() | st.integers(1, 5).map(at)
    return OrderUpdate(
        client_order_id="ours",
        time=draw(times),
        status=draw(st.none() | st.sampled_from([s for s in OrderStatus if s != "pending"])),
        filled=draw(decimals),
        amount=draw(decimals),
        price=draw(decimals),
        stop_price=draw(decimals),
        created_at=draw(times),
    )


@given(updates(), updates(), updates())
def test_what_is_said_joins_in_any_order_and_any_number_of_times(
    one: OrderUpdate, two: OrderUpdate, three: OrderUpdate
) -> None:
    a, b, c = Said.of(one), Said.of(two), Said.of(three)
    assert a.join(b) == b.join(a)
    assert a.join(b).join(c) == a.join(b.join(c))
    assert a.join(a) == a
    assert a.join(b).join(a) == a.join(b)
    assert Said().join(a) == a


def test_an_order_is_a_value() -> None:
    assert replace(placed(), price=Decimal("100.00")) == placed()
    assert isinstance(hash(placed()), int)
    assert isinstance(placed(), Order)
