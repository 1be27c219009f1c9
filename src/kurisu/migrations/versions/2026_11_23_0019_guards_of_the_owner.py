"""Nobody stands in for the ledger's own functions, and no correction is made without its row.

Inside of triggers the guard of orders and executions went by the name of the function that changes
them, as a text. Who gave that name to a function in a schema of their own passed, or wrote it in a
comment; and so did who called the ledger's functions from a trigger of their own, or made them
triggers of a table of their own. Now these run as their owner, on the ledger's tables alone, and
say in which depth of triggers they write, and the guard asks for both.

A correction was carried out before its row was stored; with ON CONFLICT DO NOTHING the row stayed
away. Now it follows from the row.

And what these functions compare goes by PostgreSQL's own operators, where somebody has made others
for VARCHAR in the schema of the tables, too.

Revision ID: 0019
Revises: 0018
Create Date: 2026-11-23
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

from alembic import op

from kurisu.migrations.script import execute_script, scalar, set_path

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

FOLLOW = (
    "kurisu_follow(bigint[], integer[], integer[], text[], text[], numeric[], numeric[], "
    "timestamptz[])"
)
# Those that change nothing: they name the schema of tables, and look for everything else among
# PostgreSQL's own.
READERS = (
    "kurisu_are_fees(jsonb)",
    "kurisu_complete_execution()",
    "kurisu_correct_execution()",
    "kurisu_correct_order()",
    "kurisu_guard_executions()",
    "kurisu_guard_orders()",
    "kurisu_hold_markets(integer[])",
    "kurisu_hold_owners(integer, integer)",
    "kurisu_keep_owners()",
    "kurisu_keep_terms()",
    "kurisu_new_orders()",
    "kurisu_only_its_own()",
    "kurisu_refuse_execution(bigint)",
    "kurisu_time_is_given()",
)
NAMED = re.compile(
    r"\b(FROM|JOIN|UPDATE|PERFORM|joined) (accounts|executions|markets|orders|kurisu_\w+)\b"
)

# Those that write orders and executions, as their owner. What they write may have triggers of
# somebody else's, which find tables as before; so these have the search path that they had, and
# leave nothing to be found in it that is not as exact there as among PostgreSQL's own.
WRITERS = (
    "kurisu_new_executions()",
    "kurisu_changed_executions()",
    "kurisu_follow_order_correction()",
    "kurisu_follow_execution_correction()",
)
BEGUN = "mark := pg_catalog.set_config('kurisu.writes_in', pg_trigger_depth()::text, TRUE);"
ENDED = "mark := pg_catalog.set_config('kurisu.writes_in', '', TRUE);"

# What is as exact there as among PostgreSQL's own, and was not.
EXACT = (
    ("o.side)", "o.side::text)"),
    ("c.side)", "c.side::text)"),
    ("o.status NOT IN", "o.status::text NOT IN"),
    (
        "o.exchange_order_id = c.exchange_order_id",
        "o.exchange_order_id::text = c.exchange_order_id::text",
    ),
    ("c.amount = 0 ", "c.amount = 0.0 "),
    ("array_agg(", "pg_catalog.array_agg("),
    ("cardinality(", "pg_catalog.cardinality("),
)

# Of an execution, what a correction may change.
SAID = """pg_catalog.jsonb_build_object(
               'time', e.time, 'cost', e.cost::text, 'fee', e.fee::text,
               'fee_currency', e.fee_currency, 'other_fees', e.other_fees,
               'taker_or_maker', e.taker_or_maker, 'facts', e.facts)"""


def _of_table(table: str) -> str:
    return f"""    IF TG_RELID <> '{table}'::regclass::oid THEN
        RAISE EXCEPTION 'a trigger of {table} alone' USING ERRCODE = 'restrict_violation';
    END IF;
