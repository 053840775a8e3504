"""Several windows of one record: the field `window` numbers them from 0, and they stand one after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmkit.data.view import Rows

WINDOW = "window"


def record_numbers(rows: Rows) -> np.ndarray:
    """(num_rows,) the number of each row's record: one begins wherever windows begin anew. So it does not matter
    whether records are equal, or come from where."""
    if not rows.num_rows:
        return np.empty(0, np.int64)
    return np.cumsum(np.asarray(rows.field(WINDOW).to_numpy()) == 0) - 1


def records_of(rows: Rows) -> list[list[int]]:
    """The rows of each record, in order."""
    return _grouped(range(rows.num_rows), record_numbers(rows))


def whole_records(rows: Rows, chosen: Sequence[int]) -> list[list[int]]:
    """The rows of `chosen` (ascending), grouped by record."""
    return _grouped(chosen, record_numbers(rows)[np.asarray(chosen, np.int64)])


def _grouped(rows: Sequence[int], numbers: np.ndarray) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for row, number in zip(rows, numbers.tolist(), strict=True):
        groups.setdefault(number, []).append(row)
    return list(groups.values())
