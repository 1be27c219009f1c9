"""kurisu.conf: the server's settings, sized for this machine and written anew at every start.

It is included by postgresql.conf of the cluster. What a user wants otherwise goes below that
include, or into `ALTER SYSTEM`; both survive, and both win over what is here. Durability
settings (fsync, synchronous_commit, full_page_writes) are absent on purpose: PostgreSQL's
defaults keep a committed row through a power cut, and a ledger needs that.
"""

import os
from collections.abc import Mapping
from pathlib import Path

MEGABYTE = 1024 * 1024

# Docker gives a container 64 MB of /dev/shm. A parallel hash join needs more than that, and
# fails with "could not resize shared memory segment: No space left on device".
SMALL_SHARED_MEMORY_BYTES = 256 * MEGABYTE

# One scheduler per database with the extension, and the policies that run at the same time.
TIMESCALEDB_WORKERS = 16


def memory_bytes() -> int:
    """The memory this process may use: the machine's, or less where a container limits it."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [machine]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path("/sys/fs/cgroup", name).read_text()))
        except (OSError, ValueError):
            # No cgroups here, another cgroup version, or "max": no limit.
            continue
    return min(limits)


def small_shared_memory() -> bool:
    """Whether /dev/shm exists and is too small for parallel queries."""
    try:
        space = os.statvfs("/dev/shm")  # noqa: S108  # asked for its size
    except OSError:
        return False
    return space.f_blocks * space.f_frsize < SMALL_SHARED_MEMORY_BYTES


def settings(
    *, socket_dir: Path, log_dir: Path, preload_timescaledb: bool, memory: int
) -> dict[str, str]:
    """Name and value of every setting, `memory` in bytes."""
    values = {
        # The Unix socket in a private directory is the only way in. pg_hba.conf trusts whoever
        # can reach it, so no TCP port may ever be opened from here.
        "listen_addresses": "",
        "unix_socket_directories": f'"{socket_dir}"',
        "unix_socket_permissions": "0700",
        "port": "5432",
        "cluster_name": "kurisu",
        "max_connections": "100",
        # Sizes: modest, because a trading machine runs more than this server.
        "shared_buffers": _megabytes(memory // 4, 128, 2048),
        "effective_cache_size": _megabytes(memory // 2, 256, 64 * 1024),
        "work_mem": _megabytes(memory // 256, 8, 64),
        "maintenance_work_mem": _megabytes(memory // 16, 64, 1024),
        # A bulk import writes gigabytes of WAL; with the default of 1 GB it would checkpoint
        # every few seconds, and each checkpoint makes every touched page be logged whole again.
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        "wal_compression": "on",
        # Solid-state disks; the default of 4.0 is for spinning ones and makes the planner avoid
        # the index that the as-of and latest queries live on.
        "random_page_cost": "1.1",
        # Compiling a plan costs more than most of our queries take.
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # One file per weekday, overwritten a week later: bounded without any help from outside.
        "logging_collector": "on",
        "log_directory": str(log_dir),
        "log_filename": "postgresql-%a.log",
        "log_truncate_on_rotation": "on",
        "log_rotation_age": "1d",
        "log_rotation_size": "0",
        "log_line_prefix": "%m [%p] %a ",
    }
    if small_shared_memory():
        values["dynamic_shared_memory_type"] = "sysv"
    if preload_timescaledb:
        values |= {
            "shared_preload_libraries": "timescaledb",
            "timescaledb.telemetry_level": "off",
            "timescaledb.max_background_workers": str(TIMESCALEDB_WORKERS),
            # TimescaleDB's workers come out of this, after PostgreSQL's own eight and autovacuum.
            "max_worker_processes": str(TIMESCALEDB_WORKERS + 11),
            # A query over a hypertable locks every chunk and every index of it.
            "max_locks_per_transaction": "256",
        }
    return values


def render(values: Mapping[str, str]) -> str:
    """The text of kurisu.conf. Every value is quoted, which PostgreSQL accepts for all types."""
    lines = [
        "# Written by Kurisu at every start: changes here are lost.",
        "# Put yours below the include in postgresql.conf, or use ALTER SYSTEM.",
    ]
    lines += [f"{name} = {_quoted(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _megabytes(size_bytes: int, lowest: int, highest: int) -> str:
    return f"{min(max(size_bytes // MEGABYTE, lowest), highest)}MB"


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
