"""A task as small as the protocol allows: rows of numbers in memory, a module that scores them by one weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from llmkit.data.examples import Sample
from llmkit.tasks.base import Batch, Evaluated, Metric, Prediction


@dataclass
class ToySplit:
    """Rows of different length."""

    num_rows: int = 23
    streams: tuple[str, ...] = ("input_ids",)

    def row(self, i: int, stream: str = "input_ids", start: int = 0, stop: int | None = None) -> np.ndarray:
        return np.random.default_rng(i).normal(size=3 + (i * 7) % 25)[start:stop]

    def bytes_of(self) -> np.ndarray:
        return np.ones(self.num_rows, dtype=np.int64)


@dataclass
class ToyPlan:
    """Rows cut into pieces of `window`."""

    split: ToySplit
    window: int = 10
    pieces: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.pieces = [
            (row, start)
            for row in range(self.split.num_rows)
            for start in range(0, len(self.split.row(row)), self.window)
        ]

    def num_samples(self, epoch: int) -> int:
        return len(self.pieces)

    def lengths(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        return np.array([len(sample.arrays["x"]) for sample in self.samples(epoch, indices)], dtype=np.int64)

    def samples(self, epoch: int, indices: np.ndarray) -> list[Sample]:
        found = []
        for index in indices.tolist():
            row, start = self.pieces[index]
            values = self.split.row(row, start=start, stop=start + self.window)
            found.append(Sample({"x": values}, np.array([row])))
        return found


class ToyModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)
        self.frozen_part = nn.Dropout(0.5).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen_part(self.dropout(x * self.weight))  # type: ignore[no-any-return]


@dataclass
class ToyTask:
    """Counts its batches and can be made to run out of memory above a batch size."""

    memory: int | None = None
    draws_random: bool = False
    shapes: list[tuple[int, int]] = field(default_factory=list)

    def eval_plan(self, split: Any) -> ToyPlan:
        return ToyPlan(split)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        longest = max(len(sample.arrays["x"]) for sample in samples)
        x = torch.zeros(len(samples), longest, dtype=torch.float64)
        for line, sample in enumerate(samples):
            x[line, : len(sample.arrays["x"])] = torch.from_numpy(sample.arrays["x"])
        return {"x": x}

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        x = batch["x"]
        if self.memory is not None and len(x) > self.memory:
            raise torch.OutOfMemoryError("too many rows")
        if self.draws_random:
            torch.rand(3)
            np.random.random(3)
        assert torch.is_inference_mode_enabled()
        self.shapes.append((len(x), x.shape[1]))
        sums = module(x).sum(1).tolist()
        return [Prediction(int(s.rows[0]), {"sum": sums[i], "n": len(s.arrays["x"])}) for i, s in enumerate(samples)]

    def finalize(self, predictions: list[Prediction], split: Any, *, bootstrap: bool) -> Evaluated:
        total = sum(prediction.values["sum"] for prediction in predictions)
        count = sum(prediction.values["n"] for prediction in predictions)
        rows = sorted({prediction.row for prediction in predictions})
        return Evaluated({"mean": Metric(total / count, n=len(rows))}, [{"row": row} for row in rows])
