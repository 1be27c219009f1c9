"""The program itself: options, errors, exit codes, the server and the database."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.conftest import Program, make_home

import kurisu

#: The embedded server is among what is tested.
pytestmark = pytest.mark.parametrize("environment", ["plain"], indirect=True)


def test_version(kurisu_program: Program) -> None:
    assert kurisu_program.process("--version").out == f"kurisu {kurisu.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("server", "start"), ("server", "status"), ("server", "url"),
        ("db", "upgrade"), ("db", "status"), ("db", "maintain"), ("db", "retention"),
        ("markets", "list"),
        ("candles", "import", "{sample}", "--market", "okx:EACH/USDT"),
        ("candles", "show", "--market", "okx:EACH/USDT", "--timeframe", "1M"),
        ("candles", "export", "--market", "okx:EACH/USDT", "--output", "each.csv"),
        ("candles", "gaps", "--market", "okx:EACH/USDT"),
        ("candles", "verify", "--market", "okx:EACH/USDT"),
        ("candles", "latest", "--market", "okx:EACH/USDT"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_command_prints_text_or_json(
    kurisu_program: Program, sample: Path, arguments: tuple[str, ...]
) -> None:
    """As a process of its own. What it prints stands in the other tests."""
    if arguments[0] in ("candles", "markets"):
        kurisu_program("candles", "import", sample, "--market", "okx:EACH/USDT")
    arguments = tuple(argument.format(sample=sample) for argument in arguments)
    shown = kurisu_program.process(*arguments, "--json")
    assert shown.json is not None
    assert shown.err == ""
    said = kurisu_program(*arguments)
    assert said.out.strip()
    assert said.err == ""


def test_an_error_in_a_process_of_its_own(kurisu_program: Program) -> None:
    run = ("candles", "show", "--market", "binance:NOTHERE/USDT", "--json")
    failed = kurisu_program.process(*run, code=1)
    assert (failed.out, json.loads(failed.err)["error"]) == ("", "NotFound")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nope"], "No such command"),
        (["candles", "show"], "name one market"),
        (["candles", "show", "--market", "BTC/USDT"], "EXCHANGE:SYMBOL"),
        (["candles", "show", "--market", "binance:BTC/USDT", "--timeframe", "7m"], "7m"),
        (["candles", "show", "--market", "binance:BTC/USDT", "--since", "soon"], "--since 'soon'"),
        (["candles", "show", "--market", "binance:BTC/USDT", "--limit", "0"], "--limit"),
        (["candles", "export", "--market", "binance:BTC/USDT", "--format", "xls"], "parquet"),
        (["candles", "export", "--market", "binance:BTC/USDT", "--format", "feather"], "--output"),
        (["candles", "export", "--market", "binance:BTC/USDT", "--float64"], "always exact"),
        (
            ["candles", "gaps", "--market", "binance:BTC/USDT", "--since", "2024-02-01",
             "--until", "2024-01-01"],
            "not before",
        ),
        (["candles", "latest", "--market", "binance:BTC/USDT", "--exchange", "okx"], "not both"),
        (["db", "retention", "ohlcv", "soon"], "is not a duration"),
        (["db", "retention", "orders"], "has no retention"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_clear_line_and_exit_code_2(
    kurisu_program: Program, arguments: list[str], says: str
) -> None:
    failed = kurisu_program(*arguments, "--json", code=2)
    assert failed.out == ""
    assert says in json.loads(failed.err)["message"]


def test_an_error_is_a_line_and_with_v_a_traceback(kurisu_program: Program) -> None:
    run = ("candles", "show", "--market", "binance:NOTHERE/USDT")
    failed = kurisu_program(*run, code=1)
    assert failed.err.startswith("kurisu: market binance:NOTHERE/USDT is not in the database")
    assert failed.err.count("\n") == 1
    assert "Traceback" in kurisu_program(*run, "-v", code=1).err
    # The options stand before the command as well as after it.
    assert json.loads(kurisu_program("--json", *run, code=1).err)["error"] == "NotFound"


def test_a_password_is_never_repeated(kurisu_program: Program) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/x"
    for run in (("--database", url, "db", "status"), ("db", "status", "-v", "--database", url)):
        failed = kurisu_program(*run, code=1)
        assert "cannot reach the database" in failed.err
        assert "hunter2" not in failed.out + failed.err
    failed = kurisu_program("markets", "list", code=1, KURISU_DATABASE_URL=url)
    assert "hunter2" not in failed.out + failed.err


def test_a_name_cannot_move_the_cursor(kurisu_program: Program) -> None:
    failed = kurisu_program("candles", "show", "--market", "binance:A\x1b[2J\u202e/B", code=2)
    assert "\x1b" not in failed.err
    assert "\u202e" not in failed.err


@pytest.fixture
def own_home(environment: dict[str, str]) -> Iterator[Program]:
    """The program with a home of its own: others use the shared one's server meanwhile."""
    home = make_home()
    program = Program(home, {**environment, "KURISU_HOME": str(home)})
    yield program
    program("server", "stop")
    shutil.rmtree(home)


