"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore, nothing to step twice.

`shape(progress)` gives the factor after warm-up, progress in [0, 1). Warm-up is linear and its first step already
learns: step s of w has the factor (s + 1) / w.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from llmkit.recipe.sections import Scheduler

WSD_DECAY_FRACTION = 0.2
"""Share of the steps over which warmup_stable_decay falls, linearly (arXiv:2405.18392 finds 10 to 20% enough)."""


def _cosine(progress: float, floor: float) -> float:
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _linear(progress: float, floor: float) -> float:
    return floor + (1.0 - floor) * (1.0 - progress)


def _constant(progress: float, floor: float) -> float:
    return 1.0


SCHEDULES: dict[Scheduler, Callable[[float, float], float]] = {
    "cosine": _cosine,
    "cosine_with_min_lr": _cosine,
    "linear": _linear,
    "polynomial": _linear,  # transformers' default power is 1
    "constant": _constant,
    "warmup_stable_decay": _linear,
    "inverse_sqrt": _constant,
}


@dataclass(frozen=True)
class Schedule:
    """`learning_rate(step)` for steps 0 .. total_steps - 1."""

    type: Scheduler
    peak: float
    total_steps: int
    warmup_steps: int
    min_lr_ratio: float

    def learning_rate(self, step: int) -> float:
        """The rate of the update that step `step` (from 0) makes."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.type == "inverse_sqrt":
            return self.peak * math.sqrt(max(self.warmup_steps, 1) / (step + 1))
        start = self.warmup_steps
        if self.type == "warmup_stable_decay":
            start = max(start, self.decay_start)
            if step < start:
                return self.peak
        progress = (step - start) / max(self.total_steps - start, 1)
        return self.peak * SCHEDULES[self.type](progress, self.min_lr_ratio)

    @property
    def decay_start(self) -> int:
        """First step of the decay of warmup_stable_decay."""
        return self.total_steps - round(WSD_DECAY_FRACTION * self.total_steps)


def whole_steps(warmup: float, total_steps: int) -> int:
    """`training.warmup_steps`: a whole number of steps, or a fraction of the run below 1."""
    return min(round(warmup * total_steps) if warmup < 1 else int(warmup), total_steps)
