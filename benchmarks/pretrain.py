"""Pretraining: GPT-2 of 6 layers, width 384, context 256, batch 16, vocabulary 16,000, on the standard library.

Ours is `llmkit pretrain` as it chooses by itself, compiled; the peer is transformers' Trainer in float32, in bf16 and
compiled. Rates are of the steady steps, memory is of the process tree. `share_of_*` is 6 x parameters x tokens/s over
the matrix rate measured in the same round, in float32 and in the precision that ran.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from benchmarks.common import Figures, Side, Target, llmkit, main, peer
from benchmarks.corpus import write_stdlib
from benchmarks.runs import (
    GPT2,
    NO_DROPOUT,
    afresh,
    language_model,
    num_parameters,
    prepared_tokenizer,
    train,
    write_recipe,
)

PEERS = {"trainer": (), "trainer_bf16": ("--bf16",), "trainer_compile": ("--compile",),
         "trainer_bf16_compile": ("--bf16", "--compile")}  # fmt: skip
TARGETS = [
    *(Target("tokens_per_second", over=name, at_least=1.45) for name in PEERS),
    *(Target("peak_memory_bytes", over=name) for name in PEERS),
    Target("share_of_float32_rate"),
    Target("share_of_own_rate"),
]


def ours(place: Path, options: argparse.Namespace) -> Figures:
    rates = peer("matrix_rate")
    recipe = language_model(place, "ours", options.vocabulary, options.steps)
    figures = train("pretrain", place, recipe)
    used = 6 * num_parameters(place / "ours/model") * figures["tokens_per_second"]
    own = rates["bfloat16" if figures["bf16"] else "float32"]
    shares = {"share_of_float32_rate": used / rates["float32"], "share_of_own_rate": used / own}
    return {**figures, **shares, "float32_rate": rates["float32"], "bfloat16_rate": rates["bfloat16"]}


def prepare(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    jsonl = write_stdlib(place / "stdlib.jsonl")
    llmkit("preprocess", write_recipe(place / "data.yaml", language_model(place, "data", options.vocabulary)))
    afresh("pretrain", place, language_model(place, "warm", options.vocabulary, 2))  # fills the compiler's cache
    known = (jsonl, prepared_tokenizer(place), json.dumps({**GPT2, **NO_DROPOUT}), "--steps", options.steps)
    sides: dict[str, Side] = {"llmkit": partial(ours, place, options)}
    return sides | {name: partial(peer, "pretrain", *known, *PEERS[name]) for name in options.peers}


def add_options(parser: argparse.ArgumentParser, vocabulary: int = 16_000, steps: int = 12) -> None:
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--vocabulary", type=int, default=vocabulary)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["trainer", "trainer_bf16_compile"])


if __name__ == "__main__":
    main("pretrain", str(__doc__), prepare, TARGETS, add_options)
