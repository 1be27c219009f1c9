"""The gateway: an order is written before it is sent, and is at the exchange once or not at all."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_server.faults import Fault, Rule
from exchange_server.world import NOW_MS
from rows import fetch
from trading.conftest import SHIB, World

import kurisu
from kurisu.domain.execution import Side
from kurisu.domain.order import Order, OrderStatus, OrderType
from kurisu.errors import (
    DuplicateClientOrderId,
    InsufficientFunds,
    InvalidArgument,
    NotFound,
    OrderBreaksRule,
    OrderOutcomeUnknown,
    OrderRejected,
)
from kurisu.trading.gateway import Fate
from kurisu.trading.rules import OrderRequest

POST, DELETE = {"method": "POST"}, {"method": "DELETE"}
ORDERS = "SELECT client_order_id, status, filled FROM orders ORDER BY id"


def market_buy(amount: int = 1_000_001, **more: Any) -> OrderRequest:
    return OrderRequest(SHIB, Side.BUY, OrderType.MARKET, Decimal(amount), **more)


def resting(world: World, amount: int = 2_000_000, **more: Any) -> OrderRequest:
    return OrderRequest(SHIB, Side.BUY, OrderType.LIMIT, Decimal(amount), world.low(), **more)


async def only(world: World) -> Order:
    (found,) = await world.store.ledger.orders(world.account)
    return found


async def test_an_order_that_is_filled_at_once(world: World) -> None:
    world.venue.slices, world.venue.fee_asset = 3, "BNB"
    async with world.gateway() as gateway:
        order = await gateway.place(market_buy())
    assert (order.status, order.filled) == (OrderStatus.CLOSED, Decimal(1_000_001))
    assert order.client_order_id == world.venue.orders[0].client_id
    assert order.exchange_order_id == str(world.venue.orders[0].id)
    assert order == await only(world)
    stored = await world.store.ledger.executions(world.account)
    assert [(row.execution.trade_id, row.execution.amount, row.execution.price,
             row.execution.fees and row.execution.fees[0]) for row in stored] == [
        (str(f.id), f.amount, f.price, ("BNB", f.fee)) for f in world.venue.fills
    ]  # fmt: skip
    assert await fetch(world.store, "SELECT count(*) FROM risk_events") == [(0,)]


async def test_an_order_is_there_before_it_is_sent(world: World) -> None:
    seen: list[Any] = []
    async with world.gateway() as gateway:
        send = gateway._exchange.create_order

        async def look(order: Any) -> Any:
            seen.extend(await fetch(world.store, ORDERS))
            return await send(order)

        gateway._exchange.create_order = look  # type: ignore[method-assign]
        order = await gateway.place(resting(world))
    assert seen == [(order.client_order_id, "pending", 0)]
    assert order.status is OrderStatus.OPEN


async def test_what_breaks_a_rule_is_neither_stored_nor_sent(world: World) -> None:
    async with world.gateway() as gateway:
        for request, broken in (
            (resting(world, 5), "cost_min"),
            (market_buy(client_order_id="not possible!"), "does not take"),
            (OrderRequest(SHIB, Side.BUY, OrderType.MARKET, Decimal("1.5")), "amount_step"),
        ):
            with pytest.raises(InvalidArgument, match=broken) as caught:
                await gateway.place(request)
            assert isinstance(caught.value, OrderBreaksRule) == (broken != "does not take")
        cut = await gateway.place(
            OrderRequest(SHIB, Side.BUY, OrderType.MARKET, Decimal("1000000.999"), round_down=True)
        )
    assert cut.amount == 1_000_000
    assert world.sent == len(await fetch(world.store, ORDERS)) == 1


async def test_a_refusal_is_stored_and_raised(world: World) -> None:
    world.venue.balances["USDT"] = Decimal(0)
    async with world.gateway() as gateway:
        with pytest.raises(InsufficientFunds):
            await gateway.place(resting(world))
    assert (await only(world)).status is OrderStatus.FAILED


LOST_ANSWERS = [
    Rule(Fault.TIMEOUT, "/order", query=POST, seconds=2),
    Rule(Fault.CUT_BODY, "/order", query=POST),
    Rule(Fault.STATUS_AFTER, "/order", query=POST, status=502, body="<html>"),
]


@pytest.mark.parametrize("rule", LOST_ANSWERS, ids=lambda rule: rule.fault)
async def test_an_order_whose_answer_was_lost_is_found(world: World, rule: Rule) -> None:
    rule.hits = 0
    world.server.faults.add(rule)
    # The question has to be repeated, too; and the order takes a while to appear.
    world.server.faults.add(Rule(Fault.STATUS, "/order", query={"method": "GET"}, status=503))
    world.venue.hidden_ms = 3_000
    async with world.gateway(timeout_s=0.5) as gateway:
        order = await gateway.place(market_buy())
    assert (order.status, order.filled) == (OrderStatus.CLOSED, Decimal(1_000_001))
    assert world.sent == len(world.venue.orders) == 1
    assert await only(world) == order
    assert sum(world.slept) >= 1


@pytest.mark.parametrize(
    "rule",
    [
        Rule(Fault.LOST, "/order", query=POST, seconds=2),
        Rule(Fault.STATUS, "/order", query=POST, status=503),
    ],
    ids=lambda rule: rule.fault,
)
async def test_an_order_that_never_arrived_is_failed_once_that_is_sure(
    world: World, rule: Rule
) -> None:
    rule.hits = 0
    world.server.faults.add(rule)
    async with world.gateway(timeout_s=0.5) as gateway:
        with pytest.raises(OrderRejected, match="never got there"):
            await gateway.place(market_buy())
    order = await only(world)
    assert order.status is OrderStatus.FAILED
    assert (order.updated_at - order.created_at).total_seconds() > 30
    assert (world.sent, world.venue.orders) == (1, [])


async def test_what_cannot_be_found_out_stays_pending_until_it_can(world: World) -> None:
    for query in (POST, {"method": "GET"}):
        world.server.faults.add(Rule(Fault.STATUS_AFTER, "/order", query=query, times=99))
    async with world.gateway() as gateway:
        with pytest.raises(OrderOutcomeUnknown):
            await gateway.place(market_buy(client_order_id="mine"))
        assert (await only(world)).status is OrderStatus.PENDING
        events = "SELECT event_type, severity, details->>'order' FROM risk_events"
        assert await fetch(world.store, events) == [("order_unresolved", "critical", "mine")]
        # Neither is it sent again where somebody insists.
        with pytest.raises(OrderOutcomeUnknown):
            await gateway.place(market_buy(client_order_id="mine"))
    world.server.faults.clear()
    async with world.gateway() as gateway:
        (found,) = await gateway.resolve_pending()
        assert await gateway.resolve_pending() == []
    assert (found.fate, found.order.status) == (Fate.FOUND, OrderStatus.CLOSED)
    assert world.sent == len(world.venue.orders) == 1
    assert len(await fetch(world.store, events)) == 1


async def test_a_venue_that_forgets_ids_is_asked_for_its_lists(world: World) -> None:
    """Gate finds an ended order by our id for an hour; the process comes back after a day."""
    for query in (POST, {"method": "GET"}):
        world.server.faults.add(Rule(Fault.STATUS_AFTER, "/order", query=query, times=99))
    async with world.gateway() as gateway:
        with pytest.raises(OrderOutcomeUnknown):
            await gateway.place(market_buy(client_order_id="mine"))
    world.server.faults.clear()
    world.server.clock.advance(86_400)
    for _ in range(3):
        world.venue.place("SHIBUSDT", "buy", "1500000")
    world.server.faults.add(
        Rule(Fault.STATUS, "/order", query={"method": "GET"}, status=400, times=99,
             body='{"code": -2013, "msg": "Order does not exist."}')
    )  # fmt: skip
    async with world.gateway() as gateway:
        gateway._exchange.private = replace(  # type: ignore[misc]
            gateway._exchange.private, forgets_after=timedelta(hours=1)
        )
        (found,) = await gateway.resolve_pending()
    assert (found.fate, found.order.status) == (Fate.FOUND, OrderStatus.CLOSED)
    assert found.order.filled == 1_000_001


async def test_an_order_of_a_market_that_is_gone_stays_pending(world: World) -> None:
    for query in (POST, {"method": "GET"}):
        world.server.faults.add(Rule(Fault.STATUS_AFTER, "/order", query=query, times=99))
    async with world.gateway() as gateway:
        with pytest.raises(OrderOutcomeUnknown):
            await gateway.place(market_buy())
    world.server.binance.listings["SHIBUSDT"].delisted_ms = NOW_MS
    world.server.binance.listings["SHIBUSDT"].gone = True
    async with world.gateway() as gateway:
        (found,) = await gateway.resolve_pending()
    assert found.fate is Fate.UNKNOWN
    assert (await only(world)).status is OrderStatus.PENDING


async def test_the_same_client_id_is_the_same_order(world: World) -> None:
    """Eight at once, in gateways of their own, and once more later."""
    request = market_buy(client_order_id="once")

    async def place() -> Order:
        async with world.gateway() as gateway:
            return await gateway.place(request)

    placed = await asyncio.gather(*(place() for _ in range(8)))
    placed.append(await place())
    assert {order.client_order_id for order in placed} == {"once"}
    assert placed[-1].filled == 1_000_001
    assert world.sent == len(world.venue.orders) == len(await fetch(world.store, ORDERS)) == 1
    async with world.gateway() as gateway:
        with pytest.raises(InvalidArgument, match="once is that of another order"):
            await gateway.place(resting(world, client_order_id="once"))


async def test_the_order_of_another_program_is_not_taken_for_ours(world: World) -> None:
    """It has our client id, and was there before."""
    theirs = world.venue.place("SHIBUSDT", "buy", "2000000", str(world.low()))
    theirs.client_id = "mine"
    world.server.clock.advance(60)
    async with world.gateway() as gateway:
        with pytest.raises(DuplicateClientOrderId):
            await gateway.place(resting(world, client_order_id="mine"))
    assert (await only(world)).status is OrderStatus.FAILED
    # Nor where the answer was lost, and the question finds theirs.
    theirs.client_id = "other"
    world.server.faults.add(Rule(Fault.STATUS, "/order", query=POST, status=503))
    async with world.gateway() as gateway:
        with pytest.raises(OrderRejected, match="never got there"):
            await gateway.place(resting(world, client_order_id="other"))
    assert [row[1] for row in await fetch(world.store, ORDERS)] == ["failed", "failed"]


async def test_writing_that_takes_too_long_is_not_followed_by_sending(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever resolves pending orders relies on it."""
    async with world.gateway() as gateway:
        place = world.store.ledger.place

        async def slow(order: Order) -> Any:
            world.server.clock.advance(10)
            return await place(order)

        class Slow:
            def __getattr__(self, name: str) -> Any:
                return slow if name == "place" else getattr(world.store.ledger, name)

        class Behind:
            ledger = Slow()
            markets = world.store.markets

        gateway._store = Behind()  # type: ignore[assignment]
        with pytest.raises(OrderRejected, match="it was not sent"):
            await gateway.place(market_buy())
    assert (await only(world)).status is OrderStatus.FAILED
    assert world.sent == 0


