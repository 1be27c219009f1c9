"""`kurisu candles import`: candle files of any known format into the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from kurisu.cli.command import AllowExpiringOption, MarketOption, Session, command
from kurisu.cli.file_import import FilesArgument, RejectsOption, Wording, import_files
from kurisu.cli.output import safe

if TYPE_CHECKING:
    from pathlib import Path

    from kurisu.domain.faults import Conflict
    from kurisu.ingest.candle_import import ImportReport
    from kurisu.store.store import Store


def _rows(report: ImportReport) -> str:
    return f"{report.read:,} rows, as {safe(report.market)} {report.timeframe}"


WORDING: Final[Wording[Conflict]] = Wording(
    ("read", "inserted", "updated", "unchanged", "rejected", "conflicts", "duplicates"),
    _rows,
    "now covered",
    # A later row with other content for the same candle has won.
    ("row", "won by row", "time", "what the row said"),
    lambda one: (one.row, one.kept_row, one.time, one.value),
    lambda one: f"{one.time} {one.value}; row {one.kept_row} won",
)


def add_to(app: typer.Typer) -> None:
    """Make it a command of `app`."""
    command(app, "import")(import_)


async def import_(
    session: Session,
    files: FilesArgument,
    market: MarketOption,
    timeframe: Annotated[
        str | None,
        typer.Option(metavar="TIMEFRAME", help="What the rows are; 1m if not given."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="The file's columns in order, e.g. ts,open,high,low,close,volume,_ (_: skip).",
        ),
    ] = None,
    rejects: RejectsOption = None,
    allow_expiring: AllowExpiringOption = False,
) -> int:
    """Store candle files, exactly; a market that is not there is created.

    Each file is stored whole or not at all. Rows that cannot be stored are listed with the rule
    that they break. Importing the same file twice changes nothing.

    Exit code 2 if a file cannot be read; the others are stored all the same. With --json and
    several files, "files" has a report of each, and the counts beside it are their sums.
    """
    from kurisu.domain.market import MarketName
    from kurisu.domain.timeframe import timeframe as timeframe_of
    from kurisu.ingest.candle_import import import_file

    name = MarketName.parse(market)
    frame = None if timeframe is None else timeframe_of(timeframe)
    wanted = None if columns is None else columns.split(",")

    async def import_one(store: Store, path: Path) -> ImportReport:
        return await import_file(
            store, path, name, timeframe=frame, columns=wanted,
            allow_expiring=allow_expiring, working=session.working,
        )  # fmt: skip

    return await import_files(session, files, rejects, import_one, WORDING)
