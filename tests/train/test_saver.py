"""Saving beside training: what is written is what was, whatever happens to the tensors after; failures are told."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from llmkit.errors import EnvironmentFailure
from llmkit.train import checkpoint
from llmkit.train.saver import Saver, Tensors
from tests.train.test_checkpoint import every_kind


def one(value: float) -> Tensors:
    return {"model": {"weight": torch.full((1000, 1000), value)}}


def test_the_files_are_those_of_a_save_that_is_waited_for(tmp_path: Path) -> None:
    saver = Saver()
    direct = checkpoint.save(tmp_path / "direct", 1, every_kind(), {"a": 1}, keep=None)
    for turn in range(2):  # the second finds its memory there
        root = tmp_path / f"beside{turn}"
        saver.save(every_kind(), lambda copy, root=root: checkpoint.save(root, 1, copy, {"a": 1}, keep=None))
        saver.wait()
        for path in direct.glob("*.safetensors"):
            assert (root / direct.name / path.name).read_bytes() == path.read_bytes()


def test_training_goes_on_and_what_is_written_is_what_was() -> None:
    saver, begun, go, seen = Saver(), threading.Event(), threading.Event(), []

    def write(copy: Tensors) -> None:
        begun.set()
        assert go.wait(10)
        seen.append(copy["model"]["weight"].unique().tolist())

    tensors = one(1.0)
    stall = saver.save(tensors, write)
    assert begun.wait(10)
    tensors["model"]["weight"].fill_(2.0)
    saver.check()  # it has not failed
    assert seen == []
    time.sleep(0.05)
    go.set()
    second = saver.save(tensors, write)
    saver.wait()
    assert seen == [[1.0], [2.0]]
    assert saver.write_seconds > 0.05
    assert saver.told() == {
        "saves": 2,
        "stall_seconds": round(stall + second, 4),
        "write_seconds": round(saver.write_seconds, 4),
    }


def test_a_second_save_waits_for_the_first() -> None:
    saver, order = Saver(), []

    def slow(copy: Tensors) -> None:
        time.sleep(0.2)
        order.append(float(copy["model"]["weight"][0, 0]))

    assert saver.save(one(1.0), slow) < 0.2
    assert saver.save(one(2.0), slow) > 0.1
    saver.close()
    assert order == [1.0, 2.0]


def test_a_failure_is_told_once_and_older_checkpoints_stay(tmp_path: Path) -> None:
    saver = Saver()
    saver.save(one(1.0), lambda copy: checkpoint.save(tmp_path, 10, copy, {}, keep=1))
    saver.wait()

    def fails(copy: Tensors) -> None:
        raise EnvironmentFailure("the disk is full")

    saver.save(one(2.0), fails)
    time.sleep(0.1)
    with pytest.raises(EnvironmentFailure, match="the disk is full"):
        saver.check()
    saver.check()
    saver.wait()
    newest = checkpoint.newest_valid(tmp_path, pytest.fail)
    assert newest is not None and newest.name == "step-00000010"
    saver.save(one(2.0), fails)
    saver.close()  # on the way out of another failure it does not speak


def test_without_memory_for_a_copy_the_save_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=7_000_000))
    tensors, seen = one(1.0), []
    saver = Saver()
    saver.save(tensors, seen.append)
    assert seen == [tensors]
    assert seen[0]["model"]["weight"] is tensors["model"]["weight"]
