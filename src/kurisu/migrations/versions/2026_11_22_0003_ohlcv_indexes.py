"""Ohlcv's time index: step 3 of the document's plan.

The document asks for two more, (market_id, timeframe, time DESC) and (market_id, time DESC). The
key, read backwards, is the first. The second is measured and left out: decision 0003.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-22
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX idx_ohlcv_time_desc ON ohlcv (time DESC)")


def downgrade() -> None:
    op.execute("DROP INDEX idx_ohlcv_time_desc")
