"""The streams of one exchange: readers, followers, refills."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from kurisu.domain.timeframe import Timeframe
from kurisu.domain.trade import IdSpace
from kurisu.errors import BadSymbol, ExchangeError, IdSpaceConflict, NotOffered
from kurisu.exchange.calls import RetryPolicy
from kurisu.exchange.candles import candle_table
from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.exchange.clock import to_ms
from kurisu.exchange.port import Batch, CandleUpdate, TradeRow
from kurisu.ingest.live.candles import SPREAD_MS, CandleFollower
from kurisu.ingest.live.events import Say, tell
from kurisu.ingest.live.options import StreamOptions
from kurisu.ingest.live.refill import CHECK_S, Refiller
from kurisu.ingest.live.trades import TradeFollower
from kurisu.ingest.live.writer import SOURCE, Writer
from kurisu.store.coverage import Stretch
from kurisu.store.markets import Market
from kurisu.store.store import Store

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
#: Status of the stretch that a stream begins with, until REST has been read.
MARK: Final = "failed"
#: Markets of one connection, where the venue allows as many.
GROUP: Final = 100
#: Tasks of an exchange that ask REST; its rate limit holds for all of them.
REFILLERS: Final = 2
#: How often it is looked whether a market needs REST.
LOOK_S: Final = 0.25
#: A connection that has held so long starts the backoff anew.
HELD_S: Final = 10.0
#: Names of markets that a line shows.
SHOWN: Final = 5


@dataclass(slots=True)
class _Group:
    """Markets that share a connection. what: trades or candles. kind: of the markets."""

    what: str
    kind: str
    followers: dict[str, Any] = field(default_factory=dict)
    is_connected: bool = False
    was_connected: bool = False


class Feed:
    """The streams of one exchange."""

    def __init__(
        self,
        store: Store,
        exchange: CcxtExchange,
        options: StreamOptions,
        frame: Timeframe,
        writer: Writer,
        say: Say,
        policy: RetryPolicy,
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._options = options
        self._frame = frame
        self._writer = writer
        self._policy = policy
        self._tell = partial(tell, say, exchange=exchange.name)
        self._jitter = random.Random()  # noqa: S311  # spreads retries in time
        self._groups: list[_Group] = []
        self._dead = asyncio.Event()
        self._refiller = Refiller(
            store, exchange, frame, timedelta(seconds=exchange.settings.grace_s),
            self._tell, self._dead.set,
        )  # fmt: skip

    @property
    def connected(self) -> int:
        return sum(group.is_connected for group in self._groups)

    @property
    def connections(self) -> int:
        return len(self._groups)

    @property
    def behind(self) -> int:
        """Markets that REST has to be asked for."""
        return sum(follower.missing is not None for follower in self._refiller.trades)

    async def prepare(self, symbols: Sequence[str]) -> None:
        """Find the markets, and where each has to go on."""
        listings = {one.symbol: one for one in await self._exchange.load_markets()}
        for symbol in symbols:
            await self._exchange.check_listed(symbol)
            if symbol not in listings:
                raise BadSymbol(self._exchange.name, f"{symbol} cannot be stored")
        # With what the exchange says of them: the cost of a contract depends on its size.
        markets = [await self._store.markets.add(listings[symbol]) for symbol in symbols]
        now = await self._exchange.now()
        if self._options.trades and self._streams("trades", self._exchange.streams_trades):
            await self._prepare_trades(markets, now)
        if self._options.candles:
            await self._prepare_candles(markets, now)

    def _streams(self, what: str, offered: bool) -> bool:
        if not offered and self._options.required:
            raise NotOffered(self._exchange.name, f"it streams no {what}, or CCXT cannot")
        if not offered:
            self._tell("unavailable", f"it streams no {what}, or CCXT cannot", what=what)
        return offered

    async def _prepare_trades(self, markets: Sequence[Market], now: datetime) -> None:
        venue = self._exchange.venue
        for market in markets:
            usual = venue.trade_id_space
            space = await self._store.trades.id_space(market)
            if space not in (None, usual, IdSpace.DERIVED):
                raise IdSpaceConflict(str(market), str(space), str(usual))
            known = await self._store.trades.coverage(market)
            at = self._resume(market, known, now)
            if at == now and not (known and known[-1].until == now):
                # Before the first row: whoever is killed right after it goes on from here.
                await self._store.trades.state_many(
                    [(market, now - _MS, now)], status=MARK, source=SOURCE, reason="begun here"
                )
                at = now - _MS
            has_ids = space is not IdSpace.DERIVED
            follower = TradeFollower(
                market, usual, venue.trade_ids_gapless and has_ids, to_ms(at), space,
                dense=venue.trade_ids_dense and has_ids,
            )  # fmt: skip
            self._refiller.follow(follower, checked=_unchecked(known, at))
            self._add("trades", market, follower)

    async def _prepare_candles(self, markets: Sequence[Market], now: datetime) -> None:
        opened = self._frame.open_time(now)
        if self._frame.name not in self._exchange.timeframes:
            raise NotOffered(self._exchange.name, f"it has no {self._frame} candles")
        streams = self._exchange.streams_candles
        if not streams:
            # They are asked for after each close anyway.
            self._tell(
                "unavailable", f"it streams no candles: REST is asked after each {self._frame}",
                what="candles",
            )  # fmt: skip
        for index, market in enumerate(markets):
            known = await self._store.candles.coverage(market, self._frame, _EPOCH, now)
            at = self._resume(market, known, opened)
            if at == opened and not known:
                before = self._frame.open_time(opened - _MS)
                mark = Stretch(before, opened, MARK, SOURCE, "begun here")
                await self._store.candles.write_fetched(
                    market, self._frame, candle_table([]), [mark], now=now, source=SOURCE
                )
                at = before
            follower = CandleFollower(
                market, self._frame, to_ms(at),
                SPREAD_MS * index // len(markets),
            )  # fmt: skip
            self._refiller.follow(follower)
            if streams:
                self._add("candles", market, follower)

    def _resume(self, market: Market, known: Sequence[Stretch], now: datetime) -> datetime:
        """Where a market has to go on: the first hole that is young enough, else `now`.

        known: all that is known of it, by time. What was never begun has no hole; where a stream
        began and did not get far, its mark is still there.
        """
        oldest = now - self._options.max_gap
        if known and known[-1].until < oldest:
            self._tell(
                "gap_left",
                f"nothing is stored since {known[-1].until:%Y-%m-%d %H:%M} UTC, which is too long "
                "ago to be asked for here: use the backfill for it",
                market=market, since=known[-1].until, until=now,
            )  # fmt: skip
        recent = [one for one in known if one.until >= oldest]
        if not recent:
            return now
        at = recent[0].since
        for one in recent:
            if one.since > at or (one.status, one.source) == (MARK, SOURCE):
                break
            at = max(at, one.until)
        return min(at, now)

    def _add(self, what: str, market: Market, follower: object) -> None:
        """Spot and contracts are streamed from different addresses."""
        most = self._exchange.venue.stream_markets or GROUP
        name = market.name
        kind = f"{name.type} {'inverse' if name.settle == name.base else ''}"
        for group in self._groups:
            if (group.what, group.kind) == (what, kind) and len(group.followers) < most:
                break
        else:
            group = _Group(what, kind)
            self._groups.append(group)
        group.followers[name.symbol] = follower

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Run everything in `tasks`."""
        for follower in self._refiller.trades:
            self._writer.follow(follower)
        for group in self._groups:
            tasks.create_task(self._read(group))
        for _ in range(REFILLERS):
            tasks.create_task(self._refill())
        tasks.create_task(self._revive())

    async def _read(self, group: _Group) -> None:
        """Read a connection; when it is lost, make it anew."""
        attempt = 0
        while True:
            await self._writer.room()
            started = time.monotonic()
            try:
                await self._listen(group)
                reason = "the buffer is full"
            except ExchangeError as error:
                # What an exchange refuses once it is connected, it may grant the next time.
                if isinstance(error, (NotOffered, BadSymbol)) and not group.was_connected:
                    raise
                reason = error.reason
            finally:
                group.is_connected = False
                for follower in group.followers.values():
                    follower.lost()
            attempt = 1 if time.monotonic() - started >= HELD_S else attempt + 1
            wait_s = self._policy.backoff_s(attempt, self._jitter)
            self._tell(
                "reconnecting", f"{group.what}: {reason}; connecting again in {wait_s:.1f} s",
                what=group.what, markets=len(group.followers), reason=reason,
                wait_s=round(wait_s, 1),
            )  # fmt: skip
            await asyncio.sleep(wait_s)

    async def _listen(self, group: _Group) -> None:
        """Hand on what comes until the buffer is full; else it ends with an ExchangeError."""
        symbols = list(group.followers)
        if group.what == "trades":
            take: Callable[[Any], None] = partial(self._take_trades, group)
            batches: Any = self._exchange.watch_trades(symbols)
        else:
            take = partial(self._take_candles, group)
            batches = self._exchange.watch_candles(symbols, self._frame.name)
        async with aclosing(batches):
            async for batch in batches:
                if not group.is_connected:
                    group.is_connected = group.was_connected = True
                    for follower in group.followers.values():
                        follower.connected(time.monotonic())
                    self._tell(
                        "connected", f"{group.what} of {_names(symbols)}",
                        what=group.what, markets=len(symbols),
                    )  # fmt: skip
                take(batch)
                if self._writer.is_full:
                    # Nobody may read on while nothing is taken: the connection has to go.
                    self._dead.set()
                    return

    def _take_trades(self, group: _Group, batch: Batch[TradeRow]) -> None:
        now_s = time.monotonic()
        rows: dict[str, list[TradeRow]] = {}
        for symbol, row in batch.rows:
            rows.setdefault(symbol, []).append(row)
        for symbol, found in rows.items():
            follower: TradeFollower = group.followers[symbol]
            ready = follower.receive(found, now_s)
            if ready:
                self._writer.add_trades(follower, ready, batch.received_s)

    def _take_candles(self, group: _Group, batch: Batch[CandleUpdate]) -> None:
        for symbol, update in batch.rows:
            follower: CandleFollower = group.followers[symbol]
            final = follower.receive(update)
            if final:
                self._writer.add_candles(follower, final, batch.received_s)

    async def _refill(self) -> None:
        while True:
            try:
                worked = await self._refiller.work()
            except ExchangeError as error:
                # Its clock cannot be read.
                self._tell("refill_failed", f"REST does not answer: {error}", error=str(error))
                worked = False
            self._release()
            if not worked:
                await asyncio.sleep(LOOK_S)

    def _release(self) -> None:
        """Trades that were held back until their millisecond is whole."""
        now_s = time.monotonic()
        for follower in self._refiller.trades:
            ready = follower.release(now_s)
            if ready:
                self._writer.add_trades(follower, ready, now_s)

    async def _revive(self) -> None:
        """Close the connections when one of them turns out to be dead, or nothing can be taken."""
        while True:
            await self._dead.wait()
            self._dead.clear()
            await self._exchange.disconnect()


def _unchecked(known: Sequence[Stretch], at: datetime) -> int | None:
    """From where on what is whole up to `at` may be the word of a stream alone; None for nothing.

    Milliseconds since 1970.
    """
    for one in known:
        if one.since < at <= one.until and one.status == "complete":
            return to_ms(max(one.since, at - timedelta(seconds=CHECK_S)))
    return None


def _names(symbols: Sequence[str]) -> str:
    shown = ", ".join(symbols[:SHOWN])
    return shown if len(symbols) <= SHOWN else f"{shown} and {len(symbols) - SHOWN} more"
