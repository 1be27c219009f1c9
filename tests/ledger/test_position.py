"""How executions move positions: examples by hand, and an oracle in fractions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger.histories import INVERSE, LINEAR, SPOT, fee, fill

from kurisu.domain.execution import Execution, Fee, Side
from kurisu.domain.market import MarketName
from kurisu.domain.money import plain
from kurisu.domain.position import FLAT, MarketTerms, Position, Settlement
from kurisu.errors import LedgerRuleBroken
from kurisu.ledger.arithmetic import add, magnitude, subtract
from kurisu.ledger.balance import book_totals, position_and_postings
from kurisu.ledger.pnl import entry_price, equity_at_cost, market_value, net_pnl, unrealized_pnl
from kurisu.ledger.position import apply_execution, position_of


def run(terms: MarketTerms, *executions: Execution) -> list[tuple[str, str, str]]:
    """Amount, cost basis and realised PnL after each execution."""
    position, seen = FLAT, []
    for execution in executions:
        position = apply_execution(position, execution, terms).position
        seen.append(
            (plain(position.amount), plain(position.cost_basis), plain(position.realized_pnl))
        )
    return seen


def buy(amount: str, price: str, fees: tuple[Fee, ...] = ()) -> Execution:
    return fill("1", amount, price, fees=fees)


def sell(amount: str, price: str, fees: tuple[Fee, ...] = ()) -> Execution:
    return fill("1", amount, price, side="sell", fees=fees)


# Examples


def test_a_long_averages_its_cost() -> None:
    assert run(SPOT, buy("1", "100"), buy("1", "110"), sell("0.5", "120"), sell("1.5", "90")) == [
        ("1", "100", "0"),
        ("2", "210", "0"),
        ("1.5", "157.5", "7.5"),  # 60 - 52.5
        ("0", "0", "-15"),  # + 135 - 157.5
    ]


def test_thirds_add_up_to_the_last_digit() -> None:
    steps = run(SPOT, buy("2", "3"), buy("1", "4"), sell("1", "5"), sell("1", "5"), sell("1", "5"))
    assert steps[2:] == [
        ("2", "6.666666666666666667", "1.666666666666666667"),
        # 3.3333333333333333335 is released as ...334: half to even.
        ("1", "3.333333333333333333", "3.333333333333333333"),
        ("0", "0", "5"),
    ]


def test_a_linear_short_earns_when_it_buys_back_for_less() -> None:
    assert run(LINEAR, sell("100", "2000"), buy("40", "1900"), buy("60", "2100")) == [
        ("-100", "2000", "0"),  # 100 contracts of 0.01
        ("-60", "1200", "40"),  # 800 - 760
        ("0", "0", "-20"),  # + 1200 - 1260
    ]


def test_a_flip_closes_and_opens() -> None:
    short = apply_execution(FLAT, sell("60", "2000"), LINEAR).position
    change = apply_execution(short, buy("100", "1900"), LINEAR)
    assert (plain(change.closed), plain(change.opened)) == ("60", "40")
    assert change.realized_pnl == 60  # 1200 - 1140
    assert change.position == Position(Decimal(40), Decimal(760), Decimal(60))
    assert run(LINEAR, buy("1", "100"), sell("3", "110"))[1] == ("-2", "2.2", "0.1")


def test_an_inverse_contract_is_worth_less_base_as_the_price_rises() -> None:
    assert run(INVERSE, buy("10", "50000"), sell("10", "40000")) == [
        ("10", "0.02", "0"),  # 1000 USD
        ("0", "0", "-0.005"),  # 0.02 - 0.025
    ]
    assert run(INVERSE, sell("10", "50000"), buy("20", "40000")) == [
        ("-10", "0.02", "0"),
        ("10", "0.025", "0.005"),
    ]


def test_an_inverse_entry_price_has_the_fewest_digits_that_fit() -> None:
    position = apply_execution(FLAT, buy("3", "30000"), INVERSE).position
    position = apply_execution(position, sell("1", "31000"), INVERSE).position
    assert plain(position.cost_basis) == "0.006666666666666667"
    assert entry_price(position, INVERSE) == 30000


def test_a_fee_in_base_makes_the_position_smaller_and_leaves_the_entry_price() -> None:
    change = apply_execution(FLAT, buy("1", "100", fee("0.001", "BTC")), SPOT)
    assert change.position == Position(
        Decimal("0.999"), Decimal("99.9"), realized_pnl=Decimal(0), fee_value=Decimal("0.1")
    )
    assert plain(change.opened) == "1"
    assert entry_price(change.position, SPOT) == 100


def test_a_fee_in_base_of_a_sale_may_leave_a_short() -> None:
    position = position_of([buy("1", "100"), sell("1", "110", fee("0.001", "BTC"))], SPOT)
    assert plain(position.amount) == "-0.001"
    assert plain(position.cost_basis) == "0.11"
    assert plain(position.realized_pnl) == "10"
    assert plain(position.fee_value) == "0.11"


def test_a_rebate_in_base_adds() -> None:
    position = position_of([buy("1", "100", fee("-0.001", "BTC"))], SPOT)
    assert plain(position.amount) == "1.001"
    assert entry_price(position, SPOT) == 100
    assert plain(position.fee_value) == "-0.1"


def test_fees_in_quote_and_in_a_third_asset_leave_the_position() -> None:
    fees = (*fee("0.01", "BNB"), *fee("0.2", "USDT"))
    change = apply_execution(FLAT, buy("1", "100", fees), SPOT)
    assert change.position.amount == 1
    assert change.fee_value == Decimal("0.2")
    contract = apply_execution(FLAT, buy("1", "50000", fee("0.0001", "BTC")), INVERSE)
    assert contract.position.amount == 1
    assert contract.fee_value == Decimal("0.0001")


def test_a_booked_cost_counts_on_spot_only() -> None:
    booked = replace(buy("1", "100"), cost=Decimal("99.99"))
    assert position_of([booked], SPOT).cost_basis == Decimal("99.99")
    assert position_of([booked], LINEAR).cost_basis == 1


def test_executions_count_in_order_of_time_then_of_trade_id() -> None:
    first = fill("8", "1", "90", 1)
    second = fill("9", "1", "100", 2)
    third = fill("10", "1", "110", 2, side="sell")
    for shuffled in ([first, second, third], [third, first, second], [second, third, first]):
        # 110 - 95. Were "10" before "9", it would be 110 - 90.
        assert position_of(shuffled, SPOT) == Position(Decimal(1), Decimal(95), Decimal(15))


def test_what_a_position_is_worth() -> None:
    long = position_of([buy("2", "105", fee("1", "USDT"))], SPOT)
    assert entry_price(long, SPOT) == 105
    assert unrealized_pnl(long, Decimal(100), SPOT) == -10
    assert net_pnl(long, Decimal(100), SPOT) == -11
    assert equity_at_cost(long, SPOT) == -211
    short = position_of([sell("100", "2000")], LINEAR)
    assert entry_price(short, LINEAR) == 2000
    assert unrealized_pnl(short, Decimal(1900), LINEAR) == 100
    inverse = position_of([buy("10", "50000")], INVERSE)
    assert unrealized_pnl(inverse, Decimal(62500), INVERSE) == Decimal("0.004")
    assert entry_price(FLAT, SPOT) is None
    assert unrealized_pnl(FLAT, Decimal(1), SPOT) == 0
    with pytest.raises(LedgerRuleBroken, match="market_is_spot"):
        equity_at_cost(short, LINEAR)
    with pytest.raises(LedgerRuleBroken, match="price_above_zero"):
        unrealized_pnl(long, Decimal(0), SPOT)


def test_an_inverse_position_too_small_for_a_basis_has_no_entry_price() -> None:
    tiny = replace(INVERSE, contract_size=Decimal("1e-18"))
    position = position_of([buy("1", "50000")], tiny)
    assert position.cost_basis == 0
    assert entry_price(position, tiny) is None


def test_the_largest_numbers_stay_exact() -> None:
    price, amount = Decimal(99999999999999999999), Decimal("0.999999999999999999")
    position = position_of([fill("1", plain(amount), plain(price)), buy("1e-18", "1")], SPOT)
    assert Fraction(position.cost_basis) == Fraction(
        round(Fraction(price) * Fraction(amount) * 10**18), 10**18
    ) + Fraction(1, 10**18)


@pytest.mark.parametrize(
    ("name", "size", "settlement", "settle_asset"),
    [
        ("binance:BTC/USDT", None, "spot", "USDT"),
        ("bybit:BTC/USDT:USDT", "1", "linear", "USDT"),
        ("okx:BTC/USD:BTC", "100", "inverse", "BTC"),
        ("okx:BTC/USD:BTC-261225", "100", "inverse", "BTC"),
    ],
)
def test_terms(name: str, size: str | None, settlement: str, settle_asset: str) -> None:
    terms = MarketTerms.of(MarketName.parse(name), None if size is None else Decimal(size))
    assert (str(terms.settlement), terms.settle_asset) == (settlement, settle_asset)


@pytest.mark.parametrize(
    ("name", "size", "rule"),
    [
        ("okx:BTC/USD:BTC", None, "contract_has_size"),
        ("okx:BTC/USD:BTC", "0", "contract_size_above_zero"),
        ("okx:BTC/USD:ETH", "1", "settlement_supported"),
        ("deribit:BTC/USD:BTC-261225-60000-C", "1", "settlement_supported"),
        ("binance:BTC/USDT", "2", "spot_has_no_contract_size"),
    ],
)
def test_terms_that_are_refused(name: str, size: str | None, rule: str) -> None:
    with pytest.raises(LedgerRuleBroken) as caught:
        MarketTerms.of(MarketName.parse(name), None if size is None else Decimal(size))
    assert caught.value.rule == rule


def test_an_execution_of_another_market_is_refused() -> None:
    with pytest.raises(LedgerRuleBroken, match="execution_is_of_the_market"):
        apply_execution(FLAT, fill("1", "1", symbol="ETH/USDT"), SPOT)


@pytest.mark.parametrize(
    ("position", "rule"),
    [
        ({"cost_basis": Decimal(1)}, "flat_has_no_cost_basis"),
        ({"amount": Decimal(1), "cost_basis": Decimal(-1)}, "cost_basis_not_negative"),
    ],
)
def test_positions_that_cannot_be(position: dict[str, Decimal], rule: str) -> None:
    with pytest.raises(LedgerRuleBroken) as caught:
        Position(**position)
    assert caught.value.rule == rule


# Properties


@dataclass
class Oracle:
    """Average cost in fractions, written from the definition; knows nothing of the ledger."""

    amount: Fraction = Fraction(0)
    average: Fraction = Fraction(0)  # settle units per unit of amount
    realized: Fraction = Fraction(0)
    fee_value: Fraction = Fraction(0)

    def trade(self, signed: Fraction, value_each: Fraction, *, is_inverse: bool) -> None:
        if self.amount * signed < 0:
            closed = min(abs(signed), abs(self.amount))
            gain = closed * (value_each - self.average)
            self.realized += gain if (self.amount > 0) != is_inverse else -gain
            direction = 1 if signed > 0 else -1
            self.amount += direction * closed
            signed -= direction * closed
        if signed:
            worth = abs(self.amount) * self.average + abs(signed) * value_each
            self.amount += signed
            self.average = worth / abs(self.amount)
        if not self.amount:
            self.average = Fraction(0)

    def execute(self, execution: Execution, terms: MarketTerms) -> None:
        amount, price = Fraction(execution.amount), Fraction(execution.price)
        size = Fraction(terms.contract_size)
        is_inverse = terms.settlement is Settlement.INVERSE
        each = size / price if is_inverse else size * price
        if terms.settlement is Settlement.SPOT and execution.cost is not None:
            each = Fraction(execution.cost) / amount
        signed = amount if execution.side is Side.BUY else -amount
        self.trade(signed, each, is_inverse=is_inverse)
        for paid in execution.fees or ():
            charged = Fraction(paid.amount)
            if paid.currency == terms.settle_asset:
                self.fee_value += charged
            elif terms.settlement is Settlement.SPOT and paid.currency == terms.name.base:
                self.trade(-charged, each, is_inverse=False)
                self.fee_value += charged * each


def prices() -> st.SearchStrategy[Decimal]:
    return st.one_of(
        st.integers(1, 10**9).map(lambda n: Decimal(n).scaleb(-4)),
        st.integers(1, 10**6).map(lambda n: Decimal(n).scaleb(-13)),
    )


@st.composite
def executions(draw: st.DrawFn, terms: MarketTerms) -> list[Execution]:
    """Buys and sells at random: longs, shorts and flips."""
    is_spot = terms.settlement is Settlement.SPOT
    found = []
    for number in range(draw(st.integers(1, 12))):
        amount = Decimal(draw(st.integers(1, 10**7))).scaleb(-8 if is_spot else 0)
        price = draw(prices())
        fees: tuple[Fee, ...] = ()
        if draw(st.booleans()):
            fees = fee(
                plain(Decimal(draw(st.integers(-(10**6), 10**6).filter(bool))).scaleb(-12)),
                draw(st.sampled_from([terms.name.base, terms.name.quote, "BNB"])),
            )
        execution = fill(str(number), plain(amount), plain(price), number,
                         draw(st.sampled_from(["buy", "sell"])), fees)  # fmt: skip
        if is_spot and draw(st.booleans()):
            booked = (amount * price).quantize(Decimal("1e-8"))  # as binance cuts it
            execution = replace(execution, cost=booked)
        found.append(execution)
    return found


CASES = (SPOT, LINEAR, INVERSE)


@pytest.mark.parametrize("terms", CASES, ids=lambda terms: str(terms.settlement))
@settings(max_examples=80)
@given(st.data())
def test_the_books_balance_to_the_last_digit_and_follow_exact_average_cost(
    terms: MarketTerms, data: st.DataObject
) -> None:
    history = data.draw(executions(terms))
    position, lines = position_and_postings(history, terms)
    wallet = book_totals(lines)
    earned = subtract(position.realized_pnl, position.fee_value)

    # Every asset's books add up to zero.
    assert not any(
        sum(Fraction(line.amount) for line in lines if line.asset == asset)
        for asset in {line.asset for line in lines}
    )
    # What the wallet has is what the position says, to the last digit.
    if terms.settlement is Settlement.SPOT:
        assert wallet.get("BTC", Decimal(0)) == position.amount
        assert wallet.get("USDT", Decimal(0)) == equity_at_cost(position, terms)
    else:
        assert wallet.get(terms.settle_asset, Decimal(0)) == earned
        assert Fraction(position.amount) == sum(
            Fraction(e.amount) * (1 if e.side is Side.BUY else -1) for e in history
        )
        # What was bought and sold is what was realised and what is still held.
        traded = sum(
            Fraction(market_value(e.amount, e.price, terms)) * (1 if e.side is Side.SELL else -1)
            for e in history
        )
        basis = Fraction(position.cost_basis) * (1 if position.amount > 0 else -1)
        if terms.settlement is Settlement.INVERSE:
            traded, basis = -traded, -basis
        assert Fraction(position.realized_pnl) == traded + basis

    # An independent computation in fractions agrees within the documented roundings: at most
    # three of half a unit for each execution.
    oracle = Oracle()
    for execution in history:
        oracle.execute(execution, terms)
    tolerance = Fraction(3 * len(history), 2 * 10**18)
    assert Fraction(position.amount) == oracle.amount
    assert abs(Fraction(position.cost_basis) - oracle.average * abs(oracle.amount)) <= tolerance
    assert abs(Fraction(position.realized_pnl) - oracle.realized) <= 2 * tolerance
    assert abs(Fraction(position.fee_value) - oracle.fee_value) <= tolerance


@pytest.mark.parametrize("terms", CASES, ids=lambda terms: str(terms.settlement))
@settings(max_examples=40)
@given(st.data())
def test_closing_realises_what_was_unrealised(terms: MarketTerms, data: st.DataObject) -> None:
    position = position_of(data.draw(executions(terms)), terms)
    mark = data.draw(prices())
    expected = add(position.realized_pnl, unrealized_pnl(position, mark, terms))
    if position.amount:
        side = "sell" if position.amount > 0 else "buy"
        closing = fill("99", plain(magnitude(position.amount)), plain(mark), 99, side)
        closed = apply_execution(position, closing, terms).position
        assert closed.amount == closed.cost_basis == 0
        assert closed.realized_pnl == expected


@pytest.mark.parametrize("terms", CASES, ids=lambda terms: str(terms.settlement))
@settings(max_examples=40)
@given(st.data())
def test_the_order_of_arrival_does_not_matter(terms: MarketTerms, data: st.DataObject) -> None:
    history = data.draw(executions(terms))
    shuffled = data.draw(st.permutations(history))
    assert position_and_postings(shuffled, terms) == position_and_postings(history, terms)


@pytest.mark.parametrize("terms", CASES, ids=lambda terms: str(terms.settlement))
@settings(max_examples=40)
@given(st.data())
def test_cutting_a_close_into_pieces_realises_the_same(
    terms: MarketTerms, data: st.DataObject
) -> None:
    """Within one rounding for each piece of an inverse contract; else to the last digit."""
    opened = buy("7", plain(data.draw(prices())))
    mark = plain(data.draw(prices()))
    whole = position_of([opened, fill("2", "7", mark, 11, "sell")], terms)
    pieces = [fill(str(n), "1", mark, 11 + n, "sell") for n in range(7)]
    cut = position_of([opened, *pieces], terms)
    assert cut.amount == cut.cost_basis == 0
    difference = abs(Fraction(cut.realized_pnl) - Fraction(whole.realized_pnl))
    assert difference <= Fraction(4 if terms.settlement is Settlement.INVERSE else 0, 10**18)
