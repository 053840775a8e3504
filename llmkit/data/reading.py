"""Files of a source to batches of records by role, each batch saying where the next one starts.

The formats are in `readers/`, a file each and a row in `READERS`. `read` binds columns to roles, takes the values out,
and honours `limit` and `explode`. `read_lazily` leaves out what a worker process can do as well: parsing lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llmkit.data import roles as role_tools
from llmkit.data.readers.base import Bad, Chunk, Reading, SourceFile
from llmkit.data.readers.conll import read_conll
from llmkit.data.readers.delimited import read_delimited
from llmkit.data.readers.html import read_html
from llmkit.data.readers.hub import read_hub
from llmkit.data.readers.jsondoc import read_json, read_squad
from llmkit.data.readers.jsonl import read_jsonl
from llmkit.data.readers.lines import Unparsed, ascii_compatible
from llmkit.data.readers.mediawiki import read_mediawiki
from llmkit.data.readers.stdlib import read_stdlib
from llmkit.data.readers.streams import Archives
from llmkit.data.readers.tables import read_arrow, read_parquet
from llmkit.data.readers.text import read_parallel, read_text
from llmkit.data.readers.warc import read_warc
from llmkit.data.records import RecordBatch, Reject
from llmkit.data.rolespecs import RoleSpec
from llmkit.data.sources import PATH, ResolvedSource, directory_of
from llmkit.errors import DataError

BATCH_BYTES = 2_000_000
"""Bytes of a batch: what each costs beside its bytes is spread, and it stays near the processor."""

READERS: dict[str, Callable[[Reading, dict[str, Any] | None], Iterator[Chunk | Unparsed]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_delimited,
    "tsv": read_delimited,
    "txt": read_text,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "conll": read_conll,
    "squad": read_squad,
    "parallel": read_parallel,
    "html": read_html,
    "warc": read_warc,
    "mediawiki": read_mediawiki,
    "hub": read_hub,
    "stdlib": read_stdlib,
}


@dataclass(slots=True)
class Unread:
    """A batch whose rows are still bytes; `read_batch` makes the records, in any process. `file` is its place in the
    source's files; `binding` and `resume` are plain JSON."""

    source: int
    file: int
    binding: dict[str, Any]
    rows: Unparsed
    resume: dict[str, Any]


class Account:
    """What has been read of one source: cuts at its `limit`, and completes each batch's `resume`."""

    def __init__(self, source: ResolvedSource, resume: dict[str, Any] | None):
        place = resume or {"rows": 0, "rejected": 0, "first": None}
        self.source = source
        self.counts = {"rows": place["rows"], "rejected": place["rejected"]}
        self.first: str | None = place["first"]

    def add(self, batch: RecordBatch) -> bool:
        """Counts the next batch in order; whether the limit is reached."""
        self.counts["rows"] += len(batch)
        self.counts["rejected"] += len(batch.rejects)
        if self.first is None and batch.rejects:
            one = batch.rejects[0]
            place = ":".join(str(part) for part in (one.file, one.line) if part is not None)
            self.first = f"{place}: {one.reason}"
        full = self._cut(batch)
        batch.resume = {**batch.resume, **self.counts, "first": self.first}
        if full:
            batch.resume |= {"file": len(self.source.files), "state": None}
        return full

    def _cut(self, batch: RecordBatch) -> bool:
        """Shortens the batch to what `limit` leaves; whether that is reached. It counts usable records."""
        limit = self.source.section.limit
        if limit is None or self.counts["rows"] < limit:
            return False
        keep = len(batch) - (self.counts["rows"] - limit)
        self.counts["rows"] = limit
        batch.columns = {role: values[:keep] for role, values in batch.columns.items()}
        batch.lines, batch.offsets = batch.lines[:keep], batch.offsets[:keep]
        return True

    def close(self) -> None:
        """After the last batch. Raises DataError where no record at all could be used."""
        if self.counts["rows"] == 0:
            rejected = self.counts["rejected"]
            what = f"; {rejected} were rejected, the first {self.first}" if self.first else ": there are no rows"
            raise DataError(f"no usable record in source {self.source.id!r}{what}", file=self.source.files[0].label)


def read(
    source: ResolvedSource, roles: RoleSpec, *, resume: dict[str, Any] | None = None, batch_bytes: int | None = None
) -> Iterator[RecordBatch]:
    """The source's records, a batch of about `batch_bytes` of one file at a time.

    `resume` is the `resume` of the last batch used. Records that cannot be used are in the batches' `rejects`; raises
    DataError for what concerns a whole file, for columns that are not there, and where no record at all can be used.
    """
    account = Account(source, resume)
    for lazy in read_lazily(source, roles, resume=resume, batch_bytes=batch_bytes):
        batch = read_batch(source, roles, lazy) if isinstance(lazy, Unread) else lazy
        if not batch.lines and not batch.rejects:
            continue  # blank lines alone
        full = account.add(batch)
        yield batch
        if full:
            return
    account.close()


def read_lazily(
    source: ResolvedSource, roles: RoleSpec, *, resume: dict[str, Any] | None = None, batch_bytes: int | None = None
) -> Iterator[RecordBatch | Unread]:
    """The batches of `read` before an `Account` has taken note of them; those of lines may still be bytes."""
    place = resume or {"file": 0, "state": None, "binding": None}
    archives = Archives()
    try:
        for number in range(place["file"], len(source.files)):
            here = number == place["file"]
            state = place["state"] if here else None
            if state is not None and state.get("done"):
                continue
            reading = Reading(source.files[number], source.section, roles, batch_bytes or BATCH_BYTES, archives)
            try:
                yield from _read_file(source, number, reading, state, place["binding"] if here else None)
            finally:
                reading.close()
    finally:
        archives.close()


