"""A task without a language model, for tests of the loop: ragged rows, a two-layer network, two losses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from llmkit.signals import StopRequest
from llmkit.tasks.base import IGNORE, Batch, Sample
from llmkit.train.feed import Feed, Layout, calendar
from llmkit.train.loop import Run, TrainState
from llmkit.train.optim import build_optimizers
from llmkit.train.schedules import Schedule

VOCABULARY = 11


class ToyModule(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(8, VOCABULARY)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        logits = self.out(self.dropout(self.embed(batch["input_ids"])))
        flat, labels = logits.flatten(0, 1), batch["labels"].flatten()
        every = nn.functional.cross_entropy(flat, labels, reduction="sum", ignore_index=IGNORE)
        first = labels.where(labels < 3, IGNORE)
        return {
            "all": every,
            "first": nn.functional.cross_entropy(flat, first, reduction="sum", ignore_index=IGNORE),
        }


@dataclass
class ToyTask:
    loss_weights: dict[str, float] = field(default_factory=lambda: {"all": 1.0, "first": 0.5})

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        width = width or max(len(s.arrays["input_ids"]) for s in samples)
        out = {
            "input_ids": torch.zeros(len(samples), width, dtype=torch.long),
            "labels": torch.full((len(samples), width), IGNORE),
        }
        for i, sample in enumerate(samples):
            for name, tensor in out.items():
                tensor[i, : len(sample.arrays[name])] = torch.from_numpy(sample.arrays[name])
        return out

    def counts(self, batch: Batch) -> dict[str, int]:
        labels = batch["labels"]
        return {"all": int((labels != IGNORE).sum()), "first": int(((labels < 3) & (labels != IGNORE)).sum())}


@dataclass
class ToyPlan:
    rows: int = 37

    def num_samples(self, epoch: int) -> int:
        return self.rows

    def lengths(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        return np.array([self._length(epoch, i) for i in indices])

    def _length(self, epoch: int, index: int) -> int:
        return 2 + (index * 7 + epoch) % 9

    def samples(self, epoch: int, indices: np.ndarray) -> list[Sample]:
        made = []
        for index in indices:
            draw = np.random.default_rng([epoch, int(index)])
            length = self._length(epoch, int(index))
            labels = draw.integers(0, VOCABULARY, length)
            labels[draw.random(length) < 0.4] = IGNORE
            ids = draw.integers(0, VOCABULARY, length)
            made.append(Sample({"input_ids": ids, "labels": labels}, np.array([index])))
        return made


def make_run(
    training,
    *,
    micro_batch: int = 4,
    global_batch: int = 8,
    steps: int = 12,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    accelerator: Accelerator | None = None,
    task: ToyTask | None = None,
    **changes,
) -> tuple[Run, TrainState, list[dict]]:
    """A run on the toy task; `changes` replaces fields of the Run."""
    accelerator = accelerator or Accelerator(cpu=True)
    torch.manual_seed(3)
    module = ToyModule(dropout).to(dtype)
    task, plan = task or ToyTask(), ToyPlan()
    days = calendar(plan, global_batch=global_batch, max_steps=steps, epochs=1.0)
    layout = Layout(global_batch, micro_batch, accelerator.process_index, accelerator.num_processes)
    events: list[dict] = []
    fields = {
        "module": module,
        "wrapped": module,
        "optimizers": build_optimizers(module, training),
        "schedule": Schedule("constant", training.learning_rate, steps, 0, 0.0),
        "feed": Feed(task, plan, days, layout, seed=5, device=torch.device("cpu")),
        "accelerator": accelerator,
        "loss_weights": task.loss_weights,
        "seed": 5,
        "max_grad_norm": 1.0,
        "max_nonfinite_steps": 10,
        "loss_spike_action": None,
        "logging_steps": 4,
        "autocast": nullcontext,
        "scale_losses": False,
        "stop": StopRequest(),
        "log": events.append,
        "evaluate": lambda state: None,
        "save": lambda state: None,
        "save_is_due": lambda state: False,
        "evaluation_is_due": lambda state: False,
        "after_evaluation": lambda state, metrics: False,
        "patience": None,
        "check_memory": lambda: None,
        "halve": lambda state: None,
        "roll_back": lambda state: False,
    }
    return Run(**{**fields, **changes}), TrainState(), events
