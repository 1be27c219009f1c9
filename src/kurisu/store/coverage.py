"""Coverage: which stretches of time are known, and how (`candle_coverage`).

Ranges of one market and timeframe never overlap. A later statement about a stretch replaces an
earlier one, except that nothing but rows being stored makes it `complete`. Trades have a table of
their own (`trade_coverage`); what is said of stretches here holds for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.timeframe import TIMEFRAMES, Timeframe

#: Characters of a reason that are kept.
REASON_LENGTH: Final = 500
#: Advisory lock of a market: its candles, its coverage; triggers take the same one.
MARKET_LOCK: Final = 1_264_939_593


@dataclass(frozen=True, slots=True)
class Stretch:
    """A known stretch.

    since, until: of candles the open time of the first bar and the close time of the last
        (exclusive); of trades whole milliseconds.
    status: complete, empty, outage or failed.
    source: what said so, e.g. "file", "rest", "stream".
    reason: why, of outages and failures.
    """

    since: datetime
    until: datetime
    status: str
    source: str
    reason: str | None = None

    @property
    def kind(self) -> tuple[str | None, ...]:
        """What neighbours have to share to be one stretch."""
        return self.status, self.source, self.reason

    @property
    def said(self) -> tuple[str, str | None]:
        """What is news if it differs; who says it is not."""
        return self.status, self.reason


by_time: Final = attrgetter("since", "until")


# Stretches that touch or overlap a range. Parameters: market_id, timeframe, since, until.
NEAR: Final = """
SELECT since, until, status, source, reason FROM candle_coverage
 WHERE market_id = :market_id AND timeframe = :timeframe
   AND until >= CAST(:since AS timestamptz) AND since <= CAST(:until AS timestamptz)
 ORDER BY since
"""

DELETE: Final = """
DELETE FROM candle_coverage
 WHERE market_id = :market_id AND timeframe = :timeframe
   AND since = ANY(CAST(:sinces AS timestamptz[]))
"""

# Stretches whose rows were stored and are no longer all there, because their chunk was dropped: a
# chunk is made with the first row in it. Columns: market_id, timeframe, since, until, source.
DROPPED: Final = """
SELECT c.market_id, c.timeframe, c.since, c.until, c.source FROM candle_coverage c
 WHERE c.status = 'complete'
   AND NOT tstzrange(c.since, c.until) <@ (
       SELECT coalesce(range_agg(tstzrange(range_start, range_end)), '{}')
         FROM timescaledb_information.chunks
        WHERE hypertable_schema = current_schema() AND hypertable_name = 'ohlcv')
 ORDER BY c.market_id, c.timeframe, c.since
"""

# What there are chunks for. Columns: since, until.
CHUNKS: Final = """
SELECT lower(r) AS since, upper(r) AS until
  FROM (SELECT range_agg(tstzrange(range_start, range_end)) AS ranges
          FROM timescaledb_information.chunks
         WHERE hypertable_schema = current_schema() AND hypertable_name = 'ohlcv') c,
       unnest(c.ranges) AS r
 ORDER BY 1
"""

INSERT: Final = """
INSERT INTO candle_coverage (market_id, timeframe, since, until, status, source, reason)
SELECT :market_id, :timeframe, r.since, r.until, r.status, r.source, r.reason
  FROM unnest(CAST(:sinces AS timestamptz[]), CAST(:untils AS timestamptz[]),
              CAST(:statuses AS text[]), CAST(:sources AS text[]), CAST(:reasons AS text[]))
       AS r(since, until, status, source, reason)
