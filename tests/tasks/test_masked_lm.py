"""Masked LM against transformers' own losses in float64, and from recipe to exported model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmkit.errors import DataError, ModelError
from llmkit.models.source import max_length
from llmkit.tasks import build_task, complete_tokenizer
from llmkit.tasks.base import IGNORE
from tests.tasks.masking_data import CLS, MASK, SEP, Documents, documents, recipe, tokenizer

MLM = {"type": "masked_lm"}
NSP = {"type": "masked_lm", "next_sentence_prediction": True}
KINDS = ["bert", "roberta", "modernbert", "deberta", "deberta-v2", "electra", "distilbert"]


@pytest.fixture
def directory(tmp_path):
    return tokenizer(tmp_path / "tokenizer")


def strong(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, with weights of a size that makes every mistake show."""
    draw = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return module.double()


def batches(task, size: int, *, seed: int | None = 1, step: int = 3):
    split = documents(16)
    plan = task.eval_plan(split) if seed is None else task.train_plan(split, seed)
    indices = np.arange(plan.num_samples(0))
    indices = indices[np.argsort(-plan.lengths(0, indices), kind="stable")][:24]
    samples = plan.samples(0, indices)
    for start in range(0, len(samples), size):
        part = samples[start : start + size]
        yield task.collate(part, seed=seed or 0, step=step), part


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers(kind, directory):
    task = build_task(recipe(kind, {**MLM, "whole_word_mask": kind == "bert"}), directory)
    module = strong(task.build_model()).eval()
    assert module.head_path is not None
    batch, _ = next(batches(task, 8))
    own = module.inner()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    exact = torch.nn.functional.cross_entropy(own.logits.flatten(0, 1), batch["labels"].flatten()).item()
    assert own.loss.item() == pytest.approx(exact, abs=1e-6)  # ModernBERT's is computed in float32
    count = task.counts(batch)["mlm"]
    assert count == int((batch["labels"] != IGNORE).sum()) > 8
    assert (module(batch)["mlm"] / count).item() == pytest.approx(exact, abs=1e-12)
    module.head_path = None
    assert (module(batch)["mlm"] / count).item() == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("kind", ["bert", "ernie", "megatron-bert"])
def test_both_losses_are_those_of_transformers(kind, directory):
    task = build_task(recipe(kind, NSP), directory)
    module = strong(task.build_model()).eval()
    assert task.loss_weights == {"mlm": 1.0, "nsp": 1.0}
    batch, samples = next(batches(task, 8))
    losses, counts = module(batch), task.counts(batch)
    assert counts["nsp"] == 8 == len(samples)
    own = module.inner()(**batch)
    both = losses["mlm"] / counts["mlm"] + losses["nsp"] / counts["nsp"]
    assert both.item() == pytest.approx(own.loss.item(), abs=1e-12)
    pair = torch.nn.functional.cross_entropy(own.seq_relationship_logits, batch["next_sentence_label"])
    assert (losses["nsp"] / 8).item() == pytest.approx(pair.item(), abs=1e-12)


@pytest.mark.parametrize(("kind", "task"), [("bert", NSP), ("modernbert", MLM), ("roberta", MLM), ("deberta-v2", MLM)])
def test_the_layout_of_batches_does_not_show(kind, task, directory):
    task = build_task(recipe(kind, task), directory)
    module = strong(task.build_model()).train()
    found = {}
    for size in (24, 8, 1):
        module.zero_grad()
        parts = list(batches(task, size))
        counts = {name: sum(task.counts(batch)[name] for batch, _ in parts) for name in task.loss_weights}
        for batch, _ in parts:
            losses = module(batch)
            sum(losses[name] / counts[name] for name in losses).backward()
        found[size] = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    for size in (8, 1):
        assert found[size].keys() == found[24].keys()
        for name, gradient in found[24].items():
            assert torch.allclose(gradient, found[size][name], rtol=0, atol=1e-12), name


def test_masks_depend_on_seed_step_and_sample_alone(directory):
    task = build_task(recipe("bert", MLM), directory)
    whole, _ = next(batches(task, 24))
    parts = torch.cat(
        [
            torch.nn.functional.pad(b["labels"], (0, 32 - b["labels"].shape[1]), value=IGNORE)
            for b, _ in batches(task, 5)
        ]
    )
    assert torch.equal(whole["labels"], parts)
    assert not torch.equal(whole["labels"], next(batches(task, 24, step=4))[0]["labels"])
    fixed = [next(batches(task, 24, seed=None, step=0))[0]["input_ids"] for _ in range(2)]
    assert torch.equal(*fixed)
    ids, labels = whole["input_ids"], whole["labels"]
    assert ((ids == MASK) <= (labels != IGNORE)).all()
    assert not ((labels == CLS) | (labels == SEP)).any()


def evaluate(task, module, split, size: int):
    plan = task.eval_plan(split)
    predictions = []
    for start in range(0, plan.num_samples(0), size):
        samples = plan.samples(0, np.arange(start, min(start + size, plan.num_samples(0))))
        predictions += task.predict(module, task.collate(samples, seed=0, step=0), samples)
    return task.finalize(predictions, split, bootstrap=True)


