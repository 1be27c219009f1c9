"""Gaps: where candles are not, and what is known about that.

The stored rows say where there are candles, `candle_coverage` says why there are none elsewhere:
the exchange confirmed it, had an outage, or the fetch failed. What neither speaks of was never
fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.timeframe import BASE, TIMEFRAMES, Timeframe
from kurisu.store.candle_read import opens_between
from kurisu.store.coverage import NEAR, Stretch

#: Status of a gap that nobody has asked the exchange about.
MISSING: Final = "missing"


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch without candles.

    since: open time of the first bar that is not there. until: exclusive.
    bars: how many are not there. status: missing (not fetched), empty (the exchange confirmed
    that there were no trades), outage or failed. reason: why, of the last two.
    """

    since: datetime
    until: datetime
    bars: int
    status: str
    reason: str | None = None


# First and last stored candle. Parameters: market_id, timeframe, since, until.
BOUNDS: Final = """
SELECT min(time) AS first, max(time) AS last FROM ohlcv
 WHERE market_id = :market_id AND timeframe = :timeframe
   AND time >= CAST(:since AS timestamptz) AND time < CAST(:until AS timestamptz)
"""

# Holes between neighbouring candles. Months are added in UTC, whatever the session's time zone is.
# Parameters: market_id, timeframe, since, until, length (an interval: of a bar). Columns: since
# (close of the candle before), until (open of the one after).
HOLES: Final = """
SELECT close AS since, next AS until
  FROM (SELECT (time AT TIME ZONE 'UTC' + CAST(CAST(:length AS text) AS interval))
                   AT TIME ZONE 'UTC' AS close,
               lead(time) OVER (ORDER BY time) AS next FROM ohlcv
         WHERE market_id = :market_id AND timeframe = :timeframe
           AND time >= CAST(:since AS timestamptz) AND time < CAST(:until AS timestamptz)) c
 WHERE next > close
 ORDER BY close
"""

# First and last bar of some markets, whatever they are made from. Parameters: market_ids, names
# (of timeframes). Columns: first, last.
EXTENT: Final = """
SELECT min(e.first) AS first, max(e.last) AS last
  FROM unnest(CAST(:market_ids AS integer[])) AS m(id)
 CROSS JOIN unnest(CAST(:names AS text[])) AS t(name)
 CROSS JOIN LATERAL (
    SELECT (SELECT time FROM ohlcv WHERE market_id = m.id AND timeframe = t.name
             ORDER BY time LIMIT 1) AS first,
           (SELECT time FROM ohlcv WHERE market_id = m.id AND timeframe = t.name
             ORDER BY time DESC LIMIT 1) AS last) e
"""

# The days of some markets' bars, which may reach beyond the candles: retention keeps the bars.
# Parameters: market_ids. Columns: first, until (close of the last day).
ROLLUP_EXTENT: Final = """
SELECT min(time) AS first, max(time) + INTERVAL '24 hours' AS until FROM ohlcv_1d
 WHERE market_id = ANY(CAST(:market_ids AS integer[]))
"""


# Timeframes that a market's candles are stored under, and the one asked for if anything is said of
# it. Parameters: market_id, timeframe. Columns: timeframe.
NATIVE: Final = """
SELECT timeframe FROM candle_series WHERE market_id = :market_id
 UNION ALL
SELECT CAST(:timeframe AS text) WHERE EXISTS (
    SELECT 1 FROM candle_coverage
     WHERE market_id = :market_id AND timeframe = CAST(:timeframe AS text))
"""


async def made_from(connection: AsyncConnection, market_id: int, frame: Timeframe) -> Timeframe:
    """`frame` if candles of it are stored or anything is said of them; else the shortest stored
    timeframe that divides it; else `frame`."""
    asked = {"market_id": market_id, "timeframe": frame.name}
    native = set(await connection.scalars(text(NATIVE), asked))
    if frame.name in native:
        return frame
    finer = (f for name, f in TIMEFRAMES.items() if name in native and f.divides(frame))
    return next(finer, frame)


async def extent(
    connection: AsyncConnection, market_ids: Sequence[int], frame: Timeframe
) -> tuple[datetime | None, datetime | None]:
    """Open times of the first and the last bar of `frame` over all the markets; (None, None)."""
    names = [f.name for f in TIMEFRAMES.values() if f == frame or f.divides(frame)]
    row = (
        await connection.execute(text(EXTENT), {"market_ids": list(market_ids), "names": names})
    ).one()
    first, last = row.first, row.last
    if frame != BASE:
        kept = (
            await connection.execute(text(ROLLUP_EXTENT), {"market_ids": list(market_ids)})
        ).one()
        if kept.first is not None:
            # The last bar of a day whose candles are gone may be any.
            end = kept.until - timedelta(microseconds=1)
            first, last = min(first or kept.first, kept.first), max(last or end, end)
    if first is None or last is None:
        return None, None
    return frame.open_time(first), frame.open_time(last)


async def gaps(
    connection: AsyncConnection,
    market_id: int,
    frame: Timeframe,
    since: datetime | None,
    until: datetime | None,
) -> list[Gap]:
    """Every stretch in [since, until) without stored candles of `frame`, by time.

    Without `since` from the first stored candle on, without `until` up to the last one.
    """
    low, high = opens_between(frame, since, until)
    key = {"market_id": market_id, "timeframe": frame.name, "since": low, "until": high}
    bounds = (await connection.execute(text(BOUNDS), key)).one()
    holes: list[tuple[datetime, datetime]] = []
    if bounds.first is None:
        if since is not None and until is not None and low < high:
            holes = [(low, high)]
    else:
        if since is not None and low < bounds.first:
            holes.append((low, bounds.first))
        length = "1 month" if frame.is_calendar else f"{frame.seconds} seconds"
        rows = await connection.execute(text(HOLES), {**key, "length": length})
        holes += [(row.since, row.until) for row in rows]
        last = frame.close_time(bounds.last)
        if until is not None and last < high:
            holes.append((last, high))
    if not holes:
        return []
    known = [
        Stretch(*row)
        for row in await connection.execute(
            text(NEAR), {**key, "since": holes[0][0], "until": holes[-1][1]}
        )
        if row.status != "complete"
    ]
    return _explained(holes, known, frame)


def _explained(
    holes: Sequence[tuple[datetime, datetime]], known: Sequence[Stretch], frame: Timeframe
) -> list[Gap]:
    """Cut the holes where what is known about them changes."""
    result: list[Gap] = []
    start = 0
    for since, until in holes:
        at = since
        while start < len(known) and known[start].until <= since:
            start += 1
        index = start
        while index < len(known) and known[index].since < until:
            stretch = known[index]
            if stretch.since > at:
                result.append(_gap(at, stretch.since, MISSING, frame))
                at = stretch.since
            end = min(until, stretch.until)
            result.append(_gap(at, end, stretch.status, frame, stretch.reason))
            at = end
            index += 1
        if at < until:
            result.append(_gap(at, until, MISSING, frame))
    return result


def _gap(
    since: datetime, until: datetime, status: str, frame: Timeframe, reason: str | None = None
) -> Gap:
    return Gap(since, until, frame.count(since, until), status, reason)
