"""`store.ledger`: orders, executions, and what follows from them.

What comes in (`place`, `apply`, `apply_many`, `enter`) is stored in one transaction for each call,
any number of times, in any order. What follows (positions, balances, PnL) is derived from the
executions and entries whenever it is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from kurisu.domain.balance import Balance, Entry
from kurisu.domain.execution import Execution
from kurisu.domain.market import MarketName
from kurisu.domain.order import Order, OrderStatus, OrderUpdate
from kurisu.domain.position import MarketTerms
from kurisu.errors import InvalidArgument, LedgerRuleBroken, NotFound
from kurisu.ledger.events import RiskEvent
from kurisu.ledger.intake import Flag, Outcome, flags_of
from kurisu.ledger.tally import Verdict
from kurisu.store import ledger_conditions, ledger_entries, ledger_read, ledger_state
from kurisu.store.accounts import Account
from kurisu.store.connect import driver, transaction, translated
from kurisu.store.ledger_fast import Tallies, order_now, write_one
from kurisu.store.ledger_intake import Raw, Scope
from kurisu.store.ledger_many import BATCH, Many, take_in_and_tally
from kurisu.store.ledger_read import Filter
from kurisu.store.ledger_state import OWNERS, after, one_view
from kurisu.store.ledger_turns import Call, Turn, known_outcome, plain_outcome, take_turn
from kurisu.store.ledger_values import (
    Applied,
    BalanceRow,
    Cursor,
    EntryRow,
    PnlRow,
    PositionRow,
    ReportedBalance,
    StoredExecution,
    WaitingRecord,
)
from kurisu.store.markets import Market
from kurisu.store.prompt import Awake, Begun

if TYPE_CHECKING:
    from kurisu.store.store import Store

# Whoever takes fills in looks up single rows. A plan is made once in a session, perhaps for a table
# that is nearly empty, and one that reads all of it would get slower with every fill.
BY_INDEX: Final = "SET enable_seqscan = off"

# Parameters: exchange, symbol.
MARKET: Final = "SELECT id, contract_size FROM markets WHERE exchange = $1 AND symbol = $2"


def _wallet(row: BalanceRow) -> tuple[int | None, int | None, str]:
    return row.account_id, row.strategy_run_id, row.balance.asset


class Ledger:
    """`store.ledger`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tallies = Tallies()
        self._scopes: dict[tuple[int | None, int | None, str, str], Scope] = {}
        # One writer at a time: what a tally counted is in the database before the next looks.
        self._lock = asyncio.Lock()
        # The fills that wait for the lock, and are joined by those that come.
        self._turn: Turn | None = None
        self._awake = Awake()
        self._connection: AsyncConnection | None = None
        self._raw: Raw | None = None

    async def close(self) -> None:
        """End the connection that is kept for fills."""
        await self._discard()

    # What comes in

    async def place(self, order: Order) -> Outcome:
        """Write an order of ours as pending, before it is sent; or adopt one of somebody else.

        order: with a client id of ours, or (adopted) with the exchange's id alone; account_id, or
            for a simulated run strategy_run_id, says whose it is. Only its terms count, not how
            far it got. `outcome.order.id` is its row. What waited for it joins now.
        Placing the same order again changes nothing. Raises LedgerRuleBroken if the client id names
        another order, NotFound for a market or account that is not there.
        """
        scope = await self._scope(order.account_id, order.market, order.strategy_run_id)
        async with self._session() as raw:
            return (await take_in_and_tally(raw, scope, [order], self._tallies)).outcomes[0]

    async def place_many(self, orders: Iterable[Order]) -> list[Outcome]:
        """As `place`, for many at once, in one transaction for each thousand of one market.

        If one of them breaks a rule, none of its thousand is written.
        """
        outcomes: list[Outcome] = []
        rest = iter(orders)
        while chunk := list(itertools.islice(rest, BATCH)):
            parts: dict[tuple[int | None, MarketName, int | None], list[Order]] = {}
            for order in chunk:
                whose = (order.account_id, order.market, order.strategy_run_id)
                parts.setdefault(whose, []).append(order)
            for whose, part in parts.items():
                scope = await self._scope(*whose)
                async with self._session() as raw:
                    taken = await take_in_and_tally(raw, scope, part, self._tallies)
                    outcomes += taken.outcomes
        return outcomes

    async def apply(
        self,
        account: Account | None,
        message: OrderUpdate | Execution,
        *,
        market: Market | None = None,
        run_id: int | None = None,
    ) -> Outcome:
        """Take in what an exchange said about an order, or a fill; idempotent, in any order.

        market: where the message has no `symbol`. run_id: of a simulated run, with no account.
        Outcome: what this call changed and what does not add up; `order` is None while the order is
        not ours and the message waits. Risk events are stored with it.
        Calls of several tasks at a time have their order; fills that wait share a transaction.
        """
        scope = await self._scope_of(account, message.symbol, market, run_id)
        if isinstance(message, Execution):
            return await self._apply_fill(scope, message)
        return await self._apply_update(scope, message)

    async def apply_many(
        self,
        account: Account | None,
        messages: Iterable[OrderUpdate | Execution],
        *,
        market: Market | None = None,
        run_id: int | None = None,
    ) -> Applied:
        """As `apply`, for many at once, in one transaction for each thousand or so."""
        rest = iter(messages)
        async with self._session() as raw:
            async with Many(raw, self._tallies) as many:
                while chunk := list(itertools.islice(rest, BATCH)):
                    parts: dict[str | None, list[OrderUpdate | Execution]] = {}
                    for message in chunk:
                        parts.setdefault(message.symbol, []).append(message)
                    for symbol, part in parts.items():
                        scope = self._known_scope(account, symbol, market, run_id)
                        if scope is None:
                            await many.land()
                            scope = await self._scope_of(account, symbol, market, run_id, raw)
                        await many.apply(scope, part)
            return many.applied

    async def enter(
        self, account: Account | None, entries: Iterable[Entry], *, run_id: int | None = None
    ) -> int:
        """Store deposits, withdrawals, opening balances, corrections; returns how many were new.

        One whose reference is there already (same account, kind and asset) is left out. Raises
        LedgerRuleBroken, "entry_reference_names_one_entry", if it is there with another content.
        """
        async with transaction(self._store.database) as connection:
            return await ledger_entries.enter(
                connection, None if account is None else account.id, run_id, entries
            )

    async def entries(
        self,
        account: Account | None = None,
        *,
        run_id: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[EntryRow]:
        """Entries by time. until is exclusive."""
        async with transaction(self._store.database) as connection:
            return await ledger_entries.entries(
                connection, None if account is None else account.id, run_id, since, until
            )

    async def raise_event(
        self,
        event: RiskEvent,
        *,
        account: Account | None = None,
        market: Market | None = None,
        run_id: int | None = None,
    ) -> bool:
        """Store a risk event; False if the same one is there already."""
        async with transaction(self._store.database) as connection:
            return await ledger_entries.raise_event(
                connection,
                event,
                None if account is None else account.id,
                None if market is None else market.id,
                run_id,
            )

    # How far an account was read, and what its exchange reports

    async def cursor(
        self, account: Account, kind: str, market: Market | None = None
    ) -> Cursor | None:
        """How far `kind` (orders, trades, ledger) was read; None if it never was."""
        async with transaction(self._store.database) as connection:
            return await ledger_entries.cursor(
                connection, account.id, None if market is None else market.id, kind
            )

    async def move_cursor(
        self,
        account: Account,
        kind: str,
        until: datetime,
        *,
        market: Market | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Everything of `kind` before `until` is stored; never moves back."""
        async with transaction(self._store.database) as connection:
            await ledger_entries.move_cursor(
                connection, account.id, None if market is None else market.id, kind, until, details
            )

    async def report_balances(
        self, account: Account, time: datetime, balances: Sequence[Balance]
    ) -> None:
        """Store what the exchange says that the account has; all of it, at `time`."""
        async with transaction(self._store.database) as connection:
            await ledger_entries.report_balances(connection, account.id, time, balances)

    async def reported_balances(
        self, account: Account, at: datetime | None = None
    ) -> list[ReportedBalance]:
        """What the exchange last said (not later than `at`), by asset; empty if it never did."""
        async with transaction(self._store.database) as connection:
            return await ledger_entries.reported_balances(connection, account.id, at)

    # What stands

    async def order(
        self,
        account: Account | None,
        *,
        client_order_id: str | None = None,
        exchange_order_id: str | None = None,
        market: Market | None = None,
    ) -> Order | None:
        """The order of that id; None if it is not ours. market: exchange ids are per market."""
        if (client_order_id is None) == (exchange_order_id is None):
            raise InvalidArgument("ask for a client's id or for an exchange's order id")
        wanted = Filter(
            account_id=None if account is None else account.id,
            market_id=None if market is None else market.id,
            client_order_id=client_order_id,
            exchange_order_id=exchange_order_id,
        )
        async with transaction(self._store.database) as connection:
            found = await ledger_read.orders(connection, wanted, 2)
        if len(found) > 1:
            raise InvalidArgument(
                f"{exchange_order_id!r} is the id of orders of several markets: give the market"
            )
        return found[0] if found else None

    async def orders(
        self,
        account: Account | None = None,
        *,
        market: Market | None = None,
        strategy_id: int | None = None,
        run_id: int | None = None,
        statuses: Collection[OrderStatus] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        at: datetime | None = None,
        limit: int | None = None,
    ) -> list[Order]:
        """Orders by time of creation; the last `limit` of them. None: of all.

        since, until: of created_at; until is exclusive. at: as they stood then, by the exchange's
            clock; those that were not there are left out.
        """
        wanted = Filter(
            account_id=None if account is None else account.id,
            market_id=None if market is None else market.id,
            strategy_id=strategy_id,
            run_id=run_id,
            statuses=statuses,
            since=since,
            until=until,
        )
        if at is not None:
            end = after(at) if until is None else min(until, after(at))
            wanted = replace(wanted, until=end)
            async with one_view(self._store.database) as connection:
                found = await ledger_read.orders_at(connection, wanted, at)
            return found if limit is None else found[max(0, len(found) - limit) :]
        async with transaction(self._store.database) as connection:
            return await ledger_read.orders(connection, wanted, limit)

    async def open_orders(self, account: Account, market: Market | None = None) -> list[Order]:
        """Orders that are pending or open."""
        return await self.orders(
            account, market=market, statuses=(OrderStatus.PENDING, OrderStatus.OPEN)
        )

    async def executions(
        self,
        account: Account | None = None,
        *,
        market: Market | None = None,
        strategy_id: int | None = None,
        run_id: int | None = None,
        order_id: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> list[StoredExecution]:
        """Executions that count, by time; the last `limit` of them."""
        wanted = Filter(
            account_id=None if account is None else account.id,
            market_id=None if market is None else market.id,
            strategy_id=strategy_id,
            run_id=run_id,
            order_id=order_id,
            since=since,
            until=until,
        )
        async with transaction(self._store.database) as connection:
            return await ledger_read.executions(connection, wanted, limit)

    async def waiting(self, account: Account, market: Market | None = None) -> list[WaitingRecord]:
        """What was said of orders that are not (yet) ours, and executions that do not fit."""
        async with transaction(self._store.database) as connection:
            return await ledger_read.waiting(
                connection, account.id, None if market is None else market.id
            )

    async def conditions(
        self, account: Account, market: Market | None = None
    ) -> list[tuple[Market, RiskEvent]]:
        """What does not add up now: fills missing, orders unknown, executions held."""
        async with transaction(self._store.database) as connection:
            return await ledger_conditions.conditions(connection, account, market)

    async def note_conditions(self, account: Account, market: Market | None = None) -> int:
        """Store what does not add up now as risk events; returns how many are new.

        For the end of a synchronisation: in the middle of one most conditions are about to pass.
        """
        found = await self.conditions(account, market)
        new = 0
        async with transaction(self._store.database) as connection:
            for where, event in found:
                new += await ledger_entries.raise_event(
                    connection, event, account.id, where.id, None
                )
        return new

    async def positions(
        self,
        account: Account | None = None,
        *,
        market: Market | None = None,
        strategy_id: int | None = None,
        run_id: int | None = None,
        at: datetime | None = None,
        by: Collection[str] = ("account", "strategy", "run"),
        marked: bool = True,
    ) -> list[PositionRow]:
        """Positions that the executions until `at` (inclusive; None: all) lead to.

        by: what is kept apart; a market always is. by=("account",) is how an exchange sees it.
        marked: with unrealised PnL at the close of the market's latest candle at `at`.
        """
        time = at or datetime.now(UTC)
        wanted = Filter(
            account_id=None if account is None else account.id,
            market_id=None if market is None else market.id,
            strategy_id=strategy_id,
            run_id=run_id,
            until=None if at is None else after(at),
        )
        async with one_view(self._store.database) as connection:
            rows = await ledger_state.positions(connection, wanted, time, by, marked=marked)
        return [row for _, row in rows]

    async def balances(
        self,
        account: Account | None = None,
        *,
        run_id: int | None = None,
        at: datetime | None = None,
        by_run: bool = False,
    ) -> list[BalanceRow]:
        """Wallets that the executions and entries until `at` add up to, by account and asset.

        run_id: what that run did to them, and nothing else. by_run: what each run did.
        used: what spot orders hold that were open at `at`.
        """
        async with one_view(self._store.database) as connection:
            return await ledger_state.balances(
                connection,
                None if account is None else account.id,
                run_id,
                at,
                datetime.now(UTC),
                by_run=by_run,
            )

    async def pnl(
        self,
        account: Account | None = None,
        *,
        market: Market | None = None,
        strategy_id: int | None = None,
        run_id: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        by: Collection[str] = ("account", "market"),
    ) -> list[PnlRow]:
        """Realised PnL, fees and volume of a time, and what is unrealised at its end.

        by: any of account, market, strategy, run, day (UTC). Positions are an account's in a
            market; by strategy or run they are kept apart, and what is realised is counted apart.
            Unrealised PnL is left out by day.
        """
        wanted = Filter(
            account_id=None if account is None else account.id,
            market_id=None if market is None else market.id,
            strategy_id=strategy_id,
            run_id=run_id,
            until=until,
        )
        end = until or datetime.now(UTC)
        async with one_view(self._store.database) as connection:
            return await ledger_state.pnl(connection, wanted, since, end, by)

    async def snapshot(
        self, account: Account | None = None, *, run_id: int | None = None,
        at: datetime | None = None,
    ) -> tuple[int, int]:  # fmt: skip
        """Write positions and balances at `at` (now) into their tables.

        Returns how many rows of each. The same time again replaces what it said.
        """
        time = at or datetime.now(UTC)
        account_id = None if account is None else account.id
        wanted = Filter(account_id=account_id, run_id=run_id, until=after(time))
        async with one_view(self._store.database) as connection:
            held = await ledger_state.positions(connection, wanted, time, OWNERS, marked=True)
            wallets = [
                row
                for by_run in (False, True)
                for row in await ledger_state.balances(
                    connection, account_id, run_id, at, time, by_run=by_run
                )
                # A run's share beside the whole wallet of its account.
                if not by_run or (row.strategy_run_id is not None and row.account_id is not None)
            ]
            if run_id is not None:
                wallets = list({_wallet(row): row for row in wallets}.values())
            return await ledger_state.write_snapshot(connection, time, held, wallets)

    # Names and terms

    async def strategies(self) -> dict[int, str]:
        """Names of the strategies by id."""
        async with transaction(self._store.database) as connection:
            rows = await connection.execute(text("SELECT id, name FROM strategies ORDER BY id"))
            return {row.id: row.name for row in rows}

    async def terms(self, name: MarketName) -> MarketTerms:
        """How a market settles. Raises NotFound, LedgerRuleBroken."""
        return (await self._market(name))[1]

    # How

    async def _market(self, name: MarketName, raw: Raw | None = None) -> tuple[int, MarketTerms]:
        if raw is not None:
            row = await raw.fetchrow(MARKET, name.exchange, name.symbol)
        else:
            async with transaction(self._store.database) as connection:
                row = await (await driver(connection)).fetchrow(MARKET, name.exchange, name.symbol)
        if row is None:
            raise NotFound(
                f"market {name} is not in the database; `kurisu markets list` shows what is there."
            )
        return row["id"], MarketTerms.of(name, row["contract_size"])

    def _name(
        self, account: Account | None, symbol: str | None, market: Market | None
    ) -> MarketName:
        if market is not None:
            if symbol not in {None, market.symbol}:
                raise LedgerRuleBroken("message_is_of_the_market", f"{symbol} is not {market}")
            return market.name
        if symbol is None:
            raise InvalidArgument("the message names no symbol: give the market")
        if account is None:
            raise InvalidArgument("without an account, give the market")
        return MarketName.of(account.exchange, symbol)

    def _known_scope(
        self, account: Account | None, symbol: str | None, market: Market | None, run_id: int | None
    ) -> Scope | None:
        """The scope, if it was looked up before."""
        if market is None and account is not None and symbol is not None:
            return self._scopes.get((account.id, None, account.exchange, symbol))
        name = self._name(account, symbol, market)
        if account is not None:
            return self._scopes.get((account.id, None, name.exchange, name.symbol))
        return self._scopes.get((None, run_id, name.exchange, name.symbol))

    async def _scope_of(
        self, account: Account | None, symbol: str | None, market: Market | None,
        run_id: int | None, raw: Raw | None = None,
    ) -> Scope:  # fmt: skip
        known = self._known_scope(account, symbol, market, run_id)
        if known is not None:
            return known
        name = self._name(account, symbol, market)
        return await self._scope(None if account is None else account.id, name, run_id, raw)

    async def _scope(
        self, account_id: int | None, name: MarketName, run_id: int | None, raw: Raw | None = None
    ) -> Scope:
        if account_id is None and run_id is None:
            raise InvalidArgument("an order belongs to an account or to a run; neither was given")
        run_id = run_id if account_id is None else None
        key = (account_id, run_id, name.exchange, name.symbol)
        found = self._scopes.get(key)
        if found is None:
            market_id, terms = await self._market(name, raw)
            found = self._scopes[key] = Scope(account_id, run_id, market_id, terms)
        return found

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[Raw]:
        """asyncpg's own connection, outside any transaction; kept, since a fill has no time for
        the pool. Where a server has one session at a time, nothing is kept.
        """
        self._turn = None  # fills that come from now on wait behind this
        async with self._lock, self._connected() as raw:
            yield raw

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Raw]:
        """The connection of `_session`, for who has the lock."""
        database = self._store.database
        with translated(database):
            try:
                if isinstance(database.pool, NullPool):
                    async with database.connect() as connection:
                        yield await driver(connection)
                    return
                if self._connection is None:
                    connection = await database.connect()
                    self._raw = await driver(connection)
                    self._connection = connection
                    await self._raw.execute(BY_INDEX)
                yield self._raw
            except LedgerRuleBroken:
                raise
            except BaseException:
                await self._discard()
                raise

    async def _discard(self) -> None:
        """Whatever it was, the next call begins with a connection that is fine."""
        broken, self._connection, self._raw = self._connection, None, None
        self._tallies.clear()
        if broken is not None:
            await broken.invalidate()
            await broken.close()

    async def _apply_update(self, scope: Scope, update: OrderUpdate) -> Outcome:
        """An update; one that says nothing new, as most polls do, asks nothing of the database."""
        self._turn = None
        async with self._lock:
            entry = self._tallies.get(scope, update.exchange_order_id or "")
            if entry is not None and entry.tally.knows(update):
                order = order_now(entry)
                flags = flags_of(update, order) | {Flag.NOTHING_NEW}
                return Outcome(order, order, conditions=entry.tally.conditions, flags=flags)
            async with self._connected() as raw:
                taken = await take_in_and_tally(raw, scope, [update], self._tallies)
                return taken.outcomes[0]

    async def _apply_fill(self, scope: Scope, execution: Execution) -> Outcome:
        """A fill, alone or with those that wait for the same turn."""
        if self._turn is None:
            self._turn = Turn()
        turn = self._turn
        call = turn.join(scope, execution)
        try:
            async with self._lock:
                # Whoever of a turn is here first does the work of all.
                if not call.is_answered:
                    if self._turn is turn:
                        self._turn = None
                    await self._take_turn(turn.calls)
        finally:
            turn.leave(call)
        return call.answer()

    async def _take_turn(self, calls: Sequence[Call]) -> None:
        if len(calls) == 1:
            (call,) = calls
            call.outcome = await self._apply_plain(call.scope, call.execution)
            if call.is_answered:
                return
        async with self._connected() as raw:
            await take_turn(raw, calls, self._tallies, self._store.database)

    async def _apply_plain(self, scope: Scope, execution: Execution) -> Outcome | None:
        """The short way for one fill; None if it is not plain, or the tally is not right."""
        entry = self._tallies.get(scope, execution.exchange_order_id)
        if entry is None or self._raw is None:
            return None
        verdict = entry.tally.judge(execution)
        if verdict is Verdict.OTHER:
            return None
        if verdict is Verdict.KNOWN:
            return known_outcome(entry)
        before = order_now(entry)
        try:
            with self._awake:
                writing = Begun(write_one(self._raw, entry, execution, scope.terms.settle_asset))
                outcome = plain_outcome(entry, before, execution, scope)
                is_written = await writing
        except BaseException:
            await self._discard()
            with translated(self._store.database):
                raise
        if not is_written:
            self._tallies.drop(scope, execution.exchange_order_id)
            return None
        self._tallies.grown(1)
        return outcome
