"""Baselines of tasks that turn a text into a text: the source as it is, and its first sentences.

A model that does not beat them has learnt nothing but to repeat. Each gives predictions that the task's own `finalize`
scores as it scores what a model writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.boundaries import sentence_breaks
from llmkit.tasks.base import Prediction

if TYPE_CHECKING:
    from llmkit.data.shards import Split

LEAD_SENTENCES = 3
"""As summaries of news are compared with (Nallapati et al. 2017)."""


def copy(task: Any, train: Split | None, scored: Split, rows: np.ndarray) -> list[Prediction]:
    """The source itself, for each of `rows` of `scored`."""
    return _predictions(rows, _field(scored, "source", rows))


def lead(task: Any, train: Split | None, scored: Split, rows: np.ndarray) -> list[Prediction]:
    """The first sentences of the source, for each of `rows` of `scored`."""
    return _predictions(rows, lead_texts(_field(scored, "source", rows), _field(scored, "references", rows)))


def lead_texts(sources: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    """The first three sentences of each source, a line each; the first alone where at least half of the references
    are single sentences, as titles are."""
    single = sum(len(sentences(own[0])) <= 1 for own in references)
    count = 1 if 2 * single >= len(references) else LEAD_SENTENCES
    return ["\n".join(sentences(text)[:count]) for text in sources]


def sentences(text: str) -> list[str]:
    """The sentences of an English or Chinese text with their marks, blanks around them off; none is empty."""
    breaks = np.flatnonzero(sentence_breaks(text)).tolist()
    parts = [text[start:stop].strip() for start, stop in zip([0, *breaks], [*breaks, len(text)], strict=True)]
    return [part for part in parts if part]


def _field(split: Split, name: str, rows: np.ndarray) -> list[Any]:
    found: list[Any] = split.field(name).take(rows).to_pylist()
    return found


def _predictions(rows: np.ndarray, texts: Sequence[str]) -> list[Prediction]:
    return [Prediction(row, {"text": text}) for row, text in zip(rows.tolist(), texts, strict=True)]