"""


def overlay(known: Sequence[Stretch], stated: Sequence[Stretch]) -> list[Stretch]:
    """`known` with `stated` laid over it: sorted, disjoint, neighbours of one kind joined.

    Both are sorted and disjoint. A stated stretch that only repeats what is known (the same status
    for the same reason) changes nothing, its source included.
    """
    news = unknown(stated, known)
    kept = without(known, news)
    joined: list[Stretch] = []
    for found in sorted([*kept, *news], key=by_time):
        last = joined[-1] if joined else None
        if last and last.until == found.since and last.kind == found.kind:
            joined[-1] = replace(last, until=found.until)
        else:
            joined.append(found)
    return joined


def unknown(stated: Sequence[Stretch], known: Sequence[Stretch]) -> list[Stretch]:
    """What of `stated` is not known yet; both are sorted and disjoint."""
    return without(stated, known, repeated=True)


def without(
    ranges: Sequence[Stretch], holes: Sequence[Stretch], *, repeated: bool = False
) -> list[Stretch]:
    """`ranges` minus `holes`; with `repeated` only holes that say the same count."""
    result: list[Stretch] = []
    start = 0
    for found in ranges:
        since = found.since
        while start < len(holes) and holes[start].until <= found.since:
            start += 1
        at = start
        while at < len(holes) and holes[at].since < found.until:
            hole = holes[at]
            if not repeated or hole.said == found.said:
                if hole.since > since:
                    result.append(replace(found, since=since, until=hole.since))
                since = max(since, hole.until)
            at += 1
        if since < found.until:
            result.append(replace(found, since=since, until=found.until))
    return result


def missing(
    known: Sequence[Stretch], since: datetime, until: datetime
) -> list[tuple[datetime, datetime]]:
    """The parts of [since, until) that are neither complete nor confirmed to be empty, by time."""
    whole = [Stretch(since, until, "", "")] if since < until else []
    sure = [one for one in known if one.status in ("complete", "empty")]
    return [(one.since, one.until) for one in without(whole, sure)]


def common(
    left: Sequence[tuple[datetime, datetime]], right: Sequence[tuple[datetime, datetime]]
) -> list[tuple[datetime, datetime]]:
    """What is in both; each is sorted and disjoint, and so is the result."""
    found = []
    start = 0
    for since, until in left:
        while start < len(right) and right[start][1] <= since:
            start += 1
        at = start
        while at < len(right) and right[at][0] < until:
            found.append((max(since, right[at][0]), min(until, right[at][1])))
            at += 1
    return found


async def state(
    connection: AsyncConnection, market_id: int, frame: Timeframe, stated: Iterable[Stretch]
) -> list[Stretch]:
    """Record `stated`; returns what of it was not known before.

    The caller holds the market's lock.
    """
    wanted = sorted(map(cut, stated), key=by_time)
    if not wanted:
        return []
    key = {"market_id": market_id, "timeframe": frame.name}
    rows = await connection.execute(
        text(NEAR), {**key, "since": wanted[0].since, "until": max(w.until for w in wanted)}
    )
    known = [Stretch(*row) for row in rows]
    after = overlay(known, wanted)
    await _replace(connection, key, known, after)
    return unknown(wanted, known)


def cut(stretch: Stretch) -> Stretch:
    """With as much of its reason as is kept."""
    if stretch.reason is None or len(stretch.reason) <= REASON_LENGTH:
        return stretch
    return replace(stretch, reason=stretch.reason[:REASON_LENGTH])


#: What a fetch may say over what is known. Candles that are stored stay known as stored, and that
#: there were no trades stays known when a later request fails.
_YIELDS_TO: Final = {
    "complete": (),
    "empty": ("complete",),
    "outage": ("complete", "empty"),
    "failed": ("complete", "empty"),
}


def yielding(stated: Sequence[Stretch], known: Sequence[Stretch]) -> list[Stretch]:
    """What is left of `stated` where it does not contradict better knowledge; both disjoint."""
    left: list[Stretch] = []
    for status, better in _YIELDS_TO.items():
        said = sorted((s for s in stated if s.status == status), key=by_time)
        left += without(said, [k for k in known if k.status in better])
    return sorted(left, key=by_time)


async def state_fetched(
    connection: AsyncConnection, market_id: int, frame: Timeframe, stated: Iterable[Stretch]
) -> list[Stretch]:
    """As `state`, for what a fetch found out: it never takes back that candles are stored."""
    wanted = sorted(stated, key=by_time)
    if not wanted:
        return []
    known = await read(connection, market_id, frame, wanted[0].since, wanted[-1].until)
    return await state(connection, market_id, frame, yielding(wanted, known))


# Where something is known of: markets and timeframes with candles or with coverage. Parameters:
# exchange. Columns: market_id, timeframe.
SERIES: Final = """
SELECT k.market_id, k.timeframe
  FROM (SELECT market_id, timeframe FROM candle_series
         UNION SELECT market_id, timeframe FROM candle_coverage) k
  JOIN markets m ON m.id = k.market_id
 WHERE m.exchange = :exchange
 ORDER BY m.symbol, k.timeframe
"""

# First and last bar that anything is known of. Parameters: market_id, timeframe. Columns: since,
# until.
EXTENT: Final = """
SELECT min(since) AS since, max(until) AS until FROM candle_coverage
 WHERE market_id = :market_id AND timeframe = :timeframe
