"""`kurisu ledger`: what the ledger says, and how it is brought up to date."""

from __future__ import annotations

import io
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kurisu.cli.command import Session, command, find_market, parse_range, parse_time
from kurisu.cli.output import iso, safe, table
from kurisu.cli.output_file import OutputOption, opened
from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    from kurisu.domain.order import Order
    from kurisu.store.accounts import Account
    from kurisu.store.ledger_values import (
        BalanceRow,
        EntryRow,
        PnlRow,
        PositionRow,
        StoredExecution,
    )
    from kurisu.store.markets import Market
    from kurisu.store.store import Store

app = typer.Typer(
    help="Orders, fills, positions and balances of accounts and runs.", no_args_is_help=True
)

#: Rows that a text table shows unless --limit says otherwise.
SHOWN: Final = 50

AccountOption = Annotated[
    str | None,
    typer.Option(
        "--account",
        metavar="ACCOUNT",
        help="EXCHANGE:NAME, or the NAME alone if it is unique; else all accounts.",
        show_default=False,
    ),
]
MarketOption = Annotated[
    str | None,
    typer.Option(
        "--market", metavar="EXCHANGE:SYMBOL", help="E.g. binance:BTC/USDT.", show_default=False
    ),
]
StrategyOption = Annotated[
    str | None,
    typer.Option("--strategy", metavar="NAME", help="One strategy's.", show_default=False),
]
RunOption = Annotated[
    int | None, typer.Option("--run", metavar="ID", help="One run's.", show_default=False)
]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="TIME",
        help="As it was then: a date, an ISO time (UTC if it names no zone), or an epoch.",
        show_default=False,
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="From there on: a date, an ISO time (UTC if it names no zone), or an epoch.",
        show_default=False,
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="End, exclusive; written like --since.", show_default=False),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help=f"The last N; a table shows {SHOWN}, --json all unless given."
    ),
]


@dataclass(slots=True)
class Wanted:
    """What the options name, found in the database."""

    account: Account | None = None
    market: Market | None = None
    strategy_id: int | None = None
    run_id: int | None = None
    accounts: Mapping[int, str] = field(default_factory=dict)
    strategies: Mapping[int, str] = field(default_factory=dict)

    @property
    def which(self) -> dict[str, Any]:
        """As the readers of `store.ledger` take it."""
        return {
            "account": self.account,
            "market": self.market,
            "strategy_id": self.strategy_id,
            "run_id": self.run_id,
        }

    def owner(
        self, account_id: int | None, strategy_id: int | None, run_id: int | None
    ) -> dict[str, Any]:
        """Names of whose a row is; the same three in every answer."""
        return {
            "account": self.accounts.get(account_id or 0),
            "strategy": self.strategies.get(strategy_id or 0),
            "run": run_id,
        }


@asynccontextmanager
async def _looking(
    session: Session,
    account: str | None,
    market: str | None = None,
    strategy: str | None = None,
    run: int | None = None,
) -> AsyncIterator[tuple[Store, Wanted]]:
    """The database, and what the options name in it. Raises NotFound, InvalidArgument."""
    async with session.open() as store:
        strategies = await store.ledger.strategies()
        strategy_id = None
        if strategy is not None:
            numbers = [number for number, name in strategies.items() if name == strategy]
            if not numbers:
                raise InvalidArgument(f"strategy {strategy!r} is not in the database")
            strategy_id = numbers[0]
        yield (
            store,
            Wanted(
                account=None if account is None else await store.accounts.find(account),
                market=None if market is None else await find_market(store, market),
                strategy_id=strategy_id,
                run_id=run,
                accounts={a.id: str(a) for a in await store.accounts.list()},
                strategies=strategies,
            ),
        )


def _show(
    session: Session, rows: Sequence[Mapping[str, Any]], right: Collection[str], empty: str
) -> None:
    """A table without the columns that are empty throughout; JSON has every column."""

    def text() -> str:
        if not rows:
            return empty
        columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
        return table(columns, [[row[name] for name in columns] for row in rows], right=right)

    session.result(rows, text)


@command(app, "positions")
async def positions(
    session: Session,
    account: AccountOption = None,
    market: MarketOption = None,
    strategy: StrategyOption = None,
    run: RunOption = None,
    at: AtOption = None,
    pooled: Annotated[
        bool,
        typer.Option("--pooled", help="By account and market, as an exchange sees them."),
    ] = False,
    flat: Annotated[
        bool, typer.Option("--flat", help="Also those of which nothing is held any more.")
    ] = False,
) -> None:
    """Positions that the executions add up to, by account, strategy and run.

    Average cost; fees are not in the PnL. Unrealised PnL is at the close of the market's latest
    stored candle, whose closing time stands beside it.
    """
    time = parse_time(at, "--at")
    async with _looking(session, account, market, strategy, run) as (store, wanted):
        found = await store.ledger.positions(
            **wanted.which, at=time,
            by=("account",) if pooled else ("account", "strategy", "run"),
        )  # fmt: skip
    rows = [position_dict(row, wanted) for row in found if flat or row.position.amount]
    right = ("amount", "entry_price", "mark_price", "unrealized_pnl", "realized_pnl", "fees")
    _show(session, rows, right, "no position")


