"""The answers of a question's windows put together, scored against the references, with intervals and items."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.metrics.answers import is_chinese, score_answer
from llmkit.tasks.base import Evaluated, Metric
from llmkit.tasks.language_model import ratio

if TYPE_CHECKING:
    from llmkit.data.shards import Split

SHOWN = 5
"""Of the n best answers, those that predictions.jsonl has."""


@dataclass(frozen=True)
class Answered:
    """A question with what each of its windows predicted: {loss, answers [[first, end, score]], null}."""

    row: int
    id: str | None
    question: str
    context: str
    references: list[str]
    windows: list[dict[str, Any]]

    def best(self, count: int) -> list[tuple[str, float]]:
        """The `count` best (text, score) over all windows, each text once."""
        spans = sorted((span for window in self.windows for span in window["answers"]), key=lambda span: -span[2])
        found: dict[str, float] = {}
        for first, end, score in spans[:count]:
            text = self.context[first:end].strip()
            if text:
                found.setdefault(text, score)
        return list(found.items())

    @property
    def null(self) -> float:
        """Score of no answer: the lowest, for a window that has no answer says nothing of the others."""
        return float(min(window["null"] for window in self.windows))


def evaluated(
    answered: list[Answered], split: Split, *, threshold: float | None, count: int, bootstrap: bool
) -> Evaluated:
    """exact_match and f1, 0 to 100. threshold: how much better than the best answer no answer must be to be given;
    None where it never is."""
    may_be_empty = any(not question.references for question in answered)
    predictions, scores, chinese = [], [], []
    for question in answered:
        best = question.best(count)
        text, top = best[0] if best else ("", -math.inf)
        is_null = threshold is not None and question.null - top > threshold
        predictions.append(("" if is_null else text, best))
        chinese.append(is_chinese([question.question, *question.references]))
        scores.append(
            score_answer(predictions[-1][0], question.references, chinese=chinese[-1], may_be_empty=may_be_empty)
        )
    table = 100 * np.array(scores).reshape(-1, 2)
    losses = np.array([math.fsum(window["loss"] for window in question.windows) for question in answered])
    windows = np.array([len(question.windows) for question in answered])
    ones = np.ones(len(answered))
    metrics = {
        "exact_match": ratio(table[:, 0], ones, bootstrap=bootstrap),
        "f1": ratio(table[:, 1], ones, bootstrap=bootstrap),
        "loss": ratio(losses, windows, bootstrap=bootstrap),
    }
    return Evaluated(
        {name: metric for name, metric in metrics.items() if isinstance(metric, Metric)},
        _items(answered, predictions, table, windows, split, threshold) if bootstrap else [],
        _notes(sum(chinese), len(answered), may_be_empty),
        {"per_kind": _by_kind(answered, table)} if may_be_empty else {},
    )


def _by_kind(answered: list[Answered], table: np.ndarray) -> dict[str, dict[str, Any]]:
    """Questions with and without an answer apart, as SQuAD 2's evaluation has them."""
    has = np.array([bool(question.references) for question in answered])
    found = {}
    for name, members in (("has_answer", has), ("no_answer", ~has)):
        if members.any():
            exact, f1 = table[members].mean(0).tolist()
            found[name] = {"exact_match": exact, "f1": f1, "support": int(members.sum())}
    return found


def _notes(chinese: int, total: int, may_be_empty: bool) -> list[str]:
    notes = []
    if chinese < total:
        version = "2.0" if may_be_empty else "1.1"
        notes.append(
            f"exact_match and f1 as SQuAD {version}'s evaluation has them (case, punctuation, articles, words)"
        )
    if chinese:
        which = "" if chinese == total else f" for the {chinese:,} questions in Chinese"
        notes.append(f"exact_match and f1 as CMRC 2018's evaluation has them (characters, longest stretch){which}")
    return notes


def _items(
    answered: list[Answered],
    predictions: list[tuple[str, list[tuple[str, float]]]],
    table: np.ndarray,
    windows: np.ndarray,
    split: Split,
    threshold: float | None,
) -> list[dict[str, Any]]:
    places = split.origins(np.array([question.row for question in answered], np.int64))
    items = []
    for question, (text, best), (exact, f1), place, number in zip(
        answered, predictions, table.tolist(), places, windows.tolist(), strict=True
    ):
        loss = math.fsum(window["loss"] for window in question.windows)
        items.append(
            {
                "row": question.row,
                **{key: place[key] for key in ("source", "file", "line", "hash")},
                "id": question.id,
                "question": question.question,
                "prediction": text,
                "references": question.references,
                "exact_match": exact,
                "f1": f1,
                "n_best": [{"text": one, "score": score} for one, score in best[:SHOWN]],
                **({} if threshold is None else {"null_score": question.null}),
                "windows": number,
                "loss": loss / number,
                "sums": {"exact_match": [exact, 1], "f1": [f1, 1], "loss": [loss, number]},
            }
        )
    return items
