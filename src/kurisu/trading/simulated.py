"""A simulated exchange behind the private port: what a paper account trades at.

    exchange = SimulatedExchange("binance", listings, {"USDT": Decimal(10_000)}, clock)
    gateway = Gateway(store, account, exchange)
    exchange.see("BTC/USDT", price, time)        # a trade, or a candle's prices in turn

It fills by the prices that it is shown: a market order, or a limit that crosses, at once and whole
at the last price; a resting limit at its own price once a price reaches it; a stop becomes what it
says once its trigger is reached. There is no depth: an order is filled whole, and moves nothing.
What it says is as exact as an exchange's, and it is asked in the same words, so that a paper run
goes the same way into the ledger as a live one. Spot markets only.

After a restart it is filled again from the ledger with `restore`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from kurisu.domain.balance import Entry
from kurisu.domain.execution import Execution, Fee, Side, TakerOrMaker, combine_fees
from kurisu.domain.listing import MarketListing
from kurisu.domain.order import Order, OrderStatus, OrderType, OrderUpdate
from kurisu.errors import (
    BadSymbol,
    DuplicateClientOrderId,
    InsufficientFunds,
    InvalidArgument,
    OrderRejected,
)
from kurisu.exchange.private_port import (
    ExecutionPage,
    NewOrder,
    OrderPage,
    RecordQuery,
    ReportedBalance,
    ReportedOrder,
    Unreadable,
)
from kurisu.exchange.private_venues import ClientIds, OrderLookup, PrivateVenue
from kurisu.ledger.arithmetic import ZERO, add, negate, product, subtract
from kurisu.trading.rules import OrderRequest, broken_rules

VENUE: Final = PrivateVenue(
    client_ids=ClientIds(r"[!-~]{1,50}"),
    lookup=OrderLookup.ID,
    stop_orders=True,
    market_buy_by_amount=True,
)


@dataclass(slots=True)
class _Placed:
    """An order at the simulated exchange."""

    id: str
    new: NewOrder
    created_at: datetime
    updated_at: datetime
    status: OrderStatus = OrderStatus.OPEN
    filled: Decimal = ZERO
    triggered: bool = False
    executions: list[Execution] = field(default_factory=list)

    @property
    def remaining(self) -> Decimal:
        return subtract(self.new.amount, self.filled)

    def report(self) -> ReportedOrder:
        new = self.new
        update = OrderUpdate(
            client_order_id=new.client_order_id, exchange_order_id=self.id, time=self.updated_at,
            status=self.status, filled=self.filled, amount=new.amount, price=new.price,
            stop_price=new.stop_price, side=new.side, created_at=self.created_at,
            symbol=new.symbol,
        )  # fmt: skip
        return ReportedOrder(update, new.type, tuple(self.executions))


class SimulatedExchange:
    """A `PrivateExchange` in memory.

    name: of the exchange whose markets it has. listings: those markets, spot. balances: what the
        account has, by asset. clock: the time of whatever happens next; aware.
    taker_fee, maker_fee: shares of what an order receives, in that asset.
    """

    def __init__(
        self,
        name: str,
        listings: Iterable[MarketListing],
        balances: Mapping[str, Decimal],
        clock: Callable[[], datetime],
        *,
        taker_fee: Decimal = ZERO,
        maker_fee: Decimal = ZERO,
    ) -> None:
        self.name = name
        self.private = VENUE
        self._listings = {listing.symbol: listing for listing in listings}
        for listing in self._listings.values():
            if listing.contract_size is not None:
                raise InvalidArgument(f"{listing.name}: only spot markets can be simulated")
        self._balances = dict(balances)
        self._clock = clock
        self._fees = {TakerOrMaker.TAKER: taker_fee, TakerOrMaker.MAKER: maker_fee}
        self._prices: dict[str, Decimal] = {}
        self._orders: dict[str, _Placed] = {}
        self._by_client_id: dict[str, _Placed] = {}

    # What a runner does

    def see(self, symbol: str, price: Decimal, time: datetime | None = None) -> list[ReportedOrder]:
        """A price was traded: fills what it reaches; the orders that changed.

        A fill has the time given, else the clock's.
        """
        self._prices[symbol] = price
        at = self._clock() if time is None else time
        changed = []
        for order in self._orders.values():
            if order.new.symbol == symbol and order.status is OrderStatus.OPEN:
                before = order.filled
                self._match(order, at)
                if order.filled != before:
                    changed.append(order.report())
        return changed

    def restore(self, orders: Iterable[Order]) -> None:
        """Orders of the ledger that are open, after a restart. Balances are those given."""
        for order in orders:
            if order.status is not OrderStatus.OPEN or not order.client_order_id:
                continue
            new = NewOrder(
                order.market.symbol, order.client_order_id, order.side, order.type, order.amount,
                order.price, order.stop_price,
            )  # fmt: skip
            name = order.exchange_order_id or _id_of(order.client_order_id)
            self._keep(_Placed(name, new, order.created_at, order.updated_at, filled=order.filled))

    # The port

    async def now(self) -> datetime:
        """The clock's time."""
        return self._clock()

    async def load_markets(self, *, reload: bool = False) -> list[MarketListing]:  # noqa: ARG002
        """The markets it was given."""
        return list(self._listings.values())

    async def fetch_order(
        self,
        symbol: str,
        *,
        exchange_order_id: str | None = None,
        client_order_id: str | None = None,
        since: datetime | None = None,  # noqa: ARG002
    ) -> ReportedOrder | None:
        """The order of either id; None if there is none."""
        found = (
            self._orders.get(exchange_order_id)
            if exchange_order_id is not None
            else self._by_client_id.get(client_order_id or "")
        )
        return found.report() if found is not None and found.new.symbol == symbol else None

    async def fetch_open_orders(self, symbol: str) -> list[ReportedOrder]:
        """Orders of a market that are not over."""
        return [o.report() for o in self._of(symbol) if o.status is OrderStatus.OPEN]

    async def fetch_orders(self, symbol: str, query: RecordQuery) -> OrderPage:  # noqa: ARG002
        """Every order of a market."""
        return OrderPage(tuple(order.report() for order in self._of(symbol)))

    async def fetch_executions(self, symbol: str, query: RecordQuery) -> ExecutionPage:  # noqa: ARG002
        """Every fill of a market."""
        return ExecutionPage(tuple(e for order in self._of(symbol) for e in order.executions))

    async def fetch_balances(self, wallets: Sequence[str] = ()) -> list[ReportedBalance]:  # noqa: ARG002
        """What the account has, by asset; there is one wallet."""
        found = []
        for asset, total in sorted(self._balances.items()):
            used = self._used(asset)
            if total or used:
                found.append(ReportedBalance(asset, total, subtract(total, used), used))
        return found

    async def fetch_transfers(
        self,
        since: datetime,  # noqa: ARG002
        until: datetime,  # noqa: ARG002
    ) -> tuple[list[Entry], list[Unreadable]]:
        """None: nothing comes or goes."""
        return [], []

    async def fetch_held_symbols(self, wallets: Sequence[str]) -> list[str]:  # noqa: ARG002
        """None: there are no contracts."""
        return []

    async def fetch_funding(
        self,
        symbol: str,  # noqa: ARG002
        since: datetime,  # noqa: ARG002
        until: datetime,  # noqa: ARG002
    ) -> tuple[list[Entry], list[Unreadable]]:
        """None: there are no contracts."""
        return [], []

    async def create_order(self, order: NewOrder) -> ReportedOrder:
        """Take an order, and fill it if the last price does. Raises OrderRejected."""
        listing = self._listings.get(order.symbol)
        if listing is None:
            raise BadSymbol(self.name, f"it does not list {order.symbol}")
        if order.client_order_id in self._by_client_id:
            raise DuplicateClientOrderId(self.name, f"order {order.client_order_id} is there")
        request = OrderRequest(
            order.symbol, order.side, order.type, order.amount, order.price, order.stop_price
        )
        if faults := broken_rules(request, listing):
            raise OrderRejected(self.name, "; ".join(faults.values()))
        last = self._prices.get(order.symbol)
        if last is None and order.price is None and order.stop_price is None:
            raise OrderRejected(self.name, f"{order.symbol} has no price yet")
        if order.post_only and order.price is not None and self._crosses(order, last):
            raise OrderRejected(self.name, "it would take liquidity, and is post-only")
        asset, needed = self._needed(order, listing, last)
        if subtract(self._balances.get(asset, ZERO), self._used(asset)) < needed:
            raise InsufficientFunds(self.name, f"the order needs {needed} {asset}")
        at = self._clock()
        placed = _Placed(_id_of(order.client_order_id), order, at, at)
        self._keep(placed)
        if last is not None:
            self._match(placed, at, is_new=True)
        return placed.report()

    async def cancel_order(
        self, symbol: str, *, exchange_order_id: str | None, client_order_id: str | None
    ) -> ReportedOrder | None:
        """End an order; None if there is none that is open."""
        found = (
            self._orders.get(exchange_order_id)
            if exchange_order_id is not None
            else self._by_client_id.get(client_order_id or "")
        )
        if found is None or found.new.symbol != symbol or found.status is not OrderStatus.OPEN:
            return None
        found.status, found.updated_at = OrderStatus.CANCELED, self._clock()
        return found.report()

    async def close(self) -> None:
        """Nothing is held open."""

    # How

    def _match(self, order: _Placed, at: datetime, *, is_new: bool = False) -> None:
        new, last = order.new, self._prices[order.new.symbol]
        if new.stop_price is not None and not order.triggered:
            # A stop loss sells into a fall, a take profit into a rise; buys the other way round.
            falls = (new.side is Side.SELL) == (new.type is OrderType.STOP_LOSS)
            order.triggered = last <= new.stop_price if falls else last >= new.stop_price
            if not order.triggered:
                return
            is_new = True
        if new.price is None:
            self._fill(order, last, TakerOrMaker.TAKER, at)
        elif self._crosses(new, last):
            if is_new:
                self._fill(order, last, TakerOrMaker.TAKER, at)
            else:
                self._fill(order, new.price, TakerOrMaker.MAKER, at)

    @staticmethod
    def _crosses(new: NewOrder, last: Decimal | None) -> bool:
        if last is None or new.price is None:
            return False
        return last <= new.price if new.side is Side.BUY else last >= new.price

    def _fill(self, order: _Placed, price: Decimal, role: TakerOrMaker, at: datetime) -> None:
        new, listing, amount = order.new, self._listings[order.new.symbol], order.remaining
        cost = product(price, amount)
        base, quote = listing.name.base, listing.name.quote
        asset, received = (base, amount) if new.side is Side.BUY else (quote, cost)
        fee = product(received, self._fees[role])
        signed = (amount, negate(cost)) if new.side is Side.BUY else (negate(amount), cost)
        for name, change in ((base, signed[0]), (quote, signed[1]), (asset, negate(fee))):
            self._balances[name] = add(self._balances.get(name, ZERO), change)
        order.executions.append(
            Execution(
                order.id, f"{order.id}-{len(order.executions) + 1}", new.side, price, amount, at,
                cost, combine_fees([Fee(asset, fee)]), role, new.symbol,
            )
        )  # fmt: skip
        order.filled, order.updated_at = new.amount, max(at, order.updated_at)
        order.status = OrderStatus.CLOSED

    def _needed(
        self, order: NewOrder, listing: MarketListing, last: Decimal | None
    ) -> tuple[str, Decimal]:
        if order.side is Side.SELL:
            return listing.name.base, order.amount
        price = order.price or order.stop_price or last or ZERO
        return listing.name.quote, product(price, order.amount)

    def _used(self, asset: str) -> Decimal:
        used = ZERO
        for order in self._orders.values():
            if order.status is OrderStatus.OPEN:
                left = replace(order.new, amount=order.remaining)
                held, amount = self._needed(left, self._listings[order.new.symbol], None)
                used = add(used, amount) if held == asset else used
        return used

    def _of(self, symbol: str) -> list[_Placed]:
        return [order for order in self._orders.values() if order.new.symbol == symbol]

    def _keep(self, placed: _Placed) -> None:
        self._orders[placed.id] = placed
        self._by_client_id[placed.new.client_order_id] = placed


def _id_of(client_order_id: str) -> str:
    """The same after every restart, and never that of an earlier order."""
    return f"sim-{client_order_id}"
