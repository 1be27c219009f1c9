"""1m candles from stored trades: built, compared with the stored candles, and stored if asked for.

Only minutes count of which coverage says that every trade is stored. A minute without trades gives
no candle. Where ids are derived, nobody knows the order of the trades inside a millisecond: a
minute that begins or ends with several prices at once has no certain open or close, agrees with a
stored candle that has any of them, and is not stored.

Trades of a contract count contracts, and its candles these or base units, venue by venue. Those of
an inverse one in base units are rounded by the exchange, trade by trade or not: then prices alone
are compared, and nothing is stored.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kurisu.domain.candle import Candle
from kurisu.domain.money import EXACT, number_fault
from kurisu.domain.timeframe import BASE
from kurisu.domain.trade import IdSpace
from kurisu.errors import InvalidArgument
from kurisu.store.candle_rows import NUMBERS, differs, from_us, times_us, to_us, words
from kurisu.store.coverage import Stretch
from kurisu.store.markets import Market
from kurisu.store.store import Store

#: Differences that the report lists; the counts are always whole.
MAX_LISTED: Final = 10_000
#: What `candle_coverage` names as the source.
SOURCE: Final = "trades"
_MINUTE: Final = timedelta(minutes=1)
_MINUTE_US: Final = 60_000_000
#: Days compared and stored at a time, which bounds memory.
_PIECE: Final = timedelta(days=7)

Span = tuple[datetime, datetime]
Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Difference:
    """A minute of which trades and stored candles say different things.

    stored: None where no candle is stored; then it is no contradiction. made: None where there are
    no trades.
    """

    time: datetime
    stored: Candle | None
    made: Candle | None


@dataclass(slots=True)
class TradeCandlesReport:
    """What trades say of the candles of one market.

    since, until: the minutes looked at. minutes: of those, the ones whose trades are complete.
    candles: minutes with trades. equal, different, missing (no candle is stored), unfounded (a
    candle is stored, and nobody traded): what stored candles say to that. unsure: minutes whose
    open or close the trades do not tell. incomplete: minutes with trades that may not be all.
    inserted: candles that were stored.
    """

    market: str
    since: datetime | None = None
    until: datetime | None = None
    minutes: int = 0
    candles: int = 0
    equal: int = 0
    different: int = 0
    missing: int = 0
    unfounded: int = 0
    unsure: int = 0
    incomplete: int = 0
    inserted: int = 0
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        """No stored candle contradicts the trades."""
        return self.different == 0 and self.unfounded == 0


@dataclass(frozen=True, slots=True)
class Made:
    """Candles of some minutes, by time.

    table: as candles are written. opens, closes: for unsure minutes (open time in microseconds) the
    prices that the open or the close may be.
    """

    table: pa.Table
    opens: dict[int, set[Decimal]]
    closes: dict[int, set[Decimal]]

    def counted_in(self, unit: Decimal) -> Made:
        """With a volume of `unit` for each that was traded. Raises InvalidArgument for one of more
        digits than a column has."""
        if unit == 1:
            return self
        column = self.table.column("volume")
        volumes = [EXACT.multiply(value, unit) for value in column.to_pylist()]
        for at, volume in zip(self.table.column("time").to_pylist(), volumes, strict=True):
            if (fault := number_fault(volume)) is not None:
                shown = f"{EXACT.normalize(volume)} at {at:%Y-%m-%d %H:%M} UTC"
                raise InvalidArgument(f"a volume of {shown} cannot be stored: {fault}")
        index = self.table.column_names.index("volume")
        table = self.table.set_column(index, "volume", pa.array(volumes, column.type))
        return replace(self, table=table)

    def without_unsure(self) -> pa.Table:
        unsure = list(self.opens.keys() | self.closes.keys())
        times = times_us(self.table.column("time"))
        return self.table.filter(pa.array(~np.isin(times, unsure)))


def volume_of_one(market: Market) -> Decimal | None:
    """What one of a trade's amount is in the volume of a candle; None where trades do not tell."""
    if market.name.settle is None or market.volume_unit == "contracts":
        return Decimal(1)
    if market.volume_unit == "base" and market.linear:
        return market.contract_size
    return None


def _untold(market: Market) -> str:
    if market.volume_unit is None or market.contract_size is None:
        return (
            "what the volume of its candles counts is not known: run "
            f"`kurisu markets sync {market.exchange}`"
        )
    return (
        "the volume of its candles is in base units, and the exchange rounds what its contracts "
        "are worth"
    )


