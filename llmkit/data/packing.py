"""Which tokens a training sample shows: plans that are pure functions of (seed, epoch, index), nothing to restore.

A row of L tokens has L - 1 inputs (all but the last) and L - 1 targets (all but the first), so a sample never spends a
position on a token that predicts nothing, and over an epoch every token except each row's first is a target exactly
once. Labels come shifted: `labels[t]` is the target of position t. Memory is a few integers a row; tokens are read from
the split when a sample is asked for. Windows are computed on reading: a new `max_length` never tokenises again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from llmkit.data.examples import IGNORE, Sample
from llmkit.data.fim import FillInMiddle

BIN_BLOCK = 8192
"""Rows that are packed together: larger fills windows a little better, smaller mixes lengths less."""

_SHARE, _ORDER, _WINDOWS, _FIM = range(4)
"""What a stream of random numbers is for; part of its key."""


class TokenRows(Protocol):
    """What plans read of a split."""

    @property
    def num_rows(self) -> int: ...

    def lengths(self, stream: str = "input_ids") -> np.ndarray: ...

    def row(self, i: int, stream: str = "input_ids", start: int = 0, stop: int | None = None) -> np.ndarray: ...

    def source_of(self) -> np.ndarray: ...


def generator(seed: int, *key: int) -> np.random.Generator:
    """Random numbers of their own for each (seed, key): Philox, a counter-based generator (Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *key])))


