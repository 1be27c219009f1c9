"""SQL from the tests: what is in the database, and what somebody other than Kurisu writes there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import asyncpg
import pytest
from bars import ROLLUPS
from engines import without_options
from sqlalchemy import text

from kurisu.domain.candle import Candle
from kurisu.store.markets import Market
from kurisu.store.store import Store

# asyncpg ships no types, so that this is Any to the checker.
Connection: TypeAlias = "asyncpg.Connection"

INSERT_CANDLE = """
INSERT INTO ohlcv (market_id, timeframe, time, open, high, low, close, volume)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""


async def fetch(store: Store, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of `query`, in a transaction of its own."""
    async with store.database.begin() as connection:
        result = await connection.execute(text(query), parameters)
        return [tuple(row) for row in result] if result.returns_rows else []


async def value(store: Store, query: str, **parameters: Any) -> Any:
    """The first column of the first row of `query`."""
    return (await fetch(store, query, **parameters))[0][0]


@contextlib.asynccontextmanager
async def session(url: str, **settings: str) -> AsyncIterator[Connection]:
    """A session of somebody else, such as psql. It does not wait for a lock for ever."""
    connection = await asyncpg.connect(
        without_options(url), server_settings={"lock_timeout": "20s", **settings}
    )
    try:
        yield connection
    finally:
        await connection.close()


def parameters(market: Market, candle: Candle, timeframe: str = "1m") -> tuple[Any, ...]:
    """The parameters of INSERT_CANDLE."""
    return (market.id, timeframe, *candle[:6])


async def insert(
    url: str, market: Market, candles: Iterable[Candle], timeframe: str = "1m", **settings: str
) -> None:
    """Somebody else inserts candles, row by row, in one transaction."""
    async with session(url, **settings) as connection:
        await connection.executemany(
            INSERT_CANDLE, [parameters(market, candle, timeframe) for candle in candles]
        )


async def stored(store: Store, market: Market, timeframe: str = "1m") -> list[Candle]:
    """The rows of `ohlcv`, by time."""
    rows = await fetch(
        store,
        "SELECT time, open, high, low, close, volume FROM ohlcv "
        "WHERE market_id = :id AND timeframe = :timeframe ORDER BY time",
        id=market.id,
        timeframe=timeframe,
    )
    return [Candle(*row) for row in rows]


async def rollup(store: Store, market: Market, name: str) -> list[Candle]:
    """The bars of `ohlcv_<name>`, by time."""
    rows = await fetch(
        store,
        f"SELECT time, open, high, low, close, volume, bars FROM ohlcv_{name} "
        "WHERE market_id = :id ORDER BY time",
        id=market.id,
    )
    return [Candle(*row) for row in rows]


async def rollups(store: Store, market: Market) -> dict[str, list[Candle]]:
    """The bars of every rollup."""
    return {name: await rollup(store, market, name) for name in ROLLUPS}


async def coverage(
    store: Store, market: Market, timeframe: str = "1m"
) -> Sequence[tuple[datetime, datetime, str, str]]:
    """What `candle_coverage` says, by time: since, until, status, source."""
    rows = await fetch(
        store,
        "SELECT since, until, status, source FROM candle_coverage "
        "WHERE market_id = :id AND timeframe = :timeframe ORDER BY since",
        id=market.id,
        timeframe=timeframe,
    )
    return [(since, until, status, source) for since, until, status, source in rows]


#: How many ranges TimescaleDB's refreshes have said they will store, and have not.
UNSTORED = "SELECT count(*) FROM _timescaledb_catalog.continuous_aggs_materialization_ranges"
FAIL = """
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE 'no space left on device'; END $$
"""


async def failed_refresh(
    store: Store, url: str, name: str, since: datetime | None, until: datetime
) -> None:
    """Somebody else's refresh of `ohlcv_<name>` fails when it has said what it will store."""
    table = await value(
        store,
        "SELECT format('%I.%I', materialization_hypertable_schema, "
        "materialization_hypertable_name) FROM timescaledb_information.continuous_aggregates "
        "WHERE view_name = :view",
        view=f"ohlcv_{name}",
    )
    start = "NULL" if since is None else f"TIMESTAMPTZ '{since}'"
    async with session(url) as connection:
        await connection.execute(FAIL)
        await connection.execute(
            f"CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION fail()"
        )
        with pytest.raises(asyncpg.RaiseError, match="no space left"):
            await connection.execute(
                f"CALL refresh_continuous_aggregate('ohlcv_{name}', {start}, "
                f"TIMESTAMPTZ '{until}', force => true)"
            )
        await connection.execute("DROP FUNCTION fail CASCADE")
