"""Evaluation: the perplexity of a GPT-2 of 17M parameters, and a classifier of 22M on SST-2 (with --data).

Ours is `llmkit evaluate` by the time that it tells, intervals by bootstrap with it; the peer is `Trainer.evaluate` with
its default settings and its own clock. Neither clock holds imports, loading or tokenising; `process_seconds` is the
whole process. Both score the same text and rows.
"""

from __future__ import annotations

import argparse
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Figures, Side, Skip, Target, llmkit, main, peer
from benchmarks.corpus import encoder, sst2, stdlib_texts, write_jsonl, write_stdlib
from benchmarks.runs import afresh, language_model, write_recipe

CLASSES = {"type": "sequence_classification"}
TARGETS = [
    Target("megabytes_per_second", side="llmkit_lm", over="trainer_lm", at_least=1.5),
    Target("megabytes_per_second", side="llmkit_classes", over="trainer_classes", at_least=1.5),
    Target("process_seconds", side="llmkit_lm", over="trainer_lm"),
    Target("process_seconds", side="llmkit_classes", over="trainer_classes"),
]


def ours(recipe: Path, out: Path, test: Path, metrics: tuple[str, ...]) -> Figures:
    done = llmkit("evaluate", recipe)
    found = json.loads((out / "evaluation/results.json").read_text())["metrics"]
    (seconds,) = re.findall(r"items scored in ([\d.]+) s", done.stderr)
    return {
        "megabytes_per_second": test.stat().st_size / 1e6 / float(seconds),
        **{name: found[name]["value"] for name in metrics},
        "process_seconds": done.seconds,
        "peak_memory_bytes": done.peak_memory_bytes,
    }


def theirs(task: str, model: Path, test: Path) -> Figures:
    figures = peer("evaluate", task, model, test)
    return {"megabytes_per_second": test.stat().st_size / 1e6 / figures.pop("seconds"), **figures}


def causal_lm(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    write_stdlib(place / "stdlib.jsonl")
    test = place / "test.jsonl"
    texts = stdlib_texts()
    share = max(sum(map(len, texts)) // options.bytes, 1)
    write_jsonl(test, [{"text": text} for text in texts[::share]])
    recipe = language_model(place, "lm", steps=options.steps, torch_compile=False)
    recipe["data"]["test"] = [{"path": str(test)}]
    afresh("pretrain", place, recipe)
    path, out = write_recipe(place / "lm.yaml", recipe), place / "lm"
    return {
        "llmkit_lm": partial(ours, path, out, test, ("perplexity",)),
        "trainer_lm": partial(theirs, "causal_lm", out / "model", test),
    }


def classes(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    """The encoder after some steps on SST-2's dev, scored on its train."""
    learnt = write_jsonl(place / "classes-train.jsonl", sst2(options.data, "dev"))
    test = write_jsonl(place / "classes-test.jsonl", sst2(options.data, "train")[: options.rows])
    recipe: dict[str, Any] = {
        "output_dir": str(place / "classes"),
        "task": CLASSES,
        "model": {"name_or_path": str(encoder())},
        "data": {
            "train": [{"path": str(learnt), "label_names": ["0", "1"]}],
            "test": [{"path": str(test), "label_names": ["0", "1"]}],
            "max_length": 128,
            "prepared_dir": str(place / "classes-prepared"),
        },
        "training": {"max_steps": options.steps, "global_batch_size": 32, "learning_rate": 1e-4},
        "logging": {"logging_steps": 1},
    }
    afresh("finetune", place, recipe)
    path, out = write_recipe(place / "classes.yaml", recipe), place / "classes"
    return {
        "llmkit_classes": partial(ours, path, out, test, ("accuracy",)),
        "trainer_classes": partial(theirs, "classification", out / "model", test),
    }


def prepare(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    sides = causal_lm(place, options)
    try:
        return sides | classes(place, options)
    except Skip as reason:
        return sides | {"llmkit_classes": partial(skip, str(reason))}


def skip(reason: str) -> Figures:
    raise Skip(reason)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bytes", type=int, default=400_000, help="of text that the language model scores")
    parser.add_argument("--rows", type=int, default=4000, help="that the classifier scores")
    parser.add_argument("--steps", type=int, default=20, help="of the models' training")


if __name__ == "__main__":
    main("evaluate", str(__doc__), prepare, TARGETS, add_options)
