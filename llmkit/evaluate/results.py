"""evaluation/: results.json, predictions.jsonl and the table that people read."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from llmkit.errors import DataError
from llmkit.files import dump_json, environment_errors, fsync_directory, read_json, sha256_file, write_atomic
from llmkit.manifest import seal
from llmkit.metrics.table import METRICS
from llmkit.tasks.base import Evaluated, Metric

DIRECTORY = "evaluation"
RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"
UNIGRAM = "unigram_perplexity"
MAX_CONFUSED = 12
"""Labels up to which the confusion matrix is printed; results.json always has it."""


def metrics_part(evaluated: Evaluated, beside: dict[str, dict[str, Metric]] | None = None) -> dict[str, Any]:
    """{metrics, suites, baselines} as the contract has them, and the task's tables. The unigram model is a baseline;
    `beside` has those of the others."""
    metrics = {name: metric_json(metric) for name, metric in evaluated.metrics.items() if name != UNIGRAM}
    unigram = evaluated.metrics.get(UNIGRAM)
    baselines = {} if unigram is None else {"unigram": {"perplexity": metric_json(unigram)}}
    for baseline, found in (beside or {}).items():
        baselines[baseline] = {name: metric_json(metric) for name, metric in found.items()}
    return {"metrics": metrics, "suites": {}, "baselines": baselines, **evaluated.tables}


def metric_json(metric: Metric) -> dict[str, float | int | None]:
    """JSON has no infinity: a value that is none is null."""
    return {
        "value": _finite(metric.value),
        "low": _finite(metric.low),
        "high": _finite(metric.high),
        "n": metric.n,
    }


def write(directory: Path, document: dict[str, Any], items: Iterable[dict[str, Any]]) -> None:
    """Predictions first, then results.json, which names their hash and proves itself: results that exist are whole."""
    path = directory / PREDICTIONS
    _write_lines(path, items)
    plain = json.loads(dump_json({**document, "predictions_sha256": sha256_file(path)}))
    write_atomic(directory / RESULTS, seal(plain))


def read(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """results.json and the items of an evaluated run (the run directory or its evaluation/). Raises DataError."""
    directory = run if (run / RESULTS).is_file() and (run / PREDICTIONS).is_file() else run / DIRECTORY
    results, predictions = directory / RESULTS, directory / PREDICTIONS
    if not results.is_file() or not predictions.is_file():
        raise DataError(f"{run} holds no evaluation; run `llmkit evaluate RECIPE` on it first")
    try:
        document = read_json(results)
        with predictions.open(encoding="utf-8") as file:
            items = [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise DataError(f"{directory} is damaged ({error}); evaluate again") from None
    if document.get("predictions_sha256") != sha256_file(predictions):
        raise DataError(f"{predictions} is not the file that {results.name} was written with; evaluate again")
    return document, items


def table(document: dict[str, Any], notes: list[str]) -> list[str]:
    """Lines for people: every metric with its 95% interval, baselines beside it, then the conventions."""
    rows: list[tuple[str, ...]] = [("", "value", "95% interval", "items")]
    rows += [_row(name, value) for name, value in document["metrics"].items()]
    for baseline, metrics in document["baselines"].items():
        rows += [_row(name, value, f"{baseline} model: ") for name, value in metrics.items()]
    for suite, metrics in document["suites"].items():
        rows += [_row(name, value, f"{suite}: ") for name, value in metrics.items()]
    for source, part in document["sources"].items():
        rows += [
            _row(name, part["metrics"][name], f"{source}: ") for name in document["metrics"] if name in part["metrics"]
        ]
    lines = _aligned(rows)
    lines += _class_lines(document)
    provenance = document["provenance"]
    lines += [
        "",
        f"{provenance['rows']:,} rows of {provenance['split']}, {provenance['precision']}; 95% bootstrap over rows",
    ]
    return [*lines, *notes]


def _class_lines(document: dict[str, Any]) -> list[str]:
    """Scores a class, and the confusion matrix where it fits a screen."""
    lines = []
    if classes := document.get("per_class"):
        heads = ("precision", "recall", "f1", "gold", "predicted")
        rows = [
            (name, *(f"{scores[head]:,}" if isinstance(scores[head], int) else f"{scores[head]:.4f}" for head in heads))
            for name, scores in classes.items()
        ]
        lines += ["", *_aligned([("label", *heads), *rows])]
    matrix = document.get("confusion_matrix")
    if matrix and len(matrix["labels"]) <= MAX_CONFUSED:
        body = [(name, *map(str, counts)) for name, counts in zip(matrix["labels"], matrix["counts"], strict=True)]
        lines += ["", *_aligned([("gold \\ predicted", *matrix["labels"]), *body])]
    return lines


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(cell_len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first + " " * (widths[0] - cell_len(first))]
        cells += [" " * (width - cell_len(cell)) + cell for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _row(name: str, metric: dict[str, Any], prefix: str = "") -> tuple[str, str, str, str]:
    digits = METRICS[name].digits if name in METRICS else 4

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    interval = "" if metric["low"] is None else f"{shown(metric['low'])} to {shown(metric['high'])}"
    count = "" if metric["n"] is None else f"{metric['n']:,}"
    return f"{prefix}{name}", shown(metric["value"]), interval, count


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _write_lines(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """JSON lines, whole or absent, without holding them in memory."""
    with environment_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                for item in items:
                    file.write(encode_line({key: _json_value(value) for key, value in item.items()}))
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)


def encode_line(value: dict[str, Any]) -> bytes:
    """One JSON line with real Chinese characters; where a text holds a lone surrogate, everything is escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False).encode() + b"\n"


def _json_value(value: Any) -> Any:
    return _finite(value) if isinstance(value, float) else value
