"""Every shipped recipe runs, a few steps on made data in the form that it reads: trained, then evaluated.

Only what makes it small is changed: sizes, lengths, batches and steps; a Hub model becomes a small one of its family.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from llmkit.recipe.load import load_recipe
from llmkit.recipe.tasks import CHATS
from tests.e2e.conftest import Place
from tests.e2e.shipped import SHRUNK, network, stand_in

ROOT = Path(__file__).parents[2]
RECIPES = [path for kind in ("pretrain", "finetune") for path in sorted((ROOT / "recipes" / kind).glob("*.yaml"))]


def smaller(path: Path, command: str, place: Path) -> dict[str, Any]:
    """What `--set` changes in the recipe."""
    recipe = load_recipe(path, command=command)
    draw = random.Random(0)
    sets: dict[str, Any] = {"output_dir": "run", "data.num_workers": 1}
    for group in ("train", "validation", "test"):
        for i, source in enumerate(getattr(recipe.data, group)):
            for key, value in stand_in(source, place, draw).items():
                sets[f"data.{group}.{i}.{key}"] = value
    if recipe.data.validation_fraction is not None:
        sets["data.validation_fraction"] = 0.25
    if recipe.model.name_or_path is not None:
        sets["model.name_or_path"] = str(network(recipe.model.name_or_path, place / "base"))
    kind = (recipe.model.config or {}).get("model_type")
    for key, value in SHRUNK.get(kind, {}).items():
        sets[f"model.config.{key}"] = value
    if recipe.tokenizer.train is not None:
        sets["tokenizer.train.vocab_size"] = 500
    elif recipe.model.name_or_path is None:  # a Hub tokenizer for a network from scratch
        sets["tokenizer.name_or_path"] = str(network("Qwen", place / "base"))
    if kind == "ngram":
        return sets
    if recipe.task.type == "question_answering":
        sets["task.doc_stride"] = 8
    sets |= {
        "data.max_length": 400 if recipe.task.type in CHATS else 48,
        "training.global_batch_size": 8,
        "training.torch_compile": False,
    }
    sets |= {"training.max_steps": 3, "training.num_train_epochs": None, "training.warmup_steps": None}
    if recipe.evaluation.eval_steps is not None:
        sets["evaluation.eval_steps"] = 2
    if recipe.task.type in ("translation", "summarization"):
        sets["generation.max_new_tokens"] = 6
    return sets


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_trains_and_is_evaluated(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = path.parent.name
    place = Place(tmp_path)
    sets = smaller(path, command, tmp_path)
    ended = place.run(command, str(path), sets=sets)
    assert ended.status == 0, ended.err
    assert (tmp_path / "run/model/config.json").exists() or (tmp_path / "run/model/adapter_config.json").exists()
    ended = place.run("evaluate", str(path), sets={**sets, "evaluation.fail_if": {}})
    assert ended.status == 0, ended.err
    assert (tmp_path / "run/evaluation/results.json").exists()
