"""How the difference of a metric between two runs is estimated from what predictions.jsonl holds of each item.

Every metric is a statistic of sums over items (`columns`), so that both sides can be resampled with the same items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmkit.metrics import classification
from llmkit.metrics.bootstrap import Floats, Transform

Item = dict[str, Any]
Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Sums:
    """`statistic` of the sums of columns (K, N), one set of them a side. `values`: each item's own, (N,) a side, for
    the sign test; NaN where an item has none, None for metrics that an item alone does not have."""

    columns: tuple[Floats, Floats]
    statistic: Statistic
    values: tuple[Floats, Floats] | None


def sums_of(name: str, first: Sequence[Item], second: Sequence[Item]) -> Sums | None:
    """What `name` is made of, for the same items in the same order; None where the items do not hold it."""
    items = [*first, *second]
    ratio = _ratio(name, items)
    if ratio is not None:
        sides = _both(ratio.columns, first, second)
        own = tuple(
            np.divide(side[0], side[1], out=np.full(side.shape[1], np.nan), where=side[1] > 0) for side in sides
        )
        return Sums(sides, ratio.statistic, (own[0], own[1]))
    if name in TEXT_METRICS and all("references" in item and "prediction" in item for item in items):
        return _written(name, first, second)
    if name in CLASS_METRICS and all(isinstance(item.get("prediction"), str) and "label" in item for item in items):
        return _classes(name, first, second)
    return None


@dataclass(frozen=True)
class _Ratio:
    """A metric as sums over items: `numerator(item) / denominator(item)`, transformed."""

    numerator: Callable[[Item], float]
    denominator: Callable[[Item], float]
    transform: Transform | None = None

    def columns(self, items: Sequence[Item]) -> Floats:
        return np.array([[of(item) for item in items] for of in (self.numerator, self.denominator)], dtype=np.float64)

    def statistic(self, sums: Floats) -> Floats:
        value: Floats = sums[0] / np.where(sums[1] > 0, sums[1], np.nan)
        if self.transform is None:
            return value
        with np.errstate(over="ignore"):  # a perplexity beyond 1e308 is infinite
            return self.transform(value)


def _loss_sum(item: Item) -> float:
    return float(item["loss"]) * float(item["tokens"]) if item["tokens"] else 0.0


def _tokens(item: Item) -> float:
    return float(item["tokens"])


def _correct(item: Item) -> float:
    return float(item["token_accuracy"]) * float(item["tokens"]) if item["tokens"] else 0.0


_TOKEN_RATIOS = {
    "loss": _Ratio(_loss_sum, _tokens),
    "perplexity": _Ratio(_loss_sum, _tokens, np.exp),
    "token_accuracy": _Ratio(_correct, _tokens),
}


def _ratio(name: str, items: list[Item]) -> _Ratio | None:
    if name == "bits_per_byte" and all("bytes" in item and "tokens" in item for item in items):
        return _Ratio(lambda item: _loss_sum(item) / float(np.log(2)), lambda item: float(item["bytes"]))
    if all(name in item.get("sums", ()) for item in items):
        transform = np.exp if name == "perplexity" else None
        return _Ratio(lambda item: float(item["sums"][name][0]), lambda item: float(item["sums"][name][1]), transform)
    if all("tokens" in item and "loss" in item for item in items):
        return _TOKEN_RATIOS.get(name)
    return _mean(name) if all(name in item and "tokens" not in item and _single(item) for item in items) else None


def _single(item: Item) -> bool:
    """Not a metric of written texts, whose items show scores that do not average to the corpus's."""
    return "references" not in item


def _mean(name: str) -> _Ratio:
    """A metric that is the mean of the items' own values under its name (accuracy, mse), of losses by their weights."""

    def weight(item: Item) -> float:
        return float(item.get("weight", 1.0)) if name == "loss" else 1.0

    return _Ratio(lambda item: float(item[name] or 0.0) * weight(item), weight)


def _both(columns: Callable[[Sequence[Item]], Floats], *sides: Sequence[Item]) -> tuple[Floats, Floats]:
    first, second = (columns(side) for side in sides)
    return first, second


TEXT_METRICS = ("sacrebleu", "chrf", "ter")


def _written(name: str, first: Sequence[Item], second: Sequence[Item]) -> Sums:
    """Paired bootstrap of a corpus metric (Koehn 2004, aclanthology.org/W04-3250)."""
    from llmkit.metrics import translation

    tokenizer = translation.bleu_tokenizer([item["references"][0] for item in first])

    def columns(items: Sequence[Item]) -> Floats:
        texts, references = [item["prediction"] for item in items], [item["references"] for item in items]
        if name == "chrf":
            return translation.chrf_columns(texts, references)
        of = translation.bleu_columns if name == "sacrebleu" else translation.ter_columns
        return of(texts, references, tokenizer)

    statistic = {"sacrebleu": translation.bleu_of, "chrf": translation.chrf_of, "ter": translation.ter_of}[name]
    sides = _both(columns, first, second)
    return Sums(sides, statistic, (statistic(sides[0]), statistic(sides[1])))


CLASS_METRICS = ("precision", "recall", "f1", "f1_micro", "f1_macro", "f1_weighted", "mcc")


def _classes(name: str, first: Sequence[Item], second: Sequence[Item]) -> Sums:
    """Columns: hits, then true positives, gold and predicted of every class."""
    names = sorted({item[key] for item in [*first, *second] for key in ("label", "prediction")})
    number = {label: i for i, label in enumerate(names)}

    def columns(items: Sequence[Item]) -> Floats:
        gold, predicted = (
            np.eye(len(names))[:, [number[item[key]] for item in items]] for key in ("label", "prediction")
        )
        true = gold * predicted
        return np.concatenate([np.ones((1, len(items))), true.sum(0, keepdims=True), true, gold, predicted])

    def statistic(sums: Floats) -> Floats:
        parts = np.split(sums[2:], 3)
        return classification.metrics_of(classification.Counts(sums[0], sums[1], *parts), multi_label=False)[name]

    return Sums(_both(columns, first, second), statistic, None)
