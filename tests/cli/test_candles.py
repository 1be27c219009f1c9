"""`kurisu candles`, `kurisu markets`: what a user types, and what comes back."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pyarrow.feather
import pyarrow.parquet
import pytest
from cli.conftest import Program


@pytest.fixture(scope="session")
def market(environment: dict[str, str], sample: Path) -> str:
    """A market that has the sample's candles, for tests that change nothing."""
    name = "binance:DAY/USDT"
    Program(sample.parent, environment)("candles", "import", sample, "--market", name)
    return name


def test_import_counts_rows_and_says_what_is_covered(kurisu_program: Program, sample: Path) -> None:
    run = ("candles", "import", sample, "--market", "binance:PEPE/USDT", "--json")
    first = kurisu_program(*run).json
    assert {key: first[key] for key in ("read", "inserted", "updated", "unchanged")} == {
        "read": 1440, "inserted": 1440, "updated": 0, "unchanged": 0,
    }  # fmt: skip
    assert (first["rejected"], first["conflicts"], first["duplicates"]) == (0, 0, 0)
    assert (first["market"], first["timeframe"]) == ("binance:PEPE/USDT", "1m")
    assert (first["file"], first["format"]) == (str(sample), "csv")
    assert first["coverage"] == [{"since": "2024-10-27T00:00:00Z", "until": "2024-10-28T00:00:00Z"}]
    assert first["rejects"] == first["conflict_rows"] == []
    assert first["seconds"] > 0

    again = kurisu_program(*run).json
    assert (again["inserted"], again["unchanged"], again["coverage"]) == (0, 1440, [])


def test_the_text_report_names_the_moved_policy(kurisu_program: Program, sample: Path) -> None:
    # The first import of this home: whichever test comes first sees the note, so ask the policy.
    said = kurisu_program("candles", "import", sample, "--market", "binance:TEXT/USDT").out
    assert "1,440 rows, as binance:TEXT/USDT 1m" in said
    assert "inserted 1,440, updated 0, unchanged 0, rejected 0" in said
    kept = kurisu_program("db", "retention", "ohlcv", "--json").json[0]
    assert kept["drop_after"] != "1 year"


def test_rejected_rows_are_listed_with_their_rule(kurisu_program: Program, tmp_path: Path) -> None:
    file = tmp_path / "mixed.csv"
    file.write_text(
        "time,open,high,low,close,volume\n"
        "2024-10-27T00:00:00Z,1,2,0.5,1.5,10\n"
        "2024-10-27T00:01:00Z,1,2,x\x1b[31m\x00y,1.5,10\n"  # from the file's reader
        "2024-10-27T00:02:30Z,1,2,0.5,1.5,10\n"  # from the store
        "2024-10-27T00:00:00Z,1,2,0.5,1.75,10\n"  # contradicts row 1, and wins
        "2024-10-27T00:03:00Z,1,0.9,0.5,1.5,10\n"
    )
    arguments = ("candles", "import", file, "--market", "binance:MIXED/USDT")
    shown = kurisu_program(*arguments, "--timeframe", "1m").out
    assert "inserted 1, updated 0, unchanged 0, rejected 3, conflicts 1" in shown
    assert "number_not_readable" in shown
    assert "time_not_aligned" in shown
    assert "\x1b" not in shown
    assert "\x00" not in shown

    found = kurisu_program(*arguments, "--json", "--rejects", "rejects.csv").json
    assert found["read"] == 5 == found["unchanged"] + found["rejected"] + found["conflicts"]
    assert [(r["row"], r["rule"]) for r in found["rejects"]] == [
        (2, "number_not_readable"), (3, "time_not_aligned"), (5, "high_below_open"),
    ]  # fmt: skip
    assert found["conflict_rows"][0]["kept_row"] == 4

    lines = (tmp_path / "rejects.csv").read_text().splitlines()
    assert lines[0] == "file,row,rule,field,value"
    assert [line.split(",")[1:3] for line in lines[1:]] == [
        ["1", "conflict"], ["2", "number_not_readable"], ["3", "time_not_aligned"],
        ["5", "high_below_open"],
    ]  # fmt: skip
    assert "row 4 won" in lines[1]


