"""One process's life in a run, from the model's construction to the exported result."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from llmkit.data.prepare import Prepared
from llmkit.errors import EnvironmentFailure
from llmkit.options import Options
from llmkit.recipe import identity as identities
from llmkit.recipe.sections import Recipe
from llmkit.report.console import Console
from llmkit.report.html import write_report
from llmkit.signals import StopRequest
from llmkit.tasks import build_task
from llmkit.train import checkpoint, export, hardware, machine, metricslog
from llmkit.train.build import AUTOCAST, Parts, build, make_accelerator
from llmkit.train.loop import TrainState, fit
from llmkit.train.rundir import CHECKPOINTS, METRICS, MODEL, REPORT, RESULTS, TRACKING, Existing, RunDirectory
from llmkit.train.schedules import Schedule
from llmkit.train.session import Session
from llmkit.train.space import check_space


def execute(
    recipe: Recipe,
    prepared: Prepared,
    *,
    options: Options,
    existing: Existing,
    directory: RunDirectory | None,
    stop: StopRequest,
    console: Console,
    recipe_yaml: str,
) -> dict[str, Any]:
    """Trains (or goes on), exports and returns the final results. Raises Stopped where a signal ended it, saved."""
    hardware.keep_freed_memory()
    accelerator = make_accelerator(recipe.logging.report_to, str(Path(recipe.output_dir) / TRACKING))
    task = build_task(recipe, prepared.tokenizer_dir, allow_remote_code=options.trust_remote_code)
    task.prepare(prepared.splits.get("train"), prepared.splits.get("validation"))
    kept = existing.record.get("resolved") if existing.found != "absent" else None
    parts = build(recipe, task, prepared, accelerator, kept or None)
    identity = identities.identity(recipe)
    if existing.found != "absent":
        _check_length(recipe, existing, identity, parts)
    if directory is not None:
        _open(recipe, options.command, prepared, directory, identity, recipe_yaml, parts)
    session = Session(
        recipe=recipe,
        parts=parts,
        accelerator=accelerator,
        output_dir=Path(recipe.output_dir),
        directory=directory,
        validation=prepared.splits.get("validation"),
        stop=stop,
        console=console,
        matrix_rate=hardware.matrix_rate(
            accelerator.device, AUTOCAST.get(parts.choices.mixed_precision, torch.float32)
        ),
        best_metric=recipe.evaluation.metric_for_best_model or "loss",
    )
    try:
        state = session.resume()
        with ExitStack() as stack:
            stack.enter_context(stop.defer())
            _open_log(session, state, stack)
            stack.callback(session.saver.close)
            complete = fit(session.run(), state)
            session.settle()
        if not complete or stop.signum is not None:
            raise stop.stopped()
        results = _finish(session, state)
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise EnvironmentFailure(
            f"rank {accelerator.process_index} of {accelerator.num_processes} lost another process; run the same "
            "command again to go on from the last checkpoint"
        ) from error
    finally:
        parts.feed.close()
        accelerator.end_training()  # trackers and the process group
    return results


def _is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because a process is gone. gloo has no exception type of its own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _check_length(recipe: Recipe, existing: Existing, identity: dict[str, Any], parts: Parts) -> None:
    """A run may be made longer only where its past learning rates stay what they were."""
    old_steps = existing.record["resolved"].get("total_steps", parts.choices.total_steps)
    new = parts.schedule
    old = Schedule(new.type, new.peak, old_steps, new.warmup_steps, new.min_lr_ratio)
    saved = checkpoint.published(Path(recipe.output_dir) / CHECKPOINTS)
    done = checkpoint.step_of(saved[-1]) if saved else 0  # run.json may lag behind by one save
    identities.check_same_run(
        existing.record["identity"],
        identity,
        output_dir=recipe.output_dir,
        old_steps=old_steps,
        new_steps=new.total_steps,
        past_rates_kept=lambda: identities.may_extend(old.learning_rate, new.learning_rate, done),
    )


def _open(
    recipe: Recipe,
    command: str,
    prepared: Prepared,
    directory: RunDirectory,
    identity: dict[str, Any],
    recipe_yaml: str,
    parts: Parts,
) -> None:
    """run.json and recipe.yaml say what is about to happen, once the disk can take it."""
    check_space(recipe, parts, directory.checkpoints)
    directory.start(
        command=command,
        recipe_yaml=recipe_yaml,
        identity=identity,
        data_fingerprint=prepared.fingerprint,
        sources=prepared.sources,
        seed=recipe.seed,
    )
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    directory.update(resolved=parts.choices.as_json(), versions=machine.versions(), hardware=machine.hardware(names))


def _open_log(session: Session, state: TrainState, stack: ExitStack) -> None:
    """metrics.jsonl cut back to where we go on, the segment that begins there, the live view and the trackers."""
    directory = session.directory
    if directory is None:
        return
    layout = {key: value for key, value in session.parts.choices.as_json().items() if key != "total_steps"}
    changed = directory.open_segment(state.step, {**layout, "versions": machine.versions()})
    if changed:
        what = ", ".join(f"{key} was {before}, is now {after}" for key, before, after in changed)
        session.console.note(f"{what}: from here the run is equal to rounding, not to the bit")
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
    return {
        "run": str(session.output_dir),
        "model": f"{parts.num_parameters:,} parameters, {precision}"
        + (", compiled (the first steps take longer)" if choices.torch_compile else ""),
        "steps": f"{choices.total_steps:,} of {parts.calendar.global_batch} sequences of up to {choices.max_length} "
        f"tokens, {'packed' if choices.packing else 'padded'}, "
        f"micro-batch {choices.per_device_train_batch_size}{processes}",
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
        session.console.note("writing the model")
        export.export_model(session.parts.task, session.parts.module, session.recipe, directory.path / MODEL, results)
        export.write_results(directory.path / RESULTS, results)
        directory.finish("completed", 0, "done", steps=state.step, tokens=state.tokens)
        write_report(directory.path)
        session.console.note(f"model: {directory.path / MODEL}   report: {directory.path / REPORT}")
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()
    return results


def final_results(session: Session, state: TrainState) -> dict[str, Any]:
    """Flat: the validation metrics of the weights that are kept, else the last training loss as `loss`."""
    lines = metricslog.read(session.output_dir / METRICS)
    kept_step = state.best_step if session.keeps_best and state.best_step is not None else state.step
    validation = [e for e in lines if e["split"] == "validation" and e["step"] == kept_step]
    train = [e for e in lines if e["split"] == "train"]
    skip = {"step", "split", "tokens", "seconds"}
    results: dict[str, Any] = {k: v for k, v in (validation[-1] if validation else {}).items() if k not in skip}
    if train:
        results["train_loss"] = train[-1]["loss"]
        results.setdefault("loss", train[-1]["loss"])
    return {**results, "steps": state.step, "tokens": state.tokens, "model_step": kept_step}
