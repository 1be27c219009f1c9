"""Candles from trades: exact, of complete minutes alone, and compared with what is stored."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import pyarrow.feather
import pytest
from exchange_server.data import DATA
from hypothesis import given
from hypothesis import strategies as st

from kurisu.domain.candle import Candle
from kurisu.domain.listing import MarketListing
from kurisu.domain.market import MarketName
from kurisu.domain.trade import Trade
from kurisu.errors import InvalidArgument
from kurisu.ingest.candle_import import import_file
from kurisu.ingest.trade_candles import TradeCandlesReport, candles_from_trades, candles_of
from kurisu.ingest.trade_import import import_trades
from kurisu.store import trade_read
from kurisu.store.markets import Market
from kurisu.store.store import Store
from kurisu.store.trade_rows import Batch, clean

START: Final = datetime(2024, 3, 5, tzinfo=UTC)


@pytest.fixture(params=["plain"])
def tier(request: pytest.FixtureRequest) -> str:
    """Nothing of this depends on the engine; the store's own tests run on all."""
    return str(request.param)


def quietly(_: str) -> contextlib.nullcontext[None]:
    return contextlib.nullcontext()


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def trade(second: float, price: int, amount: int = 1, number: int | None = None) -> Trade:
    name = None if number is None else str(number)
    return Trade(at(second), name, "buy", Decimal(price), Decimal(amount))


def candle(minute: int, *numbers: int) -> Candle:
    return Candle(at(60 * minute), *(Decimal(n) for n in numbers))  # type: ignore[arg-type]


def counts(report: TradeCandlesReport) -> dict[str, Any]:
    names = ("minutes", "candles", "equal", "different", "missing", "unfounded", "incomplete")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


#: Minutes 0, 1 and 3; the ids tell the order inside a millisecond, as numbers.
ROWS: Final = [
    trade(0, 5, number=8), trade(0, 7, number=9), trade(0, 6, number=10), trade(59.999, 4, 3, 11),
    trade(60, 9, number=12), trade(180, 2, number=13), trade(200, 3, number=14),
]  # fmt: skip
CANDLES: Final = [candle(0, 5, 7, 4, 4, 6), candle(1, 9, 9, 9, 9, 1), candle(3, 2, 3, 2, 3, 2)]


async def stored(store: Store, market: Market) -> list[Candle]:
    return [c._replace(bars=None) for c in (await store.candles.read(market, "1m")).candles()]


async def test_built_compared_and_stored(store: Store, market: Market) -> None:
    await store.trades.write(market, ROWS, complete=[(at(0), at(300))])
    assert counts(await candles_from_trades(store, market)) == {
        "minutes": 5, "candles": 3, "missing": 3,
    }  # fmt: skip
    assert await stored(store, market) == []
    report = await candles_from_trades(store, market, write=True)
    assert report.inserted == 3
    assert await stored(store, market) == CANDLES
    # Where nobody traded there is no candle, and that is known.
    gaps = await store.candles.gaps(market, "1m", at(0), at(300))
    assert [(g.since, g.until, g.status) for g in gaps] == [
        (at(120), at(180), "empty"), (at(240), at(300), "empty"),
    ]  # fmt: skip
    again = await candles_from_trades(store, market, write=True)
    assert counts(again) == {"minutes": 5, "candles": 3, "equal": 3}
    assert (again.inserted, again.is_ok) == (0, True)


async def test_differences_are_listed_and_nothing_is_changed(store: Store, market: Market) -> None:
    await store.trades.write(market, ROWS, complete=[(at(0), at(300))])
    other = [candle(0, 5, 8, 4, 4, 6), CANDLES[1], candle(2, 1, 1, 1, 1, 0)]
    await store.candles.write(market, "1m", other)
    report = await candles_from_trades(store, market, write=True)
    assert counts(report) == {
        "minutes": 5, "candles": 3, "equal": 1, "different": 1, "missing": 1, "unfounded": 1,
    }  # fmt: skip
    assert not report.is_ok
    assert [(d.time, d.stored, d.made) for d in report.differences] == [
        (at(0), other[0], CANDLES[0]),
        (at(120), other[2], None),
        (at(180), None, CANDLES[2]),
    ]
    assert await stored(store, market) == [*other, CANDLES[2]]


async def test_minutes_that_are_not_complete_give_no_candle(store: Store, market: Market) -> None:
    await store.trades.write(market, ROWS, complete=[(at(1), at(120))], empty=[(at(120), at(185))])
    report = await candles_from_trades(store, market, write=True)
    assert counts(report) == {"minutes": 2, "candles": 1, "missing": 1, "incomplete": 1}
    assert await stored(store, market) == CANDLES[1:2]
    wider = await candles_from_trades(store, market, at(0), at(240))
    assert counts(wider) == {"minutes": 2, "candles": 1, "equal": 1, "incomplete": 2}
    nothing = await store.markets.ensure("binance", "ETH/USDT")
    assert (await candles_from_trades(store, nothing)).since is None


