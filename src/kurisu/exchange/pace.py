"""One pace for all processes of this machine that ask one exchange.

An exchange counts the requests of an address, whoever makes them. CCXT's throttle paces one object
in one process; several workers, or a stream beside a backfill, would together be too fast. What
they share is a small file: when the next request may be made, and until when nobody may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

_LOG: Final = logging.getLogger(__name__)
#: Two times of the monotonic clock, which is one for the whole machine: when the next request may
#: be made, and until when none may.
_TIMES: Final = struct.Struct("<dd")
#: Nothing is put off for longer; a time beyond it is from before the machine was started.
LONGEST_S: Final = 900.0
#: Whoever holds the file does so for microseconds, unless it is stopped.
_TRIES: Final = 100
_PAUSE_S: Final = 0.005
#: Options by which requests leave through another address.
_PROXIES: Final = (
    "httpProxy", "httpsProxy", "socksProxy", "http_proxy", "https_proxy", "socks_proxy", "proxyUrl",
    "proxy_url", "aiohttp_proxy",
)  # fmt: skip


class Pace:
    """The shared pace of one exchange. path: the file; its folder is made when it is needed.

    interval_s: between two requests of unit cost. sleep, monotonic: time, from outside so that
    tests decide it.
    """

    def __init__(
        self,
        path: Path,
        interval_s: float,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._interval_s = interval_s
        self._sleep = sleep
        self._monotonic = monotonic
        self._is_broken = False

    async def take(self, cost: float) -> None:
        """Wait for the turn of a request of `cost`."""
        length_s = cost * self._interval_s
        if length_s <= 0:
            return
        wait_s = 0.0

        def reserve(now: float, free: float, closed: float) -> tuple[float, float]:
            nonlocal wait_s
            turn = max(now, free)
            wait_s = turn - now
            return turn + length_s, closed

        await self._change(reserve)
        if wait_s > 0:
            await self._sleep(wait_s)

    async def close(self, wait_s: float) -> None:
        """Nobody asks for `wait_s` seconds: the exchange said so to one of us."""
        await self._change(lambda now, free, closed: (free, max(closed, now + wait_s)))

    def closed_s(self) -> float:
        """Seconds until somebody may ask again; 0 if now."""
        try:
            data = self._path.read_bytes()
        except OSError:
            return 0.0
        now = self._monotonic()
        return max(0.0, _times(data, now)[1] - now)

    async def _change(self, change: Callable[[float, float, float], tuple[float, float]]) -> None:
        """Replace both times by what `change` makes of now and them, while nobody else does."""
        if self._is_broken:
            return
        try:
            with self._opened() as file:
                for _ in range(_TRIES):
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    await self._sleep(_PAUSE_S)
                now = self._monotonic()
                times = change(now, *_times(os.pread(file, _TIMES.size, 0), now))
                os.pwrite(file, _TIMES.pack(*times), 0)
        except OSError as error:
            self._is_broken = True
            _LOG.warning(
                "%s cannot be written (%s): requests are paced in this process alone; other "
                "programs of this machine that ask the exchange do not count",
                self._path, error,
            )  # fmt: skip

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield file
        finally:
            os.close(file)  # lets go of the lock


def _times(data: bytes, now: float) -> tuple[float, float]:
    """When free and when open again, as the file says; now where it says nothing sensible."""
    if len(data) != _TIMES.size:
        return now, now
    free, closed = _TIMES.unpack(data)
    # False for NaN, too.
    return (
        free if free <= now + LONGEST_S else now,
        closed if closed <= now + LONGEST_S else now,
    )


def pace_file(folder: Path, client: Any) -> Path:
    """The file for whoever asks what CCXT's `client` asks, by the same way."""
    way = [
        client.urls.get("api"),
        client.hostname,
        *(str(getattr(client, name, None) or "") for name in _PROXIES),
    ]
    # Of a digest, since a proxy's address may hold a password.
    digest = hashlib.sha256(json.dumps(way, sort_keys=True, default=str).encode()).hexdigest()
    return folder / f"{client.id}-{digest[:16]}"
