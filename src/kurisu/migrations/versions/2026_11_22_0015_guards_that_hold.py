"""The ledger's guards hold inside other triggers, beside tables of the same names, and for ids.

They looked at how deep in triggers a statement is: one inside a trigger of somebody else passed.
Their functions found tables by the session's search path: a temporary table `orders` stood in for
the real one, and so it was with candles. An order could get another id, away from its executions.
And what the ledger never writes, and cannot read, was accepted: a price of 0, a time of infinity,
an id without a character, a fill under an exchange's id that its order does not have.

Revision ID: 0015
Revises: 0014
Create Date: 2026-11-22
"""

from alembic import op

from kurisu.migrations.script import execute_script, replace_in, set_path

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# Python's and the exchanges' times: no infinity, and no year that has five digits.
_TIMES = "{0} >= '1970-01-01 00:00:00+00' AND {1} < '9999-12-31 00:00:00+00'"

# Table, constraint, the form until now (None: there was none), the new one.
CHECKS = (
    (
        "orders", "has_an_id", None,
        "coalesce(client_order_id, exchange_order_id, '') <> ''",
    ),
    (
        "orders", "finite", "greatest(cost, price, stop_price) < 'Infinity'",
        "least(price, stop_price) > '0' AND greatest(cost, price, stop_price) < 'Infinity'",
    ),
    (
        "orders", "times", None,
        _TIMES.format("least(created_at, updated_at)", "greatest(created_at, updated_at)"),
    ),
    (
        "executions", "waits_under_an_id",
        "order_id IS NOT NULL OR (account_id IS NOT NULL AND exchange_order_id IS NOT NULL)",
        "trade_id <> '' AND (order_id IS NOT NULL "
        "OR (account_id IS NOT NULL AND coalesce(exchange_order_id, '') <> ''))",
    ),
    (
        "executions", "amount", "amount > '0' AND amount < 'Infinity'",
        "least(amount, price) > '0' AND cost >= '0'",
    ),
    (
        "executions", "finite", "greatest(price, cost, fee) < 'Infinity'",
        "greatest(amount, price, cost, fee) < 'Infinity'",
    ),
    (
        "executions", "fee_has_currency", "fee IS NULL OR fee_currency IS NOT NULL",
        "fee IS NULL OR coalesce(fee_currency, '') <> ''",
    ),
    ("executions", "time", None, _TIMES.format("time", "time")),
    ("ledger_entries", "time", None, _TIMES.format("time", "time")),
    ("reported_balances", "time", None, _TIMES.format("time", "time")),
    ("sync_cursors", "until", None, _TIMES.format("until", "until")),
)  # fmt: skip

# What an execution has to have in common with its order.
_SAME_ID_BEFORE = "AND coalesce(o.exchange_order_id = c.exchange_order_id, TRUE)"
_SAME_ID = "AND (c.exchange_order_id IS NULL OR o.exchange_order_id = c.exchange_order_id)"

