"""Fills through the whole path into PostgreSQL: one by one, by one task and by several, in batches.

Against the goals, as numbers of seconds; and one by one also against what the machine's commits
cost anyway: the same number of rows inserted into a bare table, one by one.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from bench.candles import SINCE
from bench.pairs import Figure, Run, Sample, alternate
from bench.servers import Bench
from kurisu.domain.execution import Execution, Fee, Side, TakerOrMaker
from kurisu.domain.order import Order, OrderType
from kurisu.store.accounts import Account
from kurisu.store.markets import Market

ONE_BY_ONE: Final = 2_000
IN_BATCHES: Final = 50_000
#: That apply fills at a time, as the strategies and streams of one process do.
TASKS: Final = 16
#: Fills a second: the goals.
GOAL_ONE_BY_ONE: Final = 2_000
GOAL_IN_BATCHES: Final = 50_000
_PRICE: Final = Decimal("64250.12")
_AMOUNT: Final = Decimal("0.00125")
_number: Final = itertools.count(1)

_BARE_TABLE: Final = """
CREATE TABLE IF NOT EXISTS bench_bare_fills (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, trade_id VARCHAR NOT NULL,
    price NUMERIC(38, 18) NOT NULL, amount NUMERIC(38, 18) NOT NULL,
    cost NUMERIC(38, 18) NOT NULL, time TIMESTAMPTZ NOT NULL)
"""
_BARE_INSERT: Final = """
INSERT INTO bench_bare_fills (trade_id, price, amount, cost, time) VALUES ($1, $2, $3, $4, $5)
"""


async def measure(bench: Bench, pairs: int) -> list[Figure]:
    """Every figure of this module."""
    market = await bench.store.markets.ensure("bench", "F/USDT")
    account = await bench.store.accounts.add("bench", f"f{time.time_ns()}")
    raw: Any = bench.raw
    await raw.execute(_BARE_TABLE)
    one = _one_by_one(bench, account, market, 1)
    figures = []
    for tasks in (1, TASKS):
        run = one if tasks == 1 else _one_by_one(bench, account, market, tasks)
        measured = await alternate(pairs, run, _goal(ONE_BY_ONE / GOAL_ONE_BY_ONE))
        by = "" if tasks == 1 else f", by {tasks} tasks"
        figures.append(
            measured.figure(
                f"{ONE_BY_ONE:,} fills one by one{by}, each committed",
                f"{GOAL_ONE_BY_ONE:,} fills a second", goal=1.0,
            )
        )  # fmt: skip
    measured = await alternate(pairs, one, _bare(bench))
    figures.append(
        measured.figure(
            f"{ONE_BY_ONE:,} fills one by one, each committed",
            "as many rows into a bare table, each committed",
        )
    )
    for each in (10, 100):
        measured = await alternate(
            pairs, _in_batches(bench, account, market, each),
            _goal(IN_BATCHES / GOAL_IN_BATCHES),
        )  # fmt: skip
        figures.append(
            measured.figure(
                f"{IN_BATCHES:,} fills in batches of 1,000, {each} for each order",
                f"{GOAL_IN_BATCHES:,} fills a second", goal=1.0,
            )
        )  # fmt: skip
    return figures


def _goal(seconds: float) -> Run:
    async def run() -> Sample:
        return {"total": seconds}

    return run


async def _placed(
    bench: Bench, account: Account, market: Market, count: int, each: int
) -> list[Execution]:
    """Open orders, untimed, and `count` fills of them, `each` for every order, in order of time."""
    first = next(_number) * 1_000_000
    names = [str(first + n) for n in range(count // each)]
    await bench.store.ledger.place_many(
        Order(
            market=market.name, side=Side.BUY, type=OrderType.LIMIT, amount=_AMOUNT * each * 2,
            price=_PRICE + 100, created_at=SINCE, updated_at=SINCE, exchange_order_id=name,
            account_id=account.id,
        )
        for name in names
    )  # fmt: skip
    return [
        Execution(
            names[n // each], str(first + n), Side.BUY, _PRICE + n % 100, _AMOUNT,
            SINCE + timedelta(milliseconds=n), cost=(_PRICE + n % 100) * _AMOUNT,
            fees=(Fee("USDT", Decimal("0.0803")),), taker_or_maker=TakerOrMaker.TAKER,
            symbol=market.symbol,
        )
        for n in range(count)
    ]  # fmt: skip


async def _check(bench: Bench, fills: list[Execution]) -> None:
    """Every fill counts, in its order."""
    raw: Any = bench.raw
    names = sorted({fill.exchange_order_id for fill in fills})
    filled = await raw.fetchval(
        "SELECT sum(filled) FROM orders WHERE exchange_order_id = ANY($1::text[])", names
    )
    if filled != _AMOUNT * len(fills):
        raise RuntimeError(f"filled {filled} instead of {_AMOUNT * len(fills)}")


def _one_by_one(bench: Bench, account: Account, market: Market, tasks: int) -> Run:
    async def take(rest: Iterator[Execution]) -> None:
        for fill in rest:
            await bench.store.ledger.apply(account, fill)

    async def run() -> Sample:
        fills = await _placed(bench, account, market, ONE_BY_ONE, 10)
        await bench.settle()
        rest = iter(fills)
        started = time.perf_counter()
        await asyncio.gather(*(take(rest) for _ in range(tasks)))
        took = time.perf_counter() - started
        await _check(bench, fills)
        return {"total": took}

    return run


def _in_batches(bench: Bench, account: Account, market: Market, each: int) -> Run:
    async def run() -> Sample:
        fills = await _placed(bench, account, market, IN_BATCHES, each)
        await bench.settle()
        started = time.perf_counter()
        applied = await bench.store.ledger.apply_many(account, fills)
        took = time.perf_counter() - started
        if applied.inserted != len(fills):
            raise RuntimeError(f"{applied.inserted} fills were inserted")
        await _check(bench, fills)
        return {"total": took}

    return run


def _bare(bench: Bench) -> Run:
    raw: Any = bench.raw

    async def run() -> Sample:
        await bench.settle()
        cost = _PRICE * _AMOUNT
        started = time.perf_counter()
        for n in range(ONE_BY_ONE):
            await raw.execute(_BARE_INSERT, str(n), _PRICE, _AMOUNT, cost, SINCE)
        return {"total": time.perf_counter() - started}

    return run