"""


async def series(connection: AsyncConnection, exchange: str) -> list[tuple[int, str]]:
    """(market id, timeframe) of whatever is known of an exchange."""
    return [(r.market_id, r.timeframe) for r in
            await connection.execute(text(SERIES), {"exchange": exchange})]  # fmt: skip


async def extent(
    connection: AsyncConnection, market_id: int, frame: Timeframe
) -> tuple[datetime, datetime] | None:
    """From where to where anything is known; None if nothing is."""
    key = {"market_id": market_id, "timeframe": frame.name}
    row = (await connection.execute(text(EXTENT), key)).one()
    return None if row.since is None else (row.since, row.until)


async def forget(
    connection: AsyncConnection,
    market_id: int,
    frame: Timeframe,
    spans: Sequence[tuple[datetime, datetime]],
) -> None:
    """Take back what is known of `spans`, which are sorted and disjoint. The caller holds the
    market's lock."""
    known = await read(connection, market_id, frame, spans[0][0], spans[-1][1])
    gone = [Stretch(*span, "", "") for span in spans]
    key = {"market_id": market_id, "timeframe": frame.name}
    await _replace(connection, key, known, without(known, gone))


# Where the first known stretch begins. Parameters: market_id, timeframe, status (or null). Columns:
# since.
FIRST: Final = """
SELECT since FROM candle_coverage
 WHERE market_id = :market_id AND timeframe = :timeframe
   AND status = coalesce(CAST(:status AS text), status)
 ORDER BY since LIMIT 1
"""


async def first(
    connection: AsyncConnection, market_id: int, frame: Timeframe, status: str | None
) -> datetime | None:
    """Where the first known stretch begins, of that status if one is given."""
    found: datetime | None = await connection.scalar(
        text(FIRST), {"market_id": market_id, "timeframe": frame.name, "status": status}
    )
    return found


async def read(
    connection: AsyncConnection, market_id: int, frame: Timeframe, since: datetime, until: datetime
) -> list[Stretch]:
    """What is known of [since, until), by time; stretches reach beyond it where they do."""
    rows = await connection.execute(
        text(NEAR),
        {"market_id": market_id, "timeframe": frame.name, "since": since, "until": until},
    )
    return [Stretch(*row) for row in rows if row.until > since and row.since < until]


async def _replace(
    connection: AsyncConnection,
    key: Mapping[str, Any],
    known: Sequence[Stretch],
    after: Sequence[Stretch],
) -> None:
    await replace_rows(connection, DELETE, INSERT, key, known, after)


async def replace_rows(
    connection: AsyncConnection,
    delete: str,
    insert: str,
    key: Mapping[str, Any],
    known: Sequence[Stretch],
    after: Sequence[Stretch],
) -> None:
    """Make the rows `known` the rows `after`; what is in both is left alone.

    delete: takes `sinces`. insert: takes `sinces`, `untils`, `statuses`, `sources`, `reasons`.
    Both take `key`.
    """
    before, later = set(known), set(after)
    gone = [k.since for k in known if k not in later]
    new = [a for a in after if a not in before]
    if gone:
        await connection.execute(text(delete), {**key, "sinces": gone})
    if new:
        await connection.execute(
            text(insert),
            {
                **key,
                "sinces": [n.since for n in new],
                "untils": [n.until for n in new],
                "statuses": [n.status for n in new],
                "sources": [n.source for n in new],
                "reasons": [n.reason for n in new],
            },
        )


async def forget_dropped(connection: AsyncConnection) -> int:
    """Take back `complete` where the chunks are gone; returns how many stretches it cut.

    Background jobs and `drop_chunks` say nothing to anybody. Before a backfill relies on what is
    known, this makes it true; what the exchange confirmed to be empty stays so. For engines with
    hypertables.
    """
    found = (await connection.execute(text(DROPPED))).all()
    if not found:
        return 0
    for market_id in sorted({row.market_id for row in found}):
        await connection.execute(
            text("SELECT pg_advisory_xact_lock(:lock, :market_id)"),
            {"lock": MARKET_LOCK, "market_id": market_id},
        )
    locked = {row.market_id for row in found}
    # Once more, now that nobody writes them.
    chunks = [(row.since, row.until) for row in await connection.execute(text(CHUNKS))]
    found = [r for r in await connection.execute(text(DROPPED)) if r.market_id in locked]
    cut = 0
    for row in found:
        stretch = Stretch(row.since, row.until, "complete", row.source)
        left = _inside(stretch, chunks, TIMEFRAMES[row.timeframe])
        # A bar may open in a chunk that is there and close in none.
        if left != [stretch]:
            key = {"market_id": row.market_id, "timeframe": row.timeframe}
            await _replace(connection, key, [stretch], left)
            cut += 1
    return cut


def _inside(
    stretch: Stretch, chunks: Iterable[tuple[datetime, datetime]], frame: Timeframe
) -> list[Stretch]:
    """The parts of `stretch` whose bars open inside of `chunks`."""
    parts = [
        (max(stretch.since, frame.ceil(since)), min(stretch.until, frame.ceil(until)))
        for since, until in chunks
        if since < stretch.until and until > stretch.since
    ]
    return [Stretch(a, b, stretch.status, stretch.source) for a, b in parts if a < b]
