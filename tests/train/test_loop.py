import math

import pytest
import torch
from torch import nn

from llmkit.errors import Diverged
from llmkit.recipe.sections import TrainingSection
from llmkit.signals import GivenUp
from llmkit.tasks.base import IGNORE
from llmkit.train import optim
from llmkit.train.loop import TrainState, fit
from tests.train.toy import ToyTask, make_run

TRAINING = TrainingSection(optim="adamw", learning_rate=0.05, weight_decay=0.1)


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.module.parameters()])


@pytest.mark.parametrize("micro_batch", [8, 4, 2])
def test_gradient_does_not_depend_on_the_micro_batch(micro_batch):
    one, state, _ = make_run(TRAINING, micro_batch=1)
    assert fit(one, state)
    other, state, _ = make_run(TRAINING, micro_batch=micro_batch)
    assert fit(other, state)
    assert torch.allclose(weights(one), weights(other), rtol=0, atol=1e-12)


def test_step_equals_the_loss_written_down_plainly():
    run, state, events = make_run(TRAINING, steps=1, micro_batch=2, logging_steps=1, max_grad_norm=None)
    reference, _, _ = make_run(TRAINING)
    samples = run.feed.plan.samples(0, range(8))
    loss = {"all": 0.0, "first": 0.0}
    count = dict.fromkeys(loss, 0)
    for sample in samples:  # a row at a time: no padding, no accumulation
        ids, labels = (torch.from_numpy(sample.arrays[k]) for k in ("input_ids", "labels"))
        rows = -torch.log_softmax(reference.module.out(reference.module.embed(ids)), -1)
        for row, label in zip(rows, labels.tolist(), strict=True):
            for name, kept in (("all", label != IGNORE), ("first", label != IGNORE and label < 3)):
                if kept:
                    loss[name] = loss[name] + row[label]
                    count[name] += 1
    total = loss["all"] / count["all"] + 0.5 * loss["first"] / count["first"]
    total.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference.module.parameters()])
    fit(run, state)
    assert events[0]["loss"] == pytest.approx(total.item(), abs=1e-12)
    assert events[0]["grad_norm"] == pytest.approx(float(norm), abs=1e-12)
    assert events[0]["all_loss"] == pytest.approx(loss["all"].item() / count["all"], abs=1e-12)


def test_resumed_run_is_bitwise_the_uninterrupted_one():
    whole, state, events = make_run(TRAINING, dropout=0.3, dtype=torch.float32)
    fit(whole, state)
    first, state, _ = make_run(TRAINING, dropout=0.3, dtype=torch.float32)
    first = make_run(TRAINING, dropout=0.3, dtype=torch.float32, save_is_due=lambda s: _stop_after(first_stop, s, 5))
    first_stop = first[0].stop
    assert not fit(first[0], first[1])
    assert first[1].step == 5
    saved = {k: v.clone() for k, v in optim.state_tensors(first[0].module, first[0].optimizers).items()}
    second, _, later = make_run(TRAINING, dropout=0.3, dtype=torch.float32)
    second.module.load_state_dict(first[0].module.state_dict())
    optim.load_state_tensors(second.module, second.optimizers, saved)
    assert fit(second, TrainState(**first[1].as_json()))
    assert torch.equal(weights(whole), weights(second))
    ours, theirs = (optim.state_tensors(r.module, r.optimizers) for r in (whole, second))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert [e["loss"] for e in events][1:] == [e["loss"] for e in later]


def _stop_after(stop, state, step):
    if state.step + 1 == step:
        stop.signum = 15
    return False


class Poisoned(ToyTask):
    """Steps whose number is in `bad` have an infinite loss."""

    bad: frozenset[int] = frozenset()

    def collate(self, samples, *, seed, step, width=None):
        batch = super().collate(samples, seed=seed, step=step, width=width)
        batch["poison"] = torch.tensor(float("inf") if step in self.bad else 0.0)
        return batch


class PoisonedModule(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, batch):
        losses = self.inner(batch)
        return {k: v + (v * batch["poison"] if batch["poison"] else 0) for k, v in losses.items()}


