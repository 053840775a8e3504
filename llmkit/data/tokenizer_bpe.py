"""Byte-level BPE: lossless, 256 bytes at the bottom, GPT-2's splitting rule, merges as `tokenizers` learns them.

Plain BPE leaves rarer CJK characters (three bytes each) in single bytes although their number is small. So those that
cover nearly all CJK text of the sample get merges of their own, after the learned ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import numpy as np
from tokenizers import Tokenizer

from llmkit.data.text import CJK_RANGES
from llmkit.data.tokenizer_merges import count_characters, learn

COVERAGE = 0.998
"""Share of the CJK characters of the sample, by occurrence, that should be whole tokens. At 8,000 entries a novel then
takes 0.6% more tokens than plain BPE gives, and 1.0% of them are parts of characters instead of 3.3%."""
RESERVE = 0.4
"""At most this share of the vocabulary goes to such merges."""


def train_bpe(pieces: Callable[[], Iterable[str]], vocab_size: int, special: list[str]) -> Tokenizer:
    """Trains on `pieces()` (called twice). At most `vocab_size` entries, `special` first, then bytes, then merges."""
    full = learn(list(pieces()), vocab_size, special)
    wanted = _frequent_cjk(pieces())
    if not _missing(full, wanted):
        return full
    # training longer only appends merges, so a shorter training is a prefix: find the longest that leaves room
    low, high = max(len(special) + 256, int(vocab_size * (1 - RESERVE))), vocab_size
    while high - low > max(8, vocab_size // 200):
        middle = (low + high) // 2
        needed = _with_characters(_shortened(full, middle), wanted, 2**31).get_vocab_size()
        low, high = (middle, high) if needed <= vocab_size else (low, middle)
    return _with_characters(_shortened(full, low), wanted, vocab_size)


def _shortened(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """The tokenizer as if its training had stopped at `size` entries."""
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < size}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    return Tokenizer.from_str(json.dumps(state))


def _frequent_cjk(texts: Iterable[str]) -> list[str]:
    """The CJK characters, most frequent first, that cover COVERAGE of all; single occurrences are left out."""
    counts = count_characters(texts)
    codes = np.concatenate([np.arange(first, last + 1) for first, last in CJK_RANGES])
    codes = codes[counts[codes] > 0]
    ranked = codes[np.lexsort((codes, -counts[codes]))]
    before = np.cumsum(counts[ranked]) - counts[ranked]
    chosen = ranked[(before < COVERAGE * counts[ranked].sum()) & (counts[ranked] > 1)]
    return [chr(code) for code in chosen.tolist()]


def _missing(tokenizer: Tokenizer, characters: list[str]) -> list[str]:
    encodings = tokenizer.encode_batch(characters, add_special_tokens=False)
    return [character for character, encoding in zip(characters, encodings, strict=True) if len(encoding.ids) > 1]


def _with_characters(tokenizer: Tokenizer, characters: list[str], vocab_size: int) -> Tokenizer:
    """Adds the merges that make whole tokens of `characters`, as far as there is room."""
    characters = _missing(tokenizer, characters)
    state = json.loads(tokenizer.to_str())
    vocab, merges = state["model"]["vocab"], state["model"]["merges"]
    for encoding in tokenizer.encode_batch(characters, add_special_tokens=False):
        tokens = list(encoding.tokens)
        needed = []
        while len(tokens) > 1:
            needed.append((tokens[0], tokens[1]))
            tokens[:2] = [tokens[0] + tokens[1]]
        new = [pair for pair in needed if pair[0] + pair[1] not in vocab]
        if len(vocab) + len(new) > vocab_size:
            break
        for left, right in needed:
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append([left, right])
    return Tokenizer.from_str(json.dumps(state))
