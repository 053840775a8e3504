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
    "mlm_loss": MetricInfo("lower", "masked LM loss (nats a masked token)"),
    "mlm_accuracy": MetricInfo("higher", "masked tokens restored"),
    "nsp_loss": MetricInfo("lower", "next-sentence loss (nats a pair)"),
    "nsp_accuracy": MetricInfo("higher", "next-sentence accuracy"),
    "generator_loss": MetricInfo("lower", "generator loss (nats a masked token)"),
    "detection_loss": MetricInfo("lower", "detection loss (nats a token)"),
    "detection_f1": MetricInfo("higher", "F1 of replaced tokens"),
    "accuracy": MetricInfo("higher", "accuracy"),
    "precision": MetricInfo("higher", "precision"),
    "recall": MetricInfo("higher", "recall"),
    "f1": MetricInfo("higher", "F1"),
    "f1_micro": MetricInfo("higher", "F1, micro"),
    "f1_macro": MetricInfo("higher", "F1, macro"),
    "f1_weighted": MetricInfo("higher", "F1, weighted by support"),
    "mcc": MetricInfo("higher", "Matthews correlation"),
    "pearson": MetricInfo("higher", "Pearson correlation"),
    "spearman": MetricInfo("higher", "Spearman correlation"),
    "mse": MetricInfo("lower", "mean squared error"),
    "exact_match": MetricInfo("higher", "exact match (0 to 100)", 2),
    "sacrebleu": MetricInfo("higher", "BLEU (0 to 100)", 2),
    "chrf": MetricInfo("higher", "chrF (0 to 100)", 2),
    "ter": MetricInfo("lower", "TER (0 to 100)", 2),
    "rouge1": MetricInfo("higher", "ROUGE-1"),
    "rouge2": MetricInfo("higher", "ROUGE-2"),
    "rougeL": MetricInfo("higher", "ROUGE-L"),
    "rougeLsum": MetricInfo("higher", "ROUGE-Lsum"),
    "reward_accuracy": MetricInfo("higher", "pairs in which the better answer has the higher reward"),
    "reward_margin": MetricInfo("higher", "reward of the better answer less that of the worse"),
}

TASK_METRICS: dict[str, tuple[str, ...]] = {
    "causal_lm": ("loss", "perplexity", "bits_per_byte"),
    "masked_lm": ("loss", "mlm_loss", "perplexity", "mlm_accuracy", "nsp_loss", "nsp_accuracy"),
    "replaced_token_detection": ("loss", "generator_loss", "detection_loss", "detection_f1"),
    "span_corruption": ("loss", "perplexity"),
    "denoising": ("loss", "perplexity"),
    "instruction": ("loss", "perplexity", "token_accuracy"),
    "sequence_classification": (
        *("loss", "accuracy", "precision", "recall", "f1", "f1_micro", "f1_macro", "f1_weighted", "mcc"),
        *("pearson", "spearman", "mse"),
    ),
    "token_classification": ("loss", "precision", "recall", "f1", "accuracy"),
    "question_answering": ("loss", "exact_match", "f1"),
    "translation": ("loss", "sacrebleu", "chrf", "ter"),
    "summarization": ("loss", "rouge1", "rouge2", "rougeL", "rougeLsum"),
    "preference": ("loss", "reward_accuracy", "reward_margin"),
}
"""The set that a task computes when the recipe names none (CONTRACT section 4)."""

GENERATED_METRICS: dict[str, tuple[str, ...]] = {
    "translation": ("sacrebleu", "chrf", "ter"),
    "summarization": ("rouge1", "rouge2", "rougeL", "rougeLsum"),
}
"""Metrics of what a model writes, which `evaluation.predict_with_generate: false` leaves out."""
