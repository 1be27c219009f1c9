"""What somebody with psql cannot do to the ledger, statement by statement."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any, Final

import asyncpg
import pytest
from engines import REAL_TIERS
from rows import Connection, session

pytestmark = pytest.mark.parametrize("shared_tier", REAL_TIERS, indirect=True)

BEGUN: Final = """
INSERT INTO markets (exchange, symbol, base_asset, quote_asset)
VALUES ('binance', 'BTC/USDT', 'BTC', 'USDT'), ('binance', 'ETH/USDT', 'ETH', 'USDT');
INSERT INTO accounts (exchange, name) VALUES ('binance', 'main'), ('binance', 'other');
INSERT INTO orders (client_order_id, exchange_order_id, market_id, account_id, side, type, price,
                    amount, remaining, status, created_at, updated_at)
SELECT c, upper(c), (SELECT min(id) FROM markets), (SELECT min(id) FROM accounts), 'buy', 'limit',
       100, 5, 5, 'open', '2026-01-01', '2026-01-01' FROM unnest(ARRAY['a', 'b']) AS c;
INSERT INTO executions (order_id, trade_id, price, amount, cost, fee, fee_currency, time)
SELECT id, '1', 100, 2, 200, 0.2, 'USDT', '2026-01-02' FROM orders WHERE client_order_id = 'a';
"""

FILL: Final = """
INSERT INTO executions (order_id, trade_id, price, amount, cost, time)
SELECT id, $1, 100, $2, $3, '2026-01-03' FROM orders WHERE client_order_id = 'a'
"""


def fill(amount: int) -> str:
    """`FILL` without parameters, under trade id 2."""
    return FILL.replace("$1", "'2'").replace("$2", str(amount)).replace("$3", "100")


@pytest.fixture
async def psql(shared_url: str) -> AsyncIterator[Connection]:
    """Somebody with psql, in a transaction that is taken back; order a is filled with 2 of 5."""
    async with session(shared_url) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(BEGUN)
        yield connection
        await transaction.rollback()


async def order(psql: Connection, name: str = "a") -> Any:
    return await psql.fetchrow("SELECT * FROM orders WHERE client_order_id = $1", name)


async def refused(psql: Connection, statement: str, match: str, *arguments: Any) -> None:
    """The statement fails, with those words, and the ledger is as it was."""
    before = [await psql.fetch(f"SELECT * FROM {t} ORDER BY id") for t in ("orders", "executions")]
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match=match):
        async with psql.transaction():
            await psql.execute(statement, *arguments)
    after = [await psql.fetch(f"SELECT * FROM {t} ORDER BY id") for t in ("orders", "executions")]
    assert after == before


class TestOrdersFollowTheirExecutions:
    async def test_an_execution_moves_its_order(self, psql: Connection) -> None:
        row = await order(psql)
        assert (row["filled"], row["remaining"], row["cost"]) == (2, 3, 200)
        assert row["status"] == "open"
        await psql.execute(FILL, "2", Decimal(3), Decimal("300.1"))
        row = await order(psql)
        assert (row["filled"], row["remaining"], row["cost"]) == (5, 0, Decimal("500.1"))
        assert row["status"] == "closed"
        assert f"{row['updated_at']:%Y-%m-%d}" == "2026-01-03"

    async def test_many_executions_of_many_orders_in_one_statement(self, psql: Connection) -> None:
        await psql.execute(
            "INSERT INTO executions (order_id, trade_id, price, amount, cost, time) "
            "SELECT o.id, 'n' || n, 100, 0.1, 10, now() "
            "FROM orders o CROSS JOIN generate_series(1, 30) AS n"
        )
        assert (await order(psql, "a"))["filled"] == 5
        row = await order(psql, "b")
        assert (row["filled"], row["cost"], row["status"]) == (3, 300, "open")

    async def test_what_an_execution_leaves_out_is_its_order_s(self, psql: Connection) -> None:
        row = await psql.fetchrow("SELECT * FROM executions")
        of = await order(psql)
        for name in ("account_id", "market_id", "exchange_order_id", "side"):
            assert row[name] == of[name]

    @pytest.mark.parametrize(
        "changed",
        [
            "filled = 3, remaining = 2", "cost = 201", "filled = 0, remaining = 5, cost = 0",
            "filled = 2.000000000000000001, remaining = 2.999999999999999999",
        ],
    )  # fmt: skip
    async def test_filled_and_cost_are_not_set(self, psql: Connection, changed: str) -> None:
        await refused(psql, f"UPDATE orders SET {changed}", "follows_executions")

    async def test_remaining_is_amount_less_filled(self, psql: Connection) -> None:
        await refused(psql, "UPDATE orders SET remaining = 2", "check_orders_remaining")
        await refused(psql, "UPDATE orders SET amount = 6", "check_orders_remaining")
        await psql.execute("UPDATE orders SET amount = 6, remaining = 6 - filled")

    async def test_an_order_is_never_smaller_than_what_was_filled(self, psql: Connection) -> None:
        await refused(
            psql, "UPDATE orders SET amount = 1, remaining = 1 - filled", "check_orders_filled"
        )

    async def test_an_order_begins_without_fills(self, psql: Connection) -> None:
        await refused(
            psql,
            "INSERT INTO orders (client_order_id, market_id, side, type, amount, filled, remaining,"
            " cost, status) SELECT 'c', market_id, 'buy', 'market', 5, 2, 3, 200, 'open' "
            "FROM orders LIMIT 1",
            "begins with fills",
        )

    async def test_too_much_is_refused(self, psql: Connection) -> None:
        await refused(psql, FILL, "check_orders_filled", "2", Decimal("3.01"), Decimal(301))

    @pytest.mark.parametrize(
        ("columns", "values", "match"),
        [
            ("market_id, side", "(SELECT max(id) FROM markets), 'buy'", "is not of its account"),
            ("market_id, side", "market_id, 'sell'", "is not of its account"),
            ("market_id, side, account_id", "market_id, side, (SELECT max(id) FROM accounts)",
             "is not of its account"),
            ("market_id, side, account_id, exchange_order_id",
             "market_id, side, account_id, 'another'", "is not of its account"),
        ],
    )  # fmt: skip
    async def test_an_execution_is_of_its_order(
        self, psql: Connection, columns: str, values: str, match: str
    ) -> None:
        await refused(
            psql,
            f"INSERT INTO executions (order_id, trade_id, price, amount, cost, time, {columns}) "
            f"SELECT id, '9', 100, 1, 100, now(), {values} FROM orders LIMIT 1",
            match,
        )

    @pytest.mark.parametrize("columns", ["", ", market_id, side"])
    async def test_an_execution_has_an_order(self, psql: Connection, columns: str) -> None:
        values = ", (SELECT min(id) FROM markets), 'buy'" if columns else ""
        await refused(
            psql,
            f"INSERT INTO executions (order_id, trade_id, price, amount, cost, time{columns}) "
            f"VALUES (-1, '9', 100, 1, 100, now(){values})",
            "order -1",
        )


class TestTerminalStatesAreFinal:
    @pytest.mark.parametrize("end", ["closed", "canceled", "failed"])
    @pytest.mark.parametrize("after", ["pending", "open", "closed", "canceled", "failed"])
    async def test_an_end_stays(self, psql: Connection, end: str, after: str) -> None:
        await psql.execute("UPDATE orders SET status = $1", end)
        statement = "UPDATE orders SET status = $1"
        if after == end:
            await psql.execute(statement, after)
        else:
            await refused(psql, statement, "terminal_is_final", after)

    async def test_an_open_order_is_not_pending_again(self, psql: Connection) -> None:
        await refused(psql, "UPDATE orders SET status = 'pending'", "status_moves_forward")

    async def test_a_late_fill_counts_and_the_end_stays(self, psql: Connection) -> None:
        await psql.execute("UPDATE orders SET status = 'canceled'")
        await psql.execute(FILL, "2", Decimal(3), Decimal(300))
        row = await order(psql)
        assert (row["status"], row["filled"]) == ("canceled", 5)

    async def test_a_correction_is_a_row_of_its_own(self, psql: Connection) -> None:
        await psql.execute("UPDATE orders SET status = 'canceled'")
        await psql.execute(
            "INSERT INTO order_corrections (order_id, status, reason) "
            "SELECT id, 'closed', 'it was filled before' FROM orders WHERE client_order_id = 'a'"
        )
        assert (await order(psql))["status"] == "closed"
        row = await psql.fetchrow("SELECT * FROM order_corrections")
        assert (row["status_before"], row["status"]) == ("canceled", "closed")
        await refused(psql, "DELETE FROM order_corrections", "never changed")
        await refused(psql, "UPDATE order_corrections SET reason = ''", "never changed")

    async def test_no_correction_without_its_row(self, psql: Connection) -> None:
        await psql.execute("UPDATE orders SET status = 'canceled'")
        correct = (
            "INSERT INTO order_corrections (id, order_id, status, reason) OVERRIDING SYSTEM VALUE "
            "SELECT 1, id, $1, 'x' FROM orders WHERE client_order_id = $2 ON CONFLICT DO NOTHING"
        )
        assert await psql.execute(correct, "closed", "a") == "INSERT 0 1"
        assert await psql.execute(correct, "open", "b") == "INSERT 0 0"
        assert (await order(psql, "a"))["status"] == "closed"
        assert (await order(psql, "b"))["status"] == "canceled"

    async def test_every_correction_says_what_was_before(self, psql: Connection) -> None:
        await refused(
            psql,
            "INSERT INTO order_corrections (order_id, status, reason) SELECT id, s, 'x' "
            "FROM orders, unnest(ARRAY['closed', 'canceled']) AS s WHERE client_order_id = 'a'",
            "is not what its correction says",
        )
        for status in ("closed", "canceled"):
            await psql.execute(
                "INSERT INTO order_corrections (order_id, status, reason) SELECT id, $1, 'x' "
                "FROM orders",
                status,
            )
        rows = await psql.fetch(
            "SELECT DISTINCT status_before, status FROM order_corrections ORDER BY 1"
        )
        assert [tuple(row) for row in rows] == [("closed", "canceled"), ("open", "closed")]
        assert (await order(psql))["status"] == "canceled"

    async def test_a_correction_needs_its_order(self, psql: Connection) -> None:
        await refused(
            psql,
            "INSERT INTO order_corrections (order_id, status, reason) VALUES (-1, 'open', 'x')",
            "fk_order_corrections_order_id",
        )


class TestIdentityStays:
    @pytest.mark.parametrize(
        "changed",
        [
            "side = 'sell'", "type = 'market'", "created_at = now()", "client_order_id = 'z'",
            "client_order_id = NULL", "exchange_order_id = 'z'", "exchange_order_id = NULL",
            "market_id = (SELECT max(id) FROM markets)", "account_id = NULL",
            "account_id = (SELECT max(id) FROM accounts)",
        ],
    )  # fmt: skip
    async def test_of_an_order(self, psql: Connection, changed: str) -> None:
        await refused(psql, f"UPDATE orders SET {changed} WHERE client_order_id = 'a'", "identity")

    async def test_an_exchange_s_id_names_one_order_of_a_market(self, psql: Connection) -> None:
        await refused(
            psql,
            "INSERT INTO orders (client_order_id, exchange_order_id, market_id, account_id, side, "
            "type, amount, remaining, status) SELECT 'c', 'A', market_id, account_id, 'buy', "
            "'market', 1, 1, 'open' FROM orders LIMIT 1",
            "unique_orders_exchange_order_id",
        )

    @pytest.mark.parametrize("table", ["orders", "executions"])
    async def test_nothing_is_deleted(self, psql: Connection, table: str) -> None:
        await refused(psql, f"DELETE FROM {table}", "DELETE of .* is refused")
        await refused(psql, f"DELETE FROM {table} WHERE FALSE", "is refused")
        await refused(psql, f"TRUNCATE {table} CASCADE", "TRUNCATE of .* is refused")


class TestUpdatedAt:
    async def test_it_moves_by_itself(self, psql: Connection) -> None:
        await psql.execute("UPDATE orders SET price = 101")
        assert await psql.fetchval("SELECT bool_and(updated_at = now()) FROM orders")

    async def test_whoever_names_it_means_it(self, psql: Connection) -> None:
        before = (await order(psql))["updated_at"]
        await psql.execute("UPDATE orders SET price = 101, updated_at = updated_at")
        assert (await order(psql))["updated_at"] == before


class TestExecutionsAreAppended:
    @pytest.mark.parametrize(
        "changed",
        [
            "price = 101", "amount = 1", "cost = 1", "fee = 0.3", "fee_currency = 'BNB'",
            "time = now()", "taker_or_maker = 'maker'", "trade_id = '2'", "side = 'sell'",
            "order_id = NULL", "order_id = (SELECT max(id) FROM orders)", "facts = '{}'",
            "other_fees = '{\"BNB\": \"1\"}'", "exchange_order_id = 'B'", "price = price",
        ],
    )  # fmt: skip
    async def test_nothing_is_changed(self, psql: Connection, changed: str) -> None:
        await refused(psql, f"UPDATE executions SET {changed}", "UPDATE of execution .* is refused")

    async def test_the_same_one_twice_is_refused(self, psql: Connection) -> None:
        await refused(psql, FILL, "unique_executions_order_trade_id", "1", Decimal(1), Decimal(1))

    async def test_nor_does_it_wait_beside_the_one_that_counts(self, psql: Connection) -> None:
        await refused(psql, WAITING, "unique_executions_trade_id", "A", "1")

    async def test_one_that_waits_joins_its_order_and_nothing_else(self, psql: Connection) -> None:
        await psql.execute(WAITING, "A", "2")
        assert (await order(psql))["filled"] == 2
        await refused(psql, "UPDATE executions SET cost = 1 WHERE order_id IS NULL", "is refused")
        join = (
            "UPDATE executions e SET order_id = o.id FROM orders o "
            "WHERE e.order_id IS NULL AND o.client_order_id = $1"
        )
        await refused(psql, join, "is not of its account", "b")
        await psql.execute(join, "a")
        row = await order(psql)
        assert (row["filled"], row["cost"]) == (3, 300)
        await refused(
            psql, "UPDATE executions SET order_id = NULL WHERE trade_id = '2'", "is refused"
        )

    async def test_what_waits_has_an_account_and_a_market(self, psql: Connection) -> None:
        statement = (
            "INSERT INTO executions (account_id, market_id, exchange_order_id, side, trade_id, "
            "price, amount, cost, time) SELECT {}, {}, 'X', 'buy', '2', 100, 1, 100, now()"
        )
        market, account = "(SELECT min(id) FROM markets)", "(SELECT max(id) FROM accounts)"
        await refused(psql, statement.format("NULL", market), "waits_under_an_id")
        await refused(psql, statement.format("-1", market), "account -1")
        await refused(psql, statement.format(account, "-1"), "market -1")
        await psql.execute(statement.format(account, market))
        await refused(
            psql, f"DELETE FROM accounts WHERE id = {account}", "executions wait under a row"
        )

    async def test_a_correction_is_a_row_of_its_own(self, psql: Connection) -> None:
        await psql.execute(
            "INSERT INTO execution_corrections (execution_id, time, cost, fee, fee_currency, "
            "reason) SELECT id, time, 199.5, 0.1, 'BNB', 'the exchange says so' FROM executions"
        )
        assert (await order(psql))["cost"] == Decimal("199.5")
        row = await psql.fetchrow("SELECT before::text, cost FROM execution_corrections")
        assert '"fee": "0.200000000000000000"' in row["before"]
        assert await psql.fetchval("SELECT fee FROM executions") == Decimal("0.1")
        await refused(psql, "UPDATE execution_corrections SET cost = 1", "never changed")
        await refused(psql, "TRUNCATE execution_corrections", "never changed")

    async def test_no_correction_without_its_row(self, psql: Connection) -> None:
        correct = (
            "INSERT INTO execution_corrections (id, execution_id, time, cost, reason) "
            "OVERRIDING SYSTEM VALUE SELECT 1, id, time, $1, 'x' FROM executions "
            "ON CONFLICT DO NOTHING"
        )
        assert await psql.execute(correct, Decimal(199)) == "INSERT 0 1"
        assert await psql.execute(correct, Decimal(3)) == "INSERT 0 0"
        assert await psql.fetchval("SELECT cost FROM executions") == 199
        assert (await order(psql))["cost"] == 199

    async def test_every_correction_says_what_was_before(self, psql: Connection) -> None:
        await refused(
            psql,
            "INSERT INTO execution_corrections (execution_id, time, cost, reason) "
            "SELECT id, time, c, 'x' FROM executions, unnest(ARRAY[199, 198]) AS c",
            "is not what its correction says",
        )
        await refused(
            psql,
            "INSERT INTO execution_corrections (execution_id, time, cost, reason) "
            "SELECT -1, time, 1, 'x' FROM executions",
            "fk_execution_corrections_execution_id",
        )

    @pytest.mark.parametrize(
        "fees",
        ['[]', '{"BNB": 1}', '{"BNB": "1e3"}', '{"BNB": "1.0000000000000000001"}',
         '{"BNB": ""}', '{"a name longer than it may be": "1"}'],
    )  # fmt: skip
    async def test_further_fees_are_exact_numbers_by_asset(
        self, psql: Connection, fees: str
    ) -> None:
        statement = (
            "INSERT INTO executions (order_id, trade_id, price, amount, cost, fee, fee_currency, "
            "other_fees, time) SELECT id, '2', 1, 1, 1, 1, 'USDT', $1::jsonb, now() "
            "FROM orders LIMIT 1"
        )
        await refused(psql, statement, "check_executions_other_fees", fees)
        await psql.execute(statement, '{"BNB": "-0.000000000000000001", "ETH": "12"}')


class TestEntries:
    ENTRY = (
        "INSERT INTO ledger_entries (account_id, time, kind, asset, amount, reference) "
        "SELECT min(id), now(), $1, 'USDT', $2, $3 FROM accounts"
    )

    async def test_they_are_appended(self, psql: Connection) -> None:
        await psql.execute(self.ENTRY, "deposit", Decimal(100), "d1")
        await refused(psql, "UPDATE ledger_entries SET amount = 1", "never changed")
        await refused(psql, "DELETE FROM ledger_entries", "never changed")

    async def test_a_reference_is_stored_once(self, psql: Connection) -> None:
        await psql.execute(self.ENTRY, "deposit", Decimal(100), "d1")
        await psql.execute(self.ENTRY, "withdrawal", Decimal(-100), "d1")
        await psql.execute(self.ENTRY, "deposit", Decimal(100), None)
        await psql.execute(self.ENTRY, "deposit", Decimal(100), None)
        await refused(
            psql, self.ENTRY, "unique_ledger_entries_reference", "deposit", Decimal(5), "d1"
        )

    @pytest.mark.parametrize(
        ("kind", "amount", "check"),
        [("gift", Decimal(1), "kind"), ("deposit", Decimal(0), "amount"),
         ("deposit", Decimal("NaN"), "amount")],
    )  # fmt: skip
    async def test_a_broken_one_is_refused(
        self, psql: Connection, kind: str, amount: Decimal, check: str
    ) -> None:
        await refused(psql, self.ENTRY, f"check_ledger_entries_{check}", kind, amount, None)


BROKEN_FILL: Final = """
INSERT INTO executions (order_id, trade_id, price, amount, cost, time)
SELECT id, '2', 100, -1, 100, now() FROM orders
"""
BROKEN_FEES: Final = """
INSERT INTO executions
       (order_id, trade_id, price, amount, cost, fee, fee_currency, other_fees, time)