def candles_of(trades: pa.Table, *, is_ordered: bool) -> Made:
    """1m candles of trades, which are sorted by time and, if `is_ordered`, inside milliseconds."""
    times = times_us(trades.column("time"))
    minutes = times - times % _MINUTE_US
    starts = np.concatenate(([0], np.flatnonzero(np.diff(minutes)) + 1))[: len(times)]
    ends = np.concatenate((starts[1:], [len(times)]))[: len(starts)] - 1
    prices, amounts = trades.column("price"), trades.column("amount")
    groups = pa.table({"minute": minutes, "price": prices, "amount": amounts}).group_by(
        "minute", use_threads=False
    )
    sums = groups.aggregate([("price", "max"), ("price", "min"), ("amount", "sum")])
    # Groups come in the order in which they begin.
    table = pa.table(
        {
            "time": pa.array(minutes[starts], pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "open": prices.take(pa.array(starts)),
            "high": sums.column("price_max"),
            "low": sums.column("price_min"),
            "close": prices.take(pa.array(ends)),
            "volume": sums.column("amount_sum"),
        }
    )
    if is_ordered or not len(times):
        return Made(table, {}, {})
    return Made(table, _ties(prices, times, starts, starts), _ties(prices, times, starts, ends))


def _ties(
    prices: pa.ChunkedArray, times: Times, starts: Times, at: Times
) -> dict[int, set[Decimal]]:
    """The prices of the millisecond of the rows `at`, where there are several, by minute."""
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(times))))
    same_ms = times == times[at][group]
    different = (words(prices) != words(prices)[at][group]).any(axis=1)
    found: dict[int, set[Decimal]] = {}
    for index in np.unique(group[same_ms & different]).tolist():
        rows = np.flatnonzero(same_ms & (group == index))
        minute = int(times[starts[index]] // _MINUTE_US * _MINUTE_US)
        found[minute] = set(prices.take(pa.array(rows)).to_pylist())
    return found


def whole_minutes(known: Sequence[Stretch], since: datetime, until: datetime) -> list[Span]:
    """Minutes of [since, until) whose trades are complete, as stretches."""
    spans: list[Span] = []
    for one in known:
        if one.status not in ("complete", "empty"):
            continue
        if spans and spans[-1][1] == one.since:
            spans[-1] = (spans[-1][0], one.until)
        else:
            spans.append((one.since, one.until))
    cut = [
        (BASE.ceil(max(low, since)), BASE.open_time(min(high, until)))
        for low, high in spans
        if low < until and high > since
    ]
    return [(low, high) for low, high in cut if low < high]


async def candles_from_trades(
    store: Store,
    market: Market,
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    write: bool = False,
    allow_expiring: bool = False,
) -> TradeCandlesReport:
    """Build 1m candles from the stored trades of [since, until) and compare them.

    write: store those that are missing. Raises InvalidArgument, also where trades do not tell the
    volume of a candle that is to be stored; RetentionConflict, DatabaseError.
    """
    report = TradeCandlesReport(str(market))
    unit = volume_of_one(market)
    if unit is None:
        why = _untold(market)
        if write:
            raise InvalidArgument(f"{market}: {why}; without --write the prices are compared")
        report.notes.append(f"{why}; volumes were not compared")
    known = await store.trades.coverage(market)
    if not known:
        return report
    first = BASE.ceil(since) if since is not None else BASE.open_time(known[0].since)
    end = BASE.open_time(until if until is not None else known[-1].until)
    end = min(end, BASE.open_time(datetime.now(UTC)))
    report.since, report.until = first, max(first, end)
    is_ordered = await store.trades.id_space(market) is not IdSpace.DERIVED
    whole = whole_minutes(known, first, end)
    for low, high in _pieces(whole):
        made = await _made(store, market, low, high, is_ordered=is_ordered)
        if unit is not None:
            made = made.counted_in(unit)
        await _compare(store, market, low, high, made, report, with_volumes=unit is not None)
        if write:
            await _store(store, market, low, high, made, report, allow_expiring=allow_expiring)
    report.incomplete = await _incomplete(store, market, whole, first, end)
    return report


def _pieces(spans: Sequence[Span]) -> list[Span]:
    pieces = []
    for low, high in spans:
        at = low
        while at < high:
            stop = min(high, at + _PIECE)
            pieces.append((at, stop))
            at = stop
    return pieces


async def _made(
    store: Store, market: Market, since: datetime, until: datetime, *, is_ordered: bool
) -> Made:
    parts = [
        candles_of(trades, is_ordered=is_ordered)
        async for trades in _by_minutes(store, market, since, until)
    ]
    if not parts:
        parts.append(candles_of((await store.trades.read(market, until, until)).table,
                                is_ordered=True))  # fmt: skip
    opens: dict[int, set[Decimal]] = {}
    closes: dict[int, set[Decimal]] = {}
    for part in parts:
        opens |= part.opens
        closes |= part.closes
    return Made(pa.concat_tables(part.table for part in parts), opens, closes)


async def _by_minutes(
    store: Store, market: Market, since: datetime, until: datetime
) -> AsyncIterator[pa.Table]:
    """Trades in tables of bounded size that do not divide a minute."""
    held: pa.Table | None = None
    async with aclosing(store.trades.iterate(market, since, until)) as tables:
        async for found in tables:
            table = found.table if held is None else pa.concat_tables([held, found.table])
            times = times_us(table.column("time"))
            cut = int(np.searchsorted(times, times[-1] - times[-1] % _MINUTE_US))
            if cut:
                yield table.slice(0, cut).combine_chunks()
            held = table.slice(cut)
    if held is not None and held.num_rows:
        yield held.combine_chunks()


async def _compare(
    store: Store,
    market: Market,
    since: datetime,
    until: datetime,
    made: Made,
    report: TradeCandlesReport,
    *,
    with_volumes: bool,
) -> None:
    stored = (await store.candles.read(market, BASE, since, until)).table
    stored = stored.select(["time", *NUMBERS]).replace_schema_metadata()
    ours, theirs = times_us(made.table.column("time")), times_us(stored.column("time"))
    report.minutes += (until - since) // _MINUTE
    report.candles += len(ours)
    report.unsure += len(made.opens.keys() | made.closes.keys())
    both, at, there = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    left, right = made.table.take(pa.array(at)), stored.take(pa.array(there))
    if not with_volumes:
        index = left.column_names.index("volume")
        left = left.set_column(index, "volume", right.column("volume"))
    unequal = np.flatnonzero(differs(left, right)).tolist()
    found = []
    for index in unequal:
        minute = int(both[index])
        a = Candle(*left.slice(index, 1).to_pylist()[0].values())
        b = Candle(*right.slice(index, 1).to_pylist()[0].values())
        if not _may_be(a, b, made.opens.get(minute), made.closes.get(minute)):
            found.append(Difference(b.time, b, a))
    report.different += len(found)
    report.equal += len(both) - len(found)
    only_ours = np.setdiff1d(ours, theirs, assume_unique=True)
    only_theirs = np.setdiff1d(theirs, ours, assume_unique=True)
    report.missing += len(only_ours)
    report.unfounded += len(only_theirs)
    for table, times, is_ours in ((made.table, only_ours, True), (stored, only_theirs, False)):
        room = max(0, MAX_LISTED - len(report.differences) - len(found))
        where = np.searchsorted(times_us(table.column("time")), times[:room])
        for row in table.take(pa.array(where)).to_pylist():
            candle = Candle(*row.values())
            found.append(
                Difference(candle.time, None, candle)
                if is_ours
                else Difference(candle.time, candle, None)
            )
    room = max(0, MAX_LISTED - len(report.differences))
    report.differences += sorted(found, key=lambda one: one.time)[:room]


def _may_be(
    made: Candle, stored: Candle, opens: set[Decimal] | None, closes: set[Decimal] | None
) -> bool:
    """Whether the order of trades that nobody knows can have given the stored candle."""
    return (
        made._replace(open=stored.open, close=stored.close) == stored
        and (stored.open == made.open or stored.open in (opens or ()))
        and (stored.close == made.close or stored.close in (closes or ()))
    )


async def _store(
    store: Store,
    market: Market,
    since: datetime,
    until: datetime,
    made: Made,
    report: TradeCandlesReport,
    *,
    allow_expiring: bool,
) -> None:
    """Store what is missing, and that there were no trades where there is no candle."""
    stored = times_us((await store.candles.read(market, BASE, since, until)).column("time"))
    table = made.without_unsure()
    table = table.filter(pa.array(~np.isin(times_us(table.column("time")), stored)))
    traded = times_us(made.table.column("time"))
    empty = [Stretch(low, high, "empty", SOURCE) for low, high in _between(traded, since, until)]
    if not table.num_rows and not empty:
        return
    if table.num_rows:
        times = times_us(table.column("time"))
        note = await store.candles.make_room(times, allow_expiring=allow_expiring)
        if note is not None:
            report.notes.append(note)
    written = await store.candles.write_fetched(
        market, BASE, table, empty, now=datetime.now(UTC), source=SOURCE
    )
    await store.candles.settle([(from_us(low), from_us(high)) for low, high in written.touched])
    report.inserted += written.inserted


def _between(minutes: Times, since: datetime, until: datetime) -> list[Span]:
    """The parts of [since, until) that none of `minutes` is in."""
    edges = np.concatenate(([to_us(since) - _MINUTE_US], minutes, [to_us(until)]))
    at = np.flatnonzero(np.diff(edges) > _MINUTE_US)
    return [(from_us(int(edges[i]) + _MINUTE_US), from_us(int(edges[i + 1]))) for i in at.tolist()]


async def _incomplete(
    store: Store, market: Market, whole: Sequence[Span], since: datetime, until: datetime
) -> int:
    """Minutes with trades that are not known to be all of them."""
    count, at = 0, since
    for low, high in [*whole, (until, until)]:
        async for table in _by_minutes(store, market, at, low) if at < low else _nothing():
            times = times_us(table.column("time"))
            count += len(np.unique(times - times % _MINUTE_US))
        at = max(at, high)
    return count


async def _nothing() -> AsyncIterator[pa.Table]:
    for table in list[Any]():
        yield table
