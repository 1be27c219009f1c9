"""An import that is killed, interrupted, or run twice at once: nothing half, nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import numpy as np
import pyarrow as pa
import pytest
from cli.conftest import Program

from kurisu.report.candle_export import write_csv

ROWS = 1_000_000
WAIT_S = 60

# asyncpg ships no types.
Connection: TypeAlias = "asyncpg.Connection[Any]"

IMPORTING = """
SELECT pid FROM pg_stat_activity
 WHERE application_name = 'kurisu' AND datname = current_database() AND query LIKE 'COPY%ohlcv%'
   AND query LIKE '%FROM STDIN%'
"""
STORED = """
SELECT count(*) FROM ohlcv JOIN markets m ON m.id = market_id WHERE m.symbol = $1
"""
IN_ROLLUPS = """
SELECT sum(bars) FROM ohlcv_1d JOIN markets m ON m.id = market_id WHERE m.symbol = $1
"""


def write_candles(path: Path, rows: int) -> None:
    """A CSV of 1m candles without a gap that ends today."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    first = today - timedelta(minutes=rows)
    minutes = np.arange(rows, dtype=np.int64) * 60_000_000 + int(first.timestamp()) * 1_000_000
    close = pa.array(np.arange(rows) % 9_973 + 1).cast(pa.decimal128(20, 0))
    low = pa.array(np.full(rows, 1)).cast(pa.decimal128(20, 0))
    high = pa.array([Decimal("9973.5")] * rows, pa.decimal128(38, 18))
    exact = pa.decimal128(38, 18)
    with path.open("wb") as file:
        write_csv(
            pa.table(
                {
                    "time": pa.array(minutes).cast(pa.timestamp("us", "UTC")),
                    "open": close.cast(exact),
                    "high": high,
                    "low": low.cast(exact),
                    "close": close.cast(exact),
                    "volume": close.cast(exact),
                }
            ),
            file,
        )


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A million candles."""
    path = tmp_path_factory.mktemp("large") / "large.csv"
    write_candles(path, ROWS)
    return path


@contextlib.asynccontextmanager
async def session(program: Program) -> AsyncIterator[Connection]:
    """A session of the test's own beside the program's."""
    connection = await asyncpg.connect(program.url)
    try:
        yield connection
    finally:
        await connection.close()


async def until_it_copies(connection: Connection, running: subprocess.Popen[bytes]) -> None:
    """Wait until the import is in the middle of its COPY."""
    async with asyncio.timeout(WAIT_S):
        while not await connection.fetch(IMPORTING):
            assert running.poll() is None, "it ended before it copied"
            await asyncio.sleep(0.005)


async def test_killed_in_the_middle_and_run_again(
    kurisu_program: Program, large_file: Path
) -> None:
    kurisu_program.process("db", "upgrade")
    run = ("candles", "import", large_file, "--market", "binance:KILLED/USDT", "--json")
    async with session(kurisu_program) as connection:
        with kurisu_program.start(*run) as running:
            await until_it_copies(connection, running)
            running.send_signal(signal.SIGKILL)
        assert running.returncode == -signal.SIGKILL
        assert await connection.fetchval(STORED, "KILLED/USDT") == 0

        again = kurisu_program.process(*run).json
        assert (again["read"], again["inserted"], again["rejected"]) == (ROWS, ROWS, 0)
        assert await connection.fetchval(STORED, "KILLED/USDT") == ROWS
        assert await connection.fetchval(IN_ROLLUPS, "KILLED/USDT") == ROWS


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
async def test_interrupted_it_stores_nothing_and_says_nothing_wrong(
    kurisu_program: Program, large_file: Path, tmp_path: Path, number: int, code: int
) -> None:
    kurisu_program.process("db", "upgrade")
    symbol = f"INT{number}/USDT"
    run = ("candles", "import", large_file, "--market", f"binance:{symbol}", "--rejects", "r.csv")
    async with session(kurisu_program) as connection:
        with kurisu_program.start(*run) as running:
            await until_it_copies(connection, running)
            running.send_signal(number)
            out, err = running.communicate(timeout=WAIT_S)
        assert (running.returncode, out, err) == (code, b"", b"")
        assert await connection.fetchval(STORED, symbol) == 0
        # Neither the list of rejects nor its temporary file.
        assert os.listdir(tmp_path) == []


async def test_two_imports_of_one_file_at_once(kurisu_program: Program, tmp_path: Path) -> None:
    rows = 50_000
    write_candles(tmp_path / "both.csv", rows)
    kurisu_program.process("db", "upgrade")
    run = ("candles", "import", "both.csv", "--market", "binance:BOTH/USDT", "--json")
    reports = []
    with kurisu_program.start(*run) as first, kurisu_program.start(*run) as second:
        for running in (first, second):
            out, err = running.communicate(timeout=WAIT_S)
            assert (running.returncode, err) == (0, b"")
            reports.append(json.loads(out))
    assert sorted((r["inserted"], r["unchanged"]) for r in reports) == [(0, rows), (rows, 0)]
    async with session(kurisu_program) as connection:
        assert await connection.fetchval(IN_ROLLUPS, "BOTH/USDT") == rows
