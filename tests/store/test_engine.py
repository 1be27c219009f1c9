"""Which server this is, found out at connect time, and every server that is refused."""

from __future__ import annotations

import os
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from typing import Any, Final, cast

import pytest
from bars import START, as_table, minutes
from engines import EDITIONS, NATIVE_TIMESCALEDB, Servers, execute
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from kurisu.errors import EngineRefused
from kurisu.store import engine as module
from kurisu.store.connect import make_engine, transaction
from kurisu.store.engine import Edition, Engine, version_tuple
from kurisu.store.store import Store, open_store, upgrade

#: What the server of `KURISU_TEST_TIMESCALEDB_URL` is restarted with, given 'apache' or
#: 'timescale' as its last word. Nobody else may be using the server.
LICENSE_COMMAND: Final = "KURISU_TEST_TIMESCALEDB_LICENSE_COMMAND"

Found = namedtuple("Found", "version_num version extension license available preloaded hidden")
Data = namedtuple("Data", "aggregates compressed")
PLAIN: Final = Found(180_001, "18.1", None, None, None, False, None)
COMMUNITY: Final = Found(170_005, "17.5", "2.24.0", "timescale", "2.25.1", True, None)


class Server:
    """A connection to a server of which only the answers matter."""

    def __init__(self, found: Found, data: Data | None = None) -> None:
        self._answers: list[Any] = [found, data]

    async def execute(self, _: object) -> Server:
        return self

    def one(self) -> Any:
        return self._answers.pop(0)


async def detect(found: Found, data: Data | None = None) -> Engine:
    return await module.detect(cast(AsyncConnection, Server(found, data)))


class TestFound:
    async def test_postgresql(self) -> None:
        engine = await detect(PLAIN)
        assert engine == Engine(Edition.PLAIN, "18.1", None, None)
        assert (engine.has_hypertables, engine.is_community) == (False, False)
        assert str(engine) == "PostgreSQL 18.1"

    async def test_postgresql_that_could_have_timescaledb(self) -> None:
        found = PLAIN._replace(license="timescale", available="2.24.0", preloaded=True)
        assert (await detect(found)).available == "2.24.0"

    async def test_files_that_the_server_has_not_loaded_do_not_count(self) -> None:
        assert (await detect(PLAIN._replace(available="2.24.0"))).available is None

    async def test_community(self) -> None:
        engine = await detect(COMMUNITY)
        assert (engine.edition, engine.timescaledb) == (Edition.COMMUNITY, "2.24.0")
        assert (engine.has_hypertables, engine.is_community) == (True, True)
        assert str(engine) == "TimescaleDB Community 2.24.0 on PostgreSQL 17.5"

    async def test_the_apache_edition(self) -> None:
        engine = await detect(COMMUNITY._replace(license="apache"), Data(0, 0))
        assert engine.edition is Edition.APACHE
        assert (engine.has_hypertables, engine.is_community) == (True, False)

    @pytest.mark.parametrize("version", ["2.18.0", "2.18.0-dev", "2.31.4", "3.0.0"])
    async def test_versions_that_are_new_enough(self, version: str) -> None:
        assert (await detect(COMMUNITY._replace(extension=version))).timescaledb == version

    @pytest.mark.parametrize("number", [150_000, 150_018, 190_000])
    async def test_postgresql_that_is_new_enough(self, number: int) -> None:
        assert (await detect(PLAIN._replace(version_num=number))).edition is Edition.PLAIN

    async def test_it_is_the_server_under_the_tests(self, store: Store, tier: str) -> None:
        assert store.engine.edition is EDITIONS[tier]
        assert (store.engine.timescaledb is None) == (tier == "plain")
        assert int(store.engine.postgres.split(".")[0]) >= module.MIN_POSTGRES


