"""An account's wallets by way of CCXT: balances, deposits and withdrawals, funding of contracts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from kurisu.domain.balance import Entry, EntryKind
from kurisu.domain.money import EXACT, parse_decimal
from kurisu.errors import BadAnswer, InvalidArgument, NotOffered
from kurisu.exchange.clock import to_ms
from kurisu.exchange.private_port import ReportedBalance, Unreadable
from kurisu.exchange.private_rows import (
    funding_entry,
    read_all,
    read_balance,
    settled_totals,
    transfer_entries,
)
from kurisu.exchange.private_statement import statement_entries
from kurisu.exchange.private_venues import PrivateVenue

_T = TypeVar("_T")

_TRANSFERS: Final = {EntryKind.DEPOSIT: "Deposits", EntryKind.WITHDRAWAL: "Withdrawals"}
#: Of one request for them: Bybit and Gate take 30 days, Binance and Bitget 90.
_TIMED_WINDOW_MS: Final = 29 * 86_400_000
#: Rows that every venue shows at once; Bybit and Bitget, for one, show 20 unless asked for more.
_LEAST_PAGE: Final = 20
#: Requests for one list, at most.
_MOST_TIMED: Final = 500


class Ask(Protocol):
    """A question, asked again within the policy."""

    def __call__(self, make: Callable[[], Awaitable[_T]], /) -> Awaitable[_T]: ...


class Wallets:
    """The questions about wallets. client: CCXT's object. ask: see `CcxtAccount`.

    Every question raises ExchangeError.
    """

    def __init__(self, name: str, client: Any, ask: Ask) -> None:
        self._name = name
        self._client = client
        self._ask = ask

    async def balances(self, venue: PrivateVenue, wallets: Sequence[str]) -> list[ReportedBalance]:
        """See `PrivateExchange.fetch_balances`. Raises InvalidArgument."""
        found: dict[str, ReportedBalance] = {}
        for params in self._params(venue, wallets):

            async def ask(params: Mapping[str, str | bool] = params) -> Any:
                return await self._client.fetch_balance({**params})

            for balance in self._of_one(venue, await self._ask(ask)):
                found[balance.asset] = _added(found.get(balance.asset), balance)
        return [found[asset] for asset in sorted(found)]

    async def held_symbols(self, venue: PrivateVenue, wallets: Sequence[str]) -> list[str]:
        """See `PrivateExchange.fetch_held_symbols`."""
        if self._client.has.get("fetchPositions") is not True:
            return []
        found: set[str] = set()
        for params in self._params(venue, wallets):
            if params.get("type", "swap") in ("spot", "margin", "funding", "main"):
                continue

            async def ask(params: Mapping[str, str | bool] = params) -> Any:
                return await self._client.fetch_positions(None, {**params})

            rows = await self._ask(ask)
            found |= {str(row["symbol"]) for row in rows if _is_held(row)}
        return sorted(found)

    async def transfers(
        self, since: datetime, until: datetime
    ) -> tuple[list[Entry], list[Unreadable]]:
        """See `PrivateExchange.fetch_transfers`."""
        if self._client.id == "coinbase":
            return await statement_entries(self._name, self._client, self._ask, since, until)
        entries: list[Entry] = []
        unreadable: list[Unreadable] = []
        for kind, name in _TRANSFERS.items():
            if self._client.has.get(f"fetch{name}") is not True:
                continue
            rows = await self._timed(f"fetch_{name.lower()}", since, until, _TIMED_WINDOW_MS)
            found, broken = read_all(
                [row for row in rows if row.get("status") == "ok"],
                kind.value,
                partial(transfer_entries, kind=kind),
            )
            entries += [entry for made in found for entry in made]
            unreadable += broken
        return entries, unreadable

    async def funding(
        self, venue: PrivateVenue, symbol: str, since: datetime, until: datetime
    ) -> tuple[list[Entry], list[Unreadable]]:
        """See `PrivateExchange.fetch_funding`. Raises NotOffered."""
        sign = venue.funding_sign
        if sign is None or self._client.has.get("fetchFundingHistory") is not True:
            raise NotOffered(self._name, "Kurisu does not read funding payments there")
        longest_ms = venue.lists_of(symbol).trade_window_ms or _TIMED_WINDOW_MS
        rows = await self._timed(
            "fetch_funding_history", since, until, longest_ms, symbol, venue.funding_bounds
        )
        settle = str(self._client.markets[symbol]["settle"])
        found, unreadable = read_all(
            [row for row in rows if row.get("symbol") == symbol and row.get("amount")],
            "funding",
            partial(funding_entry, sign=sign, settle=settle),
        )
        return list(found), list(unreadable)

    def _params(
        self, venue: PrivateVenue, wallets: Sequence[str]
    ) -> list[Mapping[str, str | bool]]:
        """What each is asked for with, once. Raises InvalidArgument for one that is not there."""
        known = venue.wallets
        first = next(iter(known), "")
        names = dict.fromkeys(name or first for name in wallets or ("",))
        for name in names:
            if name not in known and name != first:
                raise InvalidArgument(
                    f"{self._name} has no wallet {name!r}; it has {', '.join(known) or 'only one'}"
                )
        return [known.get(name, {}) for name in names]

    def _of_one(self, venue: PrivateVenue, answer: Any) -> Iterator[ReportedBalance]:
        """One wallet's."""
        settled: Mapping[str, Any] = {}
        if venue.settled is not None:
            settled = settled_totals(
                answer.get("info"), venue.settled, self._client.safe_currency_code
            )
        for asset in answer.get("total") or ():
            parts = answer.get(asset) or {}
            said = settled.get(asset, parts.get("total")), parts.get("free"), parts.get("used")
            total, free, used = (read_balance(self._name, value) for value in said)
            if total is not None and (total or free or used):
                yield ReportedBalance(asset, total, free, used)

    async def _timed(
        self,
        method: str,
        since: datetime,
        until: datetime,
        longest_ms: int,
        symbol: str | None = None,
        bounds: tuple[str, str] | None = None,
    ) -> list[Any]:
        """Records of [since, until], of a market or of none.

        Venues cut such lists at different lengths, and CCXT does not say at which: a window that
        has as many rows as all of them show at least is asked for in halves.
        """
        found: dict[tuple[str, ...], Any] = {}
        asked = 0
        windows = [(to_ms(since), to_ms(until))]
        while windows:
            start, end = windows.pop()
            if end - start >= longest_ms:
                windows += [(start + longest_ms, end), (start, start + longest_ms - 1)]
                continue
            asked += 1
            params = dict(zip(bounds, (start, end), strict=True)) if bounds else {"until": end}

            async def ask(start: int = start, params: Mapping[str, int] = params) -> Any:
                return await getattr(self._client, method)(symbol, start, None, {**params})

            rows = await self._ask(ask)
            if not isinstance(rows, list):
                raise BadAnswer(self._name, f"{method} gave no list")
            inside = [row for row in rows if start <= (row.get("timestamp") or start) <= end]
            if len(rows) < _LEAST_PAGE or start >= end:
                found |= {_key(row): row for row in inside}
            elif not inside or asked > _MOST_TIMED:
                raise BadAnswer(self._name, f"its {method[6:]} cannot be asked for by time")
            else:
                middle = (start + end) // 2
                windows += [(middle + 1, end), (start, middle)]
        return list(found.values())


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells records apart that overlapping windows gave. Hyperliquid's have one id for all."""
    said = (row.get(name) for name in ("id", "txid", "timestamp", "symbol", "currency", "amount"))
    return tuple(str(value) for value in said)


def _added(before: ReportedBalance | None, more: ReportedBalance) -> ReportedBalance:
    """Of two wallets together."""
    if before is None:
        return more
    free, used = (
        None if left is None or right is None else EXACT.add(left, right)
        for left, right in ((before.free, more.free), (before.used, more.used))
    )
    return ReportedBalance(more.asset, EXACT.add(before.total, more.total), free, used)


def _is_held(position: Mapping[str, Any]) -> bool:
    number = parse_decimal(str(position.get("contracts") or 0))
    return number is not None and number != 0
