"""`--dry-run`: everything that could fail later is tried now, on the real code, in a temporary place.

The data is what is prepared already, or a sample of it (said so). The longest batch goes once through training,
validation and saving, so that the time and the memory reported are measured.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from llmkit.data import prepare
from llmkit.data.command import describe_examples, dry_run_rows, example_lines, sample_recipe, summary
from llmkit.data.prepare import Prepared
from llmkit.errors import EnvironmentFailure
from llmkit.files import free_bytes
from llmkit.options import Options
from llmkit.recipe.counting import counts
from llmkit.recipe.probing import probes
from llmkit.recipe.resolve import dump
from llmkit.recipe.sections import Recipe
from llmkit.report.console import Console
from llmkit.report.text import duration
from llmkit.train.command import already_finished
from llmkit.train.rundir import inspect


def dry_run(recipe: Recipe, options: Options, console: Console) -> dict[str, Any]:
    """The report of CONTRACT section 5 as a dict; printed unless `--json`. Raises what the run would."""
    existing = inspect(Path(recipe.output_dir))
    if not options.overwrite and already_finished(recipe, Path(recipe.output_dir), existing):
        console.note(f"{recipe.output_dir}: this run is finished; the command would do nothing")
    with tempfile.TemporaryDirectory(prefix="llmkit-dry-run-") as scratch:
        prepared = prepare.load(recipe)
        exact = prepared is not None
        if prepared is not None:
            prepare.checked(prepared, recipe)
        else:
            prepared = prepare.prepare(sample_recipe(recipe, Path(scratch)), console)
        report: dict[str, Any] = {
            "recipe": dump(recipe),
            "exact": exact,
            "data": {key: value for key, value in prepared.report.items() if key != "tally"},
            "examples": describe_examples(prepared, recipe),
        }
        from llmkit.train import counting, probing

        trial, lines_of = try_once, run_lines
        if counts(recipe) or probes(recipe):
            own = counting if counts(recipe) else probing
            trial, lines_of = own.try_once, own.run_lines
        report["run"] = trial(recipe, options, prepared, Path(scratch), exact)
    if not options.json:
        console.result(as_text(report, summary(prepared), lines_of(report["run"]), dry_run_rows(recipe)))
    check_disk(recipe, report["run"])
    return report


def try_once(recipe: Recipe, options: Options, prepared: Prepared, scratch: Path, exact: bool) -> dict[str, Any]:
    """Builds the run and puts its longest batch through train, evaluate and save."""
    import torch

    from llmkit.tasks import build_task
    from llmkit.train import checkpoint, hardware, optim
    from llmkit.train.build import build, checkpoint_tensors, make_accelerator
    from llmkit.train.saver import Saver
    from llmkit.train.trial import longest_step, validate_once

    hardware.keep_freed_memory()
    accelerator = make_accelerator([], str(scratch), None)
    task = build_task(recipe, prepared.tokenizer_dir, allow_remote_code=options.trust_remote_code, trial=True)
    task.prepare(prepared.splits.get("train"), prepared.splits.get("validation"))
    parts = build(recipe, task, prepared, accelerator, None)
    try:
        seconds = longest_step(recipe, parts, accelerator)
        evaluation_seconds = validate_once(recipe, parts, prepared.splits.get("validation"), accelerator)
        tensors, place, saver = checkpoint_tensors(recipe, parts), scratch / "checkpoints", Saver()
        stall_seconds = saver.save(tensors, lambda copy: checkpoint.save(place, 1, copy, {}, keep=None))
        saver.wait()
        checkpoint_bytes = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        peak = hardware.peak_memory(accelerator.device)
    finally:
        parts.feed.close()
        accelerator.end_training()
    steps = parts.choices.total_steps
    tokens = float(steps) * parts.calendar.global_batch * parts.choices.max_length
    return {
        **parts.choices.as_json(),
        "total_steps_are_exact": exact or recipe.training.max_steps is not None,
        "parameters": parts.num_parameters,
        "trainable_parameters": sum(p.numel() for _, p in optim.trainable(parts.module)),
        "global_batch_size": parts.calendar.global_batch,
        "tokens_at_most": int(tokens),
        "step_seconds": round(seconds, 3),
        "evaluation_seconds": None if evaluation_seconds is None else round(evaluation_seconds, 3),
        "save_seconds": round(stall_seconds + saver.write_seconds, 3),
        "save_stall_seconds": round(stall_seconds, 3),
        "estimated_seconds": round(seconds * steps, 1),
        "peak_memory_bytes": peak,
        "checkpoint_bytes": checkpoint_bytes,
        "free_disk_bytes": free_bytes(recipe.output_dir),
        "device": str(accelerator.device) if accelerator.device.type == "cpu" else torch.cuda.get_device_name(),
    }


def check_disk(recipe: Recipe, run: dict[str, Any]) -> None:
    """The checkpoints that are kept, one being written and the model must fit. Raises EnvironmentFailure."""
    keep = recipe.checkpoint.save_total_limit
    what = f"{keep or 'all'} checkpoints kept, one being written, the model"
    if counts(recipe):
        need, what = run["disk_bytes"], "what is counted, the model"
    else:
        need = run["checkpoint_bytes"] * ((keep or 2) + 2)
    if need > run["free_disk_bytes"]:
        raise EnvironmentFailure(
            f"{recipe.output_dir}: the run needs about {need:,} bytes of disk ({what}), {run['free_disk_bytes']:,} are "
            "free"
        )


def as_text(report: dict[str, Any], data: list[str], run: list[str], sample_rows: int) -> str:
    """The report for people; `data` and `run` are its parts on the prepared data and on the run."""
    kind = "the prepared data" if report["exact"] else f"a sample: the first {sample_rows:,} rows of each source"
    lines = ["Resolved recipe", "", report["recipe"].rstrip(), "", f"Data, from {kind}", "", *data]
    return "\n".join([*lines, "", "Examples", "", *example_lines(report["examples"]), "", "Run", "", *run])


def run_lines(run: dict[str, Any]) -> list[str]:
    """The run's part of the report for people."""
    limit = run["micro_batch_tokens"]
    tokens = "" if limit is None else f", {limit:,} tokens at most,"
    about = "" if run["total_steps_are_exact"] else " in the sample; the whole data has more"
    return [
        f"  parameters         {run['parameters']:,}, {run['trainable_parameters']:,} of them trained",
        f"  steps              {run['total_steps']:,}{about}, {run['global_batch_size']} sequences of up to "
        f"{run['max_length']} tokens each",
        f"  micro-batch        {run['per_device_train_batch_size']}{tokens} x {run['num_processes']} processes",
        f"  packing            {'documents isolated, as the probe shows' if run['packing'] else 'off: padded'}",
        f"  precision          {'float32' if run['mixed_precision'] == 'no' else run['mixed_precision']}, "
        f"{'compiled' if run['torch_compile'] else 'not compiled'}, on {run['device']}"
        f"{'' if run['attention'] is None else ', attention by ' + run['attention']}",
        f"  longest step       {run['step_seconds']:.2f} s; all steps at most {duration(run['estimated_seconds'])}",
        f"  peak memory        {run['peak_memory_bytes'] / 1e9:.2f} GB",
        f"  checkpoint         {run['checkpoint_bytes'] / 1e6:.1f} MB in {run['save_seconds']:.2f} s, "
        f"training stands for {run['save_stall_seconds']:.2f} of them; "
        f"{run['free_disk_bytes'] / 1e9:.1f} GB free",
    ]
