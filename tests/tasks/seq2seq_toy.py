"""A made translation task (digits to Chinese numerals), networks of two layers, and a place where commands run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.conftest import Place
from tests.fakes import TINY

NETWORKS: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16, "dropout_rate": 0.0},
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "dropout": 0.0,
    },
    "llama": TINY["llama"],
}
NUMERALS = "零一二三四五六七八九"


def numbers(count: int, seed: int) -> list[dict[str, Any]]:
    """Sources such as `3 1 4`, targets such as `三一四`; every third row has two references."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        digits = [draw.randint(0, 9) for _ in range(draw.randint(1, 5))]
        target = "".join(NUMERALS[digit] for digit in digits)
        made.append({"source": " ".join(map(str, digits)), "target": [target, f"{target}。"] if i % 3 == 0 else target})
    return made


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_place(directory: Path, kind: str, **sections: Any) -> Place:
    """Made pairs, and a recipe of a tiny network of `kind` on them; `sections` replace the recipe's."""
    for name, count, seed in (("train", 240, 1), ("validation", 12, 2), ("test", 15, 3)):
        write_jsonl(directory / f"{name}.jsonl", numbers(count, seed))
    recipe: dict[str, Any] = {
        "version": 1,
        "output_dir": "run",
        "task": {"type": "translation", "source_prefix": "zh: "},
        "model": {"config": {"model_type": kind, **NETWORKS[kind]}},
        "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 300}},
        "data": {
            "train": [{"path": "train.jsonl"}],
            "validation": [{"path": "validation.jsonl"}],
            "test": [{"path": "test.jsonl"}],
            "max_length": 40,
            "num_workers": 1,
        },
        "training": {"max_steps": 40, "global_batch_size": 16, "learning_rate": 5e-3, "torch_compile": False},
        "evaluation": {"eval_steps": 20},
        "generation": {"max_new_tokens": 10, "num_beams": 2},
    }
    recipe |= sections
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return Place(directory)


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
