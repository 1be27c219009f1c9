"""What an exchange reports of an account, into the ledger: orders of ours, and those of others.

An order that the ledger does not know was placed past it: on the exchange's own page, by another
program. It is adopted under the exchange's id, and its client id is left alone, because other
programs use theirs again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from kurisu.domain.execution import Execution
from kurisu.domain.order import Order, OrderStatus, OrderType, OrderUpdate
from kurisu.errors import LedgerRuleBroken
from kurisu.exchange.private_port import ReportedOrder, Unreadable
from kurisu.ledger.events import RiskEvent
from kurisu.store.accounts import Account
from kurisu.store.markets import Market
from kurisu.store.patience import patiently
from kurisu.store.store import Store

#: Orders that are adopted in one transaction.
_AT_ONCE: Final = 1_000


@dataclass(slots=True)
class TakenIn:
    """What became of reports, as counts.

    orders: reported. adopted: of these, new to the ledger. executions: reported. new: of these,
    such that count from now on. repeated: that said nothing new. completed: that were there and
    now say more. waiting: whose order is not known. held: that do not fit their order.
    events: risk events that are new. unreadable: records that the ledger cannot take.
    """

    orders: int = 0
    adopted: int = 0
    executions: int = 0
    new: int = 0
    completed: int = 0
    waiting: int = 0
    held: int = 0
    events: list[RiskEvent] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)

    @property
    def repeated(self) -> int:
        return max(0, self.executions - self.new - self.completed - self.waiting - self.held)


class Intake:
    """Takes reports of one account and market into the ledger. Made by `open`.

    seen: exchange ids of the orders that were reported.
    """

    def __init__(self, store: Store, account: Account, market: Market) -> None:
        self._store = store
        self._account = account
        self.market = market
        self._known: set[str] = set()
        self.seen: set[str] = set()
        self.taken = TakenIn()

    @classmethod
    async def open(cls, store: Store, account: Account, market: Market) -> Intake:
        """Knows the orders that the ledger has."""
        made = cls(store, account, market)
        orders = await patiently(store.ledger.orders, account, market=market)
        made._known = {o.exchange_order_id for o in orders if o.exchange_order_id}
        return made

    async def orders(self, reported: Sequence[ReportedOrder]) -> None:
        """Orders, and the fills that came with them. Raises DatabaseError."""
        self.taken.orders += len(reported)
        self.seen |= {r.update.exchange_order_id for r in reported if r.update.exchange_order_id}
        ours = await self._ours_without_id(reported)
        # Last the one that says the most: an order is adopted with its type and prices as they are.
        strangers = {
            report.update.exchange_order_id: report
            for report in sorted(reported, key=_said)
            if report.update.exchange_order_id not in self._known
            and report.update.client_order_id not in ours
        }
        left_out = await self._adopt(strangers)
        messages: list[OrderUpdate | Execution] = []
        executions = 0
        for report in reported:
            update = report.update
            if update.client_order_id not in ours:
                if update.exchange_order_id in left_out:
                    continue
                update = replace(update, client_order_id=None)
            messages.append(update)
            messages.extend(report.executions)
            executions += len(report.executions)
        await self._apply(messages, executions)

    async def executions(self, reported: Sequence[Execution]) -> None:
        """Fills. Raises DatabaseError."""
        await self._apply(reported, len(reported))

    async def forgotten(self, names: Iterable[str], at: datetime) -> None:
        """Orders that ended without a fill, as far as anybody knows. Raises DatabaseError."""
        ended = [
            OrderUpdate(
                exchange_order_id=name, time=at, status=OrderStatus.CANCELED, filled=Decimal(0)
            )
            for name in names
        ]
        await self._apply(ended, 0)

    def cannot_read(self, records: Iterable[Unreadable]) -> None:
        self.taken.unreadable.extend(records)

    async def _ours_without_id(self, reported: Sequence[ReportedOrder]) -> set[str | None]:
        """Client ids of orders of ours whose id at the exchange is not known yet.

        Asked for after the exchange was: an order that it reports was stored before it was sent.
        """
        if all(r.update.exchange_order_id in self._known for r in reported):
            return set()
        found = await patiently(
            self._store.ledger.orders,
            self._account,
            market=self.market,
            statuses=(OrderStatus.PENDING, OrderStatus.FAILED),
        )
        return {o.client_order_id for o in found if o.exchange_order_id is None}

    async def _adopt(self, reports: Mapping[str | None, ReportedOrder]) -> set[str | None]:
        """Make orders of somebody else the ledger's; returns ids of those that cannot be."""
        left_out: set[str | None] = set()
        orders = []
        for name, report in reports.items():
            try:
                orders.append(adopted(report, self._account, self.market))
            except LedgerRuleBroken as error:
                left_out.add(name)
                # One by cost of which nothing was filled has no amount, and moved nothing.
                if report.update.amount is not None or report.update.filled != 0:
                    self.taken.unreadable.append(Unreadable(f"order {name}", str(error)))
        for at in range(0, len(orders), _AT_ONCE):
            part = orders[at : at + _AT_ONCE]
            try:
                await patiently(self._store.ledger.place_many, part)
                self.taken.adopted += len(part)
            except LedgerRuleBroken:
                # One of them is: written by somebody else since this began, say.
                left_out |= await self._adopt_one_by_one(part)
        self._known |= {order.exchange_order_id or "" for order in orders} - left_out
        return left_out

    async def _adopt_one_by_one(self, orders: Sequence[Order]) -> set[str | None]:
        left_out: set[str | None] = set()
        for order in orders:
            name = order.exchange_order_id
            there = await patiently(
                self._store.ledger.order, self._account, exchange_order_id=name, market=self.market
            )
            if there is not None:
                continue
            try:
                await patiently(self._store.ledger.place, order)
                self.taken.adopted += 1
            except LedgerRuleBroken as error:
                left_out.add(name)
                self.taken.unreadable.append(Unreadable(f"order {name}", str(error)))
        return left_out

    async def _apply(self, messages: Sequence[OrderUpdate | Execution], executions: int) -> None:
        if not messages:
            return
        applied = await patiently(
            self._store.ledger.apply_many, self._account, messages, market=self.market
        )
        taken = self.taken
        taken.executions += executions
        taken.new += applied.inserted
        taken.completed += applied.corrected
        taken.waiting += applied.waiting
        taken.held += applied.held
        taken.events += applied.events


