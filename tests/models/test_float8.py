"""fp8 products against the same numbers multiplied in float64, and against what a GPU asks of them.

torch multiplies fp8 on a CPU too, slowly; what CUDA refuses is checked by torch's own rules, on tensors without data.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from llmkit.models.float8 import E4M3, E5M2, Float8Conv1D, Float8Linear, float8_linears, product, rounded
from llmkit.models.linear import fast_linears

SHAPE: dict[str, Any] = {"n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 256}


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SHAPE, bos_token_id=0, eos_token_id=0))


def exactly(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The rounded numbers, in float64."""
    made, scale = rounded(x, dtype)
    return made.double() * scale.double()


@pytest.mark.parametrize("rows", [(48,), (2, 33), (1,), (3, 5, 7)])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_a_product_is_that_of_the_rounded_numbers(kind: Any, rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = kind(128, 256) if kind is nn.Linear else kind(256, 128)
    layer = Float8Linear(plain) if kind is nn.Linear else Float8Conv1D(plain)
    layer.bias.data.normal_()
    weight = layer.weight if kind is nn.Linear else layer.weight.t()
    x = torch.randn(*rows, 128, requires_grad=True)
    made = layer(x)
    sent = torch.randn(made.shape).bfloat16()
    made.backward(sent)

    x8, weight8, sent8 = exactly(x, E4M3), exactly(weight, E4M3), exactly(sent, E5M2)
    expected = x8 @ weight8.t() + layer.bias.double()
    torch.testing.assert_close(made.double(), expected, rtol=2**-7, atol=0.06)
    assert made.dtype == torch.bfloat16 and made.shape == (*rows, 256)
    assert x.grad is not None and x.grad.dtype == layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad.double(), sent8 @ weight8, rtol=1e-4, atol=1e-3)
    found = layer.weight.grad if kind is nn.Linear else layer.weight.grad.t()
    torch.testing.assert_close(found.double(), sent8.flatten(0, -2).t() @ x8.flatten(0, -2), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer.bias.grad, sent.float().flatten(0, -2).sum(0), rtol=2**-7, atol=0.1)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_rounding_keeps_numbers_of_any_size(dtype: torch.dtype, scale: float) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * scale
    error = (exactly(x, dtype) - x.double()).norm() / x.double().norm()
    assert error < (0.04 if dtype is E4M3 else 0.08)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_hidden(bad: float) -> None:
    x = torch.ones(16, 128)
    x[3, 4] = bad
    assert not torch.isfinite(product(x, torch.ones(128, 128), None)).all()


@pytest.mark.parametrize("rows", [(48,), (2, 33), (1,)])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_laid_as_cuda_takes_them(
    rows: tuple[int, ...], transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's rules for `_scaled_mm` on CUDA (torch/_meta_registrations.py), which a CPU does not ask for."""
    multiply, calls = torch._scaled_mm, []

    def checked(a: torch.Tensor, b: torch.Tensor, **given: Any) -> torch.Tensor:
        assert a.stride()[0] > a.stride()[1] == 1, "rows in one piece"
        assert b.stride()[1] > b.stride()[0] == 1, "columns in one piece"
        assert all(size % 16 == 0 for size in (a.shape[1], *b.shape))
        assert (a.dtype, b.dtype) != (E5M2, E5M2)
        assert all(given[name].shape == () and given[name].dtype == torch.float32 for name in ("scale_a", "scale_b"))
        calls.append(given["out_dtype"])
        made: torch.Tensor = multiply(a, b, **given)
        return made

    monkeypatch.setattr(torch, "_scaled_mm", checked)
    x, weight = torch.randn(*rows, 128, requires_grad=True), torch.randn(256, 128)
    weight = (weight.t().contiguous().t() if transposed else weight).requires_grad_()
    product(x, weight, None).sum().backward()
    assert calls == [torch.bfloat16, torch.float32, torch.float32]


def test_what_is_narrow_and_the_head_stay_as_they_are() -> None:
    model = gpt2()
    names, state = [name for name, _ in model.named_parameters()], list(model.state_dict())
    model.add_module("narrow", nn.Linear(64, 256))
    model.add_module("odd", nn.Linear(256, 136))
    fast_linears(model)
    assert float8_linears(model) == 8
    assert isinstance(model.transformer.h[0].mlp.c_fc, Float8Conv1D)
    for left in (model.lm_head, model.narrow, model.odd):
        assert not isinstance(left, Float8Linear)
    del model.narrow, model.odd
    assert [name for name, _ in model.named_parameters()] == names and list(model.state_dict()) == state
    untied = LlamaForCausalLM(
        LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, vocab_size=256)
    )
    assert float8_linears(untied) == 7 and not isinstance(untied.lm_head, Float8Linear)


def test_validation_is_what_the_exported_model_says() -> None:
    model, ids = gpt2().eval(), torch.arange(32).reshape(2, 16)
    fast_linears(model)
    with torch.inference_mode():
        before = model(ids).logits
        float8_linears(model)
        assert torch.equal(model(ids).logits, before)


def gradient(run: Any, model: nn.Module) -> torch.Tensor:
    model.train()
    ids = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the compiler's
def test_a_models_gradient_is_near_compiled_or_not() -> None:
    models = [gpt2() for _ in range(3)]
    for part in (part for model in models for part in model.modules() if isinstance(part, nn.Dropout)):
        part.p = 0.0
    for model in models[1:]:
        float8_linears(model)
    plain, ours, compiled = (
        gradient(run, model) for run, model in zip([*models[:2], torch.compile(models[2])], models, strict=True)
    )
    for found in (ours, compiled):
        assert (found - plain).norm() < 0.12 * plain.norm()
