"""Positions, balances and PnL, derived from executions and entries; and their snapshots."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kurisu.domain.balance import Balance
from kurisu.domain.execution import Execution
from kurisu.domain.market import MarketName
from kurisu.domain.order import Order, OrderStatus
from kurisu.domain.position import FLAT, MarketTerms, Position, Settlement
from kurisu.errors import InvalidArgument
from kurisu.ledger.arithmetic import ZERO, add
from kurisu.ledger.balance import held_by
from kurisu.ledger.execution import in_order_of_time, value_of
from kurisu.ledger.pnl import entry_price, unrealized_pnl
from kurisu.ledger.position import PositionChange, apply_execution
from kurisu.store.connect import translated
from kurisu.store.ledger_facts import execution_from_row, order_from_row
from kurisu.store.ledger_read import EXECUTIONS, Filter, market_terms, terms_of
from kurisu.store.ledger_values import BalanceRow, PnlRow, PositionRow

OWNERS: Final = ("account", "strategy", "run")
GROUPS: Final = ("account", "market", "strategy", "run", "day")

# The close of the latest candle that had closed at a time, of any timeframe; of two that closed at
# once the finer. Parameters: market ids, at.
MARKS: Final = """
SELECT s.market_id, c.close, c.closed_at
  FROM unnest(CAST(:ids AS integer[])) AS s(market_id)
 CROSS JOIN LATERAL (
    SELECT o.close, o.time + l.length AS closed_at
      FROM candle_series t
      JOIN (VALUES ('1m', INTERVAL '1 minute'), ('3m', '3 minutes'), ('5m', '5 minutes'),
                   ('15m', '15 minutes'), ('30m', '30 minutes'), ('1h', '1 hour'),
                   ('2h', '2 hours'), ('4h', '4 hours'), ('6h', '6 hours'), ('8h', '8 hours'),
                   ('12h', '12 hours'), ('1d', '1 day'), ('3d', '3 days'), ('1w', '7 days'),
                   ('1M', '1 month')) AS l(name, length) ON l.name = t.timeframe
     CROSS JOIN LATERAL (
        SELECT time, close FROM ohlcv
         WHERE market_id = s.market_id AND timeframe = t.timeframe
           AND time <= CAST(:at AS timestamptz) - l.length
         ORDER BY time DESC LIMIT 1) AS o
     WHERE t.market_id = s.market_id
     ORDER BY closed_at DESC, l.length LIMIT 1) AS c
