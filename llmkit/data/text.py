"""Measures of text, whole batches at a time: words, scripts, the strings of a record, and its content hash."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any

import numpy as np
import xxhash

HASH_BYTES = 16
OTHER, SPACE, CJK = 0, 1, 2

CJK_RANGES = (
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
SEPARATOR_RANGES = (
    (0x09, 0x0D),
    (0x1C, 0x20),
    (0x85, 0x85),
    (0xA0, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x201C, 0x201F),  # double quotes, which Chinese sets without blanks
    (0x2026, 0x2026),
    (0x202F, 0x202F),
    (0x205F, 0x205F),
    (0x3000, 0x303F),  # the ideographic space and CJK punctuation, which stands between words
    (0xFF01, 0xFF0F),  # fullwidth punctuation
    (0xFF1A, 0xFF20),
    (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF65),
)


LONG = 1000
"""Characters a text from which counting text by text is faster than finding every place first."""


@cache
def _classes() -> np.ndarray:
    table = np.zeros(0x110000, np.uint8)
    for first, last in SEPARATOR_RANGES:
        table[first : last + 1] = SPACE
    for first, last in CJK_RANGES:
        table[first : last + 1] = CJK
    return table


def _plain_words(codes: np.ndarray) -> np.ndarray:
    """(C,) bool: ASCII characters (C,) uint8 that belong to words. Below a range the difference wraps around."""
    (first, last), *others = [one for one in SEPARATOR_RANGES if one[0] < 0x80]
    words: np.ndarray = codes - np.uint8(first) > last - first
    for first, last in others:
        words &= codes - np.uint8(first) > last - first
    return words


def _word_starts(words: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(C,) bool: characters that begin a word, of the flags (C,) of those in one; `starts` of texts laid end to end
    begin anew."""
    begins = np.empty_like(words)
    np.greater(words[1:], words[:-1], out=begins[1:])
    heads = starts[starts < len(words)]
    begins[heads] = words[heads]
    return begins


def _sums(flags: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    if len(flags) > LONG * len(ends):
        return np.array([np.count_nonzero(flags[a:b]) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)])
    positions = np.flatnonzero(flags)
    return np.searchsorted(positions, ends) - np.searchsorted(positions, starts)


def count_words(texts: list[str], encoded: list[bytes] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(N,) words and (N,) CJK characters of N texts; `encoded` are the same in UTF-8, where that is at hand.

    Words are separated by whitespace and by CJK punctuation; each CJK character is a word of its own.
    """
    words, cjk = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
    groups: tuple[list[int], list[int]] = ([], [])
    for i, text in enumerate(texts):
        groups[text.isascii()].append(i)
    for plain, members in enumerate(groups):
        if not members:
            continue
        ends = np.cumsum([len(texts[i]) for i in members])
        starts = np.concatenate(([0], ends[:-1]))
        if plain:  # comparing bytes is ten times faster than looking them up
            data = b"".join([encoded[i] if encoded is not None else texts[i].encode() for i in members])
            codes = np.frombuffer(data, np.uint8)
            words[members] = _sums(_word_starts(_plain_words(codes), starts), starts, ends)
            continue
        joined = "".join([texts[i] for i in members])
        classes = _classes()[np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")]
        ideographs = classes == CJK
        words[members] = _sums(_word_starts(classes == OTHER, starts) | ideographs, starts, ends)
        cjk[members] = _sums(ideographs, starts, ends)
    return words, cjk


def content_hash(data: bytes) -> bytes:
    """By which documents are dropped as copies: nobody can write another of the same hash."""
    return blake2b(data, digest_size=HASH_BYTES).digest()


def document_hash(data: bytes) -> bytes:
    """By which documents are sampled, held out and named in results: twenty times faster, without that promise."""
    return xxhash.xxh3_128_digest(data)


def in_validation(digest: bytes, fraction: float) -> bool:
    """Whether the document of this content hash is held out: the same answer for identical documents, ever."""
    return int.from_bytes(blake2b(digest, digest_size=8, person=b"validation").digest(), "big") < fraction * 2**64


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A text, or a list of texts or of messages with the text of each `content` changed; all else stays as it is."""
    if isinstance(value, str):
        return change(value)
    if not isinstance(value, list):
        return value
    return [change(item) if isinstance(item, str) else _map_message(item, change) for item in value]


def _map_message(message: Any, change: Callable[[str], str]) -> Any:
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": change(content)}
    if isinstance(content, list):
        parts = [
            {**part, "text": change(part["text"])}
            if isinstance(part, dict) and isinstance(part.get("text"), str)
            else part
            for part in content
        ]
        return {**message, "content": parts}
    return message


def texts_of(value: Any) -> list[str]:
    """The strings that `map_texts` changes, in order."""
    found: list[str] = []

    def keep(text: str) -> str:
        found.append(text)
        return text

    map_texts(value, keep)
    return found


def record_text(columns: dict[str, list[Any]], i: int, roles: Sequence[str]) -> str:
    """The text of record i: its values of `roles`, joined by line breaks, the words of a list of words by blanks. What
    filters look at and trained tokenizers see."""
    if len(roles) == 1 and isinstance(text := columns[roles[0]][i], str):
        return text
    parts = []
    for role in roles:
        value = columns[role][i] if role in columns else None
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = " ".join(value)
        parts += texts_of(value)
    return "\n".join(parts)


def record_bytes(columns: dict[str, list[Any]], i: int) -> bytes:
    """What identifies record i's content: its text, or canonical JSON of its roles. Raises UnicodeEncodeError."""
    if len(columns) == 1 and "text" in columns:
        return str(columns["text"][i]).encode()
    row = {role: values[i] for role, values in columns.items()}
    return json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode()