class TestContracts:
    """Trades count contracts; candles these or base units."""

    @staticmethod
    async def traded(store: Store, symbol: str, **listed: Any) -> Market:
        name = MarketName.of("okx", symbol)
        size = Decimal("0.01") if name.settle == name.quote else Decimal(100)
        market = await store.markets.add(
            MarketListing(
                name, symbol, "swap", active=True, settle_asset=name.settle,
                linear=name.settle == name.quote, contract_size=size, **listed,
            )
        )  # fmt: skip
        report = await store.trades.write(market, ROWS, complete=[(at(0), at(300))])
        assert not report.rejects
        return market

    @pytest.mark.parametrize(
        ("symbol", "unit", "one"),
        [
            ("BTC/USDT:USDT", "contracts", Decimal(1)),
            ("BTC/USDT:USDT", "base", Decimal("0.01")),
            ("BTC/USD:BTC", "contracts", Decimal(1)),
        ],
    )
    async def test_volumes_are_in_the_unit_of_the_market_s_candles(
        self, store: Store, symbol: str, unit: str, one: Decimal
    ) -> None:
        market = await self.traded(store, symbol, volume_unit=unit, meta={"volume_unit": unit})
        assert market.volume_unit == unit
        made = [c._replace(volume=c.volume * one) for c in CANDLES]
        await store.candles.write(market, "1m", made[:1])
        report = await candles_from_trades(store, market, write=True)
        assert counts(report) == {"minutes": 5, "candles": 3, "equal": 1, "missing": 2}
        assert (report.inserted, report.notes) == (2, [])
        assert await stored(store, market) == made

    @pytest.mark.parametrize(
        ("symbol", "meta", "why"),
        [
            ("BTC/USD:BTC", {"volume_unit": "base"}, "the exchange rounds"),
            ("BTC/USDT:USDT", {}, "kurisu markets sync okx"),
        ],
    )
    async def test_where_trades_do_not_tell_them_prices_are_compared(
        self, store: Store, symbol: str, meta: dict[str, str], why: str
    ) -> None:
        market = await self.traded(store, symbol, meta=meta)
        with pytest.raises(InvalidArgument, match=why):
            await candles_from_trades(store, market, write=True)
        assert await stored(store, market) == []
        other = [CANDLES[0]._replace(volume=Decimal("0.5")), candle(1, 9, 9, 8, 9, 1)]
        await store.candles.write(market, "1m", other)
        report = await candles_from_trades(store, market)
        assert counts(report) == {
            "minutes": 5, "candles": 3, "equal": 1, "different": 1, "missing": 1,
        }  # fmt: skip
        (note,) = report.notes
        assert why in note
        assert note.endswith("volumes were not compared")

    async def test_a_volume_that_no_column_holds(self, store: Store) -> None:
        meta = {"volume_unit": "base"}
        market = await self.traded(store, "BTC/USDT:USDT", volume_unit="base", meta=meta)
        least = trade(299, 1, number=20)._replace(amount=Decimal("1e-18"))
        await store.trades.write(market, [least])
        with pytest.raises(InvalidArgument, match="1E-20 at 2024-03-05 00:04 UTC cannot be stored"):
            await candles_from_trades(store, market)


async def test_without_ids_the_order_in_a_millisecond_is_not_known(
    store: Store, market: Market
) -> None:
    rows = [row._replace(trade_id=None) for row in ROWS]
    await store.trades.write(market, rows, complete=[(at(0), at(300))])
    report = await candles_from_trades(store, market, write=True)
    assert (report.unsure, report.inserted) == (1, 2)
    assert await stored(store, market) == CANDLES[1:]
    # Any of the prices may be the open; nothing else may differ.
    for opened, equal in ((5, True), (6, True), (7, True), (4, False)):
        await store.candles.write(market, "1m", [candle(0, opened, 7, 4, 4, 6)])
        assert (await candles_from_trades(store, market)).is_ok is equal


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 240), st.integers(1, 9), st.integers(0, 9)),
        min_size=1,
        max_size=40,
    ),
)
def test_candles_are_what_their_trades_say(rows: list[tuple[int, int, int]]) -> None:
    trades = [trade(s, p, q, n) for n, (s, p, q) in enumerate(sorted(rows, key=lambda r: r[0]))]
    found = clean([Batch(0, trades)], at(86_400))
    made = candles_of(found.table.select(["time", "price", "amount"]), is_ordered=True)
    expected = []
    for minute in sorted({s // 60 for s, _, _ in rows}):
        inside = [t for t in trades if (t.time - START) // timedelta(minutes=1) == minute]
        prices = [t.price for t in inside]
        expected.append(
            Candle(at(60 * minute), prices[0], max(prices), min(prices), prices[-1],
                   sum((t.amount for t in inside), Decimal(0)))
        )  # fmt: skip
    assert [Candle(*row.values()) for row in made.table.to_pylist()] == expected


async def test_real_trades_give_the_exchanges_candles(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """freqtrade's candles of XRP/ETH were made from these trades, empty minutes included."""
    trades, candles = (
        DATA / "trades" / "binance_XRP_ETH-trades.feather",
        DATA / "candles" / "binance" / "XRP_ETH-1m.feather",
    )
    if not (trades.is_file() and candles.is_file()):
        pytest.skip("../shared/data is not there")
    monkeypatch.setattr(trade_read, "TABLE_ROWS", 1_000)
    name = MarketName.of("binance", "XRP/ETH")
    await import_trades(store, trades, name, working=quietly)
    await import_file(store, candles, name, working=quietly)
    market = await store.markets.get(name.exchange, name.symbol)
    report = await candles_from_trades(store, market)
    rows: Sequence[Any] = pyarrow.feather.read_table(candles).column("volume").to_pylist()
    assert (report.different, report.missing) == (0, 0)
    assert report.equal == report.candles > 1_000
    assert report.unfounded <= sum(volume == 0 for volume in rows)
