"""Fill-in-the-middle (arXiv:2207.14255): a piece of text is told as prefix, suffix, middle, so that a causal model
learns to fill gaps. Token level, drawn anew each epoch, on the pieces that windows show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SENTINELS: tuple[tuple[str, str, str], ...] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""(prefix, suffix, middle) as Qwen2.5-Coder, StarCoder, SantaCoder and Code Llama write them; the first where a
tokenizer has none."""


def find_sentinels(has: Callable[[str], bool]) -> tuple[str, str, str] | None:
    """The sentinels that a tokenizer's vocabulary holds, else None."""
    return next((names for names in SENTINELS if all(has(name) for name in names)), None)


@dataclass(frozen=True)
class FillInMiddle:
    """`rate`: share of pieces that are reordered, half of them in each order (PSM, SPM).

    The length stays the same, because windows are computed before anything is drawn: the sentinels take the places of
    the last tokens of the suffix (as Megatron and StarCoder do), and of the context token where a piece starts inside a
    document. A document's first token and its end-of-text stay where they are.
    """

    rate: float
    prefix_id: int
    suffix_id: int
    middle_id: int
    eos_id: int

    def apply(self, tokens: np.ndarray, draw: np.random.Generator, *, is_start: bool, is_end: bool) -> np.ndarray:
        """A piece of n + 1 tokens (n inputs and the last target) in, as many out."""
        if draw.random() >= self.rate:
            return tokens
        head = tokens[:1] if is_start else tokens[:0]
        tail = tokens[-1:] if is_end and tokens[-1] == self.eos_id else tokens[:0]
        body = tokens[1 : len(tokens) - len(tail)]
        body = body[: len(tokens) - len(head) - len(tail) - 3]
        if len(body) < 3:
            return tokens
        first, second = np.sort(draw.integers(0, len(body) + 1, size=2)).tolist()
        prefix, middle, suffix = body[:first], body[first:second], body[second:]
        pre, suf, mid = (np.array([i], dtype=tokens.dtype) for i in (self.prefix_id, self.suffix_id, self.middle_id))
        if draw.random() < 0.5:
            parts = [head, pre, prefix, suf, suffix, mid, middle, tail]
        else:
            parts = [head, pre, suf, suffix, mid, prefix, middle, tail]
        return np.concatenate(parts)
