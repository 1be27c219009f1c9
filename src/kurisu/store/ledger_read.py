"""Orders, executions and what waits, as they stand."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.market import MarketName
from kurisu.domain.order import Order, OrderStatus
from kurisu.domain.position import MarketTerms
from kurisu.errors import InvalidArgument
from kurisu.ledger.arithmetic import total
from kurisu.ledger.order import Latest, order_of
from kurisu.store.connect import driver
from kurisu.store.ledger_facts import (
    execution_from_row,
    execution_row,
    order_from_row,
    record_of,
)
from kurisu.store.ledger_intake import EXECUTIONS_OF_ORDERS
from kurisu.store.ledger_values import StoredExecution, WaitingRecord

# Orders. Parameters: see `Filter`. The last ones, by time of creation.
ORDERS: Final = """
SELECT o.id, o.client_order_id, o.exchange_order_id, o.market_id, o.strategy_id, o.strategy_run_id,
       o.account_id, o.side, o.type, o.price, o.stop_price, o.amount, o.filled, o.cost, o.status,
       o.created_at, o.updated_at
  FROM orders o WHERE {where} ORDER BY o.created_at DESC, o.id DESC {limit}
"""

# Executions that count. Parameters: see `Filter`. The last ones, by time.
EXECUTIONS: Final = """
SELECT e.id, e.order_id, e.market_id, e.account_id, e.exchange_order_id, e.trade_id, e.side,
       e.price, e.amount, e.cost, e.fee, e.fee_currency, e.other_fees, e.time, e.taker_or_maker,
       o.strategy_id, o.strategy_run_id
  FROM executions e JOIN orders o ON o.id = e.order_id
 WHERE {where} ORDER BY e.time DESC, e.id DESC {limit}
"""

# Executions that wait, and what is known of their orders. Parameters: account_id, market_id or
# null.
WAITING: Final = """
SELECT e.market_id, e.exchange_order_id, e.order_id, e.trade_id, e.side, e.price, e.amount, e.cost,
       e.fee, e.fee_currency, e.other_fees, e.time, e.taker_or_maker,
       w.client_order_id, o.id AS held_for
  FROM executions e
  LEFT JOIN waiting_orders w
    ON (w.account_id, w.market_id, w.exchange_order_id)
       = (e.account_id, e.market_id, e.exchange_order_id)
  LEFT JOIN orders o
    ON (o.account_id, o.market_id, o.exchange_order_id)
       = (e.account_id, e.market_id, e.exchange_order_id)
 WHERE e.order_id IS NULL AND e.account_id = :account_id
   AND (CAST(:market_id AS integer) IS NULL OR e.market_id = :market_id)
 ORDER BY e.market_id, e.exchange_order_id, e.time, e.id
"""

# Parameters: account_id, market_id or null.
WAITING_ORDERS: Final = """
SELECT market_id, client_order_id, exchange_order_id FROM waiting_orders
 WHERE account_id = :account_id AND (CAST(:market_id AS integer) IS NULL OR market_id = :market_id)
 ORDER BY market_id, exchange_order_id, client_order_id
"""

# Parameters: market ids.
MARKETS: Final = """
SELECT id, exchange, symbol, contract_size FROM markets WHERE id = ANY(CAST(:ids AS integer[]))
"""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows are wanted; None and () are all.

    since, until: of orders.created_at or executions.time; until is exclusive. contracts_only: no
    spot markets.
    """

    account_id: int | None = None
    market_id: int | None = None
    strategy_id: int | None = None
    run_id: int | None = None
    order_id: int | None = None
    client_order_id: str | None = None
    exchange_order_id: str | None = None
    statuses: Collection[OrderStatus] = ()
    since: datetime | None = None
    until: datetime | None = None
    contracts_only: bool = False
    has_account: bool | None = None

    def where(self, *, of_executions: bool) -> tuple[str, dict[str, Any]]:
        """A condition on `o` (and `e`), and its parameters."""
        row, time = ("e", "e.time") if of_executions else ("o", "o.created_at")
        parts: list[str] = ["TRUE"]
        values: dict[str, Any] = {}
        for column, value in (
            (f"{row}.account_id", self.account_id),
            (f"{row}.market_id", self.market_id),
            ("o.strategy_id", self.strategy_id),
            ("o.strategy_run_id", self.run_id),
            ("o.id", self.order_id),
            ("o.client_order_id", self.client_order_id),
            ("o.exchange_order_id", self.exchange_order_id),
        ):
            if value is not None:
                name = column.partition(".")[2]
                parts.append(f"{column} = :{name}")
                values[name] = value
        if self.contracts_only:
            parts.append(f"{row}.market_id IN (SELECT id FROM markets WHERE symbol LIKE '%:%')")
        if self.has_account is not None:
            parts.append(f"{row}.account_id IS {'NOT ' if self.has_account else ''}NULL")
        if self.statuses:
            parts.append("o.status = ANY(CAST(:statuses AS text[]))")
            values["statuses"] = sorted(status.value for status in self.statuses)
        if self.since is not None:
            parts.append(f"{time} >= :since")
            values["since"] = self.since
        if self.until is not None:
            parts.append(f"{time} < :until")
            values["until"] = self.until
        return " AND ".join(parts), values


def _limited(limit: int | None) -> str:
    if limit is None:
        return ""
    if limit < 0:
        raise InvalidArgument(f"a limit of {limit} rows")
    return f"LIMIT {limit:d}"


async def market_terms(
    connection: AsyncConnection, ids: Collection[int]
) -> Mapping[int, tuple[MarketName, Any]]:
    """Name and contract size of markets, by id."""
    rows = await connection.execute(text(MARKETS), {"ids": sorted(ids)})
    return {row.id: (MarketName.of(row.exchange, row.symbol), row.contract_size) for row in rows}


