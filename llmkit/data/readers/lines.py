"""Lines of a stream, a block at a time: where each starts, and none longer than the limit ever held in memory."""

from __future__ import annotations

import codecs
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from llmkit.data.readers.base import MAX_RECORD_BYTES, MAX_ROWS, Reading
from llmkit.data.readers.streams import ByteStream, skip

BOM = codecs.BOM_UTF8


@dataclass(slots=True)
class Block:
    """Whole lines without their line feed (a carriage return may stand). `line`, `offset`: place of the first.

    `end_line`, `end_offset`: where the next block starts. `oversized`: bytes of a line that was passed over; then
    `lines` is empty.
    """

    lines: list[bytes]
    line: int
    offset: int
    end_line: int
    end_offset: int
    oversized: int = 0

    @property
    def offsets(self) -> list[int]:
        """Byte offset of each line in the decompressed file."""
        return list(accumulate((len(line) + 1 for line in self.lines[:-1]), initial=self.offset))

    def texts(self, encoding: str) -> tuple[list[str], dict[int, str]]:
        """The lines decoded, without carriage returns, and {index: reason} of those that could not be.

        What could not be decoded is there with surrogate escapes, for its place in the sequence.
        """
        try:
            text = b"\n".join(self.lines).decode(encoding)
            lines = text.split("\n")
            if "\r" in text:
                lines = [line.removesuffix("\r") for line in lines]
            return lines, {}
        except UnicodeDecodeError:
            return _decode_one_by_one(self.lines, encoding)


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
            except UnicodeDecodeError as error:
                raise self._reading.fail(f"not {self._reading.section.encoding}: {error.reason}") from error
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
    """The lines from byte `offset`, which is the start of line `line`. A byte order mark is passed over."""
    if offset:
        skip(stream, offset)
    held: list[bytes] = []
    size = 0
    while True:
        data = stream.read(reading.batch_bytes)
        if offset == 0 and not held:
            if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise reading.fail("begins with a UTF-16 byte order mark; set encoding: utf-16")
            if data.startswith(BOM):
                data, offset = data[len(BOM) :], len(BOM)
        cut = data.rfind(b"\n") + 1
        if not cut and data:
            held.append(data)
            size += len(data)
            if size <= MAX_RECORD_BYTES:
                continue
            held, cut, data = [], 0, b""
            length, tail = _to_line_end(stream, size)
            yield Block([], line, offset, line + 1, offset + length, oversized=length)
            line, offset, size = line + 1, offset + length, len(tail)
            held = [tail] if tail else []
            continue
        whole = b"".join([*held, data[:cut]]) if held else data[:cut]
        if whole:
            for block in _split(whole, line, offset):
                yield block
                line, offset = block.end_line, block.end_offset
        if not data:
            return
        held = [data[cut:]] if cut < len(data) else []
        size = len(data) - cut


def _split(data: bytes, line: int, offset: int) -> Iterator[Block]:
    """Blocks of at most MAX_ROWS lines; a line over the limit among them is passed over as well."""
    lines = data.split(b"\n")
    ends_with_newline = not lines[-1]
    if ends_with_newline:
        lines.pop()
    if len(data) > MAX_RECORD_BYTES and max(map(len, lines)) > MAX_RECORD_BYTES:
        groups = [[one] for one in lines]
    else:
        groups = [lines[start : start + MAX_ROWS] for start in range(0, len(lines), MAX_ROWS)]
    end = offset + len(data)
    for group in groups:
        length = sum(map(len, group)) + len(group)
        after = min(offset + length, end)
        if len(group) == 1 and len(group[0]) > MAX_RECORD_BYTES:
            yield Block([], line, offset, line + 1, after, oversized=len(group[0]))
        else:
            yield Block(group, line, offset, line + len(group), after)
        line, offset = line + len(group), after


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
