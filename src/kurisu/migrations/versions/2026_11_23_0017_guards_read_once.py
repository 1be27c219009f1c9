"""What guards a fill costs less once more, and goes by PostgreSQL's own operators.

PostgreSQL reads the text of every CHECK of a table and of every WHEN of a trigger again for each
statement, and a fill is two statements; a function is read once in a session. So the CHECKs of
orders and of executions are in one function for each table, which raises what the CHECK of the
broken rule did, under its name; two WHENs are shorter or gone. Who changes an order is mostly found
without a regular expression.

A function goes by the operators that its caller's search path finds: one called `=` in somebody's
own schema made guards blind. Those of a row have a search path of their own now, and the rules name
the schema of their operators, which costs nothing.

Revision ID: 0017
Revises: 0016
Create Date: 2026-11-23
"""

import re

from kurisu.migrations.script import execute_script, replace_in, set_path

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_TIMES = "{0} >= '1970-01-01 00:00:00+00' AND {1} < '9999-12-31 00:00:00+00'"

# Table, function, its arguments, and the expressions by rule.
TABLES = (
    (
        "orders",
        "kurisu_is_order",
        {
            "side": "varchar", "type": "varchar", "status": "varchar", "amount": "numeric",
            "filled": "numeric", "remaining": "numeric", "cost": "numeric", "price": "numeric",
            "stop_price": "numeric", "client_order_id": "varchar", "exchange_order_id": "varchar",
            "created_at": "timestamptz", "updated_at": "timestamptz",
        },
        {
            "side": "side = ANY ('{buy,sell}')",
            "type": "type = ANY ('{limit,market,stop_loss,take_profit}')",
            "status": "status = ANY ('{pending,open,closed,canceled,failed}')",
            "amount": "amount > '0' AND amount < 'Infinity'",
            "filled": "filled >= '0' AND filled <= amount",
            "remaining": "remaining = (amount - filled)",
            "finite": "least(price, stop_price) > '0' "
            "AND greatest(cost, price, stop_price) < 'Infinity'",
            "has_an_id": "coalesce(client_order_id, exchange_order_id, '') <> ''",
            "times": _TIMES.format(
                "least(created_at, updated_at)", "greatest(created_at, updated_at)"
            ),
            "limit_has_price": "type <> 'limit' OR price IS NOT NULL",
            "stop_has_stop_price": "type <> ALL ('{stop_loss,take_profit}') "
            "OR stop_price IS NOT NULL",
        },
    ),
    (
        "executions",
        "kurisu_is_execution",
        {
            "side": "varchar", "trade_id": "varchar", "order_id": "bigint", "account_id": "integer",
            "exchange_order_id": "varchar", "price": "numeric", "amount": "numeric",
            "cost": "numeric", "fee": "numeric", "fee_currency": "varchar",
            "taker_or_maker": "varchar", "time": "timestamptz",
        },
        {
            "side": "side = ANY ('{buy,sell}')",
            "waits_under_an_id": "trade_id <> '' AND (order_id IS NOT NULL "
            "OR (account_id IS NOT NULL AND coalesce(exchange_order_id, '') <> ''))",
            "taker_or_maker": "taker_or_maker = ANY ('{taker,maker}')",
            "amount": "least(amount, price) > '0' AND cost >= '0'",
            "finite": "greatest(amount, price, cost, fee) < 'Infinity'",
            "fee_has_currency": "fee IS NULL OR coalesce(fee_currency, '') <> ''",
            "time": _TIMES.format("time", "time"),
        },
    ),
)  # fmt: skip

FUNCTION = """
CREATE FUNCTION {function}({arguments}) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
-- The rules of a row of {table}, each with its name. As a CHECK, one that is null is kept.
DECLARE
    broken text := CASE
{rules}
    END;
BEGIN
    IF broken IS NOT NULL THEN
        broken := 'check_{table}_' || broken;
        RAISE EXCEPTION 'new row for relation "{table}" violates check constraint "%"', broken
            USING ERRCODE = 'check_violation', TABLE = '{table}', CONSTRAINT = broken;
    END IF;
    RETURN TRUE;
END $$;
"""

# Those of no table, which had no search path of their own.
BLIND = ("kurisu_are_fees(jsonb)", "kurisu_guard_orders()", "kurisu_time_is_given()")

