"""The intake: order updates and executions of one account and market, from any source.

REST and WebSocket may say the same thing twice, in any order, in part, before we know the order or
long after it ended. The intake finds the order that a record is about, lets it join what is known,
and says what changed: which rows to write and what does not add up. It is a fold over values; the
only thing here that changes is which record stands for which order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from kurisu.domain.execution import Execution
from kurisu.domain.order import Order, OrderStatus, OrderUpdate
from kurisu.domain.position import MarketTerms
from kurisu.errors import LedgerRuleBroken
from kurisu.ledger.events import EventType, RiskEvent, Severity
from kurisu.ledger.execution import KnownExecution, in_order_of_time
from kurisu.ledger.findings import conditions_of, events_of, trade_id_reused
from kurisu.ledger.order import (
    OrderRecord,
    as_placed,
    is_correction,
    join_execution,
    join_update,
    merge,
    order_of,
    restore_record,
)

#: Orders that are not ours and yet talked about. More than that means that the intake is fed with
#: an account on which somebody else trades; drop them with `forget` or give them an account.
UNKNOWN_ORDERS_LIMIT: Final = 10_000


class Flag(StrEnum):
    """What is to be said of one step, beside what changed; depends on what was known before it.

    NOTHING_NEW: a repetition; nothing changed.
    WAITING: the order is not (yet) ours; the record waits under the exchange's order id.
    HELD: an execution that does not fit its order; kept, not applied.
    AFTER_END: an execution of an order that was over when it came; applied, the status stays.
    OLDER: an update older than one that was there; it adds only what cannot grow old.
    REOPEN_IGNORED: an update that calls an order open which was over when it came.
    CORRECTED: an end was taken back, because another was earlier by the exchange's clock.
    REFUSED: ids that belong to two orders; nothing was applied.
    """

    NOTHING_NEW = "nothing_new"
    WAITING = "waiting"
    HELD = "held"
    AFTER_END = "after_end"
    OLDER = "older"
    REOPEN_IGNORED = "reopen_ignored"
    CORRECTED = "corrected"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step changed; everything a store has to write.

    before, order: the order's row before and after; None while the order is not ours.
    inserted: executions that count from now on, as rows (cost filled in, trade id unique in the
        order), in order of time.
    completed: executions that were there and now say more (a fee, mostly), as rows.
    events: what has become true by this step and stays true; write them once.
    conditions: what does not add up in this order now; may be over with the next step.
    flags: see `Flag`.
    """

    before: Order | None = None
    order: Order | None = None
    inserted: tuple[Execution, ...] = ()
    completed: tuple[Execution, ...] = ()
    events: frozenset[RiskEvent] = frozenset()
    conditions: frozenset[RiskEvent] = frozenset()
    flags: frozenset[Flag] = frozenset()


