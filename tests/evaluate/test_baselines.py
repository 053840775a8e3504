"""Baselines: the recipe's table and ours are one, and each is what scikit-learn says of the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.data import prepare
from llmkit.errors import RecipeError
from llmkit.evaluate import baselines
from llmkit.recipe.sections import EvaluationSection
from llmkit.recipe.tasks import BASELINES
from llmkit.tasks import build_task
from tests.evaluate.tiny_run import console, write_rows
from tests.tasks.test_sequence_classification import KINDS, recipe, rows


def ready(directory: Path, kind: str) -> tuple[Any, Any]:
    tests = write_rows(directory / "test.jsonl", rows(KINDS[kind], 20, seed=7))
    data = {"train": [{"path": str(directory / "train.jsonl")}], "test": [{"path": str(tests)}], "max_length": 24}
    chosen = recipe(directory, train=rows([*KINDS[kind], KINDS[kind][1]], 50), data=data)
    prepared = prepare.prepare(chosen, console())
    task = build_task(chosen, prepared.tokenizer_dir)
    task.prepare(prepared.splits["train"], None)
    return task, prepared.splits


def score(directory: Path, kind: str, **keys: Any) -> dict[str, Any]:
    task, splits = ready(directory, kind)
    section = EvaluationSection(**{"baselines": ["majority", "tfidf_logistic_regression"], **keys})
    return baselines.score(section, "sequence_classification", task, splits["train"], splits["test"])


def test_the_recipe_and_the_table_agree() -> None:
    assert {(name, task) for name, tasks in BASELINES.items() for task in tasks} == set(baselines.BASELINES)


def test_one_label(tmp_path: Path) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    found = score(tmp_path, "single_label")
    train, test = rows([*KINDS["single_label"], "neg"], 50), rows(KINDS["single_label"], 20, seed=7)
    labels = [row["label"] for row in test]
    assert found["majority"]["accuracy"].value == labels.count("neg") / 20
    features = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    model = LogisticRegression(max_iter=1000).fit(
        features.fit_transform([row["text"] for row in train]), [row["label"] for row in train]
    )
    expected = model.score(features.transform([row["text"] for row in test]), labels)
    assert found["tfidf_logistic_regression"]["accuracy"].value == pytest.approx(expected)


def test_several_labels_and_fewer_rows(tmp_path: Path) -> None:
    found = score(tmp_path, "multi_label", max_samples=8)
    assert found["majority"]["f1"].n == found["tfidf_logistic_regression"]["f1"].n == 8


def test_numbers(tmp_path: Path) -> None:
    found = score(tmp_path, "regression", baselines=["majority"])
    gold = np.array([row["label"] for row in rows(KINDS["regression"], 20, seed=7)])
    mean = np.mean([row["label"] for row in rows([*KINDS["regression"], 2], 50)])
    assert found["majority"]["mse"].value == pytest.approx(((gold - mean) ** 2).mean())
    with pytest.raises(RecipeError, match="the labels are numbers"):
        score(tmp_path, "regression")
