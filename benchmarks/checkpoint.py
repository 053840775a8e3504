"""Checkpoints: what saving beside training costs a step, for GPT-2 of 17M parameters saved every 50 steps (203 MB).

Two runs that differ in `checkpoint.save_steps` alone. `step_seconds` is the mean of the steady steps, the waits for
saves with them. `mean_over_median` holds a run's steps against its own middle one, so that the machine's drift from one
run to the next stays out: a save shows in the mean and not in the median.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Figures, Side, Target, llmkit, main
from benchmarks.corpus import write_stdlib
from benchmarks.runs import afresh, language_model, step_seconds, train, write_recipe

WARM = 8
"""Steps left out: a single slow one would stand in the mean."""
TARGETS = [
    Target("mean_over_median", over="no_saves", at_most=1.02),
    Target("step_seconds", over="no_saves"),
    Target("peak_memory_bytes", over="no_saves"),
]


def run(place: Path, recipe: dict[str, Any]) -> Figures:
    figures = train("pretrain", place, recipe)
    steady = step_seconds(Path(recipe["output_dir"]))[WARM:]
    mean = statistics.mean(steady)
    return {**figures, "step_seconds": mean, "mean_over_median": mean / statistics.median(steady)}


def prepare(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    write_stdlib(place / "stdlib.jsonl")
    sides: dict[str, Side] = {}
    for name, every in (("llmkit", options.save_steps), ("no_saves", None)):
        recipe = language_model(place, name, steps=options.steps, global_batch_size=options.batch)
        recipe["checkpoint"]["save_steps"] = every
        sides[name] = partial(run, place, recipe)
    llmkit("preprocess", write_recipe(place / "data.yaml", recipe))
    afresh("pretrain", place, language_model(place, "warm", steps=2, global_batch_size=options.batch))
    return sides


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=108)
    parser.add_argument("--save-steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8, help="windows of 256 tokens a step")


if __name__ == "__main__":
    main("checkpoint", str(__doc__), prepare, TARGETS, add_options)
