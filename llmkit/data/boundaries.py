"""Where words begin and sentences end in a text, English and Chinese, and which tokens that makes the first or last.

Found once, when a text is encoded, so that masking whole words and pairing sentences need no text later. Nothing here
is random.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import numpy as np

HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(rf"[{HAN}]+|(?:(?![{HAN}])\w)+(?:['’](?:(?![{HAN}])\w)+)*")
"""A run of Chinese characters, to be cut into words, or a word of letters, digits and inner apostrophes."""

_CLOSING = "\"'”’»)\\]）】」』》〉"
_END = re.compile(rf"[。！？!?…]+[{_CLOSING}]*|；|(?<!\.)\.(?:\s*\.)*[{_CLOSING}]*(?=\s|$)|(?<=\s)[.!?](?=\s)|\s*\n")
"""Marks that end a sentence. A full stop does only before a blank, so 3.14 and example.com stay whole; so does a line's
end, since headings have no mark."""

_ABBREVIATIONS = frozenset(
    ["mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "etc", "inc", "ltd", "co", "corp", "no", "fig", "vol"]
    + [
        "e.g",
        "i.e",
        "cf",
        "al",
        "gen",
        "col",
        "lt",
        "sgt",
        "capt",
        "rev",
        "gov",
        "sen",
        "rep",
        "u.s",
        "u.k",
        "a.m",
        "p.m",
    ]
)
_BEFORE = re.compile(r"(?:\w\.)*\w+\Z")


@cache
def _jieba() -> Callable[[str], list[str]]:
    import jieba

    jieba.setLogLevel(60)
    cut: Callable[[str], list[str]] = jieba.Tokenizer().lcut
    return cut


def word_breaks(text: str) -> np.ndarray:
    """(len(text) + 1,) bool: whether a word, or a mark that is none, begins at that character.

    Words of Chinese are jieba's. Blanks belong to the word after them, as byte-level and sentencepiece tokens have it.
    """
    breaks = np.ones(len(text) + 1, dtype=bool)
    for found in _RUN.finditer(text):
        start, run = found.start(), found.group()
        breaks[start + 1 : found.end()] = False
        if "\u3400" <= run[0] and re.match(f"[{HAN}]", run):
            for word in _jieba()(run):
                breaks[start] = True
                start += len(word)
    for found in re.finditer(r"\s+", text):
        breaks[found.start() + 1 : found.end() + 1] = False
    return breaks


def sentence_breaks(text: str) -> np.ndarray:
    """(len(text) + 1,) bool: whether a sentence ends before that character; the text's own end not counted."""
    breaks = np.zeros(len(text) + 1, dtype=bool)
    for found in _END.finditer(text):
        if found.group()[0] == "." and _is_abbreviation(text, found.start()):
            continue
        breaks[found.end()] = True
    breaks[len(text)] = False
    return breaks


def _is_abbreviation(text: str, stop: int) -> bool:
    """Whether the full stop at `stop` ends an abbreviation or an initial, not a sentence."""
    before = _BEFORE.search(text, max(0, stop - 20), stop)
    if before is None:
        return False
    word = before.group()
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper() and word.isascii())


def word_starts(text: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(T,) uint8: 1 where a token begins a word; the token's characters are [starts, ends) of `text`, each (T,).

    A break anywhere after the token before counts, so blanks that no token covers do no harm; parts of one character
    share its place, so only the first can begin a word.
    """
    before = np.concatenate([[0], np.cumsum(word_breaks(text))])
    previous = np.concatenate([[0], ends[:-1]])
    found = before[np.maximum(starts, previous - 1) + 1] - before[previous] > 0
    found[:1] = True
    return found.astype(np.uint8)


def sentence_ends(text: str, starts: np.ndarray) -> np.ndarray:
    """(T,) uint8: 1 where a token is the last of a sentence; the last token of the text always is."""
    before = np.concatenate([[0], np.cumsum(sentence_breaks(text))])
    following = np.concatenate([starts[1:], [len(text)]])
    found = before[following + 1] - before[np.minimum(starts, following) + 1] > 0
    found[-1:] = True
    return found.astype(np.uint8)
