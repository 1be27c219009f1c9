"""`kurisu server`: the embedded PostgreSQL."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from kurisu.cli.command import Session, command
from kurisu.cli.output import table
from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    from kurisu.server import ClusterStatus

app = typer.Typer(help="The embedded PostgreSQL.", no_args_is_help=True)


def _text(status: ClusterStatus) -> str:
    state = "running" if status.running else "not running"
    if not status.running and status.pid is not None:
        state = "on its way up or down"
    engine = f"PostgreSQL {status.version}" if status.version else None
    if engine and status.timescaledb:
        engine += f" with TimescaleDB ({status.timescaledb})"
    rows = [
        ("server", state),
        ("engine", engine or "not chosen yet: it has never been started"),
        ("process", None if status.pid is None else str(status.pid)),
        ("url", status.url),
        ("data", status.data_dir),
        ("log", status.log),
        ("note", status.note),
    ]
    return table(("", ""), [row for row in rows if row[1] is not None]).strip("\n")


def _show(session: Session, status: ClusterStatus) -> None:
    session.result(asdict(status), lambda: _text(status))
    if os.environ.get("KURISU_DATABASE_URL") or session.database:
        session.note("Other commands do not use it: another database is named.")


@command(app, "start")
def start(session: Session) -> None:
    """Start it; every command that needs it does so by itself."""
    from kurisu.server import Cluster

    _show(session, Cluster().start())


@command(app, "stop")
def stop(session: Session) -> None:
    """Stop it: sessions end, committed data is safe."""
    from kurisu.server import Cluster

    if session.database:
        raise InvalidArgument(
            "this stops the embedded server; the one that --database names is not Kurisu's to stop"
        )
    stopped = Cluster().stop()
    session.result({"stopped": stopped}, "stopped" if stopped else "it was not running")


@command(app, "status")
def status(session: Session) -> None:
    """Say whether it runs, and where its data and log are."""
    from kurisu.server import Cluster

    _show(session, Cluster().status())


@command(app, "url")
def url(session: Session) -> None:
    """Print its URL, for psql and other programs."""
    from kurisu.server import Cluster

    found = Cluster().url
    session.result({"url": found}, found)
