"""The torch-free halves of the language-model tasks: records in, token streams out. Picklable, for worker processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmkit.data.examples import Encoded, Ragged
from llmkit.data.records import RecordBatch
from llmkit.data.tokenizer import BatchEncoder, read_special_ids, wrap
from llmkit.data.view import LabelAudit, Rows, Span, audit, spans
from llmkit.errors import DataError, ModelError
from llmkit.tasks.chat import ChatFormat, ConversationError
from llmkit.tasks.templates import Template

LOSS_MASK = "loss_mask"
"""Stream beside the tokens of instruction rows: 1 where the token is supervised as a target."""


@dataclass
class CausalLMEncoder:
    """A document is [prefix] + tokens + [end of sequence]; windows are cut on reading, so no length counts here."""

    tokenizer_dir: Path
    uses_fim: bool = False
    _engine: BatchEncoder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._engine = BatchEncoder(self.tokenizer_dir)
        ids = read_special_ids(self.tokenizer_dir)
        if ids.prefix is None or ids.suffix is None:
            message = f"the tokenizer in {self.tokenizer_dir} has no end-of-sequence token; documents need one"
            raise ModelError(message, key="tokenizer")
        self._prefix, self._suffix = ids.prefix, ids.suffix

    def identity(self) -> dict[str, Any]:
        return {"encoder": "causal_lm", "version": 1, "fim": self.uses_fim}

    def audit(self, rows: Rows) -> LabelAudit:
        return audit(rows, self.stop_ids)

    def spans(self, rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
        return spans(rows, i, decode)

    def encode(self, batch: RecordBatch) -> Encoded:
        """columns["text"]: N strings."""
        tokens = self._engine.encode(batch.columns["text"])
        return Encoded(np.arange(len(batch)), {"input_ids": wrap(tokens, self._prefix, self._suffix)})

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens that a continuation of `text` is generated from: a document's beginning."""
        return [self._prefix, *self._engine.encode([text]).values.tolist()]

    @property
    def stop_ids(self) -> list[int]:
        return [self._suffix]


@dataclass
class InstructionEncoder:
    """A conversation up to its last answer, and which of its tokens are supervised.

    `overflow` beyond `max_length` tokens: "truncate" drops tokens from the end (the end of an answer that is cut is not
    taught), and rejects a row that keeps no supervised token; "drop" rejects the row; "error" raises DataError.
    """

    tokenizer_dir: Path
    template: Template
    train_on: Literal["completion", "all"]
    max_length: int
    overflow: Literal["truncate", "drop", "error"]
    chat: ChatFormat = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.chat = ChatFormat(self.tokenizer_dir, self.template)

    def identity(self) -> dict[str, Any]:
        return {
            "encoder": "instruction",
            "version": 1,
            "chat_template": self.template.sha256,
            "train_on": self.train_on,
            "max_length": self.max_length,
            "overflow": self.overflow,
        }

    @property
    def stop_ids(self) -> list[int]:
        return self.chat.stop_ids

    def audit(self, rows: Rows) -> LabelAudit:
        return audit(rows, self.stop_ids)

    def spans(self, rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
        return spans(rows, i, decode)

    def encode(self, batch: RecordBatch) -> Encoded:
        """columns["messages"]: N lists of messages; columns["tools"]: N lists or None."""
        tools = batch.columns.get("tools") or [None] * len(batch)
        conversations, rows = [], []
        rejected: list[tuple[int, str]] = []
        for row, messages in enumerate(batch.columns["messages"]):
            try:
                conversations.append(self.chat.segments(messages, tools[row]))
                rows.append(row)
            except ConversationError as error:
                rejected.append((row, str(error)))
        ids, masks, kept, truncated = [], [], [], 0
        for row, (tokens, mask) in zip(rows, self.chat.encode(conversations), strict=True):
            if self.train_on == "all":
                mask = np.ones_like(mask)
            mask[:1] = 0  # nothing stands before the first token that could predict it
            if len(tokens) > self.max_length:
                reason = self._overflow(batch, row, len(tokens), mask)
                if reason is not None:
                    rejected.append((row, reason))
                    continue
                tokens, mask = tokens[: self.max_length], mask[: self.max_length]
                truncated += 1
            ids.append(tokens.astype(np.uint32))
            masks.append(mask)
            kept.append(row)
        streams = {"input_ids": _ragged(ids, np.uint32), LOSS_MASK: _ragged(masks, np.uint8)}
        return Encoded(np.array(kept, dtype=np.int64), streams, rejected=sorted(rejected), truncated=truncated)

    def _overflow(self, batch: RecordBatch, row: int, length: int, mask: np.ndarray) -> str | None:
        """Why an over-long row is not used; None where it is truncated."""
        what = f"{length} tokens, more than max_length {self.max_length}"
        if self.overflow == "error":
            raise DataError(
                f"{what}; set data.overflow to truncate or drop, or raise data.max_length",
                file=batch.file,
                line=batch.lines[row],
            )
        if self.overflow == "drop":
            return what
        return None if mask[: self.max_length].any() else f"{what}, and truncated no supervised token is left"


def _ragged(rows: list[np.ndarray], dtype: type[np.generic]) -> Ragged:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return Ragged(np.concatenate(rows).astype(dtype, copy=False) if rows else np.empty(0, dtype), lengths)
