"""The intake: any order, any number of times, in part, before the order is known."""

from __future__ import annotations

import itertools
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger.histories import (
    LINEAR,
    SPOT,
    History,
    Message,
    at,
    fee,
    feed,
    fill,
    histories,
    placed,
    said,
)

from kurisu.domain.execution import Side, TakerOrMaker
from kurisu.domain.money import plain
from kurisu.domain.order import Order, OrderType, OrderUpdate
from kurisu.errors import LedgerRuleBroken
from kurisu.ledger import intake as intake_module
from kurisu.ledger.balance import book_totals, position_and_postings
from kurisu.ledger.events import EventType, RiskEvent, Severity
from kurisu.ledger.execution import unmarked_trade_id
from kurisu.ledger.intake import Flag, Intake


def intake_of(*messages: Message) -> Intake:
    intake = Intake(SPOT)
    for message in messages:
        feed(intake, message)
    return intake


def types(events: frozenset[RiskEvent]) -> set[str]:
    return {event.event_type for event in events}


def state(intake: Intake) -> tuple[object, ...]:
    """All that can be seen of an intake. Of two executions under one trade id, the one that came
    first has its row's plain id; nothing else may depend on what came first."""
    executions = sorted(
        repr(replace(row, trade_id=unmarked_trade_id(row))) for row in intake.executions()
    )
    return (
        intake.orders(), executions, intake.events(), intake.conditions(), intake.waiting(),
        position_and_postings(intake.executions(), SPOT)[0],
    )  # fmt: skip


def stands(order: Order) -> tuple[str, str, str]:
    """Status, filled, remaining."""
    return order.status, plain(order.filled), plain(order.remaining)


# Examples


def test_life_of_an_order() -> None:
    intake = Intake(SPOT)
    outcome = intake.place(placed("1"))
    assert outcome.before is None
    assert outcome.order
    assert outcome.order.status == "pending"
    outcome = intake.update(said("open", 1))
    assert outcome.before
    assert outcome.before.status == "pending"
    assert outcome.order
    assert (outcome.order.status, outcome.order.exchange_order_id) == ("open", "X1")
    outcome = intake.execute(fill("7", "0.4", "99.5", 2))
    assert outcome.inserted == (fill("7", "0.4", "99.5", 2, cost=Decimal("39.8"),
                                     symbol="BTC/USDT"),)  # fmt: skip
    outcome = intake.execute(fill("8", "0.6", "100", 3))
    order = outcome.order
    assert order
    assert stands(order) == ("closed", "1", "0")
    assert order.cost == Decimal("99.8")
    assert order.updated_at == at(3)
    assert not intake.events() | intake.conditions()


def test_a_repetition_changes_nothing_and_says_so() -> None:
    intake = intake_of(placed(), said("open", 1), fill("7", "0.4"))
    before = state(intake)
    for message in (placed(), said("open", 1), fill("7", "0.4")):
        outcome = feed(intake, message)
        assert Flag.NOTHING_NEW in outcome.flags
        assert outcome.before == outcome.order
        assert not outcome.inserted
        assert not outcome.completed
        assert not outcome.events
    assert state(intake) == before


def test_a_fill_before_its_order_waits_and_joins() -> None:
    intake = Intake(SPOT)
    outcome = intake.execute(fill("7", "0.4"))
    assert outcome.order is None
    assert outcome.flags == {Flag.WAITING}
    assert types(outcome.conditions) == {"order_unknown"}
    assert not intake.executions()
    outcome = intake.place(placed())
    assert outcome.inserted == ()  # nobody has said yet that X1 is ours
    outcome = intake.update(said("open", 1))
    assert [row.trade_id for row in outcome.inserted] == ["7"]
    assert outcome.order
    assert outcome.order.filled == Decimal("0.4")
    assert not intake.waiting()
    assert not intake.conditions()


def test_an_order_whose_answer_was_lost_is_found_by_the_ids_of_any_update() -> None:
    intake = intake_of(said("open", 5, "0.4", client_order_id=None), fill("7", "0.4"))
    intake.place(placed())
    assert intake.order("ours") == placed()
    intake.update(OrderUpdate(client_order_id="ours", exchange_order_id="X1"))
    order = intake.order("ours")
    assert order
    assert (order.status, order.filled) == ("open", Decimal("0.4"))


