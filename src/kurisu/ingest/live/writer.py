"""What followers give is stored: small transactions for all markets, and a buffer with a bound.

While the database is away the buffer grows up to its bound. Then the readers close their
connections, and what comes after that is asked from REST once the database is back: nothing that
was taken is thrown away, and nothing that was not taken counts as whole.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final

import pyarrow as pa

from kurisu.domain.faults import Reject
from kurisu.domain.timeframe import Timeframe
from kurisu.domain.trade import IdSpace
from kurisu.errors import DatabaseError, WriteRefused
from kurisu.exchange.candles import candle_table, exact_column
from kurisu.exchange.clock import from_ms
from kurisu.exchange.port import CandleRow, TradeRow
from kurisu.exchange.trades import trade_table
from kurisu.ingest.live.candles import CandleFollower
from kurisu.ingest.live.trades import TradeFollower
from kurisu.store.markets import Market
from kurisu.store.store import Store
from kurisu.store.trades import TradeBatch

#: What has come is written so often, or when there are so many rows.
FLUSH_S: Final = 0.05
FLUSH_ROWS: Final = 5_000
#: Rows of one transaction at most, so that what waits after an outage is many short ones.
MOST_ROWS: Final = 20_000
#: How often it is stated which trades are whole. After a crash so much is asked for again.
STATE_S: Final = 5.0
#: Waits while the database is away, doubled from the first to the longest, half of it at random.
FIRST_WAIT_S: Final = 0.2
LONGEST_WAIT_S: Final = 5.0
#: Rows are turned into tables in a thread if there are so many.
THREAD_ROWS: Final = 5_000
#: Lags that are kept for the next status line.
MOST_LAGS: Final = 100_000

SOURCE: Final = "stream"
_MS: Final = pa.timestamp("us", tz="UTC")


@dataclass(slots=True)
class Pending:
    """Rows that wait to be written. arrivals: (when they came, how many)."""

    trades: dict[tuple[TradeFollower, int], list[TradeRow]] = field(default_factory=dict)
    candles: dict[CandleFollower, dict[int, CandleRow]] = field(default_factory=dict)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    rows: int = 0


@dataclass(slots=True)
class Tally:
    """What was written since the last status line. lags: (seconds from receipt to commit, rows)."""

    trades: int = 0
    candles: int = 0
    commits: int = 0
    lags: list[tuple[float, int]] = field(default_factory=list)

    def lag_ms(self, share: float) -> float | None:
        """The lag that `share` of the rows did not exceed, in milliseconds."""
        total = sum(rows for _, rows in self.lags)
        seen = 0
        for lag, rows in sorted(self.lags):
            seen += rows
            if seen >= share * total:
                return round(lag * 1000, 1)
        return None


class Writer:
    """The one task that writes what streams bring.

    bound: rows that are buffered at most; what is read at once beyond it is still taken.
    tell: called with an event's name, its text and its fields.
    """

    def __init__(
        self,
        store: Store,
        frame: Timeframe,
        bound: int,
        tell: Callable[..., None],
        *,
        jitter: random.Random | None = None,
    ) -> None:
        self._store = store
        self._frame = frame
        self.bound = bound
        self._tell = tell
        self._jitter = jitter or random.Random()  # noqa: S311  # spreads retries in time
        #: The last one takes what comes.
        self._pending = deque([Pending()])
        self._waiting = 0
        self._writing = 0
        self._wake = asyncio.Event()
        self._free = asyncio.Event()
        self._free.set()
        self._closing = False
        self._followers: list[TradeFollower] = []
        self.is_away = False
        self.tally = Tally()

    @property
    def buffered(self) -> int:
        """Rows that are not committed."""
        return self._waiting + self._writing

    @property
    def is_full(self) -> bool:
        return not self._free.is_set()

    async def room(self) -> None:
        """Wait until half of the buffer is free."""
        await self._free.wait()

    def add_trades(
        self, follower: TradeFollower, rows: Sequence[TradeRow], received_s: float
    ) -> None:
        self._pending[-1].trades.setdefault((follower, follower.run), []).extend(rows)
        self._came(len(rows), received_s)

    def add_candles(
        self, follower: CandleFollower, rows: Sequence[CandleRow], received_s: float
    ) -> None:
        # A later word on a candle replaces the earlier one.
        self._pending[-1].candles.setdefault(follower, {}).update(
            {row.time_ms: row for row in rows}
        )
        self._came(len(rows), received_s)

    def _came(self, rows: int, received_s: float) -> None:
        if not rows:
            return
        pending = self._pending[-1]
        pending.rows += rows
        pending.arrivals.append((received_s, rows))
        self._waiting += rows
        if pending.rows >= MOST_ROWS:
            self._pending.append(Pending())
        self._wake.set()
        if self.buffered >= self.bound and not self.is_full:
            self._free.clear()
            self._tell(
                "buffer_full",
                f"{self.buffered:,} rows are buffered, which is the most: nothing more is read "
                "until the database has taken half of them; the rest is asked from REST then",
                rows=self.buffered, bound=self.bound,
            )  # fmt: skip

    def follow(self, follower: TradeFollower) -> None:
        """State from time to time what of these trades is whole."""
        self._followers.append(follower)

    async def run(self) -> None:
        """Write until `close`; then what is left."""
        flushed = state_at = 0.0
        while not self._closing or self._waiting:
            if not self._waiting:
                self._wake.clear()
                await self._timed(self._wake, STATE_S)
            wait = flushed + FLUSH_S - time.monotonic()
            if wait > 0 and self._waiting < FLUSH_ROWS and not self._closing:
                await asyncio.sleep(wait)
            flushed = time.monotonic()
            pending = self._pending.popleft()
            if not self._pending:
                self._pending.append(Pending())
            self._waiting -= pending.rows
            self._writing = pending.rows
            if pending.rows:
                await self._insist(partial(self._write, pending))
            self._writing = 0
            if self.is_full and self.buffered <= self.bound // 2:
                self._free.set()
                self._tell("buffer_free", "the buffer has room again", rows=self.buffered)
            if time.monotonic() >= state_at:
                await self._insist(self._state)
                state_at = time.monotonic() + STATE_S
        await self._insist(self._state)

    def close(self) -> None:
        """Let `run` end once everything is written."""
        self._closing = True
        self._wake.set()

    @staticmethod
    async def _timed(event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass

    async def _insist(self, work: Callable[[], Awaitable[object]]) -> None:
        """`await work()`, again and again while the database is away."""
        attempt = 0
        while True:
            try:
                await work()
            except WriteRefused:
                raise
            except DatabaseError as error:
                attempt += 1
                wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempt - 1, 10))
                wait_s *= 0.5 + self._jitter.random() / 2
                if not self.is_away:
                    self.is_away = True
                    self._tell(
                        "database_lost",
                        f"the database is away, rows are buffered (up to {self.bound:,}): {error}",
                        error=str(error), buffered=self.buffered, bound=self.bound,
                    )  # fmt: skip
                await asyncio.sleep(wait_s)
            else:
                if self.is_away:
                    self.is_away = False
                    self._tell(
                        "database_back", f"the database is back; {self.buffered:,} rows wait",
                        buffered=self.buffered,
                    )  # fmt: skip
                return

    async def _write(self, pending: Pending) -> None:
        if pending.trades:
            await self._write_trades(pending)
        if pending.candles:
            await self._write_candles(pending)
        done = time.monotonic()
        self.tally.commits += 1
        if len(self.tally.lags) < MOST_LAGS:
            self.tally.lags += [(done - at, rows) for at, rows in pending.arrivals]

    async def _write_trades(self, pending: Pending) -> None:
        items = list(pending.trades.items())
        count = sum(len(rows) for _, rows in items)
        if count >= THREAD_ROWS:
            tables = await asyncio.to_thread(lambda: _tables(items))
        else:
            tables = _tables(items)
        claims: dict[TradeFollower, list[tuple[int, int]]] = {}
        batches = []
        for ((follower, _), _), table in zip(items, tables, strict=True):
            # What is whole by earlier rows travels with these.
            if follower not in claims:
                claims[follower] = list(follower.claims)
                stretches = _stretches(claims[follower])
            batches.append(TradeBatch(follower.market, table, follower.space, stretches))
            stretches = []
        # The exchange's clock may be ahead of ours.
        newest = from_ms(max(row.time_ms for _, rows in items for row in rows))
        reports = await self._store.trades.write_many(
            batches, source=SOURCE, now=max(datetime.now(UTC), newest)
        )
        for follower, stated in claims.items():
            follower.has_stated(stated)
        failed: list[tuple[Market, datetime, datetime]] = []
        for ((follower, run), rows), report in zip(items, reports, strict=True):
            bad = {rows[reject.row - 1].time_ms for reject in report.rejects}
            failed += [(follower.market, from_ms(at), from_ms(at + 1)) for at in sorted(bad)]
            follower.has_rejected(bad)
            follower.has_stored(run, max(row.time_ms for row in rows))
            self._tell_rejects(follower.market, report.rejects)
            for conflict in report.conflicts:
                self._tell(
                    "rejected",
                    f"trade {conflict.trade_id} is stored as {conflict.kept}, and now said to be "
                    f"{conflict.value}; the first stays",
                    market=follower.market, rule="conflict", row=conflict.trade_id,
                )  # fmt: skip
        if failed:
            reason = "a trade could not be stored"
            await self._store.trades.state_many(
                failed, status="failed", source=SOURCE, reason=reason
            )
        pending.trades.clear()
        self.tally.trades += count

    async def _write_candles(self, pending: Pending) -> None:
        items = [
            (follower, candle_table([rows[at] for at in sorted(rows)]))
            for follower, rows in pending.candles.items()
        ]
        # The exchange has said that they are closed; its clock is known here a little late.
        now = max(
            self._frame.close_time(from_ms(at)) for rows in pending.candles.values() for at in rows
        )
        reports = await self._store.candles.write_many(
            [(follower.market, table) for follower, table in items],
            self._frame, source=SOURCE, now=now,
        )  # fmt: skip
        for (follower, table), report in zip(items, reports, strict=True):
            self._tell_rejects(follower.market, report.rejects)
            self.tally.candles += table.num_rows
        pending.candles.clear()

    def _tell_rejects(self, market: Market, rejects: Sequence[Reject]) -> None:
        for reject in rejects:
            where = "" if reject.field is None else f"{reject.field} "
            self._tell(
                "rejected", f"a row that cannot be stored: {where}{reject.value} ({reject.rule})",
                market=market, rule=str(reject.rule), row=reject.value,
            )  # fmt: skip

    async def _state(self) -> None:
        """Which trades are whole by now."""
        claims = {one: list(one.claims) for one in self._followers if one.claims}
        if not claims:
            return
        await self._store.trades.state_many(
            [
                (one.market, *stretch)
                for one, stretches in claims.items()
                for stretch in _stretches(stretches)
            ],
            source=SOURCE,
        )
        for follower, stretches in claims.items():
            follower.has_stated(stretches)


def _stretches(claims: Sequence[tuple[int, int]]) -> list[tuple[datetime, datetime]]:
    return [(from_ms(since), from_ms(until)) for since, until in claims]


def _tables(
    items: Sequence[tuple[tuple[TradeFollower, int], Sequence[TradeRow]]],
) -> list[pa.Table]:
    return [
        trade_rows(rows, follower.space or follower.usual_space) for (follower, _), rows in items
    ]


def trade_rows(rows: Sequence[TradeRow], space: IdSpace) -> pa.Table:
    """Trades as the store takes them, digit for digit; it works out their cost."""
    if space is IdSpace.DERIVED:
        return trade_table(rows, space)
    return pa.table(
        {
            "time": pa.array([row.time_ms * 1000 for row in rows], pa.int64()).cast(_MS),
            "trade_id": pa.array([row.trade_id for row in rows], pa.string()),
            "side": pa.array([row.side for row in rows], pa.string()),
            "price": exact_column([row.price for row in rows]),
            "amount": exact_column([row.amount for row in rows]),
        }
    )
