"""The size of the data does not decide the memory: ten times as much of it is prepared and trained on in the same."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.table import FaultTable
from tests.faults.tiny import WORDS, write_recipe
from tests.faults.zygote import ROOT

PROGRAM = """\
import sys
from llmkit.cli import run
code = run(sys.argv[1:])
print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr)  # KiB
sys.exit(code)
"""
ALLOWED = 48 << 20
"""Bytes more for the large data: an index of its rows, pages of the mapped shards, what an allocator keeps."""


def peak_bytes(directory: Path, megabytes: int) -> int:
    """Peak memory of a run, its preprocessing included, on so much text."""
    directory.mkdir()
    recipe = json.loads(write_recipe(directory).read_text())
    dice = random.Random(3)
    block = "".join(" ".join(dice.choices(WORDS, k=200)) + "\n" for _ in range(1000))
    with (directory / "train.txt").open("w", encoding="utf-8") as file:
        written = 0
        while written < megabytes << 20:
            written += file.write(block)
    recipe["training"]["max_steps"] = 3
    recipe["data"]["max_length"] = 256  # the index of packed windows grows with their number
    recipe["tokenizer"]["train"] = {"algorithm": "char", "vocab_size": 100}
    (directory / "recipe.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-c", PROGRAM, "pretrain", str(directory / "recipe.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=280)
    assert ended.returncode == 0, ended.stderr
    return 1024 * int(ended.stderr.split()[-1])


@pytest.mark.faults
def test_ten_times_the_data_in_the_same_memory(tmp_path: Path, fault_table: FaultTable) -> None:
    small, large = peak_bytes(tmp_path / "small", 4), peak_bytes(tmp_path / "large", 40)
    assert large < small + ALLOWED, (small, large)
    fault_table.record("ten times the data in the same memory", 1, 1)