def test_a_cumulative_fill_is_never_added_up_and_shows_missing_fills() -> None:
    intake = intake_of(placed(), said("open", 5, "0.4"), said("open", 6, "0.7"))
    order = intake.order("ours")
    assert order
    assert order.filled == 0
    assert intake.conditions() == {
        RiskEvent.of(EventType.FILLS_MISSING, Severity.WARNING, order="ours",
                     reported=Decimal("0.7"), known=Decimal(0))
    }  # fmt: skip
    feed(intake, fill("7", "0.4", seconds=5))
    assert types(intake.conditions()) == {"fills_missing"}
    feed(intake, fill("8", "0.3", seconds=6))
    assert not intake.conditions()
    assert not intake.events()


def test_an_unfilled_market_order_that_the_exchange_closed_waits_for_its_fills() -> None:
    intake = intake_of(placed(), said("closed", 5, "1"))
    order = intake.order("ours")
    assert order
    assert stands(order) == ("closed", "0", "1")
    feed(intake, fill("7", "1", seconds=5))
    order = intake.order("ours")
    assert order
    assert stands(order) == ("closed", "1", "0")
    assert not intake.events() | intake.conditions()


def test_a_late_fill_of_a_canceled_order_is_recorded_and_flagged() -> None:
    intake = intake_of(placed(), said("canceled", 10, "0"))
    outcome = intake.execute(fill("7", "1", seconds=11))
    assert Flag.AFTER_END in outcome.flags
    assert len(outcome.inserted) == 1
    assert types(outcome.events) == {"late_fill", "filled_beyond_final"}
    order = outcome.order
    assert order
    # Even though it is full now: it had ended before.
    assert stands(order) == ("canceled", "1", "0")


@pytest.mark.parametrize("seconds", [9, 10])
def test_a_fill_that_was_matched_before_the_cancel_is_no_news(seconds: int) -> None:
    intake = intake_of(placed(), said("canceled", 10, "0.4"))
    outcome = intake.execute(fill("7", "0.4", seconds=seconds))
    assert Flag.AFTER_END in outcome.flags
    assert not outcome.events
    assert not outcome.conditions


def test_the_last_fill_of_a_full_order_may_carry_a_later_time_than_its_close() -> None:
    assert not intake_of(placed(), said("closed", 10, "1"), fill("7", "1", seconds=11)).events()


def test_an_order_filled_before_its_cancel_was_closed() -> None:
    messages = (placed(), fill("7", "1", seconds=9), said("canceled", 10))
    intake = intake_of(*messages)
    order = intake.order("ours")
    assert order
    assert order.status == "closed"
    assert state(intake_of(*reversed(messages))) == state(intake)
    first = intake_of(placed(), said("canceled", 10))
    assert Flag.CORRECTED in first.execute(messages[1]).flags


def test_an_ended_order_is_not_reopened() -> None:
    intake = intake_of(placed(), said("canceled", 10, "0"))
    outcome = intake.update(said("open", 11))
    assert outcome.order
    assert outcome.order.status == "canceled"
    assert Flag.REOPEN_IGNORED in outcome.flags
    assert types(outcome.events) == {"order_reopened"}
    # Whichever end was the first.
    intake = intake_of(placed(), said("canceled", 10), said("canceled", 12), said("closed", 12))
    assert types(intake.update(said("open", 11)).events) == {"order_reopened"}


def test_an_older_update_changes_only_what_cannot_grow_old() -> None:
    intake = intake_of(placed(), said("open", 10, "0.6", price=Decimal(101)), fill("7", "0.6"))
    outcome = intake.update(said("open", 9, "0.2", price=Decimal(99)))
    assert Flag.OLDER in outcome.flags
    assert outcome.order == outcome.before
    outcome = intake.update(said("canceled", 9))
    assert outcome.order
    assert outcome.order.status == "canceled"
    assert outcome.order.price == 101


def test_an_update_without_time_is_older_than_any_other_but_its_end_counts() -> None:
    intake = intake_of(placed(), said("open", 10, price=Decimal(101)))
    outcome = intake.update(said("canceled", None, price=Decimal(99)))
    assert outcome.order
    assert outcome.order.status == "canceled"
    assert outcome.order.price == 101


