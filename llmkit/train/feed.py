"""A step's micro-batches as a pure function of the step, for any number of processes and micro-batch size.

The samples of a step are positions [step * global_batch, ...) of a seeded epoch. Sorted by length, they are dealt to
the ranks in turn and cut into micro-batches of similar length, at the same places on every rank: all have the same
number of them, of nearly the same size. A rank that has no sample left gets a blank whose loss has the weight zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil

import numpy as np
import torch

from llmkit.models.bounds import with_bounds
from llmkit.tasks.base import IGNORE, Batch, Plan, Sample, Task
from llmkit.train.cuts import Budget, cut, halved


@dataclass(frozen=True)
class Layout:
    """How a global batch is spread over the machine. `micro_batch` counts samples of one process, at most."""

    global_batch: int
    micro_batch: int
    rank: int
    world_size: int
    fixed_shape: tuple[int, int] | None = None
    """(B, T) that every micro-batch is padded to, where a compiled module wants one shape."""
    budget: Budget | None = None
    """What a micro-batch may hold, where samples differ in length and nobody asked for a number of them."""
    bounds: bool = False
    """Batches of packed documents name where they begin."""


@dataclass(frozen=True)
class MicroBatch:
    batch: Batch
    weight: float
    """1, or 0 for a blank."""


@dataclass(frozen=True)
class StepFeed:
    """What one rank computes in one step, and this rank's share of the denominators."""

    micro_batches: list[MicroBatch]
    counts: dict[str, float]
    tokens: int
    epoch: int


@dataclass(frozen=True)
class Calendar:
    """Which epoch and which samples a step shows. Epochs may differ in their number of samples (packing)."""

    samples_per_epoch: tuple[int, ...]
    global_batch: int
    total_steps: int

    def locate(self, step: int) -> tuple[int, int, int]:
        """(epoch, first, last + 1) of the step's samples; the last batch of an epoch may be short."""
        for epoch, samples in enumerate(self.samples_per_epoch):
            steps = ceil(samples / self.global_batch)
            if step < steps:
                first = step * self.global_batch
                return epoch, first, min(first + self.global_batch, samples)
            step -= steps
        raise AssertionError("a step beyond the run's end")

    def epoch_ends(self) -> set[int]:
        """Numbers of completed steps at which an epoch is complete."""
        ends = np.cumsum([ceil(samples / self.global_batch) for samples in self.samples_per_epoch])
        return {int(end) for end in ends}


def calendar(plan: Plan, *, global_batch: int, max_steps: int | None, epochs: float) -> Calendar:
    """Runs for `max_steps`, as many epochs as that takes, or for `epochs` (the last one may be a fraction)."""
    samples: list[int] = []
    steps = 0
    if max_steps is not None:
        while steps < max_steps:
            samples.append(plan.num_samples(len(samples)))
            steps += ceil(samples[-1] / global_batch)
        return Calendar(tuple(samples), global_batch, max_steps)
    for epoch in range(ceil(epochs)):
        samples.append(plan.num_samples(epoch))
        whole = ceil(samples[-1] / global_batch)
        share = min(epochs - epoch, 1.0)
        steps += max(round(whole * share), 1) if share < 1 else whole
    return Calendar(tuple(samples), global_batch, steps)


