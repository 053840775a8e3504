"""`evaluation.interpolate`: the run's language model mixed with an n-gram model, token by token.

The weight is fitted on tokens that are not scored with it: on the validation rows where data.test is scored, else
cross-fitted, each half of the rows with the weight of the other half.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    from accelerate import Accelerator
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
    """The part of a Task that scoring reads: a prediction is (2, T) log p of a sample's labels under both models."""

    task: Task
    ngram: nn.Module

    def eval_plan(self, split: Split) -> Plan:
        return self.task.eval_plan(split)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        return self.task.collate(samples, seed=seed, step=step, width=width)

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        from llmkit.models.lm import CausalLMModule
        from llmkit.models.wrapping import unwrap

        losses = [unwrap(part, CausalLMModule).score(batch)[0] for part in (module, self.ngram)]
        given = (batch["labels"] != IGNORE).cpu().numpy()
        both = -np.stack([part.cpu().numpy() for part in losses])
        return [Prediction(int(s.rows[0]), {"log_p": both[:, i, given[i]]}) for i, s in enumerate(samples)]


@dataclass(frozen=True)
class _Tokens:
    """Scored tokens: `log_p` (2, N) under both models, `row` (N,) the place of each one's row in `rows` (R,)."""

    log_p: np.ndarray
    row: np.ndarray
    rows: np.ndarray


def interpolate(
    recipe: Recipe,
    task: Task,
    module: nn.Module,
    ngram: nn.Module,
    tune: Split | None,
    scored: Split,
    accelerator: Accelerator,
) -> tuple[dict[str, Any], list[str]]:
    """({weight, loss, perplexity, bits_per_byte, ngram_perplexity} as results.json has them, notes); the same on every
    process. tune: rows to fit the weight on; None: cross-fitted on `scored`. Raises DataError for a single row."""
    pair = cast("Task", _Pair(task, ngram.to(accelerator.device)))
    found = _score(pair, module, scored, recipe.evaluation, accelerator)
    if tune is not None:
        weights = [fit_weight(*_score(pair, module, tune, recipe.evaluation, accelerator).log_p)]
        mixed = mix(found.log_p[0], found.log_p[1], weights[0])
        how = "fitted on the validation rows"
    else:
        weights, mixed = _cross_fit(found)
        how = (
            f"cross-fitted: each half of the rows with the weight of the other ({weights[0]:.4f} and {weights[1]:.4f})"
        )
    metrics = {"weight": Metric(float(np.mean(weights))), **_metrics(mixed, found, scored)}
    metrics["ngram_perplexity"] = _metrics(found.log_p[1], found, scored)["perplexity"]
    note = f"interpolation: weight of the model against {recipe.evaluation.interpolate.ngram}, {how}"  # type: ignore[union-attr]
    return {name: metric_json(metric) for name, metric in metrics.items()}, [note]


def _score(
    pair: Task, module: nn.Module, split: Split, section: EvaluationSection, accelerator: Accelerator
) -> _Tokens:
    from llmkit.evaluate.split import predict_split

    size, most = section.per_device_eval_batch_size, section.max_samples
    predictions = predict_split(pair, module, split, accelerator, batch_size=size, max_samples=most)
    sizes = [prediction.values["log_p"].shape[1] for prediction in predictions]
    rows, places = np.unique([prediction.row for prediction in predictions], return_inverse=True)
    log_p = np.concatenate([prediction.values["log_p"] for prediction in predictions], axis=1)
    if log_p.shape[1] == 0:
        raise DataError("no token to fit the weight of the mixture on", key=KEY)
    return _Tokens(log_p, np.repeat(places, sizes), rows)


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


def load_ngram(recipe: Recipe, place: Path, tokenizer_dir: Path) -> nn.Module:
    """The n-gram model as a module that scores."""
    from llmkit.tasks.language_model import build_module
    from llmkit.tasks.network import NetworkSpec

    section = ModelSection(name_or_path=str(place))
    return build_module(NetworkSpec(section, None, tokenizer_dir, recipe.seed, 1, trained=True))
