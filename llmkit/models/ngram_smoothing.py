"""Modified Kneser-Ney: from counts to probabilities and backoffs, interpolated at every order down to the uniform.

Chen and Goodman 1999 (three discounts an order, equation 26) as Heafield et al. 2013 and KenLM's lmplz define it:
below the highest order an n-gram counts by how many different tokens precede it, unless it begins a document;
    p(w | c) = max(a(c w) - D(a(c w)), 0) / a(c *) + b(c) p(w | c without its first token),
    b(c) = (sum over k of D(k) times how many continuations have a = k + the mass of what is pruned) / a(c *),
and below order 1 stands 1 / |V|. V is every token of the tokenizer but the one that begins documents (KenLM's `<s>`),
where that is another than the one that ends them (`</s>`): a token that training never showed gets its share of the
uniform, as KenLM's `<unk>` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.packing import TokenRows
from llmkit.models.ngram_counting import Counts, Scratch, Told, count_ngrams

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of an order whose counts of counts give none (KenLM's --discount_fallback): small or artificial data."""
NEVER = -99.0 * math.log(10)
"""Log-probability of what no text can go on with: ARPA's -99."""


@dataclass(frozen=True)
class Table:
    """One order of the model: `keys` (C,) ascending, natural logarithms of p (C,) and of the backoff (C,)."""

    keys: Ints
    log_probs: NDArray[np.float32]
    backoffs: NDArray[np.float32]


@dataclass(frozen=True)
class Smoothed:
    """`discounts`: D1, D2, D3+ an order; `fallback`: the orders that use FALLBACK; `seen`: n-grams before pruning."""

    tables: list[Table]
    discounts: list[tuple[float, float, float]]
    fallback: list[int]
    seen: list[int]


@dataclass(frozen=True)
class Documents:
    """What is counted: `rows` of a split (a row as often as it is named), each [start, ..., end], and its vocabulary.

    start, end: the tokens that begin and end a document, which may be the same one.
    """

    split: TokenRows
    rows: Ints
    vocab_size: int
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        """Tokens that are predicted."""
        lengths = np.asarray(self.split.lengths())[self.rows].astype(np.int64)
        return int((lengths - 1).clip(min=0).sum())


def estimate(
    documents: Documents, *, order: int, prune: list[int], scratch: Scratch, told: Told = lambda n, size: None
) -> Smoothed:
    """The model of `order` of the documents. A function of them alone: the size of the buffers does not show."""
    counts = count_ngrams(documents.split, documents.rows, order, documents.vocab_size, scratch, told)
    return smooth(counts, start=documents.start, end=documents.end, prune=prune, scratch=scratch)


def thresholds(prune: list[int], order: int) -> list[int]:
    """A threshold an order; the last one given holds for the orders above. N-grams that occur no more often go."""
    given = (prune or [0])[:order]
    return given + [given[-1]] * (order - len(given))


def smooth(counts: list[Counts], *, start: int, end: int, prune: list[int], scratch: Scratch) -> Smoothed:
    """The model of counted n-grams. start, end: the tokens that begin and end a document (may be the same)."""
    vocab_size, order = len(counts[0]), len(counts)
    suffixes, begins = _suffixes(counts, start, vocab_size, scratch)
    limits = thresholds(prune, order)
    tables: list[Table] = []
    discounts: list[tuple[float, float, float]] = []
    fallback = []
    lower: Any = np.full(1, 1.0 / (vocab_size - (start != end)))
    ranks: Any = None  # of the order below: (old numbers of what is kept, new number of each old one)
    for n in range(1, order + 1):
        higher = suffixes[n] if n < order else None
        adjusted = _adjusted(counts[n - 1], begins[n - 1], higher, n, scratch)
        if n == 1 and start != end:
            adjusted[start] = 0
        found = discounts_of(_counts_of_counts(adjusted, scratch))
        if found is None:
            fallback.append(n)
        discounts.append(found or FALLBACK)
        level = _Level(n, counts[n - 1], adjusted, suffixes[n - 1], limits[n - 1], vocab_size)
        sums = _context_sums(level, discounts[-1], len(lower) if n == 1 else len(counts[n - 2]), scratch)
        if n > 1:
            for part in scratch.chunks(len(ranks[0])):
                tables[-1].backoffs[part] = np.log(sums.backoffs[ranks[0][part]])
        probs = _probabilities(level, discounts[-1], sums, lower, scratch)
        if n == 1 and start != end:
            probs[start] = math.exp(NEVER)
        table, ranks = _kept(level, probs, ranks, scratch)
        tables.append(table)
        lower = probs
    return Smoothed(tables, discounts, fallback, [len(part) for part in counts])


def discounts_of(counts_of_counts: Ints) -> tuple[float, float, float] | None:
    """D1, D2, D3+ of (5,) how many n-grams have count 0, 1, 2, 3, 4; None where they are not defined."""
    t = counts_of_counts.astype(np.float64)
    if (t[1:4] == 0).any():
        return None
    y = t[1] / (t[1] + 2 * t[2])
    found = tuple(float(k - (k + 1) * y * t[k + 1] / t[k]) for k in (1, 2, 3))
    # a discount of 0 could leave a context nothing to back off with
    return (found[0], found[1], found[2]) if all(0 < d <= k for k, d in enumerate(found, 1)) else None


