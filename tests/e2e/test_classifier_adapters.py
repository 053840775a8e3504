"""Adapters of a classifier: trained with its new head, evaluated as trained, loaded by peft itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import Place
from tests.e2e.test_classification import fill


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    fill(Place(tmp_path), "single_label")
    return Place(tmp_path)


def test_every_type(place: Place) -> None:
    base = {"task.type": "masked_lm", "evaluation.baselines": [], "training.max_steps": 2, "output_dir": "base"}
    assert place.run("pretrain", sets={**base, "data.max_length": 64}).status == 0
    kinds: list[dict[str, Any]] = [
        {"type": "lora", "r": 2},
        {"type": "lora", "r": 2, "merge": True},
        {"type": "ia3"},
        {"type": "prompt_tuning", "num_virtual_tokens": 4},
    ]
    for number, peft in enumerate(kinds):
        sets = {"model": {"name_or_path": "base/model"}, "tokenizer": None, "peft": peft, "training.max_steps": 8}
        sets |= {"output_dir": f"run{number}", "data.prepared_dir": "shared", "evaluation.baselines": []}
        sets["checkpoint"] = {"save_steps": 1, "save_total_limit": None}
        ended = place.run("finetune", sets=sets)
        assert ended.status == 0, ended.err
        scored = place.run("evaluate", "recipe.yaml", "--json", sets={**sets, "data.test": None})
        assert scored.status == 0, scored.err
        results = json.loads(Path(f"run{number}/results.json").read_text())
        assert scored.json["metrics"]["loss"]["value"] == pytest.approx(results["loss"], rel=1e-5)
        checkpoints = [Path(f"run{number}/checkpoints/step-0000000{step}/model.safetensors") for step in (1, 8)]
        first, last = map(load_file, checkpoints)
        assert all(not torch.equal(first[name], last[name]) for name in first if "class_weights" not in name)
        assert Path(f"run{number}/model/config.json").exists() is bool(peft.get("merge"))