def position_dict(row: PositionRow, wanted: Wanted) -> dict[str, Any]:
    """As --json prints it."""
    return {
        "market": str(row.market),
        **wanted.owner(row.account_id, row.strategy_id, row.strategy_run_id),
        "amount": row.position.amount,
        "entry_price": row.entry_price,
        "mark_price": row.mark_price,
        "mark_time": row.mark_time,
        "unrealized_pnl": row.unrealized_pnl,
        "realized_pnl": row.position.realized_pnl,
        "fees": row.position.fee_value,
        "settle": row.settle_asset,
        "executions": row.executions,
    }


@command(app, "balances")
async def balances(
    session: Session,
    account: AccountOption = None,
    run: RunOption = None,
    at: AtOption = None,
    by_run: Annotated[bool, typer.Option("--by-run", help="What each run did.")] = False,
    zero: Annotated[bool, typer.Option("--zero", help="Also assets that came out even.")] = False,
) -> None:
    """Wallets that executions, deposits and other entries add up to.

    used is what open spot orders hold. `kurisu ledger enter` books what was there before the first
    fill, and deposits; without, a wallet shows what was gained since.
    """
    time = parse_time(at, "--at")
    async with _looking(session, account, run=run) as (store, wanted):
        found = await store.ledger.balances(
            wanted.account, run_id=wanted.run_id, at=time, by_run=by_run
        )
    rows = [
        balance_dict(row, wanted) for row in found if zero or row.balance.total or row.balance.used
    ]
    _show(session, rows, ("free", "used", "total"), "no balance")


def balance_dict(row: BalanceRow, wanted: Wanted) -> dict[str, Any]:
    """As --json prints it."""
    owner = wanted.owner(row.account_id, None, row.strategy_run_id)
    return {
        "account": owner["account"],
        "run": owner["run"],
        "asset": row.balance.asset,
        "free": row.balance.free,
        "used": row.balance.used,
        "total": row.balance.total,
    }


