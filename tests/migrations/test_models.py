"""The migrations make what the models say, on every engine."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from rows import fetch
from sqlalchemy import CheckConstraint, Connection

import kurisu.migrations
from kurisu.migrations.compare import include_object
from kurisu.schema import ROLLUP_TABLES, Base
from kurisu.store.migrate import alembic_config
from kurisu.store.store import Store

VERSIONS = Path(kurisu.migrations.__file__).parent / "versions"


def differences(connection: Connection) -> list[object]:
    """What `alembic revision --autogenerate` would write."""
    context = MigrationContext.configure(
        connection,
        opts={
            "include_object": include_object,
            "compare_type": True,
            "compare_server_default": True,
        },
    )
    return list(compare_metadata(context, Base.metadata))


async def test_autogenerate_finds_nothing_to_do(store: Store) -> None:
    async with store.database.connect() as connection:
        assert await connection.run_sync(differences) == []


async def constraint_names(store: Store, kind: str) -> dict[str, set[str]]:
    """Names of the constraints of a kind ('c' check, 'p' key, ...) by table, from the database."""
    rows = await fetch(
        store,
        "SELECT r.relname::text, c.conname::text FROM pg_constraint c "
        "JOIN pg_class r ON r.oid = c.conrelid "
        "WHERE r.relnamespace = 'public'::regnamespace "
        'AND c.contype = CAST(:kind AS text)::"char"',
        kind=kind,
    )
    found: dict[str, set[str]] = {}
    for table, name in rows:
        found.setdefault(table, set()).add(name)
    return found


async def test_every_check_has_the_name_that_the_model_gives_it(store: Store) -> None:
    # Alembic does not compare CHECK constraints.
    found = await constraint_names(store, "c")
    for table in Base.metadata.tables.values():
        wanted = {str(c.name) for c in table.constraints if isinstance(c, CheckConstraint)}
        assert found.get(table.name, set()) == wanted, table.name


async def test_every_rule_in_a_function_is_the_one_of_the_model(store: Store) -> None:
    found: dict[str, dict[str, str]] = {}
    for table in Base.metadata.tables.values():
        for constraint in table.constraints:
            if isinstance(constraint, CheckConstraint) and "rules" in constraint.info:
                function, columns = str(constraint.sqltext).rstrip(")").split("(")
                ((source, arguments),) = await fetch(
                    store,
                    "SELECT prosrc, proargnames FROM pg_proc "
                    "WHERE proname = :name AND pronamespace = 'public'::regnamespace",
                    name=function,
                )
                source = re.sub(r"OPERATOR\(pg_catalog\.(.{1,2})\)", r"\1", source)
                found[table.name] = {
                    name: rule
                    for rule, name in re.findall(r"WHEN NOT \((.*)\) THEN '(\w+)'", source)
                }
                assert source.count("WHEN ") == len(found[table.name])
                assert found[table.name] == constraint.info["rules"]
                assert arguments == columns.split(", ")
    assert found.keys() == {"orders", "executions"}


async def test_unique_ids_of_the_ledger_do_not_go_by_a_language(store: Store) -> None:
    """A newer operating system may have another order, and the index would not find what is there.

    What an exchange or Kurisu itself made up is an id; names of accounts and strategies are few.
    """
    rows = await fetch(
        store,
        "SELECT c.relname::text, a.attname::text, l.collname::text "
        "FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid "
        "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey) "
        "JOIN pg_collation l ON l.oid = a.attcollation "
        "WHERE i.indisunique AND c.relnamespace = 'public'::regnamespace "
        "AND c.relname IN ('orders', 'executions', 'waiting_orders', 'ledger_entries') "
        "AND a.attname NOT IN ('kind', 'asset')",
    )
    found = {(table, column): collation for table, column, collation in rows}
    assert set(found.values()) == {"C"}
    assert found.keys() == {
        ("orders", "client_order_id"), ("orders", "exchange_order_id"),
        ("executions", "trade_id"), ("executions", "exchange_order_id"),
        ("waiting_orders", "client_order_id"), ("waiting_orders", "exchange_order_id"),
        ("ledger_entries", "reference"),
    }  # fmt: skip


async def test_every_key_has_the_name_that_the_model_gives_it(store: Store, tier: str) -> None:
    found = await constraint_names(store, "p")
    for table in Base.metadata.tables.values():
        if tier == "community" and table in ROLLUP_TABLES.values():
            continue
        assert found[table.name] == {str(table.primary_key.name)}


async def test_there_is_no_table_that_no_model_knows(store: Store) -> None:
    rows = await fetch(
        store,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace "
        "AND relkind IN ('r', 'v', 'm', 'p', 'f')",
    )
    assert {name for (name,) in rows} == {*Base.metadata.tables, "alembic_version"}


def test_every_file_has_its_date_and_revision_in_its_name() -> None:
    scripts = list(ScriptDirectory.from_config(alembic_config()).walk_revisions())
    assert len(scripts) == len(list(VERSIONS.glob("*.py")))
    for script in scripts:
        name = Path(script.path).name
        match = re.fullmatch(r"(\d{4})_(\d\d)_(\d\d)_(\d{4})_[a-z0-9_]+\.py", name)
        assert match is not None, name
        assert f"Create Date: {date(int(match[1]), int(match[2]), int(match[3]))}" in script.longdoc
        assert match[4] == script.revision


def test_the_revisions_are_one_line() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    revisions = [script.revision for script in scripts.walk_revisions("base", "heads")]
    assert revisions == [f"{number:04}" for number in range(len(revisions), 0, -1)]
