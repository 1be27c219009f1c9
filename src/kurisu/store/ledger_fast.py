"""Plain new fills into the database: one statement, one round trip, whatever their number.

What an order's tally says is right as long as nobody else has touched the order's row, and that is
what the statement asks: it inserts only if every row still has the version that the tallies are of.
If not, nothing is inserted, the tallies are thrown away and the long way decides.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import asyncpg

from kurisu.domain.execution import Execution
from kurisu.domain.order import Order
from kurisu.ledger.order import OrderRecord, order_of
from kurisu.ledger.tally import Tally, Verdict
from kurisu.store.ledger_facts import fee_columns
from kurisu.store.ledger_intake import Loaded, Raw, Scope

#: Executions that the tallies of a store remember, together: about 100 MB.
REMEMBERED: Final = 200_000

# Executions of orders whose rows are as the tallies have them, and whose trade ids no other order
# has: all of them or none. Parameters: account_id, market_id, order ids and their versions, and an
# array for each column. Returns how many were inserted, and the version that the orders have now.
# LATERAL makes each look-up one by the index, also where the plan was made for an empty table, and
# ORDER BY one by the right index: in an empty table all of them cost the same.
# Numbers travel as text, which both sides read and write faster than the binary form.
INSERT_PLAIN: Final = """
WITH held AS (
    SELECT w.version = o.version AS is_same
      FROM unnest($3::bigint[], $4::xid[]) AS w(id, version)
     CROSS JOIN LATERAL (
        SELECT xmin AS version FROM orders WHERE id = w.id FOR NO KEY UPDATE) AS o
), n AS (
    SELECT * FROM unnest($5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[],
                         $11::text[], $12::text[], $13::text[], $14::text[], $15::timestamptz[],
                         $16::text[])
        AS n(order_id, exchange_order_id, side, trade_id, price, amount, cost, fee, fee_currency,
             other_fees, time, role)
), fit AS (
    SELECT (SELECT count(*) FROM held WHERE is_same) = cardinality($3)
       AND NOT EXISTS (SELECT 1 FROM unnest($8::text[]) AS t(trade_id)
                        CROSS JOIN LATERAL (
                           SELECT 1 FROM executions e
                            WHERE e.account_id = $1 AND e.market_id = $2
                              AND e.trade_id = t.trade_id
                            ORDER BY e.exchange_order_id LIMIT 1) AS there)
           AS is_fit
), inserted AS (
    INSERT INTO executions (account_id, market_id, order_id, exchange_order_id, side, trade_id,
                            price, amount, cost, fee, fee_currency, other_fees, time,
                            taker_or_maker)
    SELECT $1::integer, $2::integer, n.order_id, n.exchange_order_id, n.side, n.trade_id,
           n.price::numeric, n.amount::numeric, n.cost::numeric, n.fee::numeric, n.fee_currency,
           n.other_fees::jsonb, n.time, n.role
      FROM n CROSS JOIN fit WHERE fit.is_fit
    RETURNING 1
)
SELECT (SELECT count(*) FROM inserted) AS inserted,
       CASE WHEN (SELECT is_fit FROM fit) THEN pg_current_xact_id()::xid END AS version
"""

# The same for one execution, with a plan as small as it gets. Parameters: order id and version, and
# the columns. Returns the order's new version, or nothing if it was not inserted.
INSERT_ONE: Final = """
INSERT INTO executions (order_id, account_id, market_id, exchange_order_id, side, trade_id, price,
                        amount, cost, fee, fee_currency, other_fees, time, taker_or_maker)
SELECT o.id, o.account_id, o.market_id, o.exchange_order_id, o.side, $3::text, $4::text::numeric,
       $5::text::numeric, $6::text::numeric, $7::text::numeric, $8, $9::jsonb, $10, $11
  FROM orders o
 WHERE o.id = $1 AND o.xmin = $2
   AND (o.account_id IS NULL OR (
        SELECT 1 FROM executions e
         WHERE e.account_id = o.account_id AND e.market_id = o.market_id AND e.trade_id = $3::text
         ORDER BY e.exchange_order_id LIMIT 1) IS NULL)
   FOR NO KEY UPDATE OF o
RETURNING pg_current_xact_id()::xid
"""

#: Somebody else was faster; the long way looks at what is there now.
_OUTRUN: Final = (
    asyncpg.UniqueViolationError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
)


@dataclass(slots=True)
class Entry:
    """A tally, and the version of the order's row that it is of.

    current: the order as it was last asked for.
    """

    tally: Tally
    order_id: int
    exchange_order_id: str
    version: int
    current: Order | None = None


Key = tuple[int | None, int | None, int, str]


def _key(scope: Scope, exchange_order_id: str) -> Key:
    return (scope.account_id, scope.run_id, scope.market_id, exchange_order_id)


class Tallies:
    """The tallies of a store by scope and exchange's order id; those used last stay."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._size = 0

    def get(self, scope: Scope, exchange_order_id: str) -> Entry | None:
        """The tally of an order, or None."""
        key = _key(scope, exchange_order_id)
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, scope: Scope, entry: Entry) -> None:
        """Remember a tally, and forget the longest unused ones if there are too many."""
        self.drop(scope, entry.exchange_order_id)
        self._entries[_key(scope, entry.exchange_order_id)] = entry
        self._size += len(entry.tally) + 1
        while self._size > REMEMBERED and len(self._entries) > 1:
            _, oldest = self._entries.popitem(last=False)
            self._size -= len(oldest.tally) + 1

    def grown(self, count: int) -> None:
        """So many executions were counted."""
        self._size += count

    def drop(self, scope: Scope, exchange_order_id: str) -> None:
        """Forget a tally; what it counted is in the database or nowhere."""
        entry = self._entries.pop(_key(scope, exchange_order_id), None)
        if entry is not None:
            self._size = max(0, self._size - len(entry.tally) - 1)

    def clear(self) -> None:
        self._entries.clear()
        self._size = 0


