"""What does not add up about an order: functions of its facts, not of the order they came in.

Events stay true, whatever comes later; conditions hold until the missing piece comes. Records of
orders that are not ours have neither: they wait (`EventType.ORDER_UNKNOWN`, by the intake).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from itertools import combinations, groupby
from typing import Final

from kurisu.domain.order import OrderStatus
from kurisu.domain.position import MarketTerms
from kurisu.ledger.arithmetic import add, total
from kurisu.ledger.events import EventType, RiskEvent, Severity
from kurisu.ledger.execution import KnownExecution
from kurisu.ledger.order import OrderRecord, room

# How bad it is if two sources differ about a field: only fees and costs move money.
_DISPUTE_SEVERITY: Final = {
    "time": Severity.INFO,
    "taker_or_maker": Severity.INFO,
    "fees": Severity.WARNING,
    "cost": Severity.WARNING,
}


def events_of(record: OrderRecord, terms: MarketTerms) -> frozenset[RiskEvent]:
    """What has become true of this order and stays true."""
    if record.placed is None:
        return frozenset()
    return frozenset(
        (
            *_end_events(record, record.placed.name),
            *_execution_events(record, record.placed.name, terms),
        )
    )


def conditions_of(record: OrderRecord) -> frozenset[RiskEvent]:
    """What does not add up now; over once the missing piece has come."""
    return frozenset(_conditions(record))


def _end_events(record: OrderRecord, order: str) -> Iterator[RiskEvent]:
    said = record.said
    ends = {status for status, _ in said.ended}
    times = [time for _, time in said.ended if time is not None]
    if said.latest_open is not None and times and said.latest_open > min(times):
        yield RiskEvent.of(EventType.ORDER_REOPENED, Severity.WARNING, order=order)
    for one, other in combinations(sorted(ends), 2):
        yield RiskEvent.of(
            EventType.FINAL_STATUS_CONTRADICTED,
            Severity.WARNING,
            order=order,
            status=one,
            other_status=other,
        )
    broken_off_at = _broken_off_at(record)
    for known in record.executions if broken_off_at is not None else ():
        if known.accepted and broken_off_at is not None and known.times[-1] > broken_off_at:
            yield RiskEvent.of(
                EventType.LATE_FILL,
                Severity.WARNING,
                order=order,
                trade_id=known.core.trade_id,
                execution=known.core.text,
            )
    if said.least_filled_at_end is not None and record.filled > said.least_filled_at_end:
        yield RiskEvent.of(EventType.FILLED_BEYOND_FINAL, Severity.WARNING, order=order)
    for text in said.unknown_statuses:
        yield RiskEvent.of(EventType.STATUS_UNKNOWN, Severity.INFO, order=order, status=text)


def _broken_off_at(record: OrderRecord) -> datetime | None:
    """When it was canceled or failed. A full order's last fill may well come after its close."""
    return min(
        (
            time
            for status, time in record.said.ended
            if time is not None and status is not OrderStatus.CLOSED
        ),
        default=None,
    )


def _execution_events(record: OrderRecord, order: str, terms: MarketTerms) -> Iterator[RiskEvent]:
    # They are sorted by core, and a core begins with the trade id.
    for _, same_id in groupby(record.executions, key=lambda known: known.core.trade_id):
        for one, other in combinations(same_id, 2):
            yield trade_id_reused((order, one), (order, other))
    for known in record.executions:
        for field, one_value, other_value in known.disputes(terms):
            yield RiskEvent.of(
                EventType.EXECUTION_DISPUTED,
                _DISPUTE_SEVERITY[field],
                order=order,
                trade_id=known.core.trade_id,
                execution=known.core.text,
                field=field,
                value=one_value,
                other_value=other_value,
            )


def trade_id_reused(
    left: tuple[str, KnownExecution], right: tuple[str, KnownExecution]
) -> RiskEvent:
    """One trade id, and two executions under it; each with the name of its order.

    Two contents in one order are a suspected split, or a correction by the exchange: critical,
    for both count. In two orders it may be a trade with oneself.
    """
    (order, one), (other_order, other) = sorted(
        (left, right), key=lambda side: (side[0], side[1].core)
    )
    return RiskEvent.of(
        EventType.TRADE_ID_REUSED,
        Severity.CRITICAL if order == other_order else Severity.WARNING,
        trade_id=one.core.trade_id,
        order=order,
        execution=one.core.text,
        other_order=other_order,
        other_execution=other.core.text,
    )


def fills_missing(order: str, reported: Decimal, known: Decimal) -> RiskEvent:
    """The exchange says that more was filled than is known."""
    return RiskEvent.of(
        EventType.FILLS_MISSING, Severity.WARNING, order=order, reported=reported, known=known
    )


def _conditions(record: OrderRecord) -> Iterator[RiskEvent]:
    placed, said = record.placed, record.said
    if placed is None:
        return
    order = placed.name
    known_filled = total(known.core.amount for known in record.executions)
    if said.greatest_filled is not None and said.greatest_filled > known_filled:
        yield fills_missing(order, said.greatest_filled, known_filled)
    limit, filled = room(record), record.filled
    for known in record.executions:
        if known.accepted:
            continue
        if known.core.side is not placed.side:
            yield RiskEvent.of(
                EventType.EXECUTION_SIDE_DIFFERS,
                Severity.CRITICAL,
                order=order,
                trade_id=known.core.trade_id,
                execution=known.core.text,
                side=placed.side,
            )
        else:
            yield RiskEvent.of(
                EventType.EXECUTION_EXCEEDS_ORDER,
                Severity.CRITICAL,
                order=order,
                trade_id=known.core.trade_id,
                execution=known.core.text,
                rule="filled_within_amount",
                amount=limit,
                would_fill=add(filled, known.core.amount),
            )
    for side in said.sides - {placed.side}:
        yield RiskEvent.of(
            EventType.ORDER_SIDE_DIFFERS,
            Severity.CRITICAL,
            order=order,
            placed=placed.side,
            reported=side,
        )
    if said.amount is not None and said.amount.value != placed.amount:
        yield RiskEvent.of(
            EventType.ORDER_AMOUNT_DIFFERS,
            Severity.WARNING,
            order=order,
            placed=placed.amount,
            reported=said.amount.value,
        )
