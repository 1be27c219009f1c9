"""Listening: every row once, exact, and every loss of a connection told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from decimal import Decimal
from typing import Any

import pytest
from exchange_server.binance import Aggregates
from exchange_server.fake import trade_row
from exchange_server.server import ExchangeServer
from exchange_server.world import BARS, TICKS, Opener

from kurisu.errors import BadAnswer, BadSymbol, ExchangeUnavailable, NotOffered
from kurisu.exchange import streams
from kurisu.exchange.port import Batch, TradeRow

PATIENCE_S = 5
PAIR = "SHIB/USDT"


async def until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not happened():  # noqa: ASYNC110  # it happens in the server's thread
            await asyncio.sleep(0.01)


async def take(batches: AsyncIterator[Batch[Any]], count: int) -> list[tuple[str, Any]]:
    """The next rows, at least `count` of them."""
    rows: list[tuple[str, Any]] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(rows) < count:
            rows += (await anext(batches)).rows
    return rows


def numbers(row: TradeRow) -> tuple[int, str | None, str | None, Decimal, Decimal]:
    return (row.time_ms, row.trade_id, row.side, Decimal(row.price), Decimal(row.amount))


@pytest.mark.parametrize("is_spelled_otherwise", [False, True])
async def test_binances_trades_are_the_ones_of_rest(
    server: ExchangeServer,
    opened: Opener,
    monkeypatch: pytest.MonkeyPatch,
    is_spelled_otherwise: bool,
) -> None:
    """Aggregate trades with their ids, many in one go, without one being lost; also where CCXT has
    to read the messages."""
    if is_spelled_otherwise:
        monkeypatch.setattr(streams, "_AGG_TRADE", '{ "e"')
    ticks = Aggregates(TICKS).rows[:2_500]
    async with (
        opened("binance", streams=True) as exchange,
        aclosing(exchange.watch_trades([PAIR])) as batches,
    ):
        assert (await anext(batches)).rows == []
        await until(lambda: "shibusdt@aggTrade" in server.streams.subscribed)
        for tick in ticks:
            server.send_agg_trade("SHIBUSDT", tick)
        rows = await take(batches, len(ticks))
    assert [symbol for symbol, _ in rows] == [PAIR] * len(ticks)
    assert [numbers(row) for _, row in rows] == [numbers(trade_row(tick)) for tick in ticks]


async def test_binances_candles_say_whether_they_have_closed(
    server: ExchangeServer, opened: Opener
) -> None:
    async with (
        opened("binance", streams=True) as exchange,
        aclosing(exchange.watch_candles([PAIR], "1m")) as batches,
    ):
        assert (await anext(batches)).rows == []
        await until(lambda: "shibusdt@kline_1m" in server.streams.subscribed)
        server.send_candle("SHIBUSDT", "1m", BARS[5], closed=False)
        server.send_candle("SHIBUSDT", "1m", BARS[5], closed=True)
        rows = await take(batches, 2)
    assert [(symbol, update.closed) for symbol, update in rows] == [(PAIR, False), (PAIR, True)]
    row = rows[1][1].row
    assert row.time_ms == BARS[5].open_ms
    assert tuple(Decimal(text) for text in row[1:]) == BARS[5][1:]


async def test_json_numbers_keep_every_digit(server: ExchangeServer, opened: Opener) -> None:
    """Bitfinex: through CCXT's own handlers, its snapshot first."""
    # Digits that a double does not have.
    tick = TICKS[-1]._replace(
        id=999_999, price=Decimal("61234.12345678901234567"), time_ms=server.clock.now_ms()
    )
    bar = BARS[7]._replace(volume=Decimal("0.1234567890123456789"))
    async with opened("bitfinex", streams=True) as exchange:
        async with aclosing(exchange.watch_trades(["BTC/USD"])) as batches:
            await until_subscribed(batches, server, "trades:tBTCUSD")
            server.run(server.bitfinex_streams.send_trade("tBTCUSD", tick))
            rows = await take(batches, 1)
        async with aclosing(exchange.watch_candles(["BTC/USD"], "1m")) as candles:
            await until_subscribed(candles, server, "candles:trade:1m:tBTCUSD")
            server.run(server.bitfinex_streams.send_candle("tBTCUSD", "1m", bar))
            updates = await take(candles, 1)
    assert [numbers(row) for _, row in rows if row.trade_id == str(tick.id)] == [
        numbers(trade_row(tick))
    ]
    row = updates[-1][1].row
    assert tuple(Decimal(text) for text in row[1:]) == bar[1:]


