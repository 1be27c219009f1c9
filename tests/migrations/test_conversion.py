"""A database that began on plain PostgreSQL becomes a TimescaleDB one, and nothing is lost."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from bars import DAY, ROLLUPS, START, aggregated, as_table, minutes
from engines import EDITIONS, Servers, edition, execute
from rows import coverage, rollup, stored

from kurisu.domain.candle import Candle
from kurisu.store import layout, rollups
from kurisu.store.engine import Edition
from kurisu.store.markets import Market
from kurisu.store.store import Store, open_store, upgrade

#: Candles that retention drops, in two stretches, and candles that are kept.
EXPIRED: Final = [*minutes(START, 700), *minutes(START + 40 * DAY, 700)]
TODAY: Final = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
KEPT: Final = minutes(TODAY - 3 * DAY + timedelta(minutes=7), 1_500)


@pytest.fixture(params=["apache", "community"])
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def plain(url: str) -> AsyncIterator[tuple[Store, Market]]:
    """A store on plain PostgreSQL, whatever the server could do."""
    with edition(Edition.PLAIN):
        await upgrade(url)
        async with open_store(url) as store:
            yield store, await store.markets.ensure("binance", "BTC/USDT")


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Store, Market]]:
    async with open_store(url) as store:
        yield store, await store.markets.get("binance", "BTC/USDT")


@pytest.fixture
def empty_url(servers: Servers, tier: str) -> str:
    """A database on a server with TimescaleDB that has nothing in it yet."""
    return servers.empty(tier)


@pytest.fixture(autouse=True)
def on_the_tier(tier: str) -> Iterator[None]:
    with edition(EDITIONS[tier]):
        yield


async def write_and_expire(store: Store, market: Market, *, kept: list[Candle]) -> None:
    """Store candles of which only `kept` are still there; the others are left as bars."""
    await store.db.set_retention("ohlcv", "30 days")
    for candles in (EXPIRED, kept):
        await store.candles.write(market, "1m", as_table(candles), allow_expiring=True)
    await store.db.maintain()
    assert await stored(store, market) == kept


async def assert_bars(store: Store, market: Market, candles: list[Candle]) -> None:
    for name in ROLLUPS:
        assert await rollup(store, market, name) == aggregated(candles, name), name


async def test_candles_and_the_bars_of_dropped_ones_are_kept(empty_url: str, tier: str) -> None:
    async with plain(empty_url) as (store, market):
        await write_and_expire(store, market, kept=KEPT)
        before = await coverage(store, market)
    done = await upgrade(empty_url)
    assert "ohlcv is a hypertable now" in done
    async with opened(empty_url) as (store, market):
        assert store.engine.edition is EDITIONS[tier]
        assert await stored(store, market) == KEPT
        await assert_bars(store, market, [*EXPIRED, *KEPT])
        assert await coverage(store, market) == before
        assert (await store.candles.verify()).ok


async def test_converting_again_changes_nothing(empty_url: str) -> None:
    async with plain(empty_url) as (store, market):
        await write_and_expire(store, market, kept=KEPT)
    await upgrade(empty_url)
    assert await upgrade(empty_url) == []
    async with opened(empty_url) as (store, market):
        await assert_bars(store, market, [*EXPIRED, *KEPT])


async def test_bars_are_kept_where_no_candle_is_left(empty_url: str) -> None:
    async with plain(empty_url) as (store, market):
        await write_and_expire(store, market, kept=[])
    await upgrade(empty_url)
    async with opened(empty_url) as (store, market):
        await assert_bars(store, market, EXPIRED)


async def test_bars_are_kept_where_only_today_has_candles(empty_url: str) -> None:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    today = minutes(now - timedelta(minutes=1), 1)
    async with plain(empty_url) as (store, market):
        await write_and_expire(store, market, kept=today)
    await upgrade(empty_url)
    async with opened(empty_url) as (store, market):
        await assert_bars(store, market, [*EXPIRED, *today])


async def test_writes_after_the_conversion_are_in_the_bars(empty_url: str) -> None:
    more = minutes(KEPT[-1].time + timedelta(minutes=30), 300, seed=1)
    async with plain(empty_url) as (store, market):
        await write_and_expire(store, market, kept=KEPT)
    await upgrade(empty_url)
    async with opened(empty_url) as (store, market):
        await store.candles.write(market, "1m", as_table(more))
        await assert_bars(store, market, [*EXPIRED, *KEPT, *more])


async def test_an_empty_database_is_converted(empty_url: str) -> None:
    async with plain(empty_url) as (store, market):
        pass
    await upgrade(empty_url)
    async with opened(empty_url) as (store, market):
        await store.candles.write(market, "1m", as_table(EXPIRED))
        await assert_bars(store, market, EXPIRED)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("tier", ["community"], indirect=True)
@pytest.mark.parametrize("step", range(5))
async def test_a_conversion_that_was_killed_is_finished_by_the_next(
    empty_url: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plain(empty_url) as (store, market):
        await write_and_expire(store, market, kept=KEPT)
    with monkeypatch.context() as patch:
        if step == 0:
            patch.setattr(layout, "_enable_compression", killing)
        elif step == 1:
            patch.setattr(rollups, "refresh_pending", killing)
        else:
            patch.setattr(layout, "_relkind", killing_after(step, layout._relkind))
        with pytest.raises(Killed):
            await upgrade(empty_url)
    await upgrade(empty_url)
    assert await upgrade(empty_url) == []
    async with opened(empty_url) as (store, market):
        assert await stored(store, market) == KEPT
        await assert_bars(store, market, [*EXPIRED, *KEPT])


async def killing(*_: object) -> list[str]:
    raise Killed


def killing_after(frames: int, real: object) -> object:
    """A stand-in for `_relkind` that ends the process at a frame of `_restore_expired_bars`."""
    seen = []

    async def relkind(connection: object, relation: str) -> object:
        if relation.endswith("_before_conversion"):
            seen.append(relation)
            if len(seen) == frames:
                raise Killed
        return await real(connection, relation)  # type: ignore[operator]

    return relkind


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_the_apache_edition_becomes_community(empty_url: str) -> None:
    with edition(Edition.APACHE):
        await upgrade(empty_url)
        async with open_store(empty_url) as store:
            market = await store.markets.ensure("binance", "BTC/USDT")
            await write_and_expire(store, market, kept=KEPT)
    await upgrade(empty_url)
    assert await upgrade(empty_url) == []
    async with opened(empty_url) as (store, market):
        assert store.engine.edition is Edition.COMMUNITY
        assert await stored(store, market) == KEPT
        await assert_bars(store, market, [*EXPIRED, *KEPT])


async def test_an_engine_that_has_changed_is_not_used_before_the_upgrade(empty_url: str) -> None:
    async with plain(empty_url) as (store, market):
        await store.candles.write(market, "1m", as_table(KEPT))
    await execute(empty_url, "CREATE EXTENSION IF NOT EXISTS timescaledb")
    with pytest.raises(Exception, match="kurisu db upgrade"):
        async with opened(empty_url):
            pass
    await upgrade(empty_url)
    async with opened(empty_url) as (store, market):
        await assert_bars(store, market, KEPT)
        assert await stored(store, market) == KEPT
