"""Coinbase's statements, in its own shapes, by way of CCXT's requests."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from kurisu.domain.balance import EntryKind
from kurisu.errors import BadAnswer
from kurisu.exchange.calls import RetryPolicy
from kurisu.exchange.ccxt_adapter import CcxtExchange
from kurisu.exchange.private import CcxtAccount
from kurisu.exchange.settings import ExchangeSettings

SINCE, UNTIL = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
Statements = dict[str, list[dict[str, Any]]]


def wallet(asset: str, value: str = "0", updated: str = "2025-06-01T00:00:00.5Z") -> Any:
    return {
        "uuid": f"w-{asset}", "name": f"{asset} Wallet", "currency": asset, "updated_at": updated,
        "available_balance": {"value": value, "currency": asset},
        "hold": {"value": "0", "currency": asset}, "type": "ACCOUNT_TYPE_CRYPTO",
    }  # fmt: skip


def line(name: str, type_: str, amount: str, asset: str, **more: Any) -> dict[str, Any]:
    return {
        "id": name, "type": type_, "status": "completed", "created_at": "2026-02-01T00:00:00Z",
        "amount": {"amount": amount, "currency": asset}, "resource": "transaction", **more,
    }  # fmt: skip


class Coinbase:
    """Two wallets a page, three lines a page, newest first."""

    def __init__(self, wallets: list[Any], statements: Statements) -> None:
        self.wallets = wallets
        self.statements = statements
        self.asked: list[str] = []
        self.is_broken = False

    async def fetch(
        self, url: str, method: str = "GET", headers: Any = None, body: Any = None
    ) -> Any:
        path, asked = urlsplit(url).path, dict(parse_qsl(urlsplit(url).query))
        if path.endswith("/brokerage/accounts"):
            at = int(asked.get("cursor") or 0)
            more = at + 2 < len(self.wallets)
            return {
                "accounts": self.wallets[at : at + 2],
                "has_next": more,
                "cursor": str(at + 2) if more else "",
            }
        if self.is_broken:
            return {"warnings": [], "data": None}
        assert path.startswith("/v2/accounts/w-")
        assert path.endswith("/transactions")
        asset = path.split("/")[3].removeprefix("w-")
        lines = self.statements[asset]
        self.asked.append(asset)
        names = [one["id"] for one in lines]
        at = names.index(asked["starting_after"]) + 1 if "starting_after" in asked else 0
        following = f"{path}?more" if at + 3 < len(lines) else None
        return {"pagination": {"next_uri": following}, "data": lines[at : at + 3]}


async def transfers(coinbase: Coinbase) -> Any:
    keys = {"apiKey": "key", "secret": "secret"}
    exchange = CcxtExchange(
        ExchangeSettings("coinbase", rate_limit_ms=0, options=keys), policy=RetryPolicy(attempts=1)
    )
    account = CcxtAccount(exchange)
    exchange._loaded = True
    account._fetch = coinbase.fetch
    try:
        return await account.fetch_transfers(SINCE, UNTIL)
    finally:
        await account.close()


async def test_what_moved_a_wallet_and_was_no_fill() -> None:
    fee = {"amount": "0.008308000000000001", "currency": "USDC"}
    sent = {"transaction_amount": {"amount": "14", "currency": "USDC"}, "transaction_fee": fee}
    coinbase = Coinbase(
        [wallet("ETH"), wallet("BTC", "2.5"), wallet("USDC", updated="2026-02-02T00:00:00Z")],
        {
            "BTC": [
                line("b0", "send", "9", "BTC", created_at="2026-03-01T00:00:01Z"),
                line("b1", "advanced_trade_fill", "-0.4", "BTC"),
                line("b2", "send", "3", "BTC", status="pending"),
                line("b3", "staking_reward", "0.0000000001", "BTC"),
                line("b4", "trade", "-0.25", "BTC"),
                line("b5", "send", "1.000000000000000001", "BTC"),
                *(
                    line(f"b{n}", "send", "7", "BTC", created_at="2025-12-31T23:59:59Z")
                    for n in range(6, 12)
                ),
            ],
            "USDC": [
                line("u1", "send", "-14.008308000000000001", "USDC", network=sent),
                line("u2", "fiat_withdrawal", "-3", "USDC", network={"status": "off_blockchain"}),
                line("u3", "send", "", "USDC"),
            ],
        },
    )
    entries, unreadable = await transfers(coinbase)
    assert [(e.kind, e.asset, e.amount, e.reference) for e in entries] == [
        (EntryKind.REWARD, "BTC", Decimal("0.0000000001"), "b3"),
        (EntryKind.TRANSFER, "BTC", Decimal("-0.25"), "b4"),
        (EntryKind.DEPOSIT, "BTC", Decimal("1.000000000000000001"), "b5"),
        (EntryKind.WITHDRAWAL, "USDC", Decimal(-14), "u1"),
        (EntryKind.FEE, "USDC", Decimal("-0.008308000000000001"), "u1"),
        (EntryKind.WITHDRAWAL, "USDC", Decimal(-3), "u2"),
    ]
    assert [one.record for one in unreadable] == ["transaction 'u3'"]
    # Nothing is in the wallet of ETH, and nothing was for longer than is asked about. So long ago
    # is BTC's last page, too.
    assert coinbase.asked == ["BTC", "BTC", "BTC", "USDC"]


async def test_an_answer_without_its_list_is_an_error() -> None:
    """Not a wallet that nothing moved."""
    coinbase = Coinbase([wallet("BTC", "1")], {"BTC": [line("b1", "send", "1", "BTC")]})
    coinbase.is_broken = True
    with pytest.raises(BadAnswer, match="without data"):
        await transfers(coinbase)
