"""`kurisu trades`: what a user types, and what comes back."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow.feather
import pyarrow.parquet
import pytest
from cli.conftest import Program
from exchange_server import binance
from exchange_server.binance import Aggregates
from exchange_server.clock import MINUTE_MS
from exchange_server.data import generated_ticks
from exchange_server.faults import Fault, Rule
from exchange_server.server import ExchangeServer
from exchange_server.truth import Listing, Tick
from exchange_server.world import START_MS, usual_server

SINCE: Final = ("--since", "2021-11-02")
PATIENCE_S: Final = 60
_names = itertools.count()

ROWS: Final = """\
id,price,qty,quote_qty,time,is_buyer_maker
1,0.00000908,3591711.00,32.6,1729987202368,true
2,0.00000909,1.5,1,1729987202368,false
3,0.00000907,2,1,1729987259999,false
5,0.00000910,2,1,1729987321000,false
"""
EXPORTED: Final = """\
time,trade_id,side,price,amount,cost,taker_or_maker
2024-10-27T00:00:02.368Z,1,sell,0.00000908,3591711,32.61273588,
2024-10-27T00:00:02.368Z,2,buy,0.00000909,1.5,0.000013635,
2024-10-27T00:00:59.999Z,3,buy,0.00000907,2,0.00001814,
2024-10-27T00:02:01Z,5,buy,0.0000091,2,0.0000182,
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trades.csv"
    path.write_text(ROWS)
    return path


@pytest.fixture
def market(kurisu_program: Program, file: Path) -> str:
    name = f"binance:T{next(_names)}/USDT"
    kurisu_program("trades", "import", file, "--market", name)
    return name


def test_import_show_and_export(kurisu_program: Program, file: Path, market: str) -> None:
    run = ("trades", "import", file, "--market", market)
    again = kurisu_program(*run, "--json").json
    assert {key: again[key] for key in ("read", "inserted", "unchanged", "rejected")} == {
        "read": 4, "inserted": 0, "unchanged": 4, "rejected": 0,
    }  # fmt: skip
    assert (again["format"], again["id_space"]) == ("Binance trades csv", "raw")
    assert "4 trades with raw ids" in kurisu_program(*run).out

    exported = kurisu_program("trades", "export", market).out
    assert exported == EXPORTED.replace("02:01Z", "02:01.000Z")
    shown = kurisu_program("trades", "show", market, "--limit", "2").out.splitlines()
    assert [line.split()[1] for line in shown] == ["trade_id", "3", "5"]
    first = kurisu_program("trades", "show", "--market", market, *SINCE, "--limit", "1", "--json")
    assert [row["trade_id"] for row in first.json["trades"]] == ["1"]
    assert first.json["trades"][0]["cost"] == "32.61273588"
    part = ("--since", "2024-10-27T00:01", "--until", "2024-10-27T00:02:01")
    assert "No trades" in kurisu_program("trades", "export", market, *part).err


