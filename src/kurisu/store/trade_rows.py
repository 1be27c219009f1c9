"""Turns what a caller hands over into trades that may be stored, and lists the rest.

In: batches, each of one market: an Arrow table (or what exports one), or `Trade` values. Out:
`CleanTrades`: one table for all of them, sorted, one row per (market, time, id), every rule kept,
times in whole milliseconds; and per batch the rejected and contradictory rows with their reasons.
One pass over all batches, because a live stream writes a few rows of many markets at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kurisu.domain.faults import Reject, Rule, TradeConflict
from kurisu.domain.money import plain
from kurisu.domain.trade import IdSpace, Trade, cost_of, derived_ids
from kurisu.errors import InvalidArgument
from kurisu.store.candle_rows import times_us, to_us, words
from kurisu.store.exact_rows import (
    DECIMAL,
    TIME,
    Mask,
    Rejector,
    Times,
    flat,
    is_text,
    number_column,
    numbers_text,
    plain_columns,
    row_numbers,
    time_column,
    utc,
)

NEEDED: Final = ("time", "price", "amount")
OPTIONAL: Final = {
    "trade_id": pa.string(),
    "side": pa.string(),
    "cost": DECIMAL,
    "taker_or_maker": pa.string(),
}
#: A trade dated later than this is no clock that goes wrong, but a time that was read wrong.
MOST_AHEAD: Final = timedelta(days=1)
#: Longer ids do not fit a page of the key's index; real ones have up to 70 characters.
MAX_ID_CHARS: Final = 255
_SIDES: Final = ("buy", "sell")
_ROLES: Final = ("taker", "maker")
_INPUT: Final = pa.schema(
    [
        ("time", TIME),
        ("trade_id", pa.string()),
        ("side", pa.string()),
        ("price", DECIMAL),
        ("amount", DECIMAL),
        ("cost", DECIMAL),
        ("taker_or_maker", pa.string()),
    ]
)
#: batch, row: where it comes from. key: its market. Then the columns of `trades`.
SCHEMA: Final = pa.schema(
    [("batch", pa.int32()), ("row", pa.int64()), ("key", pa.int32()), *_INPUT]
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one market.

    key: a number of the market, the same for all its batches. id_space: what its ids are; None
    to go by whether there are any.
    """

    key: int
    rows: Any
    id_space: IdSpace | None = None


@dataclass(slots=True)
class CleanBatch:
    """What became of one batch.

    read = rows of it in the table + len(rejects) + len(conflicts) + duplicates.
    id_space: None if it has no row. lost: when the rejected rows were made, in microseconds; None
    for one whose time cannot be read.
    """

    key: int
    read: int
    id_space: IdSpace | None
    rejects: list[Reject] = field(default_factory=list)
    lost: list[int | None] = field(default_factory=list)
    conflicts: list[TradeConflict] = field(default_factory=list)
    duplicates: int = 0


@dataclass(slots=True)
class CleanTrades:
    """Trades that may be stored: `table` has SCHEMA, by (key, time), cost null where not given."""

    table: pa.Table
    batches: list[CleanBatch]

    @property
    def times(self) -> Times:
        return times_us(self.table.column("time"))

    @property
    def keys(self) -> npt.NDArray[np.int32]:
        keys: npt.NDArray[np.int32] = ints(self.table, "key")
        return keys


def ints(table: pa.Table, name: str) -> Any:
    """An integer column without nulls as NumPy array."""
    return flat(table.column(name)).to_numpy(zero_copy_only=False)


