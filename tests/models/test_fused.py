"""Fused activations, against the ones of transformers that they replace."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import FastGELUActivation, NewGELUActivation

from llmkit.models.fused import fuse_activations


def test_the_loss_and_its_gradient_stay_to_rounding() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=97)).double().eval()
    ids = torch.randint(97, (2, 16))
    names = list(model.state_dict())

    def measured() -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    loss, gradients = measured()
    fuse_activations(model)
    fused_loss, fused_gradients = measured()
    assert all(isinstance(block.mlp.act, nn.GELU) for block in model.transformer.h)
    assert abs(loss - fused_loss) < 1e-12
    for one, other in zip(gradients, fused_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert model.config.activation_function == "gelu_new" and list(model.state_dict()) == names


def test_both_spellings_are_the_formula_of_the_kernel() -> None:
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    kernel = nn.GELU(approximate="tanh")(x)
    for written_out in (NewGELUActivation(), FastGELUActivation()):
        torch.testing.assert_close(written_out(x), kernel, rtol=1e-6, atol=1e-9)


def test_other_activations_stay() -> None:
    model = nn.Sequential(nn.GELU(), nn.ReLU(), nn.SiLU())
    before = list(model)
    fuse_activations(model)
    assert list(model) == before and model[0].approximate == "none"