def test_nonfinite_steps_leave_weights_and_optimiser_untouched():
    task = Poisoned()
    task.bad = frozenset({4})
    run, state, _ = make_run(TRAINING, task=task, steps=4)
    fit(run, state)
    before, moments = weights(run), optim.state_tensors(run.module, run.optimizers)
    moments = {k: v.clone() for k, v in moments.items()}
    longer, _, events = make_run(TRAINING, task=task, steps=5, logging_steps=1)
    longer.module.load_state_dict(run.module.state_dict())
    optim.load_state_tensors(longer.module, longer.optimizers, moments)
    object.__setattr__(longer, "wrapped", PoisonedModule(longer.module))
    assert fit(longer, state)
    assert torch.equal(before, weights(longer))
    now = optim.state_tensors(longer.module, longer.optimizers)
    assert all(torch.equal(moments[k], now[k]) for k in moments)
    assert state.nonfinite_steps == 1 and events[-1]["nonfinite_steps"] == 1


def test_training_that_stays_nonfinite_ends_with_7():
    task = Poisoned()
    task.bad = frozenset(range(100))
    run, state, _ = make_run(TRAINING, task=task, max_nonfinite_steps=3)
    object.__setattr__(run, "wrapped", PoisonedModule(run.module))
    with pytest.raises(Diverged, match="3 steps in a row") as caught:
        fit(run, state)
    assert caught.value.status == 7


def test_early_stopping_ends_the_run_and_a_rerun_does_nothing():
    values = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    saved = []

    def after(state, metrics):
        better = state.best_value is None or metrics["loss"] < state.best_value
        if better:
            state.best_value, state.best_step, state.evaluations_without_improvement = metrics["loss"], state.step, 0
        else:
            state.evaluations_without_improvement += 1
        return better

    run, state, _ = make_run(
        TRAINING,
        evaluate=lambda s: {"loss": next(values)},
        evaluation_is_due=lambda s: s.step % 2 == 0,
        after_evaluation=after,
        patience=2,
        save=lambda s: saved.append(s.step),
    )
    assert fit(run, state)
    assert (state.step, state.best_step, state.ended_early) == (8, 4, True)
    assert saved == [2, 4, 8]
    assert fit(run, state) and state.step == 8


def test_last_step_is_evaluated_and_saved_once():
    evaluated, saved = [], []
    run, state, events = make_run(
        TRAINING, evaluate=lambda s: evaluated.append(s.step), save=lambda s: saved.append(s.step), steps=6
    )
    fit(run, state)
    assert (evaluated, saved) == ([6], [6])
    assert [e["step"] for e in events] == [4, 6]
    assert all(math.isfinite(e["loss"]) for e in events)


def test_float16_scaling_halves_at_overflow_and_recovers():
    task = Poisoned()
    task.bad = frozenset({1})
    run, state, _ = make_run(TRAINING, task=task, steps=3, scale_losses=True)
    object.__setattr__(run, "wrapped", PoisonedModule(run.module))
    fit(run, state)
    plain, plain_state, _ = make_run(TRAINING, task=task, steps=3)
    object.__setattr__(plain, "wrapped", PoisonedModule(plain.module))
    fit(plain, plain_state)
    assert state.loss_scale == 2.0**15
    assert torch.allclose(weights(run), weights(plain), rtol=0, atol=1e-12)


@pytest.mark.parametrize("given_up", [4, 12])
def test_an_evaluation_that_a_signal_cut_short_is_saved_as_due_and_comes_first_when_the_run_goes_on(given_up):
    saved, seen = [], []

    def evaluate(state):
        if state.step == given_up and not saved:
            raise GivenUp
        seen.append(state.step)
        return {"loss": 1.0 / state.step}

    def save(state):
        saved.append((state.step, state.evaluation_pending))

    hooks = {"evaluate": evaluate, "save": save, "evaluation_is_due": lambda s: s.step % 4 == 0}
    run, state, events = make_run(TRAINING, **hooks)
    assert not fit(run, state)
    assert saved == [(given_up, True)]
    assert fit(run, TrainState(**state.as_json()))
    assert seen == [4, 8, 12]
    assert saved[-1] == (12, False)
    whole, state, plain = make_run(TRAINING, **{**hooks, "evaluate": lambda s: {"loss": 1.0 / s.step}})
    assert fit(whole, state)
    assert torch.equal(weights(run), weights(whole))
    assert [e["loss"] for e in events] == [e["loss"] for e in plain]
