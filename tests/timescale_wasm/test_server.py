"""The bridge behaves as PostgreSQL does, and the engine behind it is TimescaleDB Community.

These tests are about the test engine itself: when one fails, suspect the bridge before Kurisu.
"""

from __future__ import annotations

import asyncio
import io
import re
import struct
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import NullPool, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from .server import WasmServer, WasmServerError

# asyncpg 0.32 ships no types, so that this is Any to the checker.
Connection: TypeAlias = "asyncpg.Connection"

START = datetime(2024, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def server() -> Iterator[WasmServer]:
    with WasmServer() as server:
        yield server


@pytest.fixture
def url(server: WasmServer) -> str:
    server.reset()
    return server.url


@pytest_asyncio.fixture
async def connection(url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+asyncpg://"),
        poolclass=NullPool,
        connect_args={
            "statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"kurisu_{uuid4().hex}",
        },
    )
    yield engine
    await engine.dispose()


async def create_candles(connection: Connection) -> None:
    await connection.execute(
        """
        CREATE TABLE candles (
            market_id int NOT NULL,
            time timestamptz NOT NULL,
            close numeric(38, 18) NOT NULL CHECK (close > 0),
            volume numeric(38, 18) NOT NULL,
            PRIMARY KEY (market_id, time)
        )
        """
    )
    await connection.execute(
        "SELECT create_hypertable('candles', 'time', chunk_time_interval => interval '7 days')"
    )


def candles(count: int) -> list[tuple[int, datetime, Decimal, Decimal]]:
    return [(1, START + i * MINUTE, Decimal(i + 1), Decimal("0.5")) for i in range(count)]


async def copy_in(connection: Connection, table: str, data: bytes, **options: str) -> str:
    status: str = await connection.copy_to_table(table, source=io.BytesIO(data), **options)
    return status


class TestProtocol:
    @pytest.mark.asyncio
    async def test_a_query_and_its_parameters(self, connection: Connection) -> None:
        row = await connection.fetchrow(
            "SELECT $1::int + 1, $2::numeric(38, 18), $3::timestamptz, $4::text[]",
            41,
            Decimal("12345678901234567890.123456789012345678"),
            START,
            ["a", None],
        )
        assert row is not None
        assert tuple(row) == (
            42,
            Decimal("12345678901234567890.123456789012345678"),
            START,
            ["a", None],
        )

    @pytest.mark.asyncio
    async def test_the_server_introduces_itself(self, connection: Connection) -> None:
        assert connection.get_server_version()[:1] == (17,)
        assert connection.get_settings().TimeZone == "UTC"
        assert await connection.fetchval("SELECT current_database()") == "postgres"
        assert await connection.fetchval("SHOW enable_seqscan") == "on"

    @pytest.mark.asyncio
    async def test_a_prepared_statement_runs_again(self, connection: Connection) -> None:
        statement = await connection.prepare("SELECT generate_series(1, $1::int)")
        assert [len(await statement.fetch(n)) for n in (1, 0, 1000)] == [1, 0, 1000]

    @pytest.mark.asyncio
    async def test_a_cursor_fetches_part_by_part(self, connection: Connection) -> None:
        async with connection.transaction():
            cursor = connection.cursor("SELECT generate_series(1, 100)", prefetch=7)
            assert [row[0] async for row in cursor] == list(range(1, 101))

    @pytest.mark.asyncio
    async def test_executemany_is_one_transaction(self, connection: Connection) -> None:
        await connection.execute("CREATE TABLE t (a int CHECK (a < 3))")
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.executemany("INSERT INTO t VALUES ($1)", [(1,), (2,), (3,)])
        assert await connection.fetchval("SELECT count(*) FROM t") == 0
        await connection.executemany("INSERT INTO t VALUES ($1)", [(1,), (2,)])
        assert await connection.fetchval("SELECT count(*) FROM t") == 2

    @pytest.mark.asyncio
    async def test_an_error_leaves_the_session_usable(self, connection: Connection) -> None:
        for _ in range(2):
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.execute("SELECT 1 / 0")
            with pytest.raises(asyncpg.UndefinedColumnError):
                await connection.fetch("SELECT missing WHERE 1 = $1", 1)
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.fetch("SELECT 1 / $1::int", 0)
            assert not connection.is_in_transaction()
            assert await connection.fetchval("SELECT 1") == 1

    @pytest.mark.asyncio
    async def test_a_failed_transaction_refuses_until_rollback(
        self, connection: Connection
    ) -> None:
        transaction = connection.transaction()
        await transaction.start()
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetch("SELECT 1 / $1::int", 0)
        for statement in ("SELECT 1", "COPY pg_class FROM STDIN"):
            with pytest.raises(asyncpg.InFailedSQLTransactionError):
                await connection.execute(statement)
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await connection.fetch("SELECT $1::int", 1)
        assert connection.is_in_transaction()
        await transaction.rollback()
        assert not connection.is_in_transaction()

    @pytest.mark.asyncio
    async def test_a_savepoint_survives_an_error(self, connection: Connection) -> None:
        await connection.execute("CREATE TABLE t (a int PRIMARY KEY)")
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(asyncpg.UniqueViolationError):
                async with connection.transaction():
                    await connection.execute("INSERT INTO t VALUES (1)")
            await connection.execute("INSERT INTO t VALUES (2)")
        assert await connection.fetchval("SELECT array_agg(a ORDER BY a) FROM t") == [1, 2]

    @pytest.mark.asyncio
    async def test_an_answer_of_many_megabytes_is_complete(self, connection: Connection) -> None:
        rows = await connection.fetch(
            "SELECT g, repeat(md5(g::text), 32) AS t FROM generate_series(1, 20000) g"
        )
        assert len(rows) == 20_000
        assert sum(len(row["t"]) for row in rows) == 20_000 * 32 * 32

    @pytest.mark.asyncio
    async def test_a_parameter_of_many_megabytes_arrives(self, connection: Connection) -> None:
        value = "x" * 8_000_000
        assert await connection.fetchval("SELECT length($1::text)", value) == len(value)

    @pytest.mark.asyncio
    async def test_notices_and_notifications_arrive(self, connection: Connection) -> None:
        notices: list[str] = []
        notifications: asyncio.Queue[object] = asyncio.Queue()
        connection.add_log_listener(lambda _, message: notices.append(message.message))
        await connection.add_listener("events", lambda *event: notifications.put_nowait(event[2:]))
        await connection.execute("DO $$ BEGIN RAISE NOTICE 'look'; RAISE DEBUG 'no'; END $$")
        await connection.execute("NOTIFY events, 'payload'")
        assert await asyncio.wait_for(notifications.get(), 5) == ("events", "payload")
        await connection.remove_listener("events", print)
        await asyncio.sleep(0)
        assert notices == ["look"]
        connection.remove_log_listener(print)
        await connection.reset()


class TestConnections:
    @pytest.mark.asyncio
    async def test_settings_of_the_connection_apply(self, url: str) -> None:
        settings = {"application_name": "it's me", "timezone": "Asia/Tokyo"}
        connection = await asyncpg.connect(url, server_settings=settings)
        assert await connection.fetchval("SHOW application_name") == "it's me"
        assert await connection.fetchval("SHOW timezone") == "Asia/Tokyo"
        await connection.close()
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SHOW timezone") == "UTC"
        await connection.close()

    @pytest.mark.asyncio
    async def test_a_wrong_setting_database_or_user_is_refused(self, url: str) -> None:
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await asyncpg.connect(url, server_settings={"timezone": "Mars/Olympus"})
        with pytest.raises(asyncpg.InvalidCatalogNameError):
            await asyncpg.connect(url, database="elsewhere")
        with pytest.raises(asyncpg.InvalidParameterValueError, match="does not exist"):
            await asyncpg.connect(url, user="nobody")

    @pytest.mark.asyncio
    async def test_another_role_is_that_role(self, url: str, connection: Connection) -> None:
        await connection.execute("CREATE ROLE reader LOGIN; CREATE TABLE t (a int)")
        await connection.close()
        reader = await asyncpg.connect(url, user="reader")
        assert await reader.fetchval("SELECT session_user") == "reader"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await reader.fetch("SELECT * FROM t")
        await reader.close()
        again = await asyncpg.connect(url)
        assert await again.fetchval("SELECT session_user") == "postgres"
        await again.close()

    @pytest.mark.asyncio
    async def test_ssl_is_declined(self, url: str) -> None:
        connection = await asyncpg.connect(url, ssl="prefer")
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()

    @pytest.mark.asyncio
    async def test_a_second_client_waits_for_the_first(self, url: str) -> None:
        first = await asyncpg.connect(url)
        waiting = [asyncio.create_task(asyncpg.connect(url)) for _ in range(2)]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in waiting)
        await first.execute("CREATE TABLE t (a int)")
        await first.close()
        for task in asyncio.as_completed(waiting):
            connection = await task
            await connection.execute("INSERT INTO t VALUES (1)")
            count = await connection.fetchval("SELECT count(*) FROM t")
            await connection.close()
        assert count == 2

    @pytest.mark.asyncio
    async def test_a_client_that_gives_up_leaves_the_queue(self, url: str) -> None:
        first = await asyncpg.connect(url)
        with pytest.raises(TimeoutError):
            await asyncpg.connect(url, timeout=0.2)
        await first.close()
        second = await asyncpg.connect(url)
        assert await second.fetchval("SELECT 1") == 1
        await second.close()

    @pytest.mark.asyncio
    @pytest.mark.parametrize("politely", [True, False])
    async def test_nothing_of_a_session_is_left_to_the_next(self, url: str, politely: bool) -> None:
        first = await asyncpg.connect(url)
        await first.execute("CREATE TABLE t (a int)")
        await first.execute("CREATE TEMP TABLE scratch (a int)")
        await first.execute("SET timezone = 'Asia/Tokyo'")
        await first.execute("PREPARE leftover AS SELECT 1")
        await first.execute("SELECT pg_advisory_lock(7)")
        await first.execute("LISTEN events")
        await first.execute("BEGIN")
        await first.execute("INSERT INTO t VALUES (1)")
        if politely:
            await first.close()
        else:
            first.terminate()

        second = await asyncpg.connect(url)
        assert not second.is_in_transaction()
        assert await second.fetchval("SELECT count(*) FROM t") == 0
        assert await second.fetchval("SELECT to_regclass('scratch')") is None
        assert await second.fetchval("SHOW timezone") == "UTC"
        assert await second.fetchval("SHOW search_path") == '"$user", public'
        prepared = "SELECT count(*) FROM pg_prepared_statements WHERE name = 'leftover'"
        assert await second.fetchval(prepared) == 0
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert await second.fetchval(locks) == 0
        assert await second.fetchval("SELECT count(*) FROM pg_listening_channels()") == 0
        await second.close()

    @pytest.mark.asyncio
    async def test_work_without_sync_is_not_committed(self, url: str) -> None:
        """A client that vanishes between Execute and Sync has committed nothing."""
        setup = await asyncpg.connect(url)
        await setup.execute("CREATE TABLE t (a int)")
        await setup.close()

        reader, writer = await raw_connection(url)
        writer.write(
            raw_message(b"P", b"\0INSERT INTO t VALUES (1)\0\0\0")
            + raw_message(b"B", b"\0\0\0\0\0\0\0\0")
            + raw_message(b"E", b"\0\0\0\0\0")
        )
        assert await read_until(reader, b"C") == [b"1", b"2", b"C"]
        writer.close()

        after = await asyncpg.connect(url)
        assert await after.fetchval("SELECT count(*) FROM t") == 0
        await after.close()

    @pytest.mark.asyncio
    async def test_messages_cut_anywhere_are_understood(self, url: str) -> None:
        reader, writer = await raw_connection(url)
        for byte in raw_message(b"Q", b"SELECT 1\0") * 2:
            writer.write(bytes([byte]))
            await writer.drain()
        assert await read_until(reader, b"Z") == [b"T", b"D", b"C", b"Z"]
        assert await read_until(reader, b"Z") == [b"T", b"D", b"C", b"Z"]
        writer.close()

    @pytest.mark.asyncio
    async def test_after_an_error_everything_is_skipped_until_sync(self, url: str) -> None:
        reader, writer = await raw_connection(url)
        broken = raw_message(b"P", b"\0SELECT missing\0\0\0")
        fine = raw_message(b"P", b"\0SELECT 1\0\0\0")
        flush, sync = raw_message(b"H", b""), raw_message(b"S", b"")
        writer.write(broken + flush + fine + fine + sync + fine + sync)
        assert await read_until(reader, b"Z") == [b"E", b"Z"]
        assert await read_until(reader, b"Z") == [b"1", b"Z"]
        writer.close()


