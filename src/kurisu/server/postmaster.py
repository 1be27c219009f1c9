"""What can be learned about a running server from outside it: postmaster.pid and the socket."""

import os
import socket
import struct
import subprocess
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

# The port is part of a socket's name; ours is always 5432.
SOCKET_NAME = ".s.PGSQL.5432"

PROBE_TIMEOUT_S = 2.0

# "57P03 cannot_connect_now": starting up, recovering or shutting down.
CANNOT_CONNECT_NOW = b"C57P03\0"

# Larger than any process id that Linux (2^22) or macOS (99998) hands out.
NO_SUCH_PID = 2**31 - 1


class Answer(Enum):
    """How the server behind a socket answers a new connection."""

    READY = "ready"
    BUSY = "busy"
    """There is a server, but it is starting up, recovering or shutting down."""
    ABSENT = "absent"


@dataclass(frozen=True)
class PidFile:
    """postmaster.pid, which the server keeps in its data directory."""

    pid: int
    socket_dir: Path | None
    """None while the server has not opened its socket yet."""
    state: str
    """'starting', 'stopping', 'ready' or 'standby'; empty very early in a start."""

    @classmethod
    def read(cls, data_dir: Path) -> "PidFile | None":
        """The file's contents; None where there is none, or it is empty or half written."""
        try:
            lines = (data_dir / "postmaster.pid").read_text().splitlines()
            pid = int(lines[0])
        except (FileNotFoundError, NotADirectoryError, IndexError, ValueError):
            return None
        # Line 5 is the first socket directory, line 8 the state (src/include/utils/pidfile.h).
        return cls(
            pid,
            Path(lines[4]) if len(lines) > 4 and lines[4] else None,
            lines[7].strip() if len(lines) > 7 else "",
        )


def ask(socket_dir: Path) -> Answer:
    """Open a connection as far as the authentication request, and close it.

    pg_isready does the same; doing it here spares a process in every command of Kurisu.
    """
    body = struct.pack("!I", 3 << 16) + b"user\0kurisu\0database\0kurisu\0\0"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PROBE_TIMEOUT_S)
            connection.connect(str(socket_dir / SOCKET_NAME))
            connection.sendall(struct.pack("!I", len(body) + 4) + body)
            reply = connection.recv(4096)
            if not reply:
                return Answer.BUSY
            if reply[:1] == b"E":
                # Any other refusal (too many connections, say) comes from a server that is up.
                return Answer.BUSY if CANNOT_CONNECT_NOW in reply else Answer.READY
            connection.sendall(b"X" + struct.pack("!I", 4))
            return Answer.READY
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return Answer.ABSENT
    except (TimeoutError, BlockingIOError, ConnectionResetError, BrokenPipeError):
        return Answer.BUSY
    except OSError:
        # A path too long for a socket, or no permission: either way no server can be reached.
        return Answer.ABSENT


def process_exists(pid: int) -> bool:
    """Whether a process has this id. A zombie has not: it is over, only nobody collected it.

    In a container whose first process collects no children, a server that ended stays a zombie.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    try:
        # "pid (name) state ...", where the name may contain anything, parentheses too.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def serves(pid: int, data_dir: Path) -> bool:
    """Whether this process is a PostgreSQL server of this data directory.

    postmaster.pid may be left from before a crash, and its id may belong to another process by
    now; in a restarted container that is the usual case, since ids start from 1 again.
    """
    if not process_exists(pid):
        return False
    try:
        # A PostgreSQL server works in its data directory.
        return os.path.samefile(f"/proc/{pid}/cwd", data_dir)
    except FileNotFoundError:
        if Path("/proc/self/cwd").exists():
            return False
    except PermissionError:
        # Another user's process is no server of ours; one of our own that hides might be.
        return _may_signal(pid)
    except OSError:
        return False
    # No /proc, as on macOS.
    shown = subprocess.run(
        ["ps", "-o", "comm=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return "postgres" in shown.stdout


def _may_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def processes_of(data_dir: Path) -> list[int]:
    """The ids of all processes that work in this data directory; empty where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.path.samefile(entry / "cwd", data_dir):
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)
