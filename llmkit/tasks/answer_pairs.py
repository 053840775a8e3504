"""Instruction tuning of an encoder-decoder: the conversation up to an answer is the source, the answer the target.

The prompt is rendered by the chat template exactly as for a decoder-only model. A conversation of several answers gives
a row an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.data.examples import Encoded
from llmkit.data.records import RecordBatch
from llmkit.data.view import LabelAudit, Rows, Span
from llmkit.errors import RecipeError
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import Instruction
from llmkit.tasks.base import Task
from llmkit.tasks.chat import ChatFormat, ConversationError, Segment
from llmkit.tasks.network import NetworkSpec
from llmkit.tasks.pair_encoder import (
    Frame,
    Overflow,
    audit_pairs,
    overflow_reason,
    pair,
    pair_spans,
    ragged,
    read_frame,
    streams_of,
)
from llmkit.tasks.seq2seq import Seq2SeqTask, refuse_packing
from llmkit.tasks.templates import Template, resolve_template


def build(recipe: Recipe, network: NetworkSpec) -> Task:
    """The task of a recipe whose model is an encoder-decoder."""
    assert isinstance(recipe.task, Instruction)
    if recipe.task.train_on == "all":
        message = "an encoder-decoder writes the answer alone, so nothing else can be learnt; leave it out"
        raise RecipeError(message, key="task.train_on")
    refuse_packing(recipe.data.packing)
    overflow = recipe.data.overflow or "truncate"
    assert overflow != "split", "the recipe's checks refuse it"
    template = resolve_template(recipe.tokenizer.chat_template, network.tokenizer_dir)
    encoder = AnswerEncoder(network.tokenizer_dir, template, network.max_length, overflow)
    convention = (
        f"window: each answer after its conversation, at most {network.max_length} tokens each; the answer's tokens "
        "and its end are predicted, perplexity a token"
    )
    weights = tuple(source.weight for source in recipe.data.train)
    return Seq2SeqTask(network, weights, encoder, convention, template.text)


@dataclass
class AnswerEncoder:
    """`overflow` as PairEncoder's, but that a prompt is cut at its beginning."""

    tokenizer_dir: Path
    template: Template
    max_length: int
    overflow: Overflow
    chat: ChatFormat = field(init=False, repr=False)
    _frame: Frame = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.chat = ChatFormat(self.tokenizer_dir, self.template)
        frame = read_frame(self.tokenizer_dir)
        self._frame = Frame((), frame.suffix, frame.end)

    def identity(self) -> dict[str, Any]:
        return {
            "encoder": "answer",
            "version": 1,
            "chat_template": self.template.sha256,
            "max_length": self.max_length,
            "overflow": self.overflow,
        }

    def audit(self, rows: Rows) -> LabelAudit:
        return audit_pairs(rows, [self._frame.end])

    def spans(self, rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
        return pair_spans(rows, i, decode)

    def encode(self, batch: RecordBatch) -> Encoded:
        """columns["messages"]: N lists of messages; columns["tools"]: N lists or None."""
        tools = batch.columns.get("tools") or [None] * len(batch)
        turns: list[tuple[int, list[Segment], Segment]] = []
        rejected: list[tuple[int, str]] = []
        for row, messages in enumerate(batch.columns["messages"]):
            try:
                segments = self.chat.segments(messages, tools[row])
            except ConversationError as error:
                rejected.append((row, str(error)))
                continue
            turns += [(row, segments[:k], segment) for k, segment in enumerate(segments) if segment.is_answer]
        prompts = self.chat.encode([before for _, before, _ in turns])
        answers = self.chat.encode([[answer] for _, _, answer in turns])  # a decoder's text begins anew
        rows, made, truncated = [], [], 0
        for (row, _, _), (prompt, _), (answer, _) in zip(turns, prompts, answers, strict=True):
            example, what = self._pair(prompt, answer)
            if what is not None and (reason := overflow_reason(self.overflow, what, batch, row)) is not None:
                rejected.append((row, reason))
                continue
            truncated += what is not None
            made.append(example)
            rows.append(row)
        gone = dict(rejected)  # a conversation of which one answer does not fit goes whole
        kept = [i for i, row in enumerate(rows) if row not in gone]
        streams = {name: ragged([made[i][name] for i in kept], dtype) for name, dtype in streams_of(True).items()}
        found = np.array([rows[i] for i in kept], dtype=np.int64)
        return Encoded(found, streams, rejected=sorted(gone.items()), truncated=truncated)

    def _pair(self, prompt: np.ndarray, answer: np.ndarray) -> tuple[dict[str, np.ndarray], str | None]:
        """The streams of an answer, and what was too long. A long prompt loses its beginning, not what was asked."""
        if len(answer) and answer[-1] == self._frame.end:  # the frame puts it there
            answer = answer[:-1]
        room = max(self.max_length - len(self._frame.suffix), 1)
        example, what = pair(self._frame, prompt[-room:], answer, self.max_length)
        if len(prompt) > room:
            what = f"{len(prompt)} prompt tokens are more than max_length {self.max_length} has room for"
        return example, what
