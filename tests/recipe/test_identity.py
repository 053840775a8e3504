"""Which keys make a run another one, and when a run may be made longer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import RecipeError
from llmkit.recipe.identity import LENGTH, check_same_run, content_of, differences, identity, may_extend
from llmkit.recipe.sections import Recipe


def recipe(**changes: Any) -> Recipe:
    """A recipe with dotted keys (`__` for the dot) changed."""
    value: dict[str, Any] = {
        "output_dir": "runs/a",
        "task": {"type": "causal_lm"},
        "model": {"config": {"model_type": "gpt2", "n_layer": 2}},
        "tokenizer": {"train": {"algorithm": "bpe"}},
        "data": {"train": [{"path": "a.txt"}], "clean": [{"step": "fix_unicode"}]},
        "training": {"max_steps": 10, "learning_rate": 1e-3},
    }
    for key, change in changes.items():
        *path, last = key.split("__")
        place: Any = value
        for part in path:
            place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
        place[last] = change
    return Recipe.model_validate(value)


@pytest.mark.parametrize(
    "changes",
    [
        {"output_dir": "elsewhere"},
        {"data__prepared_dir": "shared"},
        {"data__num_workers": 3},
        {"data__train": [{"path": "moved/a.txt", "id": "name"}]},
        {"evaluation__suites": [{"suite": "x"}]},
        {"evaluation__baselines": ["majority"]},
        {"evaluation__fail_if": {"perplexity": "> 40"}},
        {"evaluation__eval_steps": 5, "evaluation__metrics": ["loss"]},
        {"generation__max_new_tokens": 3},
        {"logging__logging_steps": 1},
        {"checkpoint__save_steps": 7, "checkpoint__save_total_limit": None, "checkpoint__save_minutes": 1.0},
        {"checkpoint__save_best": False},
        {"training__max_memory": "20GB"},
        {"distributed__ddp_timeout": 60},
        {"model__attn_implementation": None},
        {"data__validation": []},
    ],
)
def test_outside_the_identity(changes: dict[str, Any]) -> None:
    assert identity(recipe(**changes)) == identity(recipe())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"task__fim_rate": 0.5}, "task.fim_rate"),
        ({"model__config": {"model_type": "gpt2", "n_layer": 3}}, "model.config.n_layer"),
        ({"model__dropout": 0.1}, "model.dropout"),
        ({"tokenizer__train": {"algorithm": "bpe", "vocab_size": 99}}, "tokenizer.train.vocab_size"),
        ({"data__train__0__weight": 2.0}, "data.train.0.weight"),
        ({"data__train__0__columns": {"text": "body"}}, "data.train.0.columns.text"),
        ({"data__train": [{"path": "a.txt"}, {"path": "b.txt"}]}, "data.train.1.weight"),
        ({"data__clean": []}, "data.clean.0.step"),
        ({"data__max_length": 64}, "data.max_length"),
        ({"data__packing": True}, "data.packing"),
        ({"training__learning_rate": 2e-3}, "training.learning_rate"),
        ({"training__max_steps": 11}, "training.max_steps"),
        ({"training__global_batch_size": 8}, "training.global_batch_size"),
        ({"distributed__mixed_precision": "bf16"}, "distributed.mixed_precision"),
        ({"peft": {"type": "lora"}}, "peft.r"),
        ({"checkpoint__save_best": True}, "checkpoint.save_best"),
        ({"training__loss_spike_action": "skip"}, "training.loss_spike_action"),
        ({"training__loss_spike_action": "rollback", "checkpoint__save_steps": 7}, "checkpoint.save_steps"),
    ],
)
def test_inside_the_identity(changes: dict[str, Any], key: str) -> None:
    assert key in [name for name, _, _ in differences(identity(recipe()), identity(recipe(**changes)))]


@pytest.mark.parametrize("selection", [{"checkpoint__save_best": True}, {"training__early_stopping_patience": 2}])
def test_evaluation_counts_where_it_chooses_the_model(selection: dict[str, Any]) -> None:
    one, other = recipe(**selection), recipe(**selection, evaluation__eval_steps=5, evaluation__fail_if={"loss": "> 3"})
    assert differences(identity(one), identity(other)) == [("evaluation.eval_steps", None, 5)]
    assert identity(one) == identity(recipe(**selection, checkpoint__save_steps=3))


def test_names_for_the_same_thing_are_the_same() -> None:
    assert identity(recipe(training__optim="adamw_torch_fused")) == identity(recipe(training__optim="adamw"))
    assert identity(recipe(training__warmup_ratio=0.1)) == identity(recipe(training__warmup_steps=0.1))


def test_it_survives_run_json() -> None:
    flat = identity(recipe(training__learning_rate=5e-5, peft={"type": "lora"}, model__freeze=["a", "b"]))
    assert json.loads(json.dumps(flat)) == flat


def test_local_models_count_by_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    first = identity(recipe(model__name_or_path=str(tmp_path / "a"), model__config=None))
    assert first == identity(recipe(model__name_or_path=str(tmp_path / "b"), model__config=None))
    (tmp_path / "b" / "model.safetensors").write_bytes(b"Weights")
    second = identity(recipe(model__name_or_path=str(tmp_path / "b"), model__config=None))
    assert [key for key, _, _ in differences(first, second)] == ["model.name_or_path"]
    assert identity(recipe(model__name_or_path="org/name", model__config=None))["model.name_or_path"] == "org/name"
    hooked = identity(recipe(model__name_or_path=str(tmp_path / "b"), model__config=None), lambda path: "same")
    assert hooked["model.name_or_path"] == "same"
    assert content_of(str(tmp_path / "a" / "model.safetensors")).startswith("sha256:")


def check(old: Recipe, new: Recipe, *, old_steps: int = 10, new_steps: int = 10, kept: bool = True) -> bool:
    return check_same_run(
        identity(old),
        identity(new),
        output_dir="runs/a",
        old_steps=old_steps,
        new_steps=new_steps,
        past_rates_kept=lambda: kept,
    )


def test_a_refusal_lists_every_key_with_both_values() -> None:
    with pytest.raises(RecipeError) as caught:
        check(recipe(), recipe(seed=7, training__learning_rate=2e-3, model__dropout=0.1, training__max_steps=20))
    message = str(caught.value)
    for line in (
        "model.dropout: the run has nothing, the recipe 0.1",
        "seed: the run has 42, the recipe 7",
        "training.learning_rate: the run has 0.001, the recipe 0.002",
        "training.max_steps: the run has 10, the recipe 20",
        "--overwrite",
    ):
        assert line in message
    assert caught.value.status == 2


def test_the_same_run_and_a_longer_one() -> None:
    assert check(recipe(), recipe(output_dir="moved")) is False
    assert check(recipe(), recipe(training__max_steps=20), new_steps=20) is True
    epochs = recipe(training={"num_train_epochs": 2.0, "learning_rate": 1e-3})
    assert check(recipe(), epochs, new_steps=10) is False
    assert LENGTH == ("training.max_steps", "training.num_train_epochs")
    with pytest.raises(RecipeError, match="cannot be made shorter"):
        check(recipe(), recipe(training__max_steps=5), new_steps=5)
    with pytest.raises(RecipeError, match=r"model\.name_or_path: runs/a/model"):
        check(recipe(), recipe(training__max_steps=20), new_steps=20, kept=False)


def test_rates_of_the_past_decide_over_a_longer_run() -> None:
    def constant(total: int) -> Any:
        return lambda step: 1e-3

    def cosine(total: int) -> Any:
        return lambda step: 1e-3 * 0.5 * (1 + math.cos(math.pi * step / total))

    def stable_then_decay(total: int) -> Any:
        return lambda step: 1e-3 if step < 0.8 * total else 1e-3 * (total - step) / (0.2 * total)

    assert may_extend(constant(10), constant(20), 10)
    assert not may_extend(cosine(10), cosine(20), 5)
    assert may_extend(stable_then_decay(10), stable_then_decay(20), 8)
    assert not may_extend(stable_then_decay(10), stable_then_decay(20), 10)


def test_synonyms_count_by_content(tmp_path: Path) -> None:
    def of(name: str, text: str) -> dict[str, Any]:
        (tmp_path / name).write_text(text)
        steps = [{"step": "swap"}, {"step": "synonyms", "path": str(tmp_path / name)}]
        return identity(recipe(task={"type": "sequence_classification"}, data__augment=steps))

    assert of("a.tsv", "good\tfine\n") == of("b.tsv", "good\tfine\n")
    assert [key for key, _, _ in differences(of("a.tsv", "x\ty\n"), of("b.tsv", "x\tz\n"))] == ["data.augment.1.path"]
