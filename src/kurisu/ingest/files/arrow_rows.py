"""Arrow IPC (feather), Parquet and Feather V1: typed columns, read batch by batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather
import pyarrow.parquet

from kurisu.domain.trade import ID_SPACE_KEY
from kurisu.ingest.files.columns import Layout
from kurisu.ingest.files.detect import CannotRead, Kind, Source
from kurisu.ingest.files.shape import RowTaker, Shape

#: Rows that are converted at once.
BATCH_ROWS: Final = 2**18


def read_arrow(
    source: Source,
    kind: Kind,
    columns: Sequence[str] | None,
    collector: RowTaker,
    shape: Shape,
) -> Layout:
    """Adds all rows of a columnar file. Raises CannotRead."""
    with _damage_as_cannot_read():
        content = (
            pa.OSFile(str(source.path))
            if source.path is not None
            else pa.BufferReader(source.read_all())
        )
        schema, batches = _OPEN[kind](content)
        # Damaged names fail here, as what they are.
        _ = schema.names
    layout: Layout | None = None
    for batch in _checked(batches):
        for at in range(0, batch.num_rows, BATCH_ROWS):
            part = batch.slice(at, BATCH_ROWS)
            layout = layout or _layout(schema, columns, part, shape)
            _add(part, layout, collector)
    layout = layout or _layout(schema, columns, None, shape)
    return replace(layout, id_space=(schema.metadata or {}).get(ID_SPACE_KEY, b"").decode("latin1"))


@contextmanager
def _damage_as_cannot_read() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        text = str(error).split("\n")[0][:300]
        raise CannotRead(f"it is cut short or damaged ({text}): fetch the file again") from error


def _checked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches after a full check: damaged offsets would be read out of bounds."""
    while True:
        with _damage_as_cannot_read():
            batch = next(batches, None)
            if batch is not None:
                batch.validate(full=True)
        if batch is None:
            return
        yield batch


def _open_file(content: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    reader = pa.ipc.open_file(content)
    return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))


def _open_stream(content: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    reader = pa.ipc.open_stream(content)
    return reader.schema, iter(reader)


def _open_feather_v1(content: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    with warnings.catch_warnings():
        # Reading old files is what we are here for; Arrow 25 deprecates it.
        warnings.simplefilter("ignore", DeprecationWarning)
        table = pa.feather.read_table(content)
    return table.schema, iter(table.to_batches())


def _open_parquet(content: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    reader = pa.parquet.ParquetFile(content)
    return reader.schema_arrow, reader.iter_batches(batch_size=BATCH_ROWS)


_OPEN: Final = {
    Kind.ARROW_FILE: _open_file,
    Kind.ARROW_STREAM: _open_stream,
    Kind.FEATHER_V1: _open_feather_v1,
    Kind.PARQUET: _open_parquet,
}


def _layout(
    schema: pa.Schema,
    columns: Sequence[str] | None,
    batch: pa.RecordBatch | None,
    shape: Shape,
) -> Layout:
    if len(schema) == 0:
        raise CannotRead("the table has no columns")
    if columns is not None:
        layout = shape.from_option(columns, len(schema))
        names = {name: schema.names[at] for name, at in layout.fields.items()}
        layout = replace(layout, sources=names, names=tuple(schema.names))
    else:
        layout = shape.from_names(schema.names, [] if batch is None else _first_row(batch))
    for name, at in layout.fields.items():
        if not shape.is_usable(schema.field(at).type, name):
            raise CannotRead(
                f"column {schema.names[at]!r} has the type {schema.field(at).type}, from which "
                f"{'a time' if name == 'time' else 'a value'} cannot be read exactly"
            )
    return layout


def _first_row(batch: pa.RecordBatch) -> list[str | None]:
    """The texts of the first row; None for what is no text."""
    row: list[str | None] = []
    for column in batch.columns:
        plain = _plain(column.slice(0, 1))
        is_text = pa.types.is_string(plain.type) or pa.types.is_large_string(plain.type)
        row.append(plain[0].as_py() if is_text else None)
    return row


def _plain(column: pa.Array) -> pa.Array:
    """`column` without dictionary or run-end encoding."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    return column


def _add(batch: pa.RecordBatch, layout: Layout, collector: RowTaker) -> None:
    first = collector.claim(batch.num_rows)
    cells: Mapping[str, pa.Array] = {
        name: _plain(batch.column(at)) for name, at in {**layout.fields, **layout.same}.items()
    }
    rows = np.arange(first, first + batch.num_rows, dtype=np.int64)
    collector.add(rows, cells, layout)
