"""What CCXT makes of an order, venue by venue: our id and every digit, or nothing is sent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import ccxt
import pytest

from kurisu.domain.execution import Side
from kurisu.domain.order import OrderType
from kurisu.errors import InvalidArgument, NotOffered, OrderOutcomeUnknown, OrderRejected
from kurisu.exchange.calls import RetryPolicy
from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.exchange.clock import from_ms
from kurisu.exchange.private import CcxtAccount
from kurisu.exchange.private_pages import execution_windows, order_windows
from kurisu.exchange.private_port import NewOrder, RecordQuery
from kurisu.exchange.private_venues import PRIVATE_VENUES
from kurisu.exchange.settings import ExchangeSettings

SENDING = sorted(name for name, venue in PRIVATE_VENUES.items() if venue.client_ids is not None)
TYPES = ["LIMIT", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT", "TAKE_PROFIT_LIMIT"]
SPOT, SWAP = "BTC/USDT", "BTC/USDT:USDT"
# Small enough that a float would be written with an exponent.
PRICE, STOP, AMOUNT = Decimal("0.00000123"), Decimal("0.00000456"), Decimal("0.00001")


class Sent(Exception):
    """The request, instead of an answer to it."""


@asynccontextmanager
async def account_at(venue: str) -> AsyncIterator[tuple[CcxtAccount, list[str]]]:
    """An account whose requests go into a list; reading gets {}, writing a time-out."""
    names = ("apiKey", "secret", "password", "uid")
    exchange = CcxtExchange(
        ExchangeSettings(
            venue, rate_limit_ms=0, options=dict.fromkeys(names, "c2VjcmV0c2VjcmV0c2VjcmV0c2Vj")
        ),
        policy=RetryPolicy(attempts=1),
    )
    account = CcxtAccount(exchange)
    client = exchange.client
    client.set_markets([market(client, SPOT), market(client, SWAP)])
    client.accounts = [{"id": "7", "type": "spot"}]  # what htx asks for first
    client.tokenBucket = {}
    exchange._loaded = True
    sent: list[str] = []

    async def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        if method == "GET":
            return {}
        sent.append(f"{url} {body}")
        raise ccxt.RequestTimeout(f"{venue} POST {url}")

    account._fetch = fetch
    client.throttle = nothing
    try:
        yield account, sent
    finally:
        await account.close()


async def nothing(cost: object = None) -> None:
    """No waiting."""


def market(client: Any, symbol: str) -> Any:
    contract = symbol == SWAP
    name = "BTC-USDT-SWAP" if contract else "BTC-USDT"
    assets = {"base": "BTC", "quote": "USDT", "baseId": "BTC", "quoteId": "USDT"}
    settle = {"settle": "USDT", "settleId": "USDT", "contractSize": "1"} if contract else {}
    return client.safe_market_structure(
        {**assets, **settle, "id": name, "symbol": symbol, "type": "swap" if contract else "spot",
         "spot": not contract, "swap": contract, "future": False, "option": False,
         "margin": False, "contract": contract, "linear": contract or None,
         "inverse": False if contract else None, "active": True,
         "precision": {"amount": "1" if contract else "0.00001", "price": "0.00000001"},
         "limits": {"amount": {"min": "0.00001"}, "price": {}, "cost": {}},
         "info": {"orderTypes": TYPES, "status": "1", "instId": name}}
    )  # fmt: skip


#: (symbol, side, type, price, stop)
ORDERS: list[tuple[str, Side, OrderType, Decimal | None, Decimal | None]] = [
    (SPOT, Side.BUY, OrderType.LIMIT, PRICE, None),
    (SPOT, Side.BUY, OrderType.MARKET, None, None),
    (SPOT, Side.SELL, OrderType.MARKET, None, None),
    (SPOT, Side.SELL, OrderType.STOP_LOSS, None, STOP),
    (SPOT, Side.SELL, OrderType.TAKE_PROFIT, PRICE, STOP),
    (SWAP, Side.SELL, OrderType.LIMIT, PRICE, None),
]


@pytest.mark.parametrize("venue", SENDING)
async def test_an_order_is_sent_digit_for_digit_or_not_at_all(venue: str) -> None:
    async with account_at(venue) as (account, sent):
        facts = account.private
        assert facts.client_ids
        for symbol, side, type_, price, stop in ORDERS:
            sent.clear()
            name = facts.client_ids.make()
            amount = Decimal(7) if symbol == SWAP else AMOUNT
            order = NewOrder(symbol, name, side, type_, amount, price, stop)
            is_market_buy = (symbol, side, type_) == (SPOT, Side.BUY, OrderType.MARKET)
            offered = (
                (symbol == SPOT or facts.contracts)
                and (stop is None or facts.stop_orders)
                and (not is_market_buy or facts.market_buy_by_amount)
            )
            with pytest.raises(OrderOutcomeUnknown if offered else NotOffered):
                await account.create_order(order)
            assert len(sent) == offered
            for request in sent:
                assert name in request
                assert all(
                    format(number, "f") in request
                    for number in (amount, price, stop)
                    if number is not None
                )
        sent.clear()
        with pytest.raises(OrderOutcomeUnknown):
            await account.cancel_order(SPOT, exchange_order_id=None, client_order_id=name)
        (request,) = sent
        assert name in request


async def test_what_ccxt_would_change_is_not_sent() -> None:
    """CCXT cuts an amount to its step, and rounds a price, without a word."""
    async with account_at("binance") as (account, sent):
        for amount, price, named in (
            ("0.000019", PRICE, "amount 0.000019"),
            ("0.00001", Decimal("0.000000015"), "price 0.000000015"),
        ):
            order = NewOrder(
                SPOT, "mine", Side.BUY, OrderType.LIMIT, Decimal(amount), price
            )  # fmt: skip
            with pytest.raises(OrderRejected, match=f"{named} as it is; it was not sent"):
                await account.create_order(order)
        assert not sent


async def test_an_order_that_waited_too_long_for_its_turn_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody may have taken it for absent by then."""
    monkeypatch.setattr("kurisu.exchange.private.QUEUED_S", 0.01)
    async with account_at("binance") as (account, sent):
        account._client.throttle = slowly
        order = NewOrder(SPOT, "mine", Side.BUY, OrderType.LIMIT, AMOUNT, PRICE)
        with pytest.raises(OrderRejected, match="waited for its turn"):
            await account.create_order(order)
        assert not sent


