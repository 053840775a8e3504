"""The `preprocess` command: prepares the data of a recipe and says what became of it; or, dry, what it would find."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from llmkit.data import prepare as preparation
from llmkit.data.prepare import Prepared
from llmkit.data.tokenizer import load_tokenizer
from llmkit.options import Options
from llmkit.recipe.sections import Recipe, SourceSection
from llmkit.recipe.tasks import LABELLED
from llmkit.report.console import Console
from llmkit.signals import stop_on_signal

DRY_RUN_ROWS = 200
"""Rows of each source that a dry run looks at."""
DRY_RUN_LABELLED = 100_000
"""The same where rows have labels: a rare one must not seem to be missing in train."""
NUM_EXAMPLES = 3
MAX_REASONS = 5


def preprocess(recipe: Recipe, options: Options, console: Console) -> dict[str, Any]:
    """Prepares a resolved recipe's data. Returns where it lies and report.json's figures; with `dry_run` writes
    nothing.

    Raises DataError, ModelError, RecipeError, EnvironmentFailure; Stopped on SIGTERM, SIGINT and SIGHUP.
    """
    if options.num_processes is not None:
        recipe = recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"num_workers": options.num_processes})}
        )
    if options.dry_run:
        return _dry_run(recipe, console)
    started = time.perf_counter()
    with stop_on_signal():
        if options.overwrite:
            preparation.discard(recipe, console)
        prepared = preparation.prepare(recipe, console)
    seconds = time.perf_counter() - started
    report = {key: value for key, value in prepared.report.items() if key != "tally"}
    if not console.json:
        console.result("\n".join([*summary(prepared), f"{seconds:.1f} s: {prepared.directory}"]))
    return {"directory": str(prepared.directory), "fingerprint": prepared.fingerprint, "seconds": seconds, **report}


def _dry_run(recipe: Recipe, console: Console) -> dict[str, Any]:
    found = preparation.load(recipe)
    if found is not None:
        return _describe(preparation.checked(found, recipe), recipe, console, exact=True)
    with tempfile.TemporaryDirectory(prefix="llmkit-dry-run-") as scratch:
        sample = sample_recipe(recipe, Path(scratch))
        return _describe(preparation.prepare(sample, console), recipe, console, exact=False)


def dry_run_rows(recipe: Recipe) -> int:
    return DRY_RUN_LABELLED if recipe.task.type in LABELLED else DRY_RUN_ROWS


def sample_recipe(recipe: Recipe, scratch: Path) -> Recipe:
    """The recipe on the first rows of each source, prepared in `scratch`."""

    def first(sources: list[SourceSection]) -> list[SourceSection]:
        rows = dry_run_rows(recipe)
        return [source.model_copy(update={"limit": min(rows, source.limit or rows)}) for source in sources]

    changes: dict[str, Any] = {name: first(getattr(recipe.data, name)) for name in ("train", "validation", "test")}
    changes |= {"prepared_dir": str(scratch / "prepared"), "max_bad_fraction": 1.0}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)})


def _describe(prepared: Prepared, recipe: Recipe, console: Console, exact: bool) -> dict[str, Any]:
    examples = describe_examples(prepared, recipe)
    report = {key: value for key, value in prepared.report.items() if key != "tally"}
    if not console.json:
        basis = "the prepared dataset"
        if not exact:
            trained = ", and a tokenizer trained on them alone" if recipe.tokenizer.train is not None else ""
            basis = f"the first {dry_run_rows(recipe):,} rows of each source{trained}; nothing is written"
        lines = [f"from {basis}", *summary(prepared)]
        console.result("\n".join([*lines, *example_lines(examples)]))
    return {"exact": exact, "examples": examples, **report}


def describe_examples(prepared: Prepared, recipe: Recipe) -> list[dict[str, Any]]:
    """The first rows of the train split (or whichever there is) decoded, with what is and is not supervised."""
    split = next((prepared.splits[name] for name in ("train", "validation", "test") if name in prepared.splits), None)
    if split is None:
        return []
    from llmkit.tasks import encoder_for

    tokenizer = load_tokenizer(prepared.tokenizer_dir)
    encoder = encoder_for(recipe, prepared.tokenizer_dir)

    def decode(ids: list[int]) -> str:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    found = []
    for i in range(min(NUM_EXAMPLES, split.num_rows)):
        origin = split.origin(i)
        shown: list[dict[str, Any]] = []
        for span in encoder.spans(split, i, decode):
            text = span.text if len(span.text) <= 1000 else span.text[:500] + " ... " + span.text[-500:]
            shown.append({"text": text, "supervised": span.is_supervised})
        place = {"file": origin["file"], "line": origin["line"]}
        found.append({**place, "tokens": int(split.lengths()[i]), "spans": shown})
    return found


def example_lines(examples: list[dict[str, Any]]) -> list[str]:
    """`describe_examples` for people."""
    lines = []
    for number, example in enumerate(examples, 1):
        lines.append(f"example {number}: {example['file']}:{example['line']}, {example['tokens']:,} tokens")
        lines += [f"  {'+' if span['supervised'] else '-'} {span['text']!r}" for span in example["spans"]]
    return [*lines, "(+ is supervised, - is not)"]


def summary(prepared: Prepared) -> list[str]:
    """The lines of a short table: sources, cleaning steps, splits, the tokenizer's fit."""
    report = prepared.report
    lines = [f"{report['records']:,} records, {report['used']:,} used, {report['bad']:,} bad"]
    for source in report["sources"]:
        lost = [f"{source[key]:,} {name}" for key, name in LOST.items() if source.get(key)]
        used = f"{source.get('used', 0):,} of {source.get('records', 0):,} records"
        lines.append(f"  {source['split']} {source['id']}: {used}{'; ' + ', '.join(lost) if lost else ''}")
    for step in report["clean"]:
        counted = f"{step['documents_in']:,} in, {step['documents_changed']:,} changed"
        lines.append(f"  {step['split']} {step['step']}: {counted}, {step['documents_dropped']:,} dropped")
    for reason, count in list(report["rejected"].items())[:MAX_REASONS]:
        lines.append(f"  not used: {count:,} x {reason}")
    for name, split in report["splits"].items():
        size = f"{split['rows']:,} rows, {split['tokens']:,} tokens, {split['bytes']:,} bytes"
        lines.append(f"  {name}: {size}{_labels(split['labels'])}")
    tokenizer = report["tokenizer"]
    lines.append(f"  tokenizer: {tokenizer['vocab_size']:,} tokens, {tokenizer['engine']['engine']}")
    for script, fit in tokenizer["fit"].items():
        rates = f"{100 * fit['unknown_rate']:.2f}% unknown, {100 * fit['single_byte_rate']:.2f}% parts of characters"
        lines.append(f"    {SCRIPTS[script]}: {fit['tokens_per_character']:.3f} tokens a character, {rates}")
    return lines


def _labels(audit: dict[str, Any]) -> str:
    """What is taught, where that is not everything; and what a model would miss."""
    found = []
    if audit["masked"] and audit["supervised_share"] is not None:
        found.append(f"{100 * audit['supervised_share']:.1f}% supervised")
    if audit["zero_label_rows"]:
        found.append(f"{audit['zero_label_rows']:,} rows teach nothing")
    if audit["ends_supervised_share"] is not None and audit["ends_supervised_share"] < 1:
        found.append(f"{100 * (1 - audit['ends_supervised_share']):.1f}% do not end in a stop token")
    found += [f"{number:,} {what}" for what, number in audit.get("counts", {}).items()]
    return "".join(f", {one}" for one in found)


LOST = {"bad": "bad", "cleaned_away": "cleaned away", "encoder_rejected": "not encoded", "truncated": "truncated"}
SCRIPTS = {"cjk": "Chinese and Japanese", "other": "other scripts"}
