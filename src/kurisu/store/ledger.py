"""`store.ledger`: orders, executions, and what follows from them.

What comes in (`place`, `apply`, `apply_many`, `enter`) is stored in one transaction for each call,
any number of times, in any order. What follows (positions, balances, PnL) is derived from the
executions and entries whenever it is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kurisu.domain.balance import Balance, Entry
from kurisu.domain.execution import Execution
from kurisu.domain.order import Order, OrderStatus, OrderUpdate
from kurisu.ledger.events import RiskEvent
from kurisu.ledger.intake import Outcome
from kurisu.store.accounts import Account
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

if TYPE_CHECKING:
    from kurisu.store.store import Store


class Ledger:
    """`store.ledger`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # What comes in

    async def place(self, order: Order) -> Outcome:
        """Write an order of ours as pending, before it is sent; or adopt one of somebody else.

        order: with a client id of ours, or (adopted) with the exchange's id alone; account_id, or
            for a simulated run strategy_run_id, says whose it is. Only its terms count, not how
            far it got. `outcome.order.id` is its row. What waited for it joins now.
        Placing the same order again changes nothing. Raises LedgerRuleBroken if the client id names
        another order, NotFound for a market or account that is not there.
        """
        raise NotImplementedError

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
        """
        raise NotImplementedError

    async def apply_many(
        self,
        account: Account | None,
        messages: Iterable[OrderUpdate | Execution],
        *,
        market: Market | None = None,
        run_id: int | None = None,
    ) -> Applied:
        """As `apply`, for many at once, in one transaction for each thousand or so."""
        raise NotImplementedError

    async def enter(
        self, account: Account | None, entries: Iterable[Entry], *, run_id: int | None = None
    ) -> int:
        """Store deposits, withdrawals, opening balances, corrections; returns how many were new.

        One whose reference is there already (same account, kind and asset) is left out. Raises
        LedgerRuleBroken, "entry_reference_names_one_entry", if it is there with another content.
        """
        raise NotImplementedError

    async def entries(
        self,
        account: Account | None = None,
        *,
        run_id: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[EntryRow]:
        """Entries by time. until is exclusive."""
        raise NotImplementedError

    async def raise_event(
        self,
        event: RiskEvent,
        *,
        account: Account | None = None,
        market: Market | None = None,
        run_id: int | None = None,
    ) -> bool:
        """Store a risk event; False if the same one is there already."""
        raise NotImplementedError

    # How far an account was read, and what its exchange reports

    async def cursor(
        self, account: Account, kind: str, market: Market | None = None
    ) -> Cursor | None:
        """How far `kind` (orders, trades, ledger) was read; None if it never was."""
        raise NotImplementedError

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
        raise NotImplementedError

    async def report_balances(
        self, account: Account, time: datetime, balances: Sequence[Balance]
    ) -> None:
        """Store what the exchange says that the account has; all of it, at `time`."""
        raise NotImplementedError

    async def reported_balances(
        self, account: Account, at: datetime | None = None
    ) -> list[ReportedBalance]:
        """What the exchange last said (not later than `at`), by asset; empty if it never did."""
        raise NotImplementedError

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
        raise NotImplementedError

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
        limit: int | None = None,
    ) -> list[Order]:
        """Orders by time of creation; the last `limit` of them. None: of all.

        since, until: of created_at; until is exclusive.
        """
        raise NotImplementedError

    async def open_orders(self, account: Account, market: Market | None = None) -> list[Order]:
        """Orders that are pending or open."""
        raise NotImplementedError

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
        raise NotImplementedError

    async def waiting(self, account: Account, market: Market | None = None) -> list[WaitingRecord]:
        """What was said of orders that are not (yet) ours, and executions that do not fit."""
        raise NotImplementedError

    async def conditions(
        self, account: Account, market: Market | None = None
    ) -> list[tuple[Market, RiskEvent]]:
        """What does not add up now: fills missing, orders unknown, executions held."""
        raise NotImplementedError

    async def note_conditions(self, account: Account, market: Market | None = None) -> int:
        """Store what does not add up now as risk events; returns how many are new.

        For the end of a synchronisation: in the middle of one most conditions are about to pass.
        """
        raise NotImplementedError

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
        raise NotImplementedError

    async def balances(
        self,
        account: Account | None = None,
        *,
        run_id: int | None = None,
        at: datetime | None = None,
    ) -> list[BalanceRow]:
        """Wallets that the executions and entries until `at` add up to, by account and asset.

        run_id: what that run did to them, and nothing else.
        used: what spot orders hold that were open at `at`.
        """
        raise NotImplementedError

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

        by: any of account, market, strategy, run, day (UTC). Unrealised PnL is left out by day.
        """
        raise NotImplementedError

    async def snapshot(
        self, account: Account | None = None, *, run_id: int | None = None,
        at: datetime | None = None,
    ) -> tuple[int, int]:  # fmt: skip
        """Write positions and balances at `at` (now) into their tables.

        Returns how many rows of each. The same time again replaces what it said.
        """
        raise NotImplementedError
