"""Whatever a venue's habits are: the walk finds every record, and states only what it has."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kurisu.domain.execution import Execution, Side
from kurisu.errors import BadAnswer
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.private_pages import execution_windows
from kurisu.exchange.private_port import ExecutionPage, PrivateExchange, RecordQuery
from kurisu.exchange.private_venues import Cursor, PrivateVenue

START = 1_700_000_000_000


@dataclass
class FakeAccount:
    """Fills of one market. newest_first: which end of a window a full page shows. seconds: bounds
    are cut to seconds, the lower one exclusive."""

    fills: list[Execution]
    private: PrivateVenue
    limit: int
    newest_first: bool = False
    seconds: bool = False
    name: str = "fake"
    requests: int = 0

    async def fetch_executions(self, symbol: str, query: RecordQuery) -> ExecutionPage:
        self.requests += 1
        assert self.requests < 3_000
        found = self.fills
        if query.from_id is not None:
            assert self.private.id_paging
            found = [f for f in found if int(f.trade_id) >= int(query.from_id)][: self.limit]
        elif query.since_ms is None or query.until_ms is None:
            assert self.private.newest_without_time
            found = found[-self.limit :]
        else:
            window = self.private.trade_window_ms
            assert window is None or query.until_ms - query.since_ms < window + 5_000
            found = [f for f in found if self._inside(query, to_ms(f.time))]
            at = int(query.cursor or 0)
            if self.newest_first:
                found = found[::-1]
            found = found[at : at + self.limit]
        is_full = len(found) >= self.limit
        offset = str(int(query.cursor or 0) + len(found))
        return ExecutionPage(
            tuple(found), (), is_full, offset if self.private.trade_cursor and is_full else None
        )

    def _inside(self, query: RecordQuery, time_ms: int) -> bool:
        assert query.since_ms is not None
        assert query.until_ms is not None
        if self.seconds:
            return query.since_ms // 1000 * 1000 < time_ms <= (query.until_ms // 1000 + 1) * 1000
        return query.since_ms <= time_ms <= query.until_ms


def fill(number: int, time_ms: int) -> Execution:
    return Execution("7", str(100 + 3 * number), Side.BUY, Decimal(1), Decimal(1), from_ms(time_ms))


times = st.lists(
    st.one_of(st.integers(0, 40_000), st.integers(0, 30), st.sampled_from([9_999, 10_000, 10_001])),
    max_size=60,
)
venues = st.sampled_from(
    [
        PrivateVenue(newest_without_time=True, id_paging=True, trade_window_ms=5_000),
        PrivateVenue(id_paging=True, trade_window_ms=5_000),
        PrivateVenue(trade_window_ms=7_000),
        PrivateVenue(),
        PrivateVenue(trade_cursor=Cursor("ofs"), time_margin_ms=2_000),
    ]
)


@settings(max_examples=300)
@given(
    times=times, venue=venues, limit=st.integers(2, 7), newest_first=st.booleans(),
    since=st.one_of(st.none(), st.integers(-100, 41_000)),
)  # fmt: skip
def test_every_fill_is_found(
    times: list[int], venue: PrivateVenue, limit: int, newest_first: bool, since: int | None
) -> None:
    fills = [fill(n, START + at) for n, at in enumerate(sorted(times))]
    if since is None and not venue.id_paging:
        since = -100  # not 90 days of seconds
    crowded = max((times.count(at) for at in times), default=0)
    account = FakeAccount(fills, venue, limit, newest_first, seconds=venue.trade_cursor is not None)
    start = None if since is None else from_ms(START + since)
    until = from_ms(START + 41_000)
    found: dict[str, Execution] = {}
    stated = []

    async def walk() -> None:
        async for window in execution_windows(cast(PrivateExchange, account), "X", start, until):
            found.update({row.trade_id: row for row in window.rows})
            stated.append(window.until)
            complete = {
                f.trade_id for f in fills
                if f.time <= window.until and (start is None or f.time >= start)
            }  # fmt: skip
            assert complete <= set(found)

    try:
        asyncio.run(walk())
    except BadAnswer:
        # More fills in one millisecond than a page has, and no way to ask for the rest.
        assert crowded >= limit
        assert venue.trade_cursor is None
        assert not venue.id_paging
        return
    wanted = {f.trade_id for f in fills if start is None or f.time >= start}
    assert wanted <= set(found)
    assert not stated or stated[-1] == until or not wanted


async def test_what_cannot_be_shown_is_an_error_not_a_loss() -> None:
    """Six fills in one millisecond, five a page, and neither ids nor a cursor."""
    fills = [fill(n, START) for n in range(6)]
    account: Any = FakeAccount(fills, PrivateVenue(), 5)
    with pytest.raises(BadAnswer, match="more records at 2023-11-14T22:13:20"):
        async for _ in execution_windows(account, "X", from_ms(START - 9), from_ms(START + 9)):
            pass
    account.private = replace(account.private, trade_cursor=Cursor("ofs"))
    (window,) = [
        w async for w in execution_windows(account, "X", from_ms(START - 9), from_ms(START + 9))
    ]
    assert len(window.rows) == 6


async def test_one_trade_id_of_two_orders_is_two_fills() -> None:
    """A trade with oneself; and what a venue repeats word for word is one."""
    first, again, other = (replace(fill(1, START), exchange_order_id=name) for name in "778")
    changed = replace(first, amount=Decimal(2))
    account: Any = FakeAccount([first, again, other, changed], PrivateVenue(), 50)
    (window,) = [
        w async for w in execution_windows(account, "X", from_ms(START - 9), from_ms(START + 9))
    ]
    assert window.rows == (first, other, changed)
