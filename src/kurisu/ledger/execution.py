"""One execution as several sources tell it: what identifies it, and how versions join.

What moved identifies an execution: order, trade id, side, price and amount. The rest (time, cost,
fees, role) may be missing in one source and there in the next, and joins into one execution; where
two sources differ, every value is kept, one is taken by a rule, and it shows as disputed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from itertools import combinations
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar

from kurisu.domain.execution import Execution, Fee, Side, TakerOrMaker
from kurisu.domain.money import plain
from kurisu.domain.position import MarketTerms, Settlement
from kurisu.ledger.arithmetic import magnitude, product, quotient, subtract

#: Different values kept for one field of one execution, the smallest; a source that says something
#: else every time would fill the memory otherwise.
MAX_VERSIONS: Final = 8
#: A cost may differ so much, relatively, from price * amount before it is disputed: venues cut
#: quote amounts to eight digits.
COST_TOLERANCE: Final = Decimal("1e-6")


class _Sortable(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


_Value = TypeVar("_Value", bound=_Sortable)
_MARKED: Final = re.compile(r"(?P<trade_id>.+)~(?P<digest>[0-9a-f]{12})", re.DOTALL)


class Core(NamedTuple):
    """What moved. Two executions with one core are one execution."""

    trade_id: str
    side: Side
    price: Decimal
    amount: Decimal

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that follow from the content alone."""
        text = "\n".join((self.trade_id, self.side, plain(self.price), plain(self.amount)))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def text(self) -> str:
        """For events, e.g. "buy 0.5 at 100"."""
        return f"{self.side} {plain(self.amount)} at {plain(self.price)}"


#: Time, then trade id (numbers by size), then content.
OrderKey = tuple[datetime, int, str, str, Decimal, Decimal]


def _order_key(time: datetime, core: Core) -> OrderKey:
    return (time, len(core.trade_id), *core)


@dataclass(frozen=True, slots=True)
class KnownExecution:
    """An execution and every value that any source gave for its fields.

    core: what moved.
    times, fees, roles: the distinct values said, sorted; empty where nobody said.
    costs: likewise, but for those that are what price and amount give anyway.
    accepted: True once it counts in its order; it never stops counting.
    stored_trade_id: the trade id of its row; the exchange's, or marked where another execution of
        the order has that already. None until accepted. Not part of what it is: which of two gets
        the plain id depends on which came first.
    """

    core: Core
    times: tuple[datetime, ...]
    costs: tuple[Decimal, ...] = ()
    fees: tuple[tuple[Fee, ...], ...] = ()
    roles: tuple[TakerOrMaker, ...] = ()
    accepted: bool = False
    stored_trade_id: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, execution: Execution, terms: MarketTerms) -> Self:
        """What one source says."""
        said = terms.settlement is Settlement.SPOT and execution.cost != computed_cost(
            execution.price, execution.amount, terms
        )
        return cls(
            core=core_of(execution),
            times=(execution.time,),
            costs=(execution.cost,) if said and execution.cost is not None else (),
            fees=() if execution.fees is None else (execution.fees,),
            roles=() if execution.taker_or_maker is None else (execution.taker_or_maker,),
        )

    def join(self, other: KnownExecution) -> KnownExecution:
        """Everything that both know. Commutative, associative, idempotent."""
        return KnownExecution(
            core=self.core,
            times=_union(self.times, other.times),
            costs=_union(self.costs, other.costs),
            fees=_union(self.fees, other.fees),
            roles=_union(self.roles, other.roles),
            accepted=self.accepted or other.accepted,
            stored_trade_id=self.stored_trade_id or other.stored_trade_id,
        )

    def accept(self, stored_trade_id: str) -> KnownExecution:
        """The same, counting in its order."""
        return replace(self, accepted=True, stored_trade_id=stored_trade_id)

    @property
    def order_key(self) -> OrderKey:
        """Sorts executions as they happened."""
        return _order_key(self.times[0], self.core)

    def cost(self, terms: MarketTerms) -> Decimal:
        """In quote units: of what was said the one with the fewest digits, else computed.

        Contracts' are always computed, because what CCXT calls the cost of an inverse contract is
        in base units.
        """
        if self.costs:
            return min(self.costs, key=lambda cost: (len(plain(cost)), cost))
        return computed_cost(self.core.price, self.core.amount, terms)

    def view(self, exchange_order_id: str, terms: MarketTerms) -> Execution:
        """The execution as it counts: the earliest time, the greatest fees, its cost filled in."""
        return Execution(
            exchange_order_id=exchange_order_id,
            trade_id=self.stored_trade_id or self.core.trade_id,
            side=self.core.side,
            price=self.core.price,
            amount=self.core.amount,
            time=self.times[0],
            cost=self.cost(terms),
            fees=self.fees[-1] if self.fees else None,
            taker_or_maker=self.roles[-1] if self.roles else None,
            symbol=terms.name.symbol,
        )

    def disputes(self, terms: MarketTerms) -> Iterator[tuple[str, str, str]]:
        """Field and two different values of it, for every pair.

        A cost is compared with what price and amount give, whoever said it.
        """
        for one, other in combinations(self.times, 2):
            yield "time", one.isoformat(), other.isoformat()
        for cost in self.costs:
            computed = computed_cost(self.core.price, self.core.amount, terms)
            if magnitude(subtract(cost, computed)) > product(computed, COST_TOLERANCE):
                yield "cost", plain(computed), plain(cost)
        for few, many in combinations(self.fees, 2):
            yield "fees", fees_text(few), fees_text(many)
        for role, other_role in combinations(self.roles, 2):
            yield "taker_or_maker", role, other_role


