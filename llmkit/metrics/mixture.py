"""Two language models mixed token by token: p = w p1 + (1 - w) p2, with w fitted by expectation maximisation.

Jelinek and Mercer 1980. The log-likelihood is concave in w, so that EM climbs to the one best weight. Torch-free.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TOLERANCE = 1e-7
MAX_ROUNDS = 2000


def fit_weight(first: Floats, second: Floats) -> float:
    """The weight of the first model that makes the tokens most probable; first, second: (N,) log p of each token."""
    assert len(first) == len(second) > 0, "both models score the same tokens"
    with np.errstate(over="ignore"):
        odds = np.minimum(np.exp(second - first), 1e300)
    weight = 0.5
    for _ in range(MAX_ROUNDS):
        # the share of each token that the first model answers for, on average
        new = float(np.mean(weight / (weight + (1 - weight) * odds)))
        if abs(new - weight) < TOLERANCE:
            return new
        weight = new
    return weight


def mix(first: Floats, second: Floats, weight: float) -> Floats:
    """(N,) log of `weight` exp(first) + (1 - weight) exp(second)."""
    with np.errstate(divide="ignore"):
        logs = np.log(weight), np.log1p(-weight)
    mixed: Floats = np.logaddexp(logs[0] + first, logs[1] + second)
    return mixed
