"""Every migration can be taken back and made again, with rows inside."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from bars import START, aggregated, as_table, minutes
from rows import fetch, rollup, stored
from sqlalchemy import text

from kurisu.domain.timeframe import ROLLUPS
from kurisu.store import migrate
from kurisu.store.connect import make_engine, transaction
from kurisu.store.markets import Market
from kurisu.store.migrate import head
from kurisu.store.store import Store, upgrade

REVISIONS = [f"{number:04}" for number in range(1, int(head()) + 1)]
CANDLES = minutes(START, 2_000)

TRADE = """
INSERT INTO trades (market_id, time, trade_id, side, price, amount, cost)
SELECT :market_id, TIMESTAMPTZ '2024-01-01 00:00:00+00' + n * INTERVAL '1 second', n::text, 'buy',
       1.5, n, 1.5 * n
  FROM generate_series(1, 50) AS n
"""

# Everything that is declared: columns, constraints, indexes, triggers, functions with whom they run
# as, who may call them and their settings. A hypertable's own trigger and TimescaleDB's functions
# are not ours.
CATALOGUE = """
SELECT 'column', a.attrelid::regclass::text, a.attname::text,
       concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
                 pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum))
  FROM pg_attribute a
  JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r'
   AND c.relnamespace = 'public'::regnamespace
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname::text, pg_get_constraintdef(oid)
  FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT 'index', tablename::text, indexname::text, indexdef
  FROM pg_indexes WHERE schemaname = 'public'
UNION ALL
SELECT 'trigger', tgrelid::regclass::text, tgname::text, pg_get_triggerdef(oid)
  FROM pg_trigger
 WHERE tgname LIKE 'kurisu%' AND tgrelid IN (
    SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
UNION ALL
SELECT 'function', proowner::regrole::text || CASE WHEN prosecdef THEN ', definer' ELSE '' END,
       oid::regprocedure::text,
       concat_ws(' ', prosrc, proconfig,
                 ARRAY(SELECT unnest(coalesce(proacl, acldefault('f', proowner)))::text ORDER BY 1))
  FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'kurisu%'
"""


async def catalogue(url: str) -> set[tuple[Any, ...]]:
    """What the schema declares."""
    database = make_engine(url)
    try:
        async with transaction(database) as connection:
            return {tuple(row) for row in await connection.execute(text(CATALOGUE))}
    finally:
        await database.dispose()


async def migrate_to(store: Store, revision: str, *, down: bool) -> None:
    async with transaction(store.database) as connection:
        await (migrate.downgrade if down else migrate.upgrade)(connection, revision)
        assert await migrate.current(connection) == (None if revision == "base" else revision)


@pytest.fixture
async def trades(store: Store, market: Market) -> Sequence[tuple[Any, ...]]:
    """The rows of `trades`."""
    await store.candles.write(market, "1m", as_table(CANDLES))
    await fetch(store, TRADE, market_id=market.id)
    return await fetch(store, "SELECT * FROM trades ORDER BY time")


async def test_one_step_at_a_time(
    store: Store, market: Market, trades: Sequence[tuple[Any, ...]], url: str
) -> None:
    before = await catalogue(url)
    for revision, below in zip(reversed(REVISIONS[1:]), reversed(REVISIONS[:-1]), strict=True):
        await migrate_to(store, below, down=True)
        await migrate_to(store, revision, down=False)
        await migrate_to(store, below, down=True)
        assert await stored(store, market) == CANDLES
        if below >= "0004":
            assert await fetch(store, "SELECT * FROM trades ORDER BY time") == (
                trades if revision > "0004" else []
            )
            trades = trades if revision > "0004" else []
    for revision in REVISIONS[1:]:
        await migrate_to(store, revision, down=False)
        assert await stored(store, market) == CANDLES
    await upgrade(url)
    assert await catalogue(url) == before
    for frame in ROLLUPS:
        assert await rollup(store, market, frame.name) == aggregated(CANDLES, frame.name)


async def test_all_the_way_down_and_up_again(
    store: Store, trades: Sequence[tuple[Any, ...]], url: str
) -> None:
    assert len(trades) == 50
    before = await catalogue(url)
    await migrate_to(store, "base", down=True)
    left = await catalogue(url)
    assert {name for _, name, *_ in left} == {"alembic_version"}
    await store.database.dispose()
    await upgrade(url)
    assert await catalogue(url) == before
    market = await store.markets.ensure("binance", "BTC/USDT")
    await store.candles.write(market, "1m", as_table(CANDLES))
    for frame in ROLLUPS:
        assert await rollup(store, market, frame.name) == aggregated(CANDLES, frame.name)


async def test_candles_without_a_database_function_survive_the_way_back_to_plain_tables(
    store: Store, market: Market, trades: Sequence[tuple[Any, ...]], url: str
) -> None:
    await migrate_to(store, "0004", down=True)
    assert await stored(store, market) == CANDLES
    assert await fetch(store, "SELECT * FROM trades ORDER BY time") == trades
    await migrate_to(store, "0001", down=True)
    assert await stored(store, market) == CANDLES
    (row,) = await fetch(
        store, "SELECT relkind::text, count(*) OVER () FROM pg_class WHERE oid = 'ohlcv'::regclass"
    )
    assert row == ("r", 1)


async def test_upgrading_twice_changes_nothing(url: str, store: Store) -> None:
    before = await catalogue(url)
    assert await upgrade(url) == []
    assert await catalogue(url) == before


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_a_database_whose_weeks_are_compressed_one_by_one_puts_them_together(
    url: str, store: Store
) -> None:
    await fetch(
        store, "ALTER TABLE ohlcv SET (timescaledb.compress_chunk_time_interval = '7 days')"
    )
    assert await upgrade(url) == ["ohlcv compresses 28 days into a chunk now"]
    assert await upgrade(url) == []


@pytest.mark.parametrize("tier", ["plain"], indirect=True)
async def test_money_survives_to_the_last_digit(store: Store, market: Market) -> None:
    largest = Decimal("99999999999999999999.999999999999999999")
    for at in (START, START.replace(minute=1)):
        await fetch(
            store,
            "INSERT INTO ohlcv (market_id, timeframe, time, open, high, low, close, volume) "
            "VALUES (:id, '1m', :at, :n, :n, :n, :n, 0.000000000000000001)",
            id=market.id, at=at, n=largest,
        )  # fmt: skip
    await migrate_to(store, "0001", down=True)
    await migrate_to(store, "0008", down=False)
    assert [row.high for row in await stored(store, market)] == [largest, largest]
