"""What the ledger is tested with: markets, orders, fills, and histories that may have happened."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import strategies as st

from kurisu.domain.execution import Execution, Fee, Side, TakerOrMaker
from kurisu.domain.market import MarketName
from kurisu.domain.order import Order, OrderStatus, OrderType, OrderUpdate
from kurisu.domain.position import MarketTerms
from kurisu.ledger.intake import Intake, Outcome

SPOT = MarketTerms.of(MarketName.parse("binance:BTC/USDT"))
LINEAR = MarketTerms.of(MarketName.parse("bybit:ETH/USDT:USDT"), Decimal("0.01"))
INVERSE = MarketTerms.of(MarketName.parse("okx:BTC/USD:BTC"), Decimal(100))

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: int) -> datetime:
    """So many seconds after the start of every example."""
    return START + timedelta(seconds=seconds)


def placed(amount: str = "1", **changes: object) -> Order:
    """A buy of 1 at 100 with the client id "ours"."""
    order = Order(
        market=SPOT.name, side=Side.BUY, type=OrderType.LIMIT, amount=Decimal(amount),
        price=Decimal(100), created_at=at(0), updated_at=at(0), client_order_id="ours",
    )  # fmt: skip
    return replace(order, **changes)  # type: ignore[arg-type]


def said(
    status: str | None = None, seconds: int | None = None, filled: str | None = None, **rest: object
) -> OrderUpdate:
    """What the exchange says about "ours", which it calls "X1"."""
    update = OrderUpdate(
        client_order_id="ours",
        exchange_order_id="X1",
        status=None if status is None else OrderStatus(status),
        time=None if seconds is None else at(seconds),
        filled=None if filled is None else Decimal(filled),
    )
    return replace(update, **rest)  # type: ignore[arg-type]


def fill(
    trade_id: str, amount: str, price: str = "100", seconds: int = 10, side: str = "buy",
    fees: tuple[Fee, ...] | None = (), **rest: object,
) -> Execution:  # fmt: skip
    """A fill of the order that the exchange calls "X1"."""
    execution = Execution(
        "X1", trade_id, Side(side), Decimal(price), Decimal(amount), at(seconds), fees=fees
    )
    return replace(execution, **rest)  # type: ignore[arg-type]


def fee(amount: str, currency: str) -> tuple[Fee, ...]:
    """One fee."""
    return (Fee(currency, Decimal(amount)),)


Message = Order | OrderUpdate | Execution


def feed(intake: Intake, message: Message) -> Outcome:
    """Gives a message to the intake by the door for its kind."""
    if isinstance(message, Order):
        return intake.place(message)
    if isinstance(message, OrderUpdate):
        return intake.update(message)
    return intake.execute(message)


@dataclass
class History:
    """What happened to some orders, as everything that an exchange might say about it.

    messages: our own orders among them. Each may come any number of times, in any order.
    amounts: what really was filled, by client id; strangers' orders are not in it.
    """

    messages: list[Message] = field(default_factory=list)
    amounts: dict[str, Decimal] = field(default_factory=dict)


PRICES = st.integers(1, 10**6).map(lambda n: Decimal(n).scaleb(-2))
AMOUNTS = st.integers(1, 10**4).map(lambda n: Decimal(n).scaleb(-3))
FEES = st.one_of(
    st.just(()),
    st.tuples(
        st.sampled_from(["BTC", "USDT", "BNB"]),
        st.integers(-50, 50).filter(bool).map(lambda n: Decimal(n).scaleb(-6)),
    ).map(lambda pair: (Fee(*pair),)),
)


@st.composite
def histories(draw: st.DrawFn, *, amends: bool = True, strangers: bool = True) -> History:
    """Consistent with an exchange: it fills no more than an order asks for, and time goes on."""
    history = History()
    clock = draw(st.integers(0, 5))
    trade_number = 8
    for number in range(draw(st.integers(1, 3))):
        clock += 1
        is_ours = not strangers or number == 0 or draw(st.booleans())
        parts = draw(st.lists(AMOUNTS, max_size=4))
        rest = draw(st.sampled_from([Decimal(0), Decimal("0.5")]))
        amount = sum(parts, rest) or Decimal(1)
        is_amended = amends and len(parts) > 1 and draw(st.booleans())
        asked = amount + 1 if not is_amended else parts[0] + Decimal("0.001")
        asked = asked if is_amended else amount
        side = draw(st.sampled_from(Side))
        client, exchange = f"ours-{number}", f"X{number}"
        order = placed(
            str(asked), client_order_id=client, side=side, created_at=at(clock),
            updated_at=at(clock),
        )  # fmt: skip
        full = OrderUpdate(
            client_order_id=client, exchange_order_id=exchange, time=at(clock + 1),
            status=OrderStatus.OPEN, filled=Decimal(0), amount=asked, side=side,
            price=order.price, created_at=at(clock + 1),
        )  # fmt: skip
        if is_ours:
            history.messages.append(order)
            history.amounts[client] = Decimal(0)
        # The one answer that surely carries both ids.
        history.messages.append(full)
        clock += 1
        filled = Decimal(0)
        late = draw(st.integers(0, len(parts)))
        end = draw(st.sampled_from(["open", "canceled", "closed", "failed"]))
        for index, part in enumerate(parts):
            clock += draw(st.integers(0, 2))
            if index == 1 and is_amended:
                clock += 1
                asked = amount
                full = replace(full, amount=asked, time=at(clock))
                history.messages.append(full)
            if index == late and end == "canceled" and not is_amended:
                full = replace(full, status=OrderStatus.CANCELED, time=at(clock))
                history.messages.append(draw(masked(full)))
                clock += 1
            # Now and then the exchange gives a trade id twice.
            trade_number += draw(st.sampled_from([1, 1, 1, 0]))
            execution = Execution(
                exchange, str(trade_number), side, draw(PRICES), part, at(clock),
                fees=draw(FEES), taker_or_maker=draw(st.sampled_from(TakerOrMaker)),
            )  # fmt: skip
            filled += part
            if is_ours:
                history.amounts[client] = filled
            history.messages.append(execution)
            history.messages.extend(draw(st.lists(poorer(execution), max_size=2)))
            if full.status is OrderStatus.OPEN:
                full = replace(full, filled=filled, time=at(clock))
                history.messages.extend(draw(st.lists(masked(full), max_size=2)))
        if full.status is OrderStatus.OPEN and (end != "open" or filled == amount):
            status = OrderStatus.CLOSED if filled == amount else OrderStatus(end)
            full = replace(full, status=status, filled=filled, time=at(clock))
            history.messages.append(draw(masked(full)))
            history.messages.append(full)
    return history


@st.composite
def masked(draw: st.DrawFn, update: OrderUpdate) -> OrderUpdate:
    """The same update from a source that says less."""
    missing = draw(
        st.sets(
            st.sampled_from(["client_order_id", "filled", "amount", "price", "side", "created_at"])
        )
    )
    return replace(update, **dict.fromkeys(missing, None))


@st.composite
def poorer(draw: st.DrawFn, execution: Execution) -> Execution:
    """The same execution from a source that says less."""
    missing = draw(st.sets(st.sampled_from(["fees", "taker_or_maker"]), min_size=1))
    return replace(execution, **dict.fromkeys(missing, None))  # type: ignore[arg-type]
