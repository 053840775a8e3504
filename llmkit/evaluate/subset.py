"""Some rows of a split as a split of their own: `max_samples` without reading what it leaves out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

    from llmkit.data.shards import Split

_GAMMA = 0x9E3779B97F4A7C15


class Subset:
    """The chosen rows, numbered from 0; reads like a Split. `rows[i]` is the number of row i in the whole."""

    def __init__(self, split: Split, rows: NDArray[np.int64]):
        self.whole = split
        self.rows = rows
        self.num_rows = len(rows)
        self.streams = split.streams

    def lengths(self, stream: str = "input_ids") -> np.ndarray:
        return self.whole.lengths(stream)[self.rows]

    def row(self, i: int, stream: str = "input_ids", start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.whole.row(int(self.rows[i]), stream, start, stop)

    def source_of(self) -> np.ndarray:
        return self.whole.source_of()[self.rows]

    def bytes_of(self) -> np.ndarray:
        return self.whole.bytes_of()[self.rows]

    def words_of(self) -> np.ndarray:
        return self.whole.words_of()[self.rows]

    def field(self, name: str) -> pa.ChunkedArray:
        return self.whole.field(name).take(self.rows)

    def origin(self, i: int) -> dict[str, Any]:
        return self.whole.origin(int(self.rows[i]))

    def origins(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        return self.whole.origins(self.rows[rows])


def choose_rows(count: int, wanted: int) -> NDArray[np.int64]:
    """(wanted,) of `count` rows, ascending: those whose number has the smallest hash, so that the choice is always
    the same and a larger one contains a smaller one."""
    return np.sort(np.argsort(_hashes(count), kind="stable")[:wanted])


def _hashes(count: int) -> NDArray[np.uint64]:
    """(count,) splitmix64 of 0..count-1 (Steele, Lea, Flood 2014): the same on every platform and version."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
