"""Messages about orders through the real database: the same end, whatever order they came in."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import pytest
from engines import REAL_TIERS
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger.histories import (
    SPOT,
    Message,
    fee,
    feed,
    fill,
    histories,
    placed,
    said,
)
from rows import fetch, session, value

from kurisu.domain.execution import Execution, Fee, Side, TakerOrMaker, combine_fees
from kurisu.domain.order import Order, OrderUpdate
from kurisu.errors import DatabaseError, LedgerRuleBroken, NotFound
from kurisu.ledger.balance import book_totals, position_and_postings
from kurisu.ledger.execution import unmarked_trade_id
from kurisu.ledger.intake import Flag, Intake, Outcome
from kurisu.store.accounts import Account
from kurisu.store.ledger import Ledger
from kurisu.store.markets import Market
from kurisu.store.store import Store, open_store

pytestmark = pytest.mark.parametrize("tier", REAL_TIERS, indirect=True)

#: Each history comes so often, in another order each time. For a long run set the variable:
#: KURISU_TEST_PERMUTATIONS=250 makes 10,000.
HISTORIES: Final = 40
PERMUTATIONS: Final = int(os.environ.get("KURISU_TEST_PERMUTATIONS", "6"))
#: Conditions may pass, so that which of them were seen depends on the order of arrival.
CONDITIONS: Final = frozenset({"execution_exceeds_order", "execution_side_differs",
                               "order_side_differs"})  # fmt: skip


@pytest.fixture
async def account(store: Store, market: Market) -> Account:
    """binance:main, with the market in the database."""
    assert market.symbol == SPOT.name.symbol
    return await store.accounts.add("binance", "main")


async def tell(
    ledger: Ledger, account: Account, market: Market, *messages: Message
) -> list[Outcome]:
    """One after another, by the door for each kind."""
    outcomes = []
    for message in messages:
        if isinstance(message, Order):
            outcome = await ledger.place(replace(message, account_id=account.id))
        else:
            outcome = await ledger.apply(account, message, market=market)
        outcomes.append(outcome)
    return outcomes


def plainly(order: Order | None) -> Order | None:
    """Without what only the database knows."""
    return None if order is None else replace(order, id=None, account_id=None)


def same(found: Outcome, wanted: Outcome) -> None:
    """What the store says is what the core says."""
    assert plainly(found.before) == wanted.before
    assert plainly(found.order) == wanted.order
    assert found.inserted == wanted.inserted
    assert found.completed == wanted.completed
    assert found.events == wanted.events
    assert found.conditions == wanted.conditions
    assert found.flags == wanted.flags


@pytest.mark.parametrize(
    ("table", "facts"),
    [("orders", '{"said": 1}'), ("orders", "[1]"), ("orders", '{"placed": {"amount": "x"}}'),
     ("waiting_orders", '{"said": {}}'), ("executions", '{"x": 1}')],
)  # fmt: skip
async def test_facts_that_somebody_else_wrote_are_named(
    store: Store, account: Account, market: Market, table: str, facts: str
) -> None:
    ledger = store.ledger
    await tell(ledger, account, market, placed(), said("open", 1), fill("7", "0.4"))
    stranger = replace(said("open", 1, client_order_id=None), exchange_order_id="Y")
    await tell(ledger, account, market, stranger)
    await fetch(
        store,
        f"INSERT INTO execution_corrections (execution_id, time, cost, facts, reason) SELECT id, "
        f"time, cost, '{facts}', '' FROM executions" if table == "executions"
        else f"UPDATE {table} SET facts = '{facts}'",
    )  # fmt: skip
    news = replace(said("open", 2, client_order_id=None), exchange_order_id="Y")
    of = {"orders": "order 'ours'", "executions": "execution '7'", "waiting_orders": "order 'Y'"}
    with pytest.raises(LedgerRuleBroken, match=f"facts_are_readable: {of[table]}"):
        await tell(ledger, account, market, news if table == "waiting_orders" else said("open", 2))


EXAMPLES = pytest.mark.parametrize(
    "messages",
    [
        pytest.param(
            (placed(), said("open", 1), fill("7", "0.4", "99.5", 2), fill("7", "0.4", "99.5", 2),
             fill("8", "0.6", "99.6", 3), said("closed", 3, "1")), id="plain life",
        ),
        pytest.param(
            (fill("7", "0.4"), said("open", 1, client_order_id=None), placed(), said("open", 1)),
            id="fill and update before the order",
        ),
        pytest.param(
            (said("closed", 5, "0.4"), fill("7", "0.4"), placed()), id="order last",
        ),
        pytest.param(
            (placed(), said("canceled", 10, "0"), fill("7", "1", seconds=11), said("open", 12)),
            id="late fill",
        ),
        pytest.param(
            (placed(), said("canceled", 10), fill("7", "1", seconds=9)), id="an end taken back",
        ),
        pytest.param(
            (placed(), said("open", 1), fill("7", "0.6"), fill("8", "0.5", seconds=11),
             fill("9", "0.4", seconds=12), said("open", 13, amount=Decimal("1.5"))),
            id="too large a fill is held until the order grows",
        ),
        pytest.param(
            (placed(), said("open", 1), fill("7", "1"), said("open", 13, amount=Decimal(2)),
             fill("8", "1", seconds=14)), id="a full order grows",
        ),
        pytest.param(
            (placed(), said("open", 1), fill("7", "0.6"), said("open", 11, amount=Decimal("0.5"))),
            id="a smaller amount",
        ),
        pytest.param(
            (placed(), said("open", 1), fill("7", "0.6", side="sell")), id="on the other side",
        ),
        pytest.param(
            (placed(), said("open", 1), fill("7", "0.6"), fill("7", "0.3"), fill("7", "0.3"),
             fill("7", "0.05"), fill("7", "0.9")),
            id="a split",
        ),
        pytest.param(
            (placed(), said("open", 1), fill("7", "0.6", fees=None),
             fill("7", "0.6", fees=fee("0.06", "USDT"), taker_or_maker=TakerOrMaker.MAKER),
             fill("7", "0.6", fees=fee("0.07", "USDT"), seconds=11),
             fill("7", "0.6", fees=(*fee("1", "BNB"), *fee("0.01", "USDT"))),
             fill("7", "0.6", cost=Decimal("59.99")), fill("8", "0.1", cost=Decimal(1))),
            id="what one source leaves out",
        ),
        pytest.param(
            (placed(), said("open", 1), placed(client_order_id="other", side=Side.SELL),
             said("open", 1, client_order_id="other", exchange_order_id="X2"),
             fill("7", "0.5"), fill("7", "0.5", side="sell", exchange_order_id="X2"),
             fill("7", "0.5", side="sell", exchange_order_id="X2")),
            id="a trade with oneself",
        ),
        pytest.param(
            (placed(), said("open", 1), said("open", 2, exchange_order_id="X2"),
             said(None, 3, unknown_status="frozen"), said("closed", 4), said("failed", 5)),
            id="contradictions",
        ),
    ],
)  # fmt: skip


@EXAMPLES
@pytest.mark.parametrize("at_once", [False, True])
async def test_each_step_is_the_core_s(
    store: Store, account: Account, market: Market, messages: Sequence[Message], at_once: bool
) -> None:
    """Also where every call is there before the first is answered: they have their order."""
    pure = Intake(SPOT)
    if at_once:
        await store.ledger.terms(market.name)
        await store.ledger.apply(account, fill("0", "1", exchange_order_id="warm"), market=market)
        feed(pure, fill("0", "1", exchange_order_id="warm"))
    calls = [tell(store.ledger, account, market, message) for message in messages]
    answers = await asyncio.gather(*calls) if at_once else [await call for call in calls]
    for (found,), message in zip(answers, messages, strict=True):
        same(found, feed(pure, message))
    # And all of it once more says nothing, in a process that knows nothing.
    before = await everything(store)
    other = Ledger(store)
    for message in messages:
        (found,) = await tell(other, account, market, message)
        if Flag.REFUSED not in found.flags and Flag.WAITING not in found.flags:
            assert Flag.NOTHING_NEW in found.flags, message
    await other.close()
    assert await everything(store) == before


@EXAMPLES
@pytest.mark.parametrize("size", [2, 100])
async def test_in_batches_all_of_it_comes_to_the_same(
    store: Store, account: Account, market: Market, messages: Sequence[Message], size: int
) -> None:
    """Orders, executions and events; with another process's tallies and none."""
    pure = Intake(SPOT)
    for message in messages:
        feed(pure, message)
    for is_order, part in itertools.groupby(messages, lambda one: isinstance(one, Order)):
        rest: Iterator[Any] = iter(part)
        if is_order:
            await tell(store.ledger, account, market, *rest)
        while batch := list(itertools.islice(rest, size)):
            await store.ledger.apply_many(account, batch, market=market)
    orders = await store.ledger.orders(account)
    stored = [row.execution for row in await store.ledger.executions(account)]
    events = await fetch(store, "SELECT event_type, details FROM risk_events")
    assert facts_of(
        orders, stored, [(kind, tuple(sorted(details.items()))) for kind, details in events]
    ) == facts_of(
        pure.orders(), pure.executions(), [(e.event_type.value, e.details) for e in pure.events()]
    )
    await invariants_hold(store)


