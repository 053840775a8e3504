"""The metrics as Hugging Face `evaluate` has them: `load(name)` gives an `evaluate.Metric` whose numbers are ours.

`evaluate.load("accuracy")` fetches a script from the Hub, or runs ./accuracy/accuracy.py of the current directory; its
wheel holds no metric. Names resolve to this table and to nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Sequence, Value

from llmkit.errors import RecipeError
from llmkit.metrics import classification, correlation

Compute = Callable[[list[Any], list[Any]], dict[str, float]]
"""(predictions, references) -> metrics."""


def _of_classes(predictions: list[Any], references: list[Any]) -> dict[str, float]:
    """Classes as numbers or texts, or rows of 0 and 1."""
    gold, predicted = np.array(references), np.array(predictions)
    if gold.ndim == 2:
        kinds = classification.Kinds.of(gold, predicted, gold.shape[1])
    else:
        names, ids = np.unique(np.concatenate([gold, predicted]), return_inverse=True)
        kinds = classification.Kinds.of(ids[: len(gold)], ids[len(gold) :], len(names))
    return {name: value for name, (value, _, _) in classification.scores(kinds, bootstrap=False).items()}


def _of_numbers(predictions: list[Any], references: list[Any]) -> dict[str, float]:
    found = correlation.scores(references, predictions, bootstrap=False)
    return {name: value for name, (value, _, _) in found.items()}


_CLASSES = [Value("int64"), Value("string"), Sequence(Value("int64"))]
_NUMBERS = [Value("float64")]

LOADABLE: dict[str, tuple[Compute, list[Any]]] = {
    **dict.fromkeys(("accuracy", "precision", "recall", "f1", "f1_micro", "f1_macro"), (_of_classes, _CLASSES)),
    **dict.fromkeys(("f1_weighted", "mcc"), (_of_classes, _CLASSES)),
    **dict.fromkeys(("pearson", "spearman", "mse"), (_of_numbers, _NUMBERS)),
}
"""What computes a metric, and the types of one prediction or reference that it takes."""

ALIASES = {"matthews_correlation": "mcc", "pearsonr": "pearson", "spearmanr": "spearman"}
"""Names of the same metrics on the Hub; the result keeps the name that was asked for."""


class _Metric(evaluate.Metric):  # type: ignore[misc]
    """Kept in memory: nothing is cached on disk, nothing is fetched."""

    def __init__(self, name: str):
        self._asked = name
        self._compute_all, self._types = LOADABLE[ALIASES.get(name, name)]
        super().__init__(config_name=name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = [Features({"predictions": kind, "references": kind}) for kind in self._types]
        return evaluate.MetricInfo(
            description=f"{self._asked}, as llmkit computes it",
            citation="",
            inputs_description="predictions and references: lists of one length",
            features=features if len(features) > 1 else features[0],
        )

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        return {self._asked: self._compute_all(predictions, references)[ALIASES.get(self._asked, self._asked)]}


def load(name: str) -> evaluate.Metric:
    """The metric of that name. Raises RecipeError naming the nearest one."""
    known = [*LOADABLE, *ALIASES]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
        raise RecipeError(f"unknown metric {name}; {hint}")
    return _Metric(name)
