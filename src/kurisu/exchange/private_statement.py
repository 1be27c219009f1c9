"""Coinbase's statement of each wallet: what moved it, and was no fill of Advanced Trade.

CCXT's lists of deposits and withdrawals want one wallet, show one page of it, and have fiat only.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from kurisu.domain.balance import Entry, EntryKind
from kurisu.domain.execution import read_number, read_text
from kurisu.domain.money import EXACT
from kurisu.errors import BadAnswer, LedgerRuleBroken
from kurisu.exchange.private_port import Unreadable

#: Rows a page of wallets, and of what moved one.
_WALLETS_LIMIT: Final = 250
_LINES_LIMIT: Final = 100
#: Pages of one list, at most.
_MOST_PAGES: Final = 1_000
#: What the fills say already, and better.
_FILL: Final = "advanced_trade_fill"
_ENDS: Final = ("send", "receive", "deposit", "withdrawal")
_EARNED: Final = ("reward", "interest", "earn_payout")


async def statement_entries(
    name: str,
    client: Any,
    ask: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]],
    since: datetime,
    until: datetime,
) -> tuple[list[Entry], list[Unreadable]]:
    """Entries of [since, until] of every wallet that has something, or was touched since.

    name: of the exchange. client: CCXT's object. ask: see `Wallets`. Raises ExchangeError.
    """
    entries: list[Entry] = []
    unreadable: list[Unreadable] = []
    async for wallet in _wallets(name, client, ask):
        if not _is_of_interest(wallet, since):
            continue
        async with aclosing(_lines(name, client, ask, str(wallet.get("uuid")))) as lines:
            async for line in lines:
                where = f"transaction {line.get('id')!r}"
                try:
                    time = _time(line, "created_at", where)
                    if time < since:
                        break  # newest first
                    if time <= until:
                        entries += _entries(line, time, where, client.safe_currency_code)
                except LedgerRuleBroken as error:
                    unreadable.append(Unreadable(where, str(error)))
    return entries, unreadable


async def _wallets(name: str, client: Any, ask: Any) -> AsyncIterator[Mapping[str, Any]]:
    params: dict[str, Any] = {"limit": _WALLETS_LIMIT}
    for _ in range(_MOST_PAGES):

        async def make(params: dict[str, Any] = params) -> Any:
            return await client.v3PrivateGetBrokerageAccounts({**params})

        answer = await ask(make)
        for wallet in _list(name, answer, "accounts"):
            yield wallet
        if not answer.get("has_next") or not answer.get("cursor"):
            return
        params = {**params, "cursor": answer["cursor"]}
    raise BadAnswer(name, "its wallets have no end")


async def _lines(
    name: str, client: Any, ask: Any, wallet: str
) -> AsyncGenerator[Mapping[str, Any], None]:
    """What moved a wallet, newest first."""
    params: dict[str, Any] = {"account_id": wallet, "limit": _LINES_LIMIT}
    for _ in range(_MOST_PAGES):

        async def make(params: dict[str, Any] = params) -> Any:
            return await client.v2PrivateGetAccountsAccountIdTransactions({**params})

        answer = await ask(make)
        lines = _list(name, answer, "data")
        for line in lines:
            yield line
        if not lines or not (answer.get("pagination") or {}).get("next_uri"):
            return
        params = {**params, "starting_after": lines[-1].get("id")}
    raise BadAnswer(name, f"what moved wallet {wallet} has no end")


def _list(name: str, answer: Any, key: str) -> list[Any]:
    rows = answer.get(key) if isinstance(answer, Mapping) else None
    if not isinstance(rows, list):
        raise BadAnswer(name, f"an answer without {key}")
    return rows


def _is_of_interest(wallet: Mapping[str, Any], since: datetime) -> bool:
    """Most wallets are empty and were never used; there is one for each asset."""
    where = f"wallet {wallet.get('uuid')!r}"
    try:
        parts = (wallet.get(key) or {} for key in ("available_balance", "hold"))
        has = any(read_number(part, "value", where) for part in parts)
        return has or _time(wallet, "updated_at", where) >= since
    except LedgerRuleBroken:
        return True


def _entries(
    line: Mapping[str, Any], time: datetime, where: str, code_of: Callable[[str], str | None]
) -> list[Entry]:
    """Raises LedgerRuleBroken."""
    if line.get("type") == _FILL or line.get("status") != "completed":
        return []
    said = line.get("amount") or {}
    moved = read_number(said, "amount", where)
    name, asset = read_text(line, "id", where), read_text(said, "currency", where)
    if moved is None or not name or not asset:
        raise LedgerRuleBroken("transfer_is_complete", f"{where} needs id, amount and currency")
    if not moved:
        return []
    asset = code_of(asset) or asset
    fee = _network_fee(line, moved, where)
    entries = [Entry(_kind(line, moved), asset, EXACT.add(moved, fee), time, name)]
    if fee:
        paid = EXACT.subtract(Decimal(0), fee)
        entries.append(Entry(EntryKind.FEE, asset, paid, time, name))
    return entries


def _network_fee(line: Mapping[str, Any], moved: Decimal, where: str) -> Decimal:
    """What of the amount of something sent was the network's; zero where that does not add up."""
    network = line.get("network")
    if not isinstance(network, Mapping) or moved > 0:
        return Decimal(0)
    sent, fee = (
        read_number(network.get(key) or {}, "amount", where)
        for key in ("transaction_amount", "transaction_fee")
    )
    if sent is None or not fee or EXACT.add(EXACT.add(sent, fee), moved):
        return Decimal(0)
    return fee


def _kind(line: Mapping[str, Any], moved: Decimal) -> EntryKind:
    """By Coinbase's word for it; simple trades and conversions come from another place."""
    said = str(line.get("type"))
    if any(word in said for word in _EARNED):
        return EntryKind.REWARD
    if any(word in said for word in _ENDS):
        return EntryKind.DEPOSIT if moved > 0 else EntryKind.WITHDRAWAL
    return EntryKind.TRANSFER


def _time(row: Mapping[str, Any], key: str, where: str) -> datetime:
    text = read_text(row, key, where)
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        raise LedgerRuleBroken("time_is_readable", f"{key} of {where} is {text!r}") from None
    if found.tzinfo is None:
        raise LedgerRuleBroken("time_is_aware", f"{key} of {where} is {text!r}")
    return found
