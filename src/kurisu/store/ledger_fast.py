"""Plain new fills into the database: one in one statement, many by COPY.

What an order's tally says is right as long as nobody else has touched the order's row, and that is
what is asked first: nothing is inserted unless every row still has the version that the tallies are
of. If one has not, the tallies are thrown away and the long way decides.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import asyncpg

from kurisu.domain.execution import Execution
from kurisu.domain.order import Order
from kurisu.ledger.order import OrderRecord, order_of
from kurisu.ledger.tally import Tally, Verdict
from kurisu.store.connect import copy_in
from kurisu.store.ledger_facts import fee_columns
from kurisu.store.ledger_intake import Loaded, Raw, Scope

#: Executions that the tallies of a store remember, together: about 100 MB.
REMEMBERED: Final = 200_000

# Whether the rows of orders are as the tallies have them, and no execution there is has one of the
# trade ids: the version that the orders will have then, or null. The rows stay locked. Parameters:
# account_id, market_id, order ids and their versions, trade ids.
# Mostly nothing there lies between the first and the last of the trade ids, and one look-up tells;
# ids are in the order of their bytes, as their column is. LATERAL makes each of the others one by
# the index, also where the plan was made for an empty table, and ORDER BY one by the right index:
# in an empty table all of them cost the same.
HOLD_ORDERS: Final = """
WITH held AS (
    SELECT w.version = o.version AS is_same
      FROM unnest($3::bigint[], $4::xid[]) AS w(id, version)
     CROSS JOIN LATERAL (
        SELECT xmin AS version FROM orders WHERE id = w.id FOR NO KEY UPDATE) AS o
)
SELECT CASE WHEN (SELECT count(*) FROM held WHERE is_same) = cardinality($3)
             AND ((SELECT e.trade_id FROM executions e
                    WHERE e.account_id = $1 AND e.market_id = $2
                      AND e.trade_id >= (SELECT min(t COLLATE "C") FROM unnest($5::text[]) t)
                      AND e.trade_id <= (SELECT max(t COLLATE "C") FROM unnest($5::text[]) t)
                    ORDER BY e.trade_id, e.exchange_order_id LIMIT 1) IS NULL
                  OR NOT EXISTS (SELECT 1 FROM unnest($5::text[]) AS t(trade_id)
                                  CROSS JOIN LATERAL (
                                     SELECT 1 FROM executions e
                                      WHERE e.account_id = $1 AND e.market_id = $2
                                        AND e.trade_id = t.trade_id
                                      ORDER BY e.exchange_order_id LIMIT 1) AS there))
            THEN pg_current_xact_id()::xid END AS version
"""

#: What COPY brings, in this order.
COLUMNS: Final = (
    "account_id", "market_id", "order_id", "exchange_order_id", "side", "trade_id", "price",
    "amount", "cost", "fee", "fee_currency", "other_fees", "time", "taker_or_maker",
)  # fmt: skip

# One execution, if all that holds, in one round trip. Numbers travel as text, which both sides read
# and write faster than the binary form. Parameters: order id and version, and the columns. Returns
# the order's new version, or nothing if it was not inserted.
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
    """Plain fills of one account and market on their way, as lines of COPY's text format."""

    __slots__ = ("_lines", "_scope", "_settle_asset", "_trade_ids", "entries")

    def __init__(self, scope: Scope) -> None:
        self.entries: dict[int, Entry] = {}
        self._scope = scope
        self._settle_asset = scope.terms.settle_asset
        self._trade_ids: set[str] = set()
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, entry: Entry, executions: Sequence[Execution]) -> int | None:
        """Count the fills of one order and add their rows; how many of them were known before.

        None if one is neither plain nor known: nothing is added then, and the tally has to be
        dropped, since it may have counted some. All fills of an order are given at once.
        """
        tally, known, lines, trade_ids = entry.tally, 0, [], []
        scope, of_others = self._scope, self._trade_ids
        # Before what differs between the fills of an order.
        head = "\t".join(
            (_NULL if scope.account_id is None else str(scope.account_id), str(scope.market_id),
             str(entry.order_id), _field(entry.exchange_order_id), tally.order.side.value)
        )  # fmt: skip
        for execution in executions:
            verdict = tally.judge(execution)
            if verdict is Verdict.KNOWN:
                known += 1
                continue
            # A trade id of two orders is an event, and the database cannot see those on their way.
            if verdict is not Verdict.PLAIN or execution.trade_id in of_others:
                return None
            cost = tally.count(execution)
            fees = execution.fees
            if fees and len(fees) == 1:
                ((currency, fee),) = fees
                charged = f"{fee!s}\t{_field(currency)}\t\\N"
            else:
                charged = _fee_fields(execution, self._settle_asset)
            trade_ids.append(execution.trade_id)
            # With !s a number or an enumeration is written in a quarter of the time.
            lines.append(
                f"{head}\t{_field(execution.trade_id)}\t{execution.price!s}\t"
                f"{execution.amount!s}\t{cost!s}\t{charged}\t{execution.time.isoformat()}\t"
                f"{execution.taker_or_maker or _NULL!s}\n"
            )
        if lines:
            self.entries[entry.order_id] = entry
            self._lines += lines
            self._trade_ids.update(trade_ids)
        return known

    async def _text(self) -> AsyncGenerator[bytes, None]:
        """The rows as COPY takes them."""
        yield "".join(self._lines).encode()

    async def write(self, raw: Raw) -> bool:
        """Insert the rows and give the tallies their new version; False if nothing was inserted."""
        # In the order of ids, as every writer locks them.
        entries = [self.entries[order_id] for order_id in sorted(self.entries)]
        scope = self._scope
        try:
            async with raw.transaction(isolation="read_committed"):
                version = await raw.fetchval(
                    HOLD_ORDERS, scope.account_id, scope.market_id,
                    [entry.order_id for entry in entries], [entry.version for entry in entries],
                    list(self._trade_ids),
                )  # fmt: skip
                if version is None:
                    return False
                await copy_in(raw, "executions", COLUMNS, self._text())
        except _OUTRUN:
            return False
        for entry in entries:
            entry.version = version
        return True


_NULL: Final = "\\N"
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def _field(text: str) -> str:
    """A text as COPY takes it."""
    return text if text.isalnum() else text.translate(_ESCAPES)


def _fee_fields(execution: Execution, settle_asset: str) -> str:
    fee, asset, others = fee_columns(execution.fees, settle_asset)
    return "\t".join(
        (_NULL if fee is None else str(fee), _NULL if asset is None else _field(asset),
         _NULL if others is None else _field(json.dumps(others)))
    )  # fmt: skip


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
