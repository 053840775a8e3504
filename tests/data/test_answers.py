"""Answers: the forms in which rows have them, and where they are found."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.data.answers import UnusableAnswers, locate, read_answers

CONTEXT = "Paris is the capital of France.  The capital is PARIS\u3000again. １９９４年"


@pytest.mark.parametrize(
    ("text", "start", "found"),
    [
        ("capital", 13, "capital"),
        ("capital", 14, "capital"),
        ("capital", 60, "capital"),
        ("the capital of france", 0, "the capital of France"),
        ("France. The", 3, "France.  The"),
        ("1994年", None, "１９９４年"),
        (" is ", None, "is"),
        ("paris again", 0, "PARIS\u3000again"),
        ("London", 0, None),
        ("", 0, ""),
    ],
)
def test_locate(text: str, start: int | None, found: str | None) -> None:
    span = locate(CONTEXT, text, start)
    assert (CONTEXT[slice(*span)] if span is not None else None) == found


def test_the_nearest_is_taken() -> None:
    assert locate("ab ab ab", "ab", 4) == (3, 5)
    assert locate("ab ab ab", "ab", None) == (0, 2)


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["is"], "answer_start": [6]},
        {"text": "is", "answer_start": 6},
        [{"text": "is", "answer_start": 6}],
        ["is"],
        "is",
    ],
)
def test_forms(answers: Any) -> None:
    found = read_answers(CONTEXT, answers, None)
    assert (found.texts, found.spans, found.moved) == (["is"], [(6, 8)], 0)


def test_repairs_are_counted() -> None:
    answers = {"text": ["is", "Paris", "France", "nowhere"], "answer_start": [7, 0, None, 3]}
    found = read_answers(CONTEXT, answers, False)
    assert (found.moved, found.searched, found.lost) == (1, 1, 1)
    assert found.texts == answers["text"]
    assert len(found.spans) == 3


@pytest.mark.parametrize(
    ("answers", "impossible"),
    [({"text": [], "answer_start": []}, None), ([], None), (["is"], True), (None, True), (["is"], "true")],
)
def test_no_answer(answers: Any, impossible: Any) -> None:
    assert read_answers(CONTEXT, answers, impossible).texts == []


@pytest.mark.parametrize(
    ("answers", "impossible", "reason"),
    [
        (None, None, "there is no answer"),
        ([], False, "there is no answer"),
        ([" "], False, "there is no answer"),
        (["London"], None, "not in the context"),
        ({"text": ["is", "of"], "answer_start": [1]}, None, "2 texts of answers and 1 offsets"),
        ([{"start": 1}], None, "without text"),
        (3, None, "neither text"),
    ],
)
def test_unusable(answers: Any, impossible: Any, reason: str) -> None:
    with pytest.raises(UnusableAnswers, match=reason):
        read_answers(CONTEXT, answers, impossible)
