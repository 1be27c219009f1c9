"""Imports one file of public trades: reads it, finds out what its ids are, stores it.

In: a path and a market's name. Out: a `TradeImportReport`, one transaction having been committed;
or an exception, nothing having been stored. The file is unpacked and converted once, into a
temporary file of exact rows; from there it is stored slice by slice, so that a file of any size
fits in memory and nothing is stored of a file that ends in the middle.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final, Self

import numpy as np
import pyarrow as pa

from kurisu.domain.faults import TradeConflict
from kurisu.domain.market import MarketName
from kurisu.domain.trade import IdSpace
from kurisu.errors import InvalidArgument
from kurisu.exchange.venues import Venue, venue_of
from kurisu.ingest.file_report import FileReport
from kurisu.ingest.files import TradeFile, read_trades
from kurisu.ingest.files.trade_rows import SCHEMA
from kurisu.ingest.files.trade_shape import AGG_TRADES, BINANCE_TRADES, FREQTRADE
from kurisu.ingest.threads import in_thread
from kurisu.store.candle_rows import from_us, times_us
from kurisu.store.exact_rows import Times
from kurisu.store.store import Store
from kurisu.store.trades import TradeWriteReport, TradeWriting

#: Rows stored at a time, which bounds memory.
SLICE_ROWS: Final = 250_000
#: So many rows that contradict stored ones, and it is the wrong market.
MAX_CONFLICTS: Final = 100_000
#: Consecutive ids prove that nothing is missing between them; fewer than this are chance, where ids
#: are the whole exchange's.
SURE_RUN: Final = 100
#: What `trade_coverage` names as the source.
SOURCE: Final = "file"
_MS: Final = timedelta(milliseconds=1)
_MS_US: Final = 1_000


@dataclass(slots=True, kw_only=True)
class TradeImportReport(FileReport[TradeConflict]):
    """What became of the trades of one file. A stored trade is never changed."""

    id_space: IdSpace | None

    @property
    def kind(self) -> dict[str, Any]:
        return {"id_space": self.id_space}


@dataclass(frozen=True, slots=True)
class Complete:
    """What the user says that a file holds every trade of. None: from its first, to its last."""

    since: datetime | None = None
    until: datetime | None = None


async def import_trades(
    store: Store,
    path: Path,
    name: MarketName,
    *,
    columns: Sequence[str] | None = None,
    id_space: IdSpace | None = None,
    complete: Complete | None = None,
    allow_expiring: bool = False,
    working: Callable[[str], AbstractContextManager[None]],
) -> TradeImportReport:
    """Store the trades of `path`, all of them or none.

    columns: see `read_trades`. id_space: what the ids are; None to go by the file's format.
    complete: a stretch of which the file holds every trade; without it, what ids prove.
    working: shows what is being done while it lasts.
    Raises UnreadableFile, InvalidArgument, IdSpaceConflict, RetentionConflict, DatabaseError. A
    market that is not there is created, in the trades' own transaction.
    """
    started = time.perf_counter()
    with _Spool() as spool:
        with working(f"reading {path.name}"):
            found = await in_thread(lambda: spool.fill(path, columns))
        # A name in kurisu.toml may stand for an exchange of another name.
        section = store.config.exchanges.get(name.exchange, {})
        venue = venue_of(str(section.get("ccxt", name.exchange)))
        space = id_space_of(found, spool, name, id_space, venue)
        report = TradeImportReport(
            file=str(path),
            format=found.format,
            market=str(name),
            id_space=space,
            read=found.rows_read,
            rejects=list(found.rejects),
            notes=list(found.notes),
        )
        if spool.rows:
            with working(f"storing {spool.rows:,} trades of {name}"):
                async with store.trades.writing(
                    name, times=spool.times, id_space=space, source=SOURCE,
                    allow_expiring=allow_expiring,
                ) as writing:  # fmt: skip
                    _check_contract(writing)
                    runs = _Runs(2 if venue.trade_ids_gapless else SURE_RUN)
                    await _store_all(spool, found, writing, report, complete, runs)
    report.sort()
    report.seconds = time.perf_counter() - started
    return report


def id_space_of(
    found: TradeFile, spool: _Spool, name: MarketName, given: IdSpace | None, venue: Venue
) -> IdSpace | None:
    """What the ids of a file are. Raises InvalidArgument where nobody can know."""
    if not spool.rows:
        return given
    if spool.rows_with_id == 0:
        if given not in (None, IdSpace.DERIVED):
            raise InvalidArgument(
                f"the trades have no ids, so they are not {given}; see --id-space"
            )
        return IdSpace.DERIVED
    if given is not None:
        return given
    if found.id_space in set(IdSpace):
        return IdSpace(found.id_space)
    usual = venue.trade_id_space
    if found.label == AGG_TRADES:
        return IdSpace.AGGREGATE
    if found.label == BINANCE_TRADES:
        return IdSpace.RAW
    if found.label == FREQTRADE:
        return usual  # it stores what CCXT gives
    if usual is IdSpace.AGGREGATE:
        raise InvalidArgument(
            f"{name.exchange} has ids of single trades and of aggregate trades, and the file does "
            "not say which these are: say --id-space raw or --id-space aggregate (fetch_trades of "
            "CCXT gives aggregate ones). Nothing was stored."
        )
    # Where the exchange's own answers have none, those of a file are its ids all the same.
    return IdSpace.RAW if usual is IdSpace.DERIVED else usual


def _check_contract(writing: TradeWriting) -> None:
    market = writing.market
    if market.name.settle is not None and market.contract_size is None:
        raise InvalidArgument(
            f"{market} is a contract, and its size is not known yet, so its trades have no cost: "
            f"run `kurisu markets sync {market.exchange}` first. Nothing was stored."
        )


async def _store_all(
    spool: _Spool,
    found: TradeFile,
    writing: TradeWriting,
    report: TradeImportReport,
    complete: Complete | None,
    runs: _Runs,
) -> None:
    whole_ms = report.id_space is IdSpace.DERIVED
    report.notes += writing.notes
    for table in spool.slices(whole_ms=whole_ms):
        written = await writing.write(table)
        _add(report, written)
        if not whole_ms and not written.rejects:
            runs.add(table)
        elif written.rejects:
            runs.end()
    report.coverage = await writing.complete(
        [
            stretch
            for stretch in await _proven(spool, found, writing, report, complete, runs)
            if stretch[0] < stretch[1]
        ]
    )


async def _proven(
    spool: _Spool,
    found: TradeFile,
    writing: TradeWriting,
    report: TradeImportReport,
    complete: Complete | None,
    runs: _Runs,
) -> list[tuple[datetime, datetime]]:
    """Stretches of which every trade is stored now."""
    first, last = from_us(int(spool.times.min())), from_us(int(spool.times.max()))
    if complete is not None:
        if report.rejects:
            report.notes.append(
                "nothing is recorded as complete, because rows of the file were rejected"
            )
            return []
        return [(complete.since or first, complete.until or last)]
    if runs.broken or report.rejects:
        # A row that could not be read may stand anywhere between the others.
        return []
    ends = runs.found()
    stretches = [await writing.joined(*run) for run in ends]
    is_whole = len(ends) == 1 and ends[0][1][0] - ends[0][0][0] + 1 == spool.rows
    if is_whole and found.periods:
        # Binance's files are of whole days, and the ids say that nothing of this one is missing.
        since = min(since for since, _ in found.periods)
        until = max(until for _, until in found.periods)
        if since <= first and last < until:
            stretches.append((since, until))
    return [stretch for stretch in stretches if stretch is not None]


def _add(report: TradeImportReport, written: TradeWriteReport) -> None:
    report.add(written)
    if len(report.conflicts) > MAX_CONFLICTS:
        raise InvalidArgument(
            f"more than {MAX_CONFLICTS:,} trades of the file are stored with other content, e.g. "
            f"{report.conflicts[0].trade_id}: {report.conflicts[0].kept} is stored, and the file "
            f"says {report.conflicts[0].value}. Is it of another market? Nothing was stored."
        )


class _Runs:
    """Stretches of consecutive ids, in the order of time.

    least: fewer rows prove nothing. broken: the rows are not in the order of their ids.
    """

    def __init__(self, least: int) -> None:
        self.broken = False
        self._least = least
        self._runs: list[tuple[tuple[int, int], tuple[int, int]]] = []
        self._open: tuple[tuple[int, int], tuple[int, int]] | None = None

    def add(self, table: pa.Table) -> None:
        """The next rows."""
        try:
            ids = table.column("trade_id").cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid:
            self.broken = True
            return
        times = times_us(table.column("time"))
        starts = np.concatenate(([0], np.flatnonzero(np.diff(ids) != 1) + 1))
        ends = np.concatenate((starts[1:], [len(ids)])) - 1
        if (np.diff(times) < 0).any():
            self.broken = True
            return
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            first, last = (int(ids[start]), int(times[start])), (int(ids[end]), int(times[end]))
            if self._open is not None and first[0] == self._open[1][0] + 1:
                if first[1] < self._open[1][1]:
                    self.broken = True
                self._open = (self._open[0], last)
                continue
            self.end()
            self._open = (first, last)

    def end(self) -> None:
        """What comes next does not go on."""
        if self._open is not None and self._open[1][0] - self._open[0][0] + 1 >= self._least:
            self._runs.append(self._open)
        self._open = None

    def found(self) -> list[tuple[tuple[int, datetime], tuple[int, datetime]]]:
        self.end()
        return [
            ((first[0], from_us(first[1])), (last[0], from_us(last[1])))
            for first, last in self._runs
        ]


class _Spool:
    """The rows of one file, exact, in a temporary file; and what has to be known of all of them.

    times: when they were made, in microseconds, in the order of the file.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.rows_with_id = 0
        self.times: Times = np.empty(0, dtype=np.int64)
        self._file: IO[bytes]

    def __enter__(self) -> Self:
        self._file = tempfile.TemporaryFile(prefix="kurisu-")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fill(self, path: Path, columns: Sequence[str] | None) -> TradeFile:
        """Read the file at `path`. Raises UnreadableFile."""
        times: list[Times] = []

        with _writer(self._file) as writer:

            def keep(batch: pa.RecordBatch) -> None:
                column = batch.column(SCHEMA.get_field_index("time"))
                times.append(column.cast(pa.int64()).to_numpy())
                self.rows += batch.num_rows
                self.rows_with_id += (
                    batch.num_rows - batch.column(SCHEMA.get_field_index("trade_id")).null_count
                )
                writer.write_batch(batch)

            found = read_trades(path, keep, columns=columns)
        if times:
            self.times = np.concatenate(times)
        return found

    def slices(self, *, whole_ms: bool) -> Iterator[pa.Table]:
        """The rows, some at a time. whole_ms: by time, and no millisecond is divided."""
        if not whole_ms:
            yield from _tables(_batches(self._file))
            return
        if self.rows <= SLICE_ROWS:
            yield pa.Table.from_batches(_batches(self._file), SCHEMA)
            return
        with _by_time(self._file, self.times) as parts:
            for part in parts:
                yield pa.Table.from_batches(_batches(part), SCHEMA)


