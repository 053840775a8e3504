"""Baselines of sequence classification: the most frequent label, and logistic regression on TF-IDF features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.text import count_words
from llmkit.errors import RecipeError
from llmkit.tasks.base import Prediction
from llmkit.tasks.label_encoder import TEXT
from llmkit.tasks.sequence_classification import SequenceClassificationTask

if TYPE_CHECKING:
    from llmkit.data.shards import Split

CHARACTERS_FROM = 0.2
"""Share of CJK characters among the words of the training rows from which characters are counted, not words."""


def majority(task: SequenceClassificationTask, train: Split, scored: Split, rows: np.ndarray) -> list[Prediction]:
    """The most frequent label; of several labels those that most rows have; of numbers the mean."""
    gold = task.labels.ids(train, "train")
    guess: dict[str, Any]
    if task.labels.problem_type == "single_label":
        guess = {"label": int(np.bincount(gold).argmax())}
    elif task.labels.problem_type == "multi_label":
        guess = {"labels": (gold.mean(0) > 0.5).astype(int).tolist()}
    else:
        guess = {"value": float(gold.mean())}
    return [Prediction(int(row), guess) for row in rows]


def tfidf_logistic_regression(
    task: SequenceClassificationTask, train: Split, scored: Split, rows: np.ndarray
) -> list[Prediction]:
    """Words and pairs of words of spaced text, or one to three characters of Chinese; scikit-learn's defaults beside.

    Of several labels, one regression a label. Raises RecipeError where the labels are numbers.
    """
    if task.labels.problem_type == "regression":
        raise RecipeError(
            "tfidf_logistic_regression predicts classes, and the labels are numbers; majority (the mean) applies",
            key="evaluation.baselines",
        )
    gold = task.labels.ids(train, "train")
    texts = ["\n".join(parts) for parts in train.field(TEXT).to_pylist()]
    features = _vectoriser(texts)
    known = features.fit_transform(texts)
    new = features.transform("\n".join(parts) for parts in scored.field(TEXT).take(rows).to_pylist())
    if task.labels.problem_type == "single_label":
        labels = _fit(known, gold, new)
        return [Prediction(int(row), {"label": int(label)}) for row, label in zip(rows, labels, strict=True)]
    columns = np.stack([_fit(known, column, new) for column in gold.T], axis=1)
    return [Prediction(int(row), {"labels": each.tolist()}) for row, each in zip(rows, columns, strict=True)]


def _vectoriser(texts: list[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    words, cjk = (part.sum() for part in count_words(texts))
    if cjk > CHARACTERS_FROM * words:
        return TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    return TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)


def _fit(known: Any, gold: np.ndarray, new: Any) -> np.ndarray:
    """Predicted classes of the new rows."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(gold)) < 2:
        return np.full(new.shape[0], gold[0])
    found: np.ndarray = LogisticRegression(max_iter=1000).fit(known, gold).predict(new)
    return found
