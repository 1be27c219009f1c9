"""Checked references of candles and trades, coverage, revisions and upkeep.

`ohlcv.market_id` and `trades.market_id` are checked once per statement: a declared foreign key
checks each row (2.25 times the time of a bulk load) and makes a chunk drop lock `markets`.

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-22
"""

from alembic import op

from kurisu.migrations.script import execute_script

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE candle_series (
    market_id INTEGER NOT NULL,
    timeframe VARCHAR(10) NOT NULL,
    CONSTRAINT pk_candle_series PRIMARY KEY (market_id, timeframe),
    CONSTRAINT fk_candle_series_market_id FOREIGN KEY (market_id) REFERENCES markets (id)
);

CREATE FUNCTION kurisu_hold_markets(ids integer[]) RETURNS void LANGUAGE plpgsql AS $$
-- Every one of the ids is in markets, and stays there until this commits.
DECLARE
    missing integer;
BEGIN
    -- The lock is taken in the order of ids, so that two writers cannot wait for each other. It
    -- is a statement of its own: the next one sees what a deleter committed meanwhile.
    PERFORM 1 FROM markets WHERE id = ANY(ids) ORDER BY id FOR KEY SHARE;
    SELECT i.id INTO missing FROM unnest(ids) AS i(id)
     WHERE NOT EXISTS (SELECT 1 FROM markets m WHERE m.id = i.id)
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'market % is not in markets', missing
            USING ERRCODE = 'foreign_key_violation';
    END IF;
END $$;

CREATE FUNCTION kurisu_check_trades() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM kurisu_hold_markets(ARRAY(SELECT DISTINCT market_id FROM changed));
    RETURN NULL;
END $$;

CREATE FUNCTION kurisu_check_candles() RETURNS trigger LANGUAGE plpgsql AS $$
-- Beside the reference, remembers which timeframes a market has: finding that out from a
-- hypertable means a look into every chunk.
DECLARE
    ids integer[];
    names text[];
BEGIN
    SELECT array_agg(market_id), array_agg(timeframe) INTO ids, names
      FROM (SELECT DISTINCT market_id, timeframe FROM changed) d;
    PERFORM kurisu_hold_markets(ids);
    INSERT INTO candle_series (market_id, timeframe)
    SELECT n.market_id, n.timeframe FROM unnest(ids, names) AS n(market_id, timeframe)
     WHERE NOT EXISTS (SELECT 1 FROM candle_series s
                        WHERE s.market_id = n.market_id AND s.timeframe = n.timeframe)
     ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION kurisu_keep_markets() RETURNS trigger LANGUAGE plpgsql AS $$
-- A market that has candles or trades stays. Under a snapshot that outlives the statement the
-- rows of a concurrent writer could not be seen, so such a deletion is refused.
DECLARE
    referenced integer;
BEGIN
    IF TG_OP <> 'DELETE' THEN
        RAISE EXCEPTION 'markets.id never changes and markets is never truncated'
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'delete markets at isolation level READ COMMITTED only'
            USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT g.id INTO referenced
      FROM gone g
     WHERE EXISTS (SELECT 1 FROM ohlcv o WHERE o.market_id = g.id)
        OR EXISTS (SELECT 1 FROM trades t WHERE t.market_id = g.id)
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'market % still has candles or trades', referenced
            USING ERRCODE = 'foreign_key_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER kurisu_keep_markets AFTER DELETE ON markets
    REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_keep_markets();
CREATE TRIGGER kurisu_keep_market_ids BEFORE UPDATE OF id ON markets
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_keep_markets();
CREATE TRIGGER kurisu_keep_markets_truncate BEFORE TRUNCATE ON markets
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_keep_markets();

CREATE TRIGGER kurisu_check_candles_insert AFTER INSERT ON ohlcv
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_check_candles();
CREATE TRIGGER kurisu_check_candles_update AFTER UPDATE ON ohlcv
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_check_candles();
CREATE TRIGGER kurisu_check_trades_insert AFTER INSERT ON trades
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_check_trades();
CREATE TRIGGER kurisu_check_trades_update AFTER UPDATE ON trades
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_check_trades();

INSERT INTO candle_series (market_id, timeframe)
SELECT DISTINCT market_id, timeframe FROM ohlcv;

CREATE TABLE candle_coverage (
    market_id INTEGER NOT NULL,
    timeframe VARCHAR(10) NOT NULL,
    since TIMESTAMPTZ NOT NULL,
    until TIMESTAMPTZ NOT NULL,
    status VARCHAR(10) NOT NULL,
    source VARCHAR(50) NOT NULL,
    fetched_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_candle_coverage PRIMARY KEY (market_id, timeframe, since),
    CONSTRAINT fk_candle_coverage_market_id FOREIGN KEY (market_id) REFERENCES markets (id),
    CONSTRAINT check_candle_coverage_timeframe CHECK (timeframe IN (
        '1m', '3m', '5m', '15m', '30m', '1h', '2h', '4h', '6h', '8h', '12h',
        '1d', '3d', '1w', '1M')),
    CONSTRAINT check_candle_coverage_status
        CHECK (status IN ('complete', 'empty', 'outage', 'failed')),
    CONSTRAINT check_candle_coverage_range CHECK (since < until)
);

