"""The ledger keeps its own rules: executions are appended, orders follow them, whoever writes.

Executions may wait for their order; what the exchange said beside the columns is kept as facts;
corrections, deposits, what an account reports and how far it was read get tables.

Revision ID: 0010
Revises: 0009
Create Date: 2026-11-22
"""

from alembic import op

from kurisu.migrations.script import execute_script

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE orders ADD COLUMN facts JSONB NOT NULL DEFAULT '{}'::jsonb;
ALTER TABLE orders ADD CONSTRAINT unique_orders_exchange_order_id
    UNIQUE (account_id, market_id, exchange_order_id);
CREATE UNIQUE INDEX unique_orders_exchange_order_id_of_run
    ON orders (strategy_run_id, market_id, exchange_order_id) WHERE account_id IS NULL;
-- Every fill writes the order's row anew: room for the new version beside the old one.
ALTER TABLE orders SET (fillfactor = 70);

ALTER TABLE executions ADD COLUMN account_id INTEGER;
ALTER TABLE executions ADD COLUMN market_id INTEGER;
ALTER TABLE executions ADD COLUMN exchange_order_id VARCHAR;
ALTER TABLE executions ADD COLUMN side VARCHAR(4);
ALTER TABLE executions ADD COLUMN other_fees JSONB;
ALTER TABLE executions ADD COLUMN facts JSONB;
UPDATE executions e
   SET account_id = o.account_id, market_id = o.market_id, side = o.side,
       exchange_order_id = o.exchange_order_id
  FROM orders o WHERE o.id = e.order_id;
ALTER TABLE executions ALTER COLUMN market_id SET NOT NULL;
ALTER TABLE executions ALTER COLUMN side SET NOT NULL;
ALTER TABLE executions ALTER COLUMN order_id DROP NOT NULL;

