"""When the steps of a Trainer begin."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from benchmarks.runs import WARM_STEPS


class Clock(TrainerCallback):
    """Notes the time at the beginning of each step, and at the end of training."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.ticks.append(time.perf_counter())

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.ticks.append(time.perf_counter())

    def steady(self, warm: int = WARM_STEPS) -> list[float]:
        """Seconds of each step after the first few."""
        return [end - start for start, end in zip(self.ticks, self.ticks[1:], strict=False)][warm:]
