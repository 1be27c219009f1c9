"""Public trades: exact, once, in one id space, however they are handed over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa
import pytest
from engines import REAL_TIERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import fetch, value

from kurisu.domain.faults import Rule
from kurisu.domain.market import MarketName
from kurisu.domain.trade import IdSpace, Trade, cost_of, derived_ids
from kurisu.errors import IdSpaceConflict, InvalidArgument, NotFound, RetentionConflict
from kurisu.store import trade_write
from kurisu.store.markets import Market
from kurisu.store.store import Store, open_store
from kurisu.store.trade_write import KEYED_ROWS
from kurisu.store.trades import TradeBatch, TradeWriteReport

START: Final = datetime(2024, 3, 5, tzinfo=UTC)
MS: Final = timedelta(milliseconds=1)
REAL: Final = pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)
PLACES: Final = "SELECT time, trade_id, ctid::text, xmin::text FROM trades ORDER BY 1, 2"


def trade(
    ms: int, number: int | None = None, price: str = "0.5", amount: str = "2", side: str = "buy"
) -> Trade:
    name = None if number is None else str(number)
    return Trade(START + ms * MS, name, side, Decimal(price), Decimal(amount))


def trades(count: int, seed: int = 1, *, first_id: int = 1) -> list[Trade]:
    """Consecutive ids; several to a millisecond now and then."""
    rng = random.Random(seed)
    made, ms = [], 0
    for number in range(first_id, first_id + count):
        ms += rng.choice((0, 0, 1, 7, 900))
        price = Decimal(rng.randrange(1, 10**9)).scaleb(-rng.randrange(0, 18))
        amount = Decimal(rng.randrange(0, 10**10)).scaleb(-rng.randrange(0, 18))
        made.append(Trade(START + ms * MS, str(number), rng.choice(("buy", "sell")), price, amount))
    return made


def as_table(rows: Sequence[Trade]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    names = Trade._fields
    kinds = [pa.timestamp("us", "UTC"), pa.string(), pa.string()] + [pa.decimal128(38, 18)] * 3
    return pa.table(
        {n: pa.array(c, k) for n, c, k in zip(names, columns, [*kinds, pa.string()], strict=True)}
    )


def counts(report: TradeWriteReport) -> tuple[int, int]:
    """(inserted, unchanged), once the report adds up."""
    assert report.read == (
        report.inserted + report.unchanged + report.rejected + len(report.conflicts)
        + report.duplicates
    )  # fmt: skip
    return report.inserted, report.unchanged


async def stored(store: Store, market: Market) -> list[Trade]:
    return list(await store.trades.read(market))


def said(rows: Sequence[Trade]) -> list[Trade]:
    """Without the cost, which the store adds."""
    return [row._replace(cost=None) for row in rows]


async def test_new_trades_are_stored_to_the_last_digit(store: Store, market: Market) -> None:
    made = trades(3_000)
    report = await store.trades.write(market, as_table(made))
    assert counts(report) == (3_000, 0)
    assert report.id_space is IdSpace.RAW
    found = await stored(store, market)
    assert said(found) == made
    assert [row.cost for row in found] == [cost_of(row.price, row.amount) for row in made]


async def test_the_same_again_changes_nothing(store: Store, market: Market) -> None:
    made = trades(KEYED_ROWS + 500)
    await store.trades.write(market, as_table(made))
    places = await fetch(store, PLACES)
    # By key, by range, and from values.
    assert counts(await store.trades.write(market, as_table(made[:100]))) == (0, 100)
    assert counts(await store.trades.write(market, as_table(made))) == (0, len(made))
    assert counts(await store.trades.write(market, made)) == (0, len(made))
    assert await fetch(store, PLACES) == places


async def test_what_is_new_among_what_is_known(store: Store, market: Market) -> None:
    made = trades(2 * KEYED_ROWS + 500)
    await store.trades.write(market, as_table(made[::2]))
    report = await store.trades.write(market, as_table(made))
    assert counts(report) == (len(made) // 2, len(made) - len(made) // 2)
    assert said(await stored(store, market)) == made


@REAL
async def test_few_rows_far_apart_among_many(
    store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trade_write, "KEYED_ROWS", 10)
    made = trades(2_000)
    await store.trades.write(market, as_table(made[1:]))
    assert counts(await store.trades.write(market, as_table(made[::40]))) == (1, 49)
    assert said(await stored(store, market)) == made


@REAL
async def test_a_stored_trade_is_never_changed(store: Store, market: Market) -> None:
    await store.trades.write(market, [trade(0, 1), trade(0, 2), trade(5, 3)])
    before = await stored(store, market)
    others = [trade(0, 1, price="0.6"), trade(0, 2), trade(5, 3, side="sell"), trade(6, 4)]
    report = await store.trades.write(market, others)
    assert counts(report) == (1, 1)
    assert [(c.row, c.trade_id, c.kept, c.value) for c in report.conflicts] == [
        (1, "1", "side=buy price=0.5 amount=2", "side=buy price=0.6 amount=2"),
        (3, "3", "side=buy price=0.5 amount=2", "side=sell price=0.5 amount=2"),
    ]
    assert (await stored(store, market))[:3] == before


@REAL
async def test_rows_of_one_call_that_repeat_or_contradict_each_other(
    store: Store, market: Market
) -> None:
    rows = [trade(0, 1), trade(0, 1), trade(1, 2), trade(0, 1, amount="3"), trade(1, 1)]
    report = await store.trades.write(market, rows)
    assert counts(report) == (3, 0)
    assert report.duplicates == 1
    assert [(c.row, c.kept, c.value) for c in report.conflicts] == [
        (4, "side=buy price=0.5 amount=2", "side=buy price=0.5 amount=3")
    ]


@REAL
@pytest.mark.parametrize(("unit", "per_ms"), [("ns", 1_000_000), ("us", 1_000), ("ms", 1)])
async def test_times_are_cut_to_milliseconds_from_every_unit(
    store: Store, market: Market, unit: str, per_ms: int
) -> None:
    ms = int(START.timestamp()) * 1_000 + 123
    ticks = [ms * per_ms, ms * per_ms + per_ms - 1]
    table = pa.table(
        {
            "time": pa.array(ticks, pa.int64()).cast(pa.timestamp(unit, "UTC")),
            "trade_id": ["1", "2"],
            "price": ["1", "1"],
            "amount": ["1", "1"],
        }
    )
    await store.trades.write(market, table)
    assert [row.time for row in await stored(store, market)] == [START + 123 * MS] * 2


BAD_ROWS: Final[list[tuple[dict[str, Any], Rule, str]]] = [
    ({"price": "1e-19"}, Rule.TOO_MANY_FRACTION_DIGITS, "price"),
    ({"amount": "1e20"}, Rule.NUMBER_TOO_LARGE, "amount"),
    ({"price": "NaN"}, Rule.NOT_FINITE, "price"),
    ({"price": None}, Rule.MISSING_VALUE, "price"),
    ({"amount": "-1"}, Rule.NEGATIVE_AMOUNT, "amount"),
    ({"side": "BUY"}, Rule.SIDE_NOT_READABLE, "side"),
    ({"taker_or_maker": "both"}, Rule.TAKER_OR_MAKER_NOT_READABLE, "taker_or_maker"),
    ({"trade_id": None}, Rule.MISSING_VALUE, "trade_id"),
    ({"trade_id": ""}, Rule.MISSING_VALUE, "trade_id"),
    ({"trade_id": "1\0"}, Rule.TRADE_ID_NOT_USABLE, "trade_id"),
    ({"trade_id": "x" * 256}, Rule.TRADE_ID_NOT_USABLE, "trade_id"),
    ({"time": None}, Rule.MISSING_VALUE, "time"),
    ({"time": datetime(2030, 1, 1, tzinfo=UTC)}, Rule.IN_THE_FUTURE, "time"),
    ({"price": "1e19", "amount": "1e3"}, Rule.NUMBER_TOO_LARGE, "cost"),
]


@REAL
async def test_rows_that_break_a_rule_are_listed(store: Store, market: Market) -> None:
    good: dict[str, Any] = {
        "time": START, "trade_id": "1", "side": "buy", "price": "1", "amount": "1",
        "taker_or_maker": None,
    }  # fmt: skip
    rows = [good, *(good | {"trade_id": str(at)} | bad for at, (bad, _, _) in enumerate(BAD_ROWS))]
    kinds = {"time": pa.timestamp("us", "UTC")}
    table = pa.table({n: pa.array([r[n] for r in rows], kinds.get(n, pa.string())) for n in good})
    report = await store.trades.write(market, table, now=START + timedelta(hours=1))
    assert counts(report) == (1, 0)
    assert [(r.row, r.rule, r.field) for r in report.rejects] == [
        (at, rule, column) for at, (_, rule, column) in enumerate(BAD_ROWS, 2)
    ]
    # The same as values: what does not fit a decimal is listed as well.
    report = await store.trades.write(market, [trade(9, 1), trade(9, 2, amount="1e30")])
    assert counts(report) == (1, 0)
    assert [(r.row, r.rule) for r in report.rejects] == [(2, Rule.NUMBER_TOO_LARGE)]


@REAL
async def test_what_cannot_be_exact_is_refused(store: Store, market: Market) -> None:
    table = as_table([trade(0, 1)])
    floats = table.set_column(3, "price", pa.array([0.5]))
    half: Any = 0.5
    text: Any = "2024-01-01"
    for rows, said_of_it in (
        (floats, "float"),
        (table.drop_columns(["amount"]), "missing: amount"),
        (table.set_column(0, "time", pa.array([0], pa.timestamp("us"))), "time zone"),
        ([("1", "2")], "Trade values"),
        (5, "int"),
        ([trade(0, 1)._replace(time=datetime(2024, 1, 1))], "no time zone"),
        ([trade(0, 1)._replace(price=half)], "price is 0.5: a float"),
        ([trade(0, 1)._replace(time=text)], "not a datetime"),
        (table.append_column("price", table.column("price")), "is called price"),
        (table.append_column("row", pa.array(["x"])), "column row"),
    ):
        with pytest.raises(InvalidArgument, match=said_of_it):
            await store.trades.write(market, rows)
    assert await stored(store, market) == []


class TestIdSpaces:
    """One market holds one."""

    @REAL
    async def test_the_first_trades_decide(self, store: Store, market: Market) -> None:
        assert await store.trades.id_space(market) is None
        await store.trades.write(market, [], id_space="aggregate")
        assert await store.trades.id_space(market) is None
        await store.trades.write(market, [trade(0, 1)], id_space="aggregate")
        assert await store.trades.id_space(market) is IdSpace.AGGREGATE
        for rows, space in (([trade(1, 2)], None), ([trade(1)], None), ([trade(1, 2)], "raw")):
            with pytest.raises(IdSpaceConflict, match="aggregate"):
                await store.trades.write(market, rows, id_space=space)
        assert len(await stored(store, market)) == 1

    @REAL
    async def test_nothing_of_a_call_that_mixes_them_is_stored(
        self, store: Store, market: Market, other_market: Market
    ) -> None:
        with pytest.raises(IdSpaceConflict):
            await store.trades.write_many(
                [(other_market, [trade(0, 1)]), (market, [trade(0, 1)], IdSpace.RAW),
                 (market, [trade(0, 2)], IdSpace.AGGREGATE)]
            )  # fmt: skip
        assert await value(store, "SELECT count(*) FROM trades") == 0
        assert await store.trades.id_space(market) is None

    @REAL
    async def test_two_writers_of_first_trades(
        self, store: Store, market: Market, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = trade_write._copy
        async with open_store(url) as other:

            async def meanwhile(*args: Any) -> None:
                """Both have seen that the market has no trades; the other is quicker."""
                monkeypatch.setattr(trade_write, "_copy", original)
                await other.trades.write(market, [trade(1, 2)], id_space="aggregate")
                await original(*args)

            monkeypatch.setattr(trade_write, "_copy", meanwhile)
            with pytest.raises(IdSpaceConflict, match="aggregate ids, and these have raw ids"):
                await store.trades.write(market, [trade(0, 1)], id_space="raw")
        assert [row.trade_id for row in await stored(store, market)] == ["2"]

    @REAL
    async def test_an_unknown_one(self, store: Store, market: Market) -> None:
        with pytest.raises(InvalidArgument, match="raw, aggregate, derived"):
            await store.trades.write(market, [], id_space="both")


class TestDerivedIds:
    """Markets without ids."""

    @REAL
    async def test_alike_trades_of_a_millisecond_are_counted(
        self, store: Store, market: Market
    ) -> None:
        rows = [trade(0), trade(0), trade(0, side="sell"), trade(1)]
        assert counts(await store.trades.write(market, rows)) == (4, 0)
        assert counts(await store.trades.write(market, rows[:3])) == (0, 3)
        assert counts(await store.trades.write(market, [trade(1), *rows[:3]])) == (0, 4)
        found = await stored(store, market)
        ms = int(START.timestamp()) * 1_000
        assert {row.trade_id for row in found} == set(
            derived_ids((ms + int(row.time > START), row.side, row.price, row.amount)
                        for row in rows)
        )  # fmt: skip

    @REAL
    async def test_ids_that_were_derived_elsewhere(self, store: Store, market: Market) -> None:
        await store.trades.write(market, [trade(0), trade(0)])
        found = await stored(store, market)
        again = await store.trades.write(market, said(found), id_space="derived")
        assert counts(again) == (0, 2)


# Trades of a few milliseconds, many of them alike.
TRADES = st.lists(
    st.builds(
        trade,
        ms=st.integers(0, 3),
        price=st.sampled_from(["1", "2"]),
        amount=st.sampled_from(["1", "1.0", "3"]),
        side=st.sampled_from(["buy", "sell"]),
    ),
    max_size=12,
)


@REAL
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=TRADES, data=st.data())
async def test_any_split_gives_the_same_table(
    store: Store, rows: list[Trade], data: st.DataObject
) -> None:
    """Overlapping batches in any order: with ids any rows, without whole milliseconds."""
    number = await value(store, "SELECT count(*) FROM markets")
    with_ids = await store.markets.ensure("binance", f"A{number}/USDT")
    without = await store.markets.ensure("binance", f"B{number}/USDT")
    named = [row._replace(trade_id=str(at)) for at, row in enumerate(rows)]
    parts = data.draw(
        st.lists(st.lists(st.sampled_from(named)), max_size=4) if named else st.just([])
    )
    for part in data.draw(st.permutations([*parts, named[::2], named[1::2]])):
        await store.trades.write(with_ids, part)
    assert sorted(said(await stored(store, with_ids))) == sorted(named)

    times = sorted({row.time for row in rows})
    chosen = data.draw(
        st.lists(st.sets(st.sampled_from(times)), max_size=3) if times else st.just([])
    )
    for wanted in data.draw(st.permutations([*chosen, set(times[::2]), set(times[1::2])])):
        batch = [row for row in rows if row.time in wanted]
        # A part of a millisecond does no harm, once the whole of it comes.
        await store.trades.write(without, batch[: len(batch) // 2])
        await store.trades.write(without, data.draw(st.permutations(batch)))
    found = await stored(store, without)
    assert sorted(row[0:1] + row[2:5] for row in found) == sorted(
        row[0:1] + row[2:5] for row in rows
    )


async def test_many_markets_in_one_transaction(store: Store) -> None:
    markets = [await store.markets.ensure("binance", f"X{n}/USDT") for n in range(5)]
    made = {m: trades(40, seed=n) for n, m in enumerate(markets)}
    await store.trades.write(markets[0], made[markets[0]][:10])
    reports = await store.trades.write_many(list(made.items()))
    assert [counts(report) for report in reports] == [(30, 10), *[(40, 0)] * 4]
    for market, rows in made.items():
        assert said(await stored(store, market)) == rows
    # Two batches of one market, of which one repeats the other.
    more = trades(50, first_id=1_000)
    first, second = await store.trades.write_many(
        [TradeBatch(markets[1], more[:30]), TradeBatch(markets[1], as_table(more[20:]))]
    )
    assert counts(first) == (30, 0)
    assert (counts(second), second.duplicates) == ((20, 0), 10)


@REAL
async def test_a_market_that_is_not_there_is_created_with_its_trades(store: Store) -> None:
    name = MarketName.of("kraken", "XRP/USDT")
    with pytest.raises(InvalidArgument):
        await store.trades.write(name, pa.table({"time": [1]}))
    with pytest.raises(NotFound):
        await store.markets.get("kraken", "XRP/USDT")
    report = await store.trades.write(name, [trade(0, 1)])
    assert len(await stored(store, report.market)) == 1


@REAL
async def test_somebody_else_inserts_the_same_in_between(
    store: Store, market: Market, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trades(20)
    original = trade_write._copy
    async with open_store(url) as other:

        async def meanwhile(*args: Any) -> None:
            monkeypatch.setattr(trade_write, "_copy", original)
            await other.trades.write(market, made[5:8])
            await original(*args)

        monkeypatch.setattr(trade_write, "_copy", meanwhile)
        report = await store.trades.write(market, made)
    assert counts(report) == (17, 3)
    assert said(await stored(store, market)) == made


@REAL
async def test_writers_of_the_same_trades_at_once(store: Store, market: Market, url: str) -> None:
    made = trades(400)
    async with open_store(url) as other:
        reports = await asyncio.gather(
            *(
                writer.trades.write(market, made[at : at + 200][::step])
                for at in range(0, 400, 50)
                for writer, step in ((store, 1), (other, -1))
            )
        )
    assert sum(report.inserted for report in reports) == 400
    assert said(await stored(store, market)) == made


class TestCosts:
    """One trade has one cost."""

    @REAL
    async def test_what_the_row_says_or_price_times_amount(
        self, store: Store, market: Market
    ) -> None:
        half = Decimal("0.000000000000000001")
        rows = [
            trade(0, 1)._replace(cost=Decimal(7)),
            trade(1, 2, price="0.3", amount="0.000000000000000005"),
            Trade(START + 2 * MS, "3", None, Decimal("0.5"), half * 3),
        ]
        await store.trades.write(market, rows)
        # Rounded half to even at the last digit.
        assert [r.cost for r in await stored(store, market)] == [7, 2 * half, 2 * half]
        # It follows from the rest, and is no contradiction.
        assert counts(await store.trades.write(market, [trade(0, 1)])) == (0, 1)

    @REAL
    async def test_contracts(self, store: Store, other_market: Market) -> None:
        report = await store.trades.write(other_market, [trade(0, 1)])
        assert [(r.rule, r.field, r.value) for r in report.rejects] == [
            (Rule.NO_COST, "cost", "0.5 x 2")
        ]
        await fetch(store, "UPDATE markets SET contract_size = 0.01, linear = true")
        await store.trades.write(other_market, [trade(0, 1)])
        await fetch(store, "UPDATE markets SET contract_size = 100, linear = false")
        rows = [trade(1, 2, price="3"), trade(2, 3, price="0")]
        report = await store.trades.write(other_market, rows)
        assert [r.rule for r in report.rejects] == [Rule.NO_COST]
        found = [r.cost for r in await stored(store, other_market)]
        assert found == [Decimal("0.01"), Decimal("66.666666666666666667")]


class TestRetention:
    """What is asked for is kept, or refused."""

    NOW: Final = datetime.now(UTC).replace(microsecond=0)
    OLD: Final = NOW - timedelta(days=100)

    async def test_a_default_policy_is_moved_back(self, store: Store, market: Market) -> None:
        old = trade(0, 1)._replace(time=self.OLD)
        report = await store.trades.write(market, [old])
        assert len(report.notes) == 1
        assert "retention of trades moved from 30 days to 2 years" in report.notes[0]
        assert (await store.trades.write(market, [old._replace(trade_id="2")])).notes == []
        await store.db.maintain()
        assert len(await stored(store, market)) == 2

    @pytest.mark.parametrize("tier", ["plain"], indirect=True)
    async def test_a_policy_of_the_users_stays(self, store: Store, market: Market) -> None:
        await store.db.set_retention("trades", "10 days")
        rows = [trade(0, 1)._replace(time=self.OLD), trade(0, 2)._replace(time=self.NOW)]
        with pytest.raises(RetentionConflict, match=r"1 rows .* of trades.*--allow-expiring"):
            await store.trades.write(market, rows)
        assert await stored(store, market) == []
        report = await store.trades.write(market, rows, allow_expiring=True)
        assert counts(report) == (2, 0)
        assert "will be dropped again" in report.notes[0]
        await store.db.maintain()
        assert [row.trade_id for row in await stored(store, market)] == ["2"]


async def test_into_compressed_chunks(store: Store, market: Market) -> None:
    """What is known there is left alone, and what is new gets in."""
    made = trades(3_000)
    await store.trades.write(market, as_table(made[::2]))
    await store.db.maintain()
    if store.engine.is_community:
        query = "SELECT number_compressed_chunks FROM hypertable_compression_stats('trades')"
        assert await value(store, query) > 0
    assert counts(await store.trades.write(market, as_table(made[:20:2]))) == (0, 10)
    assert counts(await store.trades.write(market, as_table(made))) == (1_500, 1_500)
    changed = made[0]._replace(amount=Decimal(7))
    assert len((await store.trades.write(market, [changed])).conflicts) == 1
    assert said(await stored(store, market)) == made
    assert said(list(await store.trades.latest(market, 3))) == made[-3:]


class TestReading:
    async def test_ranges_and_order(self, store: Store, market: Market) -> None:
        rows = [trade(0, 9), trade(0, 10), trade(0, 11), trade(1, 12), trade(5, 13)]
        await store.trades.write(market, list(reversed(rows)))
        assert said(await stored(store, market)) == rows
        part = await store.trades.read(market, START + MS, START + 5 * MS)
        assert said(list(part)) == rows[3:4]
        assert said(list(await store.trades.latest(market, 3))) == rows[2:]
        assert len(await store.trades.read(market, START + timedelta(days=1))) == 0

    @REAL
    async def test_as_frames(self, store: Store, market: Market) -> None:
        await store.trades.write(market, [trade(0, 1), trade(1, 2)])
        found = await store.trades.read(market)
        assert found.to_polars()["price"].to_list() == [Decimal("0.5")] * 2
        assert found.to_pandas(float64=True)["amount"].tolist() == [2.0, 2.0]
        assert found.to_numpy(float64=True)["cost"].tolist() == [1.0, 1.0]
        assert found.to_numpy()["trade_id"].tolist() == ["1", "2"]
        assert pa.table(found).equals(found.table)

    async def test_in_tables_of_bounded_size(
        self, store: Store, market: Market, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kurisu.store.trade_read.TABLE_ROWS", 50)
        made = trades(400)
        await store.trades.write(market, as_table(made))
        tables = [table async for table in store.trades.iterate(market)]
        assert len(tables) > 5
        times = [set(table.column("time").to_pylist()) for table in tables]
        assert all(not a & b for a, b in zip(times, times[1:], strict=False))
        assert said([row for table in tables for row in table]) == made
