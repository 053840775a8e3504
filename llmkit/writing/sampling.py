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


class RowSampler(LogitsProcessor):
    """Replaces scores (B, V) by 0 for the token drawn and -inf elsewhere. `uniforms`: (B, steps)."""

    def __init__(self, uniforms: np.ndarray, prompt_length: int, device: torch.device):
        self.uniforms = torch.tensor(uniforms, dtype=torch.float64, device=device)
        self.prompt_length = prompt_length

    def keep(self, lines: torch.Tensor) -> None:
        """Goes on with these lines of the batch alone."""
        self.uniforms = self.uniforms[lines]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = input_ids.shape[1] - self.prompt_length
        cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
        total = cumulative[:, -1:].contiguous()
        if not bool(torch.isfinite(total).all()):
            raise ModelError("the model's scores are not finite numbers; its weights are damaged or it diverged")
        drawn = torch.searchsorted(cumulative, self.uniforms[:, step : step + 1] * total, right=True)
        drawn = torch.minimum(drawn, torch.searchsorted(cumulative, total))  # never past the last possible token
        chosen = torch.full_like(scores, float("-inf"))
        chosen.scatter_(1, drawn, 0.0)
        return chosen  # type: ignore[return-value]


def sampling_processors(
    section: GenerationSection, uniforms: np.ndarray, prompt_length: int, device: torch.device
) -> LogitsProcessorList:
    """Temperature, then top-k, then top-p, then the draw: the order of transformers' own sampling."""
    processors = LogitsProcessorList()
    if section.temperature is not None:
        processors.append(TemperatureLogitsWarper(section.temperature))
    if section.top_k is not None:
        processors.append(TopKLogitsWarper(section.top_k))
    if section.top_p is not None and section.top_p < 1.0:
        processors.append(TopPLogitsWarper(section.top_p))
    processors.append(RowSampler(uniforms, prompt_length, device))
    return processors