async def slowly(cost: object = None) -> None:
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("venue", SENDING)
def test_client_order_ids(venue: str) -> None:
    """They fit the venue and the table, are different, and sort as they were made."""
    ids = PRIVATE_VENUES[venue].client_ids
    assert ids
    made = [ids.make() for _ in range(200)]
    assert len(set(made)) == 200
    assert all(ids.fits(name) and len(name) <= 50 for name in made)
    times = [name.removeprefix(ids.prefix)[:9] for name in made]
    assert times == sorted(times)
    with pytest.raises(InvalidArgument, match="does not take"):
        PRIVATE_VENUES[venue].check_client_order_id(venue, "one of\nmine" * 9)


async def test_no_order_goes_where_it_could_not_be_found_again() -> None:
    async with account_at("bitfinex") as (account, sent):
        order = NewOrder(SPOT, "mine", Side.BUY, OrderType.LIMIT, AMOUNT, PRICE)
        with pytest.raises(NotOffered, match="sends no orders there"):
            await account.create_order(order)
        assert not sent


@pytest.mark.parametrize("venue", [*SENDING, "bitfinex"])
async def test_history_is_asked_for_within_its_bounds(venue: str) -> None:
    """CCXT drops or mistakes `until` on some venues; a page that ignores it never gets smaller."""
    since, until = 1_700_000_000_000, 1_700_000_900_000
    requests: list[str] = []
    empty: Any = [] if venue in ("binance", "binanceus", "gate", "mexc", "bitfinex") else {}
    if venue == "htx":
        empty = {"data": []}

    async def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        requests.append(f"{url} {body}")
        return empty

    async with account_at(venue) as (account, _):
        account._fetch = fetch
        query = RecordQuery(since, until)
        assert (await account.fetch_executions(SPOT, query)).executions == ()
        assert (await account.fetch_orders(SPOT, query)).orders == ()
    # What is asked for beside the lists: settings, and orders that are open.
    beside = re.compile(r"mode|detail|settings|open|pending|unfilled|realtime|active|BTC-USDT \{\}",
                        re.IGNORECASE)  # fmt: skip
    lists = [request for request in requests if not beside.search(request)]
    assert len(lists) >= 2
    for request in lists:
        assert str(since)[:10] in request
        assert str(until)[:9] in request
        assert "until" not in request