"""


def _parts(dot: str) -> tuple[tuple[str, str, str], ...]:
    """Function, a part of it until now, the new one. dot: before a name of the schema's."""
    return (
        (
            "kurisu_only_its_own()",
            """ TG_ARGV: their names.
DECLARE
    context text;
BEGIN
""",
            """ They run as their owner, who is
-- this function's, and say in which depth of triggers they are: what they write is in the next.
BEGIN
""",
        ),
        (
            "kurisu_only_its_own()",
            """    GET DIAGNOSTICS context = PG_CONTEXT;
    -- The function that fills use, in most languages; at a fraction of what the rest takes.
    IF right(split_part(split_part(context, 'PL/pgSQL', 3), '(', 1), length(TG_ARGV[0]) + 1)
       = ' ' || TG_ARGV[0] THEN
        RETURN NULL;
    END IF;
    IF (kurisu_caller(context) = ANY (TG_ARGV)) IS NOT TRUE THEN
""",
            f"""    IF (current_setting('kurisu.writes_in', TRUE) = (pg_trigger_depth() - 1)::text
        AND current_user = (SELECT pg_get_userbyid(proowner) FROM pg_proc
                             WHERE oid = '{_quoted(dot)}kurisu_only_its_own()'::regprocedure)
       ) IS NOT TRUE THEN
""",
        ),
        (
            "kurisu_new_executions()",
            "    c record;\nBEGIN\n",
            "    c record;\n    mark text;\nBEGIN\n" + _of_table("executions"),
        ),
        (
            "kurisu_new_executions()",
            "        UPDATE orders o\n",
            f"        {BEGUN}\n        UPDATE orders o\n",
        ),
        (
            "kurisu_new_executions()",
            "        IF NOT FOUND THEN\n",
            f"        {ENDED}\n        IF NOT FOUND THEN\n",
        ),
        (
            "kurisu_new_executions()",
            "    PERFORM kurisu_follow(\n",
            f"    {BEGUN}\n    PERFORM kurisu_follow(\n",
        ),
        (
            "kurisu_new_executions()",
            "     HAVING count(*) > 0;\n",
            f"     HAVING count(*) > 0;\n    {ENDED}\n",
        ),
        (
            "kurisu_changed_executions()",
            "BEGIN\n",
            f"DECLARE\n    mark text;\nBEGIN\n{_of_table('executions')}    {BEGUN}\n",
        ),
        (
            "kurisu_changed_executions()",
            "     HAVING count(*) > 0;\n",
            f"     HAVING count(*) > 0;\n    {ENDED}\n",
        ),
        (
            "kurisu_correct_order()",
            """; what it was stays in the row.
BEGIN
    SELECT status INTO NEW.status_before FROM orders WHERE id = NEW.order_id FOR NO KEY UPDATE;
    UPDATE orders SET status = NEW.status WHERE id = NEW.order_id;
""",
            f"""; what it was stays in the row, from
-- which the order follows.
BEGIN
    SELECT status INTO NEW.status_before FROM {dot}orders
     WHERE id = NEW.order_id FOR NO KEY UPDATE;
""",
        ),
        (
            "kurisu_correct_execution()",
            """; what it was stays in the row.
""",
            """; what it was stays in the row,
-- from which the execution follows.
""",
        ),
        (
            "kurisu_correct_execution()",
            """ e WHERE e.id = NEW.execution_id;
    UPDATE executions
       SET time = NEW.time, cost = NEW.cost, fee = NEW.fee, fee_currency = NEW.fee_currency,
           other_fees = NEW.other_fees, taker_or_maker = NEW.taker_or_maker, facts = NEW.facts
     WHERE id = NEW.execution_id;
""",
            """ e WHERE e.id = NEW.execution_id;
""",
        ),
    )  # fmt: skip


UPGRADE = f"""
CREATE FUNCTION kurisu_follow_order_correction() RETURNS trigger LANGUAGE plpgsql AS $$
-- The only way out of a terminal status.
DECLARE
    mark text;
BEGIN
{_of_table("order_corrections")}    {BEGUN}
    UPDATE orders SET status = NEW.status
     WHERE id = NEW.order_id AND status::text = NEW.status_before::text;
    {ENDED}
    IF NOT FOUND THEN
        RAISE EXCEPTION 'order % is not what its correction says that it was: one correction of '
            'it in a statement', NEW.order_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER kurisu_follow_correction AFTER INSERT ON order_corrections
    FOR EACH ROW EXECUTE FUNCTION kurisu_follow_order_correction();

CREATE FUNCTION kurisu_follow_execution_correction() RETURNS trigger LANGUAGE plpgsql AS $$
-- What a later report says about an execution, beside what moved.
DECLARE
    mark text;
BEGIN
{_of_table("execution_corrections")}    {BEGUN}
    UPDATE executions e
       SET time = NEW.time, cost = NEW.cost, fee = NEW.fee, fee_currency = NEW.fee_currency,
           other_fees = NEW.other_fees, taker_or_maker = NEW.taker_or_maker, facts = NEW.facts
     WHERE id = NEW.execution_id AND NEW.before = {SAID};
    {ENDED}
    IF NOT FOUND THEN
        RAISE EXCEPTION 'execution % is not what its correction says that it was: one correction '
            'of it in a statement', NEW.execution_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER kurisu_follow_correction AFTER INSERT ON execution_corrections
    FOR EACH ROW EXECUTE FUNCTION kurisu_follow_execution_correction();

DROP TRIGGER kurisu_0_only_its_own ON orders;
DROP TRIGGER kurisu_0_only_its_own ON executions;
DROP FUNCTION kurisu_caller(text);
CREATE TRIGGER kurisu_0_only_its_own BEFORE UPDATE ON orders
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_only_its_own();
CREATE TRIGGER kurisu_0_only_its_own BEFORE UPDATE ON executions
    FOR EACH STATEMENT WHEN (pg_trigger_depth() > 0) EXECUTE FUNCTION kurisu_only_its_own();
"""


