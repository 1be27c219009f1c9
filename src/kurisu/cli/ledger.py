"""`kurisu ledger`: what the ledger says, and how it is brought up to date."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Orders, fills, positions and balances of accounts and runs.", no_args_is_help=True
)
