"""How long rows are kept: the defaults, what moves them, who sets them, and TimescaleDB's jobs."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from bars import DAY, START, as_table, minutes, native
from engines import CONCURRENT_TIERS
from rows import fetch, stored, value

from kurisu.config import Config
from kurisu.errors import ConfigError, InvalidArgument, RetentionConflict
from kurisu.store import candle_write
from kurisu.store.markets import Market
from kurisu.store.policies import parse_duration
from kurisu.store.store import Store, open_store

OLD: Final = minutes(START, 10)
TODAY: Final = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
RECENT: Final = minutes(TODAY - 20 * DAY, 10)
TOML: Final = Path("kurisu.toml")


def config(retention: str | None = None, compression: str | None = None) -> Config:
    return Config(
        TOML,
        {} if retention is None else {"ohlcv": retention},
        {} if compression is None else {"ohlcv": compression},
    )


async def write(store: Store, market: Market, rows: Any = OLD, **options: Any) -> list[str]:
    """Store candles; returns the notes of the report."""
    return (await store.candles.write(market, "1m", as_table(rows), **options)).notes


async def jobs(store: Store) -> dict[tuple[str, str], tuple[str, int]]:
    """TimescaleDB's policies on our relations: how old rows become, and the job's id."""
    rows = await fetch(
        store,
        "SELECT hypertable_name, proc_name, coalesce(config->>'drop_after', "
        "config->>'compress_after')::interval::text, job_id FROM timescaledb_information.jobs "
        "WHERE proc_name IN ('policy_retention', 'policy_compression')",
    )
    return {(relation, proc): (after, job) for relation, proc, after, job in rows}


async def assert_jobs_as_the_table_says(store: Store) -> None:
    if not store.engine.is_community:
        return
    wanted = {}
    for policy in (await store.db.retention()).values():
        if policy.drop_after is not None:
            wanted[policy.relation, "policy_retention"] = policy.drop_after
        if policy.compress_after is not None:
            wanted[policy.relation, "policy_compression"] = policy.compress_after
    assert {key: after for key, (after, _) in (await jobs(store)).items()} == wanted


@pytest.mark.parametrize(
    ("given", "interval"),
    [
        ("5 years", "5 years"),
        ("1 year", "1 year"),
        ("1 years", "1 year"),
        ("  30days ", "30 days"),
        ("18 Months", "18 months"),
        ("2 mon", "2 months"),
        ("1 MON", "1 month"),
        ("36 hours", "36 hours"),
        ("007 weeks", "7 weeks"),
        ("90 minutes", "90 minutes"),
        ("1000 years", "1000 years"),
        ("off", None),
        (" OFF ", None),
        ("never", None),
    ],
)
def test_a_duration_is_read(given: str, interval: str | None) -> None:
    assert parse_duration(given) == interval


@pytest.mark.parametrize(
    "given",
    ["", "5", "years", "0 days", "-5 days", "1.5 years", "5 fortnights", "5 years ago", "5 y",
     "1 year 6 months", "'; DROP TABLE ohlcv", "1e3 days", "1000000 days"],
)  # fmt: skip
def test_what_is_no_duration_is_refused_with_examples(given: str) -> None:
    with pytest.raises(InvalidArgument, match=r"is not a duration: write e\.g\. '30 days'"):
        parse_duration(given)


@pytest.mark.parametrize("given", ["1001 years", "999999 years", "12001 months", "366000 days"])
def test_a_duration_beyond_the_calendar_is_refused(given: str) -> None:
    with pytest.raises(InvalidArgument, match="longer than 1,000 years; 'off' keeps rows"):
        parse_duration(given)


async def test_the_defaults_are_those_of_the_document(store: Store) -> None:
    found = await store.db.retention()
    assert {p.relation: (p.drop_after, p.compress_after, p.origin) for p in found.values()} == {
        "ohlcv": ("1 year", "7 days", "default"),
        "trades": ("30 days", "3 days", "default"),
    }
    assert {p.dropped_before for p in found.values()} == {None}
    await assert_jobs_as_the_table_says(store)


async def test_the_cutoff_is_that_long_ago(store: Store) -> None:
    cutoff = (await store.db.retention())["trades"].cutoff
    assert cutoff is not None
    assert TODAY - 30 * DAY <= cutoff <= datetime.now(UTC) - 30 * DAY + timedelta(minutes=1)


# What a write asks for is kept.


async def test_an_old_write_moves_a_default_back_and_says_so(store: Store, market: Market) -> None:
    notes = await write(store, market)
    policy = (await store.db.retention())["ohlcv"]
    assert notes == [
        f"retention of ohlcv moved from 1 year to {policy.drop_after}, so that rows from "
        "2024-01-01 on are kept (kurisu db retention ohlcv sets it yourself)"
    ]
    assert policy.origin == "default"
    assert policy.cutoff is not None
    assert policy.cutoff <= START - 365 * DAY, "and they are kept for another year"
    assert await stored(store, market) == OLD
    await assert_jobs_as_the_table_says(store)


async def test_a_default_that_is_far_enough_back_stays(store: Store, market: Market) -> None:
    await write(store, market)
    before = await store.db.retention()
    assert await write(store, market, minutes(START - 100 * DAY, 5)) == []
    assert {p.drop_after for p in before.values()} == {
        p.drop_after for p in (await store.db.retention()).values()
    }


async def test_a_recent_write_moves_nothing(store: Store, market: Market) -> None:
    assert await write(store, market, RECENT) == []
    assert (await store.db.retention())["ohlcv"].drop_after == "1 year"


async def test_an_older_write_moves_a_default_again(store: Store, market: Market) -> None:
    await write(store, market)
    (note,) = await write(store, market, minutes(START.replace(year=2013), 5))
    assert "so that rows from 2013-01-01 on are kept" in note
    cutoff = (await store.db.retention())["ohlcv"].cutoff
    assert cutoff is not None
    assert cutoff < START.replace(year=2013)


async def test_the_oldest_own_bar_counts_too(store: Store, market: Market) -> None:
    report = await store.candles.write(market, "1d", as_table(native(START, 3, "1d")))
    assert len(report.notes) == 1


async def test_the_policy_moves_before_the_rows_are_stored(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A background job that runs between the two must not find them already expired."""

    class Killed(Exception):
        """Stands for the end of the process."""

    async def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(candle_write, "write", killed)
    with pytest.raises(Killed):
        await write(store, market)
    cutoff = (await store.db.retention())["ohlcv"].cutoff
    assert cutoff is not None
    assert cutoff < START
    await assert_jobs_as_the_table_says(store)


