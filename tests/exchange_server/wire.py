"""What goes over the wire: exact JSON, the log of requests, and weight limits that are kept.

Python's json would turn 0.12345678901234567 into another number. Payloads carry such numbers as
`Raw` text, which is written as it stands.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from exchange_server.clock import MINUTE_MS, VirtualClock


class Raw(str):
    """A JSON number, spelled as the exchange spells it."""

    __slots__ = ()


def dump(value: Any) -> str:
    """Compact JSON; `Raw` text becomes a bare number."""
    if isinstance(value, Raw):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{json.dumps(k)}:{dump(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value)


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived. weight: what the venue charges; status: what it answered.

    query: its parameters; of a signed one those in its body, too.
    """

    venue: str
    path: str
    query: Mapping[str, str]
    at_ms: int
    weight: int
    status: int
    method: str = "GET"


#: A client that goes on after this many refusals in one minute is banned (418), as Binance does.
REFUSALS_BEFORE_BAN: Final = 5


@dataclass(slots=True)
class Meter:
    """Request weight per minute of the virtual clock; None as the limit only counts.

    breaches: the requests that came although the limit was reached. Tests assert that it is empty.
    most_used: the highest weight of any one minute.
    """

    clock: VirtualClock
    limit: int | None
    used: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    breaches: list[tuple[str, int, int]] = field(default_factory=list)

    def charge(self, path: str, weight: int) -> tuple[int, int | None]:
        """(weight used in this minute, seconds to wait if that is over the limit)."""
        now = self.clock.now_ms()
        minute = now // MINUTE_MS
        self.used[minute] += weight
        if self.limit is None or self.used[minute] <= self.limit:
            return self.used[minute], None
        self.refused[minute] += 1
        self.breaches.append((path, now, self.used[minute]))
        return self.used[minute], max(1, ((minute + 1) * MINUTE_MS - now + 999) // 1000)

    def banned(self) -> bool:
        return self.refused[self.clock.now_ms() // MINUTE_MS] > REFUSALS_BEFORE_BAN

    @property
    def most_used(self) -> int:
        return max(self.used.values(), default=0)
