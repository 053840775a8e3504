"""Sampling that belongs to a row, not to a batch: the draw of (seed, row, sample, step) is the same in any company.

transformers draws from one stream for the whole batch, so a result depends on its neighbours and on its place. Here
each (row, sample) has its own uniform numbers, and a step takes the token at that quantile of the distribution (inverse
transform sampling), as a processor in front of `generate`'s argmax.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llmkit.errors import ModelError
from llmkit.recipe.sections import GenerationSection


def row_uniforms(seed: int, row: int, sample: int, count: int) -> np.ndarray:
    """(count,) numbers in [0, 1) of one completion, a prefix of which is the same for any `count`."""
    return np.random.default_rng([seed, row, sample]).random(count)


def draw(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """(B,) the tokens at the quantiles `uniforms` (B,) in [0, 1) of the distributions of `scores` (B, V)."""
    cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    if not bool(torch.isfinite(total).all()):
        raise ModelError("the model's scores are not finite numbers; its weights are damaged or it diverged")
    drawn = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)
    return torch.minimum(drawn, torch.searchsorted(cumulative, total)).squeeze(1)  # never past the last possible token


class RowSampler(LogitsProcessor):
    """Replaces scores (B, V) by 0 for the token drawn and -inf elsewhere. `uniforms`: (B, steps)."""

    def __init__(self, uniforms: np.ndarray, prompt_length: int, device: torch.device):
        self.uniforms = torch.tensor(uniforms, dtype=torch.float64, device=device)
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        drawn = draw(scores, self.uniforms[:, input_ids.shape[1] - self.prompt_length])
        chosen = torch.full_like(scores, float("-inf"))
        chosen.scatter_(1, drawn[:, None], 0.0)
        return chosen  # type: ignore[return-value]


def warpers(section: GenerationSection) -> LogitsProcessorList:
    """Temperature, then top-k, then top-p: the order of transformers' own sampling. They look at the scores alone."""
    processors = LogitsProcessorList()
    if section.temperature is not None:
        processors.append(TemperatureLogitsWarper(section.temperature))
    if section.top_k is not None:
        processors.append(TopKLogitsWarper(section.top_k))
    if section.top_p is not None and section.top_p < 1.0:
        processors.append(TopPLogitsWarper(section.top_p))
    return processors
