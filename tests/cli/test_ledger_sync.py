"""`kurisu ledger sync` and `reconcile`, as a user runs them; and no secret anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cli.conftest import Program
from exchange_server.clock import DAY_MS
from exchange_server.faults import Fault, Rule
from exchange_server.server import ExchangeServer
from exchange_server.world import NOW_MS, usual_server

CANARY = "C4n4ryS3cr3tTh4tMustN0tAppear"


@pytest.fixture
def server() -> Iterator[ExchangeServer]:
    with usual_server() as started:
        started.clock.set(NOW_MS, speed=1.0)
        venue = started.binance.account
        venue.balances = {"USDT": Decimal(10**9), "SHIB": Decimal(10**9)}
        venue.key, venue.secret = f"k{CANARY}", f"s{CANARY}"
        yield started


@pytest.fixture
def run(kurisu_program: Program, server: ExchangeServer, tmp_path: Path) -> Any:
    """The program, whose kurisu.toml says where the exchange is, with an account there."""
    api = server.options("binance")["urls"]["api"]
    urls = [f'{name} = "{url}"' for name, url in api.items() if isinstance(url, str)]
    (tmp_path / "kurisu.toml").write_text(
        "[exchanges.binance]\nrate_limit_ms = 1\ntimeout_s = 2\ntimeout_on_exit = 0\n"
        'options = { fetchMarkets = ["spot"] }\n[exchanges.binance.urls.api]\n' + "\n".join(urls)
    )
    environment = {"CANARY_KEY": f"k{CANARY}", "CANARY_SECRET": f"s{CANARY}"}

    def call(*arguments: str, code: int = 0) -> Any:
        return kurisu_program(*arguments, code=code, **environment)

    name = f"acc{server.port}"
    call("account", "add", name, "--exchange", "binance", "--key-env", "CANARY_KEY",
         "--secret-env", "CANARY_SECRET")  # fmt: skip
    call.account = name  # type: ignore[attr-defined]
    call.url = kurisu_program.url  # type: ignore[attr-defined]
    return call


def test_an_account_is_read_compared_and_corrected(run: Any, server: ExchangeServer) -> None:
    venue = server.binance.account
    server.clock.set(NOW_MS - DAY_MS, speed=0.0)
    venue.slices = 3
    bought = venue.place("SHIBUSDT", "buy", "1000001")
    server.clock.set(NOW_MS, speed=1.0)
    read = run("ledger", "sync", run.account, "--json").json
    (market,) = read["markets"]
    assert (market["market"], read["orders"], read["adopted"], read["new"]) == (
        "binance:SHIB/USDT", 1, 1, 3,
    )  # fmt: skip
    assert read["account"] == f"binance:{run.account}"
    again = run(
        "ledger", "sync", f"binance:{run.account}", "--market", "SHIB/USDT", "--since", "2021-01-01"
    ).out
    assert again.splitlines()[:2] == [
        "market             orders  adopted  fills  new  repeated  waiting  held",
        "binance:SHIB/USDT       1        0      3    0         3        0     0",
    ]
    # The deposits are not known: the balances differ until that is said.
    told = run("ledger", "reconcile", run.account, "--json", code=1).json
    assert told["agrees"] is False
    assert (told["orders"], told["fills"], told["risk_events"]) == (1, 3, 2)
    assert [d["key"] for d in told["differences"]] == ["SHIB", "USDT"]
    text = run("ledger", "reconcile", run.account, code=1).out
    assert "what     kind       market  key   field  ledger" in text
    assert "2 assets compared: 2 differences" in text
    mended = run("ledger", "reconcile", run.account, "--apply").out
    assert "corrected SHIB by +1000000000" in mended
    assert "agrees with the exchange" in mended
    assert run("ledger", "reconcile", run.account, "--json").json["agrees"] is True
    bought.status = "CANCELED"
    assert run("ledger", "reconcile", run.account, "--json", code=1).json["differences"] == [
        {"subject": "order", "kind": "different", "market": "binance:SHIB/USDT",
         "key": str(bought.id), "field": "status", "ledger": "closed", "exchange": "canceled"},
    ]  # fmt: skip


def test_wrong_use(run: Any) -> None:
    for market in ("SHIBUSDT", "kraken:SHIB/USDT"):
        refused = run("ledger", "sync", run.account, "--market", market, code=2)
        assert "BASE/QUOTE" in refused.err
    assert "not a time" in run("ledger", "sync", run.account, "--since", "soon", code=2).err


def test_no_secret_appears_anywhere(run: Any, server: ExchangeServer) -> None:
    """In no output, traceback or error, whatever fails; nor in the database."""
    server.binance.account.place("SHIBUSDT", "buy", "1000001")
    outputs = [run("ledger", "sync", run.account, "--verbose"), run("account", "list", "--json")]
    for path, code in (("myTrades", -2014), ("v3/account", -2015)):
        server.faults.clear()
        body = json.dumps({"code": code, "msg": "Invalid API-key"})
        server.faults.add(Rule(Fault.STATUS, path, status=401, times=9, body=body))
        for as_json in ((), ("--json",)):
            failed = run("ledger", "sync", run.account, "--verbose", *as_json, code=1)
            assert "Traceback" in failed.err
            outputs.append(failed)
    server.binance.account.secret = "changed"
    server.faults.clear()
    failed = run("ledger", "reconcile", run.account, "--verbose", code=1)
    assert "Signature for this request is not valid" in failed.err
    outputs.append(failed)
    assert not any(CANARY in result.out + result.err for result in outputs)
    for line in _database(run):
        assert CANARY not in line


def _database(run: Any) -> list[str]:
    """Every row of every table, as text."""
    url = run.url

    async def dump() -> list[str]:
        connection = await asyncpg.connect(url)
        try:
            tables = await connection.fetch(
                "SELECT format('%I', tablename) AS name FROM pg_tables WHERE schemaname = 'public'"
            )
            return [
                str(row[0])
                for table in tables
                for row in await connection.fetch(f"SELECT t::text FROM {table['name']} AS t")
            ]
        finally:
            await connection.close()

    import asyncio

    lines = asyncio.run(dump())
    assert any(run.account in line for line in lines)
    return lines
