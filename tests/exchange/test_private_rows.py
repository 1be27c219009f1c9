"""Venues' answers, in their own shapes, by way of CCXT's parsers: what the ledger makes of them.

Written here after the venues' documentation; numbers are chosen so that a float, a rounding or a
field that was taken for another one shows.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import ccxt.async_support as venues
import pytest

from kurisu.domain.balance import EntryKind
from kurisu.domain.execution import Execution, Fee
from kurisu.domain.listing import PrecisionMode
from kurisu.domain.market import MarketName
from kurisu.domain.order import OrderStatus, OrderType
from kurisu.domain.position import MarketTerms
from kurisu.errors import BadAnswer, LedgerRuleBroken
from kurisu.exchange.exact import decode, exact_class
from kurisu.exchange.markets import listing
from kurisu.exchange.private_port import ReportedOrder
from kurisu.exchange.private_rows import (
    read_balance,
    read_executions,
    read_order,
    settled_totals,
    transfer_entries,
)
from kurisu.ledger.execution import cost_of
from kurisu.store.accounts import Account
from kurisu.store.markets import Market
from kurisu.trading.take_in import adopted

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MS = 1_767_225_600_123


def market_of(symbol: str, market_id: str, **more: Any) -> dict[str, Any]:
    """A market structure of CCXT's, as far as its parsers look at it."""
    name = MarketName.of("x", symbol)
    kind = "spot" if name.settle is None else "swap"
    is_contract = name.settle is not None
    return {
        "id": market_id, "symbol": symbol, "base": name.base, "quote": name.quote,
        "baseId": name.base, "quoteId": name.quote, "settle": name.settle,
        "settleId": name.settle, "type": kind, "spot": not is_contract, "margin": False,
        "swap": is_contract, "future": False, "option": False, "contract": is_contract,
        "linear": name.settle == name.quote if is_contract else None,
        "inverse": name.settle == name.base if is_contract else None, "contractSize": None,
        "precision": {"price": "0.000001", "amount": "0.000001"}, "limits": {}, "info": {},
        "active": True, **more,
    }  # fmt: skip


def parsed(venue: str, kind: str, market: dict[str, Any], answer: str | dict[str, Any]) -> Any:
    """What CCXT makes of an answer. kind: order, trade or transaction."""
    client = exact_class(getattr(venues, venue))({"number": str})
    client.set_markets([market])
    client.currencies = client.currencies or {}
    raw = decode(answer) if isinstance(answer, str) else answer
    return getattr(client, f"parse_{kind}")(raw, None if kind == "transaction" else market)


def order_of(venue: str, market: dict[str, Any], answer: dict[str, Any]) -> ReportedOrder:
    return read_order(parsed(venue, "order", market, answer), NOW)


KRAKEN = market_of("XBT/USD", "XXBTZUSD", altname="XBTUSD")
KRAKEN_ORDER = {
    "id": "OABCDE-12345-FGHIJK", "userref": 0, "status": "open", "opentm": 1767225600.1234,
    "vol": "0.50000000", "vol_exec": "0.00000000", "cost": "0.00000", "fee": "0.00000",
    "price": "0.00000", "stopprice": "0.00000", "limitprice": "0.00000", "oflags": "fciq",
}  # fmt: skip


@pytest.mark.parametrize(
    ("ordertype", "price", "price2", "wanted"),
    [
        ("limit", "60000.1", "0", (OrderType.LIMIT, "60000.1", None)),
        ("market", "0", "0", (OrderType.MARKET, None, None)),
        ("stop-loss", "55000.5", "0", (OrderType.STOP_LOSS, None, "55000.5")),
        ("stop-loss-limit", "55000.5", "54999", (OrderType.STOP_LOSS, "54999", "55000.5")),
        ("take-profit", "70000.5", "0", (OrderType.TAKE_PROFIT, None, "70000.5")),
        ("take-profit-limit", "70000.5", "70001", (OrderType.TAKE_PROFIT, "70001", "70000.5")),
    ],
)
def test_order_types_of_kraken(ordertype: str, price: str, price2: str, wanted: Any) -> None:
    """Its triggers have CCXT's types of plain orders."""
    description = {"pair": "XBTUSD", "type": "sell", "ordertype": ordertype, "price": price,
                   "price2": price2, "leverage": "none", "order": "", "close": ""}  # fmt: skip
    found = order_of("kraken", KRAKEN, {**KRAKEN_ORDER, "descr": description})
    type_, limit, stop = wanted
    assert found.type is type_
    market = Market(1, MarketName.of("x", "XBT/USD"), active=True)
    order = adopted(found, Account(1, "kraken", "main"), market)
    assert (order.type, order.price, order.stop_price, order.amount) == (
        type_, limit and Decimal(limit), stop and Decimal(stop), Decimal("0.5"),
    )  # fmt: skip


