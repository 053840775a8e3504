"""The torch-free half of sequence classification: texts (or pairs) as the tokenizer frames them, labels as text.

What a label means (a class, several, a number) is decided over the whole training data, when all of it is known; here
it is kept as it is, in one spelling.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmkit.data.examples import Encoded, Ragged
from llmkit.data.labels import spell
from llmkit.data.records import RecordBatch
from llmkit.data.tokenizer_core import read_core, read_literal
from llmkit.data.view import LabelAudit, Rows, Span, audit_labels, label_spans
from llmkit.errors import DataError, RecipeError

ProblemType = Literal["single_label", "multi_label", "regression"]

LABEL, TEXT, TYPES = "label", "text", "token_type_ids"
"""Names of the fields (a label as JSON: a text or a list of texts; one text or two) and of the stream beside the
tokens."""


@dataclass
class LabelEncoder:
    """A row is [CLS] text [SEP] (or [CLS] text [SEP] pair [SEP]): whatever the tokenizer's own post-processor makes.

    `overflow` beyond `max_length` tokens: "truncate" cuts the longer of the two texts first, "drop" rejects the row,
    "error" raises DataError.
    """

    tokenizer_dir: Path
    max_length: int
    overflow: Literal["truncate", "drop", "error"]
    problem_type: ProblemType | None
    _frame: Any = field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frame": None}

    def identity(self) -> dict[str, Any]:
        return {
            "encoder": "sequence_classification",
            "version": 2,
            "max_length": self.max_length,
            "overflow": self.overflow,
            "problem_type": self.problem_type,
        }

    def audit(self, rows: Rows) -> LabelAudit:
        return audit_labels(rows)

    def spans(self, rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
        label = json.loads(rows.field(LABEL)[i].as_py())
        return label_spans(rows, i, decode, ", ".join(label) if isinstance(label, list) else label)

    def encode(self, batch: RecordBatch) -> Encoded:
        """columns["text"]: N strings; ["text_pair"]: N strings or None; ["label"]: N texts, numbers or lists."""
        texts, pairs = batch.columns["text"], batch.columns.get("text_pair") or [None] * len(batch)
        first, second = self._tokens(texts), iter(self._tokens([pair for pair in pairs if isinstance(pair, str)]))
        made = Encoded(np.empty(0, np.int64), {}, {LABEL: [], TEXT: []})
        rows, ids, types = [], [], []
        for row, (text, pair, label) in enumerate(zip(texts, pairs, batch.columns["label"], strict=True)):
            other = next(second) if isinstance(pair, str) else None
            try:
                if other is None and pair is not None:
                    raise ValueError("text_pair is not text")
                spelled = json.dumps(self._label(label), ensure_ascii=False)
                found, cut = self._framed(batch, row, first[row], other)
            except ValueError as error:
                made.rejected.append((row, str(error)))
                continue
            made.truncated += cut
            rows.append(row)
            ids.append(np.array(found.ids, np.uint32))
            types.append(np.array(found.type_ids, np.uint8))
            made.fields[LABEL].append(spelled)
            made.fields[TEXT].append([text] if pair is None else [text, pair])
        made.rows = np.array(rows, np.int64)
        lengths = np.array([len(row) for row in ids], np.int64)
        for name, values, dtype in (("input_ids", ids, np.uint32), (TYPES, types, np.uint8)):
            made.streams[name] = Ragged(np.concatenate(values) if values else np.empty(0, dtype), lengths)
        return made

    def _tokens(self, texts: list[str]) -> list[Any]:
        """Encodings without special tokens; what a text spells like one stays text."""
        literal = read_literal(self.tokenizer_dir)
        found: list[Any] = literal.encode_batch(texts, add_special_tokens=False)
        return found

    def _framed(self, batch: RecordBatch, row: int, first: Any, second: Any) -> tuple[Any, bool]:
        """The encoding with special tokens, and whether it was cut. Raises ValueError, DataError."""
        if self._frame is None:
            core = read_core(self.tokenizer_dir)
            self._frame = type(core).from_str(core.to_str())
            if self._frame.num_special_tokens_to_add(True) >= self.max_length:
                raise RecipeError(f"{self.max_length} leaves no room beside the special tokens", key="data.max_length")
            self._frame.enable_truncation(self.max_length)  # the longer text first
        if not first.ids:
            raise ValueError("the tokenizer finds nothing in text")
        added = self._frame.num_special_tokens_to_add(second is not None)
        length = len(first.ids) + (len(second.ids) if second is not None else 0) + added
        if length > self.max_length and self.overflow != "truncate":
            what = f"{length} tokens, more than max_length {self.max_length}"
            if self.overflow == "drop":
                raise ValueError(what)
            raise DataError(
                f"{what}; set data.overflow to truncate or drop, or raise data.max_length",
                file=batch.file,
                line=batch.lines[row],
            )
        return self._frame.post_process(first, second, True), length > self.max_length

    def _label(self, value: Any) -> str | list[str]:
        """A text, or the distinct texts of a list. Raises ValueError where it is not of the problem type."""
        if isinstance(value, list | tuple):
            if self.problem_type in ("single_label", "regression"):
                raise ValueError(f"label is a list, and task.problem_type is {self.problem_type}")
            return list(dict.fromkeys(spell(one) for one in value))
        text = spell(value)
        if self.problem_type == "regression" and number(text) is None:
            raise ValueError(f"label {text!r} is not a number, and task.problem_type is regression")
        return [text] if self.problem_type == "multi_label" else text


def number(text: str) -> float | None:
    """The finite number that a text spells, if it does."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
