"""Reconciling an account of many orders: reading both sides, and comparing them.

The exchange is in memory and answers in pages of a thousand: a real one is bound by its rate
limit, which is not ours to measure. The ledger is in the database.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, cast

from bench.candles import SINCE
from bench.pairs import Figure, Sample, alternate
from bench.servers import Bench
from kurisu.domain.balance import Entry, EntryKind
from kurisu.domain.execution import Execution, Fee, Side, TakerOrMaker
from kurisu.domain.listing import MarketListing
from kurisu.domain.market import MarketName
from kurisu.domain.order import OrderStatus, OrderType, OrderUpdate
from kurisu.exchange.private_port import (
    ExecutionPage,
    OrderPage,
    PrivateExchange,
    RecordQuery,
    ReportedBalance,
    ReportedOrder,
)
from kurisu.exchange.private_venues import PrivateVenue
from kurisu.store.accounts import Account
from kurisu.trading.reconcile import reconcile_account

ORDERS: Final = 100_000
FILLS_EACH: Final = 2
GOAL_S: Final = 10.0
PAGE: Final = 1_000
_VENUE: Final = PrivateVenue(id_paging=True)
_SYMBOL: Final = "R/USDT"
_PRICE: Final = Decimal("100.25")
_AMOUNT: Final = Decimal("0.5")

# Orders of `FILLS_EACH` fills. Triggers are off: what they would compute is written.
# Parameters: account, market, orders, since.
_FILL_ORDERS: Final = """
INSERT INTO orders (client_order_id, exchange_order_id, account_id, market_id, side, type, price,
                    amount, filled, remaining, cost, status, created_at, updated_at)
SELECT 'r' || n, n::text, $1, $2, 'buy', 'limit', 100.25, 1, 1, 0, 100.25, 'closed',
       $4::timestamptz + n * INTERVAL '1 second', $4::timestamptz + n * INTERVAL '1 second'
  FROM generate_series(1, $3::integer) AS n
"""
_FILL_EXECUTIONS: Final = """
INSERT INTO executions (order_id, trade_id, account_id, market_id, exchange_order_id, side, price,
                        amount, cost, fee, fee_currency, time, taker_or_maker)
SELECT o.id, (2 * o.exchange_order_id::integer + f)::text, $1, $2, o.exchange_order_id, 'buy',
       100.25, 0.5, 50.125, 0.0001, 'BNB', o.created_at, 'taker'
  FROM orders o, generate_series(0, 1) AS f
 WHERE o.account_id = $1
"""


@dataclass
class _Exchange:
    """Says what the ledger has."""

    orders: list[ReportedOrder]
    executions: list[Execution]
    balances: list[ReportedBalance]
    at: datetime
    listing: MarketListing
    name: str = "bench"
    private: PrivateVenue = _VENUE

    async def now(self) -> datetime:
        return self.at

    async def load_markets(self, *, reload: bool = False) -> list[MarketListing]:  # noqa: ARG002
        return [self.listing]

    async def fetch_balances(self, wallets: Sequence[str] = ()) -> list[ReportedBalance]:  # noqa: ARG002
        return self.balances

    async def fetch_orders(self, symbol: str, query: RecordQuery) -> OrderPage:  # noqa: ARG002
        first = max(0, int(query.from_id or 0) - 1)
        rows = tuple(self.orders[first : first + PAGE])
        return OrderPage(rows, is_full=len(rows) == PAGE)

    async def fetch_executions(self, symbol: str, query: RecordQuery) -> ExecutionPage:  # noqa: ARG002
        first = max(0, int(query.from_id or 0) - 2)
        rows = tuple(self.executions[first : first + PAGE])
        return ExecutionPage(rows, is_full=len(rows) == PAGE)


async def measure(bench: Bench, count: int, pairs: int) -> list[Figure]:
    """An account of `count` orders with two fills each that agrees, and one that does not."""
    account, exchange = await _prepare(bench, count)

    async def ours() -> Sample:
        started = time.perf_counter()
        report = await reconcile_account(
            bench.store, account, cast(PrivateExchange, exchange), markets=[_SYMBOL]
        )
        took = time.perf_counter() - started
        found = report.comparison
        if not found.agrees or (found.orders, found.executions) != (count, FILLS_EACH * count):
            raise RuntimeError(f"the two sides do not agree: {found.differences[:3]}")
        return {"total": took}

    async def goal() -> Sample:
        return {"total": GOAL_S}

    measured = await alternate(pairs, ours, goal)
    return [
        measured.figure(
            f"reconcile {count:,} orders, {FILLS_EACH * count:,} fills", f"{GOAL_S:g} s", goal=1.0
        )
    ]


async def _prepare(bench: Bench, count: int) -> tuple[Account, _Exchange]:
    store = bench.store
    name = MarketName.of("bench", _SYMBOL)
    listing = MarketListing(name, "RUSDT", "spot", True)
    market = await store.markets.add(listing)
    account = await store.accounts.add("bench", f"r{time.time_ns()}")
    raw: Any = bench.raw
    async with raw.transaction():
        await raw.execute("SET LOCAL session_replication_role = replica")
        # Client ids are unique among all accounts.
        await raw.execute("DELETE FROM executions; DELETE FROM orders;")
        await raw.execute(_FILL_ORDERS, account.id, market.id, count, SINCE)
        await raw.execute(_FILL_EXECUTIONS, account.id, market.id)
    await raw.execute("ANALYZE orders, executions")
    deposit = Entry(EntryKind.DEPOSIT, "USDT", Decimal(10**12), SINCE)
    await store.ledger.enter(account, [deposit])
    times = [SINCE + timedelta(seconds=n) for n in range(1, count + 1)]
    orders = [
        ReportedOrder(
            OrderUpdate(f"r{n}", str(n), at, OrderStatus.CLOSED, Decimal(1), Decimal(1), _PRICE,
                        None, Side.BUY, at, _SYMBOL),
            OrderType.LIMIT,
        )
        for n, at in enumerate(times, 1)
    ]  # fmt: skip
    executions = [
        Execution(str(n), str(FILLS_EACH * n + f), Side.BUY, _PRICE, _AMOUNT, at,
                  _PRICE * _AMOUNT, (Fee("BNB", Decimal("0.0001")),), TakerOrMaker.TAKER, _SYMBOL)
        for n, at in enumerate(times, 1)
        for f in range(FILLS_EACH)
    ]  # fmt: skip
    balances = [
        ReportedBalance("BNB", -Decimal("0.0001") * FILLS_EACH * count),
        ReportedBalance("R", Decimal(count)),
        ReportedBalance("USDT", 10**12 - _PRICE * count),
    ]
    return account, _Exchange(orders, executions, balances, times[-1], listing)
