"""The task protocol: what a pretraining objective or a fine-tuning task is. The loop knows nothing else.

A task has two halves. Its `Encoder` is torch-free and runs in `preprocess`: records in, token streams out. The rest
runs in training and evaluation: examples to batches, a module that returns loss sums, predictions, metrics.
docs/task-protocol.md sketches how masked LM with NSP, ELECTRA, extractive QA, translation, DPO and n-grams fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llmkit.data.examples import IGNORE, Encoded, Encoder, Plan, Ragged, Sample

if TYPE_CHECKING:
    import torch
    from torch import nn

    from llmkit.data.shards import Split

__all__ = [
    "IGNORE",
    "Batch",
    "Encoded",
    "Encoder",
    "Evaluated",
    "Metric",
    "Plan",
    "Prediction",
    "Ragged",
    "Sample",
    "Task",
]

Batch = dict[str, "torch.Tensor"]
"""What a module's `forward` takes. Arrays that only the task reads are numpy-free tensors too."""


@dataclass(slots=True)
class Prediction:
    """What the model said of one item; `row` joins it to the split's rows, `values` is JSON-like, the task's making."""

    row: int
    values: dict[str, Any]


@dataclass(slots=True)
class Metric:
    """One number with its 95% interval; n counts the items the bootstrap drew from."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(slots=True)
class Evaluated:
    """`tables`: JSON beside the metrics, by name (per_class, confusion_matrix)."""

    metrics: dict[str, Metric]
    items: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    tables: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A pretraining objective or a fine-tuning task. Implementations are frozen dataclasses in a file of their own."""

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss the module returns; its keys are the keys of `counts` and of the module's result."""

    def encoder(self) -> Encoder: ...

    def build_model(self) -> nn.Module:
        """The TaskModule: `forward(batch) -> {name: loss SUM}`. Only this is compiled and trained."""

    def settle(self, module: nn.Module, saved: dict[str, Any] | None = None) -> tuple[Task, dict[str, Any]]:
        """The task with every automatic choice made that needs the network (packing), and these choices as JSON.

        Called once, after `build_model` and before `train_plan`. `saved`: the choices of the run that is resumed; they
        are kept. Raises ModelError where the recipe demands what the architecture cannot do.
        """

    def prepare(self, train: Split | None, validation: Split | None) -> None:
        """What must exist before training: NSP pairs, cached reference log-probabilities."""

    def train_plan(self, split: Split, seed: int) -> Plan: ...

    def eval_plan(self, split: Split) -> Plan: ...

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        """(B, T) tensors; T is `width` where given, else the longest sample. Masking is by (seed, step, sample)."""

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """Denominators of the loss sums: supervised tokens, masked tokens, pairs, sums of class weights."""

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]: ...

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated: ...

    def export(self, module: nn.Module, directory: Path) -> None:
        """Writes what transformers' Auto classes load, and the tokenizer."""
