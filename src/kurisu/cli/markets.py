"""`kurisu markets`: what markets there are, and their rules as the exchanges list them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kurisu.cli.command import Session, command
from kurisu.cli.output import cell, safe, table
from kurisu.errors import ExchangeError, InvalidArgument

if TYPE_CHECKING:
    from kurisu.store.market_sync import MarketSync
    from kurisu.store.markets import Market
    from kurisu.store.store import Store

app = typer.Typer(help="Markets in the database.", no_args_is_help=True)

#: Lines of each kind that the text report of a synchronisation shows.
SHOWN: Final = 40

QuoteOption = Annotated[
    str | None,
    typer.Option(metavar="ASSET", help="Only markets priced in it, e.g. USDT.", show_default=False),
]
TypeOption = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE", help="Only spot, margin, swap, future or option.", show_default=False
    ),
]


def _as_dict(market: Market) -> dict[str, Any]:
    name = market.name
    return {
        "market": str(market),
        "exchange": name.exchange,
        "symbol": name.symbol,
        "exchange_symbol": market.exchange_symbol,
        "type": market.type,
        "base": name.base,
        "quote": name.quote,
        "settle": market.settle_asset,
        "linear": market.linear,
        "contract_size": market.contract_size,
        "active": market.active,
        "price_tick": market.price_tick,
        "amount_tick": market.amount_tick,
        "price_precision": market.price_precision,
        "amount_precision": market.amount_precision,
        "min_amount": market.min_amount,
        "max_amount": market.max_amount,
        "min_price": market.min_price,
        "max_price": market.max_price,
        "min_cost": market.min_cost,
        "max_cost": market.max_cost,
        "trade_id_space": market.trade_id_space,
    }


def check_type(given: str | None) -> None:
    """Raises InvalidArgument if there is no such type of market."""
    from kurisu.domain.market import MARKET_TYPES

    if given is not None and given not in MARKET_TYPES:
        raise InvalidArgument(f"--type {given} is none of {', '.join(MARKET_TYPES)}.")


@command(app, "list")
async def list_(
    session: Session,
    exchange: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this exchange's.", show_default=False)
    ] = None,
    quote: QuoteOption = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="ASSET", help="Only markets that trade it.", show_default=False),
    ] = None,
    type: TypeOption = None,  # noqa: A002  # becomes --type
    active: Annotated[
        bool | None,
        typer.Option("--active/--inactive", help="Only those traded now, or only the others."),
    ] = None,
) -> None:
    """List markets by name; --json has every rule of theirs."""
    check_type(type)
    async with session.open() as store:
        found = await store.markets.list(exchange, quote=quote, base=base, type=type, active=active)
    columns = (
        "market", "type", "base", "quote", "settle", "active", "price_tick", "amount_tick",
        "min_amount", "min_cost",
    )  # fmt: skip
    rows = [_as_dict(market) for market in found]
    if not rows and not session.json:
        narrowed = [f"--{key} {value}" for key, value in
                    (("exchange", exchange), ("quote", quote), ("base", base), ("type", type))
                    if value]  # fmt: skip
        narrowed += [] if active is None else ["--active" if active else "--inactive"]
        where = f" with {' '.join(narrowed)}" if narrowed else ""
        session.note(
            f"No markets{where}: `kurisu markets list` shows all, `kurisu markets sync EXCHANGE` "
            "adds what it lists."
            if where
            else "No markets yet; `kurisu markets sync EXCHANGE` or importing candles creates them."
        )
        return
    numbers = {"price_tick", "amount_tick", "min_amount", "min_cost"}
    session.result(
        rows, lambda: table(columns, [[row[key] for key in columns] for row in rows], numbers)
    )


@command(app, "sync")
async def sync(
    session: Session,
    exchanges: Annotated[
        list[str],
        typer.Argument(
            metavar="EXCHANGE...", help="CCXT's ids, or names of [exchanges.NAME] in kurisu.toml."
        ),
    ],
    quote: QuoteOption = None,
    type: TypeOption = None,  # noqa: A002  # becomes --type
) -> int:
    """Fill the markets from what exchanges list: steps, limits, contract sizes, status.

    Markets that are not listed any more become inactive; none is deleted. What changed since the
    last time is reported; a second run reports nothing. Exit code 1 if an exchange could not be
    asked; the others are stored all the same.
    """
    import asyncio

    check_type(type)
    names = list(dict.fromkeys(exchanges))
    async with session.open() as store:
        with session.working(f"asking {', '.join(names)}"):
            found = await asyncio.gather(*(_sync_one(store, name, quote, type) for name in names))
    if len(names) == 1 and isinstance(found[0], ExchangeError):
        raise found[0]
    failures = [one for one in found if isinstance(one, ExchangeError)]
    reports = [one for one in found if not isinstance(one, ExchangeError)]
    shown = [
        {"exchange": one.exchange, "error": one.__class__.__name__, "message": str(one)}
        if isinstance(one, ExchangeError)
        else _sync_dict(one)
        for one in found
    ]
    session.result(
        shown if len(names) > 1 else shown[0], "\n".join(_sync_text(one) for one in reports)
    )
    if not session.json:
        for failure in failures:
            session.note(f"kurisu: {failure}")
    return 1 if failures else 0


async def _sync_one(
    store: Store, name: str, quote: str | None, kind: str | None
) -> MarketSync | ExchangeError:
    from kurisu.exchange.configured import open_configured
    from kurisu.ingest.market_sync import sync_markets

    try:
        async with open_configured(store.config, name) as exchange:
            return await sync_markets(store, exchange, quote=quote, type=kind)
    except ExchangeError as error:
        return error


def _sync_dict(report: MarketSync) -> dict[str, Any]:
    return {
        "exchange": report.exchange,
        "listed": report.listed,
        "added": report.added,
        "described": report.described,
        "changes": report.changes,
        "unlisted": report.unlisted,
        "skipped": [{"symbol": symbol, "reason": reason} for symbol, reason in report.skipped],
        "notes": report.notes,
    }


def _sync_text(report: MarketSync) -> str:
    counts = [f"{len(report.added):,} added"]
    if report.described:
        counts.append(f"{len(report.described):,} described for the first time")
    changed = len({change.market for change in report.changes})
    counts.append(f"{changed:,} changed")
    if report.unlisted:
        counts.append(f"{len(report.unlisted):,} not listed any more")
    lines = [f"{safe(report.exchange)}: {report.listed:,} markets, {', '.join(counts)}"]
    changes = [
        (change.market, change.field, _said(change.old), "->", _said(change.new))
        for change in report.changes[:SHOWN]
    ]
    if changes:
        lines += _indented(table(("market", "what", "old", "", "new"), changes))
    if len(report.changes) > SHOWN:
        lines.append(f"  and {len(report.changes) - SHOWN:,} more changes (--json lists all)")
    lines += [f"  note: {safe(note)}" for note in report.notes[:SHOWN]]
    if report.skipped:
        lines.append(f"  {len(report.skipped):,} cannot be stored:")
        lines += [f"    {safe(s)}: {safe(reason)}" for s, reason in report.skipped[:SHOWN]]
        if len(report.skipped) > SHOWN:
            lines.append(f"    and {len(report.skipped) - SHOWN:,} more (--json lists all)")
    return "\n".join(lines)


def _said(value: Any) -> str:
    return "none" if value is None else cell(value)


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
