"""Real file systems that are full, limited or read-only, with nothing patched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmkit.errors import EnvironmentFailure
from llmkit.train import checkpoint, metricslog
from llmkit.train.rundir import RunDirectory
from tests.faults.mounts import on_tmpfs, with_file_size_limit

KIB = 1 << 10


def save(root: Path, step: int, kib: int) -> Path:
    tensors = {"model": {"weight": torch.full((kib, KIB), step % 128, dtype=torch.int8)}}
    return checkpoint.save(root, step, tensors, {"step": step}, keep=2)


def refused(root: Path, step: int, kib: int, reason: str) -> None:
    """The save of `step` ends in one message, and the checkpoint before is found valid, with no rubbish beside it."""
    before = sorted(path.name for path in checkpoint.published(root))
    with pytest.raises(EnvironmentFailure) as caught:
        save(root, step, kib)
    message = str(caught.value)
    assert caught.value.status == 6
    assert str(root) in message
    assert "bytes needed" in message
    assert "bytes free" in message
    assert reason in message
    newest = checkpoint.newest_valid(root, pytest.fail)
    assert [path.name for path in checkpoint.published(root)] == before
    assert newest is not None
    assert newest.name == before[-1]
    assert not list(root.glob(".*"))


def test_a_disk_too_small_is_seen_before(tmp_path: Path) -> None:
    def work() -> None:
        save(tmp_path, 10, 1024)
        refused(tmp_path, 20, 8 * 1024, "not enough space")

    on_tmpfs(tmp_path, work, size=8 << 20)


def test_a_disk_that_fills_up_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process took the space after we had looked."""
    monkeypatch.setattr(checkpoint, "SPARE_BYTES", -(1 << 40))

    def work() -> None:
        save(tmp_path, 10, 1024)
        for kib in (6 * 1024, 7 * 1024, 7 * 1024 + 900, 16 * 1024):
            refused(tmp_path, 20, kib + 1024, "No space left on device")
        save(tmp_path, 20, 1024)

    on_tmpfs(tmp_path, work, size=8 << 20)


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    def work() -> None:
        save(tmp_path, 10, 64)
        refused(tmp_path, 20, 256, "File too large")

    with_file_size_limit(work, 128 * KIB)


def test_metrics_and_run_json_on_a_full_disk_end_in_one_message(tmp_path: Path) -> None:
    def work() -> None:
        with RunDirectory(tmp_path / "run") as run:
            run.start(command="pretrain", recipe_yaml="", identity={}, data_fingerprint=None, sources={}, seed=1)
            log = metricslog.MetricsLog(run.metrics)
            log.write({"step": 1})
            with pytest.raises(EnvironmentFailure, match=r"metrics\.jsonl: No space left.*bytes free"):
                log.write({"step": 2, "filler": "x" * 2048 * KIB})
            with pytest.raises(EnvironmentFailure, match=r"run\.json: No space left.*bytes free"):
                run.update(steps=1, filler="x" * 64 * KIB)
        assert (tmp_path / "run" / "run.json").read_text().endswith("}\n")

    on_tmpfs(tmp_path, work, size=1 << 20)


def test_a_read_only_place_is_refused_before_anything(tmp_path: Path) -> None:
    def work() -> None:
        for place in (tmp_path, tmp_path / "run"):
            with pytest.raises(EnvironmentFailure, match="Read-only file system") as caught:
                RunDirectory(place)
            assert caught.value.status == 6

    on_tmpfs(tmp_path, work, size=1 << 20, read_only=True)
