"""What exchanges really answered, recorded by CCXT and by others; skipped where it is not there."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kurisu.domain.execution import Execution, Side
from kurisu.domain.market import MarketName
from kurisu.domain.order import Order, OrderStatus, OrderType, OrderUpdate
from kurisu.domain.position import MarketTerms
from kurisu.errors import LedgerRuleBroken
from kurisu.ledger.balance import book_totals, position_and_postings
from kurisu.ledger.intake import Intake

PAYLOADS = Path(__file__).parents[3] / "shared" / "data" / "payloads"

pytestmark = pytest.mark.skipif(
    not PAYLOADS.is_dir(), reason="recorded payloads are kept beside the repository, not in it"
)


def load(name: str) -> Any:
    """JSON with its numbers as they are spelled, as the exchange adapter has to read it."""
    return json.loads((PAYLOADS / name).read_text(encoding="utf-8"), parse_float=str)


def unified(exchange: str, method: str) -> list[dict[str, Any]]:
    """What CCXT makes of the recorded answers."""
    found: list[dict[str, Any]] = []
    for case in load(f"ccxt_static/{exchange}.json")["methods"][method]:
        parsed = case["parsedResponse"]
        found.extend(parsed if isinstance(parsed, list) else [parsed])
    return found


def order_for(name: str, payload: dict[str, Any], update: OrderUpdate) -> Order:
    """The order that we would have written before it was sent."""
    is_market = payload["type"] == "market"
    assert update.amount is not None
    return Order(
        market=MarketName.parse(name),
        side=Side(payload["side"]),
        type=OrderType(payload["type"]),
        amount=update.amount,
        price=None if is_market else update.price,
        created_at=update.created_at or datetime(2026, 1, 1, tzinfo=UTC),
        updated_at=update.created_at or datetime(2026, 1, 1, tzinfo=UTC),
        client_order_id=update.client_order_id,
        exchange_order_id=None if update.client_order_id else update.exchange_order_id,
    )


@pytest.mark.parametrize(
    "method", ["createOrder", "createOrders", "fetchOrder", "fetchOpenOrders", "fetchOpenOrder"]
)
def test_orders_of_binance(method: str) -> None:
    for payload in unified("binance", method):
        update = OrderUpdate.from_ccxt(payload)
        name = MarketName.of("binance", payload["symbol"])
        intake = Intake(MarketTerms.of(name, Decimal(1) if name.settle else None))
        intake.place(order_for(str(name), payload, update))
        order = intake.update(update).order
        assert order
        assert order.status == payload["status"]
        assert order.amount == Decimal(str(payload["amount"]))
        # What is filled is what executions say, and none was given.
        assert order.filled == 0
        missing = {e.as_json["reported"] for e in intake.conditions()}
        assert missing == ({str(payload["filled"])} if payload["filled"] else set())


def test_a_market_sale_of_mexc_and_its_fill() -> None:
    (answer,), (trade,) = unified("mexc", "fetchOrders"), unified("mexc", "fetchMyTrades")
    terms = MarketTerms.of(MarketName.parse("mexc:ATLAS/USDT"))
    update, execution = OrderUpdate.from_ccxt(answer), Execution.from_ccxt(trade)
    assert update.client_order_id is None
    assert update.time is None  # lastUpdateTimestamp is not there
    assert execution.fees == ()
    intake = Intake(terms)
    intake.execute(execution)
    intake.update(update)
    intake.place(order_for("mexc:ATLAS/USDT", answer, update))
    (order,) = intake.orders()
    assert (order.status, order.filled, order.cost) == (
        OrderStatus.CLOSED, Decimal(1220), Decimal("5.54124"),
    )  # fmt: skip
    assert order.price is None  # the exchange's 0.004327 is no limit
    assert not intake.events() | intake.conditions()
    position, lines = position_and_postings(intake.executions(), terms)
    assert position.amount == -1220
    assert book_totals(lines) == {"ATLAS": Decimal(-1220), "USDT": Decimal("5.54124")}


def test_public_trades_are_no_executions() -> None:
    (trade,) = unified("binanceus", "fetchTrades")
    with pytest.raises(LedgerRuleBroken, match="execution_names_its_order"):
        Execution.from_ccxt(trade)


def test_the_five_fills_of_binance_s_full_answer() -> None:
    """Their sums are right; the cumulative amount in the documentation's example is not."""
    answer = load("nautilus/binance/spot/http_json/new_order_full_response.json")
    terms = MarketTerms.of(MarketName.parse("binance:BTC/USDT"))
    intake = Intake(terms)
    update = OrderUpdate.from_ccxt(
        {"id": answer["orderId"], "clientOrderId": answer["clientOrderId"], "status": "closed",
         "amount": answer["origQty"], "filled": answer["executedQty"], "side": "sell",
         "lastUpdateTimestamp": answer["transactTime"], "timestamp": answer["transactTime"]}
    )  # fmt: skip
    intake.place(order_for("binance:BTC/USDT", {"type": "market", "side": "sell"}, update))
    intake.update(update)
    for one in [*answer["fills"], *answer["fills"]]:
        intake.execute(
            Execution.from_ccxt(
                {"id": one["tradeId"], "order": answer["orderId"], "side": "sell",
                 "timestamp": answer["transactTime"], "price": one["price"], "amount": one["qty"],
                 "fee": {"cost": one["commission"], "currency": one["commissionAsset"]}}
            )
        )  # fmt: skip
    (order,) = intake.orders()
    assert (order.status, order.filled, order.cost) == (
        OrderStatus.CLOSED, Decimal(10), Decimal(39983),
    )  # fmt: skip
    assert not intake.events() | intake.conditions()
    position, lines = position_and_postings(intake.executions(), terms)
    assert position.fee_value == Decimal("39.983")
    assert book_totals(lines)["USDT"] == Decimal("39943.017")


