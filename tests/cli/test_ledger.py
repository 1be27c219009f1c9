"""`kurisu ledger`: what it prints, and CSV that tax tools read."""

from __future__ import annotations

import asyncio
import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from cli.conftest import Program
from ledger.histories import at, fee, fill, placed, said

from kurisu import api
from kurisu.domain.execution import Execution, Fee, Side
from kurisu.domain.order import OrderUpdate


async def fill_ledger() -> None:
    """An account with two orders: one bought, one sold in part."""
    async with api.open() as store:
        market = await store.markets.ensure("binance", "BTC/USDT")
        account = await store.accounts.add("binance", "ledger")
        for name, side, fills in (
            ("buy", Side.BUY, [("0.4", "99.5", 1, fee("0.04", "USDT")), ("0.6", "100", 2, ())]),
            ("sell", Side.SELL, [("0.3", "110", 3, (Fee("BNB", Decimal("0.001")),
                                                    Fee("USDT", Decimal("-0.01"))))]),
        ):  # fmt: skip
            order = placed("1", client_order_id=f"cli-{name}", side=side, account_id=account.id)
            await store.ledger.place(order)
            ids = {"client_order_id": f"cli-{name}", "exchange_order_id": f"X-{name}"}
            messages: list[OrderUpdate | Execution] = [said("open", 1, **ids)]
            messages += [
                replace(fill(f"{name}-{n}", amount, price, seconds, side, fees=fees),
                        exchange_order_id=f"X-{name}")
                for n, (amount, price, seconds, fees) in enumerate(fills)
            ]  # fmt: skip
            await store.ledger.apply_many(account, messages, market=market)


@pytest.fixture
def run(kurisu_program: Program) -> Any:
    """The program, with an account in the shared database; made once."""
    if "binance:ledger" not in kurisu_program("account", "list").out:
        with patch.dict("os.environ", dict(kurisu_program.environment), clear=True):
            asyncio.run(fill_ledger())
        kurisu_program("ledger", "enter", "ledger", "opening", "1000", "USDT", "--at", "2025-12-31",
                       "--reference", "o1", "--note", "as it was")  # fmt: skip

    def call(command: str, *arguments: str | Path, code: int = 0) -> Any:
        account = () if command == "enter" else ("--account", "binance:ledger")
        return kurisu_program("ledger", command, *account, *arguments, code=code)

    return call


def test_positions_and_balances(run: Any) -> None:
    (row,) = run("positions", "--json").json
    assert row["market"] == "binance:BTC/USDT"
    assert row["account"] == "binance:ledger"
    assert (row["amount"], row["entry_price"], row["realized_pnl"]) == ("0.7", "99.8", "3.06")
    assert row["executions"] == 3
    text = run("positions").out
    assert "99.8" in text
    assert "strategy" not in text  # nobody has one, so the column is not there
    assert run("positions", "--at", "2025-01-01").out == "no position\n"
    found = {row["asset"]: row for row in run("balances", "--json").json}
    assert found["USDT"]["total"] == "933.17"
    assert found["BTC"] == {
        "account": "binance:ledger", "run": None, "asset": "BTC", "free": "0", "used": "0.7",
        "total": "0.7",
    }  # fmt: skip
    assert "opening" in run("entries").out


def test_orders_and_executions(run: Any) -> None:
    rows = run("orders", "--json").json
    assert [(r["client_order_id"], r["status"], r["filled"]) for r in rows] == [
        ("cli-buy", "closed", "1"), ("cli-sell", "open", "0.3"),
    ]  # fmt: skip
    assert [r["client_order_id"] for r in run("orders", "--status", "open", "--json").json] == [
        "cli-sell"
    ]
    assert "is not one of pending, open" in run("orders", "--status", "gone", code=2).err
    (row,) = run("executions", "--since", at(3).isoformat(), "--json").json
    assert row["fees"] == [
        {"asset": "BNB", "amount": "0.001"}, {"asset": "USDT", "amount": "-0.01"},
    ]  # fmt: skip
    (then, _) = run("orders", "--at", at(1).isoformat(), "--json").json
    assert (then["status"], then["filled"]) == ("open", "0.4")
    assert len(run("executions", "--at", at(2).isoformat(), "--json").json) == 2
    assert "0.001 BNB, -0.01 USDT" in run("executions", "--limit", "1").out
    assert run("executions", "--market", "binance:BTC/USDT", "--until", "2025-01-01").out == (
        "no fill\n"
    )


