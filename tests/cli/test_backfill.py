"""Markets and candles of an exchange by the command line: stopped, killed, and gone on with."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
from cli.conftest import Program
from exchange_server import binance
from exchange_server.clock import MINUTE_MS
from exchange_server.fake import candle_rows
from exchange_server.faults import Fault, Rule
from exchange_server.server import ExchangeServer
from exchange_server.truth import Bar, Listing, Series
from exchange_server.world import BARS, START_MS, usual_server

Configure: TypeAlias = Callable[..., str]
SINCE: Final = ("--since", "2021-11-02")
PATIENCE_S: Final = 60
_names = itertools.count()


@pytest.fixture
def server() -> Iterator[ExchangeServer]:
    with usual_server() as started:
        started.binance.add(
            Listing("BTCUSDT", binance.entry("BTCUSDT", "BTC", "USDT"), Series(list(BARS)))
        )
        yield started


@pytest.fixture
def exchange(server: ExchangeServer, tmp_path: Path) -> str:
    """An exchange of a name that no other test has, in kurisu.toml; it is the server's binance."""
    name = f"binance_{next(_names)}"
    urls = server.options("binance")["urls"]["api"]
    (tmp_path / "kurisu.toml").write_text(
        f'[exchanges.{name}]\nccxt = "binance"\nrate_limit_ms = 1\n'
        'options = { fetchMarkets = ["spot"] }\n'
        f"[exchanges.{name}.urls.api]\n"
        + "".join(f"{key} = {json.dumps(url)}\n" for key, url in urls.items() if key != "ws")
    )
    return name


def closed(bars: list[Bar]) -> list[tuple[object, ...]]:
    return candle_rows(bars[:2_500])


def stored(program: Program, market: str) -> list[tuple[object, ...]]:
    """Every stored candle of the market, exact."""
    import pyarrow.csv as pacsv

    path = program.folder / "stored.csv"
    program("candles", "export", "--market", market, "--output", path)
    kinds = dict.fromkeys(("open", "high", "low", "close", "volume"), "string")
    table = pacsv.read_csv(path, convert_options=pacsv.ConvertOptions(column_types=kinds))
    return [
        (time.astimezone(UTC), *map(Decimal, numbers))
        for time, *numbers in zip(*(column.to_pylist() for column in table.columns), strict=True)
    ]


def test_markets_are_synchronised_and_listed(
    kurisu_program: Program, server: ExchangeServer, exchange: str
) -> None:
    first = kurisu_program("markets", "sync", exchange, "--json").json
    assert first["added"] == [f"{exchange}:BTC/USDT", f"{exchange}:SHIB/USDT"]
    assert "2 markets, 0 added, 0 changed" in kurisu_program("markets", "sync", exchange).out
    (row,) = kurisu_program(
        "markets", "list", "--exchange", exchange, "--base", "SHIB", "--active", "--json"
    ).json
    assert (row["price_tick"], row["min_cost"], row["exchange_symbol"]) == (
        "0.00000001", "5", "SHIBUSDT",
    )  # fmt: skip
    server.binance.listings["SHIBUSDT"].delisted_ms = 0
    said = kurisu_program("markets", "sync", exchange).out
    assert f"{exchange}:SHIB/USDT  active  yes  ->  no" in said


def test_one_exchange_of_two_that_cannot_be_asked(kurisu_program: Program, exchange: str) -> None:
    done = kurisu_program("markets", "sync", exchange, "binanse", code=1)
    assert "2 added" in done.out
    assert "perhaps binance" in done.err


def test_backfill_reports_what_is_complete(
    kurisu_program: Program, server: ExchangeServer, exchange: str
) -> None:
    command = ("candles", "backfill", exchange, "--all-active", "--quote", "USDT", *SINCE)
    found = kurisu_program(*command, "--json").json
    assert found["done"] is True
    assert [m["bars"]["complete"] for m in found["markets"]] == [2_500, 2_500]
    assert stored(kurisu_program, f"{exchange}:SHIB/USDT") == closed(BARS)
    server.requests.clear()
    assert "2 of 2 markets done: 0 new candles" in kurisu_program(*command).out
    assert server.asked("klines") == []


def test_backfill_that_fails_says_where_and_why(
    kurisu_program: Program, server: ExchangeServer, exchange: str
) -> None:
    server.faults.add(Rule(Fault.STATUS, path="klines", status=451, body="not here", times=9))
    done = kurisu_program("candles", "backfill", f"{exchange}:SHIB/USDT", *SINCE, code=1)
    assert f"{exchange}:SHIB/USDT: failed 2021-11-02T00:00:00Z to" in done.out
    assert "HTTP 451" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("SHIB/USDTT",), "it lists SHIB/USDT"),
        ((), "name symbols"),
        (("SHIB/USDT", "--quote", "USDT"), "--quote chooses"),
        (("SHIB/USDT", "--timeframe", "7m"), "unknown timeframe"),
        (("SHIB/USDT", "--since", "2022-01-01", "--until", "2021-01-01"), "is not before"),
    ],
)
def test_wrong_use_is_explained(
    kurisu_program: Program, exchange: str, arguments: tuple[str, ...], said: str
) -> None:
    code = 1 if "lists" in said else 2
    assert said in kurisu_program("candles", "backfill", exchange, *arguments, code=code).err