OKX = market_of("PEPE/USDT", "PEPE-USDT")
OKX_ORDER = {
    "instType": "SPOT", "instId": "PEPE-USDT", "ordId": "777000111222333444", "clOrdId": "",
    "side": "sell", "ordType": "limit", "sz": "1000000", "px": "0.0000123456", "accFillSz": "0",
    "avgPx": "", "state": "live", "tgtCcy": "", "cTime": str(MS), "uTime": str(MS + 5),
    "fillTime": "", "fee": "0", "feeCcy": "USDT", "reduceOnly": "false", "attachAlgoOrds": [],
}  # fmt: skip


def test_a_stop_that_is_attached_makes_no_stop_order() -> None:
    attached = [{"slTriggerPx": "0.00001", "slOrdPx": "-1", "tpTriggerPx": ""}]
    found = order_of("okx", OKX, {**OKX_ORDER, "attachAlgoOrds": attached})
    assert found.type is OrderType.LIMIT
    assert found.update.price == Decimal("0.0000123456")
    algo = {**OKX_ORDER, "ordType": "conditional", "slTriggerPx": "0.00001", "slOrdPx": "-1",
            "px": "", "algoId": "888"}  # fmt: skip
    assert order_of("okx", OKX, algo).type is OrderType.STOP_LOSS
    profit = {**algo, "slTriggerPx": "", "slOrdPx": "", "tpTriggerPx": "0.00002", "tpOrdPx": "-1"}
    found = order_of("okx", OKX, profit)
    assert (found.type, found.update.stop_price) == (OrderType.TAKE_PROFIT, Decimal("0.00002"))
    # CCXT calls the price -1 where a trigger sends an order at the market.
    trigger = {**algo, "ordType": "trigger", "slTriggerPx": "", "triggerPx": "0.000015",
               "ordPx": "-1"}  # fmt: skip
    found = order_of("okx", OKX, trigger)
    assert (found.type, found.update.price) == (OrderType.STOP_LOSS, None)
    assert found.update.stop_price == Decimal("0.000015")


def test_an_order_that_okx_refused() -> None:
    found = order_of("okx", OKX, {"clOrdId": "k1", "ordId": "", "sCode": "51008", "sMsg": "no"})
    assert (found.update.client_order_id, found.update.status) == ("k1", OrderStatus.FAILED)


def test_numbers_of_okx_in_any_spelling() -> None:
    """Negative is what was paid; a rebate is above zero there, and below in the ledger."""
    trade = {"instId": "PEPE-USDT", "tradeId": "12", "ordId": "7", "side": "buy", "ts": str(MS),
             "fillPx": "1.2e-8", "fillSz": "1e6", "fee": "-1000.5", "feeCcy": "PEPE",
             "execType": "T"}  # fmt: skip
    found = Execution.from_ccxt(parsed("okx", "trade", OKX, trade))
    assert (found.price, found.amount) == (Decimal("0.000000012"), Decimal(1_000_000))
    assert found.fees == (Fee("PEPE", Decimal("1000.5")),)
    rebate = {**trade, "fee": "0.0000001", "feeCcy": "USDT", "execType": "M"}
    assert Execution.from_ccxt(parsed("okx", "trade", OKX, rebate)).fees == (
        Fee("USDT", Decimal("-1e-7")),
    )


def test_a_cost_with_more_digits_than_there_is_room() -> None:
    """CCXT's product of a price of ten digits and an amount of twelve."""
    trade = {"instId": "PEPE-USDT", "tradeId": "12", "ordId": "7", "side": "buy", "ts": str(MS),
             "fillPx": "0.0000012345", "fillSz": "3.123456789012", "fee": "0",
             "feeCcy": "PEPE", "execType": "T"}  # fmt: skip
    found = Execution.from_ccxt(parsed("okx", "trade", OKX, trade))
    assert found.cost is None
    terms = MarketTerms.of(MarketName.of("okx", "PEPE/USDT"))
    assert cost_of(found, terms) == Decimal("0.000003855907406035")


COINBASE = market_of("ETH/USD", "ETH-USD")


