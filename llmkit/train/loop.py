"""The one training loop, for pretraining and fine-tuning alike; it names no task.

A step reduces the denominators of all its micro-batches once, then gives every micro-batch the gradient of
`sum(loss_sum[k] * weight[k] / global_count[k])`. So the gradient depends on the recipe alone, not on micro-batch size,
accumulation, padding, packing or the number of processes. Whatever is random in a step is seeded by
(seed, step, rank, micro-batch), so a resumed run needs a step number and no stream positions. Whether a step counts
(finite, no spike, within memory) is decided from sums over all ranks, so that all of them decide alike.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn

from llmkit.errors import Diverged
from llmkit.signals import GivenUp, StopRequest
from llmkit.train import gradients, memory, spikes
from llmkit.train.feed import Feed, StepFeed
from llmkit.train.schedules import Schedule

INITIAL_LOSS_SCALE = 2.0**16
GROW_LOSS_SCALE_AFTER = 2000
"""Dynamic loss scaling of float16 (arXiv:1710.03740), with GradScaler's constants."""


@dataclass
class TrainState:
    """All that changes while training beside tensors; JSON. Sums since the last line are kept so that lines agree."""

    step: int = 0
    tokens: int = 0
    loss_sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    nonfinite_streak: int = 0
    nonfinite_steps: int = 0
    loss_scale: float = INITIAL_LOSS_SCALE
    steps_since_scaling: int = 0
    recent_losses: list[float] = field(default_factory=list)
    """Of the last steps, for the detection of spikes."""
    loss_spikes: int = 0
    rollbacks: list[int] = field(default_factory=list)
    """Steps completed where a spike sent the run back."""
    passed_over: int = 0
    """Steps' worth of data that rolling back has left out."""
    best_value: float | None = None
    best_step: int | None = None
    evaluations_without_improvement: int = 0
    last_evaluation: dict[str, float] = field(default_factory=dict)
    ended_early: bool = False
    evaluation_pending: bool = False
    """The evaluation after `step` is due and not done: a signal came before its end, and resuming begins with it."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Run:
    """Everything a training run consists of, wired by `build` and never changed after."""

    module: nn.Module
    """The TaskModule itself; evaluated, saved and exported."""
    wrapped: nn.Module
    """The same module, compiled where that was chosen; the loop calls nothing else."""
    optimizers: list[torch.optim.Optimizer]
    schedule: Schedule
    feed: Feed
    accelerator: Accelerator
    loss_weights: dict[str, float]
    seed: int
    max_grad_norm: float | None
    max_nonfinite_steps: int | None
    loss_spike_action: Literal["skip", "rollback"] | None
    logging_steps: int
    autocast: Callable[[], AbstractContextManager[Any]]
    scale_losses: bool
    """float16 needs loss scaling."""
    stop: StopRequest
    log: Callable[[dict[str, Any]], None]
    evaluate: Callable[[TrainState], dict[str, float] | None]
    """Validation; returns its metrics, on every rank. Raises GivenUp, on every rank, where a signal came."""
    save: Callable[[TrainState], None]
    save_is_due: Callable[[TrainState], bool]
    """By this rank's own clock and step; the ranks agree on it in the step's reduction."""
    evaluation_is_due: Callable[[TrainState], bool]
    after_evaluation: Callable[[TrainState, dict[str, float]], bool]
    """Notes the best value in the state; true where this is a new best that must be kept."""
    patience: int | None
    check_memory: Callable[[], None]
    """Raises torch.OutOfMemoryError where the process uses more than it may; asked after every micro-batch."""
    halve: Callable[[TrainState], None]
    """Halves the micro-batch, or raises EnvironmentFailure where it cannot."""
    roll_back: Callable[[TrainState], bool]
    """Back to the checkpoint before a spike, past its data; false where there is none yet."""


def step_seed(seed: int, step: int, rank: int, micro_batch: int) -> int:
    """63 bits, independent of Python's hash."""
    key = f"{seed}/{step}/{rank}/{micro_batch}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def fit(run: Run, state: TrainState) -> bool:
    """Trains from `state` to the end of the run. True when it is complete, false when a signal stopped it (saved)."""
    total = run.schedule.total_steps
    clock = time.perf_counter()
    tokens_at_clock = state.tokens
    run.module.train()
    stop = save = False
    while (state.step < total or state.evaluation_pending) and not state.ended_early:
        if not state.evaluation_pending:
            feed = run.feed.take(state.step)
            learning_rate = run.schedule.learning_rate(state.step)
            outcome = train_step(run, state, feed, learning_rate)
            if outcome is None:
                run.halve(state)
                continue
            if outcome.spike and run.loss_spike_action == "rollback" and run.roll_back(state):
                clock, tokens_at_clock = time.perf_counter(), state.tokens
                continue
            stop, save = outcome.stop, outcome.save
            state.step += 1
            state.tokens += outcome.tokens
            if state.step % run.logging_steps == 0 or state.step == total or outcome.unusual:
                now = time.perf_counter()
                rate = (state.tokens - tokens_at_clock) / max(now - clock, 1e-9)
                run.log(train_event(run, state, feed, outcome, learning_rate, rate))
                clock, tokens_at_clock = now, state.tokens
            state.evaluation_pending = run.evaluation_is_due(state) or state.step == total
        new_best, evaluated = False, state.evaluation_pending
        if evaluated:
            try:
                metrics = run.evaluate(state)
            except GivenUp:
                run.save(state)
                return False
            state.evaluation_pending = False
            if metrics is not None:
                state.last_evaluation = metrics
                new_best = run.after_evaluation(state, metrics)
                patience = run.patience
                state.ended_early = patience is not None and state.evaluations_without_improvement >= patience
        finished = state.step == total or state.ended_early
        stopping = stop and not finished
        if save or new_best or stopping or finished:
            run.save(state)
        if evaluated or save:
            clock, tokens_at_clock = time.perf_counter(), state.tokens
        if stopping:
            return False
        if finished:
            break
    return True


