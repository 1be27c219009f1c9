"""Postings and balances: what an account has, and the double entries that changed it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from kurisu.domain.execution import check_asset, check_aware, check_number
from kurisu.domain.money import EXACT
from kurisu.errors import LedgerRuleBroken


class Book(StrEnum):
    """The two sides of a posting. In every asset, the books of an execution add up to zero.

    WALLET: what the account owns.
    MARKET: what the market took for it (negative: gave).
    FEES: what the exchange took as fees (negative: rebates).
    OUTSIDE: where an entry that is no fill comes from or goes to.
    """

    WALLET = "wallet"
    MARKET = "market"
    FEES = "fees"
    OUTSIDE = "outside"


@dataclass(frozen=True, slots=True)
class Posting:
    """One line of a double entry.

    amount: in units of the asset; what the book gains, negative what it loses.
    """

    book: Book
    asset: str
    amount: Decimal


class EntryKind(StrEnum):
    """What an entry is; the values of ledger_entries.kind.

    OPENING: what was there when the ledger began. DEPOSIT, WITHDRAWAL, TRANSFER: between this
    account and another place. FUNDING: paid or received for a contract held. FEE, REWARD: of the
    exchange, and of no fill. CORRECTION: makes the ledger agree with the exchange, on demand.
    """

    OPENING = "opening"
    DEPOSIT = "deposit"
    WITHDRAWAL = "withdrawal"
    TRANSFER = "transfer"
    FUNDING = "funding"
    FEE = "fee"
    REWARD = "reward"
    CORRECTION = "correction"


@dataclass(frozen=True, slots=True)
class Entry:
    """What moved a wallet and is no fill; one row of `ledger_entries`.

    amount: in units of the asset; not zero; negative leaves the wallet.
    time: when it happened; aware.
    reference: the exchange's id of it; None where it has none, and then nothing tells a
        repetition from a second one.

    Raises LedgerRuleBroken with the rule that a field breaks.
    """

    kind: EntryKind
    asset: str
    amount: Decimal
    time: datetime
    reference: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        check_asset(self.asset)
        check_number("amount", self.amount)
        check_aware("time", self.time)
        if not self.amount:
            raise LedgerRuleBroken("entry_moves_something", f"{self.kind} of 0 {self.asset}")

    @property
    def postings(self) -> tuple[Posting, Posting]:
        """The double entry: the wallet against the fees book (fees) or the outside."""
        other = Book.FEES if self.kind is EntryKind.FEE else Book.OUTSIDE
        return (
            Posting(Book.WALLET, self.asset, self.amount),
            Posting(other, self.asset, EXACT.subtract(Decimal(0), self.amount)),
        )


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account has of one asset; one row of `balances`.

    total: in units of the asset.
    used: held by open orders.
    """

    asset: str
    total: Decimal
    used: Decimal = Decimal(0)

    @property
    def free(self) -> Decimal:
        """total - used, exactly; negative if open orders ask for more than there is."""
        return EXACT.subtract(self.total, self.used)
