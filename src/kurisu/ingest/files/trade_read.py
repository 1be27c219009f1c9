"""Reads a file of public trades of any known format: `read_trades`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pyarrow as pa

from kurisu.domain.faults import Reject
from kurisu.ingest.files.detect import Source, kind_of
from kurisu.ingest.files.read import Part, read_members, read_rows
from kurisu.ingest.files.trade_rows import TradeCollector
from kurisu.ingest.files.trade_shape import AGG_TRADES, BINANCE_TRADES, TRADES

BINANCE: Final = (AGG_TRADES, BINANCE_TRADES)
Period = tuple[datetime, datetime]
# PEPEUSDT-aggTrades-2024-10-27.csv: the name that Binance gives to what is inside of its zips.
_NAMED: Final = re.compile(r".*-(?:aggTrades|trades)-(\d{4})-(\d{2})(?:-(\d{2}))?\.csv")


def _period(member: str) -> Period | None:
    """[since, until) of the day or month that the name says."""
    named = _NAMED.fullmatch(member)
    if named is None:
        return None
    try:
        since = datetime(int(named[1]), int(named[2]), int(named[3] or 1), tzinfo=UTC)
    except ValueError:
        return None
    later = since + (timedelta(days=1) if named[3] else timedelta(days=31))
    return since, later if named[3] else later.replace(day=1)


@dataclass(frozen=True, slots=True)
class TradeFile:
    """What a file says of itself, once its rows have been handed on.

    format: e.g. "freqtrade json.gz", "Binance aggTrades zip". label: whose layout it is; "" if
        nobody's. columns: time, price, amount, .. -> how the file names that column; "column 3"
        where it has no names.
    rows_read: data rows in the file, those that were handed on and the rejects.
    periods: the days or months that Binance's public files are of, each with all its trades; empty
        for other files.
    id_space: what its ids are, where it says so: a Parquet or Feather file of ours; else "".
    notes: what the user should know though nothing is wrong.
    """

    format: str
    label: str
    columns: Mapping[str, str]
    rows_read: int
    rejects: list[Reject]
    periods: list[Period]
    id_space: str = ""
    notes: tuple[str, ...] = ()


def read_trades(
    path: Path, sink: Callable[[pa.RecordBatch], None], *, columns: Sequence[str] | None = None
) -> TradeFile:
    """Reads `path`, whose format is found by content, and hands its trades to `sink`.

    sink: gets batches of `trade_rows.SCHEMA`, in the order of the file: row numbers from 1, times
        in whole milliseconds, numbers digit for digit as in the file (of a float its shortest
        repr). No more than some batches are in memory.
    columns: the meaning of each column in order: ts, id, side (or is_buyer_maker), price, amount,
        and _ for one to skip; it overrules the file's own names.

    Raises UnreadableFile, whose reason says what to do, if the file cannot be read at all.
    """
    collector = TradeCollector(sink)
    parts: list[Part] = []

    periods: list[Period | None] = []

    def read_part(data: Source, packing: str, member: str) -> None:
        layout, name, note = read_rows(data, kind_of(data), columns, collector, TRADES)
        label = "" if layout is None else layout.label
        if label in BINANCE and packing == " zip":
            # Binance's own name for it; that a CSV is inside goes without saying.
            name = ""
        periods.append(_period(member) if label in BINANCE else None)
        parts.append(Part(f"{label} {name}".strip() + packing, layout, note))

    read_members(Path(path), read_part)
    named = next((part.layout for part in parts if part.layout is not None), None)
    return TradeFile(
        format=parts[0].format,
        label="" if named is None else named.label,
        columns={} if named is None else dict(named.sources),
        rows_read=collector.rows_read,
        rejects=collector.rejects(),
        periods=[p for p in periods if p is not None] if all(periods) else [],
        id_space="" if named is None else named.id_space,
        notes=tuple(dict.fromkeys(part.note for part in parts if part.note)),
    )
