"""`evaluation.baselines`: simple models fitted on the run's training rows and scored as the model is, beside it.

Most predict in the task's own terms, so that the task's `finalize` scores both alike. The recipe's check reads which
baseline fits which task (`recipe.tasks.BASELINES`); a new one is a row there and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.errors import DataError
from llmkit.evaluate.baseline_classes import majority, tfidf_logistic_regression
from llmkit.evaluate.baseline_copy import copy, lead
from llmkit.evaluate.baseline_ngram import ngram
from llmkit.evaluate.subset import choose_rows
from llmkit.recipe.sections import EvaluationSection
from llmkit.tasks.base import Evaluated, Metric, Prediction, Task

if TYPE_CHECKING:
    from llmkit.data.shards import Split

Baseline = Callable[[Any, "Split", "Split", int | None], dict[str, Metric]]
"""(task, training rows, split to score, `max_samples`) -> metrics of the rows that the model is scored on."""
Predict = Callable[[Any, "Split", "Split", np.ndarray], list[Prediction]]
"""(task, training rows, split to score, its rows that are scored) -> a prediction a row. Raises RecipeError."""


def _finalized(predict: Predict) -> Baseline:
    """A baseline that predicts in the task's terms, scored by the task."""

    def run(task: Any, train: Split, scored: Split, max_samples: int | None) -> dict[str, Metric]:
        count = scored.num_rows
        rows = np.arange(count) if max_samples is None or max_samples >= count else choose_rows(count, max_samples)
        evaluated: Evaluated = task.finalize(predict(task, train, scored, rows), scored, bootstrap=True)
        return evaluated.metrics

    return run


def _ngram(task: Any, train: Split, scored: Split, max_samples: int | None) -> dict[str, Metric]:
    return ngram(task, train, scored, max_samples=max_samples)


BASELINES: dict[tuple[str, str], Baseline] = {
    ("majority", "sequence_classification"): _finalized(majority),
    ("tfidf_logistic_regression", "sequence_classification"): _finalized(tfidf_logistic_regression),
    ("ngram", "causal_lm"): _ngram,
    ("copy", "translation"): _finalized(copy),
    ("copy", "summarization"): _finalized(copy),
    ("lead", "summarization"): _finalized(lead),
}
"""By (name, task type)."""


def score(
    section: EvaluationSection, task_type: str, task: Task, train: Split | None, scored: Split
) -> dict[str, dict[str, Metric]]:
    """{baseline: metrics} on the rows that the model was scored on. Raises DataError, RecipeError."""
    if not section.baselines:
        return {}
    if train is None:
        raise DataError("baselines are fitted on the training rows; give data.train", key="evaluation.baselines")
    return {name: BASELINES[name, task_type](task, train, scored, section.max_samples) for name in section.baselines}
