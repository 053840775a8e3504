"""One step and one validation batch of a built run, for the preflight's time and memory."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator

from llmkit.data.shards import Split
from llmkit.evaluate.split import evaluate_split
from llmkit.recipe.sections import Recipe
from llmkit.train.build import Parts
from llmkit.train.micro_batch import backward, longest, longest_batch


def longest_step(recipe: Recipe, parts: Parts, accelerator: Accelerator) -> float:
    """Seconds of a whole step as estimated from its longest micro-batch, which is trained on twice."""
    micro = parts.choices.rows_of(longest(parts.plan))
    batch = longest_batch(parts.task, parts.plan, micro, seed=recipe.seed, device=accelerator.device)
    parts.module.train()
    seconds = 0.0
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        backward(parts.module, parts.task, batch, parts.autocast)
        for optimizer in parts.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    per_rank = parts.calendar.global_batch / accelerator.num_processes
    return float(seconds * per_rank / micro)


def validate_once(recipe: Recipe, parts: Parts, validation: Split | None, accelerator: Accelerator) -> float | None:
    """Seconds of validation on its first rows by hash; None without any."""
    if validation is None or validation.num_rows == 0:
        return None
    started = time.perf_counter()
    with parts.autocast():
        evaluate_split(
            parts.task,
            parts.module,
            validation,
            accelerator,
            batch_size=recipe.evaluation.per_device_eval_batch_size,
            max_samples=min(recipe.evaluation.max_samples or 32, 32),
            bootstrap=False,
        )
    return time.perf_counter() - started
