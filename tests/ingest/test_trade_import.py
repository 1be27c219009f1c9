"""Files of trades: what is stored is what the file says, digit for digit, once."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import random
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from exchange_server.data import DATA
from rows import fetch

from kurisu.domain.faults import Rule
from kurisu.domain.market import MarketName
from kurisu.domain.trade import IdSpace, Trade
from kurisu.errors import IdSpaceConflict, InvalidArgument, UnreadableFile, WriteRefused
from kurisu.ingest import trade_import
from kurisu.ingest.trade_import import Complete, TradeImportReport, import_trades
from kurisu.store import trade_coverage
from kurisu.store.store import Store

BTC: Final = MarketName.of("binance", "BTC/USDT")
KRAKEN: Final = MarketName.of("kraken", "XRP/USDT")
START: Final = datetime(2024, 3, 5, tzinfo=UTC)
START_MS: Final = int(START.timestamp()) * 1_000


@pytest.fixture(params=["plain"])
def tier(request: pytest.FixtureRequest) -> str:
    """Nothing of this depends on the engine; the store's own tests run on all."""
    return str(request.param)


@contextlib.contextmanager
def quietly(_: str) -> Iterator[None]:
    yield


async def load(store: Store, path: Path, name: MarketName = BTC, **more: Any) -> TradeImportReport:
    report = await import_trades(store, path, name, working=quietly, **more)
    assert report.read == sum(report.counts.values()) - report.read
    return report


