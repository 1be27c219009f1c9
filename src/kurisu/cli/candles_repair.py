"""`kurisu candles repair`: holes filled, and a sample compared with the exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kurisu.cli.backfill_report import JSON_ROWS, problem_lines
from kurisu.cli.candles_backfill import bars
from kurisu.cli.command import (
    AllowExpiringOption,
    Session,
    SinceOption,
    UntilOption,
    command,
    parse_range,
)
from kurisu.cli.output import iso, safe, table
from kurisu.errors import ExchangeError, InvalidArgument, NotOffered

if TYPE_CHECKING:
    from kurisu.ingest.repair import Difference, MarketRepair
    from kurisu.store.store import Store

#: Differences and problems of a market that the text report shows.
SHOWN: Final = 20


def add_to(app: typer.Typer) -> None:
    """Make it a command of `app`."""
    command(app, "repair")(repair)


async def repair(
    session: Session,
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EXCHANGE[:SYMBOL]...", help="E.g. binance, kraken:BTC/USD; all if not given."
        ),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    timeframe: Annotated[
        str | None, typer.Option(metavar="TIMEFRAME", help="Only this one.", show_default=False)
    ] = None,
    sample: Annotated[
        int, typer.Option(metavar="N", help="Stored candles of each market to compare; 0: none.")
    ] = 1_000,
    empty: Annotated[
        bool,
        typer.Option("--empty", help="Ask again for all that is known as empty, not for a sample."),
    ] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Store candles that differ as the exchange has them.")
    ] = False,
    allow_expiring: AllowExpiringOption = False,
) -> int:
    """Ask again for every hole of what is stored, and compare a sample with the exchange.

    A hole is what is missing between the first and the last known bar, an outage, a failed fetch,
    or a candle that somebody deleted. Of the stretches that the exchange said were empty a sample
    is asked for again, with --empty all of them; candles that come there are stored. Candles that
    differ are only reported, unless --apply says to store them; what they were stays in
    candle_revisions. Nothing is ever deleted.

    Exit code 1 if a hole is left, a candle differs, or an exchange could not be asked.
    """
    from kurisu.domain.timeframe import timeframe as timeframe_of

    frame = None if timeframe is None else timeframe_of(timeframe)
    first, end = parse_range(since, until)
    if sample < 0:
        raise InvalidArgument(f"--sample is {sample}; it has to be 0 or more.")
    reports: list[MarketRepair] = []
    failures: list[ExchangeError] = []
    async with session.open() as store:
        chosen = await _targets(store, targets or [])
        with bars(session, "candles") as watch:
            for exchange, symbols in chosen.items():
                from kurisu.exchange.configured import open_configured
                from kurisu.ingest.repair import chosen_series
                from kurisu.ingest.repair import repair as repair_market

                series = await chosen_series(store, exchange, symbols, frame)
                if not series:
                    continue
                try:
                    async with open_configured(store.config, exchange) as opened:
                        reports += [
                            await repair_market(
                                store, opened, market, one, first, end,
                                sample=sample, empty=empty, apply=apply,
                                allow_expiring=allow_expiring, watch=watch,
                            )
                            for market, one in series
                        ]  # fmt: skip
                except NotOffered as error:
                    if targets:
                        raise
                    # Candles of files may have any exchange's name.
                    session.note(f"{exchange} is left out: {error.reason}")
                except ExchangeError as error:
                    failures.append(error)
    session.result(
        {
            "whole": not failures and all(one.is_whole for one in reports),
            "markets": [_as_dict(one) for one in reports],
            "errors": [
                {"error": type(one).__name__, "exchange": one.exchange, "message": str(one)}
                for one in failures
            ],
        },
        lambda: _as_text(reports) if reports else "" if failures else _nothing(targets),
    )
    if not session.json:
        for failure in failures:
            session.note(f"kurisu: {failure}")
    return 1 if failures or not all(one.is_whole for one in reports) else 0


async def _targets(store: Store, given: list[str]) -> dict[str, list[str]]:
    """Symbols by exchange; none for all of an exchange."""
    if not given:
        return {name: [] for name in sorted({m.exchange for m in await store.markets.list()})}
    whole = {one for one in given if ":" not in one}
    chosen: dict[str, list[str]] = {one: [] for one in given if one in whole}
    for one in given:
        exchange, _, symbol = one.partition(":")
        if exchange not in whole:
            chosen.setdefault(exchange, []).append(symbol)
    return chosen


def _as_dict(one: MarketRepair) -> dict[str, Any]:
    after = one.backfill
    return {
        "market": one.market,
        "timeframe": one.timeframe,
        "whole": one.is_whole,
        "empty_asked": one.asked_empty,
        "empty_untrue": one.untrue,
        "holes": one.holes,
        "deleted": one.deleted,
        "filled": 0 if after is None else after.inserted,
        "bars": None if after is None else after.bars,
        "problems": [] if after is None else after.problems,
        "compared": one.compared,
        "different": len(one.differences),
        "differences": one.differences[:JSON_ROWS],
        "revised": one.revised,
        "problem": one.problem,
    }


def _nothing(targets: list[str] | None) -> str:
    return f"Nothing is stored of {safe(', '.join(targets))}." if targets else "Nothing is stored."


def _as_text(reports: list[MarketRepair]) -> str:
    headers = ("market", "tf", "empty", "untrue", "holes", "filled", "left", "compared",
               "different", "revised")  # fmt: skip
    rows = [
        (
            one.market, one.timeframe, one.asked_empty, one.untrue, one.holes,
            0 if one.backfill is None else one.backfill.inserted, _left(one),
            one.compared, len(one.differences), one.revised,
        )
        for one in reports
    ]  # fmt: skip
    lines = [table(headers, rows, right=set(headers[2:]))]
    for one in reports:
        if one.backfill is not None:
            lines += problem_lines(one.market, one.backfill.problems, SHOWN)
        if one.problem is not None:
            lines.append(f"{safe(one.market)}: not all could be compared: {safe(one.problem)}")
        lines += [f"{safe(one.market)}: {_difference(d)}" for d in one.differences[:SHOWN]]
        if len(one.differences) > SHOWN:
            lines.append(f"{safe(one.market)}: and {len(one.differences) - SHOWN:,} more (--json)")
    if any(len(one.differences) > one.revised for one in reports):
        lines.append("--apply stores what differs as the exchange has it")
    return "\n".join(lines)


def _left(one: MarketRepair) -> int:
    """Bars of the holes that are still neither complete nor empty."""
    if one.backfill is None:
        return 0
    return sum(one.backfill.bars[status] for status in ("missing", "outage", "failed"))


def _difference(one: Difference) -> str:
    if one.stored is None:
        return f"{iso(one.time)} is not stored, the exchange has {_numbers(one.exchange)}"
    if one.exchange is None:
        return f"{iso(one.time)} is stored, the exchange has no candle there"
    return f"{iso(one.time)} stored {_numbers(one.stored)}, exchange {_numbers(one.exchange)}"


def _numbers(given: Any) -> str:
    from kurisu.cli.output import cell

    return " ".join(cell(value) for value in given)
