"""Candles and trades belong to a market, as with a foreign key, checked once per statement."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from bars import MINUTE, START, as_table, candle, minutes
from engines import CONCURRENT_TIERS
from rows import INSERT_CANDLE, fetch, insert, parameters, session, value

from kurisu.errors import WriteRefused
from kurisu.store.markets import Market
from kurisu.store.store import Store

UNKNOWN = 4242
INSERT_TRADE = """
INSERT INTO trades (market_id, time, trade_id, price, amount, cost)
VALUES ($1, '2024-01-01 00:00:00+00', $2, 1, 1, 1)
"""


class TestUnknownMarkets:
    @pytest.mark.parametrize(
        "statement",
        [
            f"INSERT INTO ohlcv VALUES ('2024-01-01 00:00+00', {UNKNOWN}, '1m', 1, 1, 1, 1, 1)",
            f"INSERT INTO trades (market_id, time, trade_id, price, amount, cost) "
            f"VALUES ({UNKNOWN}, '2024-01-01 00:00+00', '1', 1, 1, 1)",
            f"UPDATE ohlcv SET market_id = {UNKNOWN}",
            f"UPDATE trades SET market_id = {UNKNOWN}",
        ],
    )
    async def test_a_statement_is_refused(self, url: str, market: Market, statement: str) -> None:
        async with session(url) as connection:
            await connection.execute(INSERT_CANDLE, *parameters(market, candle(START)))
            await connection.execute(INSERT_TRADE, market.id, "1")
            with pytest.raises(asyncpg.ForeignKeyViolationError, match=f"market {UNKNOWN} is not"):
                await connection.execute(statement)

    async def test_a_copy_is_refused(self, url: str, market: Market) -> None:
        rows = [parameters(market, candle(START)), (UNKNOWN, "1m", *candle(START)[:6])]
        columns = ["market_id", "timeframe", "time", "open", "high", "low", "close", "volume"]
        async with session(url) as connection:
            with pytest.raises(asyncpg.ForeignKeyViolationError, match=f"market {UNKNOWN} is not"):
                await connection.copy_records_to_table("ohlcv", records=rows, columns=columns)
            assert await connection.fetchval("SELECT count(*) FROM ohlcv") == 0

    async def test_a_copy_of_trades_is_refused(self, url: str, store: Store) -> None:
        columns = ["market_id", "time", "trade_id", "price", "amount", "cost"]
        async with session(url) as connection:
            with pytest.raises(asyncpg.ForeignKeyViolationError, match=f"market {UNKNOWN} is not"):
                await connection.copy_records_to_table(
                    "trades", records=[(UNKNOWN, START, "1", 1, 1, 1)], columns=columns
                )

    async def test_a_write_says_so(self, store: Store, market: Market) -> None:
        unknown = Market(UNKNOWN, market.name, active=True)
        with pytest.raises(WriteRefused, match=f"market {UNKNOWN} is not in markets"):
            await store.candles.write(unknown, "1m", as_table(minutes(START, 3)))
        assert await value(store, "SELECT count(*) FROM ohlcv") == 0

    async def test_an_upsert_of_nothing_is_no_reference(self, url: str, store: Store) -> None:
        async with session(url) as connection:
            await connection.execute("INSERT INTO ohlcv SELECT * FROM ohlcv")
            await connection.execute("UPDATE trades SET price = 1")


class TestDeletingMarkets:
    async def test_one_with_candles_stays(self, store: Store, market: Market, url: str) -> None:
        await insert(url, market, [candle(START)])
        await self.refused(url, "DELETE FROM markets", "candle_series")
        await fetch(store, "DELETE FROM candle_series")
        await self.refused(url, "DELETE FROM markets", "still has candles or trades")

    async def test_one_with_trades_stays(self, store: Store, market: Market, url: str) -> None:
        async with session(url) as connection:
            await connection.execute(INSERT_TRADE, market.id, "1")
        await self.refused(url, "DELETE FROM markets", "still has candles or trades")

    async def test_one_without_either_goes(
        self, store: Store, market: Market, other_market: Market
    ) -> None:
        await store.candles.write(market, "1m", as_table(minutes(START, 3)))
        await fetch(store, "DELETE FROM markets WHERE id = :id", id=other_market.id)
        assert await fetch(store, "SELECT id FROM markets") == [(market.id,)]

    async def test_one_that_once_had_candles_stays(
        self, store: Store, market: Market, url: str
    ) -> None:
        # Its rollups, revisions and coverage may still be there.
        await insert(url, market, [candle(START)])
        await fetch(store, "DELETE FROM ohlcv")
        await self.refused(url, "DELETE FROM markets", "fk_candle_series_market_id")

    @pytest.mark.parametrize("statement", ["TRUNCATE markets CASCADE", "UPDATE markets SET id = 7"])
    async def test_ids_stay_what_they_are(
        self, store: Store, market: Market, url: str, statement: str
    ) -> None:
        async with session(url) as connection:
            with pytest.raises(asyncpg.PostgresError):
                await connection.execute(statement)
            assert await connection.fetchval("SELECT id FROM markets") == market.id

    async def test_a_snapshot_that_outlives_the_statement_cannot_see_writers(
        self, url: str, market: Market
    ) -> None:
        async with session(url) as connection, connection.transaction(isolation="repeatable_read"):
            with pytest.raises(asyncpg.RestrictViolationError, match="READ COMMITTED only"):
                await connection.execute("DELETE FROM markets")

    @staticmethod
    async def refused(url: str, statement: str, why: str) -> None:
        async with session(url) as connection:
            with pytest.raises(asyncpg.ForeignKeyViolationError, match=why):
                await connection.execute(statement)


WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


@pytest.mark.parametrize("tier", CONCURRENT_TIERS, indirect=True)
class TestTwoSessions:
    async def test_a_deletion_waits_for_a_writer_and_is_refused(
        self, url: str, market: Market
    ) -> None:
        async with session(url) as writer, session(url) as deleter, session(url) as observer:
            transaction = writer.transaction()
            await transaction.start()
            await writer.execute(INSERT_CANDLE, *parameters(market, candle(START)))
            deletion = asyncio.create_task(deleter.execute("DELETE FROM markets"))
            while await observer.fetchval(WAITING) == 0:
                assert not deletion.done()
            await transaction.commit()
            with pytest.raises(asyncpg.ForeignKeyViolationError):
                await deletion
            assert await observer.fetchval("SELECT count(*) FROM markets") == 1

    async def test_a_writer_waits_for_a_deletion_and_is_refused(
        self, url: str, market: Market
    ) -> None:
        async with session(url) as writer, session(url) as deleter, session(url) as observer:
            transaction = deleter.transaction()
            await transaction.start()
            await deleter.execute("DELETE FROM markets")
            write = asyncio.create_task(
                writer.execute(INSERT_CANDLE, *parameters(market, candle(START)))
            )
            while await observer.fetchval(WAITING) == 0:
                assert not write.done()
            await transaction.commit()
            with pytest.raises(asyncpg.ForeignKeyViolationError):
                await write
            assert await observer.fetchval("SELECT count(*) FROM ohlcv") == 0

    async def test_writers_of_one_market_do_not_wait_for_its_row(
        self, url: str, market: Market
    ) -> None:
        async with session(url) as first, session(url) as second:
            await first.execute(INSERT_TRADE, market.id, "0")  # Makes the chunk, under a lock.
            transaction = first.transaction()
            await transaction.start()
            await first.execute(INSERT_TRADE, market.id, "1")
            await second.execute(INSERT_TRADE, market.id, "2")
            await second.execute("UPDATE markets SET active = false")
            await transaction.commit()

    async def test_writers_of_two_markets_do_not_wait_for_each_other(
        self, url: str, market: Market, other_market: Market
    ) -> None:
        async with session(url) as first, session(url) as second:
            # Makes the chunk, under a lock.
            await first.execute(INSERT_CANDLE, *parameters(market, candle(START)))
            transaction = first.transaction()
            await transaction.start()
            await first.execute(INSERT_CANDLE, *parameters(market, candle(START + MINUTE)))
            await second.execute(INSERT_CANDLE, *parameters(other_market, candle(START)))
            await transaction.commit()
            assert await second.fetchval("SELECT count(*) FROM ohlcv") == 3


class TestRevisions:
    """A candle that is changed leaves behind what it was, whoever changes it."""

    async def test_an_update_leaves_the_old_candle(
        self, store: Store, market: Market, url: str
    ) -> None:
        old = minutes(START, 3)
        await insert(url, market, old)
        async with session(url) as connection:
            await connection.execute(
                "UPDATE ohlcv SET volume = volume + 1 WHERE time < $1", START + 2 * MINUTE
            )
        rows = await fetch(
            store,
            "SELECT market_id, timeframe, time, open, high, low, close, volume "
            "FROM candle_revisions ORDER BY time",
        )
        assert rows == [parameters(market, row) for row in old[:2]]

    async def test_an_update_to_the_same_leaves_nothing(
        self, store: Store, market: Market, url: str
    ) -> None:
        await insert(url, market, minutes(START, 3))
        async with session(url) as connection:
            await connection.execute("UPDATE ohlcv SET volume = volume")
        assert await value(store, "SELECT count(*) FROM candle_revisions") == 0

    async def test_an_upsert_leaves_the_old_candle(
        self, store: Store, market: Market, url: str
    ) -> None:
        await insert(url, market, [candle(START)])
        async with session(url) as connection:
            await connection.execute(
                INSERT_CANDLE + "ON CONFLICT (market_id, timeframe, time) DO UPDATE "
                "SET volume = excluded.volume",
                *parameters(market, candle(START, seed=1)),
            )
        assert await value(store, "SELECT volume FROM candle_revisions") == candle(START).volume

    async def test_a_moved_candle_leaves_itself(
        self, store: Store, market: Market, url: str
    ) -> None:
        await insert(url, market, [candle(START)])
        async with session(url) as connection:
            await connection.execute("UPDATE ohlcv SET timeframe = '5m'")
        assert await fetch(store, "SELECT timeframe, time FROM candle_revisions") == [("1m", START)]


class TestSeries:
    """`candle_series` knows which timeframes a market has, whoever wrote them."""

    async def test_every_writer_is_seen(self, store: Store, market: Market, url: str) -> None:
        await store.candles.write(market, "1m", as_table([candle(START)]))
        await insert(url, market, [candle(START)], "1h")
        async with session(url) as connection:
            await connection.execute("UPDATE ohlcv SET timeframe = '4h' WHERE timeframe = '1h'")
        rows = await fetch(store, "SELECT timeframe FROM candle_series ORDER BY timeframe")
        assert [name for (name,) in rows] == ["1h", "1m", "4h"]
