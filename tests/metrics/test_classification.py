"""Scores of classes against scikit-learn, correlations against scipy, and the intervals against drawing the items."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as sk

from llmkit.metrics import classification, correlation
from llmkit.metrics.classification import Kinds


def labels(seed: int, *, num_labels: int, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    gold = draw.choice(num_labels, count, p=draw.dirichlet(np.ones(num_labels)))
    predicted = np.where(draw.random(count) < 0.6, gold, draw.integers(0, num_labels, count))
    return gold, predicted


def values(kinds: Kinds) -> dict[str, float]:
    return {name: value for name, (value, _, _) in classification.scores(kinds, bootstrap=False).items()}


@pytest.mark.parametrize("num_labels", [2, 3, 20])
def test_one_class_an_item(num_labels: int) -> None:
    gold, predicted = labels(num_labels, num_labels=num_labels)
    found = values(Kinds.of(gold, predicted, num_labels + 1))  # a class that never occurs is left out of averages
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": sk.accuracy_score(gold, predicted),
            "precision": sk.precision_score(gold, predicted, average="macro"),
            "recall": sk.recall_score(gold, predicted, average="macro"),
            "f1": sk.f1_score(gold, predicted, average="macro"),
            "f1_macro": sk.f1_score(gold, predicted, average="macro"),
            "f1_micro": sk.f1_score(gold, predicted, average="micro"),
            "f1_weighted": sk.f1_score(gold, predicted, average="weighted"),
            "mcc": sk.matthews_corrcoef(gold, predicted),
        }
    assert found == pytest.approx(expected, abs=1e-12)


def test_several_classes_an_item() -> None:
    draw = np.random.default_rng(1)
    gold = (draw.random((200, 5)) < [0.5, 0.3, 0.1, 0.02, 0]).astype(int)
    predicted = np.where(draw.random(gold.shape) < 0.8, gold, 1 - gold)
    found = values(Kinds.of(gold, predicted, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": sk.accuracy_score(gold, predicted),
            "precision": sk.precision_score(gold, predicted, average="micro"),
            "recall": sk.recall_score(gold, predicted, average="micro"),
            "f1": sk.f1_score(gold, predicted, average="micro"),
            "f1_macro": sk.f1_score(gold, predicted, average="macro"),
            "f1_micro": sk.f1_score(gold, predicted, average="micro"),
            "f1_weighted": sk.f1_score(gold, predicted, average="weighted"),
        }
    assert found == pytest.approx(expected, abs=1e-12)


def test_one_class_only_has_no_correlation() -> None:
    found = values(Kinds.of(np.zeros(4, int), np.zeros(4, int), 2))
    assert found["mcc"] == 0.0
    assert found["accuracy"] == found["f1"] == 1.0


def test_tables() -> None:
    gold, predicted = labels(3, num_labels=3)
    made = classification.tables(Kinds.of(gold, predicted, 3), ("a", "b", "c"))
    assert made["confusion_matrix"]["counts"] == sk.confusion_matrix(gold, predicted, labels=[0, 1, 2]).tolist()
    precision, recall, f1, support = sk.precision_recall_fscore_support(gold, predicted, labels=[0, 1, 2])
    for i, name in enumerate("abc"):
        row = made["per_class"][name]
        assert [row["precision"], row["recall"], row["f1"]] == pytest.approx([precision[i], recall[i], f1[i]])
        assert row["gold"] == support[i]
        assert row["predicted"] == (predicted == i).sum()


def test_intervals_are_those_of_drawing_items() -> None:
    gold, predicted = labels(5, num_labels=4, count=120)
    kinds = Kinds.of(gold, predicted, 4)
    found = classification.scores(kinds, bootstrap=True, resamples=4000)
    draw = np.random.default_rng(9)
    drawn = [draw.integers(0, 120, 120) for _ in range(1500)]
    for name, score in {
        "accuracy": sk.accuracy_score,
        "mcc": sk.matthews_corrcoef,
        "f1": lambda a, b: sk.f1_score(a, b, average="macro"),
    }.items():
        value, low, high = found[name]
        expected = np.percentile([score(gold[rows], predicted[rows]) for rows in drawn], [2.5, 97.5])
        assert low is not None and high is not None and low < value < high
        assert [low, high] == pytest.approx(expected, abs=0.02)


def test_correlations() -> None:
    draw = np.random.default_rng(2)
    gold = np.round(draw.normal(100, 2, 80), 1)  # with ties
    predicted = gold + draw.normal(0, 1, 80)
    found = correlation.scores(gold, predicted, bootstrap=True)
    assert found["pearson"][0] == pytest.approx(scipy.stats.pearsonr(gold, predicted)[0], abs=1e-12)
    assert found["spearman"][0] == pytest.approx(scipy.stats.spearmanr(gold, predicted)[0], abs=1e-12)
    assert found["mse"][0] == pytest.approx(sk.mean_squared_error(gold, predicted), abs=1e-12)
    for value, low, high in found.values():
        assert low is not None and high is not None and low < value < high
    assert correlation.ranks(gold).tolist() == scipy.stats.rankdata(gold).tolist()


def test_a_constant_has_no_correlation() -> None:
    found = correlation.scores([1.0, 2.0, 3.0], [5.0, 5.0, 5.0], bootstrap=True)
    assert math.isnan(found["pearson"][0])
    assert found["mse"][0] == pytest.approx(29 / 3)