class Intake:
    """The orders of one account and market, and everything said about them.

    Keyed by ids as they are scoped: exchanges give order ids and trade ids per market. One intake
    has one strategy's or one account's orders, as the caller wants positions apart.
    """

    __slots__ = (
        "_by_client", "_by_exchange", "_next", "_orders_of_trade", "_records", "_refused",
        "_unknown", "terms",
    )  # fmt: skip

    def __init__(self, terms: MarketTerms) -> None:
        self.terms = terms
        self._next = 0
        self._records: dict[int, OrderRecord] = {}
        self._by_client: dict[str, int] = {}
        self._by_exchange: dict[str, int] = {}
        # Trade id -> records (of orders of ours) with an execution under it.
        self._orders_of_trade: dict[str, set[int]] = {}
        # Keys of records whose order is not (yet) ours.
        self._unknown: set[int] = set()
        self._refused: set[RiskEvent] = set()

    # What comes in

    def place(self, order: Order) -> Outcome:
        """An order of ours, written before it is sent; or the order of somebody else, adopted.

        Only its terms count, not how far it got. Records that waited for it join now.
        Raises LedgerRuleBroken if its client id names another order already.
        """
        self._check_market(order.market.symbol)
        placed = as_placed(order)
        return self._join(
            OrderRecord(
                placed=placed,
                client_order_id=order.client_order_id,
                exchange_order_id=order.exchange_order_id,
            )
        )

    def restore(self, order: Order, executions: Iterable[Execution]) -> Outcome:
        """An order and its executions as they were stored.

        The outcome has only what is news to the store: what waited for the order and joins now.
        """
        self._check_market(order.market.symbol)
        record = restore_record(order, executions, self.terms)
        outcome = self._join(record)
        stored = {known.stored_trade_id for known in record.executions}
        return replace(
            outcome,
            inserted=tuple(row for row in outcome.inserted if row.trade_id not in stored),
            events=outcome.events - events_of(record, self.terms),
        )

    def load(self, record: OrderRecord) -> None:
        """A record as it was kept, whole. Nothing is decided; no other record may have its ids."""
        key = self._next
        self._next += 1
        self._index(key, record)

    def update(self, update: OrderUpdate) -> Outcome:
        """What an exchange said about an order.

        Binance answers a cancel with an id of the request in the place of the order's. An order
        whose exchange id is known keeps the client id that it has, unless the other one is that of
        another order of ours.
        """
        self._check_market(update.symbol)
        known = self.record(update.exchange_order_id or "")
        if (
            known is not None
            and known.placed is not None
            and update.client_order_id not in {None, known.client_order_id}
            and not self._is_ours(update.client_order_id)
        ):
            update = replace(update, client_order_id=None)
        empty = OrderRecord(
            client_order_id=update.client_order_id, exchange_order_id=update.exchange_order_id
        )
        outcome = self._join(join_update(empty, update))
        flags = outcome.flags | flags_of(update, outcome.before)
        return replace(outcome, flags=flags)

    def execute(self, execution: Execution) -> Outcome:
        """A fill that an exchange reported."""
        self._check_market(execution.symbol)
        empty = OrderRecord(exchange_order_id=execution.exchange_order_id)
        outcome = self._join(join_execution(empty, execution, self.terms))
        if outcome.before and outcome.before.status.is_terminal and outcome.inserted:
            return replace(outcome, flags=outcome.flags | {Flag.AFTER_END})
        return outcome

    def forget(self, exchange_order_id: str) -> None:
        """Drops what waits for an order that is not ours. Raises LedgerRuleBroken if it is ours."""
        key = self._by_exchange.get(exchange_order_id)
        if key is None:
            return
        if self._records[key].placed is not None:
            raise LedgerRuleBroken("orders_of_ours_stay", exchange_order_id)
        self._unknown.discard(key)
        self._by_exchange.pop(exchange_order_id)
        self._by_client.pop(self._records.pop(key).client_order_id or "", None)

    # What stands

    def orders(self) -> tuple[Order, ...]:
        """Our orders, by time of creation and name."""
        orders = (order_of(record, self.terms) for record in self._records.values())
        return tuple(sorted((o for o in orders if o), key=lambda o: (o.created_at, o.name)))

    def order(self, name: str) -> Order | None:
        """The order of a client id, else of an exchange's id; None if it is not ours."""
        key = self._by_client.get(name, self._by_exchange.get(name))
        return None if key is None else order_of(self._records[key], self.terms)

    def executions(self, name: str | None = None) -> tuple[Execution, ...]:
        """Executions that count, of one order or of all of ours, in order of time."""
        return tuple(
            in_order_of_time(
                self._row(record, known)
                for record in self._records.values()
                if record.placed is not None
                and (name is None or name in {record.client_order_id, record.exchange_order_id})
                for known in record.accepted
            )
        )

    def records(self) -> tuple[OrderRecord, ...]:
        """Everything that is known, as `load` takes it."""
        return tuple(self._records.values())

    def record(self, exchange_order_id: str) -> OrderRecord | None:
        """What is known of the order of that exchange's id."""
        key = self._by_exchange.get(exchange_order_id)
        return None if key is None else self._records[key]

    def waiting(self) -> tuple[OrderRecord, ...]:
        """What was said of orders that are not (yet) ours, by the exchange's order id."""
        return tuple(sorted((self._records[key] for key in self._unknown), key=_name))

    def events(self) -> frozenset[RiskEvent]:
        """Every event so far: what the outcomes' events add up to."""
        found = set(self._refused)
        for key, record in self._records.items():
            found |= events_of(record, self.terms) | self._reused(key, record)
        return frozenset(found)

    def conditions(self) -> frozenset[RiskEvent]:
        """What does not add up now."""
        found = {order_unknown(record) for record in self.waiting()}
        for record in self._records.values():
            found |= conditions_of(record)
        return frozenset(found)

    # How

    def _is_ours(self, client_order_id: str | None) -> bool:
        key = self._by_client.get(client_order_id or "")
        return key is not None and self._records[key].placed is not None

    def _join(self, news: OrderRecord) -> Outcome:
        """Finds the records that `news` is about, and makes one of them all."""
        keys = {
            key
            for key in (
                self._by_client.get(news.client_order_id or ""),
                self._by_exchange.get(news.exchange_order_id or ""),
            )
            if key is not None
        }
        found = [self._records[key] for key in sorted(keys)]
        if any(_contradict(one, other) for one in (news, *found) for other in found):
            return self._refuse(news, found)
        record = news
        for one in found:
            record = merge(one, record)
        before = next((one for one in found if one.placed is not None), None)
        events_before = self._events_at(keys, found)
        if record.placed is None and not keys and len(self._unknown) >= UNKNOWN_ORDERS_LIMIT:
            raise LedgerRuleBroken(
                "unknown_orders_bounded", f"{len(self._unknown)} orders are not ours"
            )
        ours = keys - self._unknown
        key = min(ours or keys, default=self._next)
        for gone in keys - {key}:
            del self._records[gone]
            self._unknown.discard(gone)
        self._next = max(self._next, key + 1)
        self._index(key, record)
        return self._outcome(before, record, found, events_before, self._events_at([key], [record]))

    def _index(self, key: int, record: OrderRecord) -> None:
        self._records[key] = record
        if record.client_order_id:
            self._by_client[record.client_order_id] = key
        if record.exchange_order_id:
            self._by_exchange[record.exchange_order_id] = key
        if record.placed is None:
            self._unknown.add(key)
        else:
            self._unknown.discard(key)
            for known in record.executions:
                self._orders_of_trade.setdefault(known.core.trade_id, set()).add(key)

    def _outcome(
        self,
        before: OrderRecord | None,
        record: OrderRecord,
        found: list[OrderRecord],
        events_before: frozenset[RiskEvent],
        events: frozenset[RiskEvent],
    ) -> Outcome:
        known_before = {} if before is None else {k.core: k for k in before.executions}
        inserted, completed = [], []
        for known in record.accepted if record.placed is not None else ():
            earlier = known_before.get(known.core)
            if earlier is None or not earlier.accepted:
                inserted.append(self._row(record, known))
            elif known is not earlier and known != earlier:
                row = self._row(record, known)
                if row != self._row(record, earlier):
                    completed.append(row)
        order_before = None if before is None else order_of(before, self.terms)
        order = order_of(record, self.terms)
        flags = set()
        if found == [record]:
            flags.add(Flag.NOTHING_NEW)
        if record.placed is None:
            flags.add(Flag.WAITING)
        elif any(
            not known.accepted and known != known_before.get(known.core)
            for known in record.executions
        ):
            flags.add(Flag.HELD)
        if order_before and order and is_correction(order_before.status, order.status):
            flags.add(Flag.CORRECTED)
        return Outcome(
            before=order_before,
            order=order,
            inserted=tuple(inserted),
            completed=tuple(completed),
            events=events - events_before,
            conditions=conditions_of(record)
            if record.placed is not None
            else frozenset({order_unknown(record)}),
            flags=frozenset(flags),
        )

    def _refuse(self, news: OrderRecord, found: list[OrderRecord]) -> Outcome:
        """Raises LedgerRuleBroken if it is we who contradict ourselves."""
        if news.placed is not None:
            raise LedgerRuleBroken(
                "client_order_id_names_one_order",
                f"{news.placed}; there already: {[_ids(record) for record in found]}",
            )
        event = RiskEvent.of(
            EventType.ORDER_IDENTITY_CONTRADICTED,
            Severity.CRITICAL,
            rule="ids_name_one_order",
            record=_ids(news),
            orders="; ".join(sorted(_ids(record) for record in found)),
        )
        new = frozenset() if event in self._refused else frozenset({event})
        self._refused.add(event)
        return Outcome(events=new, flags=frozenset({Flag.REFUSED}))

    def _events_at(self, keys: Iterable[int], records: list[OrderRecord]) -> frozenset[RiskEvent]:
        found: frozenset[RiskEvent] = frozenset()
        for key, record in zip(sorted(keys), records, strict=True):
            found |= events_of(record, self.terms) | self._reused(key, record)
        return found

    def _reused(self, key: int, record: OrderRecord) -> frozenset[RiskEvent]:
        """Trade ids of this order that other orders of ours have, too."""
        if record.placed is None:
            return frozenset()
        return frozenset(
            trade_id_reused((record.placed.name, known), (other.placed.name, other_known))
            for known in record.executions
            for other_key in self._orders_of_trade.get(known.core.trade_id, ())
            if other_key != key
            for other in (self._records[other_key],)
            if other.placed is not None
            for other_known in other.executions
            if other_known.core.trade_id == known.core.trade_id
        )

    def _row(self, record: OrderRecord, known: KnownExecution) -> Execution:
        return known.view(record.exchange_order_id or _name(record), self.terms)

    def _check_market(self, symbol: str | None) -> None:
        if symbol is not None and symbol != self.terms.name.symbol:
            raise LedgerRuleBroken(
                "intake_has_one_market", f"{symbol} is not {self.terms.name.symbol}"
            )


