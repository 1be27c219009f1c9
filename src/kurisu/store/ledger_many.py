"""Many messages: plain fills a thousand at a time, and the rest the long way.

While the database writes one batch, the next is judged: each has a processor of its own. A batch
that is on its way has been counted in the tallies; if it turns out that somebody else was faster,
whatever was judged meanwhile is judged again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from kurisu.domain.execution import Execution
from kurisu.domain.order import OrderUpdate
from kurisu.ledger.intake import Flag
from kurisu.store.ledger_fast import Batch, Tallies, entries_of, entry_of
from kurisu.store.ledger_intake import Message, Raw, Scope, Taken, load, take_in
from kurisu.store.ledger_values import Applied

#: Messages that go into one transaction.
BATCH: Final = 1_000
#: Fills that are judged before the batch on its way has its turn, for some 300 us: it takes four
#: steps, and at each the database waits for the next.
AT_ONCE: Final = 32


async def take_in_and_tally(
    raw: Raw, scope: Scope, messages: Sequence[Message], tallies: Tallies
) -> Taken:
    """The long way, and what it leads to for the short one."""
    taken = await take_in(raw, scope, messages)
    for order_id, record in taken.records.items():
        entry = entry_of(scope, record, order_id, taken.versions[order_id])
        if entry is not None:
            tallies.put(scope, entry)
        elif record.exchange_order_id is not None:
            tallies.drop(scope, record.exchange_order_id)
    return taken


@dataclass(frozen=True, slots=True)
class Flight:
    """Plain fills on their way: the rows, the messages of each order, how many were known."""

    scope: Scope
    batch: Batch
    fills: dict[str, list[Execution]]
    known: int
    task: asyncio.Task[bool]


class Many:
    """One call of `apply_many`. applied: what became of the messages so far."""

    def __init__(self, raw: Raw, tallies: Tallies) -> None:
        self.applied = Applied()
        self._raw = raw
        self._tallies = tallies
        self._flight: Flight | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.land()
        elif self._flight is not None:
            # The connection must not be left in the middle of it.
            self._flight.task.cancel()
            with contextlib.suppress(BaseException):
                await self._flight.task
            self._tallies.clear()

    async def apply(self, scope: Scope, messages: Sequence[OrderUpdate | Execution]) -> None:
        """Messages about one market: plain fills together, then the rest."""
        self.applied.messages += len(messages)
        fills: dict[str, list[Execution]] = {}
        others: list[Message] = []
        for message in messages:
            if isinstance(message, Execution):
                fills.setdefault(message.exchange_order_id, []).append(message)
            elif self._is_known(scope, message):
                self.applied.unchanged += 1
            else:
                others.append(message)
        said = {getattr(message, "exchange_order_id", None) for message in others}
        missing = [name for name in fills if self._tallies.get(scope, name) is None]
        if missing:
            await self.land()
            for loaded in entries_of(scope, await load(self._raw, scope, [], missing)):
                self._tallies.put(scope, loaded)
        batch = Batch(scope)
        plain: dict[str, list[Execution]] = {}
        known = 0
        async for name, executions in self._in_turn(fills):
            found = self._judged(scope, name, executions, batch) if name not in said else None
            if found is None:
                others.extend(executions)
            else:
                known += found
                plain[name] = executions
        if not await self.land():
            # What was judged had been counted on top of what is not there.
            for name, executions in plain.items():
                self._tallies.drop(scope, name)
                others.extend(executions)
            plain = {}
        if plain:
            await self._start(scope, batch, plain, known)
        if others:
            await self.land()
            await self._long_way(scope, others)

    async def _in_turn(
        self, fills: dict[str, list[Execution]]
    ) -> AsyncGenerator[tuple[str, list[Execution]], None]:
        """The fills by order, to be judged; the batch on its way has its turn in between."""
        judged = 0
        for name, executions in fills.items():
            judged += len(executions)
            if judged > AT_ONCE and self._flight is not None:
                judged = 0
                await asyncio.sleep(0)
            yield name, executions

    def _is_known(self, scope: Scope, update: OrderUpdate) -> bool:
        entry = self._tallies.get(scope, update.exchange_order_id or "")
        return entry is not None and entry.tally.knows(update)

    def _judged(
        self, scope: Scope, name: str, executions: list[Execution], batch: Batch
    ) -> int | None:
        entry = self._tallies.get(scope, name)
        if entry is None:
            return None
        found = batch.add(entry, executions)
        if found is None:
            self._tallies.drop(scope, name)
        return found

    async def _start(
        self, scope: Scope, batch: Batch, plain: dict[str, list[Execution]], known: int
    ) -> None:
        if not len(batch):
            self.applied.unchanged += known
            return
        task = asyncio.create_task(batch.write(self._raw))
        self._flight = Flight(scope, batch, plain, known, task)
        await asyncio.sleep(0)  # it is sent before the next batch is judged

    async def land(self) -> bool:
        """Wait for what is on its way; False if the long way had to be taken for it."""
        flight, self._flight = self._flight, None
        if flight is None:
            return True
        try:
            is_written = await flight.task
        except BaseException:
            self._tallies.clear()
            raise
        if is_written:
            self.applied.inserted += len(flight.batch)
            self.applied.unchanged += flight.known
            self._tallies.grown(len(flight.batch))
            return True
        others: list[Message] = []
        for name, executions in flight.fills.items():
            self._tallies.drop(flight.scope, name)
            others.extend(executions)
        await self._long_way(flight.scope, others)
        return False

    async def _long_way(self, scope: Scope, messages: Sequence[Message]) -> None:
        taken = await take_in_and_tally(self._raw, scope, messages, self._tallies)
        applied = self.applied
        for outcome in taken.outcomes:
            applied.inserted += len(outcome.inserted)
            applied.corrected += len(outcome.completed)
            applied.unchanged += Flag.NOTHING_NEW in outcome.flags
            applied.waiting += Flag.WAITING in outcome.flags
            applied.held += Flag.HELD in outcome.flags
            if Flag.NOTHING_NEW not in outcome.flags:
                applied.outcomes.append(outcome)
        applied.events.extend(taken.events)
