from itertools import pairwise

import numpy as np
import pytest
import torch

from llmkit.train.cuts import Budget
from llmkit.train.feed import Calendar, Feed, Layout, calendar
from tests.train.toy import ToyPlan, ToyTask


def rows_of(world_size, micro_batch, step, global_batch=8, budget=None):
    """Multiset of the token rows that all ranks show in a step, and their counts."""
    plan, task = ToyPlan(), ToyTask()
    days = calendar(plan, global_batch=global_batch, max_steps=12, epochs=1)
    seen, counts, micro, tokens = [], {}, set(), 0
    for rank in range(world_size):
        layout = Layout(global_batch, micro_batch, rank, world_size, budget=budget)
        feed = Feed(task, plan, days, layout, seed=0, device=torch.device("cpu")).make(step)
        micro.add(len(feed.micro_batches))
        tokens += feed.tokens
        for name, count in feed.counts.items():
            counts[name] = counts.get(name, 0) + count
        for part in feed.micro_batches:
            if part.weight:
                for ids, labels in zip(part.batch["input_ids"], part.batch["labels"], strict=True):
                    seen.append((tuple(np.trim_zeros(ids.numpy(), "b")), tuple(n for n in labels.tolist() if n >= 0)))
    return sorted(seen), counts, micro, tokens


def dealt(world_size, step, steps_passed=0):
    """The step's rows (their indices) in the order in which they are dealt to the ranks."""
    days = calendar(ToyPlan(), global_batch=8, max_steps=12, epochs=1)
    ranks = []
    for rank in range(world_size):
        plan = Recorded()
        feed = Feed(ToyTask(), plan, days, Layout(8, 2, rank, world_size), seed=0, device=torch.device("cpu"))
        feed.pass_over(steps_passed)
        feed.make(step + steps_passed)
        ranks.append(plan.asked)
    return [mine[turn] for turn in range(len(ranks[0])) for mine in ranks if turn < len(mine)]


class Recorded(ToyPlan):
    """Keeps the indices of the samples it was first asked for; blanks come later."""

    asked = None

    def samples(self, epoch, indices):
        if self.asked is None:
            self.asked = [(epoch, int(index)) for index in indices]
        return super().samples(epoch, indices)


def test_every_number_of_processes_has_the_same_order_in_every_step():
    for step in range(12):  # the fifth of an epoch is short: 37 = 4 x 8 + 5
        alone = dealt(1, step)
        assert dealt(2, step) == dealt(3, step) == dealt(4, step) == alone
        assert len(alone) == (5 if step % 5 == 4 else 8)


def test_data_that_is_passed_over_goes_on_into_a_further_epoch():
    assert dealt(2, 3, steps_passed=4) == dealt(1, 7)
    assert {epoch for epoch, _ in dealt(1, 11, steps_passed=6)} == {3}


def test_half_the_micro_batch_from_the_next_step_on():
    days = calendar(ToyPlan(), global_batch=8, max_steps=12, epochs=1)
    feed = Feed(ToyTask(), ToyPlan(), days, Layout(8, 4, 0, 1, (4, 12)), seed=0, device=torch.device("cpu"))
    assert len(feed.take(0).micro_batches) == 2
    assert feed.halve(0)
    made = feed.take(1)
    assert [tuple(micro.batch["input_ids"].shape) for micro in made.micro_batches] == [(2, 12)] * 4
    assert feed.halve(1) and not feed.halve(1)  # of one sample each


def test_half_the_tokens_of_the_largest_micro_batch():
    days = calendar(ToyPlan(), global_batch=8, max_steps=12, epochs=1)
    layout = Layout(8, 8, 0, 1, budget=Budget(4096, fixed=100))
    feed = Feed(ToyTask(), ToyPlan(), days, layout, seed=0, device=torch.device("cpu"))
    sizes = []
    while True:
        micro_batches = feed.take(0).micro_batches
        sizes.append(max(micro.batch["input_ids"].numel() for micro in micro_batches))
        if not feed.halve(0):
            break
    assert sizes[0] == 8 * max(ToyPlan().lengths(0, np.arange(8)))  # one micro-batch holds all
    assert all(after <= before // 2 or after <= 10 for before, after in pairwise(sizes))
    assert len(micro_batches) == 8


@pytest.mark.parametrize("step", [0, 3, 4, 9])
def test_every_layout_shows_the_same_rows(step):
    reference = rows_of(1, 8, step)
    for world_size, micro_batch in [(1, 1), (2, 2), (4, 2), (8, 1), (2, 4)]:
        seen, counts, micro, tokens = rows_of(world_size, micro_batch, step)
        assert (seen, counts, tokens) == (reference[0], reference[1], reference[3])
        assert len(micro) == 1  # a sharded model's backward is a collective


@pytest.mark.parametrize("step", [0, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("budget", [Budget(20), Budget(30, fixed=5), Budget(1), Budget(25, serial_rows=4)])
def test_a_budget_of_tokens_shows_the_same_rows(step, world_size, budget):
    seen, counts, micro, tokens = rows_of(world_size, 8, step, budget=budget)
    reference = rows_of(1, 8, step)
    assert (seen, counts, tokens) == (reference[0], reference[1], reference[3])
    assert len(micro) == 1


def test_the_last_batch_of_an_epoch_is_short_and_kept():
    days = calendar(ToyPlan(37), global_batch=8, max_steps=None, epochs=2)
    assert days.total_steps == 10
    assert days.locate(4) == (0, 32, 37)
    assert days.locate(5) == (1, 0, 8)
    assert days.epoch_ends() == {5, 10}


def test_fractions_of_epochs_and_steps_beyond_one():
    assert calendar(ToyPlan(40), global_batch=8, max_steps=None, epochs=0.5).total_steps == 2
    assert calendar(ToyPlan(40), global_batch=8, max_steps=None, epochs=1.4).total_steps == 7
    assert len(calendar(ToyPlan(40), global_batch=8, max_steps=12, epochs=1).samples_per_epoch) == 3


def test_epochs_may_differ_in_length():
    days = Calendar((10, 3, 8), 4, 6)
    assert [days.locate(s) for s in range(6)] == [(0, 0, 4), (0, 4, 8), (0, 8, 10), (1, 0, 3), (2, 0, 4), (2, 4, 8)]


def test_a_fixed_shape_pads_rows_that_are_not_supervised():
    plan, task = ToyPlan(), ToyTask()
    days = calendar(plan, global_batch=8, max_steps=5, epochs=1)
    layout = Layout(8, 4, 0, 1, fixed_shape=(4, 16))
    feed = Feed(task, plan, days, layout, seed=0, device=torch.device("cpu"))
    made = feed.make(4)
    assert {tuple(part.batch["labels"].shape) for part in made.micro_batches} == {(4, 16)}
    assert made.counts == Feed(task, plan, days, Layout(8, 4, 0, 1), seed=0, device=torch.device("cpu")).make(4).counts
    assert (made.micro_batches[-1].batch["labels"][1:] == -100).all()
