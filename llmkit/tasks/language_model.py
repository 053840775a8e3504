"""What the decoder-only tasks share: batches, scoring, metrics, export. Torch is imported where it is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.examples import IGNORE, Sample
from llmkit.data.tokenizer import load_tokenizer
from llmkit.errors import ModelError
from llmkit.models.heads import CAUSAL_LM, Head
from llmkit.models.load import quiet
from llmkit.tasks.base import Batch, Evaluated, Metric, Prediction
from llmkit.tasks.network import NetworkSpec, build_network, export_network

if TYPE_CHECKING:
    import torch
    from torch import nn

    from llmkit.data.shards import Split

UNIGRAM_TOKENS = 50_000_000
BOOTSTRAP_SEED = 0
ARPA = "model.arpa.gz"


def build_module(spec: NetworkSpec, head: Head = CAUSAL_LM) -> nn.Module:
    """A CausalLMModule in float32 on the CPU, proven causal. Raises ModelError, RecipeError."""
    from llmkit.models.isolation import probe_causal
    from llmkit.models.lm import CausalLMModule

    module = CausalLMModule(build_network(spec, head), label_smoothing=spec.label_smoothing)
    if spec.model.name_or_path is not None and not spec.trained and hasattr(module.inner(), "score_labels"):
        message = "an n-gram model is counted from scratch (model.config); it cannot be trained further"
        raise ModelError(message, key="model.name_or_path")
    if not probe_causal(module):
        kind = module.inner().config.model_type
        raise ModelError(f"{kind} attends to later tokens, so it cannot learn to predict them", key="model")
    return module


def settle_packing(wanted: bool | None, module: nn.Module, saved: dict[str, Any] | None) -> bool:
    """Whether documents are packed: as the recipe says, else as before, else where the architecture isolates them."""
    from llmkit.models.isolation import probe_isolation
    from llmkit.models.lm import CausalLMModule
    from llmkit.models.wrapping import unwrap

    if wanted is False:
        return False
    if wanted is None and saved is not None and "packing" in saved:
        return bool(saved["packing"])
    inner = unwrap(module, CausalLMModule)
    # documents of one row would share a tuned prompt, and peft ignores positions then
    isolated = not inner.prompt_length and probe_isolation(inner)
    if wanted is True and not isolated:
        message = (
            f"{inner.inner().config.model_type} lets packed documents see each other (a probe at start shows it); "
            "set data.packing: false, or leave it out"
        )
        raise ModelError(message, key="data.packing")
    return isolated


def collate(samples: Sequence[Sample], pad_id: int, width: int | None) -> Batch:
    """(B, T) int64 tensors, padded on the right. Positions run on through the padding, so that padding alone never
    needs an attention mask: nothing supervised stands after it."""
    import torch

    longest = max(len(sample.arrays["input_ids"]) for sample in samples)
    width = longest if width is None else width
    assert longest <= width, "a sample is longer than the batch"
    fill = {"input_ids": pad_id, "labels": IGNORE, "position_ids": 0}
    arrays = {name: np.full((len(samples), width), fill[name], dtype=np.int64) for name in samples[0].arrays}
    for number, sample in enumerate(samples):
        length = len(sample.arrays["input_ids"])
        for name, array in arrays.items():
            array[number, :length] = sample.arrays[name]
        if "position_ids" in arrays and length < width:
            after = int(sample.arrays["position_ids"][-1]) + 1
            arrays["position_ids"][number, length:] = np.arange(after, after + width - length)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def counts(batch: Batch) -> dict[str, int]:
    return {"loss": int((batch["labels"] != IGNORE).sum())}


def predict(module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
    """One prediction a sample: sums over its supervised tokens. Rows of several samples are joined in `summarise`."""
    from llmkit.models.lm import CausalLMModule
    from llmkit.models.wrapping import unwrap

    losses, hits = unwrap(module, CausalLMModule).score(batch)
    return predictions(losses, hits, batch["labels"], samples)


def predictions(
    losses: torch.Tensor, hits: torch.Tensor, labels: torch.Tensor, samples: Sequence[Sample]
) -> list[Prediction]:
    """Of scored labels, (B, T) each: see `CausalLMModule.score`."""
    tokens = (labels != IGNORE).sum(1).tolist()
    sums, correct = losses.sum(1).tolist(), hits.sum(1).tolist()
    return [
        Prediction(int(sample.rows[0]), {"loss": sums[i], "tokens": tokens[i], "correct": correct[i]})
        for i, sample in enumerate(samples)
    ]


@dataclass(frozen=True)
class Summary:
    """Evaluated rows, ascending, with their sums: (n,) each."""

    rows: np.ndarray
    losses: np.ndarray
    tokens: np.ndarray
    correct: np.ndarray


def summarise(predictions: list[Prediction]) -> Summary:
    """Joins the predictions of a row, whatever their order: sums are exact (math.fsum), so batches do not show."""
    parts: dict[int, list[Prediction]] = {}
    for prediction in predictions:
        parts.setdefault(prediction.row, []).append(prediction)
    rows = sorted(parts)
    return Summary(
        np.array(rows, dtype=np.int64),
        np.array([math.fsum(p.values["loss"] for p in parts[row]) for row in rows]),
        np.array([sum(p.values["tokens"] for p in parts[row]) for row in rows], dtype=np.int64),
        np.array([sum(p.values["correct"] for p in parts[row]) for row in rows], dtype=np.int64),
    )


def ratio(
    numerators: np.ndarray, denominators: np.ndarray, *, bootstrap: bool, exponential: bool = False
) -> Metric | None:
    """sum / sum (its exponential) over rows, with the bootstrap interval over rows; None where nothing counts."""
    from llmkit.metrics.bootstrap import ratio_interval

    if denominators.sum() <= 0:
        return None
    transform = np.exp if exponential else None
    if not bootstrap:
        value = float(numerators.sum() / denominators.sum())
        return Metric(float(np.exp(value)) if exponential else value, n=len(numerators))
    value, low, high = ratio_interval(numerators, denominators, seed=BOOTSTRAP_SEED, transform=transform)
    return Metric(value, low, high, len(numerators))


def finalize(
    predictions: list[Prediction],
    split: Split,
    *,
    bootstrap: bool,
    bits_per_byte: bool,
    train_counts: np.ndarray | None,
    convention: str,
) -> Evaluated:
    """Loss, perplexity and their kin over the predicted rows, and an item a row."""
    summary = summarise(predictions)
    wanted = {
        "loss": ratio(summary.losses, summary.tokens, bootstrap=bootstrap),
        "perplexity": ratio(summary.losses, summary.tokens, bootstrap=bootstrap, exponential=True),
        "token_accuracy": ratio(summary.correct, summary.tokens, bootstrap=bootstrap),
    }
    notes = [convention]
    if bits_per_byte:
        size = np.asarray(split.bytes_of())[summary.rows]
        wanted["bits_per_byte"] = ratio(summary.losses / math.log(2), size, bootstrap=bootstrap)
        notes.append("bits_per_byte: cost of all predicted tokens, each document's end included, a UTF-8 byte of text")
    if train_counts is not None and len(summary.rows):
        from llmkit.metrics.unigram import target_counts, unigram_loss

        seen = target_counts(split, vocab_size=len(train_counts), rows=summary.rows, max_tokens=UNIGRAM_TOKENS)
        if seen.sum() > 0:
            wanted["unigram_perplexity"] = Metric(math.exp(unigram_loss(train_counts, seen)))
            notes.append("unigram_perplexity: the same tokens under their frequencies in train, add-one smoothed")
    metrics = {name: metric for name, metric in wanted.items() if metric is not None}
    # training validates often and only reads the metrics
    return Evaluated(metrics, _items(summary, split) if bootstrap else [], notes)


def _items(summary: Summary, split: Split) -> list[dict[str, Any]]:
    places = split.origins(summary.rows)
    items = []
    for place, row, loss, tokens, correct in zip(
        places,
        summary.rows.tolist(),
        summary.losses.tolist(),
        summary.tokens.tolist(),
        summary.correct.tolist(),
        strict=True,
    ):
        mean = loss / tokens if tokens else None
        items.append(
            {
                "row": row,
                **{key: place[key] for key in ("source", "file", "line", "hash")},
                "loss": mean,
                "perplexity": math.exp(min(mean, 700.0)) if mean is not None else None,
                "tokens": tokens,
                "token_accuracy": correct / tokens if tokens else None,
            }
        )
    return items


def export(module: nn.Module, directory: Path, spec: NetworkSpec, *, stop_ids: list[int], template: str | None) -> None:
    """The model (an adapter merged where the recipe says so), its generation settings and its tokenizer."""
    from transformers import GenerationConfig

    from llmkit.models.lm import CausalLMModule
    from llmkit.models.wrapping import unwrap

    export_network(unwrap(module, CausalLMModule).model, directory, spec, template=template)
    tokenizer = load_tokenizer(directory)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_ids[0]
    ids: Any = stop_ids if len(stop_ids) > 1 else stop_ids[0]
    with quiet():
        generation = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=ids, pad_token_id=pad)
        generation.save_pretrained(str(directory))


def export_arpa(module: nn.Module, directory: Path) -> None:
    """model.arpa.gz beside an n-gram model whose config asks for it."""
    from llmkit.models.lm import CausalLMModule
    from llmkit.models.wrapping import unwrap

    model = unwrap(module, CausalLMModule).inner()
    if getattr(model.config, "arpa", False):
        from llmkit.models.ngram_arpa import export_arpa

        export_arpa(model, directory, directory / ARPA)
