"""The embedded server, with real starts, real kills and real accounts."""

import asyncio
import contextlib
import json
import os
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import platformdirs
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

import kurisu
from kurisu.errors import ServerError
from kurisu.server import Cluster, ClusterStatus, binaries, cluster, data_home
from kurisu.server.binaries import candidates
from kurisu.server.postmaster import SOCKET_NAME, Answer, PidFile, ask, process_exists
from kurisu.server.state import locked

SOURCE = Path(kurisu.__file__).parents[1]
ROOT = os.geteuid() == 0
START = "from kurisu.server import Cluster; print(Cluster().start().pid)"

only_as_root = pytest.mark.skipif(not ROOT, reason="what is tested is what root does")


def shallow_directory(below: str | None = None) -> Path:
    """Not tmp_path: that is below a directory of mode 0700, and long already."""
    path = Path(tempfile.mkdtemp(prefix="kurisu-test-", dir=below))
    path.chmod(0o755)
    return path


def in_memory() -> str | None:
    """A directory in memory if there is a large one: two dozen clusters sync a lot of files."""
    with contextlib.suppress(OSError):
        space = os.statvfs("/dev/shm")
        if (
            space.f_bavail * space.f_frsize > 2**30
            and not space.f_flag & os.ST_NOEXEC
            and os.access("/dev/shm", os.W_OK)
        ):
            return "/dev/shm"
    return None


@pytest.fixture(autouse=True, scope="module")
def free_choice() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("KURISU_POSTGRES_BIN", raising=False)
        yield


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home. What runs in it is stopped in the end."""
    path = shallow_directory(in_memory())
    monkeypatch.setenv("KURISU_HOME", str(path))
    yield path
    Cluster(path).stop()
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    path = shallow_directory(in_memory())
    Cluster(path).start()
    Cluster(path).stop()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def made(home: Path, template: Path) -> Cluster:
    """A cluster that is there but not running, for tests that are not about the first start."""
    subprocess.run(["cp", "-a", f"{template}/server", str(home)], check=True)
    return Cluster(home)


@pytest.fixture
def system_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stands for /var/lib/kurisu."""
    path = shallow_directory(in_memory())
    monkeypatch.setattr(cluster, "SYSTEM_DIRECTORY", path / "kurisu")
    yield path / "kurisu"
    shutil.rmtree(path)


def fetch(url: str, query: str) -> object:
    async def run() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(run())


