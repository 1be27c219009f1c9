"""Candles for the tests of `kurisu.ingest.files`, and files of every kind that hold them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kurisu.domain.money import EXACT
from kurisu.ingest.files import CandleRows, read_candles

NAMES = ("time", "open", "high", "low", "close", "volume")
START_MS = 1_600_000_000_000
#: Real files; not part of the repository.
DATA = Path(__file__).parents[3].parent / "shared" / "data"

#: Examples write and read files: on a busy machine one of them may take long.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

Row = tuple[int, Decimal, Decimal, Decimal, Decimal, Decimal]


def data_file(name: str) -> Path:
    """A real file, or a skip that says which is missing."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"the real file {name} is not beside the repository")
    return path


def contents(rows: CandleRows) -> list[tuple[object, ...]]:
    """Row number, microseconds since 1970 and five Decimals, for each row of the table."""
    table = rows.table.set_column(1, "time", rows.table["time"].cast(pa.int64()))
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def expected(candles: Sequence[Row]) -> list[tuple[object, ...]]:
    """What `contents` gives for `candles`, whose times are in milliseconds."""
    return [(i, ms * 1_000, *numbers) for i, (ms, *numbers) in enumerate(candles, 1)]


def write(directory: Path, content: str | bytes, name: str = "candles") -> Path:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(
    directory: Path, content: str | bytes, columns: str | None = None, name: str = "candles"
) -> CandleRows:
    """Reads a file with that content; the invariants of every reading are checked."""
    rows = read_candles(
        write(directory, content, name), columns=None if columns is None else columns.split(",")
    )
    check_numbers(rows)
    return rows


def check_numbers(rows: CandleRows) -> None:
    """Every row is in the table or a reject, once, and in order."""
    kept = rows.table["row"].to_pylist()
    rejected = [reject.row for reject in rows.rejects]
    assert rows.rows_read == len(kept) + len(rejected)
    assert kept == sorted(kept)
    assert rejected == sorted(rejected)
    assert sorted(kept + rejected) == list(range(1, rows.rows_read + 1))


def lines(count: int = 3, first: int = 0) -> list[str]:
    """Plain standard lines whose numbers say which row they are."""
    return [
        f"{START_MS + 60_000 * i},100.{i},101.{i},99.{i},100.5,{i}.25"
        for i in range(first, first + count)
    ]


def walk(count: int) -> list[tuple[int, str, str, str, str, str]]:
    """Candles of a price that moves: each opens where the last one closed."""
    rows, price = [], Decimal("100.00")
    for i in range(count):
        close = price + Decimal((i * 7919) % 13 - 6) / 10
        high, low = max(price, close) + Decimal("0.05"), min(price, close) - Decimal("0.05")
        volume = Decimal((i * 31) % 17) / 8
        numbers = (f"{number:f}" for number in (price, high, low, close, volume))
        rows.append((START_MS + 60_000 * i, *numbers))
        price = close
    return rows  # type: ignore[return-value]


def zipped(**members: str | bytes) -> bytes:
    """A zip; `__` in a keyword stands for the dot of a name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def ipc(table: pa.Table, *, stream: bool = False, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def as_csv(rows: Sequence[Sequence[str]], *, delimiter: str, quoting: int, end: str) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    writer.writerows(rows)
    return buffer.getvalue()


def gz(content: str | bytes) -> bytes:
    return gzip.compress(content.encode() if isinstance(content, str) else content)


# What NUMERIC(38,18) holds: less than 1e20, at most 18 fractional digits.
numbers = st.one_of(
    st.integers(0, 10**38 - 1).map(lambda n: Decimal(n).scaleb(-18, EXACT)),
    st.integers(0, 10**12).map(lambda n: Decimal(n).scaleb(-10, EXACT)),
    st.integers(0, 5 * 10**12).map(Decimal),
)
times_ms = st.integers(10**11, 4_102_444_800_000).filter(
    # Calendar times written as a number are read as such.
    lambda ms: not 197001010000 <= ms < 210001010000
)
tables = st.lists(
    st.tuples(times_ms, numbers, numbers, numbers, numbers, numbers), min_size=1, max_size=30
)


@st.composite
def spellings(draw: st.DrawFn, value: Decimal) -> str:
    """One of the many ways to write `value`."""
    kind = draw(st.sampled_from(("plain", "short", "scientific", "padded", "signed", "blank")))
    if kind == "short":
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") or "0" if "." in text else text
    if kind == "scientific":
        text = f"{value:E}"
        return draw(st.sampled_from((text, text.lower())))
    if kind == "padded":
        text = f"{value:f}"
        return "00" + (text if "." in text else text + ".") + "0" * draw(st.integers(0, 25))
    if kind == "signed":
        return f"+{value:f}"
    if kind == "blank":
        return f" {value:f}\t".rstrip("\t") + " "
    return f"{value:f}"


@st.composite
def time_spellings(draw: st.DrawFn, ms: int) -> str:
    """One of the many ways to write a time."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    whole = ms % 1_000 == 0
    kinds = ["ms", "us", "ns", "float", "iso", "offset", "zulu"] + (["s", "plain"] if whole else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "offset":
        hours = draw(st.integers(-12, 14))
        return moment.astimezone(timezone(timedelta(hours=hours))).isoformat()
    return {
        "ms": str(ms),
        "us": str(ms * 1_000),
        "ns": str(ms * 1_000_000),
        "s": str(ms // 1_000),
        "float": f"{ms}.0",
        "iso": moment.replace(tzinfo=None).isoformat(),
        "zulu": moment.replace(tzinfo=None).isoformat(" ") + "Z",
        "plain": moment.strftime("%Y-%m-%d %H:%M:%S"),
    }[kind]


def json_number(value: Decimal) -> str:
    """`value` as a JSON number, which has neither plus signs nor leading zeros."""
    return f"{value:f}"


def as_objects(rows: Sequence[Sequence[str]]) -> list[str]:
    """JSON objects whose numbers are spelled as given."""
    return [
        "{" + ",".join(f"{json.dumps(n)}:{v}" for n, v in zip(NAMES, row, strict=True)) + "}"
        for row in rows
    ]
