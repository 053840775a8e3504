"""Fine-tuning a pretrained encoder of 22M parameters on SST-2 (--data): samples a second, and accuracy on dev.

Ours is `llmkit finetune` as it chooses by itself; the peer is transformers' Trainer with the same rows, batch, learning
rate and schedule, in float32 (its default) and in bf16. One pass over the rows; rates leave out the first steps,
`training_seconds` leaves out nothing.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Figures, Side, Target, llmkit, main, peer
from benchmarks.corpus import encoder, sst2, write_jsonl
from benchmarks.runs import step_seconds, train, write_recipe

BATCH, LEARNING_RATE, MAX_LENGTH, WARMUP = 32, 1e-4, 128, 0.05
WARM = 16
"""Steps left out of the rates: batches of many lengths come before a compiler has seen them all."""
PEERS = {"trainer": (), "trainer_bf16": ("--bf16",)}
TARGETS = [
    *(Target("samples_per_second", over=name, at_least=1.5) for name in PEERS),
    *(Target("training_seconds", over=name) for name in PEERS),
    *(Target("accuracy", over=name, at_least=0.99) for name in PEERS),
    *(Target("peak_memory_bytes", over=name) for name in PEERS),
]


def ours(place: Path, recipe: dict[str, Any]) -> Figures:
    figures = train("finetune", place, recipe)
    out = Path(recipe["output_dir"])
    seconds = step_seconds(out)
    accuracy = json.loads((out / "results.json").read_text())["accuracy"]
    rate = BATCH * len(seconds[WARM:]) / sum(seconds[WARM:])
    return {"samples_per_second": rate, "training_seconds": sum(seconds), "accuracy": accuracy, **figures}


def prepare(place: Path, options: argparse.Namespace) -> dict[str, Side]:
    learnt = write_jsonl(place / "train.jsonl", sst2(options.data, "train")[: options.rows // BATCH * BATCH])
    held_out = write_jsonl(place / "dev.jsonl", sst2(options.data, "dev"))
    recipe: dict[str, Any] = {
        "output_dir": str(place / "ours"),
        "task": {"type": "sequence_classification"},
        "model": {"name_or_path": str(encoder())},
        "data": {
            "train": [{"path": str(learnt), "label_names": ["0", "1"]}],
            "validation": [{"path": str(held_out), "label_names": ["0", "1"]}],
            "max_length": MAX_LENGTH,
            "prepared_dir": str(place / "prepared"),
        },
        "training": {
            "num_train_epochs": 1,
            "global_batch_size": BATCH,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "linear",
            "warmup_ratio": WARMUP,
            "weight_decay": 0.0,
            "adam_beta2": 0.999,
        },
        "checkpoint": {"save_minutes": None},
        "logging": {"logging_steps": 1},
    }
    llmkit("preprocess", write_recipe(place / "data.yaml", recipe))
    same = (
        "--batch",
        BATCH,
        "--learning-rate",
        LEARNING_RATE,
        "--max-length",
        MAX_LENGTH,
        "--warmup",
        WARMUP,
        "--warm",
        WARM,
    )
    known = (encoder(), learnt, held_out, *same)
    sides: dict[str, Side] = {"llmkit": partial(ours, place, recipe)}
    return sides | {name: partial(peer, "classification", *known, *more) for name, more in PEERS.items()}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=4800, help="of the training set")


if __name__ == "__main__":
    main("classification", str(__doc__), prepare, TARGETS, add_options)
