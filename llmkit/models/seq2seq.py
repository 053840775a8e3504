"""An encoder-decoder as a TaskModule: source and labels in, the sum of the losses out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llmkit.data.examples import IGNORE
from llmkit.models.wrapping import base_of, prompt_length


class Seq2SeqModule(nn.Module):
    """`forward(batch) -> {"loss": sum of -log p(label) over labels that are not IGNORE}`, in float32 at least.

    The decoder reads the labels shifted right, as transformers' own forward does.
    label_smoothing: in training alone (arXiv:1512.00567, as torch's cross_entropy has it).
    """

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.0):
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """batch: input_ids, attention_mask (B, S), labels (B, T) not shifted."""
        logits, labels = self.logits(batch).flatten(0, 1), batch["labels"].flatten()
        smoothing = self.label_smoothing if self.training else 0.0
        return {
            "loss": F.cross_entropy(
                _upcast(logits), labels, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
            )
        }

    def inner(self) -> Any:
        """The transformers model itself, adapters inside it included."""
        return base_of(self.model)

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, T, V) by the model's own forward."""
        inner = self.inner()
        model = self.model if prompt_length(self.model) else inner  # a tuned prompt stands before the source
        logits: torch.Tensor = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=decoder_inputs(inner, batch["labels"]),
            use_cache=False,
        ).logits
        return logits

    @torch.no_grad()
    def score(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) -log p of each label in float64 (0 where not supervised), and whether it is the argmax."""
        logits, labels = _upcast(self.logits(batch)), batch["labels"]
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none").double()
        return losses, (logits.argmax(-1) == labels) & (labels != IGNORE)


def _upcast(logits: torch.Tensor) -> torch.Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@torch.no_grad()
def decoder_start(model: Any, end_id: int) -> int:
    """The token that the decoder begins with in training, asked of the model: configs call it by several names, and
    some architectures turn the labels round instead."""
    labels = torch.tensor([[end_id]], device=model.device)
    return int(decoder_inputs(model, labels)[0, 0])


def decoder_inputs(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """(B, T) what the decoder reads to predict `labels`: the model's own, or (M2M100, NLLB) what its forward makes."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        own: torch.Tensor = model.prepare_decoder_input_ids_from_labels(labels)
        return own
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = model.config.decoder_start_token_id
    return shifted.masked_fill(shifted == IGNORE, model.config.pad_token_id)
