"""The cluster of one home: made, started, stopped and described.

    <home>/server/              what Kurisu keeps: `lock`, `cluster.json`
    <home>/server/pg/           what the server keeps, owned by its account, mode 0700
        data/  run/  log/       the data directory, the socket, the logs

As root, `pg` may have to be elsewhere, see `Cluster._place`.
"""

import contextlib
import errno
import os
import secrets
import signal
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kurisu.errors import ServerError
from kurisu.server.account import Account, account_for
from kurisu.server.binaries import Binaries, Choice, Edition, candidates, choose, copy_of_wheel
from kurisu.server.home import data_home
from kurisu.server.initialise import initialise
from kurisu.server.launch import Launch, newest_log, tail, wait_until_ready
from kurisu.server.postmaster import Answer, PidFile, ask, serves
from kurisu.server.sockets import choose_socket_dir, is_private, url_of
from kurisu.server.state import Record, locked

STOP_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.02

# Below this lies what root cannot keep in its home because the server's account cannot go there.
SYSTEM_DIRECTORY = Path("/var/lib/kurisu")


@dataclass(frozen=True)
class ClusterStatus:
    """What is known about a cluster at one moment."""

    running: bool
    """It accepts connections."""
    pid: int | None
    """Of the server process; also set while it starts up or shuts down."""
    socket_dir: Path | None
    """None before the first start."""
    data_dir: Path
    """Where the data is, or would be made (as root, the first start may decide otherwise)."""
    version: str | None
    """PostgreSQL's version at the last start; None before the first."""
    binaries: Path | None
    """The bin directory at the last start; None before the first."""
    timescaledb: Edition | None
    """The TimescaleDB edition that the server was started with; None without TimescaleDB."""
    url: str | None
    """None before the first start."""
    log: Path
    """The file that the server writes its messages to."""
    note: str | None
    """What the user should know about the choice of binaries; None if there is nothing."""


