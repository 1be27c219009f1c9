"""`kurisu trades backfill`: public trades of an exchange into the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kurisu.cli import backfill_report
from kurisu.cli.backfill_report import JSON_ROWS, SHOWN, problem_lines
from kurisu.cli.command import (
    AllowExpiringOption,
    ExchangeArgument,
    Session,
    TradesSinceOption,
    UntilOption,
    command,
    exchange_and_symbols,
    parse_range,
)
from kurisu.cli.output import safe
from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    from kurisu.ingest.trade_backfill import (
        MarketTradeBackfill,
        TradeBackfillReport,
        TradeWatch,
    )

STATUSES: Final = ("complete", "empty", "outage", "failed", "missing")


def add_to(app: typer.Typer) -> None:
    """Make it a command of `app`."""
    command(app, "backfill")(backfill)


async def backfill(
    session: Session,
    exchange: ExchangeArgument,
    symbols: Annotated[
        list[str] | None,
        typer.Argument(metavar="SYMBOL...", help="Unified symbols, e.g. BTC/USDT."),
    ] = None,
    since: TradesSinceOption = None,
    until: UntilOption = None,
    allow_expiring: AllowExpiringOption = False,
) -> int:
    """Fetch the public trades of a range that are not stored yet.

    Only what is not known is asked for: a second run asks for nothing that is complete. It can be
    stopped at any time and goes on where it was. Without --since it goes on from the first stretch
    that is known; without --until up to now. Some exchanges give only their newest trades: what is
    older is reported as failed.

    Exit code 1 if something is neither complete nor empty in the end.
    """
    from kurisu.exchange.configured import open_configured
    from kurisu.ingest.backfill import named_markets
    from kurisu.ingest.trade_backfill import backfill_trades

    first, end = parse_range(since, until)
    exchange, symbols = exchange_and_symbols(exchange, symbols)
    if not symbols:
        raise InvalidArgument("name symbols, e.g. BTC/USDT.")
    async with session.open() as store, open_configured(store.config, exchange) as opened:
        with session.working(f"asking {exchange} for its markets"):
            markets = await named_markets(store, opened, symbols)
        with bars(session) as watch:
            report = await backfill_trades(
                store, opened, markets, first, end,
                grace=timedelta(seconds=opened.settings.grace_s),
                concurrency=opened.settings.concurrency,
                allow_expiring=allow_expiring, watch=watch,
            )  # fmt: skip
    session.result(as_dict(report), lambda: as_text(report))
    return 0 if report.is_done else 1


def as_dict(report: TradeBackfillReport) -> dict[str, Any]:
    """For --json. `stretches` are those that are neither complete nor empty."""
    return backfill_report.as_dict(report, [_market_dict(one) for one in report.markets])


def _market_dict(one: MarketTradeBackfill) -> dict[str, Any]:
    return {
        "market": one.market,
        "since": one.since,
        "until": one.until,
        "done": one.is_done,
        "id_space": one.id_space,
        "fetched": one.fetched,
        "inserted": one.inserted,
        "unchanged": one.unchanged,
        "rejected": len(one.rejects),
        "conflicts": len(one.conflicts),
        "missing_ids": one.missing_ids,
        "requested_seconds": one.requested.total_seconds(),
        "seconds": {status: one.length(status).total_seconds() for status in STATUSES},
        "stretches": backfill_report.stretches(one.coverage),
        "problems": one.problems,
        "rejects": one.rejects[:JSON_ROWS],
        "conflict_rows": one.conflicts[:JSON_ROWS],
    }


def as_text(report: TradeBackfillReport) -> str:
    """What is complete, what is not, and why."""
    columns = {status: partial(_length, status) for status in STATUSES}
    return backfill_report.as_text(report, report.markets, columns, _lines, "trades")


def _length(status: str, one: MarketTradeBackfill) -> str:
    """1 day, 2:03:04; empty for none."""
    length = one.length(status)
    return str(timedelta(seconds=round(length.total_seconds()))) if length else ""


def _lines(one: MarketTradeBackfill) -> list[str]:
    market = safe(one.market)
    lines = problem_lines(one.market, one.problems)
    lines += [
        f"{market}: rejected {r.rule.value} ({r.field} {safe(r.value)})"
        for r in one.rejects[:SHOWN]
    ]
    lines += [
        f"{market}: conflict {c.time} {safe(c.trade_id)}: stored {c.kept}, received {c.value}"
        for c in one.conflicts[:SHOWN]
    ]
    if one.missing_ids:
        lines.append(
            f"{market}: {one.missing_ids:,} ids are missing where the exchange leaves none out; "
            "it was asked twice"
        )
    return lines


@contextmanager
def bars(session: Session) -> Iterator[TradeWatch | None]:
    """A progress bar for each market on stderr, with rate and time left, if somebody watches."""
    import sys

    if session.json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[trades]:,} trades", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )

    class Shown:
        def __init__(self) -> None:
            self.tasks: dict[str, Any] = {}
            self.trades: dict[str, int] = {}

        def begin(self, market: str, seconds: float) -> None:
            self.tasks[market] = progress.add_task(safe(market), total=seconds, trades=0)
            self.trades[market] = 0

        def advance(self, market: str, seconds: float, trades: int) -> None:
            self.trades[market] += trades
            progress.update(self.tasks[market], advance=seconds, trades=self.trades[market])

        def end(self, market: str) -> None:
            if market in self.tasks:
                progress.update(self.tasks[market], visible=False)

    with progress:
        yield Shown()
