"""The public trade: what one says, which ids it carries, and what it costs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import StrEnum
from typing import Final, NamedTuple

from kurisu.domain.money import EXACT, SCALE, plain


class IdSpace(StrEnum):
    """What kind of ids a market's trades carry: `markets.trade_id_space`.

    RAW: one id a trade. AGGREGATE: one id for what one order took at one price. DERIVED: the
    exchange gives none, and `derived_ids` makes them. Ids of two spaces say nothing of each other,
    so one market holds one space.
    """

    RAW = "raw"
    AGGREGATE = "aggregate"
    DERIVED = "derived"


#: Under which metadata of an Arrow schema a file of ours says what its ids are.
ID_SPACE_KEY: Final = b"kurisu.id_space"


class Trade(NamedTuple):
    """One public trade.

    time: aware UTC; what is finer than a millisecond is cut off when it is stored.
    trade_id: the exchange's; None where it gives none.
    side: the taker's, "buy" or "sell"; None where it is not known.
    price: quote units per base unit. amount: base units, or contracts. Both exact.
    cost: None for price x amount (see `cost_of`), which on spot it always is.
    taker_or_maker: None on public trades.
    """

    time: datetime
    trade_id: str | None
    side: str | None
    price: Decimal
    amount: Decimal
    cost: Decimal | None = None
    taker_or_maker: str | None = None


#: Hexadecimal digits: 128 bits, so that no two of any number of trades fall together.
ID_DIGITS: Final = 32


def derived_ids(trades: Iterable[tuple[int, str | None, Decimal, Decimal]]) -> list[str]:
    """Of (time in ms, side, price, amount), in any order; whole milliseconds only.

    Two trades that are alike in all of these are legitimate; they are counted, and the number is
    part of the id. So that the numbers are the same every time, all trades of a millisecond have
    to be in one call.
    """
    seen: Counter[str] = Counter()
    ids = []
    for time_ms, side, price, amount in trades:
        text = f"{time_ms}|{side or ''}|{plain(price)}|{plain(amount)}"
        seen[text] += 1
        digest = hashlib.sha256(f"{text}|{seen[text]}".encode("ascii")).hexdigest()
        ids.append(digest[:ID_DIGITS])
    return ids


_STEP: Final = Decimal(1).scaleb(-SCALE)
_COST: Final = Context(prec=160, rounding=ROUND_HALF_EVEN)


def cost_of(
    price: Decimal,
    amount: Decimal,
    contract_size: Decimal | None = None,
    *,
    inverse: bool = False,
) -> Decimal:
    """Price x amount, rounded half to even at the 18 digits of NUMERIC(38,18) if it has more.

    Not the venue's own figure: Binance's REST rounds quoteQty to eight digits and its stream has
    none, and one trade has one cost.
    contract_size: of a contract, whose cost is in what it settles in: price x amount x size
    (linear), or amount x size / price (inverse).
    """
    size = EXACT.multiply(amount, Decimal(1) if contract_size is None else contract_size)
    if inverse:
        return _COST.divide(size, price).quantize(_STEP, context=_COST)
    cost = EXACT.multiply(price, size)
    exponent = cost.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -SCALE:
        return cost.quantize(_STEP, context=_COST)
    return cost
