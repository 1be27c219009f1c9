"""The position: what is held in a market, and the terms on which that market settles."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Self

from kurisu.domain.execution import check_number
from kurisu.domain.market import MarketName
from kurisu.errors import LedgerRuleBroken


class Settlement(StrEnum):
    """What an execution moves.

    SPOT: base against quote; margin, too.
    LINEAR: a contract on base, settled in quote.
    INVERSE: a contract on quote units, settled in base.
    """

    SPOT = "spot"
    LINEAR = "linear"
    INVERSE = "inverse"


@dataclass(frozen=True, slots=True)
class MarketTerms:
    """What the ledger has to know of a market.

    name: exchange, symbol and assets.
    settlement: spot, linear or inverse.
    contract_size: base units (linear) or quote units (inverse) per contract; 1 for spot.
    """

    name: MarketName
    settlement: Settlement
    contract_size: Decimal

    def __post_init__(self) -> None:
        check_number("contract_size", self.contract_size, above_zero=True)
        if self.settlement is Settlement.SPOT and self.contract_size != 1:
            raise LedgerRuleBroken("spot_has_no_contract_size", f"{self.name}")

    @classmethod
    def of(cls, name: MarketName, contract_size: Decimal | None = None) -> Self:
        """The terms that the symbol implies: settled in quote is linear, in base inverse.

        contract_size: `markets.contract_size`; None for spot.
        Raises LedgerRuleBroken for options and for contracts settled in a third asset.
        """
        if name.settle is None:
            settlement = Settlement.SPOT
        elif name.type == "option" or name.settle not in {name.quote, name.base}:
            raise LedgerRuleBroken(
                "settlement_supported", f"{name}: an option, or settled in a third asset"
            )
        else:
            settlement = Settlement.LINEAR if name.settle == name.quote else Settlement.INVERSE
        if contract_size is None:
            if settlement is not Settlement.SPOT:
                raise LedgerRuleBroken("contract_has_size", f"{name}")
            contract_size = Decimal(1)
        return cls(name, settlement, contract_size)

    @property
    def settle_asset(self) -> str:
        """The asset that PnL is in: quote for spot and linear, base for inverse."""
        return self.name.base if self.settlement is Settlement.INVERSE else self.name.quote


@dataclass(frozen=True, slots=True)
class Position:
    """What is held in one market, one-way: long or short, never both.

    amount: base units (spot) or contracts; positive is long, negative short.
    cost_basis: what was paid (long) or received (short) for `amount`, in settle units; never
        negative, zero when flat. Exact: the average entry price is derived from it and not kept,
        because it need not be a terminating decimal.
    realized_pnl: of everything closed so far, before fees, in settle units.
    fee_value: fees so far in settle units: those charged in the settle asset, and on spot those
        in base at their fill's price. A third asset's fee is in the postings only.

    Raises LedgerRuleBroken if the basis of a flat position is not zero, or one is negative.
    """

    amount: Decimal = Decimal(0)
    cost_basis: Decimal = Decimal(0)
    realized_pnl: Decimal = Decimal(0)
    fee_value: Decimal = Decimal(0)

    def __post_init__(self) -> None:
        if self.cost_basis < 0:
            raise LedgerRuleBroken("cost_basis_not_negative", f"{self}")
        if not self.amount and self.cost_basis:
            raise LedgerRuleBroken("flat_has_no_cost_basis", f"{self}")


FLAT = Position()
