"""Whole rows as samples: once in order, or shuffled by seed and weight."""

from __future__ import annotations

import numpy as np

from llmkit.data.rows import RowPlan
from tests.fakes import MemorySplit


def test_evaluation_shows_every_row_once_in_order() -> None:
    split = MemorySplit([[1], [2, 3], [4]])

    def read(row: int, draw: np.random.Generator | None) -> dict[str, np.ndarray]:
        return {"input_ids": split.row(row), "still": np.array(draw is None)}

    plan = RowPlan(split, split.lengths(), read)
    assert plan.num_samples(0) == 3
    samples = plan.samples(0, np.arange(3))
    assert [sample.rows.tolist() for sample in samples] == [[0], [1], [2]]
    assert all(sample.arrays["still"] for sample in samples)
    assert plan.lengths(0, np.array([1, 2])).tolist() == [2, 1]


def test_training_is_a_function_of_seed_epoch_and_index() -> None:
    split = MemorySplit([[i] for i in range(40)], sources=[0] * 20 + [1] * 20)

    def read(row: int, draw: np.random.Generator | None) -> dict[str, np.ndarray]:
        assert draw is not None
        return {"input_ids": split.row(row), "noise": draw.random(2)}

    plan = RowPlan(split, split.lengths(), read, seed=7, weights=(1.0, 0.5))
    assert plan.num_samples(0) == 30
    first = plan.samples(0, np.arange(30))
    again = RowPlan(split, split.lengths(), read, seed=7, weights=(1.0, 0.5)).samples(0, np.array([29, 3]))
    assert again[0].rows == first[29].rows
    assert np.array_equal(again[1].arrays["noise"], first[3].arrays["noise"])
    shown = [int(sample.rows[0]) for epoch in (0, 1) for sample in plan.samples(epoch, np.arange(30))]
    assert sorted(row for row in shown if row >= 20) == list(range(20, 40))
