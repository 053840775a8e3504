"""Instruction tuning on alpaca's English rows (--data): LLaMA of 6 layers, width 384; real tokens a second.

The model begins from nothing. Ours is `llmkit finetune` as it chooses by itself: windows of 512 tokens, eight a step.
The peer is trl's SFTTrainer on the same rows and tokenizer: packed into as many windows of that length, in bf16 and in
float32; and padded: with its defaults (bf16, gradient checkpointing), and in float32 without checkpointing.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Side, Target, llmkit, main, peer
from benchmarks.corpus import alpaca, write_jsonl
from benchmarks.runs import afresh, prepared_tokenizer, train, write_recipe

LENGTH, WINDOWS = 512, 8
LLAMA = {
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 1024,
}
PEERS = {"trl_packed": ("--packing",), "trl_packed_float32": ("--packing", "--float32"), "trl_default": (),
         "trl_padded_float32": ("--float32",)}  # fmt: skip
TARGETS = [
    Target("tokens_per_second", over="trl_packed", at_least=2.2),
    Target("tokens_per_second", over="trl_packed_float32", at_least=2.2),
    Target("tokens_per_second", over="trl_default", at_least=9),
    Target("tokens_per_second", over="trl_padded_float32", at_least=9),
    *(Target("peak_memory_bytes", over=name) for name in PEERS),
]


def prepare(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    rows = write_jsonl(place / "alpaca.jsonl", list(alpaca(options.data, options.rows)))
    recipe: dict[str, Any] = {
        "output_dir": str(place / "ours"),
        "task": {"type": "instruction"},
        "model": {"config": LLAMA},
        "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 16_000}},
        "data": {"train": [{"path": str(rows)}], "max_length": LENGTH, "prepared_dir": str(place / "prepared")},
        "training": {
            "max_steps": options.steps,
            "global_batch_size": WINDOWS,
            "learning_rate": 5e-4,
            "torch_compile": options.compile,
        },
        "checkpoint": {"save_minutes": None},
        "logging": {"logging_steps": 1},
    }
    llmkit("preprocess", write_recipe(place / "data.yaml", recipe))
    afresh("finetune", place, recipe)  # fills the compiler's cache
    known = (rows, prepared_tokenizer(place), json.dumps(LLAMA), "--max-length", LENGTH, "--steps", options.steps)
    sides: dict[str, Side] = {"llmkit": partial(train, "finetune", place, recipe)}
    return sides | {name: partial(peer, "sft", *known, *more) for name, more in PEERS.items()}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="ours")


if __name__ == "__main__":
    main("sft", str(__doc__), prepare, TARGETS, add_options)
