"""Classifiers as a user makes them: fine-tuned, evaluated beside baselines, compared, and loaded by transformers."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Place

GOOD, BAD = ["good", "nice", "great", "很好", "不错"], ["bad", "awful", "poor", "很差", "糟糕"]
OTHER = ["the", "film", "food", "hotel", "room", "酒店", "电影"]
BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 64}


def text(draw: random.Random, words: list[str]) -> str:
    chosen = [*draw.choices(OTHER, k=draw.randint(2, 6)), *draw.choices(words, k=2)]
    draw.shuffle(chosen)
    return " ".join(chosen)


def rows(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        side = draw.random() < 0.6
        if kind == "single_label":
            made.append({"text": text(draw, GOOD if side else BAD), "label": "pos" if side else "neg"})
        elif kind == "multi_label":
            labels = [name for name in ("good", "bad") if draw.random() < 0.5]
            words = [word for name in labels for word in (GOOD if name == "good" else BAD)] or OTHER
            made.append({"text": text(draw, words), "labels": labels})
        else:
            first, second = text(draw, GOOD if side else BAD), text(draw, OTHER)
            made.append({"sentence1": first, "sentence2": second, "score": 4.5 if side else 1.0})
    return made


def recipe(**sections: Any) -> str:
    content: dict[str, Any] = {
        "output_dir": "run",
        "task": {"type": "sequence_classification"},
        "model": {"config": BERT},
        "tokenizer": {"train": {"algorithm": "wordpiece", "vocab_size": 100}},
        "data": {
            **{name: [{"path": f"{name}.jsonl"}] for name in ("train", "validation", "test")},
            "max_length": 32,
            "num_workers": 1,
        },
        "training": {"max_steps": 30, "global_batch_size": 16, "learning_rate": 5e-3, "torch_compile": False},
        "evaluation": {"baselines": ["majority", "tfidf_logistic_regression"]},
    }
    return json.dumps({**content, **sections})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


def fill(place: Place, kind: str, **sections: Any) -> None:
    for seed, (name, count) in enumerate({"train": 160, "validation": 24, "test": 40}.items()):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(kind, count, seed)]
        place.write(f"{name}.jsonl", "".join(lines))
    place.write("recipe.yaml", recipe(**sections))


def lines_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_one_label(place: Place) -> None:
    from transformers import pipeline

    fill(place, "single_label", checkpoint={"save_steps": 10})
    assert place.run("finetune").status == 0
    record = json.loads(Path("run/run.json").read_text(encoding="utf-8"))
    assert record["resolved"]["problem_type"] == "single_label"
    assert record["resolved"]["labels"] == ["neg", "pos"]
    found = place.run("evaluate", "recipe.yaml", "--json").json
    items = lines_of("run/evaluation/predictions.jsonl")
    assert found["metrics"]["accuracy"]["value"] > 0.95
    assert found["metrics"]["accuracy"]["value"] == sum(item["accuracy"] for item in items) / len(items)
    assert set(found["metrics"]) == {
        *("loss", "accuracy", "precision", "recall", "f1", "f1_micro", "f1_macro", "f1_weighted", "mcc"),
    }
    assert found["metrics"]["f1"]["low"] <= found["metrics"]["f1"]["value"] <= found["metrics"]["f1"]["high"]
    share = sum(item["label"] == "pos" for item in items) / len(items)
    assert found["baselines"]["majority"]["accuracy"]["value"] == pytest.approx(share)
    assert found["baselines"]["tfidf_logistic_regression"]["accuracy"]["value"] > 0.9
    assert found["confusion_matrix"]["labels"] == ["neg", "pos"]
    assert sum(map(sum, found["confusion_matrix"]["counts"])) == 40
    shown = place.run("evaluate").out
    assert "majority model: accuracy" in shown
    assert "gold \\ predicted" in shown
    classify = pipeline("text-classification", model="run/model")
    tests = lines_of("test.jsonl")
    for item, row, answer in zip(items, tests, classify([row["text"] for row in tests]), strict=True):
        assert (item["line"], item["label"]) == (item["row"] + 1, row["label"])
        assert answer["label"] == item["prediction"]
        assert answer["score"] == pytest.approx(item["probability"], abs=1e-5)


def test_a_resumed_run_is_the_same(place: Place) -> None:
    fill(place, "single_label", task={"type": "sequence_classification", "class_weights": "balanced"})
    assert place.run("finetune", sets={"output_dir": "whole"}).status == 0
    constant = {"training.lr_scheduler_type": "constant", "training.max_steps": 12}
    assert place.run("finetune", sets={**constant, "training.max_steps": 6}).status == 0
    assert place.run("finetune", sets=constant).status == 0
    assert place.run("finetune", sets={**constant, "output_dir": "again"}).status == 0
    weights = [(Path(run) / "model" / "model.safetensors").read_bytes() for run in ("run", "again")]
    assert weights[0] == weights[1]


def test_several_labels(place: Place) -> None:
    fill(place, "multi_label")
    assert place.run("finetune", sets={"training.max_steps": 60}).status == 0
    found = place.run("evaluate", "recipe.yaml", "--json").json
    assert found["metrics"]["f1"]["value"] == found["metrics"]["f1_micro"]["value"] > 0.75
    assert "mcc" not in found["metrics"]
    assert set(found["per_class"]) == {"bad", "good"}
    items = lines_of("run/evaluation/predictions.jsonl")
    assert items[0]["probabilities"].keys() == {"bad", "good"}
    config = json.loads(Path("run/model/config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == "multi_label_classification"


def test_numbers_of_pairs(place: Place) -> None:
    fill(place, "regression", evaluation={"baselines": ["majority"], "fail_if": {"mse": "> 0.0"}})
    assert place.run("finetune", sets={"training.max_steps": 60}).status == 0
    failed = place.run("evaluate", "recipe.yaml", "--json")
    assert failed.status == 5
    found = json.loads(Path("run/evaluation/results.json").read_text(encoding="utf-8"))
    assert found["metrics"]["pearson"]["value"] > 0.8
    assert found["metrics"]["mse"]["value"] < found["baselines"]["majority"]["mse"]["value"]
    assert found["metrics"]["mse"]["value"] == pytest.approx(found["metrics"]["loss"]["value"])
    ended = place.run("evaluate", sets={"evaluation.baselines": ["tfidf_logistic_regression"]})
    ended.told(2, "tfidf_logistic_regression predicts classes, and the labels are numbers")


def test_two_classifiers_are_compared_item_by_item(place: Place) -> None:
    fill(place, "single_label")
    for run, steps in (("weak", 1), ("strong", 30)):
        sets = {"output_dir": run, "training.max_steps": steps}
        assert place.run("finetune", sets=sets).status == 0
        assert place.run("evaluate", sets=sets).status == 0
    found = place.run("compare", "weak", "strong", "--json")
    accuracy = found.json["metrics"]["accuracy"]
    assert accuracy["low"] > 0
    assert accuracy["better"] == "b"
    assert accuracy["p"] < 0.05
    assert found.json["metrics"]["loss"]["p"] is not None


def test_a_directory_a_label(place: Place) -> None:
    draw = random.Random(0)
    with tarfile.open("texts.tar.gz", "w:gz") as archive:
        for number in range(60):
            side = "pos" if number % 2 else "neg"
            file = Path(str(number))
            file.write_text(text(draw, GOOD if number % 2 else BAD), encoding="utf-8")
            archive.add(file, f"texts/{side}/{number}")
    source = {"path": "texts.tar.gz", "format": "txt", "sample_by": "document"}
    data = {"train": [{**source, "columns": {"text": "text", "label": "path"}}], "validation_fraction": 0.2}
    place.write("recipe.yaml", recipe(data={**data, "max_length": 32, "num_workers": 1}))
    assert place.run("finetune").status == 0
    found = place.run("evaluate", "recipe.yaml", "--json").json
    assert found["confusion_matrix"]["labels"] == ["neg", "pos"]


def test_names_of_numbers(place: Place) -> None:
    draw = random.Random(0)
    lines = [f"{int(i % 2)}\t{text(draw, GOOD if i % 2 else BAD)}\n" for i in range(60)]
    place.write("train.tsv", "".join(lines) + "7\tthe film\n")
    place.write("names.txt", "negative\npositive\nneutral\n")
    source = {"path": "train.tsv", "header": False, "columns": {"label": 0, "text": 1}, "label_names": "names.txt"}
    data = {"train": [source], "test": [{**source, "limit": 20}], "max_bad_fraction": 0.05}
    place.write("recipe.yaml", recipe(data={**data, "max_length": 32, "num_workers": 1}))
    assert place.run("finetune").status == 0
    found = place.run("evaluate", "recipe.yaml", "--json").json
    assert list(found["per_class"]) == ["negative", "positive", "neutral"]
    prepared = next(Path("run/prepared").glob("[0-9a-f]*/rejected.jsonl"))
    assert lines_of(str(prepared))[0]["reason"] == "label 7 is none of the 3 label_names (0 to 2)"
