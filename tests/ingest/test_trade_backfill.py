"""Backfill of trades: after it, what is stored is what the exchange serves, and why not else."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, Final

import pytest
from exchange_server.binance import Aggregates
from exchange_server.clock import MINUTE_MS
from exchange_server.fake import FakeExchange
from exchange_server.faults import Fault, Rule
from exchange_server.server import ExchangeServer
from exchange_server.truth import Tape, Tick
from exchange_server.world import NOW_MS, START_MS, TICKS, Opener
from rows import session

from kurisu.domain.trade import IdSpace, Trade
from kurisu.errors import DatabaseError, InvalidArgument, RetentionConflict
from kurisu.exchange.calls import RetryPolicy
from kurisu.exchange.clock import from_ms
from kurisu.exchange.venues import VENUES as VENUES_KNOWN
from kurisu.exchange.venues import Venue
from kurisu.ingest import trade_backfill
from kurisu.ingest.trade_backfill import MarketTradeBackfill, TradeBackfillReport, backfill_trades
from kurisu.store.store import Store

SINCE: Final = from_ms(START_MS)
END: Final = from_ms(NOW_MS - 2_000)
VENUES: Final = {"binance": "SHIB/USDT", "bitfinex": "BTC/USD", "kraken": "XRP/USDT"}
POLICY: Final = RetryPolicy(attempts=2)


@pytest.fixture(params=["plain"])
def tier(request: pytest.FixtureRequest) -> str:
    """Nothing of this depends on the engine; the store's own tests run on all."""
    return str(request.param)


async def backfill(
    store: Store,
    opened: Opener,
    venue: str = "binance",
    since: datetime | None = SINCE,
    until: datetime | None = None,
    **more: Any,
) -> TradeBackfillReport:
    async with opened(venue, policy=POLICY) as exchange:
        market = await store.markets.ensure(venue, VENUES[venue])
        return await backfill_trades(store, exchange, [market], since, until, **more)


async def stored(store: Store, venue: str) -> list[tuple[Any, ...]]:
    """(time, id or None, side, price, amount); ids that were derived are left out."""
    market = await store.markets.get(venue, VENUES[venue])
    derived = await store.trades.id_space(market) is IdSpace.DERIVED
    return sorted(
        (t.time, "" if derived else t.trade_id, t.side, t.price, t.amount)
        for t in await store.trades.read(market)
    )


SERVED: Final = {
    "binance": Aggregates(TICKS).rows,
    "bitfinex": TICKS,
    "kraken": [tick._replace(id=None) for tick in TICKS],
}


def truth(venue: str, since: datetime = SINCE, until: datetime | None = None) -> Any:
    """What the venue serves of [since, until), as `stored` has it."""
    until = until or from_ms(NOW_MS - 2_000)
    return sorted(
        (from_ms(t.time_ms), "" if t.id is None else str(t.id), t.side, t.price, t.amount)
        for t in SERVED[venue]
        if since <= from_ms(t.time_ms) < until
    )


def only(report: TradeBackfillReport) -> MarketTradeBackfill:
    (one,) = report.markets
    return one


@pytest.mark.parametrize("venue", VENUES)
async def test_what_is_stored_is_what_the_exchange_serves(
    store: Store, server: ExchangeServer, opened: Opener, venue: str
) -> None:
    report = await backfill(store, opened, venue)
    one = only(report)
    assert await stored(store, venue) == truth(venue, until=one.until)
    assert report.is_done
    assert one.since == SINCE
    assert END - timedelta(seconds=1) <= one.until <= from_ms(NOW_MS)
    assert one.fetched == one.inserted == len(truth(venue, until=one.until))
    assert {s.status for s in one.coverage} <= {"complete", "empty"}
    # A second run asks for nothing.
    server.requests.clear()
    again = await backfill(store, opened, venue)
    assert again.is_done
    assert only(again).fetched == 0
    assert only(again).requested < timedelta(minutes=1)  # time has passed since


FAULTS: Final = {
    "rows twice": Rule(Fault.DUPLICATE_ROWS, "rades", times=2, skip=1),
    "rows from before": Rule(Fault.OVERLAP, "rades", times=3, skip=1),
    "half of the rows": Rule(Fault.SHORT, "rades", times=3, skip=1),
    "no rows for once": Rule(Fault.EMPTY, "rades", times=1, skip=2),
    "cut": Rule(Fault.CUT_BODY, "rades", times=1, skip=1),
    "html": Rule(Fault.HTML, "rades", times=1, skip=1),
    "too many requests": Rule(Fault.STATUS, "rades", times=1, skip=1, status=429, retry_after="1"),
}


