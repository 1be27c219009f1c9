"""Bounds and numbers at the edge of what there is: the same answers, or an error that says why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Final

import pytest
from bars import NAMES, START, aggregated, as_table, candle, minutes
from engines import REAL_TIERS

from kurisu.domain.faults import Rule
from kurisu.errors import DatabaseError
from kurisu.store.markets import Market
from kurisu.store.store import Store

FIRST: Final = datetime.min.replace(tzinfo=UTC)
LAST: Final = datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)
async def test_bounds_beyond_every_candle_are_no_bounds(store: Store, market: Market) -> None:
    rows = minutes(START, 30)
    await store.candles.write(market, "1m", as_table(rows))
    east = timezone(timedelta(hours=14))
    for name in NAMES[1:]:
        for since, until in ((FIRST, LAST), (FIRST.replace(tzinfo=east), None), (None, LAST)):
            found = list(await store.candles.read(market, name, since, until))
            assert found == aggregated(rows, name), (name, since, until)
        assert list(await store.candles.read(market, name, LAST, FIRST)) == []
    (before, after) = await store.candles.gaps(market, "1m", FIRST, LAST)
    assert (before.until, after.since) == (START, START + timedelta(minutes=30))
    assert (await store.candles.verify(None, FIRST, LAST)).different == 0
    assert (await store.candles.latest([market], "1M", 10_000_000)).num_rows == 1


@pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)
async def test_candles_before_1970_are_read_like_any_other(store: Store, market: Market) -> None:
    rows = [
        candle(datetime(1900, 1, 1, tzinfo=UTC)),
        candle(datetime(1969, 12, 31, 23, tzinfo=UTC)),
    ]
    await store.candles.write(market, "1m", as_table(rows), allow_expiring=True)
    for name in NAMES[1:]:
        assert list(await store.candles.read(market, name)) == aggregated(rows, name), name


@pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)
async def test_candles_that_no_read_would_show_are_rejected(store: Store, market: Market) -> None:
    rows = as_table([candle(datetime(1899, 12, 31, 23, 59, tzinfo=UTC))])
    report = await store.candles.write(market, "1m", rows, allow_expiring=True)
    assert [r.rule for r in report.rejects] == [Rule.TIME_NOT_READABLE]


@pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)
async def test_a_volume_that_no_decimal_holds_is_an_error_with_a_way_on(
    store: Store, market: Market
) -> None:
    most = Decimal(99999999999999999999)
    rows = [c._replace(volume=most) for c in minutes(START, 5)]
    await store.candles.write(market, "1m", as_table(rows[:1]))
    assert next(iter(await store.candles.read(market, "3m"))).volume == most
    await store.candles.write(market, "1m", as_table(rows[1:]))
    with pytest.raises(DatabaseError, match=r"volume.*Read it in shorter bars"):
        await store.candles.read(market, "3m")
