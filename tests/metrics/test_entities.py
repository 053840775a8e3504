"""Tagging schemes, and entities against seqeval."""

from __future__ import annotations

import random
import warnings

import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from llmkit.metrics.entities import (
    Scheme,
    broken,
    contradiction,
    detect_scheme,
    entities,
    match_entities,
    match_tags,
    score,
)

TO_BIOES = {"M": "I", "L": "E", "U": "S"}


def tags_of(letters: str, kinds: str = "XY") -> list[str]:
    return ["O", *(f"{letter}-{kind}" for letter in letters for kind in kinds)]


def bioes(tags: list[str]) -> list[str]:
    return [TO_BIOES.get(tag[0], tag[0]) + tag[1:] for tag in tags]


@pytest.mark.parametrize("letters", ["BI", "I", "BMES", "BIES", "BILU"])
def test_equals_seqeval(letters: str) -> None:
    draw = random.Random(letters)
    tags = tags_of(letters)
    gold = [draw.choices(tags, k=draw.randint(1, 12)) for _ in range(500)]
    predicted = [[tag if draw.random() < 0.7 else draw.choice(tags) for tag in sentence] for sentence in gold]
    assert [entities(sentence) for sentence in gold] == [get_entities(bioes(sentence)) for sentence in gold]
    found = [match_entities(*pair) for pair in zip(gold, predicted, strict=True)]
    sums = [sum(getattr(one, name).total() for one in found) for name in ("correct", "predicted", "gold")]
    pair = ([bioes(one) for one in gold], [bioes(one) for one in predicted])
    expected = (precision_score(*pair), recall_score(*pair), f1_score(*pair))
    assert score(*sums) == pytest.approx(expected, abs=1e-12)


def test_nothing_found_is_zero() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert f1_score([["O"]], [["O"]]) == 0 == score(0, 0, 0)[2]
    assert score(0, 0, 3) == (0, 0, 0)


@pytest.mark.parametrize(
    ("tags", "scheme", "strange"),
    [
        (["O", "B-PER", "I-PER"], "BIO", None),
        (["O", "B-PER"], "BIO", None),
        (["O", "I-PER", "I-LOC"], "IO", None),
        (["B-NAME", "M-NAME", "E-NAME", "S-NAME", "O"], "BMES", None),
        (["B-NAME", "I-NAME", "E-NAME", "S-NAME"], "BMES", None),
        (["B-a-b", "I-a-b", "L-a-b", "U-a-b", "O"], "BILOU", None),
        (["B_PER", "I_PER", "O"], "BIO", None),
        (["NN", "VB", "O"], "none", None),
        (["O"], "none", None),
        (["B-PER", "I-PER", "PER", "O"], "BIO", "PER"),
        (["B-X", "L-X", "M-X"], "BILOU", "M-X"),
    ],
)
def test_detects(tags: list[str], scheme: Scheme, strange: str | None) -> None:
    assert detect_scheme(tags) == (scheme, strange)


@pytest.mark.parametrize(
    ("scheme", "tags", "against"),
    [
        ("BIO", ["B-X", "I-X", "O"], None),
        ("BIO", ["B-X", "M-X", "O"], "M-X"),
        ("BIO", ["I-X", "O"], "I-X"),
        ("BIO", ["NN"], "NN"),
        ("IO", ["B-X", "I-X"], "B-X"),
        ("BMES", ["B-X", "L-X"], "L-X"),
        ("BMES", ["B-X", "I-X", "O"], "B-X"),
        ("BMES", ["S-X", "O"], None),
        ("BILOU", ["B-X", "I-X", "O"], "B-X"),
        ("BILOU", ["S-X"], "S-X"),
        ("BILOU", ["U-X", "O"], None),
        ("none", ["B-X", "NN"], None),
    ],
)
def test_contradictions(scheme: Scheme, tags: list[str], against: str | None) -> None:
    assert contradiction(scheme, tags) == against


def test_counts_what_does_not_begin_or_end() -> None:
    assert broken(["O", "I-X", "I-X", "B-X", "I-Y"], "BIO") == 2
    assert broken(["I-X", "I-Y"], "IO") == 0
    assert broken(["B-X", "M-X", "E-X", "S-X", "B-X", "O", "E-X", "M-X"], "BMES") == 3
    assert broken(["B-X", "L-X", "U-X"], "BILOU") == 0


def test_plain_tags_are_classes() -> None:
    found = match_tags(["N", "V", "N"], ["N", "N", None])
    assert (found.correct["N"], found.predicted["N"], found.gold["N"], found.gold["V"]) == (1, 2, 2, 1)
