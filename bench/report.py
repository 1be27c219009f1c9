"""The report: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from bench.pairs import Figure


def print_table(engine: str, figures: Sequence[Figure]) -> None:
    """One engine's figures."""
    table = Table(title=engine, title_justify="left")
    for name in ("what", "against"):
        table.add_column(name)
    for name in ("ours", "theirs", "ratio", "of the pairs", "goal", "met"):
        table.add_column(name, justify="right", no_wrap=True)
    for figure in figures:
        table.add_row(
            figure.what,
            figure.against,
            _amount(figure.ours, figure),
            _amount(figure.theirs, figure),
            _ratio(figure.ratio, figure),
            f"{figure.low:.2f} .. {figure.high:.2f}" if figure.pairs else "",
            "" if figure.goal is None else _goal(figure.goal, figure),
            {None: "", True: "yes", False: "NO"}[figure.met],
        )
    # Wide enough for its columns where there is no terminal to say.
    console = Console()
    console.width = max(console.width, 150)
    console.print(table)


def _amount(value: float, figure: Figure) -> str:
    if figure.unit == "B/candle":
        return f"{value:.1f} B"
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value:.3f} s"


def _ratio(value: float, figure: Figure) -> str:
    return f"{value:.2f}x" if figure.better == "less" else f"{value:.0f}x faster"


def _goal(value: float, figure: Figure) -> str:
    return f"<= {value:g}x" if figure.better == "less" else f">= {value:g}x faster"


def as_json(engines: Mapping[str, Sequence[Figure]]) -> str:
    """{engine: [figure, ...]}; seconds or bytes per candle, as `unit` says."""
    return json.dumps(
        {
            engine: [{**asdict(figure), "met": figure.met} for figure in figures]
            for engine, figures in engines.items()
        },
        indent=2,
    )
