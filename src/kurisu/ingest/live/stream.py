"""Runs live streams of several exchanges into one store.

    wanted = [StreamRequest("binance", ["BTC/USDT"]), StreamRequest("bitfinex", ["BTC/USD"])]
    await stream(store, wanted, StreamOptions(), print)

It runs until it is cancelled, then writes what it has. A start goes on where coverage ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from kurisu.domain.timeframe import Timeframe
from kurisu.domain.timeframe import timeframe as timeframe_of
from kurisu.errors import InvalidArgument
from kurisu.exchange.calls import RetryPolicy
from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.exchange.configured import open_configured
from kurisu.ingest.live.events import Say, tell
from kurisu.ingest.live.feed import Feed
from kurisu.ingest.live.options import StreamOptions, StreamRequest
from kurisu.ingest.live.writer import Writer
from kurisu.store.patience import patiently
from kurisu.store.store import Store

#: What is buffered when it ends may take so long to be written.
STOP_S: Final = 10.0


async def stream(
    store: Store,
    requests: Sequence[StreamRequest],
    options: StreamOptions,
    say: Say,
    *,
    open_exchange: Callable[..., Any] = open_configured,
    policy: RetryPolicy | None = None,
) -> None:
    """Stream until cancelled.

    say: told of everything that happens; it must not block. open_exchange: as `open_configured`.
    policy: of reconnecting. Raises BadSymbol, NotOffered, IdSpaceConflict, ConfigError,
    ExchangeError if an exchange cannot be asked for its markets, WriteRefused.
    """
    if not options.trades and not options.candles:
        raise InvalidArgument("neither trades nor candles are to be streamed")
    if options.buffer_rows < 1:
        raise InvalidArgument("the buffer has to hold at least one row")
    frame = timeframe_of(options.timeframe)
    telling = partial(tell, say)
    writer = Writer(store, frame, options.buffer_rows, telling)
    async with AsyncExitStack() as stack:
        feeds = []
        for request in _merged(requests):
            exchange = await stack.enter_async_context(
                open_exchange(store.config, request.exchange, streams=True)
            )
            prepared = partial(
                _prepared, store, exchange, options, frame, writer, say, policy, request.symbols
            )
            feeds.append(await patiently(prepared))
        await _run(feeds, writer, options, telling)


async def _prepared(
    store: Store,
    exchange: CcxtExchange,
    options: StreamOptions,
    frame: Timeframe,
    writer: Writer,
    say: Say,
    policy: RetryPolicy | None,
    symbols: Sequence[str],
) -> Feed:
    feed = Feed(store, exchange, options, frame, writer, say, policy or RetryPolicy())
    await feed.prepare(symbols)
    return feed


async def _run(
    feeds: Sequence[Feed], writer: Writer, options: StreamOptions, telling: Callable[..., None]
) -> None:
    writing = asyncio.create_task(writer.run())
    try:
        async with asyncio.TaskGroup() as group:
            for feed in feeds:
                feed.start(group)
            if options.status_s > 0:
                group.create_task(_status(feeds, writer, options.status_s, telling))
            # What ends the writer ends everything.
            await asyncio.shield(writing)
    except BaseExceptionGroup as errors:
        # One reason is enough: the others were cancelled for it.
        raise errors.exceptions[0] from None
    finally:
        writer.close()
        try:
            async with asyncio.timeout(STOP_S):
                await asyncio.shield(writing)
        except Exception:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        left = writer.buffered
        text = "stopped; everything is written" if not left else (
            f"stopped with {left:,} rows that could not be written; the next start asks for them"
        )  # fmt: skip
        telling("stopped", text, unwritten=left)


def _merged(requests: Sequence[StreamRequest]) -> list[StreamRequest]:
    """One request for each exchange, each symbol once."""
    symbols: dict[str, dict[str, None]] = {}
    for request in requests:
        symbols.setdefault(request.exchange, {}).update(dict.fromkeys(request.symbols))
    found = [StreamRequest(name, list(wanted)) for name, wanted in symbols.items()]
    for one in found:
        if not one.symbols:
            raise InvalidArgument(f"no market of {one.exchange} is named, e.g. BTC/USDT")
    if not found:
        raise InvalidArgument("name an exchange and its markets, e.g. binance BTC/USDT")
    return found


async def _status(
    feeds: Sequence[Feed], writer: Writer, every_s: float, telling: Callable[..., None]
) -> None:
    while True:
        await asyncio.sleep(every_s)
        tally, writer.tally = writer.tally, type(writer.tally)()
        lag = {"median": tally.lag_ms(0.5), "p99": tally.lag_ms(0.99)}
        up = sum(feed.connected for feed in feeds)
        of = sum(feed.connections for feed in feeds)
        behind = sum(feed.behind for feed in feeds)
        shown = f", lag {lag['median']:.0f} ms (p99 {lag['p99']:.0f} ms)" if lag["p99"] else ""
        waits = f", {writer.buffered:,} buffered" if writer.buffered else ""
        refill = f", {behind} markets wait for REST" if behind else ""
        telling(
            "status",
            f"{tally.trades:,} trades, {tally.candles:,} candles in {every_s:g} s{shown}; "
            f"{up} of {of} connections{waits}{refill}",
            seconds=every_s, trades=tally.trades, candles=tally.candles, commits=tally.commits,
            lag_ms=lag, buffered=writer.buffered, connected=up, connections=of, behind=behind,
        )  # fmt: skip