def read_batch(source: ResolvedSource, roles: RoleSpec, lazy: Unread) -> RecordBatch:
    """The records of a batch that was left as bytes."""
    reading = Reading(source.files[lazy.file], source.section, roles, 0, Archives())
    batch = _batch_of(source, reading, role_tools.from_json(lazy.binding), _shaped(reading, lazy.rows.parse()))
    batch.resume = lazy.resume
    return batch


def _read_file(
    source: ResolvedSource, number: int, reading: Reading, state: dict[str, Any] | None, bound: dict[str, Any] | None
) -> Iterator[RecordBatch | Unread]:
    binding = role_tools.from_json(bound) if bound is not None else None
    if binding is not None:
        reading.wanted = _wanted(reading, binding)
    for rows in READERS[reading.file.format](reading, state):
        resume = {"file": number, "state": rows.state, "binding": bound}
        if bound is not None and isinstance(rows, Unparsed):
            yield Unread(source.index, number, bound, rows, resume)
            continue
        chunk = _shaped(reading, rows.parse() if isinstance(rows, Unparsed) else rows)
        if chunk.rows and binding is None:
            binding = role_tools.bind(reading, chunk)
            reading.wanted = _wanted(reading, binding)
            bound = resume["binding"] = role_tools.to_json(binding)
        batch = _batch_of(source, reading, binding, chunk)
        batch.resume = resume
        if batch.lines or batch.rejects:
            yield batch


def _shaped(reading: Reading, chunk: Chunk) -> Chunk:
    """The chunk with the rows and columns that the recipe's entry makes of it."""
    if reading.section.explode is not None:
        _explode(reading.section.explode, chunk)
    if (reading.section.columns or {}).get("label") == PATH:
        _add_path(reading.file, chunk)
    return chunk


def _batch_of(
    source: ResolvedSource, reading: Reading, binding: role_tools.Binding | None, chunk: Chunk
) -> RecordBatch:
    columns: dict[str, list[Any]] = {name: [] for name in reading.roles.made}
    if chunk.rows and binding is not None:
        columns, bad = role_tools.extract(reading, binding, chunk)
        if bad:
            _drop(chunk, columns, bad)
    if not ascii_compatible(reading.section.encoding):
        _forget_offsets(chunk)
    label = reading.file.label
    rejects = [Reject(source.id, label, line, offset, reason) for line, offset, reason in chunk.bad]
    return RecordBatch(source.index, label, columns, chunk.lines, chunk.offsets, rejects)


def _forget_offsets(chunk: Chunk) -> None:
    """What was transcoded on the way has no byte offsets in the file."""
    chunk.offsets = [None] * len(chunk.offsets)
    chunk.bad = [(line, None, reason) for line, _, reason in chunk.bad]


def _wanted(reading: Reading, binding: role_tools.Binding) -> set[str] | None:
    """Top-level columns in use; None where positions are, which count all columns."""
    names = [name for column in binding.values() for name in column.columns]
    if any(isinstance(name, int) for name in names) or reading.section.explode is not None:
        return None
    return {str(name) for name in names} | {str(name).partition(".")[0] for name in names}


def _drop(chunk: Chunk, columns: dict[str, list[Any]], bad: dict[int, str]) -> None:
    """Moves the rows that cannot be used to the chunk's bad records, in their order."""
    keep = [index for index in range(len(chunk.rows)) if index not in bad]
    chunk.bad += [(chunk.lines[index], chunk.offsets[index], bad[index]) for index in sorted(bad)]
    chunk.bad.sort(key=_order)
    for role, values in columns.items():
        columns[role] = [values[index] for index in keep]
    chunk.rows = keep
    chunk.lines = [chunk.lines[index] for index in keep]
    chunk.offsets = [chunk.offsets[index] for index in keep]


def _order(bad: Bad) -> tuple[int, int]:
    return bad[0] or 0, bad[1] or 0


def _explode(column: str, chunk: Chunk) -> None:
    """A row for each item of a list column; keys of an item that is an object can be named directly."""
    rows: list[Any] = []
    lines: list[int | None] = []
    offsets: list[int | None] = []
    for row, line, offset in zip(chunk.rows, chunk.lines, chunk.offsets, strict=True):
        if not isinstance(row, dict):
            row = dict(zip(chunk.names or [], row, strict=True))
        items = role_tools.value(row, column, None)
        if not isinstance(items, list):
            chunk.bad.append((line, offset, f"column {column!r} (explode) is not a list"))
            continue
        for item in items:
            inner = item if isinstance(item, dict) else {}
            rows.append({**inner, **row, column: item})
            lines.append(line)
            offsets.append(offset)
    chunk.rows, chunk.lines, chunk.offsets, chunk.names = rows, lines, offsets, None


def _add_path(file: SourceFile, chunk: Chunk) -> None:
    """Gives every row the name of its file's directory as the column `path`, unless it has such a column."""
    name = directory_of(file)
    if chunk.names is not None and PATH not in chunk.names:
        chunk.names = [*chunk.names, PATH]
        chunk.rows = [[*row, name] for row in chunk.rows]
    elif chunk.names is None:
        chunk.rows = [{PATH: name, **row} if isinstance(row, dict) else row for row in chunk.rows]