class Cluster:
    """The private PostgreSQL cluster of one home. Making the object touches nothing."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = (home or data_home()).absolute()
        self._server = self.home / "server"
        self._record_path = self._server / "cluster.json"

    @property
    def url(self) -> str:
        """The URL of the database, running or not; ServerError before the first start."""
        url = self.status().url
        if url is None:
            raise ServerError(f"The server of {self.home} has never been started: start it first.")
        return url

    def status(self) -> ClusterStatus:
        """Look, without a lock and without changing anything."""
        with self._explained():
            record = Record.read(self._record_path)
            directory = self._directory(record)
            socket_dir = Path(record.socket_dir) if record.socket_dir else None
            pid_file = PidFile.read(directory / "data")
            alive = pid_file is not None and serves(pid_file.pid, directory / "data")
            return ClusterStatus(
                running=_ask_ours(directory, socket_dir) is Answer.READY,
                pid=pid_file.pid if pid_file is not None and alive else None,
                socket_dir=socket_dir,
                data_dir=directory / "data",
                version=record.version,
                binaries=Path(record.bin_dir) if record.bin_dir else None,
                timescaledb=record.timescaledb,
                url=url_of(socket_dir) if socket_dir else None,
                log=newest_log(directory),
                note=record.note,
            )

    def start(self) -> ClusterStatus:
        """Make the cluster if there is none, start it if it is down, and wait until it answers.

        Any number of processes may call this at once; one of them starts the server. Raises
        ServerError, with the end of the server's log where the server was what failed.
        """
        status = self.status()
        if status.running:
            return status
        with self._explained():
            self.home.mkdir(parents=True, exist_ok=True)
            # Root's server has to get through to `pg`; the names in here are no secret.
            _make_own(self._server, 0o711 if os.geteuid() == 0 else 0o700)
            with locked(self._server / "lock") as lock:
                self._start(lock)
        return self.status()

    def stop(self) -> bool:
        """Shut down (fast: sessions end, committed data is safe); False if it was not running."""
        with self._explained():
            if not self._server.exists():
                return False
            with locked(self._server / "lock"):
                return self._stop(Record.read(self._record_path))

    def _directory(self, record: Record) -> Path:
        return Path(record.outside) if record.outside else self._server / "pg"

    def _start(self, lock: int) -> None:
        """Everything that the lock guards in a start."""
        for unfinished in self._server.glob("cluster.json.*"):
            unfinished.unlink()
        before = Record.read(self._record_path)
        record, account = self._place(before)
        directory = self._directory(record)
        data_dir = directory / "data"
        pid_file = PidFile.read(data_dir)
        if pid_file is not None and pid_file.socket_dir and serves(pid_file.pid, data_dir):
            # Started by a process that was killed before it saw the end of it, or still on its
            # way up or down: it keeps its binaries and its socket.
            record = replace(record, socket_dir=str(pid_file.socket_dir))
            if record.version is not None:
                record.write(self._record_path)
                self._await_ready(record, account)
                return
        choice = self._choose(record, account)
        if not data_dir.exists():
            initialise(choice.binaries, account, directory, lock)
        recorded = Path(record.socket_dir) if record.socket_dir else None
        record = replace(
            record,
            socket_dir=str(choose_socket_dir(directory, recorded, account)),
            bin_dir=str(choice.binaries.bin_dir),
            version=choice.binaries.version,
            timescaledb=choice.binaries.timescaledb,
            note=choice.note,
        )
        # Before the start, so that a process that finds the server up knows what it is.
        record.write(self._record_path)
        try:
            self._await_ready(record, account)
        except ServerError:
            left = PidFile.read(data_dir)
            if left is None or not serves(left.pid, data_dir):
                # It never came up, hence nobody can have used what these binaries offer; a
                # TimescaleDB that does not load must not be demanded the next time.
                replace(
                    record, timescaledb=before.timescaledb, bin_dir=before.bin_dir or record.bin_dir
                ).write(self._record_path)
            raise

    def _place(self, record: Record) -> tuple[Record, Account]:
        """The directory for the server's files, made if need be and owned by its account.

        It is `pg` in the home, except that root's server runs as another account, and that one
        must be able to get there: root's default home is below /root, which is closed to
        everybody else, and so are directories from mkdtemp. Opening those up is not ours to do.
        Then the files lie in a directory of their own below /var/lib/kurisu, and the record in
        the home says which.
        """
        directory = self._directory(record)
        account = account_for(directory)
        if not directory.exists():
            if record.version is not None:
                raise ServerError(_gone(directory, self._record_path))
            if account.switch and not record.outside and not account.can("-x", self._server):
                directory = SYSTEM_DIRECTORY / secrets.token_hex(8) / "pg"
                record = replace(record, outside=str(directory))
                record.write(self._record_path)
            if record.outside:
                self._make_outside(directory, account)
            directory.mkdir(mode=0o700)
        owner = directory.stat().st_uid
        if owner == 0 and account.switch:
            account.hand_over(directory)
        elif owner != account.uid:
            raise ServerError(
                f"{directory} belongs to user {owner}, and this process runs as '{account.name}' "
                f"({account.uid}). Run Kurisu as its owner, or set KURISU_HOME to a directory of "
                "your own."
            )
        return record, account

    def _make_outside(self, directory: Path, account: Account) -> None:
        SYSTEM_DIRECTORY.parent.mkdir(parents=True, exist_ok=True)
        _make_own(SYSTEM_DIRECTORY, 0o711)
        _make_own(directory.parent, 0o711)
        (directory.parent / "home").write_text(f"{self.home}\n")
        if not account.can("-x", directory.parent):
            raise ServerError(
                f"'{account.name}', the account that the server runs as, can reach neither "
                f"{self._server} nor {directory.parent}. Set KURISU_HOME to a directory that it "
                "can reach, such as one in /srv."
            )

    def _choose(self, record: Record, account: Account) -> Choice:
        """The binaries to start, in a place where the account can run them."""
        usable = []
        for found in candidates(also=Path(record.bin_dir) if record.bin_dir else None):
            reachable = account.can("-x", found.bin_dir / "postgres") if account.switch else True
            if reachable or found.source == "wheel":
                usable.append((found, reachable))
            elif found.source == "forced":
                raise ServerError(
                    f"KURISU_POSTGRES_BIN is {found.bin_dir}, and '{account.name}', the account "
                    "that the server runs as, cannot reach it. Install it elsewhere."
                )
        data_dir = self._directory(record) / "data"
        if data_dir.exists():
            choice = choose(
                [found for found, _ in usable],
                major=_major(data_dir),
                timescaledb=record.timescaledb,
                made_by=f"{record.version} in {record.bin_dir}" if record.bin_dir else "unknown",
            )
        elif record.version is not None:
            raise ServerError(_gone(data_dir, self._record_path))
        else:
            choice = choose([found for found, _ in usable])
        if dict(usable)[choice.binaries]:
            return choice
        return replace(choice, binaries=self._reachable_copy(choice.binaries))

    def _reachable_copy(self, binaries: Binaries) -> Binaries:
        SYSTEM_DIRECTORY.parent.mkdir(parents=True, exist_ok=True)
        _make_own(SYSTEM_DIRECTORY, 0o711)
        with locked(SYSTEM_DIRECTORY / "lock"):
            return copy_of_wheel(binaries, SYSTEM_DIRECTORY)

    def _await_ready(self, record: Record, account: Account) -> None:
        wait_until_ready(
            Launch(
                directory=self._directory(record),
                socket_dir=Path(record.socket_dir or ""),
                bin_dir=Path(record.bin_dir or ""),
                preload_timescaledb=record.timescaledb is not None,
                account=account,
            )
        )

    def _stop(self, record: Record) -> bool:
        """Everything that the lock guards in a stop."""
        directory = self._directory(record)
        data_dir = directory / "data"
        pid_file = PidFile.read(data_dir)
        if pid_file is None or not serves(pid_file.pid, data_dir):
            socket_dir = Path(record.socket_dir) if record.socket_dir else None
            if _ask_ours(directory, socket_dir) is not Answer.ABSENT:
                raise ServerError(
                    f"The server of {self.home} answers, but its process is not to be seen from "
                    "here: it runs in another container. Stop it there."
                )
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid_file.pid, signal.SIGINT)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while serves(pid_file.pid, data_dir):
            if time.monotonic() > deadline:
                raise ServerError(
                    f"The server (process {pid_file.pid}) has not shut down within "
                    f"{STOP_TIMEOUT_S:.0f} s, and goes on trying. If it hangs, `kill -QUIT "
                    f"{pid_file.pid}` ends it at once; committed data is safe. The end of its log "
                    f"({newest_log(directory)}):\n{tail(directory)}"
                )
            time.sleep(POLL_INTERVAL_S)
        return True

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the operating system refuses into a ServerError that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                advice = "The disk is full, or a quota is: free some space and try again."
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                advice = (
                    "Set KURISU_HOME to a directory that you may write to, or run Kurisu as the "
                    "user who owns this one."
                )
            else:
                advice = "KURISU_HOME says where else to keep the data."
            raise ServerError(
                f"The server of {self.home} cannot be reached or made: {error}. {advice}"
            ) from error


def _ask_ours(directory: Path, socket_dir: Path | None) -> Answer:
    """What our server answers in this socket directory.

    One outside of the cluster's directory is in /tmp. If it was swept away, anybody may have made
    another of that name, and would be sent our queries.
    """
    if socket_dir is None or not directory.exists():
        return Answer.ABSENT
    if socket_dir.parent != directory and not is_private(socket_dir, directory.stat().st_uid):
        return Answer.ABSENT
    return ask(socket_dir)


def _make_own(path: Path, mode: int) -> None:
    """Create a directory of Kurisu's own with exactly this mode, whatever the umask is.

    Also set on one that is there, since a killed process may have left it half done.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.stat()
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != mode:
        path.chmod(mode)


def _major(data_dir: Path) -> int:
    try:
        return int((data_dir / "PG_VERSION").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise ServerError(
            f"{data_dir} is not a PostgreSQL data directory: PG_VERSION is missing or damaged. "
            "Restore it from a backup, or move it away to begin with an empty database."
        ) from error


def _gone(path: Path, record_path: Path) -> str:
    return (
        f"The database of this home is gone: {path} does not exist, and a server has run on it. "
        "Put it back (a volume that is not mounted, a container that was made anew?), or delete "
        f"{record_path} to begin with an empty database."
    )
