import math

import numpy as np
import pytest

from llmkit.train import spikes


def test_against_the_formula_in_float64():
    draw = np.random.default_rng(1)
    for _ in range(200):
        recent = draw.normal(3.0, 0.2, draw.integers(spikes.ENOUGH, spikes.WINDOW + 1))
        bound = recent.mean() + 6 * recent.std(ddof=1)
        assert spikes.is_spike(recent.tolist(), bound + 1e-9)
        assert not spikes.is_spike(recent.tolist(), bound - 1e-9)


def test_too_few_steps_and_what_is_not_finite_are_no_spikes():
    assert not spikes.is_spike([3.0, 3.1] * (spikes.ENOUGH // 2 - 1), 100.0)
    assert not spikes.is_spike([3.0, 3.1] * spikes.ENOUGH, math.nan)
    assert not spikes.is_spike([3.0, 3.1] * spikes.ENOUGH, math.inf)


def test_a_level_that_stays_is_no_spike_for_ever():
    recent = [3.0, 3.1] * spikes.ENOUGH
    told = []
    for step in range(spikes.WINDOW):
        told.append(spikes.is_spike(recent, 9.0 + 0.1 * (step % 2)))
        recent = spikes.remembered(recent, 9.0 + 0.1 * (step % 2))
    assert told[0] and not any(told[10:])
    assert len(recent) == spikes.WINDOW
    assert spikes.remembered(recent, math.nan) == recent


@pytest.mark.parametrize(("step", "target"), [(0, 0), (9, 0), (10, 0), (11, 10), (20, 10), (25, 20)])
def test_the_checkpoint_to_go_back_to_is_before_the_one_just_saved(step, target):
    assert spikes.rollback_step(step, 10) == target
