"""The weight of a mixture is the best one, as a search over all weights finds it."""

from __future__ import annotations

import numpy as np
import pytest

from llmkit.metrics.mixture import fit_weight, mix


def test_the_weight_maximises_the_likelihood() -> None:
    draw = np.random.default_rng(0)
    truth = 0.3
    first, second = draw.normal(-3, 2, 5000), draw.normal(-3, 2, 5000)
    weight = fit_weight(first, second)
    grid = np.linspace(0.0005, 0.9995, 1999)
    best = max(grid, key=lambda w: mix(first, second, w).sum())
    assert weight == pytest.approx(best, abs=1e-3)
    which = draw.random(20000) < truth  # tokens drawn from the mixture itself give its weight back
    p = draw.dirichlet(np.ones(10), 2)
    words = np.where(which, draw.choice(10, 20000, p=p[0]), draw.choice(10, 20000, p=p[1]))
    assert fit_weight(np.log(p[0][words]), np.log(p[1][words])) == pytest.approx(truth, abs=0.05)


def test_a_model_that_is_always_better_gets_everything() -> None:
    worse, better = np.full(10, -5.0), np.full(10, -1.0)
    assert fit_weight(worse, better) < 1e-5
    assert fit_weight(better, worse) > 1 - 1e-5
    assert fit_weight(np.full(3, -800.0), np.full(3, 0.0)) == pytest.approx(0, abs=1e-9)


def test_mixing_adds_probabilities() -> None:
    first, second = np.log([0.2, 0.5, 1e-30]), np.log([0.4, 0.1, 0.3])
    np.testing.assert_allclose(np.exp(mix(first, second, 0.25)), [0.35, 0.2, 0.225], rtol=1e-12)
    np.testing.assert_array_equal(mix(first, second, 1.0), first)
    np.testing.assert_array_equal(mix(first, second, 0.0), second)
