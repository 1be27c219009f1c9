"""What Kurisu itself keeps about a cluster, in `<home>/server`: a record and a lock."""

import contextlib
import errno
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from kurisu.errors import ServerError
from kurisu.server.binaries import Edition

# Longer than initdb, a start and a stop together may take.
LOCK_TIMEOUT_S = 200.0
LOCK_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Record:
    """cluster.json: what the next process must know. Every field is None until it is known."""

    outside: str | None = None
    """Directory of the cluster where it could not be kept in the home; None: it is in the home."""
    socket_dir: str | None = None
    bin_dir: str | None = None
    version: str | None = None
    """PostgreSQL's version at the last start."""
    timescaledb: Edition | None = None
    """The edition that was preloaded at the last start; hypertables may exist since then."""
    note: str | None = None
    """What the user should know about the choice of binaries."""

    @classmethod
    def read(cls, path: Path) -> "Record":
        """The record in a file; one with nothing known where there is no file yet."""
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            return cls()
        except ValueError as error:
            raise ServerError(_damaged(path, str(error))) from error
        names = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or any(
            not isinstance(values.get(name), str | None) for name in names
        ):
            raise ServerError(_damaged(path, "it is not an object of texts"))
        return cls(**{name: values.get(name) for name in names})

    def write(self, path: Path) -> None:
        """Replace the file in one step, and leave it to the owner of its directory."""
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(self), file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            give_to_owner(Path(name))
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def locked(path: Path, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[int]:
    """Hold the lock file and give its descriptor, which children may inherit.

    The lock belongs to the open file, not to the process: the kernel drops it when the last
    process that has it open is gone, however it went. A child that got the descriptor keeps the
    lock after its parent was killed, so that nobody starts over while initdb still writes.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        give_to_owner(path)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                    raise
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                raise ServerError(
                    f"Process {holder or 'unknown'} has held {path} for {timeout_s:.0f} s; it is "
                    "starting or stopping the server. If it hangs, end it and try again."
                )
            time.sleep(LOCK_INTERVAL_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def give_to_owner(path: Path) -> None:
    """As root, leave a file to whoever owns its directory: `sudo kurisu` locks nobody out."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} is damaged ({reason}). If the cluster is in {path.parent / 'pg'}, delete that "
        "file: it will be made again."
    )
