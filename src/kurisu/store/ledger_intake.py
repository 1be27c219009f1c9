"""Messages about orders into the database: lock, load, let the intake decide, write what changed.

The long way, for whatever is not a plain new fill (see `ledger_fast`). Orders of one account and
market are taken in one after another, under an advisory lock, so that a fill that waits and the
update that links its order cannot miss each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import asyncpg

from kurisu.domain.execution import Execution
from kurisu.domain.order import Order, OrderUpdate
from kurisu.domain.position import MarketTerms
from kurisu.errors import LedgerRuleBroken
from kurisu.ledger.events import EventType, RiskEvent, Severity
from kurisu.ledger.execution import KnownExecution, marked_trade_id
from kurisu.ledger.intake import Intake, Outcome
from kurisu.ledger.order import OrderRecord, Said, is_correction, order_of
from kurisu.store.ledger_facts import (
    ExecutionRow,
    execution_row,
    facts_of,
    fee_columns,
    order_from_row,
    record_of,
    said_from_facts,
    versions_of,
)

Message = Order | OrderUpdate | Execution
#: asyncpg's connection, which ships no types. SQLAlchemy has set it up to read JSONB as values and
#: to take text for it.
Raw = Any

#: Advisory lock of the orders of one account (or run) and market; its second half is a hash.
ORDERS_LOCK: Final = 1_264_939_594
#: Somebody with psql may insert between our look and our insert; the next look sees it.
ATTEMPTS: Final = 5
#: Details of a condition that change while it stays the same condition.
_VOLATILE: Final = frozenset({"amount", "would_fill", "reported", "known", "executions"})

LOCK: Final = "SELECT pg_advisory_xact_lock($1, hashtext($2))"

_ORDER_COLUMNS: Final = """
id, client_order_id, exchange_order_id, strategy_id, strategy_run_id, account_id, side, type,
price, stop_price, amount, filled, cost, status, created_at, updated_at, facts
"""
_EXECUTION_COLUMNS: Final = """
e.id, e.order_id, e.exchange_order_id, e.trade_id, e.side, e.price, e.amount, e.cost, e.fee,
e.fee_currency, e.other_fees, e.time, e.taker_or_maker, e.facts
"""

# Orders by their ids. Parameters: market_id, owner, client ids, exchange ids. Locked in the order
# of ids, as everybody does.
ORDERS_BY_IDS: Final = f"""
SELECT {_ORDER_COLUMNS}, xmin AS version FROM orders
 WHERE market_id = $1 AND {{owner}}
   AND (client_order_id = ANY($3::text[]) OR exchange_order_id = ANY($4::text[]))
 ORDER BY id {{lock}}
"""

# Parameters: order ids.
VERSIONS: Final = "SELECT id, xmin AS version FROM orders WHERE id = ANY($1::bigint[])"

# Orders of ours that have an execution under one of these trade ids, each looked up by the index
# (see ledger_fast). Parameters: market_id, account_id, trade ids, order ids to leave out.
ORDERS_BY_TRADES: Final = f"""
SELECT {_ORDER_COLUMNS}, xmin AS version FROM orders
 WHERE id IN (SELECT e.order_id FROM unnest($3::text[]) AS t(trade_id)
               CROSS JOIN LATERAL (SELECT order_id FROM executions
                                    WHERE account_id = $2 AND market_id = $1
                                      AND trade_id = t.trade_id
                                    ORDER BY exchange_order_id) AS e)
   AND id <> ALL($4::bigint[])
"""

# Parameters: order ids.
EXECUTIONS_OF_ORDERS: Final = f"""
SELECT {_EXECUTION_COLUMNS} FROM executions e WHERE e.order_id = ANY($1::bigint[])
"""

# What waits. Parameters: market_id, account_id, exchange ids.
EXECUTIONS_WAITING: Final = f"""
SELECT {_EXECUTION_COLUMNS} FROM executions e
 WHERE e.order_id IS NULL AND e.market_id = $1 AND e.account_id = $2
   AND e.exchange_order_id = ANY($3::text[])
"""

# Parameters: market_id, account_id, client ids, exchange ids.
WAITING_ORDERS: Final = """
SELECT id, client_order_id, exchange_order_id, facts FROM waiting_orders
 WHERE market_id = $1 AND account_id = $2
   AND (client_order_id = ANY($3::text[]) OR exchange_order_id = ANY($4::text[]))
