"""One process's life in a run, from the model's construction to the exported result."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from llmkit.data.prepare import Prepared
from llmkit.errors import Diverged, EnvironmentFailure
from llmkit.outcome import failure
from llmkit.recipe import identity as identities
from llmkit.recipe.sections import Recipe
from llmkit.tasks import build_task
from llmkit.train import checkpoint, hardware, metricslog, study
from llmkit.train.build import Parts, build, make_accelerator
from llmkit.train.job import Job, finish
from llmkit.train.loop import TrainState, fit
from llmkit.train.peers import Peers
from llmkit.train.precision import AUTOCAST
from llmkit.train.rundir import CHECKPOINTS, METRICS, TRACKING, Existing
from llmkit.train.schedules import Schedule
from llmkit.train.session import Phase, Session
from llmkit.train.space import check_space


def run(job: Job) -> dict[str, Any]:
    """Trains (or goes on), exports and returns the final results. Raises Stopped where a signal ended it, saved."""
    hardware.keep_freed_memory()
    recipe = job.recipe
    accelerator = make_accelerator(
        recipe.logging.report_to, str(Path(recipe.output_dir) / TRACKING), recipe.distributed.ddp_timeout
    )
    phase = Phase()
    try:
        with _watched(job, accelerator, phase):
            parts = _build(job, accelerator)
            if not job.is_new:
                _check_length(recipe, job.existing, parts)
            if job.directory is not None:
                check_space(recipe, parts, job.directory.checkpoints)
                job.begin([torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())])
                job.directory.update(resolved=parts.choices.as_json())
            precision = AUTOCAST.get(parts.choices.mixed_precision, torch.float32)
            session = Session(
                recipe=recipe,
                parts=parts,
                accelerator=accelerator,
                output_dir=Path(recipe.output_dir),
                directory=job.directory,
                validation=job.prepared.splits.get("validation"),
                stop=job.stop,
                console=job.console,
                matrix_rate=hardware.matrix_rate(accelerator.device, precision),
                phase=phase,
                best_metric=recipe.evaluation.metric_for_best_model or "loss",
            )
            return _train(session, job.prepared)
    finally:
        accelerator.end_training()  # trackers and the process group


def _watched(job: Job, accelerator: Accelerator, phase: Phase) -> AbstractContextManager[None]:
    """Several processes look after each other; one that cannot end by itself says here how it ended."""
    if accelerator.num_processes == 1:
        return nullcontext()

    def abandon(error: EnvironmentFailure) -> None:
        if job.directory is not None:
            job.directory.finish("failed", error.status, str(error))
        os._exit(failure(error, job.console))

    peers = Peers(
        accelerator.process_index,
        accelerator.num_processes,
        job.recipe.distributed.ddp_timeout,
        doing=lambda: str(phase),
        abandon=abandon,
        ignore_signals=job.stop.ignore,
    )
    return peers.watched()


def _build(job: Job, accelerator: Accelerator) -> Parts:
    prepared = job.prepared
    task = build_task(job.recipe, prepared.tokenizer_dir, allow_remote_code=job.options.trust_remote_code)
    task.prepare(prepared.splits.get("train"), prepared.splits.get("validation"))
    kept = None if job.is_new else job.existing.record.get("resolved")
    return build(job.recipe, task, prepared, accelerator, kept or None)


def _train(session: Session, prepared: Prepared) -> dict[str, Any]:
    """From the newest checkpoint, or from the start, to the results. Raises Stopped where a signal ended it, saved."""
    stop, phase, feed = session.stop, session.phase, session.parts.feed
    try:
        state = session.resume()
        phase.name, phase.state = "training", state
        with ExitStack() as stack:
            stack.enter_context(stop.defer())
            _open_log(session, state, stack)
            stack.callback(session.saver.close)
            try:
                complete = fit(session.run(), state)
            except Diverged as error:
                if session.directory is not None:
                    train = session.recipe.data.train
                    kept = study.keep_batch(session.output_dir, feed, prepared.splits["train"], train, state.step)
                    error.message += f". The batch and its rows are in {kept}"
                raise
            session.settle()
        if not complete or stop.signum is not None:
            raise stop.stopped()
        phase.name = "writing the model"
        return _finish(session, state)
    finally:
        feed.close()


def _check_length(recipe: Recipe, existing: Existing, parts: Parts) -> None:
    """A run may be made longer only where its past learning rates stay what they were."""
    old_steps = existing.record["resolved"].get("total_steps", parts.choices.total_steps)
    new = parts.schedule
    old = Schedule(new.type, new.peak, old_steps, new.warmup_steps, new.min_lr_ratio)
    saved = checkpoint.published(Path(recipe.output_dir) / CHECKPOINTS)
    done = checkpoint.step_of(saved[-1]) if saved else 0  # run.json may lag behind by one save
    identities.check_same_run(
        existing.record["identity"],
        identities.identity(recipe),
        output_dir=recipe.output_dir,
        old_steps=old_steps,
        new_steps=new.total_steps,
        past_rates_kept=lambda: identities.may_extend(old.learning_rate, new.learning_rate, done),
    )


def _open_log(session: Session, state: TrainState, stack: ExitStack) -> None:
    """metrics.jsonl cut back to where we go on, the segment that begins there, the live view and the trackers."""
    directory = session.directory
    if directory is None:
        return
    session.open_segment(state.step)
    metricslog.cut_back(directory.path / METRICS, state.step if state.step else -1)
    for event in metricslog.read(directory.path / METRICS):
        session.watch.take(event)
    session.log_file = metricslog.MetricsLog(directory.path / METRICS)
    stack.callback(session.log_file.close)
    header = _header(session)
    session.view = stack.enter_context(session.console.training(session.parts.choices.total_steps, header))
    if session.recipe.logging.report_to:
        session.accelerator.init_trackers("llmkit")


def _header(session: Session) -> dict[str, str]:
    """What stays the same over the run, for the training view."""
    choices, parts = session.parts.choices, session.parts
    processes = f" x {choices.num_processes} processes" if choices.num_processes > 1 else ""
    precision = "float32" if choices.mixed_precision == "no" else choices.mixed_precision
    pace = ", compiled (the first steps take longer)" if choices.torch_compile else ""
    if choices.mixed_precision == "fp8" and not choices.torch_compile:
        pace = ", not compiled: slower than bf16"
    return {
        "run": str(session.output_dir),
        "model": f"{parts.num_parameters:,} parameters, {precision}{pace}",
        "steps": f"{choices.total_steps:,} of {parts.calendar.global_batch} sequences of up to {choices.max_length} "
        f"tokens, {'packed' if choices.packing else 'padded'}, "
        f"micro-batch {choices.micro_batch}{processes}",
        **{key.replace("_", " "): _shown(value) for key, value in choices.task.items() if value},
    }


def _shown(value: Any) -> str:
    """A choice of the task on one line."""
    if not isinstance(value, list):
        return str(value)
    return ", ".join(map(str, value[:10])) + (f", ... ({len(value)})" if len(value) > 10 else "")


def _finish(session: Session, state: TrainState) -> dict[str, Any]:
    """Best weights where asked, model/, results.json, run.json, report.html."""
    directory, accelerator = session.directory, session.accelerator
    results: dict[str, Any] = {}
    if directory is not None:
        if session.keeps_best and state.best_step is not None and state.best_step != state.step:
            session.load(directory.path / CHECKPOINTS / checkpoint.name_of(state.best_step))
        results = final_results(session, state)
        task, module = session.parts.task, session.parts.module
        finish(directory, session.console, session.recipe, task, module, results, steps=state.step, tokens=state.tokens)
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()
    return results


def final_results(session: Session, state: TrainState) -> dict[str, Any]:
    """Flat: the validation metrics of the weights that are kept, else the last training loss as `loss`."""
    lines = metricslog.read(session.output_dir / METRICS)
    kept_step = state.best_step if session.keeps_best and state.best_step is not None else state.step
    validation = [e for e in lines if e.get("split") == "validation" and e["step"] == kept_step]
    train = [e for e in lines if e.get("split") == "train"]
    skip = {"step", "split", "tokens", "seconds"}
    results: dict[str, Any] = {k: v for k, v in (validation[-1] if validation else {}).items() if k not in skip}
    if train:
        results["train_loss"] = train[-1]["loss"]
        results.setdefault("loss", train[-1]["loss"])
    return {**results, "steps": state.step, "tokens": state.tokens, "model_step": kept_step}
