"""Ohlcv becomes a hypertable where TimescaleDB is: step 2 of the document's plan.

On plain PostgreSQL this does nothing; `kurisu db upgrade` converts later, once the extension is
there.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-22
"""

from kurisu.migrations.script import make_hypertable, make_plain

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    make_hypertable("ohlcv")


def downgrade() -> None:
    make_plain("ohlcv")
