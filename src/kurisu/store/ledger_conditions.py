"""What does not add up now: candidates by SQL, and the core's word on each."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.ledger.events import RiskEvent
from kurisu.ledger.findings import conditions_of
from kurisu.ledger.intake import order_unknown
from kurisu.store.accounts import Account
from kurisu.store.connect import driver
from kurisu.store.ledger_intake import Scope, load
from kurisu.store.ledger_read import market_terms, terms_of
from kurisu.store.markets import Market

# Orders of ours about which something may not add up, and what is not ours, by market. Parameters:
# account_id, market_id or null.
CANDIDATES: Final = """
SELECT market_id, client_order_id, exchange_order_id FROM orders o
 WHERE account_id = :account_id AND (CAST(:market_id AS integer) IS NULL OR market_id = :market_id)
   AND ((facts #>> '{said,greatest_filled}')::numeric > filled
        OR (facts #>> '{said,amount,1}')::numeric <> (facts #>> '{placed,amount}')::numeric
        OR facts #> '{said,sides}' <> jsonb_build_array(side))
UNION
SELECT market_id, NULL, exchange_order_id FROM executions
 WHERE order_id IS NULL AND account_id = :account_id
   AND (CAST(:market_id AS integer) IS NULL OR market_id = :market_id)
UNION
SELECT market_id, client_order_id, exchange_order_id FROM waiting_orders
 WHERE account_id = :account_id AND (CAST(:market_id AS integer) IS NULL OR market_id = :market_id)
"""


async def conditions(
    connection: AsyncConnection, account: Account, market: Market | None
) -> list[tuple[Market, RiskEvent]]:
    """Conditions of an account's orders, by market."""
    values = {"account_id": account.id, "market_id": None if market is None else market.id}
    rows = (await connection.execute(text(CANDIDATES), values)).all()
    ids: dict[int, tuple[set[str], set[str]]] = {}
    for row in rows:
        clients, exchanges = ids.setdefault(row.market_id, (set(), set()))
        if row.client_order_id:
            clients.add(row.client_order_id)
        if row.exchange_order_id:
            exchanges.add(row.exchange_order_id)
    names = await market_terms(connection, ids)
    raw = await driver(connection)
    found: list[tuple[Market, RiskEvent]] = []
    for market_id, (clients, exchanges) in sorted(ids.items()):
        name, size = names[market_id]
        where = Market(market_id, name, active=True)
        scope = Scope(account.id, None, market_id, terms_of(name, size))
        loaded = await load(raw, scope, sorted(clients), sorted(exchanges))
        events: set[RiskEvent] = {order_unknown(record) for record in loaded.waiting_records}
        for record in loaded.records.values():
            events |= conditions_of(record)
        found += [(where, event) for event in sorted(events, key=_by_content)]
    return found


def _by_content(event: RiskEvent) -> tuple[Any, ...]:
    return (event.event_type.value, event.details)