def test_pnl_and_snapshot(run: Any) -> None:
    (row,) = run("pnl", "--json").json
    assert (row["realized_pnl"], row["fees"], row["settle"]) == ("3.06", "0.03", "USDT")
    assert row["fees_by_asset"] == {"BNB": "0.001", "USDT": "0.03"}
    (day,) = run("pnl", "--by", "day", "--json").json
    assert (day["day"], day["unrealized_pnl"]) == ("2026-01-01", None)
    assert "known are account, market" in run("pnl", "--by", "week", code=2).err
    first = run("snapshot", "--at", "2026-01-02").out
    assert first == "1 positions and 3 balances at 2026-01-02T00:00:00Z\n"
    assert run("snapshot", "--at", "2026-01-02").out == first


def test_entries_are_booked_once(run: Any, kurisu_program: Program) -> None:
    def enter(*arguments: str, code: int = 0) -> Any:
        return kurisu_program("ledger", "enter", "binance:ledger", *arguments, code=code)

    assert enter("opening", "1000", "USDT", "--at", "2025-12-31", "--reference", "o1").out == (
        "o1 is there already\n"
    )
    refused = enter("opening", "5", "USDT", "--reference", "o1", code=1).err
    assert "entry_reference_names_one_entry" in refused
    assert "is not a number" in enter("deposit", "much", "USDT", code=2).err
    # What is booked stays: neither of these is meant.
    assert "is in the future" in enter("fee", "1", "USDT", "--at", "2090-01-01", code=2).err
    assert "binance knows no usdt; USDT it does" in enter("fee", "1", "usdt", code=2).err
    assert "KIND 'gift' is not one of opening" in enter("gift", "1", "USDT", code=2).err


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_double_entry_as_csv_adds_up_to_zero_and_to_the_balances(run: Any) -> None:
    rows = rows_of(run("export", "--format", "postings").out)
    books: dict[tuple[str, ...], Decimal] = defaultdict(Decimal)
    for row in rows:
        books[(row["asset"],)] += Decimal(row["amount"])
        books[(row["book"], row["asset"])] += Decimal(row["amount"])
    assert all(not total for key, total in books.items() if len(key) == 1)
    for row in run("balances", "--json").json:
        assert books[("wallet", row["asset"])] == Decimal(row["total"])


def test_koinly_s_layout_moves_what_the_wallets_moved(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "trades.csv"
    assert run("export", "--output", file).out == f"5 lines written to {file}\n"
    rows = rows_of(file.read_text())
    assert list(rows[0])[:3] == ["Date", "Sent Amount", "Sent Currency"]
    assert rows[0]["Description"] == "binance:ledger opening as it was"
    first = rows[1]
    assert (first["Date"], first["TxHash"]) == ("2026-01-01 00:00:01 UTC", "buy-0")
    assert (first["Sent Amount"], first["Received Amount"]) == ("39.8", "0.4")
    assert (first["Fee Amount"], first["Fee Currency"]) == ("0.04", "USDT")
    wallets: dict[str, Decimal] = defaultdict(Decimal)
    for row in rows:
        for column, sign in (("Sent", -1), ("Received", 1), ("Fee", -1)):
            if row[f"{column} Amount"]:
                wallets[row[f"{column} Currency"]] += sign * Decimal(row[f"{column} Amount"])
    for row in run("balances", "--json").json:
        assert wallets[row["asset"]] == Decimal(row["total"])
    part: Sequence[dict[str, str]] = rows_of(run("export", "--since", at(3).isoformat()).out)
    assert [row["Label"] for row in part] == ["", "cashback"]
    assert "is not one of koinly" in run("export", "--format", "x", code=2).err
