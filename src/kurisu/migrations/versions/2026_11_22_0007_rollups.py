"""Rollups 5m, 15m, 1h, 4h and 1d, kept by statement-level triggers.

On TimescaleDB Community `kurisu.store.layout` replaces them by continuous aggregates of the same
names and columns after the upgrade.

Revision ID: 0007
Revises: 0006
Create Date: 2026-11-22
"""

from alembic import op

from kurisu.migrations.script import execute_script, has_timescaledb, scalar

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

EPOCH = "TIMESTAMPTZ '1970-01-01 00:00:00+00'"

# name, length, the relation it is made from. In hours: to a session in a time zone
# with summer time, one day later may be 23 or 25 hours later.
LEVELS = (
    ("5m", "5 minutes", "ohlcv"),
    ("15m", "15 minutes", "ohlcv_5m"),
    ("1h", "1 hour", "ohlcv_15m"),
    ("4h", "4 hours", "ohlcv_1h"),
    ("1d", "24 hours", "ohlcv_4h"),
)


def table(name: str) -> str:
    return f"""
CREATE TABLE ohlcv_{name} (
    time TIMESTAMPTZ NOT NULL,
    market_id INTEGER NOT NULL,
    open NUMERIC(38, 18) NOT NULL,
    high NUMERIC(38, 18) NOT NULL,
    low NUMERIC(38, 18) NOT NULL,
    close NUMERIC(38, 18) NOT NULL,
    volume NUMERIC NOT NULL,
    bars INTEGER NOT NULL,
    CONSTRAINT pk_ohlcv_{name} PRIMARY KEY (market_id, time)
);
COMMENT ON TABLE ohlcv_{name} IS
    'Kept from 1m candles; on TimescaleDB Community a continuous aggregate.';
"""


def level(name: str, length: str, source: str) -> str:
    """The statements that bring one level up to date in the windows of `dirty`."""
    raw = source == "ohlcv"
    # A bar whose raw candles have been dropped by retention is all that is left of them: a late
    # or partial candle may complete it, never thin it out.
    keep = "AND (b.bars <= excluded.bars OR b.time >= horizon)" if raw else ""
    return f"""
    IF removing THEN
        DELETE FROM ohlcv_{name} b
         USING unnest(markets, lows, highs) AS w(market_id, lo, hi)
         WHERE b.market_id = w.market_id
           AND b.time >= date_bin('{length}', w.lo, {EPOCH}) AND b.time < w.hi
           {"AND b.time >= horizon" if raw else ""}
           AND NOT EXISTS (
               SELECT 1 FROM {source} s
                WHERE s.market_id = b.market_id {"AND s.timeframe = '1m'" if raw else ""}
                  AND s.time >= b.time AND s.time < b.time + INTERVAL '{length}'
               -- Keeps the planner from making this an anti-join on market_id alone, which
               -- compares every bar with every candle.
               OFFSET 0);
    END IF;
    INSERT INTO ohlcv_{name} AS b (time, market_id, open, high, low, close, volume, bars)
    SELECT r.time, w.market_id, r.open, r.high, r.low, r.close, r.volume, r.bars
      FROM (
        SELECT u.market_id, date_bin('{length}', min(u.lo), {EPOCH}) AS lo,
               date_bin('{length}', max(u.hi) - INTERVAL '1 microsecond', {EPOCH})
               + INTERVAL '{length}' AS hi
          FROM unnest(markets, lows, highs) AS u(market_id, lo, hi)
         GROUP BY u.market_id, date_bin('1 day', u.lo, {EPOCH})
      ) w
      CROSS JOIN LATERAL (
        SELECT date_bin('{length}', s.time, {EPOCH}) AS time,
               (array_agg(s.open ORDER BY s.time))[1] AS open, max(s.high) AS high,
               min(s.low) AS low, (array_agg(s.close ORDER BY s.time))[count(*)] AS close,
               sum(s.volume) AS volume, {"count(*)" if raw else "sum(s.bars)"}::integer AS bars
          FROM {source} s
         WHERE s.market_id = w.market_id {"AND s.timeframe = '1m'" if raw else ""}
           AND s.time >= w.lo AND s.time < w.hi
         GROUP BY 1
      ) r
    ON CONFLICT (market_id, time) DO UPDATE
       SET open = excluded.open, high = excluded.high, low = excluded.low,
           close = excluded.close, volume = excluded.volume, bars = excluded.bars
     WHERE (b.open, b.high, b.low, b.close, b.volume, b.bars) IS DISTINCT FROM
           (excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume,
            excluded.bars) {keep};
"""


