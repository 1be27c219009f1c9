from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kurisu.domain.faults import Reject, Rule
from kurisu.errors import UnreadableFile
from kurisu.ingest.files import json_rows

from .samples import (
    NAMES,
    Row,
    as_objects,
    contents,
    expected,
    json_number,
    lines,
    patient,
    read,
    tables,
)

ROWS = lines(3)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


@pytest.fixture(scope="module")
def plain(directory: Path) -> list[tuple[object, ...]]:
    return contents(read(directory, "\n".join(ROWS)))


def objects() -> list[str]:
    return as_objects([row.split(",") for row in ROWS])


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("[[" + "],[".join(ROWS) + "]]", "freqtrade json"),
        (
            "[[" + "], [".join(ROWS).replace(",", ", ").replace("],  [", "], [") + "]]\n",
            "freqtrade json",
        ),
        ("[\n  [" + "],\n  [".join(ROWS) + "]\n]\n", "freqtrade json"),
        ("\ufeff [ [" + " ] ,\r\n [ ".join(ROWS) + "] ] ", "freqtrade json"),
        (
            "[[" + "],[".join(f'"{row}"'.replace(",", '","') for row in ROWS) + "]]",
            "freqtrade json",
        ),
        ("[" + ",".join(objects()) + "]", "json"),
        ("[\n" + ",\n".join(objects()) + "\n]", "json"),
        ("\n".join(objects()), "json lines"),
        ("\n\n".join(objects()) + "\n\n", "json lines"),
        ("\n".join(f"[{row}]" for row in ROWS), "freqtrade json lines"),
        (json.dumps([json.loads(o) for o in objects()], indent=2), "json"),
        (json.dumps([json.loads(f"[{row}]") for row in ROWS], indent=1), "freqtrade json"),
    ],
)
def test_ways_to_write_the_same_rows(
    directory: Path, plain: list[tuple[object, ...]], content: str, name: str
) -> None:
    rows = read(directory, content)
    assert contents(rows) == plain
    assert rows.format == name


def test_numbers_are_taken_as_they_are_spelled(directory: Path) -> None:
    digits = "12345678901234567890.123456789012345678"
    for content in (
        f"[[1600000000000,{digits},4.0E+12,1e-07,0.1,0.30000000000000004]]",
        f'[{{"time":1600000000000,"open":{digits},"high":4.0E+12,"low":1e-07,"close":0.1,'
        '"volume":0.30000000000000004}]',
    ):
        numbers = contents(read(directory, content))[0][2:]
        assert numbers == tuple(
            map(Decimal, (digits, "4000000000000", "0.0000001", "0.1", "0.30000000000000004"))
        )


def test_binance_api_klines(directory: Path) -> None:
    row = (
        '[1499040000000,"0.0163479","0.8","0.015758","0.015771","148976.11",1499644799999,'
        '"2434.19",308,"1756.8","28.46","0"]'
    )
    rows = read(directory, f"[{row}]")
    assert rows.format == "Binance klines json"
    assert contents(rows)[0][2] == Decimal("0.0163479")


def test_lists_of_another_width_need_columns(directory: Path) -> None:
    okx = '[["1597026383085","3.721","3.743","3.677","3.708","8422410","226.04","126.04","1"]]'
    with pytest.raises(UnreadableFile, match="--columns ts,open,high,low,close,volume,_,_,_"):
        read(directory, okx)
    rows = read(directory, okx, "ts,open,high,low,close,volume,_,_,_")
    assert contents(rows)[0][6] == 8422410


def test_an_option_for_objects(directory: Path) -> None:
    content = '[{"id":1600000000,"a":1,"b":2,"c":0.5,"d":1.5,"e":7}]'
    rows = read(directory, content, "ts,open,high,low,close,volume")
    assert contents(rows)[0] == (1, 1_600_000_000_000_000, 1, 2, Decimal("0.5"), Decimal("1.5"), 7)


def test_an_empty_list_is_a_file_without_rows(directory: Path) -> None:
    rows = read(directory, "[]")
    assert (rows.format, rows.rows_read, rows.columns) == ("json", 0, {})


def test_rejects_of_lists(directory: Path) -> None:
    bad = "[1600000060000,1,2],[],[1600000120000,null,2,1,1,1],[1600000180000,NaN,2,1,1,1]"
    content = f"[[{ROWS[0]}],{bad},[{ROWS[2]}]]"
    for text in (
        content,
        content.replace("],[", "]\n,\n["),
        content.replace("[],", '["\\u0041"],'),
    ):
        rows = read(directory, text)
        assert rows.rows_read == 6
        assert rows.table["row"].to_pylist() == [1, 6]
        assert [(r.row, r.rule, r.field) for r in rows.rejects] == [
            (2, Rule.ROW_TRUNCATED, None),
            (3, Rule.ROW_TRUNCATED, None),
            (4, Rule.MISSING_VALUE, "open"),
            (5, Rule.NOT_FINITE, "open"),
        ]


