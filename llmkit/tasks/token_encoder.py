"""Sentences of tagged words to windows of tokens. The first sub-word of a word carries its tag; a word that gives no
sub-word (control characters, emoji that a tokenizer drops) has no place, and shifts nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmkit.data.examples import Encoded, Ragged
from llmkit.data.records import RecordBatch
from llmkit.data.specials import Frame, read_frame
from llmkit.data.tokenizer_core import read_literal
from llmkit.data.view import LabelAudit, Rows, Span, audit_labels, label_spans
from llmkit.errors import DataError, RecipeError
from llmkit.metrics.entities import broken, detect_scheme
from llmkit.tasks.windows import records_of

FIRST = "first"
"""Stream beside the tokens: of each word the place of its first sub-word, -1 where it has none in the window."""

Unusable = ValueError


@dataclass
class TokenEncoder:
    """`overflow` beyond `max_length` tokens: "split" cuts windows at word boundaries; "truncate" leaves the words
    beyond without a place (they are not taught, and missed in evaluation); "drop" rejects the row; "error" raises
    DataError."""

    tokenizer_dir: Path
    max_length: int
    overflow: Literal["split", "truncate", "drop", "error"]
    _frame: Frame | None = field(default=None, init=False, repr=False)

    def identity(self) -> dict[str, Any]:
        return {
            "encoder": "token_classification",
            "version": 1,
            "max_length": self.max_length,
            "overflow": self.overflow,
        }

    def audit(self, rows: Rows) -> LabelAudit:
        found = audit_labels(rows)
        sentences = list(sentences_of(rows))
        scheme, _ = detect_scheme({tag for tags in sentences for tag in tags})
        unseen = sum(int((rows.row(i, FIRST) < 0).sum()) for i in range(rows.num_rows))
        counts = {
            "entities that do not begin or end as their scheme says": sum(broken(tags, scheme) for tags in sentences),
            "words without a sub-word of their own": unseen,
        }
        return found.counting(counts)

    def spans(self, rows: Rows, i: int, decode: Callable[[list[int]], str]) -> list[Span]:
        words, tags = (rows.field(name)[i].as_py() for name in ("tokens", "labels"))
        return label_spans(rows, i, decode, " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True)))

    def encode(self, batch: RecordBatch) -> Encoded:
        """columns: tokens, N lists of words; labels, N lists of tags (texts that are lists separated by blanks too)."""
        rejected: list[tuple[int, str]] = []
        sentences: list[tuple[int, list[str], list[str]]] = []
        for row, (tokens, labels) in enumerate(zip(batch.columns["tokens"], batch.columns["labels"], strict=True)):
            try:
                sentences.append((row, *read_sentence(tokens, labels)))
            except Unusable as problem:
                rejected.append((row, str(problem)))
        core = read_literal(self.tokenizer_dir)
        words = [words for _, words, _ in sentences]
        made = _Windows(self._read_frame(), self.max_length)
        found = core.encode_batch(words, is_pretokenized=True, add_special_tokens=False) if words else []
        truncated = 0
        for (row, words_of, tags), encoding in zip(sentences, found, strict=True):
            pieces = _pieces(encoding.word_ids, len(words_of))
            if len(encoding.ids) > made.room and self.overflow != "split":
                reason = self._overflow(batch, row, len(encoding.ids) + made.frame.size)
                if reason is not None:
                    rejected.append((row, reason))
                    continue
                truncated += 1
            made.add(row, words_of, tags, np.array(encoding.ids, np.int64), pieces, split=self.overflow == "split")
        return made.encoded(sorted(rejected), truncated)

    def _read_frame(self) -> Frame:
        if self._frame is None:
            self._frame = read_frame(self.tokenizer_dir)
        return self._frame

    def _overflow(self, batch: RecordBatch, row: int, length: int) -> str | None:
        what = f"{length} tokens, more than max_length {self.max_length}"
        if self.overflow == "error":
            message = f"{what}; set data.overflow to split, truncate or drop, or raise data.max_length"
            raise DataError(message, file=batch.file, line=batch.lines[row])
        return what if self.overflow == "drop" else None


def read_sentence(tokens: Any, labels: Any) -> tuple[list[str], list[str]]:
    """(words, tags), as many of each. Raises Unusable saying why not."""
    if isinstance(labels, str):
        labels = labels.split()
    if isinstance(tokens, str) and isinstance(
        labels, list | tuple
    ):  # a tag a character, as Chinese has it, or a tag a word
        tokens = list(tokens) if len(tokens) == len(labels) else tokens.split()
    for name, values in (("tokens", tokens), ("labels", labels)):
        if not isinstance(values, list | tuple):
            raise Unusable(f"{name} is not a list")
    if not all(isinstance(word, str) for word in tokens):
        raise Unusable("tokens holds something that is not text")
    if not all(isinstance(tag, str | int) and not isinstance(tag, bool) for tag in labels):
        raise Unusable("labels holds something that is neither text nor a whole number")
    if any(not str(tag).strip() for tag in labels):
        raise Unusable("a label is empty")
    if len(tokens) != len(labels):
        raise Unusable(f"{len(tokens)} tokens and {len(labels)} labels")
    if not tokens:
        raise Unusable("there are no tokens")
    return list(tokens), [str(tag) for tag in labels]


def sentences_of(rows: Rows) -> list[list[str]]:
    """The tags of every record, its windows joined again."""
    tags = rows.field("labels").to_pylist()
    return [[tag for row in members for tag in tags[row]] for members in records_of(rows)]


def _pieces(word_ids: list[int | None], count: int) -> np.ndarray:
    """(count + 1,) where each word's sub-words begin; the last is where they end."""
    sizes = np.bincount(np.array([word for word in word_ids if word is not None], np.int64), minlength=count)
    return np.concatenate(([0], np.cumsum(sizes)))


