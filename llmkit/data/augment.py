"""`data.augment`: changes of labelled text that leave its label true, drawn anew for each showing of a row in training.

A text is cut into words where English has blanks and, for Chinese, where jieba finds words; what stands between words
stays where it is. A sentence of tagged words is cut into units that keep their labels: a whole entity is left out or
moved, never a part of it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from llmkit.errors import RecipeError
from llmkit.recipe.sections import AugmentStep, SpanCutoff, Swap, Synonyms, WordDropout

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{HAN}]+|[^\W{HAN}]+(?:['’.-][^\W{HAN}]+)*")
_LATIN = re.compile(rf"[^\W{HAN}]")
Table = dict[str, tuple[str, ...]]
Draw = np.random.Generator


def augmenter(steps: Sequence[AugmentStep]) -> Augmenter | None:
    """What the steps do, their tables read; None where there are none. Raises RecipeError for a table."""
    if not steps:
        return None
    tables = [
        read_synonyms(Path(step.path), f"data.augment.{i}.path") if isinstance(step, Synonyms) else {}
        for i, step in enumerate(steps)
    ]
    return Augmenter(tuple(zip(steps, tables, strict=True)))


def read_synonyms(path: Path, key: str) -> Table:
    """word -> the others of its lines; a line is a group separated by tabs. Raises RecipeError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as UTF-8 text: {error}", key=key) from error
    found: dict[str, dict[str, None]] = {}
    for number, line in enumerate(lines, 1):
        group = [word.strip() for word in line.split("\t") if word.strip()]
        if len(group) == 1:
            message = f"{path}:{number}: {group[0]!r} stands alone; a line is a group of synonyms separated by tabs"
            raise RecipeError(message, key=key)
        for word in group:
            others = {other: None for other in group if other.lower() != word.lower()}
            found.setdefault(word.lower(), {}).update(others)
    if not found:
        raise RecipeError(f"{path} holds no synonyms", key=key)
    return {word: tuple(others) for word, others in found.items()}


@dataclass(frozen=True)
class Augmenter:
    """The steps in order, each with its table of synonyms."""

    steps: tuple[tuple[AugmentStep, Table], ...]

    def text(self, text: str, draw: Draw) -> str:
        """`text` changed as `draw` says; a text of fewer than two words only by synonyms."""
        gaps, words = cut(text)
        for step, table in self.steps:
            if isinstance(step, Synonyms):
                words = [replaced(word, table, step.p, draw) for word in words]
            else:
                order = ORDERS[type(step)](step, len(words), draw)
                gaps, words = kept_gaps(gaps, order), [words[i] for i in order]
        return joined(gaps, words)

    def words(self, words: Sequence[str], labels: Sequence[str], draw: Draw) -> tuple[list[str], list[str]]:
        """A tagged sentence changed as `draw` says, every word with its label, every entity whole."""
        units = entities(words, labels)
        for step, table in self.steps:
            if isinstance(step, Synonyms):
                units = [[(replaced(word, table, step.p, draw), label) for word, label in unit] for unit in units]
            else:
                moved = [units[i] for i in ORDERS[type(step)](step, len(units), draw)]
                if not any(goes_on(a[-1][1], b[0][1]) for a, b in pairwise(moved)):  # else two entities would be one
                    units = moved
        pairs = [pair for unit in units for pair in unit]
        return [word for word, _ in pairs], [label for _, label in pairs]


def _without_some(step: WordDropout, count: int, draw: Draw) -> list[int]:
    keep = np.flatnonzero(draw.random(count) >= step.p).tolist()
    return keep or ([int(draw.integers(count))] if count else [])


def _swapped(step: Swap, count: int, draw: Draw) -> list[int]:
    order = list(range(count))
    if count > 1:
        for _ in range(int(draw.binomial(count, step.p))):
            a, b = draw.choice(count, 2, replace=False).tolist()
            order[a], order[b] = order[b], order[a]
    return order


def _without_span(step: SpanCutoff, count: int, draw: Draw) -> list[int]:
    size = min(max(round(step.ratio * count), 1), count - 1)
    if draw.random() >= step.p or size < 1:
        return list(range(count))
    start = int(draw.integers(count - size + 1))
    return [i for i in range(count) if not start <= i < start + size]


ORDERS: dict[type, Callable[..., list[int]]] = {
    WordDropout: _without_some,
    Swap: _swapped,
    SpanCutoff: _without_span,
}
"""(step, number of words, random numbers) -> which words stay, in their new order."""


def replaced(word: str, table: Table, p: float, draw: Draw) -> str:
    """With probability p one of the word's synonyms, with a capital where the word has one."""
    others = table.get(word.lower(), ())
    if not others or draw.random() >= p:
        return word
    other = others[int(draw.integers(len(others)))]
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other


def cut(text: str) -> tuple[list[str], list[str]]:
    """(what stands before each word and after the last, the words): n + 1 and n."""
    gaps, words, last = [], [], 0
    for match in _WORD.finditer(text):
        gap = text[last : match.start()]
        for word in _chinese()(match[0]) if _LATIN.match(match[0]) is None else [match[0]]:
            gaps.append(gap)
            words.append(word)
            gap = ""
        last = match.end()
    return [*gaps, text[last:]], words


@functools.cache
def _chinese() -> Callable[[str], list[str]]:
    """jieba's words, of a tokenizer of our own: its dictionary takes a second to read."""
    import jieba

    jieba.setLogLevel(60)
    words: Callable[[str], list[str]] = jieba.Tokenizer().lcut
    return words


def kept_gaps(gaps: list[str], order: Sequence[int]) -> list[str]:
    """The gaps of the places that stay. Punctuation before a word that goes stays; its blanks go with it."""
    stay = set(order)
    found: list[str] = []
    carried: list[str] = []
    for place, gap in enumerate(gaps):
        if place not in stay and place < len(gaps) - 1:
            carried.append(gap)
            continue
        if not found:
            found.append(carried[0] if carried else gap)  # the text begins as it did
        else:
            marks = [part for part in carried if part.strip()]
            found.append(re.sub(r"(\s)\s+", r"\1", "".join([*marks, gap])) if marks else gap)
        carried = []
    return found


def joined(gaps: Sequence[str], words: Sequence[str]) -> str:
    """The text; words that blanks part do not run together."""
    parts = [gaps[0]]
    for i, (word, gap) in enumerate(zip(words, gaps[1:], strict=True)):
        parts += [word, gap]
        if not gap and i + 1 < len(words) and _LATIN.match(word[-1]) and _LATIN.match(words[i + 1][0]):
            parts.append(" ")
    return "".join(parts)


def entities(words: Sequence[str], labels: Sequence[str]) -> list[list[tuple[str, str]]]:
    """A sentence in units of (word, label): an entity (BIO, IO, BMES or BILOU) is one, every other word is one."""
    units: list[list[tuple[str, str]]] = []
    for word, label in zip(words, labels, strict=True):
        if units and goes_on(units[-1][-1][1], label):
            units[-1].append((word, label))
        else:
            units.append([(word, label)])
    return units


def goes_on(before: str, label: str) -> bool:
    """Whether a word labelled `label` belongs to the entity of the word before it."""
    return label[:2] in ("I-", "M-", "E-", "L-") and before[1:2] == "-" and before[2:] == label[2:]