CREATE FUNCTION kurisu_are_fees(fees jsonb) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
-- {"BNB": "0.001", ...}: exact numbers of a NUMERIC(38, 18) as text, by asset. Not in SQL: to see
-- whether it can be inlined, PostgreSQL would parse it again for every statement.
BEGIN
    RETURN jsonb_typeof(fees) = 'object'
       AND NOT EXISTS (SELECT 1 FROM jsonb_each(fees) AS f(asset, fee)
                        WHERE jsonb_typeof(f.fee) <> 'string' OR length(f.asset) > 20
                           OR (f.fee #>> '{}') !~ '^-?[0-9]{1,20}([.][0-9]{1,18})?$');
END $$;

ALTER TABLE executions DROP CONSTRAINT fk_executions_order_id;
ALTER TABLE executions ADD CONSTRAINT check_executions_side CHECK (side IN ('buy', 'sell'));
ALTER TABLE executions ADD CONSTRAINT check_executions_waits_under_an_id
    CHECK (order_id IS NOT NULL OR (account_id IS NOT NULL AND exchange_order_id IS NOT NULL));
ALTER TABLE executions ADD CONSTRAINT check_executions_other_fees
    CHECK (other_fees IS NULL OR (fee IS NOT NULL AND kurisu_are_fees(other_fees)));
ALTER TABLE executions ADD CONSTRAINT unique_executions_trade_id
    UNIQUE (account_id, market_id, trade_id, exchange_order_id);
CREATE INDEX idx_executions_waiting
    ON executions (account_id, market_id, exchange_order_id) WHERE order_id IS NULL;

CREATE TABLE waiting_orders (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    account_id INTEGER NOT NULL,
    market_id INTEGER NOT NULL,
    client_order_id VARCHAR,
    exchange_order_id VARCHAR,
    facts JSONB NOT NULL DEFAULT '{}'::jsonb,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_waiting_orders PRIMARY KEY (id),
    CONSTRAINT fk_waiting_orders_account_id FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT fk_waiting_orders_market_id FOREIGN KEY (market_id) REFERENCES markets (id),
    CONSTRAINT unique_waiting_orders_exchange_order_id
        UNIQUE (account_id, market_id, exchange_order_id),
    CONSTRAINT unique_waiting_orders_client_order_id
        UNIQUE (account_id, market_id, client_order_id),
    CONSTRAINT check_waiting_orders_has_an_id
        CHECK (client_order_id IS NOT NULL OR exchange_order_id IS NOT NULL)
);

CREATE TABLE order_corrections (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    order_id BIGINT NOT NULL,
    status_before VARCHAR(20),
    status VARCHAR(20) NOT NULL,
    reason TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_order_corrections PRIMARY KEY (id),
    CONSTRAINT fk_order_corrections_order_id FOREIGN KEY (order_id) REFERENCES orders (id),
    CONSTRAINT check_order_corrections_status
        CHECK (status IN ('open', 'closed', 'canceled', 'failed'))
);
CREATE INDEX idx_order_corrections_order_id ON order_corrections (order_id);

CREATE TABLE execution_corrections (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    execution_id BIGINT NOT NULL,
    before JSONB,
    time TIMESTAMPTZ NOT NULL,
    cost NUMERIC(38, 18) NOT NULL,
    fee NUMERIC(38, 18),
    fee_currency VARCHAR(20),
    other_fees JSONB,
    taker_or_maker VARCHAR(5),
    facts JSONB,
    reason TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_execution_corrections PRIMARY KEY (id),
    CONSTRAINT fk_execution_corrections_execution_id
        FOREIGN KEY (execution_id) REFERENCES executions (id)
);
CREATE INDEX idx_execution_corrections_execution_id ON execution_corrections (execution_id);

CREATE TABLE ledger_entries (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    account_id INTEGER,
    strategy_run_id BIGINT,
    time TIMESTAMPTZ NOT NULL,
    kind VARCHAR(20) NOT NULL,
    asset VARCHAR(20) NOT NULL,
    amount NUMERIC(38, 18) NOT NULL,
    reference VARCHAR,
    note TEXT,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_ledger_entries PRIMARY KEY (id),
    CONSTRAINT fk_ledger_entries_account_id FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT fk_ledger_entries_strategy_run_id
        FOREIGN KEY (strategy_run_id) REFERENCES strategy_runs (id),
    CONSTRAINT check_ledger_entries_kind CHECK (kind IN (
        'opening', 'deposit', 'withdrawal', 'transfer', 'funding', 'fee', 'reward', 'correction')),
    CONSTRAINT check_ledger_entries_amount CHECK (amount <> 0 AND amount < 'Infinity'),
    CONSTRAINT check_ledger_entries_has_an_owner
        CHECK (account_id IS NOT NULL OR strategy_run_id IS NOT NULL)
);
CREATE UNIQUE INDEX unique_ledger_entries_reference
    ON ledger_entries (account_id, strategy_run_id, kind, asset, reference) NULLS NOT DISTINCT
    WHERE reference IS NOT NULL;
CREATE INDEX idx_ledger_entries_account_id ON ledger_entries (account_id, time);
CREATE INDEX idx_ledger_entries_strategy_run_id ON ledger_entries (strategy_run_id);

CREATE TABLE reported_balances (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    account_id INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL,
    asset VARCHAR(20) NOT NULL,
    total NUMERIC(38, 18) NOT NULL,
    used NUMERIC(38, 18) NOT NULL,
    CONSTRAINT pk_reported_balances PRIMARY KEY (id),
    CONSTRAINT fk_reported_balances_account_id FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT unique_reported_balances_time UNIQUE (account_id, time, asset),
    CONSTRAINT check_reported_balances_finite CHECK (total < 'Infinity' AND used < 'Infinity')
);

CREATE TABLE sync_cursors (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    account_id INTEGER NOT NULL,
    market_id INTEGER,
    kind VARCHAR(20) NOT NULL,
    until TIMESTAMPTZ NOT NULL,
    details JSONB NOT NULL DEFAULT '{}'::jsonb,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_sync_cursors PRIMARY KEY (id),
    CONSTRAINT fk_sync_cursors_account_id FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT fk_sync_cursors_market_id FOREIGN KEY (market_id) REFERENCES markets (id),
    CONSTRAINT unique_sync_cursors_kind UNIQUE NULLS NOT DISTINCT (account_id, market_id, kind)
);

ALTER TABLE positions ADD COLUMN cost_basis NUMERIC(38, 18);
ALTER TABLE positions ADD COLUMN realized_pnl NUMERIC(38, 18);
ALTER TABLE positions ADD COLUMN fee_value NUMERIC(38, 18);
ALTER TABLE positions ADD COLUMN mark_price NUMERIC(38, 18);
ALTER TABLE positions ADD COLUMN mark_time TIMESTAMPTZ;
ALTER TABLE positions ADD CONSTRAINT check_positions_basis_finite CHECK (
    cost_basis >= 0 AND cost_basis < 'Infinity' AND realized_pnl < 'Infinity'
    AND fee_value < 'Infinity' AND mark_price < 'Infinity');

ALTER TABLE risk_events ADD COLUMN fingerprint VARCHAR(64);
ALTER TABLE risk_events ADD CONSTRAINT unique_risk_events_fingerprint UNIQUE (fingerprint);

CREATE FUNCTION kurisu_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: its rows are appended and never changed',
        TG_OP, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER kurisu_append_only BEFORE DELETE OR TRUNCATE ON executions
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_append_only();
CREATE TRIGGER kurisu_append_only BEFORE DELETE OR TRUNCATE ON orders
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_append_only();
CREATE TRIGGER kurisu_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON order_corrections
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_append_only();
CREATE TRIGGER kurisu_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON execution_corrections
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_append_only();
CREATE TRIGGER kurisu_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_append_only();

CREATE FUNCTION kurisu_new_orders() RETURNS trigger LANGUAGE plpgsql AS $$
-- An order begins without fills: filled and cost are what its executions add up to.
DECLARE
    broken bigint;
BEGIN
    SELECT id INTO broken FROM changed WHERE filled <> 0 OR cost <> 0 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'order % begins with fills: insert it with filled = 0 and cost = 0, and '
            'then its executions', broken
            USING ERRCODE = 'check_violation', CONSTRAINT = 'check_orders_follows_executions';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER kurisu_new_orders AFTER INSERT ON orders
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_new_orders();

CREATE FUNCTION kurisu_time_is_given() RETURNS trigger LANGUAGE plpgsql AS $$
-- A statement that names updated_at means it, also where it stays as it was. The next trigger
-- turns this mark into the old time.
BEGIN
    NEW.updated_at := '-infinity';
    RETURN NEW;
END $$;

CREATE FUNCTION kurisu_guard_orders() RETURNS trigger LANGUAGE plpgsql AS $$
-- What a statement may do to an order. What follows from executions and corrections is done by
-- their triggers, inside which this one does not fire.
DECLARE
    rule text := NULL;
BEGIN
    IF NEW.updated_at = '-infinity' THEN
        NEW.updated_at := OLD.updated_at;
    ELSIF NEW.updated_at = OLD.updated_at THEN
        NEW.updated_at := greatest(now(), OLD.updated_at);
    END IF;
    IF (NEW.filled, NEW.cost) IS DISTINCT FROM (OLD.filled, OLD.cost) THEN
        rule := 'follows_executions: filled and cost change with its executions alone';
    ELSIF (NEW.market_id, NEW.side, NEW.type, NEW.created_at)
          IS DISTINCT FROM (OLD.market_id, OLD.side, OLD.type, OLD.created_at) THEN
        rule := 'identity: market, side, type and time of creation stay';
    ELSIF (OLD.client_order_id IS NOT NULL
           AND NEW.client_order_id IS DISTINCT FROM OLD.client_order_id)
       OR (OLD.exchange_order_id IS NOT NULL
           AND NEW.exchange_order_id IS DISTINCT FROM OLD.exchange_order_id)
       OR (OLD.strategy_id IS NOT NULL AND NEW.strategy_id IS DISTINCT FROM OLD.strategy_id)
       OR (OLD.strategy_run_id IS NOT NULL
           AND NEW.strategy_run_id IS DISTINCT FROM OLD.strategy_run_id)
       OR (NEW.account_id IS DISTINCT FROM OLD.account_id
           AND (OLD.account_id IS NOT NULL OR OLD.filled > 0)) THEN
        rule := 'identity: ids and owners, once known, stay';
    ELSIF NEW.status <> OLD.status THEN
        IF OLD.status NOT IN ('pending', 'open') THEN
            rule := 'terminal_is_final: ' || OLD.status || ' stays; a correction is a row of '
                'order_corrections';
        ELSIF NEW.status = 'pending' THEN
            rule := 'status_moves_forward: ' || OLD.status || ' -> pending';
        END IF;
    END IF;
    IF rule IS NOT NULL THEN
        RAISE EXCEPTION 'order %: %', OLD.id, rule
            USING ERRCODE = 'check_violation',
                  CONSTRAINT = 'check_orders_' || split_part(rule, ':', 1);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER kurisu_1_time_is_given BEFORE UPDATE OF updated_at ON orders
    FOR EACH ROW WHEN (pg_trigger_depth() = 0 AND NEW.updated_at = OLD.updated_at)
    EXECUTE FUNCTION kurisu_time_is_given();
CREATE TRIGGER kurisu_2_guard_orders BEFORE UPDATE ON orders
    FOR EACH ROW WHEN (pg_trigger_depth() = 0)
    EXECUTE FUNCTION kurisu_guard_orders();

CREATE FUNCTION kurisu_complete_execution() RETURNS trigger LANGUAGE plpgsql AS $$
-- What an execution has in common with its order may be left out.
BEGIN
    SELECT coalesce(NEW.market_id, o.market_id), coalesce(NEW.account_id, o.account_id),
           coalesce(NEW.exchange_order_id, o.exchange_order_id), coalesce(NEW.side, o.side)
      INTO NEW.market_id, NEW.account_id, NEW.exchange_order_id, NEW.side
      FROM orders o WHERE o.id = NEW.order_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'order % is not in orders', NEW.order_id
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'fk_executions_order_id';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER kurisu_complete_execution BEFORE INSERT ON executions
    FOR EACH ROW WHEN (NEW.order_id IS NOT NULL AND (NEW.market_id IS NULL OR NEW.side IS NULL))
    EXECUTE FUNCTION kurisu_complete_execution();

CREATE FUNCTION kurisu_guard_executions() RETURNS trigger LANGUAGE plpgsql AS $$
-- The one change of an execution: one that waited joins its order.
DECLARE
    joined executions;
BEGIN
    joined := NEW;
    joined.order_id := OLD.order_id;
    IF OLD.order_id IS NOT NULL OR joined IS DISTINCT FROM OLD THEN
        RAISE EXCEPTION 'UPDATE of execution % is refused: executions are appended; what a later '
            'report says is a row of execution_corrections', OLD.id
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER kurisu_guard_executions BEFORE UPDATE ON executions
    FOR EACH ROW WHEN (pg_trigger_depth() = 0)
    EXECUTE FUNCTION kurisu_guard_executions();

CREATE FUNCTION kurisu_hold_owners(market integer, account integer) RETURNS void
LANGUAGE plpgsql AS $$
-- Market and account of what waits are there, and stay until this commits.
BEGIN
    PERFORM kurisu_hold_markets(ARRAY[market]);
    PERFORM 1 FROM accounts WHERE id = account FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'account % of an execution is not in accounts', account
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'fk_executions_account_id';
    END IF;
END $$;

CREATE FUNCTION kurisu_keep_owners() RETURNS trigger LANGUAGE plpgsql AS $$
-- A market or an account under which executions wait stays; what counts is kept by its order.
BEGIN
    IF TG_OP <> 'DELETE' OR current_setting('transaction_isolation')
                            NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'delete % at isolation level READ COMMITTED only, and never truncate it',
            TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
    END IF;
    IF TG_TABLE_NAME = 'markets' AND EXISTS (
            SELECT 1 FROM gone g JOIN executions e ON e.market_id = g.id AND e.order_id IS NULL)
       OR TG_TABLE_NAME = 'accounts' AND EXISTS (
            SELECT 1 FROM gone g JOIN executions e ON e.account_id = g.id AND e.order_id IS NULL)
    THEN
        RAISE EXCEPTION 'executions wait under a row of %', TG_TABLE_NAME
            USING ERRCODE = 'foreign_key_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER kurisu_keep_owners AFTER DELETE ON markets
    REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_keep_owners();
CREATE TRIGGER kurisu_keep_owners AFTER DELETE ON accounts
    REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_keep_owners();

CREATE FUNCTION kurisu_refuse_execution(wanted bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM orders WHERE id = wanted) THEN
        RAISE EXCEPTION 'order % of an execution is not in orders', wanted
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'fk_executions_order_id';
    END IF;
    RAISE EXCEPTION 'an execution of order % is not of its account, market, side and '
        'exchange''s id', wanted
        USING ERRCODE = 'check_violation', CONSTRAINT = 'check_executions_is_of_its_order';
END $$;

CREATE FUNCTION kurisu_follow(
    ids bigint[], market_ids integer[], account_ids integer[], exchange_ids text[], sides text[],
    amounts numeric[], costs numeric[], times timestamptz[]) RETURNS void
LANGUAGE plpgsql SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off AS $$
-- Many orders follow their executions, which are grouped by order and by what they have to have in
-- common with it. In the order of ids, as every writer locks orders; and each by its key: a plan
-- is made once in a session, perhaps for an empty table. One statement for all of them, since to
-- begin an UPDATE costs ten times what it does to a row.
DECLARE
    found bigint;
    wrong bigint;
BEGIN
    PERFORM 1 FROM orders WHERE id = ANY(ids) ORDER BY id FOR NO KEY UPDATE;
    UPDATE orders o
       SET filled = o.filled + c.amount,
           remaining = o.remaining - c.amount,
           cost = o.cost + c.cost,
           status = CASE WHEN o.status NOT IN ('pending', 'open') OR c.amount = 0 THEN o.status
                         WHEN o.remaining = c.amount THEN 'closed' ELSE 'open' END,
           updated_at = greatest(o.updated_at, c.time)
      FROM unnest(ids, market_ids, account_ids, exchange_ids, sides, amounts, costs, times)
           AS c(id, market_id, account_id, exchange_order_id, side, amount, cost, time)
     WHERE o.id = c.id
       AND (o.market_id, o.account_id, o.side)
           IS NOT DISTINCT FROM (c.market_id, c.account_id, c.side)
       AND coalesce(o.exchange_order_id = c.exchange_order_id, TRUE);
    GET DIAGNOSTICS found = ROW_COUNT;
    IF found <> cardinality(ids) THEN
        SELECT c.id INTO wrong
          FROM unnest(ids, market_ids, account_ids, exchange_ids, sides)
               AS c(id, market_id, account_id, exchange_order_id, side)
          LEFT JOIN orders o ON o.id = c.id
            AND (o.market_id, o.account_id, o.side)
                IS NOT DISTINCT FROM (c.market_id, c.account_id, c.side)
            AND coalesce(o.exchange_order_id = c.exchange_order_id, TRUE)
         WHERE o.id IS NULL LIMIT 1;
        PERFORM kurisu_refuse_execution(coalesce(wrong, ids[1]));
    END IF;
END $$;

CREATE FUNCTION kurisu_new_executions() RETURNS trigger LANGUAGE plpgsql AS $$
-- Orders follow their executions, and an execution is of its order's account, market, side and
-- exchange's id. This is also what keeps the reference to orders, which are never deleted: a
-- declared foreign key would check each row.
DECLARE
    c record;
BEGIN
    IF (SELECT count(*) FROM changed) = 1 THEN
        SELECT * INTO c FROM changed;
        IF c.order_id IS NULL THEN
            PERFORM kurisu_hold_owners(c.market_id, c.account_id);
            RETURN NULL;
        END IF;
        UPDATE orders o
           SET filled = o.filled + c.amount,
               remaining = o.remaining - c.amount,
               cost = o.cost + c.cost,
               status = CASE WHEN o.status NOT IN ('pending', 'open') OR c.amount = 0 THEN o.status
                             WHEN o.remaining = c.amount THEN 'closed' ELSE 'open' END,
               updated_at = greatest(o.updated_at, c.time)
         WHERE o.id = c.order_id
           AND (o.market_id, o.account_id, o.side)
               IS NOT DISTINCT FROM (c.market_id, c.account_id, c.side)
           AND coalesce(o.exchange_order_id = c.exchange_order_id, TRUE);
        IF NOT FOUND THEN
            PERFORM kurisu_refuse_execution(c.order_id);
        END IF;
        RETURN NULL;
    END IF;
    PERFORM kurisu_hold_owners(w.market_id, w.account_id)
       FROM (SELECT DISTINCT market_id, account_id FROM changed WHERE order_id IS NULL
              ORDER BY 1, 2) w;
    PERFORM kurisu_follow(
            array_agg(order_id), array_agg(market_id), array_agg(account_id),
            array_agg(exchange_order_id::text), array_agg(side::text), array_agg(amount),
            array_agg(cost), array_agg(time))
       FROM (SELECT order_id, market_id, account_id, exchange_order_id, side,
                    sum(amount) AS amount, sum(cost) AS cost, max(time) AS time
               FROM changed WHERE order_id IS NOT NULL
              GROUP BY order_id, market_id, account_id, exchange_order_id, side) s
     HAVING count(*) > 0;
    RETURN NULL;
END $$;

CREATE FUNCTION kurisu_changed_executions() RETURNS trigger LANGUAGE plpgsql AS $$
-- One that waited joins its order, or a correction moves its cost.
BEGIN
    PERFORM kurisu_follow(
            array_agg(order_id), array_agg(market_id), array_agg(account_id),
            array_agg(exchange_order_id::text), array_agg(side::text), array_agg(amount),
            array_agg(cost), array_agg(time))
       FROM (SELECT n.order_id, n.market_id, n.account_id, n.exchange_order_id, n.side,
                    sum(CASE WHEN b.order_id IS NULL THEN n.amount ELSE 0 END) AS amount,
                    sum(n.cost - CASE WHEN b.order_id IS NULL THEN 0 ELSE b.cost END) AS cost,
                    max(n.time) AS time
               FROM changed n JOIN changed_from b ON b.id = n.id
              WHERE n.order_id IS NOT NULL
              GROUP BY n.order_id, n.market_id, n.account_id, n.exchange_order_id, n.side) s
     HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE TRIGGER kurisu_new_executions AFTER INSERT ON executions
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_new_executions();
CREATE TRIGGER kurisu_changed_executions AFTER UPDATE ON executions
    REFERENCING OLD TABLE AS changed_from NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_changed_executions();

CREATE FUNCTION kurisu_correct_order() RETURNS trigger LANGUAGE plpgsql AS $$
-- The only way out of a terminal status; what it was stays in the row.
BEGIN
    SELECT status INTO NEW.status_before FROM orders WHERE id = NEW.order_id FOR NO KEY UPDATE;
    UPDATE orders SET status = NEW.status WHERE id = NEW.order_id;
    RETURN NEW;
END $$;
CREATE TRIGGER kurisu_correct_order BEFORE INSERT ON order_corrections
    FOR EACH ROW EXECUTE FUNCTION kurisu_correct_order();

CREATE FUNCTION kurisu_correct_execution() RETURNS trigger LANGUAGE plpgsql AS $$
-- What a later report says about an execution, beside what moved; what it was stays in the row.
BEGIN
    PERFORM 1 FROM orders o JOIN executions e ON o.id = e.order_id
      WHERE e.id = NEW.execution_id FOR NO KEY UPDATE OF o;
    SELECT jsonb_build_object(
               'time', e.time, 'cost', e.cost::text, 'fee', e.fee::text,
               'fee_currency', e.fee_currency, 'other_fees', e.other_fees,
               'taker_or_maker', e.taker_or_maker, 'facts', e.facts)
      INTO NEW.before FROM executions e WHERE e.id = NEW.execution_id;
    UPDATE executions
       SET time = NEW.time, cost = NEW.cost, fee = NEW.fee, fee_currency = NEW.fee_currency,
           other_fees = NEW.other_fees, taker_or_maker = NEW.taker_or_maker, facts = NEW.facts
     WHERE id = NEW.execution_id;
    RETURN NEW;
END $$;
CREATE TRIGGER kurisu_correct_execution BEFORE INSERT ON execution_corrections
    FOR EACH ROW EXECUTE FUNCTION kurisu_correct_execution();
"""

# Table, column, comment.
COMMENTS = (
    ("orders", "facts", "What was placed and said beside what the columns hold; the ledger's own."),
    ("executions", "order_id", "Null while it waits: its order is unknown, or it does not fit."),
    ("executions", "account_id", "Its order's."),
    ("executions", "market_id", "Its order's."),
    ("executions", "exchange_order_id", "The order that it fills, as the exchange calls it."),
    ("executions", "side", "Its order's."),
    (
        "executions",
        "trade_id",
        "The exchange's; a second content under one id is marked: id~digits of its hash.",
    ),
    ("executions", "other_fees", "Further fees: amounts as text, by asset; mostly null."),
    ("executions", "facts", "Every version that was said, where there is more than one."),
    ("waiting_orders", "client_order_id", "As the exchange said."),
    ("waiting_orders", "exchange_order_id", "As the exchange said."),
    ("waiting_orders", "facts", "What was said of an order that is not (yet) ours."),
    ("order_corrections", "status_before", "Filled in by a trigger."),
    ("order_corrections", "status", "What the order has from then on."),
    ("order_corrections", "reason", "Why, in words."),
    ("execution_corrections", "before", "What the row said until then; filled in by a trigger."),
    ("execution_corrections", "cost", "Quote units."),
    ("execution_corrections", "fee", "In fee_currency; negative is a rebate."),
    ("execution_corrections", "reason", "Why, in words."),
    ("ledger_entries", "time", "When it happened."),
    ("ledger_entries", "amount", "In units of the asset; negative leaves the wallet."),
    ("ledger_entries", "reference", "The exchange's id of it; the same one is stored once."),
    ("reported_balances", "time", "By the exchange's clock."),
    ("reported_balances", "total", "In units of the asset, as the exchange said."),
    ("reported_balances", "used", "Of these, held by open orders or as margin."),
    ("sync_cursors", "market_id", "Null for the whole account."),
    ("sync_cursors", "kind", "What was read: orders, trades, ledger."),
    ("sync_cursors", "until", "Everything before is stored."),
    ("sync_cursors", "details", "Whatever the exchange's paging needs, e.g. the last id."),
    ("positions", "cost_basis", "What the amount cost or brought, settle units; never negative."),
    ("positions", "realized_pnl", "Of everything closed until then, before fees, settle units."),
    ("positions", "fee_value", "Fees until then that have a value in settle units."),
    ("positions", "mark_price", "Of unrealized_pnl, quote units; null without a candle."),
    ("positions", "mark_time", "When the candle of the mark price closed."),
    ("risk_events", "fingerprint", "Of its content; the same event is stored once."),
)  # fmt: skip

DOWNGRADE = """
ALTER TABLE risk_events DROP COLUMN fingerprint;
ALTER TABLE positions DROP COLUMN mark_time, DROP COLUMN mark_price, DROP COLUMN fee_value,
    DROP COLUMN realized_pnl, DROP COLUMN cost_basis;
DROP TABLE sync_cursors;
DROP TABLE reported_balances;
DROP TABLE ledger_entries;
DROP TABLE execution_corrections;
DROP TABLE order_corrections;
DROP TABLE waiting_orders;
DROP TRIGGER kurisu_changed_executions ON executions;
DROP TRIGGER kurisu_new_executions ON executions;
DROP TRIGGER kurisu_guard_executions ON executions;
DROP TRIGGER kurisu_complete_execution ON executions;
DROP TRIGGER kurisu_append_only ON executions;
DROP TRIGGER kurisu_2_guard_orders ON orders;
DROP TRIGGER kurisu_1_time_is_given ON orders;
DROP TRIGGER kurisu_new_orders ON orders;
DROP TRIGGER kurisu_append_only ON orders;
DROP FUNCTION kurisu_correct_execution();
DROP FUNCTION kurisu_correct_order();
DROP FUNCTION kurisu_changed_executions();
DROP FUNCTION kurisu_new_executions();
DROP FUNCTION kurisu_follow(bigint[], integer[], integer[], text[], text[], numeric[], numeric[],
                            timestamptz[]);
DROP FUNCTION kurisu_refuse_execution(bigint);
DROP TRIGGER kurisu_keep_owners ON markets;
DROP TRIGGER kurisu_keep_owners ON accounts;
DROP FUNCTION kurisu_keep_owners();
DROP FUNCTION kurisu_hold_owners(integer, integer);
DROP FUNCTION kurisu_guard_executions();
DROP FUNCTION kurisu_complete_execution();
DROP FUNCTION kurisu_guard_orders();
DROP FUNCTION kurisu_time_is_given();
DROP FUNCTION kurisu_new_orders();
DROP FUNCTION kurisu_append_only();
-- What waits has no place in the tables before.
DELETE FROM executions WHERE order_id IS NULL;
DROP INDEX idx_executions_waiting;
ALTER TABLE executions DROP CONSTRAINT unique_executions_trade_id;
ALTER TABLE executions DROP CONSTRAINT check_executions_other_fees;
ALTER TABLE executions DROP CONSTRAINT check_executions_waits_under_an_id;
ALTER TABLE executions DROP COLUMN facts, DROP COLUMN other_fees, DROP COLUMN side,
    DROP COLUMN exchange_order_id, DROP COLUMN market_id, DROP COLUMN account_id;
ALTER TABLE executions ALTER COLUMN order_id SET NOT NULL;
ALTER TABLE executions ADD CONSTRAINT fk_executions_order_id
    FOREIGN KEY (order_id) REFERENCES orders (id);
DROP FUNCTION kurisu_are_fees(jsonb);
ALTER TABLE orders RESET (fillfactor);
DROP INDEX unique_orders_exchange_order_id_of_run;
ALTER TABLE orders DROP CONSTRAINT unique_orders_exchange_order_id;
ALTER TABLE orders DROP COLUMN facts;
"""


def upgrade() -> None:
    execute_script(UPGRADE)
    for table, column, comment in COMMENTS:
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN {table}.{column} IS '{quoted}'")


def downgrade() -> None:
    execute_script(DOWNGRADE)
    op.execute("COMMENT ON COLUMN executions.trade_id IS 'The exchange''s.'")
