"""Records of the ledger as rows and JSON, and back, without loss.

An order's row has what stands; its `facts` have what was placed and said where the columns do not
say it. An execution's row has what counts; its `facts` have every version, where there are several.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from kurisu.domain.execution import Execution, Fee, Side, TakerOrMaker, combine_fees
from kurisu.domain.market import MarketName
from kurisu.domain.money import plain
from kurisu.domain.order import Order, OrderStatus, OrderType
from kurisu.domain.position import MarketTerms
from kurisu.errors import LedgerRuleBroken
from kurisu.ledger.execution import Core, KnownExecution, unmarked_trade_id
from kurisu.ledger.order import Latest, OrderRecord, Said, order_of

# Orders


def order_from_row(row: Mapping[Any, Any], market: MarketName) -> Order:
    """An order as it stands."""
    return Order(
        market=market,
        side=Side(row["side"]),
        type=OrderType(row["type"]),
        amount=row["amount"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        client_order_id=row["client_order_id"],
        exchange_order_id=row["exchange_order_id"],
        price=row["price"],
        stop_price=row["stop_price"],
        filled=row["filled"],
        cost=row["cost"],
        status=OrderStatus(row["status"]),
        id=row["id"],
        strategy_id=row["strategy_id"],
        strategy_run_id=row["strategy_run_id"],
        account_id=row["account_id"],
    )


def facts_of(record: OrderRecord) -> dict[str, Any]:
    """`orders.facts` and `waiting_orders.facts`."""
    facts: dict[str, Any] = {}
    if record.said != Said():
        facts["said"] = _said_to_json(record.said)
    placed = record.placed
    if placed is not None and facts:
        facts["placed"] = {
            "amount": plain(placed.amount),
            "price": None if placed.price is None else plain(placed.price),
            "stop_price": None if placed.stop_price is None else plain(placed.stop_price),
        }
    return facts


def said_from_facts(facts: Mapping[str, Any], order: str | None) -> Said:
    """What the exchange said of an order. order: what errors call it. Raises LedgerRuleBroken."""
    with _readable(facts, f"order {order!r}"):
        return _said_from_json(facts["said"]) if "said" in facts else Said()


@contextlib.contextmanager
def _readable(facts: object, of: str) -> Iterator[None]:
    """Facts are the ledger's own; what somebody else wrote there is named, and not guessed at."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise LedgerRuleBroken("facts_are_readable", f"{of}: {str(facts)[:200]}") from error


def record_of(
    order: Order,
    facts: Mapping[str, Any],
    executions: tuple[KnownExecution, ...],
    terms: MarketTerms,
) -> OrderRecord:
    """The record of an order's row. What somebody changed in the row by hand counts as said.

    Raises LedgerRuleBroken.
    """
    amount, price, stop_price = order.amount, order.price, order.stop_price
    with _readable(facts, f"order {order.name!r}"):
        if placed_as := facts.get("placed"):
            amount = Decimal(placed_as["amount"])
            price = _number(placed_as["price"])
            stop_price = _number(placed_as["stop_price"])
    placed = replace(
        order,
        amount=amount,
        price=price,
        stop_price=stop_price,
        exchange_order_id=None if order.client_order_id else order.exchange_order_id,
        filled=Decimal(0),
        cost=Decimal(0),
        status=OrderStatus.PENDING,
        updated_at=order.created_at,
    )
    record = OrderRecord(
        placed=placed,
        client_order_id=order.client_order_id,
        exchange_order_id=order.exchange_order_id,
        said=said_from_facts(facts, order.name),
        executions=tuple(sorted(executions, key=lambda known: known.core)),
        filled=order.filled,
    )
    expected = order_of(record, terms)
    if expected is None or expected == order:
        return record
    return replace(record, said=record.said.join(_by_hand(expected, order)))


def _by_hand(expected: Order, order: Order) -> Said:
    """What the row says beyond its facts."""
    said = Said(heard=order.status is not OrderStatus.PENDING)
    if order.updated_at > expected.updated_at:
        said = replace(said, latest_time=order.updated_at)
    if order.status.is_terminal and order.status is not expected.status:
        said = replace(said, ended=((order.status, None),))
    if order.amount != expected.amount:
        said = replace(
            said, amount=Latest(order.updated_at, order.amount), greatest_amount=order.amount
        )
    if order.price is not None and order.price != expected.price:
        said = replace(said, price=Latest(order.updated_at, order.price))
    if order.stop_price is not None and order.stop_price != expected.stop_price:
        said = replace(said, stop_price=Latest(order.updated_at, order.stop_price))
    return said


