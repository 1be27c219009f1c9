"""The ledger beside a second calculation of the same fills, which shares no code with it.

Fractions, one account book, written after the textbook: what changes hands, what is realised at
average cost, what the exchange takes. Nothing here is rounded; the ledger rounds where it divides,
half to even at the 18th digit, and may be off by so much for every division.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from kurisu.domain.execution import Execution, Fee, Side
from kurisu.domain.listing import MarketListing
from kurisu.domain.market import MarketName
from kurisu.domain.order import Order, OrderStatus, OrderType, OrderUpdate
from kurisu.domain.position import MarketTerms, Settlement
from kurisu.store.accounts import Account
from kurisu.store.markets import Market
from kurisu.store.store import Store

pytestmark = pytest.mark.parametrize("tier", ["plain"], indirect=True)

START = datetime(2026, 1, 1, tzinfo=UTC)
MARKETS = (
    ("okx:BTC/USDT", None),
    ("okx:ETH/USDT:USDT", Decimal("0.01")),
    ("okx:BTC/USD:BTC", Decimal(100)),
)
#: Of one rounding.
HALF = Fraction(1, 2 * 10**18)


@dataclass
class Book:
    """One account. roundings: how often the ledger divides, by asset."""

    wallet: dict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    position: dict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    #: What was paid for what is held (or received, for what is short), by market.
    basis: dict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    realized: dict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    roundings: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def trade(self, market: str, signed: Fraction, value: Fraction) -> Fraction:
        """At average cost; returns what was gained, for a value in what the market settles in."""
        held = self.position[market]
        self.position[market] = held + signed
        if held * signed >= 0:
            self.basis[market] += value
            return Fraction(0)
        closed = min(abs(held), abs(signed))
        released = self.basis[market] * closed / abs(held)
        got = value * closed / abs(signed)
        self.basis[market] = (
            self.basis[market] - released if closed == abs(held) or abs(signed) <= abs(held)
            else Fraction(0)
        )  # fmt: skip
        if abs(signed) > abs(held):
            self.basis[market] = value - got
        return got - released if held > 0 else released - got

    def fill(self, terms: MarketTerms, one: Execution) -> None:
        market = str(terms.name)
        amount, price = Fraction(one.amount), Fraction(one.price)
        sign = 1 if one.side == "buy" else -1
        size = Fraction(terms.contract_size)
        self.roundings[market] += 4
        if terms.settlement is Settlement.SPOT:
            self.wallet[terms.name.base] += sign * amount
            self.wallet[terms.name.quote] -= sign * amount * price
            self.realized[market] += self.trade(market, sign * amount, amount * price)
            for fee in one.fees or ():
                if fee.currency == terms.name.base:
                    paid = Fraction(fee.amount)
                    self.realized[market] += self.trade(market, -paid, abs(paid) * price)
        elif terms.settlement is Settlement.LINEAR:
            gained = self.trade(market, sign * amount, amount * price * size)
            self.realized[market] += gained
            self.wallet[terms.name.quote] += gained
        else:
            # Long in dollars is short in coins.
            gained = -self.trade(market, sign * amount, amount * size / price)
            self.realized[market] += gained
            self.wallet[terms.name.base] += gained
        for fee in one.fees or ():
            self.wallet[fee.currency] -= Fraction(fee.amount)


def history(chance: random.Random, terms: MarketTerms, account_id: int, number: int) -> list[Any]:
    """An order, what is said of it, and its fills."""
    at = START + timedelta(minutes=chance.randrange(10_000))
    side = chance.choice(list(Side))
    parts = [Decimal(chance.randrange(1, 4_000)).scaleb(-3) for _ in range(chance.randrange(1, 5))]
    if terms.settlement is not Settlement.SPOT:
        parts = [Decimal(chance.randrange(1, 40)) for _ in parts]
    amount = sum(parts)
    name = f"{terms.settlement}{number}"
    order = Order(
        market=terms.name, side=side, type=OrderType.MARKET, amount=Decimal(amount), created_at=at,
        updated_at=at, client_order_id=name, account_id=account_id,
    )  # fmt: skip
    said = OrderUpdate(
        name, f"X{name}", at, OrderStatus.OPEN, Decimal(0), Decimal(amount), side=side
    )
    messages: list[Any] = [order, said]
    filled = Decimal(0)
    for part in parts:
        at += timedelta(milliseconds=chance.randrange(2))
        filled += part
        price = Decimal(chance.randrange(1, 10**7)).scaleb(-chance.randrange(1, 5))
        assets = ["BNB", terms.settle_asset]
        if terms.settlement is Settlement.SPOT:
            assets.append(terms.name.base)
        fees = [
            Fee(asset, Decimal(chance.randrange(-5, 50) or 1).scaleb(-6))
            for asset in sorted(chance.sample(assets, chance.randrange(3)))
        ]
        messages.append(
            Execution(f"X{name}", f"{number}{len(messages)}", side, price, part, at, None,
                      tuple(fees))
        )  # fmt: skip
        messages.append(OrderUpdate(None, f"X{name}", at, OrderStatus.OPEN, filled))
    messages.append(OrderUpdate(name, None, at, OrderStatus.CLOSED, filled))
    return messages


async def tell(
    store: Store, account: Account, market: Market, messages: Sequence[Any], chance: random.Random
) -> None:
    """In any order, some twice and thrice, in batches of any size."""
    told = [*messages, *chance.choices(messages, k=len(messages))]
    chance.shuffle(told)
    while told:
        count = chance.choice([1, 1, 7, 40])
        batch, told = told[:count], told[count:]
        for order in batch:
            if isinstance(order, Order):
                await store.ledger.place(order)
        rest = [message for message in batch if not isinstance(message, Order)]
        await store.ledger.apply_many(account, rest, market=market)


@pytest.mark.parametrize("seed", range(2))
async def test_both_agree_to_the_last_digit(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    account = await store.accounts.add("okx", "main")
    book = Book()
    for name, size in MARKETS:
        terms = MarketTerms.of(MarketName.parse(name), size)
        market = await store.markets.add(
            MarketListing(terms.name, "X", terms.name.type, True, contract_size=size)
        )
        messages = [
            message
            for number in range(12)
            for message in history(chance, terms, account.id, number)
        ]
        await tell(store, account, market, messages, chance)
        fills = sorted(
            (m for m in messages if isinstance(m, Execution)),
            key=lambda m: (m.time, len(m.trade_id), m.trade_id),
        )
        for one in fills:
            book.fill(terms, one)
    positions = {str(row.market): row for row in await store.ledger.positions(account)}
    for market_name, row in positions.items():
        allowed = book.roundings[market_name] * HALF
        assert Fraction(row.position.amount) == book.position[market_name]
        assert abs(Fraction(row.position.cost_basis) - book.basis[market_name]) <= allowed
        assert abs(Fraction(row.position.realized_pnl) - book.realized[market_name]) <= allowed
    for line in await store.ledger.pnl(account):
        assert line.realized_pnl == positions[str(line.market)].position.realized_pnl
    days = await store.ledger.pnl(account, by=("market", "day"))
    for market_name, row in positions.items():
        told = [line.realized_pnl for line in days if str(line.market) == market_name]
        assert sum(told, Decimal(0)) == row.position.realized_pnl
    found = {row.balance.asset: row.balance.total for row in await store.ledger.balances(account)}
    assert found.keys() == {asset for asset, amount in book.wallet.items() if amount}
    # Coins are realised in, and so divided for; what is paid in others is never rounded.
    for asset, amount in found.items():
        allowed = Fraction(0) if asset == "BNB" else sum(book.roundings.values()) * HALF
        assert abs(Fraction(amount) - book.wallet[asset]) <= allowed
