"""What the database refuses by itself, whoever writes: every CHECK and unique key, by raw SQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest
from bars import NAMES, START, closing, opening
from rows import Connection, session

CANDLE: Final[dict[str, Any]] = {
    "timeframe": "'1m'",
    "time": "'2024-01-01 00:00:00+00'",
    "open": 2,
    "high": 4,
    "low": 1,
    "close": 3,
    "volume": 0,
}
TRADE: Final[dict[str, Any]] = {
    "time": "'2024-01-01 00:00:00.123+00'",
    "trade_id": "'1'",
    "side": "'buy'",
    "price": 2,
    "amount": 3,
    "cost": 6,
    "taker_or_maker": "NULL",
}
ORDER: Final[dict[str, Any]] = {
    "client_order_id": "'a'",
    "side": "'buy'",
    "type": "'limit'",
    "price": 10,
    "stop_price": "NULL",
    "amount": 5,
    "filled": 0,
    "remaining": 5,
    "cost": 0,
    "status": "'open'",
}
EXECUTION: Final[dict[str, Any]] = {
    "trade_id": "'1'",
    "price": 10,
    "amount": 2,
    "cost": 20,
    "fee": "0.1",
    "fee_currency": "'BNB'",
    "time": "'2024-01-01 00:00:00+00'",
    "taker_or_maker": "'taker'",
}
POSITION: Final[dict[str, Any]] = {
    "time": "'2024-01-01 00:00:00+00'",
    "amount": -2,
    "entry_price": 10,
    "unrealized_pnl": -1,
}
BALANCE: Final[dict[str, Any]] = {
    "time": "'2024-01-01 00:00:00+00'",
    "asset": "'BTC'",
    "free": 1,
    "used": 2,
    "total": 3,
}
COVERAGE: Final[dict[str, Any]] = {
    "timeframe": "'1m'",
    "since": "'2024-01-01 00:00:00+00'",
    "until": "'2024-01-02 00:00:00+00'",
    "status": "'empty'",
    "source": "'rest'",
}


MARKET: Final = 1_001
OTHER_MARKET: Final = 1_002


class Writer:
    """Somebody with psql, in a transaction: writes rows as SQL, one column changed at a time."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def insert(self, table: str, row: dict[str, Any], **changed: Any) -> Any:
        """The row's id, if it has one."""
        values = row | changed
        if table in ("ohlcv", "trades", "orders", "positions", "candle_coverage"):
            values = {"market_id": MARKET} | values
        returned = "market_id" if table in ("ohlcv", "trades", "candle_coverage") else "id"
        returned = "relation" if table == "retention_policies" else returned
        async with self.connection.transaction():
            return await self.connection.fetchval(
                f"INSERT INTO {table} ({', '.join(values)}) "
                f"VALUES ({', '.join(str(v) for v in values.values())}) RETURNING {returned}"
            )

    async def refuses(self, table: str, row: dict[str, Any], check: str, **changed: Any) -> None:
        """Changed so, the constraint `check` refuses the row."""
        with pytest.raises(asyncpg.IntegrityConstraintViolationError) as refusal:
            await self.insert(table, row, **changed)
        assert refusal.value.constraint_name == check


@pytest.fixture
async def writer(shared_url: str) -> AsyncIterator[Writer]:
    """Everything that it writes is gone after the test."""
    async with session(shared_url) as connection:
        transaction = connection.transaction()
        await transaction.start()
        for number, symbol in ((MARKET, "BTC/USDT"), (OTHER_MARKET, "ETH/USDT")):
            await connection.execute(
                "INSERT INTO markets (id, exchange, symbol, base_asset, quote_asset) "
                "OVERRIDING SYSTEM VALUE VALUES ($1, 'binance', $2, 'BTC', 'USDT')",
                number,
                symbol,
            )
        yield Writer(connection)
        await transaction.rollback()


