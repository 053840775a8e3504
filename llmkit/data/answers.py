"""Answers of a question as rows hold them, and where they stand in the context, whose text may have been cleaned since.

An offset that does not match is repaired: the nearest occurrence of the text, else the nearest that is equal but for
case, width and blanks; rather one that cuts no word. An answer that is nowhere is not used; a question that keeps none
is set aside.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

FIRST_CJK = "\u2e80"
"""Scripts from here on write words without blanks between them, as far as they are common."""


class UnusableAnswers(ValueError):
    """Why a record's answers cannot be used."""


@dataclass(frozen=True)
class Answers:
    """texts: as given, what predictions are scored against. spans: (first, one past the last) character of those that
    are found. moved, searched: answers whose offset was wrong, and that had none."""

    texts: list[str]
    spans: list[tuple[int, int]]
    moved: int = 0
    searched: int = 0
    lost: int = 0


def read_answers(context: str, answers: Any, is_impossible: Any) -> Answers:
    """The answers of one record. Raises UnusableAnswers."""
    given = None if is_impossible is None else _is_true(is_impossible)
    if given:
        return Answers([], [])
    pairs = _pairs(answers)
    if not pairs:
        if given is None and answers is not None:
            return Answers([], [])  # SQuAD 2 in flat rows: no answer in the list
        raise UnusableAnswers("there is no answer, and is_impossible is not true")
    spans, moved, searched, lost = [], 0, 0, 0
    for text, start in pairs:
        found = locate(context, text, start)
        if found is None:
            lost += 1
            continue
        searched += start is None
        moved += start is not None and found != (start, start + len(text))
        spans.append(found)
    if not spans:
        raise UnusableAnswers("the answer is not in the context")
    return Answers([text for text, _ in pairs], spans, moved, searched, lost)


def _is_true(value: Any) -> bool:
    return value.strip().lower() in ("true", "1", "yes") if isinstance(value, str) else bool(value)


def _pairs(answers: Any) -> list[tuple[str, int | None]]:
    """(text, offset) of each answer with a text: {text: [...], answer_start: [...]}, a list of {text, answer_start},
    texts, or one of these."""
    if answers is None:
        return []
    if isinstance(answers, dict) and isinstance(answers.get("text"), list | tuple):
        starts = answers.get("answer_start")
        texts = answers["text"]
        starts = starts if isinstance(starts, list | tuple) else [None] * len(texts)
        if len(starts) != len(texts):
            raise UnusableAnswers(f"{len(texts)} texts of answers and {len(starts)} offsets")
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if isinstance(answers, str | dict):
        answers = [answers]
    if not isinstance(answers, list | tuple):
        raise UnusableAnswers("answers is neither text, nor a list, nor {text, answer_start}")
    pairs: list[tuple[str, int | None]] = []
    for one in answers:
        text, start = (one.get("text"), one.get("answer_start")) if isinstance(one, dict) else (one, None)
        if not isinstance(text, str):
            raise UnusableAnswers("an answer without text")
        if text.strip():
            pairs.append((text, start if isinstance(start, int) and start >= 0 else None))
    return pairs


def locate(context: str, text: str, start: int | None) -> tuple[int, int] | None:
    """(first, one past the last) character of `text` in `context`: at `start`, else nearest to it (the first where it
    is None), exactly or but for case, width and blanks. None where it is nowhere."""
    if start is not None and context.startswith(text, start):
        return start, start + len(text)
    size = len(text.strip())
    spans = [(place, place + size) for place in _places(context, text.strip())]
    if not spans:
        folded, origin = _fold(context)
        wanted = _fold(text)[0].strip()
        spans = [(origin[place], origin[place + len(wanted) - 1] + 1) for place in _places(folded, wanted)]
    return min(spans, key=lambda span: (_cuts_a_word(context, *span), abs(span[0] - (start or 0))), default=None)


def _cuts_a_word(context: str, first: int, end: int) -> bool:
    """Whether a span begins or ends inside a word of a script that has blanks between words."""
    ends = [context[place - 1 : place + 1] for place in (first, end) if place]
    return any(len(pair) == 2 and pair.isalnum() and max(pair) < FIRST_CJK for pair in ends)


def _places(text: str, part: str) -> list[int]:
    places = []
    place = text.find(part) if part else -1
    while place >= 0:
        places.append(place)
        place = text.find(part, place + 1)
    return places


def _fold(text: str) -> tuple[str, list[int]]:
    """`text` without differences of case, width and blanks, and the place in it that each character came from."""
    folded: list[str] = []
    origin: list[int] = []
    for place, character in enumerate(text):
        for one in unicodedata.normalize("NFKC", character).casefold():
            if one.isspace():
                if folded and folded[-1] == " ":
                    continue
                one = " "
            folded.append(one)
            origin.append(place)
    return "".join(folded), origin
