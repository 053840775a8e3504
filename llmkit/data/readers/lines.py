"""Lines of a stream, a block at a time: where each starts, and none longer than the limit ever held in memory."""

from __future__ import annotations

import codecs
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmkit.data.readers.base import MAX_RECORD_BYTES, MAX_ROWS, Chunk, Reading
from llmkit.data.readers.streams import ByteStream, skip

BOM = codecs.BOM_UTF8


@dataclass(slots=True)
class Block:
    """Whole lines as they stand in the file. `line`, `offset`: place of the first. `ends` (N,): where each line ends in
    `data`, at its line feed, which the last may lack.

    `oversized`: bytes of one line that was passed over; then `data` is empty.
    """

    data: bytes
    ends: np.ndarray
    line: int
    offset: int
    oversized: int = 0

    @property
    def end_line(self) -> int:
        """Where the next block starts."""
        return self.line + (len(self.ends) or 1)

    @property
    def end_offset(self) -> int:
        return self.offset + (self.oversized or len(self.data))

    def lines(self) -> list[memoryview]:
        """The lines without their line feed (a carriage return may stand), not copied."""
        view, ends = memoryview(self.data), self.ends.tolist()
        return [view[begin:end] for begin, end in zip([0, *(end + 1 for end in ends)], ends, strict=False)]

    def offsets(self) -> list[int]:
        """Byte offset of each line in the decompressed file."""
        return [self.offset, *(self.ends[:-1] + (self.offset + 1)).tolist()] if len(self.ends) else []

    def texts(self, encoding: str) -> tuple[list[str], list[int], dict[int, str]]:
        """The lines decoded, without carriage returns, their offsets, and {index: reason} of those that could not be.

        What could not be decoded is there with surrogate escapes, for its place in the sequence.
        """
        try:
            text = self.data.decode(encoding)
        except UnicodeDecodeError:
            texts, bad = _decode_one_by_one([bytes(line) for line in self.lines()], encoding)
            return texts, self.offsets(), bad
        texts = text.split("\n")
        if not texts[-1]:
            texts.pop()
        if "\r" in text:
            texts = [line.removesuffix("\r") for line in texts]
        return texts, self.offsets(), {}


@dataclass(slots=True)
class Unparsed:
    """A chunk whose rows are still bytes: `make(block, encoding)` parses them, here or in a worker process."""

    make: Callable[[Block, str], Chunk]
    block: Block
    encoding: str

    @property
    def state(self) -> dict[str, Any]:
        """Where the next chunk starts, as `Chunk.state`."""
        return {"line": self.block.end_line, "offset": self.block.end_offset}

    def parse(self) -> Chunk:
        return self.make(self.block, self.encoding)


def _decode_one_by_one(lines: list[bytes], encoding: str) -> tuple[list[str], dict[int, str]]:
    texts: list[str] = []
    bad: dict[int, str] = {}
    for index, line in enumerate(lines):
        try:
            texts.append(line.decode(encoding).removesuffix("\r"))
        except UnicodeDecodeError as error:
            bad[index] = undecodable(error)
            texts.append(line.decode("utf-8", "surrogateescape").removesuffix("\r"))
    return texts, bad


def undecodable(error: UnicodeDecodeError, line_bytes_before: int = 0) -> str:
    """The reason of a reject: encoding and the byte within the record."""
    name = "UTF-8" if codecs.lookup(error.encoding).name == "utf-8" else error.encoding
    return f"invalid {name} at byte {error.start + line_bytes_before} of the record ({error.reason})"


@functools.cache
def ascii_compatible(encoding: str) -> bool:
    """Whether a line feed byte is always a line feed, so that bytes can be split before decoding."""
    name = codecs.lookup(encoding).name
    return not name.startswith(("utf-16", "utf-32", "utf-7", "iso2022", "hz", "cp037", "cp500", "cp1140"))


class Transcoded:
    """A stream in an encoding that is not built on ASCII, as UTF-8. Bytes outside the encoding raise DataError."""

    def __init__(self, stream: ByteStream, reading: Reading):
        self._stream = stream
        self._reading = reading
        self._decoder = codecs.getincrementaldecoder(reading.section.encoding)()
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        while len(self._rest) < size:
            data = self._stream.read(1 << 20)
            try:
                text = self._decoder.decode(data, final=not data)
            except UnicodeError as error:  # its base where UTF-16 lacks a byte order mark
                raise self._reading.fail(f"not {self._reading.section.encoding}: {error}") from error
            self._rest += text.encode()
            if not data:
                break
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def close(self) -> None:
        self._stream.close()


def text_stream(reading: Reading) -> tuple[ByteStream, str]:
    """The file and the encoding of its lines. Raises DataError for UTF-16 that is not named as such."""
    encoding = codecs.lookup(reading.section.encoding).name
    if not ascii_compatible(encoding):
        return Transcoded(reading.open(), reading), "utf-8"
    return reading.open(), "utf-8" if encoding == "utf-8-sig" else encoding


def read_blocks(reading: Reading, stream: ByteStream, *, line: int = 1, offset: int = 0) -> Iterator[Block]:
    """The lines from byte `offset`, which is the start of line `line`. A byte order mark is passed over.

    Where a block ends follows from where it starts, so that reading goes on from any of them in the same blocks: the
    whole lines of a window of `batch_bytes`, at most MAX_ROWS of them, or one line that is longer than the window.
    """
    window = min(reading.batch_bytes, MAX_RECORD_BYTES)
    skip(stream, offset)
    held = _fill(stream, b"", window)
    if offset == 0:
        if held.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise reading.fail("begins with a UTF-16 byte order mark; set encoding: utf-16")
        if held.startswith(BOM):
            held, offset = held[len(BOM) :], len(BOM)
    while held := _fill(stream, held, window):
        cut = len(held) if len(held) < window else (held.rfind(b"\n", 0, window) + 1 or held.find(b"\n", window) + 1)
        while not cut and len(held) <= MAX_RECORD_BYTES:
            size = len(held)
            held = _fill(stream, held, 2 * size)
            cut = held.find(b"\n", size) + 1 or (size if len(held) == size else 0)
        if not cut or cut > MAX_RECORD_BYTES + 1:
            length, held = (cut, held[cut:]) if cut else _to_line_end(stream, len(held))
            yield Block(b"", np.empty(0, np.int64), line, offset, oversized=length)
            line, offset = line + 1, offset + length
            continue
        ends = np.flatnonzero(np.frombuffer(held, np.uint8, cut) == ord("\n"))[:MAX_ROWS]
        if len(ends) == MAX_ROWS:
            cut = int(ends[-1]) + 1
        elif not len(ends) or ends[-1] != cut - 1:
            ends = np.append(ends, cut)  # the file's last line
        yield Block(held[:cut], ends, line, offset)
        held, line, offset = held[cut:], line + len(ends), offset + cut


def _fill(stream: ByteStream, held: bytes, size: int) -> bytes:
    """`held` with what follows it, `size` bytes in all; fewer only at the end."""
    return held + stream.read(size - len(held)) if len(held) < size else held


def _to_line_end(stream: ByteStream, size: int) -> tuple[int, bytes]:
    """Reads past the rest of a line without holding it: its length with the line feed, and what follows it."""
    while data := stream.read(1 << 20):
        end = data.find(b"\n") + 1
        if end:
            return size + end, data[end:]
        size += len(data)
    return size, b""


def too_long(size: int) -> str:
    return f"record of {size} bytes is longer than the limit of {MAX_RECORD_BYTES}"
