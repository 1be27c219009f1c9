"""Fills that several tasks apply at a time: in their order, together, and each with its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pytest
from engines import REAL_TIERS
from ledger.histories import SPOT, Message, fee, fill, placed, said
from rows import fetch, session, value

from kurisu.domain.execution import Execution
from kurisu.errors import DatabaseError, InvalidArgument
from kurisu.ledger.intake import Flag, Outcome
from kurisu.store.accounts import Account
from kurisu.store.ledger_many import BATCH
from kurisu.store.markets import Market
from kurisu.store.store import Store, open_store

pytestmark = pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)

ORDERS = 4

#: The connections that wait for a row.
END_WHO_WAITS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


@pytest.fixture
async def account(store: Store, market: Market) -> Account:
    """binance:main with four open orders of 10, X0 to X3, each with a fill of 1."""
    assert market.symbol == SPOT.name.symbol
    account = await store.accounts.add("binance", "main")
    for number in range(ORDERS):
        ids = {"client_order_id": f"ours-{number}", "exchange_order_id": f"X{number}"}
        await store.ledger.place(placed("10", client_order_id=f"ours-{number}",
                                        account_id=account.id))  # fmt: skip
        await store.ledger.apply(account, said("open", 1, **ids), market=market)
        await store.ledger.apply(account, of(number, "first", "1"), market=market)
    return account


def of(order: int, trade_id: str, amount: str = "0.1", **changes: object) -> Execution:
    """A fill of X<order>; trade ids are of the order."""
    return fill(f"{order}-{trade_id}", amount, exchange_order_id=f"X{order}", **changes)  # type: ignore[arg-type]


async def apply_at_once(
    store: Store, account: Account, market: Market, messages: Sequence[Message]
) -> list[Outcome | BaseException]:
    """One task for each; every one is waiting before the first is answered."""
    return await asyncio.gather(
        *(store.ledger.apply(account, message, market=market) for message in messages),  # type: ignore[arg-type]
        return_exceptions=True,
    )


async def test_what_waits_shares_a_transaction(
    store: Store, account: Account, market: Market
) -> None:
    fills = [of(n % ORDERS, str(n)) for n in range(80)]
    outcomes = await apply_at_once(store, account, market, fills)
    filled = dict.fromkeys(range(ORDERS), Decimal(1))
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, Outcome)
        assert outcome.before
        assert outcome.order
        assert outcome.before.filled == filled[number % ORDERS]
        filled[number % ORDERS] += Decimal("0.1")
        assert outcome.order.filled == filled[number % ORDERS]
        assert [row.trade_id for row in outcome.inserted] == [fills[number].trade_id]
    assert await value(store, "SELECT count(*) FROM executions") == 80 + ORDERS
    # The first had the database to itself; the others came meanwhile.
    written = "SELECT count(DISTINCT xmin::text) FROM executions WHERE trade_id NOT LIKE '%first'"
    assert await value(store, written) == 2
    again = await apply_at_once(store, account, market, fills)
    assert [isinstance(o, Outcome) and Flag.NOTHING_NEW in o.flags for o in again] == [True] * 80


async def test_a_turn_has_an_end(store: Store, account: Account, market: Market) -> None:
    fills = [of(n % ORDERS, str(n), "0.001") for n in range(2 * BATCH + 2)]
    outcomes = await apply_at_once(store, account, market, fills)
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)
    sizes = "SELECT count(*) FROM executions WHERE trade_id NOT LIKE '%first' GROUP BY xmin::text"
    assert sorted(row[0] for row in await fetch(store, sizes)) == [1, 1, BATCH, BATCH]
    assert await value(store, "SELECT sum(filled) FROM orders") == ORDERS + len(fills) * Decimal(
        "0.001"
    )


async def test_of_what_waits_only_the_wrong_one_is_refused(
    store: Store, account: Account, market: Market
) -> None:
    """No asset has a name of thirty characters, says the database."""
    fills = [of(n % ORDERS, str(n)) for n in range(20)]
    fills[7] = replace(fills[7], fees=fee("1", "A" * 30))
    outcomes = await apply_at_once(store, account, market, fills)
    wrong = outcomes.pop(7)
    assert isinstance(wrong, DatabaseError)
    assert "too long" in str(wrong)
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)
    assert await value(store, "SELECT count(*) FROM executions") == 19 + ORDERS
    assert await value(store, "SELECT sum(filled) FROM orders") == Decimal("5.9")
    # And the tallies are right: the next is plain.
    outcome = await store.ledger.apply(account, of(3, "next", "0.5"), market=market)
    assert outcome.order
    assert outcome.order.filled == Decimal("1.9")


async def test_an_update_has_its_place_among_fills(
    store: Store, account: Account, market: Market
) -> None:
    canceled = said("canceled", 20, client_order_id="ours-1", exchange_order_id="X1")
    messages: list[Message] = [
        of(1, "a"),
        of(1, "b"),
        canceled,
        of(1, "c", seconds=30),
        of(1, "d", seconds=30),
    ]
    outcomes = await apply_at_once(store, account, market, messages)
    late = [isinstance(o, Outcome) and Flag.AFTER_END in o.flags for o in outcomes]
    assert late == [False, False, False, True, True]


async def test_too_large_a_fill_among_others_is_held(
    store: Store, account: Account, market: Market
) -> None:
    fills = [of(0, "a", "1"), of(0, "b", "1"), of(0, "c", "50"), of(0, "d", "1"), of(2, "e", "1")]
    outcomes = await apply_at_once(store, account, market, fills)
    held = [isinstance(o, Outcome) and Flag.HELD in o.flags for o in outcomes]
    assert held == [False, False, True, False, False]
    filled = "SELECT filled FROM orders WHERE exchange_order_id = 'X0'"
    assert await value(store, filled) == Decimal(4)


async def test_one_that_is_given_up_while_it_waits_is_not_written(
    store: Store, account: Account, market: Market
) -> None:
    tasks = [
        asyncio.ensure_future(store.ledger.apply(account, of(0, str(n)), market=market))
        for n in range(6)
    ]
    await asyncio.sleep(0)
    # The first is on its way; of those that wait the first would lead.
    for number in (1, 4):
        tasks[number].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = [type(outcome) for outcome in outcomes]
    gone = asyncio.CancelledError
    assert kinds == [Outcome, gone, Outcome, Outcome, gone, Outcome]
    rows = await fetch(
        store, "SELECT trade_id FROM executions WHERE trade_id LIKE '0-%' ORDER BY 1"
    )
    assert [row[0] for row in rows] == ["0-0", "0-2", "0-3", "0-5", "0-first"]


@pytest.mark.parametrize("given_up", [0, 1])
async def test_one_that_is_given_up_on_its_way_leaves_the_others(
    store: Store, account: Account, market: Market, given_up: int
) -> None:
    """The first is alone on its way; the second then, with all the others."""
    tasks = [
        asyncio.ensure_future(store.ledger.apply(account, of(n % ORDERS, str(n)), market=market))
        for n in range(12)
    ]
    await (asyncio.sleep(0.0002) if given_up == 0 else tasks[0])
    await asyncio.sleep(0)
    tasks[given_up].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    others = [outcome for n, outcome in enumerate(outcomes) if n != given_up]
    assert all(isinstance(outcome, Outcome) for outcome in others)
    stored = {row[0] for row in await fetch(store, "SELECT trade_id FROM executions")}
    assert stored >= {of(n % ORDERS, str(n)).trade_id for n in range(12) if n != given_up}
    # What was given up may be there or not; said again, it is there once.
    await store.ledger.apply(account, of(given_up, str(given_up)), market=market)
    assert await value(store, "SELECT count(*) FROM executions") == 12 + ORDERS
    assert await value(store, "SELECT sum(filled) FROM orders") == Decimal("5.2")


async def test_a_lost_connection_is_an_error_of_one(
    store: Store, account: Account, market: Market, url: str
) -> None:
    """Those that wait behind it have a connection that is fine."""
    async with session(url) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    outcomes = await apply_at_once(store, account, market, [of(0, str(n)) for n in range(10)])
    assert isinstance(outcomes[0], DatabaseError)
    assert all(isinstance(outcome, Outcome) for outcome in outcomes[1:])
    assert await value(store, "SELECT count(*) FROM executions WHERE trade_id LIKE '0-%'") == 10
    assert await value(
        store, "SELECT filled FROM orders WHERE exchange_order_id = 'X0'"
    ) == Decimal("1.9")


@pytest.mark.parametrize("pooled", [True, False])
async def test_a_turn_that_breaks_off_leaves_nothing_counted(
    account: Account, market: Market, url: str, pooled: bool
) -> None:
    async with (
        open_store(url if pooled else f"{url}{'&' if '?' in url else '?'}pgbouncer=true") as store,
        session(url) as other,
        session(url) as observer,
    ):
        for number in range(ORDERS):
            await store.ledger.apply(account, of(number, "first", "1"), market=market)
        holds = other.transaction()
        await holds.start()
        await other.execute("SELECT 1 FROM orders WHERE exchange_order_id = 'X0' FOR UPDATE")
        fills = [of(1, "a"), of(0, "b"), of(0, "c"), of(2, "d")]
        task = asyncio.ensure_future(apply_at_once(store, account, market, fills))
        while not await observer.fetch(END_WHO_WAITS):  # noqa: ASYNC110  # the server has no event
            await asyncio.sleep(0.01)
        await holds.rollback()
        first, broken, *rest = await task
        assert isinstance(broken, DatabaseError)
        assert [type(outcome) for outcome in (first, *rest)] == [Outcome] * 3
        again = await store.ledger.apply(account, fills[1], market=market)
        assert again.order
        assert again.order.filled == Decimal("1.2")
        assert await value(store, "SELECT count(*) FROM executions") == ORDERS + 4


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("locked", range(ORDERS))
async def test_batches_that_break_off_leave_nothing_counted(
    account: Account, market: Market, url: str, pooled: bool, locked: int
) -> None:
    """Said again, every fill is there once: none is taken for known that was never written."""
    async with (
        open_store(url if pooled else f"{url}{'&' if '?' in url else '?'}pgbouncer=true") as store,
        session(url) as other,
        session(url) as observer,
    ):
        # Each thousand is of another order, and one of them cannot be written.
        fills = [of(n // BATCH, str(n), "0.001") for n in range(ORDERS * BATCH)]
        holds = other.transaction()
        await holds.start()
        await other.execute(
            f"SELECT 1 FROM orders WHERE client_order_id = 'ours-{locked}' FOR UPDATE"
        )
        task = asyncio.ensure_future(store.ledger.apply_many(account, fills, market=market))
        while not await observer.fetch(END_WHO_WAITS):  # noqa: ASYNC110  # the server has no event
            await asyncio.sleep(0.01)
        await holds.rollback()
        with pytest.raises(DatabaseError):
            await task
        applied = await store.ledger.apply_many(account, fills, market=market)
        assert applied.inserted == BATCH * (ORDERS - locked)
        assert await value(store, "SELECT count(*) FROM executions") == len(fills) + ORDERS
        assert await value(store, "SELECT sum(filled) FROM orders") == 2 * ORDERS


async def test_two_markets_and_a_wrong_call_do_not_disturb_each_other(
    store: Store, account: Account, market: Market
) -> None:
    other = await store.markets.ensure("binance", "ETH/USDT")
    calls = [
        store.ledger.apply(account, of(0, "a"), market=market),
        store.ledger.apply(account, of(0, "b"), market=other),
        store.ledger.apply(account, of(0, "c")),
        store.ledger.apply(account, of(0, "d"), market=market),
    ]
    first, waits, wrong, last = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(wrong, InvalidArgument)
    assert isinstance(waits, Outcome)
    assert Flag.WAITING in waits.flags
    assert isinstance(first, Outcome)
    assert isinstance(last, Outcome)
    assert last.order
    assert last.order.filled == Decimal("1.2")
