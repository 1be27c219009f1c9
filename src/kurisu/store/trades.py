"""`store.trades`: writes and reads of public trades. Each call is one transaction of its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kurisu.domain.faults import Reject, TradeConflict
from kurisu.domain.market import MarketName
from kurisu.domain.trade import IdSpace
from kurisu.errors import DatabaseError, InvalidArgument
from kurisu.store import (
    markets,
    policies,
    trade_coverage,
    trade_read,
    trade_rows,
    trade_write,
)
from kurisu.store.candle_rows import from_us, to_us
from kurisu.store.candles import aware
from kurisu.store.connect import transaction
from kurisu.store.coverage import Stretch, without
from kurisu.store.exact_rows import Times
from kurisu.store.markets import Market
from kurisu.store.trade_rows import Batch, CleanBatch, CleanTrades
from kurisu.store.trade_table import TradeTable

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from kurisu.store.store import Store

#: Two writers may meet in another order; PostgreSQL then sends one of them back.
ATTEMPTS: Final = 5
_DEADLOCK: Final = "40P01"
#: Rows that are cleaned in the event loop's own thread: handing them over takes longer.
INLINE_ROWS: Final = 5_000


@dataclass(frozen=True, slots=True)
class TradeBatch:
    """Trades of one market, for `write_many`.

    market: a market of the store, or a name: then it is created if it is not there.
    rows: an Arrow table or `Trade` values, see `Trades.write`.
    id_space: what the ids are; None for the call's.
    complete: stretches [since, until) of which every trade is stored with these rows. empty: of
        which the exchange has confirmed that there are none.
    """

    market: Market | MarketName
    rows: Any
    id_space: IdSpace | str | None = None
    complete: Sequence[tuple[datetime, datetime]] = ()
    empty: Sequence[tuple[datetime, datetime]] = ()


@dataclass(slots=True)
class TradeWriteReport:
    """What became of the rows of one batch.

    read = inserted + unchanged + len(rejects) + len(conflicts) + duplicates.
    unchanged: stored already, and the same. duplicates: repeat a row of the same call.
    conflicts: known with other content; what was there first stays.
    id_space: of the rows; None if there are none. coverage: stretches that were not known before.
    notes: what else was done and is worth a line, e.g. that a retention policy was moved.
    """

    market: Market
    read: int = 0
    inserted: int = 0
    unchanged: int = 0
    duplicates: int = 0
    rejects: list[Reject] = field(default_factory=list)
    conflicts: list[TradeConflict] = field(default_factory=list)
    id_space: IdSpace | None = None
    coverage: list[Stretch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rejected(self) -> int:
        return len(self.rejects)


@dataclass(frozen=True, slots=True)
class Trades:
    """Public trades of every market."""

    _store: Store

    async def write(
        self,
        market: Market | MarketName,
        rows: Any,
        *,
        id_space: IdSpace | str | None = None,
        source: str = "program",
        complete: Sequence[tuple[datetime, datetime]] = (),
        empty: Sequence[tuple[datetime, datetime]] = (),
        now: datetime | None = None,
        allow_expiring: bool = False,
    ) -> TradeWriteReport:
        """Store trades, exactly, all of them or none.

        market: a market of this store, or a name: then it is created if it is not there.
        rows: an Arrow table (or what exports one: polars, pandas) with the columns time
            (timestamp with a time zone; cut to milliseconds), price, amount (decimal, integer or
            text), and optionally trade_id, side (buy or sell), cost, taker_or_maker, and row
            (numbers for the report); or Trade values.
        id_space: what the ids are: raw, aggregate or derived. None: raw where there are ids,
            derived where there are none. Where ids are derived, all trades of a millisecond have
            to be in one call.
        complete: stretches [since, until) of which every trade is stored with these rows; they
            are recorded in the same transaction. The millisecond of a rejected row is recorded as
            failed. empty: of which the exchange has confirmed that there are none. source: what
            `trade_coverage` names for them.
        now: the clock by which a trade lies in the future; by default this machine's.
        allow_expiring: store rows that a retention policy of the user's will drop again.

        A stored trade is never changed. Rows that break a rule, and rows that contradict a stored
        trade, are listed in the report. The cost is what the row says; where it says nothing,
        price x amount (see `kurisu.domain.trade.cost_of`). It is not compared.
        Raises IdSpaceConflict, InvalidArgument (columns missing or not exact), RetentionConflict,
        WriteRefused, DatabaseError.
        """
        batch = TradeBatch(market, rows, id_space, complete, empty)
        reports = await self.write_many(
            [batch], source=source, now=now, allow_expiring=allow_expiring
        )
        return reports[0]

    async def write_many(
        self,
        batches: Sequence[
            TradeBatch
            | tuple[Market | MarketName, Any]
            | tuple[Market | MarketName, Any, IdSpace | str | None]
        ],
        *,
        id_space: IdSpace | str | None = None,
        source: str = "program",
        now: datetime | None = None,
        allow_expiring: bool = False,
    ) -> list[TradeWriteReport]:
        """Store trades of many markets in one transaction, all of them or none; see `write`.

        batches: TradeBatch values, or (market, rows) or (market, rows, id space). id_space: of
            those that do not say.

        Made for live streams: rows later than what is stored cost one query and one COPY for all
        markets together, and so does coverage that goes on where it ended. Returns a report for
        each batch, in their order; `seconds` are those of the whole call.
        """
        started = time.perf_counter()
        given = [b if isinstance(b, TradeBatch) else TradeBatch(*b) for b in batches]
        write = _Write(self._store, given, _space(id_space), source)
        await write.clean(aware(now, "now") or datetime.now(UTC))
        reports = await write.run(allow_expiring=allow_expiring)
        for report in reports:
            report.seconds = time.perf_counter() - started
        return reports

    @contextlib.asynccontextmanager
    async def writing(
        self,
        market: Market | MarketName,
        *,
        times: Times,
        id_space: IdSpace | str | None = None,
        source: str = "program",
        allow_expiring: bool = False,
    ) -> AsyncIterator[TradeWriting]:
        """One transaction for more trades than fit in memory: all of them or none.

        times: when they were made (microseconds), all of them, in any order: the policy comes
        first. The rest as in `write`. Raises RetentionConflict.
        """
        note = None
        if len(times):
            note = await make_room(self._store, times, allow_expiring=allow_expiring)
        async with transaction(self._store.database) as connection:
            if isinstance(market, MarketName):
                market, _ = await markets.ensure(connection, market)
            yield TradeWriting(
                self._store, connection, market, _space(id_space), source,
                notes=[] if note is None else [note],
            )  # fmt: skip

    async def read(
        self,
        market: Market,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        limit: int | None = None,
    ) -> TradeTable:
        """Trades made in [since, until), by time; those of one millisecond by id.

        limit: no more than the first so many. Everything without bounds. Raises InvalidArgument
        for a time without a zone.
        """
        async with transaction(self._store.database) as connection:
            return TradeTable(
                await trade_read.read(
                    connection,
                    markets.known(market).id,
                    aware(since, "since"),
                    aware(until, "until"),
                    limit,
                )
            )

    async def iterate(
        self, market: Market, since: datetime | None = None, until: datetime | None = None
    ) -> AsyncGenerator[TradeTable, None]:
        """As `read`, in tables of about TABLE_ROWS trades, so that any range fits in memory.

        A millisecond is never divided. All tables are of one snapshot of the database, whose
        connection is held until the end: whoever stops earlier uses `contextlib.aclosing`.
        """
        async with trade_read.snapshot(self._store.database) as connection:
            tables = trade_read.tables(
                connection, markets.known(market).id, aware(since, "since"), aware(until, "until")
            )
            async with contextlib.aclosing(tables):
                async for table in tables:
                    yield TradeTable(table)

    async def latest(
        self, market: Market, count: int = 1, *, until: datetime | None = None
    ) -> TradeTable:
        """The newest `count` trades (made before `until`), by time."""
        async with transaction(self._store.database) as connection:
            return TradeTable(
                await trade_read.latest(
                    connection, markets.known(market).id, count, aware(until, "until")
                )
            )

    async def coverage(
        self, market: Market, since: datetime | None = None, until: datetime | None = None
    ) -> list[Stretch]:
        """What is known about [since, until), by time; stretches may reach beyond it."""
        async with transaction(self._store.database) as connection:
            return await trade_coverage.read(
                connection, markets.known(market).id, aware(since, "since"), aware(until, "until")
            )

    async def state_many(
        self,
        stretches: Sequence[tuple[Market, datetime, datetime]],
        *,
        status: str = "complete",
        source: str = "program",
        reason: str | None = None,
    ) -> dict[str, list[Stretch]]:
        """Record what is known about stretches [since, until), in one transaction.

        status: complete (every trade is stored already), empty (the exchange confirmed that there
            were none), outage or failed, for which `reason` says why. Nothing takes back that a
            stretch is complete. Returns what was not known before, by the market's name.
        """
        stated: dict[int, list[Stretch]] = {}
        for market, since, until in stretches:
            stated.setdefault(market.id, []).append(_stretch(since, until, status, source, reason))
        async with transaction(self._store.database) as connection:
            learned = await trade_coverage.state(connection, stated)
        return {str(m): learned[m.id] for m, _, _ in stretches if m.id in learned}

    async def check_room(self, oldest: datetime) -> None:
        """Raises RetentionConflict if a policy that the user has set would drop trades from
        `oldest` on; changes nothing."""
        async with transaction(self._store.database) as connection:
            await policies.check_room(connection, "trades", oldest, None)

    async def forget_dropped(self) -> int:
        """Take back that trades are stored where somebody dropped their chunks; how many
        stretches that cut. Only hypertables have chunks."""
        if not self._store.engine.has_hypertables:
            return 0
        async with transaction(self._store.database) as connection:
            return await trade_coverage.forget_dropped(connection)

    async def id_space(self, market: Market) -> IdSpace | None:
        """What the ids of the market's trades are; None while it has none."""
        async with transaction(self._store.database) as connection:
            found = await trade_read.id_space(connection, markets.known(market).id)
        return None if found is None else IdSpace(found)


