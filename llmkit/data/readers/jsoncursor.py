"""Walks through one JSON document without holding it: the rows of a list of any length, a value at a time.

The standard library parses each value from a window of text that grows only as a value needs; values over the limit or
nested too deeply are passed over by counting brackets.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from llmkit.data.readers.base import MAX_RECORD_BYTES, Reading
from llmkit.data.readers.jsonl import DuplicateKey, has_lone_surrogate, unique
from llmkit.data.readers.lines import text_stream, too_long

_SPACE = re.compile(r"[ \t\n\r]*")
_MARKS = re.compile(r'["\\{}\[\],]')
_BLOCK = 1 << 20


class Unreadable(Exception):
    """A value that was passed over; the cursor stands behind it. The argument is the reason."""


class JsonCursor:
    """`line` (from 1) and `offset` (bytes) are the cursor's place. Undecodable bytes appear as surrogate escapes."""

    def __init__(self, reading: Reading):
        self._reading = reading
        self._stream, self._encoding = text_stream(reading)
        self._decoder = codecs.getincrementaldecoder(self._encoding)("surrogateescape")
        self._parser = json.JSONDecoder(object_pairs_hook=unique)
        self._text = ""
        self._at = 0
        self._ended = False
        self.line = 1
        self.offset = 0
        self._more()
        if self._text.startswith("\ufeff"):
            self._move(1)

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._move(match.end() if match else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, expected: str) -> None:
        """Moves over one of the characters `expected`."""
        if self.peek() not in tuple(expected):
            raise self.broken(f"expected {' or '.join(expected)}")
        self._move(self._at + 1)

    def broken(self, what: str) -> Exception:
        found = f"found {self._text[self._at]!r}" if self._at < len(self._text) else "the file ends"
        return self._reading.fail(f"not valid JSON: {what}, {found} (byte {self.offset})", line=self.line)

    def value(self) -> Any:
        """The value at the cursor. Raises Unreadable if it is too long, deep or not UTF-8, DataError at a break."""
        self.peek()
        while True:
            try:
                value, end = self._parser.raw_decode(self._text, self._at)
            except RecursionError:
                self.pass_over()
                raise Unreadable("JSON nested too deeply") from None
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > MAX_RECORD_BYTES:
                    start = self.offset
                    self.pass_over()
                    raise Unreadable(too_long(self.offset - start)) from None
                if self._more():
                    continue
                if error.msg == "Expecting value" and error.pos >= len(self._text):
                    raise self.broken("a value is missing") from None
                self._move(min(error.pos, len(self._text)))
                raise self.broken(error.msg) from None
            except DuplicateKey as error:
                self.pass_over()
                raise Unreadable(str(error)) from None
            except ValueError:  # Python's bound on the digits of a whole number
                self.pass_over()
                raise Unreadable("a number with too many digits") from None
            if end == len(self._text) and self._more():
                continue  # a number may go on in the next block
            source = self._text[self._at : end]
            self._move(end)
            self._check(source, value)
            return value

    def _check(self, source: str, value: Any) -> None:
        if not source.isascii():
            try:
                source.encode()
            except UnicodeEncodeError:
                raise Unreadable(f"invalid {self._encoding.upper()}") from None
        if ("\\ud" in source or "\\uD" in source) and has_lone_surrogate(value):
            raise Unreadable("contains a lone surrogate (half of a \\u escape pair)")

    def members(self) -> Iterator[str]:
        """The keys of the object at the cursor. The caller reads or passes over each value before the next key."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                raise self.broken("expected a key in quotes")
            try:
                key = str(self.value())
            except Unreadable as problem:
                raise self.broken(f"a key {problem}") from problem
            yield key
            if self.peek() == ",":
                self.take(",")
                continue
            self.take("}")
            return

    def key_value(self) -> None:
        """Moves over the colon behind a key."""
        self.take(":")

    def items(self) -> Iterator[tuple[int, int]]:
        """(line, offset) of each item of the list at the cursor. The caller reads or passes over each."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            self.peek()
            yield self.line, self.offset
            if self.peek() == ",":
                self.take(",")
                continue
            self.take(",]")
            return

    def pass_over(self) -> None:
        """Moves behind the value at the cursor without parsing or holding it."""
        self.peek()
        depth, in_string = 0, False
        while True:
            position = self._at
            while (match := _MARKS.search(self._text, position)) is not None:
                mark, position = match.group(), match.end()
                if in_string:
                    if mark == "\\":
                        position += 1
                    in_string = mark != '"'
                    if not in_string and depth == 0:
                        return self._move(position)
                elif mark == '"':
                    in_string = True
                elif mark in "{[":
                    depth += 1
                elif depth == 0:
                    return self._move(position - 1)  # behind a number or a word
                elif mark in "}]":
                    depth -= 1
                    if depth == 0:
                        return self._move(position)
            beyond = max(0, position - len(self._text))
            self._move(len(self._text))
            if not self._more():
                raise self.broken("the value does not end")
            self._move(beyond)

    def _move(self, to: int) -> None:
        passed = self._text[self._at : to]
        self.line += passed.count("\n")
        if passed.isascii():
            self.offset += len(passed)
        else:
            self.offset += len(passed.encode(self._encoding, "surrogateescape"))
        self._at = to

    def _more(self) -> bool:
        """Reads on, at least doubling what is held; False at the end of the file."""
        if self._ended:
            return False
        rest = self._text[self._at :]
        data = self._stream.read(max(_BLOCK, len(rest)))
        self._ended = not data
        added = self._decoder.decode(data, final=self._ended)
        self._text, self._at = rest + added, 0
        return bool(added) or not self._ended