def epoch_rows(split: TokenRows, weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """(n,) rows that an epoch shows, ascending, a row as often as its source's weight says.

    A weight of 2.3 shows every row twice and 0.3 of them once more. Which ones is a slice of a seeded order, and the
    next epoch takes the next slice: with 0.5 two epochs show each row once.
    """
    rows = np.arange(split.num_rows, dtype=np.int64)
    if all(weight == 1.0 for weight in weights):
        return rows
    source_of = np.asarray(split.source_of())
    copies = np.zeros(split.num_rows, dtype=np.int64)
    for source, weight in enumerate(weights):
        mine = rows[source_of == source]
        whole, share = divmod(weight, 1.0)
        copies[mine] = int(whole)
        first, last = round(epoch * share * len(mine)), round((epoch + 1) * share * len(mine))
        if last > first:
            order = generator(seed, _SHARE, source).permutation(mine)
            copies[order[np.arange(first, last) % len(mine)]] += 1
    return np.repeat(rows, copies)


def _row_sample(split: TokenRows, row: int, start: int, stop: int, mask_stream: str | None) -> tuple[np.ndarray, ...]:
    """(inputs, labels) of positions start..stop of a row, each (stop - start,) int64."""
    tokens = np.asarray(split.row(row, start=start, stop=stop + 1)).astype(np.int64)
    labels = tokens[1:].copy()
    if mask_stream is not None:
        supervised = np.asarray(split.row(row, stream=mask_stream, start=start + 1, stop=stop + 1))
        labels[supervised == 0] = IGNORE
    return tokens[:-1], labels


@dataclass(frozen=True)
class _Stream:
    """An epoch of shuffled documents end to end: `rows` (n,), `ends` (n,) cumulated inputs, `windows` their order."""

    rows: np.ndarray
    ends: np.ndarray
    windows: np.ndarray

    @property
    def total(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0


@dataclass
class PackedPlan:
    """Shuffled documents end to end, cut into windows of `max_length` inputs, which are shuffled too.

    Documents are told apart by `position_ids`, which restart at 0 with each: only for architectures that then isolate
    them (models.isolation). A document that a window cuts goes on in another window, without the context before.
    """

    split: TokenRows
    max_length: int
    seed: int
    weights: tuple[float, ...]
    fim: FillInMiddle | None = None
    _current: tuple[int, _Stream] | None = field(default=None, repr=False, compare=False)
    _totals: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    def num_samples(self, epoch: int) -> int:
        if epoch not in self._totals:
            inputs = self._inputs(self._rows(epoch))
            self._totals[epoch] = int(inputs.sum())
        return -(-self._totals[epoch] // self.max_length)

    def lengths(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        stream = self._stream(epoch)
        starts = stream.windows[indices] * self.max_length
        rest: np.ndarray = stream.total - starts
        return rest.clip(max=self.max_length)

    def samples(self, epoch: int, indices: np.ndarray) -> list[Sample]:
        stream = self._stream(epoch)
        return [self._window(epoch, stream, int(window)) for window in stream.windows[indices]]

    def _rows(self, epoch: int) -> np.ndarray:
        rows = epoch_rows(self.split, self.weights, self.seed, epoch)
        return rows[self._inputs(rows) > 0]

    def _inputs(self, rows: np.ndarray) -> np.ndarray:
        inputs: np.ndarray = np.asarray(self.split.lengths())[rows].astype(np.int64) - 1
        return inputs.clip(min=0)

    def _stream(self, epoch: int) -> _Stream:
        current = self._current
        if current is None or current[0] != epoch:
            rows = generator(self.seed, _ORDER, epoch).permutation(self._rows(epoch))
            ends = np.cumsum(self._inputs(rows))
            windows = generator(self.seed, _WINDOWS, epoch).permutation(self.num_samples(epoch))
            current = (epoch, _Stream(rows, ends, windows))
            self._current = current
        return current[1]

    def _window(self, epoch: int, stream: _Stream, window: int) -> Sample:
        start = window * self.max_length
        stop = min(start + self.max_length, stream.total)
        first = int(np.searchsorted(stream.ends, start, side="right"))
        last = int(np.searchsorted(stream.ends, stop, side="left"))
        inputs = np.empty(stop - start, dtype=np.int64)
        labels, positions = np.empty_like(inputs), np.empty_like(inputs)
        for place in range(first, last + 1):
            row, end = int(stream.rows[place]), int(stream.ends[place])
            begin = int(stream.ends[place - 1]) if place else 0
            piece = slice(max(start, begin) - start, min(stop, end) - start)
            a, b = max(start, begin) - begin, min(stop, end) - begin
            tokens = np.asarray(self.split.row(row, start=a, stop=b + 1)).astype(np.int64)
            if self.fim is not None:
                draw = generator(self.seed, _FIM, epoch, place, a)
                tokens = self.fim.apply(tokens, draw, is_start=a == 0, is_end=b == end - begin)
            inputs[piece], labels[piece] = tokens[:-1], tokens[1:]
            positions[piece] = np.arange(b - a)
        arrays = {"input_ids": inputs, "labels": labels, "position_ids": positions}
        return Sample(arrays, stream.rows[first : last + 1])


@dataclass
class PaddedPlan:
    """A sample a piece: each row cut into pieces of at most `max_length` inputs, padded by whoever collates.

    For architectures that leak between packed documents, and for evaluation: there a piece's first input is the last
    token of the piece before, so every token is predicted once, with the context of its piece alone (the disjoint
    windows of lm-eval's rolling likelihood, context 1). `seed` None: every row once, in order, whatever its weight.
    """

    split: TokenRows
    max_length: int
    seed: int | None = None
    weights: tuple[float, ...] = ()
    mask_stream: str | None = None
    fim: FillInMiddle | None = None
    _current: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = field(default=None, repr=False, compare=False)

    def num_samples(self, epoch: int) -> int:
        return int(self._pieces(self._rows(epoch)).sum())

    def lengths(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        rows, starts = self._locate(epoch, indices)
        rest: np.ndarray = np.asarray(self.split.lengths())[rows].astype(np.int64) - 1 - starts
        return rest.clip(max=self.max_length)

    def samples(self, epoch: int, indices: np.ndarray) -> list[Sample]:
        rows, starts = self._locate(epoch, indices)
        lengths = np.asarray(self.split.lengths())
        made = []
        for index, row, start in zip(indices.tolist(), rows.tolist(), starts.tolist(), strict=True):
            whole = int(lengths[row]) - 1
            stop = min(start + self.max_length, whole)
            inputs, labels = _row_sample(self.split, row, start, stop, self.mask_stream)
            if self.fim is not None and self.seed is not None:
                tokens = np.append(inputs, labels[-1])
                draw = generator(self.seed, _FIM, epoch, index)
                tokens = self.fim.apply(tokens, draw, is_start=start == 0, is_end=stop == whole)
                inputs, labels = tokens[:-1], tokens[1:]
            made.append(Sample({"input_ids": inputs, "labels": labels}, np.array([row])))
        return made

    def _rows(self, epoch: int) -> np.ndarray:
        if self.seed is None:
            return np.arange(self.split.num_rows, dtype=np.int64)
        return epoch_rows(self.split, self.weights, self.seed, epoch)

    def _pieces(self, rows: np.ndarray) -> np.ndarray:
        inputs: np.ndarray = (np.asarray(self.split.lengths())[rows].astype(np.int64) - 1).clip(min=0)
        pieces: np.ndarray = -(-inputs // self.max_length)
        return pieces

    def _locate(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, first positions) of samples."""
        current = self._current
        if current is None or current[0] != epoch:
            rows = self._rows(epoch)
            ends = np.cumsum(self._pieces(rows))
            total = int(ends[-1]) if len(ends) else 0
            order = np.arange(total) if self.seed is None else generator(self.seed, _ORDER, epoch).permutation(total)
            current = (epoch, rows, ends, order)
            self._current = current
        _, rows, ends, order = current
        pieces = order[indices]
        place = np.searchsorted(ends, pieces, side="right")
        before = np.where(place > 0, ends[np.maximum(place - 1, 0)], 0)
        return rows[place], (pieces - before) * self.max_length


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """(n,) the bin of each item: best-fit decreasing, each bin at most `capacity` (Johnson 1973)."""
    bins = np.empty(len(lengths), dtype=np.int64)
    free: list[tuple[int, int]] = []
    num_bins = 0
    for item in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[item])
        assert size <= capacity, "an example longer than a window"
        fit = bisect_left(free, (size, -1))
        room, number = free.pop(fit) if fit < len(free) else (capacity, num_bins)
        num_bins += number == num_bins
        bins[item] = number
        if room > size:
            insort(free, (room - size, number))
    return bins


@dataclass(frozen=True)
class _Bins:
    """An epoch of packed rows: `rows` (n,) grouped by window, `bounds` (w + 1,) of the groups, `sizes` (w,) inputs of
    each, `windows` (w,) the order they are shown in."""

    rows: np.ndarray
    bounds: np.ndarray
    sizes: np.ndarray
    windows: np.ndarray


@dataclass
class BinPlan:
    """Whole examples, never split, best-fit into windows of `max_length` inputs; windows are shuffled.

    Rows are shuffled, then packed in blocks, so that a window's company changes from epoch to epoch.
    """

    split: TokenRows
    max_length: int
    seed: int
    weights: tuple[float, ...]
    mask_stream: str | None = None
    _current: tuple[int, _Bins] | None = field(default=None, repr=False, compare=False)
    _counts: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    def num_samples(self, epoch: int) -> int:
        if epoch not in self._counts:
            self._counts[epoch] = len(self._pack(epoch).windows)
        return self._counts[epoch]

    def lengths(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        bins = self._pack(epoch)
        sizes: np.ndarray = bins.sizes[bins.windows[indices]]
        return sizes

    def samples(self, epoch: int, indices: np.ndarray) -> list[Sample]:
        bins = self._pack(epoch)
        bounds = bins.bounds
        return [self._window(bins.rows[bounds[w] : bounds[w + 1]]) for w in bins.windows[indices].tolist()]

    def _window(self, rows: np.ndarray) -> Sample:
        lengths = np.asarray(self.split.lengths())
        parts = [_row_sample(self.split, row, 0, int(lengths[row]) - 1, self.mask_stream) for row in rows.tolist()]
        arrays = {
            "input_ids": np.concatenate([inputs for inputs, _ in parts]),
            "labels": np.concatenate([labels for _, labels in parts]),
            "position_ids": np.concatenate([np.arange(len(inputs)) for inputs, _ in parts]),
        }
        return Sample(arrays, rows)

    def _pack(self, epoch: int) -> _Bins:
        current = self._current
        if current is None or current[0] != epoch:
            rows = epoch_rows(self.split, self.weights, self.seed, epoch)
            inputs = np.asarray(self.split.lengths()).astype(np.int64) - 1
            rows = generator(self.seed, _ORDER, epoch).permutation(rows[inputs[rows] > 0])
            bins, num_bins = np.empty(len(rows), dtype=np.int64), 0
            for start in range(0, len(rows), BIN_BLOCK):
                block = best_fit(inputs[rows[start : start + BIN_BLOCK]], self.max_length)
                bins[start : start + BIN_BLOCK] = block + num_bins
                num_bins += int(block.max()) + 1
            sizes = np.zeros(num_bins, dtype=np.int64)
            np.add.at(sizes, bins, inputs[rows])
            rows = rows[np.argsort(bins, kind="stable")]
            bounds = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=num_bins))]).astype(np.int64)
            windows = generator(self.seed, _WINDOWS, epoch).permutation(num_bins)
            current = (epoch, _Bins(rows, bounds, sizes, windows))
            self._current = current
            self._counts[epoch] = num_bins
        return current[1]