# Function, a part of it until now, the new one.
FUNCTIONS = (
    (
        "kurisu_only_its_own()",
        """BEGIN
    GET DIAGNOSTICS context = PG_CONTEXT;
""",
        """BEGIN
    IF pg_trigger_depth() = 1 THEN
        RETURN NULL;  -- A statement of its own.
    END IF;
    GET DIAGNOSTICS context = PG_CONTEXT;
    -- The function that fills use, in most languages; at a fraction of what the rest takes.
    IF right(split_part(split_part(context, 'PL/pgSQL', 3), '(', 1), length(TG_ARGV[0]) + 1)
       = ' ' || TG_ARGV[0] THEN
        RETURN NULL;
    END IF;
""",
    ),
    (
        "kurisu_new_executions()",
        """    c record;
    seen integer := 0;
BEGIN
    -- One statement finds out whether it is one row, and which.
    FOR c IN SELECT order_id, market_id, account_id, exchange_order_id, side, amount, cost, time
               FROM changed LIMIT 2 LOOP
        seen := seen + 1;
    END LOOP;
    IF seen = 1 THEN
""",
        """    c record;
BEGIN
    -- One statement finds out whether it is one row, and which.
    SELECT order_id, market_id, account_id, exchange_order_id, side, amount, cost, time,
           (SELECT TRUE FROM changed OFFSET 1 LIMIT 1) AS has_more
      INTO c FROM changed LIMIT 1;
    IF c.market_id IS NOT NULL AND c.has_more IS NULL THEN
""",
    ),
    (
        "kurisu_complete_execution()",
        """BEGIN
    SELECT coalesce""",
        """BEGIN
    IF NEW.order_id IS NULL THEN
        RETURN NEW;
    END IF;
    SELECT coalesce""",
    ),
)

# Table, trigger, when it fires, its condition until now, the new one, and what it calls.
TRIGGERS = (
    (
        "orders", "kurisu_0_only_its_own", "BEFORE UPDATE ON orders FOR EACH STATEMENT",
        "WHEN (pg_trigger_depth() > 0)", "",
        "kurisu_only_its_own('kurisu_new_executions', 'kurisu_follow', 'kurisu_correct_order')",
    ),
    (
        "executions", "kurisu_complete_execution", "BEFORE INSERT ON executions FOR EACH ROW",
        "WHEN (NEW.order_id IS NOT NULL AND (NEW.market_id IS NULL OR NEW.side IS NULL))",
        "WHEN (NEW.market_id IS NULL OR NEW.side IS NULL)",
        "kurisu_complete_execution()",
    ),
)  # fmt: skip


_OPERATOR = re.compile(" (=|<>|<=|>=|<|>|-) ")


def _bound(rule: str) -> str:
    """With the schema of its operators, all of which bind equally then."""
    return _OPERATOR.sub(r" OPERATOR(pg_catalog.\1) ", rule)


def _guards(form: int) -> None:
    """form: 1 as until now, 2 the new one."""
    for function in FUNCTIONS:
        replace_in(function[0], function[3 - form], function[form])
    for table, name, event, *conditions, call in TRIGGERS:
        execute_script(
            f"""
            DROP TRIGGER {name} ON {table};
            CREATE TRIGGER {name} {event} {conditions[form - 1]} EXECUTE FUNCTION {call};
            """
        )


def upgrade() -> None:
    # To read tables through takes as long as it takes.
    execute_script("SET LOCAL statement_timeout = 0;")
    for table, function, arguments, rules in TABLES:
        execute_script(
            FUNCTION.format(
                table=table,
                function=function,
                arguments=", ".join(f'"{name}" {kind}' for name, kind in arguments.items()),
                rules="\n".join(
                    f"        WHEN NOT ({_bound(rule)}) THEN '{name}'"
                    for name, rule in rules.items()
                ),
            )
        )
        actions = [f"DROP CONSTRAINT check_{table}_{name}" for name in rules]
        actions.append(
            f"ADD CONSTRAINT check_{table}_rules CHECK ({function}({', '.join(arguments)}))"
        )
        execute_script(f"ALTER TABLE {table} {', '.join(actions)};")
    _guards(2)
    set_path(BLIND)


def downgrade() -> None:
    for function in BLIND:
        execute_script(f"ALTER FUNCTION {function} RESET search_path;")
    _guards(1)
    execute_script("SET LOCAL statement_timeout = 0;")
    for table, function, arguments, rules in TABLES:
        actions = [f"DROP CONSTRAINT check_{table}_rules"]
        actions += [
            f"ADD CONSTRAINT check_{table}_{name} CHECK ({rule})" for name, rule in rules.items()
        ]
        execute_script(f"ALTER TABLE {table} {', '.join(actions)};")
        execute_script(f"DROP FUNCTION {function}({', '.join(arguments.values())});")
