"""`llmkit evaluate`: scores the run's model on data.test, else on the held-out rows, and writes evaluation/.

The result says what it was made of: hashes of weights, tokenizer and data, precision, attention, window convention.
`fail_if` is judged last, so that the figures are on disk whatever it says.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data import prepare
from llmkit.data.prepare import Prepared
from llmkit.data.prepared import prove_before_use
from llmkit.errors import ConditionFailed, DataError
from llmkit.evaluate import baselines, results
from llmkit.evaluate.conditions import failures, parse_conditions
from llmkit.evaluate.interpolate import interpolate, ngram_directory, paired
from llmkit.evaluate.runmodel import (
    fingerprint_of_run,
    locate_model,
    model_section,
    model_sha256,
    prove,
    tokenizer_sha256,
)
from llmkit.metrics.table import TASK_METRICS
from llmkit.options import Options
from llmkit.recipe.sections import Recipe, SourceSection, TokenizerSection
from llmkit.report.console import Console

if TYPE_CHECKING:
    from llmkit.data.shards import Split
    from llmkit.evaluate.split import Progress
    from llmkit.report.console import Advance
    from llmkit.tasks.base import Evaluated, Prediction, Task


@dataclass(frozen=True)
class Scored:
    """What is scored: a split, its name, and the recipe's sources that its rows number."""

    split: Split
    name: str
    sources: list[SourceSection]


def evaluate(recipe: Recipe, options: Options, console: Console) -> dict[str, Any]:
    """Runs the command; returns what results.json holds. Raises ModelError, DataError, and ConditionFailed last."""
    from llmkit.train import launch

    known = TASK_METRICS[recipe.task.type]
    conditions = parse_conditions(recipe.evaluation.fail_if, known)
    place = locate_model(recipe, options)
    ngram_directory(recipe.evaluation, None)
    if options.dry_run:
        return _dry_run(recipe, place, console)
    prove(place)
    where = launch.place()
    if (options.num_processes or 1) > 1 and where.world_size == 1:
        import sys

        _prepared(recipe, place, options, console)
        raise SystemExit(launch.launch(sys.argv[1:], options.num_processes or 1, console.note))
    launch.die_with_parent()
    if where.rank:
        console.silence()
    prepared = _prepared(recipe, place, options, console)
    if not where.rank:
        prove_before_use(prepared.directory, console.note)
    ngram_directory(recipe.evaluation, prepared.tokenizer_dir)
    scored = choose_split(recipe, prepared)
    found = _score(recipe, options, prepared, scored, place, console)
    if where.rank:
        return {}
    document, evaluated = found
    shown = recipe.evaluation.metrics or list(known)
    wanted = {*shown, *recipe.evaluation.fail_if}
    for part in (document, *document["sources"].values()):
        for metrics in (part["metrics"], *part["baselines"].values()):
            for name in metrics.keys() - wanted:
                del metrics[name]
    directory = Path(recipe.output_dir) / results.DIRECTORY
    size = scored.split.bytes_of()
    results.write(directory, document, ({**item, "bytes": int(size[item["row"]])} for item in evaluated.items))
    _write_report(Path(recipe.output_dir))
    if not console.json:
        for line in results.table(document, evaluated.notes):
            console.result(line)
        console.note(f"written to {directory}")
    values = {name: metric.value for name, metric in evaluated.metrics.items()}
    if failed := failures(conditions, values):
        raise ConditionFailed("; ".join(failed), key="evaluation.fail_if")
    return document


def _task(recipe: Recipe, options: Options, prepared: Prepared, place: Path | str) -> Task:
    """The recipe's task on the finished model at `place`."""
    from llmkit.tasks import build_task

    trained = recipe.model_copy(update={"model": model_section(recipe, place), "peft": None})
    return build_task(
        trained,
        prepared.tokenizer_dir,
        allow_remote_code=options.trust_remote_code,
        trained=True,
        start=recipe.model,
    )


def choose_split(recipe: Recipe, prepared: Prepared) -> Scored:
    """data.test, else the held-out rows. Raises DataError where there is neither."""
    data = recipe.data
    if data.test:
        name, sources = "test", data.test
    else:
        name, sources = "validation", data.validation or data.train
    split = prepared.splits.get(name)
    if split is None or split.num_rows == 0:
        if data.test or data.validation:
            raise DataError(
                f"data.{name} has no usable rows (see {prepared.directory / 'report.json'})", key=f"data.{name}"
            )
        if data.validation_fraction is not None:
            raise DataError(
                f"data.validation_fraction: {data.validation_fraction} held out no rows of so small a corpus; raise it",
                key="data.validation_fraction",
            )
        raise DataError(
            "nothing to score: give data.test, data.validation or data.validation_fraction", key="data.test"
        )
    return Scored(split, name, sources)


