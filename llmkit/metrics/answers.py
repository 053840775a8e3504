"""Exact match and F1 of extracted answers, 0 to 1 a question. Torch-free.

English as SQuAD's evaluation has it (arXiv:1606.05250, arXiv:1806.03822): lower case, without punctuation, the articles
a, an, the and spare blanks; F1 of the words as a bag. Chinese as CMRC 2018's (arXiv:1810.07366): lower case, without
punctuation; each Han character and each run of anything else, cut into words, is a unit; F1 of the longest stretch of
units that both share. Which of the two is decided a question: Chinese where question or references hold a CJK
character. CMRC cuts runs of Latin script with NLTK's tokenizer; a regular expression stands for it here.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
HAN = re.compile(r"[\u4e00-\u9fa5]")
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
RUN_WORDS = re.compile(r"[^\W_]+(?:[.,'][^\W_]+)*|[^\w\s]")

Overlap = Callable[[list[str], list[str]], int]


def is_chinese(texts: Sequence[str]) -> bool:
    """Whether one of the texts holds a CJK character."""
    return any(CJK.search(text) for text in texts)


def normalise(text: str) -> str:
    """An English answer as SQuAD compares it."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def normalise_chinese(text: str) -> str:
    """A Chinese answer as CMRC compares it: its punctuation gone, blanks inside kept."""
    return "".join(character for character in text.lower().strip() if character not in CMRC_PUNCTUATION)


def units(text: str) -> list[str]:
    """A Chinese answer in Han characters and words of everything else."""
    found: list[str] = []
    run = ""
    for character in [*normalise_chinese(text), None]:
        if character is not None and not HAN.match(character):
            run += character
            continue
        found += RUN_WORDS.findall(run)
        run = ""
        if character is not None:
            found.append(character)
    return found


def shared_stretch(first: list[str], second: list[str]) -> int:
    """Length of the longest run of units that stands in both."""
    best, lengths = 0, [0] * (len(second) + 1)
    for one in first:
        lengths = [0] + [lengths[j] + 1 if one == other else 0 for j, other in enumerate(second)]
        best = max(best, *lengths)
    return best


def shared_words(first: list[str], second: list[str]) -> int:
    """Words of the two bags in common."""
    return (Counter(first) & Counter(second)).total()


def f1(prediction: list[str], reference: list[str], overlap: Overlap) -> float:
    """2 * overlap / (units of both); of two without any unit it is 0."""
    shared = overlap(prediction, reference)
    return 2 * shared / (len(prediction) + len(reference)) if shared else 0.0


def score_answer(
    prediction: str, references: Sequence[str], *, chinese: bool, may_be_empty: bool = False
) -> tuple[float, float]:
    """(exact match, F1), the best over the references. None at all: the right answer is no answer.

    may_be_empty: SQuAD 2's rule, that references of which nothing is left count as no answer, which F1 knows too.
    """
    plain = normalise_chinese if chinese else normalise
    if may_be_empty and not chinese:
        references = [reference for reference in references if plain(reference)]
    if not references:
        right = float(not plain(prediction))
        return right, right
    exact = max(float(plain(prediction) == plain(reference)) for reference in references)
    cut: Callable[[str], list[str]] = units if chinese else (lambda text: normalise(text).split())
    overlap = shared_stretch if chinese else shared_words
    return exact, max(f1(cut(prediction), cut(reference), overlap) for reference in references)
