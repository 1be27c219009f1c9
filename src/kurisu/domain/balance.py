"""Postings and balances: what an account has, and the double entries that changed it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from kurisu.domain.money import EXACT


class Book(StrEnum):
    """The two sides of a posting. In every asset, the books of an execution add up to zero.

    WALLET: what the account owns.
    MARKET: what the market took for it (negative: gave).
    FEES: what the exchange took as fees (negative: rebates).
    """

    WALLET = "wallet"
    MARKET = "market"
    FEES = "fees"


@dataclass(frozen=True, slots=True)
class Posting:
    """One line of a double entry.

    amount: in units of the asset; what the book gains, negative what it loses.
    """

    book: Book
    asset: str
    amount: Decimal


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
