from __future__ import annotations

import math

import numpy as np
import pytest

from llmkit.metrics.unigram import target_counts, unigram_loss


class Rows:
    """A split in memory."""

    def __init__(self, rows: list[list[int]], masks: list[list[int]] | None = None):
        self.num_rows = len(rows)
        self.streams = ("input_ids",) if masks is None else ("input_ids", "loss_mask")
        self._values = {"input_ids": rows, "loss_mask": masks or []}

    def row(self, i: int, stream: str = "input_ids", start: int = 0, stop: int | None = None) -> np.ndarray:
        return np.array(self._values[stream][i][start:stop])


def test_uniform_tokens_cost_log_vocabulary() -> None:
    counts = np.full(50, 1000)
    assert unigram_loss(counts, counts) == pytest.approx(math.log(50))


def test_equals_a_plain_loop_and_unseen_tokens_cost_a_finite_amount() -> None:
    train, scored = np.array([6, 3, 0]), np.array([1, 2, 4])
    p = [(6 + 1) / 12, (3 + 1) / 12, 1 / 12]
    expected = -(math.log(p[0]) + 2 * math.log(p[1]) + 4 * math.log(p[2])) / 7
    assert unigram_loss(train, scored) == pytest.approx(expected)


def test_targets_are_all_tokens_but_the_first_of_a_row() -> None:
    split = Rows([[0, 1, 2, 0], [0, 2, 2]])
    assert target_counts(split, vocab_size=4, max_tokens=100).tolist() == [1, 1, 3, 0]  # type: ignore[arg-type]
    chosen = target_counts(split, vocab_size=4, rows=np.array([1]), max_tokens=100)  # type: ignore[arg-type]
    assert chosen.tolist() == [0, 0, 2, 0]


def test_only_supervised_targets_count_and_reading_is_bounded() -> None:
    split = Rows([[0, 1, 2, 3], [0, 3, 3]], masks=[[0, 0, 1, 1], [1, 1, 1]])
    assert target_counts(split, vocab_size=4, max_tokens=100).tolist() == [0, 0, 1, 3]  # type: ignore[arg-type]
    assert target_counts(split, vocab_size=4, max_tokens=1).tolist() == [0, 0, 1, 1]  # type: ignore[arg-type]
