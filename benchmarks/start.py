"""Starting: `llmkit --help`, a mistake in a recipe, and the first training step of a prepared run, in seconds.

`first_step` is the time from the command to the first line of metrics.jsonl, for GPT-2 of 17M parameters on one window
of 256 tokens, data prepared and caches warm, not compiled and compiled; `beyond_imports` is what is left of it without
the time of importing torch, accelerate and transformers' GPT-2 in a process of their own (`import transformers` alone
imports no model).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.common import ROOT, Figures, Side, Target, llmkit, main, process
from benchmarks.corpus import write_stdlib
from benchmarks.runs import language_model, write_recipe

TARGETS = [
    Target("help_seconds", at_most=0.3),
    Target("recipe_error_seconds", at_most=0.5),
    Target("first_step_beyond_imports", at_most=1.0),
    Target("first_step_compiled_beyond_imports", at_most=1.0),
]
IMPORTS = "import torch, accelerate; from transformers import GPT2LMHeadModel"


def first_step(recipe: Path, out: Path) -> float:
    """Seconds until the run has logged a step; it is then let run to its end."""
    shutil.rmtree(out, ignore_errors=True)
    log = out / "metrics.jsonl"
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "llmkit", "pretrain", str(recipe)], cwd=ROOT, stderr=subprocess.PIPE
    )
    while child.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    _, stderr = child.communicate()
    if child.returncode:
        raise SystemExit(stderr.decode()[-3000:])
    return seconds


def ours(place: Path, recipes: dict[str, Path]) -> Figures:
    imports = process(sys.executable, "-c", IMPORTS).seconds
    figures = {
        "help_seconds": llmkit("--help").seconds,
        "recipe_error_seconds": llmkit("pretrain", recipes["wrong"], status=2).seconds,
        "imports_seconds": imports,
    }
    for name in ("first_step", "first_step_compiled"):
        seconds = first_step(recipes[name], place / name)
        figures |= {f"{name}_seconds": seconds, f"{name}_beyond_imports": seconds - imports}
    return figures


def prepare(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    write_stdlib(place / "stdlib.jsonl")
    recipes = {}
    for name, compiled in (("first_step", False), ("first_step_compiled", True)):
        recipe = language_model(place, name, steps=2, global_batch_size=1, torch_compile=compiled)
        recipes[name] = write_recipe(place / f"{name}.yaml", recipe)
    recipes["wrong"] = write_recipe(place / "wrong.yaml", {**recipe, "trainig": {}})
    side = partial(ours, place, recipes)
    side()  # prepares the data and fills the caches
    return {"llmkit": side}


if __name__ == "__main__":
    main("start", str(__doc__), prepare, TARGETS)
