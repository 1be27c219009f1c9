"""The program as a user runs it: a process of its own, with a home of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from engines import REAL_TIERS, Servers, plain_binaries

import kurisu
from kurisu.cli.main import execute

SOURCE = Path(kurisu.__file__).parents[1]
TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Result:
    """What a run of the program said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Program:
    """`kurisu`, in a folder and with a home."""

    folder: Path
    environment: Mapping[str, str]

    def __call__(self, *arguments: str | Path, code: int = 0, **environment: str) -> Result:
        """Run it to its end, in this process: to start one of its own takes longer than most
        commands. code: what it has to return."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in "oe")
        with (
            patch.dict(os.environ, {**self.environment, **environment}, clear=True),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            found = execute([str(argument) for argument in arguments])
        return _checked(Result(found, _written(out), _written(err)), code)

    def process(self, *arguments: str | Path, code: int = 0, **environment: str) -> Result:
        """Run it to its end as a user does. code: what it has to return."""
        done = subprocess.run(
            self.command(arguments),
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return _checked(Result(done.returncode, done.stdout.decode(), done.stderr.decode()), code)

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Run it beside the test."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(
            self.command(arguments), cwd=self.folder, env=dict(self.environment), **options
        )

    @property
    def url(self) -> str:
        """The program's database, for a session beside it."""
        named = self.environment.get("KURISU_DATABASE_URL")
        return named or str(self.process("server", "start", "--json").json["url"])

    @staticmethod
    def command(arguments: Sequence[str | Path]) -> list[str]:
        return [sys.executable, "-m", "kurisu.cli.main", *map(str, arguments)]


def _written(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


def _checked(result: Result, code: int) -> Result:
    assert result.code == code, f"exit code {result.code}: {result.out}{result.err}"
    return result


def make_home() -> Path:
    """Not below tmp_path: that is closed to the account that runs root's server."""
    memory = Path("/dev/shm")
    has_memory = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    home = Path(tempfile.mkdtemp(prefix="kurisu-cli-", dir=memory if has_memory else None))
    home.chmod(0o755)
    return home


@pytest.fixture(scope="session", params=REAL_TIERS)
def environment(request: pytest.FixtureRequest, servers: Servers) -> Iterator[dict[str, str]]:
    """Of every run: a home whose server starts with the first command that needs it.

    On other tiers the database is one of a real server's.
    """
    home = make_home()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("KURISU_") and name not in ("NO_COLOR", "COLUMNS")
    }
    found = {**kept, "KURISU_HOME": str(home), "PYTHONPATH": str(SOURCE)}
    if request.param == "plain":
        found["KURISU_POSTGRES_BIN"] = str(plain_binaries())
        yield found
        Program(home, found)("server", "stop")
    else:
        with servers.kept(request.param) as url:
            yield {**found, "KURISU_DATABASE_URL": url}
    shutil.rmtree(home)


@pytest.fixture
def kurisu_program(environment: dict[str, str], tmp_path: Path) -> Program:
    """The program, with the database that all tests of this folder share: each test has markets
    of its own in it."""
    return Program(tmp_path, environment)


@pytest.fixture(scope="session")
def sample() -> Path:
    """The day of candles that ships with Kurisu."""
    from kurisu.sample import CANDLES

    return SOURCE / "kurisu" / "sample" / CANDLES
