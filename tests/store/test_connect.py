"""From a URL to sessions that all behave the same, and errors that say what to do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import asyncpg
import pytest
from engines import CONCURRENT_TIERS, execute
from rows import session
from sqlalchemy import make_url, text
from sqlalchemy.exc import InterfaceError, InternalError
from sqlalchemy.pool import NullPool

from kurisu.errors import ConfigError, DatabaseError, MigrationNeeded, WriteRefused
from kurisu.store.connect import (
    autocommit,
    copy_in,
    database_url,
    driver,
    make_engine,
    transaction,
    translated,
)
from kurisu.store.markets import Market
from kurisu.store.store import Store, open_store

SECRET = "hunter2"
#: A table that takes its rows one by one, and none while somebody holds the lock.
SLOW_TABLE = """
CREATE TABLE slow (a text);
CREATE FUNCTION wait_for_it() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
CREATE TRIGGER wait_for_it BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION wait_for_it();
"""
END_OTHERS = """
SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'kurisu'
"""
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql://me:{SECRET}@db.example:6543/market",
            f"postgres://me:{SECRET}@db.example:6543/market",
            f"postgresql+asyncpg://me:{SECRET}@db.example:6543/market",
            f"postgresql+psycopg://me:{SECRET}@db.example:6543/market",
            f"timescaledb://me:{SECRET}@db.example:6543/market",
        ],
    )
    def test_usual_spellings_are_one(self, url: str) -> None:
        found = database_url(url)
        assert found.render_as_string(hide_password=False) == (
            f"postgresql+asyncpg://me:{SECRET}@db.example:6543/market"
        )

    def test_a_password_may_hold_any_sign(self) -> None:
        assert database_url("postgresql://me:p%40%2F%3Aw@host/db").password == "p@/:w"

    @pytest.mark.parametrize("mode", ["disable", "require", "verify-full"])
    def test_libpqs_name_for_encryption_is_known(self, mode: str) -> None:
        found = database_url(f"postgresql://host/db?sslmode={mode}")
        assert dict(found.query) == {"ssl": mode}

    def test_what_need_not_be_bound_is_left_out(self) -> None:
        found = database_url("postgresql://host/db?sslmode=require&channel_binding=prefer")
        assert dict(found.query) == {"ssl": "require"}

    def test_a_socket_may_be_named(self) -> None:
        found = database_url("postgresql://me@/db?host=/run/postgresql&port=5433")
        assert dict(found.query) == {"host": "/run/postgresql", "port": "5433"}

    @pytest.mark.parametrize(
        ("url", "sentence"),
        [
            (f"mysql://me:{SECRET}@host/db", "mysql:// is not PostgreSQL"),
            (f"sqlite:///{SECRET}.db", "sqlite:// is not PostgreSQL"),
            (SECRET, "cannot be read; write it as postgresql://user:password@host:5432/database"),
            ("", "cannot be read"),
            (f"postgresql://me:{SECRET}@host:port/db", "cannot be read"),
            (f"postgresql://me:{SECRET}@host/db?channel_binding=require", "sslmode=verify-full"),
            (f"postgresql://me:p@{SECRET}@host/db", "more than one @"),
            (f"postgresql://me:{SECRET}@host:65536/db", "port 65536"),
            (f"postgresql://me:{SECRET}@host/db?bogus={SECRET}", "the option bogus"),
        ],
    )
    def test_others_are_refused_without_repeating_them(self, url: str, sentence: str) -> None:
        with pytest.raises(ConfigError) as refusal:
            database_url(url)
        assert sentence in str(refusal.value)
        assert SECRET not in str(refusal.value)

    def test_a_timeout_is_whole_seconds(self) -> None:
        make_engine("postgresql://host/db?connect_timeout=3")
        with pytest.raises(ConfigError, match="whole seconds"):
            make_engine("postgresql://host/db?connect_timeout=soon")

    @pytest.mark.parametrize("word", ["true", "1", "yes", "True"])
    def test_behind_a_pooler_no_connection_is_kept(self, word: str) -> None:
        assert isinstance(make_engine(f"postgresql://host/db?pgbouncer={word}").pool, NullPool)

    @pytest.mark.parametrize("word", ["false", "0", "no"])
    def test_without_one_connections_are_kept(self, word: str) -> None:
        assert not isinstance(make_engine(f"postgresql://host/db?pgbouncer={word}").pool, NullPool)


class TestSessions:
    @pytest.mark.parametrize("tier", CONCURRENT_TIERS, indirect=True)
    async def test_every_session_says_who_it_is_and_thinks_in_utc(self, store: Store) -> None:
        async with transaction(store.database) as connection:
            for name, value in (("application_name", "kurisu"), ("timezone", "UTC")):
                assert await connection.scalar(text(f"SHOW {name}")) == value

    @pytest.mark.parametrize("tier", CONCURRENT_TIERS, indirect=True)
    async def test_the_defaults_of_a_database_are_not_those_of_kurisu(self, url: str) -> None:
        """A lock is worth nothing to a transaction whose view of the data is older than it."""
        wanted = {"transaction_isolation": "read committed", "timezone": "UTC",
                  "intervalstyle": "postgres", "standard_conforming_strings": "on"}  # fmt: skip
        await execute(url, *(
            f"ALTER DATABASE {make_url(url).database} SET {name} = '{other}'"
            for name, other in {"default_transaction_isolation": "repeatable read",
                                "timezone": "America/New_York", "intervalstyle": "iso_8601",
                                "standard_conforming_strings": "off"}.items()
        ))  # fmt: skip
        database = make_engine(url)
        for begun in (transaction, autocommit):
            async with begun(database) as connection:
                for name, value in wanted.items():
                    assert await connection.scalar(text(f"SHOW {name}")) == value
        await database.dispose()
        pooled = make_engine(str(make_url(url).update_query_dict({"pgbouncer": "true"})))
        async with transaction(pooled) as connection:
            assert await connection.scalar(text("SHOW transaction_isolation")) == "read committed"

    @pytest.mark.parametrize("tier", ["community"], indirect=True)
    async def test_a_server_that_says_nothing_is_asked_whether_it_is_there(self, url: str) -> None:
        """Over TCP; the embedded server's socket is on this machine."""
        database = make_engine(url)
        async with transaction(database) as connection:
            used = (await driver(connection))._transport.get_extra_info("socket")
            assert used.family == socket.AF_INET
            assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle = getattr(socket, "TCP_KEEPIDLE", None)
            assert idle is None or used.getsockopt(socket.IPPROTO_TCP, idle) == 60
        await database.dispose()

    @pytest.mark.parametrize("tier", ["plain"], indirect=True)
    async def test_the_name_may_be_another(self, url: str) -> None:
        database = make_engine(f"{url}&application_name=backfill&connect_timeout=7")
        async with transaction(database) as connection:
            assert await connection.scalar(text("SHOW application_name")) == "backfill"
        await database.dispose()

    @pytest.mark.parametrize("tier", ["plain"], indirect=True)
    async def test_the_store_works_as_behind_a_pooler(self, url: str) -> None:
        async with open_store(f"{url}&pgbouncer=true") as store:
            market = await store.markets.ensure("binance", "BTC/USDT")
            assert await store.markets.list() == [market]

    async def test_a_transaction_is_committed_at_its_end(self, store: Store) -> None:
        async with transaction(store.database) as connection:
            await connection.execute(text("CREATE TABLE seen (a int)"))
            raw = await driver(connection)
            await raw.copy_records_to_table("seen", records=[(1,), (2,)])
        async with transaction(store.database) as connection:
            assert await connection.scalar(text("SELECT sum(a) FROM seen")) == 3

    async def test_a_transaction_that_fails_leaves_nothing(self, store: Store) -> None:
        with pytest.raises(ZeroDivisionError):
            async with transaction(store.database) as connection:
                # COPY alone would not begin a transaction.
                raw = await driver(connection)
                await raw.copy_records_to_table(
                    "markets",
                    records=[("binance", "A/B", "A", "B")],
                    columns=["exchange", "symbol", "base_asset", "quote_asset"],
                )
                raise ZeroDivisionError
        assert await store.markets.list() == []

    async def test_outside_a_transaction_each_statement_is_its_own(self, store: Store) -> None:
        async with autocommit(store.database) as connection:
            await connection.execute(text("CREATE TABLE seen (a int)"))
            await connection.execute(text("VACUUM seen"))


