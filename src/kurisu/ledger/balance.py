"""Double entries of executions, and the balances that they add up to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final

from kurisu.domain.balance import Balance, Book, Posting
from kurisu.domain.execution import Execution, Side
from kurisu.domain.order import Order, OrderStatus
from kurisu.domain.position import FLAT, MarketTerms, Position, Settlement
from kurisu.ledger.arithmetic import ZERO, add, negate, product, subtract
from kurisu.ledger.execution import cost_of, in_order_of_time
from kurisu.ledger.position import apply_execution

_HOLDING: Final = frozenset({OrderStatus.PENDING, OrderStatus.OPEN})


def postings(
    execution: Execution, terms: MarketTerms, realized_pnl: Decimal
) -> tuple[Posting, ...]:
    """The double entry of one execution: in every asset it adds up to zero.

    Spot: base and quote change hands. Contracts: only the PnL that it realised, in the settle
    asset. Either: its fees, each in its own asset; unknown fees (None) are not there yet.
    realized_pnl: from `PositionChange`; spot does not use it.
    """
    lines: list[Posting] = []
    if terms.settlement is Settlement.SPOT:
        sign = 1 if execution.side is Side.BUY else -1
        cost = cost_of(execution, terms)
        _post(lines, Book.MARKET, terms.name.base, execution.amount, sign)
        _post(lines, Book.MARKET, terms.name.quote, cost, -sign)
    else:
        _post(lines, Book.MARKET, terms.settle_asset, realized_pnl, 1)
    for fee in execution.fees or ():
        _post(lines, Book.FEES, fee.currency, fee.amount, -1)
    return tuple(lines)


def _post(lines: list[Posting], other: Book, asset: str, amount: Decimal, sign: int) -> None:
    """`amount` into the wallet (out of it, if the sign is negative), and the other way round."""
    if amount:
        gained = amount if sign > 0 else negate(amount)
        lines.append(Posting(Book.WALLET, asset, gained))
        lines.append(Posting(other, asset, negate(gained)))


def position_and_postings(
    executions: Iterable[Execution], terms: MarketTerms, start: Position = FLAT
) -> tuple[Position, tuple[Posting, ...]]:
    """What `executions` lead to, in whatever order they stand. One pass in order of time."""
    position = start
    lines: list[Posting] = []
    for execution in in_order_of_time(executions):
        change = apply_execution(position, execution, terms)
        position = change.position
        lines.extend(postings(execution, terms, change.realized_pnl))
    return position, tuple(lines)


def book_totals(lines: Iterable[Posting], book: Book = Book.WALLET) -> dict[str, Decimal]:
    """What a book gained, by asset; assets that came out even are there with zero."""
    totals: dict[str, Decimal] = {}
    for line in lines:
        if line.book is book:
            totals[line.asset] = add(totals.get(line.asset, ZERO), line.amount)
    return totals


def correction(before: Iterable[Posting], after: Iterable[Posting]) -> tuple[Posting, ...]:
    """Postings that turn `before` into `after`: how a late fee or a late fill is booked."""
    difference: dict[tuple[Book, str], Decimal] = {}
    for line in after:
        key = (line.book, line.asset)
        difference[key] = add(difference.get(key, ZERO), line.amount)
    for line in before:
        key = (line.book, line.asset)
        difference[key] = subtract(difference.get(key, ZERO), line.amount)
    return tuple(
        Posting(book, asset, amount)
        for (book, asset), amount in sorted(difference.items())
        if amount
    )


def held_by(order: Order, terms: MarketTerms) -> tuple[str, Decimal] | None:
    """Asset and amount that an open spot order holds; None if it holds nothing known here.

    A sell holds what remains of it; a buy what remains times its limit, else its stop price. A
    market buy has no price before it is filled, and margin of contracts is the exchange's to say.
    """
    if terms.settlement is not Settlement.SPOT or order.status not in _HOLDING:
        return None
    if order.side is Side.SELL:
        return terms.name.base, order.remaining
    price = order.stop_price if order.price is None else order.price
    return None if price is None else (terms.name.quote, product(order.remaining, price))


def balances(
    totals: Mapping[str, Decimal], held: Iterable[tuple[str, Decimal] | None] = ()
) -> tuple[Balance, ...]:
    """Balances by asset, sorted: the totals, and of these what open orders hold (`held_by`)."""
    used: dict[str, Decimal] = {}
    for holding in held:
        if holding is not None:
            used[holding[0]] = add(used.get(holding[0], ZERO), holding[1])
    return tuple(
        Balance(asset, totals.get(asset, ZERO), used.get(asset, ZERO))
        for asset in sorted({*totals, *used})
    )
