"""What a stream says about itself, for a log and for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """Something that happened.

    event: connected, reconnecting, gap, refilled, unavailable, refill_failed, silent, left_out,
        differs, revised, rejected, database_lost, database_back, buffer_full, buffer_free, status,
        stopped.
    at: this machine's clock. exchange, market: whom it concerns; None for all of them.
    text: for people. fields: the same for programs; values are JSON's, or datetimes.
    """

    event: str
    at: datetime
    text: str
    exchange: str | None = None
    market: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """One flat object."""
        named = {"exchange": self.exchange, "market": self.market}
        return {
            "event": self.event,
            "at": self.at,
            **{name: value for name, value in named.items() if value is not None},
            **self.fields,
        }


Say: TypeAlias = Callable[[StreamEvent], None]


def tell(
    say: Say,
    event: str,
    text: str,
    *,
    exchange: str | None = None,
    market: object = None,
    **fields: Any,
) -> None:
    say(
        StreamEvent(
            event,
            datetime.now(UTC),
            text,
            exchange,
            None if market is None else str(market),
            fields,
        )
    )
