"""Metrics, intervals, tables and items of tagged sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.metrics.bootstrap import sums_interval
from llmkit.metrics.entities import OUTSIDE, Found, Scheme, broken, entities, match_entities, match_tags, score
from llmkit.tasks.base import Evaluated, Metric
from llmkit.tasks.language_model import BOOTSTRAP_SEED, ratio

if TYPE_CHECKING:
    from llmkit.data.shards import Split

Table = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Sentence:
    """A record: its windows joined. predicted: None for words that have no place in any window. loss: a sum over
    `tokens` words."""

    row: int
    words: list[str]
    gold: list[str]
    predicted: list[str | None]
    loss: float
    tokens: int


def evaluated(sentences: list[Sentence], scheme: Scheme, split: Split, *, bootstrap: bool) -> Evaluated:
    """Entity-level precision, recall and F1 (micro), with accuracy a word; of plain tags the macro averages."""
    matches = [_match(sentence, scheme) for sentence in sentences]
    correct = np.array([_agreeing(sentence, scheme) for sentence in sentences])
    words = np.array([len(sentence.words) for sentence in sentences])
    losses = np.array([sentence.loss for sentence in sentences])
    tokens = np.array([sentence.tokens for sentence in sentences])
    metrics: dict[str, Metric | None] = {"loss": ratio(losses, tokens, bootstrap=bootstrap)}
    kinds = sorted({kind for found in matches for counts in (found.predicted, found.gold) for kind in counts})
    if scheme == "none":
        columns = np.array([[_counts(found, kind) for found in matches] for kind in kinds]).transpose(0, 2, 1)
        for place, name in enumerate(("precision", "recall", "f1")):
            metrics[name] = _interval(columns.reshape(-1, len(matches)), _macro(place, len(kinds)), bootstrap)
        micro = columns.sum(0)
        metrics["f1_micro"] = _interval(micro, _micro(2), bootstrap)
    else:
        columns = np.array([[sum(part.values()) for part in _parts(found)] for found in matches]).T
        for place, name in enumerate(("precision", "recall", "f1")):
            metrics[name] = _interval(columns, _micro(place), bootstrap)
    metrics["accuracy"] = ratio(correct, words, bootstrap=bootstrap)
    return Evaluated(
        {name: metric for name, metric in metrics.items() if metric is not None},
        _items(sentences, matches, correct, scheme, split) if bootstrap else [],
        _notes(sentences, scheme),
        {"per_class": _table(matches, kinds)},
    )


def _match(sentence: Sentence, scheme: Scheme) -> Found:
    if scheme == "none":
        return match_tags(sentence.gold, sentence.predicted)
    return match_entities(sentence.gold, _tags(sentence, scheme))


def _tags(sentence: Sentence, scheme: Scheme) -> list[str]:
    """The predicted tags; a word without a prediction is outside of entities."""
    return [OUTSIDE if tag is None else tag for tag in sentence.predicted]


def _agreeing(sentence: Sentence, scheme: Scheme) -> int:
    predicted = sentence.predicted if scheme == "none" else _tags(sentence, scheme)
    return sum(gold == tag for gold, tag in zip(sentence.gold, predicted, strict=True))


def _parts(found: Found) -> tuple[Counter[str], Counter[str], Counter[str]]:
    return found.correct, found.predicted, found.gold


def _counts(found: Found, kind: str) -> list[int]:
    return [part[kind] for part in _parts(found)]


Statistic = Callable[[np.ndarray], np.ndarray]


def _interval(columns: np.ndarray, statistic: Statistic, bootstrap: bool) -> Metric:
    """columns: (K, sentences) counts. The value, and its interval over sentences."""
    if not bootstrap:
        return Metric(float(statistic(columns.sum(1, keepdims=True).astype(float))[0]), n=columns.shape[1])
    value, low, high = sums_interval(columns, statistic, seed=BOOTSTRAP_SEED)
    return Metric(value, low, high, columns.shape[1])


def _scores(sums: np.ndarray) -> np.ndarray:
    """(3, ...) correct, predicted, gold -> (3, ...) precision, recall, F1; 0 where there is nothing to divide by."""
    correct, predicted, gold = sums
    bottoms = np.stack([predicted, gold, (predicted + gold) / 2])
    scores: np.ndarray = np.divide(correct, bottoms, out=np.zeros_like(bottoms), where=bottoms > 0)
    return scores


def _micro(place: int) -> Statistic:
    return lambda sums: _scores(sums.astype(float))[place]


def _macro(place: int, kinds: int) -> Statistic:
    """Mean over the classes, each with the same weight, as scikit-learn's macro average."""
    return lambda sums: _scores(sums.astype(float).reshape(kinds, 3, -1).swapaxes(0, 1))[place].mean(0)


