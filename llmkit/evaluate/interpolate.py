"""`evaluation.interpolate`: the run's language model mixed with an n-gram model, token by token.

The weight is fitted on tokens that are not scored with it: on the validation rows where data.test is scored, else
cross-fitted, each half of the rows with the weight of the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from llmkit.errors import DataError, ModelError
from llmkit.evaluate.results import metric_json
from llmkit.evaluate.runmodel import is_model, prove, tokenizer_sha256
from llmkit.evaluate.subset import choose_rows
from llmkit.metrics.mixture import fit_weight, mix
from llmkit.models.source import locate, read_config
from llmkit.recipe.counting import NGRAM
from llmkit.recipe.sections import EvaluationSection, ModelSection, Recipe
from llmkit.tasks.base import IGNORE, Batch, Metric, Plan, Prediction, Sample, Task

if TYPE_CHECKING:
    import torch
    from torch import nn

    from llmkit.data.shards import Split

KEY = "evaluation.interpolate.ngram"


def ngram_directory(section: EvaluationSection, tokenizer_dir: Path | None) -> Path | None:
    """Where the n-gram model is, proven; None where none is asked for. Raises ModelError where it is no n-gram model or
    splits text otherwise than the tokenizer in `tokenizer_dir` (None: not known yet)."""
    if section.interpolate is None:
        return None
    named = Path(section.interpolate.ngram)
    place = named / "model" if is_model(named / "model") and not is_model(named) else named
    source = locate(str(place), key=KEY)
    if not source.is_local or (kind := read_config(source).get("model_type")) != NGRAM:
        what = f"a model of type {kind}" if source.is_local else "not a directory"
        raise ModelError(f"{place} is {what}; the model directory of an n-gram run was expected", key=KEY)
    prove(place)
    if tokenizer_dir is not None and tokenizer_sha256(place) != tokenizer_sha256(tokenizer_dir):
        raise ModelError(
            f"the tokenizer of {place} is another than the one of the evaluated model, so that their tokens cannot be "
            f"mixed; count the n-gram model with tokenizer.name_or_path: {tokenizer_dir}",
            key=KEY,
        )
    return place


@dataclass(frozen=True)
class _Pair:
    """The part of a Task that scoring reads, with both models in one pass: what the task itself predicts, and (2, T)
    log p of a sample's labels."""

    task: Task
    ngram: nn.Module

    def eval_plan(self, split: Split) -> Plan:
        return self.task.eval_plan(split)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        return self.task.collate(samples, seed=seed, step=step, width=width)

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        from llmkit.models.lm import CausalLMModule
        from llmkit.models.wrapping import unwrap
        from llmkit.tasks.language_model import predictions

        losses, hits = unwrap(module, CausalLMModule).score(batch)
        others, _ = unwrap(self.ngram, CausalLMModule).score(batch)
        given = (batch["labels"] != IGNORE).cpu().numpy()
        both = -np.stack([losses.cpu().numpy(), others.cpu().numpy()])
        found = predictions(losses, hits, batch["labels"], samples)
        for i, prediction in enumerate(found):
            prediction.values["log_p"] = both[:, i, given[i]]
        return found


def paired(recipe: Recipe, task: Task, tokenizer_dir: Path, device: torch.device) -> Task:
    """The task, which where evaluation.interpolate asks for it scores with the n-gram model too."""
    from llmkit.tasks.language_model import build_module
    from llmkit.tasks.network import NetworkSpec

    place = ngram_directory(recipe.evaluation, tokenizer_dir)
    if place is None:
        return task
    section = ModelSection(name_or_path=str(place))
    ngram = build_module(NetworkSpec(section, None, tokenizer_dir, recipe.seed, 1, trained=True))
    return cast("Task", _Pair(task, ngram.to(device)))


@dataclass(frozen=True)
class _Tokens:
    """Scored tokens: `log_p` (2, N) under both models, `row` (N,) the place of each one's row in `rows` (R,)."""

    log_p: np.ndarray
    row: np.ndarray
    rows: np.ndarray


def interpolate(
    predictions: list[Prediction], scored: Split, tune: Callable[[], list[Prediction]] | None
) -> tuple[dict[str, Any], str]:
    """({weight, loss, perplexity, bits_per_byte, ngram_perplexity} as results.json has them, how the weight was found).

    predictions: of a `paired` task on `scored`. tune: gives those of the rows to fit the weight on; None: cross-fitted.
    Raises DataError for a single row.
    """
    found = _tokens(predictions)
    if tune is not None:
        weights = [fit_weight(*_tokens(tune()).log_p)]
        mixed = mix(found.log_p[0], found.log_p[1], weights[0])
        how = "fitted on the validation rows"
    else:
        weights, mixed = _cross_fit(found)
        one, other = weights
        how = f"cross-fitted: each half of the rows with the weight of the other half ({one:.4f} and {other:.4f})"
    metrics = {"weight": Metric(float(np.mean(weights))), **_metrics(mixed, found, scored)}
    metrics["ngram_perplexity"] = _metrics(found.log_p[1], found, scored)["perplexity"]
    suite = {name: metric_json(metric) for name, metric in metrics.items()}
    return suite, f"interpolation: the weight is the model's, the rest the n-gram model's; {how}"


def _tokens(predictions: list[Prediction]) -> _Tokens:
    log_p = [prediction.values["log_p"] for prediction in predictions]
    if sum(part.shape[1] for part in log_p) == 0:
        raise DataError("there is no token to fit the weight of the mixture on", key=KEY)
    rows, places = np.unique([prediction.row for prediction in predictions], return_inverse=True)
    return _Tokens(np.concatenate(log_p, axis=1), np.repeat(places, [part.shape[1] for part in log_p]), rows)


def _cross_fit(found: _Tokens) -> tuple[list[float], np.ndarray]:
    count = len(found.rows)
    if count < 2:
        raise DataError("a single row cannot both fit the weight and be scored with it; give data.test", key=KEY)
    first = np.isin(found.row, choose_rows(count, count // 2))
    weights, mixed = [], np.empty(found.log_p.shape[1])
    for half in (first, ~first):
        weights.append(fit_weight(*found.log_p[:, ~half]))
        mixed[half] = mix(found.log_p[0, half], found.log_p[1, half], weights[-1])
    return weights, mixed


def _metrics(log_p: np.ndarray, found: _Tokens, split: Split) -> dict[str, Metric]:
    """Loss, perplexity and bits a byte with intervals over rows, as `language_model.finalize` has them."""
    from llmkit.tasks.language_model import ratio

    count = len(found.rows)
    losses, tokens = np.bincount(found.row, -log_p, count), np.bincount(found.row, minlength=count)
    wanted = {
        "loss": ratio(losses, tokens, bootstrap=True),
        "perplexity": ratio(losses, tokens, bootstrap=True, exponential=True),
        "bits_per_byte": ratio(losses / np.log(2), np.asarray(split.bytes_of())[found.rows], bootstrap=True),
    }
    return {name: metric for name, metric in wanted.items() if metric is not None}
