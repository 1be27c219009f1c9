"""What every venue of the server has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from exchange_server.clock import VirtualClock
from exchange_server.truth import Listing
from exchange_server.wire import Meter


@dataclass(frozen=True, slots=True)
class Answer:
    """What a venue says: payload is what `wire.dump` writes."""

    payload: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Venue:
    """One exchange. Subclasses speak its protocol; `server.py` does the HTTP and the faults."""

    name: str

    def __init__(self, clock: VirtualClock, limit: int | None) -> None:
        self.clock = clock
        self.meter = Meter(clock, limit)
        self.listings: dict[str, Listing] = {}
        #: Added to the time that the venue tells, not to the one it works by.
        self.told_skew_ms = 0

    def add(self, listing: Listing) -> Listing:
        self.listings[listing.id] = listing
        return listing

    def known(self, name: str | None) -> Listing | None:
        """The market, unless it is gone."""
        found = self.listings.get(name or "")
        if found is not None and found.gone and found.delisted(self.clock.now_ms()):
            return None
        return found

    def weight(self, path: str, query: Mapping[str, str]) -> int:
        """What a request is charged."""
        raise NotImplementedError

    def answer(self, path: str, query: Mapping[str, str]) -> Answer:
        """The proper answer to a request."""
        raise NotImplementedError

    def is_private(self, path: str) -> bool:
        """True if a request has to be signed."""
        return False

    def answer_signed(
        self, method: str, path: str, signed: str, headers: Mapping[str, str]
    ) -> Answer:
        """The proper answer to a signed request. signed: query string and body as they came."""
        raise NotImplementedError

    def refuse(self, wait_s: int, *, banned: bool) -> Answer:
        """The answer to a request that is over the limit."""
        raise NotImplementedError

    def usage(self, used: int) -> Mapping[str, str]:
        """Headers that say how much of the limit is used."""
        return {}

    def rows(self, payload: Any) -> list[Any] | None:
        """The rows inside a payload, in place; None if it has none."""
        return payload if isinstance(payload, list) else None

    def earlier(self, query: Mapping[str, str]) -> Mapping[str, str]:
        """The same question, from a little earlier: for overlapping pages."""
        return query
