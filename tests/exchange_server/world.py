"""The usual world of the tests: three venues with a market each, and an adapter that sees it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from exchange_server import binance, bitfinex, data, kraken
from exchange_server.clock import MINUTE_MS
from exchange_server.server import ExchangeServer
from exchange_server.truth import Listing, Series, Tape
from kurisu.exchange.calls import RetryPolicy
from kurisu.exchange.ccxt_adapter import CcxtExchange, open_exchange
from kurisu.exchange.settings import ExchangeSettings

START_MS: Final = 1_635_811_200_000  # 2021-11-02T00:00:00Z
NOW_MS: Final = START_MS + 2_500 * MINUTE_MS + 30_000
BARS: Final = data.generated_bars(1, START_MS, 3_000)
TICKS: Final = data.generated_ticks(2, START_MS, 3_000)

Opener: TypeAlias = Callable[..., AbstractAsyncContextManager[CcxtExchange]]


def usual_server() -> ExchangeServer:
    """binance SHIB/USDT, bitfinex BTC/USD and kraken XRP/USDT: 2,500 minutes have passed."""
    server = ExchangeServer(NOW_MS)
    server.binance.add(
        Listing("SHIBUSDT", binance.entry("SHIBUSDT", "SHIB", "USDT"), Series(BARS), Tape(TICKS))
    )
    server.bitfinex.add(Listing("tBTCUSD", bitfinex.entry("BTCUSD"), Series(BARS), Tape(TICKS)))
    server.kraken.add(
        Listing(
            "XRPUSDT",
            kraken.entry("XRPUSDT", "XRP", "USDT"),
            Series(BARS),
            Tape([tick._replace(id=None) for tick in TICKS]),
        )
    )
    return server


def opener(server: ExchangeServer, slept: list[float]) -> Opener:
    """`opened("binance", ...)`: an adapter whose clock and waits are the server's clock.

    A wait takes no time, moves the server's clock, and is noted in `slept` (seconds).
    more: constructor options of CCXT; settings: of ExchangeSettings.
    """

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        server.clock.advance(seconds)
        await asyncio.sleep(0)

    @asynccontextmanager
    async def open_venue(
        venue: str,
        settings: dict[str, Any] | None = None,
        *,
        streams: bool = False,
        policy: RetryPolicy | None = None,
        pace_folder: Path | None = None,
        **more: Any,
    ) -> AsyncIterator[CcxtExchange]:
        options = server.options(venue, timeout_on_exit=0, **more)
        usual: dict[str, Any] = {"rate_limit_ms": 1, "timeout_s": 10}
        made = ExchangeSettings(venue, options=options, **{**usual, **(settings or {})})
        async with open_exchange(
            made,
            streams=streams,
            policy=policy,
            pace_folder=pace_folder,
            sleep=sleep,
            monotonic=lambda: server.clock.now_ms() / 1000,
            jitter=random.Random(7),
        ) as exchange:
            yield exchange

    return open_venue
