"""Span corruption and denoising from recipe to exported model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from llmkit.data.prepare import prepare
from llmkit.recipe.load import load_recipe
from llmkit.recipe.resolve import resolve
from llmkit.tasks import build_task
from tests.e2e.conftest import Place, rows
from tests.evaluate.tiny_run import console
from tests.tasks.seq2seq_toy import jsonl, make_place

TASKS = {"t5": {"type": "span_corruption"}, "bart": {"type": "denoising"}}


def place_of(directory: Path, kind: str) -> Place:
    place = make_place(
        directory,
        kind,
        task=TASKS[kind],
        tokenizer={"train": {"algorithm": "bpe", "vocab_size": 400}},
        training={"max_steps": 6, "global_batch_size": 8, "learning_rate": 5e-3, "torch_compile": False},
        evaluation={"eval_steps": 3},
        checkpoint={"save_steps": 3},
        logging={"logging_steps": 1},
    )
    for name, count, seed in (("train", 60, 1), ("validation", 10, 2), ("test", 10, 3)):
        (directory / f"{name}.jsonl").write_text(rows(count, seed), encoding="utf-8")
    return place


@pytest.fixture(params=["t5", "bart"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return place_of(tmp_path, kind)


def test_the_loss_is_transformers_own(place: Place, kind: str) -> None:
    recipe = resolve(load_recipe(place.directory / "recipe.yaml"))
    prepared = prepare(recipe, console())
    task = build_task(recipe, prepared.tokenizer_dir)
    module = task.build_model().double().eval()
    plan = task.train_plan(prepared.splits["train"], 3)
    everything = np.arange(plan.num_samples(0))
    samples = plan.samples(0, everything)
    shown = sum(len(sample.arrays["tokens"]) for sample in samples)
    assert shown == prepared.splits["train"].num_tokens, "an epoch shows every token once"
    batch = task.collate(samples[:8], seed=1, step=2)
    assert batch["input_ids"].shape[1] <= 40 and batch["labels"].shape[1] <= 40
    own = module(batch)["loss"] / task.counts(batch)["loss"]
    assert own.item() == pytest.approx(module.inner()(**batch).loss.item(), abs=1e-12)
    parts = [task.collate([sample], seed=1, step=2) for sample in samples[:8]]
    alone = sum(module(part)["loss"].item() for part in parts)
    assert module(batch)["loss"].item() == pytest.approx(alone, abs=1e-9), "noise does not depend on the batch"
    other = task.collate(samples[:8], seed=1, step=3)
    assert other["input_ids"].tolist() != batch["input_ids"].tolist(), "each step draws anew"
    fixed = [task.eval_plan(prepared.splits["validation"]).samples(0, np.arange(3)) for _ in range(2)]
    same = [task.collate(found, seed=0, step=0)["labels"].tolist() for found in fixed]
    assert same[0] == same[1]


def test_end_to_end(place: Place, kind: str) -> None:
    ended = place.run("pretrain", "recipe.yaml", "--dry-run", "--json")
    assert ended.status == 0, ended.err
    spans = ended.json["examples"][0]["spans"]
    assert [span["supervised"] for span in spans] == [False, True]
    assert ("<extra_id_0>" if kind == "t5" else "<mask>") in spans[0]["text"]
    ended = place.run("pretrain", sets={"training.max_steps": 6})
    assert ended.status == 0, ended.err
    losses = [line["loss"] for line in jsonl(Path("run/metrics.jsonl")) if line["split"] == "train"]
    assert losses[-1] < losses[0]
    ended = place.run("evaluate", "recipe.yaml", "--json")
    assert set(ended.json["metrics"]) == {"loss", "perplexity"}
    again = place.run("evaluate", "recipe.yaml", "--json")
    assert again.json["metrics"] == ended.json["metrics"], "the same noise at each evaluation"
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    model = AutoModelForSeq2SeqLM.from_pretrained("run/model").eval()
    text = "the quick <extra_id_0> dog 今天" if kind == "t5" else "the quick<mask> dog 今天"
    ids = torch.tensor([[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]])
    assert {"t5": "<extra_id_0>", "bart": "<mask>"}[kind] in tokenizer.convert_ids_to_tokens(ids[0].tolist())
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, num_beams=2)[0]
    said = place.run("generate", "recipe.yaml", "--json", "--prompt", text).json["completions"][0]["text"]
    assert said == tokenizer.decode(out, skip_special_tokens=True)


def test_a_stopped_run_ends_as_if_it_had_not_been(place: Place) -> None:
    schedule = {"training.lr_scheduler_type": "constant"}
    assert place.run("pretrain", sets=schedule | {"training.max_steps": 3}).status == 0
    assert place.run("pretrain", sets=schedule).status == 0
    weights = (place.directory / "run/model/model.safetensors").read_bytes()
    whole = schedule | {"output_dir": "whole"}
    assert place.run("pretrain", sets=whole).status == 0
    assert (place.directory / "whole/model/model.safetensors").read_bytes() == weights


def test_bad_pairings(place: Place) -> None:
    gpt2 = {"model.config": {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2}}
    place.run("pretrain", sets=gpt2).told(4, "gpt2 is not made for it", "an encoder-decoder (t5, bart")
    place.run("pretrain", sets={"data.packing": True}).told(2, "data.packing")


def test_results_are_written(place: Place) -> None:
    assert place.run("pretrain", sets={"training.max_steps": 1}).status == 0
    results = json.loads(Path("run/results.json").read_text())
    assert {"loss", "perplexity"} <= set(results)
