"""From a data directory to a server that answers, and what to say when it does not.

The caller holds the lock of the home. All the rest of the world is still there: a server that a
killed process left on its way up, one that somebody started by hand, remains of a crash.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from kurisu.errors import ServerError
from kurisu.server.account import Account
from kurisu.server.postmaster import (
    NO_SUCH_PID,
    SOCKET_NAME,
    Answer,
    PidFile,
    ask,
    process_exists,
    processes_of,
    serves,
)
from kurisu.server.settings import memory_bytes, render, settings

START_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.02

# Between the end of a server that failed and the look at its log, and the next attempt.
RETRY_INTERVAL_S = 0.2

# A server that says it is ready and has no socket has lost it; this long, to rule out a moment
# in between.
LOST_SOCKET_S = 2.0

LOG_LINES = 20

# What the server says of something in its way that will not be for long: processes of a killed
# one that have not noticed yet, or another start that was overtaken.
PASSING = ("pre-existing shared memory block", 'lock file "')


@dataclass(frozen=True)
class Launch:
    """All that a start needs to know."""

    directory: Path
    """Holds `data` and `log`."""
    socket_dir: Path
    bin_dir: Path
    preload_timescaledb: bool
    account: Account

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"


def wait_until_ready(launch: Launch, timeout_s: float = START_TIMEOUT_S) -> None:
    """Start the server unless it is up or on its way, and return when it answers.

    Raises ServerError with the end of its log when it ends instead, or takes longer than
    `timeout_s`; a server that is still recovering by then goes on with it.
    """
    began = time.monotonic()
    spawned: int | None = None
    while True:
        pid_file = _server(launch.data_dir)
        coming = pid_file is not None and pid_file.state in ("", "starting")
        # Not asked before it has anything to say: each refusal is a FATAL line in its log.
        answer = Answer.BUSY if coming else ask(launch.socket_dir)
        if answer is Answer.READY:
            return
        waited = time.monotonic() - began
        if waited > timeout_s:
            raise ServerError(_too_slow(launch.directory, timeout_s, pid_file is not None))
        if pid_file is not None:
            lost = answer is Answer.ABSENT and pid_file.state == "ready"
            if lost and waited > LOST_SOCKET_S:
                raise ServerError(_lost_socket(pid_file.pid, launch.socket_dir))
        elif spawned is not None and not process_exists(spawned):
            # Its last words pass through the process that writes the log, which outlives it.
            # Meanwhile another server may have won: look once more before blaming.
            time.sleep(RETRY_INTERVAL_S)
            if _server(launch.data_dir) is None:
                said = tail(launch.directory)
                if not _was_in_the_way(spawned, said):
                    raise ServerError(_failed(launch.directory, said))
                spawned = None
        elif spawned is None and answer is Answer.ABSENT:
            spawned = _spawn(launch)
        time.sleep(POLL_INTERVAL_S)


def newest_log(directory: Path) -> Path:
    """The log that is written to now; before there is one, what the server said until then."""
    logs = list((directory / "log").glob("postgresql-*.log"))
    first = directory / "log" / "startup.log"
    return max(logs, key=lambda path: path.stat().st_mtime, default=first)


def tail(directory: Path) -> str:
    """The last lines of what the server said, before and after it opened its log."""
    lines: list[str] = []
    for path in (directory / "log" / "startup.log", newest_log(directory)):
        with contextlib.suppress(OSError):
            for line in path.read_text(errors="replace").splitlines()[-LOG_LINES:]:
                if line not in lines:
                    lines.append(line)
    return "\n".join(lines)


def disk_is_full(said: str) -> bool:
    """Whether that is what PostgreSQL's programs complain about."""
    return "No space left on device" in said or "Check free disk space" in said


def _was_in_the_way(pid: int, said: str) -> bool:
    own = [line for line in said.splitlines() if f"[{pid}]" in line and "FATAL:" in line]
    return any(words in line for line in own for words in PASSING)


