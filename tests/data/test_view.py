"""The label audit and the decoded preview."""

from __future__ import annotations

from llmkit.data.view import Span, audit, spans
from tests.fakes import MemorySplit


def letters(ids: list[int]) -> str:
    return "".join(chr(96 + i) for i in ids)


def test_audit_of_documents():
    found = audit(MemorySplit([[9, 1, 2, 9], [9, 9], [9], [9, 1]]), [9])
    assert found.rows == 4
    assert found.tokens == 9
    assert found.supervised_tokens == 5
    assert found.supervised_share == 5 / 9
    assert found.zero_label_rows == 1
    assert found.ends_supervised_share == 2 / 3


def test_audit_of_answers():
    masks = [[0, 0, 1, 1], [0, 0, 0], [0, 1, 0], [0, 1, 1]]
    found = audit(MemorySplit([[1, 2, 3, 9], [1, 2, 9], [1, 9, 4], [1, 2, 3]], masks=masks), [9])
    assert found.supervised_tokens == 5
    assert found.zero_label_rows == 1
    assert found.ends_supervised_share == 2 / 4
    assert found.as_json()["rows"] == 4


def test_audit_of_nothing():
    found = audit(MemorySplit([]), [9])
    assert found.supervised_share is None
    assert found.ends_supervised_share is None


def test_spans_cover_the_row():
    split = MemorySplit([[1, 2, 3, 4]], masks=[[1, 0, 1, 1]])
    assert spans(split, 0, letters) == [Span("ab", False), Span("cd", True)]
    assert spans(MemorySplit([[1, 2, 3]]), 0, letters) == [Span("a", False), Span("bc", True)]
