"""Every metric by name: which way is better and how to show it. Torch-free, because the recipe's checks read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricInfo:
    """`label` and `digits` (after the point) are for people; `better` decides what an improvement is."""

    better: Literal["lower", "higher"]
    label: str
    digits: int = 4

    def improves(self, new: float, old: float | None) -> bool:
        """Whether `new` is strictly better than `old` (None: nothing yet). NaN never is."""
        if old is None:
            return new == new
        return new < old if self.better == "lower" else new > old


METRICS: dict[str, MetricInfo] = {
    "loss": MetricInfo("lower", "loss (nats a token)"),
    "perplexity": MetricInfo("lower", "perplexity (a token)", 3),
    "bits_per_byte": MetricInfo("lower", "bits a byte"),
    "word_perplexity": MetricInfo("lower", "perplexity (a word)", 3),
    "token_accuracy": MetricInfo("higher", "token accuracy"),
    "unigram_perplexity": MetricInfo("lower", "unigram perplexity (a token)", 3),
}

TASK_METRICS: dict[str, tuple[str, ...]] = {
    "causal_lm": ("loss", "perplexity", "bits_per_byte"),
    "instruction": ("loss", "perplexity", "token_accuracy"),
}
"""The set that a task computes when the recipe names none (CONTRACT section 4)."""
