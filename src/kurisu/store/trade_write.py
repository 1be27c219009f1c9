"""The one way trades get into the database.

In: clean trades of one or many markets. Out: what happened to them. A stored trade is never
changed: a row that says the same is left out, a row that says something else is listed. Rows later
than the newest stored one of their market are new without a look, so that a live stream costs one
query and one COPY for all its markets; the others are compared first, which dirties nothing.

No lock is held meanwhile: an import of an hour must not hold up a live stream. Whoever inserts the
same trade in between is noticed by the key, and the rows are looked at again.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import asyncpg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.trade import IdSpace
from kurisu.errors import DatabaseError, IdSpaceConflict
from kurisu.store.candle_rows import from_us, times_us
from kurisu.store.connect import copy_in, driver
from kurisu.store.copy_binary import ColumnKind, copy_to_arrow, encode_stream
from kurisu.store.engine import Engine
from kurisu.store.exact_rows import DECIMAL, Mask
from kurisu.store.trade_rows import (
    CleanBatch,
    CleanTrades,
    CostTerms,
    differs,
    ints,
    list_conflicts,
    with_costs,
)

#: Rows compared and sent at a time, which bounds memory.
SLICE_ROWS: Final = 250_000
#: Up to here rows are looked up by key; more of them by reading the range they lie in, unless that
#: holds many times more rows.
KEYED_ROWS: Final = 2_000
DENSE: Final = 4
#: Somebody else may insert between our look and our COPY; the next look sees it.
ATTEMPTS: Final = 5

COLUMNS: Final = (
    "market_id", "time", "trade_id", "side", "price", "amount", "cost", "taker_or_maker",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """What the database says of a market that is written to.

    newest: time of its newest trade inside the range of the rows; None if there is none.
    """

    id: int
    space: IdSpace | None
    terms: CostTerms
    newest: datetime | None


@dataclass(slots=True)
class Written:
    """How many rows of one batch were new, and how many were there already."""

    inserted: int = 0
    unchanged: int = 0


# Markets that are written to. Parameters: ids, lows, highs (times of the rows, inclusive), low,
# high (of all: bounds that do not depend on a row leave out chunks before anything runs, and with
# years of them that is nearly all of the time). Columns: id, space, type, linear, contract_size,
# newest.
TARGETS: Final = """
SELECT m.id, m.trade_id_space AS space, m.type, m.linear, m.contract_size,
       (SELECT t.time FROM trades t
         WHERE t.market_id = m.id AND t.time >= r.low AND t.time <= r.high
           AND t.time >= CAST(:low AS timestamptz) AND t.time <= CAST(:high AS timestamptz)
         ORDER BY t.time DESC LIMIT 1) AS newest
  FROM unnest(CAST(:ids AS integer[]), CAST(:lows AS timestamptz[]),
              CAST(:highs AS timestamptz[])) AS r(id, low, high)
  JOIN markets m ON m.id = r.id
"""

# Stored trades by key. Parameters: ids, times, trade_ids (an array each), low, high (of times).
# Columns: at (1-based position in the arrays), side, price, amount.
STORED_BY_KEY: Final = """
SELECT k.at, t.side, t.price, t.amount
  FROM unnest(CAST(:ids AS integer[]), CAST(:times AS timestamptz[]),
              CAST(:trade_ids AS text[])) WITH ORDINALITY AS k(market_id, time, trade_id, at)
  JOIN trades t ON t.market_id = k.market_id AND t.time = k.time AND t.trade_id = k.trade_id
 WHERE t.time >= CAST(:low AS timestamptz) AND t.time <= CAST(:high AS timestamptz)
"""

# How many trades a range holds, counted no further than a limit. Parameters: market_id, low, high,
# limit.
COUNT: Final = """
SELECT count(*) FROM (
    SELECT 1 FROM trades
     WHERE market_id = :market_id AND time >= CAST(:low AS timestamptz)
       AND time <= CAST(:high AS timestamptz)
     LIMIT :limit) t
"""

# Stored trades of a range. Parameters: market_id, low, high (inclusive).
STORED: Final = """
SELECT time, trade_id, side, price, amount FROM trades
 WHERE market_id = $1 AND time >= $2 AND time <= $3
"""
_STORED_KINDS: Final = (
    ("time", ColumnKind.TIMESTAMPTZ),
    ("trade_id", ColumnKind.TEXT),
    ("side", ColumnKind.TEXT),
    ("price", ColumnKind.NUMERIC),
    ("amount", ColumnKind.NUMERIC),
)

# The first trades of a market say what its ids are. Parameters: ids, spaces.
SET_SPACES: Final = """
UPDATE markets m SET trade_id_space = n.space, updated_at = now()
  FROM unnest(CAST(:ids AS integer[]), CAST(:spaces AS text[])) AS n(id, space)
 WHERE m.id = n.id AND m.trade_id_space IS NULL
