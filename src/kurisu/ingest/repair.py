"""Repair: every hole of what is stored is asked for again, and a sample is compared.

In: a store, an open exchange, markets with a timeframe each. Out: a `MarketRepair` for each. A hole
is what is missing between the first and the last known bar, an outage, a failed fetch, or a candle
that coverage claims and that somebody deleted. Of what the exchange once said was empty some is
asked for again, or all: a candle that comes there makes a hole of it, and is stored. Candles that
differ are reported; they are changed, and what they were is remembered, only if the caller says so.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypeAlias

import pyarrow as pa

from kurisu.domain.timeframe import Timeframe
from kurisu.errors import ExchangeError, InvalidArgument
from kurisu.exchange.candles import CandlePage, PageStatus, candle_pages
from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.ingest.backfill import MarketBackfill, Watch, run_backfill
from kurisu.store.coverage import Stretch, common
from kurisu.store.markets import Market
from kurisu.store.patience import patiently
from kurisu.store.store import Store

Span: TypeAlias = tuple[datetime, datetime]
Numbers: TypeAlias = tuple[Decimal | str | None, ...]

#: Candles of a market that are compared, if nobody says how many.
SAMPLE: Final = 1_000
_NUMBERS: Final = ("open", "high", "low", "close", "volume")


@dataclass(frozen=True, slots=True)
class Difference:
    """A candle that is stored otherwise than the exchange shows it now.

    stored, exchange: open, high, low, close, volume; None where there is no candle.
    """

    time: datetime
    stored: Numbers | None
    exchange: Numbers | None


@dataclass(slots=True)
class MarketRepair:
    """What became of one market and timeframe.

    asked_empty: bars known as empty that were asked for again. untrue: those that have a candle.
    holes: bars that were asked for again because they are no part of what is known; deleted: among
    them, bars that coverage had claimed.
    backfill: what became of the holes; None if there was none. compared: candles of the sample.
    differences: by time. revised: how many of them were stored as the exchange has them.
    problem: why something could not be compared or asked for again; None if all could.
    """

    market: str
    timeframe: str
    asked_empty: int = 0
    untrue: int = 0
    holes: int = 0
    deleted: int = 0
    backfill: MarketBackfill | None = None
    compared: int = 0
    differences: list[Difference] = field(default_factory=list)
    revised: int = 0
    problem: str | None = None

    @property
    def is_whole(self) -> bool:
        """No hole is left, and nothing that was compared differs any more."""
        filled = self.backfill is None or self.backfill.is_done
        return filled and self.problem is None and self.revised == len(self.differences)


async def repair(
    store: Store,
    exchange: CcxtExchange,
    market: Market,
    timeframe: Timeframe,
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    sample: int = SAMPLE,
    empty: bool = False,
    apply: bool = False,
    allow_expiring: bool = False,
    watch: Watch | None = None,
    chance: random.Random | None = None,
) -> MarketRepair:
    """Fill the holes of one market and compare a sample of it.

    since, until: None for the first and the last known bar. sample: candles to compare, and about
    as many bars known as empty to ask for again; 0 for none. empty: ask for all of these. apply:
    store differing candles as the exchange has them. chance: picks the sample.
    Raises ExchangeError if the exchange cannot be asked at all, RetentionConflict, DatabaseError.
    """
    report = MarketRepair(str(market), timeframe.name)
    extent = await patiently(store.candles.known_extent, market, timeframe)
    if extent is None:
        return report
    first = extent[0] if since is None else timeframe.ceil(since)
    end = extent[1] if until is None else min(timeframe.ceil(until), extent[1])
    if first >= end:
        return report
    # Which candles are looked at is no secret.
    chance = chance or random.Random()  # noqa: S311
    report.deleted = await patiently(store.candles.forget_missing, market, timeframe, first, end)
    if sample or empty:
        await _ask_empty(store, exchange, market, timeframe, report, (first, end),
                         None if empty else sample, chance)  # fmt: skip
    if sample:
        await _compare(store, exchange, market, timeframe, report, (first, end), sample, apply,
                       chance)  # fmt: skip
    filled = await run_backfill(
        store, exchange, [market], timeframe, first, end,
        allow_expiring=allow_expiring, watch=watch, refetch=False,
    )  # fmt: skip
    (backfill,) = filled.markets
    report.holes = backfill.requested
    report.backfill = backfill if backfill.requested else None
    return report


async def _ask_empty(
    store: Store,
    exchange: CcxtExchange,
    market: Market,
    frame: Timeframe,
    report: MarketRepair,
    span: Span,
    sample: int | None,
    chance: random.Random,
) -> None:
    """Ask again for what is known as empty, and take that back where candles come: they are holes
    then, and the backfill that follows stores them. sample: bars, about; None for all."""
    known = await patiently(store.candles.coverage, market, frame, *span)
    empty = [(one.since, one.until) for one in known if one.status == "empty"]
    limit = exchange.venue.most_candles(frame.seconds * 1000)
    looks = together(empty, frame, limit)
    if sample is not None:
        looks = sorted(chance.sample(looks, min(len(looks), -(-sample // limit))))
    for since, until in looks:
        try:
            async for page in _answers(exchange, market, frame, since, until):
                times = page.table.column("time").to_pylist()
                report.untrue += await _take_back(store, market, frame, times)
                asked = common(empty, [(page.since, page.until)])
                report.asked_empty += sum(frame.count(*one) for one in asked)
        except ExchangeError as error:
            report.problem = error.reason
            return


async def _answers(
    exchange: CcxtExchange, market: Market, frame: Timeframe, since: datetime, until: datetime
) -> AsyncGenerator[CandlePage]:
    """What the exchange says of [since, until); raises ExchangeError."""
    grace = timedelta(seconds=exchange.settings.grace_s)
    pages = candle_pages(exchange, market.symbol, frame, since, until, grace=grace)
    async with aclosing(pages):
        async for page in pages:
            if page.status is PageStatus.ANSWERED:
                yield page


async def _take_back(
    store: Store, market: Market, frame: Timeframe, times: Sequence[datetime]
) -> int:
    """That there is nothing at `times`, where that is known; how many bars that is."""
    opened = sorted({frame.open_time(time) for time in times})
    bars = [(time, frame.close_time(time)) for time in opened]
    return await patiently(store.candles.forget_empty, market, frame, bars)


def together(spans: Sequence[Span], frame: Timeframe, limit: int) -> list[Span]:
    """Windows in which `spans` lie, as few as may be: each is one span, or has `limit` bars."""
    found: list[Span] = []
    end: datetime | None = None
    for since, until in spans:
        if end is not None and until <= end:
            found[-1] = (found[-1][0], until)
            continue
        found.append((since, until))
        end = _later(frame, since, limit)
    return found


async def _compare(
    store: Store,
    exchange: CcxtExchange,
    market: Market,
    frame: Timeframe,
    report: MarketRepair,
    span: tuple[datetime, datetime],
    sample: int,
    apply: bool,
    chance: random.Random,
) -> None:
    found = await patiently(store.candles.coverage, market, frame, *span)
    known = [one for one in found if one.status in ("complete", "empty")]
    stored = [one for one in known if one.status == "complete"]
    limit = exchange.venue.most_candles(frame.seconds * 1000)
    for since, until in windows(stored, frame, sample, limit, chance):
        try:
            async for page in _answers(exchange, market, frame, since, until):
                await _compare_page(store, market, frame, report, page, known, apply)
        except ExchangeError as error:
            report.problem = error.reason
            return
    report.differences.sort(key=lambda one: one.time)


async def _compare_page(
    store: Store,
    market: Market,
    frame: Timeframe,
    report: MarketRepair,
    page: CandlePage,
    known: Sequence[Stretch],
    apply: bool,
) -> None:
    stored = _by_time(await patiently(store.candles.stored, market, frame, page.since, page.until))
    theirs = _by_time(page.table)
    found = [
        Difference(time, stored.get(time), theirs.get(time))
        for time in sorted(stored.keys() | theirs.keys())
        if stored.get(time) != theirs.get(time)
        and any(one.since <= time < one.until for one in known)
    ]
    # Where there was said to be nothing is a hole now, which the backfill fills.
    empty = [one for one in known if one.status == "empty"]
    untrue = [d for d in found if any(one.since <= d.time < one.until for one in empty)]
    report.untrue += await _take_back(store, market, frame, [one.time for one in untrue])
    found = [one for one in found if one not in untrue]
    report.compared += len(stored)
    report.differences += found
    if not (apply and found):
        return
    changed = {one.time for one in found if one.exchange is not None}
    at = [i for i, time in enumerate(page.table.column("time").to_pylist()) if time in changed]
    written = await patiently(
        store.candles.write_fetched,
        market,
        frame,
        page.table.take(pa.array(at, pa.int64())),
        [],
        now=page.exchange_time,
    )
    report.revised += written.inserted + written.updated
    await patiently(store.candles.settle, [(page.since, page.until)])


def _by_time(table: pa.Table) -> dict[datetime, Numbers]:
    columns = [table.column(name).to_pylist() for name in ("time", *_NUMBERS)]
    return {
        time: tuple(_number(one) for one in numbers)
        for time, *numbers in zip(*columns, strict=True)
    }


def _number(value: Any) -> Decimal | str | None:
    """A column is text as a whole if one of its numbers does not fit."""
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]  # Arrow's values have no type
    try:
        return Decimal(value)
    except ArithmeticError:
        return value


def windows(
    known: Sequence[Stretch], frame: Timeframe, sample: int, limit: int, chance: random.Random
) -> list[tuple[datetime, datetime]]:
    """Where to look: windows of at most `limit` bars, `sample` in all, from bars of `known` on, at
    random; everything if there are not more."""
    total = sum(frame.count(one.since, one.until) for one in known)
    if not total:
        return []
    if total <= sample:
        return [(known[0].since, known[-1].until)]
    found: list[tuple[datetime, datetime]] = []
    left = sample
    while left > 0:
        at = chance.randrange(total)
        bars = min(left, limit)
        for one in known:
            count = frame.count(one.since, one.until)
            if at < count:
                since = _later(frame, one.since, min(at, max(0, count - bars)))
                found.append((since, min(_later(frame, since, bars), known[-1].until)))
                break
            at -= count
        left -= bars
    return sorted(found)


def _later(frame: Timeframe, at: datetime, bars: int) -> datetime:
    if not frame.is_calendar:
        return at + bars * frame.length
    for _ in range(bars):
        at = frame.close_time(at)
    return at


async def chosen_series(
    store: Store, exchange: str, symbols: Sequence[str], timeframe: Timeframe | None
) -> list[tuple[Market, Timeframe]]:
    """What anything is known of: of these symbols (all if there are none) and of that timeframe.

    Raises InvalidArgument where nothing is known of a symbol.
    """
    known = await patiently(store.candles.series, exchange)
    for symbol in symbols:
        if all(market.symbol != symbol for market, _ in known):
            raise InvalidArgument(
                f"nothing is stored of {exchange}:{symbol}; `kurisu candles backfill {exchange} "
                f"{symbol} --since ...` fetches it."
            )
    return [
        (market, frame)
        for market, frame in known
        if (not symbols or market.symbol in symbols) and timeframe in (None, frame)
    ]