class TestCandles:
    async def test_the_example_goes_in(self, writer: Writer) -> None:
        await writer.insert("ohlcv", CANDLE)

    @pytest.mark.parametrize(
        ("check", "changed"),
        [
            ("low_high", {"low": "2.000000000000000001"}),
            ("low_high", {"close": "0.9"}),
            ("low_high", {"high": "2.9"}),
            ("low_high", {"open": "4.1"}),
            ("volume_not_negative", {"volume": "-0.000000000000000001"}),
            ("finite", {"volume": "'NaN'"}),
            ("finite", dict.fromkeys(("open", "high", "low", "close"), "'NaN'")),
            ("low_high", {"high": 4, "low": "'NaN'"}),
            ("finite", {"high": "'NaN'"}),
            ("timeframe", {"timeframe": "'2m'"}),
            ("timeframe", {"timeframe": "''"}),
        ],
    )
    async def test_a_broken_one_is_refused(
        self, writer: Writer, check: str, changed: dict[str, Any]
    ) -> None:
        await writer.refuses("ohlcv", CANDLE, f"check_ohlcv_{check}", **changed)

    async def test_time_opens_a_bar_of_the_timeframe(self, writer: Writer) -> None:
        for name in NAMES:
            opened = opening(datetime(2024, 5, 17, 13, 37, 42, tzinfo=UTC), name)
            await writer.insert("ohlcv", CANDLE, timeframe=f"'{name}'", time=f"'{opened}'")
            closed = closing(opened, name)
            await writer.insert("ohlcv", CANDLE, timeframe=f"'{name}'", time=f"'{closed}'")
            for away in (timedelta(microseconds=1), timedelta(seconds=1), (closed - opened) / 2):
                for wrong in (opened + away, opened - away):
                    if opening(wrong, name) != wrong:
                        await writer.refuses(
                            "ohlcv", CANDLE, "check_ohlcv_time_aligned",
                            timeframe=f"'{name}'", time=f"'{wrong}'",
                        )  # fmt: skip

    @pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata", "Pacific/Kiritimati"])
    async def test_the_zone_of_the_session_does_not_matter(self, writer: Writer, zone: str) -> None:
        await writer.connection.execute(f"SET LOCAL timezone = '{zone}'")
        for name in NAMES:
            opened = opening(START + timedelta(days=100, hours=5), name)
            await writer.insert("ohlcv", CANDLE, timeframe=f"'{name}'", time=f"'{opened}'")

    @pytest.mark.parametrize("time", ["infinity", "-infinity"])
    async def test_time_is_finite(self, writer: Writer, time: str) -> None:
        with pytest.raises(asyncpg.PostgresError):
            await writer.insert("ohlcv", CANDLE, time=f"'{time}'")

    async def test_one_time_has_one_candle_of_a_timeframe(self, writer: Writer) -> None:
        await writer.insert("ohlcv", CANDLE)
        await writer.insert("ohlcv", CANDLE, timeframe="'5m'")
        with pytest.raises(asyncpg.UniqueViolationError):
            await writer.insert("ohlcv", CANDLE, close=2)


class TestTrades:
    async def test_the_example_goes_in(self, writer: Writer) -> None:
        await writer.insert("trades", TRADE)

    @pytest.mark.parametrize(
        ("check", "changed"),
        [
            ("time_in_milliseconds", {"time": "'2024-01-01 00:00:00.123456+00'"}),
            ("time_in_milliseconds", {"time": "'2024-01-01 00:00:00.000001+00'"}),
            ("side", {"side": "'long'"}),
            ("taker_or_maker", {"taker_or_maker": "'both'"}),
            ("finite", {"price": "'NaN'"}),
            ("finite", {"amount": "'NaN'"}),
            ("finite", {"cost": "'NaN'"}),
            ("amount_not_negative", {"amount": "-1"}),
        ],
    )
    async def test_a_broken_one_is_refused(
        self, writer: Writer, check: str, changed: dict[str, Any]
    ) -> None:
        await writer.refuses("trades", TRADE, f"check_trades_{check}", **changed)

    @pytest.mark.parametrize("time", ["infinity", "-infinity"])
    async def test_time_is_finite(self, writer: Writer, time: str) -> None:
        with pytest.raises(asyncpg.PostgresError):
            await writer.insert("trades", TRADE, time=f"'{time}'")

    async def test_two_trades_share_a_millisecond_but_not_an_id(self, writer: Writer) -> None:
        await writer.insert("trades", TRADE)
        await writer.insert("trades", TRADE, trade_id="'2'")
        with pytest.raises(asyncpg.UniqueViolationError):
            await writer.insert("trades", TRADE)


