"""Programs of one machine keep to the rate limit of an exchange together."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from exchange_server.server import ExchangeServer
from exchange_server.world import Opener

from kurisu.config import load
from kurisu.exchange.calls import MINUTE_MS
from kurisu.exchange.configured import open_configured
from kurisu.exchange.pace import LONGEST_S, Pace


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_000.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def pace(self, path: Path, interval_s: float = 2.0) -> Pace:
        return Pace(path, interval_s, sleep=self.sleep, monotonic=lambda: self.now)


async def turn(clock: Clock, pace: Pace, cost: float = 1.0) -> float:
    await pace.take(cost)
    return clock.now


async def test_each_turn_is_after_the_one_before_whoever_had_it(tmp_path: Path) -> None:
    clock = Clock()
    one, other = (clock.pace(tmp_path / "made" / "binance") for _ in range(2))
    assert await turn(clock, one) == 1_000
    assert await turn(clock, other, cost=5) == 1_002
    assert await turn(clock, one) == 1_012
    assert await turn(clock, one, cost=0) == 1_012
    clock.now = 2_000
    assert await turn(clock, other) == 2_000


async def test_what_an_exchange_says_to_one_all_keep_to(tmp_path: Path) -> None:
    clock = Clock()
    one, other = (clock.pace(tmp_path / "binance") for _ in range(2))
    assert other.closed_s() == 0
    await one.close(30)
    await one.close(10)
    await one.take(1)
    assert other.closed_s() == 30
    clock.now += 31
    assert other.closed_s() == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"half of it",
        struct.pack("<dd", 1e9, 1e9),  # of a machine that ran for longer before it was restarted
        struct.pack("<dd", float("nan"), float("nan")),
        struct.pack("<dd", float("inf"), float("inf")),
    ],
)
async def test_nothing_in_the_file_stops_anybody_for_long(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "binance"
    path.write_bytes(content)
    clock = Clock()
    pace = clock.pace(path)
    assert pace.closed_s() <= LONGEST_S
    assert await turn(clock, pace) == 1_000
    assert await turn(clock, pace) == 1_002


async def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    clock = Clock()
    pace = clock.pace(tmp_path / "file" / "binance")
    for _ in range(3):
        assert await turn(clock, pace) == 1_000
    assert pace.closed_s() == 0
    assert [
        record.getMessage().count("paced in this process alone") for record in caplog.records
    ] == [1]


async def test_whoever_has_the_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "binance"
    clock = Clock()
    slept = 0
    with path.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        async def sleep(seconds: float) -> None:
            nonlocal slept
            slept += 1
            clock.now += seconds
            assert path.read_bytes() == b""
            if slept == 3:
                fcntl.flock(held, fcntl.LOCK_UN)

        await Pace(path, 2.0, sleep=sleep, monotonic=lambda: clock.now).take(1)
    assert slept == 3
    assert path.read_bytes()


_TAKER = """
import asyncio, sys, time
from pathlib import Path
from kurisu.exchange.pace import Pace

async def main():
    pace = Pace(Path(sys.argv[1]), 0.01)
    for _ in range(15):
        await pace.take(1)
        print(time.monotonic())

asyncio.run(main())
"""


def test_processes_take_turns(tmp_path: Path) -> None:
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", _TAKER, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    times = sorted(
        float(line) for command in commands for line in command.communicate()[0].splitlines()
    )
    assert [command.returncode for command in commands] == [0, 0, 0]
    assert len(times) == 45
    # A turn is never early, but may be taken late: of ten in a row nine intervals have passed,
    # but for how late the first of them was.
    assert times[-1] - times[0] >= 0.01 * 44 - 0.05


async def test_two_programs_stay_within_a_limit_that_each_would_use_up(
    server: ExchangeServer, opened: Opener, tmp_path: Path
) -> None:
    """Kraken allows one request a second; here a minute passes in a second, sixty times as fast."""
    server.kraken.meter.limit = 60
    server.clock.set(server.clock.now_ms() // MINUTE_MS * MINUTE_MS, speed=60)
    settings = {"rate_limit_ms": 1000 / 60}
    async with (
        opened("kraken", settings, pace_folder=tmp_path) as one,
        opened("kraken", settings, pace_folder=tmp_path) as other,
    ):
        await asyncio.gather(
            *(
                exchange.fetch_candles("XRP/USDT", "1m", server.clock.now_ms() - 600_000, 5)
                for exchange in (one, other)
                for _ in range(45)
            )
        )
    assert len(server.asked("OHLC")) == 90
    assert server.kraken.meter.most_used <= 61
    assert server.kraken.meter.breaches == []


async def test_programs_share_their_pace_in_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "kurisu.toml").write_text(
        "[exchanges.binance]\nrate_limit_ms = 1\n"
        "[exchanges.abroad]\nccxt = 'binance'\nrate_limit_ms = 1\n"
        "httpsProxy = 'http://127.0.0.1:1'\n"
    )
    config = load(tmp_path)
    for name in ("binance", "abroad"):
        async with open_configured(config, name) as exchange:
            await exchange.client.throttle(1)
    files = sorted((tmp_path / "pace").iterdir())
    # Through another address: another count.
    assert [file.name.split("-")[0] for file in files] == ["binance", "binance"]
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
