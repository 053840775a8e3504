"""Columns of tokens and labels, a token a line; a blank line ends a sentence and `-DOCSTART-` lines are passed over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmkit.data.readers.base import MAX_ROWS, Chunk, Reading
from llmkit.data.readers.lines import read_blocks, text_stream, too_long

DEFAULT_COLUMNS = {"tokens": 0, "labels": -1}


def read_conll(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk]:
    """Rows are sentences: a list of columns, each the list of its values. State: place of the next sentence."""
    place = state or {"line": 1, "offset": 0}
    stream, encoding = text_stream(reading)
    sentence = _Sentence()
    chunk = Chunk([], [], [], [], {})
    size = 0
    for block in read_blocks(reading, stream, line=place["line"], offset=place["offset"]):
        if block.oversized:
            sentence.fail(block.line, block.offset, too_long(block.oversized))
            continue
        texts, offsets, bad = block.texts(encoding)
        for index, (offset, text) in enumerate(zip(offsets, texts, strict=True)):
            line = block.line + index
            if index in bad:
                sentence.fail(line, offset, bad[index])
            elif text and not text.isspace():
                sentence.add(line, offset, text, reading.section.delimiter)
            else:
                size += sentence.give(chunk)
                sentence = _Sentence()
                if len(chunk.rows) >= MAX_ROWS or size >= reading.batch_bytes:
                    chunk.state = {"line": line, "offset": offset}
                    yield chunk
                    chunk, size = Chunk([], [], [], [], {}), 0
    sentence.give(chunk)
    chunk.state = {"done": True}
    yield chunk


class _Sentence:
    def __init__(self) -> None:
        self.tokens: list[list[str]] = []
        self.line = self.offset = self.size = 0
        self.problem: tuple[int, int, str] | None = None

    def fail(self, line: int, offset: int, reason: str) -> None:
        self.problem = self.problem or (line, offset, reason)

    def add(self, line: int, offset: int, text: str, delimiter: str | None) -> None:
        if text.startswith("-DOCSTART-"):
            return
        if delimiter is None and "\t" in text:
            delimiter = "\t"
        values = text.rstrip("\r\n").split(delimiter) if delimiter else text.split()
        if not self.tokens:
            self.line, self.offset = line, offset
        elif len(values) != len(self.tokens[0]):
            self.fail(line, offset, f"{len(values)} columns where the sentence has {len(self.tokens[0])}")
        self.size += len(text)
        self.tokens.append(values)

    def give(self, chunk: Chunk) -> int:
        """Adds what there is to the chunk; characters added."""
        if self.problem is not None:
            chunk.bad.append(self.problem)
        elif self.tokens:
            chunk.rows.append([list(column) for column in zip(*self.tokens, strict=True)])
            chunk.lines.append(self.line)
            chunk.offsets.append(self.offset)
        return self.size
