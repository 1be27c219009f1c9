"""Coverage: which stretches of time are known, and how (`candle_coverage`).

Ranges of one market and timeframe never overlap. A later statement about a stretch replaces an
earlier one, except that nothing but rows being stored makes it `complete`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.domain.timeframe import Timeframe


@dataclass(frozen=True, slots=True, order=True)
class Stretch:
    """A known stretch.

    since, until: open time of the first bar, close time of the last (exclusive).
    status: complete, empty, outage or failed.
    source: what said so, e.g. "file", "rest", "stream".
    """

    since: datetime
    until: datetime
    status: str
    source: str


# Stretches that touch or overlap a range. Parameters: market_id, timeframe, since, until.
NEAR: Final = """
SELECT since, until, status, source FROM candle_coverage
 WHERE market_id = :market_id AND timeframe = :timeframe
   AND until >= CAST(:since AS timestamptz) AND since <= CAST(:until AS timestamptz)
 ORDER BY since
"""

DELETE: Final = """
DELETE FROM candle_coverage
 WHERE market_id = :market_id AND timeframe = :timeframe
   AND since = ANY(CAST(:sinces AS timestamptz[]))
"""

INSERT: Final = """
INSERT INTO candle_coverage (market_id, timeframe, since, until, status, source)
SELECT :market_id, :timeframe, r.since, r.until, r.status, r.source
  FROM unnest(CAST(:sinces AS timestamptz[]), CAST(:untils AS timestamptz[]),
              CAST(:statuses AS text[]), CAST(:sources AS text[]))
       AS r(since, until, status, source)
"""


def overlay(known: Sequence[Stretch], stated: Sequence[Stretch]) -> list[Stretch]:
    """`known` with `stated` laid over it: sorted, disjoint, neighbours of one kind joined.

    Both are sorted and disjoint. A stated stretch that only repeats what is known (the same status
    there) changes nothing, its source included.
    """
    news = _without(stated, known, same_status=True)
    kept = _without(known, news, same_status=False)
    joined: list[Stretch] = []
    for found in sorted([*kept, *news]):
        last = joined[-1] if joined else None
        if last and last.until == found.since and _kind(last) == _kind(found):
            joined[-1] = Stretch(last.since, found.until, last.status, last.source)
        else:
            joined.append(found)
    return joined


def _kind(found: Stretch) -> tuple[str, str]:
    return found.status, found.source


def _without(
    ranges: Sequence[Stretch], holes: Sequence[Stretch], *, same_status: bool
) -> list[Stretch]:
    """`ranges` minus `holes`; with `same_status` only holes of a range's own status count."""
    result: list[Stretch] = []
    start = 0
    for found in ranges:
        since = found.since
        while start < len(holes) and holes[start].until <= found.since:
            start += 1
        at = start
        while at < len(holes) and holes[at].since < found.until:
            hole = holes[at]
            if not same_status or hole.status == found.status:
                if hole.since > since:
                    result.append(Stretch(since, hole.since, found.status, found.source))
                since = max(since, hole.until)
            at += 1
        if since < found.until:
            result.append(Stretch(since, found.until, found.status, found.source))
    return result


async def state(
    connection: AsyncConnection, market_id: int, frame: Timeframe, stated: Iterable[Stretch]
) -> list[Stretch]:
    """Record `stated`; returns what of it was not known before.

    The caller holds the market's lock.
    """
    wanted = sorted(stated)
    if not wanted:
        return []
    key = {"market_id": market_id, "timeframe": frame.name}
    rows = await connection.execute(
        text(NEAR), {**key, "since": wanted[0].since, "until": max(w.until for w in wanted)}
    )
    known = [Stretch(*row) for row in rows]
    after = overlay(known, wanted)
    before, later = set(known), set(after)
    gone = [k.since for k in known if k not in later]
    new = [a for a in after if a not in before]
    if gone:
        await connection.execute(text(DELETE), {**key, "sinces": gone})
    if new:
        await connection.execute(
            text(INSERT),
            {
                **key,
                "sinces": [n.since for n in new],
                "untils": [n.until for n in new],
                "statuses": [n.status for n in new],
                "sources": [n.source for n in new],
            },
        )
    return _without(wanted, known, same_status=True)