def test_two_ends_are_one_end_and_a_contradiction() -> None:
    messages = (placed(), said("canceled", 10), said("closed", 11), said("failed", 10))
    intake = intake_of(*messages)
    order = intake.order("ours")
    assert order
    assert order.status == "canceled"
    assert len(intake.events()) == 3
    assert types(intake.events()) == {"final_status_contradicted"}


def test_too_large_a_fill_is_held_and_nothing_of_it_applied() -> None:
    intake = intake_of(placed(), said("open", 1), fill("7", "0.6"))
    outcome = intake.execute(fill("8", "0.5", seconds=11))
    assert Flag.HELD in outcome.flags
    assert outcome.order == outcome.before
    assert not outcome.inserted
    (event,) = outcome.conditions
    assert event.severity == "critical"
    assert event.as_json == {
        "order": "ours", "trade_id": "8", "execution": "buy 0.5 at 100", "amount": "1",
        "would_fill": "1.1", "rule": "filled_within_amount",
    }  # fmt: skip
    # What fits later still counts; and so does the held one, once the order is larger.
    assert intake.execute(fill("9", "0.4", seconds=12)).inserted
    outcome = intake.update(said("open", 13, amount=Decimal("1.5")))
    assert [row.trade_id for row in outcome.inserted] == ["8"]
    assert types(intake.conditions()) == {"order_amount_differs"}


def test_an_order_by_cost_is_as_large_as_what_was_filled() -> None:
    """Its amount was never said: it was adopted with what was filled then."""
    order = placed("0.3", client_order_id=None, exchange_order_id="X1", type=OrderType.MARKET,
                   price=None)  # fmt: skip
    messages: list[Message] = [
        said("open", 1, "0.3", client_order_id=None), fill("7", "0.3"),
        said("open", 2, "0.8", client_order_id=None), fill("8", "0.5"),
    ]  # fmt: skip
    for news in itertools.permutations(messages):
        intake = Intake(SPOT)
        intake.place(order)
        for message in news:
            feed(intake, message)
        (found,) = intake.orders()
        assert (found.amount, found.filled) == (Decimal("0.8"), Decimal("0.8"))
        assert not intake.conditions() | intake.events()
    # What nobody has announced is held as ever, and an order of ours has the amount we gave it.
    assert Flag.HELD in intake.execute(fill("9", "0.1")).flags
    ours = Intake(SPOT)
    ours.place(placed("0.3"))
    ours.update(said("open", 1, "0.8"))
    assert Flag.HELD in ours.execute(fill("7", "0.8")).flags


def test_a_smaller_amount_never_breaks_the_order() -> None:
    intake = intake_of(placed(), said("open", 1), fill("7", "0.6"))
    outcome = intake.update(said("open", 11, amount=Decimal("0.5")))
    assert outcome.order
    assert stands(outcome.order) == ("closed", "0.6", "0")


def test_a_fill_on_the_other_side_is_held() -> None:
    intake = intake_of(placed(), said("open", 1))
    outcome = intake.execute(fill("7", "0.6", side="sell"))
    assert not outcome.inserted
    assert types(outcome.conditions) == {"execution_side_differs"}


def test_one_trade_id_with_two_contents_keeps_both() -> None:
    intake = intake_of(placed(), said("open", 1), fill("7", "0.6"))
    outcome = intake.execute(fill("7", "0.3"))
    (event,) = outcome.events
    assert (event.event_type, event.severity) == ("trade_id_reused", "critical")
    assert event.as_json["execution"] == "buy 0.3 at 100"
    (row,) = outcome.inserted
    assert row.trade_id.startswith("7~")
    assert unmarked_trade_id(row) == "7"
    assert outcome.order
    assert outcome.order.filled == Decimal("0.9")
    again = intake.execute(fill("7", "0.3"))
    assert Flag.NOTHING_NEW in again.flags
    assert intake.execute(row).flags == again.flags  # its own row read back