class _Windows:
    """Collects the windows of a batch."""

    def __init__(self, frame: Frame, max_length: int):
        self.frame = frame
        self.room = max_length - frame.size
        if self.room < 1:
            raise RecipeError(
                f"{max_length} tokens leave no room beside {frame.size} special ones", key="data.max_length"
            )
        self.rows: list[int] = []
        self.ids: list[np.ndarray] = []
        self.first: list[np.ndarray] = []
        self.fields: dict[str, list[Any]] = {"tokens": [], "labels": [], "window": []}

    def add(
        self, row: int, words: list[str], tags: list[str], ids: np.ndarray, pieces: np.ndarray, *, split: bool
    ) -> None:
        """One sentence; where it does not fit and not `split`, all its words and the tokens that fit."""
        start = window = 0
        while start < len(words):
            # the last word that ends within the window; one that is longer than a window is cut
            stop = int(np.searchsorted(pieces, pieces[start] + self.room, side="right")) - 1 if split else len(words)
            stop = max(stop, start + 1)
            begin, end = int(pieces[start]), min(int(pieces[stop]), int(pieces[start]) + self.room)
            at, sizes = pieces[start:stop] - begin, np.diff(pieces[start : stop + 1])
            seen = (sizes > 0) & (at < end - begin)
            self.ids.append(np.concatenate((self.frame.before, ids[begin:end], self.frame.after)))
            self.first.append(np.where(seen, at + len(self.frame.before), -1))
            self.rows.append(row)
            for name, value in (("tokens", words[start:stop]), ("labels", tags[start:stop]), ("window", window)):
                self.fields[name].append(value)
            start, window = stop, window + 1

    def encoded(self, rejected: list[tuple[int, str]], truncated: int) -> Encoded:
        streams = {"input_ids": ragged(self.ids, np.uint32), FIRST: ragged(self.first, np.int32)}
        return Encoded(np.array(self.rows, np.int64), streams, self.fields, rejected, truncated)


def ragged(rows: list[np.ndarray], dtype: type[np.generic]) -> Ragged:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return Ragged(np.concatenate(rows).astype(dtype) if rows else np.empty(0, dtype), lengths)