"""

SPACES: Final = """
SELECT id, trade_id_space AS space FROM markets WHERE id = ANY(CAST(:ids AS integer[]))
"""


async def targets(
    connection: AsyncConnection, ids: Mapping[int, int], trades: pa.Table
) -> dict[int, Target]:
    """The markets that the rows of `trades` go to, by key. ids: key -> market id."""
    keys, times = ints(trades, "key"), times_us(trades.column("time"))
    found: dict[int, tuple[int, int]] = {}
    for key in np.unique(keys).tolist():
        of_key = times[keys == key]
        found[key] = (int(of_key.min()), int(of_key.max()))
    key_of = {ids[key]: key for key in found}
    rows = await connection.execute(
        text(TARGETS),
        {
            "ids": list(key_of),
            "lows": [from_us(low) for low, _ in found.values()],
            "highs": [from_us(high) for _, high in found.values()],
            "low": from_us(int(times.min())),
            "high": from_us(int(times.max())),
        },
    )
    return {
        key_of[row.id]: Target(
            row.id,
            None if row.space is None else IdSpace(row.space),
            _terms(row.type, row.linear, row.contract_size),
            row.newest,
        )
        for row in rows
    }


def _terms(kind: str, linear: bool | None, contract_size: Decimal | None) -> CostTerms:
    if kind in ("spot", "margin"):
        return CostTerms()
    return CostTerms(contract_size, linear is False, known=contract_size is not None)


def check_spaces(
    batches: Sequence[CleanBatch], stored: Mapping[int, IdSpace | None], names: Mapping[int, str]
) -> dict[int, IdSpace]:
    """The id space of each market, by key. Raises IdSpaceConflict where rows have another one."""
    spaces = {key: space for key, space in stored.items() if space is not None}
    for batch in batches:
        if batch.id_space is not None:
            known = spaces.setdefault(batch.key, batch.id_space)
            if known is not batch.id_space:
                raise IdSpaceConflict(names[batch.key], known.value, batch.id_space.value)
    return spaces


async def set_spaces(
    connection: AsyncConnection,
    found: Mapping[int, Target],
    spaces: Mapping[int, IdSpace],
    names: Mapping[int, str],
) -> None:
    """Remember what the ids of markets are that had no trades. Raises IdSpaceConflict."""
    unset = {key: target for key, target in found.items() if target.space is None}
    if not unset:
        return
    ids = [target.id for target in unset.values()]
    await connection.execute(
        text(SET_SPACES), {"ids": ids, "spaces": [spaces[key].value for key in unset]}
    )
    # Another writer's first trades may have been quicker.
    rows = (await connection.execute(text(SPACES), {"ids": ids})).all()
    stored = {row.id: row.space for row in rows}
    for key, target in unset.items():
        if stored.get(target.id) != spaces[key].value:
            raise IdSpaceConflict(names[key], str(stored.get(target.id)), spaces[key].value)


def priced(found: CleanTrades, known: Mapping[int, Target]) -> pa.Table:
    """The trades with their costs; rows that cannot have one go to their batch's rejects."""
    groups: dict[CostTerms, list[int]] = {}
    for key, target in known.items():
        groups.setdefault(target.terms, []).append(key)
    if len(groups) == 1:
        return with_costs(found.table, next(iter(groups)), found.batches)
    keys = found.keys
    return pa.concat_tables(
        with_costs(found.table.filter(pa.array(np.isin(keys, members))), terms, found.batches)
        for terms, members in groups.items()
    )


async def insert(
    connection: AsyncConnection,
    engine: Engine,
    trades: pa.Table,
    known: Mapping[int, Target],
    batches: Sequence[CleanBatch],
) -> list[Written]:
    """Store those of `trades` that are not there, in the connection's transaction.

    Returns what happened to the rows of each batch; rows that contradict stored ones become
    conflicts of their batch. Raises WriteRefused, DatabaseError.
    """
    written = [Written() for _ in batches]
    if engine.is_community:
        # Rows that go into a compressed chunk have to be checked against its batches, and a
        # backfill touches more of them than the limit allows.
        await connection.execute(
            text("SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0")
        )
    for part in _slices(trades):
        await _insert_slice(connection, part, dict(known), batches, written)
    return written


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, SLICE_ROWS):
        yield table.slice(start, SLICE_ROWS).combine_chunks()


async def _insert_slice(
    connection: AsyncConnection,
    table: pa.Table,
    known: Mapping[int, Target],
    batches: Sequence[CleanBatch],
    written: Sequence[Written],
) -> None:
    ids = {key: target.id for key, target in known.items()}
    for _ in range(ATTEMPTS):
        is_old = _not_after_newest(table, known)
        new, old = table.filter(pa.array(~is_old)), table.filter(pa.array(is_old))
        differing: tuple[pa.Table, pa.Table] | None = None
        same = old.slice(0, 0)
        if old.num_rows:
            fresh, same, differing = await _compare(connection, old, ids)
            new = pa.concat_tables([new, fresh])
        try:
            if new.num_rows:
                async with connection.begin_nested():
                    await _copy(connection, new, ids)
        except asyncpg.UniqueViolationError:
            known = await targets(connection, ids, table)
            continue
        for rows, name in ((new, "inserted"), (same, "unchanged")):
            counts = np.bincount(ints(rows, "batch"), minlength=len(batches)).tolist()
            for one, count in zip(written, counts, strict=True):
                setattr(one, name, getattr(one, name) + count)
        if differing is not None:
            list_conflicts(batches, *differing)
        return
    raise DatabaseError(
        f"somebody else keeps inserting the same trades; gave up after {ATTEMPTS} attempts. "
        "Stop the other writer or run this again."
    )


