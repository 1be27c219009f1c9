"""`kurisu trades`: public trades, tick by tick (import and backfill stand beside)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kurisu.cli import trades_backfill, trades_import
from kurisu.cli.candles import NUMBERS, in_range
from kurisu.cli.command import (
    AllowExpiringOption,
    OneMarketArgument,
    OneMarketOption,
    Session,
    TradesSinceOption,
    UntilOption,
    command,
    find_market,
    one_market,
    parse_range,
)
from kurisu.cli.output import iso, safe, table
from kurisu.cli.output_file import (
    Float64Option,
    FormatOption,
    OutputOption,
    export_format,
    opened,
)

if TYPE_CHECKING:
    from kurisu.domain.candle import Candle
    from kurisu.ingest.trade_candles import Difference, TradeCandlesReport

app = typer.Typer(
    help="Public trades: fetch, import, look, export, make candles.", no_args_is_help=True
)
trades_import.add_to(app)
trades_backfill.add_to(app)

#: Differences that the text report shows.
SHOWN: Final = 20


@command(app, "show")
async def show(
    session: Session,
    name: OneMarketArgument = None,
    market: OneMarketOption = None,
    since: TradesSinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Trades to show at most.")] = 20,
) -> None:
    """Show trades: the newest, or with --since the first from there on."""
    wanted = one_market(name, market)
    first, end = parse_range(since, until)
    async with session.open() as store:
        found = await find_market(store, wanted)
        space = await store.trades.id_space(found)
        if first is not None:
            trades = await store.trades.read(found, first, end, limit=limit)
        else:
            trades = await store.trades.latest(found, limit, until=end)
    rows = trades.table.to_pylist()
    if not rows and not session.json:
        session.note(f"No trades of {found}{in_range(first, end)}.")
        return
    headers = [
        name
        for name in trades.table.column_names
        if name != "taker_or_maker" or any(row[name] for row in rows)
    ]
    session.result(
        {"market": str(found), "id_space": space, "trades": rows},
        lambda: table(
            headers,
            [[row[name] for name in headers] for row in rows],
            right={"price", "amount", "cost"},
        ),
    )


@command(app, "export")
async def export(
    session: Session,
    name: OneMarketArgument = None,
    market: OneMarketOption = None,
    since: TradesSinceOption = None,
    until: UntilOption = None,
    output: OutputOption = None,
    format_: FormatOption = None,
    float64: Float64Option = False,
) -> None:
    """Export trades, exactly, to CSV, Parquet or Feather; ranges of any size."""
    from kurisu.report import trade_export

    wanted = one_market(name, market)
    first, end = parse_range(since, until)
    kind = export_format(format_, output, float64=float64, json=session.json)
    count = 0
    with opened(output) as sink:
        async with session.open() as store:
            found = await find_market(store, wanted)
            space = await store.trades.id_space(found)
            with (
                session.working(f"writing trades of {found}"),
                trade_export.writer(kind, sink, float64=float64, id_space=space) as write,
            ):
                # Closed at once when nobody reads any more, and not when it is forgotten.
                async with contextlib.aclosing(store.trades.iterate(found, first, end)) as tables:
                    async for trades in tables:
                        write(trades)
                        count += len(trades)
    if not count:
        session.note(f"No trades of {found}{in_range(first, end)}.")
    if output is not None:
        data = {
            "market": str(found), "id_space": space, "file": output, "format": kind,
            "trades": count,
        }  # fmt: skip
        # What --id-space of an import may have to be told.
        ids = f" with {space} ids" if space else ""
        session.result(data, f"{count:,} trades{ids} in {safe(str(output))}")


@command(app, "coverage")
async def coverage(
    session: Session,
    name: OneMarketArgument = None,
    market: OneMarketOption = None,
    since: TradesSinceOption = None,
    until: UntilOption = None,
) -> None:
    """List stretches of time and what is known of their trades: complete, empty, failed and why.

    What no stretch speaks of was never asked for.
    """
    wanted = one_market(name, market)
    first, end = parse_range(since, until)
    async with session.open() as store:
        found = await find_market(store, wanted)
        stretches = await store.trades.coverage(found, first, end)
    if not stretches and not session.json:
        session.note(f"Nothing is known of the trades of {found}{in_range(first, end)}.")
        return
    headers = ("since", "until", "status", "source", "reason")
    rows = [(s.since, s.until, s.status, s.source, s.reason) for s in stretches]
    session.result([dict(zip(headers, row, strict=True)) for row in rows],
                   lambda: table(headers, rows))  # fmt: skip


@command(app, "to-candles")
async def to_candles(
    session: Session,
    name: OneMarketArgument = None,
    market: OneMarketOption = None,
    since: TradesSinceOption = None,
    until: UntilOption = None,
    write: Annotated[
        bool, typer.Option("--write", help="Store the candles that are missing.")
    ] = False,
    allow_expiring: AllowExpiringOption = False,
) -> int:
    """Build 1m candles from stored trades and compare them with the stored candles.

    Only minutes count whose trades are known to be complete. Minutes without trades give no
    candle. With --write candles are stored where there are none; stored ones are never changed.
    Volumes of contracts are in the unit that the exchange's candles have; where trades do not tell
    them, prices alone are compared.

    Exit code 1 if a stored candle says something else than the trades.
    """
    from kurisu.ingest.trade_candles import candles_from_trades

    wanted = one_market(name, market)
    first, end = parse_range(since, until)
    async with session.open() as store:
        found = await find_market(store, wanted)
        with session.working(f"building candles from trades of {found}"):
            report = await candles_from_trades(
                store, found, first, end, write=write, allow_expiring=allow_expiring
            )
    session.result(_as_dict(report), lambda: candles_text(report))
    return 0 if report.is_ok else 1


def _as_dict(report: TradeCandlesReport) -> dict[str, Any]:
    return {
        "market": report.market,
        "since": report.since,
        "until": report.until,
        "ok": report.is_ok,
        **_counts(report),
        "differences": [
            {"time": d.time, "stored": _bar(d.stored), "trades": _bar(d.made)}
            for d in report.differences
        ],
        "notes": report.notes,
    }


def _counts(report: TradeCandlesReport) -> dict[str, int]:
    names = ("minutes", "candles", "equal", "different", "missing", "unfounded", "unsure",
             "incomplete", "inserted")  # fmt: skip
    return {name: getattr(report, name) for name in names}


def _bar(candle: Candle | None) -> dict[str, Any] | None:
    return None if candle is None else {name: getattr(candle, name) for name in NUMBERS}


def candles_text(report: TradeCandlesReport) -> str:
    """What trades say of the candles, for people."""
    if report.since is None or report.until is None:
        return (
            f"nothing is known to be complete of the trades of {safe(report.market)}: "
            "`kurisu trades backfill` records it, and `kurisu trades import --complete`"
        )
    lines = [
        f"{safe(report.market)}, {iso(report.since)} to {iso(report.until)}: "
        f"{report.minutes:,} minutes whose trades are complete, {report.candles:,} with trades",
        f"  stored candles: {report.equal:,} equal, {report.different:,} different, "
        f"{report.missing:,} missing, {report.unfounded:,} without a trade",
    ]
    if report.unsure:
        lines.append(
            f"  {report.unsure:,} minutes begin or end with several prices in one millisecond, "
            "whose order nobody knows"
        )
    if report.incomplete:
        lines.append(f"  {report.incomplete:,} more minutes have trades that may not be all")
    if report.inserted:
        lines.append(f"  stored {report.inserted:,} candles")
    lines += [f"  note: {safe(note)}" for note in report.notes]
    contradictions = [one for one in report.differences if one.stored is not None]
    if contradictions:
        lines.append(_differences_table(contradictions[:SHOWN]))
        more = report.different + report.unfounded - min(SHOWN, len(contradictions))
        if more:
            lines.append(f"and {more:,} more (--json)")
    return "\n".join(lines)


def _differences_table(differences: Sequence[Difference]) -> str:
    rows: list[list[Any]] = []
    for one in differences:
        for label, candle in (("stored", one.stored), ("trades", one.made)):
            values = ["none", *[None] * (len(NUMBERS) - 1)] if candle is None else candle[1:6]
            rows.append([one.time, label, *values])
    return table(("time", "by", *NUMBERS), rows, right=set(NUMBERS))