async def stored(store: Store, name: MarketName = BTC) -> list[tuple[Any, ...]]:
    """(ms since START, id, side, price, amount) by time and id."""
    market = await store.markets.get(name.exchange, name.symbol)
    return [
        ((t.time - START) // timedelta(milliseconds=1), t.trade_id, t.side, t.price, t.amount)
        for t in await store.trades.read(market)
    ]


Row = tuple[int, str, str, Decimal, Decimal]


def made(count: int = 500, seed: int = 3) -> list[Row]:
    rng = random.Random(seed)
    rows, ms = [], 0
    for number in range(1, count + 1):
        ms += rng.choice((0, 0, 3, 800))
        price = Decimal(rng.randrange(1, 10**9)).scaleb(-8)
        amount = Decimal(rng.randrange(1, 10**12)).scaleb(-8)
        rows.append((ms, str(number), rng.choice(("buy", "sell")), price, amount))
    return rows


ROWS: Final = made()


def text(rows: Sequence[Sequence[Any]], header: str = "") -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return (header + out.getvalue()).encode()


def zipped(content: bytes, name: str = "BTCUSDT-aggTrades-2024-03-05.csv") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def agg_trades(rows: Sequence[Row], true: str, per_ms: int = 1, *, best: bool = True) -> Any:
    false = {"True": "False", "true": "false"}[true]
    return [
        (i, p, q, i, i, (START_MS + ms) * per_ms, true if side == "sell" else false,
         *([true] if best else []))
        for ms, i, side, p, q in rows
    ]  # fmt: skip


def trades(rows: Sequence[Row], true: str, *, best: bool = True) -> Any:
    false = {"True": "False", "true": "false"}[true]
    return [
        (i, p, q, p * q, START_MS + ms, true if side == "sell" else false,
         *([true] if best else []))
        for ms, i, side, p, q in rows
    ]  # fmt: skip


AGG_HEADER: Final = (
    "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
)
TRADES_HEADER: Final = "id,price,qty,quote_qty,time,is_buyer_maker\n"


def freqtrade(rows: Sequence[Row]) -> list[list[Any]]:
    return [
        [START_MS + ms, i, "limit", side, str(p), str(q), str(p * q)] for ms, i, side, p, q in rows
    ]


def as_feather(rows: Sequence[Row]) -> bytes:
    """Text where freqtrade has floats, so that no digit is lost before the test begins."""
    columns = list(zip(*freqtrade(rows), strict=True))
    names = ["timestamp", "id", "type", "side", "price", "amount", "cost"]
    out = io.BytesIO()
    table = pa.table({n: pa.array(c) for n, c in zip(names, columns, strict=True)})
    pyarrow.feather.write_feather(table, out, compression="lz4")
    return out.getvalue()


def as_json(rows: Any) -> bytes:
    return json.dumps(rows, default=str).encode()


def unified(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {"info": {"a": int(i)}, "timestamp": START_MS + ms, "symbol": "BTC/USDT", "id": i,
         "order": None, "type": None, "takerOrMaker": None, "side": side, "price": str(p),
         "amount": str(q), "cost": None, "fee": None}
        for ms, i, side, p, q in rows
    ]  # fmt: skip


def iso(rows: Sequence[Row]) -> Any:
    return [
        ((START + timedelta(milliseconds=ms)).isoformat().replace("+00:00", "Z"), i, side.upper(),
         p, q)
        for ms, i, side, p, q in rows
    ]  # fmt: skip


FILES: Final[dict[str, tuple[bytes, str, str | None]]] = {
    # content, format, id space where it has to be said
    "agg": (zipped(text(agg_trades(ROWS, "True"))), "Binance aggTrades zip", None),
    "agg header us": (
        zipped(text(agg_trades(ROWS, "true", 1_000, best=False), AGG_HEADER)),
        "Binance aggTrades zip", None,
    ),
    "agg futures": (text(agg_trades(ROWS, "true", best=False)), "Binance aggTrades csv", None),
    "trades": (zipped(text(trades(ROWS, "True"))), "Binance trades zip", None),
    "trades header": (text(trades(ROWS, "true", best=False), TRADES_HEADER),
                      "Binance trades csv", None),
    "freqtrade json": (gzip.compress(as_json(freqtrade(ROWS))), "freqtrade json.gz", None),
    "freqtrade feather": (as_feather(ROWS), "freqtrade feather", None),
    "unified": (as_json(unified(ROWS)), "json", "aggregate"),
    "csv": (text(iso(ROWS), "Time,Trade ID,Side,Price,Size\n"), "csv", "raw"),
    "json lines": (b"\n".join(as_json(row) for row in unified(ROWS)), "json lines", "raw"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
async def test_every_format_says_the_same(store: Store, tmp_path: Path, kind: str) -> None:
    content, name, space = FILES[kind]
    path = tmp_path / "x.dat"
    path.write_bytes(content)
    more: dict[str, Any] = {} if space is None else {"id_space": IdSpace(space)}
    report = await load(store, path, **more)
    assert (report.format, report.inserted) == (name, len(ROWS))
    assert await stored(store) == ROWS
    assert report.id_space == (
        IdSpace(space) if space else IdSpace.RAW if "trades" in kind[:6] else IdSpace.AGGREGATE
    )
    again = await load(store, path, **more)
    assert (again.inserted, again.unchanged, again.coverage) == (0, len(ROWS), [])


async def test_what_ids_cannot_be_known_is_asked_for(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(FILES["csv"][0])
    with pytest.raises(InvalidArgument, match="--id-space raw or --id-space aggregate"):
        await load(store, path)
    # At exchanges that have but one kind nothing has to be said.
    assert (await load(store, path, KRAKEN)).id_space is IdSpace.RAW
    path.write_bytes(FILES["agg"][0])
    with pytest.raises(IdSpaceConflict):
        await load(store, path, KRAKEN)


async def test_rows_that_are_no_trades_are_listed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x"
    rows = [list(row) for row in agg_trades(ROWS[:20], "True")]
    rows[1][1] = "x"
    rows[2][6] = "maybe"
    rows[3][0] = ""
    rows[4][2] = "-1"
    rows[5][5] = "0"
    rows[6] = rows[6][:3]
    path.write_bytes(text(rows))
    report = await load(store, path)
    assert [(r.row, r.rule, r.field) for r in report.rejects] == [
        (2, Rule.NUMBER_NOT_READABLE, "price"),
        (3, Rule.SIDE_NOT_READABLE, "maker"),
        (4, Rule.MISSING_VALUE, "trade_id"),
        (5, Rule.NEGATIVE_AMOUNT, "amount"),
        (6, Rule.TIME_NOT_READABLE, "time"),
        (7, Rule.ROW_TRUNCATED, None),
    ]
    assert (report.inserted, report.coverage) == (14, [])


async def test_a_stored_trade_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(FILES["agg"][0])
    await load(store, path)
    changed = [row if row[1] != "7" else (*row[:4], Decimal(1)) for row in ROWS]
    path.write_bytes(zipped(text(agg_trades(changed, "True"))))
    report = await load(store, path)
    assert [(c.row, c.trade_id) for c in report.conflicts] == [(7, "7")]
    assert await stored(store) == ROWS


class TestSizes:
    """Files that do not fit in memory go slice by slice, in one transaction."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trade_import, "SLICE_ROWS", 40)
        monkeypatch.setattr("kurisu.ingest.files.json_rows.BLOCK_BYTES", 1_000)
        monkeypatch.setattr("kurisu.ingest.files.lines.BLOCK_BYTES", 1_000)

    @pytest.mark.parametrize("kind", ["agg", "freqtrade json"])
    async def test_slices(self, store: Store, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "x"
        path.write_bytes(FILES[kind][0])
        assert (await load(store, path)).inserted == len(ROWS)
        assert await stored(store) == ROWS

    @pytest.mark.parametrize("order", ["by time", "newest first", "any"])
    async def test_without_ids_no_millisecond_is_divided(
        self, store: Store, tmp_path: Path, order: str
    ) -> None:
        # Many of one millisecond, many alike.
        rows = [(at // 9, "", "buy", Decimal(1 + at % 2), Decimal(2)) for at in range(400)]
        given: list[Any] = list(rows)
        if order == "newest first":
            given.reverse()
        elif order == "any":
            random.Random(4).shuffle(given)
        path = tmp_path / "x"
        # In microseconds, which are cut.
        lines = [
            [row[0] * 1_000 + at % 1_000, None, *row[2:]] for at, row in enumerate(freqtrade(given))
        ]
        path.write_bytes(as_json(lines))
        report = await load(store, path, KRAKEN)
        assert (report.inserted, report.id_space) == (400, IdSpace.DERIVED)
        found = await stored(store, KRAKEN)
        assert sorted((ms, p) for ms, _, _, p, _ in found) == sorted((r[0], r[3]) for r in rows)
        again = await load(store, path, KRAKEN)
        assert (again.inserted, again.unchanged) == (0, 400)

    async def test_nothing_is_stored_of_a_file_that_fails_at_its_end(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "x"
        content = gzip.compress(text(agg_trades(ROWS, "True")))
        path.write_bytes(content[:-30])
        with pytest.raises(UnreadableFile, match="cut short"):
            await load(store, path)

        async def fails(*_: Any) -> None:
            raise WriteRefused("broken")

        path.write_bytes(content)
        monkeypatch.setattr(trade_coverage, "state", fails)
        with pytest.raises(WriteRefused):
            await load(store, path)
        assert await fetch(store, "SELECT 1 FROM trades") == []
        assert await store.markets.list() == []


class TestCoverage:
    """What a file proves to be complete."""

    async def covered(self, store: Store, name: MarketName = BTC) -> list[tuple[Any, Any]]:
        market = await store.markets.get(name.exchange, name.symbol)
        ms = timedelta(milliseconds=1)
        return [
            ((s.since - START) / ms, (s.until - START) / ms)
            for s in await store.trades.coverage(market)
        ]

    async def test_consecutive_ids_prove_it(self, store: Store, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(text(agg_trades([*ROWS[:200], *ROWS[250:]], "True")))
        report = await load(store, path)
        # Of the outermost milliseconds there may be more.
        ends = [(ROWS[0][0] + 1, ROWS[199][0]), (ROWS[250][0] + 1, ROWS[-1][0])]
        assert await self.covered(store) == ends
        assert len(report.coverage) == 2
        # What was missing joins them.
        path.write_bytes(text(agg_trades(ROWS[200:250], "True")))
        await load(store, path)
        assert await self.covered(store) == [(ends[0][0], ends[1][1])]

    async def test_binances_files_are_of_whole_days(self, store: Store, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(FILES["agg"][0])
        await load(store, path)
        assert await self.covered(store) == [(0, 86_400_000)]

    async def test_what_the_user_says(self, store: Store, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(as_json([[*row[:1], None, *row[2:]] for row in freqtrade(ROWS)]))
        await load(store, path, KRAKEN)
        assert await self.covered(store, KRAKEN) == []
        await load(store, path, KRAKEN, complete=Complete())
        assert await self.covered(store, KRAKEN) == [(ROWS[0][0], ROWS[-1][0])]
        whole = Complete(START - timedelta(hours=1), START + timedelta(hours=1))
        await load(store, path, KRAKEN, complete=whole)
        assert await self.covered(store, KRAKEN) == [(-3_600_000, 3_600_000)]


async def test_contracts_whose_size_is_not_known(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(FILES["agg futures"][0])
    with pytest.raises(InvalidArgument, match="kurisu markets sync binance"):
        await load(store, path, MarketName.of("binance", "BTC/USDT:USDT"))
    assert await store.markets.list() == []


async def test_times_that_are_finer_than_a_millisecond(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x"
    seconds = START_MS // 1_000
    rows = [
        (f"{seconds}.1234567", 1), (f"{seconds * 10**9 + 123_999_999}", 2),
        ("2024-03-05T00:00:00.123999999Z", 3), (f"{seconds}.5", 4), (f"{START_MS}.75", 5),
    ]  # fmt: skip
    path.write_bytes(text([(t, i, "b", 1, 1) for t, i in rows], "timestamp,id,side,price,qty\n"))
    await load(store, path, KRAKEN)
    assert [row[:2] for row in await stored(store, KRAKEN)] == [
        (0, "5"), (123, "1"), (123, "2"), (123, "3"), (500, "4"),
    ]  # fmt: skip


def real(name: str) -> Path:
    path = DATA / "trades" / name
    if not path.is_file():
        pytest.skip("../shared/data is not there")
    return path


class TestRealFiles:
    async def test_binance_aggregate_trades(self, store: Store) -> None:
        name = MarketName.of("binance", "PEPE/USDT")
        path = real("binance_spot_PEPEUSDT-aggTrades-2024-10-27.zip")
        report = await load(store, path, name)
        assert (report.read, report.inserted, report.id_space) == (57_229, 57_229, "aggregate")
        day = datetime(2024, 10, 27, tzinfo=UTC)
        assert [(s.since, s.until) for s in report.coverage] == [(day, day + timedelta(days=1))]
        with zipfile.ZipFile(path) as archive:
            lines = archive.read(archive.namelist()[0]).decode().splitlines()
        market = await store.markets.get(name.exchange, name.symbol)
        found = [
            (t.trade_id, t.price, t.amount, int(t.time.timestamp() * 1_000), t.side == "sell")
            for t in await store.trades.read(market)
        ]
        assert found == [
            (i, Decimal(p), Decimal(q), int(ms), maker == "True")
            for i, p, q, _, _, ms, maker, _ in (line.split(",") for line in lines)
        ]

    async def test_freqtrade_feather_and_json_of_the_same_trades(self, store: Store) -> None:
        name = MarketName.of("binance", "XRP/ETH")
        first = await load(store, real("binance_XRP_ETH-trades.feather"), name)
        assert (first.inserted, first.id_space) == (12_477, "aggregate")
        other = real("binance_XRP_ETH-trades-raw+unified.json.gz")
        again = await load(store, other, name, id_space=IdSpace.AGGREGATE)
        assert (again.inserted, again.unchanged) == (0, 12_477)
        market = await store.markets.get(name.exchange, name.symbol)
        rows = json.loads(gzip.decompress(other.read_bytes()))
        found: list[Trade] = list(await store.trades.read(market))
        assert [(t.trade_id, t.price, t.amount) for t in found] == [
            (row["id"], Decimal(row["info"]["p"]), Decimal(row["info"]["q"])) for row in rows
        ]

    async def test_kraken_trades_without_ids(self, store: Store) -> None:
        path = real("kraken_XRP_USDT-trades.json.gz")
        report = await load(store, path, KRAKEN)
        assert (report.inserted, report.id_space) == (17_574, IdSpace.DERIVED)
        assert (await load(store, path, KRAKEN)).unchanged == 17_574
        rows = json.loads(gzip.decompress(path.read_bytes()), parse_float=Decimal)
        market = await store.markets.get(KRAKEN.exchange, KRAKEN.symbol)
        found = await store.trades.read(market)
        assert sorted((t.time.timestamp() * 1_000, t.side, t.price, t.amount) for t in found) == (
            sorted((float(row[0]), row[3], row[4], row[5]) for row in rows)
        )