class Feed:
    """Hands out `StepFeed`s, the next one prepared in the background while a step computes."""

    def __init__(self, task: Task, plan: Plan, days: Calendar, layout: Layout, *, seed: int, device: torch.device):
        self.task, self.plan, self.calendar, self.layout = task, plan, days, layout
        self.seed, self.device = seed, device
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._next: tuple[int, Future[StepFeed]] | None = None
        self._ahead = 0

    def take(self, step: int) -> StepFeed:
        step += self._ahead
        if self._next is None or self._next[0] != step:
            self._next = (step, self._pool.submit(self.make, step))
        feed = self._next[1].result()
        following = step + 1
        self._next = (
            (following, self._pool.submit(self.make, following)) if following < self.calendar.total_steps else None
        )
        return feed

    def pass_over(self, steps: int) -> None:
        """Every step shows the data of `steps` steps later, into further epochs where the last one ends."""
        if steps == self._ahead:
            return
        total = self.calendar.total_steps - self._ahead + steps
        self.calendar = calendar(self.plan, global_batch=self.calendar.global_batch, max_steps=total, epochs=1.0)
        self._ahead, self._next = steps, None

    def halve(self, step: int) -> bool:
        """Micro-batches of half the size from the next `take` on, of `step`, which was too large. False where it has
        none of several samples."""
        layout = self.layout
        if layout.budget is None:
            if layout.micro_batch == 1:
                return False
            size = layout.micro_batch // 2
            shape = None if layout.fixed_shape is None else (size, layout.fixed_shape[1])
            self.layout = replace(layout, micro_batch=size, fixed_shape=shape)
        else:
            longest = self._order(step + self._ahead)[2][:: layout.world_size]
            tokens = halved(longest, rows=layout.micro_batch, budget=layout.budget)
            if tokens is None:
                return False
            self.layout = replace(layout, budget=replace(layout.budget, tokens=tokens))
        self._next = None
        return True

    def indices(self, step: int) -> tuple[int, np.ndarray]:
        """(epoch, the indices of its samples) that the step after `step` completed ones shows, on all ranks."""
        epoch, first, last = self.calendar.locate(step + self._ahead)
        return epoch, np.arange(first, last)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def make(self, step: int) -> StepFeed:
        """The step's micro-batches of this rank, on its device."""
        layout = self.layout
        epoch, order, lengths = self._order(step)
        mine = order[layout.rank :: layout.world_size]
        # the first rank's samples are the longest at every place, so what fits there fits everywhere
        bounds = cut(lengths[:: layout.world_size], rows=layout.micro_batch, budget=layout.budget)
        samples = self.plan.samples(epoch, mine)
        made = []
        counts: dict[str, float] = dict.fromkeys(self.task.loss_weights, 0.0)
        for start, stop in pairwise(bounds):
            part = samples[start:stop]
            weight = 1.0 if part else 0.0
            batch = self._collate(part or self.plan.samples(epoch, order[:1]), step)
            if part:
                for name, count in self.task.counts(batch).items():
                    counts[name] += count
            made.append(MicroBatch(self._on_device(batch), weight))
        return StepFeed(made, counts, int(lengths[layout.rank :: layout.world_size].sum()), epoch)

    def _on_device(self, batch: Batch) -> Batch:
        if self.layout.bounds:
            batch = with_bounds(batch)
        if self.device.type == "cuda":  # only pinned memory is copied while the device computes
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _order(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """(epoch, the step's samples of all ranks from the longest on, their lengths)."""
        epoch, first, last = self.calendar.locate(step)
        indices = np.arange(first, last)
        lengths = self.plan.lengths(epoch, indices)
        order = np.argsort(-lengths, kind="stable")
        return epoch, indices[order], lengths[order]

    def _collate(self, samples: Sequence[Sample], step: int) -> Batch:
        if self.layout.fixed_shape is None:
            return self.task.collate(samples, seed=self.seed, step=step)
        height, width = self.layout.fixed_shape
        batch = self.task.collate(samples, seed=self.seed, step=step, width=width)
        return {name: _pad_rows(name, tensor, height) for name, tensor in batch.items()}


def _pad_rows(name: str, tensor: torch.Tensor, height: int) -> torch.Tensor:
    """Repeats the first row up to `height` rows; none of the repeats is supervised."""
    missing = height - tensor.shape[0]
    if missing <= 0:
        return tensor
    blank = tensor[:1].expand(missing, *tensor.shape[1:]).clone()
    if name == "labels":
        blank.fill_(IGNORE)
    return torch.cat([tensor, blank])
