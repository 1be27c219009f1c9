"""Why a stretch of candles is an outage or failed.

Revision ID: 0011
Revises: 0010
Create Date: 2026-11-22
"""

from alembic import op

from kurisu.migrations.script import execute_script

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE candle_coverage ADD COLUMN reason VARCHAR(500);
COMMENT ON COLUMN candle_coverage.reason IS 'Why, for outage and failed; null elsewhere.';
"""


def upgrade() -> None:
    execute_script(UPGRADE)


def downgrade() -> None:
    op.execute("ALTER TABLE candle_coverage DROP COLUMN reason")
