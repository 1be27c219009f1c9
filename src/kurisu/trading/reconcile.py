"""`kurisu ledger reconcile`: the ledger beside what the exchange says.

The exchange is asked first and the ledger read after it, so that what happens meanwhile does not
look like something the ledger lacks. Nothing is changed; `apply` brings in what is missing the way
a synchronisation does, and moves balances by correction entries, which are rows of their own.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from kurisu.domain.balance import Entry, EntryKind
from kurisu.domain.execution import Execution
from kurisu.domain.order import Order
from kurisu.errors import LedgerRuleBroken
from kurisu.exchange.private_pages import execution_windows, order_windows, reach
from kurisu.exchange.private_port import PrivateExchange, ReportedOrder
from kurisu.ledger.reconcile import (
    Comparison,
    Difference,
    Subject,
    compare_balances,
    compare_market,
    corrections,
)
from kurisu.store.accounts import Account
from kurisu.store.markets import Market
from kurisu.store.patience import patiently
from kurisu.store.store import Store
from kurisu.trading.sync import Progress, read_wallets, silent
from kurisu.trading.take_in import Intake, TakenIn


@dataclass(slots=True)
class ReconcileReport:
    """What was compared, and what does not agree.

    since, until: the stretch; since None for as far as the exchange goes. comparison: as found, or
    after `apply` what is left. events: risk events that are new. applied: what `apply` brought in,
    by market. corrections: by how much it moved balances, by asset.
    """

    account: str
    since: datetime | None
    until: datetime
    markets: list[str] = field(default_factory=list)
    comparison: Comparison = field(default_factory=Comparison)
    events: int = 0
    applied: dict[str, TakenIn] = field(default_factory=dict)
    corrections: dict[str, Decimal] = field(default_factory=dict)


@dataclass(slots=True)
class _Told:
    """What the exchange told of one market since a time; and what the ledger had, read after it."""

    market: Market
    since: datetime | None
    orders: list[ReportedOrder]
    executions: list[Execution]
    ledger: list[Order] | None


async def reconcile_account(
    store: Store,
    account: Account,
    exchange: PrivateExchange,
    *,
    markets: Sequence[str] = (),
    since: datetime | None = None,
    apply: bool = False,
    progress: Progress = silent,
) -> ReconcileReport:
    """Compare an account; see the module.

    markets: unified symbols; () for those that were synchronised and those that balances suggest.
    Raises ExchangeError, DatabaseError.
    """
    until = await exchange.now()
    report = ReconcileReport(str(account), reach(exchange.private, since, until), until)
    listings = {listing.symbol: listing for listing in await exchange.load_markets()}
    asked = await read_wallets(store, account, exchange, listings, markets, until)
    totals = {balance.asset: balance.total for balance in asked.balances}
    told = []
    for symbol in asked.symbols:
        market = await patiently(store.markets.add, listings[symbol])
        report.markets.append(str(market))
        reached = reach(exchange.private.lists_of(symbol), since, until)
        told.append(await _ask(store, account, exchange, market, reached, until, progress))
    report.comparison = await _compare(store, account, told, totals, until)
    report.events = await _raise_events(store, account, report.comparison.differences, told)
    if apply and not report.comparison.agrees:
        await _apply(store, account, told, totals, report)
        for one in told:
            one.ledger = None
        report.comparison = await _compare(store, account, told, totals, until)
    return report


async def _ask(
    store: Store,
    account: Account,
    exchange: PrivateExchange,
    market: Market,
    since: datetime | None,
    until: datetime,
    progress: Progress,
) -> _Told:
    orders: dict[str, ReportedOrder] = {}
    executions: list[Execution] = []
    progress(market.symbol, "orders", since)
    async for page in order_windows(exchange, market.symbol, since, until):
        orders |= {row.update.exchange_order_id or "": row for row in page.rows}
        progress(market.symbol, "orders", page.until)
    async for window in execution_windows(exchange, market.symbol, since, until):
        executions += window.rows
        progress(market.symbol, "trades", window.until)
    with _no_collection():
        ledger = await patiently(store.ledger.orders, account, market=market)
    # Orders that the ledger has, and that no list had.
    unlisted = [
        order
        for order in ledger
        if order.exchange_order_id
        and order.exchange_order_id not in orders
        and order.created_at <= until
        and (since is None or order.created_at >= since)
    ]
    for order in unlisted:
        found = await exchange.fetch_order(market.symbol, exchange_order_id=order.exchange_order_id)
        if found is not None:
            orders[order.exchange_order_id or ""] = found
    # The ledger has to be read after the exchange was.
    return _Told(market, since, list(orders.values()), executions, None if unlisted else ledger)


async def _compare(
    store: Store,
    account: Account,
    told: Sequence[_Told],
    totals: dict[str, Decimal],
    until: datetime,
) -> Comparison:
    found = Comparison()
    contract_fills: Counter[str] = Counter()
    for one in told:
        with _no_collection():
            orders = one.ledger
            if orders is None:
                orders = await patiently(store.ledger.orders, account, market=one.market)
            executions = await patiently(store.ledger.executions, account, market=one.market)
            if one.market.name.settle is not None:
                contract_fills[one.market.name.settle] += len(executions)
            found = found.join(
                compare_market(
                    str(one.market),
                    (orders, [row.execution for row in executions]),
                    ([report.update for report in one.orders], one.executions),
                    # What it was not asked about is neither missing nor extra.
                    one.since,
                    until,
                )
            )
    ledger_totals = await _ledger_totals(store, account)
    return found.join(compare_balances(ledger_totals, totals, contract_fills))


async def _ledger_totals(store: Store, account: Account) -> dict[str, Decimal]:
    rows = await patiently(store.ledger.balances, account)
    return {row.balance.asset: row.balance.total for row in rows}


async def _raise_events(
    store: Store, account: Account, differences: Sequence[Difference], told: Sequence[_Told]
) -> int:
    """Store each difference as a risk event; those that are there already are not stored again."""
    markets = {str(one.market): one.market for one in told}
    new = 0
    for difference in differences:
        new += await patiently(
            store.ledger.raise_event,
            difference.event,
            account=account,
            market=markets.get(difference.market),
        )
    return new


async def _apply(
    store: Store,
    account: Account,
    told: Sequence[_Told],
    totals: dict[str, Decimal],
    report: ReconcileReport,
) -> None:
    differing = {
        difference.market
        for difference in report.comparison.differences
        if difference.subject is not Subject.BALANCE
    }
    for one in told:
        if str(one.market) in differing:
            intake = await Intake.open(store, account, one.market)
            await intake.orders(one.orders)
            await intake.executions(one.executions)
            report.applied[str(one.market)] = intake.taken
    # After the fills, which move balances themselves.
    before = max((row.id for row in await patiently(store.ledger.entries, account)), default=0)
    moves = corrections(await _ledger_totals(store, account), totals)
    entries = [
        Entry(
            EntryKind.CORRECTION,
            asset,
            amount,
            report.until,
            # Two that correct at once have seen the same last entry, and so have one name.
            reference=f"reconcile after {before}",
            note="the exchange's total at that time",
        )
        for asset, amount in moves.items()
    ]
    try:
        await patiently(store.ledger.enter, account, entries)
    except LedgerRuleBroken:
        # Somebody else has just corrected them; what is left shows in the comparison.
        return
    report.corrections = moves


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """While hundreds of thousands of values are made that stay: Python's collector would look at
    all of them again and again for cycles, which they have not, and take half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