def _said_to_json(said: Said) -> dict[str, Any]:
    found: dict[str, Any] = {"heard": said.heard}
    for name in ("latest_time", "created_at", "latest_open"):
        if (time := getattr(said, name)) is not None:
            found[name] = time.isoformat()
    for name in ("amount", "price", "stop_price"):
        latest: Latest | None = getattr(said, name)
        if latest is not None:
            found[name] = [_time_text(latest.time), plain(latest.value)]
    for name in ("greatest_amount", "greatest_filled", "least_filled_at_end"):
        if (number := getattr(said, name)) is not None:
            found[name] = plain(number)
    if said.ended:
        found["ended"] = [[status.value, _time_text(time)] for status, time in said.ended]
    if said.sides:
        found["sides"] = sorted(side.value for side in said.sides)
    if said.unknown_statuses:
        found["unknown_statuses"] = sorted(said.unknown_statuses)
    return found


def _said_from_json(found: Mapping[str, Any]) -> Said:
    def latest(name: str) -> Latest | None:
        return Latest(_time(found[name][0]), Decimal(found[name][1])) if name in found else None

    return Said(
        heard=found["heard"],
        latest_time=_time(found.get("latest_time")),
        created_at=_time(found.get("created_at")),
        amount=latest("amount"),
        price=latest("price"),
        stop_price=latest("stop_price"),
        greatest_amount=_number(found.get("greatest_amount")),
        greatest_filled=_number(found.get("greatest_filled")),
        ended=tuple((OrderStatus(status), _time(time)) for status, time in found.get("ended", ())),
        least_filled_at_end=_number(found.get("least_filled_at_end")),
        latest_open=_time(found.get("latest_open")),
        sides=frozenset(Side(side) for side in found.get("sides", ())),
        unknown_statuses=frozenset(found.get("unknown_statuses", ())),
    )


def _number(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _time_text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


# Executions


@dataclass(frozen=True, slots=True)
class ExecutionRow:
    """A row of `executions`. order_id: None while it waits. trade_id: as stored."""

    id: int
    order_id: int | None
    exchange_order_id: str | None
    trade_id: str
    known: KnownExecution


def fee_columns(
    fees: tuple[Fee, ...] | None, settle_asset: str
) -> tuple[Decimal | None, str | None, dict[str, str] | None]:
    """fee, fee_currency and other_fees. No fee is a fee of 0; an unknown one is null."""
    if fees is None:
        return None, None, None
    if not fees:
        return Decimal(0), settle_asset, None
    first, *others = fees
    return (
        first.amount,
        first.currency,
        {fee.currency: plain(fee.amount) for fee in others} if others else None,
    )


def fees_from_columns(
    fee: Decimal | None, currency: str | None, others: Mapping[str, str] | None
) -> tuple[Fee, ...] | None:
    """The fees of a row; None if they are unknown."""
    if fee is None:
        return None
    if not others:
        return (Fee(currency or "", fee),) if fee else ()
    return combine_fees(
        (Fee(currency or "", fee), *(Fee(asset, Decimal(text)) for asset, text in others.items()))
    )


def execution_from_row(row: Mapping[Any, Any], symbol: str) -> Execution:
    """An execution as it counts."""
    role = row["taker_or_maker"]
    return Execution(
        exchange_order_id=row["exchange_order_id"] or f"#{row['order_id']}",
        trade_id=row["trade_id"],
        side=Side(row["side"]),
        price=row["price"],
        amount=row["amount"],
        time=row["time"],
        cost=row["cost"],
        fees=fees_from_columns(row["fee"], row["fee_currency"], row["other_fees"]),
        taker_or_maker=None if role is None else TakerOrMaker(role),
        symbol=symbol,
    )


def execution_row(row: Mapping[Any, Any], terms: MarketTerms) -> ExecutionRow:
    """A row, and what is known by it."""
    execution = execution_from_row(row, terms.name.symbol)
    facts = row["facts"]
    if facts:
        with _readable(facts, f"execution {execution.trade_id!r}"):
            known = KnownExecution(
                core=Core(
                    unmarked_trade_id(execution), execution.side, execution.price, execution.amount
                ),
                # An execution without a time would be none.
                times=tuple(map(datetime.fromisoformat, facts["times"])) or (execution.time,),
                costs=tuple(Decimal(cost) for cost in facts["costs"]),
                fees=tuple(
                    tuple(Fee(asset, Decimal(amount)) for asset, amount in fees)
                    for fees in facts["fees"]
                ),
                roles=tuple(TakerOrMaker(role) for role in facts["roles"]),
            )
    else:
        known = KnownExecution.of(execution, terms)
    if row["order_id"] is not None:
        known = known.accept(row["trade_id"])
    return ExecutionRow(
        row["id"], row["order_id"], row["exchange_order_id"], row["trade_id"], known
    )


def versions_of(known: KnownExecution) -> dict[str, Any] | None:
    """`executions.facts`; None where the columns say it all."""
    if max(len(known.times), len(known.costs), len(known.fees), len(known.roles)) < 2:
        return None
    return {
        "times": [time.isoformat() for time in known.times],
        "costs": [plain(cost) for cost in known.costs],
        "fees": [[[fee.currency, plain(fee.amount)] for fee in fees] for fees in known.fees],
        "roles": [role.value for role in known.roles],
    }
