"""What is no fill: entries, what exchanges report, how far accounts were read, risk events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.balance import Balance, Entry, EntryKind
from kurisu.errors import LedgerRuleBroken
from kurisu.ledger.events import RiskEvent
from kurisu.store.ledger_intake import fingerprint
from kurisu.store.ledger_values import Cursor, EntryRow, ReportedBalance

# An entry that is not there yet. Parameters: the columns. Returns its id, or nothing.
INSERT_ENTRY: Final = """
INSERT INTO ledger_entries (account_id, strategy_run_id, time, kind, asset, amount, reference, note)
VALUES (:account_id, :run_id, :time, :kind, :asset, :amount, :reference, :note)
ON CONFLICT (account_id, strategy_run_id, kind, asset, reference) WHERE reference IS NOT NULL
DO NOTHING RETURNING id
"""

# The entry of a reference. Parameters: account_id, run_id, kind, asset, reference.
ENTRY_OF_REFERENCE: Final = """
SELECT amount, time FROM ledger_entries
 WHERE account_id IS NOT DISTINCT FROM :account_id AND strategy_run_id IS NOT DISTINCT FROM :run_id
   AND kind = :kind AND asset = :asset AND reference = :reference
"""

# Parameters: account_id, run_id, since, until; each null for all.
ENTRIES: Final = """
SELECT id, account_id, strategy_run_id, time, kind, asset, amount, reference, note
  FROM ledger_entries
 WHERE (CAST(:account_id AS integer) IS NULL OR account_id = :account_id)
   AND (CAST(:run_id AS bigint) IS NULL OR strategy_run_id = :run_id)
   AND (CAST(:since AS timestamptz) IS NULL OR time >= :since)
   AND (CAST(:until AS timestamptz) IS NULL OR time < :until)
 ORDER BY time, id
"""

# A cursor never moves back. Parameters: the columns.
MOVE_CURSOR: Final = """
INSERT INTO sync_cursors AS c (account_id, market_id, kind, until, details)
VALUES (:account_id, :market_id, :kind, :until, CAST(:details AS jsonb))
ON CONFLICT (account_id, market_id, kind) DO UPDATE
   SET until = excluded.until, details = excluded.details, updated_at = now()
 WHERE c.until <= excluded.until
"""

# Parameters: account_id, market_id or null, kind.
CURSOR: Final = """
SELECT until, details FROM sync_cursors
 WHERE account_id = :account_id AND kind = :kind
   AND market_id IS NOT DISTINCT FROM CAST(:market_id AS integer)
"""

# What an exchange says at a time; said twice, the later word counts. Parameters: the columns.
REPORT_BALANCE: Final = """
INSERT INTO reported_balances (account_id, time, asset, total, used)
VALUES (:account_id, :time, :asset, :total, :used)
ON CONFLICT (account_id, time, asset) DO UPDATE SET total = excluded.total, used = excluded.used
"""

# The last report not later than a time. Parameters: account_id, at or null.
REPORTED_BALANCES: Final = """
SELECT time, asset, total, used FROM reported_balances
 WHERE account_id = :account_id
   AND time = (SELECT max(time) FROM reported_balances
                WHERE account_id = :account_id
                  AND (CAST(:at AS timestamptz) IS NULL OR time <= :at))
 ORDER BY asset
"""

# Parameters: the columns. Returns nothing if the same event is there.
RAISE_EVENT: Final = """
INSERT INTO risk_events (account_id, market_id, strategy_id, strategy_run_id, event_type, severity,
                         details, fingerprint)
VALUES (:account_id, :market_id, (SELECT strategy_id FROM strategy_runs WHERE id = :run_id),
        :run_id, :event_type, :severity, CAST(:details AS jsonb), :fingerprint)
ON CONFLICT (fingerprint) DO NOTHING RETURNING id
"""


async def enter(
    connection: AsyncConnection,
    account_id: int | None,
    run_id: int | None,
    entries: Iterable[Entry],
) -> int:
    """Store entries; returns how many were new. Raises LedgerRuleBroken."""
    new = 0
    for entry in entries:
        values = {
            "account_id": account_id,
            "run_id": run_id,
            "time": entry.time,
            "kind": entry.kind.value,
            "asset": entry.asset,
            "amount": entry.amount,
            "reference": entry.reference,
            "note": entry.note,
        }
        if (await connection.execute(text(INSERT_ENTRY), values)).first() is not None:
            new += 1
            continue
        there = (await connection.execute(text(ENTRY_OF_REFERENCE), values)).first()
        if there is not None and there.amount != entry.amount:
            raise LedgerRuleBroken(
                "entry_reference_names_one_entry",
                f"{entry.kind} {entry.reference!r} of {entry.asset}: {there.amount} is there, "
                f"{entry.amount} was given",
            )
    return new


async def entries(
    connection: AsyncConnection,
    account_id: int | None,
    run_id: int | None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[EntryRow]:
    """Entries by time."""
    values = {"account_id": account_id, "run_id": run_id, "since": since, "until": until}
    rows = await connection.execute(text(ENTRIES), values)
    return [
        EntryRow(
            row.id,
            row.account_id,
            row.strategy_run_id,
            Entry(EntryKind(row.kind), row.asset, row.amount, row.time, row.reference, row.note),
        )
        for row in rows
    ]


async def move_cursor(
    connection: AsyncConnection,
    account_id: int,
    market_id: int | None,
    kind: str,
    until: datetime,
    details: Mapping[str, Any] | None,
) -> None:
    """Everything of `kind` before `until` is stored."""
    values = {
        "account_id": account_id,
        "market_id": market_id,
        "kind": kind,
        "until": until,
        "details": json.dumps(dict(details or {})),
    }
    await connection.execute(text(MOVE_CURSOR), values)


async def cursor(
    connection: AsyncConnection, account_id: int, market_id: int | None, kind: str
) -> Cursor | None:
    """How far `kind` was read."""
    values = {"account_id": account_id, "market_id": market_id, "kind": kind}
    row = (await connection.execute(text(CURSOR), values)).first()
    return None if row is None else Cursor(row.until, row.details)


async def report_balances(
    connection: AsyncConnection, account_id: int, time: datetime, balances: Sequence[Balance]
) -> None:
    """What an exchange says."""
    rows = [
        {
            "account_id": account_id,
            "time": time,
            "asset": balance.asset,
            "total": balance.total,
            "used": balance.used,
        }
        for balance in balances
    ]
    if rows:
        await connection.execute(text(REPORT_BALANCE), rows)


async def reported_balances(
    connection: AsyncConnection, account_id: int, at: datetime | None
) -> list[ReportedBalance]:
    """What an exchange last said, by asset."""
    rows = await connection.execute(text(REPORTED_BALANCES), {"account_id": account_id, "at": at})
    return [ReportedBalance(row.time, Balance(row.asset, row.total, row.used)) for row in rows]


async def raise_event(
    connection: AsyncConnection,
    event: RiskEvent,
    account_id: int | None,
    market_id: int | None,
    run_id: int | None,
) -> bool:
    """Store a risk event; False if it is there."""
    scope = f"{account_id}/{run_id if account_id is None else ''}/{market_id}"
    values = {
        "account_id": account_id,
        "market_id": market_id,
        "run_id": run_id,
        "event_type": event.event_type.value,
        "severity": event.severity.value,
        "details": json.dumps(dict(event.as_json)),
        "fingerprint": fingerprint(scope, event),
    }
    return (await connection.execute(text(RAISE_EVENT), values)).first() is not None
