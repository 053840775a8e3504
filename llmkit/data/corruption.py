"""What encoder-decoders restore: spans behind sentinels (T5), and texts infilled and out of order (BART).

Pure functions of the tokens and of the generator that is handed in; torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np


class Noise(Protocol):
    """A way of corrupting a window. `window`: the most tokens of which the two sides stay within the model's length."""

    @property
    def window(self) -> int: ...

    def num_targets(self, length: int) -> int:
        """Tokens that the decoder writes for a window of `length`."""

    def apply(
        self, tokens: np.ndarray, sentence_ends: np.ndarray | None, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(what the encoder reads, what the decoder writes), each int64 with its special tokens."""


@dataclass(frozen=True)
class SpanCorruption:
    """T5 (arXiv:1910.10683, section 3.1.4): `density` of the tokens are left out in spans of `mean` tokens on average;
    a sentinel stands for each, and the target is every sentinel with its span. `end` closes both sides."""

    max_length: int
    density: float
    mean: float
    sentinels: tuple[int, ...]
    end: int

    @cached_property
    def window(self) -> int:
        """Tokens of a window whose two sides are at most `max_length` each, and whose spans have a sentinel each."""
        length = 1
        while self._fits(length + 1):
            length += 1
        return length

    def num_targets(self, length: int) -> int:
        return sum(noise_counts(length, self.density, self.mean)) + 1

    def _fits(self, length: int) -> bool:
        noise, spans = noise_counts(length, self.density, self.mean)
        return max(length - noise, noise) + spans + 1 <= self.max_length and spans <= len(self.sentinels)

    def apply(
        self, tokens: np.ndarray, sentence_ends: np.ndarray | None, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        mask = span_mask(len(tokens), self.density, self.mean, draw)
        first = mask & ~np.concatenate([[False], mask[:-1]])
        span = np.cumsum(first) - 1  # of each hidden token
        marks = np.array(self.sentinels)[span.clip(min=0)]
        kept = np.where(first, marks, tokens)[~mask | first]
        places = np.flatnonzero(first)
        target = np.insert(tokens[mask], np.flatnonzero(first[mask]), marks[places])
        return np.append(kept, self.end).astype(np.int64), np.append(target, self.end).astype(np.int64)


def noise_counts(length: int, density: float, mean: float) -> tuple[int, int]:
    """(tokens left out, spans of them) of a window of `length` tokens: at least one of each, and one token kept where
    there are two."""
    noise = max(min(round(length * density), length - 1), 1)
    return noise, max(min(round(noise / mean), length - noise), 1)


def span_mask(length: int, density: float, mean: float, draw: np.random.Generator) -> np.ndarray:
    """(length,) bool: tokens left out. Kept and left-out stretches take turns, their lengths drawn evenly among all
    that add up. Only the stretches at the ends may be empty: the paper's code never leaves out the first token and always
    the last one, which in a short text would be the same span each time."""
    noise, spans = noise_counts(length, density, mean)
    kept = _segments(length - noise + 2, spans + 1, draw) if noise < length else np.ones(2, dtype=np.int64)
    kept[[0, -1]] -= 1
    sizes = np.zeros(2 * spans + 1, dtype=np.int64)
    sizes[::2], sizes[1::2] = kept, _segments(noise, spans, draw)
    return np.repeat(np.arange(2 * spans + 1) % 2 == 1, sizes)


def _segments(total: int, parts: int, draw: np.random.Generator) -> np.ndarray:
    """(parts,) sizes of at least one that add up to `total`."""
    cuts = np.sort(draw.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


@dataclass(frozen=True)
class Denoising:
    """BART (arXiv:1910.13461): sentences in another order, then spans of Poisson lengths behind one mask each, some of
    them empty, `ratio` of the tokens in all. The target is the text as it was; `prefix` and `suffix` frame both."""

    max_length: int
    ratio: float
    mean: float
    permutes: bool
    mask: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def window(self) -> int:
        return self.max_length - len(self.prefix) - len(self.suffix)

    def num_targets(self, length: int) -> int:
        return len(self.prefix) + length + len(self.suffix)

    def apply(
        self, tokens: np.ndarray, sentence_ends: np.ndarray | None, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        noisy = tokens
        if self.permutes:
            assert sentence_ends is not None, "the encoder marks them"
            noisy = permute_sentences(tokens, sentence_ends, draw)
        return self._framed(infill(noisy, self.ratio, self.mean, self.mask, draw)), self._framed(tokens)

    def _framed(self, tokens: np.ndarray) -> np.ndarray:
        return np.concatenate([self.prefix, tokens, self.suffix]).astype(np.int64)


def permute_sentences(tokens: np.ndarray, ends: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The sentences of a window in random order; `ends` (T,) marks the last token of each."""
    sentences = np.split(tokens, np.flatnonzero(ends[:-1]) + 1)
    return np.concatenate([sentences[i] for i in draw.permutation(len(sentences))])


def infill(tokens: np.ndarray, ratio: float, mean: float, mask: int, draw: np.random.Generator) -> np.ndarray:
    """Spans replaced by one `mask` each, `ratio` of the tokens (at least one) in all; lengths are Poisson with `mean`,
    the last cut to fit. Spans stand apart where there is room, and empty ones are drawn only while there are no more
    spans than tokens they replace, so nothing gets longer."""
    left = budget = max(round(ratio * len(tokens)), 1)
    lengths: list[int] = []
    while left > 0:
        shortest = 0 if len(lengths) + 1 + left <= budget else 1
        lengths.append(min(max(int(draw.poisson(mean)), shortest), left))
        left -= lengths[-1]
    kept = len(tokens) - budget
    gaps = np.sort(draw.choice(kept + 1, len(lengths), replace=len(lengths) > kept + 1))
    parts, at, before = [], 0, 0
    for gap, length in zip(gaps.tolist(), draw.permutation(lengths).tolist(), strict=True):
        parts += [tokens[at : at + gap - before], np.array([mask])]
        at, before = at + gap - before + length, gap
    return np.concatenate([*parts, tokens[at:]])