@pytest.mark.parametrize("shared_tier", ["plain"], indirect=True)
class TestLedger:
    """Plain tables on every tier."""

    async def test_the_examples_go_in(self, writer: Writer) -> None:
        order = await writer.insert("orders", ORDER)
        await writer.insert("executions", EXECUTION, order_id=order)
        await writer.insert("positions", POSITION)
        await writer.insert("balances", BALANCE)

    @pytest.mark.parametrize(
        ("check", "changed"),
        [
            ("side", {"side": "'both'"}),
            ("type", {"type": "'iceberg'"}),
            ("status", {"status": "'cancelled'"}),
            ("amount", {"amount": 0, "filled": 0, "remaining": 0}),
            ("amount", {"amount": "'NaN'", "filled": 0, "remaining": "'NaN'"}),
            ("filled", {"filled": -1, "remaining": 6}),
            ("filled", {"filled": 6, "remaining": -1}),
            ("remaining", {"remaining": "5.000000000000000001"}),
            ("finite", {"cost": "'NaN'"}),
            ("finite", {"price": "'NaN'"}),
            ("finite", {"stop_price": "'NaN'"}),
            ("limit_has_price", {"price": "NULL"}),
            ("stop_has_stop_price", {"type": "'stop_loss'"}),
            ("stop_has_stop_price", {"type": "'take_profit'"}),
        ],
    )
    async def test_a_broken_order_is_refused(
        self, writer: Writer, check: str, changed: dict[str, Any]
    ) -> None:
        await writer.refuses("orders", ORDER, f"check_orders_{check}", **changed)

    @pytest.mark.parametrize("kind", ["market", "stop_loss", "take_profit"])
    async def test_only_a_limit_order_needs_a_price(self, writer: Writer, kind: str) -> None:
        await writer.insert("orders", ORDER, type=f"'{kind}'", price="NULL", stop_price=9)

    async def test_a_client_order_id_is_used_once(self, writer: Writer) -> None:
        await writer.insert("orders", ORDER)
        await writer.refuses("orders", ORDER, "unique_orders_client_order_id")

    async def test_orders_of_others_have_no_client_order_id(self, writer: Writer) -> None:
        await writer.insert("orders", ORDER, client_order_id="NULL", exchange_order_id="'x'")
        await writer.insert("orders", ORDER, client_order_id="NULL", exchange_order_id="'y'")

    @pytest.mark.parametrize(
        ("check", "changed"),
        [
            ("taker_or_maker", {"taker_or_maker": "'none'"}),
            ("amount", {"amount": 0}),
            ("finite", {"amount": "'NaN'"}),
            ("finite", {"price": "'NaN'"}),
            ("finite", {"cost": "'NaN'"}),
            ("finite", {"fee": "'NaN'"}),
            ("fee_has_currency", {"fee_currency": "NULL"}),
        ],
    )
    async def test_a_broken_execution_is_refused(
        self, writer: Writer, check: str, changed: dict[str, Any]
    ) -> None:
        row = EXECUTION | {"order_id": await writer.insert("orders", ORDER)}
        await writer.refuses("executions", row, f"check_executions_{check}", **changed)

    async def test_an_execution_is_stored_once(self, writer: Writer) -> None:
        order = await writer.insert("orders", ORDER)
        other = await writer.insert("orders", ORDER, client_order_id="'b'")
        await writer.insert("executions", EXECUTION, order_id=order)
        await writer.insert("executions", EXECUTION, order_id=other)
        await writer.refuses(
            "executions", EXECUTION, "unique_executions_order_trade_id", order_id=order
        )

    async def test_an_execution_belongs_to_an_order(self, writer: Writer) -> None:
        await writer.refuses("executions", EXECUTION, "fk_executions_order_id", order_id=-1)

    async def test_a_fee_may_be_a_rebate_or_unknown(self, writer: Writer) -> None:
        row = EXECUTION | {"order_id": await writer.insert("orders", ORDER)}
        await writer.insert("executions", row, fee="-0.1")
        await writer.insert("executions", row, trade_id="'2'", fee="NULL", fee_currency="NULL")

    @pytest.mark.parametrize("column", ["amount", "entry_price", "unrealized_pnl"])
    async def test_a_position_is_of_numbers(self, writer: Writer, column: str) -> None:
        await writer.refuses("positions", POSITION, "check_positions_finite", **{column: "'NaN'"})

    async def test_a_position_is_stored_once_for_a_time_even_without_an_account(
        self, writer: Writer
    ) -> None:
        await writer.insert("positions", POSITION)
        await writer.refuses("positions", POSITION, "unique_positions_snapshot", amount=1)

    async def test_positions_of_accounts_and_runs_are_apart(self, writer: Writer) -> None:
        account = await writer.insert("accounts", {"name": "'main'", "exchange": "'binance'"})
        strategy = await writer.insert("strategies", {"name": "'grid'", "class_path": "'s.Grid'"})
        run = await writer.insert(
            "strategy_runs",
            {
                "strategy_id": strategy,
                "type": "'backtest'",
                "status": "'running'",
                "start_time": "now()",
            },
        )
        owners: list[dict[str, Any]] = [
            {},
            {"account_id": account},
            {"strategy_id": strategy},
            {"strategy_run_id": run},
        ]
        for owner in owners:
            await writer.insert("positions", POSITION, **owner)
            await writer.refuses("positions", POSITION, "unique_positions_snapshot", **owner)

    async def test_a_balance_adds_up(self, writer: Writer) -> None:
        await writer.refuses(
            "balances", BALANCE, "check_balances_total", total="3.000000000000000001"
        )

    @pytest.mark.parametrize("column", ["free", "used"])
    async def test_a_balance_is_of_numbers(self, writer: Writer, column: str) -> None:
        changed = {column: "'NaN'", "total": "'NaN'"}
        await writer.refuses("balances", BALANCE, "check_balances_finite", **changed)

    async def test_a_balance_is_stored_once_for_a_time_even_without_an_account(
        self, writer: Writer
    ) -> None:
        await writer.insert("balances", BALANCE)
        await writer.insert("balances", BALANCE, asset="'ETH'")
        await writer.refuses("balances", BALANCE, "unique_balances_snapshot")

    @pytest.mark.parametrize(
        ("check", "changed"),
        [
            ("type", {"type": "'test'"}),
            ("status", {"status": "'done'"}),
            ("end_after_start", {"end_time": "'2023-12-31 23:59:59+00'"}),
        ],
    )
    async def test_a_broken_run_is_refused(
        self, writer: Writer, check: str, changed: dict[str, Any]
    ) -> None:
        strategy = await writer.insert("strategies", {"name": "'grid'", "class_path": "'s.Grid'"})
        row = {
            "strategy_id": strategy,
            "type": "'paper'",
            "status": "'completed'",
            "start_time": "'2024-01-01 00:00:00+00'",
            "end_time": "'2024-01-02 00:00:00+00'",
        }
        await writer.insert("strategy_runs", row)
        await writer.refuses("strategy_runs", row, f"check_strategy_runs_{check}", **changed)

    async def test_other_enumerations(self, writer: Writer) -> None:
        strategy = {"name": "'grid'", "class_path": "'s.Grid'", "status": "'gone'"}
        await writer.refuses("strategies", strategy, "check_strategies_status")
        event = {"event_type": "'max_drawdown'", "severity": "'fatal'"}
        await writer.refuses("risk_events", event, "check_risk_events_severity")

    async def test_names_are_unique(self, writer: Writer) -> None:
        account = {"name": "'main'", "exchange": "'binance'"}
        await writer.insert("accounts", account)
        await writer.insert("accounts", account, exchange="'okx'")
        await writer.refuses("accounts", account, "uix_exchange_name")
        strategy = {"name": "'grid'", "class_path": "'s.Grid'"}
        await writer.insert("strategies", strategy)
        await writer.refuses("strategies", strategy, "unique_strategies_name")

    @pytest.mark.parametrize(
        ("check", "changed"),
        [
            ("type", {"type": "'cfd'"}),
            ("trade_id_space", {"trade_id_space": "'mixed'"}),
            ("ticks_positive", {"price_tick": 0}),
            ("ticks_positive", {"amount_tick": "-0.1"}),
            ("contract_size_positive", {"contract_size": 0}),
        ],
    )
    async def test_a_broken_market_is_refused(
        self, writer: Writer, check: str, changed: dict[str, Any]
    ) -> None:
        row = {
            "exchange": "'okx'",
            "symbol": "'A/B'",
            "base_asset": "'A'",
            "quote_asset": "'B'",
        }
        await writer.refuses("markets", row, f"check_markets_{check}", **changed)

    async def test_a_market_exists_once(self, writer: Writer) -> None:
        row = {
            "exchange": "'binance'",
            "symbol": "'BTC/USDT'",
            "base_asset": "'X'",
            "quote_asset": "'Y'",
        }
        await writer.refuses("markets", row, "uix_exchange_symbol")

    @pytest.mark.parametrize(
        ("check", "changed"),
        [
            ("timeframe", {"timeframe": "'2m'"}),
            ("status", {"status": "'unknown'"}),
            ("range", {"until": "'2024-01-01 00:00:00+00'"}),
        ],
    )
    async def test_a_broken_stretch_is_refused(
        self, writer: Writer, check: str, changed: dict[str, Any]
    ) -> None:
        await writer.refuses(
            "candle_coverage", COVERAGE, f"check_candle_coverage_{check}", **changed
        )

    @pytest.mark.parametrize(
        ("relation", "constraint"),
        [
            ("'orders'", "check_retention_policies_relation"),
            ("'ohlcv'", "pk_retention_policies"),
        ],
    )
    async def test_policies_are_for_candles_and_trades(
        self, writer: Writer, relation: str, constraint: str
    ) -> None:
        await writer.refuses("retention_policies", {"relation": relation}, constraint)