def test_of_several_files_an_unreadable_one_spoils_nothing(
    kurisu_program: Program, sample: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.csv").write_text("this is no candle\n")
    arguments = (
        "candles", "import", sample, "broken.csv", sample, "--market", "binance:SEVERAL/USDT",
    )  # fmt: skip
    found = kurisu_program(*arguments, "--json", code=2).json
    assert (found["inserted"], found["unchanged"]) == (1440, 1440)
    assert [entry.get("error") for entry in found["files"]] == [None, "UnreadableFile", None]
    said = kurisu_program(*arguments, code=2)
    assert "2 of 3 files stored" in said.out
    assert "broken.csv" in said.err


def test_a_file_that_cannot_be_read_creates_no_market(
    kurisu_program: Program, tmp_path: Path
) -> None:
    (tmp_path / "broken.csv").write_text("this is no candle\n")
    run = ("candles", "import", "broken.csv", "--market", "kraken:NEVER/EUR")
    failed = kurisu_program(*run, "--json", code=2)
    assert failed.out == ""
    assert json.loads(failed.err)["error"] == "UnreadableFile"
    assert kurisu_program("markets", "list", "--exchange", "kraken", "--json").json == []


def test_rows_of_another_timeframe_are_refused(kurisu_program: Program, tmp_path: Path) -> None:
    rows = [f"2024-10-27T{hour:02}:00:00Z,1,2,0.5,1.5,10" for hour in range(24)]
    (tmp_path / "hours.csv").write_text("\n".join(["time,open,high,low,close,volume", *rows]))
    run = ("candles", "import", "hours.csv", "--market", "binance:HOURS/USDT")
    assert "look like bars of 1h" in kurisu_program(*run, code=2).err
    assert "cannot be 4h" in kurisu_program(*run, "--timeframe", "4h", code=2).err
    assert kurisu_program(*run, "--timeframe", "1m", "--json").json["inserted"] == 24
    other = (*run[:-1], "binance:NATIVE/USDT", "--timeframe", "1h", "--json")
    assert kurisu_program(*other).json["inserted"] == 24
    gaps = kurisu_program("candles", "gaps", "--market", "binance:NATIVE/USDT")
    assert "No 1m candles" in gaps.err


def test_a_few_candles_with_long_holes_are_1m_candles(
    kurisu_program: Program, tmp_path: Path
) -> None:
    rows = [f"2024-0{month}-03T00:00:00Z,1,2,0.5,1.5,10" for month in (1, 3, 9)]
    (tmp_path / "holes.csv").write_text("\n".join(["time,open,high,low,close,volume", *rows]))
    run = ("candles", "import", "holes.csv", "--market", "binance:HOLES/USDT", "--json")
    assert kurisu_program(*run).json["inserted"] == 3


def test_show_prints_exact_numbers(kurisu_program: Program, market: str) -> None:
    show = ("candles", "show", "--market", market, "--timeframe", "1d")
    found = kurisu_program(*show, "--json").json
    assert found["sources"] == {"1m": 1}
    assert found["candles"] == [
        {
            "time": "2024-10-27T00:00:00Z", "open": "0.00000908", "high": "0.00000929",
            "low": "0.00000893", "close": "0.00000917", "volume": "11316407147221", "bars": 1440,
        }
    ]  # fmt: skip
    said = kurisu_program(*show, "--chart")
    assert "0.00000908  0.00000929  0.00000893  0.00000917  11316407147221" in said.out
    assert "1 candle, UTC" in said.out
    assert "\x1b" not in said.out  # not a terminal


def test_show_takes_the_newest_or_the_first_from_since_on(
    kurisu_program: Program, market: str
) -> None:
    show = ("candles", "show", "--market", market, "--timeframe", "1m", "--json", "--limit", "2")

    def times(*more: str) -> list[str]:
        return [c["time"][11:16] for c in kurisu_program(*show, *more).json["candles"]]

    assert times() == ["23:58", "23:59"]
    assert times("--until", "2024-10-27T12:00") == ["11:58", "11:59"]
    assert times("--since", "1729987260000") == ["00:01", "00:02"]
    for beginning in ("1970-01-01", "1900-01-01", "0001-01-01T00:00:00+14:00"):
        assert times("--since", beginning) == ["00:00", "00:01"]
    for end in ("9999-12-31T23:59:59Z", "9999-12-31"):
        assert times("--until", end) == ["23:58", "23:59"]
        assert times("--until", end, "--timeframe", "1M") == ["00:00"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "feather"])
