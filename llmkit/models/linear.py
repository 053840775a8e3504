"""Matrix products in float32 by oneDNN, which uses AVX-512 on every CPU that has it.

torch multiplies float32 matrices by Intel's MKL, which keeps to AVX2 on CPUs of other makers: half of what they can do.
oneDNN comes with torch too and asks the CPU alone: on two cores of an EPYC 9005 485 against 210 GFLOP/s, and more than
twice at any number of rows. torch reaches for it by itself in bfloat16 only, so the operator that torch.compile emits
is called here, for the products of the backward pass too. Equal to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D


def fast_linears(model: nn.Module) -> None:
    """Puts layers with another `forward` and the same parameters, under the same names, in place of `model`'s linear
    ones. Nothing where oneDNN would gain nothing or torch lacks the operator."""
    if not FASTER:
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, FastLinear(child))
            elif type(child) is Conv1D:
                setattr(module, name, FastConv1D(child))


def is_faster() -> bool:
    """Whether this torch has oneDNN's product of float32 matrices and this CPU what makes it the faster one."""
    has_operator = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_operator and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


FASTER = is_faster()
"""Asked once: a compiler cannot look into it."""


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x` (..., K) times `weight` (N, K), any strides, plus `bias` (N,), by the fastest product; no gradient."""
    if not _applies(x, weight) or not FASTER:
        return F.linear(x, weight, bias)
    return _opaque(x, weight, bias) if torch.compiler.is_compiling() else _bare(x, weight, bias)


def _bare(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


@torch.library.custom_op("llmkit::multiply", mutates_args=())
def _opaque(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product as the compiler may see it, which takes the bare operator for its own, of constant weights."""
    return _bare(x, weight, bias)


@_opaque.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """`x` (..., K) times `weight` (N, K), any strides, plus `bias` (N,); None where torch's own way must be gone."""
    if not _applies(x, weight) or torch.is_autocast_enabled("cpu"):
        return None
    made: torch.Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return made


def _applies(x: torch.Tensor, weight: torch.Tensor) -> bool:
    kinds = (x.dtype, weight.dtype), (x.device.type, weight.device.type)
    return kinds == ((torch.float32, torch.float32), ("cpu", "cpu")) and x.numel() > 0


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, wanted = gradient.flatten(0, -2), ctx.needs_input_grad
        return (
            multiply(gradient, weight.t()) if wanted[0] else None,
            multiply(rows.t(), x.flatten(0, -2).t()) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )


class FastLinear(nn.Linear):
    """torch's, by `product` where that applies."""

    def __init__(self, like: nn.Linear):
        super().__init__(like.in_features, like.out_features, bias=like.bias is not None, device="meta")
        self.weight, self.bias = like.weight, like.bias
        self.train(like.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = product(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias) if made is None else made


class FastConv1D(Conv1D):
    """transformers', whose weight is (K, N), by `product` where that applies."""

    def __init__(self, like: Conv1D):
        nn.Module.__init__(self)
        self.nf, self.nx = like.nf, like.nx
        self.weight, self.bias = like.weight, like.bias
        self.train(like.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = product(x, self.weight.t(), self.bias)
        return super().forward(x) if made is None else made  # type: ignore[no-untyped-call]
