"""JSON Lines: an object a line. orjson parses (four times the standard library's speed on text); a line it refuses is
looked at again by the standard library, which accepts NaN and Infinity and says what is wrong with the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from llmkit.data.readers.base import Bad, Chunk, Reading
from llmkit.data.readers.lines import Block, Unparsed, read_blocks, text_stream, too_long, undecodable


def read_jsonl(reading: Reading, state: dict[str, Any] | None) -> Iterator[Unparsed]:
    """Rows are dicts. Blank lines are passed over. State: byte offset and line."""
    place = state or {"line": 1, "offset": 0}
    stream, encoding = text_stream(reading)
    for block in read_blocks(reading, stream, line=place["line"], offset=place["offset"]):
        yield Unparsed(parse_block, block, encoding)


def parse_block(block: Block, encoding: str) -> Chunk:
    if block.oversized:
        return Chunk([], [], [], [(block.line, block.offset, too_long(block.oversized))], {})
    lines, offsets = block.lines(), block.offsets()
    if encoding == "utf-8":
        try:
            rows = list(map(orjson.loads, lines))
        except orjson.JSONDecodeError:
            return _parse_carefully(block.line, offsets, lines, encoding)
        if set(map(type, rows)) == {dict} and not _repeats(block.data, rows):
            return Chunk(rows, list(range(block.line, block.end_line)), list(offsets), [], {})
    return _parse_carefully(block.line, offsets, lines, encoding)


def _repeats(data: bytes, rows: list[dict[str, Any]]) -> bool:
    """Whether a key may stand twice in one of the objects: its quoted name is in `data` more often than it is a key.

    Inside a string its quotes would be escaped, so only another string of that very text gives a false alarm.
    """
    keys = set().union(*rows) if len(rows) > 1 else set(rows[0])
    return any(_count(data, b'"%b"' % key.encode()) > sum(key in row for row in rows) for key in keys)


def _count(data: bytes, name: bytes) -> int:
    """`data.count(name)` for two bytes or more: twice as fast, and without Python's lock.

    Looks for the first two bytes at even places, then at odd ones.
    """
    if len(data) < 1000:
        return data.count(name)
    pair = int.from_bytes(name[:2], "little")
    found = 0
    for shift in (0, 1):
        pairs = np.frombuffer(data, "<u2", (len(data) - shift) // 2, shift)
        found += sum(data.startswith(name, 2 * place + shift) for place in np.flatnonzero(pairs == pair).tolist())
    return found


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` of json: which of two values is meant, nobody can say. Raises DuplicateKey."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateKey(f"the key {next(name for name in names if names.count(name) > 1)[:40]!r} stands twice")
    return made


class DuplicateKey(ValueError):
    """The argument is the reason of a reject."""


def _parse_carefully(first: int, offsets: list[int], lines: list[memoryview], encoding: str) -> Chunk:
    chunk = Chunk([], [], [], [], {})
    for line, (offset, data) in enumerate(zip(offsets, map(bytes, lines), strict=True), first):
        if not data or data.isspace():
            continue
        row = parse_line(data, encoding)
        if isinstance(row, str):
            bad: Bad = (line, offset, row)
            chunk.bad.append(bad)
        else:
            chunk.rows.append(row)
            chunk.lines.append(line)
            chunk.offsets.append(offset)
    return chunk


def parse_line(data: bytes, encoding: str) -> dict[str, Any] | str:
    """The object on a line, or the reason why there is none."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        return undecodable(error)
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "depth limit" in str(error):
            return "JSON nested deeper than 1024 levels"
        return _parse_slowly(text)
    if isinstance(row, dict) and _repeats(data if encoding == "utf-8" else text.encode(), [row]):
        return _parse_slowly(text)
    return row if isinstance(row, dict) else not_an_object(row)


def _parse_slowly(text: str) -> dict[str, Any] | str:
    """What orjson refuses: NaN and huge numbers are accepted, lone surrogates and keys that stand twice are not."""
    if "\0" in text:
        return "contains a NUL character"
    try:
        row = json.loads(text, object_pairs_hook=unique)
    except DuplicateKey as error:
        return str(error)
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
    except (RecursionError, ValueError) as error:
        return f"not JSON that can be read: {error}"
    if has_lone_surrogate(row):
        return "contains a lone surrogate (half of a \\u escape pair)"
    return row if isinstance(row, dict) else not_an_object(row)


def has_lone_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def not_an_object(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return f"expected a JSON object, found {names.get(type(value), 'a number')}"