"""

# What spot executions, fees and entries moved, by owner and asset. Parameters: account_id, run_id,
# at; each null for all. A market whose symbol names no settlement asset is spot, as in the core.
WALLETS: Final = """
WITH e AS (
    SELECT e.account_id, o.strategy_run_id AS run_id, e.side, e.amount, e.cost, e.fee,
           e.fee_currency, e.other_fees, m.base_asset, m.quote_asset,
           m.symbol NOT LIKE '%:%' AS is_spot
      FROM executions e JOIN orders o ON o.id = e.order_id JOIN markets m ON m.id = e.market_id
     WHERE (CAST(:account_id AS integer) IS NULL OR e.account_id = :account_id)
       AND (CAST(:run_id AS bigint) IS NULL OR o.strategy_run_id = :run_id)
       AND (CAST(:at AS timestamptz) IS NULL OR e.time <= :at)
), lines AS (
    SELECT account_id, run_id, base_asset AS asset,
           CASE side WHEN 'buy' THEN amount ELSE -amount END AS amount FROM e WHERE is_spot
    UNION ALL
    SELECT account_id, run_id, quote_asset, CASE side WHEN 'buy' THEN -cost ELSE cost END
      FROM e WHERE is_spot
    UNION ALL
    SELECT account_id, run_id, fee_currency, -fee FROM e WHERE fee <> 0
    UNION ALL
    SELECT account_id, run_id, f.asset, -f.fee::numeric
      FROM e CROSS JOIN LATERAL jsonb_each_text(e.other_fees) AS f(asset, fee)
     WHERE e.other_fees IS NOT NULL
    UNION ALL
    SELECT account_id, strategy_run_id, asset, amount FROM ledger_entries
     WHERE (CAST(:account_id AS integer) IS NULL OR account_id = :account_id)
       AND (CAST(:run_id AS bigint) IS NULL OR strategy_run_id = :run_id)
       AND (CAST(:at AS timestamptz) IS NULL OR time <= :at)
)
SELECT account_id, run_id, asset, sum(amount) AS total FROM lines GROUP BY 1, 2, 3
"""

# Orders that were open at a time, with what was filled then. Parameters: account_id, run_id, at or
# null for now. An order that has ended was open until its last update.
OPEN_ORDERS: Final = """
SELECT o.id, o.client_order_id, o.exchange_order_id, o.market_id, o.strategy_id, o.strategy_run_id,
       o.account_id, o.side, o.type, o.price, o.stop_price, o.amount, o.cost, 'open' AS status,
       o.created_at, o.updated_at,
       CASE WHEN CAST(:at AS timestamptz) IS NULL THEN o.filled ELSE coalesce((
           SELECT sum(e.amount) FROM executions e WHERE e.order_id = o.id AND e.time <= :at), 0)
       END AS filled
  FROM orders o
 WHERE (CAST(:account_id AS integer) IS NULL OR o.account_id = :account_id)
   AND (CAST(:run_id AS bigint) IS NULL OR o.strategy_run_id = :run_id)
   AND (CAST(:at AS timestamptz) IS NULL OR o.created_at <= :at)
   AND (o.status IN ('pending', 'open') OR o.updated_at > :at)
"""

INSERT_POSITION: Final = """
INSERT INTO positions (time, market_id, account_id, strategy_id, strategy_run_id, amount,
                       entry_price, unrealized_pnl, cost_basis, realized_pnl, fee_value,
                       mark_price, mark_time)
VALUES (:time, :market_id, :account_id, :strategy_id, :run_id, :amount, :entry_price,
        :unrealized_pnl, :cost_basis, :realized_pnl, :fee_value, :mark_price, :mark_time)
ON CONFLICT (time, market_id, account_id, strategy_id, strategy_run_id) DO UPDATE
   SET amount = excluded.amount, entry_price = excluded.entry_price,
       unrealized_pnl = excluded.unrealized_pnl, cost_basis = excluded.cost_basis,
       realized_pnl = excluded.realized_pnl, fee_value = excluded.fee_value,
       mark_price = excluded.mark_price, mark_time = excluded.mark_time
"""

INSERT_BALANCE: Final = """
INSERT INTO balances (time, asset, account_id, strategy_run_id, free, used, total)
VALUES (:time, :asset, :account_id, :run_id, :free, :used, :total)
ON CONFLICT (time, asset, account_id, strategy_run_id) DO UPDATE
   SET free = excluded.free, used = excluded.used, total = excluded.total
