"""`kurisu.open`: the database that is meant, set up, and what the package offers at its top."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bars import START, minutes
from engines import Servers

import kurisu
from kurisu import api
from kurisu.errors import ConfigError, MigrationNeeded
from kurisu.server import Cluster
from kurisu.store.engine import Edition


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty data directory that the embedded server's account can reach."""
    path = Path(tempfile.mkdtemp(prefix="kurisu-"))
    path.chmod(0o755)
    monkeypatch.setenv("KURISU_HOME", str(path))
    monkeypatch.delenv(api.DATABASE_URL, raising=False)
    monkeypatch.delenv("KURISU_CONFIG", raising=False)
    monkeypatch.chdir(path)
    yield path
    Cluster(path).stop()
    shutil.rmtree(path)


async def test_without_a_url_the_embedded_server_is_started_and_set_up(home: Path) -> None:
    async with kurisu.open() as store:
        market = await store.markets.ensure("binance", "BTC/USDT")
        await store.candles.write(market, "1m", minutes(START, 10))
    assert Cluster(home).status().running
    async with kurisu.open() as store:
        assert list(await store.candles.read(market, "1m")) == minutes(START, 10)


async def test_a_url_comes_before_everything(
    home: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(api.DATABASE_URL, "postgresql://nobody@nowhere.invalid/none")
    with servers.migrated("plain") as url:
        async with kurisu.open(url) as store:
            assert store.engine.edition is Edition.PLAIN
    assert not (home / "server").exists()


async def test_the_environment_may_name_the_database(
    home: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.migrated("plain") as url:
        monkeypatch.setenv(api.DATABASE_URL, url)
        async with kurisu.open() as store:
            assert await store.markets.list() == []
    assert not (home / "server").exists()


async def test_another_database_is_not_set_up_by_itself(home: Path, servers: Servers) -> None:
    with pytest.raises(MigrationNeeded, match="Run `kurisu db upgrade`"):
        async with kurisu.open(servers.empty("plain")):
            pass


async def test_the_configuration_in_the_data_directory_applies(
    home: Path, servers: Servers
) -> None:
    (home / "kurisu.toml").write_text('[retention]\nohlcv = "5 years"\n')
    with servers.migrated("plain") as url:
        async with kurisu.open(url) as store:
            policy = (await store.db.retention())["ohlcv"]
    assert (policy.drop_after, policy.origin) == ("5 years", "config")


async def test_a_mistake_in_the_configuration_is_found_before_anything_is_done(
    home: Path, servers: Servers
) -> None:
    (home / "kurisu.toml").write_text("[retention]\nohlvc = '5 years'\n")
    with servers.migrated("plain") as url, pytest.raises(ConfigError, match="unknown key ohlvc"):
        async with kurisu.open(url):
            pass


def test_the_package_offers_what_it_says() -> None:
    for name in kurisu.__all__:
        assert getattr(kurisu, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kurisu.nothing


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("kurisu", {"sqlalchemy", "pyarrow", "numpy", "alembic", "asyncpg"}),
        # pyarrow imports pandas, where there is one, with the first array that it makes of a list.
        ("kurisu.api", {"pandas", "polars", "ccxt"}),
    ],
)
def test_importing_it_loads_nothing_heavy(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(kurisu.__file__).parents[1])},
    )
    assert done.stdout.strip() == "[]"
