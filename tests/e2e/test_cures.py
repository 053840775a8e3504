"""Cures of overfitting as a user asks for them: exact on resume, gone from the model, and the best model kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import Place

CURES: dict[str, Any] = {
    "model.dropout": 0.1,
    "model.freeze": ["transformer.h.0.*", "transformer.wpe.*"],
    "training.label_smoothing_factor": 0.1,
    "training.neftune_noise_alpha": 5.0,
    "training.layerwise_lr_decay": 0.8,
    "training.weight_decay": 0.1,
}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_all_together_resume_to_the_bit_and_export_whole(place: Place):
    from transformers import AutoModelForCausalLM

    assert place.run("pretrain", sets=CURES).status == 0
    whole = weights(place.directory / "run")
    again = {**CURES, "output_dir": "again", "data.prepared_dir": "run/prepared"}
    assert place.run("pretrain", sets={**again, "training.max_steps": 2}).status == 0
    ended = place.run("pretrain", sets=again)
    assert ended.status == 0 and "going on from step-00000002" in ended.err
    resumed = weights(place.directory / "again")
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)
    held = load_file(place.directory / "run" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert "model.transformer.h.0.mlp.c_fc.weight" in held, "a model from scratch is nowhere else"
    state = load_file(place.directory / "run" / "checkpoints" / "step-00000004" / "optimizer.safetensors")
    assert not any(".h.0." in name or "wpe" in name for name in state)
    model = AutoModelForCausalLM.from_pretrained(str(place.directory / "run" / "model"))
    assert len(list(model.parameters())) == len(whole)
    evaluated = place.run("evaluate", sets=CURES)
    assert evaluated.status == 0, evaluated.err


def test_a_pretrained_base_is_frozen_and_pinned(trained: Place):
    base = weights(trained.directory / "run")
    frozen = {
        "output_dir": "more",
        "model": {"name_or_path": "run/model", "freeze": ["*.h.*"]},
        "tokenizer": None,
        "training.max_steps": 2,
    }
    assert trained.run("pretrain", sets=frozen).status == 0
    tuned = weights(trained.directory / "more")
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert moved and not any(".h." in name for name in moved)
    held = load_file(trained.directory / "more" / "checkpoints" / "step-00000002" / "model.safetensors")
    assert not any(".h." in name for name in held), "the base is pinned"
    shutil.rmtree(trained.directory / "more" / "model")
    told = trained.run("pretrain", sets={**frozen, "output_dir": "wrong", "model.freeze": ["transformer.hh.*"]})
    assert told.status == 2 and "transformer.h" in told.err
    assert "matches no parameter" in told.err


def events(run: Path, split: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event for event in found if event["split"] == split]


@pytest.mark.parametrize(("metric", "best_of"), [("loss", min), ("token_accuracy", max)])
def test_early_stopping_keeps_the_best(place: Place, metric: str, best_of: Any):
    """Six rows learnt by heart: validation turns up, the run ends early, the model is the best one's."""
    lines = (place.directory / "train.jsonl").read_text().splitlines()[:6]
    rows = [{"prompt": "go", "completion": json.loads(line)["text"]} for line in lines]
    place.write("few.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    lines = (place.directory / "validation.jsonl").read_text().splitlines()
    rows = [{"prompt": "go", "completion": json.loads(line)["text"]} for line in lines]
    place.write("held.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    sets = {
        "task.type": "instruction",
        "tokenizer.chat_template": "plain",
        "data": {"train": [{"path": "few.jsonl"}], "validation": [{"path": "held.jsonl"}], "max_length": 64},
        "training.max_steps": 150,
        "training.learning_rate": 1e-2,
        "training.early_stopping_patience": 2,
        "checkpoint": {"save_steps": 50},
        "evaluation": {"eval_steps": 5, "metric_for_best_model": metric},
    }
    ended = place.run("finetune", sets=sets)
    assert ended.status == 0, ended.err
    run = place.directory / "run"
    validation = events(run, "validation")
    values = [event[metric] for event in validation]
    best = values.index(best_of(values))
    assert validation[-1]["step"] < 150, "it ended early"
    assert len(values) - 1 - best == 2, "two evaluations without improvement"
    results = json.loads((run / "results.json").read_text())
    assert results["model_step"] == validation[best]["step"]
    assert results[metric] == values[best]
    scored = place.run("evaluate", sets={**sets, "data.test": None})
    assert scored.status == 0, scored.err
    found = json.loads((run / "evaluation" / "results.json").read_text())["metrics"]
    assert found[metric]["value"] == pytest.approx(values[best], rel=1e-5)
    if metric == "loss":
        assert ended.err.count("the model is overfitting") == 1
        assert "the model is overfitting" in (run / "report.html").read_text()


@pytest.mark.parametrize("peft", [{"type": "ia3"}, {"type": "prompt_tuning", "num_virtual_tokens": 4}])
def test_small_adapters_resume_to_the_bit(trained: Place, peft: dict[str, Any]):
    sets = {
        "output_dir": "whole",
        "model": {"name_or_path": "run/model"},
        "tokenizer": None,
        "data.max_length": 28,
        "peft": peft,
        "data.prepared_dir": "shared",
    }
    assert trained.run("pretrain", sets=sets).status == 0
    again = {**sets, "output_dir": "again"}
    assert trained.run("pretrain", sets={**again, "training.max_steps": 2}).status == 0
    ended = trained.run("pretrain", sets=again)
    assert ended.status == 0 and "going on from step-00000002" in ended.err
    whole, resumed = (
        load_file(trained.directory / name / "model/adapter_model.safetensors") for name in ("whole", "again")
    )
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    ended = trained.run(
        "generate", "recipe.yaml", "--prompt", "the", "--json", sets={**sets, "generation.max_new_tokens": 4}
    )
    assert ended.status == 0, ended.err
    held = load_file(trained.directory / "whole" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert sum(tensor.numel() for tensor in held.values()) < 2000, "the base is pinned"
