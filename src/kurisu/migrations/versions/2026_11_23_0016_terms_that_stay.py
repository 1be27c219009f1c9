"""What orders were counted with stays: a market's names and contract size, an account's exchange.

Positions and PnL are derived from executions and the contract size of their market, under the name
of its symbol. To change one of these, by hand or because an exchange lists another size, was to
count every old fill anew, and wrongly.

Revision ID: 0016
Revises: 0015
Create Date: 2026-11-23
"""

from kurisu.migrations.script import execute_script, set_path

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE FUNCTION kurisu_keep_terms() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.contract_size IS NULL AND strpos(OLD.symbol, ':') > 0
       AND (OLD.exchange, OLD.symbol) = (NEW.exchange, NEW.symbol) THEN
        RETURN NEW;  -- A contract's size, said for the first time: nothing was counted without it.
    END IF;
    -- An order that is being placed holds its market until it commits.
    PERFORM 1 FROM markets WHERE id = OLD.id FOR UPDATE;
    IF EXISTS (SELECT 1 FROM orders WHERE market_id = OLD.id) THEN
        RAISE EXCEPTION 'market %:% has orders: its exchange, its symbol and its contract size '
            'stay what they were counted with', OLD.exchange, OLD.symbol
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER kurisu_keep_terms BEFORE UPDATE OF exchange, symbol, contract_size ON markets
    FOR EACH ROW WHEN ((OLD.exchange, OLD.symbol, OLD.contract_size)
                       IS DISTINCT FROM (NEW.exchange, NEW.symbol, NEW.contract_size))
    EXECUTE FUNCTION kurisu_keep_terms();

CREATE FUNCTION kurisu_keep_exchange() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'account %:% stays at its exchange: an account at another one is another',
        OLD.exchange, OLD.name USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER kurisu_keep_exchange BEFORE UPDATE OF exchange ON accounts
    FOR EACH ROW WHEN (OLD.exchange IS DISTINCT FROM NEW.exchange)
    EXECUTE FUNCTION kurisu_keep_exchange();
"""

DOWNGRADE = """
DROP TRIGGER kurisu_keep_exchange ON accounts;
DROP FUNCTION kurisu_keep_exchange();
DROP TRIGGER kurisu_keep_terms ON markets;
DROP FUNCTION kurisu_keep_terms();
"""


def upgrade() -> None:
    execute_script(UPGRADE)
    set_path(["kurisu_keep_terms()"])


def downgrade() -> None:
    execute_script(DOWNGRADE)
