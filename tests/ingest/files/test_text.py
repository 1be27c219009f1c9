from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kurisu.domain.faults import Reject, Rule
from kurisu.errors import UnreadableFile
from kurisu.ingest.files import lines as lines_module
from kurisu.ingest.files import rows as rows_module

from .samples import (
    NAMES,
    START_MS,
    Row,
    as_csv,
    contents,
    expected,
    lines,
    patient,
    read,
    spellings,
    tables,
    time_spellings,
)

HEADER = ",".join(NAMES)
PLAIN = "\n".join(lines(3)) + "\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def plain(directory: Path) -> list[tuple[object, ...]]:
    rows = contents(read(directory, PLAIN))
    assert rows[1] == (
        2,
        (START_MS + 60_000) * 1_000,
        *map(Decimal, ("100.1", "101.1", "99.1", "100.5", "1.25")),
    )
    return rows


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.rstrip("\n"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "\ufeff" + PLAIN,
        f"\ufeff{HEADER}\n{PLAIN}",
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", "|"),
        PLAIN.replace(",", ", "),
        f"{HEADER}\n{PLAIN}",
        f"\n\n{HEADER}\n\n{PLAIN}\n\n",
        f"# a comment\n{HEADER}\n# another, with, a, lot, of, commas\n{PLAIN}# the end",
        f"#{HEADER}\n{PLAIN}",
        f"# {HEADER.upper()}\n{PLAIN}",
        f"https://www.CryptoDataDownload.com\n{HEADER}\n{PLAIN}",
        f"BTCUSDT, one minute\n{HEADER}\n{PLAIN}",
        PLAIN.replace("\n", "\n   \n"),
        "\n".join(f'"{line}"'.replace(",", '","') for line in lines(3)),
        f'"{HEADER}"\n'.replace(",", '","') + PLAIN,
        "\n".join(line.replace("100.5", '"100.5"') for line in lines(3)),
        "\n".join(f' "{line}" '.replace(",", '" , "') for line in lines(3)),
    ],
)
def test_ways_to_write_the_same_rows(
    directory: Path, plain: list[tuple[object, ...]], content: str
) -> None:
    rows = read(directory, content)
    assert contents(rows) == plain
    assert rows.rejects == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16(directory: Path, plain: list[tuple[object, ...]], encoding: str) -> None:
    mark = "" if encoding == "utf-16" else "\ufeff"
    assert contents(read(directory, (mark + PLAIN).encode(encoding))) == plain


def test_a_binance_header_and_its_time_in_microseconds(directory: Path) -> None:
    header = "open_time,open,high,low,close,volume,close_time,quote_volume,count,a,b,ignore"
    rows = read(directory, header + "\n1735689600000000,1,2,0.5,1.5,7,1735689659999999,1,1,1,1,0\n")
    assert rows.format == "Binance klines csv"
    assert contents(rows)[0][1] == 1_735_689_600_000_000


def test_kraken(directory: Path) -> None:
    rows = read(
        directory,
        "1381095255,122.0,122.0,122.0,122.0,0.1,1\n1381179030,123.61,123.61,123.61,123.61,0.1,1\n",
    )
    assert rows.format == "Kraken csv"
    assert contents(rows)[1][2] == Decimal("123.61")


def test_crypto_data_download(directory: Path) -> None:
    content = (
        "https://www.CryptoDataDownload.com\n"
        "Unix,Date,Symbol,Open,High,Low,Close,Volume SHIB,Volume USDT,tradecount\n"
        "1635811260000,2021-11-02 00:01:00,SHIB/USDT,7.167E-5,7.185E-5,7.158E-5,7.178E-5,"
        "11633091187.00,834021.5,4021\n"
        "1635811200,2021-11-02 00:00:00,SHIB/USDT,7.15E-5,7.184E-5,7.146E-5,7.167E-5,"
        "4.0E12,286000000,9871\n"
    )
    rows = read(directory, content)
    assert rows.columns == {
        "time": "Unix", "open": "Open", "high": "High", "low": "Low", "close": "Close",
        "volume": "Volume SHIB",
    }  # fmt: skip
    assert [row[6] for row in contents(rows)] == [11633091187, 4 * 10**12]
    assert contents(rows)[1][1] == 1_635_811_200_000_000
    mixed = content.replace(
        "1635811200,2021-11-02 00:00:00,SHIB/USDT", "1635811200,2021-11-02 00:00:00,DOGE/USDT"
    )
    with pytest.raises(UnreadableFile, match="more than one symbol, 'SHIB/USDT' and 'DOGE/USDT'"):
        read(directory, mixed)