def _server(data_dir: Path) -> PidFile | None:
    """The server's own file, if that server is alive."""
    pid_file = PidFile.read(data_dir)
    return pid_file if pid_file is not None and serves(pid_file.pid, data_dir) else None


def _spawn(launch: Launch) -> int:
    """Launch the server and give its process id; the caller sees whether it comes up.

    It gets a session of its own, so that neither Ctrl-C nor a closed terminal reaches it, none of
    our files, and a shell in between that ends at once, so that it is nobody's child: as ours it
    would stay behind as a zombie. pg_ctl would do the same, but puts paths into a shell command
    unquoted.
    """
    _disarm(launch)
    log_dir = launch.directory / "log"
    launch.account.make_directory(log_dir)
    values = settings(
        socket_dir=launch.socket_dir,
        log_dir=log_dir,
        preload_timescaledb=launch.preload_timescaledb,
        memory=memory_bytes(),
    )
    launch.account.write(launch.data_dir / "kurisu.conf", render(values))
    postgres = launch.bin_dir / "postgres"
    script = 'log=$1; shift; "$@" </dev/null >"$log" 2>&1 & echo $!'
    done = launch.account.run(
        ["/bin/sh", "-c", script, "sh", log_dir / "startup.log", postgres, "-D", launch.data_dir],
        new_session=True,
    )
    if not done.stdout.strip().isdigit():
        raise ServerError(f"{postgres} cannot be started: {done.stderr.strip()}")
    return int(done.stdout)


def _disarm(launch: Launch) -> None:
    """Make the lock files of a server that was killed say that it is dead.

    The caller has seen that none runs. PostgreSQL only asks whether there is a process of that
    id, and gives up if there is: another program by now, as usual in a restarted container whose
    ids begin at 1 again, or a zombie that the first process of a container never collects.
    """
    pid_path = launch.data_dir / "postmaster.pid"
    if PidFile.read(launch.data_dir) is not None:
        # The rest of the file has to stay: it leads to the shared memory that processes of the
        # old server may still use, and the new one waits for those.
        lines = pid_path.read_text().splitlines()
        lines[0] = str(NO_SUCH_PID)
        launch.account.write(pid_path, "\n".join(lines) + "\n")
    else:
        # Nothing there, or an empty file, which a crashed machine may leave and which PostgreSQL
        # wants removed by hand.
        launch.account.remove_tree(pid_path)
    # The directory is ours alone, and the data directory's own lock comes first.
    launch.account.remove_tree(launch.socket_dir / f"{SOCKET_NAME}.lock")


def _said(directory: Path) -> str:
    return f"The end of its log ({newest_log(directory)}):\n{tail(directory)}"


def _failed(directory: Path, said: str) -> str:
    advice = ""
    if disk_is_full(said):
        advice = "The disk is full: free some space and try again. "
    elif "could not access file" in said or "could not load library" in said:
        advice = "A module that is to be preloaded does not load: repair that installation. "
    return f"PostgreSQL did not start. {advice}{_said(directory)}"


def _lost_socket(pid: int, socket_dir: Path) -> str:
    return (
        f"The server runs (process {pid}), but its socket in {socket_dir} is not there: deleted, "
        "or in a /tmp that is private to another service. Run `kurisu server stop`, then `kurisu "
        "server start`."
    )


def _too_slow(directory: Path, timeout_s: float, alive: bool) -> str:
    if alive:
        return (
            f"The server is up but does not accept connections after {timeout_s:.0f} s. It may be "
            "recovering from a crash, which can take minutes and goes on by itself: try again "
            f"later. {_said(directory)}"
        )
    left = ", ".join(str(pid) for pid in processes_of(directory / "data")) or "none"
    return (
        f"The server did not start within {timeout_s:.0f} s. Processes that are left of an "
        f"earlier one: {left}; end them if there are any. {_said(directory)}"
    )
