"""Metrics of Hugging Face's kind: ours, whatever lies in the current directory, and without a network."""

from __future__ import annotations

import socket
from pathlib import Path

import evaluate
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from llmkit.errors import RecipeError
from llmkit.metrics.hf import ALIASES, LOADABLE, load
from llmkit.metrics.table import METRICS

GOLD, PREDICTED = [0, 1, 2, 1, 0, 2], [0, 2, 2, 1, 0, 1]


def test_names_are_those_of_the_table() -> None:
    assert set(LOADABLE) <= set(METRICS)
    assert set(ALIASES.values()) <= set(LOADABLE)


def test_a_script_in_the_current_directory_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy" / "accuracy.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    metric = load("accuracy")
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=PREDICTED, references=GOLD) == {"accuracy": pytest.approx(4 / 6)}


def test_numbers_are_ours() -> None:
    texts = [["a", "b", "c"][label] for label in GOLD]
    metric = load("f1")
    metric.add_batch(predictions=["a", "c", "c"], references=texts[:3])
    metric.add_batch(predictions=["b", "a", "b"], references=texts[3:])
    assert metric.compute()["f1"] == pytest.approx(f1_score(GOLD, PREDICTED, average="macro"))
    name = "matthews_correlation"
    assert load(name).compute(predictions=PREDICTED, references=GOLD)[name] == pytest.approx(
        matthews_corrcoef(GOLD, PREDICTED)
    )
    several = load("f1_micro").compute(predictions=[[1, 0], [1, 1]], references=[[1, 1], [1, 1]])
    assert several["f1_micro"] == pytest.approx(6 / 7)
    assert load("pearsonr").compute(predictions=[1.0, 2.0, 4.0], references=[2.0, 4.0, 8.0]) == {
        "pearsonr": pytest.approx(1.0)
    }


def test_unknown_names_are_told() -> None:
    with pytest.raises(RecipeError, match="did you mean accuracy"):
        load("acuracy")
