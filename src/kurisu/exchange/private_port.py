"""The private side of an exchange: orders, fills and balances of one account.

`CcxtAccount` is one; the paper account of a run is another. Numbers are exact in both directions:
what comes in is the exchange's digits, what goes out is sent digit for digit or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple, Protocol

from kurisu.domain.balance import Entry
from kurisu.domain.execution import Execution, Side
from kurisu.domain.listing import MarketListing
from kurisu.domain.order import OrderType, OrderUpdate
from kurisu.exchange.private_venues import PrivateVenue


@dataclass(frozen=True, slots=True)
class NewOrder:
    """An order as it is to be sent.

    symbol: CCXT's unified symbol. client_order_id: ours; made and stored before sending.
    amount: base units or contracts. price: quote units; None for an order without a limit.
    stop_price: trigger price, for stop_loss and take_profit.
    post_only: refused by the exchange where it would take liquidity. reduce_only: of contracts,
        never opens a position.
    """

    symbol: str
    client_order_id: str
    side: Side
    type: OrderType
    amount: Decimal
    price: Decimal | None = None
    stop_price: Decimal | None = None
    post_only: bool = False
    reduce_only: bool = False


@dataclass(frozen=True, slots=True)
class ReportedOrder:
    """An order as the exchange tells it.

    update: what it says. executions: fills that came with it, on venues that send them along.
    type: as far as it is one of ours; None where it is not said.
    """

    update: OrderUpdate
    type: OrderType | None = None
    executions: tuple[Execution, ...] = ()


class ReportedBalance(NamedTuple):
    """What the exchange says an account has of one asset; in units of the asset.

    free, used: None where it does not tell them apart.
    """

    asset: str
    total: Decimal
    free: Decimal | None = None
    used: Decimal | None = None


class Unreadable(NamedTuple):
    """A record that the ledger cannot take, and the rule that it breaks."""

    record: str
    reason: str


@dataclass(frozen=True, slots=True)
class OrderPage:
    """What one request for orders gave. is_full: there may be more. cursor: where the same
    question goes on, on venues that say so."""

    orders: tuple[ReportedOrder, ...]
    unreadable: tuple[Unreadable, ...] = ()
    is_full: bool = False
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class ExecutionPage:
    """What one request for fills gave. is_full, cursor: see `OrderPage`."""

    executions: tuple[Execution, ...]
    unreadable: tuple[Unreadable, ...] = ()
    is_full: bool = False
    cursor: str | None = None


class RecordQuery(NamedTuple):
    """Which records of a market: from an id on, in a window of time (ms, inclusive), or, with
    nothing set, the newest. cursor: the next page of the same question."""

    since_ms: int | None = None
    until_ms: int | None = None
    from_id: str | None = None
    cursor: str | None = None


class PrivateExchange(Protocol):
    """One account at one exchange.

    Questions are asked again within the policy and raise ExchangeError at its end. An order is
    sent once.
    """

    @property
    def name(self) -> str:
        """The exchange's part of a market's name, e.g. "binance"."""

    @property
    def private(self) -> PrivateVenue:
        """What is known about its private side."""

    async def now(self) -> datetime:
        """The exchange's own time."""

    async def load_markets(self, *, reload: bool = False) -> list[MarketListing]:
        """Every market it lists, with ticks and limits as they are now."""

    async def fetch_order(
        self, symbol: str, *, exchange_order_id: str | None = None,
        client_order_id: str | None = None, since: datetime | None = None,
    ) -> ReportedOrder | None:  # fmt: skip
        """The order of either id; None if the exchange says that it does not know it.

        since: when it was made, for venues that only find it in a list.
        """

    async def fetch_open_orders(self, symbol: str) -> list[ReportedOrder]:
        """Orders of a market that are not over."""

    async def fetch_orders(self, symbol: str, query: RecordQuery) -> OrderPage:
        """One request for orders, in no promised order, perhaps more than asked for."""

    async def fetch_executions(self, symbol: str, query: RecordQuery) -> ExecutionPage:
        """One request for fills, in no promised order, perhaps more than asked for."""

    async def fetch_balances(self, wallets: Sequence[str] = ()) -> list[ReportedBalance]:
        """What the account has in these wallets together, by asset; assets of which it has nothing
        are left out.

        Totals are what is settled: without the unrealised PnL of contracts.
        wallets: names of `PrivateVenue.wallets`; "" and () for the first one.
        """

    async def fetch_held_symbols(self, wallets: Sequence[str]) -> list[str]:
        """Markets of the contracts that are held in these wallets."""

    async def fetch_transfers(
        self, since: datetime, until: datetime
    ) -> tuple[list[Entry], list[Unreadable]]:
        """Deposits and withdrawals that are through, of [since, until]; fees as entries of their
        own. Empty where the exchange does not list them."""

    async def fetch_funding(
        self, symbol: str, since: datetime, until: datetime
    ) -> tuple[list[Entry], list[Unreadable]]:
        """Funding that was paid or received for a contract in [since, until].

        Raises NotOffered where it cannot be read.
        """

    async def create_order(self, order: NewOrder) -> ReportedOrder:
        """Send an order, once.

        Raises OrderRejected (or one of its kinds) if it is surely not there, OrderOutcomeUnknown
        if it may be.
        """

    async def cancel_order(
        self, symbol: str, *, exchange_order_id: str | None, client_order_id: str | None
    ) -> ReportedOrder | None:
        """Ask for the end of an order. None if the exchange does not know it, or no longer.

        Raises OrderOutcomeUnknown if the request may or may not have arrived.
        """

    async def close(self) -> None:
        """Let go of connections."""
