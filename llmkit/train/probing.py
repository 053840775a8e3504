"""The life of a run whose model is a probe: features of every training row once, one fit, the files of any other run.

The fit is convex and a function of the data and the recipe, so that a run that was killed simply begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.prepare import Prepared
from llmkit.data.shards import Split
from llmkit.errors import RecipeError
from llmkit.evaluate.split import evaluating, plan_batches
from llmkit.files import free_bytes
from llmkit.models import probe
from llmkit.models.classifier import ClassifierModule
from llmkit.options import Options
from llmkit.recipe.sections import Recipe
from llmkit.report.text import duration
from llmkit.tasks import build_task
from llmkit.tasks.sequence_classification import SequenceClassificationTask
from llmkit.train import hardware
from llmkit.train.build import make_accelerator
from llmkit.train.fitted import Fitted, fit_once
from llmkit.train.job import Job

if TYPE_CHECKING:
    from pathlib import Path

TRIAL_ROWS = 64


def run(job: Job) -> dict[str, Any]:
    """Fits, exports and returns the final results."""

    def fit(parts: tuple[SequenceClassificationTask, ClassifierModule], directory: Path) -> Fitted:
        (task, module), train = parts, job.prepared.splits["train"]
        with job.console.progress("features", None, "rows") as advance:
            inputs = all_features(task, module, train, lambda n: advance(n, f"of {train.num_rows:,}"))
        steps = probe.fit(module, inputs, task.labels.ids(train, "train"), seed=job.recipe.seed)
        job.console.note(f"fitted on {inputs.shape[0]:,} rows of {inputs.shape[1]:,} features in {steps} iterations")
        _, settled = task.settle(module)
        resolved = {**settled, "probe_iterations": steps, "max_length": task.network.max_length}
        return Fitted(task, module, resolved, train.num_tokens, {})

    return fit_once(job, "a probe", "model.probe", lambda: _parts(job.recipe, job.prepared, job.options), fit)


def _parts(recipe: Recipe, prepared: Prepared, options: Options) -> tuple[SequenceClassificationTask, ClassifierModule]:
    """The task and its network, whose head is known to be one that a probe fits. Raises ModelError, RecipeError."""
    task = build_task(recipe, prepared.tokenizer_dir, allow_remote_code=options.trust_remote_code)
    assert isinstance(task, SequenceClassificationTask), "the recipe's checks refuse others"
    task.prepare(prepared.splits["train"], prepared.splits.get("validation"))
    if task.labels.problem_type == "regression":
        raise RecipeError("logistic_regression learns classes, and the labels are numbers", key="model.probe")
    module = task.build_model()
    assert isinstance(module, ClassifierModule)
    probe.head_of(module)
    return task, module.to(make_accelerator([], recipe.output_dir, None).device)


def all_features(
    task: SequenceClassificationTask, module: ClassifierModule, split: Split, told: Callable[[int], None]
) -> np.ndarray:
    """(N, H) float64 features of every row, in the order of the rows."""
    plan = task.eval_plan(split)
    device = next(module.parameters()).device
    found: np.ndarray | None = None
    with evaluating(module):
        for indices in plan_batches(plan, batch_size=None, device=device.type):
            batch = task.collate(plan.samples(0, indices), seed=0, step=0)
            part = probe.features(module, {name: tensor.to(device) for name, tensor in batch.items()}).numpy()
            found = np.empty((split.num_rows, part.shape[1])) if found is None else found
            found[indices] = part
            told(len(indices))
    assert found is not None, "there are training rows"
    return found


def try_once(recipe: Recipe, options: Options, prepared: Prepared, scratch: Path, exact: bool) -> dict[str, Any]:
    """`--dry-run`: features of the longest rows, and the time that all of them take."""
    task, module = _parts(recipe, prepared, options)
    train = prepared.splits["train"]
    plan = task.eval_plan(train)
    indices = np.argsort(-np.asarray(train.lengths()), kind="stable")[:TRIAL_ROWS]
    started = time.perf_counter()
    with evaluating(module):
        width = probe.features(module, task.collate(plan.samples(0, indices), seed=0, step=0)).shape[1]
    seconds = (time.perf_counter() - started) / len(indices) * train.num_rows
    return {
        "rows": train.num_rows,
        "rows_are_exact": exact,
        "features": width,
        "parameters": sum(p.numel() for p in module.parameters()),
        "max_length": task.network.max_length,
        "estimated_seconds": round(seconds, 1),
        "peak_memory_bytes": hardware.peak_memory(next(module.parameters()).device) + 8 * width * train.num_rows,
        "checkpoint_bytes": sum(p.numel() * p.element_size() for p in module.parameters()),
        "free_disk_bytes": free_bytes(recipe.output_dir),
    }


def run_lines(run: dict[str, Any]) -> list[str]:
    """The run's part of the `--dry-run` report for people."""
    about = "" if run["rows_are_exact"] else " in the sample; the whole data has more"
    return [
        f"  parameters         {run['parameters']:,}, frozen but for the head",
        f"  rows               {run['rows']:,}{about}, {run['features']:,} features each",
        f"  time               at most {duration(run['estimated_seconds'])} for the features, in one process",
        f"  peak memory        about {run['peak_memory_bytes'] / 1e9:.2f} GB",
    ]