async def until_subscribed(
    batches: AsyncIterator[Batch[Any]], server: ExchangeServer, name: str
) -> None:
    await anext(batches)
    await until(lambda: name in server.bitfinex_streams.subscribed)


@pytest.mark.parametrize("kind", ["trades", "candles"])
async def test_a_cut_connection_is_told_and_the_next_one_works(
    server: ExchangeServer, opened: Opener, kind: str
) -> None:
    """What came before the cut is handed on first."""
    ticks = Aggregates(TICKS).rows
    async with opened("binance", streams=True) as exchange:
        for attempt in range(2):
            batches = (
                exchange.watch_trades([PAIR]) if kind == "trades"
                else exchange.watch_candles([PAIR], "1m")
            )  # fmt: skip
            async with aclosing(batches):
                await anext(batches)
                await until(lambda: len(server.streams.subscribed) == 1)
                if kind == "trades":
                    server.send_agg_trade("SHIBUSDT", ticks[attempt])
                else:
                    server.send_candle("SHIBUSDT", "1m", BARS[attempt], closed=True)
                assert len(await take(batches, 1)) == 1
                server.cut_streams()
                with pytest.raises(ExchangeUnavailable):
                    await take(batches, 1)
            await until(lambda: not server.streams.subscribed)
        assert len(server.streams.requests) == 2


async def test_disconnecting_ends_the_iterators(server: ExchangeServer, opened: Opener) -> None:
    async with opened("binance", streams=True) as exchange:
        async with aclosing(exchange.watch_trades([PAIR])) as batches:
            await anext(batches)
            await exchange.disconnect()
            with pytest.raises(ExchangeUnavailable, match="closed"):
                await take(batches, 1)
        await until(lambda: not server.streams.sessions)


async def test_a_message_that_cannot_be_read_ends_the_connection(
    server: ExchangeServer, opened: Opener
) -> None:
    """Not quietly: CCXT would leave everybody waiting."""
    async with opened("binance", streams=True) as exchange:
        for broken in ('{"e":"aggTrade","s":"SHIBUSDT","p":NaN}', '{"e":"trade","p":NaN', "[[[1]"):
            async with aclosing(exchange.watch_trades([PAIR])) as batches:
                await anext(batches)
                await until(lambda: server.streams.subscribed)
                for session in list(server.streams.sessions):
                    server.run(session.socket.send_str(broken))
                with pytest.raises(BadAnswer):
                    await take(batches, 1)
            await exchange.disconnect()
            await until(lambda: not server.streams.sessions)


async def test_a_refused_connection_is_told(server: ExchangeServer, opened: Opener) -> None:
    server.streams.refuse_next = 1
    async with (
        opened("binance", streams=True) as exchange,
        aclosing(exchange.watch_trades([PAIR])) as batches,
    ):
        with pytest.raises(ExchangeUnavailable):
            await take(batches, 1)


async def test_what_cannot_be_listened_to(opened: Opener) -> None:
    async with opened("binance", streams=True) as exchange:
        with pytest.raises(BadSymbol):
            await anext(exchange.watch_trades(["NO/SUCH"]))
        with pytest.raises(NotOffered):
            await anext(exchange.watch_candles([PAIR], "7m"))
