"""Starts and steers the bridge: a `postgresql://` URL in front of TimescaleDB in WebAssembly."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

FOLDER = Path(__file__).parent
# The first start after `npm ci` runs initdb: 5 s on two cores, more on a busy machine.
START_TIMEOUT_S = 120.0
# The bridge itself gives up after 5 s: it names the client that is still connected, and
# disconnects it.
COMMAND_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
LOG_LIMIT_BYTES = 20_000


class WasmServerError(RuntimeError):
    """The bridge could not start, refused a command, or ended."""


class WasmServer:
    """One database server of one session; connections take turns.

    >>> with WasmServer() as server:  # doctest: +SKIP
    ...     migrate(server.url)
    ...     server.snapshot("migrated")
    ...     server.restore("migrated")  # before each test
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log = -1  # descriptor of what the bridge writes to its standard error
        self._unread = b""
        self._port = 0

    @property
    def url(self) -> str:
        """`postgresql://postgres@127.0.0.1:PORT/postgres`; no password is asked for."""
        return f"postgresql://postgres@127.0.0.1:{self._running_port()}/postgres"

    def start(self) -> None:
        """Returns when the database accepts connections, `timescaledb` created in it."""
        if self._process is not None:
            raise WasmServerError("the TimescaleDB test engine is running already")
        node = shutil.which("node")
        if node is None:
            raise WasmServerError(
                "the TimescaleDB test engine needs Node 20 or newer (`node` is not on the PATH); "
                "install it and run `make test`"
            )
        if not (FOLDER / "node_modules" / "@unni-craftsman" / "pglite").is_dir():
            raise WasmServerError(
                f"the TimescaleDB test engine is not installed (no node_modules in {FOLDER}): "
                "run `make test`, which runs `npm ci` there"
            )
        # A file, not a pipe: nobody reads it while the bridge runs, and a pipe would fill up.
        self._log, name = tempfile.mkstemp()
        Path(name).unlink()
        self._unread = b""
        self._process = subprocess.Popen(
            [node, str(FOLDER / "bridge.mjs"), "--port", "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Ctrl+C in a test run is for pytest; the bridge ends when its standard input does.
            start_new_session=True,
        )
        try:
            self._port = int(str(self._answer(START_TIMEOUT_S)["port"]))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the bridge; the database is gone. Stopping twice changes nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # It has ended already, with a command unread.
            process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        os.close(self._log)

    def snapshot(self, name: str) -> None:
        """Keeps the database under `name`, replacing an older one; no client may be connected."""
        self._command(f"snapshot {name}")

    def restore(self, name: str) -> None:
        """Brings back the database as it was at `snapshot(name)`; no client may be connected."""
        self._command(f"restore {name}")

    def reset(self) -> None:
        """Brings back the database as it was at the start: empty, `timescaledb` created in it."""
        self._command("reset")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _running_port(self) -> int:
        if self._process is None:
            raise WasmServerError("the TimescaleDB test engine is not running: start() it first")
        return self._port

    def _command(self, line: str) -> None:
        self._running_port()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise self._ended() from exc
        answer = self._answer(COMMAND_TIMEOUT_S)
        if "error" in answer:
            raise WasmServerError(f"{line}: {answer['error']}")

    def _answer(self, timeout_s: float) -> dict[str, object]:
        """The next line of the bridge's standard output, which is always a JSON object."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            remaining_s = max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], remaining_s)[0]:
                raise WasmServerError(f"the bridge did not answer within {timeout_s:.0f} s")
            data = os.read(descriptor, 65_536)
            if not data:
                raise self._ended()
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise WasmServerError(f"unexpected answer of the bridge: {line!r}")
        return answer

    def _ended(self) -> WasmServerError:
        log = os.pread(self._log, LOG_LIMIT_BYTES, 0).decode(errors="replace").strip()
        return WasmServerError(f"the bridge ended: {log or 'it wrote no reason'}")
