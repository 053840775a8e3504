"""The label audit and the decoded preview."""

from __future__ import annotations

import numpy as np

from llmkit.data.examples import Encoded, Ragged
from llmkit.data.view import EncodedRows, Span, audit, spans
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


def test_rows_that_were_never_written():
    streams = {
        "input_ids": Ragged(np.array([1, 2, 3, 4, 5], np.uint32), np.array([2, 3])),
        "loss_mask": Ragged(np.array([0, 1, 0, 0, 1], np.uint8), np.array([2, 3])),
    }
    rows = EncodedRows(Encoded(np.arange(2), streams))
    assert rows.row(1, start=1).tolist() == [4, 5]
    assert audit(rows, [5, 2]).ends_supervised_share == 1.0
    assert spans(rows, 1, letters) == [Span("cd", False), Span("e", True)]


def test_spans_cover_the_row():
    split = MemorySplit([[1, 2, 3, 4]], masks=[[1, 0, 1, 1]])
    assert spans(split, 0, letters) == [Span("ab", False), Span("cd", True)]
    assert spans(MemorySplit([[1, 2, 3]]), 0, letters) == [Span("a", False), Span("bc", True)]
