"""Was a hole in a market's candles an outage, or did nobody trade?

A minute without trades is normal. A stretch in which no market of the exchange has a candle is an
outage. Two or three of the most traded markets stand for all of them, and are asked only about
holes that chance does not explain: what a busy market has is one, what a sleepy one has is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from kurisu.domain.listing import MarketListing
from kurisu.domain.timeframe import TIMEFRAMES, Timeframe
from kurisu.errors import ExchangeError, NotFound
from kurisu.exchange.candles import EMPTY_AGE, CandlePage, PageStatus, candle_pages
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.port import Exchange
from kurisu.store.coverage import common
from kurisu.store.patience import patiently
from kurisu.store.store import Store

Span: TypeAlias = tuple[datetime, datetime]

#: Markets that are asked about a hole, at most.
WITNESSES: Final = 3
#: How many such holes there may be by chance in JUDGED_BARS bars, two years of minutes, before one
#: of them means something. A single minute never does: that all markets miss it happens.
BY_CHANCE: Final = 0.01
JUDGED_BARS: Final = 1_000_000
#: Bars around a hole in which a witness must have traded.
AROUND_BARS: Final = 500
#: Longer holes are not judged: no exchange was down for so long, and asking would cost as much as
#: another market's history.
LONGEST_BARS: Final = 10_000
#: Days that are asked about at a time.
DAYS: Final = 200
#: Answers that are kept.
KEPT: Final = 256

_DAY: Final = TIMEFRAMES["1d"]
#: The assets that are traded most, on any exchange.
_BASES: Final = ("BTC", "ETH", "SOL", "XRP", "BNB", "LTC", "DOGE")
_QUOTES: Final = ("USDT", "USD", "USDC", "FDUSD", "BUSD", "EUR", "KRW", "TRY", "BTC")


@dataclass(frozen=True, slots=True)
class _Testimony:
    """What a witness did in [since, until): spans without candles, sorted."""

    since: datetime
    until: datetime
    missing: tuple[Span, ...]


class Witnesses:
    """Judges holes in the candles of one exchange and timeframe."""

    def __init__(
        self,
        store: Store,
        exchange: Exchange,
        frame: Timeframe,
        listings: Sequence[MarketListing],
        now: datetime,
        grace: timedelta,
    ) -> None:
        """listings: everything that the exchange lists. now: the exchange's time."""
        self._store = store
        self._exchange = exchange
        self._frame = frame
        self._grace = grace
        self._closed = frame.open_time(now - grace)
        #: What opens later is too young to be called empty: no witness says anything about it.
        self._settled = min(self._closed, frame.open_time(now - EMPTY_AGE))
        self._ranked = sorted((one for one in listings if one.active), key=_rank)
        self._asked: dict[tuple[str, datetime], asyncio.Task[_Testimony | None]] = {}
        self._days: dict[tuple[str, datetime], asyncio.Task[set[datetime]]] = {}

    async def outages(self, symbol: str, page: CandlePage, *, traded_before: bool) -> list[Span]:
        """The parts of the page's holes in which the exchange was down, by time.

        traded_before: the market had candles before the page.
        """
        if self._frame.is_calendar or not page.holes:
            return []
        bars = self._bars(page.since, page.until)
        without = sum(self._bars(*hole) for hole in page.holes)
        found: list[Span] = []
        for hole in page.holes:
            length = self._bars(*hole)
            if length > LONGEST_BARS or not (traded_before or hole[0] > page.since):
                continue
            # A page that is little but the hole says nothing about how often the market trades.
            share = _share(without - length, bars - length) if bars >= 2 * length else 1.0
            if length > 1 and (share == 1.0 or not _is_chance(share, length)):
                found += await self._judge(symbol, hole, share)
        return found

    async def close(self) -> None:
        """Stop asking."""
        tasks = [*self._asked.values(), *self._days.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _judge(self, symbol: str, hole: Span, share: float) -> list[Span]:
        length = self._frame.length
        around = (hole[0] - AROUND_BARS * length, hole[1] + AROUND_BARS * length)
        missing: list[Span] = [hole]
        heard = 0
        for witness in self._witnesses(symbol):
            said = await self._ask(witness, around)
            if said is None or not self._traded_around(said, hole):
                continue
            heard += 1
            missing = common(missing, said.missing)
            bars = self._bars(said.since, said.until) - self._bars(*hole)
            outside = sum(self._bars(*one) for one in said.missing) - sum(
                self._bars(*one) for one in common([hole], said.missing)
            )
            share *= _share(outside, bars)
            missing = [m for m in missing if not _is_chance(share, self._bars(*m))]
            if not missing:
                return []
        return missing if heard else []

    def _witnesses(self, symbol: str) -> list[str]:
        kind = next((one.type for one in self._ranked if one.symbol == symbol), "spot")
        others = [one for one in self._ranked if one.symbol != symbol]
        # An exchange's spot and futures are often two systems.
        others.sort(key=lambda one: one.type != kind)
        return [one.symbol for one in others[:WITNESSES]]

    def _traded_around(self, said: _Testimony, hole: Span) -> bool:
        """True if it traded before the hole and, unless that is still to come, after it."""
        before = _uncovered(said.since, hole[0], said.missing)
        after = _uncovered(hole[1], said.until, said.missing)
        return before and (after or said.until >= self._settled)

    async def _ask(self, witness: str, around: Span) -> _Testimony | None:
        """Testimonies are kept in blocks that many holes share."""
        block = AROUND_BARS * self._frame.length
        origin = self._frame.origin
        at = around[0] - (around[0] - origin) % block
        parts = []
        while at < min(around[1], self._settled):
            key = (witness, at)
            task = self._asked.get(key)
            if task is None:
                if len(self._asked) >= KEPT:
                    self._asked.pop(next(iter(self._asked)))
                span = (at, min(at + block, self._closed))
                task = self._asked[key] = asyncio.create_task(self._testimony(witness, span))
            part = await asyncio.shield(task)
            if part is None:
                return None
            parts.append(part)
            at += block
        if not parts:
            return None
        missing: list[Span] = []
        for span in (span for part in parts for span in part.missing):
            if missing and missing[-1][1] == span[0]:
                span = (missing.pop()[0], span[1])
            missing.append(span)
        return _Testimony(parts[0].since, parts[-1].until, tuple(missing))

    async def _testimony(self, witness: str, span: Span) -> _Testimony | None:
        """From what is stored, else from the exchange; None if it cannot tell."""
        stored = await self._stored(witness, span)
        if stored is not None:
            return stored
        missing: list[Span] = []
        at = span[0]
        try:
            days = {_DAY.open_time(span[0]), _DAY.open_time(span[1] - timedelta(microseconds=1))}
            if not any([await self._was_there(witness, day) for day in days]):
                return _Testimony(*span, (span,))
            async for page in candle_pages(
                self._exchange, witness, self._frame, *span, grace=self._grace
            ):
                if page.status is PageStatus.UNAVAILABLE:
                    return None
                missing += page.holes
                at = page.until
        except ExchangeError:
            return None
        return _Testimony(span[0], at, tuple(missing)) if at > span[0] else None

    async def _was_there(self, witness: str, day: datetime) -> bool:
        """Whether it was traded at all on that day; one answer tells of many days.

        Of a market that was not listed yet every minute would be asked for in vain.
        """
        if self._frame.seconds >= _DAY.seconds or _DAY.name not in self._exchange.timeframes:
            return True
        count = min(DAYS, self._exchange.venue.most_candles(_DAY.seconds * 1000))
        length = count * _DAY.length
        since = day - (day - _DAY.origin) % length
        key = (witness, since)
        if key not in self._days:
            self._days[key] = asyncio.create_task(self._traded_days(witness, since, count))
        return day in await asyncio.shield(self._days[key])

    async def _traded_days(self, witness: str, since: datetime, count: int) -> set[datetime]:
        for _ in range(2):
            rows = await self._exchange.fetch_candles(witness, _DAY.name, to_ms(since), count)
            if rows:
                break
        return {_DAY.open_time(from_ms(row.time_ms)) for row in rows}

    async def _stored(self, witness: str, span: Span) -> _Testimony | None:
        try:
            market = await patiently(lambda: self._store.markets.get(self._exchange.name, witness))
        except NotFound:
            return None
        at = span[0]
        missing = []
        for one in await patiently(
            lambda: self._store.candles.coverage(market, self._frame, *span)
        ):
            if one.since > at or one.status == "failed":
                return None
            if one.status != "complete":
                missing.append((one.since, one.until))
            at = one.until
        return _Testimony(*span, tuple(missing)) if at >= span[1] else None

    def _bars(self, since: datetime, until: datetime) -> int:
        return (until - since) // self._frame.length


def _rank(listing: MarketListing) -> tuple[int, int, str]:
    base, quote = listing.name.base, listing.name.quote
    return (
        _BASES.index(base) if base in _BASES else len(_BASES),
        _QUOTES.index(quote) if quote in _QUOTES else len(_QUOTES),
        listing.symbol,
    )


def _share(without: int, bars: int) -> float:
    """The share of bars without candles, of which `without` of `bars` were seen. Never 0: that
    none was seen does not mean that there is none."""
    return (max(0, without) + 1) / (max(0, bars) + 1)


def _is_chance(share: float, length: int) -> bool:
    """Whether `length` bars in a row without candles mean nothing where `share` of all have
    none."""
    return length < 2 or JUDGED_BARS * share**length >= BY_CHANCE


def _uncovered(since: datetime, until: datetime, spans: Iterable[Span]) -> bool:
    """True if something of [since, until) is in none of `spans`, which are sorted."""
    at = since
    for start, end in spans:
        if end <= at:
            continue
        if start > at or at >= until:
            break
        at = end
    return at < until