def starter(script: str = START) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), *filter(None, sys.path)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answering(path: Path) -> socket.socket:
    """Something that behaves as a server does, as far as one connection's first message."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"R")
            connection.recv(100)

    threading.Thread(target=answer, daemon=True).start()
    return listener


def wait_for(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_home_is_what_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KURISU_HOME", str(tmp_path))
    assert data_home() == tmp_path
    monkeypatch.setenv("KURISU_HOME", "~/there")
    assert data_home() == Path.home() / "there"
    monkeypatch.delenv("KURISU_HOME")
    assert data_home() == platformdirs.user_data_path("kurisu", appauthor=False)


def test_looking_creates_nothing(tmp_path: Path) -> None:
    untouched = Cluster(tmp_path / "home")
    status = untouched.status()
    assert (status.running, status.pid, status.url) == (False, None, None)
    assert not untouched.stop()
    with pytest.raises(ServerError, match="start it first"):
        _ = untouched.url
    assert list(tmp_path.iterdir()) == []


def test_start_twice_stop_twice_and_the_data_stays(home: Path) -> None:
    server = Cluster()
    status = server.start()
    assert status.running
    assert status == server.start()
    assert status.url == server.url
    assert status.log.exists()
    fetch(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    version = str(fetch(server.url, "SHOW server_version"))
    assert version.split(maxsplit=1)[0] == status.version

    assert server.stop()
    assert not server.stop()
    stopped = server.status()
    assert (stopped.running, stopped.pid) == (False, None)
    assert stopped.url == status.url

    assert server.start().pid != status.pid
    assert fetch(server.url, "SELECT answer FROM kept") == 42


def test_the_server_is_private_durable_and_in_utc(made: Cluster) -> None:
    status = made.start()
    assert status.url is not None
    assert status.pid is not None
    for name, value in {
        "listen_addresses": "",
        "fsync": "on",
        "synchronous_commit": "on",
        "server_encoding": "UTF8",
        "timezone": "UTC",
        "data_checksums": "on",
        "jit": "off",
    }.items():
        assert fetch(status.url, f"SHOW {name}") == value
    faulty = "SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL"
    assert fetch(status.url, faulty) == 0
    assert fetch(status.url, "SELECT current_user || '@' || current_database()") == "kurisu@kurisu"
    assert status.socket_dir is not None
    assert stat.S_IMODE(status.socket_dir.stat().st_mode) == 0o700
    rules = (status.data_dir / "pg_hba.conf").read_text()
    assert not [line for line in rules.splitlines() if line.startswith("host")]
    if Path("/proc/net/tcp").exists():
        sockets = {os.readlink(fd) for fd in Path(f"/proc/{status.pid}/fd").iterdir()}
        tcp = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
        # Without the line of headings.
        lines = [line for t in tcp if t.exists() for line in t.read_text().splitlines()[1:]]
        assert not sockets & {f"socket:[{line.split()[9]}]" for line in lines}


def test_sqlalchemy_takes_the_url_whatever_the_environment_says(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "5433")
    monkeypatch.setenv("PGOPTIONS", "-c timezone=Asia/Tokyo")
    url = made.start().url
    assert url is not None

    async def run() -> object:
        engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
        async with engine.connect() as connection:
            found = await connection.scalar(text("SELECT current_database()"))
        await engine.dispose()
        return found

    assert asyncio.run(run()) == "kurisu"
    assert fetch(url, "SELECT 1") == 1


def test_the_server_is_detached_from_who_started_it(made: Cluster) -> None:
    secret = made.home / "secret"
    with secret.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        pid = made.start().pid
    assert pid is not None
    assert os.getsid(pid) != os.getsid(0)
    assert os.getpgid(pid) != os.getpgid(0)
    # Neither the file nor the lock went along: the lock is free again.
    with locked(made.home / "server" / "lock", timeout_s=1):
        pass
    descriptors = Path(f"/proc/{pid}/fd")
    if descriptors.exists():
        opened = [os.readlink(path) for path in descriptors.iterdir()]
        assert not [
            path for path in opened if path.startswith(str(made.home / "s")) and "pg/" not in path
        ]
        assert os.readlink(descriptors / "0") == "/dev/null"


def test_processes_that_start_at_once_get_one_server(home: Path) -> None:
    processes = [starter() for _ in range(4)]
    answers = {process.communicate(timeout=60) for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert answers == {(f"{Cluster().status().pid}\n", "")}


def test_threads_that_start_at_once_get_one_server(home: Path) -> None:
    async def run() -> list[ClusterStatus]:
        return await asyncio.gather(*(asyncio.to_thread(Cluster().start) for _ in range(4)))

    assert len({status.pid for status in asyncio.run(run())}) == 1


def test_a_starter_killed_at_any_moment_leaves_nothing_in_the_way(home: Path) -> None:
    for _ in range(6):
        process = starter()
        time.sleep(random.uniform(0.15, 1.1))
        process.kill()
        process.communicate()
    status = Cluster().start()
    assert status.running
    assert [path.name for path in status.data_dir.parent.glob("data*")] == ["data"]
    assert fetch(Cluster().url, "SELECT 1") == 1


@pytest.mark.parametrize("program", ["initdb", "postgres"])
def test_killed_while_the_database_is_made(home: Path, program: str) -> None:
    script = f"""
import os, signal, threading
from kurisu.server import Cluster, account
real = account.subprocess.run
def run(arguments, **options):
    if arguments[0].endswith("/{program}") and "--version" not in arguments:
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return real(arguments, **options)
account.subprocess.run = run
Cluster().start()
"""
    process = starter(script)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    directory = Cluster().status().data_dir.parent
    # The program may go on without its parent; the next start waits for its end and sweeps up.
    assert not (directory / "data").exists()
    assert Cluster().start().running
    assert [path.name for path in directory.glob("data*")] == ["data"]


def test_killed_before_it_saw_the_server_come_up(made: Cluster) -> None:
    script = """
import os, signal
from kurisu.server import Cluster, launch
real = launch._spawn
def spawn(details):
    real(details)
    os.kill(os.getpid(), signal.SIGKILL)