UPGRADE = """
CREATE FUNCTION kurisu_caller(context text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
-- Of PG_CONTEXT the function that called the one whose line is the first, as "PL/pgSQL function
-- kurisu_follow(bigint[], ...) line 9 at SQL statement" names it; one that is not found by its bare
-- name has its schema's name or quotes about it. The words around are in the server's language,
-- with no space in some.
SELECT substring(split_part(split_part(substr(context, strpos(context, E'\n')), 'PL/pgSQL', 2),
                            '(', 1) FROM '[."_abcdefghijklmnopqrstuvwxyz0123456789]*$')
$$;
CREATE FUNCTION kurisu_only_its_own() RETURNS trigger LANGUAGE plpgsql AS $$
-- Inside of triggers, orders and executions are changed by those of the ledger alone, which know
-- what they do: the guards of a row do not fire there. TG_ARGV: their names.
DECLARE
    context text;
BEGIN
    GET DIAGNOSTICS context = PG_CONTEXT;
    IF (kurisu_caller(context) = ANY (TG_ARGV)) IS NOT TRUE THEN
        RAISE EXCEPTION '% of % inside of a trigger is refused: it is a statement of its own, or '
            'follows from a row of executions or of corrections', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER kurisu_0_only_its_own BEFORE UPDATE ON orders
    FOR EACH STATEMENT WHEN (pg_trigger_depth() > 0) EXECUTE FUNCTION
    kurisu_only_its_own('kurisu_new_executions', 'kurisu_follow', 'kurisu_correct_order');
CREATE TRIGGER kurisu_0_only_its_own BEFORE UPDATE ON executions
    FOR EACH STATEMENT WHEN (pg_trigger_depth() > 0) EXECUTE FUNCTION
    kurisu_only_its_own('kurisu_correct_execution');

CREATE FUNCTION kurisu_keep_id() RETURNS trigger LANGUAGE plpgsql AS $$
-- Executions name their order and their account by ids, without a declared reference.
BEGIN
    RAISE EXCEPTION '%.id never changes', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER kurisu_keep_id BEFORE UPDATE OF id ON orders
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_keep_id();
CREATE TRIGGER kurisu_keep_id BEFORE UPDATE OF id ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_keep_id();
"""

DOWNGRADE = """
DROP TRIGGER kurisu_keep_id ON accounts;
DROP TRIGGER kurisu_keep_id ON orders;
DROP FUNCTION kurisu_keep_id();
DROP TRIGGER kurisu_0_only_its_own ON executions;
DROP TRIGGER kurisu_0_only_its_own ON orders;
DROP FUNCTION kurisu_only_its_own();
DROP FUNCTION kurisu_caller(text);
"""

# Every function of Kurisu's that looks at tables. What has a setting of its own is not inlined.
FUNCTIONS = """
SELECT p.oid::regprocedure::text
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = current_schema() AND p.proname LIKE 'kurisu\\_%'
   AND p.proname NOT IN ('kurisu_append_only', 'kurisu_are_fees', 'kurisu_caller',
                         'kurisu_guard_orders', 'kurisu_keep_id', 'kurisu_time_is_given')
 ORDER BY 1
"""


def _checks(form: int) -> None:
    """One ALTER for each table, so that it is read through once."""
    for table in dict.fromkeys(check[0] for check in CHECKS):
        mine = [check for check in CHECKS if check[0] == table]
        before = 5 - form
        actions = [
            f"DROP CONSTRAINT check_{table}_{check[1]}"
            for check in mine
            if check[before] is not None
        ]
        actions += [
            f"ADD CONSTRAINT check_{table}_{check[1]} CHECK ({check[form]})"
            for check in mine
            if check[form] is not None
        ]
        execute_script(f"ALTER TABLE {table} {', '.join(actions)};")


def _replace(before: str, after: str) -> None:
    """In the functions that orders follow executions by."""
    replace_in("kurisu_new_executions()", before, after)
    replace_in(
        "kurisu_follow(bigint[], integer[], integer[], text[], text[], numeric[], numeric[], "
        "timestamptz[])",
        before,
        after,
    )


def _functions() -> list[str]:
    return [row[0] for row in op.get_bind().exec_driver_sql(FUNCTIONS)]


def upgrade() -> None:
    # Reading tables through takes as long as it takes.
    execute_script("SET LOCAL statement_timeout = 0;")
    _checks(3)
    _replace(_SAME_ID_BEFORE, _SAME_ID)
    execute_script(UPGRADE)
    # Temporary tables come last: without that they are looked at first.
    set_path(_functions())


def downgrade() -> None:
    for function in _functions():
        execute_script(f"ALTER FUNCTION {function} RESET search_path;")
    execute_script(DOWNGRADE)
    _replace(_SAME_ID, _SAME_ID_BEFORE)
    _checks(2)
