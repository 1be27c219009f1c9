"""The tables, as SQLAlchemy models: what the database holds and which rules it keeps by itself.

In: nothing. Out: `Base.metadata`, which the migrations are checked against, and one class per
table. Each deviation from the design document is a line in docs/schema.md.
"""

from kurisu.schema.base import Base
from kurisu.schema.candles import (
    OHLCV,
    ROLLUP_TABLES,
    CandleCoverage,
    CandleRevision,
    CandleSeries,
)
from kurisu.schema.ledger import (
    Account,
    Balance,
    Execution,
    ExecutionCorrection,
    LedgerEntry,
    Order,
    OrderCorrection,
    Position,
    ReportedBalance,
    SyncCursor,
    WaitingOrder,
)
from kurisu.schema.markets import Market
from kurisu.schema.operations import RetentionPolicy, RollupPending
from kurisu.schema.risk import RiskEvent
from kurisu.schema.strategies import Strategy, StrategyRun
from kurisu.schema.trades import Trade, TradeCoverage

__all__ = [
    "OHLCV",
    "ROLLUP_TABLES",
    "Account",
    "Balance",
    "Base",
    "CandleCoverage",
    "CandleRevision",
    "CandleSeries",
    "Execution",
    "ExecutionCorrection",
    "LedgerEntry",
    "Market",
    "Order",
    "OrderCorrection",
    "Position",
    "ReportedBalance",
    "RetentionPolicy",
    "RiskEvent",
    "RollupPending",
    "Strategy",
    "StrategyRun",
    "SyncCursor",
    "Trade",
    "TradeCoverage",
    "WaitingOrder",
]