def test_one_trade_id_in_two_orders_of_ours_is_a_trade_with_oneself() -> None:
    intake = intake_of(
        placed(), said("open", 1),
        placed(client_order_id="other", side=Side.SELL),
        said("open", 1, client_order_id="other", exchange_order_id="X2"),
        fill("7", "0.5"),
    )  # fmt: skip
    outcome = intake.execute(fill("7", "0.5", side="sell", exchange_order_id="X2"))
    (event,) = outcome.events
    assert (event.event_type, event.severity) == ("trade_id_reused", "warning")
    assert outcome.inserted[0].trade_id == "7"


def test_a_reused_trade_id_is_found_after_records_became_one() -> None:
    adopted = placed(client_order_id=None, exchange_order_id="X1")
    intake = intake_of(
        OrderUpdate(client_order_id="theirs"), adopted, fill("7", "0.5"),
        OrderUpdate(client_order_id="theirs", exchange_order_id="X1"),
        placed(side=Side.SELL), said("open", 1, exchange_order_id="X2"),
    )  # fmt: skip
    outcome = intake.execute(fill("7", "0.5", side="sell", exchange_order_id="X2"))
    assert types(outcome.events) == {"trade_id_reused"}


def test_what_one_source_leaves_out_another_adds() -> None:
    intake = intake_of(placed(), said("open", 1), fill("7", "0.6", fees=None))
    outcome = intake.execute(
        fill("7", "0.6", fees=fee("0.06", "USDT"), taker_or_maker=TakerOrMaker.MAKER)
    )
    assert not outcome.inserted
    (row,) = outcome.completed
    assert row.fees == fee("0.06", "USDT")
    assert row.taker_or_maker == "maker"
    assert not intake.events()
    outcome = intake.execute(fill("7", "0.6", fees=fee("0.07", "USDT"), seconds=11))
    assert {(e.as_json["field"], e.severity) for e in outcome.events} == {
        ("fees", "warning"), ("time", "info"),
    }  # fmt: skip
    (row,) = intake.executions()
    assert (row.fees, row.time) == (fee("0.07", "USDT"), at(10))


def test_a_cost_that_a_venue_cut_to_eight_digits_counts_and_is_not_disputed() -> None:
    execution = fill("7", "0.333333333", "99.99999999")
    booked = Decimal("33.33333329")
    intake = intake_of(placed(), said("open", 1), execution)
    assert intake.executions()[0].cost == Decimal("33.33333329666666667")
    assert not intake.execute(replace(execution, cost=booked)).events
    assert intake.executions()[0].cost == booked
    (event,) = intake.execute(replace(execution, cost=Decimal(61))).events
    assert event.as_json["field"] == "cost"


def test_ids_of_two_orders_are_refused() -> None:
    intake = intake_of(
        placed(), said("open", 1),
        placed(client_order_id="other"),
        said("open", 1, client_order_id="other", exchange_order_id="X2"),
    )  # fmt: skip
    before = state(intake)
    outcome = intake.update(said("canceled", 2, client_order_id="ours", exchange_order_id="X2"))
    assert outcome.flags == {Flag.REFUSED}
    assert types(outcome.events) == {"order_identity_contradicted"}
    assert state(intake)[0:2] == before[0:2]
    assert not intake.update(said("canceled", 2, exchange_order_id="X2")).events


def test_a_cancel_s_own_id_is_not_the_order_s() -> None:
    """Binance's answer to a cancel."""
    intake = intake_of(placed(), said("open", 1))
    outcome = intake.update(said("canceled", 2, "0.4", client_order_id="cancel-1"))
    assert Flag.REFUSED not in outcome.flags
    assert outcome.order
    assert (outcome.order.client_order_id, outcome.order.status) == ("ours", "canceled")
    assert not intake.events()


def test_orders_of_others_are_never_ours_unless_adopted() -> None:
    intake = intake_of(said("open", 1, "0.5", client_order_id="somebody"), fill("7", "0.5"))
    assert not intake.orders()
    assert not intake.executions()
    assert types(intake.conditions()) == {"order_unknown"}
    outcome = intake.place(
        placed(client_order_id=None, exchange_order_id="X1", created_at=at(1), updated_at=at(1))
    )
    assert outcome.order
    assert (outcome.order.name, outcome.order.filled) == ("somebody", Decimal("0.5"))