def test_a_market_order_of_coinbase_by_its_cost() -> None:
    """Its average and its fill have more digits than a NUMERIC(38,18) has."""
    answer = {
        "order_id": "0a1b", "product_id": "ETH-USD", "side": "BUY", "client_order_id": "c-1",
        "status": "FILLED", "order_type": "MARKET", "created_time": "2026-01-01T00:00:00.123456Z",
        "order_configuration": {"market_market_ioc": {"quote_size": "10"}},
        "filled_size": "0.0033333333333333333333", "total_fees": "0.06", "size_in_quote": True,
        "average_filled_price": "3000.0000000000000000003",
    }  # fmt: skip
    found = order_of("coinbase", COINBASE, answer)
    assert (found.type, found.update.price) == (OrderType.MARKET, None)
    assert found.update.filled == found.update.amount == Decimal("0.003333333333333333")
    assert found.update.created_at == datetime(2026, 1, 1, 0, 0, 0, 123_000, UTC)


@pytest.mark.parametrize(("left", "total"), [("0.006", "13.594"), ("0", "13.6")])
def test_a_market_buy_of_gate_is_as_large_as_what_was_filled(left: str, total: str) -> None:
    """CCXT divides by the average, which is rounded: the fill would be more than the order."""
    market = market_of("AXS/USDT", "AXS_USDT")
    answer = {"id": "1", "text": "t-1", "create_time_ms": MS, "update_time_ms": MS + 1,
              "status": "closed", "currency_pair": "AXS_USDT", "type": "market", "side": "buy",
              "account": "spot", "amount": "13.6", "price": "0", "time_in_force": "fok",
              "left": left, "filled_amount": "10.000003", "fill_price": total,
              "filled_total": total, "avg_deal_price": "1.36", "fee": "0.01",
              "fee_currency": "AXS", "finish_as": "filled"}  # fmt: skip
    found = order_of("gate", market, answer)
    order = adopted(
        found, Account(1, "gate", "main"), Market(1, MarketName.of("x", "AXS/USDT"), active=True)
    )
    assert (order.type, order.amount) == (OrderType.MARKET, Decimal("10.000003"))
    assert found.update.filled == order.amount


@pytest.mark.parametrize(
    ("cost", "price", "base"),
    [
        ("9.99998", "0.10000", "99.9998"), ("9.99998", "0.10000", "100.00479"),
        ("10.0", "60000.1", "0.00016666638889"), ("0.99", "0.00001", "99000"),
    ],
)  # fmt: skip
def test_an_order_of_kraken_by_its_cost(cost: str, price: str, base: str) -> None:
    """Its volumes are in quote units: ten dollars are no ten coins, and a hundred of them fit."""
    description = {"pair": "XBTUSD", "type": "buy", "ordertype": "market", "price": "0",
                   "price2": "0", "leverage": "none", "order": "", "close": ""}  # fmt: skip
    answer = {**KRAKEN_ORDER, "descr": description, "vol": "10.00000000", "vol_exec": "10.00000000",
              "status": "closed", "oflags": "fciq,viqc", "cost": cost, "price": price}  # fmt: skip
    found = order_of("kraken", KRAKEN, answer)
    amount = found.update.amount
    assert found.type is OrderType.MARKET
    assert found.update.filled is None
    assert amount is not None
    assert Decimal(base) <= amount <= Decimal(base) * Decimal("2.1")
    # None of it was filled.
    canceled = {**answer, "status": "canceled", "vol_exec": "0", "cost": "0", "price": "0"}
    found = order_of("kraken", KRAKEN, canceled)
    assert (found.update.amount, found.update.filled) == (None, Decimal(0))


def test_an_order_of_kucoin_s_unified_account_by_its_cost() -> None:
    """CCXT cuts what it divides to the market's steps: the fill of 3.4 would be too much."""
    answer = {"orderId": "7", "symbol": "BTC-USDT", "orderType": "MARKET", "side": "BUY",
              "size": "10", "sizeUnit": "QUOTECCY", "filledSize": "9.99999", "avgPrice": "2.94118",
              "status": "2", "orderTime": MS * 1_000_000, "updatedTime": MS * 1_000_000,
              "clientOid": "c"}  # fmt: skip
    found = order_of("kucoin", KUCOIN, answer).update
    assert found.filled is None
    assert found.amount is not None
    assert Decimal("3.4") <= found.amount < Decimal("3.4001")
    nothing = order_of("kucoin", KUCOIN, {**answer, "filledSize": "0", "avgPrice": "0"}).update
    assert (nothing.amount, nothing.filled) == (None, Decimal(0))


