"""Trades, a hypertable where TimescaleDB is.

Revision ID: 0004
Revises: 0003
Create Date: 2026-11-22
"""

from alembic import op

from kurisu.migrations.script import execute_script, make_hypertable

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE trades (
    time TIMESTAMPTZ NOT NULL,
    market_id INTEGER NOT NULL,
    trade_id VARCHAR NOT NULL,
    side VARCHAR(4),
    price NUMERIC(38, 18) NOT NULL,
    amount NUMERIC(38, 18) NOT NULL,
    cost NUMERIC(38, 18) NOT NULL,
    taker_or_maker VARCHAR(5),
    CONSTRAINT pk_trades PRIMARY KEY (market_id, time, trade_id),
    CONSTRAINT check_trades_side CHECK (side IN ('buy', 'sell')),
    CONSTRAINT check_trades_taker_or_maker CHECK (taker_or_maker IN ('taker', 'maker')),
    CONSTRAINT check_trades_time_in_milliseconds
        CHECK (date_bin('1 millisecond', time, '1970-01-01 00:00:00+00') = time),
    CONSTRAINT check_trades_finite
        CHECK (price < 'Infinity' AND amount < 'Infinity' AND cost < 'Infinity'
               AND isfinite(time)),
    CONSTRAINT check_trades_amount_not_negative CHECK (amount >= 0)
);
"""


def upgrade() -> None:
    execute_script(UPGRADE)
    make_hypertable("trades")
    op.execute("CREATE INDEX idx_trades_time_desc ON trades (time DESC)")


def downgrade() -> None:
    op.execute("DROP TABLE trades")
