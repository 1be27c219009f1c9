"""Rollups that triggers keep: right at the commit of whatever anybody writes, in every bar."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from bars import MINUTE, ROLLUPS, START, aggregated, candle, minutes
from engines import NATIVE_TIMESCALEDB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import INSERT_CANDLE, Connection, fetch, insert, parameters, rollups, session, value

from kurisu.domain.candle import Candle
from kurisu.store.markets import Market
from kurisu.store.store import Store

#: The night that clocks in New York go back: there, a day of 25 hours begins before it.
AUTUMN: Final = datetime(2024, 11, 3, tzinfo=UTC)
#: First and last minutes of bars of every level, around midnight and in the middle of a day.
OFFSETS: Final = (0, 1, 4, 5, 14, 15, 59, 60, 239, 240, 700, 1439, 1440, 1441, 1680, 2879, 2880)

Row = tuple[int, str, datetime]
Rows = Mapping[Row, Candle]


@pytest.fixture(params=["plain", "apache"])
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def assert_bars(store: Store, markets: list[Market], rows: Rows) -> None:
    """Every bar of every level is what the 1m candles of its market say, and there is no other."""
    for market in markets:
        mine = [c for (owner, name, _), c in rows.items() if (owner, name) == (market.id, "1m")]
        wanted = {name: aggregated(mine, name) for name in ROLLUPS}
        assert await rollups(store, market) == wanted


keys = st.tuples(
    st.integers(0, 1),
    st.sampled_from(["1m", "1m", "1m", "5m"]),
    st.sampled_from([AUTUMN + offset * MINUTE for offset in OFFSETS]),
).filter(lambda key: key[1] == "1m" or key[2].minute % 5 == 0)
times = st.sampled_from([AUTUMN + offset * MINUTE for offset in OFFSETS])
steps = st.one_of(
    st.tuples(st.just("insert"), st.lists(keys, min_size=1, max_size=12, unique=True)),
    st.tuples(st.just("copy"), st.lists(keys, min_size=1, max_size=12, unique=True)),
    st.tuples(st.just("upsert"), st.lists(keys, min_size=1, max_size=12, unique=True)),
    st.tuples(st.just("revise"), st.tuples(times, times)),
    st.tuples(st.just("move"), keys),
    st.tuples(st.just("relabel"), st.just(None)),
    st.tuples(st.just("delete"), st.tuples(times, times)),
    st.tuples(st.just("truncate"), st.just(None)),
)


class Writer:
    """Somebody with psql, and the rows that are there in the end."""

    def __init__(self, connection: Connection, markets: list[Market]) -> None:
        self.connection = connection
        self.markets = markets
        self.rows: dict[Row, Candle] = {}
        self._seed = 0

    async def do(self, step: str, what: Any) -> None:
        self._seed += 1
        await getattr(self, step)(what)

    def _new(self, keys: Any) -> dict[Row, Candle]:
        return {
            (self.markets[number].id, name, time): candle(time, self._seed)
            for number, name, time in keys
        }

    async def insert(self, keys: Any) -> None:
        new = {row: c for row, c in self._new(keys).items() if row not in self.rows}
        await self.connection.executemany(
            INSERT_CANDLE, [(row[0], row[1], *c[:6]) for row, c in new.items()]
        )
        self.rows |= new

    async def copy(self, keys: Any) -> None:
        new = {row: c for row, c in self._new(keys).items() if row not in self.rows}
        await self.connection.copy_records_to_table(
            "ohlcv",
            records=[(row[0], row[1], *c[:6]) for row, c in new.items()],
            columns=["market_id", "timeframe", "time", "open", "high", "low", "close", "volume"],
        )
        self.rows |= new

    async def upsert(self, keys: Any) -> None:
        new = self._new(keys)
        columns: list[list[Any]] = [[row[0] for row in new], [row[1] for row in new]]
        columns += [[c[index] for c in new.values()] for index in range(6)]
        await self.connection.execute(
            "INSERT INTO ohlcv (market_id, timeframe, time, open, high, low, close, volume) "
            "SELECT * FROM unnest($1::int[], $2::text[], $3::timestamptz[], $4::numeric[], "
            "$5::numeric[], $6::numeric[], $7::numeric[], $8::numeric[]) "
            "ON CONFLICT (market_id, timeframe, time) DO UPDATE SET open = excluded.open, "
            "high = excluded.high, low = excluded.low, close = excluded.close, "
            "volume = excluded.volume",
            *columns,
        )
        self.rows |= new

    async def revise(self, between: tuple[datetime, datetime]) -> None:
        await self.connection.execute(
            "UPDATE ohlcv SET volume = volume + 1, low = low / 2, high = high + 1 "
            "WHERE time BETWEEN $1 AND $2",
            *sorted(between),
        )
        await self._read()

    async def move(self, key: Any) -> None:
        """The first candle of a time goes to another market, timeframe and time."""
        number, name, time = key
        target = (self.markets[number].id, name, time)
        if target in self.rows or not self.rows:
            return
        moved = min(self.rows, key=lambda row: (row[2], row[0], row[1]))
        await self.connection.execute(
            "UPDATE ohlcv SET market_id = $1, timeframe = $2, time = $3 "
            "WHERE market_id = $4 AND timeframe = $5 AND time = $6",
            *target,
            *moved,
        )
        self.rows[target] = self.rows.pop(moved)._replace(time=time)

    async def relabel(self, _: None) -> None:
        """All of the first market's candles become the second's, where that has none."""
        first, second = (market.id for market in self.markets)
        await self.connection.execute(
            "UPDATE ohlcv o SET market_id = $2 WHERE market_id = $1 AND NOT EXISTS (SELECT 1 "
            "FROM ohlcv t WHERE t.market_id = $2 "
            "AND (t.timeframe, t.time) = (o.timeframe, o.time))",
            first,
            second,
        )
        await self._read()

    async def delete(self, between: tuple[datetime, datetime]) -> None:
        since, until = sorted(between)
        await self.connection.execute(
            "DELETE FROM ohlcv WHERE time BETWEEN $1 AND $2", since, until
        )
        self.rows = {row: c for row, c in self.rows.items() if not since <= row[2] <= until}

    async def truncate(self, _: None) -> None:
        await self.connection.execute("TRUNCATE ohlcv")
        self.rows = {}

    async def _read(self) -> None:
        found = await self.connection.fetch("SELECT * FROM ohlcv")
        self.rows = {
            (row["market_id"], row["timeframe"], row["time"]): Candle(
                *(row[name] for name in Candle._fields[:6])
            )
            for row in found
        }


@pytest.fixture
async def writer(
    url: str, store: Store, market: Market, other_market: Market
) -> AsyncIterator[Writer]:
    async with session(url, timezone="America/New_York") as connection:
        yield Writer(connection, [market, other_market])


class Unchanged(Exception):
    """Takes back what an example has written."""


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(steps, min_size=1, max_size=6))
async def test_bars_follow_any_sequence_of_writes(
    writer: Writer, store: Store, plan: list[tuple[str, Any]]
) -> None:
    await writer.do("truncate", None)
    for step, what in plan:
        await writer.do(step, what)
    # Looked at in the writer's session, since the WebAssembly engine has no other.
    await assert_bars_of(writer)


async def assert_bars_of(writer: Writer) -> None:
    for market in writer.markets:
        rows = writer.rows.items()
        mine = [c for (owner, name, _), c in rows if (owner, name) == (market.id, "1m")]
        for name in ROLLUPS:
            found = await writer.connection.fetch(
                "SELECT time, open, high, low, close, volume, bars "
                f"FROM ohlcv_{name} WHERE market_id = $1 ORDER BY time",
                market.id,
            )
            assert [Candle(*row) for row in found] == aggregated(mine, name), (market.id, name)


async def test_a_day_is_right_where_clocks_change(url: str, store: Store, market: Market) -> None:
    candles = minutes(AUTUMN - timedelta(days=1), 4 * 24, step=timedelta(hours=1))
    await insert(url, market, candles, timezone="America/New_York")
    late = [candle(AUTUMN + timedelta(hours=7, minutes=30))]
    await insert(url, market, late, timezone="America/New_York")
    assert (await rollups(store, market))["1d"] == aggregated([*candles, *late], "1d")


async def test_a_rolled_back_write_leaves_the_bars(writer: Writer) -> None:
    await writer.insert([(0, "1m", AUTUMN)])
    transaction = writer.connection.transaction()
    await transaction.start()
    await writer.connection.execute("UPDATE ohlcv SET volume = 0")
    await writer.connection.execute("DELETE FROM ohlcv")
    await transaction.rollback()
    await assert_bars_of(writer)


async def test_a_bar_that_says_the_same_is_not_written(
    url: str, store: Store, market: Market
) -> None:
    await insert(url, market, minutes(START, 60))
    before = await fetch(store, "SELECT xmin::text, ctid::text FROM ohlcv_1h")
    async with session(url) as connection:
        await connection.execute("UPDATE ohlcv SET volume = volume")
    assert await fetch(store, "SELECT xmin::text, ctid::text FROM ohlcv_1h") == before


async def test_a_bar_with_no_candle_left_is_gone(url: str, store: Store, market: Market) -> None:
    await insert(url, market, minutes(START, 10))
    async with session(url) as connection:
        await connection.execute("DELETE FROM ohlcv WHERE time >= $1", START + 5 * MINUTE)
    assert [bar.time for bar in (await rollups(store, market))["5m"]] == [START]


async def test_native_bars_of_other_timeframes_make_no_rollup(
    url: str, store: Store, market: Market
) -> None:
    await insert(url, market, [candle(START)], "5m")
    await insert(url, market, [candle(START)], "1d")
    assert await rollups(store, market) == {name: [] for name in ROLLUPS}


async def test_a_volume_that_only_a_sum_reaches_is_kept_exactly(
    url: str, store: Store, market: Market
) -> None:
    async with session(url) as connection:
        await connection.execute(
            "INSERT INTO ohlcv SELECT CAST($2 AS timestamptz) + n * INTERVAL '1 minute', $1, "
            "'1m', 1, 1, 1, 1, "
            "99999999999999999999.999999999999999999 FROM generate_series(0, 1439) n",
            market.id,
            START,
        )
    assert await value(store, "SELECT volume FROM ohlcv_1d") == await value(
        store, "SELECT 1440 * 99999999999999999999.999999999999999999"
    )


@pytest.mark.parametrize(
    "tier", ["plain", "apache"] if NATIVE_TIMESCALEDB else ["plain"], indirect=True
)
class TestTwoSessions:
    """Two writers of one bar, the second while the first has not committed."""

    @pytest.mark.parametrize("second", ["insert", "update", "delete"])
    async def test_the_bar_holds_what_both_wrote(
        self, url: str, store: Store, market: Market, second: str
    ) -> None:
        there = minutes(START, 3)
        await insert(url, market, there)
        new = [candle(START + 3 * MINUTE), candle(START + 4 * MINUTE)]
        statements: dict[str, tuple[str, tuple[Any, ...]]] = {
            "insert": (INSERT_CANDLE, parameters(market, new[1])),
            "update": ("UPDATE ohlcv SET volume = 7 WHERE time = $1", (START,)),
            "delete": ("DELETE FROM ohlcv WHERE time = $1", (START,)),
        }
        async with session(url) as first, session(url) as other, session(url) as observer:
            transaction = first.transaction()
            await transaction.start()
            await first.execute(INSERT_CANDLE, *parameters(market, new[0]))
            statement, arguments = statements[second]
            write = asyncio.create_task(other.execute(statement, *arguments))
            while not await observer.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert not write.done()
            await transaction.commit()
            await write
            rows = await observer.fetch("SELECT * FROM ohlcv ORDER BY time")
        candles = [Candle(*(row[name] for name in Candle._fields[:6])) for row in rows]
        assert len(candles) == {"insert": 5, "update": 4, "delete": 3}[second]
        assert await rollups(store, market) == {n: aggregated(candles, n) for n in ROLLUPS}

    async def test_under_a_snapshot_the_second_fails_rather_than_forget_the_first(
        self, url: str, store: Store, market: Market
    ) -> None:
        await insert(url, market, minutes(START, 3))
        async with session(url) as first, session(url) as second:
            snapshot = second.transaction(isolation="repeatable_read")
            await snapshot.start()
            await second.fetch("SELECT 1 FROM ohlcv")
            await first.execute(INSERT_CANDLE, *parameters(market, candle(START + 3 * MINUTE)))
            with pytest.raises(Exception, match="could not serialize access"):
                await second.execute(INSERT_CANDLE, *parameters(market, candle(START + 4 * MINUTE)))
            await snapshot.rollback()
        candles = minutes(START, 4)
        assert await rollups(store, market) == {n: aggregated(candles, n) for n in ROLLUPS}
