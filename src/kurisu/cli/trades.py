"""`kurisu trades`: public trades, tick by tick."""

from __future__ import annotations

import typer

from kurisu.cli import trades_backfill

app = typer.Typer(help="Public trades: fetch, look, export, make candles.", no_args_is_help=True)
trades_backfill.add_to(app)