def test_executions_of_bybit() -> None:
    """The exchange's own value of each is what price, amount and contract size give."""
    raw = load("nautilus/bybit/http_get_executions.json")["result"]["list"]
    raw += load("nautilus/bybit/ws_account_execution.json")["data"]
    for one in raw:
        name = MarketName.of("bybit", f"{one['symbol'].removesuffix('USDT')}/USDT:USDT")
        terms = MarketTerms.of(name, Decimal(1))
        execution = Execution.from_ccxt(
            {"id": one["execId"], "order": one["orderId"], "side": one["side"].lower(),
             "timestamp": one["execTime"], "price": one["execPrice"], "amount": one["execQty"],
             "fee": {"cost": one["execFee"], "currency": "USDT"},
             "takerOrMaker": "maker" if one["isMaker"] else "taker"}
        )  # fmt: skip
        position, lines = position_and_postings([execution], terms)
        assert position.cost_basis == Decimal(one["execValue"])
        assert book_totals(lines) == {"USDT": -Decimal(one["execFee"])}


def test_a_rejected_order_of_bybit_that_was_filled_in_part() -> None:
    (raw,) = load("nautilus/bybit/ws_account_order_partially_filled_rejected.json")["data"]
    update = OrderUpdate.from_ccxt(
        {"id": raw["orderId"], "clientOrderId": raw["orderLinkId"], "status": "rejected",
         "amount": raw["qty"], "filled": raw["cumExecQty"], "price": raw["price"], "side": "buy",
         "timestamp": raw["createdTime"], "lastUpdateTimestamp": raw["updatedTime"]}
    )  # fmt: skip
    intake = Intake(MarketTerms.of(MarketName.parse("bybit:APEX/USDT")))
    intake.place(order_for("bybit:APEX/USDT", {"type": "limit", "side": "buy"}, update))
    order = intake.update(update).order
    assert order
    assert order.status == "failed"
    (missing,) = intake.conditions()
    assert missing.as_json["reported"] == "50"


def test_one_fill_of_binance_futures_by_two_messages() -> None:
    """The same trade id, once as a partial and once (another order size) as a total fill."""
    folder = "nautilus/binance/futures/user_data_json"
    seen = []
    for file in ("order_update_trade_partial.json", "order_update_trade.json"):
        raw = load(f"{folder}/{file}")["o"]
        seen.append(
            Execution.from_ccxt(
                {"id": raw["t"], "order": raw["i"], "side": raw["S"].lower(),
                 "timestamp": raw["T"], "price": raw["L"], "amount": raw["l"],
                 "fee": {"cost": raw["n"], "currency": raw["N"]},
                 "takerOrMaker": "maker" if raw["m"] else "taker"}
            )
        )  # fmt: skip
    assert seen[0] == seen[1]