def _said(report: ReportedOrder) -> int:
    """How many of an order's terms a report has."""
    update = report.update
    terms = (report.type, update.side, update.amount, update.price, update.stop_price)
    return sum(term is not None for term in (*terms, update.created_at))


def adopted(report: ReportedOrder, account: Account, market: Market) -> Order:
    """The order of somebody else as the ledger has it. Raises LedgerRuleBroken."""
    update = report.update
    created_at = update.created_at or update.time
    amount = update.amount
    if amount is None and update.status is not None and update.status.is_terminal:
        # Placed by its cost; what was filled of it is its amount when it is over. Until then its
        # fills wait.
        amount = update.filled or None
    if update.side is None or not amount or created_at is None:
        raise LedgerRuleBroken(
            "order_is_complete",
            f"order {update.exchange_order_id!r} needs side, amount and a time; it has "
            f"{update.side}, {amount}, {created_at}",
        )
    type_ = report.type or (OrderType.MARKET if update.price is None else OrderType.LIMIT)
    if type_ is OrderType.LIMIT and update.price is None:
        type_ = OrderType.MARKET
    return Order(
        market=market.name,
        side=update.side,
        type=type_,
        amount=amount,
        created_at=created_at,
        updated_at=created_at,
        exchange_order_id=update.exchange_order_id,
        price=None if type_ is OrderType.MARKET else update.price,
        stop_price=update.stop_price
        if type_ in (OrderType.STOP_LOSS, OrderType.TAKE_PROFIT)
        else None,
        account_id=account.id,
    )
