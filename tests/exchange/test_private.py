"""The private side of the adapter against Binance's signed protocol, through unmodified CCXT."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeAlias

import pytest
from exchange_server.binance_account import BinanceAccount
from exchange_server.clock import DAY_MS
from exchange_server.faults import Fault, Rule
from exchange_server.server import ExchangeServer
from exchange_server.world import NOW_MS, Opener

from kurisu.domain.execution import Fee, Side
from kurisu.domain.order import OrderStatus, OrderType
from kurisu.errors import (
    BadSymbol,
    ConfigError,
    DuplicateClientOrderId,
    ExchangeRefused,
    InsufficientFunds,
    OrderOutcomeUnknown,
    OrderRejected,
)
from kurisu.exchange.clock import from_ms
from kurisu.exchange.private import CcxtAccount, open_account
from kurisu.exchange.private_pages import execution_windows, order_windows
from kurisu.exchange.private_port import NewOrder
from kurisu.exchange.settings import ExchangeSettings

SHIB = "SHIB/USDT"
ORDER = {"method": "POST"}
Account: TypeAlias = Callable[..., AbstractAsyncContextManager[CcxtAccount]]


@pytest.fixture
def venue(server: ExchangeServer) -> BinanceAccount:
    """The account as the exchange has it. Its time runs: requests are signed with a time."""
    server.clock.set(NOW_MS, speed=1.0)
    account = server.binance.account
    account.balances = {"USDT": Decimal(1_000_000), "SHIB": Decimal(10**9), "BNB": Decimal(5)}
    return account


@pytest.fixture
def opened_account(opened: Opener, venue: BinanceAccount) -> Account:
    @asynccontextmanager
    async def open_one(settings: dict[str, Any] | None = None) -> AsyncIterator[CcxtAccount]:
        keys = {"apiKey": venue.key, "secret": venue.secret}
        async with opened("binance", settings, **keys) as exchange:
            yield CcxtAccount(exchange)

    return open_one


def limit(name: str, amount: int, price: str, side: Side = Side.BUY) -> NewOrder:
    return NewOrder(SHIB, name, side, OrderType.LIMIT, Decimal(amount), Decimal(price))


def low(venue: BinanceAccount) -> str:
    """A price at which nobody sells."""
    return str((venue.last_price("SHIBUSDT") / 2).quantize(Decimal("1E-8")))


async def test_an_order_from_its_birth_to_its_fills(
    opened_account: Account, venue: BinanceAccount
) -> None:
    venue.slices = 3
    venue.fee_asset = "BNB"
    async with opened_account() as account:
        order = NewOrder(SHIB, "mine1", Side.BUY, OrderType.MARKET, Decimal(1_000_001))
        answer = await account.create_order(order)
        assert answer.update.client_order_id == "mine1"
        assert answer.update.status is OrderStatus.CLOSED
        assert answer.update.filled == 1_000_001
        assert answer.type is OrderType.MARKET
        found = await account.fetch_order(SHIB, client_order_id="mine1")
        assert found
        assert found.update.exchange_order_id == answer.update.exchange_order_id
        by_its_id = await account.fetch_order(
            SHIB, exchange_order_id=answer.update.exchange_order_id
        )
        assert by_its_id
        assert by_its_id.update.client_order_id == "mine1"
        (window,) = [w async for w in execution_windows(account, SHIB, None, await account.now())]
        assert [(e.trade_id, e.price, e.amount, e.fees) for e in window.rows] == [
            (str(f.id), f.price, f.amount, (Fee("BNB", f.fee),)) for f in venue.fills
        ]
        assert sum(e.amount for e in window.rows) == 1_000_001
        balances = {b.asset: b.total for b in await account.fetch_balances()}
        eighth = Decimal("1E-8")
        assert balances == {name: v.quantize(eighth) for name, v in venue.balances.items()}


async def test_an_open_order_holds_funds_and_is_canceled(
    opened_account: Account, venue: BinanceAccount
) -> None:
    async with opened_account() as account:
        price = low(venue)
        await account.create_order(limit("mine2", 2_000_000, price))
        (open_one,) = await account.fetch_open_orders(SHIB)
        assert (open_one.update.client_order_id, open_one.update.status) == ("mine2", "open")
        usdt = next(b for b in await account.fetch_balances() if b.asset == "USDT")
        assert usdt.used == 2_000_000 * Decimal(price)
        canceled = await account.cancel_order(SHIB, exchange_order_id=None, client_order_id="mine2")
        assert canceled
        # Not the id of the cancel request, which stands where the order's is elsewhere.
        assert canceled.update.client_order_id == "mine2"
        assert canceled.update.status is OrderStatus.CANCELED
        for named in ({"exchange_order_id": None, "client_order_id": "mine2"},
                      {"exchange_order_id": "123", "client_order_id": None}):  # fmt: skip
            assert await account.cancel_order(SHIB, **named) is None
        assert await account.fetch_order(SHIB, client_order_id="nobody's") is None


@pytest.mark.parametrize(
    ("order", "error", "said"),
    [
        (limit("a", 10**10, "0.001"), InsufficientFunds, "insufficient balance"),
        (limit("a", 5, "0.00000001"), OrderRejected, "NOTIONAL"),
        (limit("open", 2_000_000, "0.00001"), DuplicateClientOrderId, "Duplicate"),
    ],
    ids=["funds", "filter", "duplicate"],
)
async def test_a_refusal_is_sure(
    opened_account: Account, venue: BinanceAccount, order: NewOrder, error: type, said: str
) -> None:
    async with opened_account() as account:
        await account.create_order(limit("open", 2_000_000, low(venue)))
        with pytest.raises(error, match=said) as caught:
            await account.create_order(order)
        assert not isinstance(caught.value, OrderOutcomeUnknown)
        assert len(venue.orders) == 1


@pytest.mark.parametrize(
    ("rule", "is_there"),
    [
        (Rule(Fault.TIMEOUT, "/order", query=ORDER, seconds=2), True),
        (Rule(Fault.LOST, "/order", query=ORDER, seconds=2), False),
        (Rule(Fault.CUT, "/order", query=ORDER), True),
        (Rule(Fault.CUT_BODY, "/order", query=ORDER), True),
        (Rule(Fault.TRUNCATED_JSON, "/order", query=ORDER), True),
        (Rule(Fault.HTML, "/order", query=ORDER), True),
        (Rule(Fault.STATUS, "/order", query=ORDER, status=503), False),
        (Rule(Fault.STATUS_AFTER, "/order", query=ORDER, status=502, body="<html>"), True),
        (
            Rule(Fault.STATUS_AFTER, "/order", query=ORDER, status=400,
                 body='{"code": -1007, "msg": "Timeout; execution status unknown."}'),
            True,
        ),
    ],
    ids=lambda value: f"{value.fault}-{value.status}" if isinstance(value, Rule) else None,
)  # fmt: skip
async def test_what_is_not_sure_is_never_sent_again(
    opened_account: Account, server: ExchangeServer, venue: BinanceAccount, rule: Rule,
    is_there: bool,
) -> None:  # fmt: skip
    rule.hits = 0
    server.faults.add(rule)
    settings = {"timeout_s": 0.5} if rule.fault in (Fault.TIMEOUT, Fault.LOST) else {}
    async with opened_account(settings) as account:
        with pytest.raises(OrderOutcomeUnknown, match="mine"):
            await account.create_order(limit("mine", 2_000_000, low(venue)))
        assert len([r for r in server.asked("v3/order") if r.method == "POST"]) == 1
        found = await account.fetch_order(SHIB, client_order_id="mine")
        assert (found is not None) == is_there == bool(venue.orders)


@pytest.mark.parametrize("status", [429, 418])
async def test_a_rate_limit_refuses_before_anything_is_done(
    opened_account: Account, server: ExchangeServer, venue: BinanceAccount, status: int
) -> None:
    server.faults.add(Rule(Fault.STATUS, "/order", query=ORDER, status=status, retry_after="1"))
    async with opened_account() as account:
        with pytest.raises(OrderRejected):
            await account.create_order(limit("mine", 2_000_000, low(venue)))
    assert not venue.orders


async def test_an_exchange_that_cannot_be_reached_got_no_order(
    opened_account: Account, venue: BinanceAccount
) -> None:
    async with opened_account() as account:
        await account.load_markets()
        account._client.urls["api"]["private"] = "http://127.0.0.1:1/api/v3"
        with pytest.raises(OrderRejected, match="it was not sent"):
            await account.create_order(limit("mine", 2_000_000, low(venue)))


async def test_questions_are_asked_again(
    opened_account: Account, server: ExchangeServer, venue: BinanceAccount
) -> None:
    server.faults.add(Rule(Fault.STATUS, "account", status=503, times=2))
    async with opened_account() as account:
        assert {b.asset for b in await account.fetch_balances()} == {"BNB", "SHIB", "USDT"}
    assert len(server.asked("v3/account")) == 3


async def test_a_clock_that_went_wrong_is_set_again(
    opened_account: Account, server: ExchangeServer, venue: BinanceAccount
) -> None:
    async with opened_account() as account:
        await account.fetch_balances()
        server.clock.set(NOW_MS + 3_600_000, speed=1.0)
        assert await account.fetch_balances()


def many_fills(venue: BinanceAccount, times: list[int]) -> None:
    """Fills of one web order each, made at those times."""
    clock = venue.clock
    venue.balances["USDT"] += 10**9
    for time_ms in sorted(times):
        clock.set(time_ms, speed=0.0)
        venue.place("SHIBUSDT", "buy", "1000000")
    clock.set(NOW_MS, speed=1.0)


async def test_long_histories_are_complete(
    opened_account: Account, server: ExchangeServer, venue: BinanceAccount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Several in one millisecond at the edge of a page; days without any."""
    monkeypatch.setattr("exchange_server.binance_account.MAX_ROWS", 4)
    start = NOW_MS - 20 * DAY_MS
    times = [start, start, start + 5, start + DAY_MS, start + DAY_MS, start + DAY_MS]
    times += [start + DAY_MS + 1] * 5 + [NOW_MS - 9 * DAY_MS, NOW_MS - 1000, NOW_MS - 1000]
    many_fills(venue, times)
    trades, orders = [str(f.id) for f in venue.fills], [str(o.id) for o in venue.orders]
    async with opened_account() as account:
        account.private = _with_limit(account, 4)
        until = await account.now()
        for since, missing in (
            (None, 0), (from_ms(start), 0), (from_ms(start + 1), 2), (from_ms(NOW_MS), 14),
            (from_ms(start - 3 * DAY_MS), 0),
        ):  # fmt: skip
            found: dict[str, None] = {}
            reached = []
            async for window in execution_windows(account, SHIB, since, until):
                found |= dict.fromkeys(e.trade_id for e in window.rows)
                reached.append(window.until)
                # What is stated as complete is there.
                assert {str(f.id) for f in venue.fills if f.time_ms >= _ms(since)
                        and from_ms(f.time_ms) <= window.until} <= set(found)  # fmt: skip
            assert list(found)[-len(trades[missing:]) :] == trades[missing:] or not trades[missing:]
            assert reached[-1] >= until - timedelta(milliseconds=1)
            seen = {
                row.update.exchange_order_id
                async for page in order_windows(account, SHIB, since, until)
                for row in page.rows
            }
            assert set(orders[missing:]) <= seen
    assert not server.binance.meter.breaches


