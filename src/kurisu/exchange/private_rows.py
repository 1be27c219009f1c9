"""CCXT's unified orders, balances and transfers -> the values that the ledger takes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from kurisu.domain.balance import Entry, EntryKind
from kurisu.domain.execution import Execution, read_number, read_text, read_time
from kurisu.domain.money import EXACT, number_fault, parse_decimal
from kurisu.domain.order import OrderType, OrderUpdate
from kurisu.errors import BadAnswer, ExchangeError, LedgerRuleBroken
from kurisu.exchange.exact import BrokenAnswer
from kurisu.exchange.private_port import ReportedOrder


def read_order(row: Any, received_at: datetime | None) -> ReportedOrder:
    """A unified order. received_at: stands in for a missing time of the update.

    Raises LedgerRuleBroken, BrokenAnswer.
    """
    if not isinstance(row, Mapping):
        raise BrokenAnswer(f"an order is {str(row)[:100]}")
    executions = []
    for trade in row.get("trades") or ():
        said = {**trade, "order": trade.get("order") or row.get("id")}
        # Binance's answer to an order has fills without a time: they come with the trades.
        if said.get("timestamp") is not None and said.get("id"):
            executions.append(Execution.from_ccxt(said))
    update = OrderUpdate.from_ccxt(row, received_at=received_at)
    return ReportedOrder(update, _order_type(row, update), tuple(executions))


def read_balance(exchange: str, value: Any) -> Decimal | None:
    """An exact number of a balance; None if it is not there. Raises ExchangeError."""
    if value is None:
        return None
    if isinstance(value, float):
        raise ExchangeError(
            exchange, "CCXT computes with floats here, so its digits are not the exchange's"
        )
    found = parse_decimal(value)
    if found is None or number_fault(found):
        raise BadAnswer(exchange, f"a balance is {value!r}")
    return found


def _order_type(row: Mapping[str, Any], update: OrderUpdate) -> OrderType | None:
    """CCXT's types are limit and market, and for triggers whatever the venue says."""
    said = str(row.get("type") or "").lower()
    if update.stop_price is not None:
        return OrderType.TAKE_PROFIT if "profit" in said else OrderType.STOP_LOSS
    if said == "market":
        return OrderType.MARKET
    if said in ("limit", "limit_maker", "post_only") or update.price is not None:
        return OrderType.LIMIT
    return None


def transfer_entries(row: Mapping[str, Any]) -> list[Entry]:
    """CCXT's amounts are without the fee. Raises LedgerRuleBroken."""
    where = f"transfer {row.get('id')!r}"
    name = read_text(row, "id", where) or read_text(row, "txid", where)
    asset = read_text(row, "currency", where)
    amount = read_number(row, "amount", where)
    time = read_time(row, "timestamp", where)
    if not name or not asset or not amount or time is None:
        raise LedgerRuleBroken("transfer_is_complete", f"{where} needs id, currency, amount, time")
    is_deposit = row.get("type") == "deposit"
    kind = EntryKind.DEPOSIT if is_deposit else EntryKind.WITHDRAWAL
    moved = amount.copy_abs() if is_deposit else EXACT.subtract(Decimal(0), amount.copy_abs())
    entries = [Entry(kind, asset, moved, time, name)]
    fee = row.get("fee")
    if isinstance(fee, Mapping):
        cost = read_number(fee, "cost", where)
        currency = read_text(fee, "currency", where) or asset
        if cost and not is_deposit:
            entries.append(
                Entry(EntryKind.FEE, currency, EXACT.subtract(Decimal(0), cost), time, name)
            )
    return entries
