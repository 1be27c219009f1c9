"""The guard of coverage refuses isolation levels under which it would not see another writer.

It waits for the market's lock and then looks at the neighbours. Under a snapshot that is older
than the wait, the row that the other writer has just committed is not there.

Revision ID: 0009
Revises: 0008
Create Date: 2026-11-22
"""

from kurisu.migrations.script import execute_script

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

REFUSAL = """
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'write candle_coverage at isolation level READ COMMITTED only'
            USING ERRCODE = 'restrict_violation';
    END IF;"""

FUNCTION = """
CREATE OR REPLACE FUNCTION kurisu_check_coverage() RETURNS trigger LANGUAGE plpgsql AS $$
-- Stretches of one market and timeframe do not overlap. An exclusion constraint would say the
-- same, at 0.4 ms a row; as the stretches were disjoint before, the neighbours are enough.
DECLARE
    broken record;
BEGIN{refusal}
    PERFORM pg_advisory_xact_lock(1264939593, c.market_id)
       FROM (SELECT DISTINCT market_id FROM changed ORDER BY 1) c;
    SELECT c.* INTO broken FROM changed c
     WHERE c.until > (SELECT n.since FROM candle_coverage n
                       WHERE n.market_id = c.market_id AND n.timeframe = c.timeframe
                         AND n.since > c.since
                       ORDER BY n.since LIMIT 1)
        OR c.since < (SELECT p.until FROM candle_coverage p
                       WHERE p.market_id = c.market_id AND p.timeframe = c.timeframe
                         AND p.since < c.since
                       ORDER BY p.since DESC LIMIT 1)
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'coverage of market % % from % to % overlaps another stretch',
            broken.market_id, broken.timeframe, broken.since, broken.until
            USING ERRCODE = 'exclusion_violation';
    END IF;
    RETURN NULL;
END $$;
"""


def upgrade() -> None:
    execute_script(FUNCTION.format(refusal=REFUSAL))


def downgrade() -> None:
    execute_script(FUNCTION.format(refusal=""))
