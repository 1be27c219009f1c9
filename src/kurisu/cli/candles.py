"""`kurisu candles`: look at, export and check candles (import stands in `candles_import`)."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kurisu.cli.command import (
    ManyMarketsArgument,
    ManyMarketsOption,
    OneExchangeOption,
    OneMarketArgument,
    OneMarketOption,
    Session,
    SinceOption,
    TimeframeOption,
    UntilOption,
    command,
    find_market,
    find_markets,
    one_market,
    parse_range,
)
from kurisu.cli.output import safe, table
from kurisu.cli.output_file import (
    Float64Option,
    FormatOption,
    OutputOption,
    export_format,
    opened,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from kurisu.domain.candle import Candle
    from kurisu.domain.timeframe import Timeframe
    from kurisu.report.terminal import Style
    from kurisu.store.candle_table import CandleTable
    from kurisu.store.coverage_read import Gap
    from kurisu.store.markets import Market
    from kurisu.store.store import Store
    from kurisu.store.verify import VerifyReport

app = typer.Typer(help="Candles: import, look at, export, check.", no_args_is_help=True)

NUMBERS = ("open", "high", "low", "close", "volume")


@command(app, "show")
async def show(
    session: Session,
    name: OneMarketArgument = None,
    market: OneMarketOption = None,
    timeframe: TimeframeOption = "1h",
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Bars to show at most.")] = 20,
    chart: Annotated[bool, typer.Option("--chart", help="Draw them, too.")] = False,
) -> None:
    """Show bars of any timeframe: the newest, or with --since the first from there on."""
    from kurisu.domain.timeframe import timeframe as timeframe_of

    wanted, frame = one_market(name, market), timeframe_of(timeframe)
    first, end = parse_range(since, until)
    async with session.open() as store:
        found = await find_market(store, wanted)
        bars, more = await _some(store, found, frame, first, end, limit)
    candles = list(bars.candles())
    if not candles and not session.json:
        session.note(f"No {frame} candles of {found}{in_range(first, end)}.")
        return
    data = {
        "market": str(found),
        "timeframe": frame.name,
        "sources": bars.sources,
        "candles": [_as_dict(candle) for candle in candles],
    }
    session.result(data, lambda: candle_table(candles))
    if chart and not session.json:
        print()
        print(draw(candles))
    if more:
        session.note(f"{more:,} more in that range (--limit).")


async def _some(
    store: Store,
    market: Market,
    frame: Timeframe,
    since: datetime | None,
    until: datetime | None,
    limit: int,
) -> tuple[CandleTable, int]:
    """The first `limit` bars from `since` on, else the newest ones; and how many more there are.

    How many there are before the newest ones nobody asked: that is 0.
    """
    from kurisu.store.candle_read import opens_between
    from kurisu.store.candle_table import CandleTable

    if since is not None:
        bars = await store.candles.read(market, frame, since, until)
        return CandleTable(bars.table.slice(0, limit)), max(0, len(bars) - limit)
    # Where the newest ones begin, so that not all have to be read.
    end = opens_between(frame, None, until)[1]
    visible = store.candles if until is None else store.candles.as_of(end)
    newest = await visible.latest([market], frame, limit)
    start = newest.column("time")[0].as_py() if newest.num_rows == limit else None
    bars = await store.candles.read(market, frame, start, until)
    return CandleTable(bars.table.slice(max(0, len(bars) - limit))), 0


def _as_dict(candle: Candle) -> dict[str, Any]:
    return {
        "time": candle.time,
        **{name: getattr(candle, name) for name in NUMBERS},
        "bars": candle.bars,
    }


def in_range(since: datetime | None, until: datetime | None) -> str:
    """Where nothing was found, after what was looked for."""
    return "" if since is None and until is None else " in that range"


def candle_table(candles: Sequence[Candle]) -> str:
    """Candles as an aligned table; `bars` only where there are any."""
    headers = ["time", *NUMBERS, "bars"]
    rows = [list(candle) for candle in candles]
    if all(candle.bars is None for candle in candles):
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    return table(headers, rows, right=set(headers[1:]))


def draw(candles: Sequence[Candle]) -> str:
    """The chart, as the terminal can show it."""
    from kurisu.report.terminal import chart

    return chart(candles, width=shutil.get_terminal_size().columns, style=terminal_style())


def terminal_style() -> Style:
    """Unicode and colour on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    from kurisu.report.terminal import Style

    is_rich = (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )
    can_encode = (sys.stdout.encoding or "").lower().startswith("utf")
    return Style(unicode=is_rich and can_encode, colour=is_rich)