def _union(left: tuple[_Value, ...], right: tuple[_Value, ...]) -> tuple[_Value, ...]:
    if left == right:
        return left
    return tuple(sorted({*left, *right})[:MAX_VERSIONS])


def computed_cost(price: Decimal, amount: Decimal, terms: MarketTerms) -> Decimal:
    """price * amount * contract_size, rounded half to even to 18 digits, in quote units.

    An inverse contract is one on quote units: amount * contract_size, and exact.
    """
    if terms.settlement is Settlement.INVERSE:
        return product(amount, terms.contract_size)
    return product(price, amount, terms.contract_size)


def cost_of(execution: Execution, terms: MarketTerms) -> Decimal:
    """What an execution is worth in quote units: spot as the exchange booked it, else computed."""
    if terms.settlement is Settlement.SPOT and execution.cost is not None:
        return execution.cost
    return computed_cost(execution.price, execution.amount, terms)


def value_of(execution: Execution, terms: MarketTerms) -> Decimal:
    """What an execution is worth in settle units: its cost; for inverse cost / price, rounded."""
    cost = cost_of(execution, terms)
    if terms.settlement is Settlement.INVERSE:
        return quotient(cost, execution.price)
    return cost


def in_order_of_time(executions: Iterable[Execution]) -> list[Execution]:
    """Executions as they happened, by a key that follows from their content alone."""
    return sorted(executions, key=time_key)


def time_key(execution: Execution) -> OrderKey:
    """Sorts executions as they happened."""
    return _order_key(execution.time, core_of(execution))


def core_of(execution: Execution) -> Core:
    """What moved."""
    return Core(unmarked_trade_id(execution), execution.side, execution.price, execution.amount)


def marked_trade_id(core: Core) -> str:
    """The trade id of a second execution that an order has under one trade id."""
    return f"{core.trade_id}~{core.digest}"


def unmarked_trade_id(execution: Execution) -> str:
    """The exchange's trade id of an execution that may have been read back from its row."""
    if "~" in execution.trade_id and (match := _MARKED.fullmatch(execution.trade_id)):
        core = Core(match["trade_id"], execution.side, execution.price, execution.amount)
        if core.digest == match["digest"]:
            return core.trade_id
    return execution.trade_id


def fees_text(fees: tuple[Fee, ...]) -> str:
    """For events, e.g. "0.1 BNB, 0.2 USDT"."""
    return ", ".join(f"{plain(fee.amount)} {fee.currency}" for fee in fees) or "none"
