"""Recipes that benchmarks share, and what a finished run's files say about its speed."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.common import Done, Figures, llmkit

CONTEXT, BATCH = 256, 16
GPT2 = {"model_type": "gpt2", "n_layer": 6, "n_embd": 384, "n_head": 6, "n_positions": CONTEXT}
"""17M parameters with a vocabulary of 16,000."""
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0}
WARM_STEPS = 4
"""Steps that are left out of every rate, ours and the peers': compilation and first touches."""


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """JSON is YAML."""
    path.write_text(json.dumps({"version": 1, **recipe}), encoding="utf-8")
    return path


def language_model(
    place: Path, name: str, vocabulary: int = 16_000, steps: int = 12, **training: Any
) -> dict[str, Any]:
    """`pretrain` on the standard library in `place`, nothing saved before the end, a line a step."""
    return {
        "output_dir": str(place / name),
        "task": {"type": "causal_lm"},
        "model": {"config": GPT2, "dropout": 0.0},
        "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": vocabulary}},
        "data": {
            "train": [{"path": str(place / "stdlib.jsonl")}],
            "max_length": CONTEXT,
            "prepared_dir": str(place / "prepared"),
        },
        "training": {"max_steps": steps, "global_batch_size": BATCH, "torch_compile": True, **training},
        "checkpoint": {"save_minutes": None},
        "logging": {"logging_steps": 1},
    }


def afresh(command: str, place: Path, recipe: dict[str, Any]) -> Done:
    """Runs `pretrain` or `finetune` from the beginning, whatever is in its output directory."""
    name = Path(recipe["output_dir"]).name
    return llmkit(command, write_recipe(place / f"{name}.yaml", recipe), "--overwrite")


def train(command: str, place: Path, recipe: dict[str, Any]) -> Figures:
    """`afresh`; the figures of the run's steady steps and of the whole process."""
    done = afresh(command, place, recipe)
    out = Path(recipe["output_dir"])
    bf16 = json.loads((out / "run.json").read_text())["resolved"]["mixed_precision"] == "bf16"
    process = {"process_seconds": done.seconds, "peak_memory_bytes": done.peak_memory_bytes}
    return {**training_figures(out), "bf16": bf16, **process}


def train_lines(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that tell of training steps."""
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [event for event in events if event["split"] == "train"]


def step_seconds(out: Path) -> list[float]:
    """Seconds of each step of a run that logs every step, the wait for a save that followed the one before with it."""
    lines = train_lines(out)
    before = [0, *(line["tokens"] for line in lines)]
    return [
        (line["tokens"] - tokens) / line["tokens_per_second"] + line.get("save_stall_seconds", 0.0)
        for line, tokens in zip(lines, before, strict=False)
    ]


def training_figures(out: Path) -> Figures:
    """Tokens a second, from the steady steps' tokens over their time; the median step's seconds; the mean loss."""
    lines = train_lines(out)
    seconds = step_seconds(out)[WARM_STEPS:]
    tokens = lines[-1]["tokens"] - lines[WARM_STEPS - 1]["tokens"]
    return {
        "tokens_per_second": tokens / sum(seconds),
        "seconds_per_step": statistics.median(seconds),
        "mean_loss": statistics.mean(line["loss"] for line in lines),
    }


def num_parameters(model: Path) -> int:
    """Of an exported model; tied weights count once."""
    total = 0
    for file in model.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def prepared_tokenizer(place: Path) -> Path:
    """The tokenizer of the prepared dataset in `place`: what a peer encodes the same rows with."""
    return max((place / "prepared").glob("*/tokenizer"), key=lambda path: path.stat().st_mtime)