SELECT id, '2', 100, 1, 100, 1, 'USDT', '{"BNB": "much"}', now() FROM orders
"""

#: A trigger of somebody else's that does what {} says.
OTHER_TRIGGER: Final = """
CREATE TEMP TABLE notes (x int);
CREATE FUNCTION pg_temp.kurisu_follow() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN {}; RETURN NULL; END $$;
CREATE TRIGGER z AFTER INSERT ON notes FOR EACH ROW EXECUTE FUNCTION pg_temp.kurisu_follow();
"""


#: A trigger on orders that does what {} says where one is filled.
AUDIT: Final = """
CREATE FUNCTION pg_temp.audit() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN {}; RETURN NULL; END $$;
CREATE TRIGGER zz AFTER UPDATE ON orders FOR EACH ROW WHEN (NEW.filled <> OLD.filled)
    EXECUTE FUNCTION pg_temp.audit();
"""

#: A role of this process; taken back with its transaction.
WRITER: Final = f"kurisu_test_{os.getpid()}_by_hand"
SOMEBODY: Final = f"""
CREATE SCHEMA of_somebody;
CREATE ROLE {WRITER};
GRANT ALL ON SCHEMA of_somebody TO {WRITER};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {WRITER};
"""

#: Another table, on which a trigger calls {function}, which does what {does} says.
ON_NOTES: Final = """
CREATE TABLE of_somebody.notes (x int);
CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN {does}; RETURN NULL; END $$;
CREATE TRIGGER z AFTER INSERT ON of_somebody.notes FOR EACH ROW EXECUTE FUNCTION {function}();
INSERT INTO of_somebody.notes VALUES (1);
"""
FILLED: Final = "UPDATE public.orders SET filled = 3, remaining = 2 WHERE client_order_id = 'a'"
FOLLOWED: Final = """
PERFORM public.kurisu_follow(
    array_agg(id), array_agg(market_id), array_agg(account_id), array_agg(exchange_order_id::text),
    array_agg(side::text), array_agg(1.0), array_agg(100.0), array_agg(now()))
   FROM public.orders WHERE client_order_id = 'a'
