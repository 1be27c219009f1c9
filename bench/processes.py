"""Processor time of processes, from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import asyncpg


async def backends(connection: asyncpg.Connection) -> list[int]:
    """The database's processes, if it runs here; else none."""
    rows = await connection.fetch("SELECT pid FROM pg_stat_activity")
    pids = [row["pid"] for row in rows]
    return pids if all(map(_is_here, pids)) else []


class Cpu:
    """Processor time of processes since it was made. None is this process."""

    def __init__(self, **processes: int | Sequence[int] | None) -> None:
        self._pids = {
            name: [os.getpid()] if given is None else [given] if isinstance(given, int) else given
            for name, given in processes.items()
        }
        self._before = {name: _cpu_s(pids) for name, pids in self._pids.items()}
        self._since = time.monotonic()

    def cores(self) -> dict[str, float | None]:
        """Cores in use; None where there is nothing to look at."""
        passed = time.monotonic() - self._since
        return {
            name: round((_cpu_s(pids) - self._before[name]) / passed, 2) if pids else None
            for name, pids in self._pids.items()
        }


def _cpu_s(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _is_here(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").exists()
