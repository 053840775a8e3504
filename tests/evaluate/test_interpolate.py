"""A neural model mixed with an n-gram model: the figures of a plain computation, and pairs that do not go together."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from llmkit.data import prepare
from llmkit.data.shards import Split
from llmkit.errors import ModelError, RecipeError
from llmkit.evaluate.baseline_ngram import ngram
from llmkit.evaluate.command import evaluate
from llmkit.evaluate.subset import choose_rows
from llmkit.metrics.mixture import fit_weight, mix
from llmkit.options import Options
from llmkit.recipe.load import load_recipe
from llmkit.recipe.resolve import resolve
from llmkit.tasks import build_task
from llmkit.tasks.causal_lm import CausalLMTask
from llmkit.train.command import train
from tests.evaluate.tiny_run import TinyRun, console, make_run, said, text_rows, write_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """An untrained GPT-2 with validation and test data, and an n-gram model counted with its tokenizer."""
    run = make_run(tmp_path_factory.mktemp("mixed"), "causal_lm")
    content = yaml.safe_load(run.recipe_path.read_text(encoding="utf-8"))
    content["data"]["validation"] = [{"path": str(write_rows(run.directory / "held.jsonl", text_rows(20, 9)))}]
    run.recipe_path.write_text(yaml.safe_dump(content), encoding="utf-8")
    count(run, "ngram", f"tokenizer.name_or_path={run.model}")
    return run


def count(run: TinyRun, name: str, *overrides: str) -> None:
    content = yaml.safe_load(run.recipe_path.read_text(encoding="utf-8"))
    content |= {"output_dir": str(run.directory / name), "model": {"config": {"model_type": "ngram", "order": 3}}}
    content["tokenizer"] = {} if overrides else {"train": {"algorithm": "bpe", "vocab_size": 300}}
    path = run.directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    recipe = resolve(load_recipe(path, list(overrides), command="pretrain"))
    train(recipe, Options(command="pretrain", recipe_path=path), console())


def split_of(run: TinyRun, name: str) -> Split:
    return prepare.prepare(run.recipe(), console()).splits[name]


def log_probs(run: TinyRun, model: Path, split: Split) -> list[np.ndarray]:
    """log p of each row's tokens by transformers alone, in the windows of the evaluation."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    found = []
    for i in range(split.num_rows):
        row, parts = split.row(i).tolist(), []
        for place in range(0, len(row) - 1, 48):
            window = torch.tensor([row[place : place + 49]])
            with torch.inference_mode():
                log_p = loaded(input_ids=window[:, :-1]).logits[0].double().log_softmax(-1)
            parts.append(log_p.gather(-1, window[0, 1:, None])[:, 0].numpy())
        found.append(np.concatenate(parts))
    return found


def test_the_weight_comes_from_validation_and_the_figures_from_test(run: TinyRun) -> None:
    place = run.directory / "ngram"
    recipe = run.recipe(f"evaluation.interpolate={{ngram: {place / 'model'}}}")
    out = console()
    document = evaluate(recipe, run.options("evaluate"), out)
    found = document["suites"]["interpolation"]
    models = (run.model, place / "model")
    tuned = [np.concatenate(log_probs(run, model, split_of(run, "validation"))) for model in models]
    scored = [np.concatenate(log_probs(run, model, split_of(run, "test"))) for model in models]
    weight = fit_weight(*tuned)
    assert found["weight"]["value"] == pytest.approx(weight, abs=1e-5)
    loss = -mix(*scored, weight).mean()
    assert found["loss"]["value"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert found["perplexity"]["low"] < found["perplexity"]["value"] < found["perplexity"]["high"]
    bits = loss / math.log(2) * len(scored[0]) / split_of(run, "test").bytes_of().sum()
    assert found["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-5)
    assert found["ngram_perplexity"]["value"] == pytest.approx(math.exp(-scored[1].mean()), rel=1e-5)
    text = said(out)[0]
    assert "interpolation: perplexity" in text and "fitted on the validation rows" in text
    written = json.loads((run.directory / "run" / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert written["suites"]["interpolation"] == found


def test_without_test_data_each_half_gets_the_weight_of_the_other(run: TinyRun) -> None:
    place = run.directory / "ngram"
    recipe = run.recipe(f"evaluation.interpolate={{ngram: {place}}}", "data.test=[]")
    out = console()
    document = evaluate(recipe, run.options("evaluate"), out)
    assert "cross-fitted" in said(out)[0]
    found = document["suites"]["interpolation"]
    neural, counted = (log_probs(run, model, split_of(run, "validation")) for model in (run.model, place / "model"))
    first = set(choose_rows(len(neural), len(neural) // 2).tolist())
    halves = [sorted(first), sorted(set(range(len(neural))) - first)]
    joined = [[np.concatenate([rows[i] for i in half]) for rows in (neural, counted)] for half in halves]
    mixed = [mix(*joined[0], fit_weight(*joined[1])), mix(*joined[1], fit_weight(*joined[0]))]
    assert found["loss"]["value"] == pytest.approx(-np.concatenate(mixed).mean(), rel=1e-5)
    assert document["metrics"]["perplexity"]["value"] > found["perplexity"]["value"]


def test_the_baseline_is_the_model_of_its_own_run(run: TinyRun) -> None:
    recipe = run.recipe()
    prepared = prepare.prepare(recipe, console())
    task = build_task(recipe, prepared.tokenizer_dir)
    assert isinstance(task, CausalLMTask)
    metrics = ngram(task, prepared.splits["train"], prepared.splits["test"], order=3)
    scored = np.concatenate(log_probs(run, run.directory / "ngram" / "model", prepared.splits["test"]))
    assert metrics["loss"].value == pytest.approx(-scored.mean(), rel=1e-6)
    assert set(metrics) == {"loss", "perplexity", "bits_per_byte"} and metrics["perplexity"].low is not None


def test_what_cannot_be_mixed_is_refused(run: TinyRun, tmp_path: Path) -> None:
    def attempt(place: Path) -> str:
        with pytest.raises(ModelError) as refused:
            evaluate(run.recipe(f"evaluation.interpolate={{ngram: {place}}}"), run.options("evaluate"), console())
        assert refused.value.key == "evaluation.interpolate.ngram"
        return refused.value.message

    count(run, "other")
    assert "tokenizer" in attempt(run.directory / "other" / "model")
    assert "a model of type gpt2" in attempt(run.model)
    assert "no model directory" in attempt(tmp_path / "missing")
    shutil.rmtree(run.directory / "other")
    content = yaml.safe_load(run.recipe_path.read_text(encoding="utf-8"))
    content |= {"task": {"type": "instruction"}, "evaluation": {"interpolate": {"ngram": str(run.model)}}}
    (tmp_path / "chat.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RecipeError, match="interpolate"):
        load_recipe(tmp_path / "chat.yaml", [])