DOWNGRADE = """
DROP TRIGGER kurisu_follow_correction ON execution_corrections;
DROP FUNCTION kurisu_follow_execution_correction();
DROP TRIGGER kurisu_follow_correction ON order_corrections;
DROP FUNCTION kurisu_follow_order_correction();

CREATE FUNCTION kurisu_caller(context text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
-- Of PG_CONTEXT the function that called the one whose line is the first, as "PL/pgSQL function
-- kurisu_follow(bigint[], ...) line 9 at SQL statement" names it; one that is not found by its bare
-- name has its schema's name or quotes about it. The words around are in the server's language,
-- with no space in some.
SELECT substring(split_part(split_part(substr(context, strpos(context, E'\n')), 'PL/pgSQL', 2),
                            '(', 1) FROM '[."_abcdefghijklmnopqrstuvwxyz0123456789]*$')
$$;
DROP TRIGGER kurisu_0_only_its_own ON orders;
DROP TRIGGER kurisu_0_only_its_own ON executions;
CREATE TRIGGER kurisu_0_only_its_own BEFORE UPDATE ON orders
    FOR EACH STATEMENT EXECUTE FUNCTION
    kurisu_only_its_own('kurisu_new_executions', 'kurisu_follow', 'kurisu_correct_order');
CREATE TRIGGER kurisu_0_only_its_own BEFORE UPDATE ON executions
    FOR EACH STATEMENT WHEN (pg_trigger_depth() > 0) EXECUTE FUNCTION
    kurisu_only_its_own('kurisu_correct_execution');
"""


def _rewrite(function: str, *changes: Callable[[str], str]) -> None:
    """Change the text of a function, and nothing of its name and settings."""
    definition = str(scalar(f"SELECT pg_get_functiondef('{function}'::regprocedure)"))
    head, mark, text = definition.partition("AS $function$")
    for change in changes:
        text = change(text)
    op.get_bind().exec_driver_sql(head + mark + text)


def _exchange(parts: Sequence[tuple[str, str]], text: str) -> str:
    for before, after in parts:
        if before not in text:
            raise RuntimeError(f"a function is not as the migration before left it: no {before!r}")
        text = text.replace(before, after)
    return text


def _new(function: str, dot: str) -> Callable[[str], str]:
    return partial(_exchange, [part[1:] for part in _parts(dot) if part[0] == function])


def _old(function: str) -> Callable[[str], str]:
    parts = [(after, before) for of, before, after in _parts("") if of == function]
    return partial(_exchange, parts[::-1])


def _named(dot: str, text: str) -> str:
    return NAMED.sub(lambda found: f"{found[1]} {dot}{found[2]}", text)


def _unnamed(dot: str, text: str) -> str:
    return text.replace(f" {dot}", " ").replace(f"'{_quoted(dot)}", "'")


def _quoted(name: str) -> str:
    """Within a text of SQL."""
    return name.replace("'", "''")


def _exact(text: str) -> str:
    for loose, exact in EXACT:
        text = text.replace(loose, exact)
    return text


def _loose(text: str) -> str:
    for loose, exact in EXACT:
        text = text.replace(exact, loose)
    return text


def _dot() -> str:
    """The schema of now, as it stands before a name."""
    return str(scalar("SELECT quote_ident(current_schema()) || '.'"))


def upgrade() -> None:
    dot = _dot()
    for function in READERS:
        _rewrite(function, _new(function, dot), partial(_named, dot))
        execute_script(f"ALTER FUNCTION {function} SET search_path = pg_catalog, pg_temp;")
    for function in (*WRITERS[:2], FOLLOW):
        _rewrite(function, _new(function, dot), _exact)
    execute_script(UPGRADE)
    set_path(WRITERS)
    for function in WRITERS:
        execute_script(f"ALTER FUNCTION {function} SECURITY DEFINER;")
        execute_script(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC;")
    # One owner: the tables'.
    owner = scalar(
        "SELECT quote_ident(pg_get_userbyid(relowner)) FROM pg_class WHERE oid = 'orders'::regclass"
    )
    for function in (*WRITERS, "kurisu_only_its_own()"):
        execute_script(f"ALTER FUNCTION {function} OWNER TO {owner};")


def downgrade() -> None:
    dot = _dot()
    execute_script(DOWNGRADE)
    for function in WRITERS[:2]:
        execute_script(f"GRANT EXECUTE ON FUNCTION {function} TO PUBLIC;")
        execute_script(f"ALTER FUNCTION {function} SECURITY INVOKER;")
    for function in (*WRITERS[:2], FOLLOW):
        _rewrite(function, _loose, _old(function))
    set_path(READERS)
    for function in READERS:
        _rewrite(function, partial(_unnamed, dot), _old(function))