class TestRefused:
    """A sentence each, with what is needed."""

    async def test_an_old_postgresql(self) -> None:
        with pytest.raises(EngineRefused, match="PostgreSQL 14.9; Kurisu needs PostgreSQL 15"):
            await detect(PLAIN._replace(version_num=140_009, version="14.9"))

    @pytest.mark.parametrize("version", ["2.17.2", "1.7.5", "2.9.3"])
    async def test_an_old_timescaledb(self, version: str) -> None:
        sentence = f"TimescaleDB {version}; Kurisu needs 2.18 or newer.*ALTER EXTENSION"
        with pytest.raises(EngineRefused, match=sentence):
            await detect(COMMUNITY._replace(extension=version))

    @pytest.mark.parametrize("data", [Data(5, 0), Data(0, 3), Data(5, 3)])
    async def test_the_data_of_community_on_the_apache_edition(self, data: Data) -> None:
        sentence = (
            f"{data.compressed} compressed chunks and {data.aggregates} continuous aggregates.*"
            "Set timescaledb.license = 'timescale'"
        )
        with pytest.raises(EngineRefused, match=sentence):
            await detect(COMMUNITY._replace(license="apache"), data)

    @pytest.mark.parametrize("unloaded", [None, ""])
    async def test_an_extension_that_the_server_has_not_loaded(self, unloaded: str | None) -> None:
        with pytest.raises(EngineRefused, match="not loaded by the server.*shared_preload"):
            await detect(COMMUNITY._replace(license=unloaded, preloaded=False))

    async def test_an_extension_that_is_not_on_the_search_path(
        self, store: Store, tier: str
    ) -> None:
        with pytest.raises(EngineRefused, match=r"schema ts .* SET search_path = public, ts$"):
            await detect(COMMUNITY._replace(hidden="ts"))
        async with transaction(store.database) as connection:
            await connection.execute(text("SET LOCAL search_path = pg_catalog"))
            if tier == "plain":
                await module.detect(connection)
            else:
                with pytest.raises(EngineRefused, match="TimescaleDB is in the schema public"):
                    await module.detect(connection)


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.24.0", (2, 24, 0)), ("2.23.0-dev", (2, 23, 0)), ("18", (18,)), ("2.9.3", (2, 9, 3))],
)
def test_versions_are_compared_by_their_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert version_tuple(version) == numbers


@pytest.mark.skipif(
    not NATIVE_TIMESCALEDB or LICENSE_COMMAND not in os.environ,
    reason=f"{LICENSE_COMMAND} does not say how to change a server's license",
)
class TestLicense:
    """A real server whose license is changed under the data. Run it alone: it restarts."""

    @pytest.fixture(autouse=True)
    def community_again(self) -> Iterator[None]:
        yield
        self.restart("timescale")

    @staticmethod
    def restart(license_name: str) -> None:
        command = [*os.environ[LICENSE_COMMAND].split(), license_name]
        subprocess.run(command, check=True, capture_output=True)

    async def test_compressed_candles_do_not_silently_disappear(self, servers: Servers) -> None:
        url = servers.empty("community")
        await upgrade(url)
        async with open_store(url) as store:
            market = await store.markets.ensure("binance", "BTC/USDT")
            await store.candles.write(market, "1m", as_table(minutes(START, 1_000)))
            await store.db.maintain()
        self.restart("apache")
        with pytest.raises(EngineRefused, match="5 continuous aggregates"):
            async with open_store(url):
                pass
        with pytest.raises(EngineRefused, match="5 continuous aggregates"):
            await upgrade(url)
        self.restart("timescale")
        async with open_store(url) as store:
            market = await store.markets.get("binance", "BTC/USDT")
            assert list(await store.candles.read(market, "1m")) == minutes(START, 1_000)

    async def test_a_database_made_on_the_apache_edition(self, servers: Servers) -> None:
        self.restart("apache")
        url = servers.empty("apache")
        await upgrade(url)
        async with open_store(url) as store:
            assert store.engine.edition is Edition.APACHE
            market = await store.markets.ensure("binance", "BTC/USDT")
            await store.candles.write(market, "1m", as_table(minutes(START, 1_000)))
            assert (await store.candles.verify()).ok
            await store.db.maintain()
            await store.db.status()
        assert await upgrade(url) == []

    async def test_the_extension_is_not_created_twice(self, servers: Servers) -> None:
        url = servers.empty("community")
        await execute(url, "CREATE EXTENSION timescaledb")
        database = make_engine(url)
        async with transaction(database) as connection:
            assert (await module.detect(connection)).edition is Edition.COMMUNITY
        await database.dispose()
