"""The execution: one fill of one order, as an exchange said it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import StrEnum
from typing import Final, NamedTuple, Self

from kurisu.domain.money import EXACT, SCALE, number_fault, parse_decimal
from kurisu.errors import LedgerRuleBroken

#: Columns of assets are VARCHAR(20).
ASSET_LENGTH: Final = 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Microseconds from 2001 to 5138 and nanoseconds from 2001 to 2286; no milliseconds are so many.
_MICROSECONDS: Final = (10**15, 10**17)
_NANOSECONDS: Final = (10**18, 10**19)
_ZERO: Final = Decimal(0)
_ROUNDING: Final = Context(prec=EXACT.prec, rounding=ROUND_HALF_EVEN)


class Side(StrEnum):
    """What the owner of an order does."""

    BUY = "buy"
    SELL = "sell"


class TakerOrMaker(StrEnum):
    """Whether an execution took liquidity or made it."""

    TAKER = "taker"
    MAKER = "maker"


class Fee(NamedTuple):
    """A fee in one asset.

    currency: the asset; base, quote or any third one.
    amount: in units of the asset; negative is a rebate.
    """

    currency: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Execution:
    """One fill of one order.

    exchange_order_id: the order it fills, from CCXT `trade['order']`. Trades do not carry the
        client's id.
    trade_id: the exchange's, from CCXT `trade['id']`.
    side: the order's side.
    price: quote units per base unit; above zero.
    amount: base units (spot) or contracts; above zero, whatever the side.
    time: when it was matched, by the exchange's clock; aware.
    cost: quote units, as the exchange said; None where it did not.
    fees: at most one per asset, sorted by asset, none of them zero; () is a fill without a fee;
        None until the exchange says.
    taker_or_maker: None until the exchange says.
    symbol: CCXT's unified symbol; None where the sender knows that the market is right.

    Raises LedgerRuleBroken with the rule that a field breaks.
    """

    exchange_order_id: str
    trade_id: str
    side: Side
    price: Decimal
    amount: Decimal
    time: datetime
    cost: Decimal | None = None
    fees: tuple[Fee, ...] | None = None
    taker_or_maker: TakerOrMaker | None = None
    symbol: str | None = None

    def __post_init__(self) -> None:
        if not self.exchange_order_id:
            raise LedgerRuleBroken("execution_names_its_order", f"trade {self.trade_id!r}")
        if not self.trade_id:
            raise LedgerRuleBroken(
                "execution_has_trade_id", f"a fill of order {self.exchange_order_id!r}"
            )
        check_number("price", self.price, above_zero=True)
        check_number("amount", self.amount, above_zero=True)
        check_number("cost", self.cost)
        check_aware("time", self.time)
        if self.cost is not None and self.cost < 0:
            raise LedgerRuleBroken("cost_not_negative", f"cost {self.cost}")
        if self.fees is not None:
            for fee in self.fees:
                check_number("fee", fee.amount)
            # One fee that is not zero, as nearly every fill has, needs no second look.
            is_plain = len(self.fees) == 1 and self.fees[0].amount
            if not is_plain and self.fees != combine_fees(self.fees):
                raise LedgerRuleBroken("fees_combined", f"{self.fees}: use combine_fees()")

    @classmethod
    def from_ccxt(cls, trade: Mapping[str, object]) -> Self:
        """From a unified private trade whose numbers are text, Decimal or int.

        A fee without an amount or currency says nothing, as an empty list does beside a missing
        `fee`, and as a cost of zero or of more digits than can be stored does.
        Raises LedgerRuleBroken, also for a float: CCXT has to be set to exact numbers.
        """
        where = f"trade {trade.get('id')!r}"
        time = read_time(trade, "timestamp", where)
        side = read_text(trade, "side", where)
        price = read_number(trade, "price", where)
        amount = read_number(trade, "amount", where)
        if time is None or price is None or amount is None or side not in set(Side):
            raise LedgerRuleBroken(
                "execution_is_complete",
                f"{where} needs timestamp, side, price and amount; it has "
                f"{time}, {side!r}, {price}, {amount}",
            )
        role = trade.get("takerOrMaker")
        return cls(
            exchange_order_id=read_text(trade, "order", where) or "",
            trade_id=read_text(trade, "id", where) or "",
            side=Side(side),
            price=price,
            amount=amount,
            time=time,
            cost=_read_cost(trade, where),
            fees=_read_fees(trade, where),
            # Of a stream of Bybit's CCXT makes a bool of it, and no fill is worth losing for that.
            taker_or_maker=next((known for known in TakerOrMaker if known == role), None),
            symbol=read_text(trade, "symbol", where),
        )


def combine_fees(fees: Iterable[Fee]) -> tuple[Fee, ...]:
    """One fee per asset, sorted by asset, without zeros: equal fees compare equal."""
    total: dict[str, Decimal] = {}
    for fee in fees:
        total[fee.currency] = EXACT.add(total.get(fee.currency, _ZERO), fee.amount)
    return tuple(Fee(currency, total[currency]) for currency in sorted(total) if total[currency])


def check_number(field: str, value: Decimal | None, *, above_zero: bool = False) -> None:
    """Raises LedgerRuleBroken if `value` is no exact NUMERIC(38,18), or not above zero."""
    if value is None:
        return
    if not isinstance(value, Decimal):
        raise LedgerRuleBroken("number_is_decimal", f"{field} is {value!r}")
    if fault := number_fault(value):
        raise LedgerRuleBroken(fault, f"{field} is {value}")
    if above_zero and value <= 0:
        raise LedgerRuleBroken(f"{field}_above_zero", f"{field} is {value}")


def check_aware(field: str, time: datetime | None) -> None:
    """Raises LedgerRuleBroken if `time` has no timezone."""
    if time is not None and time.tzinfo is None:
        raise LedgerRuleBroken("time_is_aware", f"{field} is {time}")


def check_asset(asset: str) -> str:
    """`asset`. Raises LedgerRuleBroken if its name is longer than what can be stored."""
    if len(asset) > ASSET_LENGTH:
        raise LedgerRuleBroken("asset_fits", f"{asset!r} is longer than {ASSET_LENGTH} characters")
    return asset


def read_number(source: Mapping[str, object], field: str, where: str) -> Decimal | None:
    """An exact number of a unified dict; None if it is missing. Raises LedgerRuleBroken."""
    value = source.get(field)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise LedgerRuleBroken(
            "number_is_exact",
            f"{field} of {where} is {value!r}, a {type(value).__name__}: "
            "give CCXT {'number': str}, so that no digit is lost",
        )
    number = parse_decimal(value)
    if number is None:
        raise LedgerRuleBroken("number_is_readable", f"{field} of {where} is {value!r}")
    if fault := number_fault(number):
        raise LedgerRuleBroken(fault, f"{field} of {where} is {value!r}")
    return number


def read_time(source: Mapping[str, object], field: str, where: str) -> datetime | None:
    """A time in whole milliseconds since 1970; None if it is missing. Raises LedgerRuleBroken.

    What KuCoin's and Lighter's streams say in nanoseconds and microseconds, CCXT hands on as it is.
    """
    number = read_number(source, field, where)
    if number is None:
        return None
    if _MICROSECONDS[0] <= number < _MICROSECONDS[1]:
        number //= 1000
    elif _NANOSECONDS[0] <= number < _NANOSECONDS[1]:
        number //= 1000000
    if number != number.to_integral_value():
        raise LedgerRuleBroken("time_in_milliseconds", f"{field} of {where} is {number}")
    try:
        return _EPOCH + timedelta(milliseconds=int(number))
    except OverflowError:
        raise LedgerRuleBroken("time_in_milliseconds", f"{field} of {where} is {number}") from None


def read_text(source: Mapping[str, object], field: str, where: str) -> str | None:
    """A text or an integer id as text; None if it is missing or empty."""
    value = source.get(field)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise LedgerRuleBroken("text_is_readable", f"{field} of {where} is {value!r}")
    return str(value)


def _read_cost(trade: Mapping[str, object], where: str) -> Decimal | None:
    """None where it says no more than price and amount do.

    CCXT multiplies the two where the exchange gives no cost, and the product may have more digits
    than can be stored; it is computed, and rounded once, by whoever needs it. A zero stands for a
    cost that is not there.
    """
    value = trade.get("cost")
    number = parse_decimal(value) if isinstance(value, str | int | Decimal) else None
    if number is not None and number_fault(number) == "too_many_fraction_digits":
        return None
    return read_number(trade, "cost", where) or None


def _read_fee(entry: Mapping[str, object], where: str) -> Decimal | None:
    """Rounded half to even to the digits that can be stored: venues that compute with floats show
    more of them than they book, and a fill is not worth losing for that."""
    value = entry.get("cost")
    number = parse_decimal(value) if isinstance(value, str | int | Decimal) else None
    if number is not None and number_fault(number) == "too_many_fraction_digits":
        return number.quantize(Decimal(1).scaleb(-SCALE), context=_ROUNDING)
    return read_number(entry, "cost", where)


def _read_fees(trade: Mapping[str, object], where: str) -> tuple[Fee, ...] | None:
    listed = trade.get("fees")
    single = trade.get("fee")
    entries: list[object] = list(listed) if isinstance(listed, list | tuple) else []
    if not entries and single is not None:
        entries = [single]
    fees = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise LedgerRuleBroken("fee_is_readable", f"a fee of {where} is {entry!r}")
        amount = _read_fee(entry, where)
        currency = read_text(entry, "currency", where)
        if amount is None or (currency is None and amount):
            continue
        fees.append(Fee(check_asset(currency or ""), amount))
    return combine_fees(fees) if fees else None