def terms_of(name: MarketName, contract_size: Any) -> MarketTerms:
    """Raises LedgerRuleBroken where the ledger cannot settle that market."""
    return MarketTerms.of(name, contract_size)


async def orders(
    connection: AsyncConnection, wanted: Filter, limit: int | None = None
) -> list[Order]:
    """Orders by time of creation."""
    where, values = wanted.where(of_executions=False)
    query = ORDERS.format(where=where, limit=_limited(limit))
    rows = (await connection.execute(text(query), values)).mappings().all()
    names = await market_terms(connection, {row["market_id"] for row in rows})
    return [order_from_row(row, names[row["market_id"]][0]) for row in reversed(rows)]


# What is needed to say how an order stood earlier. Parameters: order ids.
FACTS: Final = "SELECT id, facts FROM orders WHERE id = ANY($1::bigint[])"


async def orders_at(connection: AsyncConnection, wanted: Filter, at: datetime) -> list[Order]:
    """Orders that were there at a time, as they stood then, by time of creation.

    Exact where the exchange says when it said what. An amount or a limit that was changed later is
    as it was placed.
    """
    found = await orders(connection, replace(wanted, statuses=()))
    later = [order.id for order in found if order.updated_at > at]
    if later:
        raw = await driver(connection)
        facts = {row["id"]: row["facts"] for row in await raw.fetch(FACTS, later)}
        rows: dict[int, list[Any]] = {}
        for row in await raw.fetch(EXECUTIONS_OF_ORDERS, later):
            rows.setdefault(row["order_id"], []).append(row)
        sizes = dict((await market_terms_of(connection, found)).values())
        found = [
            order
            if order.updated_at <= at or order.id is None
            else _stood(
                order, facts[order.id], rows.get(order.id, ()), at,
                terms_of(order.market, sizes[order.market]),
            )
            for order in found
        ]  # fmt: skip
    return [order for order in found if not wanted.statuses or order.status in wanted.statuses]


async def market_terms_of(
    connection: AsyncConnection, found: Sequence[Order]
) -> Mapping[int, tuple[MarketName, Any]]:
    """Names and contract sizes of the markets of orders, by id."""
    ids = await connection.execute(
        text("SELECT DISTINCT market_id FROM orders WHERE id = ANY(CAST(:ids AS bigint[]))"),
        {"ids": [order.id for order in found]},
    )
    return await market_terms(connection, {row.market_id for row in ids})


def _stood(
    order: Order, facts: Mapping[str, Any], rows: Sequence[Any], at: datetime, terms: MarketTerms
) -> Order:
    known = tuple(execution_row(row, terms).known for row in rows)
    record = record_of(order, facts, known, terms)
    said = record.said
    then = tuple(one for one in record.executions if one.times[0] <= at)
    filled = total(one.core.amount for one in then)
    earlier = replace(
        record,
        executions=then,
        filled=filled,
        said=replace(
            said,
            latest_time=None if said.latest_time is None else min(said.latest_time, at),
            amount=_said_by(said.amount, at),
            price=_said_by(said.price, at),
            stop_price=_said_by(said.stop_price, at),
            ended=tuple((end, time) for end, time in said.ended if time is None or time <= at),
        ),
    )
    return order_of(earlier, terms) or order


def _said_by(latest: Latest | None, at: datetime) -> Latest | None:
    return None if latest is None or (latest.time is not None and latest.time > at) else latest


async def executions(
    connection: AsyncConnection, wanted: Filter, limit: int | None = None
) -> list[StoredExecution]:
    """Executions that count, by time."""
    where, values = wanted.where(of_executions=True)
    query = EXECUTIONS.format(where=where, limit=_limited(limit))
    rows = (await connection.execute(text(query), values)).mappings().all()
    names = await market_terms(connection, {row["market_id"] for row in rows})
    return [_stored(row, names[row["market_id"]][0]) for row in reversed(rows)]


def _stored(row: Mapping[Any, Any], name: MarketName) -> StoredExecution:
    return StoredExecution(
        id=row["id"],
        order_id=row["order_id"],
        market=name,
        account_id=row["account_id"],
        strategy_id=row["strategy_id"],
        strategy_run_id=row["strategy_run_id"],
        execution=execution_from_row(row, name.symbol),
    )


async def waiting(
    connection: AsyncConnection, account_id: int, market_id: int | None
) -> list[WaitingRecord]:
    """What waits, by market and exchange's order id."""
    values = {"account_id": account_id, "market_id": market_id}
    rows = (await connection.execute(text(WAITING), values)).mappings().all()
    told = (await connection.execute(text(WAITING_ORDERS), values)).mappings().all()
    names = await market_terms(connection, {row["market_id"] for row in (*rows, *told)})
    groups: dict[tuple[int, str], list[Any]] = {}
    for row in rows:
        groups.setdefault((row["market_id"], row["exchange_order_id"]), []).append(row)
    found = [_waiting(names[market][0], group) for (market, _), group in groups.items()]
    found += [
        WaitingRecord(
            names[row["market_id"]][0], row["client_order_id"], row["exchange_order_id"], None, ()
        )
        for row in told
        if (row["market_id"], row["exchange_order_id"]) not in groups
    ]
    return found


def _waiting(name: MarketName, rows: Sequence[Mapping[Any, Any]]) -> WaitingRecord:
    first = rows[0]
    return WaitingRecord(
        market=name,
        client_order_id=first["client_order_id"],
        exchange_order_id=first["exchange_order_id"],
        order_id=first["held_for"],
        executions=tuple(execution_from_row(row, name.symbol) for row in rows),
    )
