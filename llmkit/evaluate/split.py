"""Scores a task on a split: the same code for validation during training and for `llmkit evaluate`.

Samples are sorted by length and batched under a budget of tokens, so that padding is little; each process takes every
n-th batch, and the predictions of all are gathered, each sample once. Nothing here touches a random stream or leaves a
mode changed: training goes on bit for bit as if it had not been evaluated.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from llmkit.evaluate.subset import Subset, choose_rows
from llmkit.tasks.base import Evaluated, Plan, Prediction, Sample, Task

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

    from llmkit.data.shards import Split

Progress = Callable[[int, int], None]
"""Called with (samples done, samples to do) by this process after each batch."""

CPU_BATCH_TOKENS = 2048
DEVICE_BATCH_TOKENS = 32768
MAX_BATCH_SAMPLES = 256


def evaluate_split(
    task: Task,
    module: nn.Module,
    split: Split,
    accelerator: Accelerator | None,
    *,
    batch_size: int | None = None,
    max_samples: int | None = None,
    bootstrap: bool = False,
    progress: Progress | None = None,
    before_batch: Callable[[], None] | None = None,
) -> Evaluated:
    """Metrics of `module` on `split`, the same on every process. `module` is the unwrapped TaskModule on its device.

    batch_size: sequences a batch and process; None: as many as a budget of tokens allows.
    max_samples: at most that many records, always the same ones (chosen by a hash). bootstrap: with 95% intervals.
    before_batch: called on all processes together; one that raises on all of them gives the evaluation up.
    """
    predictions = predict_split(
        task,
        module,
        split,
        accelerator,
        batch_size=batch_size,
        max_samples=max_samples,
        progress=progress,
        before_batch=before_batch,
    )
    return task.finalize(predictions, split, bootstrap=bootstrap)


def predict_split(
    task: Task,
    module: nn.Module,
    split: Split,
    accelerator: Accelerator | None,
    *,
    batch_size: int | None = None,
    max_samples: int | None = None,
    progress: Progress | None = None,
    before_batch: Callable[[], None] | None = None,
) -> list[Prediction]:
    """Predictions of all processes on every process, in the order of their rows. Parameters as `evaluate_split`."""
    import torch

    subset = None
    if max_samples is not None and max_samples < split.num_rows:
        subset = Subset(split, _records(split, max_samples))
    plan = task.eval_plan(split if subset is None else cast("Split", subset))
    device = accelerator.device if accelerator is not None else module_device(module)
    batches = plan_batches(plan, batch_size=batch_size, device=device.type)
    rank = accelerator.process_index if accelerator is not None else 0
    world = accelerator.num_processes if accelerator is not None else 1
    predictions: list[Prediction] = []
    total, done = sum(len(batch) for batch in batches[rank::world]), 0
    autocast = accelerator.autocast if accelerator is not None else nullcontext
    with evaluating(module), torch.inference_mode(), autocast():
        for turn in range(0, len(batches), world):
            if before_batch is not None:
                before_batch()
            # a process without a batch in the last turn runs the first one again: a sharded model needs all of them
            mine = turn + rank < len(batches)
            indices = batches[turn + rank if mine else 0]
            found = _predict(task, module, plan.samples(0, indices), device)
            if mine:
                predictions += found
                done += len(indices)
                if progress is not None:
                    progress(done, total)
    if subset is not None:
        predictions = [replace(found, row=int(subset.rows[found.row])) for found in predictions]
    return _gather(predictions, world)


def _records(split: Split, wanted: int) -> NDArray[np.int64]:
    """The rows of at most `wanted` records, whole: bytes stand on a record's first row only, its windows follow."""
    numbers = np.maximum(np.cumsum(np.asarray(split.bytes_of()) > 0) - 1, 0)
    count = int(numbers[-1]) + 1
    return np.flatnonzero(np.isin(numbers, choose_rows(count, min(wanted, count))))


def plan_batches(plan: Plan, *, batch_size: int | None, device: str) -> list[NDArray[np.int64]]:
    """Batches of sample indices, longest first, so that too large a batch is found at once."""
    indices = np.arange(plan.num_samples(0), dtype=np.int64)
    lengths = plan.lengths(0, indices)
    order = np.argsort(-lengths, kind="stable")
    if batch_size is not None:
        return [indices[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    budget = CPU_BATCH_TOKENS if device == "cpu" else DEVICE_BATCH_TOKENS
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = min(MAX_BATCH_SAMPLES, max(1, budget // longest))
        batches.append(indices[order[start : start + size]])
        start += size
    return batches


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and untouched random streams (Python, numpy, torch on the CPU and on the module's device); every
    submodule gets the mode back that it had."""
    import torch

    training = [part for part in module.modules() if part.training]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    device = module_device(module)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        module.eval()
        try:
            yield
        finally:
            for part in training:
                part.training = True
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def module_device(module: nn.Module) -> torch.device:
    """Where the module's first parameter lives; a module without parameters is on the CPU."""
    import torch

    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _predict(task: Task, module: nn.Module, samples: list[Sample], device: torch.device) -> list[Prediction]:
    """One batch; halved as often as needed where the device's memory does not hold it."""
    import torch

    try:
        batch = {name: tensor.to(device) for name, tensor in task.collate(samples, seed=0, step=0).items()}
        return task.predict(module, batch, samples)
    except torch.OutOfMemoryError:
        if len(samples) == 1:
            raise
    torch.cuda.empty_cache()  # outside `except`: the traceback held the batch's tensors
    half = len(samples) // 2
    return _predict(task, module, samples[:half], device) + _predict(task, module, samples[half:], device)


def _gather(predictions: list[Prediction], world: int) -> list[Prediction]:
    if world > 1:
        import torch.distributed as dist

        parts: list[Any] = [None] * world
        dist.all_gather_object(parts, predictions)
        predictions = [prediction for part in parts for prediction in part]
    return sorted(predictions, key=lambda prediction: prediction.row)
