"""Samples that are whole rows, for tasks that do not cut text into windows: a pure function of (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmkit.data.examples import Sample
from llmkit.data.packing import TokenRows, epoch_rows, generator

_ORDER, _DRAW = 16, 17
"""What a stream of random numbers is for; part of its key, other than those of packing."""

Read = Callable[[int, np.random.Generator | None], dict[str, np.ndarray]]
"""(row, random numbers of this showing or None in evaluation) -> the sample's arrays."""


@dataclass
class RowPlan:
    """A sample a row. `sizes` (num_rows,): tokens of each, for batches of similar length. `seed` None: every row once,
    in order, whatever its weight, and nothing drawn."""

    split: TokenRows
    sizes: np.ndarray
    read: Read
    seed: int | None = None
    weights: Sequence[float] = ()
    _current: tuple[int, np.ndarray] | None = field(default=None, repr=False, compare=False)

    def num_samples(self, epoch: int) -> int:
        return len(self._rows(epoch))

    def lengths(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.asarray(self.sizes)[self._rows(epoch)[indices]]
        return found

    def samples(self, epoch: int, indices: np.ndarray) -> list[Sample]:
        rows = self._rows(epoch)
        made = []
        for index in indices.tolist():
            row = int(rows[index])
            draw = None if self.seed is None else generator(self.seed, _DRAW, epoch, index)
            made.append(Sample(self.read(row, draw), np.array([row])))
        return made

    def _rows(self, epoch: int) -> np.ndarray:
        current = self._current
        if current is None or current[0] != epoch:
            if self.seed is None:
                rows = np.arange(self.split.num_rows, dtype=np.int64)
            else:
                rows = epoch_rows(self.split, self.weights, self.seed, epoch)
                rows = generator(self.seed, _ORDER, epoch).permutation(rows)
            current = self._current = (epoch, rows)
        return current[1]
