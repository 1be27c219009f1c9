"""Accounts, strategies and runs, orders, executions, positions, balances, risk events.

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-22
"""

from alembic import op

from kurisu.migrations.script import execute_script

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE accounts (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    name VARCHAR(50) NOT NULL,
    exchange VARCHAR(50) NOT NULL,
    meta JSONB NOT NULL DEFAULT '{}'::jsonb,
    CONSTRAINT pk_accounts PRIMARY KEY (id),
    CONSTRAINT uix_exchange_name UNIQUE (exchange, name)
);

CREATE TABLE strategies (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    name VARCHAR(100) NOT NULL,
    description TEXT,
    class_path VARCHAR NOT NULL,
    parameters JSONB NOT NULL DEFAULT '{}'::jsonb,
    status VARCHAR(20) NOT NULL DEFAULT 'active',
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_strategies PRIMARY KEY (id),
    CONSTRAINT unique_strategies_name UNIQUE (name),
    CONSTRAINT check_strategies_status CHECK (status IN ('active', 'paused', 'archived'))
);

CREATE TABLE strategy_runs (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    strategy_id INTEGER NOT NULL,
    type VARCHAR(20) NOT NULL,
    status VARCHAR(20) NOT NULL,
    start_time TIMESTAMPTZ NOT NULL,
    end_time TIMESTAMPTZ,
    parameters JSONB NOT NULL DEFAULT '{}'::jsonb,
    metrics JSONB,
    CONSTRAINT pk_strategy_runs PRIMARY KEY (id),
    CONSTRAINT fk_strategy_runs_strategy_id FOREIGN KEY (strategy_id) REFERENCES strategies (id),
    CONSTRAINT check_strategy_runs_type CHECK (type IN ('backtest', 'paper', 'live')),
    CONSTRAINT check_strategy_runs_status CHECK (status IN ('running', 'completed', 'failed')),
    CONSTRAINT check_strategy_runs_end_after_start CHECK (end_time >= start_time)
);
CREATE INDEX idx_strategy_runs_strategy_id ON strategy_runs (strategy_id);

CREATE TABLE orders (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    client_order_id VARCHAR(50),
    exchange_order_id VARCHAR,
    market_id INTEGER NOT NULL,
    strategy_id INTEGER,
    strategy_run_id BIGINT,
    account_id INTEGER,
    side VARCHAR(4) NOT NULL,
    type VARCHAR(20) NOT NULL,
    price NUMERIC(38, 18),
    stop_price NUMERIC(38, 18),
    amount NUMERIC(38, 18) NOT NULL,
    filled NUMERIC(38, 18) NOT NULL DEFAULT 0,
    remaining NUMERIC(38, 18) NOT NULL,
    cost NUMERIC(38, 18) NOT NULL DEFAULT 0,
    status VARCHAR(20) NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_orders PRIMARY KEY (id),
    CONSTRAINT unique_orders_client_order_id UNIQUE (client_order_id),
    CONSTRAINT fk_orders_market_id FOREIGN KEY (market_id) REFERENCES markets (id),
    CONSTRAINT fk_orders_strategy_id FOREIGN KEY (strategy_id) REFERENCES strategies (id),
    CONSTRAINT fk_orders_strategy_run_id
        FOREIGN KEY (strategy_run_id) REFERENCES strategy_runs (id),
    CONSTRAINT fk_orders_account_id FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT check_orders_side CHECK (side IN ('buy', 'sell')),
    CONSTRAINT check_orders_type
        CHECK (type IN ('limit', 'market', 'stop_loss', 'take_profit')),
    CONSTRAINT check_orders_status
        CHECK (status IN ('pending', 'open', 'closed', 'canceled', 'failed')),
    CONSTRAINT check_orders_amount CHECK (amount > 0 AND amount < 'Infinity'),
    CONSTRAINT check_orders_filled CHECK (filled >= 0 AND filled <= amount),
    CONSTRAINT check_orders_remaining CHECK (remaining = amount - filled),
    CONSTRAINT check_orders_finite
        CHECK (cost < 'Infinity' AND price < 'Infinity' AND stop_price < 'Infinity'),
    CONSTRAINT check_orders_limit_has_price CHECK (type <> 'limit' OR price IS NOT NULL),
    CONSTRAINT check_orders_stop_has_stop_price
        CHECK (type NOT IN ('stop_loss', 'take_profit') OR stop_price IS NOT NULL)
);
CREATE INDEX idx_orders_exchange_order_id ON orders (exchange_order_id);
CREATE INDEX idx_orders_market_id ON orders (market_id);
CREATE INDEX idx_orders_strategy_id ON orders (strategy_id);
CREATE INDEX idx_orders_strategy_run_id ON orders (strategy_run_id);
CREATE INDEX idx_orders_account_id ON orders (account_id);
CREATE INDEX idx_orders_status ON orders (status);
CREATE INDEX idx_orders_created_at ON orders (created_at);