"""


#: Every operator of types that the ledger has, where PostgreSQL itself has none of exactly these,
#: and functions of exactly the types that the ledger calls some of any type with.
ASKED_NEVER: Final = """
DO $$
DECLARE
    types text[] := '{varchar,text,name,numeric,integer,bigint,oid,regclass,timestamptz,date,'
                    'jsonb}';
    l text;
    r text;
    o text;
BEGIN
    FOREACH l IN ARRAY types LOOP
        FOREACH r IN ARRAY types LOOP
            EXECUTE format('CREATE FUNCTION public.asked(%s, %s) RETURNS boolean LANGUAGE plpgsql '
                           'AS $f$ BEGIN RAISE ''somebody was asked''; END $f$', l, r);
            FOREACH o IN ARRAY '{=,<>,<,<=,>,>=,+,-,||,~,!~}'::text[] LOOP
                IF to_regoperator(format('pg_catalog.%s(%s, %s)', o, l, r)) IS NULL THEN
                    EXECUTE format('CREATE OPERATOR public.%s (FUNCTION = public.asked, '
                                   'LEFTARG = %s, RIGHTARG = %s)', o, l, r);
                END IF;
            END LOOP;
        END LOOP;
        EXECUTE format('CREATE FUNCTION public.cardinality(%s[]) RETURNS integer LANGUAGE plpgsql '
                       'AS $f$ BEGIN RAISE ''somebody was asked''; END $f$', l);
        EXECUTE format('CREATE FUNCTION public.unnest(%s[]) RETURNS SETOF %s LANGUAGE plpgsql '
                       'AS $f$ BEGIN RAISE ''somebody was asked''; END $f$', l, l);
        EXECUTE format('CREATE FUNCTION public.asked(%s[], %s) RETURNS %s[] LANGUAGE plpgsql '
                       'AS $f$ BEGIN RAISE ''somebody was asked''; END $f$', l, l, l);
        EXECUTE format('CREATE AGGREGATE public.array_agg(%s) (SFUNC = asked, STYPE = %s[])', l, l);
    END LOOP;
    CREATE FUNCTION public.set_config(varchar, varchar, boolean) RETURNS text LANGUAGE plpgsql
        AS $f$ BEGIN RAISE 'somebody was asked'; END $f$;
    CREATE FUNCTION public.jsonb_build_object(
        text, timestamptz, text, text, text, text, text, varchar, text, jsonb, text, varchar, text,
        jsonb) RETURNS jsonb LANGUAGE plpgsql AS $f$ BEGIN RAISE 'somebody was asked'; END $f$;