def test_a_fill_of_coinbase_that_is_told_in_quote_units() -> None:
    """The amount is what its order counts, 16 digits, and the price is Coinbase's."""
    answer = {
        "trade_id": "t-1", "order_id": "0a1b", "trade_time": "2026-01-01T00:00:00.123456Z",
        "product_id": "ETH-USD", "price": "70356.25", "size": "6267.8429059523",
        "commission": "37.6070574357138", "size_in_quote": True, "side": "BUY",
        "liquidity_indicator": "TAKER",
    }  # fmt: skip
    (found,), unreadable = read_executions([parsed("coinbase", "trade", COINBASE, answer)])
    assert unreadable == ()
    assert found.amount == Decimal("0.0890872226128070")  # of ..280696455, not cut
    assert (found.price, found.cost) == (Decimal("70356.25"), Decimal("6267.8429059523"))
    assert found.fees == (Fee("USD", Decimal("37.6070574357138")),)


KUCOIN = market_of("BTC/USDT", "BTC-USDT")


def test_a_withdrawal_of_kucoin_is_none_by_its_fields() -> None:
    """It has the hash of its transaction, as a deposit has."""
    answer = {"id": "5c2d", "address": "0x1", "memo": "", "currency": "BTC", "amount": "0.5",
              "fee": "0.0005", "walletTxId": "0xabc@1", "isInner": False, "status": "SUCCESS",
              "createdAt": MS, "updatedAt": MS + 1}  # fmt: skip
    row = parsed("kucoin", "transaction", KUCOIN, answer)
    assert [(e.kind, e.amount) for e in transfer_entries(row, EntryKind.WITHDRAWAL)] == [
        (EntryKind.WITHDRAWAL, Decimal("-0.5")),
        (EntryKind.FEE, Decimal("-0.0005")),
    ]
    (deposit,) = transfer_entries(row, EntryKind.DEPOSIT)
    assert (deposit.amount, deposit.reference) == (Decimal("0.5"), "5c2d")


def test_outputs_of_one_transaction_are_deposits_of_their_own() -> None:
    """KuCoin's deposits have no id, and CCXT cuts the hash out of what tells them apart."""
    answer = {"currency": "BTC", "amount": "0.5", "fee": "0", "status": "SUCCESS", "isInner": False,
              "createdAt": MS, "updatedAt": MS + 1}  # fmt: skip
    found = [
        entry.reference
        for name in ("0xabc@1addr@0", "0xabc@1addr@1", "0xabc")
        for entry in transfer_entries(
            parsed("kucoin", "transaction", KUCOIN, {**answer, "walletTxId": name}),
            EntryKind.DEPOSIT,
        )
    ]
    assert found == ["0xabc@1addr@0", "0xabc@1addr@1", "0xabc"]


def test_a_fill_that_cannot_be_read_costs_no_order() -> None:
    """It is among the trades, too, and reported there."""
    trade = {"id": "1", "timestamp": MS, "price": 0.1, "amount": "1", "side": "buy"}
    row = {"id": "7", "side": "buy", "amount": "1", "price": "5", "status": "closed", "filled": "1",
           "type": "limit", "timestamp": MS, "trades": [trade]}  # fmt: skip
    found = read_order(row, NOW)
    assert (found.update.filled, found.executions) == (Decimal(1), ())
    with pytest.raises(LedgerRuleBroken, match="number_is_exact"):
        Execution.from_ccxt({**trade, "order": "7"})


@pytest.mark.parametrize("spelled", [int, str])
def test_milliseconds_that_were_nanoseconds(spelled: type) -> None:
    """KuCoin's unified account says nanoseconds."""
    trade = {"symbol": "BTC-USDT", "tradeId": "9", "orderId": "7", "side": "BUY", "price": "7.5",
             "size": "0.1", "fee": "0.5", "feeCurrency": "USDT", "liquidityRole": "TAKER",
             "executionTime": spelled(MS * 1_000_000 + 987_654), "tradeType": "SPOT"}  # fmt: skip
    found = Execution.from_ccxt(parsed("kucoin", "trade", KUCOIN, trade))
    assert found.time == datetime(2026, 1, 1, 0, 0, 0, 123_000, UTC)