CREATE TABLE executions (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    order_id BIGINT NOT NULL,
    trade_id VARCHAR NOT NULL,
    price NUMERIC(38, 18) NOT NULL,
    amount NUMERIC(38, 18) NOT NULL,
    cost NUMERIC(38, 18) NOT NULL,
    fee NUMERIC(38, 18),
    fee_currency VARCHAR(20),
    time TIMESTAMPTZ NOT NULL,
    taker_or_maker VARCHAR(5),
    CONSTRAINT pk_executions PRIMARY KEY (id),
    CONSTRAINT unique_executions_order_trade_id UNIQUE (order_id, trade_id),
    CONSTRAINT fk_executions_order_id FOREIGN KEY (order_id) REFERENCES orders (id),
    CONSTRAINT check_executions_taker_or_maker CHECK (taker_or_maker IN ('taker', 'maker')),
    CONSTRAINT check_executions_amount CHECK (amount > 0 AND amount < 'Infinity'),
    CONSTRAINT check_executions_finite
        CHECK (price < 'Infinity' AND cost < 'Infinity' AND fee < 'Infinity'),
    CONSTRAINT check_executions_fee_has_currency CHECK (fee IS NULL OR fee_currency IS NOT NULL)
);
CREATE INDEX idx_executions_time ON executions (time);

CREATE TABLE positions (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    time TIMESTAMPTZ NOT NULL,
    market_id INTEGER NOT NULL,
    strategy_id INTEGER,
    strategy_run_id BIGINT,
    account_id INTEGER,
    amount NUMERIC(38, 18) NOT NULL,
    entry_price NUMERIC(38, 18),
    unrealized_pnl NUMERIC(38, 18),
    CONSTRAINT pk_positions PRIMARY KEY (id),
    CONSTRAINT unique_positions_snapshot UNIQUE NULLS NOT DISTINCT
        (time, market_id, account_id, strategy_id, strategy_run_id),
    CONSTRAINT fk_positions_market_id FOREIGN KEY (market_id) REFERENCES markets (id),
    CONSTRAINT fk_positions_strategy_id FOREIGN KEY (strategy_id) REFERENCES strategies (id),
    CONSTRAINT fk_positions_strategy_run_id
        FOREIGN KEY (strategy_run_id) REFERENCES strategy_runs (id),
    CONSTRAINT fk_positions_account_id FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT check_positions_finite
        CHECK (amount < 'Infinity' AND entry_price < 'Infinity' AND unrealized_pnl < 'Infinity')
);
CREATE INDEX idx_positions_market_id_time ON positions (market_id, time DESC);
CREATE INDEX idx_positions_account_id ON positions (account_id);
CREATE INDEX idx_positions_strategy_run_id ON positions (strategy_run_id);

CREATE TABLE balances (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    time TIMESTAMPTZ NOT NULL,
    asset VARCHAR(20) NOT NULL,
    account_id INTEGER,
    strategy_run_id BIGINT,
    free NUMERIC(38, 18) NOT NULL,
    used NUMERIC(38, 18) NOT NULL,
    total NUMERIC(38, 18) NOT NULL,
    CONSTRAINT pk_balances PRIMARY KEY (id),
    CONSTRAINT unique_balances_snapshot UNIQUE NULLS NOT DISTINCT
        (time, asset, account_id, strategy_run_id),
    CONSTRAINT fk_balances_account_id FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT fk_balances_strategy_run_id
        FOREIGN KEY (strategy_run_id) REFERENCES strategy_runs (id),
    CONSTRAINT check_balances_finite CHECK (free < 'Infinity' AND used < 'Infinity'),
    CONSTRAINT check_balances_total CHECK (total = free + used)
);
CREATE INDEX idx_balances_account_id ON balances (account_id);
CREATE INDEX idx_balances_strategy_run_id ON balances (strategy_run_id);

CREATE TABLE risk_events (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    strategy_id INTEGER,
    strategy_run_id BIGINT,
    market_id INTEGER,
    account_id INTEGER,
    event_type VARCHAR(50) NOT NULL,
    severity VARCHAR(20) NOT NULL,
    details JSONB NOT NULL DEFAULT '{}'::jsonb,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_risk_events PRIMARY KEY (id),
    CONSTRAINT fk_risk_events_strategy_id FOREIGN KEY (strategy_id) REFERENCES strategies (id),
    CONSTRAINT fk_risk_events_strategy_run_id
        FOREIGN KEY (strategy_run_id) REFERENCES strategy_runs (id),
    CONSTRAINT fk_risk_events_market_id FOREIGN KEY (market_id) REFERENCES markets (id),
    CONSTRAINT fk_risk_events_account_id FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT check_risk_events_severity CHECK (severity IN ('info', 'warning', 'critical'))
);
CREATE INDEX idx_risk_events_created_at ON risk_events (created_at);
CREATE INDEX idx_risk_events_strategy_run_id ON risk_events (strategy_run_id);
"""

TABLES = (
    "risk_events", "balances", "positions", "executions", "orders", "strategy_runs",
    "strategies", "accounts",
)  # fmt: skip


def upgrade() -> None:
    execute_script(UPGRADE)


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"DROP TABLE {table}")