def clean(batches: Sequence[Batch], now: datetime) -> CleanTrades:
    """What of `batches` may be stored at the time `now`.

    An optional column `row` (integers) carries the row numbers of the source for the reports;
    without it the rows of a batch count from 1. Columns beyond those are ignored.
    A trade of a market without ids gets one; then all of a millisecond has to be in one batch.
    Raises InvalidArgument if a column is missing or of a kind that cannot be exact.
    """
    found = [CleanBatch(batch.key, 0, batch.id_space) for batch in batches]
    # Tables of one schema become one before anything is done: what a column costs, it costs once.
    groups: dict[pa.Schema, list[tuple[int, pa.Table]]] = {}
    values: list[tuple[int, Trade]] = []
    for index, batch in enumerate(batches):
        if _is_arrow(batch.rows):
            table = _table(batch.rows)
            groups.setdefault(table.schema.remove_metadata(), []).append((index, table))
            found[index].read = table.num_rows
        else:
            before = len(values)
            values += [(index, trade) for trade in _trades(batch.rows)]
            found[index].read = len(values) - before
    tables = [_of_tables(members, batches) for members in groups.values()]
    if values:
        tables.append(_of_values(values, batches))
    parts = [_exact(table, batches, found, now) for table in tables]
    table = pa.concat_tables(parts) if parts else SCHEMA.empty_table()
    index = ints(table, "batch")
    if (index[1:] < index[:-1]).any():  # back into the order of the batches
        table = table.take(pa.array(np.argsort(index, kind="stable")))
    result = CleanTrades(table, found)
    _dedupe(result)
    for one in found:
        one.rejects.sort(key=lambda reject: reject.row)
    return result


def _is_arrow(rows: Any) -> bool:
    return isinstance(rows, pa.Table | pa.RecordBatch) or hasattr(rows, "__arrow_c_stream__")


def _table(rows: Any) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows
    return pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else pa.table(rows)


def _of_tables(members: Sequence[tuple[int, pa.Table]], batches: Sequence[Batch]) -> pa.Table:
    """Tables of one schema as one, with where each row comes from, and the columns of a trade in
    one order, those that are not there as nulls."""
    indices = np.repeat([i for i, _ in members], [table.num_rows for _, table in members])
    table = plain_columns(pa.concat_tables(table.replace_schema_metadata() for _, table in members))
    missing = [name for name in NEEDED if name not in table.column_names]
    if missing:
        raise InvalidArgument(
            f"trades need the columns {', '.join(NEEDED)}, and trade_id where the exchange gives "
            f"one; missing: {', '.join(missing)}"
        )
    columns = {
        field.name: table.column(field.name)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in _INPUT
    }
    if "row" in table.column_names:
        numbers = pa.array(row_numbers(table.column("row")))
    else:
        numbers = pa.array(_counted(indices))
    return pa.table({**_origin(indices, batches, numbers), **columns})


