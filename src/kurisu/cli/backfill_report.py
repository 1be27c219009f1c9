"""What the reports of `candles backfill` and `trades backfill` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kurisu.cli.output import iso, safe, table

if TYPE_CHECKING:
    from kurisu.ingest.backfill import BackfillReport, MarketBackfill
    from kurisu.ingest.problems import Problem
    from kurisu.ingest.trade_backfill import MarketTradeBackfill, TradeBackfillReport
    from kurisu.store.coverage import Stretch

#: Markets, problems and rejected rows that the text report shows.
SHOWN: Final = 40
#: Rejected rows and stretches that --json lists of each market.
JSON_ROWS: Final = 1_000

M = TypeVar("M", "MarketBackfill", "MarketTradeBackfill")


def as_dict(
    report: BackfillReport | TradeBackfillReport, markets: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """For --json. markets: each as its own module says it."""
    return {
        "exchange": report.exchange,
        "done": report.is_done,
        "seconds": round(report.seconds, 3),
        "markets": markets,
        "notes": report.notes,
    }


def stretches(found: Sequence[Stretch]) -> list[dict[str, Any]]:
    """Those that are neither complete nor empty, for --json."""
    return [
        {"since": s.since, "until": s.until, "status": s.status, "reason": s.reason}
        for s in found
        if s.status not in ("complete", "empty")
    ][:JSON_ROWS]


def as_text(
    report: BackfillReport | TradeBackfillReport,
    markets: Sequence[M],
    columns: Mapping[str, Callable[[M], Any]],
    lines: Callable[[M], list[str]],
    rows: str,
) -> str:
    """What is complete, what is not, and why.

    columns: of the table, after market, since, until and new; those behind `complete` are left
    out where they are empty. lines: about one market, below the table. rows: what they are.
    """
    cells: dict[str, Callable[[M], Any]] = {
        "market": lambda m: m.market,
        "since": lambda m: m.since,
        "until": lambda m: m.until,
        "new": lambda m: m.inserted,
        **columns,
    }
    sure = list(cells).index("complete")
    shown = [
        name
        for i, (name, cell) in enumerate(cells.items())
        if i <= sure or any(cell(m) for m in markets)
    ]
    ordered = sorted(markets, key=lambda m: m.is_done)[:SHOWN]
    picked = [[cells[name](m) for name in shown] for m in ordered]
    found = table(shown, picked, right=set(shown[3:])).splitlines()
    if len(markets) > SHOWN:
        found.append(f"and {len(markets) - SHOWN:,} more markets (--json lists all)")
    for one in markets:
        found += lines(one)
    found += [f"note: {safe(note)}" for note in report.notes]
    new = sum(m.inserted for m in markets)
    rate = f", {new / report.seconds:,.0f}/s" if new and report.seconds else ""
    done = sum(m.is_done for m in markets)
    found.append(
        f"{done:,} of {len(markets):,} markets done: {new:,} new {rows} in "
        f"{report.seconds:.1f} s{rate}"
    )
    return "\n".join(found)


def problem_lines(market: str, problems: Sequence[Problem], shown: int = SHOWN) -> list[str]:
    """Why something is missing."""
    name = safe(market)
    lines = [
        f"{name}: {p.status} {iso(p.since)} to {iso(p.until)}: {safe(p.reason)}"
        for p in problems[:shown]
    ]
    if len(problems) > shown:
        lines.append(f"{name}: and {len(problems) - shown:,} more (--json)")
    return lines