async def test_rejected_rows_move_nothing(store: Store, market: Market) -> None:
    wrong = [row._replace(low=row.high + 1) for row in OLD]
    assert await write(store, market, wrong) == []
    assert (await store.db.retention())["ohlcv"].drop_after == "1 year"


# A policy that the user has set stays.


async def test_a_policy_set_by_command_refuses_older_rows(store: Store, market: Market) -> None:
    await store.db.set_retention("ohlcv", "30 days")
    with pytest.raises(RetentionConflict) as caught:
        await write(store, market, [*OLD, *RECENT])
    said = str(caught.value)
    assert "10 rows from 2024-01-01 on are older than the retention of ohlcv, 30 days" in said
    assert "`kurisu db retention` set" in said
    assert "Nothing was stored" in said
    assert re.search(r"run `kurisu db retention ohlcv '\d+ years'` \(or 'off'\)", said)
    assert "--allow-expiring" in said
    assert await stored(store, market) == []
    assert await fetch(store, "SELECT * FROM candle_coverage") == []
    assert (await store.db.retention())["ohlcv"].drop_after == "30 days"


async def test_the_way_on_that_the_refusal_names_works(store: Store, market: Market) -> None:
    await store.db.set_retention("ohlcv", "30 days")
    with pytest.raises(RetentionConflict) as caught:
        await write(store, market)
    duration = str(caught.value).partition("retention ohlcv '")[2].partition("'")[0]
    await store.db.set_retention("ohlcv", duration)
    assert await write(store, market) == []
    assert await stored(store, market) == OLD


async def test_a_policy_in_kurisu_toml_refuses_older_rows(
    store: Store, market: Market, url: str
) -> None:
    async with open_store(url, config("30 days")) as configured:
        with pytest.raises(RetentionConflict) as caught:
            await write(configured, market)
    said = str(caught.value)
    assert "that kurisu.toml set" in said
    assert "change [retention] ohlcv in kurisu.toml" in said
    assert "--allow-expiring" in said
    assert await stored(store, market) == []