def test_balances_of_many_digits_and_what_is_settled_of_them() -> None:
    assert read_balance("x", "10.0000000000000000005001") == Decimal("10.000000000000000001")
    with pytest.raises(BadAnswer, match="a balance is 'much'"):
        read_balance("x", "much")
    okx = {"uTime": "1", "details": [{"ccy": "BTC", "eq": "1.5", "cashBal": "1.25"}]}
    bitget = {"marginCoin": "USDT", "accountEquity": "7.5", "unrealizedPL": "-0.25"}
    info = {"data": [okx, bitget]}
    assert settled_totals(info, ("ccy", "cashBal", ""), str.upper) == {"BTC": "1.25"}
    less = settled_totals(info, ("marginCoin", "accountEquity", "unrealizedPL"), str.upper)
    assert less == {"USDT": Decimal("7.75")}


def test_fills_without_ids_get_one_that_is_the_same_every_time() -> None:
    """HollaEx's; two of a millisecond may be alike in everything."""
    alike = {"order": "7", "timestamp": MS, "side": "buy", "price": "2.50", "amount": "1"}
    rows = [alike, {**alike, "amount": "3"}, alike, {**alike, "order": "8"}, {**alike, "id": "T1"},
            {**alike, "price": None}]  # fmt: skip
    found, unreadable = read_executions(rows)
    again, _ = read_executions([{**row, "price": "2.5"} for row in rows[-2::-1]])
    assert {(e.trade_id, e.amount) for e in found} == {(e.trade_id, e.amount) for e in again}
    assert len({e.trade_id for e in found}) == len(found) == 5
    assert len(unreadable) == 1


@pytest.mark.parametrize(
    ("symbol", "market_id", "paid", "fees"),
    [
        ("BTC/USD:BTC", "PI_XBTUSD", {"fee_paid": "0.00009142857", "fee_currency": "BTC"},
         (Fee("BTC", Decimal("0.00009142857")),)),
        ("BTC/USD:USD", "PF_XBTUSD", {}, None),
    ],
)  # fmt: skip
def test_a_fill_of_kraken_s_futures_has_its_amount_and_no_made_up_fee(
    symbol: str, market_id: str, paid: dict[str, str], fees: tuple[Fee, ...] | None
) -> None:
    """CCXT leaves the amount of an inverse one out, and multiplies a fee from the tariff."""
    market = market_of(symbol, market_id, contractSize="1", taker="0.0005", maker="0.0002")
    trade = {"fill_id": "cad76f07-814e", "symbol": market_id, "side": "buy", "order_id": "7",
             "fillTime": "2026-01-01T00:00:00.123Z", "size": "5000", "price": "10937.5",
             "fillType": "maker", **paid}  # fmt: skip
    (found,), unreadable = read_executions([parsed("krakenfutures", "trade", market, trade)])
    assert unreadable == ()
    assert (found.amount, found.price, found.fees) == (Decimal(5000), Decimal("10937.5"), fees)


@pytest.mark.parametrize(
    ("said", "wanted"), [("", "SHIB"), ("SHIB", "SHIB"), ("USDT", "USDT"), ("MNT", "MNT")]
)
def test_a_fee_of_bybit_is_in_the_asset_that_it_says(said: str, wanted: str) -> None:
    """CCXT goes by side and sign alone."""
    market = market_of("SHIB/USDT", "SHIBUSDT")
    trade = {"symbol": "SHIBUSDT", "orderId": "7", "execId": "9", "side": "Buy", "execPrice": "2.5",
             "execQty": "4", "execValue": "10", "execTime": str(MS), "execType": "Trade",
             "execFee": "0.004", "feeCurrency": said, "isMaker": False}  # fmt: skip
    (found,), unreadable = read_executions([parsed("bybit", "trade", market, trade)])
    assert unreadable == ()
    assert found.fees == (Fee(wanted, Decimal("0.004")),)


def test_amounts_of_deribit_are_no_contracts() -> None:
    """200 USD, of a contract on 10: twenty of them, and CCXT says 200."""
    market = market_of("BTC/USD:BTC", "BTC-PERPETUAL", contractSize="10")
    trade = {"trade_id": "BTC-9", "instrument_name": "BTC-PERPETUAL", "order_id": "BTC-7",
             "timestamp": MS, "direction": "buy", "price": "50000.5", "amount": "200",
             "fee": "0.000002", "fee_currency": "BTC", "liquidity": "T"}  # fmt: skip
    found = Execution.from_ccxt(parsed("deribit", "trade", market, trade))
    listed = listing("deribit", market, PrecisionMode.TICK_SIZE)
    assert cost_of(found, MarketTerms.of(listed.name, listed.contract_size)) == 200
    assert listing("okx", market, PrecisionMode.TICK_SIZE).contract_size == 10