@contextmanager
def _writer(file: IO[bytes]) -> Iterator[pa.RecordBatchStreamWriter]:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(pa.PythonFile(file, mode="w"), SCHEMA, options=options) as writer:
        yield writer


def _batches(file: IO[bytes]) -> Iterator[pa.RecordBatch]:
    file.seek(0)
    yield from pa.ipc.open_stream(pa.PythonFile(file, mode="r"))


def _tables(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of about SLICE_ROWS rows."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= SLICE_ROWS:
            yield pa.Table.from_batches(waiting, SCHEMA)
            waiting, rows = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting, SCHEMA)


@contextmanager
def _by_time(file: IO[bytes], times: Times) -> Iterator[list[IO[bytes]]]:
    """The rows of `file` in files of about SLICE_ROWS rows each, by time."""
    ordered = np.sort(times)
    # Each part begins with a millisecond that the one before it does not have.
    cuts = np.unique(ordered[SLICE_ROWS::SLICE_ROWS])
    del ordered
    with ExitStack() as stack:
        parts: list[IO[bytes]] = [
            stack.enter_context(tempfile.TemporaryFile(prefix="kurisu-"))
            for _ in range(len(cuts) + 1)
        ]
        writers = [pa.ipc.new_stream(pa.PythonFile(part, mode="w"), SCHEMA) for part in parts]
        for batch in _batches(file):
            column = batch.column(SCHEMA.get_field_index("time"))
            part_of = np.searchsorted(cuts, column.cast(pa.int64()).to_numpy(), side="right")
            for at in np.unique(part_of).tolist():
                writers[at].write_batch(batch.filter(pa.array(part_of == at)))
        for writer in writers:
            writer.close()
        yield parts
