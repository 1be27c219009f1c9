"""kurisu.conf: sizes that follow the machine, and values that PostgreSQL can read."""

from pathlib import Path

import pytest

from kurisu.server.settings import MEGABYTE, memory_bytes, render, settings


def made(memory_mb: int, timescaledb: bool = False) -> dict[str, str]:
    return settings(
        socket_dir=Path("/run/a b"),
        log_dir=Path("/var/it's"),
        preload_timescaledb=timescaledb,
        memory=memory_mb * MEGABYTE,
    )


@pytest.mark.parametrize(
    ("memory_mb", "buffers"),
    [(256, "128MB"), (2048, "512MB"), (64 * 1024, "2048MB")],
)
def test_a_quarter_of_the_memory_within_bounds(memory_mb: int, buffers: str) -> None:
    assert made(memory_mb)["shared_buffers"] == buffers


def test_durability_is_left_alone() -> None:
    assert not {"fsync", "synchronous_commit", "full_page_writes"} & set(made(4096, True))


def test_timescaledb_is_preloaded_only_where_it_is_there() -> None:
    assert "shared_preload_libraries" not in made(4096)
    assert made(4096, True)["shared_preload_libraries"] == "timescaledb"
    assert made(4096, True)["timescaledb.telemetry_level"] == "off"


def test_values_are_quoted() -> None:
    assert "log_directory = '/var/it''s'\n" in render(made(4096))
    assert "listen_addresses = ''\n" in render(made(4096))


def test_memory_is_a_sensible_number() -> None:
    assert memory_bytes() > 64 * MEGABYTE
