"""`kurisu ledger sync` and `kurisu ledger reconcile`: an account's exchange and the ledger."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kurisu.cli.command import Session, command, parse_time
from kurisu.cli.output import iso, safe, table
from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    from kurisu.store.accounts import Account
    from kurisu.trading.reconcile import ReconcileReport
    from kurisu.trading.sync import SyncReport
    from kurisu.trading.take_in import TakenIn

#: Differences and unreadable records that the text reports show; --json has all of them.
SHOWN: Final = 50

AccountArgument = Annotated[
    str,
    typer.Argument(metavar="ACCOUNT", help="EXCHANGE:NAME, or the NAME alone if it is unique."),
]
MarketsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--market",
        metavar="SYMBOL",
        help="E.g. BTC/USDT. May be given repeatedly; else the markets of the last time and those "
        "that the balances suggest.",
        show_default=False,
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="From there on: a date, an ISO time (UTC if it names no zone), or an epoch.",
        show_default=False,
    ),
]


def add_to(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    command(app, "sync")(sync)
    command(app, "reconcile")(reconcile)


async def sync(
    session: Session,
    account: AccountArgument,
    since: SinceOption = None,
    market: MarketsOption = None,
) -> None:
    """Read orders, fills, deposits, funding and balances of an account into the ledger.

    Goes on where the last call stopped, and may be stopped or killed at any time: nothing is lost
    and nothing is counted twice. --since reads again from there on; it never leaves a gap. Orders
    that were not placed by Kurisu are adopted, so that positions and balances are those of the
    whole account.

    The markets that are looked at are those of the last time and those that the balances suggest;
    name a market once that you traded and hold no more of. Deposits and withdrawals are read from
    --since, or else a year back the first time. The spot wallet is read, and a contract wallet from
    when one of its markets is named on; --wallet of `kurisu account add` says which ones otherwise.
    """
    from kurisu.trading.accounts import open_stored_account
    from kurisu.trading.sync import sync_account

    start = parse_time(since, "--since")
    async with session.open() as store:
        found = await store.accounts.find(account)
        symbols = _symbols(found, market)
        async with open_stored_account(store.config, found) as exchange:
            with _watched(session, found) as progress:
                report = await sync_account(
                    store, found, exchange, markets=symbols, since=start, progress=progress
                )
    session.result(sync_dict(report), lambda: sync_text(report))


async def reconcile(
    session: Session,
    account: AccountArgument,
    since: SinceOption = None,
    market: MarketsOption = None,
    apply: Annotated[
        bool,
        typer.Option(
            "--apply",
            help="Store what is missing, and correct balances, both as rows of their own.",
        ),
    ] = False,
) -> int:
    """Compare the ledger with what the exchange says: order by order, fill by fill, asset by asset.

    Exit code 1 if anything differs. Each difference is a risk event, stored once. Nothing is
    changed unless --apply says so; then missing orders and fills are stored, balances are moved by
    correction entries, and what is extra in the ledger stays and is shown.
    """
    from kurisu.trading.accounts import open_stored_account
    from kurisu.trading.reconcile import reconcile_account

    start = parse_time(since, "--since")
    async with session.open() as store:
        found = await store.accounts.find(account)
        symbols = _symbols(found, market)
        async with open_stored_account(store.config, found) as exchange:
            with _watched(session, found) as progress:
                report = await reconcile_account(
                    store, found, exchange, markets=symbols, since=start, apply=apply,
                    progress=progress,
                )  # fmt: skip
    session.result(reconcile_dict(report), lambda: reconcile_text(report))
    return 0 if report.comparison.agrees else 1


def _symbols(account: Account, given: list[str] | None) -> list[str]:
    """Symbols of --market, which may be written with the exchange."""
    symbols = []
    for text in given or ():
        symbol = text.removeprefix(f"{account.exchange}:")
        if "/" not in symbol or symbol.find(":") in range(symbol.find("/")):
            raise InvalidArgument(
                f"--market {text!r} is no market of {account.exchange}: write it as BASE/QUOTE, "
                "e.g. BTC/USDT."
            )
        symbols.append(symbol)
    return symbols


@contextlib.contextmanager
def _watched(
    session: Session, account: Account
) -> Iterator[Callable[[str, str, datetime | None], None]]:
    """A line on stderr that says what is being read, if somebody is watching."""
    if session.json or not sys.stderr.isatty():
        yield lambda _symbol, _what, _until: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(safe(f"reading {account}"))) as status:

        def show(symbol: str, what: str, until: datetime | None) -> None:
            reached = "from the beginning" if until is None else f"up to {iso(until)}"
            status.update(Text(safe(f"{account} {symbol or 'account'}: {what} {reached}")))

        yield show


def sync_dict(report: SyncReport) -> dict[str, Any]:
    """As --json prints it."""
    return {
        "account": report.account,
        "until": report.until,
        **_counts(report.total),
        "resolved": report.resolved,
        "risk_events": report.total("events") + report.conditions,
        "balances": report.balances,
        "transfers": report.transfers,
        "funding": report.funding,
        "notes": report.notes,
        "seconds": round(report.seconds, 3),
        "markets": [
            {"market": m.market, "since": m.since, "until": m.until, **_taken(m.taken)}
            for m in report.markets
        ],
    }


def _counts(count: Callable[[str], int]) -> dict[str, int]:
    return {
        "orders": count("orders"),
        "adopted": count("adopted"),
        "fills": count("executions"),
        "new": count("new"),
        "completed": count("completed"),
        "repeated": count("repeated"),
        "waiting": count("waiting"),
        "held": count("held"),
    }


def _taken(taken: TakenIn) -> dict[str, Any]:
    return {
        **_counts(lambda name: int(getattr(taken, name))),
        "unreadable": [{"record": u.record, "reason": u.reason} for u in taken.unreadable],
    }


def sync_text(report: SyncReport) -> str:
    """For people."""
    columns = ("market", "orders", "adopted", "fills", "new", "repeated", "waiting", "held")
    rows = []
    for market in report.markets:
        taken = _taken(market.taken)
        rows.append([market.market, *(taken[name] for name in columns[1:])])
    lines = []
    if rows:
        lines.append(table(columns, rows, right=columns[1:]))
    else:
        lines.append(f"{safe(report.account)}: no market to read; name one with --market SYMBOL")
    lines.append(
        f"{safe(report.account)} read up to {iso(report.until)} in {report.seconds:.1f} s, "
        f"{report.balances} balances"
        + (f", {report.transfers} new deposits and withdrawals" if report.transfers else "")
        + (f", {report.funding} new funding payments" if report.funding else "")
    )
    lines += [safe(note) for note in report.notes[:SHOWN]]
    if report.resolved:
        lines.append(f"{report.resolved} orders of unknown fate asked for")
    events = report.total("events") + report.conditions
    if events:
        lines.append(f"{events} new risk events")
    unreadable = [one for market in report.markets for one in market.taken.unreadable]
    lines += [f"not taken: {safe(u.record)}: {safe(u.reason)}" for u in unreadable[:SHOWN]]
    if len(unreadable) > SHOWN:
        lines.append(f"and {len(unreadable) - SHOWN:,} more records that cannot be taken")
    return "\n".join(lines)


def reconcile_dict(report: ReconcileReport) -> dict[str, Any]:
    """As --json prints it."""
    found = report.comparison
    return {
        "account": report.account,
        "since": report.since,
        "until": report.until,
        "agrees": found.agrees,
        "orders": found.orders,
        "fills": found.executions,
        "balances": found.balances,
        "markets": report.markets,
        "risk_events": report.events,
        "differences": [
            {
                "subject": d.subject,
                "kind": d.kind,
                "market": d.market or None,
                "key": d.key,
                "field": d.field or None,
                "ledger": d.ledger,
                "exchange": d.exchange,
            }
            for d in found.differences
        ],
        "applied": {market: _taken(taken) for market, taken in report.applied.items()},
        "corrections": report.corrections,
    }


def reconcile_text(report: ReconcileReport) -> str:
    """For people."""
    found = report.comparison
    lines = []
    if found.differences:
        columns = ("what", "kind", "market", "key", "field", "ledger", "exchange")
        rows = [
            (d.subject, d.kind, d.market, d.key, d.field, d.ledger, d.exchange)
            for d in found.differences[:SHOWN]
        ]
        lines.append(table(columns, rows))
        if len(found.differences) > SHOWN:
            lines.append(f"and {len(found.differences) - SHOWN:,} more (--json lists all)")
    for market, taken in report.applied.items():
        lines.append(f"stored of {safe(market)}: {taken.adopted:,} orders, {taken.new:,} fills")
    for asset, amount in report.corrections.items():
        lines.append(f"corrected {safe(asset)} by {amount:+f}")
    state = (
        "agrees with the exchange" if found.agrees else f"{len(found.differences):,} differences"
    )
    lines.append(
        f"{safe(report.account)}: {found.orders:,} orders, {found.executions:,} fills and "
        f"{found.balances:,} assets compared: {state}"
    )
    if report.events:
        lines.append(f"{report.events} new risk events")
    return "\n".join(lines)