def entries_of(scope: Scope, loaded: Loaded) -> Iterable[Entry]:
    """Tallies of what was loaded."""
    for order_id, record in loaded.records.items():
        entry = entry_of(scope, record, order_id, loaded.versions[order_id])
        if entry is not None:
            yield entry


def entry_of(scope: Scope, record: OrderRecord, order_id: int, version: int) -> Entry | None:
    """A tally of a record as it is stored.

    None while the exchange has no id for the order, or executions wait that do not fit.
    """
    order = order_of(record, scope.terms)
    if order is None or record.exchange_order_id is None:
        return None
    if not all(known.accepted for known in record.executions):
        return None
    return Entry(Tally(record, order, scope.terms), order_id, record.exchange_order_id, version)


class Batch:
    """Plain fills on their way, one list for each column."""

    __slots__ = (
        "amounts", "costs", "currencies", "entries", "exchange_ids", "fees", "order_ids", "others",
        "prices", "roles", "sides", "times", "trade_ids",
    )  # fmt: skip

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.order_ids: list[int] = []
        self.exchange_ids: list[str] = []
        self.sides: list[str] = []
        self.trade_ids: list[str] = []
        self.prices: list[str] = []
        self.amounts: list[str] = []
        self.costs: list[str] = []
        self.fees: list[str | None] = []
        self.currencies: list[str | None] = []
        self.others: list[str | None] = []
        self.times: list[Any] = []
        self.roles: list[str | None] = []

    def __len__(self) -> int:
        return len(self.order_ids)

    def add(self, entry: Entry, execution: Execution, settle_asset: str) -> None:
        """Count a plain fill in its tally, and add its row."""
        cost = entry.tally.count(execution)
        self.entries[entry.order_id] = entry
        self.order_ids.append(entry.order_id)
        self.exchange_ids.append(entry.exchange_order_id)
        self.sides.append(execution.side)
        self.trade_ids.append(execution.trade_id)
        self.prices.append(str(execution.price))
        self.amounts.append(str(execution.amount))
        self.costs.append(str(cost))
        fees = execution.fees
        if fees and len(fees) == 1:
            ((currency, fee),) = fees
            self.fees.append(str(fee))
            self.currencies.append(currency)
            self.others.append(None)
        else:
            first, asset, others = fee_columns(fees, settle_asset)
            self.fees.append(None if first is None else str(first))
            self.currencies.append(asset)
            self.others.append(None if others is None else json.dumps(others))
        self.times.append(execution.time)
        self.roles.append(execution.taker_or_maker)

    def cut(self, length: int, order_id: int) -> None:
        """Take back the rows behind `length`, which are of one order."""
        self.entries.pop(order_id, None)
        for column in (
            self.order_ids, self.exchange_ids, self.sides, self.trade_ids, self.prices,
            self.amounts, self.costs, self.fees, self.currencies, self.others, self.times,
            self.roles,
        ):  # fmt: skip
            del column[length:]

    async def write(self, raw: Raw, scope: Scope) -> bool:
        """Insert the rows and give the tallies their new version; False if nothing was inserted."""
        # In the order of ids, as every writer locks them.
        entries = [self.entries[order_id] for order_id in sorted(self.entries)]
        try:
            row = await raw.fetchrow(
                INSERT_PLAIN, scope.account_id, scope.market_id,
                [entry.order_id for entry in entries], [entry.version for entry in entries],
                self.order_ids, self.exchange_ids, self.sides, self.trade_ids, self.prices,
                self.amounts, self.costs, self.fees, self.currencies, self.others, self.times,
                self.roles,
            )  # fmt: skip
        except _OUTRUN:
            return False
        if row["version"] is None:
            return False
        for entry in entries:
            entry.version = row["version"]
        return True


async def write_one(raw: Raw, entry: Entry, execution: Execution, settle_asset: str) -> bool:
    """Count and insert one plain fill; False if it was not inserted, and the tally is not right."""
    cost = entry.tally.count(execution)
    fee, currency, others = fee_columns(execution.fees, settle_asset)
    try:
        version = await raw.fetchval(
            INSERT_ONE, entry.order_id, entry.version, execution.trade_id, str(execution.price),
            str(execution.amount), str(cost), None if fee is None else str(fee), currency,
            None if others is None else json.dumps(others), execution.time,
            execution.taker_or_maker,
        )  # fmt: skip
    except _OUTRUN:
        return False
    if version is None:
        return False
    entry.version = version
    return True


def judged(entry: Entry, executions: Sequence[Execution], batch: Batch, asset: str) -> int | None:
    """Add the fills of one order to `batch`, if all are plain or known; how many were known.

    None if one is neither: nothing is added then, and the tally has to be dropped, since it may
    have counted some. A batch has the fills of an order in one piece.
    """
    length, known = len(batch), 0
    for execution in executions:
        verdict = entry.tally.judge(execution)
        if verdict is Verdict.PLAIN:
            batch.add(entry, execution, asset)
        elif verdict is Verdict.KNOWN:
            known += 1
        else:
            batch.cut(length, entry.order_id)
            return None
    return known


def order_now(entry: Entry) -> Order:
    """The order as the tally has it."""
    tally, current = entry.tally, entry.current or entry.tally.order
    if current.filled is not tally.filled:
        current = replace(
            tally.order, filled=tally.filled, cost=tally.cost, status=tally.status,
            updated_at=tally.updated_at,
        )  # fmt: skip
        entry.current = current
    return current
