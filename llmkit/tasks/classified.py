"""From a classifier's outputs to predictions, items and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.examples import Sample
from llmkit.errors import RecipeError
from llmkit.metrics import classification, correlation
from llmkit.recipe.sections import EvaluationSection
from llmkit.tasks.base import Batch, Evaluated, Metric, Prediction
from llmkit.tasks.label_encoder import ProblemType
from llmkit.tasks.labels import Labels

if TYPE_CHECKING:
    from torch import nn

    from llmkit.data.shards import Split

THRESHOLD = 0.5
"""Of several labels, those at least this probable are predicted."""

_CLASSES = ("loss", "accuracy", "precision", "recall", "f1", "f1_micro", "f1_macro", "f1_weighted")
METRICS_OF: dict[ProblemType, tuple[str, ...]] = {
    "single_label": (*_CLASSES, "mcc"),
    "multi_label": _CLASSES,
    "regression": ("loss", "pearson", "spearman", "mse"),
}


def wanted_metrics(section: EvaluationSection) -> tuple[tuple[str, str], ...]:
    """(key, metric) of everything that the recipe reads by name."""
    wanted = [(f"evaluation.metrics.{i}", name) for i, name in enumerate(section.metrics or ())]
    wanted += [(f"evaluation.fail_if.{name}", name) for name in section.fail_if]
    best = section.metric_for_best_model
    if best is not None:
        wanted.append(("evaluation.metric_for_best_model", best.removeprefix("eval_")))
    return tuple(wanted)


def check_wanted(problem_type: ProblemType, wanted: Sequence[tuple[str, str]]) -> None:
    """Raises RecipeError for a metric that the problem does not have."""
    for key, name in wanted:
        if name not in METRICS_OF[problem_type]:
            known = ", ".join(METRICS_OF[problem_type])
            raise RecipeError(f"the problem is {problem_type}, which has no {name}; it has {known}", key=key)


def predict(module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
    """A prediction a row: `label` and its `probability`, or the `labels` (0 and 1) and `probabilities`, or the `value`;
    `loss` is a sum and `count` its denominator."""
    from llmkit.models.classifier import ClassifierModule
    from llmkit.models.wrapping import unwrap

    inner = unwrap(module, ClassifierModule)
    logits, labels = inner.logits(batch), batch["labels"]
    losses = inner.losses(logits, labels).double().tolist()
    counts = [labels[0].numel()] * len(samples)
    outputs: list[dict[str, Any]]
    if inner.problem_type == "single_label":
        if inner.class_weights is not None:
            counts = inner.class_weights[labels].tolist()
        found = logits.double().softmax(-1).max(-1)
        outputs = [
            {"label": label, "probability": probability}
            for label, probability in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]
    elif inner.problem_type == "multi_label":
        probabilities = logits.double().sigmoid()
        chosen = (probabilities >= THRESHOLD).long()
        outputs = [
            {"labels": labels, "probabilities": each}
            for labels, each in zip(chosen.tolist(), probabilities.tolist(), strict=True)
        ]
    else:
        outputs = [{"value": value} for value in logits.double().squeeze(-1).tolist()]
    return [
        Prediction(int(sample.rows[0]), {**output, "loss": loss, "count": count})
        for sample, output, loss, count in zip(samples, outputs, losses, counts, strict=True)
    ]


def finalize(labels: Labels, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
    """Metrics over the predicted rows; with `bootstrap` their intervals, an item a row, and tables of the classes."""
    from llmkit.metrics.bootstrap import ratio_interval

    found = sorted(predictions, key=lambda prediction: prediction.row)
    rows = np.array([prediction.row for prediction in found], np.int64)
    gold = labels.ids(split, "test")[rows]
    key = {"single_label": "label", "multi_label": "labels", "regression": "value"}[labels.problem_type]
    predicted = np.array([prediction.values[key] for prediction in found]).reshape(gold.shape)
    scored: dict[str, tuple[float, float | None, float | None]] = {}
    if all("loss" in prediction.values for prediction in found):
        losses = np.array([prediction.values["loss"] for prediction in found])
        counts = np.array([prediction.values["count"] for prediction in found])
        if counts.sum() > 0:
            value = float(losses.sum() / counts.sum())
            scored["loss"] = ratio_interval(losses, counts) if bootstrap else (value, None, None)
    tables: dict[str, Any] = {}
    if labels.problem_type == "regression":
        scored |= correlation.scores(gold, predicted, bootstrap=bootstrap)
    else:
        kinds = classification.Kinds.of(gold, predicted, len(labels.names))
        scored |= classification.scores(kinds, bootstrap=bootstrap)
        tables = classification.tables(kinds, labels.names) if bootstrap else {}
    metrics = {name: Metric(*interval, len(rows)) for name, interval in scored.items()}
    items = _items(labels, found, gold, predicted, split) if bootstrap else []
    return Evaluated(metrics, items, [_convention(labels)], tables)


def _convention(labels: Labels) -> str:
    if labels.problem_type == "regression":
        return "regression: a number a row; loss is the mean squared error"
    names = ", ".join(labels.names[:20]) + (", ..." if len(labels.names) > 20 else "")
    if labels.problem_type == "multi_label":
        return (
            f"multi_label ({names}): labels with a probability of {THRESHOLD} at least; precision, recall and f1 are "
            "micro averages, accuracy counts rows with all labels right"
        )
    return f"single_label ({names}): precision, recall and f1 are macro averages"


def _items(
    labels: Labels, found: list[Prediction], gold: np.ndarray, predicted: np.ndarray, split: Split
) -> list[dict[str, Any]]:
    rows = np.array([prediction.row for prediction in found], np.int64)
    items = []
    for i, (place, prediction) in enumerate(zip(split.origins(rows), found, strict=True)):
        values = prediction.values
        item = {
            "row": prediction.row,
            **{key: place[key] for key in ("source", "file", "line", "hash")},
            "label": labels.named(gold[i]),
            "prediction": labels.named(predicted[i]),
        }
        if labels.problem_type == "regression":
            item["mse"] = float((gold[i] - predicted[i]) ** 2)
        else:
            item["accuracy"] = float(np.array_equal(gold[i], predicted[i]))
        if "probability" in values:
            item["probability"] = values["probability"]
        if "probabilities" in values:
            item["probabilities"] = dict(zip(labels.names, values["probabilities"], strict=True))
        if "loss" in values:
            item |= {"loss": values["loss"] / values["count"] if values["count"] else None, "weight": values["count"]}
        items.append(item)
    return items