def test_two_timeframes_in_one_file(directory: Path) -> None:
    content = f"{HEADER},interval\n" + "\n".join(
        f"{line},{'1m' if i < 3 else '5m'}" for i, line in enumerate(lines(5))
    )
    with pytest.raises(UnreadableFile, match="more than one timeframe, '1m' and '5m'"):
        read(directory, content)


def test_columns_of_an_option(directory: Path) -> None:
    content = "".join(
        f"x{i},{line.split(',')[5]},{line.rsplit(',', 1)[0]}\n" for i, line in enumerate(lines(3))
    )
    rows = read(directory, content, "_,volume,ts,open,high,low,close")
    assert [row[1:] for row in contents(rows)] == [
        row[1:] for row in contents(read(directory, PLAIN))
    ]
    assert rows.columns["volume"] == "column 2"


def test_an_option_overrules_the_header(directory: Path) -> None:
    rows = read(directory, f"{HEADER}\n{PLAIN}", "ts,open,low,high,close,volume")
    assert rows.rows_read == 3
    assert contents(rows)[0][3:5] == (99, 101)


@pytest.mark.parametrize(
    ("content", "columns", "says"),
    [
        (PLAIN, "ts,open,high,low,close,volume,_", "names 7 columns, but the file has 6"),
        (PLAIN.replace("\n", ",x\n"), None, "do not look like Kraken"),
        (PLAIN.replace("\n", ",1,2\n"), None, "no header and 8 columns"),
        ("\n".join(f"{i},{line}" for i, line in enumerate(lines(4))), None, "column 2"),
        ("a,b,c,d,e,f\n" + PLAIN, None, "no column for time"),
        (f"{HEADER},trades\n{PLAIN}", None, "names 7 columns, but the rows have 6"),
        ("1,2,3,4,5,6\n" * 5, None, "do not look like candles"),
        ("1600000000,1,2\n1600000060,1,2\n", None, "six columns"),
        ("date,close\n2020-01-01,5\n", None, "six columns"),
    ],
)
def test_files_that_do_not_say_what_they_hold(
    directory: Path, content: str, columns: str | None, says: str
) -> None:
    with pytest.raises(UnreadableFile, match=says):
        read(directory, content, columns)


def test_a_header_without_rows(directory: Path) -> None:
    rows = read(directory, HEADER)
    assert rows.rows_read == 0
    assert rows.columns["time"] == "time"


def test_rejects_say_row_rule_value_and_column(directory: Path) -> None:
    good = lines(12)
    content = "\n".join(
        [
            HEADER,
            good[0],
            "",
            "1600000060000,1,2,0.5,nan,1",
            "# no row",
            "1600000120000,1,2",
            "1600000180000,1,2,0.5,1.5,1,9",
            "later,1,2,0.5,1.5,1",
            "1600000300000,,2,0.5,1.5,1",
            "1600000360000,1,2,0.5,1.5,inf",
            '1600000420000,"1,234.5",2,0.5,1.5,1',
            "1600000480000,1,1e20,0.5,1.5,1",
            "1600000540000,1,2,0.1234567890123456789,1.5,1",
            "0,x,y,z,w,v",
            good[11],
            "16000",
        ]
    )
    rows = read(directory, content)
    assert rows.table["row"].to_pylist() == [1, 12]
    assert rows.rejects == [
        Reject(2, Rule.NOT_FINITE, "nan", "close"),
        Reject(3, Rule.ROW_TRUNCATED, "1600000120000,1,2"),
        Reject(4, Rule.ROW_TRUNCATED, "1600000180000,1,2,0.5,1.5,1,9"),
        Reject(5, Rule.TIME_NOT_READABLE, "later", "time"),
        Reject(6, Rule.MISSING_VALUE, "", "open"),
        Reject(7, Rule.NOT_FINITE, "inf", "volume"),
        Reject(8, Rule.NUMBER_NOT_READABLE, "1,234.5", "open"),
        Reject(9, Rule.NUMBER_TOO_LARGE, "1e20", "high"),
        Reject(10, Rule.TOO_MANY_FRACTION_DIGITS, "0.1234567890123456789", "low"),
        Reject(11, Rule.TIME_NOT_READABLE, "0", "time"),
        Reject(13, Rule.ROW_TRUNCATED, "16000"),
    ]


