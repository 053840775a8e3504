"""Where a step's samples, sorted by length, are cut into micro-batches.

A micro-batch is padded to its longest sample, so samples of one length belong together; yet each one costs something
whatever its size. The cut is the cheapest by that reckoning, found exactly by dynamic programming. It depends on
lengths alone, so the gradient stays the same and every rank cuts alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Budget:
    """What a micro-batch may hold and what it costs, in padded tokens: `fixed + width * (rows + serial_rows)`.

    `serial_rows` is for recurrent networks, whose every time step takes a while however few rows it has.
    """

    tokens: int
    """A micro-batch of several samples pads to no more tokens than this."""
    fixed: int = 0
    serial_rows: int = 0


def cut(lengths: np.ndarray, *, rows: int, budget: Budget | None) -> list[int]:
    """Boundaries [0, ..., n] of the micro-batches of samples with falling `lengths`, (n,); each has at most `rows`.

    Without a budget all have `rows` samples but the last. With one they cost least in sum; a single sample beyond
    `budget.tokens` stands alone.
    """
    number = len(lengths)
    if budget is None:
        return [*range(0, number, rows), number]
    cost = np.zeros(number + 1)
    ends = np.zeros(number, dtype=np.int64)
    for start in range(number - 1, -1, -1):
        width = max(int(lengths[start]), 1)
        most = min(max(budget.tokens // width, 1), rows, number - start)
        sizes = np.arange(1, most + 1)
        total = budget.fixed + width * (sizes + budget.serial_rows) + cost[start + 1 : start + most + 1]
        best = int(total.argmin())
        cost[start], ends[start] = total[best], start + best + 1
    bounds = [0]
    while bounds[-1] < number:
        bounds.append(int(ends[bounds[-1]]))
    return bounds


def halved(lengths: np.ndarray, *, rows: int, budget: Budget) -> int | None:
    """Half the tokens of the largest micro-batch of several samples that `cut` makes; None where it makes none."""
    bounds = cut(lengths, rows=rows, budget=budget)
    sizes = [(stop - start) * int(lengths[start]) for start, stop in pairwise(bounds) if stop - start > 1]
    return max(sizes) // 2 if sizes else None
