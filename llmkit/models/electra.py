"""ELECTRA's two networks as one TaskModule (arXiv:2003.10555): a small generator fills masked places, the discriminator
tells which tokens are not the text's own. Their embeddings are shared, as in the paper (section 3.2)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llmkit.data.examples import IGNORE
from llmkit.errors import ModelError, RecipeError
from llmkit.models.load import quiet, seeded
from llmkit.models.mlm import MaskedLMModule, model_inputs, upcast

GENERATOR = "generator"
"""Directory of the generator beside the discriminator's weights."""

KEY = "task.generator"
SHARED = ("vocab_size", "embedding_size", "type_vocab_size", "max_position_embeddings", "pad_token_id", "model_type")
"""Keys of a config that shared embeddings decide."""


class ReplacedTokenModule(nn.Module):
    """`forward(batch) -> {"generator": sum of -log p(label) over masked tokens, "detection": sum of the binary cross
    entropy over all tokens}`. batch: input_ids with [MASK], labels, attention_mask (B, T), and uniform (B, T), the
    numbers in [0, 1) that the generator's tokens are drawn with: by them a draw does not depend on the layout."""

    def __init__(self, model: nn.Module, generator: MaskedLMModule):
        super().__init__()
        self.model = model
        self.generator = generator

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits, labels, detected, replaced = self.detect(batch)
        seen = batch["attention_mask"] == 1
        return {
            "generator": F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum"),
            "detection": F.binary_cross_entropy_with_logits(
                detected[seen], replaced[seen].to(detected.dtype), reduction="sum"
            ),
        }

    def detect(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """(generator's logits (N, V), their labels (N,), discriminator's logits (B, T), whether a token is replaced
        (B, T)). No gradient passes from the discriminator to the generator."""
        logits, labels, _ = self.generator.restore(batch)
        masked = batch["labels"] != IGNORE
        places = masked if len(labels) < masked.numel() else torch.ones_like(masked)
        drawn = draw_tokens(logits.detach(), batch["uniform"][places])
        filled = batch["input_ids"].masked_scatter(places, drawn)
        filled = torch.where(masked, filled, batch["input_ids"])
        detected: torch.Tensor = self.model(**model_inputs({**batch, "input_ids": filled})).logits
        return logits, labels, upcast(detected), masked & (filled != batch["labels"])

    @torch.no_grad()
    def score(self, batch: dict[str, torch.Tensor]) -> dict[str, list[float]]:
        """Sums of each line of the batch: losses, what they count, and the confusion counts of replaced tokens."""
        logits, labels, detected, replaced = self.detect(batch)
        seen, masked = batch["attention_mask"] == 1, batch["labels"] != IGNORE
        losses = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
        keep = labels != IGNORE
        losses[masked] = F.cross_entropy(logits[keep], labels[keep], reduction="none").double()
        costs = F.binary_cross_entropy_with_logits(detected, replaced.to(detected.dtype), reduction="none").double()
        said = (detected > 0) & seen
        columns = {
            "generator": losses,
            "masked": masked,
            "detection": costs * seen,
            "tokens": seen,
            "true_positives": said & replaced,
            "false_positives": said & ~replaced,
            "false_negatives": seen & ~said & replaced,
        }
        return {name: column.double().sum(1).tolist() for name, column in columns.items()}


def draw_tokens(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """(N,) tokens of the distributions softmax(logits (N, V)), by the inverse of their cumulated probabilities at
    `uniform` (N,)."""
    cumulated = logits.softmax(-1).cumsum(-1)
    goal = uniform.to(cumulated.dtype)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, goal, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def fresh_generator(discriminator: Any, keys: dict[str, Any], *, seed: int) -> Any:
    """A generator a quarter as wide as the discriminator, but for the config `keys`. Raises RecipeError."""
    from transformers import AutoModelForMaskedLM

    config = copy.deepcopy(discriminator.config)
    known = config.to_dict()
    for key in keys:
        if key in SHARED:
            raise RecipeError(
                "follows the discriminator, whose embeddings are shared; leave it out", key=f"{KEY}.{key}"
            )
        if key not in known:
            raise RecipeError(f"{config.model_type} has no such key", key=f"{KEY}.{key}")
    heads = max(1, config.num_attention_heads // 4)
    config.num_attention_heads = heads
    config.hidden_size = max(1, config.hidden_size // 4 // heads) * heads
    config.intermediate_size = max(1, config.intermediate_size // 4)
    for key, value in keys.items():
        setattr(config, key, value)
    try:
        with quiet(), seeded(seed + 1):  # not the discriminator's numbers again
            made = AutoModelForMaskedLM.from_config(
                config, dtype=discriminator.dtype, attn_implementation=discriminator.config._attn_implementation
            )
    except Exception as error:  # each architecture checks its values in its own way
        raise RecipeError(str(error).splitlines()[0], key=KEY) from error
    return made


def share_embeddings(generator: Any, discriminator: Any) -> None:
    """The generator reads and writes with the discriminator's embeddings. Raises ModelError where sizes differ."""
    own, other = generator.base_model.embeddings, discriminator.base_model.embeddings
    sizes = [{name: tuple(p.shape) for name, p in part.named_parameters()} for part in (own, other)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            "the generator's embeddings are not of the discriminator's size, so they cannot be shared", key=KEY
        )
    generator.base_model.embeddings = other
    generator.tie_weights()
    head = generator.get_output_embeddings().weight
    assert head is discriminator.get_input_embeddings().weight, "the generator's head is tied to the embeddings"


def generator_beside(model: str | None) -> Path | None:
    """The generator saved beside a discriminator's weights, as a run exports it."""
    place = None if model is None else Path(model) / GENERATOR
    return place if place is not None and (place / "config.json").is_file() else None