@command(app, "export")
async def export(
    session: Session,
    name: OneMarketArgument = None,
    market: OneMarketOption = None,
    timeframe: TimeframeOption = "1m",
    since: SinceOption = None,
    until: UntilOption = None,
    output: OutputOption = None,
    format_: FormatOption = None,
    float64: Float64Option = False,
) -> None:
    """Export bars of any timeframe, exactly, to CSV, Parquet or Feather."""
    from kurisu.domain.timeframe import timeframe as timeframe_of
    from kurisu.report import candle_export

    wanted, frame = one_market(name, market), timeframe_of(timeframe)
    first, end = parse_range(since, until)
    kind = export_format(format_, output, float64=float64, json=session.json)
    with opened(output) as sink:
        async with session.open() as store:
            found = await find_market(store, wanted)
            with session.working(f"reading {frame} candles of {found}"):
                bars = await store.candles.read(found, frame, first, end)
        candle_export.write(bars, kind, sink, float64=float64)
    if not len(bars):
        session.note(f"No {frame} candles of {found}{in_range(first, end)}.")
    if output is not None:
        data = {
            "market": str(found), "timeframe": frame.name, "file": output, "format": kind,
            "candles": len(bars), "sources": bars.sources,
        }  # fmt: skip
        session.result(data, f"{len(bars):,} candles in {safe(str(output))}")


@command(app, "gaps")
async def gaps(
    session: Session,
    name: OneMarketArgument = None,
    market: OneMarketOption = None,
    timeframe: TimeframeOption = "1m",
    since: SinceOption = None,
    until: UntilOption = None,
) -> None:
    """List stretches without candles, and what is known about each.

    Where bars of the timeframe are derived, the gaps are those of the candles that they are made
    from.
    """
    from kurisu.domain.timeframe import timeframe as timeframe_of

    wanted, frame = one_market(name, market), timeframe_of(timeframe)
    first, end = parse_range(since, until)
    async with session.open() as store:
        found = await find_market(store, wanted)
        made_from = await store.candles.made_from(found, frame)
        holes = await store.candles.gaps(found, frame, first, end)
        # Without a hole: is everything there, or nothing at all?
        is_empty = not holes and not len(await store.candles.read(found, made_from, first, end))
    counts: Counter[str] = Counter(gap.status for gap in holes)
    bars: Counter[str] = Counter()
    for gap in holes:
        bars[gap.status] += gap.bars
    data = {
        "market": str(found),
        "timeframe": frame.name,
        "made_from": made_from.name,
        "gaps": holes,
        "summary": {key: {"gaps": counts[key], "bars": bars[key]} for key in sorted(counts)},
    }
    if made_from != frame:
        session.note(f"{frame} bars of {found} are made from {made_from}; the gaps of those:")
    if is_empty:
        session.result(data, "")
        session.note(f"No {made_from} candles of {found}{in_range(first, end)}.")
    else:
        session.result(data, lambda: gaps_text(holes, bars, made_from))


#: What a status means, after the number of bars.
MEANINGS = {
    "missing": "missing (never fetched)",
    "empty": "empty (the exchange had no trades)",
    "outage": "lost in an outage of the exchange",
    "failed": "not fetched: see the reason",
}