class TestCoverage:
    """Stretches of one market and timeframe do not overlap."""

    @pytest.mark.parametrize(
        ("since", "until"),
        [
            ("2024-01-01 12:00", "2024-01-01 13:00"),
            ("2023-12-31 00:00", "2024-01-01 00:01"),
            ("2024-01-01 23:59", "2024-01-03 00:00"),
            ("2023-12-31 00:00", "2024-01-03 00:00"),
        ],
    )
    async def test_an_overlap_is_refused(self, writer: Writer, since: str, until: str) -> None:
        await writer.insert("candle_coverage", COVERAGE)
        with pytest.raises(asyncpg.ExclusionViolationError):
            await writer.insert(
                "candle_coverage", COVERAGE, since=f"'{since}+00'", until=f"'{until}+00'"
            )

    async def test_neighbours_are_no_overlap(self, writer: Writer) -> None:
        await writer.insert("candle_coverage", COVERAGE)
        for since, until in (("2023-12-31", "2024-01-01"), ("2024-01-02", "2024-01-03")):
            await writer.insert(
                "candle_coverage",
                COVERAGE,
                since=f"'{since} 00:00+00'",
                until=f"'{until} 00:00+00'",
            )

    async def test_other_timeframes_and_markets_are_apart(self, writer: Writer) -> None:
        await writer.insert("candle_coverage", COVERAGE)
        for name in NAMES[1:]:
            await writer.insert("candle_coverage", COVERAGE, timeframe=f"'{name}'")
        await writer.insert("candle_coverage", COVERAGE | {"market_id": OTHER_MARKET})

    async def test_two_in_one_statement_are_seen(self, writer: Writer) -> None:
        with pytest.raises(asyncpg.ExclusionViolationError):
            await writer.connection.execute(
                "INSERT INTO candle_coverage (market_id, timeframe, since, until, status, source) "
                "SELECT $1, '1m', t, t + INTERVAL '2 days', 'empty', 'rest' "
                "FROM generate_series(TIMESTAMPTZ '2024-01-01 00:00+00', "
                "'2024-01-05 00:00+00', '1 day') t",
                MARKET,
            )

    async def test_a_stretch_cannot_grow_into_another(self, writer: Writer) -> None:
        await writer.insert("candle_coverage", COVERAGE)
        await writer.insert(
            "candle_coverage", COVERAGE,
            since="'2024-01-03 00:00+00'", until="'2024-01-04 00:00+00'",
        )  # fmt: skip
        with pytest.raises(asyncpg.ExclusionViolationError):
            await writer.connection.execute(
                "UPDATE candle_coverage SET until = '2024-01-03 00:01+00' "
                "WHERE since = '2024-01-01 00:00+00'"
            )
