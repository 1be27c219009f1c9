"""Binance's USD-margined futures: the wallet, fills and funding of one account.

Orders are made by the test, and filled at once. What is checked is what Binance checks of a
question: key, signature, timestamp, and that a window has seven days at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from exchange_server.binance_account import BinanceAccount, Refusal, eight
from exchange_server.clock import DAY_MS, VirtualClock
from exchange_server.venue import Answer

WINDOW_MS: Final = 7 * DAY_MS
_ZERO: Final = Decimal(0)


def entry(symbol: str, base: str, quote: str) -> dict[str, Any]:
    """An exchangeInfo entry of a perpetual contract."""
    return {
        "symbol": symbol, "pair": symbol, "contractType": "PERPETUAL", "status": "TRADING",
        "deliveryDate": 4133404800000, "onboardDate": 1569398400000, "baseAsset": base,
        "quoteAsset": quote, "marginAsset": quote, "pricePrecision": 2, "quantityPrecision": 3,
        "baseAssetPrecision": 8, "quotePrecision": 8, "underlyingType": "COIN",
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": "0.10", "maxPrice": "1000000",
             "tickSize": "0.10"},
            {"filterType": "LOT_SIZE", "minQty": "0.001", "maxQty": "1000", "stepSize": "0.001"},
            {"filterType": "MIN_NOTIONAL", "notional": "5"},
        ],
        "orderTypes": ["LIMIT", "MARKET"], "timeInForce": ["GTC", "IOC"],
    }  # fmt: skip


@dataclass
class BinanceFutures:
    """The account: settled wallet balance, one position a market, in USDT.

    mark: of every market, for unrealised PnL.
    """

    clock: VirtualClock
    account: BinanceAccount
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    wallet: Decimal = _ZERO
    mark: Decimal = _ZERO
    orders: list[dict[str, Any]] = field(default_factory=list)
    fills: list[dict[str, Any]] = field(default_factory=list)
    incomes: list[dict[str, Any]] = field(default_factory=list)
    held: dict[str, tuple[Decimal, Decimal]] = field(default_factory=dict)

    def trade(self, symbol: str, side: str, amount: str, price: str, fee: str) -> None:
        """A market order that was filled at once. fee: in USDT; negative is a rebate."""
        quantity, at, now = Decimal(amount), Decimal(price), self.clock.now_ms()
        signed = quantity if side == "buy" else -quantity
        before, paid = self.held.get(symbol, (_ZERO, _ZERO))
        gained = _ZERO
        if before * signed < 0:
            closed = min(abs(before), quantity)
            average = paid / abs(before)
            gained = closed * (at - average) * (1 if before > 0 else -1)
            paid = average * (abs(before) - closed) + (quantity - closed) * at
        else:
            paid += quantity * at
        self.held[symbol] = (before + signed, paid)
        self.wallet += gained - Decimal(fee)
        number = 5_000_000 + len(self.orders)
        self.orders.append(
            {"orderId": number, "clientOrderId": f"web_{number}", "symbol": symbol,
             "status": "FILLED", "price": "0", "avgPrice": price, "origQty": amount,
             "executedQty": amount, "cumQuote": eight(quantity * at), "timeInForce": "GTC",
             "type": "MARKET", "origType": "MARKET", "reduceOnly": False, "closePosition": False,
             "side": side.upper(), "positionSide": "BOTH", "stopPrice": "0",
             "workingType": "CONTRACT_PRICE", "time": now, "updateTime": now}
        )  # fmt: skip
        self.fills.append(
            {"symbol": symbol, "id": 80_000 + len(self.fills), "orderId": number,
             "side": side.upper(), "price": price, "qty": amount, "realizedPnl": eight(gained),
             "quoteQty": eight(quantity * at), "commission": fee, "commissionAsset": "USDT",
             "time": now, "positionSide": "BOTH", "buyer": side == "buy", "maker": False}
        )  # fmt: skip

    def pay(self, symbol: str, amount: str) -> None:
        """Funding: what the wallet gains; negative is paid."""
        self.wallet += Decimal(amount)
        self.incomes.append(
            {"symbol": symbol, "incomeType": "FUNDING_FEE", "income": amount, "asset": "USDT",
             "info": "FUNDING_FEE", "time": self.clock.now_ms(),
             "tranId": 9_000_000 + len(self.incomes), "tradeId": ""}
        )  # fmt: skip

    def answer(self, path: str) -> Answer:
        """To a question that needs no signature."""
        if path.endswith("exchangeInfo"):
            info = {"timezone": "UTC", "rateLimits": [], "symbols": list(self.entries.values())}
            return Answer(info)
        if path.endswith("aggTrades"):
            return Answer([])
        return Answer({"code": -1, "msg": "no such path"}, 404)

    def handle(self, path: str, signed: str, headers: Mapping[str, str]) -> Answer:
        """To a signed question."""
        with self.account.lock:
            try:
                params = self.account.checked(signed, headers)
                name = path.rsplit("/", 1)[-1]
                if name == "account":
                    return Answer(self._account())
                if name == "positionRisk":
                    return Answer(self._positions())
                if name in ("openOrders", "leverageBracket"):
                    return Answer([])
                lists = {"allOrders": self.orders, "userTrades": self.fills, "income": self.incomes}
                if name not in lists:
                    return Answer({"code": -1, "msg": "no such path"}, 404)
                return Answer(self._rows(lists[name], params))
            except Refusal as refusal:
                return refusal.answer

    def _rows(self, rows: list[dict[str, Any]], params: Mapping[str, str]) -> list[dict[str, Any]]:
        """Without a window, those of the last seven days."""
        until = int(params.get("endTime", self.clock.now_ms()))
        since = int(params.get("startTime", until - WINDOW_MS))
        if until - since > WINDOW_MS:
            raise Refusal(-4166, "Search window is restricted to recent 7 days only.")
        found = [
            row for row in rows
            if row["symbol"] == params["symbol"] and since <= row["time"] <= until
        ]  # fmt: skip
        return found[: int(params.get("limit", "100"))]

    def _account(self) -> dict[str, Any]:
        unrealized = sum(
            (amount * self.mark - paid * (1 if amount > 0 else -1)
             for amount, paid in self.held.values() if amount),
            _ZERO,
        )  # fmt: skip
        return {
            "totalWalletBalance": eight(self.wallet),
            "assets": [
                {"asset": "USDT", "walletBalance": eight(self.wallet),
                 "unrealizedProfit": eight(unrealized),
                 "marginBalance": eight(self.wallet + unrealized), "maintMargin": "0",
                 "initialMargin": "0", "availableBalance": eight(self.wallet + unrealized),
                 "updateTime": self.clock.now_ms()},
            ],
            "positions": [],
        }  # fmt: skip

    def _positions(self) -> list[dict[str, Any]]:
        return [
            {"symbol": symbol, "positionSide": "BOTH", "positionAmt": str(amount),
             "entryPrice": str(paid / abs(amount)), "breakEvenPrice": "0",
             "markPrice": str(self.mark), "unRealizedProfit": "0", "liquidationPrice": "0",
             "isolatedMargin": "0", "notional": str(amount * self.mark), "marginAsset": "USDT",
             "isolatedWallet": "0", "initialMargin": "0", "maintMargin": "0",
             "positionInitialMargin": "0", "openOrderInitialMargin": "0", "adl": 0,
             "bidNotional": "0", "askNotional": "0", "updateTime": self.clock.now_ms()}
            for symbol, (amount, paid) in self.held.items() if amount
        ]  # fmt: skip
