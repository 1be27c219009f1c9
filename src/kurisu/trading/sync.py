"""`kurisu ledger sync`: an account's orders, fills and balances into the ledger.

Each window is stored before the cursor passes it, and what is stored twice is stored once: a
process that is killed anywhere goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from kurisu.domain.balance import Balance, Entry
from kurisu.domain.execution import ASSET_LENGTH
from kurisu.domain.listing import MarketListing
from kurisu.domain.money import EXACT
from kurisu.errors import BadSymbol, ExchangeError, LedgerRuleBroken
from kurisu.exchange.private_pages import DEFAULT_SPAN, execution_windows, order_windows
from kurisu.exchange.private_port import PrivateExchange, ReportedBalance
from kurisu.ledger.arithmetic import ZERO
from kurisu.ledger.events import EventType
from kurisu.store.accounts import Account
from kurisu.store.markets import Market
from kurisu.store.patience import patiently
from kurisu.store.store import Store
from kurisu.trading.accounts import wallets_of
from kurisu.trading.gateway import Gateway
from kurisu.trading.take_in import Intake, TakenIn

#: How far before its cursor a market is read again: a venue may list a fill late.
OVERLAP: Final = timedelta(hours=1)
#: Orders that are asked for one by one, at most, in one market: those that the ledger calls open
#: and the lists did not have, and those that fills wait for.
MOST_SINGLE: Final = 1_000
#: An order of which the exchange says so long after it was last heard of that there is none, and
#: that is not open: the venue has forgotten it (OKX after two hours, Bybit after a day).
FORGOTTEN_AFTER: Final = timedelta(hours=1)
#: Assets that others are traded against, for finding the markets of an account.
_QUOTES: Final = ("USDT", "USDC", "FDUSD", "USD", "EUR", "BTC", "ETH")
_ORDERS: Final = "orders"
_TRADES: Final = "trades"
_MARKETS: Final = "markets"
_TRANSFERS: Final = "transfers"
_FUNDING: Final = "funding"
#: How far back deposits and withdrawals are read the first time, and before the cursor later.
TRANSFERS_SPAN: Final = timedelta(days=365)
TRANSFERS_OVERLAP: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class MarketReport:
    """One market of a synchronisation. since: from where it was read; None for the beginning.
    forgotten: orders that the exchange no longer knows, by its id; see `_end_forgotten`."""

    market: str
    since: datetime | None
    until: datetime
    taken: TakenIn
    forgotten: tuple[str, ...] = ()


@dataclass(slots=True)
class SyncReport:
    """What a synchronisation did. resolved: orders whose fate had been unknown. conditions: risk
    events that are new, of what does not add up at its end. balances: assets reported.
    transfers: deposits, withdrawals and their fees that are new. funding: payments that are new.
    notes: what could not be read, and is no reason not to read the rest."""

    account: str
    until: datetime
    markets: list[MarketReport] = field(default_factory=list)
    resolved: int = 0
    conditions: int = 0
    balances: int = 0
    transfers: int = 0
    funding: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def total(self, count: str) -> int:
        """The sum of a count of `TakenIn`."""
        found = (getattr(market.taken, count) for market in self.markets)
        return sum(value if isinstance(value, int) else len(value) for value in found)


#: (market, what is read, up to when)
Progress = Callable[[str, str, datetime | None], None]


def silent(market: str, what: str, until: datetime | None) -> None:
    """Nobody is watching."""


async def sync_account(
    store: Store,
    account: Account,
    exchange: PrivateExchange,
    *,
    markets: Sequence[str] = (),
    since: datetime | None = None,
    progress: Progress = silent,
) -> SyncReport:
    """Read an account, from where the last call stopped.

    markets: unified symbols; () for those of the last time and those that the balances suggest,
        and contracts that are held in a wallet that the account names.
    since: None for the cursor, and where there is none, for as far as the exchange goes.
    Raises ExchangeError, DatabaseError; what was read before is stored.
    """
    started = time.monotonic()
    until = await exchange.now()
    report = SyncReport(str(account), until)
    listings = {listing.symbol: listing for listing in await exchange.load_markets()}
    asked = await read_wallets(store, account, exchange, listings, markets, until)
    report.notes += asked.notes
    await _report_balances(store, account, until, asked.balances)
    report.balances = len(asked.balances)
    gateway = Gateway(store, account, exchange)
    report.resolved = len(await gateway.resolve_pending())
    for symbol in asked.symbols:
        market = await patiently(store.markets.add, listings[symbol])
        found = await _sync_market(store, account, exchange, market, since, until, progress)
        report.markets.append(found)
        report.notes += [
            f"order {name} of {market}: the exchange no longer knows it, and it is not open; taken "
            "as canceled without a fill"
            for name in found.forgotten
        ]
        if market.name.type == "swap":
            await _sync_funding(store, account, exchange, market, since, report)
        report.conditions += await patiently(store.ledger.note_conditions, account, market)
    progress("", _TRANSFERS, None)
    await _sync_transfers(store, account, exchange, since, report)
    report.seconds = time.monotonic() - started
    return report


@dataclass(frozen=True, slots=True)
class Asked:
    """Of an account: which markets to look at, and what its wallets have. notes: see
    `SyncReport`."""

    symbols: list[str]
    balances: list[ReportedBalance]
    notes: list[str] = field(default_factory=list)


async def read_wallets(
    store: Store,
    account: Account,
    exchange: PrivateExchange,
    listings: Mapping[str, MarketListing],
    wanted: Sequence[str],
    now: datetime,
) -> Asked:
    """The wallets that the account names; else the first one and those of the contracts that were
    ever looked at. Markets: see `_symbols_of`. Raises ExchangeError, BadSymbol."""
    named = wallets_of(account)
    notes: list[str] = []
    balances = _fitting(await exchange.fetch_balances(named), notes)
    held: list[str] = []
    if named:
        try:
            held = await exchange.fetch_held_symbols(named)
        except ExchangeError as error:
            notes.append(f"positions were not read, and suggest no markets: {error}")
    symbols, known = await _symbols_of(store, account, listings, balances, held, wanted, now)
    wallets = dict.fromkeys(("", *(exchange.private.wallet_of(symbol) for symbol in known)))
    if not named and len(wallets) > 1:
        notes.clear()
        balances = _fitting(await exchange.fetch_balances(tuple(wallets)), notes)
    return Asked(symbols, balances, notes)


def _fitting(reported: Iterable[ReportedBalance], notes: list[str]) -> list[ReportedBalance]:
    """Without assets whose names cannot be stored: anybody can send an account a token."""
    found = []
    for balance in reported:
        if len(balance.asset) > ASSET_LENGTH:
            notes.append(f"not taken: {balance.total:f} of {balance.asset}: its name is too long")
        else:
            found.append(balance)
    return found


async def _symbols_of(
    store: Store,
    account: Account,
    listings: Mapping[str, MarketListing],
    balances: Iterable[ReportedBalance],
    contracts: Iterable[str],
    wanted: Sequence[str],
    now: datetime,
) -> tuple[list[str], list[str]]:
    """Markets to look at: those wanted, else those of the last time and those that balances and
    contracts that are held suggest; and all that were ever looked at, these among them. What was
    looked at once is looked at from then on.

    Raises BadSymbol for one that the exchange does not list.
    """
    cursor = await patiently(store.ledger.cursor, account, _MARKETS)
    before = set(cursor.details.get("symbols", ())) if cursor else set()
    for symbol in wanted:
        if symbol not in listings:
            raise BadSymbol(account.exchange, f"it does not list {symbol}")
    if wanted:
        chosen = list(dict.fromkeys(wanted))
    else:
        held = {balance.asset for balance in balances}
        sides = held | set(_QUOTES)
        suggested = {
            symbol
            for symbol, listing in listings.items()
            if listing.type == "spot" and listing.name.base in held and listing.name.quote in sides
        }
        suggested |= {symbol for symbol in contracts if _is_supported(listings.get(symbol))}
        chosen = sorted((suggested | before) & listings.keys())
    known = sorted(before | set(chosen))
    if known != sorted(before):
        await patiently(
            store.ledger.move_cursor, account, _MARKETS, now, details={"symbols": known}
        )
    return chosen, known


def _is_supported(listing: MarketListing | None) -> bool:
    """False for options and contracts settled in a third asset, which the ledger cannot book."""
    return (
        listing is not None
        and listing.type != "option"
        and listing.name.settle in {None, listing.name.quote, listing.name.base}
    )


async def _sync_market(
    store: Store,
    account: Account,
    exchange: PrivateExchange,
    market: Market,
    since: datetime | None,
    until: datetime,
    progress: Progress,
) -> MarketReport:
    intake = await Intake.open(store, account, market)
    from_orders = await _start(store, account, _ORDERS, market, since)
    progress(market.symbol, _ORDERS, from_orders)
    async for orders in order_windows(exchange, market.symbol, from_orders, until):
        await intake.orders(orders.rows)
        intake.cannot_read(orders.unreadable)
        await patiently(store.ledger.move_cursor, account, _ORDERS, orders.until, market=market)
        progress(market.symbol, _ORDERS, orders.until)
    unknown = await _ask_for_open(store, account, exchange, market, intake)
    from_trades = await _start(store, account, _TRADES, market, since)
    async for trades in execution_windows(exchange, market.symbol, from_trades, until):
        await intake.executions(trades.rows)
        intake.cannot_read(trades.unreadable)
        await patiently(store.ledger.move_cursor, account, _TRADES, trades.until, market=market)
        progress(market.symbol, _TRADES, trades.until)
    await _ask_for_waiting(store, account, exchange, market, intake)
    conditions = await patiently(store.ledger.conditions, account, market)
    if any(event.event_type is EventType.FILLS_MISSING for _, event in conditions):
        # Orders that were filled while this went on: their fills are there by now.
        now = await exchange.now()
        async for trades in execution_windows(exchange, market.symbol, until - OVERLAP, now):
            await intake.executions(trades.rows)
    forgotten = await _end_forgotten(store, account, market, intake, unknown, until)
    starts = [at for at in (from_orders, from_trades) if at is not None]
    return MarketReport(str(market), min(starts, default=None), until, intake.taken, forgotten)


async def _sync_transfers(
    store: Store,
    account: Account,
    exchange: PrivateExchange,
    since: datetime | None,
    report: SyncReport,
) -> None:
    """Deposits and withdrawals. An exchange that does not tell them is a note, not an error."""
    cursor = await patiently(store.ledger.cursor, account, _TRANSFERS)
    start = report.until - TRANSFERS_SPAN
    if cursor is not None:
        # One that was on its way then is through now, under its old time.
        start = cursor.until - TRANSFERS_OVERLAP
    if since is not None:
        start = since if cursor is None else min(since, start)
    try:
        entries, unreadable = await exchange.fetch_transfers(start, report.until)
    except ExchangeError as error:
        report.notes.append(f"deposits and withdrawals were not read: {error}")
        return
    report.notes += [f"not taken: {one.record}: {one.reason}" for one in unreadable]
    report.transfers = await _enter(store, account, entries, report)
    await patiently(store.ledger.move_cursor, account, _TRANSFERS, report.until)


async def _sync_funding(
    store: Store,
    account: Account,
    exchange: PrivateExchange,
    market: Market,
    since: datetime | None,
    report: SyncReport,
) -> None:
    """Funding of a contract. An exchange that does not tell it is a note, not an error."""
    start = await _start(store, account, _FUNDING, market, since)
    if start is None:
        start = report.until - DEFAULT_SPAN
    try:
        entries, unreadable = await exchange.fetch_funding(market.symbol, start, report.until)
    except ExchangeError as error:
        report.notes.append(f"funding of {market} was not read: {error}")
        return
    report.notes += [f"not taken: {one.record}: {one.reason}" for one in unreadable]
    report.funding += await _enter(store, account, entries, report)
    await patiently(store.ledger.move_cursor, account, _FUNDING, report.until, market=market)


async def _enter(
    store: Store, account: Account, entries: Sequence[Entry], report: SyncReport
) -> int:
    """Entries that are new."""
    try:
        return await patiently(store.ledger.enter, account, entries)
    except LedgerRuleBroken:
        # One of them contradicts what is there; the others are none the worse for it.
        new = 0
        for entry in entries:
            try:
                new += await patiently(store.ledger.enter, account, [entry])
            except LedgerRuleBroken as error:
                report.notes.append(f"not taken: {entry.kind} {entry.reference}: {error}")
        return new


async def _start(
    store: Store, account: Account, kind: str, market: Market, since: datetime | None
) -> datetime | None:
    """From where to read: the cursor or `since`, whichever is earlier, so that no gap is left."""
    cursor = await patiently(store.ledger.cursor, account, kind, market)
    if cursor is None:
        return since
    resumed = cursor.until - OVERLAP
    return resumed if since is None else min(since, resumed)


async def _ask_for_open(
    store: Store, account: Account, exchange: PrivateExchange, market: Market, intake: Intake
) -> set[str]:
    """Orders that the ledger calls open, and that are older than what was read. Returns the ids of
    those that the exchange does not know."""
    unknown: set[str] = set()
    for order in (await patiently(store.ledger.open_orders, account, market))[:MOST_SINGLE]:
        if order.exchange_order_id is None or order.exchange_order_id in intake.seen:
            continue
        found = await exchange.fetch_order(
            market.symbol, exchange_order_id=order.exchange_order_id, since=order.created_at
        )
        if found is None:
            unknown.add(order.exchange_order_id)
        else:
            await intake.orders([found])
    return unknown


async def _end_forgotten(
    store: Store,
    account: Account,
    market: Market,
    intake: Intake,
    unknown: Collection[str],
    until: datetime,
) -> tuple[str, ...]:
    """End orders that the exchange does not know, and that no fill has come of: many venues forget
    those that were canceled without one, and the ledger would call them open for ever. Returns
    their ids."""
    if not unknown:
        return ()
    names = tuple(
        name
        for order in await patiently(store.ledger.open_orders, account, market)
        if (name := order.exchange_order_id) is not None
        and name in unknown
        and not order.filled
        and until - order.updated_at > FORGOTTEN_AFTER
    )
    await intake.forgotten(names, until)
    return names


async def _ask_for_waiting(
    store: Store, account: Account, exchange: PrivateExchange, market: Market, intake: Intake
) -> None:
    """Orders of fills that wait: older than what was read, or no longer in any list."""
    for record in (await patiently(store.ledger.waiting, account, market))[:MOST_SINGLE]:
        if record.order_id is not None or record.exchange_order_id is None:
            continue
        found = await exchange.fetch_order(
            market.symbol, exchange_order_id=record.exchange_order_id
        )
        if found is not None:
            await intake.orders([found])
            intake.taken.waiting -= min(intake.taken.waiting, len(record.executions))
            intake.taken.new += len(record.executions)


async def _report_balances(
    store: Store, account: Account, until: datetime, reported: Sequence[ReportedBalance]
) -> None:
    """An asset that was there and is not any more is reported once with nothing."""
    there = {balance.asset for balance in reported}
    gone = [
        Balance(row.balance.asset, ZERO)
        for row in await patiently(store.ledger.reported_balances, account)
        if row.balance.total and row.balance.asset not in there
    ]
    balances = [*(_balance(balance) for balance in reported), *gone]
    await patiently(store.ledger.report_balances, account, until, balances)


def _balance(reported: ReportedBalance) -> Balance:
    used = reported.used
    if used is None:
        free = reported.total if reported.free is None else reported.free
        used = EXACT.subtract(reported.total, free)
    return Balance(reported.asset, reported.total, used)
