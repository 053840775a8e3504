"""A token classifier as a TaskModule: tokens with a label a word in, the sum of the losses out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llmkit.data.examples import IGNORE


class TokenClassifier(nn.Module):
    """`forward(batch) -> {"loss": sum of -log p(label) over labels that are not IGNORE}`, in float32 at least.

    label_smoothing: in training alone.
    """

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.0):
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """batch: input_ids, attention_mask, labels (B, T)."""
        smoothing = self.label_smoothing if self.training else 0.0
        logits, labels = self.logits(batch).flatten(0, 1), batch["labels"].flatten()
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
        return {"loss": loss}

    def inner(self) -> Any:
        """The transformers model itself, adapters inside it included."""
        get_base_model = getattr(self.model, "get_base_model", None)
        return get_base_model() if get_base_model is not None else self.model

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, T, labels), in float32 at least."""
        logits: torch.Tensor = self.inner()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    @torch.no_grad()
    def score(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) -log p of each label in float64 (0 where there is none), and the best label of every token."""
        logits = self.logits(batch)
        losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"], ignore_index=IGNORE, reduction="none")
        return losses.double(), logits.argmax(-1)
