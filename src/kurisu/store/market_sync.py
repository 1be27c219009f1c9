"""What an exchange lists -> the rows of `markets`.

A market that is new is added, one that differs is changed, one that is not listed any more becomes
inactive; none is ever deleted, because its candles and orders refer to it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.listing import MarketListing
from kurisu.domain.market import MarketName
from kurisu.domain.money import plain
from kurisu.schema import Market as MarketRow

#: Advisory lock of a transaction that synchronises markets, with a hash of the exchange's name:
#: two at once would report each other's changes.
SYNC_LOCK: Final = 1_264_939_596

#: Columns whose change is worth a line. `meta` has figures of the day on some exchanges.
RULES: Final = (
    "active", "exchange_symbol", "type", "settle_asset", "linear", "contract_size",
    "price_tick", "amount_tick", "price_precision", "amount_precision",
    "min_amount", "max_amount", "min_price", "max_price", "min_cost", "max_cost",
)  # fmt: skip

# Whether orders were counted with a market's terms. Parameters: market_id. Columns: exists.
HAS_ORDERS: Final = "SELECT EXISTS (SELECT 1 FROM orders WHERE market_id = :market_id)"

LOCK: Final = "SELECT pg_advisory_xact_lock(:lock, hashtext(:exchange))"


@dataclass(frozen=True, slots=True)
class MarketChange:
    """One column of a market that is no longer what it was. None: not said."""

    market: str
    field: str
    old: Any
    new: Any


@dataclass(slots=True)
class MarketSync:
    """What became of the markets of one exchange.

    listed: how many were looked at. added: new ones. described: known by name only until now,
        because candles of theirs were imported; their rules were filled in.
    changes: of rules and status, by market. unlisted: markets that are not listed any more and
        became inactive; each is among `changes`, too.
    skipped: (symbol, reason) of what cannot be stored; also of a contract size that orders were
        not counted with.
    """

    exchange: str
    listed: int = 0
    added: list[str] = field(default_factory=list)
    described: list[str] = field(default_factory=list)
    changes: list[MarketChange] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


async def sync(
    connection: AsyncConnection,
    exchange: str,
    listings: Sequence[MarketListing],
    *,
    listed_symbols: Collection[str],
    listed_types: Collection[str],
    chosen: Mapping[str, str],
) -> MarketSync:
    """Bring the rows of `exchange` in line with `listings`.

    listings: those to store. listed_symbols: everything that the exchange lists, stored or not.
    listed_types: types of which it lists anything; nothing becomes inactive for not being listed
        where a whole type is missing, which was then not asked for.
    chosen: columns and values that a market must have to be looked at (quote_asset, type).
    """
    await connection.execute(text(LOCK), {"lock": SYNC_LOCK, "exchange": exchange})
    names = ("id", "symbol", "base_asset", "quote_asset", "meta", *RULES)
    query = select(*(getattr(MarketRow, name) for name in names))
    rows = await connection.execute(query.where(MarketRow.exchange == exchange))
    known = {row["symbol"]: dict(row) for row in rows.mappings()}
    new: list[dict[str, Any]] = []
    report = MarketSync(exchange, listed=len(listings))
    for listing in sorted(listings, key=lambda one: one.symbol):
        columns = _columns(listing)
        stored = known.get(listing.symbol)
        if stored is None:
            report.added.append(str(listing.name))
            new.append(columns)
            continue
        kept, said = stored["contract_size"], columns["contract_size"]
        if kept not in {None, said} and await _has_orders(connection, stored["id"]):
            # It would count every old fill anew.
            columns["contract_size"] = kept
            report.skipped.append(
                (listing.symbol, f"contract_size {'none' if said is None else plain(said)}: "
                 f"the ledger has orders with {plain(kept)}, which stays")
            )  # fmt: skip
        found = _changes(listing.name, stored, columns)
        if stored["exchange_symbol"] is None:
            report.described.append(str(listing.name))
        else:
            report.changes += found
        if found or stored["meta"] != columns["meta"]:
            # What only `meta` says is no rule: updated_at tells when a rule changed.
            stamp = {"updated_at": func.now()} if found else {}
            await connection.execute(
                update(MarketRow).where(MarketRow.id == stored["id"]).values(**columns, **stamp)
            )
    if new:
        await connection.execute(insert(MarketRow), new)
    untold: Counter[str] = Counter()
    for symbol in sorted(known.keys() - listed_symbols):
        stored = known[symbol]
        is_meant = all(stored[column] == value for column, value in chosen.items())
        if not (stored["active"] and is_meant):
            continue
        if stored["type"] not in listed_types:
            untold[stored["type"]] += 1
            continue
        name = f"{exchange}:{symbol}"
        report.unlisted.append(name)
        report.changes.append(MarketChange(name, "active", old=True, new=False))
        await connection.execute(
            update(MarketRow)
            .where(MarketRow.id == stored["id"])
            .values(active=False, updated_at=func.now())
        )
    report.notes += [
        f"{count:,} stored markets were left as they are: the answer lists nothing of type {kind}"
        for kind, count in sorted(untold.items())
    ]
    return report


async def describe(connection: AsyncConnection, market_id: int, listing: MarketListing) -> None:
    """Fill in the rules of a market."""
    await connection.execute(
        update(MarketRow)
        .where(MarketRow.id == market_id)
        .values(**_columns(listing), updated_at=func.now())
    )


async def _has_orders(connection: AsyncConnection, market_id: int) -> bool:
    return bool(await connection.scalar(text(HAS_ORDERS), {"market_id": market_id}))


def _columns(listing: MarketListing) -> dict[str, Any]:
    name = listing.name
    return {
        "exchange": name.exchange,
        "symbol": name.symbol,
        "base_asset": name.base,
        "quote_asset": name.quote,
        # JSONB has no NUL character.
        "meta": json.loads(json.dumps(dict(listing.meta)).replace("\\u0000", "")),
        **{rule: getattr(listing, rule) for rule in RULES},
    }


def _changes(
    name: MarketName, stored: Mapping[str, Any], columns: Mapping[str, Any]
) -> list[MarketChange]:
    return [
        MarketChange(str(name), rule, stored[rule], columns[rule])
        for rule in RULES
        if stored[rule] != columns[rule]
    ]
