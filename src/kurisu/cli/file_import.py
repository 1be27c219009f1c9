"""What `candles import` and `trades import` share: file after file, a report of each, their sum."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, TypeVar

import typer

from kurisu.cli.command import Session
from kurisu.cli.output import iso, safe, table
from kurisu.errors import (
    IdSpaceConflict,
    InvalidArgument,
    KurisuError,
    RetentionConflict,
    UnreadableFile,
)

if TYPE_CHECKING:
    from kurisu.domain.faults import Conflict, TradeConflict
    from kurisu.ingest.file_report import FileReport
    from kurisu.store.store import Store

#: Rejected rows and stretches of coverage that the text report shows of each file.
SHOWN: Final = 5
#: What is wrong with one file, and no reason not to try the next.
OF_ONE_FILE: Final = (UnreadableFile, InvalidArgument, RetentionConflict, IdSpaceConflict)
#: Of these the exit code is 1: the file is all right.
REFUSED: Final = (RetentionConflict, IdSpaceConflict)

FilesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", help="CSV, JSON, feather, parquet; packed or not."),
]
RejectsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the rejected rows and their reasons as CSV."),
]

C = TypeVar("C", "Conflict", "TradeConflict")


@dataclass(frozen=True, slots=True)
class Wording(Generic[C]):
    """How the reports of one kind of rows speak.

    counts: which a report has. rows: of a report, what they are and where they went. covered: in
    front of a stretch that was not known before. headers, cells: of the table of conflicts.
    conflict: one of them, as the CSV of rejected rows has it.
    """

    counts: tuple[str, ...]
    rows: Callable[[Any], str]
    covered: str
    headers: tuple[str, ...]
    cells: Callable[[C], tuple[Any, ...]]
    conflict: Callable[[C], str]


@dataclass(frozen=True, slots=True)
class Failure:
    """A file of several of which nothing was stored."""

    file: Path
    error: KurisuError

    def as_dict(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "error": type(self.error).__name__,
            "message": str(self.error),
        }


async def import_files(
    session: Session,
    files: Sequence[Path],
    rejects: Path | None,
    import_one: Callable[[Store, Path], Awaitable[FileReport[C]]],
    wording: Wording[C],
) -> int:
    """Store file after file; the exit code. rejects: see `RejectsOption`."""
    from kurisu.report.atomic_file import atomic_file

    _check_rejects(rejects, files)
    done: list[FileReport[C] | Failure] = []
    with contextlib.ExitStack() as stack:
        # Opened first: not to find out after an hour that it cannot be written.
        listing = stack.enter_context(atomic_file(rejects)) if rejects is not None else None
        if listing is not None:
            listing.write(_csv([("file", "row", "rule", "field", "value")]))
        try:
            async with session.open() as store:
                for path in files:
                    try:
                        report = await import_one(store, path)
                    except OF_ONE_FILE as error:
                        if len(files) == 1:
                            raise
                        done.append(Failure(path, error))
                        if not session.json:
                            session.note(f"kurisu: {error}")
                        continue
                    done.append(report)
                    if listing is not None:
                        listing.write(_csv(_reject_rows(report, wording)))
                    if not session.json:
                        print(report_text(report, wording, rejects))
        except KurisuError:
            # The database is gone in the middle of several files: say what is in it.
            if len(files) > 1:
                _finish(session, done, wording)
            raise
    if len(files) > 1:
        return _finish(session, done, wording)
    (only,) = done
    session.result(only.as_dict(), "")
    return 0


def _check_rejects(rejects: Path | None, files: Sequence[Path]) -> None:
    """Raises InvalidArgument where the listing would take the place of what is imported."""
    if rejects is None or not rejects.is_file():
        return
    if any(path.is_file() and path.samefile(rejects) for path in files):
        raise InvalidArgument(f"--rejects {rejects} is a file to import: name another one")


def _finish(session: Session, done: Sequence[FileReport[C] | Failure], wording: Wording[C]) -> int:
    """Print the sum of several files; the exit code."""
    reports = [one for one in done if not isinstance(one, Failure)]
    failures = [one.error for one in done if isinstance(one, Failure)]
    total = {key: sum(report.counts[key] for report in reports) for key in wording.counts}
    seconds = sum(report.seconds for report in reports)
    session.result(
        {**total, "seconds": round(seconds, 3), "files": [one.as_dict() for one in done]},
        f"{len(reports)} of {len(done)} files stored: {_counts_text(total)} in {seconds:.2f} s",
    )
    if not failures:
        return 0
    return 1 if all(isinstance(error, REFUSED) for error in failures) else 2


def report_text(report: FileReport[C], wording: Wording[C], rejects: Path | None = None) -> str:
    """The report of one file. rejects: the file that lists the rejected rows, if there is one."""
    lines = [
        f"{safe(report.file)}: {report.format}, {wording.rows(report)}",
        f"  {_counts_text(report.counts)} in {report.seconds:.2f} s",
    ]
    lines += [
        f"  {wording.covered}: {iso(stretch.since)} to {iso(stretch.until)}"
        for stretch in report.coverage[:SHOWN]
    ]
    if len(report.coverage) > SHOWN:
        lines.append(f"  and {len(report.coverage) - SHOWN:,} more stretches")
    lines += [f"  note: {safe(note)}" for note in report.notes]
    if rejects is None:
        lines += [f"    {line}" for line in _rejects_table(report, wording)]
    elif report.rejects or report.conflicts:
        lines.append(f"  the rejected rows are in {safe(str(rejects))}")
    return "\n".join(lines)


def _counts_text(counts: dict[str, int]) -> str:
    always = ("inserted", "updated", "unchanged", "rejected")
    return ", ".join(
        f"{key} {count:,}"
        for key, count in counts.items()
        if key != "read" and (count or key in always)
    )


def _rejects_table(report: FileReport[C], wording: Wording[C]) -> list[str]:
    lines = []
    if report.rejects:
        shown = [(r.row, r.rule.value, r.field, r.value) for r in report.rejects[:SHOWN]]
        lines += table(("row", "rule", "field", "value"), shown, right={"row"}).splitlines()
        if len(report.rejects) > SHOWN:
            lines.append(
                f"and {len(report.rejects) - SHOWN:,} more rejected rows (--rejects FILE lists all)"
            )
    if report.conflicts:
        cells = [wording.cells(one) for one in report.conflicts[:SHOWN]]
        right = {name for name in wording.headers if name.endswith("row")}
        lines += table(wording.headers, cells, right=right).splitlines()
        if len(report.conflicts) > SHOWN:
            lines.append(f"and {len(report.conflicts) - SHOWN:,} more conflicts")
    return lines


def _reject_rows(report: FileReport[C], wording: Wording[C]) -> Iterable[Sequence[Any]]:
    """Rejected rows and conflicts, by row; values stand as in the source."""
    name = report.file
    rows = [(name, r.row, r.rule.value, r.field or "", r.value) for r in report.rejects]
    rows += [(name, c.row, "conflict", "", wording.conflict(c)) for c in report.conflicts]
    return sorted(rows, key=itemgetter(1))


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")
