"""What `status` says of the server, the relations, the policies and the rollups."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
from bars import DAY, MINUTE, ROLLUPS, START, as_table, closing, minutes, native, opening
from engines import EDITIONS
from rows import fetch

from kurisu.config import Config
from kurisu.schema import Base
from kurisu.store import migrate
from kurisu.store import status as status_module
from kurisu.store.connect import transaction
from kurisu.store.markets import Market
from kurisu.store.rollups import materialization
from kurisu.store.status import DatabaseStatus, PolicyStatus, RollupStatus, TableStatus
from kurisu.store.store import Store, open_store

TODAY: Final = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
CANDLES: Final = minutes(START, 90)


def table(found: DatabaseStatus, name: str) -> TableStatus:
    return next(t for t in found.tables if t.name == name)


def policies(found: DatabaseStatus) -> dict[tuple[str, str], PolicyStatus]:
    return {(p.relation, p.policy): p for p in found.policies}


async def test_the_server_is_named(store: Store, tier: str) -> None:
    found = await store.db.status()
    assert found.engine == str(store.engine)
    assert found.edition == EDITIONS[tier].value
    assert found.postgres == store.engine.postgres
    assert found.timescaledb == store.engine.timescaledb
    assert (found.timescaledb is None) == (tier == "plain")


async def test_the_revision_is_the_newest(store: Store) -> None:
    found = await store.db.status()
    assert found.revision == found.head == migrate.head()


async def test_every_relation_is_there_and_candles_come_first(store: Store) -> None:
    names = [t.name for t in (await store.db.status()).tables]
    assert sorted(names) == sorted(Base.metadata.tables)
    assert names[: len(ROLLUPS) + 1] == ["ohlcv", *sorted(f"ohlcv_{name}" for name in ROLLUPS)]


async def test_kinds_are_those_of_the_tier(store: Store, tier: str) -> None:
    found = await store.db.status()
    raw = "table" if tier == "plain" else "hypertable"
    bars = "continuous aggregate" if tier == "community" else "table"
    assert {t.name: t.kind for t in found.tables if t.kind != "table"} == {
        name: kind
        for name, kind in (
            ("ohlcv", raw),
            ("trades", raw),
            *((f"ohlcv_{name}", bars) for name in ROLLUPS),
        )
        if kind != "table"
    }


async def test_rows_are_counted(store: Store, market: Market) -> None:
    await store.candles.write(market, "1m", as_table(CANDLES))
    found = await store.db.status()
    assert {t.name: t.rows for t in found.tables if t.name.startswith("ohlcv")} == {
        "ohlcv": 90, "ohlcv_5m": 18, "ohlcv_15m": 6, "ohlcv_1h": 2, "ohlcv_4h": 1, "ohlcv_1d": 1,
    }  # fmt: skip
    assert table(found, "markets").rows == 1
    assert table(found, "candle_coverage").rows == 1
    assert not any(t.estimated for t in found.tables)


async def test_sizes_grow_with_what_is_stored(store: Store, market: Market) -> None:
    before = table(await store.db.status(), "ohlcv").bytes
    await store.candles.write(market, "1m", as_table(CANDLES))
    found = await store.db.status()
    assert table(found, "ohlcv").bytes > before
    assert table(found, "ohlcv_5m").bytes > 0


async def test_more_rows_than_the_limit_are_an_estimate(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.candles.write(market, "1m", as_table(CANDLES))
    monkeypatch.setattr(status_module, "EXACT_ROWS", 50)
    assert table(await store.db.status(), "ohlcv").estimated
    await fetch(store, "ANALYZE ohlcv")
    found = table(await store.db.status(), "ohlcv")
    assert (found.rows, found.estimated) == (90, True)
    assert not table(await store.db.status(), "ohlcv_5m").estimated


async def test_chunks_are_counted_where_there_are_any(
    store: Store, market: Market, tier: str
) -> None:
    rows = minutes(START, 4, step=7 * DAY)
    await store.candles.write(market, "1m", as_table(rows))
    found = table(await store.db.status(), "ohlcv")
    assert found.chunks == (None if tier == "plain" else 4)
    assert found.compressed_chunks == (0 if tier == "community" else None)
    assert found.compression_ratio is None


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_compressed_chunks_and_their_ratio_are_told(store: Store, market: Market) -> None:
    await store.candles.write(market, "1m", as_table(minutes(START, 1_000)))
    await store.db.maintain()
    found = table(await store.db.status(), "ohlcv")
    assert (found.chunks, found.compressed_chunks) == (1, 1)
    assert found.compression_ratio is not None
    assert found.compression_ratio > 1
    assert found.rows == 1_000


async def test_policies_are_told_with_what_carries_them_out(store: Store, tier: str) -> None:
    await store.db.set_retention("trades", "60 days")
    found = policies(await store.db.status())
    kept = [("ohlcv", "retention", "1 year", "default"), ("trades", "retention", "60 days",
            "command")]  # fmt: skip
    if tier == "community":
        kept += [("ohlcv", "compression", "7 days", "default"),
                 ("trades", "compression", "3 days", "default")]  # fmt: skip
    assert sorted(
        (p.relation, p.policy, p.after, str(p.origin))
        for p in found.values()
        if p.policy != "refresh"
    ) == sorted(kept)
    by = "background job" if tier == "community" else "kurisu db maintain"
    assert {p.carried_out_by for p in found.values()} == {by}


async def test_a_policy_that_is_off_says_so(store: Store) -> None:
    await store.db.set_retention("ohlcv", "off")
    found = policies(await store.db.status())["ohlcv", "retention"]
    assert (found.after, found.origin) == ("off", "command")
    assert (found.last_run, found.next_run, found.last_status) == (None, None, None)


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_every_aggregate_has_a_refresh_with_its_window(store: Store) -> None:
    found = policies(await store.db.status())
    refreshes = {p.relation: p for p in found.values() if p.policy == "refresh"}
    assert set(refreshes) == {f"ohlcv_{name}" for name in ROLLUPS}
    assert refreshes["ohlcv_1h"].after == "7 days to 01:00:00"
    assert {p.origin for p in refreshes.values()} == {None}


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_a_policy_that_never_ran_has_no_last_run(store: Store) -> None:
    # A real server's scheduler may have been faster than whoever stopped it.
    await fetch(store, "DELETE FROM _timescaledb_internal.bgw_job_stat")
    for found in (await store.db.status()).policies:
        assert (found.last_run, found.last_status, found.last_error) == (None, None, None)


#: What a background worker notes of a job. There is none on the WebAssembly engine, and CALL
#: run_job notes nothing.
RAN: Final = """
INSERT INTO _timescaledb_internal.bgw_job_stat
       (job_id, last_start, last_finish, next_start, last_successful_finish, last_run_success,
        total_runs, total_duration, total_duration_failures, total_successes, total_failures,
        total_crashes, consecutive_failures, consecutive_crashes)