END $$
"""


def on_own_table(function: str, of: str, event: str, tables: str, statement: str) -> str:
    """One of the ledger's functions, made the trigger of a table that looks like `of`."""
    return f"""
    CREATE TABLE of_somebody.mine AS SELECT * FROM public.{of};
    CREATE TRIGGER z AFTER {event} ON of_somebody.mine {tables}
        EXECUTE FUNCTION public.{function}();
    {statement};
    """


#: Ways to be taken for one of the ledger's own functions.
IMPOSTURES: Final = {
    "a function of the same name": "SET LOCAL search_path = of_somebody, public;"
    + ON_NOTES.format(function="of_somebody.kurisu_new_executions", does=FILLED),
    "a comment": ON_NOTES.format(
        function="of_somebody.f",
        does=FILLED.replace(
            "UPDATE", "UPDATE /*\nPL/pgSQL function kurisu_new_executions() line 1 */", 1
        ),
    ),
    "a name with a function in it": ON_NOTES.format(
        function='of_somebody."f PL/pgSQL function kurisu_new_executions("', does=FILLED
    ),
    "a call": ON_NOTES.format(function="of_somebody.f", does=FOLLOWED),
    "an insert that updates": ON_NOTES.format(
        function="of_somebody.f",
        does="INSERT INTO public.orders AS o (client_order_id, market_id, side, type, amount, "
        "remaining, status) SELECT client_order_id, market_id, side, 'market', amount, amount, "
        "'open' FROM public.orders WHERE client_order_id = 'a' "
        "ON CONFLICT (client_order_id) DO UPDATE SET filled = 3, remaining = 2",
    ),
    "fills of another table": on_own_table(
        "kurisu_new_executions", "executions", "INSERT",
        "REFERENCING NEW TABLE AS changed FOR EACH STATEMENT",
        "INSERT INTO of_somebody.mine SELECT * FROM of_somebody.mine",
    ),
    "fills that join in another table": on_own_table(
        "kurisu_changed_executions", "executions", "UPDATE",
        "REFERENCING OLD TABLE AS changed_from NEW TABLE AS changed FOR EACH STATEMENT",
        "UPDATE of_somebody.mine SET cost = cost + 1",
    ),
    "corrections of orders in another table": on_own_table(
        "kurisu_follow_order_correction", "order_corrections", "INSERT", "FOR EACH ROW",
        "INSERT INTO of_somebody.mine (order_id, status_before, status) "
        "SELECT id, 'open', 'closed' FROM public.orders",
    ),
    "corrections of fills in another table": on_own_table(
        "kurisu_follow_execution_correction", "execution_corrections", "INSERT", "FOR EACH ROW",
        """INSERT INTO of_somebody.mine (execution_id, before, time, cost) SELECT e.id,
           jsonb_build_object('time', e.time, 'cost', e.cost::text, 'fee', e.fee::text,
               'fee_currency', e.fee_currency, 'other_fees', e.other_fees,
               'taker_or_maker', e.taker_or_maker, 'facts', e.facts), time, 3
           FROM public.executions e""",
    ),
}  # fmt: skip