def test_an_export_comes_back_identical(
    kurisu_program: Program, market: str, sample: Path, tmp_path: Path, kind: str
) -> None:
    export = ("candles", "export", "--market", market)
    file = tmp_path / f"day.{kind}"
    assert "1,440 candles" in kurisu_program(*export, "--output", file).out
    if kind == "csv":
        assert file.read_bytes() == sample.read_bytes()
        assert kurisu_program(*export).out == sample.read_text()
    else:
        read = pyarrow.parquet.read_table if kind == "parquet" else pyarrow.feather.read_table
        assert str(read(file).schema.field("close").type) == "decimal128(38, 18)"
        kurisu_program(*export, "-o", "f.x", "--format", kind, "--float64")
        assert str(read(tmp_path / "f.x").schema.field("close").type) == "double"
    again = kurisu_program("candles", "import", file, "--market", market, "--json").json
    assert (again["unchanged"], again["read"]) == (1440, 1440)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_export_derives_any_timeframe(kurisu_program: Program, market: str) -> None:
    export = ("candles", "export", "--market", market, "--timeframe")
    for timeframe, open_time in (("1w", "2024-10-21"), ("1M", "2024-10-01")):
        assert kurisu_program(*export, timeframe).out == (
            "time,open,high,low,close,volume,bars\n"
            f"{open_time}T00:00:00Z,0.00000908,0.00000929,0.00000893,0.00000917,11316407147221,1440\n"
        )
    # The market may stand alone, and - is stdout.
    alone = kurisu_program("candles", "export", market, "--timeframe", "1M", "-o", "-")
    assert alone.out == kurisu_program(*export, "1M").out
    nothing = kurisu_program(*export, "1h", "--since", "2020-01-01", "--until", "2020-02-01")
    assert nothing.out == "time,open,high,low,close,volume,bars\n"
    assert "No 1h candles" in nothing.err


@pytest.mark.parametrize("environment", ["plain"], indirect=True)
def test_the_ending_says_the_format_or_is_refused(
    kurisu_program: Program, market: str, tmp_path: Path
) -> None:
    export = ("candles", "export", market, "--timeframe", "1d", "-o")
    assert kurisu_program(*export, "a.arrow", "--json").json["format"] == "feather"
    assert kurisu_program(*export, "a.PQ", "--json").json["format"] == "parquet"
    assert kurisu_program(*export, "a", "--json").json["format"] == "csv"
    said = kurisu_program(*export, "a.csv.gz", code=2).err
    assert said == (
        "kurisu: '.gz' is the ending of none of csv, parquet, feather: say which with --format\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.PQ", "a.arrow"}
    trades = ("trades", "export", market, "-o", "a.csv.gz")
    assert kurisu_program(*trades, code=2).err == said


