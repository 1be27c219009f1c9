"""`kurisu trades`: public trades, tick by tick."""

from __future__ import annotations

import typer

from kurisu.cli import trades_backfill, trades_import

app = typer.Typer(
    help="Public trades: fetch, import, look, export, make candles.", no_args_is_help=True
)
trades_import.add_to(app)
trades_backfill.add_to(app)