"""


@contextlib.asynccontextmanager
async def one_view(database: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction in which every query sees the same state of the database."""
    with translated(database):
        async with database.connect() as connection:
            connection = await connection.execution_options(isolation_level="REPEATABLE READ")
            async with connection.begin():
                yield connection


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept apart; None where it is not."""

    market_id: int
    account_id: int | None = None
    strategy_id: int | None = None
    run_id: int | None = None


async def _folded(
    connection: AsyncConnection, wanted: Filter, by: Collection[str]
) -> tuple[dict[Key, list[Execution]], dict[int, MarketTerms]]:
    """Executions by what is kept apart, as they happened, and the terms of their markets."""
    unknown = sorted(set(by) - set(OWNERS))
    if unknown:
        raise InvalidArgument(f"{unknown[0]!r} cannot be kept apart; known are {', '.join(OWNERS)}")
    where, values = wanted.where(of_executions=True)
    query = EXECUTIONS.format(where=where, limit="")
    rows = (await connection.execute(text(query), values)).mappings().all()
    names = await market_terms(connection, {row["market_id"] for row in rows})
    terms = {number: terms_of(name, size) for number, (name, size) in names.items()}
    groups: dict[Key, list[Execution]] = {}
    for row in rows:
        key = Key(
            row["market_id"],
            row["account_id"] if "account" in by else None,
            row["strategy_id"] if "strategy" in by else None,
            row["strategy_run_id"] if "run" in by else None,
        )
        symbol = names[row["market_id"]][0].symbol
        groups.setdefault(key, []).append(execution_from_row(row, symbol))
    return {key: in_order_of_time(found) for key, found in groups.items()}, terms


def _changes(
    executions: Iterable[Execution], terms: MarketTerms
) -> Iterable[tuple[Execution, PositionChange]]:
    position = FLAT
    for execution in executions:
        change = apply_execution(position, execution, terms)
        position = change.position
        yield execution, change


async def marks(
    connection: AsyncConnection, ids: Collection[int], at: datetime
) -> Mapping[int, tuple[Decimal, datetime]]:
    """Close and closing time of each market's latest candle at `at`; markets without are left
    out."""
    if not ids:
        return {}
    rows = await connection.execute(text(MARKS), {"ids": sorted(ids), "at": at})
    return {row.market_id: (row.close, row.closed_at) for row in rows if row.close > 0}


async def positions(
    connection: AsyncConnection, wanted: Filter, at: datetime, by: Collection[str], *, marked: bool
) -> list[tuple[int, PositionRow]]:
    """Positions with the id of their market, by market and owner. `wanted` ends behind `at`."""
    groups, terms = await _folded(connection, wanted, by)
    prices = await marks(connection, {key.market_id for key in groups}, at) if marked else {}
    found = []
    for key, executions in groups.items():
        on = terms[key.market_id]
        position = FLAT
        for _, change in _changes(executions, on):
            position = change.position
        price, closed_at = prices.get(key.market_id, (None, None))
        row = PositionRow(
            market=on.name,
            account_id=key.account_id,
            strategy_id=key.strategy_id,
            strategy_run_id=key.run_id,
            time=at,
            position=position,
            settle_asset=on.settle_asset,
            entry_price=entry_price(position, on),
            mark_price=price,
            mark_time=closed_at,
            unrealized_pnl=None if price is None else unrealized_pnl(position, price, on),
            executions=len(executions),
        )
        found.append((key.market_id, row))
    return sorted(found, key=lambda pair: _by_owner(pair[1]))


def _by_owner(row: PositionRow) -> tuple[Any, ...]:
    return (
        str(row.market), row.account_id or 0, row.strategy_id or 0, row.strategy_run_id or 0,
    )  # fmt: skip


Owner = tuple[int | None, int | None]


async def balances(
    connection: AsyncConnection,
    account_id: int | None,
    run_id: int | None,
    at: datetime | None,
    now: datetime,
    *,
    by_run: bool,
) -> list[BalanceRow]:
    """Wallets by account (and run) and asset. Without an account a run's are its own always."""

    def owner(account: int | None, run: int | None) -> Owner:
        return account, run if by_run or account is None or run_id is not None else None

    values = {"account_id": account_id, "run_id": run_id, "at": at}
    totals: dict[tuple[Owner, str], Decimal] = {}
    used: dict[tuple[Owner, str], Decimal] = {}

    def count(into: dict[tuple[Owner, str], Decimal], who: Owner, asset: str, n: Decimal) -> None:
        into[(who, asset)] = add(into.get((who, asset), ZERO), n)

    for row in await connection.execute(text(WALLETS), values):
        count(totals, owner(row.account_id, row.run_id), row.asset, row.total)
    until = None if at is None else after(at)
    wanted = Filter(account_id=account_id, run_id=run_id, until=until, contracts_only=True)
    by = ("account", "run") if by_run or run_id is not None else ("account",)
    for by_owner in (by, ("run",)) if account_id is None else (by,):
        # A run without an account has positions of its own; all else is pooled in its account.
        groups, terms = await _folded(
            connection, replace(wanted, has_account="account" in by_owner), by_owner
        )
        for key, executions in groups.items():
            position = FLAT
            for _, change in _changes(executions, terms[key.market_id]):
                position = change.position
            asset = terms[key.market_id].settle_asset
            count(totals, owner(key.account_id, key.run_id), asset, position.realized_pnl)
    for held, who in await _holdings(connection, values):
        count(used, owner(*who), *held)
    return [
        BalanceRow(who[0], who[1], at or now, Balance(asset, totals.get((who, asset), ZERO),
                                                      used.get((who, asset), ZERO)))
        for who, asset in sorted({*totals, *used}, key=_by_wallet)
    ]  # fmt: skip


