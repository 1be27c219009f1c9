"""Markets and ohlcv: step 1 of the document's migration plan.

Revision ID: 0001
Revises:
Create Date: 2026-11-22
"""

from alembic import op

from kurisu.migrations.script import execute_script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE markets (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    exchange VARCHAR(50) NOT NULL,
    symbol VARCHAR(50) NOT NULL,
    base_asset VARCHAR(20) NOT NULL,
    quote_asset VARCHAR(20) NOT NULL,
    active BOOLEAN NOT NULL DEFAULT true,
    meta JSONB NOT NULL DEFAULT '{}'::jsonb,
    exchange_symbol VARCHAR(50),
    price_precision INTEGER,
    amount_precision INTEGER,
    type VARCHAR(10) NOT NULL DEFAULT 'spot',
    settle_asset VARCHAR(20),
    linear BOOLEAN,
    contract_size NUMERIC(38, 18),
    price_tick NUMERIC(38, 18),
    amount_tick NUMERIC(38, 18),
    min_amount NUMERIC(38, 18),
    max_amount NUMERIC(38, 18),
    min_price NUMERIC(38, 18),
    max_price NUMERIC(38, 18),
    min_cost NUMERIC(38, 18),
    max_cost NUMERIC(38, 18),
    trade_id_space VARCHAR(10),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_markets PRIMARY KEY (id),
    CONSTRAINT uix_exchange_symbol UNIQUE (exchange, symbol),
    CONSTRAINT check_markets_type
        CHECK (type IN ('spot', 'margin', 'swap', 'future', 'option')),
    CONSTRAINT check_markets_trade_id_space
        CHECK (trade_id_space IN ('raw', 'aggregate', 'derived')),
    CONSTRAINT check_markets_ticks_positive CHECK (price_tick > 0 AND amount_tick > 0),
    CONSTRAINT check_markets_contract_size_positive CHECK (contract_size > 0)
);
CREATE INDEX idx_markets_exchange ON markets (exchange);
CREATE INDEX idx_markets_symbol ON markets (symbol);

CREATE TABLE ohlcv (
    time TIMESTAMPTZ NOT NULL,
    market_id INTEGER NOT NULL,
    timeframe VARCHAR(10) NOT NULL,
    open NUMERIC(38, 18) NOT NULL,
    high NUMERIC(38, 18) NOT NULL,
    low NUMERIC(38, 18) NOT NULL,
    close NUMERIC(38, 18) NOT NULL,
    volume NUMERIC(38, 18) NOT NULL,
    CONSTRAINT pk_ohlcv PRIMARY KEY (market_id, timeframe, time),
    CONSTRAINT check_ohlcv_timeframe CHECK (timeframe IN (
        '1m', '3m', '5m', '15m', '30m', '1h', '2h', '4h', '6h', '8h', '12h',
        '1d', '3d', '1w', '1M')),
    CONSTRAINT check_ohlcv_time_aligned CHECK (CASE timeframe
        WHEN '1m' THEN date_bin('60 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '3m' THEN date_bin('180 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '5m' THEN date_bin('300 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '15m' THEN date_bin('900 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '30m' THEN date_bin('1800 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '1h' THEN date_bin('3600 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '2h' THEN date_bin('7200 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '4h' THEN date_bin('14400 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '6h' THEN date_bin('21600 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '8h' THEN date_bin('28800 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '12h' THEN date_bin('43200 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '1d' THEN date_bin('86400 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '3d' THEN date_bin('259200 seconds', time, '1970-01-01 00:00:00+00') = time
        WHEN '1w' THEN date_bin('604800 seconds', time, '1970-01-05 00:00:00+00') = time
        WHEN '1M' THEN date_trunc('month', time AT TIME ZONE 'UTC') = time AT TIME ZONE 'UTC'
        END),
    CONSTRAINT check_ohlcv_low_high
        CHECK (low <= open AND low <= close AND high >= open AND high >= close),
    CONSTRAINT check_ohlcv_volume_not_negative CHECK (volume >= 0),
    CONSTRAINT check_ohlcv_finite
        CHECK (high < 'Infinity' AND volume < 'Infinity' AND isfinite(time))
);
"""


def upgrade() -> None:
    execute_script(UPGRADE)


def downgrade() -> None:
    op.execute("DROP TABLE ohlcv")
    op.execute("DROP TABLE markets")
