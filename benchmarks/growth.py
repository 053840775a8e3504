"""Growth: preprocessing 1, 4 and 16 times a corpus, and training on 1 and 4 times the documents a step.

Time should be a straight line and memory flat. `off_the_line` is how far the time of 4 corpora is from the line through
those of 1 and 16; `memory_growth` is the peak of 16 over that of 4; `token_time_growth` is the time of a token in a
step of four times the documents over that in the smaller one.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from benchmarks.common import Figures, Side, Target, llmkit, main
from benchmarks.corpus import write_stdlib
from benchmarks.preprocess import ours as preprocess
from benchmarks.preprocess import recipe_of, trained_tokenizer
from benchmarks.runs import language_model, train, write_recipe

SIZES = (1, 4, 16)
TARGETS = [
    Target("off_the_line", side="preprocess", at_most=0.05),
    Target("memory_growth", side="preprocess", at_most=1.05),
    Target("token_time_growth", side="pretrain", at_most=1.05),
]


def preprocessing(place: Path, corpora: dict[int, Path], tokenizer: Path) -> Figures:
    figures: Figures = {}
    for size, jsonl in corpora.items():
        recipe = recipe_of(place, jsonl, {"name_or_path": str(tokenizer)})
        found = preprocess(place, recipe, jsonl.stat().st_size)
        figures |= {f"{name}_{size}x": found[name] for name in ("seconds", "peak_memory_bytes")}
    one, four, sixteen = (figures[f"seconds_{size}x"] for size in SIZES)
    line = one + (sixteen - one) * (SIZES[1] - SIZES[0]) / (SIZES[2] - SIZES[0])
    growth = figures["peak_memory_bytes_16x"] / figures["peak_memory_bytes_4x"]
    return {**figures, "off_the_line": abs(four - line) / line, "memory_growth": growth}


def training(place: Path, batch: int, steps: int) -> Figures:
    rates = {}
    for size in SIZES[:2]:
        recipe = language_model(place, "train", steps=steps, global_batch_size=batch * size)
        rates[size] = train("pretrain", place, recipe)
    figures = {f"tokens_per_second_{size}x": found["tokens_per_second"] for size, found in rates.items()}
    figures |= {f"peak_memory_bytes_{size}x": found["peak_memory_bytes"] for size, found in rates.items()}
    return {**figures, "token_time_growth": rates[1]["tokens_per_second"] / rates[4]["tokens_per_second"]}


def prepare(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    tokenizer = trained_tokenizer(place)
    corpora = {size: write_stdlib(place / f"corpus-{size}.jsonl", size * options.copies) for size in SIZES}
    own = place / "training"
    own.mkdir(exist_ok=True)
    write_stdlib(own / "stdlib.jsonl")
    llmkit("preprocess", write_recipe(own / "data.yaml", language_model(own, "data")))
    return {
        "preprocess": partial(preprocessing, place, corpora, tokenizer),
        "pretrain": partial(training, own, options.batch, options.steps),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--copies", type=int, default=16, help="of the standard library in the smallest corpus")
    parser.add_argument("--batch", type=int, default=8, help="windows of 256 tokens in the smaller step")
    parser.add_argument("--steps", type=int, default=12)


if __name__ == "__main__":
    main("growth", str(__doc__), prepare, TARGETS, add_options)
