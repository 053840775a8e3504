"""`task.class_weights`: how much a class counts in the loss."""

from __future__ import annotations

import difflib
from typing import Literal

import numpy as np

from llmkit.errors import RecipeError
from llmkit.tasks.labels import Labels

KEY = "task.class_weights"


def weights_of(
    section: Literal["balanced"] | dict[str, float] | None, labels: Labels, gold: np.ndarray
) -> np.ndarray | None:
    """(L,) a weight a label, from the gold labels of the training rows; None where none are asked for.

    balanced: rows / (classes * rows of the class), scikit-learn's; of several labels a row, where a weight is that of
    the label's positives, rows without it / rows with it. What a dictionary leaves out has weight 1.

    Raises RecipeError.
    """
    if section is None:
        return None
    if labels.problem_type == "regression":
        raise RecipeError("the labels are numbers, which have no classes to weigh; leave it out", key=KEY)
    if section == "balanced":
        if labels.problem_type == "multi_label":
            positive = gold.sum(0)
            return np.where(positive > 0, (len(gold) - positive) / np.maximum(positive, 1), 1.0)
        rows = np.bincount(gold, minlength=len(labels.names))
        return np.where(rows > 0, len(gold) / (np.count_nonzero(rows) * np.maximum(rows, 1)), 1.0)
    for name in section:
        if name not in labels.names:
            near = difflib.get_close_matches(name, labels.names, 1)
            hint = f"did you mean {near[0]}?" if near else f"the labels are {', '.join(labels.names[:20])}"
            raise RecipeError(f"no such label; {hint}", key=f"{KEY}.{name}")
    weights = np.array([section.get(name, 1.0) for name in labels.names])
    if not weights.any():
        raise RecipeError("every weight is 0", key=KEY)
    return weights