"""

INSERT_ORDER: Final = """
INSERT INTO orders (client_order_id, exchange_order_id, market_id, strategy_id, strategy_run_id,
                    account_id, side, type, price, stop_price, amount, remaining, status,
                    created_at, updated_at, facts)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12, $13, $14, $15::jsonb)
RETURNING id
"""

# filled and cost follow the executions. Parameters: an array for each column.
UPDATE_ORDERS: Final = """
UPDATE orders o
   SET client_order_id = n.client_order_id, exchange_order_id = n.exchange_order_id,
       price = n.price, stop_price = n.stop_price, amount = n.amount,
       remaining = n.amount - o.filled, status = n.status, updated_at = n.updated_at,
       facts = n.facts::jsonb
  FROM unnest($1::bigint[], $2::text[], $3::text[], $4::numeric[], $5::numeric[], $6::numeric[],
              $7::text[], $8::timestamptz[], $9::text[])
       AS n(id, client_order_id, exchange_order_id, price, stop_price, amount, status, updated_at,
            facts)
 WHERE o.id = n.id
"""

# Parameters: order_id, status, reason.
CORRECT_ORDER: Final = """
INSERT INTO order_corrections (order_id, status, reason) VALUES ($1, $2, $3)
"""

# Parameters: account_id, market_id, and an array for each column.
INSERT_EXECUTIONS: Final = """
INSERT INTO executions (account_id, market_id, order_id, exchange_order_id, side, trade_id, price,
                        amount, cost, fee, fee_currency, other_fees, time, taker_or_maker, facts)
SELECT $1::integer, $2::integer, n.order_id, n.exchange_order_id, n.side, n.trade_id, n.price,
       n.amount, n.cost, n.fee, n.fee_currency, n.other_fees::jsonb, n.time, n.role,
       n.facts::jsonb
  FROM unnest($3::bigint[], $4::text[], $5::text[], $6::text[], $7::numeric[], $8::numeric[],
              $9::numeric[], $10::numeric[], $11::text[], $12::text[], $13::timestamptz[],
              $14::text[], $15::text[])
       AS n(order_id, exchange_order_id, side, trade_id, price, amount, cost, fee, fee_currency,
            other_fees, time, role, facts)
"""

# Parameters: execution ids, order ids.
JOIN_EXECUTIONS: Final = """
UPDATE executions e SET order_id = n.order_id
  FROM unnest($1::bigint[], $2::bigint[]) AS n(id, order_id)
 WHERE e.id = n.id
"""

# Parameters: an array for each column.
CORRECT_EXECUTIONS: Final = """
INSERT INTO execution_corrections (execution_id, time, cost, fee, fee_currency, other_fees,
                                   taker_or_maker, facts, reason)
SELECT n.id, n.time, n.cost, n.fee, n.fee_currency, n.other_fees::jsonb, n.role, n.facts::jsonb,
       'another report says more'
  FROM unnest($1::bigint[], $2::timestamptz[], $3::numeric[], $4::numeric[], $5::text[],
              $6::text[], $7::text[], $8::text[])
       AS n(id, time, cost, fee, fee_currency, other_fees, role, facts)
"""

DELETE_WAITING_ORDERS: Final = "DELETE FROM waiting_orders WHERE id = ANY($1::bigint[])"

INSERT_WAITING_ORDER: Final = """
INSERT INTO waiting_orders (account_id, market_id, client_order_id, exchange_order_id, facts)
VALUES ($1, $2, $3, $4, $5::jsonb)
"""

# Events that are not there yet. Parameters: account_id, market_id, and arrays: strategy_id,
# strategy_run_id, event_type, severity, details, fingerprint. Returns the fingerprints of new ones.
INSERT_EVENTS: Final = """
INSERT INTO risk_events (account_id, market_id, strategy_id, strategy_run_id, event_type, severity,
                         details, fingerprint)
