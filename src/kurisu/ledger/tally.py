"""The short way for the plain case: a new fill of a known order that raises no question.

A `Tally` has of an order's record what is needed to recognise such a fill and to count it. It
decides nothing on its own: whatever is not plain (`Verdict.OTHER`) goes to the `Intake`, and for
what is plain the two give the same order, row and events, which are none.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Final

from kurisu.domain.execution import Execution
from kurisu.domain.money import EXACT
from kurisu.domain.order import Order, OrderStatus, OrderUpdate
from kurisu.domain.position import MarketTerms, Settlement
from kurisu.ledger.events import EventType, RiskEvent
from kurisu.ledger.execution import COST_TOLERANCE, computed_cost
from kurisu.ledger.findings import conditions_of, fills_missing
from kurisu.ledger.order import OrderRecord, Said, is_measured

_CLOSED: Final = frozenset({OrderStatus.CLOSED})
_add: Final = EXACT.add


class Verdict(Enum):
    """PLAIN: new, and counts. KNOWN: says nothing that is not there. OTHER: ask the intake."""

    PLAIN = "plain"
    KNOWN = "known"
    OTHER = "other"


class Tally:
    """An order's sums, and its executions by trade id.

    order: as it stood when the tally was made. filled, cost, status, updated_at: as they stand.
    """

    __slots__ = (
        "_broken_off_at",
        "_conditions",
        "_is_broken_off",
        "_is_ended",
        "_is_measured",
        "_limit",
        "_reported",
        "_said",
        "_spot",
        "_terms",
        "_trades",
        "cost",
        "filled",
        "order",
        "status",
        "updated_at",
    )  # fmt: skip

    def __init__(self, record: OrderRecord, order: Order, terms: MarketTerms) -> None:
        said = record.said
        self._said = said
        self._terms = terms
        self._is_measured = is_measured(record)
        self._spot = terms.settlement is Settlement.SPOT
        self.order = order
        self.filled = order.filled
        self.cost = order.cost
        self.status = order.status
        self.updated_at = order.updated_at
        # Beyond it a fill has consequences: it does not fit, moves the amount, or contradicts
        # what the exchange said when the order ended.
        self._limit = order.amount
        if said.least_filled_at_end is not None:
            self._limit = min(self._limit, said.least_filled_at_end)
        ends = {status for status, _ in said.ended}
        self._is_ended = bool(ends)
        self._is_broken_off = bool(ends - _CLOSED)
        times = [time for status, time in said.ended if time and status not in _CLOSED]
        self._broken_off_at: datetime | None = min(times, default=None)
        self._reported = said.greatest_filled
        self._conditions = frozenset(
            condition
            for condition in conditions_of(record)
            if condition.event_type is not EventType.FILLS_MISSING
        )
        self._trades: dict[str, Execution | None] = {}
        for known in record.executions:
            trade_id = known.core.trade_id
            is_single = (
                known.accepted
                and trade_id not in self._trades
                and len(known.times) == 1
                and len(known.costs) < 2
                and len(known.fees) < 2
                and len(known.roles) < 2
            )
            self._trades[trade_id] = known.view("-", terms) if is_single else None

    def __len__(self) -> int:
        return len(self._trades)

    @property
    def conditions(self) -> frozenset[RiskEvent]:
        """What does not add up now."""
        if self._reported is None or self._reported <= self.filled:
            return self._conditions
        return self._conditions | {fills_missing(self.order.name, self._reported, self.filled)}

    def judge(self, execution: Execution) -> Verdict:
        """Whether `execution`, which is of this order, is plain."""
        try:
            known = self._trades[execution.trade_id]
        except KeyError:
            pass
        else:
            return Verdict.KNOWN if known and _adds_nothing(execution, known) else Verdict.OTHER
        filled = _add(self.filled, execution.amount)
        if (
            execution.side is not self.order.side
            or filled > self._limit
            or "~" in execution.trade_id
            or (self._spot and execution.cost is not None and _is_disputed(execution))
        ):
            return Verdict.OTHER
        if self._is_broken_off and (
            filled == self.order.amount
            or (self._broken_off_at is not None and execution.time > self._broken_off_at)
        ):
            return Verdict.OTHER
        return Verdict.PLAIN

    def knows(self, update: OrderUpdate) -> bool:
        """True if `update`, which is of this order, says nothing that is not there."""
        ours = self.order.client_order_id
        if ours is not None and update.client_order_id not in {None, ours}:
            return False
        return self._said.join(Said.of(update)) == self._said

    def count(self, execution: Execution) -> Decimal:
        """Count a plain execution; returns its cost in quote units."""
        cost = execution.cost if self._spot else None
        if cost is None:
            cost = computed_cost(execution.price, execution.amount, self._terms)
        self.filled = _add(self.filled, execution.amount)
        self.cost = _add(self.cost, cost)
        if execution.time > self.updated_at:
            self.updated_at = execution.time
        if not self._is_ended:
            is_full = self._is_measured and self.filled == self.order.amount
            self.status = OrderStatus.CLOSED if is_full else OrderStatus.OPEN
        self._trades[execution.trade_id] = execution
        return cost


def _is_disputed(execution: Execution) -> bool:
    """True if the cost said is not (about) price * amount; a little is what venues cut."""
    computed = EXACT.multiply(execution.price, execution.amount)
    difference = EXACT.subtract(execution.cost or computed, computed).copy_abs()
    return difference > EXACT.multiply(computed, COST_TOLERANCE)


def _adds_nothing(execution: Execution, known: Execution) -> bool:
    return execution is known or (
        execution.price == known.price
        and execution.amount == known.amount
        and execution.side is known.side
        and execution.time == known.time
        and (execution.cost is None or execution.cost == known.cost)
        and (execution.fees is None or execution.fees == known.fees)
        and (execution.taker_or_maker is None or execution.taker_or_maker is known.taker_or_maker)
    )
