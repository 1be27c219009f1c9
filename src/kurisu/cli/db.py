"""`kurisu db`: set up, look at and keep up the database."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kurisu.cli.command import Session, command
from kurisu.cli.output import iso, safe, size, table

if TYPE_CHECKING:
    from kurisu.store.policies import Policy
    from kurisu.store.status import DatabaseStatus

app = typer.Typer(help="The database: schema, status, upkeep, retention.", no_args_is_help=True)


@command(app, "upgrade")
async def upgrade(session: Session) -> None:
    """Bring the database up to date: extension, tables, policies. Twice does no harm."""
    from kurisu import api, config
    from kurisu.server import data_home
    from kurisu.store import store

    url, _ = await api.resolve_url(session.database)
    with session.working("upgrading the database"):
        done = await store.upgrade(url, config.load(data_home()))
    session.result({"done": done}, lambda: _lines(done) or "the database is up to date")


@command(app, "status")
async def status(session: Session) -> None:
    """Show the engine, tables, policies and rollups."""
    async with session.open() as store:
        found = await store.db.status()
        # Without its query, which may hold a password, too.
        url = store.database.url.set(drivername="postgresql", query={})
    shown = url.render_as_string(hide_password=True)
    session.result({"database": shown, **asdict(found)}, lambda: status_text(found, shown))


@command(app, "maintain")
async def maintain(session: Session) -> None:
    """Do the upkeep that is due: retention, rollups, compression."""
    async with session.open() as store:
        with session.working("maintaining the database"):
            done = await store.db.maintain()
    session.result({"done": done}, lambda: _lines(done) or "nothing was due")


@command(app, "retention")
async def retention(
    session: Session,
    relation: Annotated[
        str | None, typer.Argument(metavar="[RELATION]", help="ohlcv or trades.")
    ] = None,
    duration: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DURATION|off]", help="E.g. '5 years'; off keeps rows for ever."),
    ] = None,
) -> None:
    """Show how long raw rows are kept, or set it: kurisu db retention ohlcv '5 years'."""
    async with session.open() as store:
        if relation is not None and duration:
            line = await store.db.set_retention(relation, " ".join(duration))
            session.result({"done": [line]}, safe(line))
            return
        policies = await store.db.retention()
    if relation is not None:
        from kurisu.errors import InvalidArgument

        if relation not in policies:
            raise InvalidArgument(
                f"{relation!r} has no retention; it is for {' and '.join(policies)}"
            )
        policies = {relation: policies[relation]}
    session.result(list(policies.values()), lambda: _retention_text(policies))


def _retention_text(policies: dict[str, Policy]) -> str:
    rows = [(p.relation, p.drop_after or "for ever", p.origin, p.cutoff) for p in policies.values()]
    return table(("relation", "kept for", "set by", "rows go that are older than"), rows)


def _lines(done: list[str]) -> str:
    return "\n".join(safe(line) for line in done)


def status_text(found: DatabaseStatus, url: str) -> str:
    """`kurisu db status` for people."""
    is_current = found.revision == found.head
    schema = found.revision if is_current else f"{found.revision}, this program needs {found.head}"
    about = [("database", url), ("engine", found.engine), ("schema", f"revision {schema}")]
    if found.available and found.timescaledb is None:
        offer = f"{found.available} is there: `kurisu db upgrade` puts it into this database"
        about.append(("TimescaleDB", offer))
    if found.pending_refreshes:
        about.append(("waiting", f"{found.pending_refreshes:,} refreshes of rollups"))
    parts = [
        table(("", ""), about).strip("\n"),
        _tables_text(found),
        _policies_text(found),
        _rollups_text(found),
    ]
    return "\n\n".join(part for part in parts if part)


def _tables_text(found: DatabaseStatus) -> str:
    rows: list[list[Any]] = []
    for one in found.tables:
        chunks = None if one.chunks is None else f"{one.chunks:,}"
        if one.compressed_chunks:
            chunks = f"{chunks}, {one.compressed_chunks:,} compressed"
            if one.compression_ratio:
                chunks += f" to 1/{one.compression_ratio}"
        count = f"{'about ' if one.estimated else ''}{one.rows:,}"
        rows.append([one.name, one.kind, count, size(one.bytes), chunks])
    headers = ["table", "kind", "rows", "size", "chunks"]
    if not any(row[-1] for row in rows):
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    return table(headers, rows, right={"rows", "size"})


def _policies_text(found: DatabaseStatus) -> str:
    rows = [
        (
            p.relation, p.policy, p.after, p.origin, p.carried_out_by,
            None if p.last_run is None else iso(p.last_run), p.last_status, p.last_error,
        )
        for p in found.policies
    ]  # fmt: skip
    headers = [
        "policy of", "what", "after", "set by", "carried out by", "last run", "result", "error",
    ]  # fmt: skip
    return _without_empty(headers, rows)


def _rollups_text(found: DatabaseStatus) -> str:
    rows = [
        (r.name, r.newest, "yes" if r.current else "no", r.materialized_until)
        for r in found.rollups
    ]
    return _without_empty(["rollup", "newest bar", "up to date", "stored up to"], rows)


def _without_empty(headers: list[str], rows: list[tuple[Any, ...]]) -> str:
    """A table without the columns that say nothing on this engine."""
    kept = [i for i in range(len(headers)) if any(row[i] is not None for row in rows)]
    if not kept:
        return ""
    return table([headers[i] for i in kept], [[row[i] for i in kept] for row in rows])
