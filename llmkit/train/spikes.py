"""Loss spikes: a step whose loss stands far above those of the steps before it.

A step counts as one where its loss exceeds the mean of the last `WINDOW` steps by more than `DEVIATIONS` of their
standard deviations, the rule of OLMo's SkipStepOptimizer (arXiv:2501.00656, section 3.3). Going back to a checkpoint
and passing over the data that led there is PaLM's cure (arXiv:2204.02311, section 5.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

WINDOW = 128
"""Steps."""
ENOUGH = 64
"""Steps before any can be called a spike: a run's first losses fall too fast."""
DEVIATIONS = 6.0
MAX_ROLLBACKS = 3
"""To one checkpoint; then the data is not what is wrong."""


def is_spike(recent: Sequence[float], loss: float) -> bool:
    """Whether `loss` is a spike after the losses `recent` (oldest first). One that is not finite is another matter."""
    if len(recent) < ENOUGH or not math.isfinite(loss):
        return False
    return loss > fmean(recent) + DEVIATIONS * stdev(recent)


def remembered(recent: Sequence[float], loss: float) -> list[float]:
    """The window with `loss` in it, spike or not: a level that stays is no spike for ever."""
    return [*recent, loss][-WINDOW:] if math.isfinite(loss) else list(recent)


def rollback_step(step: int, save_steps: int) -> int:
    """The checkpoint to go back to from a spike in the step after `step`: a function of the recipe, not of when else
    something was saved. Strictly before `step`: what was saved right before a spike may have it in its weights."""
    return max((step - 1) // save_steps, 0) * save_steps