def test_both_losses_are_reported_apart(directory):
    task = build_task(recipe("bert", NSP), directory)
    module = strong(task.build_model()).eval()
    split = documents(12)
    found = evaluate(task, module, split, 5)
    other = evaluate(task, module, split, 1)
    plan = task.eval_plan(split)
    samples = plan.samples(0, np.arange(plan.num_samples(0)))
    batch = task.collate(samples, seed=0, step=0)
    own = module.inner()(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    mlm = torch.nn.functional.cross_entropy(own.prediction_logits.flatten(0, 1), batch["labels"].flatten()).item()
    nsp = torch.nn.functional.cross_entropy(own.seq_relationship_logits, batch["next_sentence_label"]).item()
    masked = batch["labels"] != IGNORE
    expected = {
        "loss": mlm + nsp,
        "mlm_loss": mlm,
        "perplexity": math.exp(mlm),
        "mlm_accuracy": (own.prediction_logits.argmax(-1) == batch["labels"])[masked].double().mean().item(),
        "nsp_loss": nsp,
        "nsp_accuracy": (own.seq_relationship_logits.argmax(-1) == batch["next_sentence_label"]).double().mean().item(),
    }
    for name, value in expected.items():
        metric = found.metrics[name]
        assert metric.value == pytest.approx(value, rel=1e-10), name
        assert other.metrics[name].value == pytest.approx(value, rel=1e-10), name
        assert metric.low <= metric.value <= metric.high
    assert sum(item["tokens"] for item in found.items) == int(masked.sum())
    labels = [label for item in found.items for label in item["nsp_labels"]]
    assert sorted(labels) == sorted(batch["next_sentence_label"].tolist())
    assert all({"row", "source", "file", "line", "hash"} <= set(item) for item in found.items)


@pytest.mark.parametrize("kind", ["roberta", "modernbert", "gpt2", "electra"])
def test_pairs_are_refused_where_no_head_tells_them(kind, directory):
    with pytest.raises(ModelError, match=f"{kind} has no next-sentence head.*next_sentence_prediction: false"):
        build_task(recipe(kind, NSP), directory)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_only_encoders_restore_masked_tokens(kind, directory):
    with pytest.raises(ModelError, match="this task needs an encoder"):
        build_task(recipe(kind, MLM), directory).build_model()


def test_packing_is_refused(directory):
    with pytest.raises(ModelError, match="one document each"):
        build_task(recipe("bert", MLM, data={"train": [{"path": "a"}], "packing": True}), directory)


def test_a_corpus_without_pairs_is_refused_before_training(directory):
    task = build_task(recipe("bert", NSP), directory)
    with pytest.raises(DataError, match="sample_by: document"):
        task.prepare(Documents([1, 1, 1]), None)
    task.prepare(documents(), documents(seed=1))


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_exported_models_load_with_transformers(kind, directory, tmp_path):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    chosen = recipe(kind, NSP if kind == "bert" else MLM)
    complete_tokenizer(chosen, directory)
    task = build_task(chosen, directory)
    module = task.build_model().eval()
    task.export(module, tmp_path / "model")
    model = AutoModelForMaskedLM.from_pretrained(str(tmp_path / "model"), local_files_only=True).eval()
    loaded = AutoTokenizer.from_pretrained(str(tmp_path / "model"), local_files_only=True)
    text = loaded(["ab c", "你好"], ["x", "yz"], padding=True, return_tensors="pt")
    assert text["input_ids"][0].tolist()[0] == CLS and (text["input_ids"][0] == SEP).sum() == 2
    assert ("token_type_ids" in text) is (kind != "modernbert")
    with torch.no_grad():
        own, _ = module.logits(dict(text))
        assert torch.equal(model(**text).logits, own)
    again = chosen.model_copy(
        update={"model": chosen.model.model_copy(update={"name_or_path": str(tmp_path / "model"), "config": None})}
    )
    assert max_length(again) == 32
    with torch.no_grad():
        reread = build_task(again, tmp_path / "model", trained=True).build_model().eval()
        assert torch.equal(reread.logits(dict(text))[0], own)


def test_a_body_without_head_gets_a_fresh_one_tied_to_its_embeddings(directory, tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=260
    )
    body = BertModel(config)
    body.save_pretrained(str(tmp_path / "body"))
    chosen = recipe("bert", NSP, model={"name_or_path": str(tmp_path / "body")})
    models = [build_task(chosen, directory).build_model().inner() for _ in range(2)]
    assert torch.equal(models[0].bert.encoder.layer[1].output.dense.weight, body.encoder.layer[1].output.dense.weight)
    assert models[0].cls.predictions.decoder.weight is models[0].bert.embeddings.word_embeddings.weight
    assert torch.equal(models[0].cls.seq_relationship.weight, models[1].cls.seq_relationship.weight)
    with pytest.raises(ModelError, match="lack"):
        build_task(chosen, directory, trained=True).build_model()


@pytest.mark.parametrize(("pad", "rows"), [(1, 34), (0, 33)])
def test_positions_after_the_padding_have_room(pad, rows, tmp_path):
    from tests.fakes import byte_tokenizer
    from tests.tasks.masking_data import NAMES

    made = byte_tokenizer(tmp_path / "t", special=tuple(NAMES.values()), **NAMES)
    chosen = recipe("roberta", MLM)
    module = build_task(chosen, made).build_model()
    assert module.inner().config.max_position_embeddings == 32 + 257
    given = recipe("roberta", MLM, max_length=None)
    given.model.config["max_position_embeddings"] = rows
    given.model.config["pad_token_id"] = pad
    assert max_length(given) == rows - pad - 1
