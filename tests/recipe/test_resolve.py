"""Defaults by task, and a dump that loads back to the same recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.recipe.load import load_recipe
from llmkit.recipe.paths import is_hub_id, is_local
from llmkit.recipe.resolve import dump, resolve
from llmkit.recipe.sections import Recipe

PRETRAIN = """\
output_dir: runs/x
task: {type: causal_lm}
model: {config: {model_type: gpt2, resid_pdrop: null}}
tokenizer: {train: {vocab_size: 300}}
data: {train: [{path: a.txt}]}
"""
FINETUNE = """\
output_dir: runs/y
task: {type: instruction}
model: {name_or_path: hf://org/name}
data: {train: [{path: [a.jsonl, "*.json"], columns: {prompt: {columns: [q, 1]}}, message_keys: {list: turns}}]}
"""


def load(directory: Path, text: str, *overrides: str) -> Recipe:
    path = directory / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def training(directory: Path, text: str, *overrides: str) -> dict[str, Any]:
    return resolve(load(directory, text, *overrides)).training.model_dump()


def test_pretraining(tmp_path: Path) -> None:
    found = training(tmp_path, PRETRAIN)
    assert found["learning_rate"] == 5e-4
    assert (found["optim"], found["adam_beta1"], found["adam_beta2"], found["adam_epsilon"]) == (
        "adamw",
        0.9,
        0.95,
        1e-8,
    )
    assert (found["lr_scheduler_type"], found["min_lr_ratio"], found["warmup_steps"]) == (
        "cosine_with_min_lr",
        0.1,
        0.02,
    )
    assert (found["global_batch_size"], found["weight_decay"], found["num_train_epochs"]) == (32, 0.1, 1.0)
    assert resolve(load(tmp_path, PRETRAIN)).data.overflow == "split"


def test_finetuning(tmp_path: Path) -> None:
    found = training(tmp_path, FINETUNE)
    assert (found["learning_rate"], found["adam_beta2"], found["weight_decay"]) == (5e-5, 0.999, 0.0)
    assert (found["lr_scheduler_type"], found["min_lr_ratio"], found["warmup_steps"]) == ("linear", None, 0.03)
    assert found["global_batch_size"] == 16
    assert training(tmp_path, FINETUNE, "peft={type: lora}")["learning_rate"] == 2e-4
    assert resolve(load(tmp_path, FINETUNE)).data.overflow == "truncate"


def test_what_is_said_stays(tmp_path: Path) -> None:
    said = "training={learning_rate: 1e-3, max_steps: 7, warmup_ratio: 0.5, optim: adamw_torch, weight_decay: 0}"
    found = training(tmp_path, PRETRAIN, said)
    assert (found["learning_rate"], found["max_steps"], found["num_train_epochs"]) == (1e-3, 7, None)
    assert (found["warmup_steps"], found["warmup_ratio"], found["optim"], found["weight_decay"]) == (
        0.5,
        None,
        "adamw",
        0,
    )


def test_no_value_is_filled_in_that_would_be_ignored(tmp_path: Path) -> None:
    found = training(tmp_path, PRETRAIN, "training={optim: sgd, lr_scheduler_type: constant}")
    assert found["adam_beta1"] is found["adam_beta2"] is found["adam_epsilon"] is found["min_lr_ratio"] is None
    assert found["warmup_steps"] == 0.0


def test_the_default_batch_fits_the_size_of_a_device(tmp_path: Path) -> None:
    assert training(tmp_path, PRETRAIN, "training.per_device_train_batch_size=12")["global_batch_size"] == 36


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = resolve(load(tmp_path, FINETUNE, "data.prepared_dir=p/q", "data.test=[{path: org/name}]"))
    assert recipe.output_dir == str(tmp_path / "runs/y")
    assert recipe.data.prepared_dir == str(tmp_path / "p/q")
    assert recipe.data.train[0].path == [str(tmp_path / "a.jsonl"), str(tmp_path / "*.json")]
    assert recipe.data.test[0].path == "org/name"
    assert recipe.model.name_or_path == "hf://org/name"


def test_hub_ids_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("org/Model-0.5B")
    assert is_hub_id("hf://org/name")
    assert not is_hub_id("builtin:python-stdlib", data=True)
    assert is_local("data/train.jsonl", data=True)
    assert is_local("./org/name")
    assert is_local("a/b/c")
    (tmp_path / "org").mkdir()
    assert is_local("org/name")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["training={max_grad_norm: null, learning_rate: 1e-5}", "checkpoint.save_minutes=null"],
        ["generation.stop_strings=['no', '1e5', '', ' a', 'x: y', '# z', '0o17', '第三回\\n', '\"', ~x, '-', '.inf']"],
        ["evaluation.fail_if={perplexity: '> 40'}", "data.validation_fraction=0.1"],
        ["data.clean=[{step: normalize, form: NFKC}, {step: length, min_words: 3}]"],
    ],
)
@pytest.mark.parametrize("text", [PRETRAIN, FINETUNE])
def test_the_dump_loads_back_to_the_same_recipe(tmp_path: Path, text: str, overrides: list[str]) -> None:
    resolved = resolve(load(tmp_path, text, *overrides))
    assert resolve(resolved) == resolved
    stored = dump(resolved)
    again = load(tmp_path, stored)
    assert again == resolved
    assert dump(resolve(again)) == stored


def test_adapters_resolve_by_type(tmp_path: Path) -> None:
    for kind, rate, modules in (("lora", 2e-4, "all-linear"), ("ia3", 3e-3, None), ("prompt_tuning", 3e-2, None)):
        resolved = resolve(load(tmp_path, FINETUNE, f"peft={{type: {kind}}}"))
        assert resolved.training.learning_rate == rate
        assert resolved.peft is not None and resolved.peft.target_modules == modules
        stored = tmp_path / "stored.yaml"
        stored.write_text(dump(resolved), encoding="utf-8")
        assert resolve(load_recipe(stored)) == resolved


def test_synonyms_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = {"type": "sequence_classification"}
    steps = [{"step": "swap", "p": 0.2}, {"step": "synonyms", "path": "words.tsv"}]
    recipe = Recipe.model_validate({"output_dir": "x", "task": task, "data": {"augment": steps}})
    found = resolve(recipe).data.augment
    assert found[1].model_dump()["path"] == str(tmp_path / "words.tsv")
    assert found[0] == recipe.data.augment[0]
