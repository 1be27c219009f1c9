"""Whose rollups are not refreshed yet, so that reads of all other markets need not care.

Revision ID: 0013
Revises: 0012
Create Date: 2026-11-22
"""

from alembic import op

from kurisu.migrations.script import execute_script

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE rollup_pending ADD COLUMN market_id INTEGER;
CREATE INDEX idx_rollup_pending_market_id ON rollup_pending (market_id);
COMMENT ON COLUMN rollup_pending.market_id IS
    'Whose candles were written; null where they may be anybody''s.';
"""


def upgrade() -> None:
    execute_script(UPGRADE)


def downgrade() -> None:
    op.execute("ALTER TABLE rollup_pending DROP COLUMN market_id")
