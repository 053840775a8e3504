"""The loss in pieces is torch's own cross-entropy of the whole, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llmkit.data.examples import IGNORE
from llmkit.models import linear_cross_entropy as module
from llmkit.models.linear_cross_entropy import linear_cross_entropy, pays
from llmkit.models.lm import CausalLMModule
from tests.fakes import tiny_model

ROWS, WIDTH, VOCABULARY = 37, 8, 50


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(module, "CPU_PIECE", 5 * VOCABULARY)


def tensors(dtype=torch.float64):
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (ROWS,), generator=draw)
    labels[::4] = IGNORE
    return hidden, weight, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_torch_in_float64(smoothing):
    hidden, weight, labels = tensors()
    loss = 3.0 * F.cross_entropy(
        hidden @ weight.T, labels, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
    )
    expected = torch.autograd.grad(loss, (hidden, weight))
    ours = 3.0 * linear_cross_entropy(hidden, weight, labels, smoothing)
    torch.testing.assert_close(ours, loss, rtol=1e-12, atol=0)
    for found, wanted in zip(torch.autograd.grad(ours, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_the_gradients_that_are_asked_for(frozen):
    hidden, weight, labels = tensors()
    {"hidden": hidden, "weight": weight}[frozen].requires_grad_(False)
    linear_cross_entropy(hidden, weight, labels).backward()
    assert [tensor.grad is None for tensor in (hidden, weight)] == [frozen == "hidden", frozen == "weight"]


def test_no_supervised_label_is_no_loss_and_no_gradient():
    hidden, weight, labels = tensors()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, IGNORE))
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any() and not weight.grad.any()


def test_under_autocast_as_near_to_float64_as_torch():
    hidden, weight, labels = tensors(torch.float32)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, labels, ignore_index=IGNORE, reduction="sum")
    wanted = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, labels)
        theirs = F.cross_entropy(F.linear(hidden, weight).float(), labels, ignore_index=IGNORE, reduction="sum")
    assert ours.dtype == torch.float32
    for loss, slack in ((ours, 1.5), (theirs, 1.0)):
        found = torch.autograd.grad(loss, (hidden, weight))
        assert all(f.dtype == torch.float32 for f in found)
        errors = [float((f - w).norm() / w.norm()) for f, w in zip(found, wanted, strict=True)]
        assert max(errors) < 0.01 * slack


def test_the_module_takes_it_for_many_logits_and_gives_the_same_gradient(monkeypatch):
    model = CausalLMModule(tiny_model("gpt2").double())
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 64, (4, 16), generator=draw)
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1)}
    found = []
    for piece in (2**25, 640):
        monkeypatch.setattr(module, "CPU_PIECE", piece)
        model.eval()
        loss = model(batch)["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        model.zero_grad()
        assert pays(model.inner().get_output_embeddings(), torch.zeros(64, 32)) == (piece == 640)
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-12)


def test_heads_that_are_more_than_a_product_stay_whole():
    many = torch.zeros(64, WIDTH)
    assert pays(nn.Linear(WIDTH, VOCABULARY, bias=False), many)
    assert not pays(nn.Linear(WIDTH, VOCABULARY), many)
    assert not pays(nn.Sequential(nn.Linear(WIDTH, VOCABULARY, bias=False)), many)
    assert not pays(nn.Linear(WIDTH, VOCABULARY, bias=False), many.half())
