"""Trades of a venue that gives no ids, live: what is told apart by its number in a millisecond."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
from engines import REAL_TIERS
from exchange_server import data
from exchange_server.fake import FakeExchange, trade_row
from exchange_server.truth import Tape
from exchange_server.world import START_MS

from kurisu.domain.listing import MarketListing
from kurisu.domain.market import MarketName
from kurisu.domain.trade import IdSpace
from kurisu.errors import ExchangeUnavailable
from kurisu.exchange.calls import RetryPolicy
from kurisu.exchange.clock import from_ms
from kurisu.exchange.port import Batch, CandleUpdate, TradeRow
from kurisu.exchange.settings import ExchangeSettings
from kurisu.exchange.venues import TradePaging, Venue
from kurisu.ingest.live.events import StreamEvent
from kurisu.ingest.live.options import StreamOptions, StreamRequest
from kurisu.ingest.live.stream import stream
from kurisu.store.store import Store

PATIENCE_S = 20
NAME = MarketName.of("fake", "BTC/USDT")


@dataclass
class LiveFake(FakeExchange):
    """A FakeExchange that streams its tape up to wherever its clock is; None cuts the stream."""

    settings: ExchangeSettings = field(default_factory=lambda: ExchangeSettings("fake", grace_s=0))
    streams_trades: bool = True
    streams_candles: bool = False
    queue: asyncio.Queue[list[TradeRow] | None] = field(default_factory=asyncio.Queue)

    async def load_markets(self, *, reload: bool = False) -> list[MarketListing]:
        return [MarketListing(NAME, "BTCUSDT", "spot", active=True)]

    async def check_listed(self, symbol: str) -> None:
        pass

    async def watch_trades(self, symbols: Sequence[str]) -> AsyncGenerator[Batch[TradeRow]]:
        yield Batch([], 0.0)
        while True:
            rows = await self.queue.get()
            if rows is None:
                raise ExchangeUnavailable(self.name, "cut")
            yield Batch([(symbols[0], row) for row in rows], asyncio.get_running_loop().time())

    async def watch_candles(
        self, symbols: Sequence[str], timeframe: str
    ) -> AsyncGenerator[Batch[CandleUpdate]]:
        for _ in symbols:
            raise NotImplementedError
        yield Batch([], 0.0)

    async def disconnect(self) -> None:
        self.queue.put_nowait(None)


@pytest.mark.parametrize("streams_ids", [False, True])
@pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)
async def test_alike_trades_in_one_millisecond_are_all_stored_once(
    store: Store, *, streams_ids: bool
) -> None:
    """Cut in the middle of milliseconds, again and again; and what REST gives is the same again.

    streams_ids: the stream has ids and REST has none, as KuCoin's.
    """
    ticks = data.generated_ticks(9, START_MS, 400, first_id=None, busy=0.8)
    tape = Tape(ticks)
    space = IdSpace.DERIVED if streams_ids else IdSpace.RAW
    venue = Venue(trade_paging=TradePaging.TIME, trade_id_space=space, trade_limit=300)
    exchange = LiveFake(venue, START_MS - 1, tape=tape)
    connected = asyncio.Event()

    def say(event: StreamEvent) -> None:
        if event.event == "connected":
            connected.set()

    @asynccontextmanager
    async def opened(*_: Any, **__: Any) -> AsyncIterator[LiveFake]:
        yield exchange

    task = asyncio.create_task(
        stream(
            store, [StreamRequest("fake", ["BTC/USDT"])],
            StreamOptions(candles=False, status_s=0), say,
            open_exchange=opened, policy=RetryPolicy(first_wait_s=0.01, longest_wait_s=0.01),
        )
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE_S):
            await connected.wait()
        for at in range(0, len(ticks), 7):
            part = ticks[at : at + 7]
            exchange.now_ms = part[-1].time_ms
            if at % 3 != 0:
                rows = [trade_row(tick) for tick in part]
                exchange.queue.put_nowait([
                    row._replace(trade_id=f"t{at + n}") if streams_ids else row
                    for n, row in enumerate(rows)
                ])  # fmt: skip
            else:
                # Nobody hears of these but REST.
                exchange.queue.put_nowait(None)
            await asyncio.sleep(0.01)
        exchange.now_ms += 60_000
        market = await store.markets.get("fake", "BTC/USDT")
        async with asyncio.timeout(PATIENCE_S):
            while (await store.trades.read(market)).num_rows < len(ticks):
                assert not task.done()
                await asyncio.sleep(0.05)
        exchange.now_ms += 60_000
        await asyncio.sleep(0.3)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    table = await store.trades.read(market)
    columns = [table.column(name).to_pylist() for name in ("time", "side", "price", "amount")]
    found = sorted(zip(*columns, strict=True), key=_order)
    assert found == sorted(
        [(from_ms(t.time_ms), t.side, t.price, t.amount) for t in ticks], key=_order
    )
    assert len(set(table.column("trade_id").to_pylist())) == len(ticks)
    assert await store.trades.id_space(market) is IdSpace.DERIVED


def _order(row: tuple[Any, ...]) -> tuple[Any, str, Decimal, Decimal]:
    return row[0], str(row[1]), row[2], row[3]