@pytest.mark.parametrize("ending", ["csv", "parquet", "feather"])
def test_an_export_is_imported_again_as_it_was(
    kurisu_program: Program, market: str, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"x.{ending}"
    assert "4 trades with raw ids in" in kurisu_program("trades", "export", market, "-o", path).out
    other = f"binance:T{next(_names)}/USDT"
    done: tuple[str | Path, ...] = ("trades", "import", path, "--market", other, "--json")
    # Binance has ids of two kinds. Our own files say which theirs are, where there is room for it.
    if ending == "csv":
        assert "say --id-space raw" in kurisu_program(*done, code=2).err
        done = (*done, "--id-space", "raw")
    report = kurisu_program(*done).json
    assert (report["inserted"], report["id_space"]) == (4, "raw")
    assert kurisu_program("trades", "export", other).out == (
        kurisu_program("trades", "export", market).out
    )
    if ending != "csv":
        read = {"parquet": pyarrow.parquet.read_table, "feather": pyarrow.feather.read_table}
        kurisu_program("trades", "export", market, "-o", path, "--float64")
        assert read[ending](path).column("price").to_pylist()[0] == 9.08e-06


def test_to_candles(kurisu_program: Program, file: Path) -> None:
    name = f"binance:T{next(_names)}/USDT"
    run = ("trades", "to-candles", name)
    kurisu_program("trades", "import", file, "--market", name)
    # Ids prove what is between them: no minute is whole.
    assert "0 minutes whose trades are complete" in kurisu_program(*run).out
    whole = ("--complete", "2024-10-27..2024-10-27T00:04")
    kurisu_program("trades", "import", file, "--market", name, *whole)
    said = kurisu_program(*run).out
    assert "4 minutes whose trades are complete, 2 with trades" in said
    assert "0 equal, 0 different, 2 missing, 0 without a trade" in said
    assert kurisu_program(*run, "--write", "--json").json["inserted"] == 2
    candles = kurisu_program("candles", "export", "--market", name).out.splitlines()
    assert candles[1:] == [
        "2024-10-27T00:00:00Z,0.00000908,0.00000909,0.00000907,0.00000907,3591714.5",
        "2024-10-27T00:02:00Z,0.0000091,0.0000091,0.0000091,0.0000091,2",
    ]
    assert kurisu_program(*run, "--json").json["equal"] == 2
    changed = kurisu_program.folder / "c.csv"
    changed.write_text("time,open,high,low,close,volume\n2024-10-27T00:02:00Z,1,1,1,1,2\n")
    kurisu_program("candles", "import", changed, "--market", name)
    report = kurisu_program(*run, "--json", code=1).json
    assert (report["ok"], report["different"]) == (False, 1)
    assert "stored" in kurisu_program(*run, code=1).out


def test_rejects_and_wrong_use(kurisu_program: Program, file: Path, market: str) -> None:
    bad = file.with_name("bad.csv")
    bad.write_text(ROWS.replace("0.00000907", "x").replace("1.5,1", "2.5,1"))
    listing = file.with_name("rejects.csv")
    run = ("trades", "import", bad, "--market", market)
    done = kurisu_program(*run, "--rejects", listing, "--json").json
    assert (done["rejected"], done["conflicts"]) == (1, 1)
    rows = list(csv.DictReader(io.StringIO(listing.read_text())))
    assert [(row["row"], row["rule"]) for row in rows] == [
        ("2", "conflict"), ("3", "number_not_readable"),
    ]  # fmt: skip
    assert "side=buy price=0.00000909 amount=1.5 stays" in rows[0]["value"]
    assert "what stays" in kurisu_program(*run).out
    for arguments, said, code in (
        (("import", file.with_name("none"), "--market", market), "no such file", 2),
        (("import", file, "--market", market, "--id-space", "x"), "raw, aggregate", 2),
        (("import", file, "--market", market, "--id-space", "aggregate"), "raw ids", 1),
        (("import", file, "--market", market, "--complete", "2024"), "SINCE..UNTIL", 2),
        (("export", market, "--format", "parquet"), "--output FILE is needed", 2),
        (("show",), "name one market", 2),
        (("backfill", "binance"), "name symbols", 2),
        (("show", market, "--market", market), "name one market", 2),
    ):
        assert said in kurisu_program("trades", *arguments, code=code).err
    many = kurisu_program("trades", "import", file, bad.with_name("none"), "--market", market,
                          "--json", code=2)  # fmt: skip
    assert [one.get("error") for one in many.json["files"]] == [None, "UnreadableFile"]


@pytest.fixture
def server() -> Iterator[ExchangeServer]:
    with usual_server() as started:
        yield started


@pytest.fixture
def exchange(server: ExchangeServer, tmp_path: Path) -> str:
    """An exchange of a name that no other test has, in kurisu.toml; it is the server's binance."""
    name = f"binance_t{next(_names)}"
    urls = server.options("binance")["urls"]["api"]
    (tmp_path / "kurisu.toml").write_text(
        f'[exchanges.{name}]\nccxt = "binance"\nrate_limit_ms = 1\n'
        'options = { fetchMarkets = ["spot"] }\n'
        f"[exchanges.{name}.urls.api]\n"
        + "".join(f"{key} = {json.dumps(url)}\n" for key, url in urls.items() if key != "ws")
    )
    return name


def stored(program: Program, market: str) -> list[tuple[Any, ...]]:
    found = program("trades", "export", market).out
    return [
        (row["time"], row["trade_id"], row["side"], Decimal(row["price"]), Decimal(row["amount"]))
        for row in csv.DictReader(io.StringIO(found))
    ]


def truth(ticks: list[Tick]) -> list[tuple[Any, ...]]:
    from datetime import UTC, datetime

    def spelled(ms: int) -> str:
        moment = datetime.fromtimestamp(ms // 1_000, UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1_000:03}Z"

    return [(spelled(t.time_ms), str(t.id), t.side, t.price, t.amount) for t in ticks]


def test_backfill_fails_with_a_reason_and_goes_on(
    kurisu_program: Program, server: ExchangeServer, exchange: str
) -> None:
    rule = server.faults.add(
        Rule(Fault.STATUS, path="aggTrades", skip=3, status=451, body="not here", times=9)
    )
    run = ("trades", "backfill", f"{exchange}:SHIB/USDT", *SINCE)
    found = kurisu_program(*run, "--json", code=1).json
    (one,) = found["markets"]
    assert (one["done"], one["id_space"]) == (False, "aggregate")
    (stretch,) = one["stretches"]
    assert stretch["status"] == "failed"
    assert "451" in stretch["reason"]
    market = f"{exchange}:SHIB/USDT"
    known = kurisu_program("trades", "coverage", market, "--json").json
    assert [one["status"] for one in known] == ["complete", "failed"]
    assert "451" in kurisu_program("trades", "coverage", market).out
    rule.times = 0
    assert "1 of 1 markets done" in kurisu_program(*run).out
    rows = truth(server.binance.aggregates["SHIBUSDT"].tape.ticks)
    assert stored(kurisu_program, f"{exchange}:SHIB/USDT") == rows
    assert "it lists SHIB/USDT" in (
        kurisu_program("trades", "backfill", exchange, "SHIB/USDTT", *SINCE, code=1).err
    )


def test_a_killed_backfill_goes_on_where_it_was(
    kurisu_program: Program, server: ExchangeServer, exchange: str
) -> None:
    """kill -9 and SIGTERM at random moments, then to the end: no loss, no double."""
    chance = random.Random(13)
    ticks = Aggregates(generated_ticks(9, START_MS, 40_000)).rows
    server.binance.add(Listing("SHIBUSDT", binance.entry("SHIBUSDT", "SHIB", "USDT")), ticks)
    server.clock.set(ticks[-1].time_ms + MINUTE_MS)
    run = ("trades", "backfill", exchange, "SHIB/USDT", *SINCE)
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        server.requests.clear()
        process = kurisu_program.start(*run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = chance.randrange(20, 35)
        limit = time.monotonic() + PATIENCE_S
        while len(server.asked("aggTrades")) < wanted and process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.002)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == code
    (one,) = kurisu_program(*run, "--json").json["markets"]
    assert one["done"] is True
    # What was known was not asked for again.
    assert one["requested_seconds"] < (server.clock.now_ms() - START_MS) / 1_000 - 60
    assert stored(kurisu_program, f"{exchange}:SHIB/USDT") == truth(ticks)


def test_a_reader_that_goes_away_is_no_error(kurisu_program: Program, tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    lines = [f"{n},1.5,2,3,{1_729_987_202_368 + n},true\n" for n in range(5_000)]
    path.write_text(ROWS.splitlines(keepends=True)[0] + "".join(lines))
    market = f"binance:T{next(_names)}/USDT"
    kurisu_program("trades", "import", path, "--market", market)
    # More than a pipe holds.
    with kurisu_program.start("trades", "export", market) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith(b"time,")
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == b""
        assert running.wait(30) == 141
