import math

import pytest
import torch
from transformers import (
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
)

from llmkit.train.schedules import SCHEDULES, WSD_DECAY_FRACTION, Schedule, whole_steps

TOTAL, WARMUP = 50, 10


def theirs(make):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = make(optimizer)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("kind", "floor", "make"),
    [
        ("cosine", 0.0, lambda o: get_cosine_schedule_with_warmup(o, WARMUP, TOTAL)),
        ("linear", 0.0, lambda o: get_linear_schedule_with_warmup(o, WARMUP, TOTAL)),
        (
            "cosine_with_min_lr",
            0.1,
            lambda o: get_cosine_with_min_lr_schedule_with_warmup(o, WARMUP, TOTAL, min_lr_rate=0.1),
        ),
    ],
)
def test_equal_to_transformers_after_warmup(kind, floor, make):
    ours = Schedule(kind, 2.0, TOTAL, WARMUP, floor)
    assert [ours.learning_rate(s) for s in range(WARMUP, TOTAL)] == pytest.approx(theirs(make)[WARMUP:], abs=1e-12)


def test_inverse_sqrt_falls_as_transformers_does():
    ours = Schedule("inverse_sqrt", 2.0, TOTAL, WARMUP, 0.0)
    reference = theirs(lambda o: get_inverse_sqrt_schedule(o, WARMUP, timescale=WARMUP))
    # theirs starts its warm-up at zero, so it is a step behind
    assert [ours.learning_rate(s) for s in range(WARMUP, TOTAL - 1)] == pytest.approx(reference[WARMUP + 1 :])


def test_first_step_of_a_warmup_learns_and_its_last_is_the_peak():
    schedule = Schedule("cosine", 3.0, TOTAL, WARMUP, 0.0)
    assert schedule.learning_rate(0) == pytest.approx(0.3)
    assert schedule.learning_rate(WARMUP - 1) == 3.0


def test_warmup_stable_decay_is_flat_until_its_decay():
    schedule = Schedule("warmup_stable_decay", 1.0, 100, 10, 0.0)
    assert schedule.decay_start == 100 - round(100 * WSD_DECAY_FRACTION)
    assert {schedule.learning_rate(s) for s in range(10, schedule.decay_start)} == {1.0}
    assert schedule.learning_rate(99) == pytest.approx(1 / 20)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_rate_is_positive_and_at_most_the_peak(kind):
    schedule = Schedule(kind, 1e-3, 37, 4, 0.0)
    rates = [schedule.learning_rate(s) for s in range(37)]
    assert all(0 < rate <= 1e-3 and math.isfinite(rate) for rate in rates)


def test_warmup_as_a_fraction_or_a_number():
    assert whole_steps(0.1, 200) == 20
    assert whole_steps(7, 200) == 7
    assert whole_steps(500, 200) == 200
    assert whole_steps(0.0, 200) == 0
