"""Accuracy, precision, recall, F1 and Matthews correlation of classes and sets of classes, with bootstrap intervals.

Everything follows from counts a class: true positives, gold and predicted. The bootstrap over items draws how often
each kind of item (its gold and prediction) comes up, a multinomial: the same distribution as drawing the items, in the
time of the kinds. Definitions are scikit-learn's, with zero for what is divided by zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float | None, float | None]
"""Value and the ends of its 95% interval."""

_CHUNK_VALUES = 4_000_000


@dataclass(frozen=True)
class Counts:
    """Of R resamples: items (R,), exact hits (R,), and a class true positives, gold and predicted (L, R)."""

    items: Floats
    hits: Floats
    true: Floats
    gold: Floats
    predicted: Floats


@dataclass(frozen=True)
class Kinds:
    """U kinds of items and how many there are of each. gold, predicted: (U,) classes, or (U, L) of 0 and 1."""

    gold: NDArray[np.int64]
    predicted: NDArray[np.int64]
    number: NDArray[np.int64]
    num_labels: int

    @staticmethod
    def of(gold: NDArray[np.int64], predicted: NDArray[np.int64], num_labels: int) -> Kinds:
        """Of N items: (N,) classes, or (N, L) of 0 and 1 where an item may have several."""
        both = np.stack([gold, predicted], axis=1).reshape(len(gold), -1)
        kinds, number = np.unique(both, axis=0, return_counts=True)
        if gold.ndim == 1:
            return Kinds(kinds[:, 0], kinds[:, 1], number, num_labels)
        return Kinds(kinds[:, :num_labels], kinds[:, num_labels:], number, num_labels)

    @property
    def is_multi_label(self) -> bool:
        return self.gold.ndim == 2

    def counts(self, number: Floats) -> Counts:
        """number: (U, R) items of each kind."""
        if self.is_multi_label:
            sums = [(part.T @ number) for part in (self.gold * self.predicted, self.gold, self.predicted)]
            right = (self.gold == self.predicted).all(1)
        else:
            right = self.gold == self.predicted
            sums = [np.zeros((self.num_labels, number.shape[1])) for _ in range(3)]
            np.add.at(sums[0], self.gold[right], number[right])
            np.add.at(sums[1], self.gold, number)
            np.add.at(sums[2], self.predicted, number)
        return Counts(number.sum(0), number[right].sum(0), *sums)


def scores(kinds: Kinds, *, bootstrap: bool, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """Every metric by name. precision, recall and f1 are macro averages over the classes that occur, of one class an
    item, and micro averages of several; f1_micro, f1_macro and f1_weighted (by gold items) say which they are."""

    def of(number: Floats) -> dict[str, Floats]:
        return metrics_of(kinds.counts(number), multi_label=kinds.is_multi_label)

    values = {name: float(found[0]) for name, found in of(kinds.number[:, None].astype(np.float64)).items()}
    total = int(kinds.number.sum())
    if not bootstrap or total < 2:
        return {name: (value, None, None) for name, value in values.items()}
    drawn: dict[str, list[Floats]] = {name: [] for name in values}
    generator, step = np.random.default_rng(seed), max(1, _CHUNK_VALUES // len(kinds.number))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        number = generator.multinomial(total, kinds.number / total, size=size).T.astype(np.float64)
        for name, found in of(number).items():
            drawn[name].append(found)
    ends = {name: np.percentile(np.concatenate(parts), [2.5, 97.5]) for name, parts in drawn.items()}
    return {name: (value, float(ends[name][0]), float(ends[name][1])) for name, value in values.items()}


def metrics_of(found: Counts, *, multi_label: bool) -> dict[str, Floats]:
    """(R,) each."""
    precision, recall, f1 = class_scores(found)
    macro = [_mean(part, found, whole=multi_label) for part in (precision, recall, f1)]
    true, gold, predicted = (part.sum(0) for part in (found.true, found.gold, found.predicted))
    micro = [_divide(true, predicted), _divide(true, gold), _divide(2 * true, gold + predicted)]
    metrics = {"accuracy": found.hits / found.items}
    metrics |= dict(zip(("precision", "recall", "f1"), micro if multi_label else macro, strict=True))
    metrics |= {"f1_micro": micro[2], "f1_macro": macro[2], "f1_weighted": _divide((f1 * found.gold).sum(0), gold)}
    return metrics if multi_label else {**metrics, "mcc": _matthews(found)}


def class_scores(found: Counts) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of every class, (L, R)."""
    return (
        _divide(found.true, found.predicted),
        _divide(found.true, found.gold),
        _divide(2 * found.true, found.gold + found.predicted),
    )


def _mean(values: Floats, found: Counts, *, whole: bool) -> Floats:
    """Over the classes that are gold or predicted somewhere (`whole`: over all), as scikit-learn averages."""
    present = np.ones_like(values) if whole else (found.gold + found.predicted > 0).astype(np.float64)
    return _divide((values * present).sum(0), present.sum(0))


def _matthews(found: Counts) -> Floats:
    """Gorodkin's correlation of K classes (doi:10.1016/j.compbiolchem.2004.09.006): Matthews' for two."""
    total, hits = found.items, found.hits
    covariance = hits * total - (found.gold * found.predicted).sum(0)
    spread = (total**2 - (found.predicted**2).sum(0)) * (total**2 - (found.gold**2).sum(0))
    return _divide(covariance, np.sqrt(spread))


def _divide(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom > 0)


def tables(kinds: Kinds, names: tuple[str, ...]) -> dict[str, Any]:
    """JSON for people: `per_class` scores, and of one class an item the `confusion_matrix`, a row a gold class."""
    number = kinds.number[:, None].astype(np.float64)
    found = kinds.counts(number)
    precision, recall, f1 = (part[:, 0] for part in class_scores(found))
    made: dict[str, Any] = {
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "gold": int(found.gold[i, 0]),
                "predicted": int(found.predicted[i, 0]),
            }
            for i, name in enumerate(names)
        }
    }
    if not kinds.is_multi_label:
        matrix = np.zeros((len(names), len(names)), np.int64)
        np.add.at(matrix, (kinds.gold, kinds.predicted), kinds.number)
        made["confusion_matrix"] = {"labels": list(names), "counts": matrix.tolist()}
    return made
