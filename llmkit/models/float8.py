"""Matrix products of training in fp8, twice the rate of bf16 on the GPUs that have it (compute capability 8.9 and up).

Inputs and weights are rounded to e4m3 and gradients to e5m2, each tensor scaled so that its largest number is the
format's largest (arXiv:2209.05433; the scaling of torchao and Transformer Engine, taken from the tensor itself). Sums
are kept in float32 or close to it, weights stay what they are. Only a step that is compiled gains: rounding is a pass
over each tensor, which the compiler merges into what computes it.

A tensor's scale is that of a micro-batch, so here the gradient depends on how a step is cut, to the format's rounding.
Layers that are narrow, or whose sizes the product does not take, and the head over the vocabulary stay as they are; so
does validation, which then says what the exported model will do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmkit.models.linear import FastConv1D, FastLinear

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""What the sizes of a product must be multiples of."""
NARROWEST = 128
"""Below this width rounding takes longer than the product saves."""
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def float8_linears(model: nn.Module) -> int:
    """Puts layers that train in fp8, with the same parameters under the same names, in place of the linear ones that
    can; their number."""
    heads = {id(head) for head in _heads(model)}
    count = 0
    for module in list(model.modules()):
        for name, child in module.named_children():
            if id(child) in heads or not all(_fits(size) for size in _sizes(child)):
                continue
            if type(child) in (nn.Linear, FastLinear):
                setattr(module, name, Float8Linear(child))  # type: ignore[arg-type]
                count += 1
            elif type(child) in (Conv1D, FastConv1D):
                setattr(module, name, Float8Conv1D(child))  # type: ignore[arg-type]
                count += 1
    return count


def _heads(model: nn.Module) -> Iterable[nn.Module]:
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            head: nn.Module | None = part.get_output_embeddings()
            if head is not None:
                yield head


def _sizes(layer: nn.Module) -> tuple[int, ...]:
    return tuple(layer.weight.shape) if isinstance(layer, nn.Linear | Conv1D) else ()


def _fits(size: int) -> bool:
    return size >= NARROWEST and size % MULTIPLE == 0


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x` (..., K) times `weight` (N, K), any strides, plus `bias` (N,): (..., N) in bf16."""
    rows = x.flatten(0, -2)
    added = -rows.shape[0] % MULTIPLE  # rows are what the weights' gradient is summed over
    rows = F.pad(rows, (0, 0, 0, added)) if added else rows
    made: torch.Tensor = _Product.apply(rows, weight)  # type: ignore[no-untyped-call]
    made = (made[:-added] if added else made).unflatten(0, x.shape[:-1])
    return made if bias is None else made + bias.to(made.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x8, x_scale = rounded(x, E4M3)
        weight8, weight_scale = rounded(weight, E4M3)
        ctx.save_for_backward(x8, x_scale, weight8, weight_scale)
        ctx.dtypes = x.dtype, weight.dtype
        return _multiply(x8, weight8.t(), x_scale, weight_scale, torch.bfloat16, fast=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x8, x_scale, weight8, weight_scale = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        gradient8, scale = rounded(gradient, E5M2)
        wanted = ctx.needs_input_grad
        return (
            _multiply(gradient8, weight8, scale, weight_scale, of_x) if wanted[0] else None,
            _multiply(gradient8.t(), x8, scale, x_scale, of_weight) if wanted[1] else None,
        )


def rounded(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` in `dtype` and the float32 scale () it must be multiplied by."""
    largest = torch.finfo(dtype).max
    scale = x.detach().abs().amax().float().clamp(min=SMALLEST_SCALE) / largest
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def _multiply(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    dtype: torch.dtype,
    *,
    fast: bool = False,
) -> torch.Tensor:
    """`a` (M, K) times `b` (K, N), laid as the product takes them: rows of the one, columns of the other in one piece.

    fast: sums are kept in fewer bits than float32.
    """
    columns = b.t().contiguous().t()
    return torch._scaled_mm(
        a.contiguous(), columns, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast
    )


class Float8Linear(FastLinear):
    """torch's, in fp8 while it trains."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weight, self.bias) if self.training else super().forward(x)


class Float8Conv1D(FastConv1D):
    """transformers', whose weight is (K, N), in fp8 while it trains."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weight.t(), self.bias) if self.training else super().forward(x)
