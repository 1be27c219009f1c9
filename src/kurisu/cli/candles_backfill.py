"""`kurisu candles backfill`: history of an exchange into the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kurisu.cli import backfill_report
from kurisu.cli.backfill_report import JSON_ROWS, SHOWN, problem_lines
from kurisu.cli.command import (
    AllowExpiringOption,
    ExchangeArgument,
    Session,
    SinceOption,
    TimeframeOption,
    UntilOption,
    command,
    exchange_and_symbols,
    parse_range,
)
from kurisu.cli.markets import check_type
from kurisu.cli.output import iso, safe
from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    from datetime import datetime

    from kurisu.domain.timeframe import Timeframe
    from kurisu.exchange.ccxt_adapter import CcxtExchange
    from kurisu.ingest.backfill import BackfillReport, MarketBackfill, Watch
    from kurisu.store.markets import Market
    from kurisu.store.store import Store


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
    since: SinceOption = None,
    until: UntilOption = None,
    timeframe: TimeframeOption = "1m",
    all_active: Annotated[
        bool, typer.Option("--all-active", help="Every market that is traded now.")
    ] = False,
    quote: Annotated[
        str | None,
        typer.Option(metavar="ASSET", help="With --all-active: only markets priced in it."),
    ] = None,
    type: Annotated[  # noqa: A002  # becomes --type
        str, typer.Option(metavar="TYPE", help="With --all-active: spot, swap, future, option.")
    ] = "spot",
    allow_expiring: AllowExpiringOption = False,
    queue: Annotated[
        bool,
        typer.Option("--queue", help="Put the work into the database for `kurisu worker` to do."),
    ] = False,
) -> int:
    """Fetch the candles of a range that are not stored yet.

    Only what is not known is asked for: a second run asks for nothing that is complete or that the
    exchange confirmed to be empty; outages and failures are asked for again. It can be stopped at
    any time and goes on where it was. Without --since it goes on from the first bar that is known;
    without --until up to the newest closed candle.

    Exit code 1 if something is neither complete nor empty in the end.
    """
    from kurisu.domain.timeframe import timeframe as timeframe_of
    from kurisu.exchange.configured import open_configured
    from kurisu.ingest.backfill import run_backfill
    from kurisu.ingest.collector import quiet_collector

    frame = timeframe_of(timeframe)
    first, end = parse_range(since, until)
    check_type(type)
    exchange, symbols = exchange_and_symbols(exchange, symbols)
    if bool(symbols) == all_active:
        raise InvalidArgument("name symbols, e.g. BTC/USDT, or say --all-active.")
    if quote is not None and not all_active:
        raise InvalidArgument("--quote chooses among --all-active.")
    async with session.open() as store, open_configured(store.config, exchange) as opened:
        with session.working(f"asking {exchange} for its markets"):
            markets = await _chosen(store, opened, symbols, quote, type)
        if queue:
            return await _queue(session, store, opened, markets, frame, first, end, allow_expiring)
        quiet_collector()
        with bars(session, "candles") as watch:
            report = await run_backfill(
                store, opened, markets, frame, first, end,
                allow_expiring=allow_expiring, watch=watch,
            )  # fmt: skip
    session.result(as_dict(report), lambda: as_text(report))
    return 0 if report.is_done else 1


async def _queue(
    session: Session,
    store: Store,
    exchange: CcxtExchange,
    markets: Sequence[Market],
    frame: Timeframe,
    since: datetime | None,
    until: datetime | None,
    allow_expiring: bool,
) -> int:
    from kurisu.ingest.worker import queue_backfill

    with session.working("cutting it into pieces"):
        done = await queue_backfill(
            store, exchange, markets, frame, since, until, allow_expiring=allow_expiring
        )
    waiting = done.pieces - done.new
    text = f"{done.new:,} pieces put into the queue"
    text += f", {waiting:,} were there already" if waiting else ""
    text += "; `kurisu worker` does them" if done.pieces else ": nothing is missing"
    session.result(done, text)
    return 0


async def _chosen(
    store: Store,
    exchange: CcxtExchange,
    symbols: Sequence[str] | None,
    quote: str | None,
    kind: str,
) -> list[Market]:
    from kurisu.ingest.backfill import active_markets, named_markets

    if symbols:
        return await named_markets(store, exchange, symbols)
    found = await active_markets(store, exchange, quote=quote, type=kind)
    if not found:
        priced = f" priced in {quote}" if quote else ""
        raise InvalidArgument(f"{exchange.name} has no active {kind} markets{priced}.")
    return found


def as_dict(report: BackfillReport) -> dict[str, Any]:
    """For --json. `stretches` are those that are neither complete nor empty."""
    found = backfill_report.as_dict(report, [_market_dict(one) for one in report.markets])
    return {"exchange": report.exchange, "timeframe": report.timeframe, **found}


def _market_dict(one: MarketBackfill) -> dict[str, Any]:
    return {
        "market": one.market,
        "since": one.since,
        "until": one.until,
        "done": one.is_done,
        "requested": one.requested,
        "fetched": one.fetched,
        "inserted": one.inserted,
        "updated": one.updated,
        "unchanged": one.unchanged,
        "rejected": len(one.rejects),
        "bars": one.bars,
        "stretches": backfill_report.stretches(one.left),
        "problems": one.problems,
        "rejects": one.rejects[:JSON_ROWS],
    }


def as_text(report: BackfillReport) -> str:
    """What is complete, what is not, and why."""
    from kurisu.ingest.backfill import STATUSES

    columns: dict[str, Callable[[MarketBackfill], Any]] = {
        "revised": lambda m: m.updated,
        **{status: partial(_bars, status) for status in STATUSES},
    }
    return backfill_report.as_text(report, report.markets, columns, _lines, "candles")


def _bars(status: str, one: MarketBackfill) -> int:
    return one.bars[status]


def _lines(one: MarketBackfill) -> list[str]:
    missing = [s for s in one.left if s.status == "missing"]
    return [
        *problem_lines(one.market, one.problems),
        *(f"{safe(one.market)}: missing {iso(s.since)} to {iso(s.until)}" for s in missing[:SHOWN]),
    ]


@contextmanager
def bars(session: Session, unit: str) -> Iterator[Watch | None]:
    """A progress bar for each market on stderr, with rate and time left, if somebody watches."""
    import sys

    if session.json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "")

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )

    class Shown:
        def __init__(self) -> None:
            self.tasks: dict[str, Any] = {}
            self.total = progress.add_task("all", total=0)

        def begin(self, market: str, bars: int) -> None:
            self.tasks[market] = progress.add_task(safe(market), total=bars, visible=bars > 0)
            known = progress.tasks[0].total or 0
            progress.update(self.total, total=known + bars)

        def advance(self, market: str, bars: int) -> None:
            progress.advance(self.tasks[market], bars)
            progress.advance(self.total, bars)

        def end(self, market: str) -> None:
            if market in self.tasks:
                progress.update(self.tasks[market], visible=False)

    with progress:
        yield Shown()