def test_the_server_can_be_watched_and_stopped(own_home: Program) -> None:
    program = own_home
    assert "not running" in program("server", "status").out
    assert program("server", "status", "--json").json["running"] is False
    assert "never been started" in program("server", "url", code=1).err
    started = program("server", "start", "--json").json
    assert started["running"] is True
    assert program("server", "url").out.strip() == started["url"]
    assert program("db", "upgrade", "--json").json["done"] != []
    assert program("db", "upgrade").out == "the database is up to date\n"
    refused = program("server", "stop", "--database", "postgresql://host/db", code=2)
    assert "not Kurisu's to stop" in refused.err
    assert program("server", "stop", "--json").json == {"stopped": True}
    assert program("server", "stop").out == "it was not running\n"


def test_db_status(kurisu_program: Program) -> None:
    found = kurisu_program("db", "status", "--json").json
    assert found["engine"].startswith("PostgreSQL 18")
    assert found["revision"] == found["head"]
    assert "ohlcv" in {table["name"] for table in found["tables"]}
    said = kurisu_program("db", "status").out
    assert "carried out by" in said
    assert "ohlcv_1h" in said


@pytest.mark.parametrize("tier", ["plain"], indirect=True)
def test_db_retention_and_maintain(environment: dict[str, str], tmp_path: Path, url: str) -> None:
    # In a database of its own: what it sets would bind every test after it.
    kurisu_program = Program(tmp_path, {**environment, "KURISU_DATABASE_URL": url})
    assert kurisu_program("db", "retention", "trades", "45", "days").out == (
        "retention of trades: 45 days\n"
    )
    shown = kurisu_program("db", "retention", "--json").json
    trades = next(policy for policy in shown if policy["relation"] == "trades")
    assert (trades["drop_after"], trades["origin"]) == ("45 days", "command")
    assert kurisu_program("db", "maintain").out == "nothing was due\n"
    assert "45 days" in kurisu_program("db", "retention", "trades").out


def test_the_demo_shows_the_whole_way_and_can_be_run_twice(kurisu_program: Program) -> None:
    # Not in the database that the environment names.
    elsewhere = "postgresql://nobody@127.0.0.1:1/x"
    said = kurisu_program("demo", KURISU_DATABASE_URL=elsewhere).out
    for shown in ("0.00000929", "24 candles", "no gaps", "to the last digit", "engine"):
        assert shown in said
    again = kurisu_program("demo", "--json").json
    assert (again["import"]["unchanged"], again["verified"]) == (1440, True)


def test_the_demo_names_only_commands_that_exist(kurisu_program: Program) -> None:
    from kurisu.cli.demo import NEXT

    named = {tuple(line.split()[1:3]) for line in NEXT.splitlines() if line.startswith("  kurisu ")}
    assert ("candles", "import") in named
    for group, name in named:
        assert "Usage" in kurisu_program(group, name, "--help").out


def test_on_a_terminal_the_chart_has_colour_unless_told_not_to(
    kurisu_program: Program, sample: Path
) -> None:
    kurisu_program("candles", "import", sample, "--market", "binance:CHART/USDT")
    chart = ("candles", "show", "--market", "binance:CHART/USDT", "--chart", "--limit", "5")
    assert "\x1b[32m" in _on_terminal(kurisu_program, chart)
    plain = _on_terminal(kurisu_program, chart, NO_COLOR="1")
    assert "\x1b[3" not in plain
    assert plain.isascii()


def _on_terminal(program: Program, arguments: tuple[str, ...], **environment: str) -> str:
    """What a run writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        program.command(arguments),
        cwd=program.folder,
        env={**program.environment, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **environment},
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    ) as running:
        os.close(theirs)
        said = b""
        while True:
            try:
                read = os.read(ours, 65_536)
            except OSError:  # Linux: the other side is closed
                break
            if not read:
                break
            said += read
        os.close(ours)
        assert running.wait(60) == 0
    return said.decode().replace("\r\n", "\n")