_MS: Final = timedelta(milliseconds=1)


def _stretch(
    since: datetime, until: datetime, status: str, source: str, reason: str | None = None
) -> Stretch:
    """Whole milliseconds of [since, until), as trades are stored."""
    low, high = aware(since, "since"), aware(until, "until")
    assert low is not None
    assert high is not None
    low += -timedelta(microseconds=low.microsecond) % _MS
    high -= timedelta(microseconds=high.microsecond) % _MS
    return Stretch(low, high, status, source, reason)


def _space(given: IdSpace | str | None) -> IdSpace | None:
    if given is None:
        return None
    try:
        return IdSpace(given)
    except ValueError:
        raise InvalidArgument(
            f"{given!r} is no kind of trade ids; there are {', '.join(IdSpace)}"
        ) from None


async def make_room(store: Store, times: Times, *, allow_expiring: bool) -> str | None:
    """Before trades made at `times` (microseconds) are stored: see to it that no policy drops them.

    The policy first, in a transaction of its own: a background job must not see the rows before
    it. Returns a line about what was done, or None. Raises RetentionConflict.
    """
    async with transaction(store.database) as connection:
        cutoff = (await policies.read(connection))["trades"].cutoff
        if cutoff is None or int(times.min()) >= to_us(cutoff):
            return None
        return await policies.make_room(
            connection,
            store.engine,
            "trades",
            from_us(int(times.min())),
            int(np.count_nonzero(times < to_us(cutoff))),
            allow_expiring=allow_expiring,
        )


