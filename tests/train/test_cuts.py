from itertools import combinations, pairwise

import numpy as np
import pytest

from llmkit.train.cuts import Budget, cut, halved


def cost(lengths, bounds, budget):
    """Recounted from the definition."""
    parts = [lengths[start:stop] for start, stop in pairwise(bounds)]
    return sum(budget.fixed + max(part) * (len(part) + budget.serial_rows) for part in parts)


def allowed(lengths, bounds, rows, budget):
    parts = [lengths[start:stop] for start, stop in pairwise(bounds)]
    return all(len(part) <= rows and (len(part) == 1 or len(part) * max(part) <= budget.tokens) for part in parts)


@pytest.mark.parametrize("budget", [Budget(60), Budget(60, fixed=9), Budget(10**6, fixed=40), Budget(60, 5, 3)])
@pytest.mark.parametrize("rows", [3, 9])
def test_no_cut_is_cheaper(budget, rows):
    for seed in range(8):
        lengths = np.sort(np.random.default_rng(seed).integers(1, 40, 9))[::-1]
        every = [
            [0, *inner, 9] for count in range(9) for inner in combinations(range(1, 9), count)
        ]  # all 256 ways to cut nine samples
        found = cut(lengths, rows=rows, budget=budget)
        assert allowed(lengths, found, rows, budget)
        best = min(cost(lengths, bounds, budget) for bounds in every if allowed(lengths, bounds, rows, budget))
        assert cost(lengths, found, budget) == best


def test_without_a_budget_all_have_one_size_but_the_last():
    assert cut(np.array([9, 9, 8, 3, 1]), rows=2, budget=None) == [0, 2, 4, 5]


def test_a_sample_beyond_the_budget_stands_alone():
    assert cut(np.array([90, 5, 5]), rows=8, budget=Budget(10, fixed=1000)) == [0, 1, 3]
    assert cut(np.array([0, 0]), rows=8, budget=Budget(10, fixed=1)) == [0, 2]  # samples of nothing


def test_halving_ends_with_single_samples():
    lengths = np.array([30, 20, 10, 10])
    tokens, steps = 1000, []
    while tokens is not None:
        steps.append(tokens)
        tokens = halved(lengths, rows=4, budget=Budget(tokens, fixed=100))
    assert steps == [1000, 60, 30, 10]
    assert cut(lengths, rows=4, budget=Budget(10, fixed=100)) == [0, 1, 2, 3, 4]
