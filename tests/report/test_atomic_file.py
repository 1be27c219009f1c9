"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from kurisu.report.atomic_file import atomic_file


def test_it_replaces_the_file_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with atomic_file(tmp_path / "a"):
        pass
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_it_leaves_nothing_when_the_block_raises(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail() -> None:
        with atomic_file(tmp_path / "a") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_device_is_written_to(tmp_path: Path) -> None:
    with atomic_file(Path(os.devnull)) as file:
        file.write(b"gone")
    assert not Path(os.devnull).is_file()


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd on this system")
def test_a_pipe_by_its_descriptor_is_written_to() -> None:
    reader, writer = os.pipe()
    with atomic_file(Path(f"/dev/fd/{writer}")) as file:
        file.write(b"through")
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"through"


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as full, atomic_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "as pyarrow says it")
    assert full.value.filename == str(tmp_path / "a")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as directory, atomic_file(tmp_path):
        pass
    assert directory.value.filename == str(tmp_path)
    with pytest.raises(FileNotFoundError) as missing, atomic_file(tmp_path / "no" / "a.csv"):
        pass
    assert missing.value.filename == str(tmp_path / "no" / "a.csv")
