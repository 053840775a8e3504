"""The program driven as a user drives it, in this process where that is the same, and one trained run for all."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from llmkit import cli

ROOT = Path(__file__).parents[2]
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "seven", "green", "cats", "sleep", "near"]
CHARACTERS = "今天天气很好我们去公园玩昨天下雨了他在家看书中文数据模型学习语言"


@dataclass(frozen=True)
class Ended:
    """How one command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value

    def told(self, status: int, *parts: str) -> str:
        """Asserts a mistake: its status, no traceback, and `parts` in its message, the last line. Returns that."""
        assert self.status == status, self.err
        assert "Traceback" not in self.err
        assert "internal error" not in self.err
        assert self.out == ""
        last = self.err.splitlines()[-1]
        for part in parts:
            assert part in last, self.err
        return last


@dataclass(frozen=True)
class Place:
    """A directory with data and a recipe of a tiny model; commands run in it."""

    directory: Path

    def run(
        self, command: str, recipe: str = "recipe.yaml", *arguments: str, sets: dict[str, Any] | None = None
    ) -> Ended:
        """`llmkit COMMAND RECIPE ARGUMENTS --set ...` in this process."""
        streams = [TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            status = cli.run([command, recipe, *arguments, *settings(sets)])
        out, err = (stream.buffer.getvalue().decode() for stream in streams)
        return Ended(status, out, err)

    def start(self, *arguments: str, sets: dict[str, Any] | None = None, **options: Any) -> Ended:
        """The same as a process of its own."""
        command = [sys.executable, "-m", "llmkit", *arguments, *settings(sets)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=100, check=False, env=environment(), **options
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def write(self, name: str, content: str | bytes) -> str:
        data = content.encode() if isinstance(content, str) else content
        (self.directory / name).write_bytes(data)
        return name


def settings(sets: dict[str, Any] | None) -> list[str]:
    return [part for key, value in (sets or {}).items() for part in ("--set", f"{key}={json.dumps(value)}")]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def sentence(draw: random.Random, chinese: bool) -> str:
    return ("" if chinese else " ").join(draw.choices(CHARACTERS if chinese else WORDS, k=draw.randint(5, 25)))


def rows(count: int, seed: int) -> str:
    """JSON lines of text, English and Chinese by turns."""
    draw = random.Random(seed)
    made = [{"text": sentence(draw, bool(i % 2))} for i in range(count)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)


RECIPE = """\
output_dir: run
task: {type: causal_lm}
model:
  config: {model_type: gpt2, n_layer: 2, n_embd: 32, n_head: 2}
  dropout: 0.0
tokenizer:
  train: {vocab_size: 400}
data:
  train:
    - path: train.jsonl
  validation: [{path: validation.jsonl}]
  test: [{path: test.jsonl}]
  max_length: 32
  num_workers: 1
training:
  max_steps: 4
  global_batch_size: 8
  learning_rate: 5e-3
  lr_scheduler_type: constant
  torch_compile: false
checkpoint: {save_steps: 1}
evaluation: {eval_steps: 2}
logging: {logging_steps: 1}
"""


def make_place(directory: Path) -> Place:
    directory.mkdir(exist_ok=True)
    for name, count, seed in (("train", 120, 1), ("validation", 12, 2), ("test", 12, 3)):
        (directory / f"{name}.jsonl").write_text(rows(count, seed), encoding="utf-8")
    (directory / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return Place(directory)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A fresh place, which is the current directory."""
    monkeypatch.chdir(tmp_path)
    return make_place(tmp_path)


@pytest.fixture(scope="session")
def trained_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in `run`, made once. Tests copy it."""
    directory = tmp_path_factory.mktemp("e2e") / "trained"
    made = make_place(directory)
    before = Path.cwd()
    os.chdir(directory)
    try:
        ended = made.run("pretrain")
    finally:
        os.chdir(before)
    assert ended.status == 0, ended.err
    return directory


@pytest.fixture
def trained(trained_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A copy of the finished run: a moved directory still matches."""
    directory = tmp_path / "moved"
    shutil.copytree(trained_directory, directory)
    monkeypatch.chdir(directory)
    return Place(directory)


@pytest.fixture(scope="session")
def flip() -> Callable[[Path], None]:
    """Changes one bit in the middle of a file."""

    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)

    return change
