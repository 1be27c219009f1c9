"""The operating-system account that the server runs as.

PostgreSQL refuses to run as root. For an ordinary user the account is the user itself; for root
it is an unprivileged account that owns the data directory, and every process that touches the
data directory is started as it. Root itself writes nothing below a directory that this account
controls: a symbolic link planted there would turn such a write against the machine.
"""

import errno
import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kurisu.errors import ServerError

# 'postgres' exists wherever a distribution's PostgreSQL was installed and has nothing else to do;
# 'nobody' exists everywhere, but other services may run as it, and those could read the data.
SERVICE_ACCOUNTS = ("postgres", "nobody")

# initdb takes 0.7 s on a quiet machine; a slow disk or an emulated one takes far longer.
COMMAND_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Account:
    """An account of this machine, and whether processes must be switched to it."""

    name: str
    uid: int
    gid: int
    switch: bool
    """True when this process is root and the account is another one."""

    def run(
        self,
        arguments: Sequence[str | Path],
        *,
        text: str | None = None,
        new_session: bool = False,
        kept_fds: Sequence[int] = (),
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as the account, in '/', with a clean environment, and collect its output.

        The environment is a new one because PGPORT, PGDATA, PGOPTIONS and their like in the
        caller's would change what initdb and postgres do, and LC_* would translate the messages
        that this package reads. `text` goes to its standard input, which is empty otherwise.
        """
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
            if name in os.environ and not self.switch:
                environment[name] = os.environ[name]
        try:
            return subprocess.run(
                [str(argument) for argument in arguments],
                check=False,
                input=text or "",
                capture_output=True,
                text=True,
                errors="replace",
                cwd="/",
                env=environment,
                pass_fds=kept_fds,
                start_new_session=new_session,
                umask=0o077,
                timeout=timeout_s,
                user=self.uid if self.switch else None,
                group=self.gid if self.switch else None,
                extra_groups=[] if self.switch else None,
            )
        except subprocess.TimeoutExpired as error:
            raise ServerError(
                f"{arguments[0]} did not finish within {timeout_s:.0f} s. The disk may be very "
                "slow or unresponsive; try again when it is quiet."
            ) from error
        except OSError as error:
            if self.switch and error.errno in (errno.EPERM, errno.EINVAL):
                raise ServerError(
                    f"This process is root but may not run programs as '{self.name}' "
                    f"({error.strerror}), and PostgreSQL refuses to run as root. Run Kurisu as an "
                    "ordinary user, or name a server with KURISU_DATABASE_URL."
                ) from error
            raise ServerError(f"{arguments[0]} cannot be run: {error}.") from error

    def can(self, flag: str, path: Path) -> bool:
        """Whether `test <flag> path` holds for the account: asked of the kernel, so ACLs count."""
        return self.run(["/bin/sh", "-c", f'test {flag} "$1"', "sh", path]).returncode == 0

    def make_directory(self, path: Path) -> None:
        """Create a directory of mode 0700 below one that the account owns."""
        self._shell('mkdir -p "$1"', path)

    def remove_tree(self, path: Path) -> None:
        """Delete a file or directory with all its contents; nothing there is fine."""
        self._shell('rm -rf "$1"', path)

    def write(self, path: Path, text: str) -> None:
        """Replace a file in one step, as the account."""
        self._shell('cat > "$1.new" && mv -f "$1.new" "$1"', path, text)

    def hand_over(self, path: Path) -> None:
        """Give the account a directory that this process has just made in one of its own."""
        if self.switch:
            try:
                os.chown(path, self.uid, self.gid)
            except OSError as error:
                raise ServerError(
                    f"{path} cannot be handed to '{self.name}' ({error.strerror}), and PostgreSQL "
                    "refuses to run as root. Run Kurisu as an ordinary user, or set KURISU_HOME "
                    "to a file system that supports owners."
                ) from error

    def _shell(self, script: str, path: Path, text: str | None = None) -> None:
        done = self.run(["/bin/sh", "-c", script, "sh", path], text=text)
        if done.returncode:
            raise ServerError(f"{path} cannot be written: {done.stderr.strip()}.")


def account_for(directory: Path) -> Account:
    """The account that runs the cluster kept in `directory`, whether that exists yet or not.

    Root runs an existing cluster as the owner of its directory: `sudo kurisu` in a user's home
    must not take the data away from that user, and a 'postgres' account that appears later must
    not lock out the data that 'nobody' owns.
    """
    effective = os.geteuid()
    if effective != 0:
        return Account(_name_of(effective), effective, os.getegid(), switch=False)
    try:
        owner = directory.stat()
    except FileNotFoundError:
        return _service_account()
    if owner.st_uid == 0:
        return _service_account()
    return Account(_name_of(owner.st_uid), owner.st_uid, owner.st_gid, switch=True)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _service_account() -> Account:
    for name in SERVICE_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid, switch=True)
    raise ServerError(
        "PostgreSQL refuses to run as root, and this machine has neither of the accounts "
        f"{' and '.join(SERVICE_ACCOUNTS)}. Create one (useradd --system postgres), run Kurisu as "
        "an ordinary user, or name a server with KURISU_DATABASE_URL."
    )
