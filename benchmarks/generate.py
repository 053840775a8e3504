"""Generation: prompts of 16 to 512 tokens, 64 new ones each, greedy, by a GPT-2 of 17M parameters.

Ours is `llmkit generate --input`, with the rate that it prints; the peer is `model.generate` in input order, 32 at a
time. Both clocks start when the model is loaded; `process_seconds` is the whole process. The model has learnt for some
steps, so that its probabilities are a model's; `same_as_trainer` is the share of equal completions: what differs are
ties of a greedy choice that rounding breaks.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Figures, Side, Target, llmkit, main, peer
from benchmarks.corpus import stdlib_texts, write_jsonl, write_stdlib
from benchmarks.runs import GPT2, afresh, language_model, write_recipe

NEW, SHORTEST, LONGEST = 64, 16, 512
TARGETS = [
    Target("new_tokens_per_second", over="generate", at_least=2.5),
    Target("process_seconds", over="generate"),
    Target("peak_memory_bytes", over="generate"),
    Target("same_completions", side="generate"),
]


def write_prompts(path: Path, tokenizer_dir: Path, number: int) -> Path:
    """Beginnings of the standard library's files, their lengths uniform."""
    from transformers import AutoTokenizer

    draw = random.Random(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_dir)
    rows: list[dict[str, Any]] = []
    texts = [text for text in stdlib_texts() if len(text) > 4 * LONGEST]
    while len(rows) < number:
        text = draw.choice(texts)
        start = draw.randrange(len(text) - 3 * LONGEST)
        ids = tokenizer(text[start : start + 8 * LONGEST], add_special_tokens=False, verbose=False)["input_ids"]
        rows.append({"prompt": tokenizer.decode(ids[: draw.randint(SHORTEST, LONGEST)])})
    return write_jsonl(path, rows)


def ours(recipe: Path, prompts: Path, out: Path) -> Figures:
    done = llmkit("generate", recipe, "--input", prompts, "--output", out, "--overwrite")
    (said,) = re.findall(r"([\d,]+) tokens in ([\d.,]+) s", done.stderr)
    tokens, seconds = (float(number.replace(",", "")) for number in said)
    return {
        "new_tokens_per_second": tokens / seconds,
        "new_tokens": tokens,
        "process_seconds": done.seconds,
        "peak_memory_bytes": done.peak_memory_bytes,
    }


def theirs(model: Path, prompts: Path, mine: Path, out: Path) -> Figures:
    figures = peer("generate", model, prompts, out, "--new", NEW)
    texts = [
        [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()] for path in (mine, out)
    ]
    same = sum(a == b for a, b in zip(*texts, strict=True)) / len(texts[0])
    return {**figures, "same_completions": same}


def prepare(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    write_stdlib(place / "stdlib.jsonl")
    recipe = language_model(place, "model", steps=options.steps, torch_compile=False)
    recipe["model"]["config"] = {**GPT2, "n_positions": LONGEST + 2 * NEW}
    recipe["generation"] = {"max_new_tokens": NEW}
    afresh("pretrain", place, recipe)
    path, model = write_recipe(place / "generate.yaml", recipe), place / "model/model"
    prompts = write_prompts(place / "prompts.jsonl", model, options.prompts)
    mine = place / "ours.jsonl"
    return {
        "llmkit": partial(ours, path, prompts, mine),
        "generate": partial(theirs, model, prompts, mine, place / "theirs.jsonl"),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--steps", type=int, default=20, help="of the model's training")


if __name__ == "__main__":
    main("generate", str(__doc__), prepare, TARGETS, add_options)
