from __future__ import annotations

import gzip
import hashlib
import io
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from kurisu.errors import UnreadableFile
from kurisu.ingest.files import detect, read_candles

from .samples import contents, gz, lines, read, write, zipped

CSV = "\n".join(lines(50)) + "\n"
KLINES = "".join(
    f"{1_600_000_000_000 + 60_000 * i},1.0,2.0,0.5,1.5,10.25,{1_600_000_059_999 + 60_000 * i},"
    "12.5,3,1.0,1.5,0\n"
    for i in range(5)
)


def reason(directory: Path, content: str | bytes, name: str = "candles") -> str:
    path = write(directory, content, name)
    with pytest.raises(UnreadableFile) as caught:
        read_candles(path)
    assert caught.value.path == str(path)
    return caught.value.reason


@pytest.mark.parametrize(
    "name", ["a.feather", "a.parquet", "a.json", "a.zip", "a.gz", "a", "a.jpg"]
)
def test_the_name_does_not_matter(tmp_path: Path, name: str) -> None:
    plain, packed = read(tmp_path, CSV, name=name), read(tmp_path, gz(CSV), name=name)
    assert (plain.format, packed.format) == ("csv", "csv.gz")
    assert contents(plain) == contents(packed)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"   \n\n  ", "blanks"),
        (b"\x00\x01\x02\x03" * 100, "binary"),
        (bytes(range(256)) * 50, "binary"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\n<html>\n<head>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "web page"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x80\x04\x95\x00", "pickle"),
        (b"%PDF-1.4", "PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"PK\x05\x06" + b"\x00" * 18, "no data file"),
        (b"PK\x03\x04 and then nothing", "cut short or damaged"),
        (b"ARROW1\x00\x00", "cut short or damaged"),
        (b"PAR1 and nothing", "cut short or damaged"),
        (b"\xff\xff\xff\xff\x10\x00\x00\x00", "cut short or damaged"),
        (b"\x1f\x8b\x08\x00", "cut short or damaged"),
        (b"hello world\nthis is prose\n", "six columns"),
        (("ab" * 32 + "  BTCUSDT-1m-2021-01.zip\n").encode(), "checksum file"),
    ],
)  # fmt: skip
def test_what_is_no_data(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in reason(tmp_path, content)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no such file"):
        read_candles(tmp_path / "absent")
    with pytest.raises(UnreadableFile, match="directory"):
        read_candles(tmp_path)


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 100])
def test_a_gzip_that_was_cut(tmp_path: Path, cut: int) -> None:
    assert "cut short or damaged" in reason(tmp_path, gz(CSV)[:-cut])


def test_a_gzip_whose_sum_is_wrong(tmp_path: Path) -> None:
    content = bytearray(gz(CSV))
    content[-6] ^= 1
    assert "cut short or damaged" in reason(tmp_path, bytes(content))


def test_gzips_one_after_another_are_one_file(tmp_path: Path) -> None:
    rows = read(tmp_path, gz("\n".join(lines(3)) + "\n") + gz("\n".join(lines(3, 3)) + "\n"))
    assert contents(rows) == contents(read(tmp_path, "\n".join(lines(6)) + "\n"))


@pytest.mark.parametrize("cut", [1, 22, 100])
def test_a_zip_that_was_cut(tmp_path: Path, cut: int) -> None:
    assert "cut short or damaged" in reason(tmp_path, zipped(a__csv=CSV)[:-cut])


def test_a_zip_whose_member_is_damaged(tmp_path: Path) -> None:
    content = bytearray(zipped(a__csv=CSV))
    content[60] ^= 0xFF
    assert "a.csv in the zip" in reason(tmp_path, bytes(content))


def test_a_workbook_is_no_data(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/worksheets/sheet1.xml", "<worksheet/>")
    assert "save it as CSV" in reason(tmp_path, content.getvalue())


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFile, match="write it to a file first"):
        read_candles(tmp_path / "pipe")


def test_no_names_are_asked_for_that_cannot_be_given(tmp_path: Path) -> None:
    said = reason(tmp_path, '{"code": -1121, "msg": "Invalid symbol."}')
    assert "among 'code', 'msg'" in said
    assert "--columns" not in said