def _table(matches: list[Found], kinds: list[str]) -> Table:
    totals = [sum(parts, Counter[str]()) for parts in zip(*(_parts(found) for found in matches), strict=True)]
    table: Table = {}
    for kind in kinds:
        precision, recall, f1 = score(*(part[kind] for part in totals))
        counts = {"gold": totals[2][kind], "predicted": totals[1][kind]}
        table[kind] = {"precision": precision, "recall": recall, "f1": f1, **counts}
    return table


def _items(
    sentences: list[Sentence], matches: list[Found], correct: np.ndarray, scheme: Scheme, split: Split
) -> list[dict[str, Any]]:
    places = split.origins(np.array([sentence.row for sentence in sentences], np.int64))
    items = []
    for sentence, found, right, place in zip(sentences, matches, correct.tolist(), places, strict=True):
        agreeing, predicted, gold = (sum(part.values()) for part in _parts(found))
        sums: dict[str, list[int]] = {"accuracy": [right, len(sentence.words)]}
        if scheme != "none":
            sums |= {
                "precision": [agreeing, predicted],
                "recall": [agreeing, gold],
                "f1": [2 * agreeing, predicted + gold],
            }
        items.append(
            {
                "row": sentence.row,
                **{key: place[key] for key in ("source", "file", "line", "hash")},
                "words": sentence.words,
                "labels": sentence.gold,
                "prediction": sentence.predicted if scheme == "none" else _tags(sentence, scheme),
                "sums": sums,
                **{name: _ratio(*pair) for name, pair in sums.items()},
                "loss": sentence.loss / sentence.tokens if sentence.tokens else None,
                "tokens": sentence.tokens,
            }
        )
    return items


def _ratio(numerator: int, denominator: int) -> float | None:
    """None where there is nothing to count, as in a sentence without entities."""
    return numerator / denominator if denominator else None


def _notes(sentences: list[Sentence], scheme: Scheme) -> list[str]:
    if scheme == "none":
        notes = ["tagging_scheme none: precision, recall and f1 are means over tags (macro), accuracy is a word"]
    else:
        how = "; BMES and BILOU read as BIOES" if scheme in ("BMES", "BILOU") else ""
        notes = [
            f"tagging_scheme {scheme}: precision, recall and f1 count entities that agree in type and both ends, as "
            f"conlleval and seqeval's default mode read tags{how}"
        ]
        odd, total = (sum(count(s) for s in sentences) for count in (_broken_by(scheme), _total))
        if odd:
            notes.append(f"{odd:,} of {total:,} gold entities do not begin or end as {scheme} says; read as conlleval")
    unseen = sum(tag is None for sentence in sentences for tag in sentence.predicted)
    if unseen:
        what = "wrong" if scheme == "none" else "O"
        notes.append(f"{unseen:,} words have no sub-word of their own or stand beyond max_length: scored as {what}")
    return notes


def _broken_by(scheme: Scheme) -> Callable[[Sentence], int]:
    return lambda sentence: broken(sentence.gold, scheme)


def _total(sentence: Sentence) -> int:
    return len(entities(sentence.gold))
