"""The short way and the intake give the same, for whatever the short way takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from ledger.histories import (
    INVERSE,
    SPOT,
    History,
    at,
    fee,
    feed,
    fill,
    histories,
    placed,
    said,
)

from kurisu.domain.execution import Execution
from kurisu.domain.order import OrderUpdate
from kurisu.domain.position import MarketTerms
from kurisu.ledger.intake import Flag, Intake, flags_of
from kurisu.ledger.tally import Tally, Verdict


def tally_of(intake: Intake, exchange_order_id: str, terms: MarketTerms = SPOT) -> Tally:
    """Of the order as the intake has it."""
    record = intake.record(exchange_order_id)
    order = intake.order(exchange_order_id)
    assert record
    assert order
    return Tally(record, order, terms)


@given(histories(), st.randoms(use_true_random=False))
def test_what_it_takes_is_what_the_intake_makes_of_it(history: History, random: object) -> None:
    messages = [*history.messages, *history.messages]
    random.shuffle(messages)  # type: ignore[attr-defined]
    intake = Intake(SPOT)
    for message in messages:
        known = intake.record(message.exchange_order_id or "")
        if isinstance(message, OrderUpdate) and known is not None and known.placed is not None:
            tally = tally_of(intake, message.exchange_order_id or "")
            is_known, before = tally.knows(message), tally.order
            outcome = intake.update(message)
            assert is_known is (Flag.NOTHING_NEW in outcome.flags)
            if is_known:
                assert outcome.order == before
                assert outcome.flags == flags_of(message, before) | {Flag.NOTHING_NEW}
                assert outcome.conditions == tally.conditions
            continue
        if not isinstance(message, Execution) or known is None or known.placed is None:
            feed(intake, message)
            continue
        assert known.exchange_order_id
        if not all(one.accepted for one in known.executions):
            feed(intake, message)
            continue
        tally = tally_of(intake, known.exchange_order_id)
        verdict = tally.judge(message)
        outcome = intake.execute(message)
        if verdict is Verdict.KNOWN:
            assert outcome.flags == {Flag.NOTHING_NEW}
            assert outcome.conditions == tally.conditions
        elif verdict is Verdict.PLAIN:
            cost = tally.count(message)
            assert outcome.order
            assert not {event for event in outcome.events if "order" in event.as_json
                        and "other_order" not in event.as_json}  # fmt: skip
            assert outcome.inserted == (replace(message, cost=cost, symbol=SPOT.name.symbol),)
            order = outcome.order
            assert (tally.filled, tally.cost) == (order.filled, order.cost)
            assert (tally.status, tally.updated_at) == (order.status, order.updated_at)
            assert tally.conditions == outcome.conditions


def verdicts(before: Sequence[object], *fills: Execution) -> list[Verdict]:
    """What a tally says of fills, counting those that are plain."""
    intake = Intake(SPOT)
    for message in before:
        feed(intake, message)  # type: ignore[arg-type]
    tally = tally_of(intake, "X1")
    found = []
    for execution in fills:
        found.append(tally.judge(execution))
        if found[-1] is Verdict.PLAIN:
            tally.count(execution)
    return found


def test_what_is_plain_and_what_is_not() -> None:
    begun = (placed(), said("open", 1))
    plain, known, other = Verdict.PLAIN, Verdict.KNOWN, Verdict.OTHER
    first = fill("7", "0.4", fees=fee("0.1", "BNB"))
    assert verdicts(begun, first, first, replace(first, fees=None)) == [plain, known, known]
    assert verdicts(begun, first, replace(first, fees=fee("0.2", "BNB"))) == [plain, other]
    assert verdicts(begun, first, replace(first, time=at(11))) == [plain, other]
    assert verdicts(begun, first, fill("7", "0.3")) == [plain, other]
    assert verdicts(begun, first, fill("8", "0.6"), fill("9", "0.1")) == [plain, plain, other]
    assert verdicts(begun, fill("7", "0.4", side="sell")) == [other]
    assert verdicts(begun, fill("7~0123456789ab", "0.4")) == [other]
    assert verdicts(begun, replace(first, cost=first.price)) == [other]
    assert verdicts((*begun, said("closed", 20, "1")), first) == [plain]
    assert verdicts((*begun, said("closed", 20, "0.3")), first) == [other]
    assert verdicts((*begun, said("canceled", 20)), first, fill("8", "0.6")) == [plain, other]
    assert verdicts((*begun, said("canceled", 9)), first) == [other]
    assert verdicts((*begun, first, replace(first, time=at(11))), first) == [other]


def test_a_contract_s_cost_is_computed() -> None:
    intake = Intake(INVERSE)
    intake.place(placed("10", market=INVERSE.name))
    intake.update(said("open", 1))
    tally = tally_of(intake, "X1", INVERSE)
    execution = fill("7", "4", "25000", cost=placed().amount)
    assert tally.judge(execution) is Verdict.PLAIN
    assert tally.count(execution) == 400
    outcome = intake.execute(execution)
    assert outcome.order
    assert outcome.order.cost == 400
