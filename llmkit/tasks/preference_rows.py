"""Preference rows to tokens: the torch-free half of the task. Picklable, for worker processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmkit.data.examples import Encoded, Ragged
from llmkit.data.records import RecordBatch
from llmkit.data.view import LabelAudit, Rows, Span, audit, spans
from llmkit.errors import DataError
from llmkit.tasks.chat import ChatFormat, ConversationError, Segment
from llmkit.tasks.encoders import LOSS_MASK
from llmkit.tasks.templates import Template

REJECTED, REJECTED_MASK = "rejected_ids", "rejected_mask"

Tokens = tuple[np.ndarray, np.ndarray]
"""(ids (L,), mask (L,): 1 on the answer)."""


@dataclass
class AnswerEncoder:
    """Streams: input_ids and loss_mask of the chosen (kto: the rated) conversation, and the same of the rejected one.

    The mask is 1 on the answer that is judged, not on earlier ones. `overflow` beyond `max_length` tokens: "truncate"
    drops the prompt's beginning, the same of both sides, where it leaves less than the answers need or half of
    `max_length`, and then the answers' ends; "drop" rejects the row; "error" raises DataError.
    """

    tokenizer_dir: Path
    template: Template
    rated: bool
    max_length: int
    overflow: Literal["truncate", "drop", "error"]
    chat: ChatFormat = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.chat = ChatFormat(self.tokenizer_dir, self.template)

    def identity(self) -> dict[str, Any]:
        return {
            "encoder": "preference",
            "version": 1,
            "rated": self.rated,
            "chat_template": self.template.sha256,
            "max_length": self.max_length,
            "overflow": self.overflow,
        }

    def audit(self, rows: Rows) -> LabelAudit:
        return audit(rows, self.chat.stop_ids)

    def spans(self, rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
        shown = spans(rows, i, decode)
        if self.rated:
            return [*shown, Span("good" if rows.field("good")[i].as_py() else "bad", True)]
        ids, mask = rows.row(i, REJECTED), rows.row(i, REJECTED_MASK)
        return [*shown, Span("rejected: " + decode(ids[mask != 0].tolist()), True)]

    def encode(self, batch: RecordBatch) -> Encoded:
        """columns: chosen, rejected and answered, or messages and label; tools."""
        names = ("messages",) if self.rated else ("chosen", "rejected")
        rejected: dict[int, str] = {}
        sides = [self._side(batch, name, rejected) for name in names]
        kept, cut = [], 0
        made: list[list[Tokens]] = [[] for _ in names]
        for row in range(len(batch)):
            if row in rejected:
                continue
            whole = [side[row] for side in sides]
            longest = max(len(ids) for ids, _ in whole)
            if longest > self.max_length:
                if self.overflow != "truncate":
                    rejected[row] = self._refuse(batch, row, longest)
                    continue
                whole, cut = _truncated(whole, self.max_length), cut + 1
            kept.append(row)
            for side, tokens in zip(made, whole, strict=True):
                side.append(tokens)
        streams = {}
        names_of = (("input_ids", LOSS_MASK), (REJECTED, REJECTED_MASK))
        for side, (ids_name, mask_name) in zip(made, names_of, strict=False):
            streams[ids_name] = _ragged([ids for ids, _ in side], np.int32)
            streams[mask_name] = _ragged([mask for _, mask in side], np.uint8)
        fields = {"good": [batch.columns["label"][row] for row in kept]} if self.rated else {}
        return Encoded(np.array(kept, dtype=np.int64), streams, fields, sorted(rejected.items()), cut)

    def _side(self, batch: RecordBatch, name: str, rejected: dict[int, str]) -> dict[int, Tokens]:
        tools = batch.columns["tools"]
        segments: dict[int, list[Segment]] = {}
        for row, messages in enumerate(batch.columns[name]):
            before = (
                sum(message["role"] == "assistant" for message in messages) - 1
                if self.rated
                else batch.columns["answered"][row]
            )
            try:
                segments[row] = _judged(self.chat.segments(messages, tools[row]), before)
            except ConversationError as error:
                rejected[row] = str(error)
        tokens = self.chat.encode(list(segments.values()))
        for _, mask in tokens:
            mask[:1] = 0  # nothing stands before the first token that could predict it
        return dict(zip(segments, tokens, strict=True))

    def _refuse(self, batch: RecordBatch, row: int, longest: int) -> str:
        """Why an over-long row is not used. Raises DataError with `overflow: error`."""
        what = f"{longest} tokens, more than max_length {self.max_length}"
        if self.overflow == "error":
            message = f"{what}; set data.overflow to truncate or drop, or raise data.max_length"
            raise DataError(message, file=batch.file, line=batch.lines[row])
        return what


def _truncated(sides: list[Tokens], max_length: int) -> list[Tokens]:
    """Both sides within `max_length`; their prompts stay the same."""
    starts = [int(np.argmax(mask)) for _, mask in sides]
    answers = max(len(ids) - start for (ids, _), start in zip(sides, starts, strict=True))
    room = max_length - min(answers, max_length // 2)
    cuts = [max(start - room, 0) for start in starts]
    return [(ids[cut:][:max_length], mask[cut:][:max_length]) for (ids, mask), cut in zip(sides, cuts, strict=True)]


def _judged(segments: list[Segment], before: int) -> list[Segment]:
    """The segments with the first `before` answers as part of the prompt."""
    made = []
    for segment in segments:
        if segment.is_answer and before > 0:
            segment, before = replace(segment, is_answer=False), before - 1
        made.append(segment)
    return made


def _ragged(rows: list[np.ndarray], dtype: type[np.generic]) -> Ragged:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return Ragged(np.concatenate(rows).astype(dtype) if rows else np.empty(0, dtype), lengths)