FUNCTIONS = f"""
CREATE FUNCTION kurisu_refresh_rollups(
    markets integer[], lows timestamptz[], highs timestamptz[], removing boolean
) RETURNS void LANGUAGE plpgsql AS $$
-- Recomputes every rollup bar that touches one of the windows [low, high) of a market, each
-- level from the one below. removing: bars may have lost their last candle.
DECLARE
    horizon timestamptz;
BEGIN
    IF markets IS NULL THEN
        RETURN;
    END IF;
    -- Two writers of one bar each see only their own candles until they commit, and the second
    -- would overwrite the first's share: one after the other, in the order of markets. Kurisu's
    -- own writer holds the same lock already.
    PERFORM pg_advisory_xact_lock(1264939593, m.market_id)
       FROM (SELECT DISTINCT unnest(markets) AS market_id ORDER BY 1) m;
    SELECT coalesce(dropped_before, '-infinity') INTO horizon
      FROM retention_policies WHERE relation = 'ohlcv';
{"".join(level(*parts) for parts in LEVELS)}
END $$;

CREATE FUNCTION kurisu_rollup_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
-- A transition table is visible in the trigger function's own statements only, so the touched
-- windows are taken out of it here: one for each market and day.
DECLARE
    markets integer[];
    lows timestamptz[];
    highs timestamptz[];
BEGIN
    SELECT array_agg(market_id), array_agg(lo), array_agg(hi) INTO markets, lows, highs
      FROM (SELECT market_id, min(time) AS lo, max(time) + INTERVAL '1 minute' AS hi
              FROM changed WHERE timeframe = '1m'
             GROUP BY market_id, date_bin('1 day', time, {EPOCH})) d;
    PERFORM kurisu_refresh_rollups(markets, lows, highs, false);
    RETURN NULL;
END $$;

CREATE FUNCTION kurisu_rollup_updated() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    markets integer[];
    lows timestamptz[];
    highs timestamptz[];
BEGIN
    SELECT array_agg(market_id), array_agg(lo), array_agg(hi) INTO markets, lows, highs
      FROM (SELECT market_id, min(time) AS lo, max(time) + INTERVAL '1 minute' AS hi
              FROM (SELECT market_id, time FROM changed_from WHERE timeframe = '1m'
                    UNION ALL
                    SELECT market_id, time FROM changed_to WHERE timeframe = '1m') c
             GROUP BY market_id, date_bin('1 day', time, {EPOCH})) d;
    PERFORM kurisu_refresh_rollups(markets, lows, highs, true);
    RETURN NULL;
END $$;

CREATE FUNCTION kurisu_rollup_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    markets integer[];
    lows timestamptz[];
    highs timestamptz[];
BEGIN
    -- Retention drops candles and keeps their bars; it says so for its own transaction.
    IF current_setting('kurisu.expiring', true) = 'on' THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(market_id), array_agg(lo), array_agg(hi) INTO markets, lows, highs
      FROM (SELECT market_id, min(time) AS lo, max(time) + INTERVAL '1 minute' AS hi
              FROM changed WHERE timeframe = '1m'
             GROUP BY market_id, date_bin('1 day', time, {EPOCH})) d;
    PERFORM kurisu_refresh_rollups(markets, lows, highs, true);
    RETURN NULL;
END $$;

CREATE FUNCTION kurisu_rollup_truncated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Rows that move into chunks leave the table by TRUNCATE, and their bars stay.
    IF current_setting('kurisu.expiring', true) = 'on' THEN
        RETURN NULL;
    END IF;
    {" ".join(f"DELETE FROM ohlcv_{name};" for name, _, _ in LEVELS)}
    RETURN NULL;
END $$;

CREATE TRIGGER kurisu_rollup_inserted AFTER INSERT ON ohlcv
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_rollup_inserted();
CREATE TRIGGER kurisu_rollup_updated AFTER UPDATE ON ohlcv
    REFERENCING OLD TABLE AS changed_from NEW TABLE AS changed_to
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_rollup_updated();
CREATE TRIGGER kurisu_rollup_truncated AFTER TRUNCATE ON ohlcv
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_rollup_truncated();
"""

# TimescaleDB has no such trigger on a hypertable with compression: one that was on Community, was
# downgraded and is on its way back there, where `kurisu.store.layout` drops these triggers again.
DELETE_TRIGGER = """
CREATE TRIGGER kurisu_rollup_deleted AFTER DELETE ON ohlcv
    REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION kurisu_rollup_deleted();
"""

COMPRESSION = """
SELECT 1 FROM timescaledb_information.hypertables
 WHERE hypertable_schema = current_schema() AND hypertable_name = 'ohlcv'
   AND compression_enabled
"""

# Bars of the candles that are there already.
FILL = f"""
SET LOCAL statement_timeout = 0;
SELECT kurisu_refresh_rollups(array_agg(market_id), array_agg(lo), array_agg(hi), false)
  FROM (SELECT market_id, min(time) AS lo, max(time) + INTERVAL '1 minute' AS hi
          FROM ohlcv WHERE timeframe = '1m'
         GROUP BY market_id, date_bin('1 day', time, {EPOCH})) d;
"""


def upgrade() -> None:
    for name, _, _ in LEVELS:
        execute_script(table(name))
    execute_script(FUNCTIONS)
    if not has_timescaledb() or scalar(COMPRESSION) is None:
        execute_script(DELETE_TRIGGER)
    execute_script(FILL)


def downgrade() -> None:
    # `copied` is what `kurisu.store.layout` adds on Community.
    for event in ("inserted", "updated", "deleted", "truncated", "copied"):
        op.execute(f"DROP TRIGGER IF EXISTS kurisu_rollup_{event} ON ohlcv")
        op.execute(f"DROP FUNCTION IF EXISTS kurisu_rollup_{event}()")
    op.execute("DROP FUNCTION IF EXISTS kurisu_refresh_rollups(int[], timestamptz[], "
               "timestamptz[], boolean)")  # fmt: skip
    for name, _, _ in reversed(LEVELS):
        # A continuous aggregate's relkind is that of a view.
        if (
            scalar(f"SELECT relkind::text FROM pg_class WHERE oid = to_regclass('ohlcv_{name}')")
            == "v"
        ):
            op.execute(f"DROP MATERIALIZED VIEW ohlcv_{name}")
        else:
            op.execute(f"DROP TABLE ohlcv_{name}")
