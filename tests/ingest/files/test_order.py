from __future__ import annotations

import random
from itertools import permutations
from pathlib import Path

import pytest

from kurisu.errors import UnreadableFile

from .samples import read, walk

NAMES = ("open", "high", "low", "close", "volume")


def in_order(names: tuple[str, ...], count: int = 400) -> str:
    at = [1 + NAMES.index(name) for name in names]
    return "".join(f"{row[0]},{','.join(str(row[i]) for i in at)}\n" for row in walk(count))


@pytest.mark.parametrize("names", [(*p, "volume") for p in permutations(NAMES[:4])])
def test_a_wrong_order_is_named_with_what_to_pass(tmp_path: Path, names: tuple[str, ...]) -> None:
    """All 24 orders of the prices: the standard one is read, every other one refused by name."""
    content = in_order(names)
    option = f"ts,{','.join(names)}"
    if names == NAMES:
        assert read(tmp_path, content).table.num_rows == 400
        return
    with pytest.raises(UnreadableFile) as caught:
        read(tmp_path, content)
    assert f"--columns {option}" in caught.value.reason
    rows = read(tmp_path, content, option)
    assert rows.table.drop(["row"]) == read(tmp_path, in_order(NAMES)).table.drop(["row"])


@pytest.mark.parametrize("place", range(4))
def test_a_volume_elsewhere(tmp_path: Path, place: int) -> None:
    names = ("open", "high", "low", "close")
    moved = (*names[:place], "volume", *names[place:])
    with pytest.raises(UnreadableFile, match=f"--columns ts,{','.join(moved)}"):
        read(tmp_path, in_order(moved))


def test_newest_first_is_no_wrong_order(tmp_path: Path) -> None:
    turned = "\n".join(reversed(in_order(NAMES).splitlines()))
    assert read(tmp_path, turned).table.num_rows == 400


def test_a_few_rows_of_a_wrong_order(tmp_path: Path) -> None:
    content = in_order(("open", "close", "high", "low", "volume"), 12)
    with pytest.raises(UnreadableFile, match="--columns ts,open,close,high,low,volume"):
        read(tmp_path, content)


def test_bad_rows_are_no_wrong_order(tmp_path: Path) -> None:
    """A few candles that break the rules are the store's to reject, row by row."""
    rows = [line.split(",") for line in in_order(NAMES).splitlines()]
    for i in (5, 100, 200):
        rows[i][2], rows[i][3] = rows[i][3], rows[i][2]
    assert read(tmp_path, "\n".join(",".join(row) for row in rows)).table.num_rows == 400


def test_one_bad_row_of_one(tmp_path: Path) -> None:
    assert read(tmp_path, "1600000000,100,90,110,105,5\n").table.num_rows == 1


def test_no_order_fits(tmp_path: Path) -> None:
    chance = random.Random(1)
    content = "".join(
        f"{1_600_000_000 + 60 * i},{','.join(str(chance.randint(1, 999)) for _ in range(5))}\n"
        for i in range(300)
    )
    with pytest.raises(UnreadableFile, match="in no order of its columns"):
        read(tmp_path, content)
    assert read(tmp_path, content, "ts,open,high,low,close,volume").table.num_rows == 300


def test_prices_that_jump_prove_nothing_about_open_and_close(tmp_path: Path) -> None:
    chance = random.Random(2)
    rows = []
    for i in range(600):
        low, first, second, high = sorted(chance.randint(1, 10**6) for _ in range(4))
        pair = [first, second]
        chance.shuffle(pair)
        rows.append(f"{1_600_000_000 + 60 * i},{pair[0]},{high},{low},{pair[1]},1")
    assert read(tmp_path, "\n".join(rows)).table.num_rows == 600


def test_flat_candles_fit_any_order(tmp_path: Path) -> None:
    rows = [f"{1_600_000_000 + 60 * i},5,5,5,5,0" for i in range(300)]
    assert read(tmp_path, "\n".join(rows)).table.num_rows == 300


def test_names_are_believed(tmp_path: Path) -> None:
    content = "time,open,high,low,close,volume\n" + in_order(
        ("open", "close", "high", "low", "volume")
    )
    assert read(tmp_path, content).table.num_rows == 400


def test_json_lists_are_checked_too(tmp_path: Path) -> None:
    rows = in_order(("open", "close", "high", "low", "volume")).splitlines()
    with pytest.raises(UnreadableFile, match="--columns ts,open,close,high,low,volume"):
        read(tmp_path, f"[[{'],['.join(rows)}]]")


def test_kraken_columns_are_counted_in_the_option(tmp_path: Path) -> None:
    rows = in_order(("open", "close", "high", "low", "volume")).splitlines()
    with pytest.raises(UnreadableFile, match="--columns ts,open,close,high,low,volume,_"):
        read(tmp_path, "\n".join(f"{row},4" for row in rows))