async def test_expiring_rows_are_stored_if_allowed(store: Store, market: Market) -> None:
    await store.db.set_retention("ohlcv", "30 days")
    notes = await write(store, market, [*OLD, *RECENT], allow_expiring=True)
    assert notes == [
        "10 rows from 2024-01-01 on are older than the retention of ohlcv (30 days) and will be "
        "dropped again"
    ]
    assert await stored(store, market) == [*OLD, *RECENT]
    assert (await store.db.retention())["ohlcv"].drop_after == "30 days"


async def test_allowing_expiring_rows_keeps_them_under_a_default(
    store: Store, market: Market
) -> None:
    (note,) = await write(store, market, allow_expiring=True)
    assert note.startswith("retention of ohlcv moved")


async def test_retention_that_is_off_refuses_nothing(store: Store, market: Market) -> None:
    assert (
        await store.db.set_retention("ohlcv", "off")
        == "retention of ohlcv: off, rows are kept for ever"
    )
    assert await write(store, market) == []
    policy = (await store.db.retention())["ohlcv"]
    assert (policy.drop_after, policy.cutoff, policy.origin) == (None, None, "command")
    await assert_jobs_as_the_table_says(store)


# Setting.


async def test_a_command_sets_what_it_says(store: Store) -> None:
    said = await store.db.set_retention("trades", "18 months")
    assert said == "retention of trades: 18 months"
    policy = (await store.db.retention())["trades"]
    assert (policy.drop_after, policy.origin) == ("1 year 6 mons", "command")
    await assert_jobs_as_the_table_says(store)


async def test_a_relation_without_retention_is_refused(store: Store) -> None:
    with pytest.raises(InvalidArgument, match="'ohlcv_1d' has no retention; it is for ohlcv and"):
        await store.db.set_retention("ohlcv_1d", "5 years")


async def test_a_wrong_duration_sets_nothing(store: Store) -> None:
    before = await store.db.retention()
    for given in ("soon", "999999 years"):
        with pytest.raises(InvalidArgument):
            await store.db.set_retention("ohlcv", given)
    assert {p.drop_after for p in before.values()} == {
        p.drop_after for p in (await store.db.retention()).values()
    }


async def test_the_longest_duration_works(store: Store, market: Market) -> None:
    await store.db.set_retention("ohlcv", "1000 years")
    await write(store, market)
    await store.db.maintain()
    assert await stored(store, market) == OLD
    await store.db.set_retention("ohlcv", "off")


async def test_a_command_does_not_override_kurisu_toml(store: Store, url: str) -> None:
    async with open_store(url, config("5 years")) as configured:
        with pytest.raises(
            ConfigError, match=r"kurisu\.toml sets the retention of ohlcv to '5 years'; change it"
        ):
            await configured.db.set_retention("ohlcv", "1 year")
        await configured.db.set_retention("trades", "1 year")
    found = await store.db.retention()
    assert (found["ohlcv"].drop_after, found["trades"].drop_after) == ("5 years", "1 year")


async def test_an_explicit_policy_does_not_move(store: Store, market: Market) -> None:
    await store.db.set_retention("ohlcv", "60 days")
    await write(store, market, RECENT)
    assert (await store.db.retention())["ohlcv"].drop_after == "60 days"


# kurisu.toml.


async def test_what_kurisu_toml_names_is_in_force_once_the_store_is_open(
    store: Store, url: str
) -> None:
    async with open_store(url, config("5 years", "14 days")) as configured:
        policy = (await configured.db.retention())["ohlcv"]
        assert (policy.drop_after, policy.compress_after, policy.origin) == (
            "5 years", "14 days", "config",
        )  # fmt: skip
        await assert_jobs_as_the_table_says(configured)
    assert (await store.db.retention())["trades"].origin == "default"


async def test_off_in_kurisu_toml_is_for_ever(store: Store, url: str) -> None:
    async with open_store(url, config("off", "off")) as configured:
        policy = (await configured.db.retention())["ohlcv"]
        assert (policy.drop_after, policy.compress_after) == (None, None)
        await assert_jobs_as_the_table_says(configured)


async def test_kurisu_toml_comes_before_a_command(store: Store, url: str) -> None:
    await store.db.set_retention("ohlcv", "60 days")
    async with open_store(url, config("5 years")) as configured:
        policy = (await configured.db.retention())["ohlcv"]
    assert (policy.drop_after, policy.origin) == ("5 years", "config")