@dataclass(slots=True)
class TradeWriting:
    """A transaction that trades of one market are being written in; see `Trades.writing`."""

    _store: Store
    _connection: AsyncConnection
    market: Market
    id_space: IdSpace | None
    source: str
    notes: list[str]

    async def write(self, rows: Any) -> TradeWriteReport:
        """Store some of the trades. Where ids are derived a millisecond must not be divided."""
        batch = TradeBatch(self.market, rows, self.id_space)
        write = _Write(self._store, [batch], None, self.source)
        await write.clean(datetime.now(UTC))
        return (await write.write(self._connection, None))[0]

    async def complete(self, stretches: Sequence[tuple[datetime, datetime]]) -> list[Stretch]:
        """State that all trades of these stretches are stored; what was not known before."""
        stated = [_stretch(since, until, "complete", self.source) for since, until in stretches]
        learned = await trade_coverage.state(self._connection, {self.market.id: stated})
        return learned.get(self.market.id, [])

    async def joined(
        self, first: tuple[int, datetime], last: tuple[int, datetime]
    ) -> tuple[datetime, datetime] | None:
        """[since, until) that a run of consecutive ids proves to be complete.

        first, last: id and time of its ends. What is stored beside them counts; the outermost
        milliseconds of the run do not, since there may be more trades in them.
        """
        before = await trade_read.numbered(self._connection, self.market.id, first[1], "before")
        behind = await trade_read.numbered(self._connection, self.market.id, last[1], "behind")
        number, since = first
        while number - 1 in before:
            number, since = number - 1, before[number - 1]
        number, until = last
        while number + 1 in behind:
            number, until = number + 1, behind[number + 1]
        since += _MS
        return (since, until) if since < until else None