def gaps_text(holes: Sequence[Gap], bars: Mapping[str, int], frame: Timeframe) -> str:
    """Gaps as a table and a line that sums them up."""
    if not holes:
        return "no gaps"
    rows = [(gap.since, gap.until, gap.bars, gap.status, gap.reason) for gap in holes]
    headers = ("since", "until", "bars", "status", "reason")
    shown = len(headers) if any(gap.reason for gap in holes) else len(headers) - 1
    parts = [f"{count:,} {MEANINGS.get(status, status)}" for status, count in sorted(bars.items())]
    summary = f"{len(holes):,} gap{'' if len(holes) == 1 else 's'}; {frame} bars: "
    return "\n".join(
        [
            table(headers[:shown], [row[:shown] for row in rows], right={"bars"}),
            "",
            summary + ", ".join(parts),
        ]
    )


@command(app, "verify")
async def verify(
    session: Session,
    names: ManyMarketsArgument = None,
    market: ManyMarketsOption = None,
    exchange: OneExchangeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
) -> int:
    """Recompute every stored 5m to 1d bar from 1m; exit code 1 if a digit differs."""
    first, end = parse_range(since, until)
    async with session.open() as store:
        markets = await find_markets(store, names, market, exchange)
        with session.working("recomputing bars"):
            report = await store.candles.verify(markets, first, end)
    data = {
        "ok": report.ok,
        "checked": report.checked,
        "kept": report.kept,
        "different": report.different,
        "differences": [
            {
                "market": d.market, "timeframe": d.timeframe, "time": d.time,
                "stored": _bar(d.stored), "expected": _bar(d.expected),
            }
            for d in report.differences
        ],
    }  # fmt: skip
    session.result(data, lambda: verify_text(report))
    return 0 if report.ok else 1


def _bar(values: Sequence[Any] | None) -> dict[str, Any] | None:
    if values is None:
        return None
    return dict(zip((*NUMBERS, "bars"), values, strict=True))


def verify_text(report: VerifyReport) -> str:
    """What `verify` found, for people."""
    checked = ", ".join(f"{count:,} of {name}" for name, count in report.checked.items() if count)
    lines = [f"bars recomputed from 1m: {checked or 'none'}"]
    kept = sum(report.kept.values())
    if kept:
        lines.append(f"{kept:,} more are older than the candles that are kept")
    if report.ok and checked:
        lines.append("all are equal to the last digit")
    if report.ok:
        return "\n".join(lines)
    rows = []
    for found in report.differences:
        for label, values in (("stored", found.stored), ("expected", found.expected)):
            bar: list[Any] = list(values) if values is not None else ["none"]
            bar += [None] * (len(NUMBERS) + 1 - len(bar))
            rows.append([found.market, found.timeframe, found.time, label, *bar])
    headers = ("market", "timeframe", "time", "bar", *NUMBERS, "bars")
    lines += [table(headers, rows, right={*NUMBERS, "bars"}), f"{report.different:,} bars differ"]
    return "\n".join(lines)


@command(app, "latest")
async def latest(
    session: Session,
    names: ManyMarketsArgument = None,
    market: ManyMarketsOption = None,
    exchange: OneExchangeOption = None,
    timeframe: TimeframeOption = "1m",
    count: Annotated[int, typer.Option(min=1, help="Bars of each market.")] = 1,
) -> None:
    """Show the newest bars of many markets at once."""
    from kurisu.domain.timeframe import timeframe as timeframe_of

    frame = timeframe_of(timeframe)
    async with session.open() as store:
        found = await find_markets(store, names, market, exchange)
        bars = await store.candles.latest(found, frame, count)
    columns = [name for name in bars.column_names if name != "market_id"]
    rows = bars.select(columns).to_pylist()
    if not rows and not session.json:
        which = f" of {found[0]}" if len(found) == 1 else ""
        which = f" of {exchange}" if exchange else which
        session.note(f"No {frame} candles{which}: `kurisu markets list` shows what is there.")
        return
    session.result(
        {"timeframe": frame.name, "candles": rows},
        lambda: table(columns, [list(row.values()) for row in rows], right={*NUMBERS, "bars"}),
    )
