"""Recipes, metrics, reports and checkpoint directories, mutated: nothing but our own errors raised, nothing hangs."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llmkit.data.tokenizer import load_tokenizer
from llmkit.data.tokenizer_files import import_tokenizer, source_identity, tokenizer_source
from llmkit.errors import CheckpointError, LlmkitError, RecipeError
from llmkit.manifest import MANIFEST, broken, seal
from llmkit.models.load import load_model, max_length
from llmkit.recipe.load import load_recipe
from llmkit.recipe.resolve import dump, resolve
from llmkit.recipe.sections import Recipe
from llmkit.report.html import write_report
from llmkit.report.overfit import OverfitWatch
from llmkit.tasks import complete_tokenizer, encoder_for
from llmkit.train import checkpoint, metricslog, tensorfile
from llmkit.train.rundir import inspect
from tests.fakes import byte_tokenizer, tiny_model
from tests.faults.fuzzing import TOKENS, as_json, bounded, mutate, mutate_json
from tests.faults.table import FaultTable

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


def recipe(place: Path, number: int, dice: random.Random) -> None:
    """A mutated recipe, as text or as a tree, and a mutated `--set`, through loading, checks, defaults and back."""
    seeds = [path.read_bytes() for path in RECIPES]
    data = dice.choice(seeds)
    if dice.random() < 0.5:
        data = as_json(mutate_json(dice, yaml.safe_load(data)))
    else:
        data = mutate(dice, data, seeds)
    path = place / "recipe.yaml"
    path.write_bytes(data)
    overrides = []
    if dice.random() < 0.3:
        text = mutate(dice, b"data.train.0.path=x.jsonl", [b"training.max_steps=5", b"peft={type: lora}", *TOKENS[:60]])
        overrides.append(text.decode("utf-8", "surrogateescape"))
    try:
        loaded = load_recipe(path, overrides, command=dice.choice(("preprocess", "pretrain", "finetune", "evaluate")))
        resolved = resolve(loaded)
    except RecipeError as error:
        if error.file not in (str(path), "--set", None):
            raise ValueError(f"an error of {error.file}") from error
        return
    path.write_text(dump(resolved), encoding="utf-8")
    assert resolve(load_recipe(path)) == resolved


EVENTS = [
    {"step": 0, "split": "validation", "loss": 5.0, "seconds": 1.0},
    *(
        {
            "step": step,
            "split": "train",
            "loss": 4.0 - step / 100,
            "learning_rate": 1e-3,
            "grad_norm": 1.0,
            "tokens": 9,
            "tokens_per_second": 3.0,
        }
        for step in range(1, 9)
    ),
    {"step": 8, "split": "validation", "loss": 6.0, "accuracy": 0.5},
]
RESULTS = {
    "metrics": {"loss": {"value": 1.0, "low": 0.5, "high": 2.0, "n": 4}, "accuracy": {"value": 0.5}},
    "suites": {"bias": {"rate": {"value": 0.5}}},
    "baselines": {"majority": {"accuracy": 0.3}},
    "notes": ["x"],
    "per_class": {"a": {"f1": 0.5, "n": 2}},
    "confusion_matrix": {"labels": ["a", "b"], "counts": [[1, 0], [0, 2]]},
}
RUN = {
    "command": "pretrain",
    "status": "running",
    "steps": 4,
    "tokens": 9,
    "started_at": "2026",
    "seconds": 3.5,
    "resolved": {"a": 1},
    "versions": {"torch": "2"},
    "hardware": {},
}


def metrics(place: Path, number: int, dice: random.Random) -> None:
    """metrics.jsonl and the JSON beside it: read, watched, shown as a page, cut back."""
    changed = mutate_json(dice, EVENTS)
    lines = b"".join(as_json(event) + b"\n" for event in (changed if isinstance(changed, list) else [changed]))
    (place / "metrics.jsonl").write_bytes(lines if dice.random() < 0.5 else mutate(dice, lines, [lines]))
    (place / "evaluation").mkdir(exist_ok=True)
    for name, value in {
        "run.json": RUN,
        "results.json": {"loss": 1.5},
        "evaluation/results.json": RESULTS,
        "evaluation/predictions.jsonl": {"text": "x", "score": 1.5},
    }.items():
        data = as_json(value)
        if dice.random() < 0.4:
            data = as_json(mutate_json(dice, value)) if dice.random() < 0.8 else mutate(dice, data, [lines])
        (place / name).write_bytes(data)
    watch = OverfitWatch()
    for event in metricslog.read(place / "metrics.jsonl"):
        watch.take(event)
    page = write_report(place).read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    metricslog.cut_back(place / "metrics.jsonl", dice.choice((-1, 0, 3, 100)))
    kept = metricslog.read(place / "metrics.jsonl")
    metricslog.cut_back(place / "metrics.jsonl", 100)
    assert metricslog.read(place / "metrics.jsonl") == [event for event in kept if event.get("step", 0) <= 100]
    inspect(place)


def checkpoints(place: Path, number: int, dice: random.Random) -> None:
    """A directory with two checkpoints, one of them damaged, or made by somebody else under a right checksum."""
    root = place / "checkpoints"
    if not root.exists():
        for step in (1, 2):
            checkpoint.save(root, step, {"model": {"w": torch.arange(6.0)}}, {"step": step, "text": "x"}, keep=None)
        shutil.copytree(root, place / "kept")
    bad = root / checkpoint.name_of(2)
    name = dice.choice((MANIFEST, "state.json", "model.safetensors"))
    old = (bad / name).read_bytes()
    if name == MANIFEST and dice.random() < 0.7:
        made = mutate_json(dice, json.loads(old))
        new = seal(made) if isinstance(made, dict) and _is_clean(made) else as_json(made)
    else:
        new = mutate(dice, old, [old])
    (bad / name).write_bytes(new)
    try:
        _goes_on(root, new == old, name)
    finally:
        (bad / name).write_bytes(old)


def _goes_on(root: Path, same: bool, name: str) -> None:
    told: list[str] = []
    found = checkpoint.newest_valid(root, told.append)
    assert found is not None
    tensors, state = checkpoint.load(found)
    if name != MANIFEST and not same:
        assert found.name == checkpoint.name_of(1), "a damaged checkpoint was taken"
        assert told
        assert (state["step"], tensors["model"]["w"].tolist()) == (1, list(range(6)))


def _is_clean(value: Any) -> bool:
    """Whether it can be written as the manifest is: no NaN, no lone surrogate."""
    try:
        seal(value)
    except ValueError:
        return False
    return True


def tensors(place: Path, number: int, dice: random.Random) -> None:
    """A safetensors file with a manifest entry that is true of it: only the format protects."""
    parts = {"w": torch.arange(6.0), "b": torch.ones(2, 3, dtype=torch.int64)}
    data = b"".join(bytes(chunk) for chunk in tensorfile.chunks_of({**parts, "tied": parts["w"]}))
    data = mutate(dice, data, [data])
    path = place / "x.safetensors"
    path.write_bytes(data)
    import hashlib

    try:
        tensorfile.read(path, {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}, broken)
    except CheckpointError:
        return


def models(place: Path, number: int, dice: random.Random) -> None:
    """A model's directory as transformers writes it, one of its files mutated: config, tokenizer, weights."""
    made = place / "model"
    if not made.exists():
        tiny_model("gpt2", vocab_size=257).save_pretrained(made, max_shard_size="40KB")
        byte_tokenizer(made)
        (made / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    path = dice.choice(sorted(path for path in made.iterdir()))
    old = path.read_bytes()
    if path.suffix == ".json" and dice.random() < 0.7:
        path.write_bytes(as_json(mutate_json(dice, json.loads(old))))
    else:
        path.write_bytes(mutate(dice, old, [old]))
    try:
        values = {"output_dir": "x", "task": {"type": "instruction"}, "model": {"name_or_path": str(made)}}
        recipe = Recipe.model_validate({**values, "data": {"train": [{"path": "x"}]}})
        source = tokenizer_source(recipe)
        assert source is not None
        target = place / "tokenizer"
        shutil.rmtree(target, ignore_errors=True)
        max_length(recipe)
        source_identity(source, recipe.tokenizer)
        import_tokenizer(source, recipe.tokenizer, target)
        complete_tokenizer(recipe, target)
        encoder_for(recipe, target).identity()
        load_model(recipe.model, load_tokenizer(target), seed=1, max_length=64)
    finally:
        path.write_bytes(old)


TARGETS: dict[str, tuple[Callable[[Path, int, random.Random], None], int, int]] = {
    "recipe": (recipe, 250, 15_000),
    "metrics": (metrics, 150, 6_000),
    "checkpoints": (checkpoints, 150, 5_000),
    "tensors": (tensors, 250, 5_000),
    "models": (models, 20, 1_000),
}
"""Target: the function, its inputs in the default run, and in full."""


def fuzz(name: str, count: int, place: Path, first: int = 0) -> None:
    for number in range(first, count):
        try:
            with bounded(f"{name} {number}"):
                TARGETS[name][0](place, number, random.Random(f"{name} {number}"))
        except LlmkitError:
            pass
        except Exception as error:
            raise AssertionError(f"input {number} of {name}: {error!r}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_a_sample(ram: Path, name: str) -> None:
    fuzz(name, TARGETS[name][1], ram)


@pytest.mark.faults
@pytest.mark.parametrize("name", TARGETS)
def test_in_full(ram: Path, name: str, fault_table: FaultTable) -> None:
    tries = TARGETS[name][2]
    fuzz(name, tries, ram)
    fault_table.record(
        "fuzzed recipes, metrics, checkpoints, models: taken, or refused by an error of ours", tries, tries
    )
