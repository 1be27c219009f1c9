"""Risk events that the ledger itself raises, as values; rows of `risk_events` without the ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Self

from kurisu.domain.money import plain


class Severity(StrEnum):
    """The values of risk_events.severity."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class EventType(StrEnum):
    """What the ledger can say; the values of risk_events.event_type.

    Events. Once true they stay true, whatever comes later:
    LATE_FILL: an execution is later, by the exchange's clock, than the order's end.
    FILLED_BEYOND_FINAL: executions add up to more than the exchange said when the order ended.
    ORDER_REOPENED: the exchange called an order open after it had ended; ignored.
    FINAL_STATUS_CONTRADICTED: two ways in which one order is said to have ended.
    TRADE_ID_REUSED: one trade id, two contents or two orders; both executions are kept.
    EXECUTION_DISPUTED: one execution, two values of its time, fees, cost or role.
    STATUS_UNKNOWN: a status that is not one of CCXT's.
    ORDER_IDENTITY_CONTRADICTED: ids that belong to two different orders; the record is refused.

    Conditions. True now, and over once the missing piece has come:
    FILLS_MISSING: the exchange says that more was filled than its executions add up to.
    EXECUTION_EXCEEDS_ORDER: an execution that does not fit in its order; held, not applied.
    EXECUTION_SIDE_DIFFERS: an execution on the other side than its order; held, not applied.
    ORDER_SIDE_DIFFERS: the exchange says another side than we placed; ours stays.
    ORDER_AMOUNT_DIFFERS: the exchange says another amount than we placed; it is taken.
    ORDER_UNKNOWN: records for an order that is not (yet) ours; they wait.
    ORDER_UNRESOLVED: an order was sent, and it is not known what became of it.
    RECONCILIATION_DIFFERENCE: the exchange says something else than the ledger.
    """

    LATE_FILL = "late_fill"
    FILLED_BEYOND_FINAL = "filled_beyond_final"
    ORDER_REOPENED = "order_reopened"
    FINAL_STATUS_CONTRADICTED = "final_status_contradicted"
    TRADE_ID_REUSED = "trade_id_reused"
    EXECUTION_DISPUTED = "execution_disputed"
    STATUS_UNKNOWN = "status_unknown"
    ORDER_IDENTITY_CONTRADICTED = "order_identity_contradicted"
    FILLS_MISSING = "fills_missing"
    EXECUTION_EXCEEDS_ORDER = "execution_exceeds_order"
    EXECUTION_SIDE_DIFFERS = "execution_side_differs"
    ORDER_SIDE_DIFFERS = "order_side_differs"
    ORDER_AMOUNT_DIFFERS = "order_amount_differs"
    ORDER_UNKNOWN = "order_unknown"
    ORDER_UNRESOLVED = "order_unresolved"
    RECONCILIATION_DIFFERENCE = "reconciliation_difference"


@dataclass(frozen=True, slots=True)
class RiskEvent:
    """One thing that does not add up. Two events with equal content are one event.

    details: names and values as text, sorted by name; numbers in plain spelling.
    """

    event_type: EventType
    severity: Severity
    details: tuple[tuple[str, str], ...]

    @classmethod
    def of(
        cls, event_type: EventType, severity: Severity, **details: str | Decimal | datetime | None
    ) -> Self:
        """Details of None are left out."""
        return cls(
            event_type,
            severity,
            tuple(
                sorted(
                    (name, as_text(value)) for name, value in details.items() if value is not None
                )
            ),
        )

    @property
    def as_json(self) -> Mapping[str, str]:
        """`risk_events.details`."""
        return dict(self.details)


def as_text(value: object) -> str:
    """Numbers in plain spelling, times as ISO 8601."""
    if isinstance(value, Decimal):
        return plain(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)
