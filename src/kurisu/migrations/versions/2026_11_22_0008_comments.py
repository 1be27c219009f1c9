"""What each column means, where psql and every database browser shows it.

Revision ID: 0008
Revises: 0007
Create Date: 2026-11-22
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Table, column, comment.
COMMENTS = (
    ("accounts", "exchange", "CCXT's exchange id."),
    (
        "accounts",
        "meta",
        "Names of the environment variables with its credentials; never a credential.",
    ),
    ("balances", "time", "Of the snapshot."),
    ("balances", "free", "In units of the asset."),
    ("balances", "used", "Held by open orders."),
    ("balances", "total", "free + used."),
    ("candle_coverage", "since", "Open time of the first bar."),
    ("candle_coverage", "until", "Close time of the last bar (exclusive)."),
    ("candle_coverage", "status", "complete, empty, outage or failed."),
    ("candle_coverage", "source", "What said so: file, rest, stream."),
    ("candle_revisions", "time", "Open time."),
    ("candle_revisions", "open", "As it was, quote units."),
    ("candle_revisions", "high", "As it was, quote units."),
    ("candle_revisions", "low", "As it was, quote units."),
    ("candle_revisions", "close", "As it was, quote units."),
    ("candle_revisions", "volume", "As it was."),
    ("executions", "trade_id", "The exchange's."),
    ("executions", "price", "Quote units per base unit."),
    ("executions", "amount", "Base units or contracts."),
    ("executions", "cost", "Quote units."),
    ("executions", "fee", "In fee_currency; negative is a rebate; null until the exchange says."),
    ("executions", "fee_currency", "Any asset."),
    ("markets", "id", "Ours."),
    ("markets", "exchange", "CCXT's exchange id."),
    ("markets", "symbol", "CCXT's unified symbol."),
    ("markets", "base_asset", "What is traded."),
    ("markets", "quote_asset", "What prices are in."),
    ("markets", "active", "False once the exchange no longer lists it."),
    ("markets", "meta", "The exchange's raw entry."),
    ("markets", "exchange_symbol", "The exchange's own name for it; null until synchronised."),
    ("markets", "price_precision", "Fractional digits of a price; null until synchronised."),
    ("markets", "amount_precision", "Fractional digits of an amount; null until synchronised."),
    ("markets", "type", "spot, margin, swap, future or option."),
    ("markets", "settle_asset", "What a contract settles in; null for spot."),
    (
        "markets",
        "linear",
        "True: settled in quote; false: inverse, settled in base; null for spot.",
    ),
    (
        "markets",
        "contract_size",
        "Base (linear) or quote (inverse) units per contract; null for spot.",
    ),
    ("markets", "price_tick", "Smallest price step, in quote units; null until synchronised."),
    ("markets", "amount_tick", "Smallest amount step, in base units or contracts."),
    ("markets", "min_amount", "Base units or contracts."),
    ("markets", "max_amount", "Base units or contracts."),
    ("markets", "min_price", "Quote units."),
    ("markets", "max_price", "Quote units."),
    ("markets", "min_cost", "Quote units."),
    ("markets", "max_cost", "Quote units."),
    ("markets", "trade_id_space", "Which ids its stored trades carry; null while it has none."),
    ("ohlcv", "time", "Open time."),
    ("ohlcv", "market_id", "markets.id, kept by a trigger."),
    ("ohlcv", "open", "Quote units, from CCXT ohlcv[1]."),
    ("ohlcv", "high", "Quote units, from CCXT ohlcv[2]."),
    ("ohlcv", "low", "Quote units, from CCXT ohlcv[3]."),
    ("ohlcv", "close", "Quote units, from CCXT ohlcv[4]."),
    ("ohlcv", "volume", "Base units on spot, contracts elsewhere; from CCXT ohlcv[5]."),
    ("ohlcv_15m", "time", "Open time."),
    ("ohlcv_15m", "bars", "1m candles inside."),
    ("ohlcv_1d", "time", "Open time."),
    ("ohlcv_1d", "bars", "1m candles inside."),
    ("ohlcv_1h", "time", "Open time."),
    ("ohlcv_1h", "bars", "1m candles inside."),
    ("ohlcv_4h", "time", "Open time."),
    ("ohlcv_4h", "bars", "1m candles inside."),
    ("ohlcv_5m", "time", "Open time."),
    ("ohlcv_5m", "bars", "1m candles inside."),
    (
        "orders",
        "client_order_id",
        "Made by us before sending; null for an order that others placed.",
    ),
    ("orders", "exchange_order_id", "Null until the exchange has answered."),
    ("orders", "price", "Quote units; null for market orders."),
    ("orders", "stop_price", "Trigger price in quote units, for stop_loss and take_profit."),
    ("orders", "amount", "Base units or contracts."),
    ("orders", "filled", "Sum of its executions' amounts."),
    ("orders", "remaining", "amount - filled."),
    ("orders", "cost", "Sum of its executions' costs, quote units."),
    ("orders", "status", "pending (not yet sent), open, closed, canceled or failed."),
    ("positions", "time", "Of the snapshot."),
    ("positions", "amount", "Positive is long, negative short."),
    ("positions", "entry_price", "Average, quote units; null when flat."),
    (
        "positions",
        "unrealized_pnl",
        "Quote units (settle units for inverse); null without a mark price.",
    ),
    ("retention_policies", "relation", "ohlcv or trades."),
    ("retention_policies", "drop_after", "Age at which raw rows go; null keeps them for ever."),
    (
        "retention_policies",
        "compress_after",
        "Age at which chunks are compressed (Community); null never.",
    ),
    (
        "retention_policies",
        "origin",
        "default (an import or backfill may move it back), command or config.",
    ),
    (
        "retention_policies",
        "dropped_before",
        "Raw rows older than this may be gone, so rollups there are not recomputed.",
    ),
    ("risk_events", "event_type", "e.g. max_drawdown."),
    ("risk_events", "details", "Numbers as text."),
    ("rollup_pending", "since", "First touched open time."),
    ("rollup_pending", "until", "Exclusive."),
    ("strategies", "class_path", "Importable, e.g. strategies.grid.GridStrategy."),
    ("strategy_runs", "start_time", "When the run started."),
    ("strategy_runs", "end_time", "When it ended; null while it runs."),
    ("strategy_runs", "parameters", "As run."),
    ("strategy_runs", "metrics", "Results, numbers as text; null until the run ends."),
    ("trades", "time", "In milliseconds."),
    ("trades", "market_id", "markets.id, kept by a trigger."),
    ("trades", "trade_id", "The exchange's; a deterministic hash where it gives none."),
    ("trades", "side", "The taker's side; null where the exchange does not say."),
    ("trades", "price", "Quote units per base unit."),
    ("trades", "amount", "Base units or contracts."),
    ("trades", "cost", "Quote units, from CCXT trade['cost']."),
    ("trades", "taker_or_maker", "Null on public trades."),
)


def _is_table(name: str) -> bool:
    # On TimescaleDB Community the rollups are views.
    kind = op.get_bind().exec_driver_sql(
        f"SELECT relkind::text FROM pg_class WHERE oid = to_regclass('{name}')"
    )
    return bool(kind.scalar() == "r")


def upgrade() -> None:
    for table, column, comment in COMMENTS:
        if _is_table(table):
            text = comment.replace("'", "''")
            op.get_bind().exec_driver_sql(f"COMMENT ON COLUMN {table}.{column} IS '{text}'")


def downgrade() -> None:
    for table, column, _ in COMMENTS:
        if _is_table(table):
            op.get_bind().exec_driver_sql(f"COMMENT ON COLUMN {table}.{column} IS NULL")
