"""Ids and costs of public trades."""

from __future__ import annotations

from decimal import Decimal

from kurisu.domain.trade import cost_of, derived_ids

TIME_MS = 1_635_811_200_000


def test_derived_ids() -> None:
    one = (TIME_MS, "buy", Decimal("1.50"), Decimal(2))
    other = (TIME_MS, "sell", Decimal("1.5"), Decimal(2))
    ids = derived_ids([one, other, one])
    assert len(set(ids)) == 3
    # In any order, and however a number is spelled.
    again = derived_ids([(TIME_MS, "buy", Decimal("1.5"), Decimal("2.0")), one, other])
    assert set(again) == set(ids)
    # For ever: stored rows carry them.
    assert ids[0] == "22c5099619391b9ad3db24ca81ef7db6"


def test_cost_is_exact_or_rounded_once() -> None:
    assert cost_of(Decimal("0.38556"), Decimal("9.97996")) == Decimal("3.8478733776")
    assert cost_of(Decimal("1e-10"), Decimal("1.5e-9")) == Decimal(0)
    assert cost_of(Decimal("3e-9"), Decimal("0.5e-9")) == Decimal("2e-18")
    assert cost_of(Decimal(12345678901234567890), Decimal("1.000000000000000001")) == Decimal(
        "12345678901234567902.345678901234567890"
    )


def test_cost_of_contracts_is_in_what_they_settle_in() -> None:
    hundredth = Decimal("0.01")
    assert cost_of(Decimal(50_000), Decimal(3), hundredth) == 1_500
    # Inverse: 3 contracts of 100 USD, in coins.
    assert cost_of(Decimal(60_000), Decimal(3), Decimal(100), inverse=True) == Decimal("0.005")
    assert cost_of(Decimal(7), Decimal(1), Decimal(1), inverse=True) == Decimal(
        "0.142857142857142857"
    )
