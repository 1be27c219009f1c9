"""What `store.ledger` gives: rows of the ledger as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from kurisu.domain.balance import Balance, Entry
from kurisu.domain.execution import Execution
from kurisu.domain.market import MarketName
from kurisu.domain.position import Position
from kurisu.ledger.events import RiskEvent
from kurisu.ledger.intake import Outcome


@dataclass(slots=True)
class Applied:
    """What became of many messages.

    messages: how many there were. inserted: executions that count from now on. corrected: those
    that were there and now say more. unchanged: messages that said nothing new. waiting: of orders
    that are not (yet) ours. held: executions that do not fit their order. events: risk events that
    are new. outcomes: of the messages that were more than a plain new fill, in order.
    """

    messages: int = 0
    inserted: int = 0
    corrected: int = 0
    unchanged: int = 0
    waiting: int = 0
    held: int = 0
    events: list[RiskEvent] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StoredExecution:
    """An execution that counts, and where it belongs.

    execution: `cost` is filled in; `trade_id` is the row's, marked for a second content.
    """

    id: int
    order_id: int
    market: MarketName
    account_id: int | None
    strategy_id: int | None
    strategy_run_id: int | None
    execution: Execution


@dataclass(frozen=True, slots=True)
class WaitingRecord:
    """What waits under an exchange's order id.

    order_id: None while the order is not ours; else the executions do not fit that order.
    executions: as rows.
    """

    market: MarketName
    client_order_id: str | None
    exchange_order_id: str | None
    order_id: int | None
    executions: tuple[Execution, ...]


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far something was read. until: everything before it is stored."""

    until: datetime
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReportedBalance:
    """What an exchange said, and when."""

    time: datetime
    balance: Balance


@dataclass(frozen=True, slots=True)
class EntryRow:
    """A stored entry."""

    id: int
    account_id: int | None
    strategy_run_id: int | None
    entry: Entry


@dataclass(frozen=True, slots=True)
class PositionRow:
    """A position, kept apart as it was asked for; what was not asked for is None.

    entry_price: quote units; None when flat. mark_price: close of the latest candle, quote units;
    None without one. mark_time: when that candle closed. unrealized_pnl: settle units; None without
    a mark. settle_asset: what PnL is in. executions: how many led to it.
    """

    market: MarketName
    account_id: int | None
    strategy_id: int | None
    strategy_run_id: int | None
    time: datetime
    position: Position
    settle_asset: str
    entry_price: Decimal | None
    mark_price: Decimal | None
    mark_time: datetime | None
    unrealized_pnl: Decimal | None
    executions: int


@dataclass(frozen=True, slots=True)
class BalanceRow:
    """A wallet as the ledger has it."""

    account_id: int | None
    strategy_run_id: int | None
    time: datetime
    balance: Balance


@dataclass(frozen=True, slots=True)
class PnlRow:
    """PnL of a group and a time; what was not asked for is None.

    settle_asset: what the numbers are in. realized_pnl: before fees. fee_value: fees that have a
    value in settle units. fees: all fees, by asset. volume: worth of what was traded.
    unrealized_pnl: at the latest candle (mark_time is the oldest mark used); None without a mark,
    and by day.
    """

    settle_asset: str
    market: MarketName | None
    account_id: int | None
    strategy_id: int | None
    strategy_run_id: int | None
    day: date | None
    executions: int
    volume: Decimal
    realized_pnl: Decimal
    fee_value: Decimal
    fees: Mapping[str, Decimal]
    unrealized_pnl: Decimal | None
    mark_time: datetime | None