async def test_a_page_of_all_markets_is_seen_to_be_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitget's unified accounts answer with every market's fills; this one's was delisted since,
    and CCXT takes it for the one that was asked for."""
    rows = [
        {"execId": str(n), "orderId": "1", "symbol": "ETHUSDT", "side": "buy", "execPrice": "1",
         "execQty": "1", "createdTime": "1700000000000"}
        for n in range(100)
    ]  # fmt: skip

    async def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        return {"data": {"list": rows}}

    async with account_at("bitget") as (account, _):
        monkeypatch.setattr(account._client, "is_uta_enabled", nothing_but(True), raising=False)
        account._fetch = fetch
        query = RecordQuery(1_700_000_000_000, 1_700_000_900_000)
        page = await account.fetch_executions(SPOT, query)
    assert page.is_full
    assert page.executions == ()


def nothing_but(answer: bool) -> Any:
    async def call(*_: Any) -> bool:
        return answer

    return call


#: A market order that took many small ones: more fills in one millisecond than a page has rows.
FILLS, AT_MS = 230, 1_700_000_450_000


def okx_fills(asked: dict[str, str]) -> Any:
    before = int(asked.get("after", FILLS))
    rows = [
        {"instId": "BTC-USDT", "ordId": "7", "tradeId": str(n), "billId": str(n), "side": "buy",
         "fillPx": "2", "fillSz": "0.1", "fee": "-0.0001", "feeCcy": "BTC", "execType": "T",
         "ts": str(AT_MS)}
        for n in range(before - 1, max(before - 1 - 100, -1), -1)
    ]  # fmt: skip
    return {"code": "0", "data": rows}


def kucoin_fills(asked: dict[str, str]) -> Any:
    before = int(asked.get("lastId", FILLS))
    rows = [
        {"id": n, "tradeId": n + 10**15, "symbol": "BTC-USDT", "orderId": "7", "side": "buy",
         "liquidity": "taker", "price": "2", "size": "0.1", "funds": "0.2", "fee": "0.0002",
         "feeCurrency": "USDT", "type": "limit", "createdAt": AT_MS}
        for n in range(before - 1, max(before - 1 - int(asked.get("limit", "20")), -1), -1)
    ]  # fmt: skip
    return {"code": "200000", "data": {"items": rows, "lastId": rows[-1]["id"] if rows else 0}}


def coinbase_fills(asked: dict[str, str]) -> Any:
    start = int(asked.get("cursor", "0"))
    end = min(start + int(asked["limit"]), FILLS)
    rows = [
        {"trade_id": str(n), "order_id": "7", "trade_time": "2023-11-14T22:20:50.000123Z",
         "product_id": "BTC-USDT", "price": "2", "size": "0.1", "commission": "0.0002",
         "size_in_quote": False, "side": "BUY", "liquidity_indicator": "TAKER"}
        for n in range(start, end)
    ]  # fmt: skip
    return {"fills": rows, "cursor": str(end) if end < FILLS else ""}


@pytest.mark.parametrize(
    ("venue", "answer"),
    [("okx", okx_fills), ("kucoin", kucoin_fills), ("coinbase", coinbase_fills)],
)
async def test_more_fills_at_once_than_a_page_shows(venue: str, answer: Any) -> None:
    async def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        return answer(asked_in(url)) if "fills" in url else {"code": "200000", "data": {}}

    async with account_at(venue) as (account, _):
        account._fetch = fetch
        account._client.options = {**account._client.options, "hf": True, "uta": False}
        since, until = from_ms(AT_MS - 3_600_000), from_ms(AT_MS + 3_600_000)
        found = [
            row.trade_id
            async for window in execution_windows(account, SPOT, since, until)
            for row in window.rows
        ]
    assert len(found) == len(set(found)) == FILLS


async def test_ended_orders_of_kucoin_are_shown_as_many_as_asked_for() -> None:
    """hf/orders/done shows 20 of them unless it is given a limit; CCXT gives it a pageSize."""
    rows = [
        {"id": f"{n:x}", "symbol": "BTC-USDT", "type": "limit", "side": "buy", "price": "2",
         "size": "1", "dealSize": "0", "dealFunds": "0", "cancelExist": True, "active": False,
         "createdAt": AT_MS + n}
        for n in range(130)
    ]  # fmt: skip

    async def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        if "orders/done" not in url:
            return {"code": "200000", "data": []}
        asked = asked_in(url)
        start = int(asked.get("lastId", "0"))
        end = start + int(asked.get("limit", "20"))
        return {"code": "200000", "data": {"items": rows[start:end], "lastId": end}}

    async with account_at("kucoin") as (account, _):
        account._fetch = fetch
        account._client.options = {**account._client.options, "hf": True, "uta": False}
        since, until = from_ms(AT_MS - 3_600_000), from_ms(AT_MS + 3_600_000)
        (window,) = [w async for w in order_windows(account, SPOT, since, until)]
    assert len(window.rows) == 130


async def test_canceled_orders_of_okx_are_looked_for_in_its_archive() -> None:
    """CCXT asks for them in the list of the last seven days only."""
    lists: list[tuple[str, str]] = []

    async def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        lists.append((url.partition("?")[0].rpartition("/")[2], asked_in(url).get("state", "")))
        return {"code": "0", "data": []}

    async with account_at("okx") as (account, _):
        account._fetch = fetch
        await account.fetch_orders(SPOT, RecordQuery(1_700_000_000_000, 1_700_000_900_000))
    assert sorted(lists) == [
        ("orders-history", "canceled"),
        ("orders-history", "filled"),
        ("orders-history-archive", "canceled"),
        ("orders-history-archive", "filled"),
        ("orders-pending", ""),
    ]


@pytest.mark.parametrize(
    ("venue", "answer"),
    [
        ("okx", {"code": "51603", "msg": "Order does not exist", "data": []}),
        ("kucoin", {"code": "400100", "msg": "order not exist."}),
        ("coinbase", {"error": "NOT_FOUND", "message": "order with this orderID was not found"}),
    ],
)
async def test_an_order_that_is_not_there_is_no_error(venue: str, answer: Any) -> None:
    """CCXT knows some of the ways in which venues say so."""

    async def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        account._client.handle_errors(404, "", url, "GET", {}, str(answer), answer, None, None)
        return answer

    async with account_at(venue) as (account, _):
        account._fetch = fetch
        account._client.options = {**account._client.options, "hf": True, "uta": False}
        assert await account.fetch_order(SPOT, exchange_order_id="7") is None


async def test_balances_of_coinbase_are_those_of_all_pages_with_what_is_held() -> None:
    """CCXT's default is one page of v2/accounts."""
    pages = {"": ("AAA", "1.5", "p2"), "p2": ("BBB", "0.000000000000000001", "")}

    async def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        assert "/api/v3/brokerage/accounts" in url
        asset, free, following = pages[asked_in(url).get("cursor", "")]
        account = {
            "uuid": asset, "name": f"{asset} Wallet", "type": "ACCOUNT_TYPE_CRYPTO",
            "available_balance": {"value": free, "currency": asset},
            "hold": {"value": "0.25", "currency": asset},
        }  # fmt: skip
        return {"accounts": [account], "has_next": bool(following), "cursor": following}

    async with account_at("coinbase") as (account, _):
        account._fetch = fetch
        found = await account.fetch_balances()
    assert [(one.asset, one.total, one.used) for one in found] == [
        ("AAA", Decimal("1.75"), Decimal("0.25")),
        ("BBB", Decimal("0.250000000000000001"), Decimal("0.25")),
    ]


def asked_in(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))
