"""A counting run through the command: the files of any run, the same model whatever interrupts it, what is refused."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkit import cli
from llmkit.data import prepare
from llmkit.errors import RecipeError, Stopped
from llmkit.evaluate.command import evaluate
from llmkit.manifest import hash_file
from llmkit.options import Options
from llmkit.recipe.load import load_recipe
from llmkit.recipe.resolve import resolve
from llmkit.report.console import Console
from llmkit.train.command import train
from llmkit.verify import verify
from tests.evaluate.tiny_run import console, said, text_rows, write_rows
from tests.models.kneser_ney import KneserNey


def write_recipe(directory: Path, **config: Any) -> Path:
    """English and Chinese, half each, with held-out rows."""
    content = {
        "version": 1,
        "output_dir": str(directory / "run"),
        "task": {"type": "causal_lm"},
        "model": {"config": {"model_type": "ngram", "order": 3, **config}},
        "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 400}},
        "data": {
            "train": [{"path": str(write_rows(directory / "train.jsonl", text_rows(200, 1)))}],
            "validation": [{"path": str(write_rows(directory / "held.jsonl", text_rows(30, 2)))}],
            "num_workers": 1,
        },
        "generation": {"max_new_tokens": 5},
    }
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def run(path: Path, *overrides: str, out: Console | None = None, **options: Any) -> dict[str, Any]:
    recipe = resolve(load_recipe(path, list(overrides), command="pretrain"))
    return train(recipe, Options(command="pretrain", recipe_path=path, **options), out or console())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("counted")
    run(write_recipe(directory, arpa=True))
    return directory


def weights(directory: Path) -> dict[str, Any]:
    return hash_file(directory / "run" / "model" / "model.safetensors")


def documents(directory: Path, split: str) -> list[list[int]]:
    prepared = prepare.load(resolve(load_recipe(directory / "recipe.yaml", [])))
    assert prepared is not None
    rows = prepared.splits[split]
    return [rows.row(i).tolist() for i in range(rows.num_rows)]


def test_its_figures_are_those_of_the_formulas(done: Path) -> None:
    train_rows, held = documents(done, "train"), documents(done, "validation")
    tokenizer = AutoTokenizer.from_pretrained(done / "run" / "model")
    start = end = tokenizer.eos_token_id
    assert {row[0] for row in train_rows} == {start} and {row[-1] for row in train_rows} == {end}
    reference = KneserNey(train_rows, 3, range(len(tokenizer)), start, end)
    costs = [-math.log(reference.probability(row[:i], row[i])) for row in held for i in range(1, len(row))]
    results = json.loads((done / "run" / "results.json").read_text())
    assert results["loss"] == pytest.approx(np.mean(costs), rel=1e-6)
    assert results["perplexity"] == pytest.approx(math.exp(np.mean(costs)), rel=1e-6)
    assert results["tokens"] == sum(len(row) - 1 for row in train_rows)
    assert results["ngrams_2"] == len({pair for row in train_rows for pair in pairwise(row)})
    event = json.loads((done / "run" / "metrics.jsonl").read_text())
    assert event["split"] == "validation" and event["loss"] == results["loss"]
    document = evaluate(
        resolve(load_recipe(done / "recipe.yaml", [])), Options("evaluate", done / "recipe.yaml"), console()
    )
    assert document["metrics"]["loss"]["value"] == pytest.approx(results["loss"], rel=1e-12)
    assert document["metrics"]["perplexity"]["low"] < results["perplexity"] < document["metrics"]["perplexity"]["high"]


def test_it_leaves_the_files_of_any_run(done: Path) -> None:
    directory = done / "run"
    record = json.loads((directory / "run.json").read_text())
    assert (record["status"], record["exit_code"], record["steps"]) == ("completed", 0, 0)
    assert record["resolved"]["order"] == 3 and set(record["resolved"]["discounts"]) == {"1", "2", "3"}
    assert "ngrams_3" in (directory / "model" / "README.md").read_text()
    assert "<html" in (directory / "report.html").read_text()
    assert not list(directory.glob(".counting*")) and not (directory / "checkpoints").exists()
    assert gzip.decompress((directory / "model" / "model.arpa.gz").read_bytes()).startswith(b"\\data\\\n")
    assert verify(directory, console())["kind"] == "run"


def test_plain_transformers_scores_the_same(done: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(done / "run" / "model")
    total, count = 0.0, 0
    for row in documents(done, "validation"):
        ids = torch.tensor([row])
        total += float(model(input_ids=ids, labels=ids).loss) * (len(row) - 1)
        count += len(row) - 1
    results = json.loads((done / "run" / "results.json").read_text())
    assert total / count == pytest.approx(results["loss"], rel=1e-6)


def test_the_same_command_again_has_nothing_to_do(done: Path) -> None:
    before, out = weights(done), console()
    results = run(done / "recipe.yaml", out=out)
    assert "nothing to do" in said(out)[1]
    assert results == json.loads((done / "run" / "results.json").read_text())
    assert run(done / "run" / "recipe.yaml") == results  # the resolved recipe is the same run
    with pytest.raises(RecipeError, match="different recipe"):
        run(done / "recipe.yaml", "model.config.order=4")
    run(done / "recipe.yaml", overwrite=True)
    assert weights(done) == before


def test_stopped_and_started_again_it_is_the_same_model(done: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, arpa=True)

    class Killed(Console):
        def note(self, message: str) -> None:
            if message.startswith("order 3"):
                os.kill(os.getpid(), signal.SIGTERM)

    out = console()
    with pytest.raises(Stopped) as stopped:
        run(path, out=Killed(stdout=out.stdout, stderr=out.stderr, terminal=False, json=False))
    assert stopped.value.status == 143
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "stopped" and not (tmp_path / "run" / "model").exists()
    (tmp_path / "run" / ".counting.dead").mkdir()  # what a kill leaves
    out = console()
    run(path, out=out)
    assert "begins anew" in said(out)[1]
    assert weights(tmp_path) == weights(done)
    assert not list((tmp_path / "run").glob(".counting*"))


def test_dry_run_writes_nothing_and_estimates(tmp_path: Path) -> None:
    out = console()
    report = run(write_recipe(tmp_path), out=out, dry_run=True)["run"]
    assert not (tmp_path / "run").exists()
    assert report["tokens"] == report["counted_tokens"] and len(report["ngrams"]) == 3
    assert report["model_bytes"] == 16 * sum(report["ngrams"]) < report["disk_bytes"] < report["free_disk_bytes"]
    assert "n-grams            about" in said(out)[0]
    results = run(tmp_path / "recipe.yaml")
    assert report["ngrams"] == [results[f"ngrams_{n}"] for n in (1, 2, 3)]


def test_weights_of_sources_and_no_validation(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["data"].pop("validation")
    content["data"]["train"][0]["weight"] = 2.0
    path.write_text(yaml.safe_dump(content))
    results = run(path)
    assert results["loss"] == results["train_loss"]
    assert results["tokens"] == 2 * sum(len(row) - 1 for row in documents(tmp_path, "train"))


@pytest.mark.parametrize(
    "setting",
    [
        "training.max_steps=3",
        "training.learning_rate=0.1",
        "training.max_grad_norm=1.0",
        "training.weight_decay=0.0",
        "checkpoint.save_steps=3",
        "distributed.mixed_precision=no",
        "logging.logging_steps=5",
        "data.packing=false",
        "evaluation.eval_steps=3",
        "model.dropout=0.1",
        "task.fim_rate=0.5",
    ],
)
def test_what_it_would_ignore_is_refused(setting: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="counted") as refused:
        load_recipe(write_recipe(tmp_path), [setting], command="pretrain")
    assert refused.value.key == setting.split("=")[0]


def test_other_refusals(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(tmp_path)
    with pytest.raises(RecipeError, match="one process"):
        load_recipe(path, [], command="pretrain", num_processes=2)
    content = yaml.safe_load(path.read_text())
    content["task"] = {"type": "instruction"}
    (tmp_path / "chat.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match="goes with task"):
        load_recipe(tmp_path / "chat.yaml", [], command="finetune")
    assert cli.run(["pretrain", str(path), "--set", "model.config.ordr=3"]) == 2
    assert "did you mean order" in capsys.readouterr().err
    assert cli.run(["pretrain", str(path), "--set", "model.config.prune=[1]"]) == 2
    assert "prune must begin with 0" in capsys.readouterr().err
    content = yaml.safe_load(path.read_text())
    content |= {"model": {"name_or_path": str(done / "run" / "model")}, "tokenizer": {}}
    (tmp_path / "further.yaml").write_text(yaml.safe_dump(content))
    assert cli.run(["pretrain", str(tmp_path / "further.yaml")]) == 4
    assert "counted from scratch" in capsys.readouterr().err


def test_generate_and_json(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["generate", str(done / "recipe.yaml"), "--prompt", "the quick", "--prompt", "今天", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["completions"]
    assert [one["prompt"] for one in made] == ["the quick", "今天"] and all(one["text"] for one in made)
    assert cli.run(["pretrain", str(done / "recipe.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ngrams_1"] > 0