def test_rejects_of_objects(directory: Path) -> None:
    first, second, third = objects()
    missing = second.replace('"close"', '"klose"')
    nested, truth = third.replace("100.2", "[1,2]"), third.replace("100.2", "true")
    content = f"[{first},{missing},null,7,{{}},{nested},{truth},{third}]"
    rows = read(directory, content)
    assert rows.table["row"].to_pylist() == [1, 8]
    assert rows.rejects == [
        Reject(2, Rule.MISSING_VALUE, "", "close"),
        Reject(3, Rule.ROW_TRUNCATED, "null"),
        Reject(4, Rule.ROW_TRUNCATED, '"7"'),
        Reject(5, Rule.MISSING_VALUE, "", "time"),
        Reject(6, Rule.NUMBER_NOT_READABLE, '["1", "2"]', "open"),
        Reject(7, Rule.NUMBER_NOT_READABLE, "true", "open"),
    ]


def test_a_cut_line_of_json_lines_costs_one_row(directory: Path) -> None:
    content = "\n".join(objects())
    rows = read(directory, content[:-20])
    assert rows.table["row"].to_pylist() == [1, 2]
    assert rows.rejects == [Reject(3, Rule.ROW_TRUNCATED, objects()[2][:-20])]


@pytest.mark.parametrize("cut", [1, 2, 3, 10, 60])
def test_a_document_that_was_cut_is_refused(directory: Path, cut: int) -> None:
    for content in ("[[" + "],[".join(ROWS) + "]]", "[" + ",".join(objects()) + "]"):
        with pytest.raises(UnreadableFile, match="cut short"):
            read(directory, content[:-cut])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"code":-1121,"msg":"Invalid symbol."}', "no column for"),
        ('{"data": [[1600000000000,1,2,0.5,1.5,7]]}', "no column for"),
        ('{\n "data": [\n [1600000000000,1,2,0.5,1.5,7]\n ]\n}', "an object"),
        ('{"data": [' + "1," * 40_000 + "2]}", "an object"),
        ("[1,2,3]", "neither lists nor objects"),
        ('["a","b"]', "neither lists nor objects"),
        ("[[]]", "lists of 0 values"),
        ("[[[1,2]]]", "lists of 1 values"),
        ('[[1,"a","b","c","d","e"]]', "do not look like candles"),
        ('[{"price":1,"amount":2}]', "not candles: no column for time"),
        ("[[1600000000000,1,2,0.5,1.5,7]] tail", "damaged"),
        ("[[1600000000000,1,2,0.5,1.5,7] [1600000060000,1,2,0.5,1.5,7]]", "damaged"),
        ("[" * 100_000, "damaged"),
        ("{", "an object"),
        ("[", "cut short"),
    ],
)
def test_json_that_is_not_candles(directory: Path, content: str, says: str) -> None:
    with pytest.raises(UnreadableFile, match=says):
        read(directory, content)


def test_a_document_beyond_the_bound(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_DOCUMENT_BYTES", 100)
    with pytest.raises(UnreadableFile, match="more than 100 bytes"):
        read(directory, "[[" + "],[".join(ROWS) + "]]")


@pytest.mark.parametrize("size", [50, 333])
def test_rows_across_batches(directory: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    rows = lines(500)
    wanted = contents(read(directory, "\n".join(rows)))
    monkeypatch.setattr(json_rows, "BLOCK_BYTES", size)
    monkeypatch.setattr(json_rows, "BATCH_OBJECTS", size)
    made = as_objects([row.split(",") for row in rows])
    for content in ("[[" + "],[".join(rows) + "]]", "[" + ",".join(made) + "]", "\n".join(made)):
        assert contents(read(directory, content)) == wanted


@patient
@given(tables, st.sampled_from(["lists", "strings", "objects", "lines"]), st.booleans())
def test_any_table_in_any_notation(
    directory: Path, table: list[Row], kind: str, scientific: bool
) -> None:
    rows = [
        [str(ms), *(f"{n:E}" if scientific else json_number(n) for n in numbers)]
        for ms, *numbers in table
    ]
    named = as_objects(rows)
    content = {
        "lists": f"[[{'],['.join(map(','.join, rows))}]]",
        "strings": json.dumps(rows, indent=1),
        "objects": f"[{','.join(named)}]",
        "lines": "\n".join(named),
    }[kind]
    listed = kind in ("lists", "strings")
    found = read(directory, content, "ts," + ",".join(NAMES[1:]) if listed else None)
    assert contents(found) == expected(table)