launch._spawn = spawn
Cluster().start()
"""
    starter(script).communicate(timeout=30)
    status = made.start()
    assert status.running
    assert status.version is not None


def test_the_postmaster_is_killed_and_committed_data_is_there(made: Cluster) -> None:
    pid = made.start().pid
    assert pid is not None

    async def lose_the_server() -> None:
        idle = await asyncpg.connect(made.url)
        await idle.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        os.kill(pid, signal.SIGKILL)
        idle.terminate()

    asyncio.run(lose_the_server())
    status = made.start()
    assert status.pid != pid
    assert fetch(made.url, "SELECT answer FROM kept") == 42


def test_the_pid_of_a_killed_server_belongs_to_another_process_by_now(made: Cluster) -> None:
    status = made.start()
    assert status.pid is not None
    killed = status.pid
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: not process_exists(killed))
    # Of the server's own account, since PostgreSQL believes in no other user's process.
    owner = status.data_dir.stat()
    other = (
        subprocess.Popen(["sleep", "60"], user=owner.st_uid, group=owner.st_gid)
        if ROOT
        else subprocess.Popen(["sleep", "60"])
    )
    try:
        for path in (
            status.data_dir / "postmaster.pid",
            made.home / "server/pg/run/.s.PGSQL.5432.lock",
        ):
            path.write_text(path.read_text().replace(str(killed), str(other.pid), 1))
        assert made.status().pid is None
        assert not made.stop()
        assert made.start().running
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_pid_file_that_a_crash_left_empty(made: Cluster) -> None:
    data_dir = made.status().data_dir
    (data_dir / "postmaster.pid").touch()
    assert made.start().running


def test_a_record_that_was_lost_is_made_again(made: Cluster) -> None:
    before = made.start()
    (made.home / "server/cluster.json").unlink()
    assert made.start() == before


def test_a_long_home_has_its_socket_elsewhere(home: Path) -> None:
    long = home / ("long" * 20) / "with a comma, too"
    server = Cluster(long)
    status = server.start()
    assert status.socket_dir is not None
    try:
        assert fetch(server.url, "SELECT 1") == 1
        assert not status.socket_dir.is_relative_to(long)
        found = status.socket_dir.lstat()
        assert stat.S_IMODE(found.st_mode) == 0o700
        assert found.st_uid == status.data_dir.stat().st_uid
        server.stop()
        assert server.start().url == status.url

        # Deleted under a running server: nobody reaches it, but it can be stopped by its pid.
        shutil.rmtree(status.socket_dir)
        with pytest.raises(ServerError, match="kurisu server stop"):
            server.start()
        assert server.stop()

        # Somebody else has made one of that name meanwhile, with something in it that answers.
        status.socket_dir.mkdir(mode=0o755)
        impostor = answering(status.socket_dir / SOCKET_NAME)
        assert ask(status.socket_dir) is Answer.READY
        assert not server.status().running
        again = server.start()
        impostor.close()
        assert again.socket_dir != status.socket_dir
        assert fetch(server.url, "SELECT 1") == 1
    finally:
        server.stop()
        for left in (status.socket_dir, server.status().socket_dir):
            shutil.rmtree(left or "", ignore_errors=True)


def test_a_home_with_spaces(home: Path) -> None:
    server = Cluster(home / "Application Support")
    try:
        status = server.start()
        assert status.socket_dir is not None
        assert status.socket_dir.is_relative_to(server.home)
        assert fetch(server.url, "SELECT 1") == 1
    finally:
        server.stop()


def test_a_data_directory_that_is_none_is_refused(made: Cluster) -> None:
    data_dir = made.start().data_dir
    made.stop()
    (data_dir / "PG_VERSION").unlink()
    with pytest.raises(ServerError, match="PG_VERSION"):
        made.start()


def test_a_damaged_data_directory_shows_the_log(made: Cluster) -> None:
    data_dir = made.start().data_dir
    made.stop()
    os.truncate(data_dir / "global/pg_control", 100)
    with pytest.raises(ServerError, match=r"(?s)did not start.*pg_control"):
        made.start()


def test_a_database_that_is_gone_is_not_replaced_by_an_empty_one(made: Cluster) -> None:
    data_dir = made.start().data_dir
    made.stop()
    data_dir.rename(made.home / "moved")
    with pytest.raises(ServerError, match="is gone"):
        made.start()
    (made.home / "server/cluster.json").unlink()
    assert made.start().running


def test_binaries_that_are_gone(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    status = made.start()
    made.stop()
    assert status.version is not None
    major = int(status.version.split(".")[0])
    others = [found for found in candidates() if found.major != major]
    monkeypatch.setattr(cluster, "candidates", lambda also: others)
    with pytest.raises(ServerError, match=f"needs PostgreSQL {major}"):
        made.start()


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match="KURISU_HOME"):
        Cluster(tmp_path / "file" / "home").start()


def test_a_lock_that_is_not_let_go_names_its_holder(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock"),
        pytest.raises(ServerError, match=f"Process {os.getpid()}"),
        locked(tmp_path / "lock", timeout_s=0.1),
    ):
        pass


def test_half_a_pid_file_is_none(tmp_path: Path) -> None:
    assert PidFile.read(tmp_path) is None
    (tmp_path / "postmaster.pid").write_text("")
    assert PidFile.read(tmp_path) is None
    (tmp_path / "postmaster.pid").write_text("77\n/data\n")
    assert PidFile.read(tmp_path) == PidFile(77, None, "")


@only_as_root
def test_a_full_disk_is_said_and_leaves_nothing_behind(home: Path) -> None:
    disk = home / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m,mode=755", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount a file system")
    try:
        with pytest.raises(ServerError, match="disk is full"):
            Cluster(disk).start()
        assert not list((disk / "server/pg").glob("data*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@only_as_root
def test_roots_server_runs_as_a_service_account(made: Cluster) -> None:
    status = made.start()
    owner = Path(f"/proc/{status.pid}").stat().st_uid
    assert pwd.getpwuid(owner).pw_name in ("postgres", "nobody")
    assert status.data_dir.is_relative_to(made.home)
    assert status.data_dir.stat().st_uid == owner
    assert (made.home / "server").stat().st_uid == 0


@only_as_root
def test_a_home_that_only_root_can_reach(home: Path, system_directory: Path) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    server = Cluster(closed / "home")
    status = server.start()
    try:
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        assert status.data_dir.is_relative_to(system_directory)
        note = status.data_dir.parent.parent / "home"
        assert note.read_text() == f"{server.home}\n"
        fetch(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        server.stop()
        assert Cluster(closed / "home").start().data_dir == status.data_dir
        assert fetch(server.url, "SELECT answer FROM kept") == 42
    finally:
        server.stop()
    shutil.rmtree(status.data_dir.parent)
    with pytest.raises(ServerError, match="is gone"):
        server.start()


@only_as_root
def test_a_wheel_that_only_root_can_reach_is_copied(
    home: Path, system_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = binaries.wheel_directories()
    if not wheels:
        pytest.skip("the wheel is not installed")
    closed = home / "site-packages"
    closed.mkdir(mode=0o700)
    package = wheels[-1].parent.parent
    for name in (package.name, f"{package.name}.libs"):
        if package.with_name(name).exists():
            (closed / name).symlink_to(package.with_name(name))
    found = binaries.inspect(closed / wheels[-1].relative_to(package.parent), "wheel")
    monkeypatch.setattr(cluster, "candidates", lambda also: [found])
    status = Cluster().start()
    assert status.binaries is not None
    assert status.binaries.is_relative_to(system_directory)
    Cluster().stop()
    assert Cluster().start().binaries == status.binaries


@only_as_root
def test_as_an_ordinary_user(home: Path) -> None:
    user = pwd.getpwnam("nobody")
    path = f"{SOURCE}:{Path(platformdirs.__file__).parents[1]}"
    script = """