SELECT job_id, :start, CAST(:start AS timestamptz) + INTERVAL '2 seconds',
       CAST(:start AS timestamptz) + INTERVAL '1 day', '-infinity', :success,
       1, '2 seconds', '0', 0, 0, 0, 0, 0
  FROM timescaledb_information.jobs
 WHERE proc_name = 'policy_retention' AND hypertable_name = 'ohlcv'
"""

FAILED: Final = """
INSERT INTO _timescaledb_internal.bgw_job_stat_history
       (job_id, execution_start, execution_finish, succeeded, data)
SELECT job_id, :start, CAST(:start AS timestamptz) + INTERVAL '2 seconds', false,
       '{"error_data": {"message": "canceling statement due to lock timeout"}}'
  FROM timescaledb_information.jobs
 WHERE proc_name = 'policy_retention' AND hypertable_name = 'ohlcv'
"""


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_a_policy_that_ran_has_a_last_and_a_next_run(store: Store) -> None:
    await fetch(store, RAN, start=TODAY, success=True)
    found = policies(await store.db.status())["ohlcv", "retention"]
    assert (found.last_run, found.next_run) == (TODAY, TODAY + DAY)
    assert (found.last_status, found.last_error) == ("Success", None)


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_a_policy_that_failed_says_why(store: Store) -> None:
    await fetch(store, RAN, start=TODAY, success=False)
    await fetch(store, FAILED, start=TODAY)
    found = policies(await store.db.status())["ohlcv", "retention"]
    assert found.last_status == "Failed"
    assert found.last_error == "canceling statement due to lock timeout"


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_an_error_of_an_earlier_run_is_not_told_after_a_success(store: Store) -> None:
    await fetch(store, FAILED, start=TODAY - DAY)
    await fetch(store, RAN, start=TODAY, success=True)
    found = policies(await store.db.status())["ohlcv", "retention"]
    assert (found.last_status, found.last_error) == ("Success", None)


async def test_compression_from_kurisu_toml_says_so(store: Store, url: str, tier: str) -> None:
    await store.db.set_retention("ohlcv", "5 years")
    async with open_store(url, Config(Path("kurisu.toml"), {}, {"trades": "9 days"})) as opened:
        found = policies(await opened.db.status())
    if tier == "community":
        assert found["trades", "compression"].origin == "config"
        assert found["ohlcv", "compression"].origin == "default"
    else:
        assert not any(p.policy == "compression" for p in found.values())
    assert found["ohlcv", "retention"].origin == "command"


# Rollups.


async def test_rollups_of_an_empty_database_are_current(store: Store) -> None:
    found = (await store.db.status()).rollups
    assert found == [RollupStatus(f"ohlcv_{name}", None, None, current=True) for name in ROLLUPS]


async def test_rollups_are_current_after_a_write(store: Store, market: Market, tier: str) -> None:
    await store.candles.write(market, "1m", as_table(CANDLES))
    last = CANDLES[-1].time
    found = (await store.db.status()).rollups
    assert [(r.name, r.newest, r.current) for r in found] == [
        (f"ohlcv_{name}", opening(last, name), True) for name in ROLLUPS
    ]
    assert [r.materialized_until for r in found] == [
        closing(opening(last, name), name) if tier == "community" else None for name in ROLLUPS
    ]


async def test_own_bars_make_no_rollup_stale(store: Store, market: Market) -> None:
    await store.candles.write(market, "1m", as_table(CANDLES))
    await store.candles.write(market, "1d", as_table(native(START + 30 * DAY, 3, "1d")))
    assert all(r.current for r in (await store.db.status()).rollups)


async def test_a_rollup_without_its_newest_bar_is_not_current(store: Store, market: Market) -> None:
    await store.candles.write(market, "1m", as_table(CANDLES))
    bars = "ohlcv_5m"
    if store.engine.is_community:
        async with transaction(store.database) as connection:
            bars = await materialization(connection, "5m")
    await fetch(store, f"DELETE FROM {bars} WHERE time > :time", time=START + 60 * MINUTE)
    found = (await store.db.status()).rollups
    assert {r.name: r.current for r in found} == {f"ohlcv_{name}": name != "5m" for name in ROLLUPS}
    assert found[0].newest == START + 60 * MINUTE


async def test_there_are_no_pending_refreshes_after_a_write(store: Store, market: Market) -> None:
    await store.candles.write(market, "1m", as_table(CANDLES))
    assert (await store.db.status()).pending_refreshes == 0


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_refreshes_that_were_left_behind_are_counted(store: Store, market: Market) -> None:
    await store.candles.write(market, "1m", as_table(CANDLES))
    for i in range(2):
        await fetch(
            store,
            "INSERT INTO rollup_pending (since, until) VALUES (:since, :until)",
            since=START + i * DAY, until=START + (i + 1) * DAY,
        )  # fmt: skip
    assert (await store.db.status()).pending_refreshes == 2
    await store.db.maintain()
    assert (await store.db.status()).pending_refreshes == 0


async def test_the_status_is_plain_values_for_json(store: Store, market: Market) -> None:
    await store.candles.write(market, "1m", as_table(CANDLES))
    if store.engine.is_community:
        await fetch(store, RAN, start=TODAY, success=True)
    found = await store.db.status()
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["edition"] == found.edition
    assert plain["pending_refreshes"] == 0
    assert [t["name"] for t in plain["tables"]] == [t.name for t in found.tables]
    rollup = plain["rollups"][0]
    assert rollup["newest"] == "2024-01-01T01:25:00+00:00"
    assert rollup["current"] is True
    assert set(plain["policies"][0]) == {
        "relation", "policy", "after", "origin", "carried_out_by", "last_run", "next_run",
        "last_status", "last_error",
    }  # fmt: skip


async def test_asking_changes_nothing(store: Store, market: Market) -> None:
    await store.candles.write(market, "1m", as_table(CANDLES))
    first = await store.db.status()
    assert await store.db.status() == first