async def test_a_key_that_is_gone_leaves_the_default(store: Store, url: str) -> None:
    async with open_store(url, config("5 years", "14 days")):
        pass
    async with open_store(url) as plain:
        policy = (await plain.db.retention())["ohlcv"]
        await assert_jobs_as_the_table_says(plain)
    assert (policy.drop_after, policy.compress_after, policy.origin) == (
        "1 year", "7 days", "default",
    )  # fmt: skip


@pytest.mark.parametrize("timeframe", ["1m", "1d"])
async def test_a_key_that_is_gone_drops_nothing_that_is_stored(
    store: Store, market: Market, url: str, timeframe: str
) -> None:
    rows = native(START, 5, timeframe)
    async with open_store(url, config("off")) as configured:
        await configured.candles.write(market, timeframe, as_table(rows))
    async with open_store(url) as plain:
        policy = (await plain.db.retention())["ohlcv"]
        await plain.db.maintain()
    assert policy.origin == "default"
    assert policy.cutoff is not None
    assert policy.cutoff < START
    assert len(await stored(store, market, timeframe)) == 5


async def test_a_policy_set_by_command_stays_without_kurisu_toml(store: Store, url: str) -> None:
    await store.db.set_retention("ohlcv", "60 days")
    async with open_store(url) as again:
        policy = (await again.db.retention())["ohlcv"]
    assert (policy.drop_after, policy.origin) == ("60 days", "command")


@pytest.mark.parametrize("section", ["retention", "compression"])
async def test_a_wrong_duration_in_kurisu_toml_is_named(
    store: Store, url: str, section: str
) -> None:
    wrong = config("soon") if section == "retention" else config(None, "soon")
    with pytest.raises(
        ConfigError, match=rf"^kurisu.toml: \[{section}\] ohlcv: 'soon' is not a duration"
    ):
        async with open_store(url, wrong):
            pass


@pytest.mark.parametrize("duration", ["18 months", "36 hours", "5 years"])
async def test_opening_again_changes_nothing(store: Store, url: str, duration: str) -> None:
    """Neither the table nor a job: a job that is made anew starts at once."""
    table = "SELECT *, xmin::text FROM retention_policies ORDER BY relation"
    async with open_store(url, config(duration, duration)) as first:
        rows = await fetch(first, table)
        before = await jobs(first) if first.engine.is_community else {}
    async with open_store(url, config(duration, duration)) as second:
        assert await fetch(second, table) == rows
        after = await jobs(second) if second.engine.is_community else {}
    assert after == before


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_a_job_that_somebody_removed_or_changed_is_put_back(store: Store, url: str) -> None:
    await fetch(store, "SELECT remove_retention_policy('trades')")
    await fetch(store, "SELECT remove_compression_policy('ohlcv')")
    await fetch(store, "SELECT add_compression_policy('ohlcv', INTERVAL '90 days')")
    async with open_store(url) as again:
        await assert_jobs_as_the_table_says(again)


@pytest.mark.parametrize("tier", ["community"], indirect=True)
async def test_moving_one_policy_leaves_the_other_jobs(store: Store, market: Market) -> None:
    before = await jobs(store)
    await write(store, market)
    after = await jobs(store)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {("ohlcv", "policy_retention")}


@pytest.mark.parametrize("tier", CONCURRENT_TIERS, indirect=True)
async def test_many_that_move_a_default_at_once_stand_in_line(store: Store, url: str) -> None:
    """Locked row by row they would deadlock: each change turns round the order of the rows."""
    markets = [await store.markets.ensure("binance", f"X{i}/USDT") for i in range(6)]
    for year in (2022, 2018, 2014):
        async with open_store(url) as other:
            await asyncio.gather(
                *(
                    (store, other)[i % 2].candles.write(
                        market, "1m", as_table(minutes(datetime(year - i % 3, 1, 1, tzinfo=UTC), 3))
                    )
                    for i, market in enumerate(markets)
                )
            )
    oldest = datetime(2012, 1, 1, tzinfo=UTC)
    policy = (await store.db.retention())["ohlcv"]
    assert policy.cutoff is not None
    assert policy.cutoff <= oldest
    assert await value(store, "SELECT count(*) FROM ohlcv") == 3 * 3 * 6