class TestFromElsewhere:
    @pytest.mark.parametrize("who", ["the owner", "another role"])
    @pytest.mark.parametrize("way", IMPOSTURES)
    async def test_nobody_stands_in_for_the_ledger_s_own_functions(
        self, psql: Connection, way: str, who: str
    ) -> None:
        await psql.execute(SOMEBODY)
        match = "inside of a trigger is refused|a trigger of [a-z_]+ alone"
        if who == "the owner":
            await refused(psql, IMPOSTURES[way], match)
            return
        await psql.execute(f"SET LOCAL ROLE {WRITER}")
        if "another table" in way:
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="for function"):
                await psql.execute(IMPOSTURES[way])
        else:
            await refused(psql, IMPOSTURES[way], match)

    async def test_whoever_says_to_be_one_of_them_is_not_their_owner(
        self, psql: Connection
    ) -> None:
        await psql.execute(f"{SOMEBODY} SET LOCAL ROLE {WRITER}")
        says = "PERFORM set_config('kurisu.writes_in', pg_trigger_depth()::text, true); "
        statement = ON_NOTES.format(function="of_somebody.f", does=says + FILLED)
        await refused(psql, statement, "inside of a trigger is refused")

    async def test_another_role_needs_no_more_than_to_append(self, psql: Connection) -> None:
        await psql.execute(
            f"{SOMEBODY} REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {WRITER};"
            f"GRANT SELECT, INSERT ON orders, executions TO {WRITER}; SET LOCAL ROLE {WRITER}"
        )
        await psql.execute(FILL, "2", Decimal(1), Decimal(100))
        row = await order(psql)
        assert (row["filled"], row["cost"]) == (3, 300)
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="table orders"):
            await psql.execute("UPDATE orders SET price = 1")

    @pytest.mark.parametrize("fails", [False, True])
    async def test_what_they_say_ends_with_them(self, psql: Connection, fails: bool) -> None:
        await psql.execute(SOMEBODY)
        if fails:
            await psql.execute(
                f"DO $$ BEGIN {fill(9)}; RAISE 'it passed'; "
                "EXCEPTION WHEN check_violation THEN NULL; END $$"
            )
        else:
            await psql.execute(FILL, "2", Decimal(1), Decimal(100))
        assert not await psql.fetchval("SELECT current_setting('kurisu.writes_in', true)")
        statement = ON_NOTES.format(function="of_somebody.f", does=FILLED)
        await refused(psql, statement, "inside of a trigger is refused")

    @pytest.mark.parametrize("changed", ["filled = 3, remaining = 2", "status = 'closed'"])
    async def test_nor_does_a_trigger_of_the_owner_s_write_within_them(
        self, psql: Connection, changed: str
    ) -> None:
        await psql.execute(AUDIT.format(f"UPDATE orders SET {changed} WHERE client_order_id = 'b'"))
        await refused(psql, fill(1), "inside of a trigger is refused")

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE orders SET filled = 3, remaining = 2", "UPDATE orders SET status = 'closed'",
            "UPDATE executions SET amount = 1", "UPDATE executions SET order_id = order_id + 1",
        ],
    )  # fmt: skip
    async def test_guards_hold_inside_of_other_triggers(
        self, psql: Connection, statement: str
    ) -> None:
        await psql.execute(OTHER_TRIGGER.format(statement))
        await refused(psql, "INSERT INTO notes VALUES (1)", "inside of a trigger is refused")

    @pytest.mark.parametrize(
        "name",
        [
            "pg_temp.kurisu_new_executions", "my_kurisu_new_executions",
            '"my kurisu_new_executions"', '"kurisu_new_executions "',
        ],
    )  # fmt: skip
    async def test_guards_hold_whatever_the_other_triggers_are_called(
        self, psql: Connection, name: str
    ) -> None:
        other = OTHER_TRIGGER.replace("pg_temp.kurisu_follow", name)
        await psql.execute(other.format("UPDATE orders SET filled = 3, remaining = 2"))
        await refused(psql, "INSERT INTO notes VALUES (1)", "inside of a trigger is refused")

    async def test_a_trigger_of_the_owner_s_finds_tables_as_ever(self, psql: Connection) -> None:
        await psql.execute("CREATE TABLE moves (id bigint, filled numeric)")
        await psql.execute(AUDIT.format("INSERT INTO moves VALUES (NEW.id, NEW.filled)"))
        await psql.execute(FILL, "2", Decimal(1), Decimal(100))
        assert await psql.fetchval("SELECT array_agg(filled) FROM moves") == [3]

    async def test_another_trigger_may_add_a_fill(self, psql: Connection) -> None:
        await psql.execute(OTHER_TRIGGER.format(fill(1)))
        await psql.execute("INSERT INTO notes VALUES (1)")
        row = await order(psql)
        assert (row["filled"], row["cost"]) == (3, 300)

    @pytest.mark.parametrize("schema", ["pg_temp", "of_somebody"])
    async def test_tables_of_the_same_names_are_no_others(
        self, psql: Connection, schema: str
    ) -> None:
        if schema != "pg_temp":
            await psql.execute(f"CREATE SCHEMA {schema}; SET LOCAL search_path = {schema}, public")
        for table in ("orders", "executions", "accounts", "markets"):
            await psql.execute(
                f"CREATE TABLE {schema}.{table} AS SELECT * FROM public.{table};"
                f"DELETE FROM {schema}.{table} WHERE id < 0"
            )
        await psql.execute(
            "INSERT INTO public.executions (order_id, trade_id, price, amount, cost, time) "
            "SELECT id, '2', 100, 1, 100, now() FROM public.orders WHERE client_order_id = 'a';"
            "INSERT INTO public.execution_corrections (execution_id, time, cost, reason) "
            "SELECT id, time, 99, 'x' FROM public.executions WHERE trade_id = '2';"
            "INSERT INTO public.order_corrections (order_id, status, reason) "
            "SELECT id, 'closed', 'x' FROM public.orders WHERE client_order_id = 'a'"
        )
        row = await psql.fetchrow("SELECT * FROM public.orders WHERE client_order_id = 'a'")
        assert (row["filled"], row["cost"], row["status"]) == (3, 299, "closed")

    @pytest.mark.parametrize("answer", ["true", "false", "null"])
    @pytest.mark.parametrize(
        ("statement", "rule"),
        [
            ("UPDATE orders SET filled = 3, remaining = 2", "follows_executions"),
            ("UPDATE orders SET side = 'sell'", "identity"),
            ("UPDATE orders SET remaining = 4", "remaining"),
            ("UPDATE orders SET status = 'done'", "check_orders_status"),
            ("UPDATE orders SET price = 0", "finite"),
            ("UPDATE orders SET updated_at = 'infinity'", "times"),
            (BROKEN_FILL, "check_executions_amount"),
            (BROKEN_FEES, "check_executions_other_fees"),
        ],
    )
    async def test_guards_go_by_no_operator_of_somebody_s_own(
        self, psql: Connection, statement: str, rule: str, answer: str
    ) -> None:
        await psql.execute("CREATE SCHEMA of_somebody")
        for kind in ("numeric", "text", "varchar", "timestamptz", "integer", "bigint"):
            await psql.execute(
                f"CREATE FUNCTION of_somebody.says({kind}, {kind}) RETURNS boolean LANGUAGE sql "
                f"AS 'SELECT {answer}::boolean'"
            )
            for operator in ("=", "<>", "<", "<=", ">", ">=", "!~"):
                if operator != "!~" or kind == "text":
                    await psql.execute(
                        f"CREATE OPERATOR of_somebody.{operator} "
                        f"(FUNCTION = of_somebody.says, LEFTARG = {kind}, RIGHTARG = {kind})"
                    )
        await psql.execute("DISCARD PLANS; SET LOCAL search_path = of_somebody, pg_catalog, public")
        await refused(psql, statement, rule)

    @pytest.mark.parametrize("answer", ["true", "false", "null"])
    @pytest.mark.parametrize(
        ("statement", "rule"),
        [
            ("UPDATE orders SET filled = 3, remaining = 2", "follows_executions"),
            ("UPDATE orders SET side = 'sell'", "identity"),
            ("UPDATE orders SET client_order_id = id::text", "identity"),
            ("UPDATE orders SET exchange_order_id = id::text", "identity"),
            ("UPDATE orders SET status = 'pending'", "status_moves_forward"),
            ("UPDATE markets SET symbol = symbol || 'T'", "has orders"),
            (
                "INSERT INTO executions (order_id, market_id, side, account_id, trade_id, price, "
                "amount, cost, time) SELECT id, market_id, 'sell', account_id, '2', 1, 1, 1, now() "
                "FROM orders",
                "is not of its account",
            ),
            (
                "INSERT INTO executions (order_id, market_id, side, account_id, trade_id, price, "
                "amount, cost, time, exchange_order_id) SELECT id, market_id, side, account_id, "
                "'2', 1, 1, 1, now(), 'Q' FROM orders ORDER BY id LIMIT 1",
                "is not of its account",
            ),
        ],
    )  # fmt: skip
    async def test_nor_by_one_for_texts_in_the_schema_of_the_tables(
        self, psql: Connection, statement: str, rule: str, answer: str
    ) -> None:
        opposite = {"true": "false", "false": "true", "null": "null"}[answer]
        for name, said in (("yes", answer), ("no", opposite)):
            await psql.execute(
                f"CREATE FUNCTION {name}(varchar, varchar) RETURNS boolean LANGUAGE sql "
                f"AS 'SELECT {said}::boolean'"
            )
        await psql.execute(
            "CREATE OPERATOR = (FUNCTION = yes, LEFTARG = varchar, RIGHTARG = varchar);"
            "CREATE OPERATOR <> (FUNCTION = no, LEFTARG = varchar, RIGHTARG = varchar);"
            "DISCARD PLANS"
        )
        await refused(psql, statement, rule)

    async def test_nor_do_they_ask_any_other_in_the_schema_of_the_tables(
        self, psql: Connection
    ) -> None:
        await psql.execute(ASKED_NEVER)
        # What is asked here is not to be taken for what the ledger asks.
        await psql.execute("DISCARD PLANS; SET LOCAL search_path = pg_catalog")
        account, market, a, b = await psql.fetchrow(
            "SELECT o.account_id, o.market_id, o.id, o.id + 1 FROM public.orders o "
            "ORDER BY id LIMIT 1"
        )
        one = f"{a}, '2', 100, 1, 100, '2026-01-03'"
        waits = f"{account}, {market}, 'B', 'buy'"
        await psql.execute(
            f"""
            INSERT INTO public.executions (order_id, trade_id, price, amount, cost, time)
            VALUES ({one});
            INSERT INTO public.executions (order_id, trade_id, price, amount, cost, time)
            VALUES ({b}, '1', 100, 1, 100, '2026-01-03'), ({b}, '2', 100, 1, 100, '2026-01-04');
            INSERT INTO public.executions (account_id, market_id, exchange_order_id, side,
                                           trade_id, price, amount, cost, time)
            VALUES ({waits}, '3', 100, 1, 100, '2026-01-05');
            UPDATE public.executions SET order_id = {b} WHERE order_id IS NULL;
            UPDATE public.orders SET price = 101, status = 'canceled', updated_at = updated_at;
            INSERT INTO public.order_corrections (order_id, status, reason)
            VALUES ({a}, 'open', 'x');
            INSERT INTO public.execution_corrections (execution_id, time, cost, reason)
            SELECT min(id), min(time), 99, 'x' FROM public.executions;
            INSERT INTO public.markets (exchange, symbol, base_asset, quote_asset)
            VALUES ('okx', 'A/B', 'A', 'B');
            UPDATE public.markets SET symbol = 'A/C' WHERE exchange::text = 'okx';
            DELETE FROM public.markets WHERE exchange::text = 'okx';
            """
        )
        rows = await psql.fetch(
            "SELECT filled, cost, status::text FROM public.orders ORDER BY id LIMIT 2"
        )
        assert [tuple(row) for row in rows] == [(3, 199, "open"), (3, 300, "canceled")]

    async def test_every_function_that_looks_at_tables_says_where(self, psql: Connection) -> None:
        found = await psql.fetch(
            "SELECT proname::text FROM pg_proc WHERE proname LIKE 'kurisu\\_%' "
            "AND NOT coalesce(array_to_string(proconfig, ' ') ~ 'search_path=.*pg_temp', FALSE)"
        )
        assert {row["proname"] for row in found} == {
            "kurisu_append_only", "kurisu_is_execution", "kurisu_is_order", "kurisu_keep_exchange",
            "kurisu_keep_id",
        }  # fmt: skip

    async def test_those_that_run_as_their_owner_find_nothing_of_anybody_else_s(
        self, psql: Connection
    ) -> None:
        found = await psql.fetch(
            "SELECT proname::text, proconfig, proowner = (SELECT relowner FROM pg_class "
            "WHERE oid = 'orders'::regclass) AS is_owners, has_function_privilege('public', oid, "
            "'EXECUTE') AS may_be_called FROM pg_proc WHERE prosecdef AND proname LIKE 'kurisu%'"
        )
        assert {row["proname"] for row in found} == {
            "kurisu_new_executions", "kurisu_changed_executions", "kurisu_follow_order_correction",
            "kurisu_follow_execution_correction",
        }  # fmt: skip
        for row in found:
            assert row["proconfig"] == ["search_path=public, pg_temp"]
            assert (row["is_owners"], row["may_be_called"]) == (True, False)

    @pytest.mark.parametrize("table", ["orders", "accounts"])
    async def test_ids_stay(self, psql: Connection, table: str) -> None:
        await refused(psql, f"UPDATE {table} SET id = DEFAULT", f"{table}.id never changes")

    @pytest.mark.parametrize(
        "changed",
        ["exchange = 'okx'", "symbol = 'BTC/USDC'", "symbol = 'BTC/USDT:USDT', contract_size = 1",
         "contract_size = 0.01"],
    )  # fmt: skip
    async def test_what_orders_were_counted_with_stays(
        self, psql: Connection, changed: str
    ) -> None:
        await refused(
            psql, f"UPDATE markets SET {changed} WHERE symbol = 'BTC/USDT'", "has orders: its"
        )
        # Nothing was counted with the other one.
        await psql.execute(f"UPDATE markets SET {changed} WHERE symbol = 'ETH/USDT'")

    async def test_a_contract_s_size_is_said_once(self, psql: Connection) -> None:
        market = "symbol = 'BTC/USDT:USDT'"
        await psql.execute(
            "INSERT INTO markets (exchange, symbol, base_asset, quote_asset, settle_asset, type) "
            "VALUES ('binance', 'BTC/USDT:USDT', 'BTC', 'USDT', 'USDT', 'swap')"
        )
        await psql.execute(
            "INSERT INTO orders (client_order_id, market_id, side, type, amount, remaining, status)"
            f" SELECT 'c', id, 'buy', 'market', 1, 1, 'open' FROM markets WHERE {market}"
        )
        await psql.execute(f"UPDATE markets SET contract_size = 0.01 WHERE {market}")
        for size in ("0.1", "NULL"):
            await refused(
                psql, f"UPDATE markets SET contract_size = {size} WHERE {market}", "has orders"
            )
        await psql.execute(
            f"UPDATE markets SET contract_size = 0.010, active = false WHERE {market}"
        )

    async def test_an_account_stays_at_its_exchange(self, psql: Connection) -> None:
        await refused(psql, "UPDATE accounts SET exchange = 'okx'", "stays at its exchange")
        await psql.execute("UPDATE accounts SET exchange = exchange, name = name || '2'")


