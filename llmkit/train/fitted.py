"""The life of a run whose model is made at one go: no optimiser, steps or checkpoints; the same files as any other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from llmkit.data.prepare import Prepared
from llmkit.errors import RecipeError
from llmkit.evaluate.split import evaluate_split
from llmkit.recipe.sections import Recipe
from llmkit.tasks.base import Task
from llmkit.train import machine, metricslog
from llmkit.train.job import Job, finish
from llmkit.train.rundir import METRICS, RunDirectory

T = TypeVar("T")


@dataclass(frozen=True)
class Fitted:
    """A model made at one go. results: what stands beside the metrics."""

    task: Task
    module: nn.Module
    resolved: dict[str, Any]
    tokens: int
    results: dict[str, Any]


def fit_once(job: Job, what: str, key: str, make: Callable[[], T], fit: Callable[[T, Path], Fitted]) -> dict[str, Any]:
    """The life of a run without steps: what was killed begins anew, and gives the same model. A signal ends it at once.

    what: for messages, such as "an n-gram model". `make` refuses what cannot be fitted before anything is written.
    """
    if job.directory is None:
        raise RecipeError(f"{what} is made in one process; start one", key=key)
    parts = make()
    if not job.is_new:
        job.console.note(f"{what} is not resumed: it begins anew, and comes out the same")
    directory = job.begin()
    directory.open_segment(0, {"versions": machine.versions()})
    made = fit(parts, directory.path)
    directory.update(resolved=made.resolved, tokens=made.tokens)
    results = validate(job.recipe, made.task, made.module, job.prepared, directory, made.tokens)
    rows = "training" if "train_loss" in results else "validation"
    job.console.note(f"loss {results['loss']:.4f} nats on the {rows} rows")
    results |= made.results
    return finish(directory, job.console, job.recipe, made.task, made.module, results, steps=0, tokens=made.tokens)


def validate(
    recipe: Recipe, task: Task, module: nn.Module, prepared: Prepared, directory: RunDirectory, tokens: int
) -> dict[str, Any]:
    """Metrics of the held-out rows, or of the training rows where there are none; logged, and returned flat."""
    validation = prepared.splits.get("validation")
    held_out = validation is not None and validation.num_rows > 0
    section = recipe.evaluation
    started = time.perf_counter()
    evaluated = evaluate_split(
        task,
        module,
        validation if validation is not None and held_out else prepared.splits["train"],
        None,
        batch_size=section.per_device_eval_batch_size,
        max_samples=section.max_samples,
    )
    chosen = section.metrics
    metrics = {k: m.value for k, m in evaluated.metrics.items() if chosen is None or k == "loss" or k in chosen}
    metricslog.cut_back(directory.path / METRICS, -1)
    log = metricslog.MetricsLog(directory.path / METRICS)
    seconds = round(time.perf_counter() - started, 3)
    split = "validation" if held_out else "train"
    log.write({"step": 0, "split": split, **metrics, "tokens": tokens, "seconds": seconds})
    log.close()
    train = {} if held_out else {"train_loss": metrics["loss"]}
    return {**metrics, **train, "steps": 0, "tokens": tokens}
