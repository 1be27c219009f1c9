"""Stores what was fetched of one market, while more of it is being fetched.

Pages that arrive while the database is busy are stored together: the slower the database, the
larger its transactions. The buffer is bounded, and a full one holds back the walkers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from kurisu.domain.faults import Reject
from kurisu.domain.timeframe import Timeframe
from kurisu.ingest.problems import Problem, concat
from kurisu.store.candle_rows import from_us, times_us
from kurisu.store.candles import why_rejected
from kurisu.store.coverage import Stretch, by_time
from kurisu.store.markets import Market
from kurisu.store.patience import patiently
from kurisu.store.store import Store

if TYPE_CHECKING:
    from kurisu.ingest.backfill import MarketBackfill, Watch

#: Pages of a market that wait to be stored, at most; a killed process loses them.
WAITING_PAGES: Final = 32


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was found out about [since, until).

    table: candles. known: stretches without candles. now: the exchange's time, None without rows.
    """

    since: datetime
    until: datetime
    table: pa.Table
    known: list[Stretch]
    now: datetime | None


class MarketWriter:
    """The writer of one market; `run` until `finish`, by one task.

    touched: (since, until) around the new and changed candles of each write, for the rollups.
    room_from: nothing is stored that opens earlier; None if that is not known.
    """

    def __init__(
        self,
        store: Store,
        market: Market,
        frame: Timeframe,
        database: asyncio.Semaphore,
        report: MarketBackfill,
        allow_expiring: bool,
        watch: Watch | None,
    ) -> None:
        """database: how many writers may write at a time."""
        self._store = store
        self._market = market
        self._frame = frame
        self._database = database
        self._report = report
        self._allow_expiring = allow_expiring
        self._watch = watch
        self._waiting: deque[Fetched] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._finished = False
        self._failed: BaseException | None = None
        self._oldest: datetime | None = None
        self.touched: list[tuple[datetime, datetime]] = []
        self.room_from: datetime | None = None

    async def put(self, fetched: Fetched) -> None:
        """Hand over; waits while the buffer is full. Raises what the writer failed with."""
        while len(self._waiting) >= WAITING_PAGES and self._failed is None:
            self._room.clear()
            await self._room.wait()
        self.put_nowait(fetched)

    def put_nowait(self, fetched: Fetched) -> None:
        """Hand over, whether there is room or not."""
        if self._failed is not None:
            raise self._failed
        self._waiting.append(fetched)
        self._changed.set()

    def finish(self) -> None:
        """Nothing more will come."""
        self._finished = True
        self._changed.set()

    async def run(self) -> None:
        """Store what comes, until `finish` and there is nothing left."""
        try:
            while True:
                while not self._waiting:
                    if self._finished:
                        return
                    self._changed.clear()
                    await self._changed.wait()
                async with self._database:
                    await self._store_waiting()
        except BaseException as error:
            self._failed = error
            self._room.set()
            raise
        finally:
            if self._watch is not None:
                self._watch.end(self._report.market)

    async def _store_waiting(self) -> None:
        batch = list(self._waiting)
        self._waiting.clear()
        self._room.set()
        table = concat([one.table for one in batch])
        await self._make_room(table)
        now = max((one.now for one in batch if one.now is not None), default=datetime.now(UTC))
        known = sorted((stretch for one in batch for stretch in one.known), key=by_time)
        written = await patiently(
            lambda: self._store.candles.write_fetched(
                self._market, self._frame, table, known, now=now
            )
        )
        report = self._report
        report.fetched += written.read
        report.inserted += written.inserted
        report.updated += written.updated
        report.unchanged += written.unchanged
        report.rejects += written.rejects
        report.problems += [self._problem(table, reject) for reject in written.rejects]
        if written.touched:
            starts, ends = zip(*written.touched, strict=True)
            self.touched.append((from_us(min(starts)), from_us(max(ends))))
        if self._watch is not None:
            for one in batch:
                bars = (
                    1 if self._frame.is_calendar else (one.until - one.since) // self._frame.length
                )
                self._watch.advance(report.market, bars)

    def _problem(self, table: pa.Table, reject: Reject) -> Problem:
        opened = self._frame.open_time(table.column("time")[reject.row - 1].as_py())
        closes = self._frame.close_time(opened)
        return Problem(opened, closes, "failed", why_rejected(reject))

    async def _make_room(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        times = np.sort(times_us(table.column("time")))
        oldest = from_us(int(times[0]))
        if self._oldest is not None and oldest >= self._oldest:
            return
        if self.room_from is not None and self.room_from < oldest:
            oldest = self.room_from
            times = np.concatenate(([int(oldest.timestamp() * 1_000_000)], times))
        note = await patiently(
            lambda: self._store.candles.make_room(times, allow_expiring=self._allow_expiring)
        )
        self._oldest = oldest
        if note is not None:
            self._report.notes.append(note)
