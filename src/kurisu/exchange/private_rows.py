"""CCXT's unified orders, balances and transfers -> the values that the ledger takes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final, TypeVar

from kurisu.domain.balance import Entry, EntryKind
from kurisu.domain.execution import Execution, read_number, read_text, read_time
from kurisu.domain.money import EXACT, SCALE, number_fault, parse_decimal
from kurisu.domain.order import OrderType, OrderUpdate
from kurisu.domain.trade import derived_ids
from kurisu.errors import BadAnswer, ExchangeError, LedgerRuleBroken
from kurisu.exchange.clock import to_ms
from kurisu.exchange.exact import BrokenAnswer
from kurisu.exchange.private_port import ReportedOrder, Unreadable
from kurisu.ledger.arithmetic import round_to

_T = TypeVar("_T")

_LIMITS: Final = frozenset({"limit", "limit_maker", "post_only"})
#: Digits of an amount that Coinbase books where an order was placed by its cost.
_COINBASE_SCALE: Final = 16
_DIVISION: Final = Context(prec=EXACT.prec, rounding=ROUND_HALF_EVEN)
#: Volumes of Kraken and KuCoin have eight digits, and some ten.
_VOLUME_STEP: Final = Decimal("1e-10")
_UP: Final = Context(prec=EXACT.prec, rounding=ROUND_CEILING)
#: Of a fill that has none.
_NO_ID: Final = "?"
#: Under which venues name an order's type, in small letters and without underscores.
_TYPE_KEYS: Final = frozenset({"type", "ordertype", "ordtype", "origtype", "stopordertype"})
_TRIGGER: Final = re.compile(r"stop|profit|trigger|conditional")


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
        if said.get("timestamp") is None or not said.get("id"):
            continue
        # One that cannot be read is reported where it is listed, and costs no order here.
        with contextlib.suppress(LedgerRuleBroken):
            executions.append(Execution.from_ccxt(said))
    row = _measured(row)
    update = OrderUpdate.from_ccxt(row, received_at=received_at)
    return ReportedOrder(update, _order_type(row, update), tuple(executions))


def _measured(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """An order that was placed by its cost, with what is known of its amount: too little of it, and
    its own fills would not fit."""
    info = row.get("info")
    if not isinstance(info, Mapping):
        return row
    if "filled_amount" in info and (info.get("type"), info.get("side")) == ("market", "buy"):
        # Gate's. CCXT divides costs by an average that has been rounded.
        filled = info["filled_amount"]
        return {**row, "amount": None, "remaining": None, "filled": filled}
    if "viqc" in str(info.get("oflags") or "").split(","):
        # Kraken's, whose volumes are then in quote units, and to CCXT in base units.
        return {**row, **_by_cost(info.get("cost"), info.get("price"))}
    if info.get("sizeUnit") == "QUOTECCY":
        # Of KuCoin's unified accounts. CCXT divides, and cuts to the steps of the market.
        return {**row, **_by_cost(info.get("filledSize"), info.get("avgPrice"))}
    return row


def _by_cost(spent: object, average: object) -> dict[str, Any]:
    """What is known of the amount of an order, by what was spent for it at which average."""
    known: dict[str, Any] = {"amount": None, "remaining": None, "filled": None}
    cost, price = parse_decimal(str(spent)), parse_decimal(str(average))
    if not cost or not price or number_fault(cost) or number_fault(price):
        return {**known, "filled": "0" if cost == 0 else None}
    return {**known, "amount": _at_most(cost, price)}


def _at_most(cost: Decimal, price: Decimal) -> Decimal:
    """The largest amount that has this cost at this price, both of which may be a digit off."""
    most = EXACT.add(cost, _last_digit(cost))
    least = EXACT.subtract(price, _last_digit(price))
    return _UP.quantize(_UP.divide(most, max(least, _UP.divide(price, Decimal(2)))), _VOLUME_STEP)


def _last_digit(number: Decimal) -> Decimal:
    """What one in the last digit is worth."""
    return Decimal(1).scaleb(number.adjusted() + 1 - len(number.as_tuple().digits))


def read_executions(
    rows: Iterable[Mapping[str, Any]],
) -> tuple[tuple[Execution, ...], tuple[Unreadable, ...]]:
    """Unified trades, and those that cannot be read. Where the venue gives a fill no id (HollaEx)
    it follows from what moved; so all fills of a millisecond have to be among them."""
    named = ({**_as_booked(row), "id": row.get("id") or _NO_ID} for row in rows)
    found, unreadable = read_all(named, "trade", Execution.from_ccxt)
    unnamed: dict[str, list[Execution]] = {}
    for execution in found:
        if execution.trade_id == _NO_ID:
            unnamed.setdefault(execution.exchange_order_id, []).append(execution)
    executions = [execution for execution in found if execution.trade_id != _NO_ID]
    for order, fills in unnamed.items():
        ids = derived_ids((to_ms(e.time), e.side, e.price, e.amount) for e in fills)
        executions += [
            replace(execution, trade_id=f"{order}-{derived}")
            for execution, derived in zip(fills, ids, strict=True)
        ]
    return tuple(executions), unreadable


def _as_booked(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A fill with the numbers that the venue has, where CCXT's are others."""
    info = row.get("info")
    if not isinstance(info, Mapping):
        return row
    if "fill_id" in info and "fillTime" in info:
        # Kraken's futures. CCXT leaves out the amount of inverse ones, and multiplies a fee from
        # the tariff, whatever was paid.
        fee = {"cost": info.get("fee_paid"), "currency": info.get("fee_currency")}
        return {**row, "amount": info.get("size"), "fee": fee, "fees": []}
    if info.get("feeCurrency") and "execFee" in info:
        # Bybit's. CCXT tells the fee's asset from side and sign, whatever it was paid in.
        return {
            **row,
            "fee": {**(row.get("fee") or {}), "currency": info["feeCurrency"]},
            "fees": [],
        }
    return _sized_in_base(row, info)


