"""`pretrain` and `finetune`: from a recipe to a finished run, or to exactly where a signal left it.

Order matters here. The directory is locked and its history judged first, data is prepared before any process group
exists (a collective would time out over a long preprocessing), and only then is torch's machinery started.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from llmkit.data import prepare
from llmkit.data.prepared import prove_before_use
from llmkit.errors import DataError, LlmkitError
from llmkit.files import read_json
from llmkit.options import Options
from llmkit.outcome import as_told
from llmkit.recipe import identity as identities
from llmkit.recipe.counting import counts
from llmkit.recipe.probing import probes
from llmkit.recipe.sections import Recipe
from llmkit.report.console import Console
from llmkit.signals import StopRequest, stop_on_signal
from llmkit.train import launch
from llmkit.train.job import Job
from llmkit.train.rundir import RESULTS, Existing, RunDirectory, inspect

POLL_SECONDS = 0.5


def train(recipe: Recipe, options: Options, console: Console) -> dict[str, Any]:
    """Runs, resumes or recognises the run of `recipe` (resolved). Returns its results."""
    if options.dry_run:
        from llmkit.train.preflight import dry_run

        return dry_run(recipe, options, console)
    where = launch.place()
    if (options.num_processes or 1) > 1 and where.world_size == 1:
        raise SystemExit(_launch(recipe, options, console))
    launch.die_with_parent()
    with stop_on_signal() as stop:
        if where.rank:
            return _follow(recipe, options, console, stop)
        path = Path(recipe.output_dir)
        with RunDirectory(path, overwrite=options.overwrite, held_by_parent=where.ours) as directory:
            return _lead(recipe, options, console, directory, stop)


def _launch(recipe: Recipe, options: Options, console: Console) -> int:
    """Prepares the data here, then starts the ranks; each takes its place through its environment."""
    assert options.num_processes is not None
    with stop_on_signal(), RunDirectory(Path(recipe.output_dir), overwrite=options.overwrite) as directory:
        if not already_finished(recipe, directory.path, Existing(directory.found, directory.record)):
            prepare.prepare(recipe, console)
        arguments = [argument for argument in sys.argv[1:] if argument != "--overwrite"]
        try:
            return launch.launch(arguments, options.num_processes, console.note)
        except LlmkitError as error:
            _record_loss(directory, error)
            raise


def _record_loss(directory: RunDirectory, error: LlmkitError) -> None:
    """A killed rank could not say in run.json how it ended; of another rank, rank 0 knew only that it was gone."""
    directory.record = inspect(directory.path).record
    if directory.record.get("status") in ("running", "failed"):
        directory.finish("failed", error.status, str(error))


def already_finished(recipe: Recipe, path: Path, existing: Existing) -> bool:
    """Whether the finished run of this very recipe stands there. Raises RecipeError for a run of another recipe, and
    DataError where the data is no longer what the run began with."""
    if existing.found == "absent":
        return False
    old, new = existing.record["identity"], identities.identity(recipe)
    identities.check_same_run(
        old, new, output_dir=recipe.output_dir, old_steps=0, new_steps=0, past_rates_kept=lambda: True
    )
    prepare.check_sources(recipe, existing.record.get("sources", {}), path)
    return existing.found == "finished" and not identities.differences(old, new)


def _finished(path: Path, console: Console) -> dict[str, Any]:
    console.note(f"{path}: this run is finished; nothing to do (--overwrite starts afresh)")
    results: dict[str, Any] = read_json(path / RESULTS)
    return results


def _lead(
    recipe: Recipe, options: Options, console: Console, directory: RunDirectory, stop: StopRequest
) -> dict[str, Any]:
    """The first rank: it alone writes."""
    existing = Existing(directory.found, directory.record)
    if already_finished(recipe, directory.path, existing):
        return _finished(directory.path, console)
    if existing.found != "absent":
        stop.saved = any(directory.checkpoints.glob("step-*"))
    try:
        ours = launch.place().ours  # then the parent has prepared, and said so
        prepared = (prepare.load(recipe) if ours else None) or prepare.prepare(recipe, console)
        prove_before_use(prepared.directory, console.note)
        directory.check_data(prepared.fingerprint, prepared.sources)
        results = _train(Job(recipe, prepared, options, existing, directory, stop, console))
    except BaseException as error:
        _record_failure(directory, stop.stopped() if stop.raised is not None else error)
        raise
    return results


def _follow(recipe: Recipe, options: Options, console: Console, stop: StopRequest) -> dict[str, Any]:
    """Another rank: waits until the first has prepared the data; it has no process group to wait in, on purpose."""
    path = Path(recipe.output_dir)
    existing = Existing("absent", {}) if options.overwrite else inspect(path)
    if already_finished(recipe, path, existing):
        return _finished(path, console)
    while (prepared := prepare.load(recipe)) is None:
        time.sleep(POLL_SECONDS)
    return _train(Job(recipe, prepared, options, existing, None, stop, console))


def _train(job: Job) -> dict[str, Any]:
    splits = job.prepared.splits
    if splits.get("train") is None or splits["train"].num_rows == 0:
        raise DataError("data.train has no rows to train on")
    job.console.note("loading torch and the model")
    from llmkit.train import counting, execute, probing

    made_by = counting if counts(job.recipe) else probing if probes(job.recipe) else execute
    results: dict[str, Any] = made_by.run(job)
    return results


def _record_failure(directory: RunDirectory, error: BaseException) -> None:
    """run.json says how it ended; where even that cannot be written, the message on the terminal still does."""
    if not directory.started:
        return
    told = as_told(error)
    try:
        directory.finish("stopped" if told.code == "stopped" else "failed", told.status, str(told))
    except LlmkitError:
        return
