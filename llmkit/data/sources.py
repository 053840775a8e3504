"""Sources: recipe entries to files, files to batches of records by role, and the hash that stands for their content.

The formats are in `readers/`, a file each and a row in `READERS`. `read` binds columns to roles, takes the values out,
honours `limit` and `explode`, and says in every batch where the next one starts.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from llmkit.data import roles as role_tools
from llmkit.data.readers.base import Bad, Chunk, Reading, SourceFile
from llmkit.data.readers.conll import read_conll
from llmkit.data.readers.delimited import read_delimited
from llmkit.data.readers.find import find_files
from llmkit.data.readers.html import read_html
from llmkit.data.readers.hub import read_hub, revision_of
from llmkit.data.readers.jsondoc import read_json, read_squad
from llmkit.data.readers.jsonl import read_jsonl
from llmkit.data.readers.lines import ascii_compatible
from llmkit.data.readers.mediawiki import read_mediawiki
from llmkit.data.readers.stdlib import read_stdlib
from llmkit.data.readers.streams import Archives, open_file
from llmkit.data.readers.tables import read_arrow, read_parquet
from llmkit.data.readers.text import read_parallel, read_text
from llmkit.data.readers.warc import read_warc
from llmkit.data.records import RecordBatch, Reject
from llmkit.data.rolespecs import RoleSpec
from llmkit.errors import DataError, RecipeError
from llmkit.recipe.sections import ParallelPath, SourceSection

__all__ = ["READERS", "ResolvedSource", "SourceFile", "content_hash", "read", "resolve_sources"]

READERS: dict[str, Callable[[Reading, dict[str, Any] | None], Iterator[Chunk]]] = {
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

PATH = "path"
"""As the column of `label`, where the rows have no column of that name: the name of the directory that holds the file.
"""

_ROWS = {"jsonl", "json", "parquet", "arrow", "hub"}
_TEXTUAL = {"jsonl", "json", "csv", "tsv", "txt", "conll", "squad", "parallel", "html"}
USED_BY: dict[str, set[str]] = {
    "name": {"hub", "stdlib"},
    "split": {"hub"},
    "revision": {"hub"},
    "header": {"csv", "tsv"},
    "delimiter": {"csv", "tsv", "conll"},
    "quoting": {"csv", "tsv"},
    "encoding": _TEXTUAL,
    "field": {"json", "squad"},
    "explode": _ROWS,
    "sample_by": {"txt"},
    "document_start": {"txt"},
}
"""Formats that use a key of an entry; set for others it would be ignored, so it is refused."""


@dataclass(frozen=True)
class ResolvedSource:
    """One entry with the files found for it. `index` is its place in the list, `id` its name in reports."""

    index: int
    id: str
    files: tuple[SourceFile, ...]
    section: SourceSection


def resolve_sources(entries: list[SourceSection], roles: RoleSpec, *, split: str) -> list[ResolvedSource]:
    """Finds the files of every entry of `data.<split>`. Reads no more than the first bytes of each.

    Raises DataError for paths that do not exist (with the nearest that does), RecipeError for keys that do not fit.
    """
    resolved: list[ResolvedSource] = []
    taken: set[str] = set()
    for index, section in enumerate(entries):
        key = f"data.{split}.{index}"
        _check_entry(section, roles, key)
        files = tuple(_found(section, roles, split, key))
        _check_used(section, files, key)
        name = section.id or _name_of(section)
        if section.id is not None and section.id in taken:
            raise RecipeError(f"two sources have the id {section.id!r}", key=f"{key}.id")
        while name in taken:
            name = f"{name}#{index}"
        taken.add(name)
        resolved.append(ResolvedSource(index, name, files, section))
    return resolved


def _found(section: SourceSection, roles: RoleSpec, split: str, key: str) -> list[SourceFile]:
    try:
        return find_files(section, text_role=roles.documents, split=split)
    except DataError as error:
        if error.file is None:  # what has to be mended is the recipe, not a file
            raise DataError(error.message, key=f"{key}.path") from error
        raise


def _name_of(section: SourceSection) -> str:
    if isinstance(section.path, ParallelPath):
        return section.path.source
    path = section.path if isinstance(section.path, str) else section.path[0]
    return path if section.name is None else f"{path}:{section.name}"


def _check_entry(section: SourceSection, roles: RoleSpec, key: str) -> None:
    """What the entry alone shows to be wrong. Raises RecipeError."""
    known = roles.roles()
    for role in section.columns or {}:
        if role not in known:
            near = difflib.get_close_matches(role, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            roles_are = f"the task's roles are {', '.join(known)}"
            raise RecipeError(f"unknown role; {roles_are}{hint}", key=f"{key}.columns.{role}")
    if section.message_keys is not None and roles.converse is None:
        raise RecipeError("only tasks on messages use it", key=f"{key}.message_keys")
    try:
        codecs.lookup(section.encoding)
        "".encode(section.encoding)
    except (LookupError, UnicodeError) as error:
        raise RecipeError(f"unknown text encoding {section.encoding!r}", key=f"{key}.encoding") from error
    if section.document_start is not None:
        try:
            re.compile(section.document_start)
        except re.error as error:
            raise RecipeError(f"not a regular expression: {error}", key=f"{key}.document_start") from error
        if section.sample_by in ("line", "paragraph"):
            raise RecipeError(f"contradicts sample_by: {section.sample_by}", key=f"{key}.document_start")
    if section.delimiter is not None and len(section.delimiter) != 1:
        raise RecipeError(f"one character is expected, got {section.delimiter!r}", key=f"{key}.delimiter")
    if isinstance(section.path, ParallelPath) != (section.format == "parallel") and section.format is not None:
        raise RecipeError("format parallel and path: {source: ..., target: ...} go together", key=f"{key}.format")


def _check_used(section: SourceSection, files: tuple[SourceFile, ...], key: str) -> None:
    """A key that none of the formats uses would be ignored. Raises RecipeError."""
    formats = {file.format for file in files}
    for name, users in USED_BY.items():
        default = SourceSection.model_fields[name].default
        if getattr(section, name) != default and not formats & users:
            found = ", ".join(sorted(formats))
            message = f"would be ignored: it is for {', '.join(sorted(users))}, and the files are {found}"
            raise RecipeError(message, key=f"{key}.{name}")
    if formats == {"stdlib"} and section.name not in (None, "functions"):
        raise RecipeError("builtin:python-stdlib has `functions` alone", key=f"{key}.name")


def read(
    source: ResolvedSource, roles: RoleSpec, *, resume: dict[str, Any] | None = None, batch_bytes: int = 1_000_000
) -> Iterator[RecordBatch]:
    """The source's records, a batch of about `batch_bytes` of one file at a time.

    `resume` is the `resume` of the last batch used. Records that cannot be used are in the batches' `rejects`; raises
    DataError for what concerns a whole file, for columns that are not there, and where no record at all can be used.
    """
    place = resume or {"file": 0, "state": None, "binding": None, "rows": 0, "rejected": 0, "first": None}
    archives = Archives()
    counts = {"rows": place["rows"], "rejected": place["rejected"]}
    first: str | None = place["first"]
    try:
        for number in range(place["file"], len(source.files)):
            here = number == place["file"]
            reading = Reading(source.files[number], source.section, roles, batch_bytes, archives)
            state = place["state"] if here else None
            if state is not None and state.get("done"):
                continue
            try:
                for batch in _read_file(source, reading, state, place["binding"] if here else None):
                    counts["rows"] += len(batch)
                    counts["rejected"] += len(batch.rejects)
                    if first is None and batch.rejects:
                        one = batch.rejects[0]
                        first = ":".join(str(part) for part in (one.file, one.line) if part is not None)
                        first = f"{first}: {one.reason}"
                    full = _cut(batch, counts, source.section.limit)
                    batch.resume = {"file": number, **batch.resume, **counts, "first": first}
                    if full:
                        batch.resume = {**batch.resume, "file": len(source.files), "state": None}
                    yield batch
                    if full:
                        return
            finally:
                reading.close()
    finally:
        archives.close()
    if counts["rows"] == 0:
        what = f"; {counts['rejected']} were rejected, the first {first}" if first else ": there are no rows"
        raise DataError(f"no usable record in source {source.id!r}{what}", file=source.files[0].label)


def _cut(batch: RecordBatch, counts: dict[str, int], limit: int | None) -> bool:
    """Shortens the batch to what `limit` leaves; whether the limit is reached. It counts usable records."""
    if limit is None or counts["rows"] < limit:
        return False
    keep = len(batch) - (counts["rows"] - limit)
    counts["rows"] = limit
    batch.columns = {role: values[:keep] for role, values in batch.columns.items()}
    batch.lines, batch.offsets = batch.lines[:keep], batch.offsets[:keep]
    return True


def _read_file(
    source: ResolvedSource, reading: Reading, state: dict[str, Any] | None, bound: dict[str, Any] | None
) -> Iterator[RecordBatch]:
    binding = role_tools.from_json(bound) if bound is not None else None
    if binding is not None:
        reading.wanted = _wanted(reading, binding)
    for chunk in READERS[reading.file.format](reading, state):
        if reading.section.explode is not None:
            _explode(reading.section.explode, chunk)
        if (reading.section.columns or {}).get("label") == PATH:
            _add_path(reading.file, chunk)
        columns: dict[str, list[Any]] = {name: [] for name in reading.roles.made}
        if chunk.rows:
            if binding is None:
                binding = role_tools.bind(reading, chunk)
                reading.wanted = _wanted(reading, binding)
            columns, bad = role_tools.extract(reading, binding, chunk)
            if bad:
                _drop(chunk, columns, bad)
        if not chunk.rows and not chunk.bad:
            continue
        if not ascii_compatible(reading.section.encoding):
            _forget_offsets(chunk)
        label = reading.file.label
        rejects = [Reject(source.id, label, line, offset, reason) for line, offset, reason in chunk.bad]
        batch = RecordBatch(source.index, label, columns, chunk.lines, chunk.offsets, rejects)
        batch.resume = {"state": chunk.state, "binding": role_tools.to_json(binding) if binding is not None else None}
        yield batch


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
    name = _directory_of(file)
    if chunk.names is not None and PATH not in chunk.names:
        chunk.names = [*chunk.names, PATH]
        chunk.rows = [[*row, name] for row in chunk.rows]
    elif chunk.names is None:
        chunk.rows = [{PATH: name, **row} if isinstance(row, dict) else row for row in chunk.rows]


def _directory_of(file: SourceFile) -> str:
    return PurePath(file.member or os.path.abspath(file.path)).parent.name


def content_hash(source: ResolvedSource) -> str:
    """sha256 over the bytes of the source's files in order, wherever they lie (with the names of their directories
    where these are labels); for a Hub data set its commit, configuration and split; for the builtin corpus the Python
    version and its files."""
    digest = hashlib.sha256()
    hashed: dict[str, str] = {}
    for file in source.files:
        if file.format == "hub":
            commit = revision_of(file.path, source.section)
            digest.update(f"hub {file.path} {commit} {source.section.name} {file.member}\n".encode())
            continue
        if file.format == "stdlib" and not hashed:
            digest.update(f"python {platform.python_version()}\n".encode())
        for one in (file, file.target):
            if one is None:
                continue
            if (source.section.columns or {}).get("label") == PATH:
                digest.update(f"in {_directory_of(one)}\n".encode())
            if one.path not in hashed:
                with open_file(one.path) as opened:
                    hashed[one.path] = hashlib.file_digest(opened, "sha256").hexdigest()
            elif one.member is not None:
                continue  # the whole archive is in the hash already
            digest.update(f"{hashed[one.path]}\n".encode())
    return digest.hexdigest()
