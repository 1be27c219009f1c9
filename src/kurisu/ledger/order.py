"""The order state machine: facts about one order join, and its state follows from them.

A record holds what is known of one order: what we placed, what the exchange said, and its
executions. Facts only ever join (`join_update`, `join_execution`, `merge`), and joining is
commutative, associative and idempotent. What an order *is* (`order_of`) is a function of the facts.
So neither order nor repetition of the messages can matter. Only one rule looks at what was there
first: of executions that cannot all be true because together they exceed the order, those that
came first count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from kurisu.domain.execution import Execution, Side
from kurisu.domain.order import Order, OrderStatus, OrderType, OrderUpdate
from kurisu.domain.position import MarketTerms
from kurisu.errors import LedgerRuleBroken
from kurisu.ledger.arithmetic import ZERO, add, total
from kurisu.ledger.execution import Core, KnownExecution, marked_trade_id

#: From which status an order may go where, in one step of its own. A record may also go from one
#: terminal status to another, and only so: when a message shows that the other came first by the
#: exchange's clock (`is_correction`).
TRANSITIONS: Final[Mapping[OrderStatus, frozenset[OrderStatus]]] = {
    OrderStatus.PENDING: frozenset(
        {OrderStatus.OPEN, OrderStatus.CLOSED, OrderStatus.CANCELED, OrderStatus.FAILED}
    ),
    OrderStatus.OPEN: frozenset({OrderStatus.CLOSED, OrderStatus.CANCELED, OrderStatus.FAILED}),
    OrderStatus.CLOSED: frozenset(),
    OrderStatus.CANCELED: frozenset(),
    OrderStatus.FAILED: frozenset(),
}

_HAS_LIMIT_PRICE: Final = frozenset({OrderType.LIMIT})
_HAS_STOP_PRICE: Final = frozenset({OrderType.STOP_LOSS, OrderType.TAKE_PROFIT})


@dataclass(frozen=True, slots=True)
class Latest:
    """A value that an exchange may change, and the time of the update that said it.

    time: None for an untimed update, which is older than every timed one.
    """

    time: datetime | None
    value: Decimal

    def join(self, other: Latest | None) -> Latest:
        """The later one; at one time the greater value, so that the choice is the same always."""
        if other is None:
            return self
        return max(self, other, key=_latest_key)


def _latest_key(latest: Latest) -> tuple[bool, datetime | None, Decimal]:
    return (latest.time is not None, latest.time, latest.value)


@dataclass(frozen=True, slots=True)
class Said:
    """What all updates of one order said together.

    heard: True once there was an update.
    latest_time: of all updates; None if none was timed.
    created_at: the earliest creation time said.
    amount, price, stop_price: as last said.
    greatest_amount: the largest amount ever said; what executions have to fit in.
    greatest_filled: the largest cumulative fill ever said.
    ended: how the order ended, and the earliest time said for it; one entry per status, sorted.
    least_filled_at_end: the smallest cumulative fill that an update with a terminal status said.
    latest_open: the latest time at which it was called open.
    sides, unknown_statuses: everything said.
    """

    heard: bool = False
    latest_time: datetime | None = None
    created_at: datetime | None = None
    amount: Latest | None = None
    price: Latest | None = None
    stop_price: Latest | None = None
    greatest_amount: Decimal | None = None
    greatest_filled: Decimal | None = None
    ended: tuple[tuple[OrderStatus, datetime | None], ...] = ()
    least_filled_at_end: Decimal | None = None
    latest_open: datetime | None = None
    sides: frozenset[Side] = frozenset()
    unknown_statuses: frozenset[str] = frozenset()

    @classmethod
    def of(cls, update: OrderUpdate) -> Said:
        """What one update says."""
        status, time = update.status, update.time
        is_end = status is not None and status.is_terminal

        def latest(value: Decimal | None) -> Latest | None:
            return None if value is None else Latest(time, value)

        return cls(
            heard=True,
            latest_time=time,
            created_at=update.created_at,
            amount=latest(update.amount),
            price=latest(update.price),
            stop_price=latest(update.stop_price),
            greatest_amount=update.amount,
            greatest_filled=update.filled,
            ended=((status, time),) if status is not None and is_end else (),
            least_filled_at_end=update.filled if is_end else None,
            latest_open=time if status is OrderStatus.OPEN else None,
            sides=frozenset() if update.side is None else frozenset({update.side}),
            unknown_statuses=(
                frozenset() if update.unknown_status is None else frozenset({update.unknown_status})
            ),
        )

    def join(self, other: Said) -> Said:
        """What both say. Commutative, associative, idempotent."""
        return Said(
            heard=self.heard or other.heard,
            latest_time=_latest(self.latest_time, other.latest_time),
            created_at=_earliest(self.created_at, other.created_at),
            amount=self.amount.join(other.amount) if self.amount else other.amount,
            price=self.price.join(other.price) if self.price else other.price,
            stop_price=(
                self.stop_price.join(other.stop_price) if self.stop_price else other.stop_price
            ),
            greatest_amount=_greatest(self.greatest_amount, other.greatest_amount),
            greatest_filled=_greatest(self.greatest_filled, other.greatest_filled),
            ended=_join_ends(self.ended, other.ended),
            least_filled_at_end=_least(self.least_filled_at_end, other.least_filled_at_end),
            latest_open=_latest(self.latest_open, other.latest_open),
            sides=self.sides | other.sides,
            unknown_statuses=self.unknown_statuses | other.unknown_statuses,
        )


@dataclass(frozen=True, slots=True)
class OrderRecord:
    """All that is known of one order.

    placed: the order as we wrote it; None while it is not (yet) ours, and its executions wait.
    client_order_id, exchange_order_id: as far as known; at least one.
    said: what the exchange said about it.
    executions: sorted by core.
    filled: sum of the executions that count; base units or contracts.
    """

    placed: Order | None = None
    client_order_id: str | None = None
    exchange_order_id: str | None = None
    said: Said = Said()
    executions: tuple[KnownExecution, ...] = ()
    filled: Decimal = ZERO

    @property
    def accepted(self) -> list[KnownExecution]:
        """The executions that count, as they happened."""
        return sorted(
            (known for known in self.executions if known.accepted), key=lambda k: k.order_key
        )

    @property
    def amount(self) -> Decimal | None:
        """As last said, else as placed, and never less than was filled; None if nobody said."""
        amount = self.said.amount.value if self.said.amount else None
        if amount is None and self.placed is not None:
            amount = self.placed.amount
        return None if amount is None else max(amount, self.filled)


def join_update(record: OrderRecord, update: OrderUpdate) -> OrderRecord:
    """What is known once an exchange has said `update` about the order of `record`."""
    return _settle(
        replace(
            record,
            client_order_id=record.client_order_id or update.client_order_id,
            exchange_order_id=record.exchange_order_id or update.exchange_order_id,
            said=record.said.join(Said.of(update)),
        )
    )


def join_execution(record: OrderRecord, execution: Execution, terms: MarketTerms) -> OrderRecord:
    """What is known once `execution` of the order of `record` has come."""
    return _settle(
        replace(
            record,
            exchange_order_id=record.exchange_order_id or execution.exchange_order_id,
            executions=_join_executions(record.executions, (KnownExecution.of(execution, terms),)),
        )
    )


def merge(left: OrderRecord, right: OrderRecord) -> OrderRecord:
    """One record of two that turn out to be about one order.

    Raises LedgerRuleBroken if both were placed, differently.
    """
    placed = left.placed or right.placed
    if left.placed is not None and right.placed is not None:
        if replace(left.placed, id=None) != replace(right.placed, id=None):
            raise LedgerRuleBroken(
                "client_order_id_names_one_order", f"{left.placed} and {right.placed}"
            )
        placed = right.placed if left.placed.id is None else left.placed
    return _settle(
        OrderRecord(
            placed=placed,
            client_order_id=left.client_order_id or right.client_order_id,
            exchange_order_id=left.exchange_order_id or right.exchange_order_id,
            said=left.said.join(right.said),
            executions=(executions := _join_executions(left.executions, right.executions)),
            filled=total(known.core.amount for known in executions if known.accepted),
        )
    )


def restore_record(
    order: Order, executions: Iterable[Execution], terms: MarketTerms
) -> OrderRecord:
    """The record of an order and its executions as they are stored.

    Less is stored than was known: not when an order ended, nor every version of a field. What is
    missing comes again when the exchange is asked again, and the same facts lead to the same state.
    A stored end is taken as the earliest, so that it stays final meanwhile. That a full order is
    closed follows from its executions and is not a fact of its own: an amount may yet grow.
    Raises LedgerRuleBroken, "filled_is_sum_of_executions", if the rows do not agree.
    """
    known = [
        KnownExecution.of(execution, terms).accept(execution.trade_id) for execution in executions
    ]
    filled = total(execution.core.amount for execution in known)
    if filled != order.filled:
        raise LedgerRuleBroken(
            "filled_is_sum_of_executions", f"{order.name}: {order.filled}, executions {filled}"
        )
    is_full = filled == order.amount
    is_said = order.status.is_terminal and not (order.status is OrderStatus.CLOSED and is_full)
    return OrderRecord(
        placed=as_placed(order),
        client_order_id=order.client_order_id,
        exchange_order_id=order.exchange_order_id,
        said=Said(
            heard=order.status is not OrderStatus.PENDING,
            latest_time=order.updated_at,
            ended=((order.status, None),) if is_said else (),
        ),
        executions=_join_executions((), known),
        filled=filled,
    )


def as_placed(order: Order) -> Order:
    """The order as it was before anything happened to it: what is ours to say."""
    return replace(
        order,
        exchange_order_id=None if order.client_order_id else order.exchange_order_id,
        filled=ZERO,
        cost=ZERO,
        status=OrderStatus.PENDING,
        updated_at=order.created_at,
    )


def order_of(record: OrderRecord, terms: MarketTerms) -> Order | None:
    """The order as it stands; None while it is not ours."""
    placed, said, amount = record.placed, record.said, record.amount
    if placed is None or amount is None:
        return None
    executions = [known for known in record.executions if known.accepted]
    times = [placed.created_at, *(known.times[-1] for known in executions)]
    if said.latest_time is not None:
        times.append(said.latest_time)
    price, stop_price = placed.price, placed.stop_price
    if said.price and placed.type in _HAS_LIMIT_PRICE:
        price = said.price.value
    if said.stop_price and placed.type in _HAS_STOP_PRICE:
        stop_price = said.stop_price.value
    return replace(
        placed,
        client_order_id=record.client_order_id,
        exchange_order_id=record.exchange_order_id,
        amount=amount,
        price=price,
        stop_price=stop_price,
        filled=record.filled,
        cost=total(known.cost(terms) for known in executions),
        status=status_of(record),
        updated_at=max(times),
    )


def status_of(record: OrderRecord) -> OrderStatus:
    """The status that follows from the facts.

    An order ends once, by the exchange's clock: of the ends that are known (those said, and being
    full), the earliest counts. An end without a time counts as earliest. Ends at one time: the one
    that fits what was filled.
    """
    is_full = is_measured(record) and record.filled == record.amount
    ends = dict(record.said.ended)
    if is_full:
        full_at = max(known.times[0] for known in record.executions if known.accepted)
        said_at = ends.get(OrderStatus.CLOSED, full_at)
        ends[OrderStatus.CLOSED] = None if said_at is None else min(full_at, said_at)
    if ends:
        return min(
            ends,
            key=lambda status: (
                ends[status] is not None,
                ends[status],
                (status is OrderStatus.CLOSED) != is_full,
                status,
            ),
        )
    is_known = record.said.heard or record.exchange_order_id is not None or record.filled
    return OrderStatus.OPEN if is_known else OrderStatus.PENDING


def is_measured(record: OrderRecord) -> bool:
    """False where the amount is only what was filled of it: of a market order that somebody else
    placed by its cost. That it is full then says nothing; the exchange says how it ended."""
    placed = record.placed
    return (
        placed is None
        or placed.client_order_id is not None
        or placed.type is not OrderType.MARKET
        or record.said.amount is not None
        or not record.said.heard
    )


def is_correction(before: OrderStatus, after: OrderStatus) -> bool:
    """True if a record that went from `before` to `after` took back an end.

    That happens when a message that came late tells of another end that was earlier by the
    exchange's clock, or of an amount that makes a full order not full.
    """
    return before != after and after not in TRANSITIONS[before]


def check_transition(before: OrderStatus, after: OrderStatus) -> None:
    """For whoever moves an order themselves, as a simulated exchange does.

    Raises LedgerRuleBroken, "terminal_is_final" or "status_moves_forward".
    """
    if after not in TRANSITIONS[before]:
        rule = "terminal_is_final" if before.is_terminal else "status_moves_forward"
        raise LedgerRuleBroken(rule, f"{before} -> {after}")


def room(record: OrderRecord) -> Decimal | None:
    """The largest amount that executions may add up to; None while the order is not ours."""
    placed, said = record.placed, record.said
    if placed is None:
        return None
    known = [placed.amount, said.greatest_amount]
    if placed.client_order_id is None:
        # Of somebody else: if it was placed by its cost, all that is known of its amount is how
        # much of it was filled.
        known.append(said.greatest_filled)
    return max(amount for amount in known if amount is not None)


def _settle(record: OrderRecord) -> OrderRecord:
    """Accepts what fits and did not count yet, in order of time."""
    limit, placed = room(record), record.placed
    waiting = [known for known in record.executions if not known.accepted]
    if placed is None or limit is None or not waiting:
        return record
    filled = record.filled
    taken = {known.stored_trade_id for known in record.executions}
    accepted: dict[Core, KnownExecution] = {}
    for known in sorted(waiting, key=lambda k: k.order_key):
        reached = add(filled, known.core.amount)
        if known.core.side is not placed.side or reached > limit:
            continue
        trade_id = known.core.trade_id
        stored = marked_trade_id(known.core) if trade_id in taken else trade_id
        taken.add(stored)
        filled = reached
        accepted[known.core] = known.accept(stored)
    return replace(
        record,
        executions=tuple(accepted.get(known.core, known) for known in record.executions),
        filled=filled,
    )


def _join_executions(
    left: Iterable[KnownExecution], right: Iterable[KnownExecution]
) -> tuple[KnownExecution, ...]:
    right = tuple(right)
    if not right:
        return tuple(left)
    by_core = {known.core: known for known in left}
    for known in right:
        before = by_core.get(known.core)
        by_core[known.core] = known if before is None else before.join(known)
    return tuple(by_core[core] for core in sorted(by_core))


def _join_ends(
    left: tuple[tuple[OrderStatus, datetime | None], ...],
    right: tuple[tuple[OrderStatus, datetime | None], ...],
) -> tuple[tuple[OrderStatus, datetime | None], ...]:
    if left == right:
        return left
    ends = dict(left)
    for status, time in right:
        ends[status] = _earliest(ends.get(status), time)
    return tuple(sorted(ends.items(), key=lambda end: end[0]))


def _earliest(left: datetime | None, right: datetime | None) -> datetime | None:
    return min((time for time in (left, right) if time is not None), default=None)


def _latest(left: datetime | None, right: datetime | None) -> datetime | None:
    return max((time for time in (left, right) if time is not None), default=None)


def _greatest(left: Decimal | None, right: Decimal | None) -> Decimal | None:
    return max((value for value in (left, right) if value is not None), default=None)


def _least(left: Decimal | None, right: Decimal | None) -> Decimal | None:
    return min((value for value in (left, right) if value is not None), default=None)
