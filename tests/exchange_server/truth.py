"""What happened on the market: the truth that tests compare with, digit for digit."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, Decimal
from typing import Final, NamedTuple

from exchange_server.clock import MINUTE_MS

#: Lengths of the timeframes that the venues serve; all are made from 1m here.
LENGTH_MS: Final = {
    "1m": MINUTE_MS, "3m": 3 * MINUTE_MS, "5m": 5 * MINUTE_MS, "15m": 15 * MINUTE_MS,
    "30m": 30 * MINUTE_MS, "1h": 60 * MINUTE_MS, "4h": 240 * MINUTE_MS, "1d": 1440 * MINUTE_MS,
}  # fmt: skip


class Bar(NamedTuple):
    """open_ms: open time. The rest: exact, in the spelling of the source."""

    open_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal


class Tick(NamedTuple):
    """One public trade (or aggregate trade). id: None where the venue gives none.

    time: as the venue spells it on the wire, for venues that send more than milliseconds.
    """

    id: int | None
    time_ms: int
    price: Decimal
    amount: Decimal
    side: str
    time_ns: int = 0


@dataclass(slots=True)
class Series:
    """Candles of one market, 1m, by time; minutes without trades are missing where they are."""

    bars: list[Bar] = field(default_factory=list)
    #: What a bar looked like before the exchange changed it: open_ms -> (changed at, early bar).
    early: dict[int, tuple[int, Bar]] = field(default_factory=dict)
    #: How a venue spells its bars, by timeframe and open_ms; a measurement is not of spelling.
    spelled: dict[tuple[str, int], tuple[Bar, str]] = field(default_factory=dict)
    _rolled: dict[str, list[Bar]] = field(default_factory=dict)

    def revise(self, open_ms: int, changed_at_ms: int, early: Bar) -> None:
        """Serve `early` for a closed candle until `changed_at_ms`, the truth from then on."""
        self.early[open_ms] = (changed_at_ms, early)

    def closed(self, timeframe: str, now_ms: int) -> list[Bar]:
        """Every candle that has closed by now, as the exchange shows it now."""
        length = LENGTH_MS[timeframe]
        bars = self._of(timeframe)
        last = bisect_right(bars, now_ms - length, key=lambda bar: bar.open_ms)
        return [self._seen(bar, now_ms) for bar in bars[:last]]

    def select(
        self,
        timeframe: str,
        now_ms: int,
        since_ms: int | None,
        until_ms: int | None,
        limit: int,
        *,
        newest: bool = False,
    ) -> list[Bar]:
        """Candles that open in [since, until], the open one included; the first `limit` of them,
        or the newest."""
        length = LENGTH_MS[timeframe]
        bars = self._of(timeframe)
        first = 0 if since_ms is None else bisect_left(bars, since_ms, key=lambda b: b.open_ms)
        end_ms = now_ms if until_ms is None else min(now_ms, until_ms)
        last = bisect_right(bars, end_ms, key=lambda bar: bar.open_ms)
        first, last = (
            (max(first, last - limit), last) if newest else (first, min(last, first + limit))
        )
        found = bars[first:last]
        return [
            self._seen(bar, now_ms) if bar.open_ms + length <= now_ms else unfinished(bar)
            for bar in found
        ]

    def _seen(self, bar: Bar, now_ms: int) -> Bar:
        changed = self.early.get(bar.open_ms)
        return changed[1] if changed is not None and now_ms < changed[0] else bar

    def _of(self, timeframe: str) -> list[Bar]:
        if timeframe == "1m":
            return self.bars
        if timeframe not in self._rolled:
            self._rolled[timeframe] = roll(self.bars, LENGTH_MS[timeframe])
        return self._rolled[timeframe]


def unfinished(bar: Bar) -> Bar:
    """The bar while it is open: another close, high and volume than it will have."""
    volume = (bar.volume / 3).quantize(Decimal("1E-8"), ROUND_DOWN)
    return Bar(bar.open_ms, bar.open, bar.open, bar.open, bar.open, volume)


def roll(bars: Iterable[Bar], length_ms: int) -> list[Bar]:
    """Bars of a longer timeframe."""
    made: list[Bar] = []
    for bar in bars:
        opened = bar.open_ms - bar.open_ms % length_ms
        if made and made[-1].open_ms == opened:
            last = made[-1]
            made[-1] = Bar(
                opened, last.open, max(last.high, bar.high), min(last.low, bar.low),
                bar.close, last.volume + bar.volume,
            )  # fmt: skip
        else:
            made.append(bar._replace(open_ms=opened))
    return made


@dataclass(slots=True)
class Tape:
    """Trades of one market, by time and id."""

    ticks: list[Tick] = field(default_factory=list)

    def visible(self, now_ms: int) -> Sequence[Tick]:
        return self.ticks[: bisect_right(self.ticks, now_ms, key=lambda tick: tick.time_ms)]

    def since(self, now_ms: int, since_ms: int, until_ms: int | None, limit: int) -> list[Tick]:
        """The first `limit` trades in [since, until]."""
        first = bisect_left(self.ticks, since_ms, key=lambda tick: tick.time_ms)
        end_ms = now_ms if until_ms is None else min(now_ms, until_ms)
        last = bisect_right(self.ticks, end_ms, key=lambda tick: tick.time_ms)
        return self.ticks[first:last][:limit]

    def from_id(self, now_ms: int, first_id: int, limit: int) -> list[Tick]:
        visible = self.visible(now_ms)
        first = bisect_left(visible, first_id, key=lambda tick: tick.id or 0)
        return list(visible[first : first + limit])


@dataclass(slots=True)
class Listing:
    """A market of a venue: its entry in the venue's own format, and what happened on it.

    id: the venue's name, e.g. SHIBUSDT, tBTCUSD. delisted_ms: from then on nothing is traded.
    gone: the venue no longer knows the name once it is delisted.
    """

    id: str
    entry: dict[str, object]
    series: Series = field(default_factory=Series)
    tape: Tape = field(default_factory=Tape)
    delisted_ms: int | None = None
    gone: bool = False

    def delisted(self, now_ms: int) -> bool:
        return self.delisted_ms is not None and now_ms >= self.delisted_ms

    def traded_until(self, until_ms: int) -> int:
        """The last time, up to `until_ms`, at which there can be rows."""
        return until_ms if self.delisted_ms is None else min(until_ms, self.delisted_ms - 1)

    def candles(
        self,
        timeframe: str,
        now_ms: int,
        since_ms: int | None,
        until_ms: int | None,
        limit: int,
        *,
        newest: bool = False,
    ) -> list[Bar]:
        """`Series.select`, up to the delisting."""
        until_ms = self.traded_until(now_ms if until_ms is None else until_ms)
        return self.series.select(timeframe, now_ms, since_ms, until_ms, limit, newest=newest)