class TestWhatCannotBeRead:
    @pytest.mark.parametrize(
        ("columns", "check"),
        [
            ("price = 0", "amount"), ("price = -1", "amount"), ("price = 'NaN'", "finite"),
            ("cost = -1", "amount"), ("cost = 'NaN'", "finite"), ("amount = 'NaN'", "finite"),
            ("time = 'infinity'", "time"), ("time = '-infinity'", "time"),
            ("time = '20000-01-01'", "time"), ("trade_id = ''", "waits_under_an_id"),
            ("fee_currency = ''", "fee_has_currency"), ("fee_currency = NULL", "fee_has_currency"),
        ],
    )  # fmt: skip
    async def test_of_an_execution(self, psql: Connection, columns: str, check: str) -> None:
        given = {
            "trade_id": "'2'", "price": "100", "amount": "1", "cost": "100", "time": "now()",
            "fee": "1", "fee_currency": "'BNB'",
        }  # fmt: skip
        name, value = columns.split(" = ")
        given[name] = value
        await refused(
            psql,
            f"INSERT INTO executions (order_id, {', '.join(given)}) "
            f"SELECT id, {', '.join(given.values())} FROM orders WHERE client_order_id = 'a'",
            f"check_executions_{check}",
        )

    async def test_no_fill_under_an_id_that_its_order_does_not_have(self, psql: Connection) -> None:
        await psql.execute(
            "INSERT INTO orders (client_order_id, market_id, account_id, side, type, amount, "
            "remaining, status) SELECT 'n', market_id, account_id, 'buy', 'market', 5, 5, 'open' "
            "FROM orders LIMIT 1"
        )
        statement = (
            "INSERT INTO executions (order_id, trade_id, price, amount, cost, time, "
            "exchange_order_id) SELECT id, '2', 1, 1, 1, now(), $1 FROM orders "
            "WHERE client_order_id = 'n'"
        )
        await refused(psql, statement, "is not of its account", "N")
        await psql.execute(statement, None)

    @pytest.mark.parametrize(
        ("changed", "check"),
        [
            ("price = 0", "finite"), ("price = -1", "finite"), ("stop_price = 0", "finite"),
            ("updated_at = 'infinity'", "times"), ("updated_at = '20000-01-01'", "times"),
        ],
    )  # fmt: skip
    async def test_of_an_order(self, psql: Connection, changed: str, check: str) -> None:
        await refused(psql, f"UPDATE orders SET {changed}", f"check_orders_{check}")

    @pytest.mark.parametrize("ids", ["NULL, NULL", "'', NULL", "'', 'x'", "NULL, ''"])
    async def test_an_order_without_an_id(self, psql: Connection, ids: str) -> None:
        await refused(
            psql,
            "INSERT INTO orders (client_order_id, exchange_order_id, market_id, account_id, side, "
            f"type, amount, remaining, status) SELECT {ids}, market_id, account_id, 'buy', "
            "'market', 1, 1, 'open' FROM orders LIMIT 1",
            "check_orders_has_an_id",
        )

    async def test_a_time_of_an_entry(self, psql: Connection) -> None:
        await refused(
            psql,
            "INSERT INTO ledger_entries (account_id, time, kind, asset, amount) "
            "SELECT min(id), 'infinity', 'deposit', 'BTC', 1 FROM accounts",
            "check_ledger_entries_time",
        )


#: A fill that waits. Parameters: exchange's order id, trade id.
WAITING: Final = """
INSERT INTO executions (account_id, market_id, exchange_order_id, side, trade_id, price, amount,
                        cost, time)
SELECT account_id, market_id, $1, side, $2, 100, 1, 100, '2026-01-03' FROM orders LIMIT 1
"""
