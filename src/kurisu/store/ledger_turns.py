"""Fills applied one by one, by several tasks at a time: one transaction for those that wait.

While one fill is being written, others come. They share the next turn: its plain fills go together,
as in a batch, and each caller is answered when its own is committed. Whatever is not plain has its
place in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from kurisu.domain.execution import Execution
from kurisu.domain.order import Order
from kurisu.errors import DatabaseError, KurisuError
from kurisu.ledger.arithmetic import subtract
from kurisu.ledger.intake import Flag, Outcome
from kurisu.store.connect import translated
from kurisu.store.ledger_fast import Batch, Entry, Tallies, order_now
from kurisu.store.ledger_intake import Raw, Scope
from kurisu.store.ledger_many import BATCH, take_in_and_tally

_NO_FLAGS: Final[frozenset[Flag]] = frozenset()
_AFTER_END: Final = frozenset({Flag.AFTER_END})
_NOTHING_NEW: Final = frozenset({Flag.NOTHING_NEW})

#: The database does not take one of the rows; alone, the others may be fine.
_ONE_IS_WRONG: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)


@dataclass(slots=True, eq=False)
class Call:
    """One fill, and what became of it: an outcome or an error; neither until its turn is over."""

    scope: Scope
    execution: Execution
    outcome: Outcome | None = None
    error: KurisuError | None = None

    @property
    def is_answered(self) -> bool:
        return self.outcome is not None or self.error is not None

    def answer(self) -> Outcome:
        """The outcome. Raises the error."""
        if self.error is not None:
            raise self.error
        if self.outcome is None:
            raise RuntimeError("a turn is over without an answer")
        return self.outcome


@dataclass(slots=True)
class Turn:
    """The calls that wait together, in their order. One that is given up leaves it."""

    calls: list[Call] = field(default_factory=list)

    def join(self, scope: Scope, execution: Execution) -> Call:
        call = Call(scope, execution)
        self.calls.append(call)
        return call

    def leave(self, call: Call) -> None:
        if not call.is_answered:
            self.calls.remove(call)


def plain_outcome(entry: Entry, before: Order, execution: Execution, scope: Scope) -> Outcome:
    """What a plain fill, which is counted, did to its order, which was `before`."""
    order = order_now(entry)
    cost, symbol = subtract(order.cost, before.cost), scope.terms.name.symbol
    row = execution
    if execution.cost != cost or execution.symbol != symbol:
        row = replace(execution, cost=cost, symbol=symbol)
    flags = _AFTER_END if before.status.is_terminal else _NO_FLAGS
    return Outcome(before, order, inserted=(row,), conditions=entry.tally.conditions, flags=flags)


def known_outcome(entry: Entry) -> Outcome:
    """Of a fill that says nothing new."""
    order = order_now(entry)
    return Outcome(order, order, conditions=entry.tally.conditions, flags=_NOTHING_NEW)


class _Together:
    """Plain fills of one account and market that are counted, and not yet written."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._batch = Batch(scope)
        self._made: list[tuple[Call, Outcome]] = []

    def add(self, call: Call, tallies: Tallies) -> bool:
        """Count a fill; False if it is not plain."""
        entry = tallies.get(self._scope, call.execution.exchange_order_id)
        if entry is None:
            return False
        before = order_now(entry)
        known = self._batch.add(entry, (call.execution,))
        if known is None:
            return False
        outcome = (
            known_outcome(entry)
            if known
            else plain_outcome(entry, before, call.execution, self._scope)
        )
        self._made.append((call, outcome))
        return True

    async def land(self, raw: Raw, tallies: Tallies) -> Sequence[Call]:
        """Write them, and answer their calls; those calls of which nothing was written."""
        try:
            is_written = not len(self._batch) or await self._batch.write(raw)
        except _ONE_IS_WRONG:
            is_written = False
        if not is_written:
            for entry in self._batch.entries.values():
                tallies.drop(self._scope, entry.exchange_order_id)
            return [call for call, _ in self._made]
        tallies.grown(len(self._batch))
        for call, outcome in self._made:
            call.outcome = outcome
        return ()


async def take_turn(
    raw: Raw, calls: Sequence[Call], tallies: Tallies, database: AsyncEngine
) -> None:
    """Answer the calls that have no answer yet, the first `BATCH`. database: for errors.

    Raises what is no call's own error, as a lost connection is: the tallies have counted what may
    not be there then, and the calls that are left without an answer can have another turn.
    """
    waiting: dict[Scope, _Together] = {}

    async def land(scope: Scope) -> None:
        together = waiting.pop(scope, None)
        if together is not None:
            for left in await together.land(raw, tallies):
                await take_in_alone(left)

    async def take_in_alone(call: Call) -> None:
        try:
            with translated(database):
                taken = await take_in_and_tally(raw, call.scope, [call.execution], tallies)
        except KurisuError as error:
            # A rule of the ledger, or a row that the database does not take.
            if isinstance(error, DatabaseError) and not isinstance(error.__cause__, _ONE_IS_WRONG):
                raise
            tallies.drop(call.scope, call.execution.exchange_order_id)
            call.error = error
        else:
            call.outcome = taken.outcomes[0]

    for call in [call for call in calls if not call.is_answered][:BATCH]:
        together = waiting.setdefault(call.scope, _Together(call.scope))
        if not together.add(call, tallies):
            await land(call.scope)
            await take_in_alone(call)
    for scope in list(waiting):
        await land(scope)