class TestCopy:
    @pytest.mark.asyncio
    async def test_records_in_binary(self, connection: Connection) -> None:
        await create_candles(connection)
        status = await connection.copy_records_to_table("candles", records=candles(20_000))
        assert status == "COPY 20000"
        total = "SELECT (count(*), sum(close), min(time), max(time))::text FROM candles"
        assert await connection.fetchval(total) == (
            '(20000,200010000.000000000000000000,"2024-01-01 00:00:00+00","2024-01-14 21:19:00+00")'
        )

    @pytest.mark.asyncio
    async def test_text_and_csv(self, connection: Connection) -> None:
        await connection.execute('CREATE TABLE "t (x)" (a int, "b,c" text)')
        assert await copy_in(connection, "t (x)", b"1\tone\n2\t\\N\n") == "COPY 2"
        csv = b'b,a\n"it\'s; ""quoted""",3\n'
        await connection.copy_to_table(
            "t (x)",
            columns=["b,c", "a"],
            source=io.BytesIO(csv),
            format="csv",
            header=True,
            null="-",
        )
        rows = await connection.fetch('SELECT * FROM "t (x)" ORDER BY a')
        assert [tuple(row) for row in rows] == [(1, "one"), (2, None), (3, 'it\'s; "quoted"')]

    @pytest.mark.asyncio
    async def test_no_rows_at_all(self, connection: Connection) -> None:
        await connection.execute("CREATE TABLE t (a int)")
        assert await copy_in(connection, "t", b"") == "COPY 0"
        assert await connection.copy_records_to_table("t", records=[]) == "COPY 0"

    @pytest.mark.asyncio
    async def test_an_error_in_the_data(self, connection: Connection) -> None:
        await connection.execute("CREATE TABLE t (a int CHECK (a > 0))")
        with pytest.raises(asyncpg.InvalidTextRepresentationError) as caught:
            await copy_in(connection, "t", b"1\nx\n")
        assert "COPY t, line 2, column a" in str(caught.value.context)
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.copy_records_to_table("t", records=[(1,), (-1,)])
        with pytest.raises(asyncpg.UndefinedTableError):
            await copy_in(connection, "missing", b"1\n")
        assert await connection.fetchval("SELECT count(*) FROM t") == 0

    @pytest.mark.asyncio
    async def test_inside_a_transaction(self, connection: Connection) -> None:
        await connection.execute("CREATE TABLE t (a int)")
        with pytest.raises(RuntimeError, match="changed my mind"):  # what rolls back
            async with connection.transaction():
                await copy_in(connection, "t", b"1\n")
                assert connection.is_in_transaction()
                assert await connection.fetchval("SELECT count(*) FROM t") == 1
                raise RuntimeError("changed my mind")
        assert await connection.fetchval("SELECT count(*) FROM t") == 0

        async with connection.transaction():
            await copy_in(connection, "t", b"1\n")
            with pytest.raises(asyncpg.InvalidTextRepresentationError):
                async with connection.transaction():
                    await copy_in(connection, "t", b"x\n")
            await copy_in(connection, "t", b"2\n")
        assert await connection.fetchval("SELECT sum(a) FROM t") == 3

    @pytest.mark.asyncio
    async def test_a_source_that_fails_aborts_the_copy(self, connection: Connection) -> None:
        await connection.execute("CREATE TABLE t (a int)")

        async def source() -> AsyncIterator[bytes]:
            yield b"1\n"
            raise ConnectionError("the exchange hung up")

        transaction = connection.transaction()
        await transaction.start()
        with pytest.raises(ConnectionError, match="hung up"):
            await connection.copy_to_table("t", source=source())
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await connection.execute("SELECT 1")
        await transaction.rollback()
        assert await connection.fetchval("SELECT count(*) FROM t") == 0

    @pytest.mark.asyncio
    async def test_the_failure_reaches_the_client(self, url: str) -> None:
        reader, writer = await raw_connection(url)
        writer.write(raw_message(b"Q", b"COPY pg_temp_t FROM STDIN\0"))
        assert await read_until(reader, b"G") == [b"G"]
        writer.write(raw_message(b"d", b"1\n") + raw_message(b"f", b"no more\0"))
        assert await read_until(reader, b"Z") == [b"E", b"Z"]
        writer.close()

    @pytest.mark.asyncio
    async def test_the_extended_protocol_copies_too(self, url: str) -> None:
        """libpq sends Sync after Execute, and the server ignores it while it reads data."""
        setup = await asyncpg.connect(url)
        await setup.execute("CREATE TABLE t (a int)")
        await setup.close()
        reader, writer = await raw_connection(url)
        begin = (
            raw_message(b"P", b"\0COPY t (a) FROM STDIN WITH (FORMAT text)\0\0\0")
            + raw_message(b"B", b"\0\0\0\0\0\0\0\0")
            + raw_message(b"E", b"\0\0\0\0\0")
            + raw_message(b"S", b"")
        )
        done, sync = raw_message(b"c", b""), raw_message(b"S", b"")
        writer.write(begin)
        assert await read_until(reader, b"G") == [b"1", b"2", b"G"]
        writer.write(raw_message(b"d", b"1\n2\n") + done + sync)
        assert await read_until(reader, b"Z") == [b"C", b"Z"]
        for failure in (raw_message(b"d", b"x\n") + done, raw_message(b"f", b"no\0")):
            writer.write(begin)
            assert await read_until(reader, b"G") == [b"1", b"2", b"G"]
            writer.write(failure + raw_message(b"P", b"\0SELECT 1\0\0\0") + sync)
            assert await read_until(reader, b"Z") == [b"E", b"Z"]
        writer.close()
        after = await asyncpg.connect(url)
        assert await after.fetchval("SELECT count(*) FROM t") == 2
        await after.close()

    @pytest.mark.asyncio
    async def test_out_in_text_csv_and_binary(self, connection: Connection) -> None:
        query = "SELECT g AS a, g::text || ',x' AS b FROM generate_series(1, 2) g"
        assert await self.copy_out(connection, query) == b"1\t1,x\n2\t2,x\n"
        csv = await self.copy_out(connection, query, format="csv", header=True)
        assert csv == b'a,b\n1,"1,x"\n2,"2,x"\n'
        binary = await self.copy_out(connection, query, format="binary")
        assert binary.startswith(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        row = struct.pack("!hii", 2, 4, 2) + struct.pack("!i", 3) + b"2,x"
        assert binary.endswith(row + b"\xff\xff")

    @pytest.mark.asyncio
    async def test_an_error_during_copy_out(self, connection: Connection) -> None:
        query = "SELECT 1 / (500 - g) FROM generate_series(1, 1000) g"
        with pytest.raises(asyncpg.DivisionByZeroError):
            await self.copy_out(connection, query)
        assert await connection.fetchval("SELECT 1") == 1

    @pytest.mark.asyncio
    async def test_out_and_in_again_is_the_same(self, connection: Connection) -> None:
        await create_candles(connection)
        await connection.copy_records_to_table("candles", records=candles(5_000))
        data = await self.copy_out(connection, "SELECT * FROM candles", format="binary")
        await connection.execute("CREATE TABLE again (LIKE candles)")
        assert await copy_in(connection, "again", data, format="binary") == "COPY 5000"
        difference = "SELECT count(*) FROM (TABLE candles EXCEPT ALL TABLE again) d"
        assert await connection.fetchval(difference) == 0

    @pytest.mark.asyncio
    async def test_fifty_megabytes(self, connection: Connection) -> None:
        await connection.execute("CREATE TABLE t (a int, b text)")
        row = struct.pack("!hii", 2, 4, 7) + struct.pack("!i", 1_000) + b"b" * 1_000
        count = 50_000_000 // len(row) + 1
        data = b"PGCOPY\n\xff\r\n\0" + bytes(8) + row * count + b"\xff\xff"
        started = time.monotonic()
        assert await copy_in(connection, "t", data, format="binary") == f"COPY {count}"
        # 1.5 s on two cores; joining the buffers once per message would take minutes.
        assert time.monotonic() - started < 30
        assert await connection.fetchval("SELECT sum(length(b)) FROM t") == 1_000 * count
        out = await self.copy_out(connection, "TABLE t", format="binary")
        assert len(out) == len(data)

    async def copy_out(self, connection: Connection, query: str, **options: object) -> bytes:
        target = io.BytesIO()
        await connection.copy_from_query(query, output=target, **options)
        return target.getvalue()


class TestTimescale:
    @pytest.mark.asyncio
    async def test_compression(self, connection: Connection) -> None:
        await create_candles(connection)
        await connection.execute(
            "ALTER TABLE candles SET (timescaledb.compress, "
            "timescaledb.compress_segmentby = 'market_id', timescaledb.compress_orderby = 'time')"
        )
        await connection.copy_records_to_table("candles", records=candles(20_000))
        job = await connection.fetchval(
            "SELECT add_compression_policy('candles', interval '7 days')"
        )
        await connection.execute(f"CALL run_job({job})")
        status = "SELECT bool_and(is_compressed) FROM timescaledb_information.chunks"
        assert await connection.fetchval(status) is True
        assert await connection.fetchval("SELECT sum(volume) FROM candles") == 10_000
        await connection.execute("UPDATE candles SET volume = 1 WHERE time = $1", START)
        assert await connection.fetchval("SELECT sum(volume) FROM candles") == Decimal("10000.5")

    @pytest.mark.asyncio
    async def test_retention(self, connection: Connection) -> None:
        await create_candles(connection)
        await connection.copy_records_to_table("candles", records=candles(10))
        job = await connection.fetchval("SELECT add_retention_policy('candles', interval '1 day')")
        assert await connection.fetchval("SELECT count(*) FROM candles") == 10
        await connection.execute(f"CALL run_job({job})")
        assert await connection.fetchval("SELECT count(*) FROM candles") == 0

    @pytest.mark.asyncio
    async def test_hierarchical_continuous_aggregates(self, connection: Connection) -> None:
        await create_candles(connection)
        for name, source, time_column, bars, bucket in (
            ("candles_5m", "candles", "time", "count(*)", "5 minutes"),
            ("candles_1h", "candles_5m", "time", "sum(bars)", "1 hour"),
        ):
            await connection.execute(
                f"""
                CREATE MATERIALIZED VIEW {name}
                WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
                SELECT market_id, time_bucket('{bucket}', {time_column}) AS time,
                       last(close, time) AS close, sum(volume) AS volume, {bars} AS bars
                FROM {source} GROUP BY 1, 2 WITH NO DATA
                """
            )
        await connection.copy_records_to_table("candles", records=candles(150))
        real_time = await connection.fetch("SELECT time, close, bars FROM candles_1h ORDER BY 1")
        for name in ("candles_5m", "candles_1h"):
            await connection.execute(
                "CALL refresh_continuous_aggregate($1, CAST($2 AS timestamptz), "
                "CAST($3 AS timestamptz))",
                name,
                START,
                START + timedelta(hours=2),
            )
        # In one batch: by default the first run makes one for every ten buckets of the window,
        # empty ones included, which takes 15 s here.
        job = await connection.fetchval(
            "SELECT add_continuous_aggregate_policy('candles_1h', "
            "start_offset => interval '20 years', end_offset => interval '1 hour', "
            "schedule_interval => interval '1 hour', buckets_per_batch => 0)"
        )
        await connection.execute(f"CALL run_job({job})")
        rows = await connection.fetch("SELECT time, close, bars FROM candles_1h ORDER BY 1")
        assert rows == real_time
        assert [tuple(row) for row in rows] == [
            (START, 60, 60),
            (START + timedelta(hours=1), 120, 60),
            (START + timedelta(hours=2), 150, 30),
        ]

    @pytest.mark.asyncio
    async def test_a_refresh_is_refused_inside_a_transaction(self, connection: Connection) -> None:
        await create_candles(connection)
        await connection.execute(
            "CREATE MATERIALIZED VIEW d WITH (timescaledb.continuous) AS "
            "SELECT time_bucket('1 day', time) AS day, count(*) FROM candles GROUP BY 1 "
            "WITH NO DATA"
        )
        with pytest.raises(asyncpg.ActiveSQLTransactionError):
            async with connection.transaction():
                await connection.execute(
                    "CALL refresh_continuous_aggregate('d', '2024-01-01', '2024-02-01')"
                )

    @pytest.mark.asyncio
    async def test_statement_triggers_see_every_changed_row(self, connection: Connection) -> None:
        await create_candles(connection)
        await connection.execute(
            """
            CREATE TABLE seen (op text, old_rows bigint, new_rows bigint);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF tg_op = 'INSERT' THEN
                    INSERT INTO seen SELECT tg_op, 0, count(*) FROM new_rows;
                ELSIF tg_op = 'UPDATE' THEN
                    INSERT INTO seen SELECT tg_op, (SELECT count(*) FROM old_rows), count(*)
                    FROM new_rows;
                ELSE
                    INSERT INTO seen SELECT tg_op, count(*), 0 FROM old_rows;
                END IF;
                RETURN NULL;
            END $$;
            CREATE TRIGGER inserted AFTER INSERT ON candles REFERENCING NEW TABLE AS new_rows
                FOR EACH STATEMENT EXECUTE FUNCTION note();
            CREATE TRIGGER updated AFTER UPDATE ON candles
                REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
                FOR EACH STATEMENT EXECUTE FUNCTION note();
            CREATE TRIGGER deleted AFTER DELETE ON candles REFERENCING OLD TABLE AS old_rows
                FOR EACH STATEMENT EXECUTE FUNCTION note();
            """
        )
        # Three chunks in one statement.
        await connection.copy_records_to_table("candles", records=candles(20_000))
        await connection.execute("INSERT INTO candles VALUES (2, now(), 1, 1), (3, now(), 1, 1)")
        await connection.execute("UPDATE candles SET volume = 1 WHERE market_id > 1")
        await connection.execute("DELETE FROM candles WHERE market_id > 1")
        rows = await connection.fetch("SELECT * FROM seen")
        assert [tuple(row) for row in rows] == [
            ("INSERT", 0, 20_000),
            ("INSERT", 0, 2),
            ("UPDATE", 2, 2),
            ("DELETE", 2, 0),
        ]

    @pytest.mark.asyncio
    async def test_advisory_locks(self, connection: Connection) -> None:
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '5s'")
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('a', 0))")
            assert await connection.fetchval("SELECT pg_try_advisory_lock(1)") is True
            assert await connection.fetchval(held) == 2
        assert await connection.fetchval("SHOW lock_timeout") == "0"
        assert await connection.fetchval(held) == 1

    @pytest.mark.asyncio
    async def test_exclusion_constraints(self, connection: Connection) -> None:
        await connection.execute("CREATE EXTENSION btree_gist")
        await connection.execute(
            "CREATE TABLE coverage (market_id int, range tstzrange, "
            "EXCLUDE USING gist (market_id WITH =, range WITH &&))"
        )
        insert = "INSERT INTO coverage VALUES (1, tstzrange($1, $2))"
        await connection.execute(insert, START, START + 2 * MINUTE)
        with pytest.raises(asyncpg.ExclusionViolationError):
            await connection.execute(insert, START + MINUTE, START + 3 * MINUTE)


