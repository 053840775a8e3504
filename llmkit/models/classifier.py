"""A classifier or regressor of whole texts as a TaskModule: batches with labels in, the sum of the losses out."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llmkit.models.wrapping import base_of, prompt_length


class ClassifierModule(nn.Module):
    """`forward(batch) -> {"loss": sum}`, in float32 at least: transformers' own losses, as sums.

    single_label: cross-entropy, each row times its class's weight (to be divided by the sum of these weights, as
    torch's CrossEntropyLoss means them). multi_label: binary cross-entropy over every label of a row, positives times
    the label's weight (`pos_weight` of torch). regression: squared error. label_smoothing: of single_label, in training
    alone.
    """

    class_weights: torch.Tensor | None

    def __init__(
        self,
        model: nn.Module,
        problem_type: str,
        *,
        class_weights: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.model = model
        self.problem_type = problem_type
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)
        config, parameters = self.inner().config, inspect.signature(type(self.inner()).forward).parameters
        # GPT-2's forward takes token types too, and adds word embeddings for them
        self.reads_types = "token_type_ids" in parameters and (getattr(config, "type_vocab_size", 0) or 0) > 1

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """batch: input_ids, attention_mask, token_type_ids (B, T), labels (B,) or (B, L)."""
        smoothing = self.label_smoothing if self.training else 0.0
        return {"loss": self.losses(self.logits(batch), batch["labels"], smoothing).sum()}

    def inner(self) -> Any:
        """The transformers model itself, adapters inside it included."""
        return base_of(self.model)

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, L) in float32 at least, by the model's own forward."""
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if self.reads_types:
            inputs["token_type_ids"] = batch["token_type_ids"]
        model = self.model if prompt_length(self.model) else self.inner()  # a tuned prompt stands before the text
        config = self.inner().config
        if not config.is_encoder_decoder:
            logits: torch.Tensor = model(**inputs).logits
        else:  # its head reads at the last end of sequence, and wants as many of them in every row: texts, then pairs
            ends = (inputs["input_ids"] == config.eos_token_id).sum(1)
            groups = [(ends == number).nonzero().squeeze(1) for number in ends.unique()]
            parts = [model(**{name: tensor[rows] for name, tensor in inputs.items()}).logits for rows in groups]
            logits = torch.cat(parts)[torch.cat(groups).argsort()]
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def losses(self, logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        """(B,) summed over a row's labels."""
        weights = self.class_weights.to(logits.dtype) if self.class_weights is not None else None
        if self.problem_type == "single_label":
            return F.cross_entropy(logits, labels, weight=weights, reduction="none", label_smoothing=smoothing)
        if self.problem_type == "multi_label":
            gold = labels.to(logits.dtype)
            return F.binary_cross_entropy_with_logits(logits, gold, reduction="none", pos_weight=weights).sum(1)
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction="none")
