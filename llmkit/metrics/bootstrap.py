"""Percentile bootstrap over items (documents, examples) for metrics that are a ratio of sums. Torch-free.

Loss, perplexity, bits a byte and accuracy are all `f(sum of numerators / sum of denominators)` over items: resampling
the items, not the tokens, keeps the tokens of one document together, as they must be (they are not independent).
Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13. Paired comparisons draw the same items for both
sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Transform = Callable[[Floats], Floats]

MAX_UNITS = 20_000
"""More items than this are first summed into that many random groups; resampling groups estimates the same spread."""
_CHUNK_VALUES = 4_000_000


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    transform: Transform | None = None,
) -> tuple[float, float | None, float | None]:
    """(value, low, high): `transform(sum(numerators) / sum(denominators))` and its 95% percentile interval.

    numerators, denominators: (N,) a value an item; the denominators' sum must be positive. `value` is exact; the
    interval is a function of the data and `seed`. One item has no interval: (value, None, None).
    """
    top, bottom = _columns(numerators, denominators)
    total = float(bottom.sum())
    assert total > 0, "a ratio needs a positive denominator"
    value = float(_apply(transform, np.array([top.sum() / total]))[0])
    if len(top) < 2:
        return value, None, None
    columns = np.stack([top, bottom])
    ratios = np.concatenate([sums[0] / _positive(sums[1]) for sums in _resampled_sums(columns, resamples, seed)])
    low, high = _percentiles(_apply(transform, ratios))
    return value, low, high


def sums_interval(
    columns: ArrayLike,
    statistic: Callable[[Floats], Floats],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float | None, float | None]:
    """(value, low, high) of any statistic of sums over items: F1 of confusion counts, BLEU of n-gram counts, ...

    columns: (K, N) K numbers an item. statistic: (K, R) sums of R resamples -> (R,); NaN where it is undefined.
    """
    table = np.asarray(columns, dtype=np.float64)
    value = float(statistic(table.sum(axis=1, keepdims=True))[0])
    if table.shape[1] < 2:
        return value, None, None
    found = np.concatenate([statistic(sums) for sums in _resampled_sums(table, resamples, seed)])
    if np.isnan(found).all():
        return value, None, None
    low, high = _percentiles(found)
    return value, low, high


def paired_interval(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Callable[[Floats], Floats],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float | None, float | None]:
    """(difference, low, high) of `statistic` of second - first, each (K, N) of the same N items in the same order.

    Both sides are resampled with the same items, so what items have in common cancels out. statistic: as
    `sums_interval` has it."""
    columns = np.concatenate([np.asarray(side, dtype=np.float64) for side in (first, second)])
    half = len(columns) // 2

    def difference(sums: Floats) -> Floats:
        return statistic(sums[half:]) - statistic(sums[:half])

    return sums_interval(columns, difference, resamples=resamples, seed=seed)


def sign_test(better: int, worse: int) -> float:
    """Two-sided exact p-value of `better` against `worse` untied pairs under even odds; McNemar's exact test for binary
    outcomes, where the two are the discordant counts."""
    n, k = better + worse, min(better, worse)
    if n == 0:
        return 1.0
    log_half_n = n * math.log(2)
    log_terms = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - log_half_n for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(term) for term in log_terms))


def _columns(numerators: ArrayLike, denominators: ArrayLike) -> tuple[Floats, Floats]:
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    assert top.shape == bottom.shape == (len(top),), "one numerator and one denominator an item"
    return top, bottom


def _apply(transform: Transform | None, values: Floats) -> Floats:
    if transform is None:
        return values
    with np.errstate(over="ignore"):  # a perplexity beyond 1e308 is infinite
        return transform(values)


def _positive(sums: Floats) -> Floats:
    """A resample of items that count nothing has no ratio: NaN, left out of the percentiles."""
    return np.where(sums > 0, sums, np.nan)


def _percentiles(values: Floats) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def _resampled_sums(columns: Floats, resamples: int, seed: int) -> Iterator[Floats]:
    """Yields (columns, r) sums over resampled items, r resamples at a time; memory is bounded for any number of
    items."""
    generator = np.random.default_rng(seed)
    if columns.shape[1] > MAX_UNITS:
        columns = _grouped(columns, generator)
    units = columns.shape[1]
    step = max(1, _CHUNK_VALUES // units)
    for start in range(0, resamples, step):
        drawn = generator.integers(0, units, size=(min(step, resamples - start), units), dtype=np.int32)
        places = drawn + np.arange(len(drawn), dtype=np.int64)[:, None] * units
        times = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape)
        yield columns @ times.T.astype(np.float64)


def _grouped(columns: Floats, generator: np.random.Generator) -> Floats:
    """Sums items into MAX_UNITS random groups of (nearly) one size."""
    group_of = generator.permutation(columns.shape[1]) % MAX_UNITS
    return np.stack([np.bincount(group_of, weights=column, minlength=MAX_UNITS) for column in columns])
