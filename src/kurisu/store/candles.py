"""`store.candles`: writes and reads of candles. Each call is one transaction of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kurisu.domain.candle import Candle
from kurisu.domain.faults import Reject
from kurisu.domain.market import MarketName
from kurisu.domain.timeframe import BASE, ROLLUPS, Timeframe
from kurisu.domain.timeframe import timeframe as timeframe_of
from kurisu.errors import InvalidArgument
from kurisu.store import (
    candle_read,
    candle_rows,
    candle_write,
    coverage,
    coverage_read,
    markets,
    policies,
    rollups,
)
from kurisu.store.candle_table import CandleTable
from kurisu.store.candle_write import WriteReport
from kurisu.store.connect import autocommit, transaction
from kurisu.store.coverage import Stretch
from kurisu.store.coverage_read import MISSING, Gap
from kurisu.store.markets import Market, each_known
from kurisu.store.verify import VerifyReport, verify

if TYPE_CHECKING:
    from kurisu.store.store import Store

#: Bars that `replay` holds at a time, over all markets.
REPLAY_ROWS: Final = 100_000


def aware(given: Any, name: str) -> datetime | None:
    """`given` in UTC, or None. Raises InvalidArgument if it is no datetime with a time zone."""
    if given is None:
        return None
    if not isinstance(given, datetime):
        raise InvalidArgument(f"{name} is {given!r}, not a datetime; use datetime(..., tzinfo=UTC)")
    if given.tzinfo is None:
        raise InvalidArgument(f"{name} has no time zone; use datetime(..., tzinfo=UTC)")
    try:
        return given.astimezone(UTC)
    except OverflowError:  # the first or last day of the calendar, seen from elsewhere
        return given.replace(tzinfo=UTC)


def _bounds(since: datetime, until: datetime) -> tuple[datetime, datetime]:
    """Both, in UTC. Raises InvalidArgument."""
    low, high = aware(since, "since"), aware(until, "until")
    if low is None or high is None:
        raise InvalidArgument("since and until are needed, both of them")
    return low, high


def _ranges(report: WriteReport) -> list[rollups.Range]:
    return [
        rollups.Range(candle_rows.from_us(since), candle_rows.from_us(until))
        for since, until in report.touched
    ]


def _failed(
    found: candle_rows.CleanCandles, rows: pa.Table, frame: Timeframe, source: str
) -> list[Stretch]:
    """The bars of rejected rows: the exchange has something there that cannot be stored."""
    if not found.rejects:
        return []
    times = rows.column("time").take(pa.array([reject.row - 1 for reject in found.rejects]))
    taken = {candle_rows.from_us(int(time)) for time in found.times}
    failed: dict[datetime, Stretch] = {}
    for reject, at in zip(found.rejects, times.to_pylist(), strict=True):
        opened = None if at is None else frame.open_time(at)
        if opened is not None and opened not in taken:
            failed.setdefault(
                opened,
                Stretch(opened, frame.close_time(opened), "failed", source, why_rejected(reject)),
            )
    return sorted(failed.values(), key=coverage.by_time)


def why_rejected(reject: Reject) -> str:
    """Why a bar whose row was rejected is `failed`."""
    return f"its candle cannot be stored: {reject.rule.value} ({reject.field} {reject.value})"


@dataclass(frozen=True, slots=True)
class Candles:
    """Candles of every market.

    as_of_time: only what had closed at this time is visible; None for everything stored.
    """

    _store: Store
    as_of_time: datetime | None = None

    def as_of(self, at: datetime) -> Candles:
        """The same reads, as they would have been at `at`: bars still open then are not there.

        Raises InvalidArgument if `at` has no time zone.
        """
        return Candles(self._store, aware(at, "at"))

    async def write(
        self,
        market: Market | MarketName,
        timeframe: str | Timeframe,
        rows: Any,
        *,
        source: str = "api",
        now: datetime | None = None,
        grace: timedelta = timedelta(0),
        allow_expiring: bool = False,
    ) -> WriteReport:
        """Store closed candles, exactly, all of them or none.

        market: a market of this store, or a name: then it is created if it is not there.
        rows: an Arrow table (or what exports one: polars, pandas) with the columns time
            (timestamp with a time zone, open time), open, high, low, close, volume (decimal,
            integer or text), and optionally row (numbers for the report); or Candle values.
        source: what `candle_coverage` names as the source.
        now: the clock that says which candles have closed (the exchange's, where it is known);
            by default this machine's. A candle is closed at open time + timeframe + grace.
        allow_expiring: store rows that a retention policy of the user's will drop again.

        Rows that break a rule are listed in the report, never changed to fit. Raises
        InvalidArgument (columns missing or not exact), RetentionConflict, WriteRefused,
        DatabaseError.
        """
        started = time.perf_counter()
        frame = timeframe_of(timeframe)
        if not isinstance(market, MarketName):
            market = markets.known(market)
        clock = (aware(now, "now") or datetime.now(UTC)) - grace
        # Off the event loop: a million rows are a second of work, of rejected ones several.
        found = await asyncio.to_thread(candle_rows.clean, rows, frame, clock)
        note = None
        if found.table.num_rows:
            note = await self.make_room(found.times, allow_expiring=allow_expiring)
        report, noted = await self._store_clean(market, frame, found, source, [])
        if self._store.engine.is_community and frame == BASE:
            await rollups.settle(self._store.database, {None: _ranges(report)}, noted=noted)
        if note is not None:
            report.notes.append(note)
        report.seconds = time.perf_counter() - started
        return report

    async def write_fetched(
        self,
        market: Market,
        timeframe: str | Timeframe,
        rows: pa.Table,
        known: Iterable[Stretch],
        *,
        now: datetime,
        source: str = "rest",
    ) -> WriteReport:
        """Store what an exchange answered: candles, and what is known where there are none.

        As `write`, in one transaction, with three differences. known: stretches without candles
        and their status, which never take back that candles are stored. Bars whose row was
        rejected become `failed`. Room in the retention policy is the caller's to make
        (`make_room`), and on Community rollups stay pending until `settle`, because a refresh
        after each page would cost more than the page.
        """
        started = time.perf_counter()
        frame = timeframe_of(timeframe)
        found = await asyncio.to_thread(candle_rows.clean, rows, frame, now)
        stated = [*known, *_failed(found, rows, frame, source)]
        report, noted = await self._store_clean(market, frame, found, source, stated)
        if self._store.engine.is_community and frame == BASE and report.touched and not noted:
            # Somebody's refresh may have begun between that look and the commit, and may pass over
            # the rows. A page of long ago is always noted.
            async with transaction(self._store.database) as connection:
                await rollups.note_pending(connection, {market.id: _ranges(report)})
        report.seconds = time.perf_counter() - started
        return report

    async def write_many(
        self,
        batches: Sequence[tuple[Market, pa.Table]],
        timeframe: str | Timeframe,
        *,
        now: datetime,
        source: str = "stream",
    ) -> list[WriteReport]:
        """Store closed candles of many markets in one transaction, all of them or none.

        As `write`, for the newest candles of live streams: no room is made in the retention
        policy. Each market stands in `batches` once. Returns a report for each, in their order.
        """
        started = time.perf_counter()
        frame = timeframe_of(timeframe)
        store = self._store
        # In the order of ids, as everybody takes the locks of several markets.
        order = sorted(range(len(batches)), key=lambda at: batches[at][0].id)
        reports: dict[int, WriteReport] = {}
        touched: dict[int | None, list[rollups.Range]] = {}
        keeps_rollups = store.engine.is_community and frame == BASE
        noted = False
        async with transaction(store.database) as connection:
            for at in order:
                market, rows = batches[at]
                found = candle_rows.clean(rows, frame, now)
                reports[at] = await candle_write.write(
                    connection, store.engine, market.id, frame, found, source
                )
                touched[market.id] = _ranges(reports[at])
            if keeps_rollups and any(touched.values()):
                noted = await rollups.note_pending(connection, touched)
        if keeps_rollups:
            await rollups.settle(store.database, touched, noted=noted)
        for report in reports.values():
            report.seconds = time.perf_counter() - started
        return [reports[at] for at in range(len(batches))]

    async def _store_clean(
        self,
        market: Market | MarketName,
        frame: Timeframe,
        found: candle_rows.CleanCandles,
        source: str,
        known: Sequence[Stretch],
    ) -> tuple[WriteReport, bool]:
        """One transaction; and whether it left something for a refresh."""
        store = self._store
        async with transaction(store.database) as connection:
            if isinstance(market, MarketName):
                market, _ = await markets.ensure(connection, market)
            report = await candle_write.write(
                connection, store.engine, market.id, frame, found, source, known
            )
            noted = False
            if store.engine.is_community and frame == BASE and report.touched:
                noted = await rollups.note_pending(connection, {market.id: _ranges(report)})
        return report, noted

    async def settle(self, touched: Sequence[tuple[datetime, datetime]] = ()) -> None:
        """Bring rollups up to date after `write_fetched`; touched: (since, until) of its rows.

        Only TimescaleDB Community needs it; elsewhere it does nothing.
        """
        if self._store.engine.is_community:
            ranges = rollups.merge([rollups.Range(*one) for one in touched], rollups.MERGE_WITHIN)
            await rollups.settle(self._store.database, {None: ranges}, noted=False)

    async def make_room(
        self, times: npt.NDArray[np.int64], *, allow_expiring: bool = False
    ) -> str | None:
        """Before candles that open at `times` (microseconds, by time) are stored: see to it that
        no retention policy drops them again.

        The policy first, in a transaction of its own: a background job must not see the rows
        before it. Returns a line about what was done, or None. Raises RetentionConflict.
        """
        oldest = candle_rows.from_us(int(times[0]))
        async with transaction(self._store.database) as connection:
            cutoff = (await policies.read(connection))["ohlcv"].cutoff
            if cutoff is None or oldest >= cutoff:
                return None
            expiring = int(np.count_nonzero(times < candle_rows.to_us(cutoff)))
            return await policies.make_room(
                connection,
                self._store.engine,
                "ohlcv",
                oldest,
                expiring,
                allow_expiring=allow_expiring,
            )

    async def coverage(
        self, market: Market, timeframe: str | Timeframe, since: datetime, until: datetime
    ) -> list[Stretch]:
        """What is known of [since, until), by time: disjoint stretches, cut to that range.

        Between them nothing was fetched. Unlike `gaps` it does not look at the candles.
        """
        low, high = _bounds(since, until)
        async with transaction(self._store.database) as connection:
            found = await coverage.read(connection, market.id, timeframe_of(timeframe), low, high)
        return [
            replace(one, since=max(one.since, low), until=min(one.until, high)) for one in found
        ]

    async def first_known(
        self, market: Market, timeframe: str | Timeframe, status: str | None = None
    ) -> datetime | None:
        """Where the first known stretch begins, of that status if one is given; None if none is."""
        async with transaction(self._store.database) as connection:
            return await coverage.first(connection, market.id, timeframe_of(timeframe), status)

    async def series(self, exchange: str) -> list[tuple[Market, Timeframe]]:
        """Markets of `exchange` and the timeframes that anything is known of, by symbol."""
        async with transaction(self._store.database) as connection:
            found = await coverage.series(connection, exchange)
        by_id = {market.id: market for market in await self._store.markets.list(exchange)}
        return [(by_id[id_], timeframe_of(name)) for id_, name in found if id_ in by_id]

    async def known_extent(
        self, market: Market, timeframe: str | Timeframe
    ) -> tuple[datetime, datetime] | None:
        """From where to where coverage says anything; None if it says nothing."""
        async with transaction(self._store.database) as connection:
            return await coverage.extent(connection, market.id, timeframe_of(timeframe))

    async def stored(
        self, market: Market, timeframe: str | Timeframe, since: datetime, until: datetime
    ) -> pa.Table:
        """Candles as they are stored under `timeframe`, never derived, that open in [since, until);
        the columns of `read` without `bars`."""
        low, high = _bounds(since, until)
        frame = timeframe_of(timeframe)
        async with transaction(self._store.database) as connection:
            return await candle_write.read_stored(
                connection, market.id, frame, low, high - timedelta(microseconds=1)
            )

    async def forget_missing(
        self, market: Market, timeframe: str | Timeframe, since: datetime, until: datetime
    ) -> int:
        """Take back that candles are stored in [since, until) where they are not, because somebody
        deleted them; how many bars that is."""
        frame = timeframe_of(timeframe)
        async with transaction(self._store.database) as connection:
            await candle_write.lock(connection, market.id)
            gaps = await coverage_read.gaps(connection, market.id, frame, since, until)
            claimed = [
                one
                for one in await coverage.read(connection, market.id, frame, since, until)
                if one.status == "complete"
            ]
            missing = [(gap.since, gap.until) for gap in gaps if gap.status == MISSING]
            untrue = coverage.common(missing, [(one.since, one.until) for one in claimed])
            if untrue:
                await coverage.forget(connection, market.id, frame, untrue)
        return sum(frame.count(*span) for span in untrue)

    async def forget_empty(
        self,
        market: Market,
        timeframe: str | Timeframe,
        spans: Sequence[tuple[datetime, datetime]],
    ) -> int:
        """Take back that there was nothing in `spans` (sorted, disjoint), because the exchange has
        candles there now; how many bars that is."""
        if not spans:
            return 0
        frame = timeframe_of(timeframe)
        async with transaction(self._store.database) as connection:
            await candle_write.lock(connection, market.id)
            known = await coverage.read(connection, market.id, frame, spans[0][0], spans[-1][1])
            empty = [(one.since, one.until) for one in known if one.status == "empty"]
            untrue = coverage.common(spans, empty)
            if untrue:
                await coverage.forget(connection, market.id, frame, untrue)
        return sum(frame.count(*span) for span in untrue)

    async def check_room(self, oldest: datetime, rows: int) -> None:
        """Raises RetentionConflict if a policy that the user has set would drop candles from
        `oldest` on; changes nothing. rows: about how many there are, for the message."""
        async with transaction(self._store.database) as connection:
            await policies.check_room(connection, "ohlcv", oldest, rows)

    async def forget_dropped(self) -> int:
        """Take back that candles are stored where somebody dropped their chunks; how many
        stretches that cut. Only hypertables have chunks."""
        if not self._store.engine.has_hypertables:
            return 0
        async with transaction(self._store.database) as connection:
            return await coverage.forget_dropped(connection)

    async def read(
        self,
        market: Market,
        timeframe: str | Timeframe,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> CandleTable:
        """Bars of one market that open in [since, until), by time; see `CandleTable`.

        Any timeframe; see `kurisu.store.candle_read` for where its bars come from.
        """
        market, frame = markets.known(market), timeframe_of(timeframe)
        store, since = self._store, aware(since, "since")
        until = self._bounded(frame, aware(until, "until"))
        if frame in ROLLUPS:
            low, high = candle_read.opens_between(frame, since, until)
            table = await store.few_bars.read(market.id, frame, low, high)
            if table is not None:
                return CandleTable(table)
        async with autocommit(store.database) as connection:
            return CandleTable(
                await candle_read.read(connection, store.engine, market.id, frame, since, until)
            )

    def _bounded(self, frame: Timeframe, until: datetime | None) -> datetime | None:
        if self.as_of_time is None:
            return until
        visible = frame.open_time(self.as_of_time)
        return visible if until is None else min(until, visible)

    async def latest(
        self, markets: Sequence[Market], timeframe: str | Timeframe, count: int = 1
    ) -> pa.Table:
        """The newest `count` bars of each market, by market and time: one query.

        Columns: market (text, exchange:symbol), market_id, and those of `read`. A market without
        bars has no row.
        """
        if count < 1:
            raise InvalidArgument(f"count is {count}; it has to be at least 1")
        frame = timeframe_of(timeframe)
        names = {market.id: str(market) for market in each_known(markets)}
        async with autocommit(self._store.database) as connection:
            table = await candle_read.latest(
                connection,
                self._store.engine,
                list(names),
                frame,
                count,
                self._bounded(frame, None),
            )
        labels = pa.array([names[i] for i in table.column("market_id").to_pylist()], pa.string())
        return table.add_column(0, "market", labels)

    async def replay(
        self,
        markets: Sequence[Market],
        timeframe: str | Timeframe,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> AsyncIterator[tuple[Market, Candle]]:
        """Bars of many markets merged in order of time, then of `markets`, in bounded memory.

        A bar of `timeframe` may be acted on at its close, open time + timeframe; bars of one open
        time close together.
        """
        markets, frame = each_known(markets), timeframe_of(timeframe)
        since, until = aware(since, "since"), self._bounded(frame, aware(until, "until"))
        first, last = await self._extent(markets, frame)
        if first is None or last is None:
            return
        at = first if since is None else max(since, first)
        end = frame.close_time(last) if until is None else min(until, frame.close_time(last))
        length_s = 28 * 86_400 if frame.is_calendar else frame.seconds
        window = timedelta(seconds=length_s) * max(1, REPLAY_ROWS // max(1, len(markets)))
        while at < end:
            stop = min(end, frame.ceil(at + window))
            async for item in self._replay_window(markets, frame, at, stop):
                yield item
            at = stop

    async def _replay_window(
        self, markets: Sequence[Market], frame: Timeframe, since: datetime, until: datetime
    ) -> AsyncIterator[tuple[Market, Candle]]:
        tables = []
        async with autocommit(self._store.database) as connection:
            for order, market in enumerate(markets):
                table = await candle_read.read(
                    connection, self._store.engine, market.id, frame, since, until
                )
                tables.append(
                    table.replace_schema_metadata(None).append_column(
                        "order", pa.array(np.full(table.num_rows, order, dtype=np.int32))
                    )
                )
        merged = pa.concat_tables(tables).sort_by([("time", "ascending"), ("order", "ascending")])
        orders = merged.column("order").to_pylist()
        candles = CandleTable(merged.drop_columns("order")).candles()
        for order, candle in zip(orders, candles, strict=True):
            yield markets[order], candle

    async def _extent(
        self, markets: Sequence[Market], frame: Timeframe
    ) -> tuple[datetime | None, datetime | None]:
        async with autocommit(self._store.database) as connection:
            return await coverage_read.extent(connection, [m.id for m in markets], frame)

    async def gaps(
        self,
        market: Market,
        timeframe: str | Timeframe = "1m",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[Gap]:
        """Stretches without candles, by time, each with what is known about it.

        Without bounds: between the first and the last stored candle. What has not closed yet is
        no gap. Where bars of `timeframe` are derived, the gaps are those of the candles that they
        are made from, and so are the bars of each: see `made_from`.
        """
        frame = await self.made_from(market, timeframe)
        low, high = aware(since, "since"), aware(until, "until")
        if high is not None:
            high = min(high, frame.open_time(self.as_of_time or datetime.now(UTC)))
        async with autocommit(self._store.database) as connection:
            return await coverage_read.gaps(connection, market.id, frame, low, high)

    async def made_from(self, market: Market, timeframe: str | Timeframe) -> Timeframe:
        """`timeframe` itself, if anything is known of the market's own candles of it; else the
        shortest stored one that its bars are derived from, if there is any."""
        market, frame = markets.known(market), timeframe_of(timeframe)
        async with autocommit(self._store.database) as connection:
            return await coverage_read.made_from(connection, market.id, frame)

    async def verify(
        self,
        markets: Sequence[Market] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> VerifyReport:
        """Recompute every rollup from 1m and compare, digit for digit; all markets by default."""
        chosen = await self._store.markets.list() if markets is None else each_known(markets)
        async with autocommit(self._store.database) as connection:
            return await verify(
                connection, self._store.engine, chosen,
                aware(since, "since"), aware(until, "until"),
            )  # fmt: skip