def flags_of(update: OrderUpdate, before: Order | None) -> frozenset[Flag]:
    """What is to be said of an update, by the order as it was."""
    flags = set()
    if before and update.time is not None and update.time < before.updated_at:
        flags.add(Flag.OLDER)
    if before and before.status.is_terminal and update.status is OrderStatus.OPEN:
        flags.add(Flag.REOPEN_IGNORED)
    return frozenset(flags)


def _contradict(one: OrderRecord, other: OrderRecord) -> bool:
    """True if both carry a client's id or both an exchange's, and not the same one."""
    return (
        (one.client_order_id or other.client_order_id)
        != (other.client_order_id or one.client_order_id)
    ) or (
        (one.exchange_order_id or other.exchange_order_id)
        != (other.exchange_order_id or one.exchange_order_id)
    )


def order_unknown(record: OrderRecord) -> RiskEvent:
    """Something was said of an order that is not (yet) ours."""
    return RiskEvent.of(
        EventType.ORDER_UNKNOWN,
        Severity.WARNING,
        client_order_id=record.client_order_id,
        exchange_order_id=record.exchange_order_id,
        executions=str(len(record.executions)),
    )


def _name(record: OrderRecord) -> str:
    return record.exchange_order_id or record.client_order_id or ""


def _ids(record: OrderRecord) -> str:
    return f"client {record.client_order_id}, exchange {record.exchange_order_id}"
