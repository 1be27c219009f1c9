"""The comparison of the ledger with an exchange: what is missing, extra and different."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from kurisu.domain.execution import Execution, Fee, Side, TakerOrMaker
from kurisu.domain.market import MarketName
from kurisu.domain.order import Order, OrderStatus, OrderType, OrderUpdate
from kurisu.ledger.events import Severity
from kurisu.ledger.execution import core_of, marked_trade_id
from kurisu.ledger.reconcile import (
    Comparison,
    Difference,
    Kind,
    Subject,
    compare_balances,
    compare_market,
    corrections,
)

NAME = MarketName.parse("binance:BTC/USDT")
MARKET = str(NAME)
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def order(n: int, **more: Any) -> Order:
    at = T0 + timedelta(minutes=n)
    made = Order(
        NAME, Side.BUY, OrderType.LIMIT, Decimal(n + 1), at, at, f"k{n}", f"7{n}",
        price=Decimal("100.5"), filled=Decimal(n + 1), cost=Decimal(n + 1) * Decimal("100.5"),
        status=OrderStatus.CLOSED,
    )  # fmt: skip
    return replace(made, **more)


def fill(n: int, **more: Any) -> Execution:
    made = Execution(
        f"7{n}", f"t{n}", Side.BUY, Decimal("100.5"), Decimal(n + 1), T0 + timedelta(minutes=n),
        Decimal(n + 1) * Decimal("100.5"), (Fee("BNB", Decimal("0.01")),), TakerOrMaker.TAKER,
    )  # fmt: skip
    return replace(made, **more)


def said(o: Order, **more: Any) -> OrderUpdate:
    made = OrderUpdate(
        o.client_order_id, o.exchange_order_id, o.updated_at, o.status, o.filled, o.amount, o.price,
        None, o.side, o.created_at,
    )  # fmt: skip
    return replace(made, **more)


def compare(
    ours: tuple[list[Order], list[Execution]], theirs: tuple[list[OrderUpdate], list[Execution]],
    since: datetime | None = None, until: datetime | None = None,
) -> list[tuple[object, ...]]:  # fmt: skip
    found = compare_market(MARKET, ours, theirs, since, until)
    shuffled = compare_market(
        MARKET,
        (random.sample(ours[0], len(ours[0])), random.sample(ours[1], len(ours[1]))),
        (random.sample(theirs[0], len(theirs[0])), random.sample(theirs[1], len(theirs[1]))),
        since, until,
    )  # fmt: skip
    assert shuffled == found
    return [(d.subject, d.kind, d.key, d.field, d.ledger, d.exchange) for d in found.differences]


def test_what_agrees() -> None:
    orders, fills = [order(n) for n in range(5)], [fill(n) for n in range(5)]
    found = compare_market(MARKET, (orders, fills), ([said(o) for o in orders], fills))
    assert found.agrees
    assert (found.orders, found.executions) == (5, 5)


def test_an_exchange_that_says_little_contradicts_nothing() -> None:
    little = OrderUpdate(exchange_order_id="70")
    bare = fill(0, cost=None, fees=None, taker_or_maker=None)
    assert compare(([order(0)], [fill(0)]), ([little], [bare])) == []
    # Nor does the average that stands where a market order has no price.
    market_order = order(0, type=OrderType.MARKET, price=None)
    assert compare(([market_order], []), ([said(order(0))], [])) == []


def test_orders_missing_extra_and_different() -> None:
    ours = [order(0), order(1), order(2, status=OrderStatus.OPEN, filled=Decimal(1))]
    theirs = [said(order(0)), said(order(2)), said(order(3))]
    assert compare((ours, []), (theirs, [])) == [
        ("order", "different", "72", "filled", "1", "3"),
        ("order", "different", "72", "status", "open", "closed"),
        ("order", "extra", "71", "", "buy 2 closed", None),
        ("order", "missing", "73", "", None, "buy 4 closed"),
    ]


def test_an_order_without_the_exchanges_id_is_found_by_ours() -> None:
    pending = order(0, exchange_order_id=None, status=OrderStatus.PENDING, filled=Decimal(0))
    assert [d[3] for d in compare(([pending], []), ([said(order(0))], []))] == [
        "exchange_order_id", "filled", "status",
    ]  # fmt: skip
    # Somebody else's client id says nothing where the exchange's own is known.
    other = said(order(0), exchange_order_id="99")
    assert [d[:3] for d in compare(([order(0)], []), ([other], []))] == [
        ("order", "extra", "70"), ("order", "missing", "99"),
    ]  # fmt: skip


def test_an_order_that_failed_is_not_expected_there() -> None:
    failed = order(0, status=OrderStatus.FAILED, filled=Decimal(0))
    assert compare(([failed], []), ([], [])) == []
    assert compare(([failed], []), ([said(order(0), filled=Decimal(0))], [])) == [
        ("order", "different", "70", "status", "failed", "closed")
    ]


def test_a_canceled_order_is_forgotten_there_unless_it_was_filled() -> None:
    canceled = order(0, status=OrderStatus.CANCELED, filled=Decimal(0))
    assert compare(([canceled], []), ([], [])) == []
    partly = order(1, status=OrderStatus.CANCELED, filled=Decimal(1))
    assert [d[:3] for d in compare(([partly], []), ([], []))] == [("order", "extra", "71")]


def test_an_order_by_cost_that_moved_nothing_is_not_missing() -> None:
    """It has no amount, and cannot be in the ledger."""
    nothing = OrderUpdate(
        exchange_order_id="80", status=OrderStatus.CANCELED, filled=Decimal(0), side=Side.BUY
    )
    assert compare(([], []), ([nothing], [])) == []
    some = replace(nothing, filled=Decimal(1))
    assert [d[1] for d in compare(([], []), ([some], []))] == ["missing"]


def test_fills_missing_extra_and_different() -> None:
    ours = [fill(0), fill(1), fill(2), fill(3, fees=None)]
    theirs = [
        fill(0, time=T0 + timedelta(milliseconds=1), taker_or_maker=TakerOrMaker.MAKER),
        fill(2, amount=Decimal("2.5")),
        fill(3, fees=(Fee("BNB", Decimal("0.02")),)),
        fill(4),
    ]
    assert compare(([], ours), ([], theirs)) == [
        ("execution", "different", "70/t0", "taker_or_maker", "taker", "maker"),
        ("execution", "different", "70/t0", "time", "2026-01-01T00:00:00+00:00",
         "2026-01-01T00:00:00.001000+00:00"),
        ("execution", "different", "72/t2", "moved", "buy 3 at 100.5", "buy 2.5 at 100.5"),
        ("execution", "different", "73/t3", "fees", "none", "0.02 BNB"),
        ("execution", "extra", "71/t1", "", "buy 2 at 100.5", None),
        ("execution", "missing", "74/t4", "", None, "buy 5 at 100.5"),
    ]  # fmt: skip


def test_a_trade_id_used_twice_is_two_fills() -> None:
    one, other = fill(0), fill(0, amount=Decimal("0.5"))
    stored = replace(other, trade_id=marked_trade_id(core_of(other)))
    assert compare(([], [one, stored]), ([], [one, other])) == []
    assert compare(([], [one]), ([], [one, other])) == [
        ("execution", "missing", "70/t0", "", None, "buy 0.5 at 100.5")
    ]


def test_a_cost_that_was_cut_is_no_difference() -> None:
    exact = fill(0, cost=Decimal("100.123456789"))
    assert compare(([], [exact]), ([], [fill(0, cost=Decimal("100.12345678"))])) == []
    assert compare(([], [exact]), ([], [fill(0, cost=Decimal("100.13"))])) == [
        ("execution", "different", "70/t0", "cost", "100.123456789", "100.13")
    ]


def test_what_lies_outside_is_neither_missing_nor_extra() -> None:
    since, until = T0 + timedelta(minutes=1), T0 + timedelta(minutes=3)
    ours = ([order(0), order(1), order(4)], [fill(0), fill(1), fill(4)])
    theirs = ([said(order(5)), said(order(3))], [fill(5), fill(3)])
    found = compare(ours, theirs, since, until)
    assert [d[:3] for d in found] == [
        ("execution", "extra", "71/t1"), ("execution", "missing", "73/t3"),
        ("order", "extra", "71"), ("order", "missing", "73"),
    ]  # fmt: skip
    # What both have is compared wherever it lies.
    assert compare(([order(0)], []), ([said(order(0), amount=Decimal(9))], []), since, until)


def test_balances() -> None:
    ledger = {"BTC": Decimal("1.5"), "USDT": Decimal(-3), "BNB": Decimal(0)}
    exchange = {"BTC": Decimal("1.50"), "USDT": Decimal(4), "DOGE": Decimal("1E-8")}
    found = compare_balances(ledger, exchange)
    assert found.balances == 4
    assert [(d.key, d.ledger, d.exchange) for d in found.differences] == [
        ("DOGE", "0", "0.00000001"), ("USDT", "-3", "4"),
    ]  # fmt: skip
    moves = corrections(ledger, exchange)
    assert moves == {"DOGE": Decimal("1E-8"), "USDT": Decimal(7)}
    corrected = {asset: ledger.get(asset, Decimal(0)) + moves.get(asset, 0) for asset in exchange}
    assert compare_balances(corrected, exchange).agrees


def test_a_difference_is_one_event_however_often_it_is_found() -> None:
    one = Difference(Subject.BALANCE, Kind.DIFFERENT, "", "BTC", "total", "1", "2")
    assert one.event == replace(one).event
    assert one.event.severity is Severity.CRITICAL
    assert one.event.as_json == {
        "subject": "balance", "kind": "different", "key": "BTC", "field": "total", "ledger": "1",
        "exchange": "2",
    }  # fmt: skip


def test_comparisons_join() -> None:
    left = compare_balances({"BTC": Decimal(1)}, {})
    right = compare_market(MARKET, ([order(0)], []), ([], []))
    both = left.join(right)
    assert both == right.join(left)
    assert (both.orders, both.balances, len(both.differences)) == (1, 1, 2)
    assert Comparison().agrees
