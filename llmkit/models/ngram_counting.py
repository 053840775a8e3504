"""Counts the n-grams of a corpus of any size with bounded buffers: sorted runs on disk, merged block by block.

Every n-gram has a number, its place among the sorted n-grams of its order; a token is its own number. The key of an
n-gram is `number of its first n - 1 tokens * vocabulary + last token`, so that one 64-bit integer holds it at any
order, and the continuations of a context stand side by side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.packing import TokenRows
from llmkit.files import environment_errors

BUFFER_TOKENS = 2**22
"""Tokens, or n-grams, that are held in memory at once: some hundreds of megabytes while sorting."""

Ints = NDArray[np.int64]
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Scratch:
    """A directory for arrays that need not fit in memory, and how many of their elements may be looked at at once."""

    directory: Path
    buffer: int = BUFFER_TOKENS

    def array(self, name: str, size: int, dtype: Any) -> NDArray[Any]:
        """(size,) zeros in a file of their own; the pages are the kernel's to keep or to write out."""
        path = self.directory / name
        if size == 0:
            return np.zeros(0, dtype)
        with environment_errors(path), path.open("wb") as file:
            # a page that finds the disk full later would be a bus error, not an exception
            os.posix_fallocate(file.fileno(), 0, size * np.dtype(dtype).itemsize)
        return np.memmap(path, dtype, "r+", shape=(size,))

    def chunks(self, size: int) -> Iterator[slice]:
        for start in range(0, size, self.buffer):
            yield slice(start, min(start + self.buffer, size))


@dataclass(frozen=True)
class Counts:
    """The n-grams of one order: `keys` (C,) int64 ascending, `counts` (C,) int64 how often each occurs."""

    keys: Ints
    counts: Ints

    def __len__(self) -> int:
        return len(self.keys)


def count_ngrams(
    split: TokenRows, rows: Ints, order: int, vocab_size: int, scratch: Scratch, told: Told = lambda n, size: None
) -> list[Counts]:
    """Counts of orders 1 to `order` in `rows` of `split`. An n-gram never reaches over the end of a row. told: called
    with each order and how many n-grams it has.

    A row's first token, which nothing predicts, is context only: order 1 does not count it (KenLM's `<s>`).
    """
    tokens, starts = _flatten(split, rows, scratch)
    unigrams = np.zeros(vocab_size, np.int64)
    for part in scratch.chunks(len(tokens)):
        unigrams += np.bincount(tokens[part][~starts[part]], minlength=vocab_size)
    found = [Counts(np.arange(vocab_size, dtype=np.int64), unigrams)]
    numbers: NDArray[Any] = tokens
    for n in range(2, order + 1):
        sources = _Keys(tokens, starts, numbers, vocab_size)
        counts = _count(sources, n, scratch)
        found.append(counts)
        told(n, len(counts))
        if n < order:
            numbers = scratch.array(f"numbers-{n}", len(tokens), np.int64)
            for part in scratch.chunks(len(tokens)):
                keys = sources.of(part)
                numbers[part] = np.where(keys >= 0, np.searchsorted(counts.keys, keys), -1)
            (scratch.directory / f"numbers-{n - 1}").unlink(missing_ok=True)  # what is open stays readable
    return found


def _flatten(split: TokenRows, rows: Ints, scratch: Scratch) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """(M,) all tokens end to end, and (M,) where a row begins."""
    sizes = np.asarray(split.lengths())[rows].astype(np.int64)
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    tokens = scratch.array("tokens", total, np.int32)
    starts = scratch.array("starts", total, np.bool_)
    for row, size, end in zip(rows.tolist(), sizes.tolist(), ends.tolist(), strict=True):
        if size:
            tokens[end - size : end] = split.row(row)
            starts[end - size] = True
    return tokens, starts


@dataclass(frozen=True)
class _Keys:
    """Keys of the n-gram that ends at each position. numbers: (M,) those of the (n-1)-grams, -1 where there is none."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.bool_]
    numbers: NDArray[Any]
    vocab_size: int

    def of(self, part: slice) -> Ints:
        """(part,) keys, -1 where the row has too few tokens before."""
        keys = np.full(part.stop - part.start, -1, np.int64)
        first = max(part.start, 1)
        before = self.numbers[first - 1 : part.stop - 1].astype(np.int64)
        whole = (before >= 0) & ~self.starts[first : part.stop]
        keys[first - part.start :][whole] = before[whole] * self.vocab_size + self.tokens[first : part.stop][whole]
        return keys


def _count(sources: _Keys, n: int, scratch: Scratch) -> Counts:
    runs = []
    for number, part in enumerate(scratch.chunks(len(sources.tokens))):
        keys = sources.of(part)
        found, counts = np.unique(keys[keys >= 0], return_counts=True)
        run = Counts(*(scratch.array(f"run-{n}-{number}-{kind}", len(found), np.int64) for kind in ("keys", "counts")))
        run.keys[:], run.counts[:] = found, counts
        runs.append(run)
    merged = runs[0] if len(runs) == 1 else _merge(runs, n, scratch)
    if len(runs) > 1:
        for path in scratch.directory.glob(f"run-{n}-*"):
            path.unlink()
    return merged


def _merge(runs: list[Counts], n: int, scratch: Scratch) -> Counts:
    """One sorted run of several, a block of each at a time."""
    block = max(1, scratch.buffer // max(len(runs), 1))
    at = [0] * len(runs)
    paths = [scratch.directory / f"{kind}-{n}" for kind in ("keys", "counts")]
    with environment_errors(paths[0]), paths[0].open("wb") as key_file, paths[1].open("wb") as count_file:
        while any(place < len(run) for place, run in zip(at, runs, strict=True)):
            heads = [run.keys[place : place + block] for place, run in zip(at, runs, strict=True)]
            # beyond the smallest last key of a run that goes on, other blocks may hold keys that are not read yet
            bounds = [
                int(head[-1]) for head, place, run in zip(heads, at, runs, strict=True) if place + block < len(run)
            ]
            takes = [int(np.searchsorted(head, min(bounds), "right")) if bounds else len(head) for head in heads]
            keys = np.concatenate([head[:take] for head, take in zip(heads, takes, strict=True)])
            counts = np.concatenate(
                [run.counts[place : place + take] for run, place, take in zip(runs, at, takes, strict=True)]
            )
            order = np.argsort(keys, kind="stable")
            keys, counts = keys[order], counts[order]
            first = np.flatnonzero(np.diff(keys, prepend=-1))
            keys[first].tofile(key_file)
            np.add.reduceat(counts, first).tofile(count_file)
            at = [place + take for place, take in zip(at, takes, strict=True)]
    if paths[0].stat().st_size == 0:
        return Counts(np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Counts(*(np.memmap(path, np.int64, "r") for path in paths))
