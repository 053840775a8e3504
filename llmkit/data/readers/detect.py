"""The format of a file: by its suffix, and by a look inside where that does not settle it."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

from llmkit.data.readers.streams import (
    COMPRESSION_SUFFIXES,
    Archives,
    ByteStream,
    Decompressed,
    compression_of,
    open_file,
)
from llmkit.errors import DataError
from llmkit.recipe.sections import SourceSection

SUFFIXES = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), "jsonl"),
    ".json": "json",
    ".csv": "csv",
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".txt", ".text"), "txt"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".ipc"), "arrow"),
    **dict.fromkeys((".conll", ".bio", ".bmes", ".iob"), "conll"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".warc", ".wet"), "warc"),
    ".xml": "mediawiki",
}
_HEAD = 1 << 16
_SQUAD = (re.compile(r'"data"\s*:\s*\[\s*\{'), re.compile(r'"paragraphs"\s*:\s*\['))


def format_by_name(name: str) -> str | None:
    """The format that a file's suffix stands for, below a suffix of compression."""
    path = PurePosixPath(name.lower())
    if path.suffix in COMPRESSION_SUFFIXES:
        path = path.with_suffix("")
    found, before = SUFFIXES.get(path.suffix), SUFFIXES.get(PurePosixPath(path.stem).suffix)
    return "conll" if (found, before) == ("txt", "conll") else found  # sets are published as name.conll.txt


def peek(stream: ByteStream, name: str) -> tuple[bytes, str | None]:
    """(first decompressed bytes, compression) of a file. Raises DataError where name and content disagree."""
    raw = stream.read(_HEAD)
    compression = compression_of(raw)
    suffix = COMPRESSION_SUFFIXES.get(PurePosixPath(name.lower()).suffix)
    if suffix is not None and raw and suffix != compression:
        raise DataError(f"named .{suffix}, but its content begins with {raw[:6]!r}: not {suffix} data", file=name)
    if compression is None:
        if raw.startswith(b"version https://git-lfs."):
            raise DataError("a Git LFS pointer, not the data; run `git lfs pull`", file=name)
        return raw, None
    return Decompressed(_Head(raw, stream), compression, name).read(_HEAD), compression


class _Head:
    """Bytes already read, then the rest of the stream."""

    def __init__(self, head: bytes, rest: ByteStream):
        self._head = head
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        return data or self._rest.read(size)

    def close(self) -> None:
        self._rest.close()


def peek_file(path: str) -> tuple[bytes, str | None]:
    with open_file(path) as file:
        return peek(file, path)


def peek_member(archives: Archives, path: str, position: int, member: str) -> tuple[bytes, str | None]:
    return peek(archives.open(path, position, member, None), member)


def format_of(name: str, head: bytes, section: SourceSection) -> str | None:
    """The format, None where neither name nor content tell: then it is text that could be anything."""
    if section.format is not None:
        return _json_kind(head, section) if section.format == "json" else section.format
    by_name = format_by_name(name)
    if by_name == "json":
        return _json_kind(head, section)
    if by_name == "jsonl" and re.match(rb"\s*\[\s*\{", head.removeprefix(b"\xef\xbb\xbf")):
        return "json"  # a list, whatever its name says
    if by_name == "mediawiki":
        return "mediawiki" if b"<mediawiki" in head[:4096] else None
    return by_name or _by_content(head, section)


def _by_content(head: bytes, section: SourceSection) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if head.startswith(b"WARC/"):
        return "warc"
    if start.startswith(b"<mediawiki"):
        return "mediawiki"
    if start[:64].lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    if start.startswith((b"{", b"[{")) or re.match(rb"\[\s*\{\s*\"", start):
        return _json_kind(head, section)
    return None


def _json_kind(head: bytes, section: SourceSection) -> str:
    """json, jsonl or squad: a list is json; an object is a row of JSON lines if it ends on its line."""
    text = head.decode("utf-8-sig" if section.encoding.startswith("utf-8") else section.encoding, "ignore").lstrip()
    if not text.startswith("{"):
        return "json"
    line, newline, _ = text.partition("\n")
    squad = all(pattern.search(text) for pattern in _SQUAD)
    try:
        whole = isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        whole = not newline and len(head) >= _HEAD  # a first line longer than what was looked at
    if squad and (not whole or section.format is None):
        return "squad"
    return "jsonl" if whole and section.field is None else "json"
