"""`kurisu trades import`: files of public trades of any known format into the database."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kurisu.cli.candles_import import Failure
from kurisu.cli.command import MarketOption, Session, command, parse_range
from kurisu.cli.output import iso, safe, table
from kurisu.errors import (
    IdSpaceConflict,
    InvalidArgument,
    KurisuError,
    RetentionConflict,
    UnreadableFile,
)

if TYPE_CHECKING:
    from kurisu.ingest.trade_import import Complete, TradeImportReport

#: Rejected rows and stretches of coverage that the text report shows of each file.
SHOWN: Final = 5
#: What is wrong with one file, and no reason not to try the next.
OF_ONE_FILE: Final = (UnreadableFile, InvalidArgument, RetentionConflict, IdSpaceConflict)
#: Of these the exit code is 1: the file is all right.
REFUSED: Final = (RetentionConflict, IdSpaceConflict)


def add_to(app: typer.Typer) -> None:
    """Make it a command of `app`."""
    command(app, "import")(import_)


async def import_(
    session: Session,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="CSV, JSON, feather, parquet; packed or not."),
    ],
    market: MarketOption,
    id_space: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="What the ids are, if the file does not say: raw, aggregate or derived (none).",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="The file's columns in order, e.g. ts,id,side,price,amount,_ (_: skip).",
        ),
    ] = None,
    complete: Annotated[
        str | None,
        typer.Option(
            metavar="RANGE",
            help="The file holds every trade of it: SINCE..UNTIL, or 'all': first to last row.",
        ),
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the rejected rows and their reasons as CSV."),
    ] = None,
    allow_expiring: Annotated[
        bool,
        typer.Option(
            "--allow-expiring",
            help="Store rows that are older than the retention you have set all the same.",
        ),
    ] = False,
) -> int:
    """Store files of public trades, exactly; a market that is not there is created.

    Reads freqtrade's files, Binance's public aggTrades and trades, Kraken's, and CSV, JSON,
    feather and parquet whose columns have names. Each file is stored whole or not at all. Rows
    that cannot be stored are listed with the rule that they break; a stored trade is never changed.
    Importing the same file twice changes nothing.

    A market holds ids of one kind. Where ids are consecutive, the stretch that they prove to be
    complete is recorded, so that a backfill does not fetch it again.

    Exit code 2 if a file cannot be read; the others are stored all the same. With --json and
    several files, "files" has a report of each, and the counts beside it are their sums.
    """
    from kurisu.domain.market import MarketName
    from kurisu.domain.trade import IdSpace
    from kurisu.ingest.trade_import import import_trades
    from kurisu.report.atomic_file import atomic_file

    name = MarketName.parse(market)
    if id_space is not None and id_space not in list(IdSpace):
        raise InvalidArgument(f"--id-space {id_space!r}: there are {', '.join(IdSpace)}.")
    space = None if id_space is None else IdSpace(id_space)
    wanted = None if columns is None else columns.split(",")
    whole = parse_complete(complete)
    done: list[TradeImportReport | Failure] = []
    with contextlib.ExitStack() as stack:
        # Opened first: not to find out after an hour that it cannot be written.
        listing = stack.enter_context(atomic_file(rejects)) if rejects is not None else None
        if listing is not None:
            listing.write(_reject_lines([], header=True))
        try:
            async with session.open() as store:
                for path in files:
                    try:
                        report = await import_trades(
                            store, path, name, columns=wanted, id_space=space, complete=whole,
                            allow_expiring=allow_expiring, working=session.working,
                        )  # fmt: skip
                    except OF_ONE_FILE as error:
                        if len(files) == 1:
                            raise
                        done.append(Failure(path, error))
                        if not session.json:
                            session.note(f"kurisu: {error}")
                        continue
                    done.append(report)
                    if listing is not None:
                        listing.write(_reject_lines([report]))
                    if not session.json:
                        print(report_text(report, rejects))
        except KurisuError:
            # The database is gone in the middle of several files: say what is in it.
            if len(files) > 1:
                _finish(session, done)
            raise
    if len(files) > 1:
        return _finish(session, done)
    (only,) = done
    session.result(only.as_dict(), "")
    return 0


def parse_complete(text: str | None) -> Complete | None:
    """What --complete says. Raises InvalidArgument."""
    from kurisu.ingest.trade_import import Complete

    if text is None:
        return None
    if text == "all":
        return Complete()
    since, dots, until = text.partition("..")
    if not (dots and since and until):
        raise InvalidArgument(
            f"--complete {text!r}: write 'all', or SINCE..UNTIL, e.g. 2024-10-27..2024-10-28."
        )
    return Complete(*parse_range(since, until))


def _finish(session: Session, done: Sequence[TradeImportReport | Failure]) -> int:
    """Print the sum of several files; the exit code."""
    reports = [one for one in done if not isinstance(one, Failure)]
    failures = [one.error for one in done if isinstance(one, Failure)]
    counts = ("read", "inserted", "unchanged", "rejected", "conflicts", "duplicates")
    total = {key: sum(report.counts[key] for report in reports) for key in counts}
    seconds = sum(report.seconds for report in reports)
    session.result(
        {**total, "seconds": round(seconds, 3), "files": [one.as_dict() for one in done]},
        f"{len(reports)} of {len(done)} files stored: {_counts_text(total)} in {seconds:.2f} s",
    )
    if not failures:
        return 0
    return 1 if all(isinstance(error, REFUSED) for error in failures) else 2


def report_text(report: TradeImportReport, rejects: Path | None = None) -> str:
    """The report of one file. rejects: the file that lists the rejected rows, if there is one."""
    counts = report.counts
    kind = f" with {report.id_space} ids" if report.id_space else ""
    lines = [
        f"{safe(report.file)}: {report.format}, {counts['read']:,} trades{kind}, as "
        f"{safe(report.market)}",
        f"  {_counts_text(counts)} in {report.seconds:.2f} s",
    ]
    lines += [
        f"  now complete: {iso(stretch.since)} to {iso(stretch.until)}"
        for stretch in report.coverage[:SHOWN]
    ]
    if len(report.coverage) > SHOWN:
        lines.append(f"  and {len(report.coverage) - SHOWN:,} more stretches")
    lines += [f"  note: {safe(note)}" for note in report.notes]
    if rejects is None:
        lines += [f"    {line}" for line in _rejects_table(report)]
    elif report.rejects or report.conflicts:
        lines.append(f"  the rejected rows are in {safe(str(rejects))}")
    return "\n".join(lines)


def _counts_text(counts: dict[str, int]) -> str:
    always = [f"{key} {counts[key]:,}" for key in ("inserted", "unchanged", "rejected")]
    rest = [f"{key} {counts[key]:,}" for key in ("conflicts", "duplicates") if counts[key]]
    return ", ".join([*always, *rest])


def _rejects_table(report: TradeImportReport) -> list[str]:
    lines = []
    if report.rejects:
        shown = [(r.row, r.rule.value, r.field, r.value) for r in report.rejects[:SHOWN]]
        lines += table(("row", "rule", "field", "value"), shown, right={"row"}).splitlines()
        if len(report.rejects) > SHOWN:
            lines.append(
                f"and {len(report.rejects) - SHOWN:,} more rejected rows (--rejects FILE lists all)"
            )
    if report.conflicts:
        conflicts = [(c.row, c.time, c.trade_id, c.kept, c.value) for c in report.conflicts[:SHOWN]]
        headers = ("row", "time", "id", "what stays", "what the row said")
        lines += table(headers, conflicts, right={"row"}).splitlines()
        if len(report.conflicts) > SHOWN:
            lines.append(f"and {len(report.conflicts) - SHOWN:,} more conflicts")
    return lines


def _reject_lines(reports: Iterable[TradeImportReport], *, header: bool = False) -> bytes:
    """CSV of rejected rows and conflicts, by file and row; values stand as in the source."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(("file", "row", "rule", "field", "value"))
    for report in reports:
        rows = [(r.row, r.rule.value, r.field or "", r.value) for r in report.rejects]
        rows += [
            (c.row, "conflict", "", f"{c.time} {c.trade_id} {c.value}; {c.kept} stays")
            for c in report.conflicts
        ]
        for row in sorted(rows, key=lambda row: row[0]):
            writer.writerow((report.file, *row))
    return text.getvalue().encode(errors="backslashreplace")
