"""Double entries by hand, and the balances that they add up to."""

from __future__ import annotations

from decimal import Decimal

import pytest
from ledger.histories import INVERSE, LINEAR, SPOT, fee, fill, placed

from kurisu.domain.balance import Balance, Book, Posting
from kurisu.domain.execution import Execution, Side
from kurisu.domain.money import plain
from kurisu.domain.order import OrderStatus, OrderType
from kurisu.domain.position import MarketTerms
from kurisu.ledger.balance import (
    balances,
    book_totals,
    correction,
    held_by,
    position_and_postings,
    postings,
)


def lines(
    execution: Execution, terms: MarketTerms, realized_pnl: str = "0"
) -> list[tuple[str, str, str]]:
    return [
        (line.book, plain(line.amount), line.asset)
        for line in postings(execution, terms, Decimal(realized_pnl))
    ]


def test_a_buy_on_spot() -> None:
    fees = (*fee("0.01", "BNB"), *fee("0.002", "BTC"))
    assert lines(fill("1", "2", "100", fees=fees), SPOT) == [
        ("wallet", "2", "BTC"), ("market", "-2", "BTC"),
        ("wallet", "-200", "USDT"), ("market", "200", "USDT"),
        ("wallet", "-0.01", "BNB"), ("fees", "0.01", "BNB"),
        ("wallet", "-0.002", "BTC"), ("fees", "0.002", "BTC"),
    ]  # fmt: skip


def test_a_sale_on_spot_with_a_rebate() -> None:
    execution = fill("1", "2", "100", side="sell", fees=fee("-0.1", "USDT"))
    assert lines(execution, SPOT) == [
        ("wallet", "-2", "BTC"), ("market", "2", "BTC"),
        ("wallet", "200", "USDT"), ("market", "-200", "USDT"),
        ("wallet", "0.1", "USDT"), ("fees", "-0.1", "USDT"),
    ]  # fmt: skip


def test_a_contract_moves_only_what_it_realised_and_its_fee() -> None:
    assert lines(fill("1", "2", "100", fees=fee("0.1", "USDT")), LINEAR) == [
        ("wallet", "-0.1", "USDT"), ("fees", "0.1", "USDT"),
    ]  # fmt: skip
    assert lines(fill("1", "2", "100"), INVERSE, "-0.005") == [
        ("wallet", "-0.005", "BTC"), ("market", "0.005", "BTC"),
    ]  # fmt: skip


def test_a_round_trip() -> None:
    position, entries = position_and_postings(
        [
            fill("1", "1", "100", 1, fees=fee("0.001", "BTC")),
            fill("2", "0.999", "110", 2, "sell", fee("0.10989", "USDT")),
        ],
        SPOT,
    )
    assert position.amount == 0
    assert {a: plain(v) for a, v in book_totals(entries).items()} == {
        "BTC": "0", "USDT": "9.78011",
    }  # fmt: skip
    # 9.99 earned on 0.999; 0.1 paid in base, 0.10989 in quote.
    assert plain(position.realized_pnl) == "9.99"
    assert plain(position.fee_value) == "0.20989"
    assert {a: plain(v) for a, v in book_totals(entries, Book.FEES).items()} == {
        "BTC": "0.001", "USDT": "0.10989",
    }  # fmt: skip


def test_a_late_fee_is_booked_as_a_correction() -> None:
    before = postings(fill("1", "1", "100", fees=None), SPOT, Decimal(0))
    after = postings(fill("1", "1", "100", fees=fee("0.1", "USDT")), SPOT, Decimal(0))
    corrected = correction(before, after)
    assert corrected == (
        Posting(Book.FEES, "USDT", Decimal("0.1")), Posting(Book.WALLET, "USDT", Decimal("-0.1")),
    )  # fmt: skip
    assert book_totals([*before, *corrected]) == book_totals(after)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (placed("2", filled=Decimal("0.5")), ("USDT", Decimal(150))),
        (placed("2", side=Side.SELL, filled=Decimal("0.5")), ("BTC", Decimal("1.5"))),
        (placed("2", status=OrderStatus.CANCELED), None),
        (placed("2", type=OrderType.MARKET, price=None), None),
        (
            placed("2", type=OrderType.STOP_LOSS, price=None, stop_price=Decimal(90)),
            ("USDT", Decimal(180)),
        ),
    ],
)
def test_what_an_open_order_holds(order: object, expected: object) -> None:
    assert held_by(order, SPOT) == expected  # type: ignore[arg-type]


def test_an_exchange_holds_the_margin_of_contracts() -> None:
    assert held_by(placed(), LINEAR) is None


def test_balances_are_free_and_used() -> None:
    found = balances(
        {"USDT": Decimal(1000), "BTC": Decimal(1)},
        [held_by(placed("2"), SPOT), held_by(placed("1"), SPOT), None, ("ETH", Decimal(1))],
    )
    assert found == (
        Balance("BTC", Decimal(1)),
        Balance("ETH", Decimal(0), Decimal(1)),
        Balance("USDT", Decimal(1000), Decimal(300)),
    )
    assert [balance.free for balance in found] == [1, -1, 700]