async def test_an_order_is_canceled(world: World) -> None:
    async with world.gateway() as gateway:
        order = await gateway.place(resting(world))
        assert order.status is OrderStatus.OPEN
        canceled = await gateway.cancel(order)
        assert canceled.status is OrderStatus.CANCELED
        assert canceled.client_order_id == order.client_order_id
        # Once more: it is over.
        assert await gateway.cancel(order.client_order_id or "") == canceled
        done = await gateway.place(market_buy())
        assert (await gateway.cancel(done)).status is OrderStatus.CLOSED
        with pytest.raises(NotFound, match="has no order"):
            await gateway.cancel("nobody's")


@pytest.mark.parametrize("fault", [Fault.TIMEOUT, Fault.LOST, Fault.CUT_BODY], ids=str)
async def test_a_cancel_whose_answer_was_lost(world: World, fault: Fault) -> None:
    world.server.faults.add(Rule(fault, "/order", query=DELETE, seconds=2))
    async with world.gateway(timeout_s=0.5) as gateway:
        order = await gateway.place(resting(world))
        assert (await gateway.cancel(order)).status is OrderStatus.CANCELED
    assert world.venue.orders[0].status == "CANCELED"


async def test_a_cancel_that_is_refused(world: World) -> None:
    """In words that say nothing: the order itself is looked at."""
    refusal = Rule(Fault.STATUS, "/order", query=DELETE, status=400, times=2,
                   body='{"code": -2010, "msg": "Too late."}')  # fmt: skip
    world.server.faults.add(refusal)
    async with world.gateway() as gateway:
        order = await gateway.place(resting(world))
        with pytest.raises(OrderRejected, match="Too late"):
            await gateway.cancel(order)
        placed = world.venue.orders[0]
        world.venue._fill(placed, placed.amount, placed.price, NOW_MS + 1_000, is_maker=True)
        assert (await gateway.cancel(order)).status is OrderStatus.CLOSED


