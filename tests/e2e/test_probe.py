"""A probe as a user makes it: scikit-learn's own fit on the network's features, in a model that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.e2e.conftest import Place
from tests.e2e.test_classification import BERT, fill, lines_of, place, recipe  # noqa: F401 (a fixture)


def probe(kind: str, place: Place, **sections: Any) -> None:  # noqa: F811
    model = {"config": BERT, "probe": "logistic_regression"}
    fill(place, kind, model=model, training={}, **sections)


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_a_probe_is_the_fit_of_scikit_learn(kind: str, place: Place) -> None:  # noqa: F811
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    probe(kind, place)
    assert place.run("finetune", "recipe.yaml", "--dry-run").status == 0
    ended = place.run("finetune")
    assert ended.status == 0, ended.err
    assert "160 rows of 32 features" in ended.err
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    body = AutoModel.from_pretrained("run/model").eval()

    def inputs(name: str) -> Any:
        texts = [row["text"] for row in lines_of(f"{name}.jsonl")]
        return tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")

    with torch.no_grad():
        known, new = (body(**inputs(name)).pooler_output.double().numpy() for name in ("train", "test"))
        logits = AutoModelForSequenceClassification.from_pretrained("run/model").eval()(**inputs("test")).logits
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-8))
    if kind == "single_label":
        gold = [row["label"] for row in lines_of("train.jsonl")]
        ours = logits.double().softmax(-1).numpy()
    else:
        gold = np.array([[name in row["labels"] for name in ("bad", "good")] for row in lines_of("train.jsonl")])
        model = OneVsRestClassifier(model)
        ours = logits.double().sigmoid().numpy()
    assert ours == pytest.approx(model.fit(known, gold).predict_proba(new), abs=2e-3)
    found = place.run("evaluate", "recipe.yaml", "--json").json
    assert found["metrics"]["accuracy"]["value"] > found["baselines"]["majority"]["accuracy"]["value"]
    record = json.loads(Path("run/run.json").read_text(encoding="utf-8"))
    assert record["status"] == "completed"
    before = Path("run/model/model.safetensors").read_bytes()
    assert place.run("finetune", "recipe.yaml").status == 0  # done already
    assert place.run("finetune", "recipe.yaml", "--overwrite").status == 0
    assert Path("run/model/model.safetensors").read_bytes() == before


def test_what_a_probe_cannot_be(place: Place) -> None:  # noqa: F811
    probe("single_label", place)
    place.run("finetune", sets={"training.learning_rate": 1e-3}).told(2, "training.learning_rate", "without steps")
    roberta = {**BERT, "model_type": "roberta", "max_position_embeddings": 64}
    ended = place.run("finetune", sets={"model.config": roberta, "output_dir": "other"})
    ended.told(4, "the head of roberta is more than a linear layer")
