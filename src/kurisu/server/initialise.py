"""A new data directory: all of it or nothing.

It is made under another name and renamed when it is complete, so that a directory called `data`
is always one that a server can start on, whenever this process is killed.
"""

import os
import pwd
import secrets
from pathlib import Path

from kurisu.errors import ServerError
from kurisu.server.account import Account
from kurisu.server.binaries import Binaries
from kurisu.server.launch import disk_is_full

UNFINISHED = "data.new-"

# The builtin provider (PostgreSQL 17 and later) sorts by code point and knows Unicode letters,
# without the system's locales: an update of libc cannot corrupt an index.
BUILTIN_PROVIDER_MAJOR = 17

# Who can reach the socket may connect; the directory that it is in decides who can. There is no
# line for TCP, so that a listen_addresses set by mistake opens nothing.
CLIENT_AUTHENTICATION = """\
# Written by Kurisu. The socket is in a directory that only its owner (and root) can enter.
local all         all trust
local replication all trust
"""

INCLUDE = """
# Added by Kurisu. Settings below this line win over those in kurisu.conf.
include_if_exists = 'kurisu.conf'
"""


def initialise(binaries: Binaries, account: Account, directory: Path, lock: int) -> None:
    """Make `directory/data` with superuser and database `kurisu`.

    `lock` is the descriptor of the lock, which the programs inherit: if this process is killed
    they go on, and the next one to get the lock finds that they have ended.
    """
    for unfinished in directory.glob(f"{UNFINISHED}*"):
        account.remove_tree(unfinished)
    try:
        pwd.getpwuid(account.uid)
    except KeyError as error:
        raise ServerError(
            f"User id {account.uid} has no name in /etc/passwd, and PostgreSQL's initdb wants "
            "one. Add an entry (in a container: useradd), or run as a user that has one."
        ) from error
    unfinished = directory / f"{UNFINISHED}{secrets.token_hex(4)}"
    locale = ["--no-locale"]
    if binaries.major >= BUILTIN_PROVIDER_MAJOR:
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    try:
        _run(
            account,
            [
                binaries.bin_dir / "initdb",
                *("--pgdata", unfinished),
                *("--username", "kurisu"),
                *("--auth", "trust"),
                *("--encoding", "UTF8"),
                "--data-checksums",
                "--no-sync",
                *locale,
            ],
            lock,
        )
        configuration = unfinished / "postgresql.conf"
        account.write(configuration, configuration.read_text() + INCLUDE)
        account.write(unfinished / "pg_hba.conf", CLIENT_AUTHENTICATION)
        _run(
            account,
            [binaries.bin_dir / "postgres", "--single", "-D", unfinished, "postgres"],
            lock,
            text="CREATE DATABASE kurisu\n",
        )
        # All of it at once, with the files that were changed after initdb.
        _run(account, [binaries.bin_dir / "initdb", "--sync-only", "-D", unfinished], lock)
        os.rename(unfinished, directory / "data")
    except BaseException:
        account.remove_tree(unfinished)
        raise
    _sync(directory)


def _run(account: Account, arguments: list[str | Path], lock: int, text: str | None = None) -> None:
    done = account.run(arguments, text=text, kept_fds=[lock])
    # Single-user mode ends with 0 after an error in a statement.
    if done.returncode or "ERROR:" in done.stderr:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        advice = (
            "The disk is full: free some space and try again."
            if disk_is_full(said)
            else "Nothing was left behind; KURISU_HOME says where else to keep the data."
        )
        raise ServerError(
            f"A new database could not be made with {arguments[0]} as '{account.name}'. {advice} "
            f"It said:\n{said}"
        )


def _sync(directory: Path) -> None:
    """Make the new name last, as `initdb --sync-only` did with what is below it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
