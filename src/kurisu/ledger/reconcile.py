"""Reconciliation: the ledger beside what the exchange says, order by order, fill by fill, asset by
asset.

Nothing is changed here, and nothing is decided: a difference is a value that says what stands on
either side. What the exchange does not say (None) is no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final, TypeAlias

from kurisu.domain.execution import Execution
from kurisu.domain.order import Order, OrderStatus, OrderUpdate
from kurisu.ledger.arithmetic import ZERO, magnitude, product, subtract
from kurisu.ledger.events import EventType, RiskEvent, Severity, as_text
from kurisu.ledger.execution import COST_TOLERANCE, core_of, fees_text


class Subject(StrEnum):
    """What a difference is about."""

    ORDER = "order"
    EXECUTION = "execution"
    BALANCE = "balance"


class Kind(StrEnum):
    """MISSING: the exchange has it, the ledger has not. EXTRA: the other way round. DIFFERENT:
    both have it, and a field of it differs."""

    MISSING = "missing"
    EXTRA = "extra"
    DIFFERENT = "different"


_Inside: TypeAlias = Callable[[datetime | None], bool]

#: How bad a difference is. Only an order's terms move nothing by themselves.
#: Of what one fill of a contract realised; most venues book eight digits.
REALIZED_STEP: Final = Decimal("1e-8")
_SEVERITY: Final[Mapping[Subject, Severity]] = {
    Subject.ORDER: Severity.WARNING,
    Subject.EXECUTION: Severity.CRITICAL,
    Subject.BALANCE: Severity.CRITICAL,
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that does not agree.

    market: as `exchange:symbol`; "" for a balance.
    key: the order's id at the exchange (else ours), "order/trade" for a fill, an asset.
    field: what differs; "" where the whole record is missing or extra.
    ledger, exchange: what stands on either side, as text, numbers in plain spelling; None where
        there is nothing.
    """

    subject: Subject
    kind: Kind
    market: str
    key: str
    field: str = ""
    ledger: str | None = None
    exchange: str | None = None

    @property
    def severity(self) -> Severity:
        return _SEVERITY[self.subject]

    @property
    def event(self) -> RiskEvent:
        """The difference as a risk event; equal differences are one event."""
        return RiskEvent.of(
            EventType.RECONCILIATION_DIFFERENCE,
            self.severity,
            subject=self.subject,
            kind=self.kind,
            market=self.market or None,
            key=self.key,
            field=self.field or None,
            ledger=self.ledger,
            exchange=self.exchange,
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared, and what does not agree.

    orders, executions, balances: how many were looked at, those of either side together.
    differences: sorted by subject, kind, market and key.
    """

    orders: int = 0
    executions: int = 0
    balances: int = 0
    differences: tuple[Difference, ...] = field(default=())

    @property
    def agrees(self) -> bool:
        return not self.differences

    def join(self, other: Comparison) -> Comparison:
        """Both together."""
        return Comparison(
            self.orders + other.orders,
            self.executions + other.executions,
            self.balances + other.balances,
            tuple(sorted((*self.differences, *other.differences), key=_key)),
        )


def compare_market(
    market: str,
    ledger: tuple[Iterable[Order], Iterable[Execution]],
    exchange: tuple[Iterable[OrderUpdate], Iterable[Execution]],
    since: datetime | None = None,
    until: datetime | None = None,
) -> Comparison:
    """Orders and fills of one account in one market.

    since, until: inclusive; the stretch of which the exchange told everything. Both sides may have
    more, and should: an order is looked for among all of the other side's. What lies outside is
    neither missing nor extra, but what both have is compared wherever it lies.
    """

    def inside(time: datetime | None) -> bool:
        return time is None or (
            (since is None or time >= since) and (until is None or time <= until)
        )

    orders, order_differences = _compare_orders(market, ledger[0], exchange[0], inside)
    executions, execution_differences = _compare_executions(market, ledger[1], exchange[1], inside)
    return Comparison(
        orders, executions, 0, tuple(sorted((*order_differences, *execution_differences), key=_key))
    )


def _key(difference: Difference) -> tuple[str, ...]:
    return (
        difference.subject, difference.kind, difference.market, difference.key, difference.field,
        difference.ledger or "", difference.exchange or "",
    )  # fmt: skip


def compare_balances(
    ledger: Mapping[str, Decimal],
    exchange: Mapping[str, Decimal],
    contract_fills: Mapping[str, int] | None = None,
) -> Comparison:
    """Totals by asset, in units of the asset. An asset that is not there has zero.

    contract_fills: how many fills of contracts were settled in an asset. The exchange books what
    each of them realised with a few digits, and the ledger with all.
    """
    assets = {*ledger, *exchange}
    fills = contract_fills or {}
    differences = [
        Difference(
            Subject.BALANCE,
            Kind.DIFFERENT,
            "",
            asset,
            "total",
            as_text(ledger.get(asset, ZERO)),
            as_text(exchange.get(asset, ZERO)),
        )
        for asset in assets
        if magnitude(subtract(ledger.get(asset, ZERO), exchange.get(asset, ZERO)))
        > product(Decimal(fills.get(asset, 0)), REALIZED_STEP)
    ]
    return Comparison(balances=len(assets), differences=tuple(sorted(differences, key=_key)))


def corrections(
    ledger: Mapping[str, Decimal], exchange: Mapping[str, Decimal]
) -> dict[str, Decimal]:
    """By how much each total of the ledger has to move to be the exchange's."""
    moves = {
        asset: subtract(exchange.get(asset, ZERO), ledger.get(asset, ZERO))
        for asset in sorted({*ledger, *exchange})
    }
    return {asset: amount for asset, amount in moves.items() if amount}


def _compare_orders(
    market: str, ledger: Iterable[Order], exchange: Iterable[OrderUpdate], inside: _Inside
) -> tuple[int, list[Difference]]:
    by_exchange_id: dict[str, Order] = {}
    by_client_id: dict[str, Order] = {}
    unmatched: dict[int, Order] = {}
    for order in ledger:
        unmatched[id(order)] = order
        if order.exchange_order_id:
            by_exchange_id[order.exchange_order_id] = order
        elif order.client_order_id:
            by_client_id[order.client_order_id] = order
    found: list[Difference] = []
    looked_at = 0
    for said in exchange:
        ours = by_exchange_id.get(said.exchange_order_id or "")
        if ours is None:
            ours = by_client_id.get(said.client_order_id or "")
        if ours is not None:
            looked_at += 1
            unmatched.pop(id(ours), None)
            found += _order_differences(market, ours, said)
        elif inside(said.created_at) and not _is_nothing(said):
            looked_at += 1
            key = said.exchange_order_id or said.client_order_id or ""
            text = _update_text(said)
            found.append(Difference(Subject.ORDER, Kind.MISSING, market, key, exchange=text))
    for order in unmatched.values():
        # The exchange need not know an order that it rejected, or that never reached it; and it
        # forgets soon, on many venues, those that were canceled without a fill.
        is_forgotten = order.status is OrderStatus.FAILED or (
            order.status is OrderStatus.CANCELED and not order.filled
        )
        if is_forgotten or not inside(order.created_at):
            continue
        looked_at += 1
        key = order.exchange_order_id or order.name
        text = f"{order.side} {as_text(order.amount)} {order.status}"
        found.append(Difference(Subject.ORDER, Kind.EXTRA, market, key, ledger=text))
    return looked_at, found


def _is_nothing(said: OrderUpdate) -> bool:
    """An order by its cost that ended without a fill has no amount, and no place in the ledger."""
    is_over = said.status is not None and said.status.is_terminal
    return is_over and said.amount is None and said.filled == ZERO


def _order_differences(market: str, order: Order, said: OrderUpdate) -> Iterator[Difference]:
    fields: tuple[tuple[str, object, object], ...] = (
        ("status", order.status, said.status),
        ("side", order.side, said.side),
        ("amount", order.amount, said.amount),
        ("filled", order.filled, said.filled),
        # Exchanges show the average, or the last trade, as the price of a market order.
        ("price", order.price, said.price if order.price is not None else None),
        ("stop_price", order.stop_price, said.stop_price if order.stop_price is not None else None),
        ("exchange_order_id", order.exchange_order_id, said.exchange_order_id),
    )
    for name, ours, theirs in fields:
        if theirs is not None and ours != theirs:
            yield Difference(
                Subject.ORDER,
                Kind.DIFFERENT,
                market,
                order.exchange_order_id or order.name,
                name,
                None if ours is None else as_text(ours),
                as_text(theirs),
            )


def _update_text(said: OrderUpdate) -> str:
    parts = (said.side, said.amount, said.status)
    return " ".join(as_text(part) for part in parts if part is not None)


def _compare_executions(
    market: str, ledger: Iterable[Execution], exchange: Iterable[Execution], inside: _Inside
) -> tuple[int, list[Difference]]:
    # What moved identifies an execution; a trade id that was used twice is two of them.
    ours = {(e.exchange_order_id, core_of(e)): e for e in ledger}
    theirs = {(e.exchange_order_id, core_of(e)): e for e in exchange}
    extra: dict[tuple[str, str], list[Execution]] = {}
    found: list[Difference] = []
    looked_at = 0
    for key, execution in ours.items():
        said = theirs.get(key)
        if said is not None:
            looked_at += 1
            if execution != said:
                found += _execution_differences(market, execution, said)
        elif inside(execution.time):
            extra.setdefault((key[0], key[1].trade_id), []).append(execution)
    for key, said in theirs.items():
        if key in ours or not inside(said.time):
            continue
        looked_at += 1
        order_id, core = key
        name = f"{order_id}/{core.trade_id}"
        # One trade id on both sides with something else moved is one difference, not two.
        same_id = extra.get((order_id, core.trade_id))
        if same_id:
            text = core_of(same_id.pop()).text
            found.append(
                Difference(
                    Subject.EXECUTION, Kind.DIFFERENT, market, name, "moved", text, core.text
                )
            )
        else:
            found.append(
                Difference(Subject.EXECUTION, Kind.MISSING, market, name, exchange=core.text)
            )
    for (order_id, trade_id), executions in extra.items():
        for execution in executions:
            looked_at += 1
            text, name = core_of(execution).text, f"{order_id}/{trade_id}"
            found.append(Difference(Subject.EXECUTION, Kind.EXTRA, market, name, ledger=text))
    return looked_at, found


def _execution_differences(market: str, ours: Execution, said: Execution) -> Iterator[Difference]:
    fields: list[tuple[str, str, str]] = []
    if ours.time != said.time:
        fields.append(("time", as_text(ours.time), as_text(said.time)))
    if said.fees is not None and (ours.fees or ()) != said.fees:
        fields.append(("fees", fees_text(ours.fees or ()), fees_text(said.fees)))
    if ours.cost is not None and said.cost is not None:
        # Venues cut quote amounts to eight digits; the ledger may have more.
        off = magnitude(subtract(ours.cost, said.cost))
        if off > product(magnitude(ours.cost), COST_TOLERANCE):
            fields.append(("cost", as_text(ours.cost), as_text(said.cost)))
    roles = (ours.taker_or_maker, said.taker_or_maker)
    if None not in roles and roles[0] != roles[1]:
        fields.append(("taker_or_maker", str(roles[0]), str(roles[1])))
    for name, left, right in fields:
        key = f"{said.exchange_order_id}/{core_of(said).trade_id}"
        yield Difference(Subject.EXECUTION, Kind.DIFFERENT, market, key, name, left, right)
