"""parquet and arrow, a batch at a time. The line of a row is its number, from 1; it has no byte offset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmkit.data.readers.base import MAX_ROWS, Bad, Chunk, Reading

_IN_MEMORY = 1 << 30
"""Bytes of a table that is compressed as a whole or a member of an archive: such a one can only be read from memory."""
_FIRST = 64
"""Rows read with all columns, to see which there are."""


def read_parquet(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk]:
    """Rows are tuples; after the first chunk only the columns in use are read. State: rows given."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = state["row"] if state else 0
    try:
        with pq.ParquetFile(_source(reading)) as table:
            first = 0
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                size = max(1, table.metadata.row_group(group).total_byte_size)
                rows = max(1, min(MAX_ROWS, reading.batch_bytes * count // size))
                while first <= row < first + count:
                    start = row
                    known = row > 0
                    names = table.schema_arrow.names
                    columns = [names[place] for place in _wanted(reading, names)]
                    batches = table.iter_batches(rows if known else _FIRST, row_groups=[group], columns=columns)
                    for batch in _from(batches, start - first):
                        row += batch.num_rows
                        yield _chunk(batch, row - batch.num_rows, {"row": row})
                        if not known:
                            break
                    if row == start:
                        break
                first += count
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name
        raise reading.fail(f"not a parquet file that can be read: {error}") from error


def read_arrow(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk]:
    """Arrow IPC: the file format, or the stream format (what `datasets` writes). Rows are tuples. State: rows given."""
    import pyarrow as pa

    done = state["row"] if state else 0
    row = 0
    try:
        for batch in _arrow_batches(reading):
            if row + batch.num_rows <= done:
                row += batch.num_rows
                continue
            rows = max(1, min(MAX_ROWS, reading.batch_bytes * batch.num_rows // max(1, batch.nbytes)))
            begin = max(0, done - row)
            row += begin
            for start in range(begin, batch.num_rows, rows):
                part = batch.slice(start, rows)
                part = part.select(_wanted(reading, part.schema.names))
                row += part.num_rows
                yield _chunk(part, row - part.num_rows, {"row": row})
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name
        raise reading.fail(f"not an Arrow file that can be read: {error}") from error


def _arrow_batches(reading: Reading) -> Iterator[Any]:
    import pyarrow as pa

    source = _source(reading)
    opened = pa.memory_map(source, "r") if isinstance(source, str) else source
    try:
        table = pa.ipc.open_file(opened)
    except pa.ArrowInvalid:
        opened.seek(0)
        yield from pa.ipc.open_stream(opened)
        return
    for index in range(table.num_record_batches):
        yield table.get_batch(index)


def _source(reading: Reading) -> Any:
    """The path, or the bytes of a file that must be decompressed first."""
    import pyarrow as pa

    if reading.file.member is None and reading.file.compression is None:
        return reading.file.path
    data = reading.open().read(_IN_MEMORY + 1)
    if len(data) > _IN_MEMORY:
        raise reading.fail(f"a table over {_IN_MEMORY} bytes cannot be read in compressed form; unpack it first")
    return pa.BufferReader(data)


def _wanted(reading: Reading, names: list[str]) -> list[int]:
    """Places of the columns in use; two may have the same name."""
    return [place for place, name in enumerate(names) if reading.wanted is None or name in reading.wanted]


def _from(batches: Any, start: int) -> Iterator[Any]:
    for batch in batches:
        if batch.num_rows <= start:
            start -= batch.num_rows
            continue
        yield batch.slice(start)
        start = 0


def _chunk(batch: Any, first: int, state: dict[str, Any]) -> Chunk:
    columns: list[list[Any]] = []
    broken: dict[int, str] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        _validate(column)
        try:
            columns.append(column.to_pylist())
        except UnicodeDecodeError:
            columns.append(_one_by_one(name, column, broken))
    chunk = Chunk([], [], [], [], state, list(batch.schema.names))
    if not broken:
        chunk.rows = list(zip(*columns, strict=True))
        chunk.lines = list(range(first + 1, first + 1 + len(chunk.rows)))
        chunk.offsets = [None] * len(chunk.rows)
        return chunk
    for index, row in enumerate(zip(*columns, strict=True)):
        if index in broken:
            bad: Bad = (first + index + 1, None, broken[index])
            chunk.bad.append(bad)
        else:
            chunk.rows.append(row)
            chunk.lines.append(first + index + 1)
            chunk.offsets.append(None)
    return chunk


def _validate(column: Any) -> None:
    """Raises ArrowInvalid where a damaged file's lengths or offsets point outside its data: reading on would crash.

    Text that is not UTF-8 is no such case; it is found row by row.
    """
    import pyarrow as pa

    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise
        column.view(pa.binary() if pa.types.is_string(column.type) else pa.large_binary()).validate(full=True)


def _one_by_one(name: str, column: Any, broken: dict[int, str]) -> list[Any]:
    values: list[Any] = []
    for index in range(len(column)):
        try:
            values.append(column[index].as_py())
        except UnicodeDecodeError:
            values.append(None)
            broken[index] = f"invalid UTF-8 in column {name!r}"
    return values
