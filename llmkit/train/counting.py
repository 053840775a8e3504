"""The life of a run whose model is counted: no optimiser, no steps, no checkpoints; the same files as any other run.

Counting is a function of the data and the recipe, so that a run that was killed simply begins anew and ends with the
same bytes. Buffers are bounded: what does not fit in them lies in the output directory until the model is written.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.packing import epoch_rows
from llmkit.data.prepare import Prepared
from llmkit.data.tokenizer import read_special_ids
from llmkit.files import environment_errors, free_bytes
from llmkit.models.lm import CausalLMModule
from llmkit.models.ngram_counting import Scratch
from llmkit.models.ngram_smoothing import Documents, Smoothed, estimate, thresholds
from llmkit.models.source import max_length
from llmkit.models.wrapping import unwrap
from llmkit.options import Options
from llmkit.recipe.sections import Recipe
from llmkit.report.console import Console
from llmkit.report.text import duration
from llmkit.tasks import build_task
from llmkit.tasks.base import Task
from llmkit.train import hardware
from llmkit.train.fitted import Fitted, fit_once
from llmkit.train.job import Job

if TYPE_CHECKING:
    from torch import nn

WORK = ".counting."
SAMPLE_TOKENS = 1_000_000
"""`--dry-run` counts this many tokens, and half of them, and extrapolates."""
TOKEN_BYTES, NGRAM_BYTES, TABLE_BYTES = 40, 96, 16
"""Disk that counting takes a token and an n-gram at most, and what an n-gram takes in the model."""


def run(job: Job) -> dict[str, Any]:
    """Counts, exports and returns the final results."""

    def fit(parts: tuple[Task, nn.Module, Documents], directory: Path) -> Fitted:
        task, module, documents = parts
        config = _model(module).config
        job.console.note(f"counting {documents.num_tokens:,} tokens up to order {config.order}")
        with _workplace(directory) as scratch:
            found = _fit(module, documents, scratch, job.console)
        resolved = {
            "order": config.order,
            "prune": thresholds(config.prune or [], config.order),
            "max_length": max_length(job.recipe),
            "discounts": {str(n): list(values) for n, values in enumerate(found.discounts, 1)},
            "fallback_orders": found.fallback,
            "ngrams_seen": found.seen,
        }
        sizes = {f"ngrams_{n}": size for n, size in enumerate(_model(module).config.num_ngrams, 1)}
        return Fitted(task, module, resolved, documents.num_tokens, sizes)

    return fit_once(job, "an n-gram model", "model.config", lambda: _parts(job.recipe, job.prepared, job.options), fit)


def _parts(recipe: Recipe, prepared: Prepared, options: Options) -> tuple[Task, nn.Module, Documents]:
    """The task, its module with an empty model, and what is counted: an epoch, every source by its weight."""
    task = build_task(recipe, prepared.tokenizer_dir, allow_remote_code=options.trust_remote_code)
    train = prepared.splits["train"]
    task.prepare(train, prepared.splits.get("validation"))
    module = task.build_model()
    ids = read_special_ids(prepared.tokenizer_dir)
    assert ids.prefix is not None and ids.suffix is not None, "the encoder refuses a tokenizer without them"
    rows = epoch_rows(train, [source.weight for source in recipe.data.train], recipe.seed, 0)
    return task, module, Documents(train, rows, _model(module).config.vocab_size, ids.prefix, ids.suffix)


def _model(module: nn.Module) -> Any:
    return unwrap(module, CausalLMModule).inner()


@contextmanager
def _workplace(directory: Path) -> Iterator[Scratch]:
    """A directory for what is counted; what a killed run left of its own goes first."""
    with environment_errors(directory):
        for path in directory.glob(f"{WORK}*"):
            shutil.rmtree(path)
        with tempfile.TemporaryDirectory(prefix=WORK, dir=directory) as place:
            yield Scratch(Path(place))


def _fit(module: nn.Module, documents: Documents, scratch: Scratch, console: Console) -> Smoothed:
    """Counts the documents into the module's model."""
    model = _model(module)

    def told(n: int, size: int) -> None:
        console.note(f"order {n}: {size:,} n-grams")

    config = model.config
    found = estimate(documents, order=config.order, prune=config.prune or [], scratch=scratch, told=told)
    if found.fallback:
        orders = ", ".join(map(str, found.fallback))
        console.warn(
            f"order {orders}: too few n-grams occur once, twice and three times to estimate discounts; 0.5, 1 and 1.5 "
            "are used (small or repetitive data)"
        )
    model.set_tables(found.tables)
    return found