class TestSqlAlchemy:
    @pytest.mark.asyncio
    async def test_connections_follow_each_other(self, engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE t (a int PRIMARY KEY, b numeric)"))
        for a in range(3):
            async with engine.begin() as connection:
                await connection.execute(
                    text("INSERT INTO t VALUES (:a, :b)"), {"a": a, "b": Decimal("0.1")}
                )
        async with engine.connect() as connection:
            rows = (await connection.execute(text("SELECT sum(a), sum(b) FROM t"))).one()
        assert tuple(rows) == (3, Decimal("0.3"))

    @pytest.mark.asyncio
    async def test_errors_and_savepoints(self, engine: AsyncEngine) -> None:
        insert = text("INSERT INTO t VALUES (1)")
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE t (a int PRIMARY KEY)"))
            await connection.execute(insert)
            with pytest.raises(IntegrityError):
                async with connection.begin_nested():
                    await connection.execute(insert)
            count = (await connection.execute(text("SELECT count(*) FROM t"))).scalar_one()
        assert count == 1

    @pytest.mark.asyncio
    async def test_autocommit_runs_what_refuses_a_transaction(self, engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("VACUUM"))

    @pytest.mark.asyncio
    async def test_the_driver_connection_copies(self, engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE t (a int)"))
            raw = await connection.get_raw_connection()
            driver = raw.driver_connection
            assert driver is not None
            await driver.copy_records_to_table("t", records=[(1,), (2,)])
            total = (await connection.execute(text("SELECT sum(a) FROM t"))).scalar_one()
        assert total == 3


class TestSnapshots:
    @pytest.mark.asyncio
    async def test_restore_brings_everything_back(self, server: WasmServer, url: str) -> None:
        connection = await asyncpg.connect(url)
        await create_candles(connection)
        await connection.copy_records_to_table("candles", records=candles(100))
        await connection.close()
        server.snapshot("hundred")
        for round_ in range(3):
            connection = await asyncpg.connect(url)
            assert await connection.fetchval("SELECT count(*) FROM candles") == 100
            await connection.execute("TRUNCATE candles")
            await connection.copy_records_to_table("candles", records=candles(20_000 * round_))
            await connection.execute("CREATE TABLE other (a int)")
            await connection.execute("VACUUM FULL pg_class")
            await connection.execute("CHECKPOINT")
            await connection.close()
            server.restore("hundred")
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT to_regclass('other')") is None
        await connection.execute("REINDEX DATABASE")
        assert await connection.fetchval("SELECT sum(close) FROM candles") == 5_050
        await connection.close()
        server.reset()
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT to_regclass('candles')") is None
        await connection.close()

    @pytest.mark.asyncio
    async def test_a_library_loaded_after_the_snapshot_loads_again(
        self, server: WasmServer, url: str
    ) -> None:
        for _ in range(2):
            connection = await asyncpg.connect(url)
            await connection.execute("CREATE EXTENSION btree_gist")
            assert await connection.fetchval("SELECT to_tsvector('english', 'dogs')") == "'dog':1"
            await connection.close()
            server.reset()

    @pytest.mark.asyncio
    async def test_a_crash_is_reported_and_ends_with_a_restore(
        self, server: WasmServer, url: str
    ) -> None:
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE t (a int)")
        # A server-side COPY from the bridge's own device, without data, is one way to crash it.
        with pytest.raises(asyncpg.ConnectionDoesNotExistError, match="engine crashed"):
            await connection.execute("COPY t FROM '/dev/copy_from_client'")
        with pytest.raises(asyncpg.InternalServerError, match="restore a snapshot"):
            await asyncpg.connect(url)
        server.reset()
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT to_regclass('t')") is None
        await create_candles(connection)
        await connection.close()

    @pytest.mark.asyncio
    async def test_commands_wait_for_the_last_client(self, server: WasmServer, url: str) -> None:
        connection = await asyncpg.connect(url)
        reset = asyncio.create_task(asyncio.to_thread(server.reset))
        await asyncio.sleep(0.2)
        assert not reset.done()
        await connection.close()
        await reset

    @pytest.mark.asyncio
    async def test_a_forgotten_client_is_named_and_disconnected(
        self, server: WasmServer, url: str
    ) -> None:
        settings = {"application_name": "the forgotten one"}
        connection = await asyncpg.connect(url, server_settings=settings)
        with pytest.raises(WasmServerError, match="the forgotten one was still connected"):
            await asyncio.to_thread(server.reset)
        server.reset()
        # Which of the two depends on whether asyncpg has read the end of the stream yet.
        with pytest.raises((asyncpg.InterfaceError, asyncpg.ConnectionDoesNotExistError)):
            await connection.fetchval("SELECT 1")

    def test_a_mistaken_command_is_an_error(self, server: WasmServer) -> None:
        with pytest.raises(WasmServerError, match="no snapshot is named missing"):
            server.restore("missing")
        with pytest.raises(WasmServerError, match="empty database"):
            server.snapshot("base")
        with pytest.raises(WasmServerError, match="no such command"):
            server.snapshot("two words")


class TestServer:
    def test_it_has_to_be_running(self) -> None:
        with pytest.raises(WasmServerError, match="not running"):
            _ = WasmServer().url

    def test_node_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(WasmServerError, match="make test"):
            WasmServer().start()

    def test_the_package_is_asked_for(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(f"{WasmServer.__module__}.FOLDER", tmp_path)
        with pytest.raises(WasmServerError, match="npm ci"):
            WasmServer().start()

    def test_the_lock_file_names_no_registry(self) -> None:
        folder = Path(__file__).parent
        for name in ("package.json", "package-lock.json", ".npmrc"):
            content = (folder / name).read_text()
            assert not re.search(r"https?://|\"resolved\"", content), name


def raw_message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", 4 + len(body)) + body


async def raw_connection(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has reached its first ReadyForQuery."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    startup = struct.pack("!i", 196_608) + b"user\0postgres\0database\0postgres\0\0"
    writer.write(struct.pack("!i", 4 + len(startup)) + startup)
    await read_until(reader, b"Z")
    return reader, writer


async def read_until(reader: asyncio.StreamReader, last: bytes) -> list[bytes]:
    """The types of the messages up to the first of type `last`, it included."""
    kinds: list[bytes] = []
    while last not in kinds:
        kind, length = struct.unpack("!ci", await asyncio.wait_for(reader.readexactly(5), 10))
        await reader.readexactly(length - 4)
        kinds.append(kind)
    return kinds
