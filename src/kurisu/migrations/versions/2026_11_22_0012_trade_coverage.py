"""Coverage of trades: which stretches of a market's public trades are stored, whole.

Revision ID: 0012
Revises: 0011
Create Date: 2026-11-22
"""

from alembic import op

from kurisu.migrations.script import execute_script

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE trade_coverage (
    market_id INTEGER NOT NULL,
    since TIMESTAMPTZ NOT NULL,
    until TIMESTAMPTZ NOT NULL,
    status VARCHAR(10) NOT NULL,
    source VARCHAR(50) NOT NULL,
    reason VARCHAR(500),
    fetched_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_trade_coverage PRIMARY KEY (market_id, since),
    CONSTRAINT fk_trade_coverage_market_id FOREIGN KEY (market_id) REFERENCES markets (id),
    CONSTRAINT check_trade_coverage_status
        CHECK (status IN ('complete', 'empty', 'outage', 'failed')),
    CONSTRAINT check_trade_coverage_range CHECK (since < until)
);
COMMENT ON COLUMN trade_coverage.since IS 'Whole milliseconds, inclusive.';
COMMENT ON COLUMN trade_coverage.until IS 'Whole milliseconds, exclusive.';
COMMENT ON COLUMN trade_coverage.status IS 'complete, empty, outage or failed.';
COMMENT ON COLUMN trade_coverage.source IS 'What said so: file, rest, stream.';
COMMENT ON COLUMN trade_coverage.reason IS 'Why it failed; null where it did not.';

CREATE FUNCTION kurisu_check_trade_coverage() RETURNS trigger LANGUAGE plpgsql AS $$
-- Stretches of one market do not overlap. As they were disjoint before, the neighbours are enough.
-- The lock is a trade writer's own: candles of the market do not wait for it.
DECLARE
    broken record;
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'write trade_coverage at isolation level READ COMMITTED only'
            USING ERRCODE = 'restrict_violation';
    END IF;
    PERFORM pg_advisory_xact_lock(1264939595, c.market_id)
       FROM (SELECT DISTINCT market_id FROM changed ORDER BY 1) c;
    SELECT c.* INTO broken FROM changed c
     WHERE c.until > (SELECT n.since FROM trade_coverage n
                       WHERE n.market_id = c.market_id AND n.since > c.since
                       ORDER BY n.since LIMIT 1)
        OR c.since < (SELECT p.until FROM trade_coverage p
                       WHERE p.market_id = c.market_id AND p.since < c.since
                       ORDER BY p.since DESC LIMIT 1)
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'coverage of the trades of market % from % to % overlaps another stretch',
            broken.market_id, broken.since, broken.until
            USING ERRCODE = 'exclusion_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER kurisu_check_trade_coverage_insert AFTER INSERT ON trade_coverage
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_check_trade_coverage();
CREATE TRIGGER kurisu_check_trade_coverage_update AFTER UPDATE ON trade_coverage
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_check_trade_coverage();
"""


def upgrade() -> None:
    execute_script(UPGRADE)


def downgrade() -> None:
    op.execute("DROP TABLE trade_coverage")
    op.execute("DROP FUNCTION kurisu_check_trade_coverage()")