def test_what_is_not_ours_can_be_dropped_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    intake = intake_of(fill("7", "0.5"), placed(), said("open", 1, exchange_order_id="X2"))
    intake.forget("X1")
    intake.forget("X1")
    assert not intake.waiting()
    with pytest.raises(LedgerRuleBroken, match="orders_of_ours_stay"):
        intake.forget("X2")
    monkeypatch.setattr(intake_module, "UNKNOWN_ORDERS_LIMIT", 1)
    intake.execute(fill("7", "0.5"))
    intake.execute(fill("8", "0.5"))
    with pytest.raises(LedgerRuleBroken, match="unknown_orders_bounded"):
        intake.execute(fill("7", "0.5", exchange_order_id="X3"))


def test_one_client_id_is_one_order() -> None:
    intake = intake_of(placed("1"))
    with pytest.raises(LedgerRuleBroken, match="client_order_id_names_one_order"):
        intake.place(placed("2"))
    intake.update(said("open", 1))
    with pytest.raises(LedgerRuleBroken, match="client_order_id_names_one_order"):
        intake.place(placed("1", exchange_order_id="X2"))


def test_another_market_is_refused() -> None:
    intake = Intake(LINEAR)
    with pytest.raises(LedgerRuleBroken, match="intake_has_one_market"):
        intake.place(placed())
    with pytest.raises(LedgerRuleBroken, match="intake_has_one_market"):
        intake.execute(fill("7", "1", symbol="BTC/USDT"))


def test_a_status_that_ccxt_does_not_know_says_nothing_but_is_kept() -> None:
    intake = intake_of(placed())
    update = OrderUpdate.from_ccxt({"id": "X1", "clientOrderId": "ours", "status": "NEW_ADL"})
    outcome = intake.update(update)
    assert outcome.order
    assert outcome.order.status == "open"
    assert types(outcome.events) == {"status_unknown"}


# Properties


@settings(max_examples=70)
@given(histories(), st.data())
def test_order_and_repetition_do_not_matter(history: History, data: st.DataObject) -> None:
    straight = Intake(SPOT)
    emitted = {event for message in history.messages for event in feed(straight, message).events}
    assert emitted == straight.events()
    repeated = data.draw(
        st.lists(st.sampled_from(history.messages), max_size=len(history.messages))
    )
    mixed = Intake(SPOT)
    emitted_mixed: set[RiskEvent] = set()
    for message in data.draw(st.permutations([*history.messages, *repeated])):
        outcome = feed(mixed, message)
        emitted_mixed |= outcome.events
        if outcome.order:
            assert 0 <= outcome.order.filled <= outcome.order.amount
            assert outcome.order.remaining == outcome.order.amount - outcome.order.filled
    assert state(mixed) == state(straight)
    assert emitted_mixed == emitted


@st.composite
def talk(draw: st.DrawFn) -> Message:
    """Anything about one order of 100, contradictions and all; only its fills fit in it."""
    seconds = draw(st.integers(1, 6))
    if draw(st.booleans()):
        return fill(
            draw(st.sampled_from("789")), draw(st.sampled_from(["1", "2"])), seconds=seconds,
            side=draw(st.sampled_from(["buy", "buy", "buy", "sell"])),
            fees=draw(st.sampled_from([None, (), fee("1", "BNB"), fee("2", "BTC")])),
            cost=draw(st.sampled_from([None, Decimal(100), Decimal("99.99999")])),
            taker_or_maker=draw(st.sampled_from([None, *TakerOrMaker])),
        )  # fmt: skip
    return said(
        draw(st.sampled_from([None, "open", "closed", "canceled", "failed"])),
        draw(st.sampled_from([None, seconds])),
        draw(st.sampled_from([None, "0", "1", "3"])),
        client_order_id=draw(st.sampled_from([None, "ours"])),
        amount=draw(st.sampled_from([None, Decimal(3), Decimal(100), Decimal(120)])),
        price=draw(st.sampled_from([None, Decimal(99), Decimal(101)])),
        side=draw(st.sampled_from([None, *Side])),
        unknown_status=draw(st.sampled_from([None, "NEW_ADL"])),
    )


