"""Attention in bf16 on a CPU: a block of queries at a time, as matrix products by oneDNN.

torch's kernel for CPUs (`scaled_dot_product_attention`) makes its products of small tiles and skips nothing below 512
keys: at 256 to 2,048 tokens it takes 2 to 3 times as long. Here the keys that no query of a block sees are left out, so
that causal attention costs half and packed documents less. Scores are rounded to bf16 before the softmax, as in
transformers' `eager` attention under autocast; the softmax itself and its gradient are computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "llmkit_cpu"
BLOCK = 256
"""Queries at a time."""
KEPT = 2**16
"""Probabilities of a head that are kept for the gradient; where there are more, they are computed again."""
SHORTEST = 16
"""Tokens from which on it is faster."""
UNKNOWN = ("softcap", "position_bias", "s_aux", "cache")
"""What models hand to their attention beside a mask, and this one does not know."""


def install_cpu_attention(module: nn.Module) -> None:
    """Gives transformers models of `sdpa` attention in `module` this one, which is `sdpa` where it cannot be used."""
    AttentionInterface.register(NAME, cpu_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    for model in module.modules():
        if isinstance(model, PreTrainedModel) and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(NAME)


def cpu_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query (B, H, T, D), key and value (B, H', S, D) -> (B, T, H, D), as transformers' attention functions."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    causal = bool(causal) and attention_mask is None and query.shape[2] > 1
    if not _applies(query, key, attention_mask, dropout, causal, kwargs):
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return attended
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x.to(torch.bfloat16) for x in (query, key, value))
    return _attend(q, k, v, attention_mask, scale, causal)[0], None


def _applies(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
    others: dict[str, Any],
) -> bool:
    if query.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or dropout:
        return False
    if torch.get_autocast_dtype("cpu") != torch.bfloat16 or any(others.get(name) is not None for name in UNKNOWN):
        return False
    if mask is not None and (mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1):
        return False
    return query.shape[2] >= SHORTEST and (not causal or query.shape[2] == key.shape[2])


@torch.library.custom_op("llmkit::attend", mutates_args=())
def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """q (B, H, T, D), k and v (B, H, S, D), mask (B or 1, 1, T or 1, S): (B, T, H, D), and where they are kept the
    probabilities (B H, T, S)."""
    batch, heads, length, width = q.shape
    out = q.new_empty(batch, length, heads, width)
    queries, keys, values = (q * scale).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    kept = q.new_empty(0)
    for rows, columns in _blocks(length, k.shape[2], mask, causal):
        weights = _weights(queries[:, rows], keys[:, columns], mask, causal, rows, columns)
        made = torch.bmm(weights, values[:, columns])
        out[:, rows] = made.unflatten(0, (batch, heads)).transpose(1, 2)
        if _keeps(length, k.shape[2]):
            kept = weights
    return out, kept


@_attend.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, length, width = q.shape
    shape = (batch * heads, length, k.shape[2]) if _keeps(length, k.shape[2]) else (0,)
    return q.new_empty(batch, length, heads, width), q.new_empty(shape)


@torch.library.custom_op("llmkit::attend_backward", mutates_args=())
def _attend_backward(
    gradient: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    kept: torch.Tensor,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k and v, of `gradient` (B, T, H, D)."""
    queries, keys, values = (q * scale).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    of_out = gradient.to(q.dtype).transpose(1, 2).flatten(0, 1)
    blocks = list(_blocks(q.shape[2], k.shape[2], mask, causal))
    of_q = q.new_empty(queries.shape)  # in one piece, whatever the strides of a single row
    sums = torch.float32 if len(blocks) > 1 else q.dtype
    of_k, of_v = (x.new_zeros(x.shape, dtype=sums) for x in (keys, values))
    for rows, columns in blocks:
        own = of_out[:, rows]
        weights = kept
        if not len(kept):
            weights = _weights(queries[:, rows], keys[:, columns], mask, causal, rows, columns)
        of_v[:, columns] += torch.bmm(weights.transpose(1, 2), own)
        of_weights = torch.bmm(own, values[:, columns].transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, q.dtype)
        of_q[:, rows] = torch.bmm(of_scores, keys[:, columns])
        of_k[:, columns] += torch.bmm(of_scores.transpose(1, 2), queries[:, rows])
    return tuple(x.to(q.dtype).view_as(like) for x, like in ((of_q.mul_(scale), q), (of_k, k), (of_v, v)))  # type: ignore[return-value]


@_attend_backward.register_fake
def _(
    gradient: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    kept: torch.Tensor,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v))  # type: ignore[return-value]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, mask, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, mask, output[1])


def _gradients(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    q, k, v, mask, kept = ctx.saved_tensors
    return *_attend_backward(gradient, q, k, v, mask, kept, ctx.scale, ctx.causal), None, None, None


_attend.register_autograd(_gradients, setup_context=_remember)


def _keeps(length: int, keys: int) -> bool:
    return length <= BLOCK and length * keys <= KEPT


def _blocks(length: int, keys: int, mask: torch.Tensor | None, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Queries, and the keys from the first to the last that one of them sees."""
    for start in range(0, length, BLOCK):
        stop, first, last = min(start + BLOCK, length), 0, keys
        if causal:
            last = stop
        elif mask is not None and not _keeps(length, keys):
            seen = mask[:, 0, start:stop] if mask.shape[2] > 1 else mask[:, 0]
            places = seen.flatten(0, 1).any(0).nonzero()
            if len(places):
                first, last = int(places[0]), int(places[-1]) + 1
        yield slice(start, stop), slice(first, last)


def _weights(
    queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None, causal: bool, rows: slice, columns: slice
) -> torch.Tensor:
    """(B H, t, s) the softmax of the scores of queries (B H, t, D), scaled, and keys (B H, s, D)."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    lowest = torch.finfo(scores.dtype).min
    if causal:
        own = scores[:, :, rows.start :]
        own += torch.full(own.shape[1:], lowest, dtype=scores.dtype).triu_(1)
    elif mask is not None:
        seen = mask[:, :, rows, columns] if mask.shape[2] > 1 else mask[..., columns]
        scores = scores.unflatten(0, (mask.shape[0], -1)) if mask.shape[0] > 1 else scores.unsqueeze(0)
        scores += torch.zeros(seen.shape, dtype=scores.dtype).masked_fill_(~seen, lowest)
        scores = scores.flatten(0, 1)
    return scores.softmax(-1)
