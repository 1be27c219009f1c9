"""The ledger as CSV for tax tools and accountants: exact numbers in plain spelling.

koinly: Koinly's universal layout, which most tax tools read; one line for each trade, deposit or
withdrawal. postings: the double entry itself, one line for each posting, in every asset and at
every time adding up to zero.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final, TextIO

from kurisu.domain.balance import EntryKind
from kurisu.domain.execution import Fee, Side
from kurisu.domain.market import MarketName
from kurisu.domain.money import plain
from kurisu.domain.position import FLAT, MarketTerms, Position, Settlement
from kurisu.ledger.arithmetic import magnitude, negate
from kurisu.ledger.balance import postings
from kurisu.ledger.execution import cost_of, time_key
from kurisu.ledger.position import apply_execution
from kurisu.store.ledger_values import EntryRow, StoredExecution


class Layout(StrEnum):
    """What the columns are."""

    KOINLY = "koinly"
    POSTINGS = "postings"


KOINLY: Final = (
    "Date", "Sent Amount", "Sent Currency", "Received Amount", "Received Currency", "Fee Amount",
    "Fee Currency", "Net Worth Amount", "Net Worth Currency", "Label", "Description", "TxHash",
)  # fmt: skip
POSTINGS: Final = ("time", "account", "run", "market", "what", "id", "book", "asset", "amount")

#: Koinly's labels of what is no trade; a plain deposit or withdrawal has none.
_LABELS: Final[Mapping[EntryKind, tuple[str, str]]] = {
    EntryKind.FUNDING: ("realized gain", "margin fee"),
    EntryKind.FEE: ("cashback", "cost"),
    EntryKind.REWARD: ("reward", "cost"),
}


@dataclass(frozen=True, slots=True)
class _Line:
    """Something that happened: a fill with what it realised, or an entry."""

    time: datetime
    fill: StoredExecution | None = None
    terms: MarketTerms | None = None
    realized_pnl: Decimal = Decimal(0)
    entry: EntryRow | None = None


def write(
    sink: TextIO,
    layout: Layout,
    executions: Iterable[StoredExecution],
    entries: Iterable[EntryRow],
    terms: Mapping[MarketName, MarketTerms],
    accounts: Mapping[int, str],
    since: datetime | None = None,
) -> int:
    """Write what happened from `since` on; returns the number of lines below the header.

    executions: from the beginning on, since what a fill realised depends on all before it.
    accounts: names by id.
    """
    lines = [line for line in _lines(executions, entries, terms) if not since or line.time >= since]
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(KOINLY if layout is Layout.KOINLY else POSTINGS)
    count = 0
    for line in lines:
        rows = _koinly(line, accounts) if layout is Layout.KOINLY else _postings(line, accounts)
        for row in rows:
            writer.writerow(row)
            count += 1
    return count


def _lines(
    executions: Iterable[StoredExecution],
    entries: Iterable[EntryRow],
    terms: Mapping[MarketName, MarketTerms],
) -> list[_Line]:
    # As the wallets are: positions are an account's, or a run's that has no account.
    positions: dict[tuple[MarketName, int | None, int | None], Position] = {}
    found = [_Line(row.entry.time, entry=row) for row in entries]
    for stored in sorted(executions, key=lambda row: time_key(row.execution)):
        on = terms[stored.market]
        run = stored.strategy_run_id if stored.account_id is None else None
        key = (stored.market, stored.account_id, run)
        change = apply_execution(positions.get(key, FLAT), stored.execution, on)
        positions[key] = change.position
        found.append(_Line(stored.execution.time, stored, on, change.realized_pnl))
    return sorted(found, key=lambda line: line.time)


Row = Sequence[str]


def _date(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _koinly(line: _Line, accounts: Mapping[int, str]) -> Iterator[Row]:
    if line.entry is not None:
        entry, owner = line.entry.entry, accounts.get(line.entry.account_id or 0, "")
        gained, lost = _LABELS.get(entry.kind, ("", ""))
        label = gained if entry.amount > 0 else lost
        text = " ".join(part for part in (owner, entry.kind.value, entry.note or "") if part)
        yield _moved(line.time, entry.asset, entry.amount, label, text, entry.reference or "")
        return
    stored, terms = line.fill, line.terms
    if stored is None or terms is None:
        return
    execution = stored.execution
    text = f"{accounts.get(stored.account_id or 0, '')} {stored.market.symbol}".strip()
    charged = [fee for fee in execution.fees or () if fee.amount > 0]
    others = [fee for fee in execution.fees or () if fee.amount < 0]
    if terms.settlement is Settlement.SPOT:
        base, quote = terms.name.base, terms.name.quote
        amount, cost = plain(execution.amount), plain(cost_of(execution, terms))
        is_buy = execution.side is Side.BUY
        sent, received = ((cost, quote), (amount, base)) if is_buy else ((amount, base),
                                                                         (cost, quote))  # fmt: skip
        fee, charged = _first(charged)
        yield (
            _date(line.time), *sent, *received, *fee, "", "", "", text, execution.trade_id,
        )  # fmt: skip
    elif line.realized_pnl:
        yield _moved(
            line.time, terms.settle_asset, line.realized_pnl, "realized gain", text,
            execution.trade_id,
        )  # fmt: skip
    label = "cost" if terms.settlement is Settlement.SPOT else "margin fee"
    for one in charged:
        yield _moved(line.time, one.currency, negate(one.amount), label, text, execution.trade_id)
    for one in others:
        amount_back = magnitude(one.amount)
        yield _moved(line.time, one.currency, amount_back, "cashback", text, execution.trade_id)


def _first(fees: Sequence[Fee]) -> tuple[tuple[str, str], list[Fee]]:
    """The columns of one fee, and the fees that need lines of their own."""
    if not fees:
        return ("", ""), []
    first, *others = fees
    return (plain(first.amount), first.currency), others


def _moved(
    time: datetime, asset: str, amount: Decimal, label: str, text: str, reference: str
) -> Row:
    size = plain(magnitude(amount))
    sent, received = (("", ""), (size, asset)) if amount > 0 else ((size, asset), ("", ""))
    return (_date(time), *sent, *received, "", "", "", "", label, text, reference)


def _postings(line: _Line, accounts: Mapping[int, str]) -> Iterator[Row]:
    time = line.time.astimezone(UTC).isoformat()
    if line.entry is not None:
        row = line.entry
        run = str(row.strategy_run_id or "")
        for posting in row.entry.postings:
            yield (
                time, accounts.get(row.account_id or 0, ""), run, "", row.entry.kind.value,
                row.entry.reference or f"entry {row.id}", posting.book.value, posting.asset,
                plain(posting.amount),
            )  # fmt: skip
    elif line.fill is not None and line.terms is not None:
        stored = line.fill
        run = str(stored.strategy_run_id or "")
        for posting in postings(stored.execution, line.terms, line.realized_pnl):
            yield (
                time, accounts.get(stored.account_id or 0, ""), run, stored.market.symbol,
                stored.execution.side.value, stored.execution.trade_id, posting.book.value,
                posting.asset, plain(posting.amount),
            )  # fmt: skip
