"""The simulated exchange: exact, and the same way into the ledger as a real one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kurisu.domain.balance import Entry, EntryKind
from kurisu.domain.execution import Execution, Side, TakerOrMaker
from kurisu.domain.listing import MarketListing
from kurisu.domain.market import MarketName
from kurisu.domain.order import OrderStatus, OrderType
from kurisu.domain.position import MarketTerms
from kurisu.errors import (
    DuplicateClientOrderId,
    ExchangeError,
    InsufficientFunds,
    InvalidArgument,
    OrderRejected,
)
from kurisu.exchange.private_port import NewOrder, RecordQuery, ReportedOrder
from kurisu.ledger.arithmetic import add
from kurisu.ledger.balance import book_totals, position_and_postings
from kurisu.store.store import Store
from kurisu.trading.gateway import Fate, Gateway
from kurisu.trading.reconcile import reconcile_account
from kurisu.trading.rules import OrderRequest
from kurisu.trading.simulated import SimulatedExchange

D = Decimal
NAME = MarketName.parse("binance:BTC/USDT")
LISTING = MarketListing(
    NAME, "BTCUSDT", "spot", True, price_tick=D("0.01"), amount_tick=D("0.001"), min_cost=D(5)
)
START = {"BTC": D(2), "USDT": D(100_000)}
T0 = datetime(2026, 1, 1, tzinfo=UTC)
BTC = "BTC/USDT"


class Clock:
    """A second later whenever it is looked at."""

    def __init__(self) -> None:
        self.time = T0

    def __call__(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time


def simulated(**more: Any) -> SimulatedExchange:
    return SimulatedExchange(
        "binance", [LISTING], START, Clock(), taker_fee=D("0.001"), maker_fee=D("-0.0001"), **more
    )


def order(name: str, side: Side, amount: str, price: str | None = None, **more: Any) -> NewOrder:
    kind = OrderType.MARKET if price is None else OrderType.LIMIT
    return NewOrder(
        BTC, name, side, more.pop("type_", kind), D(amount), None if price is None else D(price),
        **more,
    )  # fmt: skip


async def test_market_limit_and_stop() -> None:
    venue = simulated()
    with pytest.raises(OrderRejected, match="no price yet"):
        await venue.create_order(order("m0", Side.BUY, "1"))
    venue.see(BTC, D(100))
    taken = await venue.create_order(order("m1", Side.BUY, "1"))
    (fill,) = taken.executions
    assert (fill.price, fill.cost, fill.taker_or_maker) == (D(100), D(100), TakerOrMaker.TAKER)
    assert fill.fees == (("BTC", D("0.001")),)
    crossing = await venue.create_order(order("l1", Side.BUY, "1", "105"))
    assert crossing.executions[0].price == 100
    resting = await venue.create_order(order("l2", Side.BUY, "1", "95"))
    assert resting.update.status is OrderStatus.OPEN
    stop = order("s1", Side.SELL, "1", type_=OrderType.STOP_LOSS, stop_price=D(90))
    await venue.create_order(stop)
    profit = order("t1", Side.SELL, "1", type_=OrderType.TAKE_PROFIT, stop_price=D(110))
    await venue.create_order(profit)
    assert venue.see(BTC, D(96)) == []
    (filled,) = venue.see(BTC, D(94))
    (fill,) = filled.executions
    assert (fill.price, fill.taker_or_maker) == (D(95), TakerOrMaker.MAKER)
    assert fill.fees == (("BTC", D("-0.0001")),)
    (stopped,) = venue.see(BTC, D("89.5"))
    assert (stopped.update.client_order_id, stopped.executions[0].price) == ("s1", D("89.5"))
    (took,) = venue.see(BTC, D(111))
    assert took.update.client_order_id == "t1"


async def test_what_an_exchange_would_refuse() -> None:
    venue = simulated()
    venue.see(BTC, D(100))
    await venue.create_order(order("a", Side.BUY, "900", "99"))
    for refused, error in (
        (order("a", Side.BUY, "1", "50"), DuplicateClientOrderId),
        # The open order holds its funds.
        (order("b", Side.BUY, "200", "99"), InsufficientFunds),
        (order("c", Side.SELL, "2.001"), InsufficientFunds),
        (order("d", Side.SELL, "0.0001", "100"), OrderRejected),
        (order("e", Side.SELL, "1", "100", post_only=True), OrderRejected),
    ):
        with pytest.raises(error):
            await venue.create_order(refused)
    canceled = await venue.cancel_order(BTC, exchange_order_id=None, client_order_id="a")
    assert canceled
    assert canceled.update.status is OrderStatus.CANCELED
    assert await venue.cancel_order(BTC, exchange_order_id=None, client_order_id="a") is None
    balances = {b.asset: (b.total, b.used) for b in await venue.fetch_balances()}
    assert balances == {"BTC": (D(2), D(0)), "USDT": (D(100_000), D(0))}


def test_contracts_are_not_simulated() -> None:
    contract = MarketListing(
        MarketName.parse("binance:BTC/USDT:USDT"), "x", "swap", True, contract_size=D(1)
    )
    with pytest.raises(InvalidArgument, match="only spot"):
        SimulatedExchange("binance", [contract], {}, Clock())


steps = st.one_of(
    st.tuples(st.just("see"), st.integers(5_000, 15_000)),
    st.tuples(
        st.just("place"), st.sampled_from([Side.BUY, Side.SELL]), st.integers(60, 2_000),
        st.one_of(st.none(), st.integers(5_000, 15_000)),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
)  # fmt: skip


@given(steps=st.lists(steps, max_size=30))
def test_its_balances_are_those_of_the_ledger(steps: list[Any]) -> None:
    """Whatever is traded: what it says an account has is what its fills add up to."""
    venue = simulated()
    venue.see(BTC, D(100))

    async def trade() -> list[Execution]:
        for number, (kind, *rest) in enumerate(steps):
            if kind == "see":
                venue.see(BTC, D(rest[0]) / 100)
            elif kind == "cancel":
                await venue.cancel_order(BTC, exchange_order_id=None, client_order_id=f"n{rest[0]}")
            else:
                side, amount, price = rest
                new = order(f"n{number}", side, str(D(amount) / 1000),
                            None if price is None else str(D(price) / 100))  # fmt: skip
                try:
                    await venue.create_order(new)
                except OrderRejected as error:
                    assert isinstance(error, ExchangeError)
        return list((await venue.fetch_executions(BTC, RecordQuery())).executions)

    executions = asyncio.run(trade())
    _, lines = position_and_postings(executions, MarketTerms.of(NAME))
    expected = {
        asset: add(START.get(asset, D(0)), amount)
        for asset, amount in {**dict.fromkeys(START, D(0)), **book_totals(lines)}.items()
    }
    assert venue._balances == expected
    # Nothing is spent that is not there, but for the fee of the last sale.
    assert all(total >= 0 for total in expected.values())


async def test_a_paper_account_goes_the_same_way(store: Store) -> None:
    """Through the gateway into the ledger, over a restart, and agrees with it at the end."""
    account = await store.accounts.add("binance", "paper")
    await store.ledger.enter(
        account, [Entry(EntryKind.DEPOSIT, asset, total, T0) for asset, total in START.items()]
    )
    venue = simulated()
    venue.see(BTC, D(100))
    gateway = Gateway(store, account, venue)
    bought = await gateway.place(OrderRequest(BTC, Side.BUY, OrderType.MARKET, D("1.5")))
    assert (bought.status, bought.filled) == (OrderStatus.CLOSED, D("1.5"))
    resting = await gateway.place(OrderRequest(BTC, Side.SELL, OrderType.LIMIT, D(2), D(120)))
    canceled = await gateway.place(OrderRequest(BTC, Side.BUY, OrderType.LIMIT, D(1), D(80)))
    assert (await gateway.cancel(canceled)).status is OrderStatus.CANCELED

    # The process ends here, and another one begins.
    after = SimulatedExchange(
        "binance", [LISTING], venue._balances, Clock(), taker_fee=D("0.001"),
        maker_fee=D("-0.0001"),
    )  # fmt: skip
    after.restore(await store.ledger.open_orders(account))
    gateway = Gateway(store, account, after)
    assert await gateway.resolve_pending() == []
    (filled,) = after.see(BTC, D(121), T0 + timedelta(hours=1))
    await store.ledger.apply_many(account, [filled.update, *filled.executions])
    order_now = await store.ledger.order(account, client_order_id=resting.client_order_id)
    assert order_now
    assert (order_now.status, order_now.filled) == (OrderStatus.CLOSED, D(2))
    rows = {r.balance.asset: r.balance for r in await store.ledger.balances(account)}
    reported = {b.asset: b for b in await after.fetch_balances()}
    assert {a: b.total for a, b in rows.items()} == {a: b.total for a, b in reported.items()}
    found = await reconcile_account(store, account, after, markets=[BTC])
    # The simulated exchange forgot what ended before its restart; the ledger did not.
    assert {d.kind for d in found.comparison.differences} <= {"extra"}


async def test_an_order_that_was_never_sent_is_failed_after_a_restart(store: Store) -> None:
    account = await store.accounts.add("binance", "paper")
    venue = simulated()
    venue.see(BTC, D(100))
    gateway = Gateway(store, account, venue, sleep=lambda _: asyncio.sleep(0))

    async def killed(order: NewOrder) -> ReportedOrder:
        raise KeyboardInterrupt

    venue.create_order = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        await gateway.place(OrderRequest(BTC, Side.BUY, OrderType.MARKET, D("1.5")))
    (found,) = await gateway.resolve_pending()
    assert (found.fate, found.order.status) == (Fate.ABSENT, OrderStatus.FAILED)
