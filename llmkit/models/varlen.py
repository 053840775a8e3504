"""Attention that never computes across packed documents: variable-length FlashAttention on a GPU.

transformers isolates packed documents by a (B, 1, T, T) mask, which no fast kernel reads. Here the rows of a batch are
one sequence of documents given by their bounds (arXiv:2307.08691; torch.nn.attention.varlen). It takes the place of
`sdpa` in the model at hand where a probe shows the same logits, and is `sdpa` wherever no bounds are given.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llmkit.models.isolation import LENGTHS, probe_isolation
from llmkit.models.lm import CausalLMModule, probe_batch

NAME = "llmkit_varlen"


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query (B, H, T, D), key and value (B, H', T, D) -> (B, T, H, D), as transformers' attention functions."""
    if cu_seq_lens_q is None:
        if sliding_window is not None:
            kwargs["sliding_window"] = sliding_window
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return attended
    from torch.nn.attention.varlen import varlen_attn

    unknown = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if dropout or unknown:
        raise ValueError(f"varlen attention has no {unknown[0] if unknown else 'dropout'}")
    batch, _, length, _ = query.shape
    # rotary positions are applied in float32 under autocast, which custom kernels stand outside of
    q, k, v = (x.transpose(1, 2).flatten(0, 1).to(value.dtype) for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    assert max_length_q is not None
    out = varlen_attn(
        q,
        k,
        v,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=((sliding_window or 0) - 1, 0),
    )
    assert isinstance(out, torch.Tensor)
    return out.view(batch, length, *out.shape[1:]), None


def register() -> None:
    """Makes the kernel known to transformers by its name."""
    AttentionInterface.register(NAME, varlen_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def install_varlen(module: CausalLMModule, autocast: Callable[[], AbstractContextManager[Any]]) -> bool:
    """Gives the model variable-length attention where it then computes what it did; otherwise leaves it as it is."""
    inner = module.inner()
    before = inner.config._attn_implementation
    if before != "sdpa" or inner.device.type != "cuda":
        return False
    register()
    try:
        with autocast():
            expected = _probe(module)
            inner.set_attn_implementation(NAME)
            module.varlen = True
            found = _probe(module)
            scale = float(expected.abs().max())
            if float((found - expected).abs().max()) <= 3e-2 * scale and probe_isolation(module):
                return True
    except (RuntimeError, ValueError, TypeError, ImportError):  # a kernel or model that cannot
        pass
    inner.set_attn_implementation(before)
    module.varlen = False
    return False


@torch.no_grad()
def _probe(module: CausalLMModule) -> torch.Tensor:
    """Logits of two packed documents in training mode, whose dropout must be none here."""
    batch = probe_batch(module, 2, sum(LENGTHS))
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).expand(2, -1)
    batch["position_ids"] = positions.to(batch["input_ids"].device)
    training = module.training
    module.train()
    try:
        with torch.random.fork_rng(devices=[batch["input_ids"].device]):
            torch.manual_seed(0)
            return module.logits(batch).float()
    finally:
        module.train(training)
