"""A finished run in miniature, made by the real parts but for the training: data prepared, a model exported."""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmkit.data import prepare
from llmkit.manifest import write_manifest
from llmkit.options import Options
from llmkit.recipe.load import load_recipe
from llmkit.recipe.resolve import resolve
from llmkit.recipe.sections import Recipe
from llmkit.report.console import Console
from llmkit.tasks import build_task

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "green",
    "cats",
    "sleep",
]
CHARACTERS = "今天天气很好我们去公园玩昨天下雨了他在家看书"


def sentence(draw: random.Random, *, chinese: bool) -> str:
    parts = draw.choices(CHARACTERS if chinese else WORDS, k=draw.randint(4, 30))
    return ("" if chinese else " ").join(parts)


def text_rows(count: int, seed: int, *, chinese: bool | None = None) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{"text": sentence(draw, chinese=bool(i % 2) if chinese is None else chinese)} for i in range(count)]


def chat_rows(count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {"instruction": sentence(draw, chinese=bool(i % 2)), "input": "", "output": sentence(draw, chinese=bool(i % 2))}
        for i in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def console(*, as_json: bool = False) -> Console:
    return Console(stdout=io.StringIO(), stderr=io.StringIO(), terminal=False, json=as_json)


def said(console: Console) -> tuple[str, str]:
    """(stdout, stderr) of a console made here."""
    assert isinstance(console.stdout, io.StringIO)
    assert isinstance(console.stderr, io.StringIO)
    return console.stdout.getvalue(), console.stderr.getvalue()


@dataclass(frozen=True)
class TinyRun:
    directory: Path
    recipe_path: Path

    def recipe(self, *overrides: str) -> Recipe:
        return resolve(load_recipe(self.recipe_path, list(overrides)))

    def options(self, command: str, **fields: Any) -> Options:
        return Options(command=command, recipe_path=self.recipe_path, **fields)

    @property
    def model(self) -> Path:
        return self.directory / "run" / "model"


def make_run(directory: Path, task: str, *, with_model: bool = True) -> TinyRun:
    """A recipe with its data, and (`with_model`) an untrained model where training would have put it."""
    chat = task == "instruction"
    write_rows(directory / "train.jsonl", chat_rows(60, 1) if chat else text_rows(60, 1))
    if chat:
        tests: list[dict[str, Any]] = [{"path": str(write_rows(directory / "test.jsonl", chat_rows(12, 2)))}]
    else:
        tests = [
            {"path": str(write_rows(directory / "en.jsonl", text_rows(10, 2, chinese=False))), "id": "en"},
            {"path": str(write_rows(directory / "zh.jsonl", text_rows(12, 3, chinese=True))), "id": "zh"},
        ]
    content = {
        "version": 1,
        "seed": 5,
        "output_dir": str(directory / "run"),
        "task": {"type": task},
        "model": {
            "config": {
                "model_type": "gpt2",
                "n_layer": 2,
                "n_embd": 32,
                "n_head": 2,
                "n_positions": 640 if chat else 96,
            }
        },
        "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 320}},
        "data": {
            "train": [{"path": str(directory / "train.jsonl")}],
            "test": tests,
            "max_length": 600 if chat else 48,
            "num_workers": 1,
            "overflow": "truncate" if chat else None,
        },
        "generation": {"max_new_tokens": 8},
    }
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    run = TinyRun(directory, path)
    if with_model:
        recipe = run.recipe()
        made = build_task(recipe, prepare.prepare(recipe, console()).tokenizer_dir)
        made.export(made.build_model(), run.model)
        write_manifest(run.model)
    return run