class TestErrors:
    async def test_a_guard_in_the_database(self, store: Store) -> None:
        with pytest.raises(WriteRefused, match=r"(?s)uix_exchange_symbol.*already exists"):
            async with transaction(store.database) as connection:
                for _ in range(2):
                    await connection.execute(
                        text(
                            "INSERT INTO markets (exchange, symbol, base_asset, quote_asset) "
                            "VALUES ('binance', 'A/B', 'A', 'B')"
                        )
                    )

    async def test_a_guard_that_a_copy_meets(self, store: Store) -> None:
        with pytest.raises(WriteRefused, match='null value in column "exchange"'):
            async with transaction(store.database) as connection:
                raw = await driver(connection)
                await raw.copy_records_to_table(
                    "accounts", records=[("main", None)], columns=["name", "exchange"]
                )

    async def test_a_mistaken_statement(self, store: Store) -> None:
        with pytest.raises(DatabaseError, match='relation "nowhere" does not exist'):
            async with transaction(store.database) as connection:
                await connection.execute(text("SELECT * FROM nowhere"))

    async def test_a_right_that_is_not_there(self, store: Store) -> None:
        with pytest.raises(DatabaseError, match=r"denied for table markets\..*needs CREATE in it"):
            async with transaction(store.database) as connection:
                await connection.execute(text("SET LOCAL ROLE pg_monitor"))
                await connection.execute(text("SELECT * FROM markets"))

    async def test_a_server_that_is_not_there(self) -> None:
        with pytest.raises(DatabaseError, match="cannot reach the database") as refusal:
            async with open_store(f"postgresql://me:{SECRET}@127.0.0.1:1/db"):
                pass
        assert "KURISU_DATABASE_URL" in str(refusal.value)
        assert SECRET not in str(refusal.value)

    async def test_a_host_that_has_no_address(self) -> None:
        with pytest.raises(DatabaseError, match=r"cannot reach.*nowhere\.invalid") as refusal:
            async with open_store(f"postgresql://me:{SECRET}@nowhere.invalid/db"):
                pass
        assert SECRET not in str(refusal.value)

    @pytest.mark.parametrize("form", ["me:{}@127.0.0.1:{}/db", "me@127.0.0.1:{1}/db?password={0}"])
    async def test_a_password_that_is_wrong(self, form: str) -> None:
        async with guarded_server() as port:
            with pytest.raises(DatabaseError, match="does not accept the user or password") as no:
                async with open_store("postgresql://" + form.format(SECRET, port)):
                    pass
        assert f"127.0.0.1:{port}" in str(no.value)
        assert SECRET not in str(no.value)

    @pytest.mark.parametrize("tier", ["plain"], indirect=True)
    async def test_a_role_that_is_not_there(self, url: str) -> None:
        other = database_url(url).set(username="nobody_here")
        with pytest.raises(DatabaseError, match=r'postgresql://nobody_here@.*: role "nobody_here"'):
            async with open_store(other.render_as_string(hide_password=False)):
                pass

    async def test_an_option_that_the_driver_refuses(self) -> None:
        with pytest.raises(ConfigError, match="the database URL: `sslmode` parameter must be"):
            async with open_store("postgresql://me@127.0.0.1:1/db?sslmode=always"):
                pass

    async def test_a_certificate_that_is_not_there(self, tmp_path: Path) -> None:
        file = tmp_path / "root & co.pem"
        query = urlencode({"sslmode": "verify-full", "sslrootcert": str(file)})
        with pytest.raises(ConfigError, match=r"sslrootcert=.*root & co\.pem, and there is no"):
            async with open_store(f"postgresql://me@127.0.0.1:1/db?{query}"):
                pass

    @pytest.mark.parametrize("tier", ["plain"], indirect=True)
    async def test_a_database_that_is_not_there(self, url: str) -> None:
        with pytest.raises(DatabaseError, match="create the database first"):
            async with open_store(url.replace("/kurisu_test", "/not_kurisu_test")):
                pass

    @pytest.mark.parametrize("tier", CONCURRENT_TIERS, indirect=True)
    async def test_a_connection_that_is_cut(self, store: Store, url: str) -> None:
        with pytest.raises(DatabaseError):
            async with transaction(store.database) as connection:
                mine = await connection.scalar(text("SELECT pg_backend_pid()"))
                async with session(url) as other:
                    await other.execute("SELECT pg_terminate_backend($1, 5000)", mine)
                await connection.execute(text("SELECT 1"))
        # The next one is a new one.
        assert await store.markets.list() == []

    @pytest.mark.parametrize("tier", CONCURRENT_TIERS, indirect=True)
    @pytest.mark.parametrize("timeframe", ["1m", "1d", "1w"])
    async def test_connections_that_end_in_the_pool(
        self, store: Store, market: Market, url: str, timeframe: str
    ) -> None:
        """A server that was restarted overnight, or a firewall that has cut what was idle."""
        reads = [store.candles.read(market, timeframe) for _ in range(3)]
        await asyncio.gather(*reads)
        async with session(url) as other:
            assert await other.fetchval(END_OTHERS) >= 3
        await asyncio.sleep(0.1)  # until this side has noticed
        for _ in range(4):
            assert (await store.candles.read(market, timeframe)).num_rows == 0

    @pytest.mark.parametrize("tier", CONCURRENT_TIERS, indirect=True)
    async def test_a_connection_that_is_cut_while_a_copy_pauses(
        self, store: Store, url: str
    ) -> None:
        """The server does not take what it is sent, so that the sender has to wait."""
        asked = 0

        async def chunks() -> AsyncGenerator[bytes, None]:
            nonlocal asked
            for _ in range(100):
                asked += 1
                yield b"a" * 999_999 + b"\n"

        async with session(url) as other:
            await other.execute(SLOW_TABLE)
            await other.execute("SELECT pg_advisory_lock(1)")
            with pytest.raises(DatabaseError, match="connection"):
                async with asyncio.timeout(10), transaction(store.database) as connection:
                    raw = await driver(connection)
                    copy = asyncio.create_task(copy_in(raw, "slow", ["a"], chunks()))
                    while not await other.fetchval(WAITING):
                        assert not copy.done()
                    await asyncio.sleep(0.1)  # until nothing more is asked for
                    assert 0 < asked < 100
                    mine = raw.get_server_pid()
                    await other.execute("SELECT pg_terminate_backend($1, 5000)", mine)
                    await copy
        assert isinstance(copy.exception(), asyncpg.ConnectionDoesNotExistError)
        assert await store.markets.list() == []