def _ms(since: Any) -> int:
    from kurisu.exchange.clock import to_ms

    return 0 if since is None else to_ms(since)


def _with_limit(account: CcxtAccount, limit: int, **more: Any) -> Any:
    from dataclasses import replace

    return replace(account.private, trade_limit=limit, order_limit=limit, **more)


async def test_windows_are_halved_where_there_are_no_ids(
    opened_account: Account, venue: BinanceAccount
) -> None:
    """The way of bybit, kucoin and htx, on the same history."""
    times = [NOW_MS - 3 * DAY_MS + k // 2 for k in range(11)] + [NOW_MS - DAY_MS - 1, NOW_MS - 500]
    many_fills(venue, times)
    async with opened_account() as account:
        account.private = _with_limit(account, 3, newest_without_time=False, id_paging=False)
        since = from_ms(NOW_MS - 4 * DAY_MS)
        found = [
            row.trade_id
            async for window in execution_windows(account, SHIB, since, await account.now())
            for row in window.rows
        ]
        assert found == [str(f.id) for f in venue.fills]


async def test_deposits_of_a_short_page_are_all_there(
    opened_account: Account, venue: BinanceAccount
) -> None:
    """The venue shows its newest 20 and does not say so."""
    venue.transfer_rows = 20
    for n in range(70):
        # Most of them within one second.
        venue.clock.set(NOW_MS - 40 * DAY_MS + n * (DAY_MS if n < 8 else 10), speed=0.0)
        venue.move("USDT", str(n + 1))
    venue.clock.set(NOW_MS, speed=1.0)
    async with opened_account() as account:
        entries, unreadable = await account.fetch_transfers(
            from_ms(NOW_MS - 60 * DAY_MS), await account.now()
        )
    assert unreadable == []
    assert sorted(entry.amount for entry in entries) == [Decimal(n + 1) for n in range(70)]


@pytest.mark.parametrize("name", ["coinbase", "cryptocom", "bitstamp"])
async def test_what_nobody_looked_up_is_asked_for_cautiously(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a page that a venue cuts shorter than it was asked for, the rest would be missed."""
    monkeypatch.setenv("A_KEY", "a")
    settings = ExchangeSettings(name, env={"apiKey": "A_KEY", "secret": "A_KEY"})
    async with open_account(settings) as account:
        assert 0 < (account.private.trade_limit or 0) <= 100
        assert 0 < (account.private.order_limit or 0) <= 100
        assert account.private.time_margin_ms >= 1_000


async def test_no_secret_leaves_the_adapter(
    opened: Opener, server: ExchangeServer, venue: BinanceAccount,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(0)
    canary = "canary7f3a9c5e1b"
    monkeypatch.setenv("CANARY_KEY", f"key{canary}")
    monkeypatch.setenv("CANARY_SECRET", f"secret{canary}")
    env = {"apiKey": "CANARY_KEY", "secret": "CANARY_SECRET"}
    async with opened("binance", {"env": env}) as exchange:
        assert exchange.client.secret == f"secret{canary}"
        account = CcxtAccount(exchange)
        texts = [repr(account), repr(exchange), repr(exchange.settings)]
        server.faults.add(Rule(Fault.TIMEOUT, "/order", times=9, seconds=1))
        exchange.client.timeout = 200
        for call in (
            account.fetch_balances(),
            account.create_order(limit("mine", 2_000_000, low(venue))),
            account.cancel_order(SHIB, exchange_order_id="1", client_order_id=None),
            account.fetch_order("NOT/THERE", client_order_id="x"),
        ):
            with pytest.raises((ExchangeRefused, OrderOutcomeUnknown, BadSymbol)) as caught:
                await call
            texts.append("".join(traceback.format_exception(caught.value)))
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None
    assert len(texts) == 7
    assert [text for text in [*texts, caplog.text] if canary in text] == []


async def test_missing_credentials_are_named(opened: Opener) -> None:
    async with opened("binance") as exchange:
        with pytest.raises(ConfigError, match="apiKey, secret"):
            CcxtAccount(exchange)
