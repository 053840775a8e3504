"""The bootstrap against scipy's, against a plain loop, and against the truth on a known distribution."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from llmkit.metrics import bootstrap
from llmkit.metrics.bootstrap import paired_interval, ratio_interval, sign_test, sums_interval


def documents(n: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 400, n).astype(float)
    return tokens * generator.normal(3.0, 0.5, n), tokens


def test_value_is_exact_and_transformed() -> None:
    value, low, high = ratio_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], transform=np.exp)
    assert value == low == high == pytest.approx(np.exp(2.0), rel=1e-15)


def test_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not one of llmkit's own dependencies")
    top, bottom = documents(150)
    expected = stats.bootstrap(
        (top, bottom),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    value, low, high = ratio_interval(top, bottom, resamples=20_000)
    width = expected.high - expected.low
    assert value == top.sum() / bottom.sum()
    assert low == pytest.approx(expected.low, abs=0.03 * width)
    assert high == pytest.approx(expected.high, abs=0.03 * width)


def test_agrees_with_a_plain_loop() -> None:
    top, bottom = documents(60)
    generator = np.random.default_rng(9)
    drawn = [generator.integers(0, 60, 60) for _ in range(8000)]
    low, high = np.percentile([top[i].sum() / bottom[i].sum() for i in drawn], [2.5, 97.5])
    _, found_low, found_high = ratio_interval(top, bottom, resamples=8000)
    assert found_low == pytest.approx(low, abs=0.05 * (high - low))
    assert found_high == pytest.approx(high, abs=0.05 * (high - low))


def test_small_sample_equals_enumeration() -> None:
    """All 27 equally likely resamples of three items: the percentiles of an exact bootstrap."""
    top, bottom = np.array([1.0, 5.0, 12.0]), np.array([2.0, 3.0, 4.0])
    ratios = [top[list(i)].sum() / bottom[list(i)].sum() for i in itertools.product(range(3), repeat=3)]
    _, low, high = ratio_interval(top, bottom, resamples=40_000)
    assert (low, high) == (min(ratios), max(ratios))


def test_covers_the_truth_in_95_of_100() -> None:
    hits = 0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        tokens = generator.integers(50, 150, 80).astype(float)
        _, low, high = ratio_interval(tokens * generator.normal(2.0, 0.7, 80), tokens, resamples=400, seed=seed)
        assert low is not None
        assert high is not None
        hits += low <= 2.0 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_one_item_has_no_interval() -> None:
    assert ratio_interval([3.0], [2.0]) == (1.5, None, None)


def test_is_deterministic_and_depends_on_the_seed() -> None:
    top, bottom = documents(50)
    assert ratio_interval(top, bottom) == ratio_interval(top, bottom)
    assert ratio_interval(top, bottom) != ratio_interval(top, bottom, seed=1)


def test_items_without_tokens_do_not_break_it() -> None:
    value, low, high = ratio_interval([0.0, 6.0], [0.0, 3.0])
    assert (value, low, high) == (2.0, 2.0, 2.0)


def test_grouping_many_items_keeps_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    top, bottom = documents(30_000)
    _, low, high = ratio_interval(top, bottom, resamples=600)
    monkeypatch.setattr(bootstrap, "MAX_UNITS", 100_000)
    _, exact_low, exact_high = ratio_interval(top, bottom, resamples=600)
    assert low is not None
    assert high is not None
    assert exact_low is not None
    assert exact_high is not None
    assert (high - low) == pytest.approx(exact_high - exact_low, rel=0.15)


def test_memory_is_bounded_for_a_million_items() -> None:
    top, bottom = documents(1_000_000)
    tracemalloc.start()
    ratio_interval(top, bottom, resamples=400)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_paired_difference_is_narrower_than_unpaired() -> None:
    top, bottom = documents(200)
    better = top - 0.1 * bottom
    difference, low, high = paired_interval((top, bottom), (better, bottom), lambda sums: sums[0] / sums[1])
    assert difference == pytest.approx(-0.1)
    assert low == pytest.approx(-0.1)
    assert high == pytest.approx(-0.1)
    _, alone_low, alone_high = ratio_interval(top, bottom)
    assert alone_low is not None
    assert alone_high is not None
    assert alone_high - alone_low > 0.05


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 5), (12, 3), (700, 620)])
def test_sign_test_is_the_exact_binomial(better: int, worse: int) -> None:
    n = better + worse
    tail = sum(math.comb(n, i) for i in range(min(better, worse) + 1))
    expected = min(1.0, 2 * tail / 2**n)
    assert sign_test(better, worse) == pytest.approx(expected, rel=1e-9)
    assert sign_test(worse, better) == sign_test(better, worse)


def test_a_statistic_of_sums_agrees_with_the_ratio():
    draw = np.random.default_rng(3)
    top, bottom = draw.random(200), draw.random(200) + 0.5
    expected = ratio_interval(top, bottom)
    found = sums_interval(np.stack([top, bottom]), lambda sums: sums[0] / sums[1])
    assert found == pytest.approx(expected)
    assert sums_interval([[1.0], [2.0]], lambda sums: sums[0] / sums[1]) == (0.5, None, None)
