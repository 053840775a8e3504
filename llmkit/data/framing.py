"""Documents in windows of one document each, [CLS] ... [SEP], for encoders: no window shows two documents.

Rows are stored without special tokens and cut on reading, so a new `max_length` never tokenises again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llmkit.data.examples import Sample
from llmkit.data.masking import NO_WORD
from llmkit.data.packing import TokenRows, epoch_rows, generator

WORD_START = "word_start"
SENTENCE_END = "sentence_end"
_ORDER = 32
"""What a stream of random numbers is for; part of its key, other than those of packing and rows."""


@dataclass(frozen=True)
class Frame:
    """The special tokens around a text, or a pair of texts: [CLS] a [SEP], [CLS] a [SEP] b [SEP]."""

    cls: int
    sep: int

    def wrap(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays (T,) of (tokens, words) of one part or two: input_ids, words, and token_type_ids of a pair."""
        ids, words, types = [np.array([self.cls])], [np.array([NO_WORD])], [np.array([0])]
        for number, (tokens, own) in enumerate(parts):
            ids += [tokens, np.array([self.sep])]
            words += [own + (words[-2].max(initial=NO_WORD) + 1 if number else 0), np.array([NO_WORD])]
            types.append(np.full(len(tokens) + 1, number))
        found = {"input_ids": np.concatenate(ids), "words": np.concatenate(words)}
        return found if len(parts) == 1 else {**found, "token_type_ids": np.concatenate(types)}


def read_part(split: TokenRows, row: int, start: int, stop: int, whole_words: bool) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, words) of [start, stop) of a row, each int64; a word's number counts from 0, a token its own word
    unless `whole_words`."""
    tokens = np.asarray(split.row(row, start=start, stop=stop)).astype(np.int64)
    if not whole_words:
        return tokens, np.arange(len(tokens))
    begins = np.asarray(split.row(row, WORD_START, start, stop)).astype(np.int64)
    begins[:1] = 1
    return tokens, np.cumsum(begins) - 1


@dataclass
class WindowPlan:
    """A sample a window: each row in as few windows as hold it, of nearly one size, shuffled by (seed, epoch).

    `seed` None: every row once, in order, whatever its weight. Samples have `key`, (row, start), for what is drawn.
    """

    split: TokenRows
    max_length: int
    frame: Frame
    whole_words: bool = False
    seed: int | None = None
    weights: Sequence[float] = ()
    _current: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = field(default=None, repr=False, compare=False)

    def num_samples(self, epoch: int) -> int:
        return len(self._order(epoch)[2])

    def lengths(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        rows, starts, stops = self._locate(epoch, indices)
        found: np.ndarray = stops - starts + 2
        return found

    def samples(self, epoch: int, indices: np.ndarray) -> list[Sample]:
        made = []
        for row, start, stop in zip(*(part.tolist() for part in self._locate(epoch, indices)), strict=True):
            arrays = self.frame.wrap([read_part(self.split, row, start, stop, self.whole_words)])
            made.append(Sample({**arrays, "key": np.array([row, start])}, np.array([row])))
        return made

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, ends of their windows cumulated, order of the windows) of an epoch."""
        if self._current is None or self._current[0] != epoch:
            if self.seed is None:
                rows = np.arange(self.split.num_rows, dtype=np.int64)
            else:
                rows = epoch_rows(self.split, self.weights, self.seed, epoch)
            ends = np.cumsum(self._windows(rows))
            total = int(ends[-1]) if len(ends) else 0
            order = np.arange(total)
            if self.seed is not None:
                order = generator(self.seed, _ORDER, epoch).permutation(total)
            self._current = (epoch, rows, ends, order)
        return self._current[1:]

    def _windows(self, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = -(-np.asarray(self.split.lengths())[rows].astype(np.int64) // (self.max_length - 2))
        return found

    def _locate(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, starts, stops) of samples, each (n,)."""
        rows, ends, order = self._order(epoch)
        windows = order[indices]
        place = np.searchsorted(ends, windows, side="right")
        number = windows - np.where(place > 0, ends[np.maximum(place - 1, 0)], 0)
        found = rows[place]
        sizes, counts = np.asarray(self.split.lengths())[found].astype(np.int64), self._windows(found)
        return found, number * sizes // counts, (number + 1) * sizes // counts