def _by_wallet(wallet: tuple[Owner, str]) -> tuple[int, int, str]:
    (account, run), asset = wallet
    return (account or 0, run or 0, asset)


async def _holdings(
    connection: AsyncConnection, values: Mapping[str, Any]
) -> list[tuple[tuple[str, Decimal], Owner]]:
    """What open spot orders hold, and whose they are."""
    rows = (await connection.execute(text(OPEN_ORDERS), values)).mappings().all()
    names = await market_terms(connection, {row["market_id"] for row in rows})
    found = []
    for row in rows:
        name, size = names[row["market_id"]]
        terms = terms_of(name, size)
        if terms.settlement is not Settlement.SPOT or row["filled"] >= row["amount"]:
            continue
        order: Order = order_from_row(row, name)
        held = held_by(replace(order, status=OrderStatus.OPEN), terms)
        if held is not None and held[1]:
            found.append((held, (order.account_id, order.strategy_run_id)))
    return found


@dataclass(slots=True)
class _Sums:
    executions: int = 0
    volume: Decimal = ZERO
    realized_pnl: Decimal = ZERO
    fee_value: Decimal = ZERO
    fees: dict[str, Decimal] = field(default_factory=dict)
    unrealized_pnl: Decimal | None = ZERO
    mark_time: datetime | None = None


PnlKey = tuple[str, int | None, int | None, int | None, int | None, date | None]


async def pnl(
    connection: AsyncConnection,
    wanted: Filter,
    since: datetime | None,
    end: datetime,
    by: Collection[str],
) -> list[PnlRow]:
    """PnL of what happened from `since` on; `wanted` ends at `end` and has no beginning."""
    unknown = sorted(set(by) - set(GROUPS))
    if unknown:
        raise InvalidArgument(f"{unknown[0]!r} is no group; known are {', '.join(GROUPS)}")
    # A position is an account's, or, where they are asked for, a strategy's or a run's in it.
    apart = ["account", *(name for name in ("strategy", "run") if name in by)]
    groups, terms = await _folded(connection, wanted, apart)
    prices = await marks(connection, {key.market_id for key in groups}, end)
    sums: dict[PnlKey, _Sums] = {}

    def sums_of(key: Key, day: date | None) -> _Sums:
        found = (
            terms[key.market_id].settle_asset,
            key.market_id if "market" in by else None,
            key.account_id if "account" in by else None,
            key.strategy_id if "strategy" in by else None,
            key.run_id if "run" in by else None,
            day if "day" in by else None,
        )
        return sums.setdefault(found, _Sums())

    for key, executions in groups.items():
        on, position = terms[key.market_id], FLAT
        for execution, change in _changes(executions, on):
            position = change.position
            if since is None or execution.time >= since:
                _count(sums_of(key, execution.time.astimezone(UTC).date()), execution, change, on)
        if "day" not in by:
            _mark(sums_of(key, None), position, on, prices.get(key.market_id))
    names = {number: on.name for number, on in terms.items()}
    return [
        _pnl_row(key, found, names, is_marked="day" not in by)
        for key, found in sorted(sums.items(), key=lambda item: _by_group(item[0], names))
    ]