CREATE FUNCTION kurisu_check_coverage() RETURNS trigger LANGUAGE plpgsql AS $$
-- Stretches of one market and timeframe do not overlap. An exclusion constraint would say the
-- same, at 0.4 ms a row; as the stretches were disjoint before, the neighbours are enough.
DECLARE
    broken record;
BEGIN
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
CREATE TRIGGER kurisu_check_coverage_insert AFTER INSERT ON candle_coverage
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_check_coverage();
CREATE TRIGGER kurisu_check_coverage_update AFTER UPDATE ON candle_coverage
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_check_coverage();

CREATE TABLE candle_revisions (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    market_id INTEGER NOT NULL,
    timeframe VARCHAR(10) NOT NULL,
    time TIMESTAMPTZ NOT NULL,
    open NUMERIC(38, 18) NOT NULL,
    high NUMERIC(38, 18) NOT NULL,
    low NUMERIC(38, 18) NOT NULL,
    close NUMERIC(38, 18) NOT NULL,
    volume NUMERIC(38, 18) NOT NULL,
    revised_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_candle_revisions PRIMARY KEY (id),
    CONSTRAINT fk_candle_revisions_market_id FOREIGN KEY (market_id) REFERENCES markets (id)
);
CREATE INDEX idx_candle_revisions_candle ON candle_revisions (market_id, timeframe, time);
CREATE INDEX idx_candle_revisions_revised_at ON candle_revisions (revised_at);

CREATE FUNCTION kurisu_keep_revisions() RETURNS trigger LANGUAGE plpgsql
SET enable_nestloop = off AS $$
-- A candle that is changed leaves behind what it was, whoever changes it. The plan is made once in
-- a session, for the size of its first statement: after one of a single row, a nested loop would
-- compare each of a million changed rows with each other.
BEGIN
    INSERT INTO candle_revisions (market_id, timeframe, time, open, high, low, close, volume)
    SELECT o.market_id, o.timeframe, o.time, o.open, o.high, o.low, o.close, o.volume
      FROM changed_from o
      LEFT JOIN changed_to n USING (market_id, timeframe, time)
     WHERE (o.open, o.high, o.low, o.close, o.volume)
           IS DISTINCT FROM (n.open, n.high, n.low, n.close, n.volume);
    RETURN NULL;
END $$;
CREATE TRIGGER kurisu_keep_revisions AFTER UPDATE ON ohlcv
    REFERENCING OLD TABLE AS changed_from NEW TABLE AS changed_to
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_keep_revisions();

CREATE TABLE retention_policies (
    relation VARCHAR(20) NOT NULL,
    drop_after INTERVAL,
    compress_after INTERVAL,
    origin VARCHAR(10) NOT NULL DEFAULT 'default',
    dropped_before TIMESTAMPTZ,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_retention_policies PRIMARY KEY (relation),
    CONSTRAINT check_retention_policies_relation CHECK (relation IN ('ohlcv', 'trades')),
    CONSTRAINT check_retention_policies_origin
        CHECK (origin IN ('default', 'command', 'config')),
    CONSTRAINT check_retention_policies_drop_after_positive CHECK (drop_after > INTERVAL '0')
);
INSERT INTO retention_policies (relation, drop_after, compress_after)
VALUES ('ohlcv', INTERVAL '1 year', INTERVAL '7 days'),
       ('trades', INTERVAL '30 days', INTERVAL '3 days');

CREATE TABLE rollup_pending (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    since TIMESTAMPTZ NOT NULL,
    until TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_rollup_pending PRIMARY KEY (id),
    CONSTRAINT check_rollup_pending_range CHECK (since < until)
);
CREATE INDEX idx_rollup_pending_since ON rollup_pending (since);
"""


def upgrade() -> None:
    execute_script(UPGRADE)


def downgrade() -> None:
    for table in ("rollup_pending", "retention_policies", "candle_revisions", "candle_coverage",
                  "candle_series"):  # fmt: skip
        op.execute(f"DROP TABLE {table}")
    for table, name in (("ohlcv", "candles"), ("trades", "trades")):
        op.execute(f"DROP TRIGGER kurisu_check_{name}_insert ON {table}")
        op.execute(f"DROP TRIGGER kurisu_check_{name}_update ON {table}")
    op.execute("DROP TRIGGER kurisu_keep_revisions ON ohlcv")
    for trigger in ("kurisu_keep_markets", "kurisu_keep_market_ids",
                    "kurisu_keep_markets_truncate"):  # fmt: skip
        op.execute(f"DROP TRIGGER {trigger} ON markets")
    for function in (
        "kurisu_check_coverage()",
        "kurisu_keep_revisions()",
        "kurisu_keep_markets()",
        "kurisu_check_candles()",
        "kurisu_check_trades()",
        "kurisu_hold_markets(integer[])",
    ):
        op.execute(f"DROP FUNCTION {function}")
