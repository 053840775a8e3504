"""Cross-entropy of a linear head a piece at a time: the logits of a large vocabulary are never in memory at once.

The gradients of a piece are computed with its logits and added up, so that nothing is computed twice: three matrix
products, as without pieces (the idea of Liger, arXiv:2410.10989, and of Cut Cross-Entropy, arXiv:2411.09009).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from llmkit.data.examples import IGNORE
from llmkit.models.linear import FastLinear, multiply

CPU_PIECE, DEVICE_PIECE = 2**25, 2**28
"""Logits held at once."""
PIECES_PAY_FROM = 2
"""Below as many pieces the whole is computed at once, where a compiler can fuse it."""


def pays(head: Any, hidden: torch.Tensor) -> bool:
    """Whether the logits of `hidden` (N, H) are better computed in pieces, which only a plain linear head can be.

    float16 scales the loss before its gradients, and those of single logits would be lost without that."""
    if type(head) not in (nn.Linear, FastLinear) or head.bias is not None or hidden.shape[0] == 0:
        return False
    if _dtype(hidden) == torch.float16:
        return False
    logits: int = hidden.shape[0] * head.out_features
    return logits > PIECES_PAY_FROM * _piece(hidden)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """(): the sum of `cross_entropy(hidden @ weight.T, labels)` over labels that are not IGNORE, in float32 at least.

    hidden (N, H), weight (V, H), labels (N,). Products are in autocast's type where that is on."""
    dtype = _dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        loss: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden.to(dtype), weight, labels, label_smoothing
        )
    return loss


def _piece(hidden: torch.Tensor) -> int:
    return CPU_PIECE if hidden.device.type == "cpu" else DEVICE_PIECE


def _dtype(hidden: torch.Tensor) -> torch.dtype:
    """Of the products."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, smoothing: float
    ) -> torch.Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        cast = weight.to(hidden.dtype)
        exact = torch.promote_types(hidden.dtype, torch.float32)
        loss = hidden.new_zeros((), dtype=exact)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight) if needs_weight else None
        rows = max(_piece(hidden) // weight.shape[0], 1)
        for start in range(0, len(labels), rows):
            piece, wanted = hidden[start : start + rows], labels[start : start + rows, None]
            counted = wanted != IGNORE
            wanted = wanted.clamp(min=0)
            log_p = torch.log_softmax(multiply(piece, cast), dim=-1, dtype=exact)
            loss -= (1.0 - smoothing) * (log_p.gather(1, wanted) * counted).sum()
            if smoothing:
                loss -= smoothing / weight.shape[0] * (log_p.sum(1, keepdim=True) * counted).sum()
            if not (needs_hidden or needs_weight):
                continue
            d_logits = log_p.exp_()  # the probabilities, less what the label asks for
            if smoothing:
                d_logits -= smoothing / weight.shape[0]
            d_logits.scatter_add_(1, wanted, d_logits.new_full((1, 1), smoothing - 1.0).expand_as(wanted))
            lower = d_logits.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[start : start + rows] = multiply(lower, cast.T).mul_(counted)
            if d_weight is not None:
                d_weight += multiply(lower.T, (piece * counted).T)
        ctx.gradients = d_hidden, d_weight
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        d_hidden, d_weight = ctx.gradients
        del ctx.gradients
        for found in (d_hidden, d_weight):
            if found is not None:
                found.mul_(gradient)
        return d_hidden, d_weight, None, None