def _counted(indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """1, 2, 3 .. within each run of equal numbers."""
    first = np.concatenate(([0], np.flatnonzero(np.diff(indices)) + 1))
    sizes = np.diff(np.concatenate((first, [len(indices)])))
    counted: npt.NDArray[np.int64] = np.arange(len(indices)) - np.repeat(first, sizes) + 1
    return counted


def _origin(
    indices: npt.NDArray[np.int64], batches: Sequence[Batch], numbers: Any
) -> dict[str, Any]:
    keys = np.array([batch.key for batch in batches], dtype=np.int64)[indices]
    return {
        "batch": pa.array(indices, pa.int32()),
        "row": numbers,
        "key": pa.array(keys, pa.int32()),
    }


def _trades(rows: Any) -> list[Trade]:
    if not isinstance(rows, Iterable):
        raise InvalidArgument(f"trades cannot be read from {type(rows).__name__}")
    trades: list[Trade] = list(rows)
    for trade in trades:
        if not isinstance(trade, Trade):
            raise InvalidArgument(
                "trades are written from an Arrow table or from Trade values, not from "
                f"{type(trade).__name__}"
            )
    return trades


def _of_values(values: Sequence[tuple[int, Trade]], batches: Sequence[Batch]) -> pa.Table:
    indices = np.fromiter((index for index, _ in values), dtype=np.int64, count=len(values))
    times = [utc(trade.time) for _, trade in values]
    columns = list(zip(*(trade for _, trade in values), strict=True))
    columns[0] = tuple(times)
    try:
        arrays = [pa.array(c, f.type) for c, f in zip(columns, _INPUT, strict=True)]
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        arrays = [
            numbers_text(f.name, c)
            if f.type == DECIMAL
            else pa.array([v if v is None or f.type == TIME else str(v) for v in c], f.type)
            for c, f in zip(columns, _INPUT, strict=True)
        ]
    named = dict(zip(_INPUT.names, arrays, strict=True))
    return pa.table({**_origin(indices, batches, pa.array(_counted(indices))), **named})


def _exact(
    raw: pa.Table, batches: Sequence[Batch], found: Sequence[CleanBatch], now: datetime
) -> pa.Table:
    """`raw` with SCHEMA, without the rows that break a rule; those go to their batch."""
    numbers, index = ints(raw, "row"), ints(raw, "batch")
    rejector = Rejector(raw, numbers)
    time = time_column(raw.column("time"), rejector, cut_to_ms=True)
    price = number_column("price", raw.column("price"), rejector)
    amount = number_column("amount", raw.column("amount"), rejector)
    cost = number_column("cost", raw.column("cost"), rejector, optional=True)
    trade_id = _text_column("trade_id", raw.column("trade_id"))
    side = _text_column("side", raw.column("side"))
    role = _text_column("taker_or_maker", raw.column("taker_or_maker"))

    ahead = time.cast(pa.int64()).to_numpy() > to_us(now + MOST_AHEAD)
    rejector.add(ahead, Rule.IN_THE_FUTURE, "time")
    rejector.add(_mask(pc.less(amount, pa.scalar(Decimal(0), DECIMAL))), Rule.NEGATIVE_AMOUNT,
                 "amount")  # fmt: skip
    rejector.add(_none_of(side, _SIDES), Rule.SIDE_NOT_READABLE, "side")
    rejector.add(_none_of(role, _ROLES), Rule.TAKER_OR_MAKER_NOT_READABLE, "taker_or_maker")
    rejector.add(_not_usable(trade_id), Rule.TRADE_ID_NOT_USABLE, "trade_id")

    is_derived = _settle_id_space(trade_id, index, batches, found)
    lacks_id = _mask(trade_id.is_null())
    rejector.add(lacks_id & ~is_derived, Rule.MISSING_VALUE, "trade_id")
    ticks = time.cast(pa.int64()).to_numpy()
    for at, reject in rejector.found():
        batch = found[int(index[at])]
        batch.rejects.append(reject)
        batch.lost.append(None if reject.field == "time" else int(ticks[at]))
    table = pa.table(
        [raw.column("batch"), raw.column("row"), raw.column("key"), time, trade_id, side, price,
         amount, cost, role],
        schema=SCHEMA,
    ).filter(pa.array(~rejector.rejected))  # fmt: skip
    return _with_derived_ids(table)


def _text_column(name: str, column: pa.ChunkedArray) -> pa.Array:
    """Plain text; an empty text says nothing, as null does."""
    kind = column.type
    if not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise InvalidArgument(f"column {name} is {kind}; it has to be text")
    if name != "trade_id" and pa.types.is_integer(kind):
        raise InvalidArgument(f"column {name} is {kind}; it has to be text")
    array = flat(column).cast(pa.string())
    empty = pc.equal(pc.binary_length(array), 0)
    if pc.any(empty).as_py():
        array = pc.if_else(empty, pa.scalar(None, pa.string()), array)
    return array


def _mask(array: Any) -> Mask:
    """A boolean array as NumPy mask; null is false."""
    if isinstance(array, pa.ChunkedArray):
        array = flat(array)
    result: Mask = pc.fill_null(array, False).to_numpy(zero_copy_only=False).astype(np.bool_)
    return result


def _none_of(column: pa.Array, known: Sequence[str]) -> Mask:
    return ~_mask(pc.is_in(column, value_set=pa.array(known))) & _mask(column.is_valid())


def _not_usable(trade_id: pa.Array) -> Mask:
    """Too long for an index, or with a NUL, which PostgreSQL's text has not."""
    too_long = _mask(pc.greater(pc.binary_length(trade_id), MAX_ID_CHARS))
    return too_long | _mask(pc.match_substring(trade_id, "\0"))


def _settle_id_space(
    trade_id: pa.Array,
    index: npt.NDArray[np.int32],
    batches: Sequence[Batch],
    found: Sequence[CleanBatch],
) -> Mask:
    """Where ids are derived. Batches that have not said what their ids are go by having any."""
    with_ids = np.unique(index[_mask(trade_id.is_valid())])
    is_derived = np.zeros(len(batches), dtype=np.bool_)
    for at in np.unique(index).tolist():
        space = batches[at].id_space
        if space is None:
            space = IdSpace.RAW if at in with_ids else IdSpace.DERIVED
        found[at].id_space = space
        is_derived[at] = space is IdSpace.DERIVED
    result: Mask = is_derived[index]
    return result


def _with_derived_ids(table: pa.Table) -> pa.Table:
    """Ids for the rows that have none, counted batch by batch."""
    lacking = _mask(table.column("trade_id").is_null())
    if not lacking.any():
        return table
    rows = table.filter(pa.array(lacking))
    times_ms = times_us(rows.column("time")) // 1_000
    index = ints(rows, "batch")
    sides, prices, amounts = (rows.column(n).to_pylist() for n in ("side", "price", "amount"))
    ids: list[str | None] = [None] * rows.num_rows
    for batch in np.unique(index).tolist():
        at = np.flatnonzero(index == batch).tolist()
        made = derived_ids((int(times_ms[i]), sides[i], prices[i], amounts[i]) for i in at)
        for i, trade_id in zip(at, made, strict=True):
            ids[i] = trade_id
    filled = pc.replace_with_mask(
        flat(table.column("trade_id")), pa.array(lacking), pa.array(ids, pa.string())
    )
    return table.set_column(table.column_names.index("trade_id"), SCHEMA.field("trade_id"), filled)


def _dedupe(found: CleanTrades) -> None:
    """Sort by market and time; of rows with one id the first stays, and what differs from it is a
    conflict."""
    key, time = found.keys.astype(np.int64), found.times
    if len(time) < 2 or bool(
        ((key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & (time[1:] > time[:-1]))).all()
    ):
        return
    # Numbers in the order of appearance: rows of one millisecond stay in their order.
    code = flat(found.table.column("trade_id")).dictionary_encode().indices.to_numpy()
    order = np.lexsort((code, time, key))
    table = found.table.take(pa.array(order))
    key, time, code = key[order], time[order], code[order]
    repeats = (key[1:] == key[:-1]) & (time[1:] == time[:-1]) & (code[1:] == code[:-1])
    if not repeats.any():
        found.table = table
        return
    kept = np.concatenate(([True], ~repeats))
    lost = np.flatnonzero(~kept)
    first = np.flatnonzero(kept)
    winner = first[np.searchsorted(first, lost) - 1]
    losers, winners = table.take(pa.array(lost)), table.take(pa.array(winner))
    different = differs(losers, winners)
    index = ints(losers, "batch")
    for at, batch in enumerate(index.tolist()):
        if not different[at]:
            found.batches[batch].duplicates += 1
    found.table = table.filter(pa.array(kept))
    list_conflicts(
        found.batches, losers.filter(pa.array(different)), winners.filter(pa.array(different))
    )


def differs(left: pa.Table, right: pa.Table) -> Mask:
    """Where two tables of equal length hold trades that say different things.

    The cost follows from price and amount, and the rest is not known to every source.
    """
    result = np.zeros(left.num_rows, dtype=np.bool_)
    for name in ("price", "amount"):
        result |= (words(left.column(name)) != words(right.column(name))).any(axis=1)
    ours, theirs = (t.column("side").fill_null("") for t in (left, right))
    result |= _mask(pc.not_equal(ours, theirs))
    return result


def list_conflicts(batches: Sequence[CleanBatch], given: pa.Table, kept: pa.Table) -> None:
    """Add to each batch its rows that contradict trades that stay (`kept`, row by row)."""
    for mine, stays in zip(given.to_pylist(), kept.to_pylist(), strict=True):
        batches[mine["batch"]].conflicts.append(
            TradeConflict(
                row=mine["row"],
                time=mine["time"].isoformat(timespec="milliseconds"),
                trade_id=mine["trade_id"],
                kept=_says(stays),
                value=_says(mine),
            )
        )


def _says(trade: dict[str, Any]) -> str:
    return (
        f"side={trade['side'] or ''} price={plain(trade['price'])} amount={plain(trade['amount'])}"
    )


@dataclass(frozen=True, slots=True)
class CostTerms:
    """What the cost of a market's trades depends on.

    contract_size: None on spot. known: false for contracts of unknown size.
    """

    contract_size: Decimal | None = None
    inverse: bool = False
    known: bool = True


# A product of 38 and 37 digits has 75 at most, and Arrow's widest decimal has 76.
_WIDE_PRICE: Final = pa.decimal256(38, 18)
_WIDE_AMOUNT: Final = pa.decimal256(37, 18)


def with_costs(table: pa.Table, terms: CostTerms, batches: Sequence[CleanBatch]) -> pa.Table:
    """`table` (of one market) with every cost, and without the rows that cannot have one."""
    column = flat(table.column("cost"))
    lacking = _mask(column.is_null())
    if not lacking.any():
        return table
    rows = table.filter(pa.array(lacking))
    faults: list[Rule | None]
    if not terms.known:
        costs, faults = pa.nulls(rows.num_rows, DECIMAL), [Rule.NO_COST] * rows.num_rows
    else:
        costs, faults = _costs(rows, terms)
    filled = pc.replace_with_mask(column, pa.array(lacking), costs)
    table = table.set_column(table.column_names.index("cost"), SCHEMA.field("cost"), filled)
    if not any(faults):
        return table
    listed = rows.select(["batch", "row", "price", "amount"]).to_pylist()
    for row, fault, time in zip(listed, faults, times_us(rows.column("time")), strict=True):
        if fault is not None:
            value = f"{plain(row['price'])} x {plain(row['amount'])}"
            batch = batches[row["batch"]]
            batch.rejects.append(Reject(row["row"], fault, value, "cost"))
            batch.lost.append(int(time))
    return table.filter(table.column("cost").is_valid())


def _costs(rows: pa.Table, terms: CostTerms) -> tuple[pa.Array, list[Rule | None]]:
    price, amount = flat(rows.column("price")), flat(rows.column("amount"))
    if terms.contract_size is None or (terms.contract_size == 1 and not terms.inverse):
        try:
            product = pc.multiply(price.cast(_WIDE_PRICE), amount.cast(_WIDE_AMOUNT))
            rounded = pc.round(product, ndigits=18, round_mode="half_to_even")
            return rounded.cast(DECIMAL), []
        except pa.ArrowInvalid:
            pass  # some of them do not fit: one by one
    costs: list[Decimal | None] = []
    faults: list[Rule | None] = []
    for one_price, one_amount in zip(price.to_pylist(), amount.to_pylist(), strict=True):
        fault: Rule | None = None
        cost: Decimal | None = None
        if terms.inverse and one_price <= 0:
            fault = Rule.NO_COST
        else:
            cost = cost_of(one_price, one_amount, terms.contract_size, inverse=terms.inverse)
            if cost.copy_abs() >= _LIMIT:
                cost, fault = None, Rule.NUMBER_TOO_LARGE
        costs.append(cost)
        faults.append(fault)
    return pa.array(costs, DECIMAL), faults


_LIMIT: Final = Decimal(10) ** 20