def _prepared(recipe: Recipe, place: Path | str, options: Options, console: Console) -> Prepared:
    """The recipe's prepared data. Encoded anew with the model's own tokenizer where that is not the one of the data:
    --model names another model, or the data has changed since the run and would get another trained tokenizer."""
    prepared = prepare.load(recipe)
    own = tokenizer_sha256(place) if isinstance(place, Path) else None
    if prepared is not None and own == tokenizer_sha256(prepared.tokenizer_dir):
        return prepared
    if prepared is None and options.model is None:
        digest = prepare.fingerprint_of(recipe).digest
        if own is None or digest == fingerprint_of_run(Path(recipe.output_dir)):
            return prepare.prepare(recipe, console)
    model = model_section(recipe, place)
    recipe = recipe.model_copy(update={"model": model, "tokenizer": TokenizerSection(name_or_path=str(place))})
    return prepare.load(recipe) or prepare.prepare(recipe, console)


def _score(
    recipe: Recipe, options: Options, prepared: Prepared, scored: Scored, place: Path | str, console: Console
) -> tuple[dict[str, Any], Evaluated]:
    """The document of results.json and the evaluated items; the same on every process."""
    import torch

    from llmkit.evaluate.split import predict_split
    from llmkit.train.build import make_accelerator
    from llmkit.train.hardware import keep_freed_memory
    from llmkit.train.precision import autocast_of, choose_precision

    keep_freed_memory()
    accelerator = make_accelerator([], recipe.output_dir, recipe.distributed.ddp_timeout)
    try:
        task = _task(recipe, options, prepared, place)
        task.prepare(prepared.splits.get("train"), None)
        module = task.build_model().to(accelerator.device)
        precision = choose_precision(recipe.distributed.mixed_precision, accelerator.device.type)
        section = recipe.evaluation
        with console.progress("evaluate", None, "sequences") as advance, autocast_of(precision, accelerator.device)():
            predict = partial(
                predict_split,
                paired(recipe, task, prepared.tokenizer_dir, accelerator.device),
                module,
                accelerator=accelerator,
                batch_size=section.per_device_eval_batch_size,
                max_samples=section.max_samples,
            )
            started = time.perf_counter()
            predictions = predict(scored.split, progress=_advancing(advance))
            evaluated = task.finalize(predictions, scored.split, bootstrap=True)
            console.note(f"{len(evaluated.items):,} items scored in {time.perf_counter() - started:.2f} s")
            suites = {}
            if section.interpolate is not None:
                tune = prepared.splits.get("validation") if scored.name == "test" else None
                held_out = partial(predict, tune) if tune is not None and tune.num_rows else None
                suites["interpolation"], note = interpolate(predictions, scored.split, held_out)
                evaluated.notes.append(note)
        beside = baselines.score(section, recipe.task.type, task, prepared.splits.get("train"), scored.split)
    finally:
        accelerator.end_training()
    inner = getattr(getattr(module, "model", None), "config", None)
    document = {
        **results.metrics_part(evaluated, beside),
        "suites": suites,
        "sources": _by_source(task, predictions, scored),
        "provenance": {
            **_what_was_scored(place, prepared, scored),
            "rows": len(evaluated.items),
            "max_samples": section.max_samples,
            "precision": "float32" if precision == "no" else precision,
            "attn_implementation": getattr(inner, "_attn_implementation", None),
            "device": accelerator.device.type,
            "torch": torch.__version__,
            "conventions": evaluated.notes,
        },
    }
    return document, evaluated


def _what_was_scored(place: Path | str, prepared: Prepared, scored: Scored) -> dict[str, Any]:
    return {
        "model": str(place),
        "model_sha256": model_sha256(place),
        "tokenizer_sha256": tokenizer_sha256(prepared.tokenizer_dir),
        "data_fingerprint": prepared.fingerprint,
        "split": scored.name,
    }


def _advancing(advance: Advance) -> Progress:
    done = 0

    def progress(now: int, total: int) -> None:
        nonlocal done
        advance(now - done, f"of {total:,}")
        done = now

    return progress


def _by_source(task: Task, predictions: list[Prediction], scored: Scored) -> dict[str, Any]:
    """{source: its metrics}; empty where there is one source only."""
    if len(scored.sources) < 2:
        return {}
    source_of = scored.split.source_of()
    found = {}
    for index, source in enumerate(scored.sources):
        mine = [prediction for prediction in predictions if source_of[prediction.row] == index]
        if mine:
            evaluated = task.finalize(mine, scored.split, bootstrap=True)
            name = source.id or str(source.path)
            name = name if name not in found else f"{name} ({index})"
            found[name] = {**results.metrics_part(evaluated), "rows": len(evaluated.items)}
    return found


def _dry_run(recipe: Recipe, place: Path | str, console: Console) -> dict[str, Any]:
    """What would be scored; writes nothing."""
    prepared = prepare.load(recipe)
    plan: dict[str, Any] = {"model": str(place), "prepared": None if prepared is None else str(prepared.directory)}
    if prepared is not None:
        scored = choose_split(recipe, prepared)
        plan |= {"split": scored.name, "rows": scored.split.num_rows}
    elif not (recipe.data.test or recipe.data.validation or recipe.data.validation_fraction):
        raise DataError(
            "nothing to score: give data.test, data.validation or data.validation_fraction", key="data.test"
        )
    if not console.json:
        for key, value in plan.items():
            console.result(f"{key}: {'not yet, would be made' if value is None else value}")
    return plan


def _write_report(output_dir: Path) -> None:
    from llmkit.report.html import write_report

    write_report(output_dir)