def _not_after_newest(table: pa.Table, known: Mapping[int, Target]) -> Mask:
    """Rows that may be stored already."""
    keys, times = ints(table, "key"), times_us(table.column("time"))
    result = np.zeros(len(keys), dtype=np.bool_)
    for key, target in known.items():
        if target.newest is not None:
            newest = pa.scalar(target.newest, pa.timestamp("us", tz="UTC")).value
            result |= (keys == key) & (times <= newest)
    return result


async def _compare(
    connection: AsyncConnection, table: pa.Table, ids: Mapping[int, int]
) -> tuple[pa.Table, pa.Table, tuple[pa.Table, pa.Table]]:
    """(new rows, rows that are stored as they are, (rows that contradict, what is stored))."""
    positions: list[Any] = []
    found: list[pa.Table] = []
    async for start, stored in _stored(connection, table, ids):
        positions.append(ints(stored, "at") + start)
        found.append(stored.select(["side", "price", "amount"]))
    if not found:
        empty = table.slice(0, 0)
        return table, empty, (empty, empty)
    at = np.concatenate(positions)
    stored = pa.concat_tables(found)
    ours = table.take(pa.array(at))
    different = pa.array(differs(ours, stored))
    is_known = np.zeros(table.num_rows, dtype=np.bool_)
    is_known[at] = True
    return (
        table.filter(pa.array(~is_known)),
        ours.filter(pc.invert(different)),
        (ours.filter(different), stored.filter(different)),
    )


async def _stored(
    connection: AsyncConnection, table: pa.Table, ids: Mapping[int, int]
) -> AsyncIterator[tuple[int, pa.Table]]:
    """What is stored under the keys of `table`: (position of a piece's first row, rows with
    `at`, their position there)."""
    if table.num_rows <= KEYED_ROWS:
        yield 0, await _stored_by_key(connection, table, ids)
        return
    # By (key, time): each market's rows in one piece.
    keys = ints(table, "key")
    starts = np.concatenate(([0], np.flatnonzero(np.diff(keys)) + 1, [len(keys)])).tolist()
    for start, end in itertools.pairwise(starts):
        part = table.slice(start, end - start)
        times = times_us(part.column("time"))
        low, high = from_us(int(times.min())), from_us(int(times.max()))
        market_id = ids[int(keys[start])]
        limit = DENSE * part.num_rows + KEYED_ROWS
        held = await connection.scalar(
            text(COUNT), {"market_id": market_id, "low": low, "high": high, "limit": limit}
        )
        if part.num_rows <= KEYED_ROWS or int(held or 0) >= limit:
            for at in range(0, part.num_rows, KEYED_ROWS):
                piece = part.slice(at, KEYED_ROWS)
                yield start + at, await _stored_by_key(connection, piece, ids)
        else:
            stored = await copy_to_arrow(
                await driver(connection), STORED, [market_id, low, high], _STORED_KINDS
            )
            yield start, _matching(part, stored)


async def _stored_by_key(
    connection: AsyncConnection, table: pa.Table, ids: Mapping[int, int]
) -> pa.Table:
    times = table.column("time").to_pylist()
    rows = (
        await connection.execute(
            text(STORED_BY_KEY),
            {
                "ids": [ids[key] for key in ints(table, "key").tolist()],
                "times": times,
                "trade_ids": table.column("trade_id").to_pylist(),
                "low": min(times),
                "high": max(times),
            },
        )
    ).all()
    return pa.table(
        {
            "at": pa.array([row.at - 1 for row in rows], pa.int64()),
            "side": pa.array([row.side for row in rows], pa.string()),
            "price": pa.array([row.price for row in rows], DECIMAL),
            "amount": pa.array([row.amount for row in rows], DECIMAL),
        }
    )


def _matching(table: pa.Table, stored: pa.Table) -> pa.Table:
    """The rows of `stored` that have a key of `table`, with the position there as `at`."""
    ours = table.select(["time", "trade_id"]).append_column(
        "at", pa.array(np.arange(table.num_rows, dtype=np.int64))
    )
    return ours.join(stored, keys=["time", "trade_id"], join_type="inner").select(
        ["at", "side", "price", "amount"]
    )


async def _copy(connection: AsyncConnection, table: pa.Table, ids: Mapping[int, int]) -> None:
    keys = ints(table, "key")
    numbers = np.zeros(int(keys.max()) + 1, dtype=np.int32)
    for key, market_id in ids.items():
        if key < len(numbers):
            numbers[key] = market_id
    whole = pa.table(
        {"market_id": pa.array(numbers[keys]), **{n: table.column(n) for n in COLUMNS[1:]}}
    )
    raw = await driver(connection)
    await copy_in(raw, "trades", COLUMNS, encode_stream(whole), format="binary")
