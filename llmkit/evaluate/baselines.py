"""`evaluation.baselines`: simple models fitted on the run's training rows and scored as the model is, beside it.

A baseline gives predictions in the task's own terms, so that the task's `finalize` scores both alike. The recipe's
check reads which baseline fits which task (`recipe.tasks.BASELINES`); a new one is a row there and a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.errors import DataError
from llmkit.evaluate.baseline_classes import majority, tfidf_logistic_regression
from llmkit.tasks.base import Prediction, Task

if TYPE_CHECKING:
    from llmkit.data.shards import Split

Baseline = Callable[[Any, "Split", "Split", np.ndarray], list[Prediction]]
"""(task, training rows, split to score, its rows that are scored) -> a prediction a row. Raises DataError."""

BASELINES: dict[tuple[str, str], Baseline] = {
    ("majority", "sequence_classification"): majority,
    ("tfidf_logistic_regression", "sequence_classification"): tfidf_logistic_regression,
}
"""By (name, task type)."""


def score(
    names: Sequence[str], task_type: str, task: Task, train: Split | None, scored: Split, predictions: list[Prediction]
) -> dict[str, dict[str, Any]]:
    """{baseline: {metric: Metric}} on the rows that the model was scored on. Raises DataError."""
    rows = np.unique([prediction.row for prediction in predictions])
    found = {}
    for name in names:
        if train is None:
            raise DataError("baselines are fitted on the training rows; give data.train", key="evaluation.baselines")
        guessed = BASELINES[name, task_type](task, train, scored, rows)
        found[name] = dict(task.finalize(guessed, scored, bootstrap=True).metrics)
    return found