@dataclass(frozen=True)
class _Level:
    """What is known of one order before its probabilities; `suffixes` number each n-gram without its first token."""

    n: int
    counts: Counts
    adjusted: Ints
    suffixes: Any
    limit: int
    vocab_size: int

    def contexts(self, part: slice) -> Ints:
        """Numbers of the contexts; order 1 has one, the empty context."""
        keys = np.asarray(self.counts.keys[part])
        return np.zeros(len(keys), np.int64) if self.n == 1 else keys // self.vocab_size

    def keep(self, part: slice) -> NDArray[np.bool_]:
        """What is not pruned. As counts fall and limits rise with the order, all parts of what is kept are kept."""
        kept: NDArray[np.bool_] = np.asarray(self.counts.counts[part]) > self.limit
        return kept if self.n > 1 else np.ones_like(kept)


def _suffixes(counts: list[Counts], start: int, vocab_size: int, scratch: Scratch) -> tuple[list[Any], list[Any]]:
    """For each order: number of the n-gram without its first token, and whether its first token begins a document."""
    suffixes: list[Any] = [np.zeros(vocab_size, np.int64)]
    begins: list[Any] = [np.arange(vocab_size) == start]
    for n in range(2, len(counts) + 1):
        keys = counts[n - 1].keys
        suffix, begin = (
            scratch.array(f"{name}-{n}", len(keys), dtype)
            for name, dtype in (("suffix", np.int64), ("begin", np.bool_))
        )
        for part in scratch.chunks(len(keys)):
            context, token = np.divmod(np.asarray(keys[part]), vocab_size)
            wanted = token if n == 2 else suffixes[-1][context] * vocab_size + token
            suffix[part] = np.searchsorted(counts[n - 2].keys, wanted)
            begin[part] = begins[-1][context]
        suffixes.append(suffix)
        begins.append(begin)
    return suffixes, begins


def _adjusted(counts: Counts, begins: Any, higher: Any, n: int, scratch: Scratch) -> Ints:
    """(C,) how many different tokens precede each n-gram; its count where none can, or at the highest order."""
    if higher is None:
        return counts.counts
    adjusted = scratch.array(f"adjusted-{n}", len(counts), np.int64)
    for part in scratch.chunks(len(higher)):
        numbers, times = np.unique(higher[part], return_counts=True)
        adjusted[numbers] += times
    if n > 1:
        for part in scratch.chunks(len(counts)):
            adjusted[part] = np.where(begins[part], counts.counts[part], adjusted[part])
    return adjusted


def _counts_of_counts(adjusted: Ints, scratch: Scratch) -> Ints:
    found = np.zeros(6, np.int64)
    for part in scratch.chunks(len(adjusted)):
        found += np.bincount(np.minimum(adjusted[part], 5), minlength=6)
    return found[:5]


@dataclass(frozen=True)
class _Sums:
    """Of each context: a(c *), and the backoff b(c), 1 where nothing follows."""

    totals: Any
    backoffs: Any


def _context_sums(level: _Level, discounts: tuple[float, float, float], contexts: int, scratch: Scratch) -> _Sums:
    by_count = np.array([0.0, *discounts])
    totals = scratch.array(f"totals-{level.n}", contexts, np.float64)
    backoffs = scratch.array(f"backoffs-{level.n}", contexts, np.float64)
    for part in scratch.chunks(len(level.counts)):
        adjusted = np.asarray(level.adjusted[part])
        freed = np.where(level.keep(part), by_count[np.minimum(adjusted, 3)], adjusted.astype(np.float64))
        owners = level.contexts(part)
        first = np.flatnonzero(np.diff(owners, prepend=-1))
        totals[owners[first]] += np.add.reduceat(adjusted.astype(np.float64), first)
        backoffs[owners[first]] += np.add.reduceat(freed, first)
    for part in scratch.chunks(contexts):
        empty = totals[part] == 0
        backoffs[part] = np.where(empty, 1.0, backoffs[part] / np.where(empty, 1.0, totals[part]))
    return _Sums(totals, backoffs)


def _probabilities(
    level: _Level, discounts: tuple[float, float, float], sums: _Sums, lower: Any, scratch: Scratch
) -> Floats:
    by_count = np.array([0.0, *discounts])
    probs = scratch.array(f"probs-{level.n}", len(level.counts), np.float64)
    for part in scratch.chunks(len(probs)):
        adjusted = np.asarray(level.adjusted[part])
        owners = level.contexts(part)
        totals = np.maximum(sums.totals[owners], 1.0)  # 0 only where nothing was counted at all
        own = (adjusted - by_count[np.minimum(adjusted, 3)]) / totals
        probs[part] = own + sums.backoffs[owners] * lower[level.suffixes[part]]
    return probs


def _kept(level: _Level, probs: Floats, contexts: Any, scratch: Scratch) -> tuple[Table, Any]:
    """The order without what is pruned, numbered anew; and (kept numbers, new number of each old one)."""
    size = len(level.counts)
    ranks = scratch.array(f"ranks-{level.n}", size, np.int64)
    total = 0
    for part in scratch.chunks(size):
        kept = level.keep(part)
        ranks[part] = total + np.cumsum(kept) - 1
        total += int(kept.sum())
    old = scratch.array(f"kept-{level.n}", total, np.int64)
    keys = scratch.array(f"table-{level.n}", total, np.int64)
    log_probs = scratch.array(f"log-probs-{level.n}", total, np.float32)
    for part in scratch.chunks(size):
        places = np.flatnonzero(level.keep(part))
        into = ranks[part][places]
        old[into] = places + part.start
        whole = np.asarray(level.counts.keys[part])[places]
        if level.n > 2:
            context, token = np.divmod(whole, level.vocab_size)
            whole = contexts[1][context] * level.vocab_size + token
        keys[into] = whole
        log_probs[into] = np.log(probs[part][places])
    return Table(keys, log_probs, scratch.array(f"table-backoffs-{level.n}", total, np.float32)), (old, ranks)