SELECT $1::integer, $2::integer, n.strategy_id, n.strategy_run_id, n.event_type, n.severity,
       n.details::jsonb, n.fingerprint
  FROM unnest($3::integer[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[])
       AS n(strategy_id, strategy_run_id, event_type, severity, details, fingerprint)
ON CONFLICT (fingerprint) DO NOTHING RETURNING fingerprint
"""


@dataclass(frozen=True, slots=True)
class Scope:
    """Within what ids are unique: an account's market, or (account_id None) a run's.

    terms: of the market.
    """

    account_id: int | None
    run_id: int | None
    market_id: int
    terms: MarketTerms

    @property
    def owner(self) -> tuple[str, int | None]:
        """The condition on `orders`, with $2, and its value."""
        if self.account_id is not None:
            return "account_id = $2", self.account_id
        return "account_id IS NULL AND strategy_run_id = $2", self.run_id

    @property
    def lock_name(self) -> str:
        return (
            f"{self.account_id}/{self.run_id if self.account_id is None else ''}/{self.market_id}"
        )


@dataclass(slots=True)
class Loaded:
    """What the database has about some orders.

    orders, records: by orders.id. versions: xmin of the order's row. waiting: rows of
    waiting_orders. executions: rows, by their order's row id ("o", 1) or exchange's id ("x", "A").
    unheld: ids of orders that were loaded for their trade ids alone, and not locked.
    """

    orders: dict[int, Order] = field(default_factory=dict)
    records: dict[int, OrderRecord] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    waiting: list[Mapping[str, Any]] = field(default_factory=list)
    waiting_records: list[OrderRecord] = field(default_factory=list)
    executions: dict[tuple[str, object], list[ExecutionRow]] = field(default_factory=dict)
    unheld: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Taken:
    """What became of messages: an outcome for each, and the events that are new.

    records, versions: of the orders that they were about, by orders.id, as they are now stored.
    """

    outcomes: list[Outcome]
    events: list[RiskEvent]
    records: dict[int, OrderRecord]
    versions: dict[int, int]


async def take_in(raw: Raw, scope: Scope, messages: Sequence[Message]) -> Taken:
    """Apply `messages`, in a transaction of its own.

    Raises LedgerRuleBroken, and what the database refuses.
    """
    for attempt in range(ATTEMPTS):
        try:
            async with raw.transaction(isolation="read_committed"):
                return await _take_in(raw, scope, messages)
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name == "unique_orders_client_order_id":
                raise LedgerRuleBroken(
                    "client_order_id_names_one_order", str(error.detail or error)
                ) from error
            if attempt == ATTEMPTS - 1:
                raise
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
            if attempt == ATTEMPTS - 1:
                raise
    raise LedgerRuleBroken("attempts_bounded", f"{ATTEMPTS} attempts")


async def _take_in(raw: Raw, scope: Scope, messages: Sequence[Message]) -> Taken:
    await raw.execute(LOCK, ORDERS_LOCK, scope.lock_name)
    clients, exchanges, trades = _ids_of(messages)
    loaded = await load(raw, scope, clients, exchanges, trades, lock=True)
    intake = Intake(scope.terms)
    adopted = {
        m.exchange_order_id for m in messages if isinstance(m, Order) and not m.client_order_id
    }
    for record in (*loaded.records.values(), *loaded.waiting_records):
        # An order that somebody else placed has no client id of ours.
        is_adopted = record.placed is None and record.exchange_order_id in adopted
        intake.load(replace(record, client_order_id=None) if is_adopted else record)
    outcomes = [_feed(intake, message) for message in messages]
    records = await _write(raw, scope, loaded, intake)
    ids = {record.placed.name: order_id for order_id, record in records.items() if record.placed}
    outcomes = [_with_id(outcome, ids) for outcome in outcomes]
    events = await store_events(raw, scope, [_events_of(outcome) for outcome in outcomes])
    # Not those that were only looked at: nobody keeps them from changing meanwhile.
    held = {number: record for number, record in records.items() if number not in loaded.unheld}
    rows = await raw.fetch(VERSIONS, list(held)) if held else ()
    return Taken(outcomes, events, held, {row["id"]: row["version"] for row in rows})


def _ids_of(messages: Iterable[Message]) -> tuple[list[str], list[str], list[str]]:
    """Client ids, exchange's order ids and trade ids that the messages carry."""
    clients: set[str] = set()
    exchanges: set[str] = set()
    trades: set[str] = set()
    for message in messages:
        if isinstance(message, Execution):
            exchanges.add(message.exchange_order_id)
            trades.add(message.trade_id)
        else:
            clients.add(message.client_order_id or "")
            exchanges.add(message.exchange_order_id or "")
    return sorted(clients - {""}), sorted(exchanges - {""}), sorted(trades)


def _feed(intake: Intake, message: Message) -> Outcome:
    if isinstance(message, Execution):
        return intake.execute(message)
    if isinstance(message, Order):
        return intake.place(message)
    if message.client_order_id and message.exchange_order_id:
        known = intake.record(message.exchange_order_id)
        if known is not None and known.placed is not None and not known.placed.client_order_id:
            message = replace(message, client_order_id=None)
    return intake.update(message)


def _with_id(outcome: Outcome, ids: Mapping[str, int]) -> Outcome:
    order = outcome.order
    if order is None or order.id is not None:
        return outcome
    return replace(outcome, order=replace(order, id=ids.get(order.name)))


async def load(
    raw: Raw,
    scope: Scope,
    clients: Sequence[str],
    exchanges: Sequence[str],
    trades: Sequence[str] = (),
    *,
    lock: bool = False,
) -> Loaded:
    """Everything about the orders of these ids, and orders that share these trade ids."""
    loaded = Loaded()
    condition, owner = scope.owner
    query = ORDERS_BY_IDS.format(owner=condition, lock="FOR NO KEY UPDATE" if lock else "")
    rows = list(await raw.fetch(query, scope.market_id, owner, clients, exchanges))
    wanted = {*exchanges, *(row["exchange_order_id"] for row in rows)} - {None}
    if scope.account_id is not None:
        loaded.waiting = await raw.fetch(
            WAITING_ORDERS, scope.market_id, scope.account_id, clients, exchanges
        )
        wanted |= {row["exchange_order_id"] for row in loaded.waiting} - {None}
        found_trades = set(trades)
        for row in await raw.fetch(
            EXECUTIONS_WAITING, scope.market_id, scope.account_id, sorted(wanted)
        ):
            found = execution_row(row, scope.terms)
            loaded.executions.setdefault(("x", row["exchange_order_id"]), []).append(found)
            # It may join now, and share its trade id with an execution of another order.
            found_trades.add(found.known.core.trade_id)
        if found_trades:
            known = [row["id"] for row in rows]
            others = await raw.fetch(
                ORDERS_BY_TRADES, scope.market_id, scope.account_id, sorted(found_trades), known
            )
            loaded.unheld = {row["id"] for row in others}
            rows += others
    if rows:
        ids = [row["id"] for row in rows]
        for row in await raw.fetch(EXECUTIONS_OF_ORDERS, ids):
            found = execution_row(row, scope.terms)
            loaded.executions.setdefault(("o", row["order_id"]), []).append(found)
    for row in rows:
        order = order_from_row(row, scope.terms.name)
        if order.id is None:
            continue
        loaded.orders[order.id] = order
        loaded.versions[order.id] = row["version"]
        loaded.records[order.id] = record_of(
            order,
            row["facts"],
            _known(loaded.executions, order.id, order.exchange_order_id),
            scope.terms,
        )
    _load_waiting(loaded)
    return loaded


def _known(
    rows: Mapping[tuple[str, object], list[ExecutionRow]],
    order_id: int | None,
    exchange_order_id: str | None,
) -> tuple[KnownExecution, ...]:
    joined = [row.known for row in rows.get(("o", order_id), ())]
    cores = {known.core for known in joined}
    waiting = rows.get(("x", exchange_order_id), ())
    return (*joined, *(row.known for row in waiting if row.known.core not in cores))


def _load_waiting(loaded: Loaded) -> None:
    """Records of orders that are not (yet) ours."""
    ours = {order.exchange_order_id for order in loaded.orders.values()}
    seen: set[str | None] = set()
    for row in loaded.waiting:
        seen.add(row["exchange_order_id"])
        executions = _known(loaded.executions, None, row["exchange_order_id"])
        loaded.waiting_records.append(
            OrderRecord(
                client_order_id=row["client_order_id"],
                exchange_order_id=row["exchange_order_id"],
                said=said_from_facts(
                    row["facts"], row["client_order_id"] or row["exchange_order_id"]
                ),
                executions=tuple(sorted(executions, key=lambda known: known.core)),
            )
        )
    for kind, exchange_order_id in loaded.executions:
        if kind != "x" or exchange_order_id in ours or exchange_order_id in seen:
            continue
        executions = _known(loaded.executions, None, str(exchange_order_id))
        loaded.waiting_records.append(
            OrderRecord(
                exchange_order_id=str(exchange_order_id),
                executions=tuple(sorted(executions, key=lambda known: known.core)),
            )
        )


# What changed


async def _write(raw: Raw, scope: Scope, loaded: Loaded, intake: Intake) -> dict[int, OrderRecord]:
    """Write every record that is not as it was; returns all that are orders of ours, by id."""
    changed: list[OrderRecord] = []
    records: dict[int, OrderRecord] = {}
    for record in intake.records():
        if record.placed is None:
            changed.append(record)
            continue
        order_id = record.placed.id
        if order_id is None:
            order_id = await _insert_order(raw, scope, record)
            record = replace(record, placed=replace(record.placed, id=order_id))
            changed.append(record)
        elif record != loaded.records.get(order_id):
            changed.append(record)
        records[order_id] = record
    await _write_orders(raw, scope, loaded, changed)
    await _write_executions(raw, scope, loaded, changed)
    await _write_waiting(raw, scope, loaded, intake)
    return records


async def _insert_order(raw: Raw, scope: Scope, record: OrderRecord) -> int:
    order = order_of(record, scope.terms)
    if order is None or record.placed is None:
        raise LedgerRuleBroken("order_is_placed", f"{record.exchange_order_id}")
    # As it was placed; what is known beyond that follows.
    return int(
        await raw.fetchval(
            INSERT_ORDER,
            record.client_order_id, record.exchange_order_id, scope.market_id, order.strategy_id,
            order.strategy_run_id, scope.account_id, order.side.value, order.type.value,
            order.price, order.stop_price, order.amount, order.status.value, order.created_at,
            order.updated_at, json.dumps(facts_of(record)),
        )
    )  # fmt: skip


async def _write_orders(
    raw: Raw, scope: Scope, loaded: Loaded, changed: Iterable[OrderRecord]
) -> None:
    rows = []
    for record in changed:
        if record.placed is None or record.placed.id not in loaded.orders:
            continue
        order, before = order_of(record, scope.terms), loaded.orders[record.placed.id]
        if order is None:
            continue
        if is_correction(before.status, order.status):
            reason = (
                "another end was earlier by the exchange's clock"
                if order.status.is_terminal
                else "its amount is greater than what was filled"
            )
            await raw.execute(CORRECT_ORDER, before.id, order.status.value, reason)
        rows.append(
            (before.id, order.client_order_id, order.exchange_order_id, order.price,
             order.stop_price, order.amount, order.status.value, order.updated_at,
             json.dumps(facts_of(record)))
        )  # fmt: skip
    if rows:
        await raw.execute(UPDATE_ORDERS, *map(list, zip(*rows, strict=True)))


async def _write_executions(
    raw: Raw, scope: Scope, loaded: Loaded, changed: Iterable[OrderRecord]
) -> None:
    new, joined, corrected = [], [], []
    for record in changed:
        order_id = None if record.placed is None else record.placed.id
        rows = [
            *loaded.executions.get(("x", record.exchange_order_id), ()),
            *loaded.executions.get(("o", order_id), ()),
        ]
        by_core = {row.known.core: row for row in rows}
        taken = {row.trade_id for row in rows}
        for known in record.executions:
            row = by_core.get(known.core)
            if row is None:
                trade_id = known.core.trade_id
                if trade_id in taken:
                    trade_id = marked_trade_id(known.core)
                taken.add(trade_id)
                new.append(_new_row(scope, record, known, trade_id, order_id))
                continue
            if replace(known, accepted=row.known.accepted) != row.known:
                corrected.append((row.id, *_said_columns(scope, known)))
            if known.accepted and row.order_id is None:
                joined.append((row.id, order_id))
    if corrected:
        await raw.execute(CORRECT_EXECUTIONS, *map(list, zip(*corrected, strict=True)))
    if joined:
        await raw.execute(JOIN_EXECUTIONS, *map(list, zip(*joined, strict=True)))
    if new:
        columns = map(list, zip(*new, strict=True))
        await raw.execute(INSERT_EXECUTIONS, scope.account_id, scope.market_id, *columns)


def _new_row(
    scope: Scope, record: OrderRecord, known: KnownExecution, trade_id: str, order_id: int | None
) -> tuple[Any, ...]:
    if not known.accepted and scope.account_id is None:
        raise LedgerRuleBroken(
            "simulated_fill_fits_its_order",
            f"{known.core.text} of order {record.exchange_order_id!r}: without an account nothing "
            "waits, so place the order first and fill no more than its amount",
        )
    time, cost, fee, currency, others, role, facts = _said_columns(scope, known)
    return (
        order_id if known.accepted else None, record.exchange_order_id, known.core.side.value,
        trade_id, known.core.price, known.core.amount, cost, fee, currency, others, time, role,
        facts,
    )  # fmt: skip


def _said_columns(scope: Scope, known: KnownExecution) -> tuple[Any, ...]:
    """time, cost, fee, fee_currency, other_fees, taker_or_maker, facts."""
    view = known.view("-", scope.terms)
    fee, currency, others = fee_columns(view.fees, scope.terms.settle_asset)
    facts = versions_of(known)
    return (
        view.time,
        view.cost,
        fee,
        currency,
        None if others is None else json.dumps(others),
        None if view.taker_or_maker is None else view.taker_or_maker.value,
        None if facts is None else json.dumps(facts),
    )


async def _write_waiting(raw: Raw, scope: Scope, loaded: Loaded, intake: Intake) -> None:
    wanted = {
        (record.client_order_id, record.exchange_order_id): facts_of(record)
        for record in intake.waiting()
        if record.said != Said() or record.client_order_id is not None
    }
    gone = []
    for row in loaded.waiting:
        ids = (row["client_order_id"], row["exchange_order_id"])
        if ids in wanted and wanted[ids] == row["facts"]:
            del wanted[ids]
        else:
            gone.append(row["id"])
    if gone:
        await raw.execute(DELETE_WAITING_ORDERS, gone)
    if wanted and scope.account_id is None:
        raise LedgerRuleBroken(
            "simulated_order_is_placed_first", f"{[ids for ids, _ in sorted(wanted.items())]}"
        )
    for (client, exchange), facts in wanted.items():
        await raw.execute(
            INSERT_WAITING_ORDER, scope.account_id, scope.market_id, client, exchange,
            json.dumps(facts),
        )  # fmt: skip


# Risk events


@dataclass(frozen=True, slots=True)
class Owned:
    """Risk events, and whose order they are about."""

    strategy_id: int | None
    run_id: int | None
    events: tuple[RiskEvent, ...]


def _events_of(outcome: Outcome) -> Owned:
    """What is stored at once: events, and the conditions that nobody may overlook."""
    critical = (event for event in outcome.conditions if event.severity is Severity.CRITICAL)
    order = outcome.order
    return Owned(
        order.strategy_id if order else None,
        order.strategy_run_id if order else None,
        (*outcome.events, *critical),
    )


def fingerprint(scope_name: str, event: RiskEvent) -> str:
    """The same for the same event, however often it is found."""
    details = {
        name: value
        for name, value in event.details
        if name not in _VOLATILE or event.event_type not in _CONDITIONS
    }
    text = json.dumps([scope_name, event.event_type.value, event.severity.value, details])
    return hashlib.sha256(text.encode()).hexdigest()


_CONDITIONS: Final = frozenset(
    {
        EventType.FILLS_MISSING,
        EventType.EXECUTION_EXCEEDS_ORDER,
        EventType.EXECUTION_SIDE_DIFFERS,
        EventType.ORDER_UNKNOWN,
    }
)


async def store_events(raw: Raw, scope: Scope, found: Iterable[Owned]) -> list[RiskEvent]:
    """Store what is not there yet, and return it."""
    rows: dict[str, tuple[Any, ...]] = {}
    events: dict[str, RiskEvent] = {}
    for owned in found:
        for event in owned.events:
            mark = fingerprint(scope.lock_name, event)
            events[mark] = event
            rows[mark] = (
                owned.strategy_id, owned.run_id, event.event_type.value, event.severity.value,
                json.dumps(event.as_json), mark,
            )  # fmt: skip
    if not rows:
        return []
    columns = map(list, zip(*(rows[mark] for mark in sorted(rows)), strict=True))
    new = await raw.fetch(INSERT_EVENTS, scope.account_id, scope.market_id, *columns)
    return [events[row["fingerprint"]] for row in new]
