"""Ids of the ledger are compared byte by byte, whatever the order of the database is.

A unique key over texts goes by the database's collation, whose order is the operating system's. It
changes with a newer system, and the key of an index that was built before no longer finds what is
there: a fill could count twice. And to compare by a language's rules takes longer.

Revision ID: 0018
Revises: 0017
Create Date: 2026-11-23
"""

from kurisu.migrations.script import execute_script

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

# Table, column, type.
IDS = (
    ("orders", "client_order_id", "varchar(50)"),
    ("orders", "exchange_order_id", "varchar"),
    ("executions", "trade_id", "varchar"),
    ("executions", "exchange_order_id", "varchar"),
    ("waiting_orders", "client_order_id", "varchar"),
    ("waiting_orders", "exchange_order_id", "varchar"),
    ("ledger_entries", "reference", "varchar"),
)


def _collate(collation: str) -> None:
    """One ALTER for each table; its indexes are built anew."""
    execute_script("SET LOCAL statement_timeout = 0;")
    for table in dict.fromkeys(table for table, _, _ in IDS):
        actions = ", ".join(
            f'ALTER COLUMN {column} TYPE {kind} COLLATE "{collation}"'
            for of, column, kind in IDS
            if of == table
        )
        execute_script(f"ALTER TABLE {table} {actions};")


def upgrade() -> None:
    _collate("C")


def downgrade() -> None:
    _collate("default")
