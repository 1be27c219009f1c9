"""What commands share that write a file: its options, its format, and where it goes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    from kurisu.report.candle_export import Format


def _none_for_stdout(output: Path | None) -> Path | None:
    """`-` is stdout, as everywhere; it is what no file at all means, too."""
    return None if output is None or str(output) == "-" else output


OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Else, or with -, CSV goes to stdout.",
        callback=_none_for_stdout,
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", metavar="csv|parquet|feather", help="Else by FILE's ending."),
]
Float64Option = Annotated[
    bool, typer.Option("--float64", help="Numbers as nearest doubles instead of decimals.")
]

#: Endings beside the formats' own names; Arrow's IPC file is what feather is.
ENDINGS = {"": "csv", "txt": "csv", "pq": "parquet", "arrow": "feather", "ipc": "feather"}


def export_format(given: str | None, output: Path | None, *, float64: bool, json: bool) -> Format:
    """What --format says, else the ending of `output`, else CSV.

    Raises InvalidArgument: also where the ending stands for another kind of file (a.csv.gz), and
    where the other options do not fit the format.
    """
    from kurisu.report.candle_export import Format

    ending = "" if output is None else output.suffix.lstrip(".").lower()
    wanted = given.lower() if given else ENDINGS.get(ending, ending)
    try:
        format_ = Format(wanted)
    except ValueError:
        known = ", ".join(Format)
        raise InvalidArgument(
            f"unknown format {given!r}; there are {known}"
            if given
            else f"'.{ending}' is the ending of none of {known}: say which with --format"
        ) from None
    if float64 and format_ is Format.CSV:
        raise InvalidArgument("CSV is text and always exact; --float64 is for the others")
    if output is None and (json or format_ is not Format.CSV):
        raise InvalidArgument("--output FILE is needed: only CSV goes to stdout")
    return format_


@contextlib.contextmanager
def opened(output: Path | None) -> Iterator[BinaryIO]:
    """Where the bytes go: `output`, which is there whole or not at all, or stdout."""
    from kurisu.report.atomic_file import atomic_file

    if output is None:
        yield sys.stdout.buffer
        return
    with atomic_file(output) as file:
        yield file
