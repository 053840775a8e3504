"""Plain text (a record a line, paragraph, document or file), and parallel text in two files, line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from llmkit.data.readers.base import MAX_RECORD_BYTES, Chunk, Reading
from llmkit.data.readers.lines import BOM, Block, Unparsed, read_blocks, text_stream, too_long, undecodable

_Line = tuple[int, int, str, str | None]
"""Line, offset, text, and the reason where it could not be read."""


def read_text(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk | Unparsed]:
    """Rows are {"text": ...}. `document_start` is matched at the start of a line, and begins a document there."""
    section = reading.section
    start = re.compile(section.document_start) if section.document_start is not None else None
    by = section.sample_by or ("document" if reading.roles.documents else "line")
    if start is None and by == "document":
        yield _whole_file(reading)
    elif start is None and by == "line":
        yield from _line_by_line(reading, state)
    else:
        yield from _in_pieces(reading, state, start)


def _whole_file(reading: Reading) -> Chunk:
    stream, encoding = text_stream(reading)
    data = stream.read(MAX_RECORD_BYTES + 1)
    done: dict[str, Any] = {"done": True}
    if len(data) > MAX_RECORD_BYTES:
        hint = "set sample_by: paragraph or line, or document_start"
        return Chunk([], [], [], [(1, 0, f"a document longer than {MAX_RECORD_BYTES} bytes; {hint}")], done)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise reading.fail("begins with a UTF-16 byte order mark; set encoding: utf-16")
    try:
        text = data.removeprefix(BOM).decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return Chunk([], [], [], [(line, error.start, undecodable(error))], done)
    text = text.replace("\r\n", "\n")
    if not text or text.isspace():
        return Chunk([], [], [], [], done)
    return Chunk([{"text": text}], [1], [0], [], done)


def _line_by_line(reading: Reading, state: dict[str, Any] | None) -> Iterator[Unparsed]:
    place = state or {"line": 1, "offset": 0}
    stream, encoding = text_stream(reading)
    for block in read_blocks(reading, stream, line=place["line"], offset=place["offset"]):
        yield Unparsed(parse_lines, block, encoding)


def parse_lines(block: Block, encoding: str) -> Chunk:
    chunk = Chunk([], [], [], [], {})
    if block.oversized:
        chunk.bad.append((block.line, block.offset, too_long(block.oversized)))
    texts, offsets, bad = block.texts(encoding)
    for index, (offset, text) in enumerate(zip(offsets, texts, strict=True)):
        if index in bad:
            chunk.bad.append((block.line + index, offset, bad[index]))
        elif text and not text.isspace():
            chunk.rows.append({"text": text})
            chunk.lines.append(block.line + index)
            chunk.offsets.append(offset)
    return chunk


def _lines(reading: Reading, place: dict[str, Any]) -> Iterator[_Line]:
    stream, encoding = text_stream(reading)
    for block in read_blocks(reading, stream, line=place["line"], offset=place["offset"]):
        if block.oversized:
            yield block.line, block.offset, "", too_long(block.oversized)
            continue
        texts, offsets, bad = block.texts(encoding)
        for index, (offset, text) in enumerate(zip(offsets, texts, strict=True)):
            yield block.line + index, offset, text, bad.get(index)


class _Piece:
    """The document or paragraph being put together."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.line = self.offset = self.size = 0
        self.problem: tuple[int, int, str] | None = None

    def add(self, line: int, offset: int, text: str, problem: str | None) -> None:
        if not self.lines and self.problem is None:
            self.line, self.offset = line, offset
        self.size += len(text) + 1
        if problem is not None:
            self.problem = self.problem or (line, offset, problem)
        elif self.size > MAX_RECORD_BYTES:
            self.problem = self.problem or (self.line, self.offset, f"longer than {MAX_RECORD_BYTES} characters")
        if self.problem is None:
            self.lines.append(text)
        else:
            self.lines = [""]

    def give(self, chunk: Chunk) -> None:
        if self.problem is not None:
            chunk.bad.append(self.problem)
            return
        while self.lines and not self.lines[-1].strip():
            self.lines.pop()
        if any(line.strip() for line in self.lines):
            chunk.rows.append({"text": "\n".join(self.lines)})
            chunk.lines.append(self.line)
            chunk.offsets.append(self.offset)


def _in_pieces(reading: Reading, state: dict[str, Any] | None, start: re.Pattern[str] | None) -> Iterator[Chunk]:
    """Documents that begin where `start` matches, or (None) paragraphs between blank lines."""
    chunk = Chunk([], [], [], [], {})
    piece, size = _Piece(), 0
    for line, offset, text, problem in _lines(reading, state or {"line": 1, "offset": 0}):
        blank = problem is None and not text.strip()
        begins = blank if start is None else problem is None and start.match(text) is not None
        if begins and (piece.lines or piece.problem):
            piece.give(chunk)
            size += piece.size
            piece = _Piece()
            if size >= reading.batch_bytes:
                chunk.state = {"line": line, "offset": offset}
                yield chunk
                chunk, size = Chunk([], [], [], [], {}), 0
        if not (blank and not piece.lines and piece.problem is None):
            piece.add(line, offset, text, problem)
    piece.give(chunk)
    chunk.state = {"done": True}
    yield chunk


def read_parallel(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk]:
    """Rows are {"source", "target"}: line N of both files. Pairs of blank lines are passed over."""
    place = state or {"line": 1, "offset": 0, "target_offset": 0}
    target = reading.file.target
    assert target is not None
    other = replace(reading, file=target, opened=reading.opened)
    pairs = zip_longest(
        _lines(reading, place), _lines(other, {"line": place["line"], "offset": place["target_offset"]})
    )
    chunk, size = Chunk([], [], [], [], {}), 0
    for left, right in pairs:
        if left is None or right is None:
            short, line = (reading.file, right) if left is None else (target, left)
            raise reading.fail(f"parallel files differ in length: {short.label} ends before line {line[0]}")
        line, offset, source, problem = left
        if size >= reading.batch_bytes:
            chunk.state = {"line": line, "offset": offset, "target_offset": right[1]}
            yield chunk
            chunk, size = Chunk([], [], [], [], {}), 0
        size += len(source) + len(right[2])
        blank = [not text.strip() for text in (source, right[2])]
        reason = problem or (right[3] and f"target: {right[3]}")
        if reason is None and blank[0] != blank[1]:
            reason = f"the {'source' if blank[0] else 'target'} is blank"
        if reason is not None:
            chunk.bad.append((line, offset, reason))
        elif not blank[0]:
            chunk.rows.append({"source": source, "target": right[2]})
            chunk.lines.append(line)
            chunk.offsets.append(offset)
    chunk.state = {"done": True}
    yield chunk
