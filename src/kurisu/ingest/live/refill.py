"""What a connection missed is asked from REST, and every candle once more after its close."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import pyarrow as pa

from kurisu.domain.timeframe import Timeframe
from kurisu.errors import DatabaseError, ExchangeError, RetentionConflict, WriteRefused
from kurisu.exchange.candles import CandlePage, PageStatus, candle_pages
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.port import StreamingExchange
from kurisu.exchange.streams import MOST_DOUBLED
from kurisu.exchange.trades import TradePage, trade_pages
from kurisu.exchange.venues import TradePaging
from kurisu.ingest.live.candles import CandleFollower
from kurisu.ingest.live.trades import TradeFollower
from kurisu.ingest.outages import AROUND_BARS, Span, Witnesses
from kurisu.store.coverage import Stretch, common, without
from kurisu.store.markets import Market
from kurisu.store.store import Store
from kurisu.store.trades import TradeBatch

#: A market without trades for so long is asked for: nobody trades, or the stream has died.
SILENCE_S: Final = 60.0
#: The same of a market that usually trades so many times within its silence; but not sooner.
UNUSUAL_PAUSES: Final = 20
SHORTEST_SILENCE_S: Final = 15.0
#: How soon connections are given up again for a market for which that has not helped; then after
#: twice as long, and so on. The others lose theirs, too.
REVIVED_S: Final = 60.0
LONGEST_REVIVED_S: Final = 6 * 3600.0
#: So long after a connection was made REST is asked, if no trade has shown from where on.
FIRST_TRADE_S: Final = 0.5
#: Trades that REST has and the stream has not after so long will not come any more.
LATE_MS: Final = 10_000
#: Holes of fewer bars in all are nobody's outage.
JUDGED_BARS: Final = 2
#: How often REST is asked whether a stream leaves something out whose ids do not tell.
CHECK_S: Final = 300.0
#: Rows of an answer, where the venue does not say how many it gives.
USUAL_LIMIT: Final = 100
#: Wait before REST is asked again where it has not caught up with the stream.
AGAIN_S: Final = 0.5
#: The longest waits after failures: of the exchange, and of the database.
LONGEST_WAIT_S: Final = 60.0
DATABASE_WAIT_S: Final = 2.0

SOURCE: Final = "rest"
_NEWEST_FIRST: Final = (TradePaging.NONE, TradePaging.BACK)


@dataclass(slots=True)
class _Turn:
    """When a market may be asked for again, and was asked last, by a steady clock; in which run
    of its stream that was.

    checked: what the stream brought before it was compared with REST, by the exchange's clock; at
    checked_s. is_doubted: the stream has left out something of what came since. differs: it was
    said that the two do not agree.
    told: of which run it was said that something is missing; inserted: trades of it from REST,
    since: where it began. revivals: how often connections were given up for this market without
    its stream saying anything since, the last time at revived_s.
    """

    at_s: float = 0.0
    failures: int = 0
    is_running: bool = False
    asked_s: float = 0.0
    run: int | None = None
    checked: int | None = None
    checked_s: float = -math.inf
    is_doubted: bool = False
    differs: bool = False
    told: int | None = None
    since: int | None = None
    inserted: int = 0
    revivals: int = 0
    revived_s: float = 0.0


class Refiller:
    """Asks REST for the markets of one exchange. Several tasks may run `work` at once.

    tell: called with an event's name, its text and its fields. revive: called when a connection
    turns out to be dead.
    """

    def __init__(
        self,
        store: Store,
        exchange: StreamingExchange,
        frame: Timeframe,
        grace: timedelta,
        tell: Callable[..., None],
        revive: Callable[[], None],
        *,
        jitter: random.Random | None = None,
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._frame = frame
        self._grace = grace
        self._tell = tell
        self._revive = revive
        self._jitter = jitter or random.Random()  # noqa: S311  # spreads retries in time
        self._witnesses: tuple[datetime, Witnesses] | None = None
        self.trades: dict[TradeFollower, _Turn] = {}
        self.candles: dict[CandleFollower, _Turn] = {}

    def follow(
        self, follower: TradeFollower | CandleFollower, *, checked: int | None = None
    ) -> None:
        """checked: what a stream has brought from then on was perhaps not compared with REST."""
        if isinstance(follower, TradeFollower):
            self.trades[follower] = _Turn(checked=checked)
        else:
            self.candles[follower] = _Turn()

    async def work(self) -> bool:
        """Ask for one market that needs it; False if none does."""
        now_s = time.monotonic()
        for trades, turn in self.trades.items():
            if not turn.is_running and turn.at_s <= now_s and self._needs(trades, turn, now_s):
                await self._take(turn, self._read_trades(trades, turn), str(trades.market))
                return True
        if self.candles:
            now = to_ms(await self._exchange.now())
            due = [
                (candles.check_at, turn, candles)
                for candles, turn in self.candles.items()
                if not turn.is_running and turn.at_s <= now_s and candles.check_at <= now
            ]
            if due:
                _, turn, candles = min(due, key=lambda one: one[0])
                await self._take(turn, self._read_candles(candles, turn), str(candles.market))
                return True
        # What can wait.
        for trades, turn in self.trades.items():
            if not turn.is_running and turn.at_s <= now_s and self._is_unchecked(trades, turn):
                await self._take(turn, self._check_trades(trades, turn), str(trades.market))
                return True
        return False

    async def _take(self, turn: _Turn, work: Coroutine[Any, Any, None], market: str) -> None:
        turn.is_running = True
        try:
            await work
        except WriteRefused:
            raise
        except (ExchangeError, DatabaseError) as error:
            turn.failures += 1
            longest_s = LONGEST_WAIT_S if isinstance(error, ExchangeError) else DATABASE_WAIT_S
            wait_s = min(longest_s, 2.0 ** min(turn.failures - 1, 10))
            wait_s *= 0.5 + self._jitter.random() / 2
            turn.at_s = time.monotonic() + wait_s
            self._tell(
                "refill_failed", f"not refilled, asking again in {wait_s:.0f} s: {error}",
                market=market, error=str(error), wait_s=round(wait_s, 1),
            )  # fmt: skip
        else:
            turn.failures = 0
        finally:
            turn.is_running = False

    def _needs(self, follower: TradeFollower, turn: _Turn, now_s: float) -> bool:
        if follower.missing is not None:
            return True
        if follower.connected_s is not None and turn.run != follower.run:
            # What was missed, although nobody trades just now.
            return now_s - follower.connected_s >= FIRST_TRADE_S
        silence_s = SILENCE_S
        if follower.pause_s is not None and turn.asked_s < follower.heard_s:
            unusual_s = max(UNUSUAL_PAUSES * follower.pause_s, SHORTEST_SILENCE_S)
            silence_s = min(silence_s, unusual_s)
        return now_s - max(follower.heard_s, turn.asked_s) >= silence_s

    async def _read_trades(self, follower: TradeFollower, turn: _Turn) -> None:
        """From what is whole to beyond the first trade of the run; or, if the stream has been
        silent, to now."""
        if self._exchange.venue.trade_paging is TradePaging.NOTHING:
            await self._leave_out(follower, turn)
            return
        missing, run = follower.missing, follower.run
        since = follower.whole_until
        # The newest trades are one request, however far they are asked for.
        is_open = missing is None or self._exchange.venue.trade_paging in _NEWEST_FIRST
        until = None if is_open or missing is None else missing[1]
        # Trades as young as this may still be under way on the stream, too.
        expected = to_ms(await self._exchange.now()) - LATE_MS
        heard = since if follower.newest is None else follower.newest
        # A stream that shows several trades as one has missed nothing, and does so all the time.
        is_apart = follower.is_apart
        if missing is not None and not is_apart and turn.told != run:
            # Once, however often REST is asked until it has caught up.
            self._tell_gap(follower.market, since, missing[1])
            turn.told, turn.since = run, since
        inserted, late, reached = 0, False, since
        async for page in trade_pages(
            self._exchange, follower.symbol, from_ms(since),
            None if until is None else from_ms(until),
            grace=self._grace, id_space=follower.space, known_from=follower.first_id,
        ):  # fmt: skip
            is_whole = page.status is PageStatus.ANSWERED
            stretch = (page.since, page.until)
            known = [stretch] if is_whole and page.since < page.until else []
            rows = page.table
            batch = TradeBatch(
                follower.market, rows, page.id_space,
                complete=known if rows.num_rows else [], empty=[] if rows.num_rows else known,
            )  # fmt: skip
            now = await self._exchange.now()
            try:
                (report,) = await self._store.trades.write_many([batch], source=SOURCE, now=now)
            except RetentionConflict as error:
                # The user wants nothing as old as this kept.
                self._tell(
                    "gap_left", f"not asked for: {error}", market=str(follower.market),
                    since=page.since, until=page.until,
                )  # fmt: skip
                follower.has_read(to_ms(page.until))
                continue
            inserted += report.inserted
            if follower.space is None and page.table.num_rows:
                follower.space = page.id_space
            if not is_whole:
                reason = "the exchange gives no history of trades"
                await self._store.trades.state_many(
                    [(follower.market, *stretch)], status="failed", source=SOURCE, reason=reason
                )
                self._tell_unavailable(follower.market, *stretch)
            elif report.inserted:
                late |= any(heard < to_ms(at) < expected for at in page.table["time"].to_pylist())
            reached = to_ms(page.until)
            follower.has_read(reached)
        if turn.checked is None or since <= turn.checked:
            # What is whole beyond that, now that the run is joined, is the stream's word.
            turn.checked, turn.checked_s = reached, time.monotonic()
        # What is caught up with at the beginning of a run says nothing about the stream.
        turn.asked_s, turn.run, late = time.monotonic(), run, late and turn.run == run
        turn.inserted += 0 if is_apart else inserted
        if follower.missing is not None:
            turn.at_s = turn.asked_s + AGAIN_S
        elif turn.since is not None or turn.inserted:
            self._tell_refilled(
                follower.market, since if turn.since is None else turn.since,
                follower.whole_until, turn.inserted, "trades",
            )  # fmt: skip
            turn.since, turn.inserted = None, 0
        if missing is None and late and run == follower.run:
            self._give_up(follower.market, turn, follower.heard_s)

    def _is_unchecked(self, follower: TradeFollower, turn: _Turn) -> bool:
        """Its ids do not tell whether the stream leaves something out, and REST was not asked."""
        if follower.gapless or follower.dense:
            return False
        if self._exchange.venue.trade_paging is TradePaging.NOTHING:
            return False
        if turn.checked is None or turn.checked >= follower.whole_until:
            return False
        return turn.is_doubted or time.monotonic() - turn.checked_s >= CHECK_S

    def _sampled_from(self, follower: TradeFollower, until: int) -> int:
        """From where on about as many trades of a busy market came before `until` as fit in an
        answer; 0 where nobody knows how busy it is."""
        if follower.pause_s is None:
            return 0
        # A message may be several trades.
        rows = (self._exchange.venue.trade_limit or USUAL_LIMIT) // 2
        return until - int(rows * follower.pause_s * 1000)

    async def _check_trades(self, follower: TradeFollower, turn: _Turn) -> None:
        """Store what REST has and the stream should have brought by now."""
        # Where REST does not answer this can wait until the next time.
        turn.checked_s = time.monotonic()
        until = min(follower.whole_until, to_ms(await self._exchange.now()) - LATE_MS)
        begun = until if turn.checked is None else turn.checked
        # Once something was left out all is looked at that came since the last time.
        sampled = 0 if turn.is_doubted else self._sampled_from(follower, until)
        since, missed = max(begun, sampled), 0
        if until > since:
            async for page in trade_pages(
                self._exchange, follower.symbol, from_ms(since), from_ms(until),
                grace=self._grace, id_space=follower.space,
            ):  # fmt: skip
                # What REST does not give any more says nothing about the stream.
                if page.status is PageStatus.ANSWERED:
                    missed += await self._add_left_out(follower.market, turn, page)
        if missed:
            self._tell(
                "left_out", f"{missed:,} trades that the stream has left out, from REST",
                market=str(follower.market), since=from_ms(since), until=from_ms(until),
                trades=missed,
            )  # fmt: skip
        turn.is_doubted = missed > 0 and since > begun
        if not turn.is_doubted:
            turn.checked = max(begun, until)

    async def _add_left_out(self, market: Market, turn: _Turn, page: TradePage) -> int:
        """Trades of the page that were not stored, and are now; none if the page lacks stored ones:
        then the two do not speak of the same trades, and every one would count twice."""
        stored = await self._store.trades.read(market, page.since, page.until)
        known, told = _keys(stored.table), _keys(page.table)
        if known - told:
            if not turn.differs:
                turn.differs = True
                self._tell(
                    "differs", f"{len(known - told):,} trades of the stream are not among REST's, "
                    "which is not asked what else there was",
                    market=str(market), since=page.since, until=page.until,
                    trades=len(known - told),
                )  # fmt: skip
            return 0
        if told <= known:
            return 0
        now = await self._exchange.now()
        batch = TradeBatch(market, page.table, page.id_space)
        try:
            (report,) = await self._store.trades.write_many([batch], source=SOURCE, now=now)
        except RetentionConflict:
            # What the user wants to have dropped by now is missed by nobody.
            return 0
        return report.inserted

    async def _leave_out(self, follower: TradeFollower, turn: _Turn) -> None:
        """What the stream has missed, and nobody gives."""
        missing, run = follower.missing, follower.run
        if missing is not None:
            stretch = from_ms(missing[0]), from_ms(missing[1])
            await self._store.trades.state_many(
                [(follower.market, *stretch)], status="failed", source=SOURCE,
                reason="the exchange gives trades as they happen only",
            )  # fmt: skip
            self._tell_unavailable(follower.market, *stretch)
            follower.has_read(missing[1])
        turn.asked_s, turn.run = time.monotonic(), run

    def _give_up(self, market: Market, turn: _Turn, heard_s: float) -> None:
        """The market trades, and its stream, heard last at `heard_s`, does not say so."""
        if heard_s > turn.revived_s:
            turn.revivals = 0
        wait_s = min(REVIVED_S * (2 ** min(turn.revivals, MOST_DOUBLED) - 1), LONGEST_REVIVED_S)
        if time.monotonic() - turn.revived_s < wait_s:
            return
        turn.revivals, turn.revived_s = turn.revivals + 1, time.monotonic()
        self._tell(
            "silent", "the market trades, and the stream says nothing: connecting anew",
            market=str(market),
        )  # fmt: skip
        self._revive()

    async def _read_candles(self, follower: CandleFollower, turn: _Turn) -> None:
        """From some candles before what is whole to the newest that has closed."""
        since = follower.whole_until
        now = to_ms(await self._exchange.now())
        closed = to_ms(self._frame.open_time(from_ms(now)))
        missed = closed - since > 2 * self._frame.seconds * 1000
        told = missed and self._tell_gap(follower.market, since, closed)
        inserted = updated = 0
        until = since
        touched: list[tuple[datetime, datetime]] = []
        async for page in candle_pages(
            self._exchange, follower.symbol, self._frame, from_ms(follower.ask_from),
            grace=self._grace,
        ):  # fmt: skip
            if page.status is PageStatus.UNAVAILABLE:
                reason = f"{self._exchange.name} does not give it: {page.reason}"
                known = [Stretch(page.since, page.until, "failed", SOURCE, reason)]
                self._tell_unavailable(follower.market, page.since, page.until)
            else:
                known = await self._known(follower, page)
            report = await self._store.candles.write_fetched(
                follower.market, self._frame, page.table, known,
                now=page.exchange_time - self._grace, source=SOURCE,
            )  # fmt: skip
            inserted += report.inserted
            updated += report.updated
            until = to_ms(page.until)
            if report.touched:
                touched.append((page.since, page.until))
        await self._store.candles.settle(touched)
        if updated:
            self._tell(
                "revised",
                f"the exchange changed {updated} candles after their close",
                market=str(follower.market), candles=updated,
            )  # fmt: skip
        if told or inserted:
            self._tell_refilled(follower.market, since, until, inserted, "candles")
        if not follower.has_checked(until, now, inserted):
            follower.unheard = 0
            self._give_up(follower.market, turn, follower.heard_s)

    async def _known(self, follower: CandleFollower, page: CandlePage) -> list[Stretch]:
        """What the holes of a page are, as far as they were not judged before."""
        begin = from_ms(follower.whole_until)
        holes = [(max(since, begin), until) for since, until in page.holes if until > begin]
        down: list[Span] = []
        if sum(self._frame.count(*hole) for hole in holes) >= JUDGED_BARS:
            down = common(await self._outages(follower.symbol, page), holes)
        reason = f"no market of {self._exchange.name} has a candle there"
        known = [Stretch(*span, "outage", SOURCE, reason) for span in down]
        empty = [Stretch(*hole, "empty", SOURCE) for hole in holes]
        return [*known, *without(empty, known)]

    async def _outages(self, symbol: str, page: CandlePage) -> list[Span]:
        """When the exchange was down. A page of some minutes says little about what is usual for
        the market, so more of it is looked at."""
        now = await self._exchange.now()
        closed = self._frame.open_time(now - self._grace)
        if self._witnesses is None or self._witnesses[0] != closed:
            # What others did until then is asked for once, for all markets.
            listings = await self._exchange.load_markets()
            found = Witnesses(self._store, self._exchange, self._frame, listings, now, self._grace)
            self._witnesses = (closed, found)
        witnesses = self._witnesses[1]
        since = page.since - AROUND_BARS * self._frame.length
        down: list[Span] = []
        async for wider in candle_pages(
            self._exchange, symbol, self._frame, since, page.until, grace=self._grace
        ):
            if wider.status is PageStatus.ANSWERED:
                down += await witnesses.outages(symbol, wider, traded_before=False)
        return down

    def _tell_gap(self, market: Market, since: int, until: int) -> bool:
        self._tell(
            "gap", f"missed from {from_ms(since):%Y-%m-%d %H:%M:%S} to "
            f"{from_ms(until):%Y-%m-%d %H:%M:%S} UTC, asking REST",
            market=str(market), since=from_ms(since), until=from_ms(until),
        )  # fmt: skip
        return True

    def _tell_refilled(
        self, market: Market, since: int, until: int, inserted: int, what: str
    ) -> None:
        self._tell(
            "refilled", f"{inserted:,} {what} from REST, whole up to {from_ms(until):%H:%M:%S}",
            market=str(market), since=from_ms(since), until=from_ms(until), **{what: inserted},
        )  # fmt: skip

    def _tell_unavailable(self, market: Market, since: datetime, until: datetime) -> None:
        self._tell(
            "unavailable", f"the exchange no longer gives {since:%Y-%m-%d %H:%M:%S} to "
            f"{until:%Y-%m-%d %H:%M:%S} UTC",
            market=str(market), since=since, until=until,
        )  # fmt: skip


def _keys(trades: pa.Table) -> set[tuple[datetime, str]]:
    return set(zip(trades["time"].to_pylist(), trades["trade_id"].to_pylist(), strict=True))
