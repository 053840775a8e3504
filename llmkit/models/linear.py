"""Matrix products of scoring and writing by oneDNN, which uses AVX-512 on every CPU that has it.

torch multiplies float32 matrices by Intel's MKL, which keeps to AVX2 on CPUs of other makers: half of what they can do.
oneDNN comes with torch too and asks the CPU alone: on two cores of an EPYC 9005 485 against 210 GFLOP/s, and more than
twice at any number of rows. torch reaches for it by itself in bfloat16 only, so the operator that torch.compile emits
is called here. Only where no gradient is wanted: training keeps its kernels. Equal to rounding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D


def fast_linears(model: nn.Module) -> None:
    """Puts layers with another `forward` and the same parameters, under the same names, in place of `model`'s linear
    ones. Nothing where oneDNN would gain nothing or torch lacks the operator."""
    if not is_faster():
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


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """`x` (..., K) times `weight` (N, K), any strides, plus `bias` (N,); None where torch's own way must be gone."""
    if torch.is_grad_enabled() or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return None
    if x.device.type != "cpu" or weight.device.type != "cpu" or x.numel() == 0 or torch.is_autocast_enabled("cpu"):
        return None
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


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