import json, os
from kurisu.server import Cluster
status = Cluster().start()
owners = [os.stat(f"/proc/{status.pid}").st_uid, os.stat(status.data_dir).st_uid]
print(json.dumps([status.running, owners, Cluster().stop(), str(status.data_dir)]))
"""
    own = home / "own"
    own.mkdir()
    os.chown(own, user.pw_uid, user.pw_gid)

    def run(python: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [python, *arguments],
            env={"PATH": os.defpath, "PYTHONPATH": path, "KURISU_HOME": str(own)},
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
        )

    # The interpreter of a virtual environment may itself be below /root.
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            if (
                run(
                    python, "-c", "import sys, platformdirs; assert sys.version_info >= (3, 11)"
                ).returncode
                == 0
            ):
                break
        except OSError:
            continue
    else:
        pytest.skip("no Python 3.11 with platformdirs that 'nobody' can run")
    done = run(python, "-c", script)
    assert done.returncode == 0, done.stderr
    running, owners, stopped, data_dir = json.loads(done.stdout)
    assert running
    assert stopped
    assert owners == [user.pw_uid, user.pw_uid]
    assert Path(data_dir).is_relative_to(own)

    # sudo: root runs what the user owns as that user, and locks nobody out.
    status = Cluster(own).start()
    assert Path(f"/proc/{status.pid}").stat().st_uid == user.pw_uid
    done = run(python, "-c", script)
    assert done.returncode == 0, done.stderr

    # And a user cannot take what is root's.
    done = run(
        python,
        "-c",
        f"from kurisu.server import Cluster; from pathlib import Path\n"
        f"Cluster(Path({str(home)!r})).start()",
    )
    assert "KURISU_HOME" in done.stderr