@pytest.mark.parametrize("environment", ["plain"], indirect=True)
def test_the_listing_does_not_take_the_place_of_the_data(
    kurisu_program: Program, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("precious")
    (tmp_path / "b.csv").symlink_to("a.csv")
    run = ("candles", "import", "a.csv", "--market", "binance:A/B", "--rejects", "b.csv")
    assert "--rejects b.csv is a file to import" in kurisu_program(*run, code=2).err
    assert (tmp_path / "a.csv").read_text() == "precious"


def test_gaps_tell_what_is_known(kurisu_program: Program, market: str) -> None:
    gaps = ("candles", "gaps", "--market", market)
    assert kurisu_program(*gaps).out == "no gaps\n"
    wide = (*gaps, "--since", "2024-10-26T23:00", "--until", "2024-10-28T00:30")
    assert "90 missing (never fetched)" in kurisu_program(*wide).out
    found = kurisu_program(*wide, "--json").json
    assert [gap["bars"] for gap in found["gaps"]] == [60, 30]
    assert found["summary"] == {"missing": {"gaps": 2, "bars": 90}}
    hours = kurisu_program(*wide, "--timeframe", "1h")
    assert hours.err == f"1h bars of {market} are made from 1m; the gaps of those:\n"
    assert hours.out == kurisu_program(*wide).out
    derived = kurisu_program(*wide, "--timeframe", "1h", "--json").json
    assert (derived["timeframe"], derived["made_from"]) == ("1h", "1m")
    assert derived["gaps"] == found["gaps"]


@pytest.mark.parametrize("environment", ["plain"], indirect=True)
def test_verify_counts_bars_and_fails_on_a_difference(
    kurisu_program: Program, sample: Path
) -> None:
    market = "binance:SPOILED/USDT"
    kurisu_program("candles", "import", sample, "--market", market)
    verify = ("candles", "verify", "--market", market)
    assert kurisu_program(*verify, "--json").json["checked"]["1h"] == 24
    assert kurisu_program(*verify, "--since", "2090-01-01").out == "bars recomputed from 1m: none\n"
    # Somebody changes a bar behind the triggers' back.
    url = kurisu_program.url
    _spoil(url, market)
    failed = kurisu_program(*verify, "--json", code=1).json
    assert failed["ok"] is False
    difference = failed["differences"][0]
    assert difference["stored"]["close"] == "1"
    assert difference["expected"]["close"] == "0.00000917"
    assert "bars differ" in kurisu_program(*verify, code=1).out


def _spoil(url: str, market: str) -> None:
    import asyncio

    import asyncpg

    async def spoil() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(
            "UPDATE ohlcv_1d SET close = 1, high = 1 WHERE market_id = "
            "(SELECT id FROM markets WHERE symbol = $1)",
            market.partition(":")[2],
        )
        await connection.close()

    asyncio.run(spoil())


def test_latest_of_many_markets(kurisu_program: Program, market: str) -> None:
    found = kurisu_program("candles", "latest", "--timeframe", "4h", "--json").json["candles"]
    assert {"time": "2024-10-27T20:00:00Z", "open": "0.00000903"}.items() <= next(
        row for row in found if row["market"] == market
    ).items()
    said = kurisu_program("candles", "latest", "--market", market, "--count", "2").out
    assert [line.split()[1][11:16] for line in said.splitlines()[1:]] == ["23:58", "23:59"]
    assert kurisu_program("candles", "latest", market, "--count", "2").out == said
    none = kurisu_program("candles", "latest", "--exchange", "nope").err
    assert none == "No 1m candles of nope: `kurisu markets list` shows what is there.\n"
    both = kurisu_program("candles", "latest", market, "--exchange", "binance", code=2).err
    assert "not both" in both


def test_markets_list(kurisu_program: Program, market: str) -> None:
    found = kurisu_program("markets", "list", "--exchange", "binance", "--json").json
    mine = next(row for row in found if row["market"] == market)
    assert (mine["exchange"], mine["type"], mine["quote"]) == ("binance", "spot", "USDT")
    assert mine["active"] is True
    assert market in kurisu_program("markets", "list").out
    assert (
        "No markets with --quote usdt: " in kurisu_program("markets", "list", "--quote", "usdt").err
    )


def test_a_reader_that_goes_away_is_no_error(kurisu_program: Program, market: str) -> None:
    # More than a pipe holds.
    with kurisu_program.start("candles", "export", "--market", market) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith(b"time,")
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == b""
        assert running.wait(30) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_said_once(kurisu_program: Program, market: str) -> None:
    with Path("/dev/full").open("wb") as full:
        running = kurisu_program.start("candles", "export", "--market", market, stdout=full)
        with running:
            _, said = running.communicate(timeout=60)
    assert running.returncode == 1
    assert said.decode() == "kurisu: No space left on device\n"


def test_an_export_that_fails_leaves_the_old_file(kurisu_program: Program, tmp_path: Path) -> None:
    file = tmp_path / "old.csv"
    file.write_text("precious")
    run = ("candles", "export", "--market", "binance:NOTHERE/USDT", "-o", file)
    assert "is not in the database" in kurisu_program(*run, code=1).err
    assert file.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [file]


def test_help_is_quick_because_it_loads_nothing_heavy(kurisu_program: Program) -> None:
    code = (
        "import sys\n"
        "from kurisu.cli.main import execute\n"
        "execute(['--help'])\n"
        "heavy = {'sqlalchemy', 'pyarrow', 'numpy', 'asyncpg', 'alembic', 'rich', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    command = kurisu_program.command([])[:1]
    done = subprocess.run(
        [*command, "-c", code], env=dict(kurisu_program.environment), capture_output=True,
        check=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"
