"""Coverage of trades: what is complete stays so, and no two stretches overlap."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import pytest
from engines import REAL_TIERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import fetch

from kurisu.domain.trade import Trade
from kurisu.errors import WriteRefused
from kurisu.store.connect import transaction
from kurisu.store.coverage import missing
from kurisu.store.markets import Market
from kurisu.store.store import Store

START: Final = datetime(2024, 3, 5, tzinfo=UTC)
REAL: Final = pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


async def known(store: Store, market: Market) -> list[tuple[Any, ...]]:
    return [
        ((s.since - START).total_seconds(), (s.until - START).total_seconds(), s.status, s.reason)
        for s in await store.trades.coverage(market)
    ]


async def test_coverage_comes_with_the_rows_and_goes_on(store: Store, market: Market) -> None:
    report = await store.trades.write(market, [], complete=[(at(0), at(10))], source="stream")
    assert [(s.since, s.until) for s in report.coverage] == [(at(0), at(10))]
    for end in (20, 30):
        await store.trades.write(market, [], complete=[(at(end - 10), at(end))], source="stream")
    assert await known(store, market) == [(0, 30, "complete", None)]
    # What is finer than a millisecond is not claimed.
    await store.trades.write(market, [], complete=[(at(40.0001), at(50.0009))])
    assert (await known(store, market))[1] == (40.001, 50, "complete", None)


@REAL
async def test_what_is_stored_stays_complete(store: Store, market: Market) -> None:
    await store.trades.state_many([(market, at(10), at(20))])
    await store.trades.state_many([(market, at(30), at(40))], status="empty")
    learned = await store.trades.state_many(
        [(market, at(0), at(50))], status="failed", source="rest", reason="no history"
    )
    assert [(s.since, s.until) for s in learned[str(market)]] == [
        (at(0), at(10)), (at(20), at(30)), (at(40), at(50)),
    ]  # fmt: skip
    await store.trades.state_many([(market, at(5), at(35))])
    assert await known(store, market) == [
        (0, 5, "failed", "no history"),
        (5, 35, "complete", None),
        (35, 40, "empty", None),
        (40, 50, "failed", "no history"),
    ]
    stretches = await store.trades.coverage(market)
    assert missing(stretches, at(-1), at(45)) == [(at(-1), at(5)), (at(40), at(45))]


@REAL
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.lists(
        st.tuples(
            st.integers(0, 12), st.integers(1, 6),
            st.sampled_from(["complete", "empty", "outage", "failed"]), st.sampled_from("ab"),
        ),
        max_size=8,
    )
)  # fmt: skip
async def test_every_second_says_what_was_said_last_and_best(
    store: Store, said: list[tuple[int, int, str, str]]
) -> None:
    number = (await fetch(store, "SELECT count(*) FROM markets"))[0][0]
    market = await store.markets.ensure("binance", f"C{number}/USDT")
    expected: dict[int, str] = {}
    for since, length, status, source in said:
        for second in range(since, since + length):
            before = expected.get(second)
            if before == "complete" or (before == "empty" and status in ("outage", "failed")):
                continue
            expected[second] = status
        await store.trades.state_many(
            [(market, at(since), at(since + length))], status=status, source=source
        )
    stretches = await store.trades.coverage(market)
    assert all(a.until <= b.since for a, b in zip(stretches, stretches[1:], strict=False))
    seconds = {
        second: s.status
        for s in stretches
        for second in range(
            int((s.since - START).total_seconds()), int((s.until - START).total_seconds())
        )
    }
    assert seconds == expected


async def test_the_database_refuses_what_overlaps(store: Store, market: Market) -> None:
    insert = (
        "INSERT INTO trade_coverage (market_id, since, until, status, source) VALUES "
        "({0}, TIMESTAMPTZ '2024-03-05 00:00:{1:02}Z', TIMESTAMPTZ '2024-03-05 00:00:{2:02}Z', "
        "'complete', 'x')"
    )
    await fetch(store, insert.format(market.id, 10, 20))
    for since, until in ((0, 11), (19, 30), (12, 15), (0, 40)):
        with pytest.raises(WriteRefused, match="overlaps another stretch"):
            async with transaction(store.database) as connection:
                await connection.exec_driver_sql(insert.format(market.id, since, until))
    await fetch(store, insert.format(market.id, 20, 30))


@REAL
async def test_where_a_row_is_rejected_nothing_is_complete(store: Store, market: Market) -> None:
    rows = [Trade(at(n), str(n), None, Decimal(1), Decimal(2 - n)) for n in range(5)]
    await store.trades.write(market, rows, complete=[(at(0), at(10))], source="rest")
    reason = "a trade could not be stored: negative_amount"
    assert await known(store, market) == [
        (0, 3, "complete", None),
        (3, 3.001, "failed", reason),
        (3.001, 4, "complete", None),
        (4, 4.001, "failed", reason),
        (4.001, 10, "complete", None),
    ]


@REAL
async def test_rows_and_coverage_come_together_or_not_at_all(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*args: Any) -> None:
        raise WriteRefused("broken")

    monkeypatch.setattr("kurisu.store.trade_coverage._state_one", fails)
    row = Trade(at(1), "1", None, 1, 1)  # type: ignore[arg-type]
    with pytest.raises(WriteRefused):
        await store.trades.write(market, [row], complete=[(at(0), at(10))])
    assert len(await store.trades.read(market)) == 0


async def test_coverage_goes_with_the_trades_that_retention_drops(
    store: Store, market: Market
) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    old, new = today - timedelta(days=100), today - timedelta(days=1)
    rows = [Trade(time, "1", None, Decimal(1), Decimal(1)) for time in (old, new)]
    until = new + timedelta(hours=1)
    await store.trades.write(market, rows, complete=[(old, until)])
    await store.db.set_retention("trades", "10 days")
    if store.engine.is_community:  # what the background job does, some time
        async with transaction(store.database) as connection:
            await connection.exec_driver_sql("SELECT drop_chunks('trades', INTERVAL '10 days')")
    await store.db.maintain()
    (left,) = await store.trades.coverage(market)
    assert old + timedelta(days=30) < left.since <= new
    assert left.until == until
    # Where there is no chunk nobody can tell dropped trades from none: they are asked for again.
    await store.trades.forget_dropped()
    assert await store.trades.forget_dropped() == 0