@command(app, "orders")
async def orders(
    session: Session,
    account: AccountOption = None,
    market: MarketOption = None,
    strategy: StrategyOption = None,
    run: RunOption = None,
    status: Annotated[
        list[str] | None,
        typer.Option(
            "--status",
            metavar="STATUS",
            help="pending, open, closed, canceled or failed. May be given repeatedly.",
            show_default=False,
        ),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    at: AtOption = None,
    limit: LimitOption = None,
) -> None:
    """Orders by time of creation, the last ones.

    --at shows those that were there then, as they stood: filled and status by the exchange's clock.
    """
    from kurisu.domain.order import OrderStatus

    unknown = sorted(set(status or ()) - set(OrderStatus))
    if unknown:
        raise InvalidArgument(f"--status {unknown[0]!r} is not one of {', '.join(OrderStatus)}")
    first, end = parse_range(since, until)
    time = parse_time(at, "--at")
    async with _looking(session, account, market, strategy, run) as (store, wanted):
        found = await store.ledger.orders(
            **wanted.which, statuses=[OrderStatus(text) for text in status or ()],
            since=first, until=end, at=time, limit=_limit(session, limit),
        )  # fmt: skip
    rows = [order_dict(order, wanted) for order in found]
    _show(session, rows, ("price", "amount", "filled", "cost"), "no order")


def _limit(session: Session, given: int | None) -> int | None:
    return SHOWN if given is None and not session.json else given


def order_dict(order: Order, wanted: Wanted) -> dict[str, Any]:
    """As --json prints it."""
    return {
        "created_at": order.created_at,
        "market": str(order.market),
        **wanted.owner(order.account_id, order.strategy_id, order.strategy_run_id),
        "id": order.id,
        "client_order_id": order.client_order_id,
        "exchange_order_id": order.exchange_order_id,
        "side": order.side,
        "type": order.type,
        "price": order.price,
        "stop_price": order.stop_price,
        "amount": order.amount,
        "filled": order.filled,
        "cost": order.cost,
        "status": order.status,
        "updated_at": order.updated_at,
    }


@command(app, "executions")
async def executions(
    session: Session,
    account: AccountOption = None,
    market: MarketOption = None,
    strategy: StrategyOption = None,
    run: RunOption = None,
    order: Annotated[
        int | None, typer.Option("--order", metavar="ID", help="One order's.", show_default=False)
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    at: AtOption = None,
    limit: LimitOption = None,
) -> None:
    """Fills that count, by time, the last ones. --at leaves out what came later."""
    first, end = parse_range(since, until)
    time = parse_time(at, "--at")
    if time is not None:
        shown = time + timedelta(microseconds=1)
        end = shown if end is None else min(end, shown)
    async with _looking(session, account, market, strategy, run) as (store, wanted):
        found = await store.ledger.executions(
            **wanted.which, order_id=order, since=first, until=end, limit=_limit(session, limit)
        )
    rows = [execution_dict(row, wanted) for row in found]
    _show(session, [_flat(row) for row in rows] if not session.json else rows,
          ("price", "amount", "cost"), "no fill")  # fmt: skip


def execution_dict(row: StoredExecution, wanted: Wanted) -> dict[str, Any]:
    """As --json prints it; fees is null while the exchange has not said."""
    one = row.execution
    fees = None
    if one.fees is not None:
        fees = [{"asset": fee.currency, "amount": fee.amount} for fee in one.fees]
    return {
        "time": one.time,
        "market": str(row.market),
        **wanted.owner(row.account_id, row.strategy_id, row.strategy_run_id),
        "order": row.order_id,
        "trade_id": one.trade_id,
        "side": one.side,
        "price": one.price,
        "amount": one.amount,
        "cost": one.cost,
        "fees": fees,
        "taker_or_maker": one.taker_or_maker,
    }


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    from kurisu.domain.money import plain

    fees = row["fees"]
    text = None
    if fees is not None:
        text = ", ".join(f"{plain(fee['amount'])} {fee['asset']}" for fee in fees) or "0"
    return {**row, "fees": text}


@command(app, "pnl")
async def pnl(
    session: Session,
    account: AccountOption = None,
    market: MarketOption = None,
    strategy: StrategyOption = None,
    run: RunOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            metavar="GROUP",
            help="account, market, strategy, run or day (UTC). May be given repeatedly.",
            show_default="account, market",
        ),
    ] = None,
) -> None:
    """Realised PnL, fees and volume of a time, and what is unrealised at its end.

    Realised PnL is exact, at average cost and before fees; fees are those that have a value in the
    asset that the market settles in, and --json has all by asset. Unrealised PnL is at the close of
    the latest stored candle (marked_at is the oldest one used), and left out by day.
    """
    first, end = parse_range(since, until)
    async with _looking(session, account, market, strategy, run) as (store, wanted):
        found = await store.ledger.pnl(
            **wanted.which, since=first, until=end, by=by or ("account", "market")
        )
    rows = [pnl_dict(row, wanted) for row in found]
    if not session.json:
        rows = [{k: v for k, v in row.items() if k != "fees_by_asset"} for row in rows]
    right = ("executions", "volume", "realized_pnl", "fees", "unrealized_pnl")
    _show(session, rows, right, "no fill")


def pnl_dict(row: PnlRow, wanted: Wanted) -> dict[str, Any]:
    """As --json prints it."""
    return {
        "day": None if row.day is None else row.day.isoformat(),
        "market": None if row.market is None else str(row.market),
        **wanted.owner(row.account_id, row.strategy_id, row.strategy_run_id),
        "settle": row.settle_asset,
        "executions": row.executions,
        "volume": row.volume,
        "realized_pnl": row.realized_pnl,
        "fees": row.fee_value,
        "unrealized_pnl": row.unrealized_pnl,
        "marked_at": row.mark_time,
        "fees_by_asset": row.fees,
    }


@command(app, "snapshot")
async def snapshot(
    session: Session,
    account: AccountOption = None,
    run: RunOption = None,
    at: AtOption = None,
) -> None:
    """Write positions and balances, as they are or were, into their tables.

    One row for each account, strategy and run. The same time again replaces what it said.
    """
    time = parse_time(at, "--at") or datetime.now(UTC)
    async with _looking(session, account, run=run) as (store, wanted):
        held, wallets = await store.ledger.snapshot(wanted.account, run_id=wanted.run_id, at=time)
    session.result(
        {"time": time, "positions": held, "balances": wallets},
        f"{held:,} positions and {wallets:,} balances at {iso(time)}",
    )