async def everything(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the ledger."""
    return {
        table: await fetch(store, f"SELECT * FROM {table} ORDER BY id")
        for table in ("orders", "executions", "waiting_orders", "order_corrections",
                      "execution_corrections", "risk_events")
    }  # fmt: skip


# Generated histories, shuffled, repeated, in pieces, by several processes


def renamed(message: Message, suffix: str, account: Account) -> Message:
    """The same for another order: all ids of the message end in `suffix`."""

    def name(found: str | None) -> str | None:
        return None if found is None else f"{found}{suffix}"

    if isinstance(message, Execution):
        return replace(
            message, exchange_order_id=f"{message.exchange_order_id}{suffix}",
            trade_id=f"{message.trade_id}{suffix}",
        )  # fmt: skip
    exchange = name(message.exchange_order_id)
    client = name(message.client_order_id)
    if isinstance(message, Order):
        return replace(
            message, client_order_id=client, exchange_order_id=exchange, account_id=account.id
        )
    return replace(message, client_order_id=client, exchange_order_id=exchange)


Facts = tuple[frozenset[Any], frozenset[Any], frozenset[Any], Any]


def facts_of(
    orders: Iterable[Order], executions: Iterable[Execution], events: Iterable[tuple[str, Any]]
) -> Facts:
    """What has to be the same. Of two executions under one trade id, the one that came first has
    the plain one; nothing else may depend on what came first."""
    rows = [replace(row, trade_id=unmarked_trade_id(row)) for row in executions]
    return (
        frozenset(plainly(order) for order in orders),
        frozenset(Counter(rows).items()),
        frozenset((kind, *details) for kind, details in events if kind not in CONDITIONS),
        position_and_postings(rows, SPOT)[0],
    )


def wanted(messages: Sequence[Message]) -> Facts:
    """What the core makes of a history as it happened."""
    pure = Intake(SPOT)
    for message in messages:
        feed(pure, message)
    return facts_of(
        pure.orders(), pure.executions(), [(e.event_type.value, e.details) for e in pure.events()]
    )


def cases(count: int) -> list[tuple[list[Message], list[list[Message]]]]:
    """Histories, and each of them in several orders, with parts of it repeated and delayed."""
    found: list[tuple[list[Message], list[list[Message]]]] = []

    @settings(max_examples=count)
    @given(histories(), st.integers(0, 2**32))
    def collect(history: Any, seed: int) -> None:
        shuffler = random.Random(seed)
        shuffled = []
        for _ in range(PERMUTATIONS):
            again = [m for m in history.messages if shuffler.random() < 0.4]
            messages = [*history.messages, *again]
            shuffler.shuffle(messages)
            shuffled.append(messages)
        found.append((history.messages, shuffled))

    collect()
    return found


async def test_any_order_and_any_number_of_times_give_the_same_end(
    store: Store, url: str, account: Account, market: Market
) -> None:
    """Every history many times over at once, each time as orders of its own; by two processes, of
    which now and then one starts anew. Messages wait for the next batch, or come in this one."""
    shuffler = random.Random(1)
    expected: dict[str, Facts] = {}
    streams: list[list[Message]] = []
    for number, (history, shuffled) in enumerate(cases(HISTORIES)):
        facts = wanted(history)
        for turn, messages in enumerate(shuffled):
            suffix = f"/{number}.{turn}"
            expected[suffix] = facts
            streams.append([renamed(message, suffix, account) for message in messages])
    async with open_store(url) as second:
        while streams:
            batch = []
            for stream in shuffler.sample(streams, min(len(streams), 120)):
                batch += [stream.pop(0) for _ in range(min(len(stream), shuffler.randint(1, 8)))]
            streams = [stream for stream in streams if stream]
            is_new = shuffler.random() < 0.2
            chosen = Ledger(store) if is_new else shuffler.choice([store.ledger, second.ledger])
            await take(chosen, account, market, batch, one_by_one=shuffler.random() < 0.05)
            if is_new:
                await chosen.close()
    found = await stored_facts(store, account)
    for suffix, facts in expected.items():
        assert found[suffix] == facts, suffix
    await invariants_hold(store)


async def take(
    ledger: Ledger, account: Account, market: Market, messages: Sequence[Message], *,
    one_by_one: bool,
) -> None:  # fmt: skip
    """Orders first, as they are written before they are sent; the rest at once, or in turn, some
    of it by several tasks."""
    rest = [message for message in messages if not isinstance(message, Order)]
    for order in messages:
        if isinstance(order, Order):
            await ledger.place(order)
    if one_by_one:
        for message in rest[:30]:
            await ledger.apply(account, message, market=market)
        await asyncio.gather(
            *(ledger.apply(account, message, market=market) for message in rest[30:200])
        )
        rest = rest[200:]
    await ledger.apply_many(account, rest, market=market)


async def stored_facts(store: Store, account: Account) -> dict[str, Facts]:
    """What the database has, by suffix, without the suffix."""
    orders: dict[str, list[Order]] = {}
    executions: dict[str, list[Execution]] = {}
    events: dict[str, list[tuple[str, Any]]] = {}

    def cut(name: str | None) -> str | None:
        return None if name is None else name.rpartition("/")[0]

    for order in await store.ledger.orders(account):
        suffix = order.name[order.name.index("/") :]
        orders.setdefault(suffix, []).append(
            replace(
                order,
                client_order_id=cut(order.client_order_id),
                exchange_order_id=cut(order.exchange_order_id),
            )
        )
    for stored in await store.ledger.executions(account):
        row = replace(stored.execution, trade_id=unmarked_trade_id(stored.execution))
        suffix = row.exchange_order_id[row.exchange_order_id.index("/") :]
        executions.setdefault(suffix, []).append(
            replace(
                row,
                exchange_order_id=row.exchange_order_id.removesuffix(suffix),
                trade_id=row.trade_id.removesuffix(suffix),
            )
        )
    for kind, details in await fetch(store, "SELECT event_type, details FROM risk_events"):
        suffix = next(text[text.index("/") :] for text in details.values() if "/" in text)
        events.setdefault(suffix, []).append(
            (kind, tuple(sorted((k, v.removesuffix(suffix)) for k, v in details.items())))
        )
    names = {*orders, *executions, *events}
    return {
        name: facts_of(
            orders.get(name, ()), executions.get(name, ()), events.get(name, ()),
        )
        for name in names
    }  # fmt: skip


async def invariants_hold(store: Store) -> None:
    """What the guards promise, asked of the rows."""
    broken = await fetch(
        store,
        "SELECT o.id FROM orders o LEFT JOIN (SELECT order_id, sum(amount) AS amount, "
        "sum(cost) AS cost FROM executions GROUP BY 1) e ON e.order_id = o.id "
        "WHERE o.filled <> coalesce(e.amount, 0) OR o.cost <> coalesce(e.cost, 0) "
        "OR o.remaining <> o.amount - o.filled",
    )
    assert broken == []
    twice = await fetch(
        store,
        "SELECT account_id, market_id, exchange_order_id, split_part(trade_id, '~', 1), side, "
        "price, amount FROM executions GROUP BY 1, 2, 3, 4, 5, 6, 7 HAVING count(*) > 1",
    )
    assert twice == []


# What only the store has


async def test_a_place_again_changes_nothing_and_another_order_is_refused(
    store: Store, account: Account, market: Market
) -> None:
    order = placed(account_id=account.id)
    first = await store.ledger.place(order)
    second = await store.ledger.place(order)
    assert first.order
    assert first.order.id is not None
    assert second.order == first.order
    assert Flag.NOTHING_NEW in second.flags
    with pytest.raises(LedgerRuleBroken, match="client_order_id_names_one_order"):
        await store.ledger.place(replace(order, amount=Decimal(2)))
    other = await store.accounts.add("binance", "other")
    with pytest.raises(LedgerRuleBroken, match="client_order_id_names_one_order"):
        await store.ledger.place(replace(order, account_id=other.id))
    with pytest.raises(NotFound, match="binance:X/Y is not in the database"):
        await store.ledger.apply(account, fill("1", "1", symbol="X/Y"))
    assert await value(store, "SELECT count(*) FROM orders") == 1
    assert market.id == await value(store, "SELECT market_id FROM orders")


async def test_accounts_are_apart(store: Store, account: Account, market: Market) -> None:
    other = await store.accounts.add("binance", "other")
    for owner, client in ((account, "a"), (other, "b")):
        await store.ledger.place(placed(client_order_id=client, account_id=owner.id))
        await store.ledger.apply(owner, said("open", 1, client_order_id=client), market=market)
        await store.ledger.apply(owner, fill("7", "0.4"), market=market)
    for owner in (account, other):
        (order,) = await store.ledger.open_orders(owner)
        assert order.filled == Decimal("0.4")
        assert len(await store.ledger.executions(owner)) == 1
    assert await fetch(store, "SELECT * FROM risk_events") == []


async def test_an_adopted_order_keeps_its_own_client_id_out(
    store: Store, account: Account, market: Market
) -> None:
    ledger = store.ledger
    theirs = "their id, which is longer than fifty characters, as ids of others may well be"
    outcome = await ledger.apply(account, said("open", 1, client_order_id=theirs), market=market)
    assert outcome.order is None
    await ledger.apply(account, fill("7", "0.4"), market=market)
    (waiting,) = await ledger.waiting(account)
    assert (waiting.client_order_id, len(waiting.executions)) == (theirs, 1)
    adopted = placed(client_order_id=None, exchange_order_id="X1", account_id=account.id)
    outcome = await ledger.place(adopted)
    assert outcome.order
    assert (outcome.order.client_order_id, outcome.order.filled) == (None, Decimal("0.4"))
    outcome = await ledger.apply(account, said("closed", 5, client_order_id=theirs), market=market)
    assert outcome.order
    assert outcome.order.status == "closed"
    assert await ledger.waiting(account) == []
    assert await fetch(store, "SELECT client_order_id FROM orders") == [(None,)]


async def test_a_run_without_an_account_has_orders_of_its_own(
    store: Store, account: Account, market: Market
) -> None:
    strategy = await value(
        store, "INSERT INTO strategies (name, class_path) VALUES ('g', 's.G') RETURNING id"
    )
    runs = [
        await value(
            store,
            "INSERT INTO strategy_runs (strategy_id, type, status, start_time) "
            "VALUES (:id, 'paper', 'running', now()) RETURNING id",
            id=strategy,
        )
        for _ in range(2)
    ]
    for run in runs:
        order = placed(client_order_id=f"{run}-1", strategy_run_id=run, strategy_id=strategy)
        await store.ledger.place(order)
        await store.ledger.apply(
            None, said("open", 1, client_order_id=f"{run}-1"), market=market, run_id=run
        )
        messages = [fill("7", "0.4"), fill("8", "0.6"), fill("7", "0.4")]
        applied = await store.ledger.apply_many(None, messages, market=market, run_id=run)
        assert (applied.inserted, applied.unchanged) == (2, 1)
        (closed,) = await store.ledger.orders(run_id=run)
        assert (closed.status, closed.filled) == ("closed", Decimal(1))
    with pytest.raises(LedgerRuleBroken, match="place the order first"):
        await store.ledger.apply(
            None, fill("9", "1", exchange_order_id="X9"), market=market, run_id=runs[0]
        )
    assert await store.ledger.orders(account) == []


async def test_any_text_comes_through_a_batch(
    store: Store, account: Account, market: Market, url: str
) -> None:
    odd = ["\\N", "a\tb", "c\nd", "e\rf", "\\.", "ü-1", "g\\h", "plain"]
    await tell(store.ledger, account, market, placed(), said("open", 1))
    fills = [
        fill(
            text,
            "0.1",
            fees=combine_fees([Fee(text, Decimal("1E-18")), Fee("B\t", Decimal(n + 1))]),
        )
        for n, text in enumerate(odd)
    ]
    assert (await store.ledger.apply_many(account, fills, market=market)).inserted == len(odd)
    assert (await store.ledger.apply_many(account, fills, market=market)).unchanged == len(odd)
    async with open_store(url) as other:
        found = await other.ledger.executions(account)
    assert {row.execution.trade_id: row.execution.fees for row in found} == {
        made.trade_id: made.fees for made in fills
    }


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_trade_with_oneself_is_told_when_both_sides_come_together(
    store: Store, account: Account, market: Market, is_known: bool
) -> None:
    """Each of the two fills is plain, and the database has neither yet."""
    other = {"client_order_id": "other", "exchange_order_id": "X2"}
    await tell(store.ledger, account, market, placed(), placed(**other, side=Side.SELL))
    both: list[OrderUpdate | Execution] = [
        fill("7", "0.5"),
        fill("7", "0.5", side="sell", exchange_order_id="X2"),
    ]
    if is_known:
        updates = [said("open", 1), said("open", 1, **other)]
        await tell(store.ledger, account, market, *updates)
    else:
        both = [said("open", 1), said("open", 1, **other), *both]
    await store.ledger.apply_many(account, both, market=market)
    assert await fetch(store, "SELECT event_type FROM risk_events") == [("trade_id_reused",)]
    assert await value(store, "SELECT count(*) FROM executions") == 2
    await invariants_hold(store)


@pytest.mark.parametrize(
    ("trade_ids", "is_reused"),
    [
        (["5", "6"], True), (["4", "5"], True), (["4", "5", "6"], True), (["4", "6"], False),
        (["6", "7"], False), (["50", "500"], False), (["1", "9"], False),
        (["a", "\u00fc"], True), (["a", "\u20ac"], False), (["\u00fc", "\U0001f4b0"], True),
        (["\U0001f4b0", "\u20ac"], False),
    ],
)  # fmt: skip
async def test_a_trade_id_of_another_order_is_told_wherever_it_lies_among_those_of_a_batch(
    store: Store, account: Account, market: Market, trade_ids: list[str], is_reused: bool
) -> None:
    other = {"client_order_id": "other", "exchange_order_id": "X2"}
    await tell(store.ledger, account, market, placed(), placed(**other), said("open", 1),
               said("open", 1, **other), fill("5", "0.5"), fill("\u00fc", "0.1"))  # fmt: skip
    fills = [fill(name, "0.1", exchange_order_id="X2") for name in trade_ids]
    assert (await store.ledger.apply_many(account, fills, market=market)).inserted == len(fills)
    told = [("trade_id_reused",)] if is_reused else []
    assert await fetch(store, "SELECT event_type FROM risk_events") == told


async def test_somebody_with_psql_is_seen(
    store: Store, account: Account, market: Market, url: str
) -> None:
    """A tally is only as good as the row that it is of."""
    await tell(store.ledger, account, market, placed(), said("open", 1), fill("7", "0.4"))
    async with session(url) as connection:
        await connection.execute(
            "INSERT INTO executions (order_id, trade_id, price, amount, cost, time) "
            "SELECT id, 'by hand', 100, 0.5, 50, now() FROM orders"
        )
    (outcome,) = await tell(store.ledger, account, market, fill("8", "0.3"))
    assert Flag.HELD in outcome.flags
    assert outcome.order
    assert outcome.order.filled == Decimal("0.9")
    (outcome,) = await tell(store.ledger, account, market, fill("9", "0.1"))
    assert outcome.order
    assert outcome.order.status == "closed"
    async with session(url) as connection:
        await connection.execute("UPDATE orders SET client_order_id = client_order_id")
    (outcome,) = await tell(store.ledger, account, market, fill("9", "0.1"))
    assert Flag.NOTHING_NEW in outcome.flags
    await invariants_hold(store)


@pytest.mark.parametrize("many", [False, True])
async def test_a_lost_connection_is_an_error_once(
    store: Store, account: Account, market: Market, url: str, many: bool
) -> None:
    """And whoever says it again, as after any error, finds the one right state."""
    await tell(store.ledger, account, market, placed(), said("open", 1), fill("7", "0.4"))
    async with session(url) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    second = fill("8", "0.6")
    with pytest.raises(DatabaseError):
        if many:
            await store.ledger.apply_many(account, [second], market=market)
        else:
            await store.ledger.apply(account, second, market=market)
    (outcome,) = await tell(store.ledger, account, market, second)
    assert outcome.order
    assert (outcome.order.status, outcome.order.filled) == ("closed", Decimal(1))
    await invariants_hold(store)


async def test_conditions_are_noted_when_asked_and_once(
    store: Store, account: Account, market: Market
) -> None:
    ledger = store.ledger
    await tell(
        ledger, account, market, placed(), said("open", 1, "0.7"), fill("7", "0.4"),
        fill("1", "3", exchange_order_id="X9"),
    )  # fmt: skip
    assert await fetch(store, "SELECT * FROM risk_events") == []
    found = {event.event_type.value for _, event in await ledger.conditions(account, market)}
    assert found == {"fills_missing", "order_unknown"}
    assert (await ledger.note_conditions(account), await ledger.note_conditions(account)) == (2, 0)
    await tell(ledger, account, market, fill("8", "0.3"))
    assert {e.event_type.value for _, e in await ledger.conditions(account)} == {"order_unknown"}
    # What nobody may overlook is stored at once.
    await tell(ledger, account, market, fill("9", "5"))
    rows = await fetch(store, "SELECT event_type, severity FROM risk_events ORDER BY id DESC")
    assert rows[0] == ("execution_exceeds_order", "critical")
    (_, event), *_ = await ledger.conditions(account)
    assert event.event_type == "execution_exceeds_order"


async def test_totals_are_those_of_a_double_entry_in_sql(
    store: Store, account: Account, market: Market
) -> None:
    """The wallets that the store gives are what the core's postings add up to."""
    messages: list[Message] = [placed("10"), said("open", 1)]
    messages += [
        fill(str(n), f"0.{n:02}", f"{90 + n}.{n}", n, fees=fees)
        for n, fees in enumerate([None, (), fee("0.001", "BTC"), fee("-0.3", "USDT"),
                                  (*fee("1", "BNB"), *fee("0.01", "USDT"))], start=1)
    ]  # fmt: skip
    await tell(store.ledger, account, market, *messages)
    executions = [row.execution for row in await store.ledger.executions(account)]
    position, lines = position_and_postings(executions, SPOT)
    found = {r.balance.asset: r.balance.total for r in await store.ledger.balances(account)}
    assert found == book_totals(lines)
    (row,) = await store.ledger.positions(account)
    assert row.position == position
