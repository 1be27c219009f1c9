"""`kurisu worker`: does the work that waits in the database's queue."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kurisu.cli.command import Session, command
from kurisu.cli.output import safe, to_json
from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    from kurisu.ingest.worker import JobDone


def add_to(app: typer.Typer) -> None:
    """Make it a command of `app`."""
    command(app, "worker")(worker)


async def worker(
    session: Session,
    exchange: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only work on this one; may be given more than once."),
    ] = None,
    at_once: Annotated[
        int, typer.Option(metavar="N", help="Pieces of work at a time; at least 2.")
    ] = 4,
    drain: Annotated[bool, typer.Option("--drain", help="End when the queue is empty.")] = False,
) -> int:
    """Do the work that `kurisu candles backfill --queue` has put into the database.

    Any number of workers on any machines share the queue; each keeps to the rate limits of
    kurisu.toml, by itself. A worker can be stopped, or killed, at any time: what it did not finish
    is taken again, by itself or by another one. It runs until it is stopped.

    With --json one line for each piece of work. Exit code 1 with --drain if a piece is neither
    complete nor empty.
    """
    from kurisu.domain.market import check_exchange
    from kurisu.ingest.worker import Worker

    if at_once < 2:
        raise InvalidArgument(f"--at-once is {at_once}; it has to be 2 or more.")
    for name in exchange or ():
        check_exchange(name)
    # It writes a traceback for what is told below in a line.
    logging.getLogger("pgqueuer").setLevel(logging.CRITICAL + 1)
    open_ends = 0

    def tell(done: JobDone) -> None:
        nonlocal open_ends
        open_ends += done.report is None or not done.report.is_done
        print(to_json(_as_dict(done), None) if session.json else _as_text(done), flush=True)

    async with session.open() as store:
        if not session.json:
            waiting = sum((await store.queue.size()).values())
            session.note(f"{waiting:,} pieces of work are waiting.")
        await Worker(
            store, exchange or (), at_once=at_once, tell=tell, tell_trouble=session.note
        ).run(drain=drain)
    return 1 if open_ends else 0


def _as_dict(done: JobDone) -> dict[str, Any]:
    report = done.report
    if report is None:
        return {**done.payload, "done": False, "error": done.error}
    (one,) = report.markets
    return {
        **done.payload,
        "done": report.is_done,
        "inserted": one.inserted,
        "updated": one.updated,
        "problems": one.problems,
        "seconds": round(report.seconds, 3),
    }


def _as_text(done: JobDone) -> str:
    payload = done.payload
    what = f"{payload['exchange']}:{payload['symbol']} {payload['timeframe']}"
    what += f" {payload['since'][:16]} to {payload['until'][:16]}"
    report = done.report
    if report is None:
        return safe(f"{what}: failed: {done.error}")
    (one,) = report.markets
    text = f"{what}: {one.inserted:,} new in {report.seconds:.1f} s"
    if not report.is_done and one.problems:
        text += f"; {one.problems[0].status}: {one.problems[0].reason}"
    return safe(text)
