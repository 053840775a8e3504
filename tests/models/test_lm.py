"""The module's loss and gradient are transformers' own, whatever the layout; float64, so a difference is a mistake."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from llmkit.data.examples import IGNORE
from llmkit.data.packing import BinPlan, PackedPlan, PaddedPlan
from llmkit.models.isolation import probe_causal, probe_isolation
from llmkit.models.lm import CausalLMModule
from llmkit.models.wrapping import unwrap
from llmkit.tasks.language_model import collate, counts
from tests.fakes import MemorySplit, tiny_model


def module_of(kind: str, **keys) -> CausalLMModule:
    return CausalLMModule(tiny_model(kind, **keys)).double().eval()


def gradients(module) -> torch.Tensor:
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    module.zero_grad(set_to_none=True)
    return flat


def documents(num: int, seed: int = 0, longest: int = 20) -> MemorySplit:
    draw = np.random.default_rng(seed)
    rows = [draw.integers(0, 64, size=draw.integers(2, longest)).tolist() for _ in range(num)]
    masks = [(draw.random(len(row)) < 0.6).astype(int).tolist() for row in rows]
    return MemorySplit(rows, masks=masks)


def backward(module, samples, micro_batch: int) -> tuple[float, torch.Tensor]:
    """Global mean loss and its gradient, accumulated over micro-batches as the loop does."""
    batches = [collate(samples[i : i + micro_batch], 0, None) for i in range(0, len(samples), micro_batch)]
    total = sum(counts(batch)["loss"] for batch in batches)
    value = 0.0
    for batch in batches:
        loss = module(batch)["loss"] / total
        loss.backward()
        value += loss.item()
    return value, gradients(module)


@pytest.mark.parametrize("split_head", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "rnn_lm"])
def test_loss_and_gradient_are_transformers_own(kind, split_head, monkeypatch):
    model = tiny_model(kind).double().eval()
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 64, (3, 12), generator=draw)
    labels = ids.clone()
    labels[0, :5], labels[1, 9:], labels[2, 3:7] = IGNORE, IGNORE, IGNORE
    # transformers computes the loss of float64 logits in float32: its cast is lifted here, its loss is left alone
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    theirs = model(input_ids=ids, labels=labels, use_cache=False).loss
    theirs.backward()
    their_gradient = gradients(model)
    monkeypatch.undo()
    module = CausalLMModule(model, split_head=split_head)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
    loss = module({"input_ids": ids, "labels": shifted})["loss"] / (shifted != IGNORE).sum()
    loss.backward()
    assert abs(loss.item() - theirs.item()) < 1e-10
    assert (gradients(module) - their_gradient).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("kind", "attention"),
    [*itertools.product(["gpt2", "llama", "qwen2"], ["eager", "sdpa"]), ("rnn_lm", None)],
)
def test_packed_documents_are_each_document_alone(kind, attention):
    module = module_of(kind, attention=attention)
    # transformers' eager attention of LLaMA and Qwen2 takes its softmax in float32, whatever the weights are in
    tolerance = 1e-7 if attention == "eager" and kind != "gpt2" else 1e-10
    split = documents(23)
    alone = PaddedPlan(split, 40, mask_stream="loss_mask")
    packed = BinPlan(split, 40, 0, (1.0,), mask_stream="loss_mask")
    value, gradient = backward(module, alone.samples(0, np.arange(alone.num_samples(0))), 1)
    for micro_batch in (1, 3):
        samples = packed.samples(0, np.arange(packed.num_samples(0)))
        assert max(len(sample.rows) for sample in samples) > 2
        packed_value, packed_gradient = backward(module, samples, micro_batch)
        assert abs(value - packed_value) < tolerance
        assert (gradient - packed_gradient).abs().max() < tolerance


@pytest.mark.parametrize("kind", ["llama", "rnn_lm"])
def test_packed_windows_are_each_piece_alone(kind):
    module = module_of(kind)
    split = documents(15, longest=50)
    plan = PackedPlan(split, 16, 0, (1.0,))
    samples = plan.samples(0, np.arange(plan.num_samples(0)))
    value, gradient = backward(module, samples, 4)
    pieces = []
    for sample in samples:
        cuts = [*np.flatnonzero(sample.arrays["position_ids"] == 0).tolist(), len(sample.arrays["labels"])]
        for a, b in itertools.pairwise(cuts):
            arrays = {name: array[a:b] for name, array in sample.arrays.items() if name != "position_ids"}
            pieces.append(type(sample)(arrays, sample.rows))
    alone, alone_gradient = backward(module, pieces, 1)
    assert abs(value - alone) < 1e-10
    assert (gradient - alone_gradient).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["gpt2", "llama", "rnn_lm"])
def test_accumulation_does_not_show(kind):
    module = module_of(kind)
    plan = BinPlan(documents(40), 30, 0, (1.0,), mask_stream="loss_mask")
    samples = plan.samples(0, np.arange(8))
    tokens = {int((sample.arrays["labels"] != IGNORE).sum()) for sample in samples}
    assert len(tokens) > 1, "ragged supervised tokens"
    value, gradient = backward(module, samples, 8)
    for micro_batch in (4, 2, 1):
        other, other_gradient = backward(module, samples, micro_batch)
        assert abs(value - other) < 1e-12
        assert (gradient - other_gradient).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["gpt2", "rnn_lm"])
def test_padding_width_does_not_show(kind):
    module = module_of(kind)
    samples = BinPlan(documents(12), 30, 0, (1.0,), mask_stream="loss_mask").samples(0, np.arange(3))
    narrow, wide = collate(samples, 0, None), collate(samples, 7, 45)
    assert wide["input_ids"].shape == (3, 45)
    assert abs(module(narrow)["loss"].item() - module(wide)["loss"].item()) < 1e-10


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "rnn_lm"])
def test_probe_finds_isolation(kind):
    module = CausalLMModule(tiny_model(kind)).train()
    assert probe_isolation(module)
    assert module.training, "the probe leaves no trace"


@pytest.mark.parametrize("kind", ["opt", "bloom"])
def test_probe_finds_the_leak(kind):
    assert not probe_isolation(CausalLMModule(tiny_model(kind)))


def test_probe_refuses_a_network_that_hides_everything():
    model = tiny_model("gpt2")
    torch.nn.init.zeros_(model.lm_head.weight)
    assert not probe_isolation(CausalLMModule(model))


def test_probe_finds_bidirectional_attention():
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    assert not probe_causal(CausalLMModule(BertLMHeadModel(config)))
    assert probe_causal(CausalLMModule(tiny_model("bloom")))


def test_head_is_split_only_where_it_gives_the_models_logits():
    assert CausalLMModule(tiny_model("gpt2")).split_head
    assert CausalLMModule(tiny_model("rnn_lm")).split_head
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.05,
        pad_token_id=None,
    )
    model = Gemma2ForCausalLM(config)
    assert not CausalLMModule(model).split_head


def test_score_agrees_with_the_loss(monkeypatch):
    module = module_of("llama")
    samples = BinPlan(documents(12), 30, 0, (1.0,), mask_stream="loss_mask").samples(0, np.arange(3))
    batch = collate(samples, 0, None)
    monkeypatch.setattr("llmkit.models.lm.CPU_SCORE_CHUNK", 64 * 5)
    losses, hits = module.score(batch)
    assert losses.shape == hits.shape == batch["labels"].shape
    assert abs(losses.sum().item() - module(batch)["loss"].item()) < 1e-9
    assert (losses[batch["labels"] == IGNORE] == 0).all()
    best = module.logits(batch).argmax(-1) == batch["labels"]
    assert (hits == best).all()


def test_loss_is_float32_under_autocast():
    module = CausalLMModule(tiny_model("gpt2"))
    ids = torch.arange(24).reshape(2, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module({"input_ids": ids, "labels": ids})["loss"]
    assert loss.dtype == torch.float32


def test_unwrap_sees_through_wrappers():
    module = CausalLMModule(tiny_model("gpt2"))

    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.module = inner

    assert unwrap(Wrapper(Wrapper(module)), CausalLMModule) is module


@pytest.mark.parametrize("split_head", [True, False])
@pytest.mark.parametrize("supervised", [1.0, 0.4])
def test_label_smoothing_is_that_of_transformers(split_head, supervised):
    from transformers.trainer_pt_utils import LabelSmoother

    model = tiny_model("llama").double()
    module = CausalLMModule(model, split_head=split_head, label_smoothing=0.1)
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 64, (3, 12), generator=draw)
    labels = ids.clone()
    labels[torch.rand(3, 12, generator=draw) >= supervised] = IGNORE
    count = int((labels != IGNORE).sum())
    ours = module.train()({"input_ids": ids, "labels": labels})["loss"] / count
    logits = model(ids).logits.detach()
    theirs = LabelSmoother(epsilon=0.1)({"logits": logits}, labels)
    assert float(ours.detach()) == pytest.approx(float(theirs), rel=1e-7), "it adds up in float32"
    logs = logits.log_softmax(-1)[labels != IGNORE]
    right = logs.gather(1, labels[labels != IGNORE][:, None]).sum()
    formula = -(0.9 * right + 0.1 / 64 * logs.sum()) / count
    assert float(ours.detach()) == pytest.approx(float(formula), abs=1e-12)
    plain = CausalLMModule(model, split_head=split_head)
    batch = {"input_ids": ids, "labels": labels}
    assert torch.equal(module.eval()(batch)["loss"], plain.eval()(batch)["loss"]), "evaluation is not smoothed"
