"""The largest micro-batch that fits in memory, found on the longest batch before the run starts.

The gradient does not depend on it, so it may be chosen by trying; it is kept for the run's life all the same, because
sums in another order differ in their last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from llmkit.errors import EnvironmentFailure
from llmkit.tasks.base import Batch, Plan, Task
from llmkit.train import memory

OPTIMIZER_COPIES = 2
"""What an optimiser keeps, in copies of the trained parameters: AdamW's two moments, the most of ours."""


def longest(plan: Plan) -> int:
    """Tokens of the first epoch's longest sample."""
    return max(int(plan.lengths(0, np.arange(plan.num_samples(0))).max()), 1)


def longest_batch(task: Task, plan: Plan, size: int, *, seed: int, device: torch.device) -> Batch:
    """The batch of the first epoch's `size` longest samples."""
    indices = np.arange(plan.num_samples(0))
    order = np.argsort(-plan.lengths(0, indices), kind="stable")
    batch = task.collate(plan.samples(0, indices[order][:size]), seed=seed, step=0)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def backward(module: nn.Module, task: Task, batch: Batch, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
    """One forward and backward, for its cost alone."""
    counts = task.counts(batch)
    with autocast():
        losses = module(batch)
    torch.stack([losses[name].sum() / max(counts[name], 1) for name in losses]).sum().backward()


def largest_that_fits(candidates: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The first of `candidates` (falling) that fits. Raises EnvironmentFailure where not even the last does."""
    for size in candidates:
        if fits(size):
            return size
    raise too_small()


def too_small() -> EnvironmentFailure:
    """Nothing is left to halve."""
    return EnvironmentFailure(f"out of memory with a single sequence; {memory.SMALLER}")


def choose(
    module: nn.Module,
    task: Task,
    plan: Plan,
    *,
    samples_per_rank: int,
    seed: int,
    accelerator: Accelerator,
    autocast: Callable[[], AbstractContextManager[Any]],
    check_memory: Callable[[], None],
) -> int:
    """Tries the divisors of `samples_per_rank` from the largest down; ranks agree on the smallest they find."""
    device = accelerator.device
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)

    def fits(size: int) -> bool:
        fitted = True
        try:
            reserved = torch.empty(OPTIMIZER_COPIES * trained, dtype=torch.uint8, device=device)
            backward(module, task, longest_batch(task, plan, size, seed=seed, device=device), autocast)
            check_memory()
            del reserved
        except (RuntimeError, MemoryError) as error:
            if not memory.is_shortage(error):
                raise
            fitted = False
        module.zero_grad(set_to_none=True)  # not before: the error held what the attempt had taken
        memory.free(device)
        return fitted

    module.train()
    candidates = [size for size in range(samples_per_rank, 0, -1) if samples_per_rank % size == 0]
    found = torch.tensor([largest_that_fits(candidates, fits)], device=device)
    return int(accelerator.gather(found).min())
