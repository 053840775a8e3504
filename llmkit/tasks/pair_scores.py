"""Texts that a model wrote against their references: a metric a name with its interval, and scores row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from llmkit.metrics.bootstrap import Floats, sums_interval
from llmkit.tasks.base import Metric

BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Scored:
    """items: what each row gets beside, in the order given; empty without `bootstrap`."""

    metrics: dict[str, Metric]
    items: list[dict[str, Any]]
    notes: list[str]


class Score(Protocol):
    def __call__(self, texts: list[str], references: list[list[str]], *, bootstrap: bool) -> Scored: ...


def translation_scores(*, with_ter: bool) -> Score:
    """BLEU and chrF, and TER where asked for: it takes as long as the others together many times."""
    return partial(_translation, with_ter)


def _translation(with_ter: bool, texts: list[str], references: list[list[str]], *, bootstrap: bool) -> Scored:
    from llmkit.metrics import translation

    tokenizer = translation.bleu_tokenizer([own[0] for own in references])
    tables: dict[str, tuple[Floats, Callable[[Floats], Floats]]] = {
        "sacrebleu": (translation.bleu_columns(texts, references, tokenizer), translation.bleu_of),
        "chrf": (translation.chrf_columns(texts, references), translation.chrf_of),
    }
    if with_ter:
        tables["ter"] = (translation.ter_columns(texts, references, tokenizer), translation.ter_of)
    metrics = {name: _metric(table, statistic, bootstrap=bootstrap) for name, (table, statistic) in tables.items()}
    rows = {name: statistic(table).tolist() for name, (table, statistic) in tables.items()} if bootstrap else {}
    notes = [f"sacrebleu: {translation.bleu_signature(tokenizer)}; chrf: chrF2, character n-grams to 6"]
    return Scored(metrics, _items(texts, references, rows) if bootstrap else [], notes)


def summarization_scores(texts: list[str], references: list[list[str]], *, bootstrap: bool) -> Scored:
    """ROUGE, means over rows."""
    from llmkit.metrics.rouge import ROUGE, rouge_columns

    table = rouge_columns(texts, references)
    ones = np.ones(len(texts))
    metrics = {
        name: _metric(np.stack([row, ones]), _ratio, bootstrap=bootstrap)
        for name, row in zip(ROUGE, table, strict=True)
    }
    rows: dict[str, list[Any]] = dict(zip(ROUGE, table.tolist(), strict=True))
    # means over rows, so that two runs can be compared row by row
    rows["sums"] = [{name: [value, 1.0] for name, value in zip(ROUGE, row, strict=True)} for row in table.T.tolist()]
    notes = ["rouge: F of rouge_score without stemming, Chinese characters as words, a line a sentence in rougeLsum"]
    return Scored(metrics, _items(texts, references, rows) if bootstrap else [], notes)


def _metric(table: Floats, statistic: Callable[[Floats], Floats], *, bootstrap: bool) -> Metric:
    if not bootstrap:
        return Metric(float(statistic(table.sum(axis=1, keepdims=True))[0]), n=table.shape[1])
    value, low, high = sums_interval(table, statistic, seed=BOOTSTRAP_SEED)
    return Metric(value, low, high, table.shape[1])


def _ratio(sums: Floats) -> Floats:
    found: Floats = sums[0] / np.where(sums[1] > 0, sums[1], np.nan)
    return found


def _items(texts: list[str], references: list[list[str]], rows: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [
        {"references": own, "prediction": text, **{name: values[i] for name, values in rows.items()}}
        for i, (text, own) in enumerate(zip(texts, references, strict=True))
    ]