@dataclass(frozen=True)
class Outcome:
    """What a step did, the same on every rank."""

    tokens: int
    loss: float
    grad_norm: float
    spike: bool
    skipped: bool
    unusual: bool
    """Worth a line of its own in the log."""
    stop: bool
    save: bool


def train_step(run: Run, state: TrainState, feed: StepFeed, learning_rate: float) -> Outcome | None:
    """One optimiser update. A loss or gradient that is not finite leaves the optimiser untouched on all ranks, and so
    does a spike where that is asked for. None, and nothing changed anywhere, where memory was too small on any rank."""
    names = list(run.loss_weights)
    counts, tokens, stop, save = _reduce_plans(run, state, feed)
    scale = state.loss_scale if run.scale_losses else 1.0
    try:
        sums: torch.Tensor | None = _backward(run, state, feed, counts, scale)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_shortage(error):
            raise
        sums = None
    reduced = _reduce_step(run, sums)
    if reduced is None:
        _forget_gradients(run)
        return None
    # read together: the device is waited for once a step
    *values, grad_norm = torch.cat([reduced, _clip(run, scale).to(reduced).view(1)]).tolist()
    loss = sum(run.loss_weights[k] * value / counts[k] for k, value in zip(names, values, strict=True) if counts[k])
    finite = math.isfinite(grad_norm) and all(map(math.isfinite, values))
    spike = finite and spikes.is_spike(state.recent_losses, loss)
    skipped = not finite or (spike and run.loss_spike_action is not None)
    if not skipped:
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["lr_scale"]
            optimizer.step()
        for name, value in zip(names, values, strict=True):
            state.loss_sums[name] = state.loss_sums.get(name, 0.0) + value
            state.counts[name] = state.counts.get(name, 0.0) + counts[name]
    _forget_gradients(run)
    _account_nonfinite(run, state, not finite)
    if finite:
        state.recent_losses = spikes.remembered(state.recent_losses, loss)
        state.loss_spikes += int(spike)
    unusual = spike or (not finite and not run.scale_losses)  # float16 overflows now and then
    return Outcome(tokens, loss, grad_norm, spike, skipped, unusual, stop, save)


def _backward(run: Run, state: TrainState, feed: StepFeed, counts: dict[str, float], scale: float) -> torch.Tensor:
    """This rank's gradients of all micro-batches of the step. Returns its loss sums, (losses,) float64."""
    names, device = list(run.loss_weights), run.accelerator.device
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    for number, micro in enumerate(feed.micro_batches):
        torch.manual_seed(step_seed(run.seed, state.step, run.accelerator.process_index, number))
        with run.autocast():
            losses = run.wrapped(micro.batch)
        factor = micro.weight * scale
        terms = [losses[k] * (run.loss_weights[k] * factor / counts[k]) for k in names if counts[k] > 0]
        if terms:
            torch.stack([term.sum() for term in terms]).sum().backward()
        sums += micro.weight * torch.stack([losses[k].detach().double().sum() for k in names])
        run.check_memory()
    return sums


