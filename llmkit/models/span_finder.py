"""Extractive question answering as a TaskModule: where the answer begins and where it ends, two losses a window.

Padding is no place where an answer could be: its logits are left out of the softmax, so that losses and gradients do
not depend on how windows are batched. Of windows of one length the mean of the two losses is transformers' own.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class SpanFinder(nn.Module):
    """`forward(batch) -> {"start", "end": sum of -log p(place) over windows}`, in float32 at least.

    token_types: the tokenizer gives the two texts types; they are passed on where the architecture has them.
    """

    def __init__(self, model: nn.Module, *, token_types: bool, label_smoothing: float = 0.0):
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        inner = self.inner()
        known = "token_type_ids" in inspect.signature(inner.forward).parameters
        self.token_types = token_types and known and getattr(inner.config, "type_vocab_size", 0) > 1

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """batch: input_ids, attention_mask, token_type_ids (B, T); start, end (B,) the answer's first and last token, 0
        where it is not in the window."""
        smoothing = self.label_smoothing if self.training else 0.0
        logits = dict(zip(("start", "end"), self.logits(batch), strict=True))
        if smoothing:  # a share of every place that is one; cross_entropy's own would reach into the padding
            return {name: _smoothed(logits[name], batch[name], smoothing) for name in logits}
        return {name: F.cross_entropy(logits[name], batch[name], reduction="sum") for name in logits}

    def inner(self) -> Any:
        """The transformers model itself, adapters inside it included."""
        get_base_model = getattr(self.model, "get_base_model", None)
        return get_base_model() if get_base_model is not None else self.model

    def logits(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) of first and of last tokens, -inf in the padding."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if self.token_types:
            inputs["token_type_ids"] = batch["token_type_ids"]
        output = self.inner()(**inputs)
        padding = batch["attention_mask"] == 0
        start, end = (
            (logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits).masked_fill(
                padding, float("-inf")
            )
            for logits in (output.start_logits, output.end_logits)
        )
        return start, end

    @torch.no_grad()
    def score(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Both logits (B, T), and the mean of the two losses (B,) in float64."""
        start, end = self.logits(batch)
        first = F.cross_entropy(start, batch["start"], reduction="none").double()
        last = F.cross_entropy(end, batch["end"], reduction="none").double()
        return start, end, (first + last) / 2


def _smoothed(logits: torch.Tensor, places: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross entropy against (1 - smoothing) at the place and `smoothing` evenly over the places there are, summed."""
    logs = F.log_softmax(logits, -1)
    there = torch.isfinite(logs)
    even = -logs.masked_fill(~there, 0.0).sum(-1) / there.sum(-1)
    right = -logs.gather(1, places[:, None])[:, 0]
    return ((1 - smoothing) * right + smoothing * even).sum()


@torch.no_grad()
def best_spans(start: torch.Tensor, end: torch.Tensor, *, longest: int, count: int) -> list[tuple[int, int, float]]:
    """The `count` best (first, last, score) of one window's context: (C,) logits each; `longest` tokens at most."""
    ends = F.pad(end, (0, longest - 1), value=float("-inf")).unfold(0, longest, 1)
    scores = (start[:, None] + ends).flatten()
    best = scores.topk(min(count, len(start)))  # each token is a span of its own: there are that many
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(place // longest, place // longest + place % longest, score) for place, score in pairs]