def _sized_in_base(row: Mapping[str, Any], info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Coinbase tells the fills of an order that was placed by its cost in quote units. CCXT divides
    them to 18 digits, and derives a price from that again; Coinbase rounds to 16, and its orders
    are the sums of that."""
    if info.get("size_in_quote") is not True:
        return row
    cost, price = (parse_decimal(str(info.get(name))) for name in ("size", "price"))
    if not cost or not price or number_fault(cost) or number_fault(price):
        return row
    amount = round_to(_DIVISION.divide(cost, price), _COINBASE_SCALE)
    return {**row, "amount": amount, "price": price, "cost": cost}


def read_all(
    rows: Iterable[Any], kind: str, read: Callable[[Any], _T]
) -> tuple[tuple[_T, ...], tuple[Unreadable, ...]]:
    """What `read` makes of each row, and those that it cannot read."""
    found, unreadable = [], []
    for row in rows:
        try:
            found.append(read(row))
        except LedgerRuleBroken as error:
            unreadable.append(Unreadable(f"{kind} {row.get('id')}", str(error)))
    return tuple(found), tuple(unreadable)


def settled_totals(
    info: object, keys: tuple[str, str, str], code_of: Callable[[str], str | None]
) -> dict[str, Any]:
    """Totals without unrealised PnL, by asset, from wherever in an answer they stand.

    keys: see `PrivateVenue.settled`. code_of: the venue's name of an asset -> CCXT's.
    """
    asset_key, total_key, off_key = keys
    found: dict[str, Any] = {}
    waiting = [info]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, Mapping):
            waiting += part.values()
            asset, total = part.get(asset_key), part.get(total_key)
            code = code_of(asset) if isinstance(asset, str) else None
            if code is None or total in (None, ""):
                continue
            off = parse_decimal(str(part.get(off_key) or 0)) if off_key else None
            number = parse_decimal(str(total))
            found[code] = total if not off or number is None else EXACT.subtract(number, off)
    return found


def funding_entry(row: Mapping[str, Any], sign: int, settle: str) -> Entry:
    """A funding payment. sign: see `PrivateVenue.funding_sign`. settle: what the contract settles
    in, for venues that do not say it. Raises LedgerRuleBroken."""
    where = f"funding {row.get('id')!r}"
    amount = read_number(row, "amount", where)
    time = read_time(row, "timestamp", where)
    if amount is None or time is None:
        raise LedgerRuleBroken("funding_is_complete", f"{where} needs amount and time")
    symbol, name = read_text(row, "symbol", where), read_text(row, "id", where)
    if not name or not name.removeprefix("0x").strip("0"):
        # One for each contract and time; Hyperliquid's have a hash of zeros.
        name = str(row.get("timestamp"))
    moved = amount if sign > 0 else EXACT.subtract(Decimal(0), amount)
    return Entry(EntryKind.FUNDING, settle, moved, time, f"{symbol} {name}")


def read_balance(exchange: str, value: Any) -> Decimal | None:
    """An exact number of a balance; None if it is not there. Raises ExchangeError."""
    if value is None:
        return None
    if isinstance(value, float):
        raise ExchangeError(
            exchange, "CCXT computes with floats here, so its digits are not the exchange's"
        )
    found = parse_decimal(value)
    fault = "not_readable" if found is None else number_fault(found)
    if found is not None and fault == "too_many_fraction_digits":
        # Blofin's equity has what its division gave. It is compared, and never booked.
        return round_to(found, SCALE)
    if found is None or fault:
        raise BadAnswer(exchange, f"a balance is {value!r}")
    return found


def _order_type(row: Mapping[str, Any], update: OrderUpdate) -> OrderType | None:
    """CCXT's types are limit and market, and for triggers whatever the venue says."""
    said = str(row.get("type") or "").lower()
    is_plain = said in _LIMITS or said == "market"
    venues = _venues_type(row.get("info"))
    # KuCoin says that it is 0 where there is none.
    has_trigger = any(read_number(row, name, "an order") for name in ("triggerPrice", "stopPrice"))
    # Else a stop loss or a take profit is attached to an order that is no trigger itself.
    is_trigger = has_trigger or not is_plain or _TRIGGER.search(venues) is not None
    if update.stop_price is not None and is_trigger:
        for_profit = not has_trigger and row.get("takeProfitPrice") is not None
        is_profit = for_profit or "profit" in said or "profit" in venues
        return OrderType.TAKE_PROFIT if is_profit else OrderType.STOP_LOSS
    if said == "market":
        return OrderType.MARKET
    if said in _LIMITS or update.price is not None:
        return OrderType.LIMIT
    return None


def _venues_type(info: object) -> str:
    """What the venue itself calls the type of an order, small; "" where it is not found."""
    if not isinstance(info, Mapping):
        return ""
    inner = [value for value in info.values() if isinstance(value, Mapping)]
    return " ".join(
        str(value).lower()
        for part in (info, *inner)
        for key, value in part.items()
        if str(key).lower().replace("_", "") in _TYPE_KEYS and isinstance(value, str)
    )


def _transaction_of(row: Mapping[str, Any], where: str) -> str | None:
    """KuCoin's deposits have no id. CCXT cuts what follows the hash of their transaction, and one
    transaction may have several outputs for one account."""
    info = row.get("info")
    whole = read_text(info, "walletTxId", where) if isinstance(info, Mapping) else None
    return whole or read_text(row, "txid", where)


def transfer_entries(row: Mapping[str, Any], kind: EntryKind) -> list[Entry]:
    """A deposit or withdrawal, and its fee. Raises LedgerRuleBroken.

    kind: what was asked for; CCXT guesses it from the fields that are there, and on KuCoin wrongly.
    A withdrawal's amount is what arrives; the fee comes on top. So Binance, OKX, Kraken, Bybit, HTX
    and Coinbase say it; of Gate's, Bitget's and MEXC's, with which it is included, CCXT subtracts
    it (parse_transaction, 4.5.90).
    """
    where = f"transfer {row.get('id')!r}"
    name = read_text(row, "id", where) or _transaction_of(row, where)
    asset = read_text(row, "currency", where)
    amount = read_number(row, "amount", where)
    time = read_time(row, "timestamp", where)
    if not name or not asset or not amount or time is None:
        raise LedgerRuleBroken("transfer_is_complete", f"{where} needs id, currency, amount, time")
    is_deposit = kind is EntryKind.DEPOSIT
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
