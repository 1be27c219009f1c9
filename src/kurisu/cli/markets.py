"""`kurisu markets`: what markets there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kurisu.cli.command import Session, command
from kurisu.cli.output import table

if TYPE_CHECKING:
    from kurisu.store.markets import Market

app = typer.Typer(help="Markets in the database.", no_args_is_help=True)


def _as_dict(market: Market) -> dict[str, Any]:
    name = market.name
    return {
        "market": str(market),
        "exchange": name.exchange,
        "symbol": name.symbol,
        "type": name.type,
        "base": name.base,
        "quote": name.quote,
        "settle": name.settle,
        "active": market.active,
    }


@command(app, "list")
async def list_(
    session: Session,
    exchange: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this exchange's.", show_default=False)
    ] = None,
) -> None:
    """List markets by name."""
    async with session.open() as store:
        found = await store.markets.list(exchange)
    columns = ("market", "type", "base", "quote", "settle", "active")
    rows = [_as_dict(market) for market in found]
    if not rows and not session.json:
        where = f" of {exchange}" if exchange else ""
        session.note(f"No markets{where} yet; `kurisu candles import --market` creates them.")
        return
    session.result(rows, lambda: table(columns, [[row[key] for key in columns] for row in rows]))