class _Write:
    """One call of `write_many`."""

    def __init__(
        self, store: Store, batches: Sequence[TradeBatch], id_space: IdSpace | None, source: str
    ) -> None:
        self._store = store
        self._batches = batches
        self._id_space = id_space
        self._source = source
        self._keys: dict[str, int] = {}
        self._found: CleanTrades

    async def clean(self, now: datetime) -> None:
        named = []
        size = 0
        for batch in self._batches:
            key = self._keys.setdefault(str(batch.market), len(self._keys))
            rows = batch.rows
            if isinstance(rows, Iterator):
                rows = list(rows)
            size += len(rows) if hasattr(rows, "__len__") else INLINE_ROWS
            named.append(Batch(key, rows, _space(batch.id_space) or self._id_space))
        if size < INLINE_ROWS:
            self._found = trade_rows.clean(named, now)
        else:
            self._found = await asyncio.to_thread(trade_rows.clean, named, now)

    async def run(self, *, allow_expiring: bool) -> list[TradeWriteReport]:
        note: str | None = None
        has_room = self._found.table.num_rows == 0
        for attempt in range(ATTEMPTS):
            try:
                while True:
                    async with transaction(self._store.database) as connection:
                        if has_room or not await self._is_expiring(connection):
                            return await self.write(connection, note)
                    note = await make_room(
                        self._store, self._found.times, allow_expiring=allow_expiring
                    )
                    has_room = True
            except DatabaseError as error:
                if not _is_deadlock(error) or attempt == ATTEMPTS - 1:
                    raise
        raise DatabaseError("unreachable")

    async def _is_expiring(self, connection: AsyncConnection) -> bool:
        cutoff = await trade_read.cutoff(connection)
        return cutoff is not None and int(self._found.times.min()) < to_us(cutoff)

    async def write(self, connection: AsyncConnection, note: str | None) -> list[TradeWriteReport]:
        found = self._found
        engine = self._store.engine
        stored: dict[str, Market] = {}
        for batch in self._batches:
            name = str(batch.market)
            if name not in stored:
                stored[name] = (
                    (await markets.ensure(connection, batch.market))[0]
                    if isinstance(batch.market, MarketName)
                    else markets.known(batch.market)
                )
        ids = {key: stored[name].id for name, key in self._keys.items()}
        names = {key: name for name, key in self._keys.items()}
        # A second attempt begins anew.
        batches = [
            CleanBatch(
                b.key, b.read, b.id_space, [*b.rejects], [*b.lost], [*b.conflicts], b.duplicates
            )
            for b in found.batches
        ]
        written = [trade_write.Written() for _ in batches]
        if found.table.num_rows:
            known = await trade_write.targets(connection, ids, found.table)
            spaces = trade_write.check_spaces(
                batches, {key: target.space for key, target in known.items()}, names
            )
            table = trade_write.priced(CleanTrades(found.table, batches), known)
            written = await trade_write.insert(connection, engine, table, known, batches)
            await trade_write.set_spaces(connection, known, spaces, names)
        stated: dict[int, list[Stretch]] = {}
        for batch, cleaned in zip(self._batches, batches, strict=True):
            stated.setdefault(ids[cleaned.key], []).extend(self._stretches(batch, cleaned))
        learned = await trade_coverage.state(connection, stated)
        return [
            TradeWriteReport(
                market=stored[names[b.key]],
                read=b.read,
                inserted=w.inserted,
                unchanged=w.unchanged,
                duplicates=b.duplicates,
                rejects=sorted(b.rejects, key=lambda reject: reject.row),
                conflicts=sorted(b.conflicts, key=lambda conflict: conflict.row),
                id_space=b.id_space,
                coverage=learned.pop(ids[b.key], []),
                notes=[] if note is None else [note],
            )
            for b, w in zip(batches, written, strict=True)
        ]

    def _stretches(self, batch: TradeBatch, cleaned: CleanBatch) -> list[Stretch]:
        """What is known with this batch: where a row was rejected it is not complete."""
        whole = [
            _stretch(since, until, status, self._source)
            for status, spans in (("complete", batch.complete), ("empty", batch.empty))
            for since, until in spans
        ]
        if not cleaned.lost:
            return whole
        if None in cleaned.lost:
            return []
        reason = f"a trade could not be stored: {cleaned.rejects[0].rule.value}"
        holes = [
            Stretch(from_us(at), from_us(at) + _MS, "failed", self._source, reason)
            for at in sorted({at for at in cleaned.lost if at is not None})
        ]
        return [*without(whole, holes), *holes]


def _is_deadlock(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "sqlstate", None) == _DEADLOCK:
            return True
        cause = cause.__cause__ or getattr(cause, "orig", None)
    return False