@pytest.mark.parametrize("venue", ["binance", "kraken"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_faults_lose_nothing(
    store: Store, server: ExchangeServer, opened: Opener, venue: str, fault: str
) -> None:
    rule = FAULTS[fault]
    path = "Trades"
    server.faults.add(
        Rule(rule.fault, path, times=rule.times, skip=rule.skip, status=rule.status,
             retry_after=rule.retry_after)
    )  # fmt: skip
    report = await backfill(store, opened, venue)
    assert server.faults.rules[0].hits > 0
    if not report.is_done:  # what did not come the first time comes the next
        report = await backfill(store, opened, venue)
    assert report.is_done
    assert await stored(store, venue) == truth(venue, until=only(report).until)


@pytest.mark.parametrize("venue", VENUES)
async def test_several_walkers_of_one_market(
    store: Store, server: ExchangeServer, opened: Opener, venue: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(trade_backfill, "SHORTEST_PIECE", timedelta(hours=2))
    at_once = 0

    class Counted(trade_backfill._MarketWalk):
        async def _walk(self, *piece: Any) -> None:
            nonlocal at_once
            running.append(piece)
            at_once = max(at_once, len(running))
            await super()._walk(*piece)
            running.remove(piece)

    running: list[Any] = []
    monkeypatch.setattr(trade_backfill, "_MarketWalk", Counted)
    report = await backfill(store, opened, venue, concurrency=3)
    assert at_once == 3
    assert report.is_done
    assert await stored(store, venue) == truth(venue, until=only(report).until)


@pytest.mark.parametrize("venue", VENUES)
async def test_answers_that_stay_empty_are_no_end(
    store: Store, server: ExchangeServer, opened: Opener, venue: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """However often: what is claimed is true, and the rest has failed."""
    path = "Trades" if venue != "bitfinex" else "trades"
    # All but the newest, which are asked for without a place to begin.
    begin = {"binance": "fromId", "kraken": "since", "bitfinex": "start"}[venue]
    monkeypatch.setattr("kurisu.exchange.venues.VENUES", {
        **VENUES_KNOWN, "bitfinex": replace(VENUES_KNOWN["bitfinex"], trade_limit=500),
    })  # fmt: skip
    rule = server.faults.add(Rule(Fault.EMPTY, path, times=10**6, skip=2, present=begin))
    one = only(await backfill(store, opened, venue))
    assert rule.hits
    assert not one.is_done
    assert "newer ones" in one.problems[0].reason
    found = await stored(store, venue)
    for known in one.coverage:
        if known.status in ("complete", "empty"):
            inside = [row for row in found if known.since <= row[0] < known.until]
            assert inside == truth(venue, known.since, known.until)
    rule.times = 0
    assert (await backfill(store, opened, venue)).is_done


async def test_an_exchange_that_gives_up(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    rule = server.faults.add(Rule(Fault.STATUS, "aggTrades", times=10**6, skip=3, status=500))
    report = await backfill(store, opened)
    one = only(report)
    assert not report.is_done
    assert 0 < one.inserted < len(truth("binance"))
    (problem,) = one.problems
    failed = one.coverage[-1]
    assert (failed.since, failed.until, failed.status) == (problem.since, one.until, "failed")
    assert failed.reason == problem.reason
    known = one.coverage[0]
    assert (known.since, known.until, known.status) == (SINCE, problem.since, "complete")
    # What is claimed is true.
    found = await stored(store, "binance")
    assert [row for row in found if row[0] < known.until] == truth("binance", until=known.until)
    rule.times = 0
    again = await backfill(store, opened)
    assert again.is_done
    assert await stored(store, "binance") == truth("binance", until=only(again).until)


@pytest.mark.parametrize("venue", ["binance", "kraken"])
async def test_it_is_stopped_at_any_moment_and_goes_on(
    store: Store, server: ExchangeServer, opened: Opener, venue: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(trade_backfill, "WAITING_PAGES", 1)
    for requests in (1, 2, 3, 4, 6):
        server.requests.clear()
        task = asyncio.create_task(backfill(store, opened, venue))
        while len(server.asked("rades")) < requests and not task.done():  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        market = await store.markets.get(venue, VENUES[venue])
        found = await stored(store, venue)
        for known in await store.trades.coverage(market):
            inside = [row for row in found if known.since <= row[0] < known.until]
            assert inside == truth(venue, known.since, known.until)
    report = await backfill(store, opened, venue)
    assert report.is_done
    assert await stored(store, venue) == truth(venue, until=only(report).until)


async def test_holes_alone_are_filled(store: Store, server: ExchangeServer, opened: Opener) -> None:
    market = await store.markets.ensure("binance", "SHIB/USDT")
    middle = START_MS + 500 * MINUTE_MS, START_MS + 2_000 * MINUTE_MS
    inside = [
        Trade(from_ms(t.time_ms), str(t.id), t.side, t.price, t.amount)
        for t in SERVED["binance"]
        if middle[0] <= t.time_ms < middle[1]
    ]
    stretch = (from_ms(middle[0]), from_ms(middle[1]))
    await store.trades.write(market, inside, id_space="aggregate", complete=[stretch])
    report = await backfill(store, opened)
    assert only(report).fetched < len(truth("binance"))
    assert await stored(store, "binance") == truth("binance", until=only(report).until)
    # Without a beginning it goes on from the first that is known.
    server.clock.advance(600)
    again = only(await backfill(store, opened, since=None))
    assert again.since == SINCE
    assert again.is_done
    with pytest.raises(InvalidArgument, match="--since"):
        await backfill(store, opened, "kraken", since=None)


async def test_a_market_with_ids_of_another_kind(store: Store, opened: Opener) -> None:
    market = await store.markets.ensure("binance", "SHIB/USDT")
    row = Trade(SINCE, "1", "buy", TICKS[0].price, TICKS[0].amount)
    await store.trades.write(market, [row], id_space="raw")
    one = only(await backfill(store, opened))
    assert not one.is_done
    assert [s.status for s in one.coverage] == ["missing"]
    assert "raw ids, and these have aggregate ids" in one.problems[0].reason
    assert len(await store.trades.read(market)) == 1


async def test_a_policy_of_the_users_is_not_worked_against(
    store: Store, server: ExchangeServer, opened: Opener
) -> None:
    await store.db.set_retention("trades", "10 days")
    with pytest.raises(RetentionConflict, match="--allow-expiring"):
        await backfill(store, opened)
    assert server.asked("rades") == []


async def test_it_outlives_broken_connections_to_the_database(
    store: Store, opened: Opener, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kurisu.store.patience.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(trade_backfill, "WAITING_PAGES", 1)
    breaks = 0
    write = type(store.trades).write

    async def broken(trades: Any, *arguments: Any, **more: Any) -> Any:
        """Every other write loses its connection, before or after its commit."""
        nonlocal breaks
        breaks += 1
        if breaks % 4 == 1:
            await end_sessions()
        report = await write(trades, *arguments, **more)
        if breaks % 4 == 3:
            raise DatabaseError("the connection broke after the commit")
        return report

    async def end_sessions() -> None:
        async with session(url) as admin:
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    monkeypatch.setattr(type(store.trades), "write", broken)
    report = await backfill(store, opened)
    assert breaks >= 4
    assert report.is_done
    assert await stored(store, "binance") == truth("binance", until=only(report).until)


class Listing(FakeExchange):
    """It lists the one market that it has."""

    async def load_markets(self, *, reload: bool = False) -> list[Any]:
        return [SimpleNamespace(symbol="X/Y")]


async def test_every_hole_has_its_reason(store: Store) -> None:
    """Too old for the venue, and too many in the second that it cuts its windows to."""
    ticks = [
        Tick(n + 1, at, TICKS[0].price, TICKS[0].amount, "buy", at * 10**6)
        for n, at in enumerate(
            [*range(START_MS, START_MS + 600_000, 7_000)]
            + [START_MS + 700_000 + n for n in range(300)]
            + [*range(START_MS + 701_000, START_MS + 900_000, 7_000)]
        )
    ]
    venue = Venue(trade_limit=100, trade_time_unit_ms=1_000)
    border = START_MS + 200_000
    exchange = Listing(
        venue, START_MS + 900_000, tape=Tape(ticks), seconds=True, newest_of_window=True,
        refused_before_ms=border,
    )  # fmt: skip
    market = await store.markets.ensure("fake", "X/Y")
    since = from_ms(START_MS - 30 * 86_400_000)
    report = await backfill_trades(store, exchange, [market], since)
    holes = [one for one in only(report).coverage if one.status not in ("complete", "empty")]
    assert [str(one.reason).split(" trades")[0] for one in holes] == ["it is too long ago", "100"]
    assert holes[0].since == since
    assert from_ms(border) <= holes[0].until <= from_ms(border + MINUTE_MS)
    assert (holes[1].since, holes[1].until) == (
        from_ms(START_MS + 700_000), from_ms(START_MS + 701_000)
    )  # fmt: skip
    wanted = [
        str(tick.id) for tick in ticks
        if from_ms(tick.time_ms) < report.markets[0].until
        and not any(one.since <= from_ms(tick.time_ms) < one.until for one in holes)
    ]  # fmt: skip
    assert [trade.trade_id for trade in await store.trades.read(market)] == wanted
