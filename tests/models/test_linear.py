"""oneDNN's products, against torch's own and against float64."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from llmkit.models import linear
from llmkit.models.linear import FastConv1D, FastLinear, fast_linears, is_faster, product

needs_it = pytest.mark.skipif(not is_faster(), reason="a CPU without AVX-512, or a torch without oneDNN")


@needs_it
@pytest.mark.parametrize("rows", [(1,), (7,), (2, 33), (600,)])
@pytest.mark.parametrize(("inner", "outer", "bias"), [(5, 3, True), (384, 1152, True), (64, 1000, False)])
def test_it_is_as_near_to_the_truth_as_torch(rows: tuple[int, ...], inner: int, outer: int, bias: bool) -> None:
    torch.manual_seed(0)
    x, linear = torch.randn(*rows, inner), nn.Linear(inner, outer, bias=bias)
    truth = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
    with torch.inference_mode():
        fast, plain = FastLinear(linear)(x), linear(x)
    assert fast.shape == plain.shape and fast.is_contiguous()
    assert (fast - truth).abs().max() <= 2 * (plain - truth).abs().max() + 1e-6


@needs_it
@pytest.mark.parametrize("rows", [(8,), (1, 8), (1, 16, 8), (3, 16, 8), (4, 1, 8)])
def test_the_compiler_is_told_what_comes_back(rows: tuple[int, ...]) -> None:
    """Shapes and strides, of inputs that stand in rows or in columns."""
    turned = torch.randn(*rows[:-2], *reversed(rows[-2:])).transpose(-1, -2) if len(rows) > 1 else torch.randn(rows)
    for x in (torch.randn(rows), turned):
        for weight in (torch.randn(4, 8), torch.randn(8, 4).t(), torch.randn(1, 8)):
            checks = ("test_schema", "test_faketensor")
            torch.library.opcheck(linear._opaque, (x, weight, torch.randn(len(weight))), test_utils=checks)


@needs_it
def test_strides_of_input_and_weight_do_not_matter() -> None:
    torch.manual_seed(0)
    conv, x = Conv1D(12, 8), torch.randn(5, 8, 3).transpose(1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(FastConv1D(conv)(x), x @ conv.weight + conv.bias)
        torch.testing.assert_close(product(x[:, 1:], conv.weight.t(), None), x[:, 1:] @ conv.weight)


@needs_it
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_as_near_to_the_truth_as_torchs(compiled: bool) -> None:
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=96, vocab_size=97)).eval()
    exact, fast = (GPT2LMHeadModel(plain.config).eval() for _ in range(2))
    for other in (exact.double(), fast):
        other.load_state_dict(plain.state_dict())
    fast_linears(fast)
    ids = torch.randint(97, (2, 16))
    truth, theirs, ours = (
        gradient_of(run, model, ids)
        for run, model in ((exact, exact), (plain, plain), (torch.compile(fast) if compiled else fast, fast))
    )
    assert (ours - truth).norm() <= 2 * (theirs - truth).norm() > 0


def gradient_of(run, model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    run(input_ids=ids).logits.square().mean().backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


@needs_it
def test_frozen_weights_and_inputs_get_no_gradient() -> None:
    x, linear = torch.randn(3, 4, 8), FastLinear(nn.Linear(8, 5))
    linear.weight.requires_grad_(False)
    linear(x).sum().backward()
    assert x.grad is None and linear.weight.grad is None
    torch.testing.assert_close(linear.bias.grad, torch.full((5,), 12.0))


@needs_it
def test_parameters_keep_names_ties_and_values() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=97)).eval()
    names, ids = [name for name, _ in model.named_parameters()], torch.arange(12).reshape(2, 6)
    state = list(model.state_dict())
    with torch.inference_mode():
        before = model(ids).logits
        fast_linears(model)
        after = model(ids).logits
    assert isinstance(model.lm_head, FastLinear) and isinstance(model.transformer.h[0].mlp.c_fc, FastConv1D)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert [name for name, _ in model.named_parameters()] == names and list(model.state_dict()) == state
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@needs_it
def test_an_encoder_scores_the_same() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=97, **shape)).eval()
    ids = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        before = model(ids).last_hidden_state
        fast_linears(model)
        torch.testing.assert_close(model(ids).last_hidden_state, before, rtol=1e-5, atol=1e-5)


@needs_it
def test_where_it_must_not_be_used() -> None:
    x, weight = torch.randn(2, 4), torch.randn(3, 4)
    with torch.inference_mode():
        assert product(x.double(), weight.double(), None) is None
        assert product(x[:0], weight, None) is None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert product(x, weight, None) is None
            assert FastLinear(nn.Linear(4, 3))(x).dtype == torch.bfloat16
        assert product(x, weight, None) is not None


@needs_it
def test_products_of_many_shapes_do_not_fill_the_memory() -> None:
    """In a process of its own: the kernels that oneDNN keeps are bounded before it begins."""
    code = """
import resource, torch
from llmkit import outcome
outcome.names_hub = lambda *_: False
outcome.quiet_libraries(None, None)
from llmkit.models.linear import multiply
weight = torch.randn(4096, 256)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
multiply(torch.randn(1200, 256), weight)
before = peak()
for rows in range(1000, 1200):
    multiply(torch.zeros(rows, 256), weight)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert float(done.stdout) < 1000  # MiB; 3,400 as torch leaves it