def test_zstandard(tmp_path: Path) -> None:
    packed = pa.compress(CSV.encode(), codec="zstd", asbytes=True)
    rows = read(tmp_path, packed)
    assert rows.format == "csv.zst"
    assert rows.rows_read == 50
    assert "Truncated" in reason(tmp_path, packed[:-5])


@pytest.mark.parametrize("header", [False, True])
def test_binance_zip_with_its_checksum_inside(tmp_path: Path, header: bool) -> None:
    names = (
        "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
        "taker_buy_quote_volume,ignore\n"
    )
    content = (names if header else "") + KLINES
    rows = read(tmp_path, zipped(x__csv=content, x__csv__CHECKSUM="ab" * 32 + "  x.csv\n"))
    assert rows.format == "Binance klines zip"
    assert rows.rows_read == rows.table.num_rows == 5
    assert rows.columns["time"] == ("open_time" if header else "column 1")


def test_binance_checksum_beside_the_zip(tmp_path: Path) -> None:
    content = zipped(x__csv=KLINES)
    beside = tmp_path / "x.zip.CHECKSUM"
    beside.write_text(f"{hashlib.sha256(content).hexdigest()}  x.zip\n")
    assert read(tmp_path, content, name="x.zip").rows_read == 5
    beside.write_text(f"{'0' * 64}  x.zip\n")
    assert "CHECKSUM" in reason(tmp_path, content, name="x.zip")


def test_members_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    parts = {"b__csv": "\n".join(lines(2, 2)), "a__csv": "\n".join(lines(2)), "c__csv": CSV}
    rows = read(tmp_path, zipped(**parts))
    whole = "\n".join(lines(4)) + "\n" + CSV
    assert contents(rows) == contents(read(tmp_path, whole))
    assert rows.format == "csv zip"


def test_other_packings_of_other_data(tmp_path: Path) -> None:
    data = "[[1600000000000,1,2,0.5,1.5,7]]"
    assert read(tmp_path, gz(data)).format == "freqtrade json.gz"
    assert read(tmp_path, zipped(a__json=data)).format == "freqtrade json zip"
    assert read(tmp_path, gz(zipped(a__csv=CSV))).format == "csv zip.gz"
    assert read(tmp_path, zipped(a__csv__gz=gz(CSV))).format == "csv.gz zip"
    assert read(tmp_path, gz(gz(CSV))).format == "csv.gz.gz"
    assert "layers" in reason(tmp_path, gz(gz(gz(gz(gz(CSV))))))


def test_a_member_that_is_no_candles_stops_the_file(tmp_path: Path) -> None:
    said = reason(tmp_path, zipped(a__csv=CSV, readme__txt="These are candles.\n"))
    assert said.startswith("readme.txt in the zip: ")


def test_a_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "RATIO_FREE_BYTES", 2**20)
    bomb = (lines(1)[0] + "\n") * 300_000
    for packed in (gz(bomb), zipped(a__csv=bomb), gz(gz(bomb))):
        assert "unpacks to more than" in reason(tmp_path, packed)


def test_a_file_beyond_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "MAX_UNPACKED_BYTES", 1_000)
    assert "1,000 bytes" in reason(tmp_path, gz(CSV))


def test_an_encrypted_zip(tmp_path: Path) -> None:
    content = bytearray(zipped(a__csv=CSV))
    at = content.rindex(b"PK\x01\x02")
    content[6] |= 1
    content[at + 8] |= 1
    assert "encrypted" in reason(tmp_path, bytes(content))


def test_a_dead_market_is_no_bomb() -> None:
    """The ratio's bound is far from what real candles reach."""
    flat = "".join(f"{1_600_000_000_000 + 60_000 * i},1,1,1,1,0\n" for i in range(50_000))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("a.csv", flat)
    smallest = min(len(buffer.getvalue()), len(gzip.compress(flat.encode(), 9)))
    assert len(flat) / smallest < detect.MAX_UNPACK_RATIO / 5