@command(app, "enter")
async def enter(
    session: Session,
    account: Annotated[
        str, typer.Argument(metavar="ACCOUNT", help="EXCHANGE:NAME, or the NAME alone.")
    ],
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="opening, deposit, withdrawal, transfer, funding, fee, reward or correction.",
        ),
    ],
    amount: Annotated[
        str,
        typer.Argument(
            metavar="AMOUNT", help="What the wallet gains; a withdrawal or fee is taken out of it."
        ),
    ],
    asset: Annotated[str, typer.Argument(metavar="ASSET", help="E.g. USDT.")],
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="When it happened; else now.",
                     show_default=False),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="The exchange's id of it; the same one is stored once.",
                     show_default=False),
    ] = None,
    note: Annotated[str | None, typer.Option(help="Why, in words.", show_default=False)] = None,
) -> None:  # fmt: skip
    """Book what moved a wallet and is no fill: an opening balance, a deposit, a withdrawal.

    Entries are appended and never changed; a wrong one is taken back by another, whose amount is
    negative: kurisu ledger enter main -- correction -5 USDT.
    """
    from kurisu.domain.balance import Entry, EntryKind
    from kurisu.domain.money import parse_decimal

    number = parse_decimal(amount)
    if number is None:
        raise InvalidArgument(f"AMOUNT {amount!r} is not a number")
    if kind not in set(EntryKind):
        raise InvalidArgument(f"KIND {kind!r} is not one of {', '.join(EntryKind)}")
    if kind in ("withdrawal", "fee") and number > 0:
        number = number.copy_negate()
    now = datetime.now(UTC)
    time = parse_time(at, "--at") or now
    if time > now:
        raise InvalidArgument(f"--at {at} is in the future; an entry says what has happened")
    entry = Entry(EntryKind(kind), asset, number, time, reference, note)
    async with session.open() as store:
        found = await store.accounts.find(account)
        await _check_spelling(store, found, asset)
        new = await store.ledger.enter(found, [entry])
    session.result(
        {"account": str(found), "new": bool(new), "kind": entry.kind, "amount": entry.amount,
         "asset": asset, "time": time},
        "booked" if new else f"{safe(reference or '')} is there already",
    )  # fmt: skip


async def _check_spelling(store: Store, account: Account, asset: str) -> None:
    """Raises InvalidArgument for `usdt` where markets know USDT, and the account no usdt: an entry
    is never changed."""
    capitals = asset.upper()
    if capitals == asset or any(
        row.balance.asset == asset for row in await store.ledger.balances(account)
    ):
        return
    listed = [
        await store.markets.list(account.exchange, base=name)
        or await store.markets.list(account.exchange, quote=name)
        for name in (asset, capitals)
    ]
    if listed[1] and not listed[0]:
        raise InvalidArgument(f"{account.exchange} knows no {asset}; {capitals} it does")


@command(app, "entries")
async def entries(
    session: Session,
    account: AccountOption = None,
    run: RunOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
) -> None:
    """Deposits, opening balances, corrections and whatever else is no fill."""
    first, end = parse_range(since, until)
    async with _looking(session, account, run=run) as (store, wanted):
        found = await store.ledger.entries(
            wanted.account, run_id=wanted.run_id, since=first, until=end
        )
    _show(session, [entry_dict(row, wanted) for row in found], ("amount",), "no entry")


def entry_dict(row: EntryRow, wanted: Wanted) -> dict[str, Any]:
    """As --json prints it."""
    owner = wanted.owner(row.account_id, None, row.strategy_run_id)
    return {
        "time": row.entry.time,
        "account": owner["account"],
        "run": owner["run"],
        "kind": row.entry.kind,
        "asset": row.entry.asset,
        "amount": row.entry.amount,
        "reference": row.entry.reference,
        "note": row.entry.note,
    }


@command(app, "export")
async def export(
    session: Session,
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="koinly: Koinly's universal CSV, which most tax tools read. postings: the double "
            "entry itself, a line for each posting.",
        ),
    ] = "koinly",
    output: OutputOption = None,
    account: AccountOption = None,
    run: RunOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
) -> None:
    """Write fills and entries as CSV for tax tools: exact numbers, times in UTC."""
    from kurisu.report import ledger_export

    if layout not in set(ledger_export.Layout):
        raise InvalidArgument(
            f"--format {layout!r} is not one of {', '.join(ledger_export.Layout)}"
        )
    if output is None and session.json:
        raise InvalidArgument("--json prints a report, so the CSV needs a file: give --output")
    first, end = parse_range(since, until)
    async with _looking(session, account, run=run) as (store, wanted):
        fills = await store.ledger.executions(wanted.account, run_id=wanted.run_id, until=end)
        booked = await store.ledger.entries(wanted.account, run_id=wanted.run_id, until=end)
        terms = {name: await store.ledger.terms(name) for name in {row.market for row in fills}}

    def write(sink: Any) -> int:
        return ledger_export.write(
            sink, ledger_export.Layout(layout), fills, booked, terms, wanted.accounts, first
        )

    _write(session, output, write)


def _write(session: Session, output: Path | None, write: Callable[[Any], int]) -> None:
    if output is None:
        write(sys.stdout)
        return
    with opened(output) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        lines = write(text)
        text.flush()
        text.detach()
    session.result(
        {"file": output, "lines": lines}, f"{lines:,} lines written to {safe(str(output))}"
    )
