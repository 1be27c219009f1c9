"""Trades as files: CSV in plain decimals, Parquet and Feather with exact decimals.

Written table by table, so that a range of any size fits in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from kurisu.domain.trade import ID_SPACE_KEY, IdSpace
from kurisu.errors import InvalidArgument
from kurisu.report.candle_export import Format, plain_text, write_lines
from kurisu.store.exact_table import with_floats
from kurisu.store.trade_table import SCHEMA, TradeTable

_SPECIAL: Final = r'[",\r\n]'


@contextmanager
def writer(
    format: Format,  # noqa: A002
    sink: BinaryIO,
    *,
    float64: bool = False,
    id_space: IdSpace | None = None,
) -> Iterator[Callable[[TradeTable], None]]:
    """A function that writes the next trades to `sink`; the file is whole when the block ends.

    float64: numbers as the nearest doubles, for programs that cannot take decimals; not for CSV,
    whose text is exact for everybody. id_space: what the ids are; it is said in the metadata of
    the file, where `kurisu trades import` finds it; CSV has no place for it. Raises
    InvalidArgument.
    """
    if format is Format.CSV:
        if float64:
            raise InvalidArgument("CSV is text and always exact; --float64 is for the others")
        sink.write(",".join(SCHEMA.names).encode() + b"\n")
        yield lambda trades: write_lines(trades.table, sink, _text)
        return
    schema = with_floats(SCHEMA.empty_table()).schema if float64 else SCHEMA
    if id_space is not None:
        schema = schema.with_metadata({ID_SPACE_KEY: id_space.value})
    with ExitStack() as stack:
        if format is Format.PARQUET:
            parquet = pyarrow.parquet.ParquetWriter(sink, schema, compression="zstd")
            write = stack.enter_context(parquet).write_table
        else:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            feather = pa.ipc.new_file(sink, schema, options=options)
            write = stack.enter_context(feather).write_table
        yield lambda trades: write(trades.to_arrow(float64=float64))


def _text(column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        return times_text(column)
    if pa.types.is_decimal(column.type):
        return plain_text(column)
    text = column.cast(pa.string()).fill_null("")
    special = pc.match_substring_regex(text, _SPECIAL)
    if not pc.any(special).as_py():
        return text
    doubled = pc.replace_substring(text, '"', '""')
    return pc.if_else(special, pc.binary_join_element_wise('"', doubled, '"', ""), text)


def times_text(column: pa.Array) -> pa.Array:
    """2024-10-27T00:00:02.368Z, of a timestamp column in UTC whose times are milliseconds."""
    naive = column.cast(pa.timestamp("us")).cast(pa.timestamp("ms")).cast(pa.string())
    return pc.binary_join_element_wise(pc.binary_replace_slice(naive, 10, 11, "T"), "Z", "")
