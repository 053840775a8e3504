"""Tasks from recipe to exported model, on a split in memory and networks of a few kilobytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmkit.data.tokenizer import load_tokenizer
from llmkit.errors import ModelError, RecipeError
from llmkit.recipe.sections import Recipe
from llmkit.tasks import TASKS, build_task, complete_tokenizer, encoder_for, role_spec
from llmkit.tasks.language_model import summarise
from tests.fakes import TINY, MemorySplit, byte_tokenizer


@pytest.fixture
def directory(tmp_path):
    return byte_tokenizer(tmp_path / "tokenizer")


def recipe(kind: str = "llama", task: dict | None = None, **sections) -> Recipe:
    value = {
        "output_dir": "x",
        "task": task or {"type": "causal_lm"},
        "model": {"config": {"model_type": kind, **TINY[kind]}},
        "data": {"train": [{"path": "a"}], "max_length": 32},
        **sections,
    }
    return Recipe.model_validate(value)


def evaluate(task, module, split, batch_size: int):
    plan = task.eval_plan(split)
    everything = np.arange(plan.num_samples(0))
    order = everything[np.argsort(-plan.lengths(0, everything), kind="stable")]
    predictions = []
    for start in range(0, len(order), batch_size):
        samples = plan.samples(0, order[start : start + batch_size])
        batch = task.collate(samples, seed=0, step=0)
        predictions += task.predict(module, batch, samples)
    return task.finalize(predictions, split, bootstrap=True)


def documents(num: int = 12, longest: int = 70) -> MemorySplit:
    draw = np.random.default_rng(0)
    return MemorySplit([[64, *draw.integers(0, 64, size=draw.integers(1, longest)).tolist(), 64] for _ in range(num)])


def test_tasks_are_those_of_the_recipe():
    from llmkit.recipe.tasks import COMMAND_OF_TASK

    assert set(TASKS) == set(COMMAND_OF_TASK)
    assert all(role_spec(recipe(task={"type": name}).task) for name in TASKS)


def test_causal_lm_is_scored_by_disjoint_windows(directory):
    task = build_task(recipe(), directory)
    module = task.build_model().double().eval()
    split, train = documents(), documents(30)
    train.vocab_counts = lambda: np.bincount(np.concatenate([train.row(i) for i in range(30)]), minlength=257)
    task.prepare(train, None)
    found = evaluate(task, module, split, 5)
    total, tokens = 0.0, 0
    for i in range(split.num_rows):
        row = torch.from_numpy(split.row(i).astype(np.int64))
        for start in range(0, len(row) - 1, 32):
            piece = row[start : start + 33]
            logits = module.inner()(input_ids=piece[None, :-1], use_cache=False).logits[0]
            total += torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum").item()
            tokens += len(piece) - 1
    metrics = found.metrics
    assert tokens == sum(len(split.row(i)) - 1 for i in range(split.num_rows))
    assert metrics["loss"].value == pytest.approx(total / tokens, abs=1e-9)
    assert metrics["perplexity"].value == pytest.approx(math.exp(total / tokens), rel=1e-9)
    assert metrics["bits_per_byte"].value == pytest.approx(total / math.log(2) / split.bytes_of().sum(), rel=1e-9)
    assert 1 < metrics["unigram_perplexity"].value < 257
    for name in ("loss", "perplexity", "bits_per_byte", "token_accuracy"):
        assert metrics[name].low <= metrics[name].value <= metrics[name].high
        assert metrics[name].n == split.num_rows
    assert any("disjoint windows of 32 tokens" in note for note in found.notes)
    assert [item["row"] for item in found.items] == list(range(split.num_rows))
    assert sum(item["tokens"] for item in found.items) == tokens
    assert found.items[3]["line"] == 4


def test_batches_do_not_show_in_the_result(directory):
    task = build_task(recipe("opt"), directory)
    module = task.build_model().double().eval()
    one, other = (evaluate(task, module, documents(), size) for size in (1, 7))
    assert one.metrics["loss"].value == pytest.approx(other.metrics["loss"].value, abs=1e-12)


def test_predictions_are_joined_by_row():
    from llmkit.tasks.base import Prediction

    parts = [
        Prediction(3, {"loss": 1.0, "tokens": 2, "correct": 1}),
        Prediction(1, {"loss": 5.0, "tokens": 1, "correct": 0}),
    ]
    joined = summarise([*parts, Prediction(3, {"loss": 2.5, "tokens": 3, "correct": 2})])
    assert joined.rows.tolist() == [1, 3]
    assert joined.losses.tolist() == [5.0, 3.5]
    assert joined.tokens.tolist() == [1, 5]
    assert joined.correct.tolist() == [0, 3]


@pytest.mark.parametrize(("kind", "packs"), [("llama", True), ("opt", False)])
def test_packing_is_settled_by_the_network(kind, packs, directory):
    task = build_task(recipe(kind), directory)
    module = task.build_model()
    settled, choices = task.settle(module)
    assert choices == {"packing": packs}
    plan = settled.train_plan(documents(), 1)
    assert ("position_ids" in plan.samples(0, np.array([0]))[0].arrays) is packs
    kept, choices = task.settle(module, {"packing": False})
    assert choices == {"packing": False}
    assert "position_ids" not in kept.train_plan(documents(), 1).samples(0, np.array([0]))[0].arrays
    forced = build_task(recipe(kind, data={"train": [{"path": "a"}], "max_length": 32, "packing": True}), directory)
    if packs:
        assert forced.settle(module)[1] == {"packing": True}
    else:
        with pytest.raises(ModelError, match="lets packed documents see each other"):
            forced.settle(module)


@pytest.mark.parametrize("template", ["chatml", "llama3", "alpaca"])
def test_the_tokenizer_gets_what_the_template_writes(template, directory):
    chosen = recipe(task={"type": "instruction"}, tokenizer={"chat_template": template})
    size = len(load_tokenizer(directory))
    added = complete_tokenizer(chosen, directory)
    tokenizer = load_tokenizer(directory)
    assert len(tokenizer) == size + len(added)
    assert (len(added) > 0) is (template != "alpaca")
    ids = [tokenizer.convert_tokens_to_ids(token) for token in added]
    assert tokenizer.decode([1, *ids], skip_special_tokens=True) == tokenizer.decode([1])
    assert complete_tokenizer(chosen, directory) == []
    task = build_task(chosen, directory)
    assert task.build_model().inner().get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert encoder_for(chosen, directory).identity() == task.encoder().identity()


def test_fill_in_the_middle_has_its_tokens(directory):
    chosen = recipe(task={"type": "causal_lm", "fim_rate": 1.0})
    with pytest.raises(ModelError, match="no fill-in-the-middle tokens"):
        build_task(chosen, directory).settle(build_task(chosen, directory).build_model(), {})[0].train_plan(
            documents(), 1
        )
    assert complete_tokenizer(chosen, directory) == ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    task = build_task(chosen, directory)
    plan = task.settle(task.build_model())[0].train_plan(documents(), 1)
    ids = np.concatenate([sample.arrays["input_ids"] for sample in plan.samples(0, np.arange(plan.num_samples(0)))])
    assert load_tokenizer(directory).convert_tokens_to_ids("<|fim_middle|>") in ids
    assert encoder_for(chosen, directory).identity() != encoder_for(recipe(), directory).identity()


def test_exported_models_load_with_transformers(directory, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    chosen = recipe("gpt2", task={"type": "instruction"}, tokenizer={"chat_template": "chatml"})
    complete_tokenizer(chosen, directory)
    task = build_task(chosen, directory)
    module = task.build_model().eval()
    out = tmp_path / "model"
    task.export(module, out)
    assert not list(out.glob("*.bin"))
    model = AutoModelForCausalLM.from_pretrained(str(out), local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(str(out), local_files_only=True)
    ids = torch.arange(10)[None]
    # ours has a fused activation: equal to rounding
    torch.testing.assert_close(model.eval()(ids).logits, module.inner()(ids).logits, rtol=1e-5, atol=1e-6)
    turn = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    settings = GenerationConfig.from_pretrained(str(out))
    assert settings.eos_token_id == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert settings.pad_token_id == tokenizer.eos_token_id
    assert settings.max_length == 20 or settings.max_length is None
    again = build_task(
        chosen.model_copy(update={"model": chosen.model.model_copy(update={"name_or_path": str(out), "config": None})}),
        out,
    )
    assert torch.equal(again.build_model().eval().inner()(ids).logits, module.inner()(ids).logits)


@pytest.mark.parametrize("merge", [True, False])
def test_adapters_are_trained_and_exported(merge, directory, tmp_path):
    from transformers import AutoModelForCausalLM

    base = build_task(recipe("gpt2"), directory)
    base.export(base.build_model(), tmp_path / "base")
    chosen = recipe(
        "gpt2",
        task={"type": "instruction"},
        model={"name_or_path": str(tmp_path / "base")},
        peft={"type": "lora", "r": 4, "lora_dropout": 0.0, "merge": merge},
    )
    task = build_task(chosen, directory)
    module = task.build_model().eval()
    split = MemorySplit([[64, 1, 2, 3, 64]] * 3, masks=[[0, 0, 1, 1, 1]] * 3)
    settled, _ = task.settle(module)
    samples = settled.train_plan(split, 0).samples(0, np.array([0]))
    batch = settled.collate(samples, seed=0, step=0)
    assert settled.counts(batch) == {"loss": 9}
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(3):
        loss = module(batch)["loss"] / 9
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    task.export(module, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"), local_files_only=True).eval()
    ids = torch.arange(10)[None]
    assert torch.allclose(model(ids).logits, module.eval().inner()(ids).logits, atol=1e-5)
    assert (tmp_path / "out" / "adapter_config.json").exists() is not merge


def test_an_adapter_needs_a_pretrained_model(directory):
    with pytest.raises(RecipeError, match="needs a pretrained model"):
        build_task(recipe(peft={"r": 4}), directory).build_model()


def test_bidirectional_models_are_refused(directory):
    config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ModelError, match="decoder-only"):
        build_task(recipe(model={"config": config}), directory).build_model()
