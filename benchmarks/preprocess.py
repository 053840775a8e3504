"""Preprocessing: the standard library as JSON lines, repeated to 2 GB (--copies), to a prepared dataset.

Ours is `llmkit preprocess`, by the time that it tells: hashing the sources, proving the fast engine equal to the exact
one, encoding, shards with checksums, fsync and publishing. The peers are `datasets.map` with joining and cutting into
blocks, on a tenth of the corpus (--map-copies: its rate is the same, and a round of it takes minutes), and gigatoken
alone, which writes nothing. Imports are in our time where `preprocess` does them after it has read the recipe, in no
peer's.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Figures, Side, Target, llmkit, main, peer
from benchmarks.corpus import write_stdlib
from benchmarks.runs import prepared_tokenizer, write_recipe

TARGETS = [
    Target("megabytes_per_second", over="datasets_map", at_least=60),
    Target("megabytes_per_second", over="gigatoken_alone", at_least=0.5),
    Target("peak_memory_bytes", at_most=600e6),
]


def recipe_of(place: Path, jsonl: Path, tokenizer: dict[str, Any]) -> Path:
    """A recipe that prepares `jsonl` in `place`/prepared."""
    recipe = {
        "output_dir": str(place / "run"),
        "task": {"type": "causal_lm"},
        "model": {"config": {"model_type": "gpt2"}},
        "tokenizer": tokenizer,
        "data": {"train": [{"path": str(jsonl)}], "prepared_dir": str(place / "prepared")},
    }
    return write_recipe(place / "preprocess.yaml", recipe)


def ours(place: Path, recipe: Path, size: int) -> Figures:
    """Prepares from nothing; what is made is removed by the next round."""
    shutil.rmtree(place / "prepared", ignore_errors=True)
    done = llmkit("preprocess", recipe, "--json")
    seconds = done.last_json()["seconds"]
    return {
        "megabytes_per_second": size / seconds / 1e6,
        "seconds": seconds,
        "process_seconds": done.seconds,
        "peak_memory_bytes": done.peak_memory_bytes,
    }


def trained_tokenizer(place: Path) -> Path:
    """A tokenizer of 16,000 entries, trained on one copy of the standard library."""
    own = place / "tokenizer-training"
    own.mkdir(exist_ok=True)
    jsonl = write_stdlib(own / "stdlib.jsonl")
    llmkit("preprocess", recipe_of(own, jsonl, {"train": {"algorithm": "bpe", "vocab_size": 16_000}}))
    return prepared_tokenizer(own)


def prepare(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    tokenizer = trained_tokenizer(place)
    jsonl = write_stdlib(place / "corpus.jsonl", options.copies)
    part = write_stdlib(place / "part.jsonl", options.map_copies)
    recipe = recipe_of(place, jsonl, {"name_or_path": str(tokenizer)})
    return {
        "llmkit": partial(ours, place, recipe, jsonl.stat().st_size),
        "gigatoken_alone": partial(peer, "gigatoken_alone", jsonl, tokenizer),
        "datasets_map": partial(peer, "datasets_map", part, tokenizer),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--copies", type=int, default=174, help="of the standard library, 11.7 MB each")
    parser.add_argument("--map-copies", type=int, default=17, help="the same, for datasets.map")


if __name__ == "__main__":
    main("preprocess", str(__doc__), prepare, TARGETS, add_options)
