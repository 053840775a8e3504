"""The unigram model: the perplexity that knowing only how often each token occurs would give. Torch-free.

It is the floor that a language model has to beat by far; printed beside every perplexity. Add-one smoothing, so that a
token that training never showed costs a finite amount.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llmkit.data.shards import Split

Counts = NDArray[np.int64]


def unigram_loss(train: Counts, scored: Counts) -> float:
    """Mean cost in nats of the tokens counted in `scored` under the frequencies of `train`; both (vocabulary,)."""
    size = max(len(train), len(scored))
    train, scored = _padded(train, size), _padded(scored, size)
    log_p = np.log(train + 1.0) - math.log(float(train.sum()) + size)
    return float(-(scored * log_p).sum() / scored.sum())


def target_counts(split: Split, *, vocab_size: int, rows: NDArray[np.int64] | None = None, max_tokens: int) -> Counts:
    """(vocab_size,) how often each token is a supervised target in `rows` of `split` (None: all of them, in order).

    A target is every token but a row's first; with a `loss_mask` stream, those that it marks. Stops after `max_tokens`
    tokens, enough for frequencies, so that a corpus is never read whole."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    masked = "loss_mask" in split.streams
    seen = 0
    for row in range(split.num_rows) if rows is None else rows.tolist():
        tokens = split.row(row)[1:]
        if masked:
            tokens = tokens[split.row(row, "loss_mask")[1:].astype(bool)]
        counts += np.bincount(tokens, minlength=vocab_size)
        seen += len(tokens)
        if seen >= max_tokens:
            break
    return counts


def _padded(counts: Counts, size: int) -> Counts:
    return np.pad(counts, (0, size - len(counts)))
