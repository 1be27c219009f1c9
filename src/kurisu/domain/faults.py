"""Faults in data, as values: which row of which source breaks which rule."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Rule(StrEnum):
    """What a row can break. The value is what reports and reject files say."""

    ROW_TRUNCATED = "row_truncated"
    MISSING_VALUE = "missing_value"
    TIME_NOT_READABLE = "time_not_readable"
    TIME_NOT_ALIGNED = "time_not_aligned"
    NOT_CLOSED = "not_closed"
    NUMBER_NOT_READABLE = "number_not_readable"
    NOT_FINITE = "not_finite"
    NUMBER_TOO_LARGE = "number_too_large"
    TOO_MANY_FRACTION_DIGITS = "too_many_fraction_digits"
    LOW_ABOVE_OPEN = "low_above_open"
    LOW_ABOVE_CLOSE = "low_above_close"
    HIGH_BELOW_OPEN = "high_below_open"
    HIGH_BELOW_CLOSE = "high_below_close"
    NEGATIVE_VOLUME = "negative_volume"
    NEGATIVE_AMOUNT = "negative_amount"
    SIDE_NOT_READABLE = "side_not_readable"
    TAKER_OR_MAKER_NOT_READABLE = "taker_or_maker_not_readable"
    TRADE_ID_NOT_USABLE = "trade_id_not_usable"
    IN_THE_FUTURE = "in_the_future"
    NO_COST = "no_cost"


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was not stored.

    row: 1-based number of the row in its source; where a text file has a header, the header is
        not counted.
    rule: the first rule that it breaks.
    value: the offending value as it stands in the source.
    field: the column it stands in; None where the whole row is at fault.
    """

    row: int
    rule: Rule
    value: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two rows of one source that give one candle different content; the later one wins.

    row: 1-based number of the row that lost.
    kept_row: 1-based number of the row that won.
    time: the candle's open time, ISO 8601 in UTC.
    value: what the losing row said: open, high, low, close, volume.
    """

    row: int
    kept_row: int
    time: str
    value: str


@dataclass(frozen=True, slots=True)
class TradeConflict:
    """A trade that is known with other content; the one that was there first stays.

    row: 1-based number of the row that was not stored.
    time: the trade's time, ISO 8601 in UTC. trade_id: its id.
    kept: what the trade that stays says: side, price, amount. value: what this row says.
    """

    row: int
    time: str
    trade_id: str
    kept: str
    value: str