class TestRevisions:
    """A database that is older or newer than the program is not used."""

    async def test_an_empty_one(self, store: Store) -> None:
        async with transaction(store.database) as connection:
            await connection.execute(text("DELETE FROM alembic_version"))
        await self.refused(store, r"has no tables of Kurisu yet. Run `kurisu db upgrade`")

    async def test_an_older_one(self, store: Store) -> None:
        async with transaction(store.database) as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))
        await self.refused(store, r"at revision 0003 and this program needs \d+. Run `kurisu db")

    async def test_a_newer_one(self, store: Store) -> None:
        async with transaction(store.database) as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        await self.refused(store, "at revision 9999, which is newer than this program")

    @staticmethod
    async def refused(store: Store, sentence: str) -> None:
        url = store.database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with pytest.raises(MigrationNeeded, match=sentence):
            async with open_store(url.replace("prepared_statement_cache_size=0", "pgbouncer=true")):
                pass


@contextlib.asynccontextmanager
async def guarded_server() -> AsyncIterator[int]:
    """The port of a server that asks for a password and accepts none."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def send(kind: bytes, body: bytes) -> None:
            writer.write(kind + struct.pack("!i", 4 + len(body)) + body)

        while True:
            (length,) = struct.unpack("!i", await reader.readexactly(4))
            (code,) = struct.unpack("!i", (await reader.readexactly(length - 4))[:4])
            if code != 80_877_103:  # SSLRequest
                break
            writer.write(b"N")
        send(b"R", struct.pack("!i", 3))  # AuthenticationCleartextPassword
        await reader.readexactly(1)
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        await reader.readexactly(length - 4)
        send(b"E", b'SFATAL\0C28P01\0Mpassword authentication failed for user "me"\0\0')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class TestWhatTheDriverSays:
    """A backend that ends in the middle of a statement is told in several ways."""

    @pytest.mark.parametrize(
        ("error", "says"),
        [
            (asyncpg.InternalClientError("cannot switch to state 15"), "broke: cannot switch"),
            (asyncpg.InterfaceError("another operation is in progress"), "broke: another"),
            (asyncpg.ConnectionDoesNotExistError("closed in the middle"), "closed in the middle"),
            # Of a value, not of the connection.
            (asyncpg.exceptions._base.DataError("invalid input for $1"), "^invalid input for"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_it_is_the_connection_or_the_value(
        self, error: Exception, says: str, wrapped: bool
    ) -> None:
        raised = error
        if wrapped:
            # As SQLAlchemy's dialect does it: its own copy, caused by the driver's.
            copy = Exception(str(error))
            copy.__cause__ = error
            kind = InterfaceError if isinstance(error, asyncpg.InterfaceError) else InternalError
            raised = kind("SELECT 1", None, copy)
        with pytest.raises(DatabaseError, match=says), translated("here"):
            raise raised
