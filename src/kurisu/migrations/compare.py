"""What Alembic may compare: the models' tables, and nothing that belongs to TimescaleDB."""

from __future__ import annotations

from typing import Any

from kurisu.schema import ROLLUP_TABLES


def include_object(
    _item: Any, name: str | None, type_: str, reflected: bool, compare_to: Any
) -> bool:
    """Alembic's hook. Rollups are continuous aggregates on TimescaleDB Community and tables
    elsewhere: there they are compared, and where the database has no such table
    `kurisu.store.layout` answers for them.
    """
    if type_ == "table" and reflected and name and name.startswith("_materialized_hypertable_"):
        return False  # see `kurisu.store.layout`: of a role that is no superuser
    rollups = {table.name for table in ROLLUP_TABLES.values()}
    return not (type_ == "table" and name in rollups and not reflected and compare_to is None)
