"""A run as small as a real one can be: two layers of width 64, dropout, accumulation, packing, validation, 60 steps."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.zygote import Zygote

STEPS = 60
SAVE_STEPS = 5
WORDS = ("the", "model", "learns", "from", "text", "and", "loss", "seed", "模型", "学习", "语言", "中文", "数据", "。")


def write_recipe(directory: Path) -> Path:
    """A recipe and its data under `directory`; every run of it shares the prepared data."""
    dice = random.Random(5)
    lines = (" ".join(dice.choices(WORDS, k=dice.randint(4, 30))) for _ in range(600))
    (directory / "train.txt").write_text("\n".join(lines), encoding="utf-8")
    recipe = {
        "version": 1,
        "output_dir": str(directory / "run"),
        "task": {"type": "causal_lm"},
        "model": {"config": {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2}, "dropout": 0.1},
        "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 400}},
        "data": {
            "train": [{"path": str(directory / "train.txt"), "sample_by": "line"}],
            "validation_fraction": 0.05,
            "max_length": 16,
            "packing": True,
            "prepared_dir": str(directory / "prepared"),
            "num_workers": 1,
        },
        "training": {
            "max_steps": STEPS,
            "global_batch_size": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "torch_compile": False,
        },
        "checkpoint": {"save_steps": SAVE_STEPS, "save_total_limit": 2},
        "evaluation": {"eval_steps": 20, "per_device_eval_batch_size": 8},
        "logging": {"logging_steps": 5},
    }
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(recipe, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
    return path


@dataclass(frozen=True)
class TinyRun:
    """The recipe, the outcome of its run when nothing happens, and the seconds that takes with its data prepared."""

    zygote: Zygote
    directory: Path
    recipe: Path
    golden: dict[str, Any]
    seconds: float

    @staticmethod
    def prepare(directory: Path, zygote: Zygote) -> TinyRun:
        recipe, log = write_recipe(directory), directory / "golden.log"
        tiny = TinyRun(zygote, directory, recipe, {}, 0.0)
        for name, settings in (("first", ["training.max_steps=2"]), ("golden", [])):  # the first prepares the data
            begun = time.monotonic()
            assert zygote.run(tiny.command(directory / name, *settings), log) == 0, log.read_text()
        return TinyRun(zygote, directory, recipe, outcome(directory / "golden"), time.monotonic() - begun)

    def command(self, run: Path, *settings: str) -> list[str]:
        overrides = [f"output_dir={run}", *settings]
        return ["pretrain", str(self.recipe), *(part for setting in overrides for part in ("--set", setting))]

    def start(self, run: Path, *settings: str, until: Callable[[Path], object]) -> int:
        """Starts the run and returns its pid as soon as `until(run)` holds."""
        pid = self.zygote.start(self.command(run, *settings), self.log(run))
        deadline = time.monotonic() + 60
        while not until(run):
            assert time.monotonic() < deadline, self.log(run).read_text()
            time.sleep(0.005)
        return pid

    def log(self, run: Path) -> Path:
        return run.with_name(f"{run.name}.log")

    def finish(self, run: Path, *settings: str) -> str:
        """Runs the same command again: it ends well, with the golden outcome. Returns its log."""
        log = self.log(run)
        log.unlink(missing_ok=True)
        assert self.zygote.run(self.command(run, *settings), log) == 0, log.read_text()
        assert outcome(run) == self.golden, log.read_text()
        record = json.loads((run / "run.json").read_text())
        assert (record["status"], record["exit_code"], record["steps"]) == ("completed", 0, STEPS)
        return log.read_text()


def outcome(run: Path) -> dict[str, Any]:
    """All that a finished run must have in common with the run that was never interrupted, to the bit."""
    last = run / "checkpoints" / f"step-{STEPS:08d}"
    return {
        "weights": sha256(last / "model.safetensors"),
        "optimizer": sha256(last / "optimizer.safetensors"),
        "state": json.loads((last / "state.json").read_text()),
        "exported": sha256(run / "model" / "model.safetensors"),
        "metrics": [without_clock(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()],
        "results": without_clock(json.loads((run / "results.json").read_text())),
    }


def without_clock(event: dict[str, Any]) -> dict[str, Any]:
    clock = ("tokens_per_second", "seconds", "mfu", "memory_bytes", "save_stall_seconds")
    return {key: value for key, value in event.items() if key not in clock}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
