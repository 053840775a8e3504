"""Batching changes no figure; randomness and modes are left as they were; several processes equal one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmkit.evaluate.split import evaluate_split, plan_batches, predict_split
from llmkit.evaluate.subset import choose_rows
from tests.evaluate.toy import ToyModule, ToyPlan, ToySplit, ToyTask


def score(task: ToyTask | None = None, **options: Any) -> Any:
    return evaluate_split(task or ToyTask(), ToyModule(), ToySplit(), None, **options)  # type: ignore[arg-type]


def expected_mean() -> float:
    values = np.concatenate([ToySplit().row(row) for row in range(23)])
    return float(2 * values.mean())


@pytest.mark.parametrize("batch_size", [None, 1, 4, 1000])
def test_batch_size_changes_nothing(batch_size: int | None) -> None:
    evaluated = score(batch_size=batch_size)
    assert evaluated.metrics["mean"].value == pytest.approx(expected_mean(), rel=1e-12)
    assert [item["row"] for item in evaluated.items] == list(range(23))


def test_batches_hold_similar_lengths_longest_first() -> None:
    task = ToyTask()
    score(task, batch_size=4)
    widths = [width for _, width in task.shapes]
    assert widths == sorted(widths, reverse=True)
    assert all(rows == 4 for rows, _ in task.shapes[:-1])


def test_automatic_batches_keep_to_the_token_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.evaluate.split.CPU_BATCH_TOKENS", 40)
    task = ToyTask()
    score(task)
    assert all(rows * width <= 40 for rows, width in task.shapes)
    assert max(rows for rows, _ in task.shapes) > 4
    assert sum(rows for rows, _ in task.shapes) == ToyPlan(ToySplit()).num_samples(0)


def test_a_sample_longer_than_the_budget_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ToyPlan(ToySplit(num_rows=5), window=100_000)
    monkeypatch.setattr("llmkit.evaluate.split.CPU_BATCH_TOKENS", 2)
    batches = plan_batches(plan, batch_size=None, device="cpu")
    assert sorted(batch.tolist() for batch in batches) == [[0], [1], [2], [3], [4]]


def test_out_of_memory_halves_the_batch() -> None:
    task = ToyTask(memory=3)
    assert score(task, batch_size=16).metrics["mean"].value == pytest.approx(expected_mean(), rel=1e-12)
    assert max(rows for rows, _ in task.shapes) <= 3
    with pytest.raises(torch.OutOfMemoryError):
        score(ToyTask(memory=0))


def test_max_samples_takes_whole_rows_and_always_the_same() -> None:
    first, again = score(max_samples=7), score(max_samples=7, batch_size=2)
    rows = [item["row"] for item in first.items]
    assert rows == [item["row"] for item in again.items]
    assert len(rows) == 7
    assert rows != list(range(7))
    assert first.metrics["mean"].value == pytest.approx(again.metrics["mean"].value, rel=1e-12)
    values = np.concatenate([ToySplit().row(row) for row in rows])
    assert first.metrics["mean"].value == pytest.approx(2 * values.mean(), rel=1e-12)
    assert len(score(max_samples=500).items) == 23


def test_a_larger_subset_contains_the_smaller() -> None:
    small, large = choose_rows(1000, 50).tolist(), choose_rows(1000, 90).tolist()
    assert set(small) < set(large)
    assert small == sorted(small)
    assert 350 < np.mean(choose_rows(1000, 200)) < 650  # not the first ones


def test_modes_and_random_streams_are_left_alone() -> None:
    module = ToyModule()
    torch.manual_seed(3)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # type: ignore[index]
    predict_split(ToyTask(draws_random=True), module, ToySplit(), None)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert random.getstate() == before[2]
    assert module.training
    assert module.dropout.training
    assert not module.frozen_part.training


def test_mode_comes_back_after_an_error() -> None:
    module = ToyModule()
    with pytest.raises(torch.OutOfMemoryError):
        predict_split(ToyTask(memory=0), module, ToySplit(), None)  # type: ignore[arg-type]
    assert module.dropout.training


def test_progress_counts_samples() -> None:
    seen: list[tuple[int, int]] = []
    score(batch_size=8, progress=lambda done, total: seen.append((done, total)))
    total = ToyPlan(ToySplit()).num_samples(0)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


WORKER = """
import sys, torch.distributed as dist
from types import SimpleNamespace
from contextlib import nullcontext
import torch
from llmkit.evaluate.split import predict_split
from tests.evaluate.toy import ToyModule, ToySplit, ToyTask
rank, world = int(sys.argv[1]), 2
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=world)
accelerator = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=world, autocast=nullcontext)
for batch_size in (1, 4, 1000):
    found = predict_split(ToyTask(), ToyModule(), ToySplit(), accelerator, batch_size=batch_size)
    print(sorted((p.row, p.values["n"], round(p.values["sum"], 9)) for p in found))
dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Every sample once, whatever the number of batches (odd, even, fewer than processes), and the same on both."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=120)[0].splitlines() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    found = predict_split(ToyTask(), ToyModule(), ToySplit(), None)  # type: ignore[arg-type]
    expected = str(sorted((p.row, p.values["n"], round(p.values["sum"], 9)) for p in found))
    assert outputs == [[expected] * 3] * 2