def test_duplicates_contradictions_and_the_future_are_the_stores_business(directory: Path) -> None:
    line = lines(1)[0]
    content = f"{line}\n{line}\n{line[:-1]}9\n4102444800000,100,101,99,100.5,1\n"
    rows = read(directory, content)
    assert (rows.rows_read, rows.table.num_rows) == (4, 4)


def test_a_last_line_without_an_end_is_noted(directory: Path) -> None:
    assert read(directory, PLAIN).notes == ()
    (note,) = read(directory, PLAIN[:-2]).notes
    assert "cut short" in note


def test_a_stray_quote_costs_one_row(directory: Path) -> None:
    content = PLAIN.replace("100.1", '"100.1')
    rows = read(directory, content)
    assert rows.table["row"].to_pylist() == [1, 3]
    assert rows.rejects[0].rule is Rule.ROW_TRUNCATED


def test_quotes_in_odd_places(directory: Path) -> None:
    """Where Arrow and we would divide lines differently, each line stays a row."""
    content = PLAIN + '1600000180000,1"0,1"1,9,10,1,7\n1600000240000,1,2"",0.5,"1.5",1\n' + PLAIN
    rows = read(directory, content)
    assert rows.rows_read == 8
    assert rows.table["row"].to_pylist() == [1, 2, 3, 6, 7, 8]


def test_bytes_that_are_no_text(directory: Path) -> None:
    content = PLAIN.encode().replace(b"101.1", b"10\xff\xfe1") + b"\x00\x00\n"
    rows = read(directory, content)
    assert [(reject.row, reject.rule) for reject in rows.rejects] == [
        (2, Rule.NUMBER_NOT_READABLE),
        (4, Rule.ROW_TRUNCATED),
    ]


def test_long_values_are_shortened(directory: Path) -> None:
    rows = read(directory, PLAIN + "x" * 5_000 + "\n" + f"1600000180000,{'y' * 5_000},1,1,1,1\n")
    assert [len(reject.value) for reject in rows.rejects] == [203, 203]


def test_a_line_without_end_is_no_candle(directory: Path) -> None:
    with pytest.raises(UnreadableFile, match="a line of more than 1,048,576 bytes"):
        read(directory, "1,2,3,4,5,6," * 3_000_000)


def test_more_rows_than_the_bound(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MAX_ROWS", 2)
    with pytest.raises(UnreadableFile, match="more than 2 rows: split the file"):
        read(directory, PLAIN)


@pytest.mark.parametrize("block", [100, 1_000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_across_blocks(
    directory: Path, monkeypatch: pytest.MonkeyPatch, block: int, end: str
) -> None:
    content = end.join([HEADER, "", *lines(1_500), "# no row", "cut,off", *lines(700)]) + end
    whole = read(directory, content)
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", block)
    parts = read(directory, content)
    assert parts.rows_read == whole.rows_read == 2_201
    assert contents(parts) == contents(whole)
    assert parts.rejects == whole.rejects == [Reject(1_501, Rule.ROW_TRUNCATED, "cut,off")]


@patient
@given(
    st.data(),
    tables,
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
    st.permutations(NAMES),
)
def test_any_notation_of_any_table(
    directory: Path,
    data: st.DataObject,
    table: list[Row],
    delimiter: str,
    quoting: int,
    end: str,
    order: list[str],
) -> None:
    spelled = [
        [data.draw(time_spellings(ms)), *(data.draw(spellings(number)) for number in numbers)]
        for ms, *numbers in table
    ]
    rows = [order, *([row[NAMES.index(name)] for name in order] for row in spelled)]
    found = read(directory, as_csv(rows, delimiter=delimiter, quoting=quoting, end=end))
    assert contents(found) == expected(table)
    assert found.rejects == []
