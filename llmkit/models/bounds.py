"""Where the documents of a packed batch begin, as variable-length attention reads it."""

from __future__ import annotations

import torch

BOUNDS = "cu_seq_lens"
"""Their name in a batch."""


def document_bounds(position_ids: torch.Tensor) -> torch.Tensor:
    """(N + 1,) int32: where the documents of position_ids (B, T) begin in the flattened batch, and its end.

    N is rounded up to a power of two with empty documents at the end, so that a compiled model meets few sizes.
    """
    fresh = torch.ones_like(position_ids, dtype=torch.bool)
    fresh[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    starts = torch.nonzero(fresh.flatten()).squeeze(1)
    size = 1 << max(len(starts) - 1, 0).bit_length()
    bounds = starts.new_full((size + 1,), position_ids.numel(), dtype=torch.int32)
    bounds[: len(starts)] = starts
    return bounds


def with_bounds(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`batch` with the bounds of its packed documents."""
    return batch | {BOUNDS: document_bounds(batch["position_ids"])}
