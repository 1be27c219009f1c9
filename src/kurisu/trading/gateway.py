"""The order gateway: an order is in the ledger before it is sent, and is sent once.

    gateway = Gateway(store, account, exchange)
    await gateway.resolve_pending()                  # at every start
    order = await gateway.place(OrderRequest("BTC/USDT", Side.BUY, OrderType.LIMIT, amount, price))

What may happen between writing and knowing: a time-out, a cut connection, the end of this process.
None of it leads to a second order. Where the answer is lost, the exchange is asked for our id until
it is known what became of the order; where that cannot be found out, the order stays pending, a
risk event says so, and the next start asks again.

Two processes may use one account, and the same client id: the one that wrote the order sends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from kurisu.domain.execution import Execution
from kurisu.domain.listing import MarketListing
from kurisu.domain.order import Order, OrderStatus, OrderUpdate
from kurisu.errors import (
    BadSymbol,
    DuplicateClientOrderId,
    ExchangeError,
    InvalidArgument,
    LedgerRuleBroken,
    NotFound,
    NotOffered,
    OrderOutcomeUnknown,
    OrderRejected,
)
from kurisu.exchange.calls import Sleep
from kurisu.exchange.private_pages import execution_windows
from kurisu.exchange.private_port import NewOrder, PrivateExchange, ReportedOrder
from kurisu.ledger.events import EventType, RiskEvent, Severity
from kurisu.store.accounts import Account
from kurisu.store.markets import Market
from kurisu.store.patience import patiently
from kurisu.store.store import Store
from kurisu.trading.rules import OrderRequest, fitted

#: An order that was written longer ago than this is not sent any more: whoever resolves pending
#: orders relies on it, and takes an order for absent `absent_after` it was written.
SEND_WITHIN_S: Final = 5.0
#: Waits between two questions for an order, in seconds: doubled from the first to the longest.
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 5.0
#: How long past `absent_after` an exchange that does not answer is asked for an order.
PATIENCE_S: Final = 30.0
#: An order that is older than ours by more than this is not ours: times of orders are the
#: exchange's, and the time at which we wrote ours is never ahead of its clock.
_CLOCK_MARGIN: Final = timedelta(seconds=2)
#: How often a cancel whose answer was lost is sent: it does nothing the second time.
CANCEL_ATTEMPTS: Final = 3


class Fate(StrEnum):
    """What became of a pending order. FOUND: it is at the exchange. ABSENT: it never got there,
    and is failed. UNKNOWN: it stays pending."""

    FOUND = "found"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Resolution:
    """A pending order, as it stands after it was asked for."""

    fate: Fate
    order: Order


class Gateway:
    """Places and cancels orders of one account.

    strategy_id, strategy_run_id: what its orders belong to. sleep, monotonic: time, from outside so
    that tests decide it.
    """

    def __init__(
        self,
        store: Store,
        account: Account,
        exchange: PrivateExchange,
        *,
        strategy_id: int | None = None,
        strategy_run_id: int | None = None,
        sleep: Sleep = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._account = account
        self._exchange = exchange
        self._strategy_id = strategy_id
        self._strategy_run_id = strategy_run_id
        self._sleep = sleep
        self._monotonic = monotonic
        self._listings: dict[str, MarketListing] = {}
        self._markets: dict[str, Market] = {}
        # Names of orders of which the exchange said more than its fills that came.
        self._fills_missing: set[str] = set()

    async def place(self, request: OrderRequest) -> Order:
        """Place an order; returns it as it stands then, which may well be filled.

        With a client id that the ledger has already this is the same order: it is not sent again,
        and returned as it stands. Raises OrderBreaksRule (nothing was stored), OrderRejected (it is
        stored as failed), OrderOutcomeUnknown (it stays pending; do not place it again: the next
        `resolve_pending` finds out).
        """
        listing = await self._listing(request.symbol)
        request = fitted(request, listing)
        venue = self._exchange.private
        if venue.client_ids is None:
            raise NotOffered(self._exchange.name, "Kurisu sends no orders there")
        name = request.client_order_id or venue.client_ids.make()
        venue.check_client_order_id(self._exchange.name, name)
        market = await self._market(listing)
        if request.client_order_id is not None:
            known = await self._store.ledger.order(self._account, client_order_id=name)
            if known is not None:
                return await self._same(known, request)
        written_at = await self._exchange.now()
        written_s = self._monotonic()
        order = Order(
            market=market.name, side=request.side, type=request.type, amount=request.amount,
            created_at=written_at, updated_at=written_at, client_order_id=name,
            price=request.price, stop_price=request.stop_price, account_id=self._account.id,
            strategy_id=self._strategy_id, strategy_run_id=self._strategy_run_id,
        )  # fmt: skip
        try:
            outcome = await self._store.ledger.place(order)
        except LedgerRuleBroken:
            # Somebody else wrote it in between.
            known = await self._store.ledger.order(self._account, client_order_id=name)
            if known is None:
                raise
            return await self._same(known, request)
        placed = outcome.order
        if placed is None:
            raise NotFound(f"order {name} was written and is not there")
        if outcome.before is not None:
            return await self._same(placed, request)
        return await self._send(placed, request, market, written_s)

    async def cancel(self, order: Order | str) -> Order:
        """End an order of ours, by value or client id; returns it as it stands then.

        One that is over already stays as it is. Raises NotFound for an order that is not there,
        OrderOutcomeUnknown if the exchange does not say what became of it, OrderRejected if it
        refuses and the order is still open.
        """
        known = await self._known(order if isinstance(order, str) else order.client_order_id, order)
        if known.status is OrderStatus.PENDING:
            known = (await self._resolve(known)).order
        if known.status.is_terminal:
            return known
        market = await self._market(await self._listing(known.market.symbol))
        failure: ExchangeError | None = None
        for attempt in range(CANCEL_ATTEMPTS):
            if attempt:
                await self._sleep(FIRST_WAIT_S * 2**attempt)
            try:
                answer = await self._exchange.cancel_order(
                    known.market.symbol,
                    exchange_order_id=known.exchange_order_id,
                    client_order_id=known.client_order_id,
                )
                if answer is not None:
                    known = await self._store_report(known, market, answer)
                # What the exchange knows of it now: not every venue's answer says.
                known = await self._ask(known, market)
            except (OrderOutcomeUnknown, OrderRejected) as error:
                # Refused, mostly because it is over: each venue has words of its own for that.
                failure = error
                with contextlib.suppress(ExchangeError):
                    known = await self._ask(known, market)
            if known.status.is_terminal:
                return await self._with_fills(known, market)
            if isinstance(failure, OrderRejected):
                break
        if failure is not None:
            raise failure
        return known

    async def resolve_pending(self) -> list[Resolution]:
        """Find out what became of every order that was written and not heard of; at every start.

        None is sent again. Orders that another process is about to send are waited for.
        """
        pending = await patiently(
            self._store.ledger.orders, self._account, statuses=(OrderStatus.PENDING,)
        )
        return [await self._resolve(order) for order in pending if order.client_order_id]

    # Sending

    async def _send(
        self, order: Order, request: OrderRequest, market: Market, written_s: float
    ) -> Order:
        assert order.client_order_id is not None
        new = NewOrder(
            request.symbol, order.client_order_id, request.side, request.type, request.amount,
            request.price, request.stop_price, request.post_only, request.reduce_only,
        )  # fmt: skip
        try:
            if self._monotonic() - written_s > SEND_WITHIN_S:
                raise OrderRejected(
                    self._exchange.name,
                    f"order {order.client_order_id}: writing it took longer than "
                    f"{SEND_WITHIN_S:g} s; it was not sent",
                )
            answer = await self._exchange.create_order(new)
        except DuplicateClientOrderId:
            if await self._is_taken(order):
                await self._fail(order, market)
                raise
            # Then it is ours: the exchange had it after all.
            return await self._resolved(order, None)
        except OrderOutcomeUnknown as error:
            return await self._resolved(order, error)
        except ExchangeError:
            # Refused, or not even sent: what could leave the outcome open is caught above.
            await self._fail(order, market)
            raise
        order = await self._store_report(order, market, answer)
        return await self._with_fills(order, market)

    async def _resolved(self, order: Order, failure: OrderOutcomeUnknown | None) -> Order:
        found = await self._resolve(order)
        if found.fate is Fate.UNKNOWN:
            raise failure or OrderOutcomeUnknown(
                self._exchange.name, f"order {order.client_order_id}: it cannot be found"
            )
        if found.fate is Fate.ABSENT:
            raise OrderRejected(
                self._exchange.name,
                f"order {order.client_order_id} never got there"
                + (f" ({failure.reason})" if failure else ""),
            )
        return found.order

    async def _fail(self, order: Order, market: Market) -> Order:
        """Store that an order is surely not at the exchange."""
        update = OrderUpdate(
            client_order_id=order.client_order_id,
            exchange_order_id=order.exchange_order_id,
            time=await self._time(order),
            status=OrderStatus.FAILED,
            filled=None,
        )
        outcome = await patiently(self._store.ledger.apply, self._account, update, market=market)
        return outcome.order or order

    async def _time(self, order: Order) -> datetime:
        """The exchange's time; where it cannot be had, the order's own."""
        try:
            return max(order.created_at, await self._exchange.now())
        except ExchangeError:
            return order.created_at

    # Asking

    async def _resolve(self, order: Order) -> Resolution:
        """Ask for the order until it is known what became of it, or patience ends."""
        try:
            market = await self._market(await self._listing(order.market.symbol))
        except BadSymbol:
            # Delisted since; what became of the order cannot be asked any more.
            return await self._unresolved(order, None)
        venue = self._exchange.private
        wait_s = FIRST_WAIT_S
        started_s = self._monotonic()
        longest_s = venue.absent_after.total_seconds() + PATIENCE_S
        while True:
            try:
                # Before the question: what is absent then was absent at that time, at least.
                now = await self._exchange.now()
                report = await self._look_for(order, now)
            except ExchangeError:
                if self._monotonic() - started_s >= longest_s:
                    return await self._unresolved(order, market)
            else:
                if report is not None:
                    found = await self._store_report(order, market, report)
                    return Resolution(Fate.FOUND, await self._with_fills(found, market))
                if now - order.created_at > venue.absent_after:
                    return Resolution(Fate.ABSENT, await self._fail(order, market))
            await self._sleep(wait_s)
            wait_s = min(LONGEST_WAIT_S, 2 * wait_s)

    async def _look_for(self, order: Order, now: datetime) -> ReportedOrder | None:
        """One look. Where the venue forgets ids soon, the lists of orders are looked through."""
        forgets_after = self._exchange.private.forgets_after
        is_old = forgets_after is not None and now - order.created_at > forgets_after / 2
        found = await self._exchange.fetch_order(
            order.market.symbol,
            exchange_order_id=order.exchange_order_id,
            client_order_id=order.client_order_id,
            since=order.created_at if is_old else None,
        )
        return None if found is None or _is_older(found, order) else found

    async def _is_taken(self, order: Order) -> bool:
        """True if the client id is that of somebody else's order."""
        try:
            found = await self._exchange.fetch_order(
                order.market.symbol, client_order_id=order.client_order_id
            )
        except ExchangeError:
            return False
        return found is not None and _is_older(found, order)

    async def _unresolved(self, order: Order, market: Market | None) -> Resolution:
        event = RiskEvent.of(
            EventType.ORDER_UNRESOLVED,
            Severity.CRITICAL,
            order=order.client_order_id,
            side=order.side,
            amount=order.amount,
        )
        await patiently(self._store.ledger.raise_event, event, account=self._account, market=market)
        return Resolution(Fate.UNKNOWN, order)

    async def _ask(self, order: Order, market: Market) -> Order:
        report = await self._exchange.fetch_order(
            order.market.symbol,
            exchange_order_id=order.exchange_order_id,
            client_order_id=order.client_order_id,
            since=order.created_at,
        )
        return order if report is None else await self._store_report(order, market, report)

    # Storing

    async def _store_report(self, order: Order, market: Market, report: ReportedOrder) -> Order:
        """The report is of this order, whatever id it came with."""
        update = replace(report.update, client_order_id=order.client_order_id)
        messages: list[OrderUpdate | Execution] = [update, *report.executions]
        for message in messages:
            order = await self._apply(order, market, message)
        return order

    async def _apply(self, order: Order, market: Market, message: OrderUpdate | Execution) -> Order:
        outcome = await patiently(self._store.ledger.apply, self._account, message, market=market)
        order = outcome.order or order
        if any(found.event_type is EventType.FILLS_MISSING for found in outcome.conditions):
            self._fills_missing.add(order.name)
        else:
            self._fills_missing.discard(order.name)
        return order

    async def _with_fills(self, order: Order, market: Market) -> Order:
        """The order with its fills, if they can be had now; a synchronisation brings them else."""
        if order.name not in self._fills_missing:
            return order
        with contextlib.suppress(ExchangeError):
            until = await self._exchange.now()
            since = order.created_at - timedelta(seconds=5)
            async for window in execution_windows(
                self._exchange, order.market.symbol, since, until
            ):
                for execution in window.rows:
                    if execution.exchange_order_id == order.exchange_order_id:
                        order = await self._apply(order, market, execution)
        return order

    # Looking up

    async def _same(self, known: Order, request: OrderRequest) -> Order:
        """The order that has this client id already. Raises InvalidArgument if it is another."""
        wanted = (request.symbol, request.side, request.type, request.price, request.stop_price)
        there = (known.market.symbol, known.side, known.type, known.price, known.stop_price)
        # The amount may have been changed at the exchange since.
        if wanted != there:
            raise InvalidArgument(
                f"client order id {known.client_order_id} is that of another order: "
                f"{known.side} {known.amount} {known.market}, {known.status}"
            )
        if known.status is not OrderStatus.PENDING:
            return known
        return await self._resolved(known, None)

    async def _known(self, name: str | None, order: Order | str) -> Order:
        known = None
        if name is not None:
            known = await self._store.ledger.order(self._account, client_order_id=name)
        elif isinstance(order, Order) and order.exchange_order_id is not None:
            market = await self._market(await self._listing(order.market.symbol))
            known = await self._store.ledger.order(
                self._account, exchange_order_id=order.exchange_order_id, market=market
            )
        if known is None:
            raise NotFound(f"account {self._account} has no order {name or order}")
        return known

    async def _listing(self, symbol: str) -> MarketListing:
        if symbol not in self._listings:
            listings = await self._exchange.load_markets()
            self._listings = {listing.symbol: listing for listing in listings}
        if symbol not in self._listings:
            raise BadSymbol(self._exchange.name, f"it does not list {symbol}")
        return self._listings[symbol]

    async def _market(self, listing: MarketListing) -> Market:
        if listing.symbol not in self._markets:
            self._markets[listing.symbol] = await patiently(self._store.markets.add, listing)
        return self._markets[listing.symbol]


def _is_older(report: ReportedOrder, order: Order) -> bool:
    """True if the exchange had it before we wrote ours: another program used our id."""
    made_at = report.update.created_at
    return made_at is not None and made_at < order.created_at - _CLOCK_MARGIN
