"""Questions on a context to windows of tokens: the question, then as much of the context as fits, each window beginning
`doc_stride` tokens before the last one ended. What joins and scores them later is stored beside the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.data.answers import Answers, UnusableAnswers, read_answers
from llmkit.data.examples import Encoded
from llmkit.data.records import RecordBatch
from llmkit.data.specials import Frame, read_frame
from llmkit.data.tokenizer import read_special_ids
from llmkit.data.tokenizer_core import read_literal
from llmkit.data.view import LabelAudit, Rows, Span, audit_labels, label_spans
from llmkit.errors import ModelError, RecipeError
from llmkit.tasks.token_encoder import ragged

OFFSETS = "offsets"
"""Stream: (first, one past the last) character in the context of each of the window's context tokens, in pairs."""
COUNTED = {
    "moved": "answers whose offset was wrong, found elsewhere",
    "searched": "answers without an offset, found by their text",
    "lost": "answers that are not in their context, while others of the question are",
    "cut": "questions cut to half of max_length",
}
"""Fields of a record's first window (0 in the others), and what they count."""


@dataclass
class QuestionEncoder:
    """Lengths in tokens; two windows share `doc_stride` tokens, half a window at most. A question that is longer than
    half of `max_length` is cut at its end. framed: the tokenizer was given tokens to stand around the texts."""

    tokenizer_dir: Path
    max_length: int
    doc_stride: int
    framed: bool = False
    _frame: Frame | None = field(default=None, init=False, repr=False)

    def identity(self) -> dict[str, Any]:
        return {
            "encoder": "question_answering",
            "version": 1,
            "max_length": self.max_length,
            "doc_stride": self.doc_stride,
            "framed": self.framed,
        }

    def audit(self, rows: Rows) -> LabelAudit:
        counts = {what: int(np.asarray(rows.field(name).to_numpy()).sum()) for name, what in COUNTED.items()}
        counts["windows without the answer"] = int((np.asarray(rows.field("end").to_numpy()) == 0).sum())
        return audit_labels(rows).counting(counts)

    def spans(self, rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
        start, end = (rows.field(name)[i].as_py() for name in ("start", "end"))
        answer = decode(rows.row(i).tolist()[start : end + 1]) if end else "(no answer in this window)"
        return label_spans(rows, i, decode, answer)

    def encode(self, batch: RecordBatch) -> Encoded:
        """columns: question, context; answers, is_impossible, id where the data has them."""
        count = len(batch)
        answers_of, impossible, ids = (
            batch.columns.get(name) or [None] * count for name in ("answers", "is_impossible", "id")
        )
        kept: list[tuple[int, Answers]] = []
        rejected: list[tuple[int, str]] = []
        for row, context in enumerate(batch.columns["context"]):
            try:
                kept.append((row, read_answers(context, answers_of[row], impossible[row])))
            except UnusableAnswers as problem:
                rejected.append((row, str(problem)))
        if not kept:
            return Encoded(np.empty(0, np.int64), _streams([], []), rejected=rejected)
        core = read_literal(self.tokenizer_dir)
        texts = ([batch.columns[name][row] for row, _ in kept] for name in ("question", "context"))
        questions, contexts = (core.encode_batch(list(part), add_special_tokens=False) for part in texts)
        made = _Windows(self.frame(), self.max_length, self.doc_stride)
        for (row, answers), question, context in zip(kept, questions, contexts, strict=True):
            if not context.ids:
                rejected.append((row, "the tokenizer gives no token for the context"))
                continue
            record = {
                "id": None if ids[row] is None else str(ids[row]),
                "question": batch.columns["question"][row],
                "answers": answers.texts,
                "context": batch.columns["context"][row],
                "moved": answers.moved,
                "searched": answers.searched,
                "lost": answers.lost,
            }
            made.add(row, record, question.ids, context, answers.spans[0] if answers.spans else None)
        return made.encoded(sorted(rejected))

    def frame(self) -> Frame:
        """The tokenizer's own frame of two texts, with a first token that stands for no answer."""
        if self._frame is None:
            frame = read_frame(self.tokenizer_dir, pair=True)
            if not frame.before:
                ids = read_special_ids(self.tokenizer_dir)
                if ids.prefix is None:
                    message = f"the tokenizer in {self.tokenizer_dir} has no special token that could stand first"
                    raise ModelError(message, key="tokenizer")
                frame = Frame((ids.prefix,), frame.between or (ids.prefix,), frame.after, frame.types)
            self._frame = frame
        return self._frame


def _streams(ids: list[np.ndarray], offsets: list[np.ndarray]) -> dict[str, Any]:
    return {"input_ids": ragged(ids, np.uint32), OFFSETS: ragged(offsets, np.int32)}


class _Windows:
    """Collects the windows of a batch."""

    def __init__(self, frame: Frame, max_length: int, doc_stride: int):
        self.frame = frame
        self.max_length = max_length
        self.doc_stride = doc_stride
        self.rows: list[int] = []
        self.ids: list[np.ndarray] = []
        self.offsets: list[np.ndarray] = []
        self.fields: dict[str, list[Any]] = {}

    def add(
        self, row: int, record: dict[str, Any], question: list[int], context: Any, answer: tuple[int, int] | None
    ) -> None:
        """One question. answer: its characters in the context, None where there is none."""
        frame, longest = self.frame, (self.max_length - self.frame.size) // 2
        if longest < 1:
            message = (
                f"{self.max_length} tokens leave no room for question and context beside {frame.size} special ones"
            )
            raise RecipeError(message, key="data.max_length")
        record["cut"] = int(len(question) > longest)
        question = question[:longest]
        head = [*frame.before, *question, *frame.between]
        room = self.max_length - len(head) - len(frame.after)
        step = room - min(self.doc_stride, room // 2)
        ids, offsets = np.array(context.ids, np.int64), np.array(context.offsets, np.int64)
        span = _tokens_of(offsets, answer)
        for window, begin in enumerate(range(0, max(len(ids) - room + step, 1), step)):
            end = min(begin + room, len(ids))
            inside = span is not None and begin <= span[0] and span[1] < end
            start, stop = (place - begin + len(head) for place in span) if inside and span is not None else (0, 0)
            first = window == 0
            empty = {"question": "", "answers": [], "context": "", "moved": 0, "searched": 0, "lost": 0, "cut": 0}
            values = record if first else {**record, **empty}
            values = {**values, "window": window, "head": len(head), "question_tokens": len(question)}
            for name, value in {**values, "start": start, "end": stop}.items():
                self.fields.setdefault(name, []).append(value)
            self.ids.append(np.concatenate((head, ids[begin:end], frame.after)).astype(np.int64))
            self.offsets.append(offsets[begin:end].reshape(-1))
            self.rows.append(row)

    def encoded(self, rejected: list[tuple[int, str]]) -> Encoded:
        cut = sum(self.fields.get("cut", []))
        return Encoded(np.array(self.rows, np.int64), _streams(self.ids, self.offsets), self.fields, rejected, cut)


def _tokens_of(offsets: np.ndarray, answer: tuple[int, int] | None) -> tuple[int, int] | None:
    """(first, last) token that holds a character of the answer; None where no token does."""
    if answer is None:
        return None
    inside = np.flatnonzero((offsets[:, 1] > answer[0]) & (offsets[:, 0] < answer[1]))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None
