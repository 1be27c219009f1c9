"""The directory of the server's Unix socket, and the URL that leads to it."""

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path
from urllib.parse import quote

from kurisu.errors import ServerError
from kurisu.server.account import Account
from kurisu.server.postmaster import SOCKET_NAME

# sockaddr_un holds 108 bytes on Linux and 104 on macOS and the BSDs, the final zero included.
LONGEST_SOCKET_PATH_BYTES = 103

# Clients split a host at commas and colons, and a percent sign means something in a URL.
SAFE_PATH = re.compile(r"[A-Za-z0-9/._ +=~-]+")


def url_of(socket_dir: Path) -> str:
    """The URL of database `kurisu`, for asyncpg, SQLAlchemy (with a driver added) and libpq.

    The port is spelt out because PGPORT in a client's environment would change it otherwise.
    """
    return f"postgresql://kurisu@/kurisu?host={quote(str(socket_dir), safe='/')}&port=5432"


def choose_socket_dir(directory: Path, recorded: Path | None, account: Account) -> Path:
    """A directory of mode 0700 that belongs to the account, and whose path is short enough.

    It lies with the cluster in `directory` where the path allows that. Otherwise it lies in the
    temporary directory, under a name that nobody can take beforehand; the caller records it.
    XDG_RUNTIME_DIR would be the place for it by its name, but that is deleted when the user logs
    out, and a live run left behind in tmux would lose its database.
    """
    inside = directory / "run"
    if fits(inside):
        account.make_directory(inside)
        return inside
    if recorded is not None and recorded != inside and is_private(recorded, account.uid):
        return recorded
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:8]
    for base in (Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108  # owner is checked
        if not fits(base / f"kurisu-{digest}-12345678") or not account.can("-x", base):
            continue
        try:
            made = Path(tempfile.mkdtemp(prefix=f"kurisu-{digest}-", dir=base))
        except OSError:
            continue
        account.hand_over(made)
        return made
    raise ServerError(
        f"{inside / SOCKET_NAME} is too long for the path of a Unix socket "
        f"({LONGEST_SOCKET_PATH_BYTES} bytes), and no shorter directory could be made in "
        f"{tempfile.gettempdir()} or /tmp. Set KURISU_HOME to a shorter path."
    )


def fits(socket_dir: Path) -> bool:
    """Whether a socket in this directory can be bound, and named in a URL."""
    path = str(socket_dir / SOCKET_NAME)
    return len(os.fsencode(path)) <= LONGEST_SOCKET_PATH_BYTES and (
        SAFE_PATH.fullmatch(path) is not None
    )


def is_private(path: Path, uid: int) -> bool:
    """Whether this is a real directory of that user that nobody else can enter, or has made."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == uid
    )
