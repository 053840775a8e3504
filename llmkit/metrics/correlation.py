"""Pearson and Spearman correlation and mean squared error of predicted numbers, with bootstrap intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmkit.metrics.bootstrap import ratio_interval, sums_interval

Floats = NDArray[np.float64]
Interval = tuple[float, float | None, float | None]


def scores(gold: ArrayLike, predicted: ArrayLike, *, bootstrap: bool, seed: int = 0) -> dict[str, Interval]:
    """pearson, spearman and mse of (N,) numbers; a correlation with a constant is NaN.

    The interval of spearman keeps the ranks of the whole sample in its resamples.
    """
    x, y = np.asarray(gold, np.float64), np.asarray(predicted, np.float64)
    pairs = {"pearson": (x, y), "spearman": (ranks(x), ranks(y))}
    found: dict[str, Interval] = {}
    for name, (left, right) in pairs.items():
        columns = _columns(left, right)
        if bootstrap:
            found[name] = sums_interval(columns, _correlation, seed=seed)
        else:
            found[name] = (float(_correlation(columns.sum(1, keepdims=True))[0]), None, None)
    squared = (x - y) ** 2
    one = np.ones_like(squared)
    found["mse"] = ratio_interval(squared, one, seed=seed) if bootstrap else (float(squared.mean()), None, None)
    return found


def ranks(values: Floats) -> Floats:
    """(N,) ranks from 1; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    middle: Floats = last - (count - 1) / 2
    return middle[place]


def _columns(x: Floats, y: Floats) -> Floats:
    """(6, N): what a correlation is a function of the sums of, around the means so that nothing cancels."""
    a, b = x - x.mean(), y - y.mean()
    return np.stack([np.ones_like(a), a, b, a * a, b * b, a * b])


def _correlation(sums: Floats) -> Floats:
    n, a, b, aa, bb, ab = sums
    spread = (aa - a * a / n) * (bb - b * b / n)
    top = ab - a * b / n
    undefined = np.full_like(top, np.nan)
    found: Floats = np.divide(top, np.sqrt(np.maximum(spread, 0)), out=undefined, where=spread > 1e-300)
    return found
