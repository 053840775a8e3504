"""`python -m llmkit preprocess` killed, stopped and starved of disk: the bytes it publishes in the end are the same."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.mounts import on_tmpfs

ROOT = Path(__file__).resolve().parents[2]
SLOW = """
import functools, sys, time
from llmkit.data import prepare, reading, store, tokenizer_make
prepare.prepare = functools.partial(prepare.prepare, shard_bytes=20_000)
reading.BATCH_BYTES = 8_000
checkpoint = store.Store.checkpoint
def slow(self):
    checkpoint(self)
    time.sleep(0.1)
store.Store.checkpoint = slow
if "--wait" in sys.argv:
    sys.argv.remove("--wait")
    prepare.make_tokenizer = lambda *_: time.sleep(60)
from llmkit.cli import main
main()
"""
"""The program with small shards and a pause behind each, so that a signal from outside finds it between them."""


def write_recipe(directory: Path, data: Path) -> Path:
    recipe = {
        "output_dir": str(directory / "run"),
        "task": {"type": "causal_lm"},
        "model": {"config": {"model_type": "gpt2"}},
        "tokenizer": {"train": {"vocab_size": 300}},
        "data": {
            "train": [{"path": str(data)}],
            "clean": [{"step": "exact_dedup"}],
            "validation_fraction": 0.1,
            "max_bad_fraction": 0.1,
        },
    }
    directory.mkdir(exist_ok=True)
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = np.random.default_rng(0)
    words = np.array("the quick brown fox jumps over lazy dogs 春天 来了 花儿 开了".split())  # noqa: SIM905
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(1500):
            text = f"{i % 1400} " + " ".join(draw.choice(words, 10 + i % 50))
            file.write((json.dumps({"text": text}) if i % 100 else "{broken") + "\n")
    return path


def start(recipe: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, "preprocess", str(recipe), *options]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate(timeout=60)
    assert "Traceback" not in told
    return process.returncode, told


def wait_for_shards(directory: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until the unfinished preparation counts this many."""
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        for path in directory.glob("run/prepared/.partial-*/progress.json"):
            if len(json.loads(path.read_text())["shards"].get("train", [])) >= count:
                return
        time.sleep(0.01)
    raise AssertionError(f"there are no {count} shards: {process.communicate()[1]}")


def published(directory: Path) -> dict[str, bytes]:
    [found] = (directory / "run" / "prepared").iterdir()
    return {str(p.relative_to(found)): p.read_bytes() for p in sorted(found.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("whole")
    status, told = ended(start(write_recipe(directory, data)))
    assert status == 0, told
    found = published(directory)
    assert len([name for name in found if name.startswith("train/") and name.endswith(".bin")]) > 5
    return found


def test_kill_9_again_and_again(tmp_path: Path, data: Path, whole: dict[str, bytes]) -> None:
    recipe = write_recipe(tmp_path, data)
    for count in (1, 3, 4):
        process = start(recipe)
        wait_for_shards(tmp_path, count, process)
        process.kill()
        assert ended(process)[0] == -signal.SIGKILL
    status, told = ended(start(recipe))
    assert status == 0, told
    assert "going on" in told
    assert published(tmp_path) == whole


def test_sigterm_after_a_shard_and_before_any(tmp_path: Path, data: Path, whole: dict[str, bytes]) -> None:
    recipe = write_recipe(tmp_path, data)
    process = start(recipe, "--wait")
    until = time.monotonic() + 30
    while not list(tmp_path.glob("run/prepared/.partial-*")) and time.monotonic() < until:
        time.sleep(0.01)
    process.terminate()
    assert ended(process)[0] == 143
    process = start(recipe)
    wait_for_shards(tmp_path, 2, process)
    process.terminate()
    status, told = ended(process)
    assert status == 75
    assert "run the same command again" in told
    assert ended(start(recipe))[0] == 0
    assert published(tmp_path) == whole


def test_a_file_that_may_not_grow(tmp_path: Path, data: Path, whole: dict[str, bytes]) -> None:
    recipe = write_recipe(tmp_path, data)
    process = start(recipe)
    wait_for_shards(tmp_path, 1, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4_000, 4_000))
    status, told = ended(process)
    assert status == 6, told
    last = told.strip().splitlines()[-1]
    assert str(tmp_path) in last
    assert "File too large" in last
    assert "bytes free" in last
    assert ended(start(recipe))[0] == 0
    assert published(tmp_path) == whole


def run_main(recipe: Path, log: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", "preprocess", str(recipe)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    log.write_text(done.stderr)
    return done.returncode


@pytest.mark.parametrize("size", [16, 64, 160])
def test_a_full_disk(tmp_path: Path, data: Path, size: int) -> None:
    recipe, log = write_recipe(tmp_path, data), tmp_path / "log"
    (tmp_path / "run").mkdir()

    def work() -> None:
        assert run_main(recipe, log) == 6, log.read_text()

    on_tmpfs(tmp_path / "run", work, size=size * 1024)
    told = log.read_text()
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    assert "No space left on device" in last or "disk is full" in last
    assert str(tmp_path / "run") in last
    assert "bytes free" in last


def test_a_read_only_place_is_refused_before_anything_is_read(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.data import fingerprint, prepare
    from llmkit.errors import EnvironmentFailure
    from llmkit.recipe.load import load_recipe
    from llmkit.recipe.resolve import resolve
    from llmkit.report.console import Console

    def unread(*_: Any) -> str:
        raise AssertionError("a source was read")

    monkeypatch.setattr(fingerprint, "content_hash", unread)
    recipe = resolve(load_recipe(write_recipe(tmp_path, data)))
    (tmp_path / "run").mkdir()

    def work() -> None:
        with pytest.raises(EnvironmentFailure, match=rf"cannot write {tmp_path}.*Read-only file system"):
            prepare.prepare(recipe, Console(quiet=True))

    on_tmpfs(tmp_path / "run", work, size=1 << 20, read_only=True)
    if os.geteuid():
        (tmp_path / "run").chmod(0o500)
        with pytest.raises(EnvironmentFailure, match="Permission denied"):
            prepare.prepare(recipe, Console(quiet=True))
