"""csv and tsv. A quoted field may hold line feeds, so a record knows the line it starts at.

In tab-separated text a quote is mostly just a quote. Where quotes do not match there, or a "quoted" field would swallow
lines that are rows themselves, the lines are read as they stand.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmkit.data.readers.base import MAX_RECORD_BYTES, MAX_ROWS, Chunk, Reading
from llmkit.data.readers.lines import read_blocks, text_stream, too_long

_UNCLOSED = "a quote that opens in this record is never closed; set quoting: false if quotes are plain text"


@dataclass(slots=True)
class _Line:
    line: int
    offset: int
    text: str
    problem: str | None


_Record = tuple[_Line, list[str] | str]
"""Where a record starts, and its fields or the reason why it cannot be read."""


def read_delimited(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk]:
    """Rows are lists of strings; `names` is the header, if there is one. State: offset and line of the next record."""
    names = state["names"] if state else None
    width = state["width"] if state else None
    chunk = Chunk([], [], [], [], {}, names)
    lines = _Lines(reading, state)
    size = lines.offset
    for records in _records(reading, lines):
        for start, row in _as_they_stand(records, lines, width) if lines.tabbed else records:
            if isinstance(row, list) and reading.section.header and names is None:
                names = chunk.names = _header(reading, row)
                width = len(names)
                continue
            if isinstance(row, list) and names is not None and len(row) != len(names):
                row = f"{len(row)} fields where the header names {len(names)}"
            if isinstance(row, str):
                chunk.bad.append((start.line, start.offset, row))
                continue
            width = width or len(row)
            chunk.rows.append(row)
            chunk.lines.append(start.line)
            chunk.offsets.append(start.offset)
        if len(chunk.rows) >= MAX_ROWS or lines.offset - size >= reading.batch_bytes:
            chunk.state = {"line": lines.line, "offset": lines.offset, "names": names, "width": width}
            yield chunk
            chunk, size = Chunk([], [], [], [], {}, names), lines.offset
    chunk.state = {"done": True}
    yield chunk


def _header(reading: Reading, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    twice = {name for name in names if name and names.count(name) > 1}
    if twice:
        raise reading.fail(f"the header names {', '.join(sorted(twice))} twice; set header: false and use positions")
    return names


class _Lines:
    """Decoded lines for csv.reader; those that it has `taken` since the last record, and the place behind them."""

    def __init__(self, reading: Reading, state: dict[str, Any] | None):
        self.line = state["line"] if state else 1
        self.offset = state["offset"] if state else 0
        self.taken: list[_Line] = []
        self.delimiter = reading.section.delimiter or ("\t" if reading.file.format == "tsv" else ",")
        self.tabbed = self.delimiter == "\t" and reading.section.quoting
        self._reading = reading

    def __iter__(self) -> Iterator[str]:
        stream, encoding = text_stream(self._reading)
        for block in read_blocks(self._reading, stream, line=self.line, offset=self.offset):
            if block.oversized:
                self.taken.append(_Line(block.line, block.offset, "", too_long(block.oversized)))
                self.line, self.offset = block.end_line, block.end_offset
                yield "\n"
                continue
            texts, offsets, bad = block.texts(encoding)
            starts = [*offsets, block.end_offset]
            for index, text in enumerate(texts):
                self.line, self.offset = block.line + index, starts[index]
                self.taken.append(_Line(self.line, self.offset, text, bad.get(index)))
                self.line, self.offset = self.line + 1, starts[index + 1]
                yield text + "\n"


def _records(reading: Reading, lines: _Lines) -> Iterator[list[_Record]]:
    """One record at a time that is not blank, as csv.reader has it."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    if reading.section.quoting:
        parser = csv.reader(iter(lines), delimiter=lines.delimiter, strict=True)
    else:
        parser = csv.reader(iter(lines), delimiter=lines.delimiter, quoting=csv.QUOTE_NONE, strict=True)
    while True:
        lines.taken.clear()
        row: list[str] | str
        try:
            row = next(parser)
        except StopIteration:
            return
        except csv.Error as error:
            message = str(error)
            unclosed = "unexpected end" in message or "field limit" in message
            if unclosed and not lines.tabbed:
                raise reading.fail(_UNCLOSED, line=lines.taken[0].line) from error
            row = f"quotes that do not match ({message}); set quoting: false if quotes are plain text"
        broken = [one for one in lines.taken if one.problem is not None]
        if broken and (len(lines.taken) == 1 or not lines.tabbed):
            yield [(broken[0], broken[0].problem or "")]
        elif row:
            yield [(lines.taken[0], row)]


def _as_they_stand(records: list[_Record], lines: _Lines, width: int | None) -> list[_Record]:
    """The lines of a record without regard to quotes, where its quotes are broken or it swallowed whole rows."""
    _, row = records[0]
    if len(lines.taken) == 1 and (isinstance(row, list) or lines.taken[0].problem is not None):
        return records
    plain: list[_Record] = []
    for one in lines.taken:
        if one.problem is not None:
            plain.append((one, one.problem))
        elif one.text.strip():
            plain.append((one, one.text.split(lines.delimiter)))
    swallowed = all(isinstance(fields, str) or len(fields) == (width or 2) for _, fields in plain)
    return plain if isinstance(row, str) or (swallowed and (width or 2) > 1) else records