def _count(sums: _Sums, execution: Execution, change: PositionChange, terms: MarketTerms) -> None:
    sums.executions += 1
    sums.volume = add(sums.volume, value_of(execution, terms))
    sums.realized_pnl = add(sums.realized_pnl, change.realized_pnl)
    sums.fee_value = add(sums.fee_value, change.fee_value)
    for fee in execution.fees or ():
        sums.fees[fee.currency] = add(sums.fees.get(fee.currency, ZERO), fee.amount)


def _mark(
    sums: _Sums, position: Position, terms: MarketTerms, mark: tuple[Decimal, datetime] | None
) -> None:
    if not position.amount:
        return
    if mark is None or sums.unrealized_pnl is None:
        sums.unrealized_pnl = None
        return
    price, closed_at = mark
    sums.unrealized_pnl = add(sums.unrealized_pnl, unrealized_pnl(position, price, terms))
    sums.mark_time = closed_at if sums.mark_time is None else min(sums.mark_time, closed_at)


def _by_group(key: PnlKey, names: Mapping[int, MarketName]) -> tuple[Any, ...]:
    asset, market_id, account_id, strategy_id, run_id, day = key
    return (
        day or date.min, str(names.get(market_id or 0, "")), asset, account_id or 0,
        strategy_id or 0, run_id or 0,
    )  # fmt: skip


def _pnl_row(
    key: PnlKey, sums: _Sums, names: Mapping[int, MarketName], *, is_marked: bool
) -> PnlRow:
    asset, market_id, account_id, strategy_id, run_id, day = key
    return PnlRow(
        settle_asset=asset,
        market=None if market_id is None else names[market_id],
        account_id=account_id,
        strategy_id=strategy_id,
        strategy_run_id=run_id,
        day=day,
        executions=sums.executions,
        volume=sums.volume,
        realized_pnl=sums.realized_pnl,
        fee_value=sums.fee_value,
        fees=dict(sorted(sums.fees.items())),
        unrealized_pnl=sums.unrealized_pnl if is_marked else None,
        mark_time=sums.mark_time if is_marked else None,
    )


async def write_snapshot(
    connection: AsyncConnection,
    at: datetime,
    held: Sequence[tuple[int, PositionRow]],
    wallets: Sequence[BalanceRow],
) -> tuple[int, int]:
    """Write what stood at `at`; the same time again replaces what it said."""
    rows: list[dict[str, Any]] = [
        {
            "time": at,
            "market_id": market_id,
            "account_id": row.account_id,
            "strategy_id": row.strategy_id,
            "run_id": row.strategy_run_id,
            "amount": row.position.amount,
            "entry_price": row.entry_price,
            "unrealized_pnl": row.unrealized_pnl,
            "cost_basis": row.position.cost_basis,
            "realized_pnl": row.position.realized_pnl,
            "fee_value": row.position.fee_value,
            "mark_price": row.mark_price,
            "mark_time": row.mark_time,
        }
        for market_id, row in held
    ]
    if rows:
        await connection.execute(text(INSERT_POSITION), rows)
    wallet_rows: list[dict[str, Any]] = [
        {
            "time": at,
            "asset": row.balance.asset,
            "account_id": row.account_id,
            "run_id": row.strategy_run_id,
            "free": row.balance.free,
            "used": row.balance.used,
            "total": row.balance.total,
        }
        for row in wallets
    ]
    if wallet_rows:
        await connection.execute(text(INSERT_BALANCE), wallet_rows)
    return len(rows), len(wallet_rows)


def after(at: datetime) -> datetime:
    """The exclusive end of a time that is inclusive."""
    return at + timedelta(microseconds=1)