def _reduce_plans(run: Run, state: TrainState, feed: StepFeed) -> tuple[dict[str, float], int, bool, bool]:
    """Global denominators and tokens, and whether any rank was asked to stop or finds a save due after this step."""
    names = list(run.loss_weights)
    due = run.save_is_due(state)
    flags = [float(feed.tokens), float(run.stop.signum is not None), float(due)]
    local = [*(float(feed.counts[name]) for name in names), *flags]
    if run.accelerator.num_processes > 1:
        tensor = torch.tensor(local, dtype=torch.float64, device=run.accelerator.device)
        local = run.accelerator.reduce(tensor, "sum").tolist()
    counts = dict(zip(names, local, strict=False))
    return counts, int(local[-3]), local[-2] > 0, local[-1] > 0


def _reduce_step(run: Run, sums: torch.Tensor | None) -> torch.Tensor | None:
    """(losses,) sums over all ranks, whose gradients are then summed too. None where any rank has none: no memory."""
    if run.accelerator.num_processes == 1:
        return sums
    parameters = [p for optimizer in run.optimizers for group in optimizer.param_groups for p in group["params"]]
    size = len(run.loss_weights)
    local = torch.zeros(size) if sums is None else sums.cpu()
    told = [*local.tolist(), float(sums is None), *(float(p.grad is not None) for p in parameters)]
    tensor = torch.tensor(told, dtype=torch.float64, device=run.accelerator.device)
    reduced: torch.Tensor = run.accelerator.reduce(tensor, "sum")
    told = reduced.tolist()
    if told[size] > 0:
        return None
    gradients.sum_over_ranks(parameters, [count > 0 for count in told[size + 1 :]])
    return reduced[:size]


def _forget_gradients(run: Run) -> None:
    for optimizer in run.optimizers:
        optimizer.zero_grad(set_to_none=True)


def _clip(run: Run, scale: float) -> torch.Tensor:
    """Unscales, clips, and returns the norm before clipping, (). Where that is not finite the step is skipped."""
    groups = [group for optimizer in run.optimizers for group in optimizer.param_groups]
    given = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    if scale != 1.0:
        torch._foreach_mul_(given, 1.0 / scale)
    norm = torch.nn.utils.get_total_norm(given)
    if run.max_grad_norm is not None:
        torch._foreach_mul_(given, torch.clamp(run.max_grad_norm / (norm + 1e-6), max=1.0))
    return norm


def _account_nonfinite(run: Run, state: TrainState, skipped: bool) -> None:
    if run.scale_losses:
        state.steps_since_scaling += 1
        if skipped:
            state.loss_scale, state.steps_since_scaling = state.loss_scale / 2, 0
        elif state.steps_since_scaling >= GROW_LOSS_SCALE_AFTER:
            state.loss_scale, state.steps_since_scaling = state.loss_scale * 2, 0
    state.nonfinite_streak = state.nonfinite_streak + 1 if skipped else 0
    state.nonfinite_steps += int(skipped)
    limit = run.max_nonfinite_steps
    if limit is not None and state.nonfinite_streak >= limit:
        raise Diverged(
            f"training diverged: the loss or its gradient was not finite in {limit} steps in a row, up to step "
            f"{state.step + 1}; lower training.learning_rate (now {run.schedule.peak:g}) or look at the data there"
        )


def train_event(
    run: Run, state: TrainState, feed: StepFeed, outcome: Outcome, learning_rate: float, rate: float
) -> dict[str, Any]:
    """A train line of metrics.jsonl; its losses are global means since the last line, which it starts afresh."""
    means = {k: state.loss_sums[k] / state.counts[k] for k in state.loss_sums if state.counts[k]}
    state.loss_sums, state.counts = {}, {}
    total = sum(run.loss_weights[k] * value for k, value in means.items()) if means else None
    parts = means if len(run.loss_weights) > 1 else {}
    event = {
        "step": state.step,
        "split": "train",
        "loss": total,
        **{f"{name}_loss": value for name, value in parts.items()},
        "learning_rate": learning_rate,
        "grad_norm": outcome.grad_norm,
        "epoch": feed.epoch + 1,
        "tokens": state.tokens,
        "tokens_per_second": round(rate, 1),
    }
    if outcome.unusual:
        event |= {"step_loss": outcome.loss, "spike": outcome.spike, "skipped": outcome.skipped}
    counted = {
        "nonfinite_steps": state.nonfinite_steps,
        "loss_spikes": state.loss_spikes,
        "rollbacks": len(state.rollbacks),
    }
    return event | {name: count for name, count in counted.items() if count}