async def test_an_order_that_was_filled_before_its_cancel(world: World) -> None:
    async with world.gateway() as gateway:
        order = await gateway.place(resting(world))
        placed = world.venue.orders[0]
        world.venue._fill(placed, placed.amount, placed.price, NOW_MS + 1_000, is_maker=True)
        found = await gateway.cancel(order)
    assert (found.status, found.filled) == (OrderStatus.CLOSED, Decimal(2_000_000))


# A process that is killed

PROGRAM = """
import asyncio, os, signal, sys
from decimal import Decimal
from kurisu.domain.execution import Side
from kurisu.domain.order import OrderType
from kurisu.exchange.private import open_account
from kurisu.exchange.settings import ExchangeSettings
from kurisu.store.store import open_store
from kurisu.trading.gateway import Gateway
from kurisu.trading.rules import OrderRequest

URL, OPTIONS, WHEN = sys.argv[1], eval(sys.argv[2]), sys.argv[3]
SETTINGS = ExchangeSettings(
    "binance", options=OPTIONS, env={"apiKey": "TEST_BINANCE_KEY", "secret": "TEST_BINANCE_SECRET"}
)

async def main():
    async with open_store(URL) as store, open_account(SETTINGS) as exchange:
        account = await store.accounts.find("binance:main")
        send = exchange.create_order
        async def create_order(order):
            if WHEN == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = await send(order)
            os.kill(os.getpid(), signal.SIGKILL)
        exchange.create_order = create_order
        gateway = Gateway(store, account, exchange)
        await gateway.place(
            OrderRequest("SHIB/USDT", Side.BUY, OrderType.MARKET, Decimal(1_000_001))
        )

asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_killed_process_leaves_one_order_or_none(world: World, url: str, when: str) -> None:
    """kill -9 between writing and sending, and between sending and storing the answer."""
    options = world.server.options("binance", timeout_on_exit=0)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(PROGRAM), url, repr(options), when],
        env={**os.environ, "PYTHONPATH": str(Path(kurisu.__file__).parents[1])},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (await only(world)).status is OrderStatus.PENDING
    assert world.sent == (when == "after")
    async with world.gateway() as gateway:
        (found,) = await gateway.resolve_pending()
    wanted = OrderStatus.CLOSED if when == "after" else OrderStatus.FAILED
    assert (found.fate == Fate.FOUND) == (when == "after")
    assert (await only(world)).status is wanted
    assert world.sent == len(world.venue.orders) == (when == "after")
    stored = await world.store.ledger.executions(world.account)
    assert sum(row.execution.amount for row in stored) == 1_000_001 * (when == "after")
