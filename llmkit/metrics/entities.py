"""Tagging schemes and entity-level scores, as conlleval and seqeval's default mode read tags. Torch-free.

BMES and BILOU are first read as BIOES (M is I, L is E, U is S). Then an entity goes on where a B or I is followed by an
I or E of the same type; every other tag but O begins a new one. So an I-X without B-X is an entity of its own, as
conlleval has it (https://www.clips.uantwerpen.be/conll2000/chunking/conlleval.txt). It is a dozen lines, so seqeval,
which needs scikit-learn and gives no counts a sentence for intervals, is the tests' reference only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Scheme = Literal["BIO", "IO", "BMES", "BILOU", "none"]
Span = tuple[str, int, int]
"""(type, first word, last word) of an entity."""

OUTSIDE = "O"
LETTERS: dict[Scheme, str] = {"BIO": "BI", "IO": "I", "BMES": "BMIES", "BILOU": "BILU"}
"""What may stand before the type; the middle of BMES is I in some sets (BIOES)."""
_TAG = re.compile(r"([BIMESLU])[-_](.+)", re.DOTALL)
_BIOES = str.maketrans("MLU", "IES")


def split_tag(tag: str) -> tuple[str, str] | None:
    """(letter, type) of a tag such as B-PER; None of O and of tags without a letter."""
    found = _TAG.fullmatch(tag)
    return None if found is None else (found[1], found[2])


def detect_scheme(tags: Collection[str]) -> tuple[Scheme, str | None]:
    """(scheme, tag that does not fit it or None) of a set of tags: by their letters; `none` where most have none."""
    letters = {tag: parts[0] for tag in sorted(tags) if (parts := split_tag(tag)) is not None}
    plain = sorted(tag for tag in tags if tag not in letters and tag != OUTSIDE)
    if len(letters) <= len(plain):
        return "none", None
    used = set(letters.values())
    scheme: Scheme = "BILOU" if used & set("LU") else "BMES" if used & set("MES") else "BIO" if "B" in used else "IO"
    strange = [tag for tag, letter in letters.items() if letter not in LETTERS[scheme]]
    return scheme, next(iter([*plain, *strange]), None)


def contradiction(scheme: Scheme, tags: Collection[str]) -> str | None:
    """A tag that is not of the scheme, or not without others that are missing; None where the tags may be of it."""
    if scheme == "none":
        return None
    letters = {tag: split_tag(tag) for tag in sorted(tags) if tag != OUTSIDE}
    for tag, parts in letters.items():
        if parts is None or parts[0] not in LETTERS[scheme]:
            return tag
    used = {parts[0] for parts in letters.values() if parts is not None}
    # in IO nothing begins; in BIO and IO nothing ends
    missing = {"BIO": "B", "BMES": "E", "BILOU": "L"}.get(scheme, "")
    longer = (tag for tag, parts in letters.items() if parts is not None and parts[0] in "BMI")
    return next(longer, None) if missing and missing not in used else None


def entities(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence's tags, in order."""
    return [span for span, _ in _read(tags)]


def broken(tags: Sequence[str], scheme: Scheme) -> int:
    """Entities that do not begin (or in BMES and BILOU end) as their scheme says."""
    if scheme in ("IO", "none"):
        return 0
    whole = {"B", "S"} if scheme == "BIO" else {"BE", "S"}
    return sum((ends[0] if scheme == "BIO" else ends) not in whole for _, ends in _read(tags))


def _read(tags: Sequence[str]) -> Iterator[tuple[Span, str]]:
    """Each entity and the letters of its first and last tag in BIOES (one letter of a single tag)."""
    begin, kind, letters = 0, "", ""
    for i, tag in enumerate([*tags, OUTSIDE]):
        parts = split_tag(tag)
        letter, new = (parts[0].translate(_BIOES), parts[1]) if parts is not None else (OUTSIDE, "")
        if letters and new == kind and letters[-1] in "BI" and letter in "IE":
            letters += letter
            continue
        if letters:
            yield (kind, begin, i - 1), letters[0] if len(letters) == 1 else letters[0] + letters[-1]
        begin, kind, letters = i, new, "" if letter == OUTSIDE else letter


@dataclass(frozen=True)
class Found:
    """Entities of one sentence (or class of a tag), by type: those that agree, predicted and gold ones."""

    correct: Counter[str]
    predicted: Counter[str]
    gold: Counter[str]


def match_entities(gold: Sequence[str], predicted: Sequence[str]) -> Found:
    """What agrees in type and both ends."""
    ours, theirs = set(entities(predicted)), set(entities(gold))
    return Found(*(Counter(kind for kind, _, _ in spans) for spans in (ours & theirs, ours, theirs)))


def match_tags(gold: Sequence[str], predicted: Sequence[str | None]) -> Found:
    """Tags of scheme `none`, each its own class; None is a word that got no tag."""
    pairs = list(zip(gold, predicted, strict=True))
    agreeing = Counter(tag for tag, other in pairs if tag == other)
    return Found(agreeing, Counter(tag for _, tag in pairs if tag is not None), Counter(gold))


def score(correct: float, predicted: float, gold: float) -> tuple[float, float, float]:
    """Precision, recall and F1; 0 where there is nothing to divide by, as in seqeval and scikit-learn."""
    precision = correct / predicted if predicted else 0.0
    recall = correct / gold if gold else 0.0
    return precision, recall, 2 * correct / (predicted + gold) if predicted + gold else 0.0