def wait_for_requests(server: ExchangeServer, count: int, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while len(server.asked("klines")) < count and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_a_killed_backfill_goes_on_where_it_was(
    kurisu_program: Program, server: ExchangeServer, exchange: str
) -> None:
    """kill -9 twice, at random moments, then Ctrl-C, then to the end."""
    chance = random.Random(11)
    server.clock.set(START_MS + 30_000 * MINUTE_MS + 30_000)
    bars = [
        bar._replace(open_ms=START_MS + at * MINUTE_MS)
        for at, bar in enumerate(itertools.islice(itertools.cycle(BARS), 30_000))
    ]
    quiet = {"SHIB": range(17_000, 17_040), "BTC": range(17_020, 17_060)}
    for base, gone in quiet.items():
        left = [bar for at, bar in enumerate(bars) if at not in gone]
        server.binance.listings[f"{base}USDT"].series = Series(left)
    slow = server.faults.add(Rule(Fault.TIMEOUT, path="klines", times=10**6, seconds=0.02))
    command = ("candles", "backfill", exchange, "SHIB/USDT", "BTC/USDT", *SINCE, "--json")
    ends = [signal.SIGKILL, signal.SIGKILL, signal.SIGINT]
    for number in ends:
        server.requests.clear()
        process = kurisu_program.start(*command)
        wait_for_requests(server, chance.randint(2, 14), process)
        time.sleep(chance.random() * 0.05)
        process.send_signal(number)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    slow.times = 0
    server.requests.clear()
    found: Any = kurisu_program(*command, code=1).json
    for market in found["markets"]:
        assert market["bars"] == {
            "complete": 29_960, "empty": 20, "outage": 20, "failed": 0, "missing": 0, "young": 0,
        }  # fmt: skip
    for base in quiet:
        truth = candle_rows(server.binance.listings[f"{base}USDT"].series.bars)
        assert stored(kurisu_program, f"{exchange}:{base}/USDT") == truth
    kurisu_program("candles", "verify", "--market", f"{exchange}:SHIB/USDT")
    server.requests.clear()
    kurisu_program(*command, code=1)
    queries = [request.query for request in server.asked("klines")]
    asked = {int(query["startTime"]) for query in queries if query["interval"] == "1m"}
    # The outage, and a witness around it.
    assert START_MS + 17_020 * MINUTE_MS in asked
    assert all(16_000 <= (at - START_MS) // MINUTE_MS <= 17_540 for at in asked)


def test_repair_finds_and_fills_and_compares(
    kurisu_program: Program, server: ExchangeServer, exchange: str
) -> None:
    market = f"{exchange}:SHIB/USDT"
    query = {"startTime": str(START_MS + 1_000 * MINUTE_MS)}
    fault = Rule(Fault.STATUS, path="klines", status=451, query=query, times=9)
    server.faults.add(fault)
    kurisu_program("candles", "backfill", exchange, "SHIB/USDT", *SINCE, code=1)
    found = kurisu_program("candles", "gaps", "--market", market, "--until", "2021-11-03").out
    assert "HTTP 451" in found
    kurisu_program("candles", "repair", market, code=1)
    server.faults.clear()
    assert kurisu_program("candles", "repair", "nope").out == "Nothing is stored of nope.\n"
    found = kurisu_program("candles", "repair", exchange, "--json").json
    assert (found["whole"], found["markets"][0]["filled"]) == (True, 1_500)
    assert stored(kurisu_program, market) == closed(BARS)
    changed = [
        bar._replace(volume=bar.volume + 1) if at == 7 else bar for at, bar in enumerate(BARS)
    ]
    server.binance.listings["SHIBUSDT"].series = Series(changed)
    done = kurisu_program("candles", "repair", market, "--sample", "9999", code=1)
    assert f"{market}: 2021-11-02T00:07:00Z stored" in done.out
    assert "--apply stores" in done.out
    kurisu_program("candles", "repair", market, "--sample", "9999", "--apply")
    assert stored(kurisu_program, market) == closed(changed)
    assert (
        "nothing is stored"
        in kurisu_program("candles", "repair", f"{exchange}:BTC/USDT", code=2).err
    )


def test_a_queue_and_its_worker(
    kurisu_program: Program, server: ExchangeServer, exchange: str
) -> None:
    command = ("candles", "backfill", exchange, "SHIB/USDT", *SINCE, "--queue")
    assert "1 pieces put" in kurisu_program(*command).out
    assert kurisu_program(*command, "--json").json == {"exchange": exchange, "pieces": 1, "new": 0}
    done = kurisu_program("worker", "--exchange", exchange, "--drain", "--json")
    assert json.loads(done.out)["inserted"] == 2_500
    assert stored(kurisu_program, f"{exchange}:SHIB/USDT") == closed(BARS)
    assert "nothing is missing" in kurisu_program(*command).out
    assert kurisu_program("worker", "--at-once", "1", code=2).err