@settings(max_examples=70)
@given(st.lists(talk(), max_size=12), st.data())
def test_even_contradictions_lead_to_one_state(talked: list[Message], data: st.DataObject) -> None:
    messages = [placed("100"), said("open", 1), *talked]
    straight = intake_of(*messages)
    mixed = Intake(SPOT)
    emitted: set[RiskEvent] = set()
    for message in data.draw(st.permutations([*messages, *talked[:3]])):
        emitted |= feed(mixed, message).events
    assert state(mixed) == state(straight)
    assert emitted == straight.events()


@settings(max_examples=40)
@given(histories())
def test_everything_that_happened_is_there(history: History) -> None:
    intake = intake_of(*history.messages)
    assert {o.client_order_id: o.filled for o in intake.orders()} == history.amounts
    for order in intake.orders():
        rows = intake.executions(order.name)
        assert sum(row.amount for row in rows) == order.filled
        assert sum(row.cost or 0 for row in rows) == order.cost
        assert len({row.trade_id for row in rows}) == len(rows)
    position, lines = position_and_postings(intake.executions(), SPOT)
    assert book_totals(lines).get("BTC", Decimal(0)) == position.amount


@settings(max_examples=40)
@given(histories(amends=False), st.data())
def test_a_crash_at_any_time_and_the_same_messages_again_lead_to_the_same_state(
    history: History, data: st.DataObject
) -> None:
    expected = intake_of(*history.messages)
    emitted: set[RiskEvent] = set()
    intake = Intake(SPOT)
    messages = data.draw(st.permutations(history.messages))
    for crash in sorted(data.draw(st.lists(st.integers(0, len(messages)), max_size=3))):
        for message in messages[:crash]:
            emitted |= feed(intake, message).events
        # All that is left are the rows.
        restored = Intake(SPOT)
        for order in intake.orders():
            rows = intake.executions(order.name)
            outcome = restored.restore(order, rows)
            assert outcome.order == order
            assert not outcome.inserted
            emitted |= outcome.events
            assert restored.executions(order.name) == rows
        assert restored.orders() == intake.orders()
        intake = restored
    for message in messages:
        emitted |= feed(intake, message).events
    assert state(intake) == state(expected)
    assert emitted == expected.events()


@settings(max_examples=30)
@given(histories(strangers=False), st.data())
def test_statuses_only_move_forward_but_for_corrections(
    history: History, data: st.DataObject
) -> None:
    intake = Intake(SPOT)
    rank = {"pending": 0, "open": 1}
    for message in data.draw(st.permutations(history.messages)):
        outcome = feed(intake, message)
        if outcome.before and outcome.order and Flag.CORRECTED not in outcome.flags:
            before, after = outcome.before.status, outcome.order.status
            assert before == after or rank.get(before, 2) < rank.get(after, 2)
            assert outcome.before.filled <= outcome.order.filled


def test_executions_of_an_intake_are_rows() -> None:
    intake = intake_of(placed(), said("open", 1), fill("7", "0.6", fees=None))
    (row,) = intake.executions("ours")
    assert row.cost == 60
    assert intake.executions("X1") == (row,)
    assert intake.executions("nobody") == ()


def test_rows_join_what_waited_for_them() -> None:
    before = intake_of(placed(), said("open", 1), fill("7", "0.6"), fill("8", "0.1"))
    intake = intake_of(said("open", 2, "0.9"), fill("7", "0.6"), fill("9", "0.2"))
    outcome = intake.restore(before.orders()[0], before.executions())
    assert outcome.order
    assert stands(outcome.order) == ("open", "0.9", "0.1")
    assert [row.trade_id for row in outcome.inserted] == ["9"]
    assert not outcome.conditions


def test_a_stored_end_stays_final_until_the_exchange_is_asked_again() -> None:
    before = intake_of(placed(), said("canceled", 10, "0"), fill("7", "0.4", seconds=20))
    intake = Intake(SPOT)
    intake.restore(before.orders()[0], before.executions())
    outcome = intake.execute(fill("8", "0.6", seconds=15))
    assert outcome.order
    assert stands(outcome.order) == ("canceled", "1", "0")
    assert Flag.AFTER_END in outcome.flags


def test_rows_that_disagree_are_not_restored() -> None:
    intake = intake_of(placed(), said("open", 1), fill("7", "0.6"))
    with pytest.raises(LedgerRuleBroken, match="filled_is_sum_of_executions"):
        Intake(SPOT).restore(intake.orders()[0], ())
