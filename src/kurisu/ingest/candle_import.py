"""Imports one candle file: reads it, checks that its rows are what they are taken for, stores it.

In: a path and a market's name. Out: an `ImportReport`, one transaction having been committed; or
an exception, nothing having been stored.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kurisu.domain.faults import Conflict
from kurisu.domain.market import MarketName
from kurisu.domain.timeframe import BASE, TIMEFRAMES, Timeframe
from kurisu.errors import InvalidArgument
from kurisu.ingest.file_report import FileReport
from kurisu.ingest.files import CandleRows, read_candles
from kurisu.ingest.threads import in_thread
from kurisu.store.candle_rows import floor_us

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from kurisu.store.store import Store

#: With fewer rows nobody can say what they are bars of.
SURE_ROWS: Final = 20
_SECOND_US: Final = 1_000_000


@dataclass(slots=True, kw_only=True)
class ImportReport(FileReport[Conflict]):
    """What became of the candles of one file. updated: stored ones that the file changed."""

    timeframe: str
    updated: int = 0

    @property
    def kind(self) -> dict[str, Any]:
        return {"timeframe": self.timeframe}


async def import_file(
    store: Store,
    path: Path,
    name: MarketName,
    *,
    timeframe: Timeframe | None = None,
    columns: Sequence[str] | None = None,
    allow_expiring: bool = False,
    working: Callable[[str], AbstractContextManager[None]],
) -> ImportReport:
    """Store the candles of `path`, all of them or none.

    timeframe: None takes 1m, unless the rows say otherwise. columns: see `read_candles`.
    working: shows what is being done while it lasts.
    Raises UnreadableFile, InvalidArgument (rows of another timeframe), RetentionConflict,
    DatabaseError. A market that is not there is created, in the candles' own transaction.
    """
    started = time.perf_counter()
    with working(f"reading {path.name}"):
        rows = await in_thread(lambda: read_candles(path, columns=columns))
    frame = check_spacing(rows, path, timeframe)
    report = ImportReport(
        file=str(path),
        format=rows.format,
        market=str(name),
        timeframe=frame.name,
        read=rows.rows_read,
        rejects=list(rows.rejects),
        notes=list(rows.notes),
    )
    if rows.table.num_rows:
        with working(f"storing {rows.table.num_rows:,} candles of {name}"):
            written = await store.candles.write(
                name, frame, rows.table, source="file", allow_expiring=allow_expiring
            )
        report.add(written)
        report.updated = written.updated
        report.coverage = written.coverage
    report.sort()
    report.seconds = time.perf_counter() - started
    return report


def check_spacing(rows: CandleRows, path: Path, wanted: Timeframe | None) -> Timeframe:
    """The timeframe to store `rows` under. Raises InvalidArgument if they are of another one.

    Rows that lie further apart than the timeframe everywhere are bars of a longer one: as 1m they
    would pass every check of their own and be wrong. Where the user has named the timeframe they
    may be candles with holes, and only rows that lie closer together are refused.
    """
    frame = wanted or BASE
    times = np.unique(rows.table.column("time").to_numpy().astype("datetime64[us]").view(np.int64))
    if len(times) < 2:
        return frame
    steps = np.diff(times)
    smallest, usual = int(steps.min()), int(np.median(steps))
    length = frame.seconds * _SECOND_US
    likely = likely_timeframe(times)
    if (
        wanted is None
        and likely is not None
        and not likely.is_calendar
        and smallest > length
        and len(times) >= SURE_ROWS
        # Candles with holes of any size are no such thing: bars follow each other.
        and np.count_nonzero(steps == likely.seconds * _SECOND_US) >= 0.9 * len(steps)
    ):
        raise InvalidArgument(
            f"{path}: the rows lie {likely} apart and look like bars of {likely}, not {frame}. "
            f"Nothing was stored. Say --timeframe {likely}; or --timeframe {frame}, if they are "
            f"{frame} candles with a hole after each."
        )
    if usual < length:
        way = f"--timeframe {likely}" if likely else "another --timeframe"
        raise InvalidArgument(
            f"{path}: the rows lie {_spelled(usual)} apart and cannot be {frame} candles. Nothing "
            f"was stored. Say {way}."
        )
    return frame


def likely_timeframe(times: np.ndarray[Any, np.dtype[np.int64]]) -> Timeframe | None:
    """The longest timeframe that all of `times` (microseconds, by time) open bars of.

    A single row out of line does not count: it will be rejected by itself.
    """
    for frame in reversed(TIMEFRAMES.values()):
        aligned = int(np.count_nonzero(floor_us(times, frame) == times))
        if len(times) - aligned <= len(times) // 100:
            return frame
    return None


def _spelled(us: int) -> str:
    for frame in reversed(TIMEFRAMES.values()):
        if not frame.is_calendar and us == frame.seconds * _SECOND_US:
            return frame.name
    return str(timedelta(microseconds=us))
