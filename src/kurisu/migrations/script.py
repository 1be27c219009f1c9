"""Runs an SQL script statement by statement: asyncpg prepares each, so takes one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from alembic import op


def statements(script: str) -> Iterator[str]:
    """The statements of `script`; a semicolon ends one at a line's end and outside $$ .. $$."""
    lines: list[str] = []
    for line in script.strip().splitlines():
        lines.append(line)
        body = "\n".join(lines)
        if line.rstrip().endswith(";") and body.count("$$") % 2 == 0:
            yield body.strip().rstrip(";")
            lines = []
    if "\n".join(lines).strip():
        yield "\n".join(lines).strip()


def execute_script(script: str) -> None:
    """Execute every statement of `script` in the migration's transaction."""
    connection = op.get_bind()
    for statement in statements(script):
        connection.exec_driver_sql(statement)


def scalar(query: str) -> object:
    """The first column of the first row of `query`."""
    return op.get_bind().exec_driver_sql(query).scalar()


def replace_in(function: str, before: str, after: str) -> None:
    """Make a function anew with one part of its text exchanged; its settings stay.

    function: with the types of its arguments. Raises RuntimeError if the part is not there.
    """
    definition = str(scalar(f"SELECT pg_get_functiondef('{function}'::regprocedure)"))
    if before not in definition:
        raise RuntimeError(f"{function} is not as the migration before left it")
    op.get_bind().exec_driver_sql(definition.replace(before, after))


def set_path(functions: Iterable[str]) -> None:
    """Functions look at the schemas of now alone, whatever their caller's search path is.

    pg_catalog is first, so that operators are PostgreSQL's, and temporary tables come last.
    """
    path = scalar(
        "SELECT string_agg(quote_ident(s), ', ' ORDER BY at) || ', pg_temp' "
        "FROM unnest(current_schemas(FALSE)) WITH ORDINALITY AS c(s, at)"
    )
    for function in functions:
        execute_script(f"ALTER FUNCTION {function} SET search_path = {path};")


def has_timescaledb() -> bool:
    """True if the extension is in this database."""
    return scalar("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'") is not None


def make_hypertable(table: str) -> None:
    """Turn `table` into a hypertable on `time`, rows included; nothing without the extension.

    Chunks of 7 days. The time index is the migrations' own: TimescaleDB's default one is not in
    the models, so Alembic would drop it.
    """
    if has_timescaledb():
        # Moving rows of an existing table may take long, and that is expected here.
        execute_script("SET LOCAL statement_timeout = 0;")
        execute_script(
            f"SELECT create_hypertable('{table}', 'time', "
            "chunk_time_interval => INTERVAL '7 days', create_default_indexes => FALSE, "
            "if_not_exists => TRUE, migrate_data => TRUE);"
        )


def make_plain(table: str) -> None:
    """Turn a hypertable back into a table with the same rows, indexes and constraints."""
    if not has_timescaledb() or not scalar(
        "SELECT 1 FROM timescaledb_information.hypertables "
        f"WHERE hypertable_schema = current_schema() AND hypertable_name = '{table}'"
    ):
        return
    execute_script("SET LOCAL statement_timeout = 0;")
    execute_script(
        f"""
        CREATE TABLE {table}_plain (LIKE {table} INCLUDING ALL);
        INSERT INTO {table}_plain SELECT * FROM {table};
        """
    )
    # LIKE makes up names for indexes; they get the originals' back once those are free.
    named = (
        op.get_bind()
        .exec_driver_sql(
            "SELECT o.indexrelid::regclass::text, c.indexrelid::regclass::text "
            "FROM pg_index o JOIN pg_index c USING (indkey, indoption) "
            f"WHERE o.indrelid = '{table}'::regclass AND c.indrelid = '{table}_plain'::regclass"
        )
        .all()
    )
    execute_script(f"DROP TABLE {table};")
    for original, copied in named:
        execute_script(f"ALTER INDEX {copied} RENAME TO {original};")
    execute_script(f"ALTER TABLE {table}_plain RENAME TO {table};")