def try_once(recipe: Recipe, options: Options, prepared: Prepared, scratch: Path, exact: bool) -> dict[str, Any]:
    """`--dry-run`: counts a sample and extrapolates n-grams, time, memory and disk."""
    _, module, documents = _parts(recipe, prepared, options)
    config = _model(module).config
    total = documents.num_tokens
    sizes, seconds, sampled = _grow(documents, config.order, config.prune or [], scratch)
    scale = total / max(sampled, 1)
    ngrams = [round(size * scale ** _growth(half, size)) for half, size in zip(*sizes["kept"], strict=True)]
    seen = [round(size * scale ** _growth(half, size)) for half, size in zip(*sizes["seen"], strict=True)]
    model_bytes = TABLE_BYTES * sum(ngrams)
    return {
        "order": config.order,
        "prune": thresholds(config.prune or [], config.order),
        "documents": len(documents.rows),
        "tokens": total,
        "tokens_are_exact": exact,
        "counted_tokens": sampled,
        "ngrams": ngrams,
        "max_length": max_length(recipe),
        "estimated_seconds": round(seconds * scale, 1),
        "model_bytes": model_bytes,
        "peak_memory_bytes": hardware.peak_memory(_model(module).device) + 2 * model_bytes,
        "disk_bytes": TOKEN_BYTES * total + NGRAM_BYTES * sum(seen) + model_bytes,
        "free_disk_bytes": free_bytes(recipe.output_dir),
    }


def _grow(
    documents: Documents, order: int, prune: list[int], place: Path
) -> tuple[dict[str, list[list[int]]], float, int]:
    """({kept, seen}: n-grams an order in half of the sample and in all of it, seconds, tokens of the sample)."""
    lengths = np.cumsum(np.asarray(documents.split.lengths())[documents.rows].astype(np.int64))
    sizes: dict[str, list[list[int]]] = {"kept": [], "seen": []}
    seconds, tokens = 0.0, 0
    for share in (0.5, 1.0):
        wanted = share * min(SAMPLE_TOKENS, int(lengths[-1]))
        rows = documents.rows[: max(1, int(np.searchsorted(lengths, wanted)) + 1)]
        part = Documents(documents.split, rows, documents.vocab_size, documents.start, documents.end)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=place) as work:
            found = estimate(part, order=order, prune=prune, scratch=Scratch(Path(work)))
        seconds, tokens = time.perf_counter() - started, part.num_tokens
        sizes["kept"].append([len(table.keys) for table in found.tables])
        sizes["seen"].append(found.seen)
    return sizes, seconds, tokens


def _growth(half: int, whole: int) -> float:
    """The exponent of Heaps' law that two sizes show, 1 at most."""
    return min(1.0, max(0.0, float(np.log2(max(whole, 1) / half)))) if half else 1.0


def run_lines(run: dict[str, Any]) -> list[str]:
    """The run's part of the `--dry-run` report for people."""
    about = "" if run["tokens_are_exact"] else " in the sample; the whole data has more"
    return [
        f"  tokens             {run['tokens']:,} of {run['documents']:,} documents{about}",
        f"  n-grams            about {', '.join(f'{size:,}' for size in run['ngrams'])} of order 1 to {run['order']}, "
        f"from {run['counted_tokens']:,} tokens counted",
        f"  time               about {duration(run['estimated_seconds'])}, in one process",
        f"  peak memory        about {run['peak_memory_bytes'] / 1e9:.2f} GB",
        f"  model              about {run['model_bytes'] / 1e6:.1f} MB",
        f"  disk               about {run['disk_bytes'] / 1e9:.2f} GB while counting; "
        f"{run['free_disk_bytes'] / 1e9:.1f} GB free",
    ]
