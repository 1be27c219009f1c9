"""The exchanges' clock: stands still unless a test moves it, or runs at a chosen speed."""

from __future__ import annotations

import math
import threading
import time
from typing import Final

MINUTE_MS: Final = 60_000
DAY_MS: Final = 86_400_000


class VirtualClock:
    """Milliseconds since 1970, as the exchanges see them.

    speed: virtual seconds per real second; 0 stands still.
    """

    def __init__(self, now_ms: int, speed: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._base_ms = now_ms
        self._since_s = time.monotonic()
        self.speed = speed

    def now_ms(self) -> int:
        with self._lock:
            return self._base_ms + int((time.monotonic() - self._since_s) * 1000 * self.speed)

    def set(self, now_ms: int, speed: float | None = None) -> None:
        """Jump to a time, forwards or backwards."""
        with self._lock:
            self._base_ms = now_ms
            self._since_s = time.monotonic()
            if speed is not None:
                self.speed = speed

    def advance(self, seconds: float) -> None:
        self.set(self.now_ms() + math.ceil(seconds * 1000))
