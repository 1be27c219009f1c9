"""`kurisu trades import`: files of public trades of any known format into the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from kurisu.cli.command import AllowExpiringOption, MarketOption, Session, command, parse_range
from kurisu.cli.file_import import FilesArgument, RejectsOption, Wording, import_files
from kurisu.cli.output import safe
from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path

    from kurisu.domain.faults import TradeConflict
    from kurisu.ingest.trade_import import Complete, TradeImportReport
    from kurisu.store.store import Store


def _rows(report: TradeImportReport) -> str:
    kind = f" with {report.id_space} ids" if report.id_space else ""
    return f"{report.read:,} trades{kind}, as {safe(report.market)}"


WORDING: Final[Wording[TradeConflict]] = Wording(
    ("read", "inserted", "unchanged", "rejected", "conflicts", "duplicates"),
    _rows,
    "now complete",
    ("row", "time", "id", "what stays", "what the row said"),
    lambda one: (one.row, one.time, one.trade_id, one.kept, one.value),
    lambda one: f"{one.time} {one.trade_id} {one.value}; {one.kept} stays",
)


def add_to(app: typer.Typer) -> None:
    """Make it a command of `app`."""
    command(app, "import")(import_)


async def import_(
    session: Session,
    files: FilesArgument,
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
    rejects: RejectsOption = None,
    allow_expiring: AllowExpiringOption = False,
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

    name = MarketName.parse(market)
    if id_space is not None and id_space not in list(IdSpace):
        raise InvalidArgument(f"--id-space {id_space!r}: there are {', '.join(IdSpace)}.")
    space = None if id_space is None else IdSpace(id_space)
    wanted = None if columns is None else columns.split(",")
    whole = parse_complete(complete)

    async def import_one(store: Store, path: Path) -> TradeImportReport:
        return await import_trades(
            store, path, name, columns=wanted, id_space=space, complete=whole,
            allow_expiring=allow_expiring, working=session.working,
        )  # fmt: skip

    return await import_files(session, files, rejects, import_one, WORDING)


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
